//! This file is where the tokens with a meaning (padding, mask, unknown, ...) get their ids.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::document::{Document, pointer, read_json};
use super::{ManifestError, Misfit, Side};

/// Ids of the tokens with a meaning of their own; `None` where the model has no such token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Fills rows up to the batch's length. GPT-2 has none.
    pub pad: Option<u32>,
    /// Stands for a hidden token. Only masked language models and what came of them have one.
    pub mask: Option<u32>,
    /// Stands for what the vocabulary lacks. Byte-level models have none.
    pub unk: Option<u32>,
    /// Opens a sequence.
    pub cls: Option<u32>,
    /// Closes a sequence, or stands between two.
    pub sep: Option<u32>,
    /// Every token that the tokenizer file declares special, those above included.
    pub all: BTreeSet<u32>,
}

/// What of `tokenizer.json` the manifest needs; the `tokenizers` crate reads the file again for its own use.
#[derive(Debug, Deserialize)]
pub(super) struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    padding: Option<Padding>,
    truncation: Option<Truncation>,
    #[serde(default)]
    post_processor: Value,
    model: Vocabulary,
}

#[derive(Debug, Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Debug, Deserialize)]
struct Padding {
    direction: Option<Side>,
    pad_id: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct Truncation {
    direction: Option<Side>,
    max_length: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct Vocabulary {
    #[serde(default)]
    vocab: Ids,
    unk_token: Option<String>,
    unk_id: Option<u32>,
}

#[derive(Debug, Default)]
struct Ids(HashMap<String, u32>);

impl TokenizerFile {
    pub(super) fn read(file: &Path) -> Result<Self, ManifestError> {
        read_json(file)
    }

    pub(super) fn padding_side(&self) -> Option<Side> {
        self.padding.as_ref().and_then(|it| it.direction)
    }

    pub(super) fn truncation_side(&self) -> Option<Side> {
        self.truncation.as_ref().and_then(|it| it.direction)
    }

    pub(super) fn max_length(&self) -> Option<usize> {
        self.truncation.as_ref().and_then(|it| it.max_length).filter(|&length| length > 0)
    }

    fn id(&self, token: &str) -> Option<u32> {
        let added = self.added_tokens.iter().find(|it| it.content == token).map(|it| it.id);
        added.or_else(|| self.model.vocab.0.get(token).copied())
    }

    /// The declared special token that bears one of the two customary names.
    fn customary(&self, names: [&str; 2]) -> Option<u32> {
        let named = |it: &&AddedToken| it.special && names.contains(&it.content.as_str());
        self.added_tokens.iter().find(named).map(|it| it.id)
    }

    /// The first and the last token that the post-processor puts around a single sequence.
    fn brackets(&self) -> (Option<u32>, Option<u32>) {
        brackets(&self.post_processor)
    }
}

impl SpecialTokens {
    /// Asks, in this order: `tokenizer_config.json`, `special_tokens_map.json`, `tokenizer.json`.
    ///
    /// `config_pad` goes before them all: the graph itself may compare ids with it (GPT-2 looks for the last
    /// token that is not padding, RoBERTa counts positions so), and then no other padding is right.
    pub(super) fn find(
        config_pad: Option<u32>,
        named: &[&Document],
        tokenizer: &TokenizerFile,
    ) -> Result<Self, ManifestError> {
        let token = |key: &str| -> Result<Option<u32>, ManifestError> {
            for document in named {
                if let Some(id) = named_token(document, key, tokenizer)? {
                    return Ok(Some(id));
                }
            }
            Ok(None)
        };
        let (first, last) = tokenizer.brackets();
        let unk_token = tokenizer.model.unk_token.as_deref().and_then(|it| tokenizer.id(it));
        let padding = tokenizer.padding.as_ref().and_then(|it| it.pad_id);
        let special = tokenizer.added_tokens.iter().filter(|it| it.special).map(|it| it.id);
        let pad = token("pad_token")?.or(padding).or_else(|| tokenizer.customary(["[PAD]", "<pad>"]));
        let mut found = Self {
            pad: config_pad.or(pad),
            mask: token("mask_token")?.or_else(|| tokenizer.customary(["[MASK]", "<mask>"])),
            unk: token("unk_token")?
                .or(unk_token)
                .or(tokenizer.model.unk_id)
                .or_else(|| tokenizer.customary(["[UNK]", "<unk>"])),
            cls: token("cls_token")?.or(first).or_else(|| tokenizer.customary(["[CLS]", "<s>"])),
            sep: token("sep_token")?.or(last).or_else(|| tokenizer.customary(["[SEP]", "</s>"])),
            all: special.collect(),
        };
        found.all.extend([found.pad, found.mask, found.unk, found.cls, found.sep].into_iter().flatten());
        Ok(found)
    }

    /// Forgets the tokens whose ids a table of so many rows does not have, and says which they were.
    pub fn confine(&mut self, rows: usize) -> Vec<(&'static str, u32)> {
        let Self { pad, mask, unk, cls, sep, all: _ } = self;
        let roles = [("pad", pad), ("mask", mask), ("unknown", unk), ("cls", cls), ("sep", sep)];
        let beyond = |(name, id): (_, &mut Option<u32>)| Some((name, id.take_if(|id| *id as usize >= rows)?));
        roles.into_iter().filter_map(beyond).collect()
    }
}

/// A special token is written as its text, or as an object that holds the text as `content`.
fn named_token(
    document: &Document,
    key: &str,
    tokenizer: &TokenizerFile,
) -> Result<Option<u32>, ManifestError> {
    let (text, pointer) = match document.get(key) {
        None => return Ok(None),
        Some(Value::String(text)) => (text, pointer(&[key])),
        Some(Value::Object(token)) => match token.get("content") {
            Some(Value::String(text)) => (text, pointer(&[key, "content"])),
            _ => return Err(document.misfit(&pointer(&[key, "content"]), Misfit::Expected("a string"))),
        },
        Some(_) => return Err(document.misfit(&pointer(&[key]), Misfit::Expected("a token"))),
    };
    let unknown = || document.misfit(&pointer, Misfit::NotAToken { token: text.clone() });
    tokenizer.id(text).map(Some).ok_or_else(unknown)
}

/// Reads the four shapes in which `tokenizer.json` writes a post-processor.
fn brackets(processor: &Value) -> (Option<u32>, Option<u32>) {
    let id = |value: Option<&Value>| value.and_then(Value::as_u64).and_then(|it| u32::try_from(it).ok());
    match processor["type"].as_str() {
        Some("BertProcessing" | "RobertaProcessing") => {
            (id(processor["cls"].get(1)), id(processor["sep"].get(1)))
        }
        Some("TemplateProcessing") => {
            let special = |piece: Option<&Value>| {
                let name = piece?.get("SpecialToken")?.get("id")?.as_str()?;
                id(processor["special_tokens"].get(name)?.get("ids")?.get(0))
            };
            let pieces = processor["single"].as_array();
            (special(pieces.and_then(|it| it.first())), special(pieces.and_then(|it| it.last())))
        }
        Some("Sequence") => {
            let parts = processor["processors"].as_array().into_iter().flatten().map(brackets);
            parts.fold((None, None), |found, it| (found.0.or(it.0), found.1.or(it.1)))
        }
        _ => (None, None),
    }
}

impl<'de> Deserialize<'de> for Ids {
    /// A map from token to id, or, as Unigram has it, a list of `[token, score]` whose places are the ids.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = Ids;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from token to id, or a list of tokens with scores")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ids, A::Error> {
                let mut ids = HashMap::with_capacity(map.size_hint().unwrap_or(0));
                while let Some((token, id)) = map.next_entry()? {
                    ids.insert(token, id);
                }
                Ok(Ids(ids))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Ids, A::Error> {
                let mut ids = HashMap::new();
                let mut id = 0;
                while let Some((token, _score)) = list.next_element::<(String, IgnoredAny)>()? {
                    ids.insert(token, id);
                    id += 1;
                }
                Ok(Ids(ids))
            }
        }
        deserializer.deserialize_any(Shape)
    }
}
