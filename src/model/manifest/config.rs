//! This file is where `config.json` is read: what the model is, how long its inputs may be, what its labels are.

use super::document::{Document, pointer};
use super::{ManifestError, Misfit};
use crate::model::labels::{Activation, Labels};

use serde_json::Value;

/// What `config.json` says of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The architecture's name (`bert`, `roberta`, `gpt2`, ...), if the file gives it.
    pub model_type: Option<String>,
    /// Width of the hidden states, if the file gives it.
    pub hidden_size: Option<usize>,
    /// Rows of the word embedding, if the file gives it.
    pub vocab_size: Option<usize>,
    /// The padding token's id, if the model has one.
    pub pad_token_id: Option<u32>,
    /// Position of a sequence's first token: `pad_token_id + 1` in RoBERTa's family, else 0.
    pub position_offset: usize,
    /// Most tokens that the position embeddings serve; `None` if positions are not limited.
    pub max_positions: Option<usize>,
    /// Declared label names by index; `None` if the file declares none.
    names: Option<Vec<String>>,
    count: Option<usize>,
    problem: Option<Activation>,
}

/// Models that count positions from `pad_token_id + 1` and size their position table accordingly.
const OFFSET_BY_PADDING: &[&str] = &[
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "layoutlmv3",
    "lilt",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
];

/// `pad_token_id` of those models when `config.json` leaves out what is their default.
const OFFSET_FAMILY_PAD: u32 = 1;

impl Config {
    pub(super) fn read(document: &Document) -> Result<Self, ManifestError> {
        let first = |keys: &[&str]| {
            keys.iter().find(|key| document.get(key).is_some()).map_or(Ok(None), |key| document.count(key))
        };
        let model_type = document.text("model_type")?.map(str::to_owned);
        let vocab_size = first(&["vocab_size"])?;
        let offset = model_type.as_deref().is_some_and(|it| OFFSET_BY_PADDING.contains(&it));
        let mut pad_token_id = pad_token_id(document, vocab_size)?;
        if offset {
            pad_token_id = pad_token_id.or(Some(OFFSET_FAMILY_PAD));
        }
        let position_offset = pad_token_id.filter(|_| offset).map_or(0, |pad| pad as usize + 1);
        let position_keys = ["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"];
        let max_positions = match first(&position_keys)? {
            Some(rows) if rows <= position_offset => {
                let key = position_keys.iter().find(|key| document.get(key).is_some());
                let misfit = Misfit::TooFewPositions { offset: position_offset };
                return Err(document.misfit(&pointer(&[key.unwrap_or(&"")]), misfit));
            }
            rows => rows.map(|rows| rows - position_offset),
        };
        let names = names(document)?;
        let count = document.count("num_labels")?;
        if let (Some(names), Some(count)) = (&names, count)
            && names.len() != count
        {
            let misfit = Misfit::LabelCount { declared: count, found: names.len() };
            return Err(document.misfit("/num_labels", misfit));
        }
        Ok(Self {
            hidden_size: first(&["hidden_size", "n_embd", "d_model", "dim"])?,
            problem: problem(document)?,
            model_type,
            vocab_size,
            pad_token_id,
            position_offset,
            max_positions,
            names,
            count,
        })
    }

    /// The number of labels that the file declares.
    pub fn label_count(&self) -> Option<usize> {
        self.names.as_ref().map(Vec::len).or(self.count)
    }

    /// `count` labels. One label is a regression unless the file says that it is a yes or no.
    pub(super) fn labels(&self, count: usize, temperature: f64) -> Labels {
        let activation = match self.problem {
            Some(Activation::Softmax) | None if count == 1 => Activation::Identity,
            problem => problem.unwrap_or(Activation::Softmax),
        };
        match &self.names {
            Some(names) => Labels::named(names.clone(), activation, temperature),
            None => Labels::numbered(count, activation, temperature),
        }
    }
}

/// -1 is how some models of the Llama family say "none".
fn pad_token_id(document: &Document, vocab_size: Option<usize>) -> Result<Option<u32>, ManifestError> {
    let Some(value) = document.get("pad_token_id").filter(|it| it.as_i64() != Some(-1)) else {
        return Ok(None);
    };
    let id = value.as_u64().and_then(|it| u32::try_from(it).ok());
    let in_vocabulary = |id: &u32| vocab_size.is_none_or(|size| (*id as usize) < size);
    let misfit = || document.misfit("/pad_token_id", Misfit::Expected("the id of a token of the vocabulary"));
    id.filter(in_vocabulary).map(Some).ok_or_else(misfit)
}

fn problem(document: &Document) -> Result<Option<Activation>, ManifestError> {
    match document.text("problem_type")? {
        None => Ok(None),
        Some("single_label_classification") => Ok(Some(Activation::Softmax)),
        Some("multi_label_classification") => Ok(Some(Activation::Sigmoid)),
        Some("regression") => Ok(Some(Activation::Identity)),
        Some(_) => {
            let known = "`single_label_classification`, `multi_label_classification` or `regression`";
            Err(document.misfit("/problem_type", Misfit::Expected(known)))
        }
    }
}

/// `id2label`: its keys are numbers written as strings, and "10" comes after "9".
fn names(document: &Document) -> Result<Option<Vec<String>>, ManifestError> {
    let Some(value) = document.get("id2label") else { return Ok(None) };
    let Value::Object(map) = value else {
        return Err(document.misfit("/id2label", Misfit::Expected("an object from index to name")));
    };
    let mut names = vec![None; map.len()];
    for (key, name) in map {
        let at = pointer(&["id2label", key]);
        let canonical = |index: &usize| index.to_string() == *key;
        let index: usize = key
            .parse()
            .ok()
            .filter(canonical)
            .ok_or_else(|| document.misfit(&at, Misfit::Expected("an index as its key")))?;
        let name = name.as_str().ok_or_else(|| document.misfit(&at, Misfit::Expected("a string")))?;
        if let Some(slot) = names.get_mut(index) {
            *slot = Some(name.to_owned());
        }
    }
    if let Some(missing) = names.iter().position(Option::is_none) {
        return Err(document.misfit("/id2label", Misfit::LabelGap { missing }));
    }
    if names.is_empty() {
        return Err(document.misfit("/id2label", Misfit::Expected("at least one label")));
    }
    Ok(Some(names.into_iter().flatten().collect()))
}
