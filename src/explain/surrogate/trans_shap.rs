//! TransSHAP: word-level Kernel SHAP of a subword model, against a background of other words.

use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::{
    masked::{Masked, What, refuse},
    shapley::{findings, paired_rows, paired_samples, spent},
};
use crate::{
    explain::{
        About, Case, Effort, ExplainError, Family, Finding, Masker, Method, Misfit, Operation, Price,
        Removal, Subject, Typed, estimators, masking::outgrow, nothing_more, reading::refusal,
    },
    model::{
        Need, Output,
        text::{Feature, Granularity, features},
    },
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&TRANS_SHAP;

static TRANS_SHAP: Typed<TransShap> = Typed {
    about: About {
        slug: "trans-shap",
        family: Family::Surrogate,
        summary: "The Shapley value of a word of a subword model, absent words being masked or standing for \
                  words of the caller's texts.",
        reference: "Kokalj, Škrlj, Lavrač, Pollak and Robnik-Šikonja (2021), BERT meets Shapley: Extending SHAP \
                    Explanations to Transformer-based Classifiers",
        output: Output::Probability,
        needs: &[Need::Forward],
        stops_early: true,
        example: r#"{"samples": 64}"#,
    },
    needs: nothing_more,
    price,
    run,
};

/// Parameters of TransSHAP.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TransShap {
    /// What an absent word stands for.
    #[schema(default = "mask")]
    pub background: Background,
    /// For `words`: the texts whose words are drawn.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 1000)]
    pub texts: Vec<String>,
    /// For `words`: fillings drawn for each subset, a word for each absent word; the scores are averaged, and the
    /// standard errors tell what the draws leave.
    #[schema(minimum = 1, maximum = 64, default = 5)]
    pub draws: usize,
    /// Subsets evaluated at most, at least twice the features; by default 1,024, or six times the features up to
    /// 10,000 where that is more. When all subsets are no more than this, the values are exact.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 2, maximum = 200_000)]
    pub samples: Option<usize>,
    /// Stop as soon as the largest standard error is at or below this, in units of the output.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, exclusive_minimum = 0.0)]
    pub tolerance: Option<f64>,
    /// When the deadline passes, answer with the estimate reached by then, marked `partial`.
    #[schema(default = false)]
    pub partial: bool,
}

/// What an absent word stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Background {
    /// The mask token in place of each of its tokens.
    #[default]
    Mask,
    /// Words drawn from the caller's `texts`.
    Words,
}

impl Default for TransShap {
    fn default() -> Self {
        let background = Background::default();
        Self { background, texts: Vec::new(), draws: 5, samples: None, tolerance: None, partial: false }
    }
}

impl TransShap {
    /// The words, as token ids, that stand for absent ones where they are drawn.
    fn pool(&self, subject: &Subject<'_>) -> Result<Option<Vec<Vec<u32>>>, ExplainError> {
        if self.background == Background::Words {
            let words = self.words(subject)?;
            let longest = words.iter().map(Vec::len).max().unwrap_or_default();
            let growth =
                |it: &Feature| (longest.saturating_sub(it.tokens.len()), "/parameters/texts".to_owned());
            outgrow(subject, subject.features.iter().map(growth))?;
            return Ok(Some(words));
        }
        if !self.texts.is_empty() {
            return Err(Misfit::parameter("texts", "goes with `background: \"words\"`").into());
        }
        Ok(None)
    }

    /// The words of the texts, one as often as it occurs.
    fn words(&self, subject: &Subject<'_>) -> Result<Vec<Vec<u32>>, ExplainError> {
        let mut pool = Vec::new();
        for (index, text) in self.texts.iter().enumerate() {
            let pointer = format!("/parameters/texts/{index}");
            let encoded = subject.model.tokenizer.encode(text, None, true, subject.caps);
            let encoded = encoded.map_err(|it| refusal(&it, &pointer))?;
            let words =
                features(&encoded, &Granularity::Word).map_err(|it| Misfit::new(&pointer, it.to_string()))?;
            for word in words {
                let own = encoded.slice(word.segment, word.start, word.end);
                if own.chars().any(char::is_alphanumeric) {
                    pool.push(word.tokens.iter().map(|&it| encoded.tokens[it].id).collect());
                }
            }
        }
        if pool.is_empty() {
            return Err(
                Misfit::parameter("texts", "holds no word; `background: \"words\"` draws from them").into()
            );
        }
        Ok(pool)
    }

    /// Draws where one feature is present or one is absent.
    fn edge(&self, features: usize) -> usize {
        Removal::edge_draws(features, self.samples(features), self.draws)
    }

    fn samples(&self, features: usize) -> usize {
        self.samples.unwrap_or_else(|| paired_samples(features))
    }
}

/// Both ends, and as many pairs as the samples allow or as there are, as often as words are drawn.
fn price(parameters: &TransShap, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let features = subject.features.len();
    let rows = paired_rows(features, parameters.samples(features))?;
    let effort = match parameters.pool(subject)? {
        Some(_) => Effort::drawn(parameters.draws).with_edges(features, parameters.edge(features)),
        None => Removal::plain(Operation::Mask, None).effort(subject, subject.features)?,
    };
    Ok(Price { forward: rows * effort.variants as u64 + effort.once as u64, gradient: 0 })
}

fn run(parameters: &TransShap, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let masker = |operation| Removal::plain(operation, None).masker(case, case.subject.features);
    let pool = parameters.pool(&case.subject)?;
    let words = pool.as_ref().map(|pool| json!({ "background_words": pool.len() }));
    let masker: Masker = match pool {
        Some(pool) => masker(Operation::Delete)?.drawing_from(pool, parameters.draws, case.subject.seed),
        None => masker(Operation::Mask)?,
    };
    let features = masker.len();
    let options = estimators::KernelShap {
        samples: parameters.samples(masker.len()),
        tolerance: parameters.tolerance,
        regression: estimators::Regression::Interactions,
        seed: case.subject.seed,
    };
    let mut game =
        Masked::new(case, masker, What::Scalars, parameters.partial).with_spread(parameters.edge(features));
    let run = estimators::kernel_shap(&mut game, &options).map_err(|error| refuse(error, &case.subject))?;
    let spent = spent(&game, parameters.draws, &[("samples", options.samples)]);
    findings(case, run, &game, parameters.partial, &spent, &|| words.clone())
}
