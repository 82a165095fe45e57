//! This file is where a folder, as Hugging Face Optimum writes it, becomes a checked manifest.

mod config;
mod document;
mod external;
mod settings;
mod special;

use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

pub use self::config::Config;
use self::document::Document;
pub use self::settings::{SETTINGS_FILE, Settings};
pub use self::special::SpecialTokens;
use self::special::TokenizerFile;
use super::labels::Labels;
use crate::compile::builder::KERNELS;

/// One model folder: which files it holds and what its JSON files say. Reading it opens no model.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The folder itself.
    pub folder: PathBuf,
    /// The ONNX file.
    pub graph: PathBuf,
    /// The files in which the ONNX file keeps its large weights, sorted by name; often none.
    pub external: Vec<PathBuf>,
    /// `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// `config.json`.
    pub config: Config,
    /// Most tokens of an input, special tokens included; `None` if neither file sets a limit.
    pub max_length: Option<usize>,
    /// Where short rows of a batch are filled up.
    pub padding_side: Side,
    /// Where a text that is too long loses its tokens.
    pub truncation_side: Side,
    /// Ids of padding, mask, unknown and the like.
    pub special: SpecialTokens,
    /// explaind's own settings of this model.
    pub settings: Settings,
}

/// An end of a sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum Side {
    /// The beginning.
    #[serde(alias = "left")]
    Left,
    /// The end.
    #[default]
    #[serde(alias = "right")]
    Right,
}

/// A folder that cannot be served. Every variant names the file.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// There is no such folder.
    #[error("{}: there is no such folder", folder.display())]
    NoFolder {
        /// What was asked for.
        folder: PathBuf,
    },
    /// A file that the folder must hold is not there.
    #[error("{}: the file is missing{}", file.display(), choose(present))]
    Missing {
        /// Which file.
        file: PathBuf,
        /// ONNX files that are there under other names; none of them is guessed.
        present: Vec<String>,
    },
    /// A file is there and cannot be read.
    #[error("{}: {cause}", file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A file is not JSON, or not of the shape that the format prescribes.
    #[error("{}: {cause}", file.display())]
    Json {
        /// Which file.
        file: PathBuf,
        /// What, with line and column.
        cause: serde_json::Error,
    },
    /// A field holds what it must not hold.
    #[error("{} at `{pointer}`: {misfit}", file.display())]
    Field {
        /// Which file.
        file: PathBuf,
        /// JSON pointer (RFC 6901) to the field.
        pointer: String,
        /// What is wrong with it.
        misfit: Misfit,
    },
    /// The model file is not an ONNX model.
    #[error("{}: not an ONNX model: {cause}", file.display())]
    NotOnnx {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        cause: std::io::Error,
    },
    /// The model file holds operators that only graphs derived in this process may hold.
    #[error("{}: it holds operators of the domain `{KERNELS}`, which no file may hold", file.display())]
    Kernels {
        /// The model file.
        file: PathBuf,
    },
    /// The model file names a data file that is not beside it, or that lies outside the folder.
    #[error("{}: the data file `{location}` of tensor `{tensor}` is not a file beside the model", file.display())]
    NoExternalData {
        /// The model file.
        file: PathBuf,
        /// A tensor that lies in the data file.
        tensor: String,
        /// The data file's name as the model has it.
        location: String,
    },
}

/// What is wrong with one field of one file.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Misfit {
    /// The value is not of this kind.
    #[error("expected {0}")]
    Expected(&'static str),
    /// The key is none that the file may hold.
    #[error("unknown key")]
    UnknownKey,
    /// The indexes of the labels are not 0, 1, 2, ...
    #[error("label {missing} is missing")]
    LabelGap {
        /// The first index without a label.
        missing: usize,
    },
    /// The file declares as many labels here, and another number there or in the graph.
    #[error("{declared} labels are declared, but there are {found}")]
    LabelCount {
        /// What the field says.
        declared: usize,
        /// What was found.
        found: usize,
    },
    /// Neither the file nor the graph tells how many labels there are.
    #[error("neither `id2label` nor `num_labels` is given, and the graph does not tell the number of labels")]
    NoLabels,
    /// The position table ends before the first token's position.
    #[error("no position is left for a token, since positions start at {offset}")]
    TooFewPositions {
        /// The first token's position.
        offset: usize,
    },
    /// A special token is not in the tokenizer's vocabulary.
    #[error("`{token}` is not a token of tokenizer.json")]
    NotAToken {
        /// The token's text.
        token: String,
    },
}

/// What a length means that is far beyond any model: "no limit" (Transformers writes 1e30).
const NO_LIMIT: f64 = 1e9;

impl Manifest {
    /// Reads and checks a folder.
    ///
    /// The model is `model.onnx` or `onnx/model.onnx`, or `file` (relative to the folder) if one is chosen. A
    /// quantised or optimised file beside them is used only when chosen.
    pub fn read(folder: &Path, file: Option<&str>) -> Result<Self, ManifestError> {
        if !folder.is_dir() {
            return Err(ManifestError::NoFolder { folder: folder.to_owned() });
        }
        let graph = graph(folder, file)?;
        let external = external_files(&graph)?;
        let tokenizer = folder.join("tokenizer.json");
        if !tokenizer.exists() {
            return Err(ManifestError::Missing { file: tokenizer, present: Vec::new() });
        }
        let config = Config::read(&Document::require(folder, "config.json")?)?;
        let words = TokenizerFile::read(&tokenizer)?;
        let ours = Document::read(folder, "tokenizer_config.json")?;
        let map = Document::read(folder, "special_tokens_map.json")?;
        let named: Vec<&Document> = ours.iter().chain(&map).collect();
        let special = SpecialTokens::find(config.pad_token_id, &named, &words)?;
        let side = |key| ours.as_ref().map_or(Ok(None), |it| side(it, key));
        Ok(Self {
            folder: folder.to_owned(),
            max_length: max_length(&config, ours.as_ref(), &words)?,
            padding_side: side("padding_side")?.or(words.padding_side()).unwrap_or_default(),
            truncation_side: side("truncation_side")?.or(words.truncation_side()).unwrap_or_default(),
            settings: Settings::read(folder)?,
            graph,
            external,
            tokenizer,
            config,
            special,
        })
    }

    /// The labels, once the graph's number of logits is known (`None`: the graph leaves it open).
    ///
    /// Refuses a folder that declares another number of labels than the graph has logits.
    pub fn labels(&self, logits: Option<usize>) -> Result<Labels, ManifestError> {
        let refuse = |misfit| ManifestError::field(&self.folder.join("config.json"), "/id2label", misfit);
        let count = match (self.config.label_count(), logits) {
            (Some(declared), Some(found)) if declared != found => {
                return Err(refuse(Misfit::LabelCount { declared, found }));
            }
            (declared, found) => declared.or(found).ok_or_else(|| refuse(Misfit::NoLabels))?,
        };
        Ok(self.config.labels(count, self.settings.temperature))
    }

    /// SHA-256 of the model in lower-case hex: of the ONNX file, followed by its data files in order, so that
    /// `cat model.onnx model.onnx_data | sha256sum` agrees. Reads the files piecewise.
    pub fn digest(&self) -> Result<String, ManifestError> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        for file in std::iter::once(&self.graph).chain(&self.external) {
            let unreadable = |cause| ManifestError::Unreadable { file: file.clone(), cause };
            let mut input = std::fs::File::open(file).map_err(unreadable)?;
            loop {
                match input.read(&mut buffer).map_err(unreadable)? {
                    0 => break,
                    read => hash.update(&buffer[..read]),
                }
            }
        }
        Ok(hex::encode(hash.finalize()))
    }
}

impl ManifestError {
    fn field(file: &Path, pointer: &str, misfit: Misfit) -> Self {
        Self::Field { file: file.to_owned(), pointer: pointer.to_owned(), misfit }
    }
}

fn graph(folder: &Path, file: Option<&str>) -> Result<PathBuf, ManifestError> {
    let names = file.map_or_else(|| vec!["model.onnx", "onnx/model.onnx"], |it| vec![it]);
    let there = names.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    there.ok_or_else(|| {
        let found = ["", "onnx"].into_iter().flat_map(|inner| onnx_files(folder, inner)).collect();
        ManifestError::Missing { file: folder.join(names[0]), present: found }
    })
}

fn onnx_files(folder: &Path, inner: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder.join(inner)).into_iter().flatten().flatten();
    let paths = entries.map(|it| Path::new(inner).join(it.file_name()));
    let mut names: Vec<String> = paths
        .filter(|path| path.extension().is_some_and(|it| it == "onnx"))
        .map(|path| path.display().to_string())
        .collect();
    names.sort();
    names
}

fn external_files(graph: &Path) -> Result<Vec<PathBuf>, ManifestError> {
    let skimmed =
        external::skim(graph).map_err(|cause| ManifestError::NotOnnx { file: graph.to_owned(), cause })?;
    if skimmed.kernels {
        return Err(ManifestError::Kernels { file: graph.to_owned() });
    }
    let beside = graph.parent().unwrap_or(Path::new(""));
    let inside =
        |path: &Path| path.components().all(|it| matches!(it, Component::Normal(_) | Component::CurDir));
    let resolve = |(location, tensor): (String, String)| {
        let path = beside.join(&location);
        if inside(Path::new(&location)) && path.is_file() {
            return Ok(path);
        }
        Err(ManifestError::NoExternalData { file: graph.to_owned(), tensor, location })
    };
    skimmed.locations.into_iter().map(resolve).collect()
}

/// The smaller of what the tokenizer and the position table allow.
fn max_length(
    config: &Config,
    tokenizer_config: Option<&Document>,
    tokenizer: &TokenizerFile,
) -> Result<Option<usize>, ManifestError> {
    let declared = match tokenizer_config.map(|it| (it, it.number("model_max_length"))) {
        None => None,
        Some((_, Err(error))) => return Err(error),
        Some((_, Ok(None))) => None,
        Some((document, Ok(Some(length)))) if !(1.0..).contains(&length) || length.fract() != 0.0 => {
            let misfit = Misfit::Expected("a whole number of at least 1");
            return Err(document.misfit("/model_max_length", misfit));
        }
        Some((_, Ok(Some(length)))) => Some(length).filter(|&it| it < NO_LIMIT).map(|it| it as usize),
    };
    // What tokenizer.json truncates to is a training habit, not the model's limit: it counts if nothing else does.
    let limit = [declared, config.max_positions].into_iter().flatten().min();
    Ok(limit.or(tokenizer.max_length()))
}

fn side(document: &Document, key: &str) -> Result<Option<Side>, ManifestError> {
    match document.text(key)? {
        None => Ok(None),
        Some("left") => Ok(Some(Side::Left)),
        Some("right") => Ok(Some(Side::Right)),
        Some(_) => Err(document.misfit(&document::pointer(&[key]), Misfit::Expected("`left` or `right`"))),
    }
}

fn choose(present: &[String]) -> String {
    if present.is_empty() {
        return String::new();
    }
    format!("; the folder holds {}: name the one to serve model.onnx", present.join(", "))
}

#[cfg(test)]
mod tests;
