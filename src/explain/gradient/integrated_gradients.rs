//! Integrated gradients: the gradient averaged along a straight line from a baseline to the input.

use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use utoipa::ToSchema;

use super::{Baseline, BaselineKind, Embedded, Nodes, Point, Rule, Start, price_of, token_finding};
use crate::{
    explain::{
        About, Case, ExplainError, Family, Finding, Method, Misfit, Price, Subject, Typed,
        distribution::confidence, nothing_more,
    },
    model::{Need, Output},
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&INTEGRATED_GRADIENTS;

static INTEGRATED_GRADIENTS: Typed<IntegratedGradients> = Typed {
    about: About {
        slug: "integrated-gradients",
        family: Family::Gradient,
        summary: "The gradient averaged along the line from a baseline, times the way from it; the scores add \
                  up to the difference that the baseline makes.",
        reference: "Sundararajan, Taly and Yan (2017), Axiomatic Attribution for Deep Networks, \
                    arXiv:1703.01365",
        output: Output::Logit,
        needs: &[Need::Gradient],
        stops_early: true,
        example: r#"{"baseline": "pad", "steps": 16}"#,
    },
    needs: nothing_more,
    price,
    run,
};

/// Parameters of integrated gradients.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IntegratedGradients {
    /// Where the line starts.
    #[schema(default = "pad")]
    pub baseline: BaselineKind,
    /// The text at which the line starts, for `baseline: "text"`; no longer than the input.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub baseline_text: Option<String>,
    /// How the integral is approximated. `graded` are Fejér's points, drawn towards the line's first half: on trained
    /// encoders about half of the rows for a tolerance below the default (`docs/path-points.md`).
    #[schema(default = "gauss-legendre")]
    pub rule: Rule,
    /// Points on the line; with a `tolerance`, points to begin with.
    #[schema(minimum = 1, maximum = 1024, default = 32)]
    pub steps: usize,
    /// Points are doubled, give or take one, until the completeness error is at most this share of the
    /// difference that is explained; `graded`, `trapezoid`, `left` and `right` evaluate only those that are new.
    /// `null`: exactly `steps` points.
    #[schema(minimum = 0.0, default = 0.01)]
    pub tolerance: Option<f64>,
    /// The most points on one line when there is a `tolerance`; `steps`, where that is more.
    #[schema(minimum = 1, maximum = 1024, default = 256)]
    pub max_steps: usize,
    /// Random baselines to average over, for `baseline: "random"`.
    #[schema(minimum = 1, maximum = 64, default = 4)]
    pub draws: usize,
}

impl Default for IntegratedGradients {
    fn default() -> Self {
        Self {
            baseline: BaselineKind::Pad,
            baseline_text: None,
            rule: Rule::GaussLegendre,
            steps: 32,
            tolerance: Some(0.01),
            max_steps: 256,
            draws: 4,
        }
    }
}

/// A difference smaller than this, in the output's unit, is measured against this: a relative error of
/// nothing says nothing.
const FLOOR: f64 = 0.02;

impl IntegratedGradients {
    fn start(&self, subject: &Subject<'_>) -> Result<Baseline, ExplainError> {
        Baseline::read(self.baseline, self.baseline_text.as_deref(), self.draws, subject)
    }

    /// The numbers of points that may be tried, one after the other.
    fn rounds(&self) -> Vec<usize> {
        match self.tolerance {
            None => vec![self.steps],
            Some(_) => {
                let last = self.max_steps.max(self.steps);
                let refined =
                    std::iter::successors(Some(self.steps), |&steps| Some(self.rule.refined(steps)));
                refined.take_while(|steps| *steps <= last).collect()
            }
        }
    }

    /// Points of one line that are evaluated if no round is good enough.
    fn points(&self) -> usize {
        let rounds = self.rounds();
        if self.rule.nests() { rounds.last().copied().unwrap_or(0) } else { rounds.iter().sum() }
    }
}

/// Every point of every round once, for every baseline; and the scores at both ends.
fn price(parameters: &IntegratedGradients, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    if parameters.tolerance.is_some_and(|it| !it.is_finite() || it < 0.0) {
        return Err(Misfit::parameter("tolerance", "must be a finite number of at least 0").into());
    }
    let draws = parameters.start(subject)?.draws() as u64;
    let points = parameters.points() as u64 * draws;
    let line = price_of(points, subject.targets, subject.output);
    Ok(Price { forward: line.forward + 1 + draws, gradient: line.gradient })
}

/// `score(token) = Σ_h (e − b)_h · ∫₀¹ ∂v/∂e_h (b + α(e − b)) dα`.
fn run(parameters: &IntegratedGradients, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let embedded = Embedded::of(case)?;
    let baseline = parameters.start(&case.subject)?;
    let starts = baseline.starts(&embedded);
    let mut ends = vec![Point::Values(embedded.x.clone())];
    ends.extend(starts.iter().map(Start::point));
    let logits = embedded.logits(ends)?;
    let values = logits.iter().map(|it| case.scalars(it)).collect::<Result<Vec<_>, _>>()?;
    let (value, bases) = (&values[0], &values[1..]);

    let targets = case.targets.len();
    let mut sums: Vec<Line> = (0..targets).map(|_| Line::default()).collect();
    for (start, base) in starts.iter().zip(bases) {
        let differences: Vec<f64> = value.iter().zip(base).map(|(v, b)| v - b).collect();
        let lines = along(parameters, &embedded, start, &differences)?;
        for (sum, line) in sums.iter_mut().zip(lines) {
            sum.add(&line, 1.0 / starts.len() as f64);
        }
    }

    let labels = &case.subject.model.labels;
    let confidences = logits[1..].iter().map(|it| confidence(labels, it));
    let confidences = confidences.collect::<Result<Option<Vec<f64>>, _>>()?;
    let neutral = confidences.map(|it| it.iter().sum::<f64>() / it.len() as f64);
    let finding = |(target, line): (usize, Line)| {
        let base = bases.iter().map(|it| it[target]).sum::<f64>() / bases.len() as f64;
        let difference = value[target] - base;
        let delta = line.scores.iter().sum::<f64>() - difference;
        let mut evidence = Map::new();
        evidence.insert("completeness_delta".into(), json!(delta));
        evidence.insert("relative_delta".into(), json!(delta.abs() / difference.abs().max(FLOOR)));
        evidence.insert("steps".into(), json!(line.steps));
        evidence.insert("converged".into(), json!(line.converged));
        evidence.insert("baseline_ids".into(), baseline.ids());
        evidence.insert("baseline_confidence".into(), json!(neutral));
        let chance = 1.0 / labels.len().max(2) as f64;
        let near = neutral.map(|it| it <= chance + 0.5 * (1.0 - chance));
        evidence.insert("baseline_near_neutral".into(), json!(near));
        evidence.insert("saturated".into(), json!(line.last.abs() < 0.1 * difference.abs()));
        token_finding(case, value[target], Some(base), &line.scores, evidence)
    };
    Ok(sums.into_iter().enumerate().map(finding).collect())
}

/// What the points of one line gave for one target.
#[derive(Debug, Clone, Default)]
struct Line {
    /// One score a token.
    scores: Vec<f64>,
    /// Points that were used.
    steps: usize,
    /// Whether the completeness error is within the tolerance; true where none was asked for only if the
    /// default tolerance holds.
    converged: bool,
    /// The derivative along the line at its last point: near zero where the score has saturated.
    last: f64,
}

impl Line {
    /// Counts the derivatives at one point.
    fn count(&mut self, along: &[f64], weight: f64, is_last: bool) {
        for (score, along) in self.scores.iter_mut().zip(along) {
            *score += weight * along;
        }
        if is_last {
            self.last = along.iter().sum();
        }
    }

    fn add(&mut self, other: &Self, weight: f64) {
        let first = self.scores.is_empty();
        self.scores.resize(other.scores.len(), 0.0);
        for (sum, score) in self.scores.iter_mut().zip(&other.scores) {
            *sum += weight * score;
        }
        self.steps = self.steps.max(other.steps);
        self.converged = (first || self.converged) && other.converged;
        self.last += weight * other.last;
    }
}

/// One line for each target, with as many points as its tolerance wants. An evaluation counts in every round that
/// has its point.
fn along(
    parameters: &IntegratedGradients,
    embedded: &Embedded<'_, '_>,
    start: &Start,
    differences: &[f64],
) -> Result<Vec<Line>, ExplainError> {
    let tolerance = parameters.tolerance.unwrap_or(0.01);
    let rounds: Vec<Nodes> = parameters.rounds().iter().map(|&steps| parameters.rule.nodes(steps)).collect();
    let blank = |nodes: &Nodes| Line {
        scores: vec![0.0; embedded.tokens],
        steps: nodes.points.len(),
        ..Line::default()
    };
    let mut tried: Vec<Vec<Line>> =
        rounds.iter().map(|nodes| vec![blank(nodes); differences.len()]).collect();
    let mut lines = vec![Line::default(); differences.len()];
    let mut open: Vec<usize> = (0..differences.len()).collect();
    for (round, nodes) in rounds.iter().enumerate() {
        let is_new = |at: &f64| rounds[..round].iter().all(|earlier| earlier.place(*at).is_none());
        let shares: Vec<f64> = nodes.points.iter().copied().filter(is_new).collect();
        each(embedded, start, &shares, &open, |target, share, along| {
            for (nodes, lines) in rounds[round..].iter().zip(&mut tried[round..]) {
                if let Some(place) = nodes.place(share) {
                    lines[target].count(along, nodes.weights[place], place + 1 == nodes.points.len());
                }
            }
        })?;
        for &target in &open {
            let (line, difference) = (&mut tried[round][target], differences[target]);
            let delta = line.scores.iter().sum::<f64>() - difference;
            line.converged = delta.abs() <= tolerance * difference.abs().max(FLOOR);
            lines[target] = line.clone();
        }
        open.retain(|&target| !lines[target].converged);
        if open.is_empty() {
            break;
        }
    }
    Ok(lines)
}

/// Hands the derivatives along the line, one a token, to `sink`: of each target, at each share of the way.
fn each(
    embedded: &Embedded<'_, '_>,
    start: &Start,
    shares: &[f64],
    targets: &[usize],
    mut sink: impl FnMut(usize, f64, &[f64]),
) -> Result<(), ExplainError> {
    let points: Vec<Point> = shares.iter().map(|&share| start.towards(share as f32)).collect();
    embedded.gradients(&points, targets, |it| {
        let along = it.slope.iter().zip(start.way()).map(|(slope, way)| f64::from(*slope) * way);
        let along = embedded.by_token(along);
        sink(it.target, shares[it.point], &along);
    })
}
