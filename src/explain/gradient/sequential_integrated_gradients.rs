//! Sequential integrated gradients: one line for each token, all other tokens in place.

use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use utoipa::ToSchema;

use super::{Baseline, BaselineKind, Embedded, Point, Rule, Start, price_of, token_finding};
use crate::{
    explain::{About, Case, ExplainError, Family, Finding, Method, Price, Subject, Typed, nothing_more},
    model::{Need, Output},
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&SEQUENTIAL_INTEGRATED_GRADIENTS;

static SEQUENTIAL_INTEGRATED_GRADIENTS: Typed<SequentialIntegratedGradients> = Typed {
    about: About {
        slug: "sequential-integrated-gradients",
        family: Family::Gradient,
        summary: "Integrated gradients of one token at a time, the rest of the text in place: its score is \
                  what replacing that token alone changes.",
        reference: "Enguehard (2023), Sequential Integrated Gradients, arXiv:2305.15853",
        output: Output::Logit,
        needs: &[Need::Gradient],
        stops_early: false,
        example: r#"{"exact_totals": true}"#,
    },
    needs: nothing_more,
    price,
    run,
};

/// Parameters of sequential integrated gradients.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SequentialIntegratedGradients {
    /// What a token's line starts at.
    #[schema(default = "mask")]
    pub baseline: BaselineKind,
    /// The text whose tokens the lines start at, for `baseline: "text"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub baseline_text: Option<String>,
    /// How each integral is approximated.
    #[schema(default = "gauss-legendre")]
    pub rule: Rule,
    /// Points on each token's line.
    #[schema(minimum = 1, maximum = 256, default = 16)]
    pub steps: usize,
    /// Take each token's total from two evaluations instead of integrating: by completeness it is the score
    /// with the token minus the score with its baseline in its place.
    #[schema(default = false)]
    pub exact_totals: bool,
    /// Random baselines to average over, for `baseline: "random"`.
    #[schema(minimum = 1, maximum = 64, default = 4)]
    pub draws: usize,
}

impl Default for SequentialIntegratedGradients {
    fn default() -> Self {
        Self {
            baseline: BaselineKind::Mask,
            baseline_text: None,
            rule: Rule::GaussLegendre,
            steps: 16,
            exact_totals: false,
            draws: 4,
        }
    }
}

impl SequentialIntegratedGradients {
    fn start(&self, subject: &Subject<'_>) -> Result<Baseline, ExplainError> {
        Baseline::read(self.baseline, self.baseline_text.as_deref(), self.draws, subject)
    }
}

fn price(parameters: &SequentialIntegratedGradients, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let draws = parameters.start(subject)?.draws() as u64;
    let lines = draws * subject.encoded.tokens.iter().filter(|it| !it.special).count() as u64;
    let ends = 1 + lines;
    if parameters.exact_totals {
        return Ok(Price { forward: ends, gradient: 0 });
    }
    let points = price_of(lines * parameters.steps as u64, subject.targets, subject.output);
    Ok(Price { forward: points.forward + ends, gradient: points.gradient })
}

/// `score(i) = Σ_h (e_i − b_i)_h · ∫₀¹ ∂v/∂e_ih (e with e_i := b_i + α(e_i − b_i)) dα`.
fn run(parameters: &SequentialIntegratedGradients, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let embedded = Embedded::of(case)?;
    let starts = parameters.start(&case.subject)?.starts(&embedded);
    let ordinary: Vec<usize> = (0..embedded.tokens).filter(|&token| !embedded.is_special(token)).collect();
    let lines: Vec<(usize, Start)> =
        starts.iter().flat_map(|start| ordinary.iter().map(|&token| (token, start.only(token)))).collect();
    let mut ends = vec![Point::Values(embedded.x.clone())];
    ends.extend(lines.iter().map(|(_, start)| start.point()));
    let values = embedded.values(ends)?;

    let targets = case.targets.len();
    let share = 1.0 / starts.len() as f64;
    let mut totals = vec![vec![0.0; embedded.tokens]; targets];
    for ((token, _), base) in lines.iter().zip(&values[1..]) {
        for target in 0..targets {
            totals[target][*token] += share * (values[0][target] - base[target]);
        }
    }
    let scores = match parameters.exact_totals {
        true => totals.clone(),
        false => integrate(parameters, &embedded, &lines, share, targets)?,
    };
    let finding = |target: usize| {
        let gap = |token: &usize| (scores[target][*token] - totals[target][*token]).abs();
        let mut evidence = Map::new();
        evidence.insert("largest_token_delta".into(), json!(ordinary.iter().map(gap).fold(0.0, f64::max)));
        evidence.insert("exact_totals".into(), json!(parameters.exact_totals));
        token_finding(case, values[0][target], None, &scores[target], evidence)
    };
    Ok((0..targets).map(finding).collect())
}

fn integrate(
    parameters: &SequentialIntegratedGradients,
    embedded: &Embedded<'_, '_>,
    lines: &[(usize, Start)],
    share: f64,
    targets: usize,
) -> Result<Vec<Vec<f64>>, ExplainError> {
    let nodes = parameters.rule.nodes(parameters.steps);
    let steps = nodes.points.len();
    let points: Vec<Point> =
        lines.iter().flat_map(|(_, start)| nodes.points.iter().map(|&at| start.towards(at as f32))).collect();
    let all: Vec<usize> = (0..targets).collect();
    let mut scores = vec![vec![0.0; embedded.tokens]; targets];
    embedded.gradients(&points, &all, |it| {
        let (token, start) = &lines[it.point / steps];
        let part = token * embedded.hidden..(token + 1) * embedded.hidden;
        let way = embedded.x[part.clone()].iter().zip(start.row(*token));
        let along: f64 = it.slope[part]
            .iter()
            .zip(way)
            .map(|(slope, (x, b))| f64::from(*slope) * (f64::from(*x) - f64::from(*b)))
            .sum();
        scores[it.target][*token] += share * nodes.weights[it.point % steps] * along;
    })?;
    Ok(scores)
}
