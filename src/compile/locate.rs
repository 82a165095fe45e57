//! This file is where the model's landmarks are found: the word embedding's lookup, and the logits.

use super::graph::{Graph, Node, Port, Tensor, Type, Value};
use super::probe::{Probe, ids_input};
use super::refusal::{Code, Refusal};

/// The lookup of token ids in the word embedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedding {
    /// The table, an initializer.
    pub table: Value,
    /// Rows in the table.
    pub vocabulary: usize,
    /// Length of a row.
    pub hidden: usize,
    /// The results of the lookups, all of the same table by the same ids.
    pub lookups: Vec<Lookup>,
    /// Is the table also looked up by ids made from the token ids, as in a decoder? Gradients with respect to
    /// the lookups above are then exact but not all that the table contributes.
    pub partial: bool,
}

/// One lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// Its result.
    pub value: Value,
    /// How its indices are arranged.
    pub layout: Layout,
}

/// How token ids stand in an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As they come: [batch, sequence].
    Straight,
    /// [sequence, batch].
    Transposed,
    /// [batch·sequence].
    Flat,
}

/// The scores before any final Softmax or Sigmoid.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits {
    /// The value.
    pub value: Value,
    /// The output that it belongs to.
    pub output: Port,
    /// The operator between the two, if there is one.
    pub activation: Option<String>,
}

/// The table that a node looks rows up in, if it is a lookup in a constant table, and its name.
pub fn table<'a>(graph: &'a Graph, node: &Node) -> Option<(Value, &'a Tensor)> {
    if !node.is("Gather") || node.int("axis").unwrap_or(0) != 0 {
        return None;
    }
    let mut name = node.inputs.first()?;
    loop {
        if let Some(tensor) = graph.initializers.get(name) {
            return (tensor.dims().len() == 2).then(|| (name.clone(), tensor));
        }
        let maker = graph.nodes.iter().find(|it| it.outputs.first() == Some(name))?;
        if !maker.is("Identity") && !maker.is("Cast") {
            return None;
        }
        name = maker.inputs.first()?;
    }
}

/// Finds the word embedding by value: in the probe, the indices of its lookup were the token ids.
pub fn embedding(graph: &Graph, probe: &Probe) -> Result<Embedding, Refusal> {
    let refuse = |reason: String| Err(Refusal::new(Code::Embedding, reason));
    let mut found: Option<Embedding> = None;
    let mut others = Vec::new();
    for node in &graph.nodes {
        let Some((name, tensor)) = table(graph, node) else { continue };
        let Some(layout) = layout(probe, &node.inputs[1]) else {
            others.push(name);
            continue;
        };
        let lookup = Lookup { value: node.outputs[0].clone(), layout };
        let (vocabulary, hidden) = (tensor.dims()[0], tensor.dims()[1]);
        match &mut found {
            None => {
                let lookups = vec![lookup];
                found = Some(Embedding { table: name, vocabulary, hidden, lookups, partial: false });
            }
            Some(first) if first.table == name => first.lookups.push(lookup),
            Some(first) => {
                return refuse(format!("token ids are looked up in {} and in {name}", first.table));
            }
        }
    }
    let Some(mut embedding) = found else {
        return refuse("no constant table is looked up by the token ids".into());
    };
    embedding.partial = others.contains(&embedding.table);
    Ok(embedding)
}

/// How the token ids stand in `index`, if it holds them.
fn layout(probe: &Probe, index: &Value) -> Option<Layout> {
    let seen = probe.integers.get(index)?;
    let agrees = |layout: Layout| {
        seen.iter().zip(&probe.ids).all(|(index, ids)| {
            let (Some(index_values), Some(values)) = (index.to_i64(), ids.to_i64()) else { return false };
            let &[rows, columns] = ids.dims() else { return false };
            let place = |it: usize| values[(it % rows) * columns + it / rows];
            match layout {
                Layout::Straight => index.dims() == ids.dims() && index_values == values,
                Layout::Flat => index.dims() == [rows * columns] && index_values == values,
                Layout::Transposed => {
                    let turned = (0..rows * columns).map(place);
                    index.dims() == [columns, rows] && turned.eq(index_values)
                }
            }
        })
    };
    [Layout::Straight, Layout::Transposed, Layout::Flat].into_iter().find(|&it| agrees(it))
}

/// Finds the logits: the output of that name, or the only one.
pub fn logits(graph: &Graph, probe: &Probe) -> Result<Logits, Refusal> {
    let refuse = |reason: &str| Err(Refusal::new(Code::Output, reason));
    let output = match (graph.output("logits"), &graph.outputs[..]) {
        (Some(port), _) | (None, [port]) => port.clone(),
        _ => return refuse("there are several outputs, and none is called logits"),
    };
    if matches!(output.ty, Type::Other(_)) {
        return refuse("the output is not a tensor");
    }
    if let Some(fact) = probe.facts.get(&output.value)
        && fact.element.is_floating()
        && fact.rank() != 2
    {
        return refuse("the output is not [batch, labels]");
    }
    let mut value = output.value.clone();
    let mut activation = None;
    while let Some(node) = graph.nodes.iter().find(|it| it.outputs.first() == Some(&value)) {
        let last_axis = || {
            let rank = probe.facts.get(&value).map_or(0, |it| it.rank());
            let axis = node.int("axis").unwrap_or(-1);
            axis == -1 || axis + 1 == rank as i64
        };
        let scores = matches!(node.op.as_str(), "Softmax" | "LogSoftmax") && last_axis();
        match node.op.as_str() {
            "Identity" => value = node.inputs[0].clone(),
            _ if scores || node.is("Sigmoid") => {
                activation = Some(node.op.clone());
                value = node.inputs[0].clone();
                break;
            }
            _ => break,
        }
    }
    Ok(Logits { value: if activation.is_some() { value } else { output.value.clone() }, output, activation })
}

/// The name of the model's token ids.
pub fn ids_name(graph: &Graph) -> Result<Value, Refusal> {
    ids_input(graph).map(|it| it.value.clone())
}
