//! LIME: a weighted linear model fitted around the input.

use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::masked::{Masked, Regression, What, refuse, settle, with_errors};
use crate::{
    explain::{
        About, Case, Effort, ExplainError, Family, Finding, Method, Operation, Price, Removal, Subject,
        Typed, estimators,
    },
    model::{Need, Output},
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&LIME;

static LIME: Typed<Lime> = Typed {
    about: About {
        slug: "lime",
        family: Family::Surrogate,
        summary: "The weight of a feature in a linear model fitted to texts with features taken out, the nearer \
                  to the input the more they count.",
        reference: "Ribeiro, Singh and Guestrin (2016), \"Why Should I Trust You?\": Explaining the Predictions \
                    of Any Classifier, arXiv:1602.04938",
        output: Output::Probability,
        needs: &[Need::Forward],
        stops_early: true,
        example: r#"{"samples": 100}"#,
    },
    needs: |it| it.operation.needs(),
    price,
    run,
};

/// Parameters of LIME.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Lime {
    /// Perturbed texts at most, the input itself included.
    #[schema(minimum = 2, maximum = 200_000, default = 1000)]
    pub samples: usize,
    /// Stop as soon as the largest standard error of a weight is at or below this, in units of the output.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, exclusive_minimum = 0.0)]
    pub tolerance: Option<f64>,
    /// What interactions between features are taken for: `linear` fits the texts that were drawn, as Ribeiro et al.
    /// do; `interactions` all texts that could be drawn, as a process over interactions predicts them, and scatters less.
    /// The latter is for up to 128 features and 2,048 distinct texts, beyond which the former is taken.
    #[schema(default = "linear")]
    pub regression: Regression,
    /// Which features may have a weight.
    #[schema(default = "none")]
    pub feature_selection: FeatureSelection,
    /// How many features are selected, where `feature_selection` is not `none`.
    #[schema(minimum = 1, maximum = 10_000, default = 10)]
    pub num_features: usize,
    /// The kernel's width on 100 times the cosine distance: the larger, the more far texts count. `effective_samples` tells
    /// how many texts of equal weight the sample stands for; where they are no more than the features, standard errors are
    /// left out and `tolerance` does not stop.
    #[schema(exclusive_minimum = 0.0, default = 25.0)]
    pub kernel_width: f64,
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
    /// When the deadline passes, answer with the estimate reached by then, marked `partial`.
    #[schema(default = false)]
    pub partial: bool,
}

/// Which features may have a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FeatureSelection {
    /// All.
    #[default]
    None,
    /// Those of largest weight in a first fit.
    HighestWeights,
    /// Greedily the one that explains most of what is left.
    Forward,
    /// Those that a lasso keeps as its penalty falls.
    LassoPath,
}

impl Default for Lime {
    fn default() -> Self {
        Self {
            samples: 1000,
            tolerance: None,
            regression: Regression::Linear,
            feature_selection: FeatureSelection::default(),
            num_features: 10,
            kernel_width: estimators::LIME_WIDTH,
            operation: Operation::default(),
            replacements: None,
            k: 10,
            floor: 0.0,
            draws: 1,
            partial: false,
        }
    }
}

impl Lime {
    fn removal(&self) -> Removal<'_> {
        let Self { operation, k, floor, draws, .. } = *self;
        Removal { operation, replacements: self.replacements.as_deref(), k, floor, draws }
    }
}

/// Every sample once, as often as there are replacements.
fn price(parameters: &Lime, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let Effort { variants, once } = parameters.removal().effort(subject, subject.features)?;
    Ok(Price { forward: (parameters.samples * variants + once) as u64, gradient: 0 })
}

fn run(parameters: &Lime, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let masker = parameters.removal().masker(case, case.subject.features)?;
    let options = estimators::Lime {
        samples: parameters.samples,
        tolerance: parameters.tolerance,
        width: parameters.kernel_width,
        selection: match parameters.feature_selection {
            FeatureSelection::None => estimators::Selection::None,
            FeatureSelection::HighestWeights => estimators::Selection::HighestWeights,
            FeatureSelection::Forward => estimators::Selection::Forward,
            FeatureSelection::LassoPath => estimators::Selection::LassoPath,
        },
        regression: parameters.regression.into(),
        features: parameters.num_features,
        seed: case.subject.seed,
    };
    let mut game = Masked::new(case, masker, What::Scalars, parameters.partial);
    let run = estimators::lime(&mut game, &options).map_err(|error| refuse(error, &case.subject))?;
    let mut ended = settle(run.ended, run.evaluations, parameters.partial)?;
    ended.insert("perturbed_rows".into(), game.shift()?);
    let full = case.scalars(&case.logits)?;
    let effective = run.estimate.effective_samples;
    let finding = |(fit, value): (&estimators::LinearSurrogate, f64)| {
        let mut evidence = ended.clone();
        evidence.insert("effective_samples".into(), json!(effective));
        evidence.insert("r_squared".into(), json!(fit.r_squared));
        evidence.insert("interactions".into(), json!(fit.interactions));
        evidence.insert("intercept".into(), json!(fit.intercept));
        evidence.insert("local_prediction".into(), json!(fit.local_prediction));
        evidence.insert("local_error".into(), json!(fit.local_prediction - value));
        let largest = fit.standard_errors.iter().fold(0.0f64, |most, it| most.max(*it));
        evidence.insert("largest_standard_error".into(), json!(largest));
        let attributions = with_errors(case, &fit.coefficients, &fit.standard_errors);
        Finding { value, base_value: None, attributions, evidence, details: None }
    };
    Ok(run.estimate.outputs.iter().zip(full).map(finding).collect())
}
