//! Decision tree: a few questions about which features are present, fitted around the input.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::masked::{Masked, What, refuse, settle, text, with_errors};
use crate::{
    explain::{
        About, Case, Effort, ExplainError, Family, Finding, Method, Operation, Price, Removal, Subject,
        Typed,
        estimators::{self, Coalition, TreeNode, TreeSurrogate},
    },
    model::{Need, Output},
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&DECISION_TREE;

static DECISION_TREE: Typed<DecisionTree> = Typed {
    about: About {
        slug: "decision-tree",
        family: Family::Surrogate,
        summary: "What the questions about a feature add to the score along the input's path through a shallow \
                  tree fitted around it.",
        reference: "Breiman, Friedman, Olshen and Stone (1984), Classification and Regression Trees",
        output: Output::Probability,
        needs: &[Need::Forward],
        stops_early: false,
        example: r#"{"samples": 100, "fresh": 50}"#,
    },
    needs: |it| it.operation.needs(),
    price,
    run,
};

/// Parameters of the decision tree.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DecisionTree {
    /// Perturbed texts that the tree is grown on, the input itself included.
    #[schema(minimum = 2, maximum = 200_000, default = 1000)]
    pub samples: usize,
    /// Further perturbed texts on which its fidelity is measured; where their scores are all one and not the tree's,
    /// `r_squared` is null.
    #[schema(minimum = 2, maximum = 200_000, default = 500)]
    pub fresh: usize,
    /// Questions from the root to a leaf at most.
    #[schema(minimum = 1, maximum = 10, default = 3)]
    pub max_depth: usize,
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
    /// For `neighbors` and `mlm`: fillings drawn for each perturbed text, whose scores are averaged.
    #[schema(minimum = 1, maximum = 64, default = 1)]
    pub draws: usize,
    /// When the deadline passes, answer with the tree grown on what was had by then, marked `partial`.
    #[schema(default = false)]
    pub partial: bool,
}

impl Default for DecisionTree {
    fn default() -> Self {
        Self {
            samples: 1000,
            fresh: 500,
            max_depth: 3,
            operation: Operation::default(),
            replacements: None,
            k: 10,
            floor: 0.0,
            draws: 1,
            partial: false,
        }
    }
}

impl DecisionTree {
    fn removal(&self) -> Removal<'_> {
        let Self { operation, k, floor, draws, .. } = *self;
        Removal { operation, replacements: self.replacements.as_deref(), k, floor, draws }
    }
}

/// The rows to grow on and the fresh ones.
fn price(parameters: &DecisionTree, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let Effort { variants, once } = parameters.removal().effort(subject, subject.features)?;
    Ok(Price { forward: ((parameters.samples + parameters.fresh) * variants + once) as u64, gradient: 0 })
}

fn run(parameters: &DecisionTree, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let masker = parameters.removal().masker(case, case.subject.features)?;
    let DecisionTree { samples, fresh, max_depth, .. } = *parameters;
    let decisions = case.subject.model.allows(Need::Decision).is_ok();
    let options = estimators::DecisionTree { samples, fresh, max_depth, decisions, seed: case.subject.seed };
    let what = if decisions { What::ScalarsAndDecisions } else { What::Scalars };
    let mut game = Masked::new(case, masker, what, parameters.partial);
    let run = estimators::decision_tree(&mut game, &options).map_err(|error| refuse(error, &case.subject))?;
    let mut ended = settle(run.ended, run.evaluations, parameters.partial)?;
    ended.insert("perturbed_rows".into(), game.shift()?);
    let full = case.scalars(&case.logits)?;
    let features = case.subject.features.len();
    let finding = |(tree, value): (&TreeSurrogate, f64)| {
        let input = Coalition::full(features);
        let mut evidence = ended.clone();
        evidence.insert("r_squared".into(), json!(tree.r_squared));
        if let Some(accuracy) = tree.accuracy {
            evidence.insert("accuracy".into(), json!(accuracy));
        }
        evidence.insert("fresh_samples".into(), json!(fresh));
        evidence.insert("local_prediction".into(), json!(tree.root.leaf(&input).value));
        Finding {
            value,
            base_value: None,
            attributions: with_errors(case, &tree.root.contributions(features), &[]),
            evidence,
            details: Some(json!({
                "tree": node(&case.subject, &tree.root),
                "path": path(&case.subject, &tree.root, &input),
            })),
        }
    };
    Ok(run.estimate.iter().zip(full).map(finding).collect())
}

fn node(subject: &Subject<'_>, it: &TreeNode) -> Value {
    let mut shown = json!({ "value": it.value, "weight": it.weight, "samples": it.samples });
    if let Some(share) = it.share {
        shown["decision_share"] = json!(share);
    }
    if let Some(split) = &it.split {
        shown["feature"] = json!(split.player);
        shown["text"] = json!(text(subject, split.player));
        shown["present"] = node(subject, &split.present);
        shown["absent"] = node(subject, &split.absent);
    }
    shown
}

/// The questions that the input answers, all with "present", and the value after each.
fn path(subject: &Subject<'_>, root: &TreeNode, input: &Coalition) -> Vec<Value> {
    let step = |pair: &[&TreeNode]| {
        let split = pair[0].split.as_ref()?;
        let asked = text(subject, split.player);
        Some(json!({ "feature": split.player, "text": asked, "present": true, "value": pair[1].value }))
    };
    root.path(input).windows(2).filter_map(step).collect()
}
