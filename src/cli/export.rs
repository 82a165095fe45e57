//! `explaind export DIR --graph gradient --out FILE`: writes a derived graph as an ONNX file.

use std::{fs, path::PathBuf};

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};

use super::inspect::compiled;
use crate::{
    compile::{self, graph::Graph, onnx::note::with_note},
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
    /// The file to write; named `gradient.onnx` in the model folder, it is used at the next start
    #[arg(long)]
    out: PathBuf,
}

/// A derived graph.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Which {
    /// Inputs: the model's own, `inputs_embeds` [batch, seq, hidden] and `cotangent` [batch, labels]; outputs:
    /// `logits` and `inputs_embeds_grad`
    Gradient,
}

/// Derives, measures and writes the graph; a graph that is wrong is not written.
pub(super) fn run(arguments: &Export) -> anyhow::Result<()> {
    let compiled = compiled(&arguments.folder)?;
    let graph: &Graph = match arguments.graph {
        Which::Gradient => {
            let derived = compiled.gradient.as_ref().map_err(|refusal| {
                let gaps: Vec<String> = refusal
                    .gaps
                    .iter()
                    .map(|it| format!("\n  {} at {}: {}", it.operator, it.node, it.reason))
                    .collect();
                anyhow!("the gradient graph is refused, {refusal}{}", gaps.concat())
            })?;
            &derived.graph
        }
    };
    let digest = Manifest::read(&arguments.folder, None)?.digest()?;
    let bytes = with_note(compile::write(graph), DIGEST_KEY, &digest);
    fs::write(&arguments.out, &bytes)
        .with_context(|| format!("{} cannot be written", arguments.out.display()))?;
    println!("{}: {} nodes, {} bytes", arguments.out.display(), graph.nodes.len(), bytes.len());
    Ok(())
}
