//! `explaind export DIR --graph GRAPH --out FILE`: writes a derived graph as an ONNX file.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum, error::ErrorKind};

use crate::{
    compile::{
        self, composite::Composite, graph::Graph, onnx::note::with_note, refusal::Refusal,
        relevance::Relevance,
    },
    model::{
        Manifest,
        derived::{self, DIGEST_KEY},
        graphs,
        relevance::{self, COMPOSITE_KEY, SUBSTITUTIONS_KEY},
    },
    runtime::{Device, Runtime, SharedWeights},
};

/// What to write.
#[derive(Debug, Args)]
pub(super) struct Export {
    /// A model folder
    folder: PathBuf,
    /// Which derived graph
    #[arg(long, value_enum)]
    graph: Which,
    /// For a relevance graph: lrp-0, epsilon, gamma, alpha-beta, z-plus, cp-lrp, attn-lrp (the default), deep-taylor
    /// or deep-taylor-box
    #[arg(long, value_parser = composite)]
    composite: Option<Composite>,
    /// The file to write; named after its graph in the model folder, such as `gradient.onnx`, it is used at the
    /// next start
    #[arg(long)]
    out: PathBuf,
}

/// A derived graph.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Which {
    /// Inputs: the model's own, `inputs_embeds` [batch, seq, hidden] and `cotangent` [batch, labels]; outputs:
    /// `logits` and `inputs_embeds_grad`
    Gradient,
    /// Inputs: the model's own, `inputs_embeds`, and for each hidden state `keep_N` and `add_N`, which broadcast:
    /// it becomes `keep·h + add`; outputs: `logits` and each `hidden_state_N` as edited
    Intervention,
    /// Inputs as of the gradient graph; outputs: `logits`, `relevance` [batch, seq], `absorbed` [batch, segments],
    /// and where they can be told `layer_relevance`, `head_relevance` and `neuron_relevance`. Its file is called
    /// `relevance-COMPOSITE.onnx`
    Relevance,
    /// Inputs as of the gradient graph; outputs: `logits`, and for each layer `attention_N` [batch, heads, seq, seq]
    /// and `attention_N_grad`; neither `cotangent` nor gradients where an operator has no gradient rule
    Attention,
}

fn composite(slug: &str) -> Result<Composite, String> {
    let found = Composite::ALL.into_iter().find(|it| it.slug() == slug);
    found.ok_or_else(|| format!("composites are {}", Composite::ALL.map(Composite::slug).join(", ")))
}

/// Derives, measures and writes the graph; a graph that is wrong is not written. What the folder brings itself is not
/// looked at.
pub(super) fn run(arguments: &Export) -> anyhow::Result<()> {
    if arguments.composite.is_some() && !matches!(arguments.graph, Which::Relevance) {
        let detail = "--composite goes with `--graph relevance`: no other graph has a composite\n";
        return Err(clap::Error::raw(ErrorKind::ArgumentConflict, detail).into());
    }
    let runtime = Runtime::load(Device::Cpu, 1)?;
    let manifest = Manifest::read(&arguments.folder, None)?;
    let weights = SharedWeights::default();
    let graph = graphs::read_shared(&manifest.graph, &weights)
        .map_err(|reason| anyhow!("{} cannot be read: {reason}", manifest.graph.display()))?;
    let compiled = derived::compile(graph, &runtime, &weights, &manifest)?;
    let made_here: Relevance;
    let mut notes = vec![(DIGEST_KEY, manifest.digest()?)];
    let graph: &Graph = match arguments.graph {
        Which::Gradient => &compiled.gradient.as_ref().map_err(|it| refused("gradient", it))?.graph,
        Which::Attention => &compiled.attention.as_ref().map_err(|it| refused("attention", it))?.graph,
        Which::Intervention => {
            &compiled.intervention.as_ref().map_err(|it| refused("intervention", it))?.cut.graph
        }
        Which::Relevance => {
            let composite = arguments.composite.unwrap_or(Composite::AttnLrp);
            let made = relevance::measured(&compiled, composite, &manifest, &runtime);
            made_here = made.map_err(|it| refused("relevance", &it))?;
            notes.push((COMPOSITE_KEY, composite.slug().to_owned()));
            notes.push((SUBSTITUTIONS_KEY, made_here.substitutions.join("\n")));
            &made_here.graph
        }
    };
    let bytes = notes.iter().fold(compile::write(graph), |bytes, (key, value)| with_note(bytes, key, value));
    fs::write(&arguments.out, &bytes)
        .with_context(|| format!("{} cannot be written", arguments.out.display()))?;
    writeln!(
        io::stdout(),
        "{}: {} nodes, {} bytes",
        arguments.out.display(),
        graph.nodes.len(),
        bytes.len()
    )?;
    Ok(())
}

fn refused(graph: &str, refusal: &Refusal) -> anyhow::Error {
    let gaps = refusal.gaps.iter().map(|it| format!("\n  {} at {}: {}", it.operator, it.node, it.reason));
    anyhow!("the {graph} graph is refused, {refusal}{}", gaps.collect::<String>())
}
