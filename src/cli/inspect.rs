//! `explaind inspect DIR`: the parts of a model, and which methods they allow.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use anyhow::{Context, anyhow};
use clap::Args;

use crate::{
    compile::{Compiled, Intervention, attend::AttentionDerived, composite::Composite, lean},
    explain::registry::METHODS,
    model::{Model, OpenSettings, Opening, OwnGraph, Unavailable},
    runtime::{Device, Runtime},
};

/// What to look at.
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// A model folder
    folder: PathBuf,
}

/// Opens the model as the service does and prints what is found; a model that only runs forward is no error.
pub(super) fn run(arguments: &Inspect) -> anyhow::Result<()> {
    let settings = OpenSettings { runtime: Runtime::load(Device::Cpu, 1)?, workers: 1 };
    let opening = Opening::read(&arguments.folder, &settings.runtime)?;
    let file = opening.manifest.graph.display();
    // Of a graph that cannot be read nothing is known, the methods neither.
    let graph = opening.graph.as_ref().map_err(|reason| anyhow!("{file} cannot be read: {reason}"))?;
    let out = &mut io::stdout().lock();
    writeln!(out, "{file}")?;
    writeln!(out, "  sha-256         {}", opening.manifest.digest()?)?;
    writeln!(out, "  nodes           {}", graph.nodes.len())?;
    writeln!(out, "  opset           {}", graph.opset())?;
    if let Ok(compiled) = &opening.compiled {
        structure(compiled, out)?;
    }
    let model = Model::of("model", &opening, &settings);
    let missing = model.as_ref().map(|it| it.gradient.as_ref().err());
    if let Some(missing) = missing.unwrap_or(opening.compiled.as_ref().err()) {
        refused(missing, out)?;
    }
    let own = model.as_ref().map_or_else(|_| opening.own.clone(), Model::own_graphs);
    own_graphs(&own, out)?;
    writeln!(out, "methods")?;
    for method in METHODS {
        let about = method.about();
        let works = model.as_ref().is_ok_and(|it| about.needs.iter().all(|&need| it.allows(need).is_ok()));
        writeln!(out, "  {} {}", if works { "yes" } else { "no " }, about.slug)?;
    }
    model.map(|_| ()).with_context(|| format!("{} does not open", arguments.folder.display()))
}

fn refused(missing: &Unavailable, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "  gradient graph  refused, {}: {}", missing.code, missing.reason)?;
    missing.operators.iter().try_for_each(|it| writeln!(out, "    {it}"))
}

/// Derived graphs that the folder brings itself.
fn own_graphs(graphs: &[OwnGraph], out: &mut impl Write) -> io::Result<()> {
    for OwnGraph { file, unused } in graphs {
        match unused {
            None => writeln!(out, "  own graph       {file}")?,
            Some(reason) => writeln!(out, "  own graph       {file} is not used: {reason}")?,
        }
    }
    Ok(())
}

fn structure(compiled: &Compiled, out: &mut impl Write) -> io::Result<()> {
    let embedding = &compiled.embedding;
    writeln!(out, "  word embedding  {} [{}, {}]", embedding.table, embedding.vocabulary, embedding.hidden)?;
    if embedding.partial {
        writeln!(
            out,
            "                  looked up by ids made from the token ids too: gradients leave that part out"
        )?;
    }
    let logits = &compiled.logits;
    let behind = logits.activation.as_ref().map(|it| format!(", before {it}")).unwrap_or_default();
    writeln!(out, "  logits          {}{behind}", logits.value)?;
    let anatomy = &compiled.anatomy;
    for (layer, state) in anatomy.hidden_states.iter().enumerate() {
        writeln!(out, "  hidden state {layer:<2} {state}")?;
    }
    for (layer, attention) in anatomy.attention.iter().enumerate() {
        writeln!(
            out,
            "  attention {:<5} {} ({} heads)",
            layer + 1,
            attention.probabilities,
            attention.heads
        )?;
    }
    for (layer, neurons) in anatomy.neurons.iter().enumerate() {
        writeln!(out, "  neurons {:<7} {} ({} units)", layer + 1, neurons.value, neurons.width)?;
    }
    writeln!(out, "  pooling         {:?}", anatomy.pooling)?;
    if let Some((_, saving)) = lean::lean(&compiled.forward) {
        let graphs = if compiled.lean.is_some() { "every graph" } else { "derived graphs" };
        writeln!(out, "  spared          {:.0} % of the products, in {graphs}", 100.0 * saving.part)?;
    }
    if compiled.raised {
        writeln!(out, "  precision       float16, raised to float32 for derived graphs")?;
    }
    match &compiled.intervention {
        Ok(Intervention { cut, measures, .. }) => writeln!(
            out,
            "  interventions   {} nodes; measured: logits {:.1e}, states put back {:.1e}, exchanged {:.1e}",
            cut.graph.nodes.len(),
            measures.neutral,
            measures.itself,
            measures.exchanged
        )?,
        Err(refusal) => writeln!(out, "  interventions   refused, {refusal}")?,
    }
    match &compiled.attention {
        Ok(AttentionDerived { graph, measures, gradient }) => {
            let slope = measures.slope.map(|it| format!(", slope {it:.1e}")).unwrap_or_default();
            let logits = measures.logits;
            writeln!(
                out,
                "  attention graph {} nodes; measured: logits {logits:.1e}{slope}",
                graph.nodes.len()
            )?;
            if let Err(refusal) = gradient {
                writeln!(out, "                  without gradients, {refusal}")?;
            }
        }
        Err(refusal) => writeln!(out, "  attention graph refused, {refusal}")?,
    }
    if let Ok(derived) = &compiled.gradient {
        let measures = &derived.measures;
        writeln!(
            out,
            "  gradient graph  {} nodes; measured: logits {:.1e}, slope {:.1e}, row alone {:.1e}",
            derived.graph.nodes.len(),
            measures.logits,
            measures.slope,
            measures.alone
        )?;
    }
    for composite in Composite::ALL {
        let name = composite.slug();
        match compiled.relevance(composite) {
            Ok(it) => writeln!(out, "  {name:<15} relevance graph of {} nodes", it.graph.nodes.len())?,
            Err(refusal) => writeln!(out, "  {name:<15} no relevance graph, {refusal}")?,
        }
    }
    Ok(())
}
