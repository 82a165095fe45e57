//! Partition SHAP: Owen values over a hierarchy of the text.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{
    masked::{Masked, What, refuse, text},
    shapley::{findings, spent},
};
use crate::{
    explain::{
        About, Case, Effort, ExplainError, Family, Finding, Method, Operation, Price, Removal, Subject,
        Typed,
        estimators::{self, Begins, Hierarchy, Piece, Run},
    },
    model::{
        Need, Output,
        text::{Granularity, features as divide},
    },
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&PARTITION_SHAP;

static PARTITION_SHAP: Typed<PartitionShap> = Typed {
    about: About {
        slug: "partition-shap",
        family: Family::Surrogate,
        summary: "The Owen value of a feature: credit is shared between the halves of the text, then within \
                  each half, down a hierarchy of clauses and words.",
        reference: "Owen (1977), Values of games with a priori unions; Lundberg and Lee (2017), \
                    arXiv:1705.07874",
        output: Output::Logit,
        needs: &[Need::Forward],
        stops_early: true,
        example: r#"{"samples": 64}"#,
    },
    needs: |it| it.operation.needs(),
    price,
    run,
};

/// Parameters of partition SHAP.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PartitionShap {
    /// Subsets evaluated at most, beside the whole and the empty text. Groups that they do not reach share
    /// their credit evenly.
    #[schema(minimum = 2, maximum = 200_000, default = 512)]
    pub samples: usize,
    /// How a feature is taken out.
    #[schema(default = "mask")]
    pub operation: Operation,
    /// For `replace`: a list of texts for each feature, in the order of the features.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub replacements: Option<Vec<Vec<String>>>,
    /// For `neighbors` and `mlm`: how many words may stand for a word.
    #[schema(minimum = 1, maximum = 100, default = 10)]
    pub k: usize,
    /// For `mlm`: fillers below this probability are left out, the most probable stays.
    #[schema(minimum = 0.0, maximum = 1.0, default = 0.0)]
    pub floor: f64,
    /// For `neighbors` and `mlm`: fillings drawn for each subset, whose scores are averaged; the standard errors
    /// tell what they leave. Absent: two, and up to 32 where all subsets are fewer than the samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 64)]
    pub draws: Option<usize>,
    /// When the deadline passes, answer with the estimate reached by then, marked `partial`.
    #[schema(default = false)]
    pub partial: bool,
}

impl Default for PartitionShap {
    fn default() -> Self {
        Self {
            samples: 512,
            operation: Operation::default(),
            replacements: None,
            k: 10,
            floor: 0.0,
            draws: None,
            partial: false,
        }
    }
}

impl PartitionShap {
    fn draws(&self, features: usize) -> usize {
        self.draws.unwrap_or_else(|| Removal::draws_with_error(features, self.samples))
    }

    /// Draws where one feature is present or one is absent.
    fn edge(&self, features: usize) -> usize {
        Removal::edge_draws(features, self.samples, self.draws(features))
    }

    fn removal(&self, features: usize) -> Removal<'_> {
        let Self { operation, k, floor, .. } = *self;
        let draws = self.draws(features);
        Removal { operation, replacements: self.replacements.as_deref(), k, floor, draws }
    }
}

/// The hierarchy of the subject's features, in the order of the text.
fn hierarchy(subject: &Subject<'_>) -> Result<Hierarchy, ExplainError> {
    let features = subject.features;
    let units = |granularity: &Granularity| -> Result<Vec<usize>, ExplainError> {
        let mut unit_of = vec![0; subject.encoded.tokens.len()];
        let units = divide(subject.encoded, granularity)
            .map_err(|error| ExplainError::Internal(error.to_string()))?;
        for (place, unit) in units.iter().enumerate() {
            unit.tokens.iter().for_each(|&token| unit_of[token] = place);
        }
        Ok(unit_of)
    };
    let (words, sentences) = (units(&Granularity::Word)?, units(&Granularity::Sentence)?);
    let begins = |at: usize| {
        let before = at.checked_sub(1).and_then(|it| features[it].tokens.last());
        match (before, features[at].tokens.first()) {
            (Some(&before), Some(&own)) if sentences[before] != sentences[own] => Begins::Sentence,
            (Some(&before), Some(&own)) if words[before] == words[own] => Begins::Part,
            _ => Begins::Word,
        }
    };
    let pieces: Vec<Piece<'_>> = (0..features.len())
        .map(|at| Piece { text: text(subject, at), begins: begins(at), segment: features[at].segment })
        .collect();
    estimators::text_hierarchy(&pieces)
        .ok_or_else(|| ExplainError::Internal("a text without features".to_owned()))
}

/// Both ends, and the whole tree or as much of it as the samples reach.
fn price(parameters: &PartitionShap, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let features = subject.features.len();
    let effort = parameters.removal(features).effort(subject, subject.features)?;
    let effort = if parameters.operation.fills() {
        effort.with_edges(features, parameters.edge(features))
    } else {
        effort
    };
    let Effort { variants, once } = effort;
    let whole = estimators::partition_cost(&hierarchy(subject)?);
    let rows = (whole.min(parameters.samples) + 2) * variants + once;
    Ok(Price { forward: rows as u64, gradient: 0 })
}

fn run(parameters: &PartitionShap, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let masker = parameters.removal(case.subject.features.len()).masker(case, case.subject.features)?;
    let tree = hierarchy(&case.subject)?;
    let features = masker.len();
    let mut game =
        Masked::new(case, masker, What::Scalars, parameters.partial).with_spread(parameters.edge(features));
    let run = estimators::partition_shap(&mut game, &tree, parameters.samples)
        .map_err(|error| refuse(error, &case.subject))?;
    let run = Run { estimate: run.estimate.shapley, evaluations: run.evaluations, ended: run.ended };
    let spent = spent(&game, parameters.draws(features), &[]);
    findings(case, run, &game, parameters.partial, &spent, &|| {
        Some(json!({ "hierarchy": nodes(&case.subject, &tree) }))
    })
}

/// Every joined node in the order of joining, the root last: its two parts, and the features below it.
fn nodes(subject: &Subject<'_>, tree: &Hierarchy) -> Vec<Value> {
    let members = tree.members();
    let node = |node: usize| {
        let features: Vec<usize> = members[node].members().collect();
        let texts: Vec<&str> = features.iter().map(|&it| text(subject, it)).collect();
        json!({ "node": node, "parts": tree.parts(node), "features": features, "texts": texts })
    };
    (tree.players()..=tree.root()).map(node).collect()
}
