//! TransSHAP: word-level Kernel SHAP of a subword model, against a background of other words.

use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::{
    masked::{Masked, What, refuse},
    shapley::{findings, paired_rows, paired_samples},
};
use crate::{
    explain::{
        About, Case, ExplainError, Family, Finding, Method, Misfit, Operation, Price, Removal, Subject,
        Typed,
        estimators::{self, random::Stream},
        nothing_more,
    },
    model::{
        Need, Output,
        text::{Caps, Granularity, features},
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
    /// For `words`: words drawn for each absent word; the scores are averaged.
    #[schema(minimum = 1, maximum = 64, default = 5)]
    pub draws: usize,
    /// Subsets evaluated at most, at least twice the features; 1,024 by default, or twice the features where
    /// that is more. When all subsets are no more than this, the values are exact.
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

const PURPOSE: u64 = 0x776f_7264;
/// How large a background text may be.
const CAPS: Caps = Caps { characters: 20_000, run: 5_000 };

impl TransShap {
    /// The words that stand for each feature where they are drawn.
    fn drawn(&self, subject: &Subject<'_>) -> Result<Option<Vec<Vec<String>>>, ExplainError> {
        if self.background == Background::Words {
            return self.words(subject).map(Some);
        }
        if !self.texts.is_empty() {
            return Err(Misfit::parameter("texts", "goes with `background: \"words\"`").into());
        }
        Ok(None)
    }

    fn removal(drawn: Option<&[Vec<String>]>) -> Removal<'_> {
        let operation = if drawn.is_some() { Operation::Replace } else { Operation::Mask };
        Removal::plain(operation, drawn)
    }

    /// The words that stand for each feature, drawn with replacement.
    fn words(&self, subject: &Subject<'_>) -> Result<Vec<Vec<String>>, ExplainError> {
        let mut pool: Vec<String> = Vec::new();
        for (index, text) in self.texts.iter().enumerate() {
            let refuse = |detail: String| Misfit::new(format!("/parameters/texts/{index}"), detail);
            let encoded = subject
                .model
                .tokenizer
                .encode(text, None, true, CAPS)
                .map_err(|it| refuse(it.to_string()))?;
            let words = features(&encoded, &Granularity::Word).map_err(|it| refuse(it.to_string()))?;
            let slices = words.iter().map(|it| encoded.slice(it.segment, it.start, it.end));
            pool.extend(slices.filter(|it| it.chars().any(char::is_alphanumeric)).map(str::to_owned));
        }
        if pool.is_empty() {
            return Err(
                Misfit::parameter("texts", "holds no word; `background: \"words\"` draws from them").into()
            );
        }
        let words = |feature: usize| {
            let mut stream = Stream::new(subject.seed, PURPOSE, feature as u64);
            (0..self.draws).map(|_| pool[stream.below(pool.len())].clone()).collect()
        };
        Ok((0..subject.features.len()).map(words).collect())
    }

    fn samples(&self, features: usize) -> usize {
        self.samples.unwrap_or_else(|| paired_samples(features))
    }
}

/// Both ends, and as many pairs as the samples allow or as there are, as often as words are drawn.
fn price(parameters: &TransShap, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let features = subject.features.len();
    let rows = paired_rows(features, parameters.samples(features))?;
    let drawn = parameters.drawn(subject)?;
    let variants = TransShap::removal(drawn.as_deref()).effort(subject, subject.features)?.variants as u64;
    Ok(Price { forward: rows * variants, gradient: 0 })
}

fn run(parameters: &TransShap, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let drawn = parameters.drawn(&case.subject)?;
    let masker = TransShap::removal(drawn.as_deref()).masker(case, case.subject.features)?;
    let options = estimators::KernelShap {
        samples: parameters.samples(masker.len()),
        tolerance: parameters.tolerance,
        regression: estimators::Regression::Interactions,
        seed: case.subject.seed,
    };
    let mut game = Masked::new(case, masker, What::Scalars, parameters.partial);
    let run = estimators::kernel_shap(&mut game, &options).map_err(|error| refuse(error, &case.subject))?;
    let words = drawn.map(|drawn| json!({ "background_words": drawn }));
    findings(case, run, game.shift()?, parameters.partial, &|| words.clone())
}
