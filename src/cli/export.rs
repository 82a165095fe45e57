//! `explaind export DIR --graph GRAPH --out FILE`: writes a derived graph as an ONNX file.

use std::{fs, path::PathBuf};

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};

use super::inspect::compiled;
use crate::{
    compile::{self, graph::Graph, onnx::note::with_note, refusal::Refusal},
    model::{Manifest, derived::DIGEST_KEY},
};

/// What to write.
#[derive(Debug, Args)]
pub(super) struct Export {
    /// A model folder
    folder: PathBuf,
    /// Which derived graph
    #[arg(long, value_enum)]
    graph: Which,
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
}

/// Derives, measures and writes the graph; a graph that is wrong is not written.
pub(super) fn run(arguments: &Export) -> anyhow::Result<()> {
    let compiled = compiled(&arguments.folder)?;
    let graph: &Graph = match arguments.graph {
        Which::Gradient => &compiled.gradient.as_ref().map_err(|it| refused("gradient", it))?.graph,
        Which::Intervention => {
            &compiled.intervention.as_ref().map_err(|it| refused("intervention", it))?.cut.graph
        }
    };
    let digest = Manifest::read(&arguments.folder, None)?.digest()?;
    let bytes = with_note(compile::write(graph), DIGEST_KEY, &digest);
    fs::write(&arguments.out, &bytes)
        .with_context(|| format!("{} cannot be written", arguments.out.display()))?;
    println!("{}: {} nodes, {} bytes", arguments.out.display(), graph.nodes.len(), bytes.len());
    Ok(())
}

fn refused(graph: &str, refusal: &Refusal) -> anyhow::Error {
    let gaps = refusal.gaps.iter().map(|it| format!("\n  {} at {}: {}", it.operator, it.node, it.reason));
    anyhow!("the {graph} graph is refused, {refusal}{}", gaps.collect::<String>())
}
