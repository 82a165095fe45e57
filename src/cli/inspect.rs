//! `explaind inspect DIR`: the parts of a model, and which methods they allow.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;

use crate::{
    compile::{
        Compiled, Intervention, attend::AttentionDerived, composite::Composite, graph::Graph, lean,
        refusal::Refusal,
    },
    explain::registry::METHODS,
    model::{Manifest, Need, derived, graphs},
    runtime::{Device, Runtime, SharedWeights},
};

/// What to look at.
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// A model folder
    folder: PathBuf,
}

/// Prints what is found; a model that only runs forward is no error.
pub(super) fn run(arguments: &Inspect) -> anyhow::Result<()> {
    let runtime = Runtime::load(Device::Cpu, 1)?;
    let manifest = Manifest::read(&arguments.folder, None)?;
    let graph = graph(&manifest)?;
    println!("{}", manifest.graph.display());
    println!("  sha-256         {}", manifest.digest()?);
    println!("  nodes           {}", graph.nodes.len());
    println!("  opset           {}", graph.opset());
    match derived::compile(graph, &runtime, &SharedWeights::default(), &manifest) {
        Ok(compiled) => {
            structure(&compiled);
            methods(|need| match need {
                Need::Forward | Need::Decision | Need::Words | Need::FillMask => None,
                Need::Gradient | Need::Relevance => compiled.gradient.as_ref().err(),
                Need::Attention => compiled.attention.as_ref().err(),
                Need::AttentionGradient => match &compiled.attention {
                    Ok(it) => it.gradient.as_ref().err(),
                    Err(refusal) => Some(refusal),
                },
                Need::Embeddings | Need::HiddenStates => compiled.intervention.as_ref().err(),
            })
        }
        Err(refusal) => methods(|need| need.is_derived().then_some(&refusal)),
    }
    Ok(())
}

fn structure(compiled: &Compiled) {
    let embedding = &compiled.embedding;
    println!("  word embedding  {} [{}, {}]", embedding.table, embedding.vocabulary, embedding.hidden);
    if embedding.partial {
        println!(
            "                  looked up by ids made from the token ids too: gradients leave that part out"
        );
    }
    let logits = &compiled.logits;
    let behind = logits.activation.as_ref().map(|it| format!(", before {it}")).unwrap_or_default();
    println!("  logits          {}{behind}", logits.value);
    let anatomy = &compiled.anatomy;
    for (layer, state) in anatomy.hidden_states.iter().enumerate() {
        println!("  hidden state {layer:<2} {state}");
    }
    for (layer, attention) in anatomy.attention.iter().enumerate() {
        println!("  attention {:<5} {} ({} heads)", layer + 1, attention.probabilities, attention.heads);
    }
    for (layer, neurons) in anatomy.neurons.iter().enumerate() {
        println!("  neurons {:<7} {} ({} units)", layer + 1, neurons.value, neurons.width);
    }
    println!("  pooling         {:?}", anatomy.pooling);
    if let Some((_, saving)) = lean::lean(&compiled.forward) {
        let graphs = if compiled.lean.is_some() { "every graph" } else { "derived graphs" };
        println!("  spared          {:.0} % of the products, in {graphs}", 100.0 * saving.part);
    }
    if compiled.raised {
        println!("  precision       float16, raised to float32 for derived graphs");
    }
    match &compiled.intervention {
        Ok(Intervention { cut, measures, .. }) => println!(
            "  interventions   {} nodes; measured: logits {:.1e}, states put back {:.1e}, exchanged {:.1e}",
            cut.graph.nodes.len(),
            measures.neutral,
            measures.itself,
            measures.exchanged
        ),
        Err(refusal) => println!("  interventions   refused, {refusal}"),
    }
    match &compiled.attention {
        Ok(AttentionDerived { graph, measures, gradient }) => {
            let slope = measures.slope.map(|it| format!(", slope {it:.1e}")).unwrap_or_default();
            let logits = measures.logits;
            println!("  attention graph {} nodes; measured: logits {logits:.1e}{slope}", graph.nodes.len());
            if let Err(refusal) = gradient {
                println!("                  without gradients, {refusal}");
            }
        }
        Err(refusal) => println!("  attention graph refused, {refusal}"),
    }
    if let Ok(derived) = &compiled.gradient {
        let measures = &derived.measures;
        println!(
            "  gradient graph  {} nodes; measured: logits {:.1e}, slope {:.1e}, row alone {:.1e}",
            derived.graph.nodes.len(),
            measures.logits,
            measures.slope,
            measures.alone
        );
    }
    for composite in Composite::ALL {
        let name = composite.slug();
        match compiled.relevance(composite) {
            Ok(it) => println!("  {name:<15} relevance graph of {} nodes", it.graph.nodes.len()),
            Err(refusal) => println!("  {name:<15} no relevance graph, {refusal}"),
        }
    }
}

fn methods<'a>(obstacle: impl Fn(Need) -> Option<&'a Refusal>) {
    if let Some(refusal) = obstacle(Need::Gradient) {
        println!("  gradient graph  refused, {refusal}");
        for gap in &refusal.gaps {
            println!("    {} at {}: {}", gap.operator, gap.node, gap.reason);
        }
    }
    println!("methods");
    for method in METHODS {
        let about = method.about();
        let works = about.needs.iter().all(|&need| obstacle(need).is_none());
        println!("  {} {}", if works { "yes" } else { "no " }, about.slug);
    }
}

/// The folder's graph; of one that cannot be read nothing is known, the methods neither.
fn graph(manifest: &Manifest) -> anyhow::Result<Graph> {
    graphs::read(&manifest.graph)
        .map_err(|reason| anyhow!("{} cannot be read: {reason}", manifest.graph.display()))
}

/// Used by `export` too: the folder's compiled model.
pub(super) fn compiled(folder: &Path) -> anyhow::Result<Compiled> {
    let runtime = Runtime::load(Device::Cpu, 1)?;
    let manifest = Manifest::read(folder, None)?;
    Ok(derived::compile(graph(&manifest)?, &runtime, &SharedWeights::default(), &manifest)?)
}
