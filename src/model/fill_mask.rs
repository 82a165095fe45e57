//! Where a classifier's companion stands: a masked language model over the same vocabulary, which says what
//! could stand in a gap.

use std::{path::Path, sync::Arc};

use super::{
    Manifest, OpenError, OpenSettings, Unavailable, graphs, open,
    text::{Tokenizer, TokenizerError},
    trial,
};
use crate::runtime::{
    Dim, Element, Graph, Layout, Outlet, OutputSlot, Program, ProgramKind, Row, RuntimeError, Session,
    SharedWeights,
};

/// A masked language model that shares its classifier's vocabulary.
pub struct FillMask {
    /// SHA-256 of its graph and weights, in hexadecimal.
    pub digest: String,
    /// Logits `[tokens, vocabulary]` from tokens.
    pub program: Arc<Program>,
    /// The token that stands for a gap.
    pub mask: u32,
    /// Most tokens of an input, special tokens included.
    pub max_length: Option<usize>,
    /// Columns of its logits; at least as many as the tokenizer has tokens.
    pub columns: usize,
}

impl FillMask {
    /// Opens the folder of a masked language model as the companion of the classifier whose tokenizer this is.
    ///
    /// # Errors
    /// [`OpenError`]: a folder that is no masked language model, or one of another vocabulary.
    pub fn open(folder: &Path, classifier: &Tokenizer, settings: &OpenSettings) -> Result<Self, OpenError> {
        let manifest = Manifest::read(folder, None)?;
        let file = |path: &Path| path.display().to_string();
        let refused = |cause: TokenizerError| OpenError::Tokenizer { file: file(&manifest.tokenizer), cause };
        let tokenizer = Tokenizer::open(&manifest).map_err(refused)?;
        if let Some(difference) = classifier.difference(&tokenizer) {
            return Err(OpenError::OtherVocabulary { file: file(&manifest.tokenizer), difference });
        }
        let odd = |detail: String| OpenError::NotAMaskedModel { file: file(&manifest.graph), detail };
        let mask = manifest.special.mask.ok_or_else(|| odd("its tokenizer has no mask token".to_owned()))?;
        let failed = |cause: RuntimeError| OpenError::Graph { file: file(&manifest.graph), cause };
        let (runtime, weights) = (&settings.runtime, SharedWeights::default());
        let graph = graphs::read_shared(&manifest.graph, &weights)
            .map_or_else(|_| Graph::file(&manifest.graph), |graph| graphs::runnable(&graph));
        let session = Session::on_trial(runtime, &graph, &weights).map_err(failed)?;
        let (inputs, padding) = open::inputs(&session.inputs(), &manifest).map_err(odd)?;
        let name = logits(&session.outputs()).map_err(odd)?;
        let outputs = vec![OutputSlot { name, dims: vec![Dim::Sequence] }];
        let layout = Layout { inputs, outputs, padding, counted: None, least: 1 };
        let kind = ProgramKind::Forward;
        let mut tried = Program::of(session, kind, layout);
        let row = Row::of(tokenizer.shortest_ids(), None);
        let columns = match tried.probe(&row).map_err(failed)?[..] {
            [1, length, columns] if length == row.len() => columns,
            ref other => return Err(odd(format!("its logits are {other:?}, not [1, tokens, vocabulary]"))),
        };
        if columns < tokenizer.vocabulary() {
            let tokens = tokenizer.vocabulary();
            return Err(odd(format!(
                "its logits have {columns} columns for a vocabulary of {tokens} tokens"
            )));
        }
        tried.layout.outputs[0].dims.push(Dim::Fixed(columns));
        tried.layout.padding = trial::padding(&tried, &row).0;
        let program = trial::serve(&tried, &graph, &weights, &row, (settings, &file(&manifest.graph)))?;
        Ok(Self {
            digest: manifest.digest()?,
            program: Arc::new(program),
            mask,
            max_length: manifest.max_length,
            columns,
        })
    }
}

/// What is said of a classifier that has no companion, or whose companion did not open.
pub(super) fn missing(reason: impl Into<String>) -> Unavailable {
    Unavailable {
        method: None,
        code: "fill_mask".to_owned(),
        reason: reason.into(),
        operators: Vec::new(),
        advice:
            "start the service with a masked language model of the same vocabulary, `--fill-mask NAME=DIR`; \
                 `operation: \"neighbors\"` needs no companion"
                .to_owned(),
    }
}

/// The output named `logits`, or the only float output.
fn logits(outputs: &[Outlet]) -> Result<String, String> {
    let float = |it: &&Outlet| matches!(it.element, Some(Element::F32 | Element::F16 | Element::F64));
    let floats: Vec<&str> = outputs.iter().filter(float).map(|it| it.name.as_str()).collect();
    match floats[..] {
        [only] => Ok(only.to_owned()),
        _ if floats.contains(&"logits") => Ok("logits".to_owned()),
        _ => Err(format!("it has no output `logits`; its outputs are {}", floats.join(", "))),
    }
}
