//! Where a folder becomes a model: read, check, start its sessions.

use std::{path::Path, sync::Arc};

use super::{
    ALL, Activation, Manifest, ManifestError, Model, OwnGraph, PREDICTED, RelevanceGraphs, Unavailable,
    attention, derived, fill_mask, graphs, intervention,
    manifest::Side,
    text::{Tokenizer, TokenizerError},
    trial,
};
use crate::compile::{self, Compiled, locate::Logits, refusal::Code};
use crate::runtime::{
    Device, Dim, Element, Graph, InputSlot, Layout, Outlet, OutputSlot, Padding, Program, ProgramKind, Role,
    Runtime, RuntimeError, Session, SharedWeights, release_freed_memory,
};

/// How models are opened.
#[derive(Clone)]
pub struct OpenSettings {
    /// The loaded ONNX Runtime.
    pub runtime: Runtime,
    /// Sessions of every graph: one a worker.
    pub workers: usize,
}

/// Why a folder is not served. Every variant names the file.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// One of the folder's files is missing or wrong.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// `tokenizer.json` cannot be used.
    #[error("{file}: {cause}")]
    Tokenizer {
        /// The file.
        file: String,
        /// What is wrong with it.
        cause: TokenizerError,
    },
    /// ONNX Runtime refuses the graph, or it fails on the simplest input.
    #[error("{file}: {cause}")]
    Graph {
        /// The file.
        file: String,
        /// ONNX Runtime's words.
        cause: RuntimeError,
    },
    /// The graph is not that of a text classifier.
    #[error("{file}: {detail}")]
    NotAClassifier {
        /// The file.
        file: String,
        /// What was found instead.
        detail: String,
    },
    /// The graph is not that of a masked language model, which a companion must be.
    #[error("{file}: not a masked language model: {detail}")]
    NotAMaskedModel {
        /// The file.
        file: String,
        /// What was found instead.
        detail: String,
    },
    /// What serves must compute what the graph does.
    #[error(
        "{file}: on `{device}`, {rows} equal rows get logits that are off by {gap:.2e} of the largest: serve this model on `cpu`"
    )]
    Strays {
        /// The file.
        file: String,
        /// The device that was asked for.
        device: Device,
        /// Rows in the batch.
        rows: usize,
        /// The largest difference from the logits on the processor, in parts of the largest of them.
        gap: f32,
    },
    /// A companion must share the classifier's vocabulary, so that its words can be put into the classifier's rows.
    #[error("{file}: not the classifier's vocabulary: {difference}")]
    OtherVocabulary {
        /// The companion's `tokenizer.json`.
        file: String,
        /// The first difference.
        difference: String,
    },
}

/// A folder that was read, and what the compiler made of its graph.
pub struct Opening {
    /// What the folder says.
    pub manifest: Manifest,
    /// The folder's graph. One that the compiler cannot read may still run: only derived graphs are missing then.
    pub graph: Result<compile::graph::Graph, String>,
    /// The model's structure and its derived graphs, or why there are none.
    pub compiled: Result<Compiled, Unavailable>,
    /// Derived graphs that the folder brings itself, but for relevance graphs.
    pub own: Vec<OwnGraph>,
    weights: SharedWeights,
}

impl Opening {
    /// Reads the folder and derives its graphs.
    ///
    /// # Errors
    /// A file of the folder is missing or wrong.
    pub fn read(folder: &Path, runtime: &Runtime) -> Result<Self, ManifestError> {
        let manifest = Manifest::read(folder, None)?;
        let weights = SharedWeights::default();
        let graph = graphs::read_shared(&manifest.graph, &weights);
        let compiled = match &graph {
            Ok(graph) => derived::compile_to_serve(graph.clone(), runtime, &weights, &manifest)
                .map_err(derived::refused),
            Err(reason) => Err(derived::unavailable(Code::Run, reason.clone())),
        };
        let (compiled, own) = match compiled {
            Ok((compiled, own)) => (Ok(compiled), own),
            Err(missing) => (Err(missing), Vec::new()),
        };
        Ok(Self { manifest, graph, compiled, own, weights })
    }
}

impl Model {
    /// Opens the folder under a name.
    ///
    /// # Errors
    /// [`OpenError`], one clear reason.
    pub fn open(name: &str, folder: &Path, settings: &OpenSettings) -> Result<Self, OpenError> {
        let opening = Opening::read(folder, &settings.runtime)?;
        let weights = opening.weights.clone();
        let model = Self::of(name, &opening, settings);
        drop(opening);
        weights.forget_unused();
        release_freed_memory();
        model
    }

    /// Starts the sessions of a folder that was read.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn of(name: &str, opening: &Opening, settings: &OpenSettings) -> Result<Self, OpenError> {
        let Opening { manifest, graph: read, compiled, own, weights } = opening;
        let file = manifest.graph.display().to_string();
        let unusable = |cause| OpenError::Tokenizer { file: manifest.tokenizer.display().to_string(), cause };
        let failed = |cause| OpenError::Graph { file: file.clone(), cause };
        let odd = |detail| OpenError::NotAClassifier { file: file.clone(), detail };
        let mut tokenizer = Tokenizer::open(manifest).map_err(unusable)?;
        let mut warnings = Vec::new();
        let mut confined = manifest.clone();
        if let Ok(compiled) = compiled {
            let rows = compiled.embedding.vocabulary;
            tokenizer = tokenizer.within(rows).map_err(unusable)?;
            let forgotten = confined.special.confine(rows).into_iter();
            warnings.extend(forgotten.map(|(role, id)| {
                format!(
                    "the {role} token is number {id}, and the embedding table has {rows} rows: it is not used"
                )
            }));
        }
        let manifest = &confined;
        if let Ok(Compiled { logits: Logits { activation: Some(activation), value, .. }, .. }) = compiled {
            warnings
                .push(format!("the graph ends in {activation}; logits are the values before it, `{value}`, and scores after it"));
        }
        let graph = match (read, compiled) {
            (_, Ok(Compiled { lean: Some(lean), .. })) => graphs::runnable(lean),
            (Ok(graph), Ok(compiled)) if compiled.logits.activation.is_some() => {
                // What the compiler made of the graph may have lost a branch; the value may be one that it made.
                let own = graphs::computes(graph, &compiled.logits.value);
                let graph = if own { graph } else { &compiled.graph };
                graphs::runnable(&graphs::ending_in(graph, &compiled.logits.value))
            }
            (Ok(graph), _) => graphs::runnable(graph),
            (Err(_), _) => Graph::file(&manifest.graph),
        };
        let session = Session::on_trial(&settings.runtime, &graph, weights).map_err(failed)?;
        let layout = layout(&session.inputs(), &session.outputs(), manifest).map_err(odd)?;
        let precision = precision(&session, &layout);
        let mut tried = Program::of(session, ProgramKind::Forward, layout);
        let ids = tokenizer.shortest_ids();
        let (least, width) = trial::least(&mut tried, &ids, tokenizer.specials(false)).map_err(failed)?;
        tried.layout.least = least;
        tried.layout.outputs[0].dims = vec![Dim::Fixed(width)];
        let shortest = trial::row(&ids, least.max(ids.len()));
        if shortest.len() > ids.len() {
            warnings.push(format!(
                "the graph does not run on fewer than {least} tokens: shorter texts are refused"
            ));
        }
        let max_length = trial::longest(&mut tried, &ids, shortest.len(), manifest.max_length);
        if let Some(limit) = max_length.filter(|_| max_length != manifest.max_length) {
            warnings.push(too_long(manifest, limit));
            tokenizer = tokenizer.with_limit(max_length, manifest.truncation_side);
        }
        let (padding, warning) = trial::padding(&tried, &shortest);
        tried.layout.padding = padding;
        warnings.extend(warning.map(str::to_owned));
        tried.layout.counted = trial::counted(&tried, &shortest, &manifest.special);
        if let Some(name) = tried.layout.counted.and_then(|it| tokenizer.token_text(it)) {
            warnings.push(format!(
                "the graph reads every `{name}` of a batch at once: only rows that hold as many share one"
            ));
        }
        let labels = manifest.labels(Some(width))?;
        let labels = match compiled.as_ref().ok().and_then(ends_in) {
            Some(Activation::Softmax) if width == 1 => labels,
            Some(activation) => labels.activated(activation),
            None => labels,
        };
        for word in [PREDICTED, ALL].into_iter().filter(|word| labels.names().iter().any(|it| it == word)) {
            warnings
                .push(format!("as a target, `{word}` is no label: ask for the label `{word}` by its index"));
        }
        if compiled.as_ref().is_ok_and(|it| it.embedding.partial) {
            warnings.push(
                "the decoder looks up shifted token ids in the same table: gradients leave that path out"
                    .to_owned(),
            );
        }
        let forward = trial::serve(&tried, &graph, weights, &shortest, (settings, &file))?;
        drop(tried);
        let (runtime, workers, layout) = (&settings.runtime, settings.workers, &forward.layout);
        let bench = derived::Bench { runtime, weights, workers, layout };
        let digest = manifest.digest()?;
        let relevance = compiled
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|compiled| RelevanceGraphs::new(compiled, &bench, manifest.clone(), digest.clone()));
        let behind = compiled.as_ref().map_err(Clone::clone).and_then(|compiled| {
            let embedded = derived::embedded(compiled, &bench)?;
            Ok((compiled, embedded))
        });
        let behind = behind.as_ref().map(|(compiled, embedded)| (*compiled, embedded));
        let behind = behind.map_err(Unavailable::clone);
        let gradient = behind.clone().and_then(|it| derived::gradient(it.0, it.1, &bench));
        let intervention = behind.clone().and_then(|it| intervention::intervention(it.0, it.1, &bench));
        let attention = behind.clone().and_then(|it| attention::attention(it.0, it.1, &bench));
        let words = behind.and_then(|it| derived::words(it.1));
        Ok(Self {
            name: name.to_owned(),
            digest,
            labels,
            special: manifest.special.clone(),
            tokenizer,
            max_length,
            precision,
            tolerance: compiled.as_ref().map_or(0.0, Compiled::tolerance),
            device: settings.runtime.device,
            forward: Arc::new(forward),
            gradient,
            intervention,
            attention,
            words,
            fill_mask: Err(fill_mask::missing("the model has no companion masked language model")),
            relevance,
            own: own.clone(),
            warnings,
        })
    }
}

/// What is said of a graph that takes fewer tokens than its folder says.
fn too_long(manifest: &Manifest, limit: usize) -> String {
    let said = match (manifest.config.max_positions, manifest.max_length) {
        (Some(positions), _) => format!("config.json gives it positions for {positions}"),
        (None, Some(length)) => format!("the tokenizer's files allow {length}"),
        (None, None) => "no file of the folder gives a limit".to_owned(),
    };
    format!("the graph does not run on more than {limit} tokens, and {said}: the limit is {limit}")
}

/// What the graph itself makes of its logits, whatever `config.json` says.
fn ends_in(compiled: &Compiled) -> Option<Activation> {
    match compiled.logits.activation.as_deref()? {
        "Sigmoid" => Some(Activation::Sigmoid),
        _ => Some(Activation::Softmax),
    }
}

/// How the graph's inputs are fed and which output holds the logits. The logits' width is filled in
/// later where the graph leaves it open.
fn layout(inputs: &[Outlet], outputs: &[Outlet], manifest: &Manifest) -> Result<Layout, String> {
    let (inputs, padding) = self::inputs(inputs, manifest)?;
    let logits = logits(outputs)?;
    let width = logits.dims.last().copied().flatten().unwrap_or(0);
    let outputs = vec![OutputSlot { name: logits.name.clone(), dims: vec![Dim::Fixed(width)] }];
    Ok(Layout { inputs, outputs, padding, counted: None, least: 1 })
}

/// How a graph's inputs are fed, and how rows of unequal length share a batch.
pub(super) fn inputs(inputs: &[Outlet], manifest: &Manifest) -> Result<(Vec<InputSlot>, Padding), String> {
    let fixed = |axis: usize| {
        let fixed = move |it: &Outlet| Some((it.name.clone(), it.dims.get(axis).copied().flatten()?));
        inputs.iter().find_map(fixed)
    };
    let (rows, baked) = (fixed(0), fixed(1));
    let inputs = inputs.iter().map(input_slot).collect::<Result<Vec<_>, _>>()?;
    let has = |role| inputs.iter().any(|it| it.role == role);
    if !has(Role::Ids) {
        let names: Vec<&str> = inputs.iter().map(|it| it.name.as_str()).collect();
        return Err(format!("the graph has no input `input_ids`; its inputs are {}", names.join(", ")));
    }
    if let Some((name, length)) = baked {
        return Err(format!(
            "a length is baked in: every row of `{name}` has {length} tokens; export the model with dynamic axes"
        ));
    }
    if let Some((name, rows)) = rows.as_ref().filter(|it| it.1 != 1) {
        return Err(format!(
            "a batch size is baked in: every batch of `{name}` has {rows} rows; export the model with dynamic axes"
        ));
    }
    let padding = match (manifest.special.pad, has(Role::Mask), manifest.padding_side) {
        _ if rows.is_some() => Padding::Alone,
        (Some(pad), true, Side::Right) => Padding::Right(pad),
        (Some(pad), true, Side::Left) => Padding::Left(pad),
        (None, _, _) | (_, false, _) => Padding::Never,
    };
    Ok((inputs, padding))
}

fn input_slot(outlet: &Outlet) -> Result<InputSlot, String> {
    let role = match outlet.name.as_str() {
        "input_ids" => Role::Ids,
        "attention_mask" => Role::Mask,
        "token_type_ids" => Role::Types,
        "position_ids" => Role::Positions,
        other => {
            return Err(format!(
                "the graph wants an input `{other}`; a classifier's inputs are input_ids, attention_mask, \
                 token_type_ids and position_ids"
            ));
        }
    };
    match outlet.element {
        Some(element @ (Element::I64 | Element::I32 | Element::Bool | Element::F32)) => {
            Ok(InputSlot { name: outlet.name.clone(), role, element, dims: vec![Dim::Sequence] })
        }
        _ => Err(format!("the input `{}` is neither int64 nor int32", outlet.name)),
    }
}

/// The output named `logits`, or the only two-dimensional float output.
fn logits(outputs: &[Outlet]) -> Result<&Outlet, String> {
    let float = |it: &&Outlet| matches!(it.element, Some(Element::F32 | Element::F16 | Element::F64));
    let named = outputs.iter().filter(float).find(|it| it.name == "logits");
    let mut flat = outputs.iter().filter(float).filter(|it| it.dims.len() == 2);
    match (named, flat.next(), flat.next()) {
        (Some(named), _, _) => Ok(named),
        (None, Some(only), None) => Ok(only),
        _ => {
            let names: Vec<&str> = outputs.iter().map(|it| it.name.as_str()).collect();
            Err(format!(
                "the graph has no output `logits` and not exactly one float output of shape [batch, labels]; \
                 its outputs are {}",
                names.join(", ")
            ))
        }
    }
}

fn precision(session: &Session, layout: &Layout) -> &'static str {
    let logits = session.outputs().into_iter().find(|it| it.name == layout.outputs[0].name);
    match logits.and_then(|it| it.element) {
        Some(Element::F16) => "float16",
        Some(Element::F64) => "float64",
        _ => "float32",
    }
}
