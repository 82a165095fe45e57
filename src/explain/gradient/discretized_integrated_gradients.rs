//! Discretized integrated gradients: the gradient along a monotone path through real words.

use std::{collections::HashMap, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use utoipa::ToSchema;

use super::{Baseline, BaselineKind, Embedded, Point, price_of, token_finding};
use crate::{
    explain::{About, Case, ExplainError, Family, Finding, Method, Price, Subject, Typed, nothing_more},
    model::{Need, Output, Words},
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&DISCRETIZED_INTEGRATED_GRADIENTS;

static DISCRETIZED_INTEGRATED_GRADIENTS: Typed<DiscretizedIntegratedGradients> = Typed {
    about: About {
        slug: "discretized-integrated-gradients",
        family: Family::Gradient,
        summary: "Integrated gradients along a path whose points lie near real words instead of on a straight \
                  line.",
        reference: "Sanyal and Ren (2021), Discretized Integrated Gradients for Explaining Language Models, \
                    arXiv:2108.13654",
        output: Output::Logit,
        needs: &[Need::Gradient],
        stops_early: false,
        example: r#"{"steps": 8}"#,
    },
    needs: nothing_more,
    price,
    run,
};

/// Parameters of discretized integrated gradients.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DiscretizedIntegratedGradients {
    /// The word at which every token's path starts.
    #[schema(default = "pad")]
    pub baseline: WordBaseline,
    /// How the next word of a path is chosen among a word's 500 nearest.
    #[schema(default = "greedy")]
    pub strategy: Strategy,
    /// Words between the input's token and the baseline.
    #[schema(minimum = 1, maximum = 256, default = 30)]
    pub steps: usize,
}

/// A baseline that is a word of the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WordBaseline {
    /// The pad token.
    #[default]
    Pad,
    /// The mask token.
    Mask,
    /// The unknown token.
    Unk,
}

/// How the next word of a path is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The word that moves least when its embedding is made monotone.
    #[default]
    Greedy,
    /// The word with most components that are monotone already.
    Maxcount,
}

impl Default for DiscretizedIntegratedGradients {
    fn default() -> Self {
        Self { baseline: WordBaseline::Pad, strategy: Strategy::Greedy, steps: 30 }
    }
}

impl DiscretizedIntegratedGradients {
    fn start(&self, subject: &Subject<'_>) -> Result<Baseline, ExplainError> {
        let kind = match self.baseline {
            WordBaseline::Pad => BaselineKind::Pad,
            WordBaseline::Mask => BaselineKind::Mask,
            WordBaseline::Unk => BaselineKind::Unk,
        };
        Baseline::read(kind, None, 1, subject)
    }
}

/// One gradient for each point of the path but the last, and the scores at its ends.
fn price(parameters: &DiscretizedIntegratedGradients, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    parameters.start(subject)?;
    let points = price_of(parameters.steps as u64 + 1, subject.targets, subject.output);
    Ok(Price { forward: points.forward + 2, gradient: points.gradient })
}

/// `score(token) = Σ_k Σ_h (e^{k+1} − e^k)_h · ∂v/∂e_h (e^k)` from the baseline, `k = 0`, to the input. The target
/// stays the same along the path, though the prediction may change there.
fn run(parameters: &DiscretizedIntegratedGradients, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let embedded = Embedded::of(case)?;
    let baseline = parameters.start(&case.subject)?;
    let Baseline::Token(start) = baseline else {
        return Err(ExplainError::Internal("a word baseline is a token".to_owned()));
    };
    let paths = Arc::new(paths(parameters, case, &embedded, start)?);
    let point = |place: usize| {
        let paths = paths.clone();
        embedded.with_ordinary(move |token, row| {
            if let Some(path) = &paths[token] {
                row.copy_from_slice(&path.row(place).0);
            }
        })
    };
    let last = parameters.steps + 1;
    let values = embedded.values(vec![Point::Values(embedded.x.clone()), point(0)])?;

    let targets: Vec<usize> = (0..case.targets.len()).collect();
    let mut scores = vec![vec![0.0; embedded.tokens]; targets.len()];
    let points: Vec<Point> = (0..last).map(point).collect();
    embedded.gradients(&points, &targets, |it| {
        let steps = paths.iter().map(|path| path.as_ref().map(|path| path.row(it.point)));
        for (score, (slope, step)) in
            scores[it.target].iter_mut().zip(it.slope.chunks(embedded.hidden).zip(steps))
        {
            let Some((from, to)) = step else { continue };
            let way = to.iter().zip(&from).map(|(to, from)| f64::from(to - from));
            *score += slope.iter().zip(way).map(|(g, way)| f64::from(*g) * way).sum::<f64>();
        }
    })?;
    let finding = |target: usize| {
        let (value, base) = (values[0][target], values[1][target]);
        let delta = scores[target].iter().sum::<f64>() - (value - base);
        let mut evidence = Map::new();
        evidence.insert("completeness_delta".into(), json!(delta));
        evidence.insert("relative_delta".into(), json!(delta.abs() / (value - base).abs().max(1e-9)));
        evidence.insert("steps".into(), json!(last));
        evidence.insert("baseline_ids".into(), baseline.ids());
        token_finding(case, value, Some(base), &scores[target], evidence)
    };
    Ok(targets.iter().map(|&target| finding(target)).collect())
}

/// Every ordinary token's path from the baseline.
fn paths(
    parameters: &DiscretizedIntegratedGradients,
    case: &Case<'_>,
    embedded: &Embedded<'_, '_>,
    start: u32,
) -> Result<Vec<Option<Arc<Path>>>, ExplainError> {
    let words = &embedded.graph().words;
    let mut found: HashMap<u32, Arc<Path>> = HashMap::new();
    let mut paths = Vec::with_capacity(embedded.tokens);
    for (token, &id) in case.row.ids.iter().enumerate() {
        case.lane.check()?;
        let find = || Path::of(words.clone(), id, start, parameters.steps, parameters.strategy).into();
        paths.push((!embedded.is_special(token)).then(|| found.entry(id).or_insert_with(find).clone()));
    }
    Ok(paths)
}

/// A path from the baseline to a word, told by the words that it passes: its embeddings are made when they are asked
/// for, and each component of theirs moves monotonically.
struct Path {
    words: Arc<Words>,
    baseline: u32,
    /// From the path's own word towards the baseline.
    visited: Vec<u32>,
}

impl Path {
    fn of(words: Arc<Words>, word: u32, baseline: u32, steps: usize, strategy: Strategy) -> Self {
        let mut visited = vec![word];
        for _ in 0..steps {
            let last = visited[visited.len() - 1];
            visited.push(match last == baseline {
                true => baseline,
                false => next_word(&words, last, baseline, &visited, steps, strategy),
            });
        }
        Self { words, baseline, visited }
    }

    /// The embedding at `place`, 0 being the baseline, and that behind it on the way to the word.
    fn row(&self, place: usize) -> (Vec<f32>, Vec<f32>) {
        let (end, steps) = (self.words.row(self.baseline), self.visited.len() - 1);
        let mut to = self.words.row(self.visited[0]).to_vec();
        let mut from = to.clone();
        for &next in self.visited[1..].iter().take((steps + 1).saturating_sub(place)) {
            let moved = Way::between(end, &from, steps).through(self.words.row(next));
            to = std::mem::replace(&mut from, moved);
        }
        match place {
            0 => (end.to_vec(), from),
            _ => (from, to),
        }
    }
}

/// The neighbour of `last` that fits the way to the baseline best; the baseline when none is left.
fn next_word(
    words: &Words,
    last: u32,
    baseline: u32,
    visited: &[u32],
    steps: usize,
    strategy: Strategy,
) -> u32 {
    let (from, end) = (words.row(last), words.row(baseline));
    let near = words.neighbors(last);
    let fresh = near.iter().copied().filter(|it| *it != baseline && !visited.contains(it));
    let way = Way::between(end, from, steps);
    let misfit = |candidate: u32| match strategy {
        Strategy::Greedy => way.misfit(words.row(candidate), |it, moved| (it - moved) * (it - moved)),
        Strategy::Maxcount => way.misfit(words.row(candidate), |_, _| 1.0),
    };
    fresh
        .map(|candidate| (misfit(candidate), candidate))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map_or(baseline, |(_, candidate)| candidate)
}

/// What each component of a word on the way may be, and what it becomes otherwise: a small step towards the end.
struct Way {
    low: Vec<f32>,
    high: Vec<f32>,
    moved: Vec<f32>,
}

impl Way {
    fn between(end: &[f32], from: &[f32], steps: usize) -> Self {
        let each =
            |of: &dyn Fn(f32, f32) -> f32| end.iter().zip(from).map(|(end, from)| of(*end, *from)).collect();
        Self {
            low: each(&f32::min),
            high: each(&f32::max),
            moved: each(&|end, from| from - (from - end) / steps as f32),
        }
    }

    /// `word` with every component that does not lie on the way replaced.
    fn through(&self, word: &[f32]) -> Vec<f32> {
        let bounds = self.low.iter().zip(&self.high).zip(&self.moved);
        let component =
            |(((low, high), moved), it): (((&f32, &f32), &f32), &f32)| match strays(*low, *high, *it) {
                true => *moved,
                false => *it,
            };
        bounds.zip(word).map(component).collect()
    }

    /// The cost of all components of `word` that do not lie on the way, in eight independent sums, which the compiler
    /// turns into vector instructions.
    fn misfit(&self, word: &[f32], cost: impl Fn(f32, f32) -> f32) -> f32 {
        // A product, not a branch: no processor foresees which components lie on the way.
        let one = |low: f32, high: f32, moved: f32, it: f32| {
            f32::from(u8::from(strays(low, high, it))) * cost(it, moved)
        };
        let [(lows, low), (highs, high), (moveds, moved), (words, word)] =
            [&self.low[..], &self.high, &self.moved, word].map(<[f32]>::as_chunks::<8>);
        let mut sums = [0.0f32; 8];
        for (((low, high), moved), word) in lows.iter().zip(highs).zip(moveds).zip(words) {
            for lane in 0..8 {
                sums[lane] += one(low[lane], high[lane], moved[lane], word[lane]);
            }
        }
        let rest = low.iter().zip(high).zip(moved).zip(word);
        let rest = rest.map(|(((low, high), moved), it)| one(*low, *high, *moved, *it));
        sums.into_iter().chain(rest).sum()
    }
}

fn strays(low: f32, high: f32, it: f32) -> bool {
    (it < low) | (high < it)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> Words {
        // A line of words between (0, 0) and (10, 10), and some beside it.
        let mut values = vec![0.0, 0.0, 10.0, 10.0];
        (1..10).for_each(|at| values.extend([at as f32, at as f32 + 0.1]));
        values.extend([20.0, -5.0, -3.0, 4.0]);
        Words::new(values, 2)
    }

    /// The whole path, and that each of its rows comes with the one behind it.
    fn rows(path: Path, steps: usize) -> Vec<Vec<f32>> {
        let rows: Vec<_> = (0..steps + 2).map(|place| path.row(place)).collect();
        rows.windows(2).for_each(|pair| assert_eq!(pair[0].1, pair[1].0));
        rows.into_iter().map(|it| it.0).collect()
    }

    #[test]
    fn a_path_goes_monotonically_from_the_baseline_to_the_word() {
        for strategy in [Strategy::Greedy, Strategy::Maxcount] {
            for steps in [1, 4, 8, 30] {
                let path = rows(Path::of(words().into(), 1, 0, steps, strategy), steps);
                assert_eq!(path.len(), steps + 2);
                assert_eq!((&path[0][..], &path[steps + 1][..]), (&[0.0, 0.0][..], &[10.0, 10.0][..]));
                for pair in path.windows(2) {
                    assert!(pair[0].iter().zip(&pair[1]).all(|(a, b)| a <= b), "{strategy:?} {pair:?}");
                }
            }
        }
    }

    #[test]
    fn a_path_goes_through_words_that_lie_on_the_way() {
        let path = rows(Path::of(words().into(), 1, 0, 2, Strategy::Maxcount), 2);
        let table = words();
        assert!((2..11).any(|id| table.row(id) == path[1]), "{path:?}");
    }
}
