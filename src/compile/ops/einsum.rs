//! This file is where Einstein sums are: products whose operands' axes are letters.

use std::collections::{BTreeMap, HashSet};

use super::Gradient::Rule;
use super::Kind::Product;
use super::{Cotangents, Misfit, Operator};
use crate::compile::builder::Builder;
use crate::compile::facts::{Fact, Length};
use crate::compile::graph::{Node, Value};

pub(super) static OPERATORS: &[Operator] = &[Operator {
    name: "Einsum",
    domain: "",
    kind: Product,
    gradient: Rule(einsum),
    examples: &[
        "y = Einsum(x[2, 3, 2, 4], w[2, 5, 2, 4]) {equation: \"bind,bjnd->bnij\"}",
        "y = Einsum(x, w[4]) {equation: \"bth,h->b\"}",
        "y = Einsum(x, w[4, 5]) {equation: \"...h, hk\"}",
        "y = Einsum(x, w[1, 4, 5]) {equation: \"...ij,...jk->...ik\"}",
        "y = Einsum(x, v[4], w[3]) {equation: \"bij,j,i->bi\"}",
        "y = Einsum(x[3, 4]) {equation: \"ij->ji\"}",
    ],
}];

/// A cotangent of an operand is the Einstein sum of `dy` and the other operands, its letters behind the arrow;
/// along letters that nothing else has, it is repeated
fn einsum(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let ranks: Vec<usize> = node.inputs.iter().map(|it| b.rank(it)).collect();
    let equation = node.text("equation").ok_or("the equation is missing")?;
    let Equation { terms, result } = Equation::parse(equation, &ranks, b.rank(dy))?;
    let mut lengths: BTreeMap<char, Length> = BTreeMap::new();
    for (term, operand) in terms.iter().zip(&node.inputs) {
        for (&letter, length) in term.iter().zip(b.shape(operand)) {
            let known = lengths.entry(letter).or_insert(Length::ONE);
            *known = known.broadcast(length);
        }
    }
    let mut cotangents = Vec::new();
    for (place, (term, x)) in terms.iter().zip(&node.inputs).enumerate() {
        if !b.wants(x) {
            cotangents.push(None);
            continue;
        }
        if term.iter().collect::<HashSet<_>>().len() < term.len() {
            return Err("a letter stands twice in an operand".into());
        }
        let others = || (0..terms.len()).filter(|&it| it != place);
        let elsewhere: HashSet<&char> = others().flat_map(|it| &terms[it]).chain(&result).collect();
        let kept: Vec<char> = term.iter().copied().filter(|it| elsewhere.contains(it)).collect();
        let left: Vec<String> = others().map(|it| terms[it].iter().collect()).collect();
        let right = |letters: &[char]| letters.iter().collect::<String>();
        let left = [left, vec![right(&result)]].concat().join(",");
        let equation = format!("{left}->{}", right(&kept));
        let operands: Vec<&Value> = others().map(|it| &node.inputs[it]).chain([dy]).collect();
        let shape = kept.iter().map(|it| lengths[it]).collect();
        let fact = Fact::new(b.fact(dy).element, shape);
        let dx = b.emit("Einsum", &operands, &[("equation", equation.as_str().into())], fact);
        let alone: Vec<usize> = (0..term.len()).filter(|&it| !kept.contains(&term[it])).collect();
        let dx = if alone.is_empty() { dx } else { b.unsqueeze(&dx, &alone) };
        let shape = b.shape(x);
        let dx = b.sum_to(&dx, &shape);
        cotangents.push(Some(b.expand_like(&dx, x)));
    }
    Ok(cotangents)
}

/// The letters of each operand and of the result, an ellipsis written out in letters of its own.
struct Equation {
    terms: Vec<Vec<char>>,
    result: Vec<char>,
}

impl Equation {
    fn parse(text: &str, ranks: &[usize], rank: usize) -> Result<Self, Misfit> {
        let text: String = text.chars().filter(|it| !it.is_whitespace()).collect();
        let (left, right) = text.split_once("->").map_or((&*text, None), |(left, right)| (left, Some(right)));
        let written: Vec<&str> = left.split(',').collect();
        if written.len() != ranks.len() {
            return Err("the equation has another number of operands".into());
        }
        // The letters of an ellipsis, the last axis last.
        let free = ('A'..='Z').chain('a'..='z').filter(|it| !text.contains(*it));
        let free: Vec<char> = free.collect();
        let dots = |written: &str, rank: usize| -> Result<Vec<char>, Misfit> {
            let Some((front, behind)) = written.split_once("...") else {
                return Ok(written.chars().collect());
            };
            let count = rank.checked_sub(front.len() + behind.len()).filter(|&it| it <= free.len());
            let count = count.ok_or("the ellipsis does not fit")?;
            let axes = free[..count].iter().rev();
            Ok(front.chars().chain(axes.copied()).chain(behind.chars()).collect())
        };
        let terms: Result<Vec<_>, _> = written.iter().zip(ranks).map(|(it, &rank)| dots(it, rank)).collect();
        let terms: Vec<Vec<char>> = terms?;
        if terms.iter().zip(ranks).any(|(term, &rank)| term.len() != rank) {
            return Err("an operand has another number of axes than letters".into());
        }
        let result = match right {
            Some(right) => dots(right, rank)?,
            None => {
                let named = |it: &char| left.contains(*it);
                let all = || terms.iter().flatten();
                let mut once: Vec<char> = all().copied().filter(named).collect();
                once.retain(|letter| all().filter(|it| *it == letter).count() == 1);
                once.sort_unstable();
                let dots = rank.checked_sub(once.len()).ok_or("the result does not fit")?;
                free[..dots].iter().rev().copied().chain(once).collect()
            }
        };
        if result.len() != rank {
            return Err("the result has another number of axes than letters".into());
        }
        Ok(Self { terms, result })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(text: &str, ranks: &[usize], rank: usize) -> String {
        let it = Equation::parse(text, ranks, rank).unwrap();
        let words = it.terms.iter().chain([&it.result]);
        words.map(|it| it.iter().collect::<String>()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn without_an_arrow_the_result_has_the_letters_that_stand_once() {
        assert_eq!(letters("...h, hk", &[3, 2], 3), "BAh hk BAk");
    }

    #[test]
    fn ellipses_align_at_their_last_axis() {
        assert_eq!(letters("...ij,...jk->...ik", &[4, 3], 4), "BAij Ajk BAik");
    }

    #[test]
    fn an_equation_that_does_not_fit_its_operands_is_refused() {
        assert!(Equation::parse("ij,jk->ik", &[2], 2).is_err());
        assert!(Equation::parse("ijk->ik", &[2], 2).is_err());
    }
}
