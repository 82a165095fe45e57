//! Where one relevance pass is asked for, its books are written into the evidence, and its components are told.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::{
    compile::composite::Composite,
    explain::{
        Case, ExplainError, Finding, Misfit, Price, Subject,
        gradient::{cotangent, token_finding},
    },
    model::{Model, Need, Output, RelevanceGraph, RelevanceRow},
    runtime::{Extra, Row},
};

/// A part of the model whose relevance is told beside that of the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// Every attention head of every layer: what its output carries.
    Heads,
    /// The most relevant neurons of every feed-forward layer, summed over positions.
    Neurons,
    /// Every token at every hidden state.
    Layers,
}

/// Which components are asked for.
pub struct Parts<'a> {
    /// The components.
    pub components: &'a [Component],
    /// Neurons of each layer.
    pub k: usize,
}

/// One pass forward and backward for each target.
///
/// # Errors
/// An output other than the logit: probabilities are no sum of contributions.
pub fn price(subject: &Subject<'_>) -> Result<Price, ExplainError> {
    if subject.output != Output::Logit {
        let detail = "relevance decomposes the logit; ask for `\"output\": \"logit\"`";
        return Err(Misfit::new("/output", detail).into());
    }
    Ok(Price { forward: 0, gradient: subject.targets as u64 })
}

/// `score(token) = Σ_h e_h·g_h`, where `g` is the gradient bent by the composite.
///
/// # Errors
/// The composite has no graph for the model, a component cannot be told, a failed run.
pub fn run(composite: Composite, parts: &Parts<'_>, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let model = case.subject.model;
    let graph = model.relevance(composite)?;
    check(model, &graph, parts)?;
    let words = &model.gradient()?.words;
    let x: Vec<f32> = case.row.ids.iter().flat_map(|&id| words.row(id)).copied().collect();
    let x: Arc<[f32]> = x.into();
    let rows = case
        .targets
        .iter()
        .map(|&target| {
            let seed = cotangent(&model.labels, Output::Logit, &case.logits, target)?;
            let extras = vec![Extra::Values(x.clone()), Extra::Values(seed.into())];
            Ok(Row { extras, ..case.row.clone() })
        })
        .collect::<Result<Vec<Row>, ExplainError>>()?;
    let outs = case.run(&graph.program, rows)?;
    let missing = || ExplainError::Internal("a relevance row came back without its outputs".to_owned());
    case.targets
        .iter()
        .zip(outs)
        .enumerate()
        .map(|(place, (_, out))| {
            let row = graph.outputs(out.values).ok_or_else(missing)?;
            let value = case.scalars(&row.logits)?[place];
            let scores: Vec<f64> = row.tokens.iter().map(|&it| f64::from(it)).collect();
            let mut finding = token_finding(case, value, None, &scores, books(&graph, &row, value));
            finding.details = details(&graph, &row, parts, case);
            Ok(finding)
        })
        .collect()
}

fn check(model: &Model, graph: &RelevanceGraph, parts: &Parts<'_>) -> Result<(), ExplainError> {
    let there = |component: &Component| match component {
        Component::Heads => graph.heads.is_some(),
        Component::Neurons => graph.neurons.is_some(),
        Component::Layers => graph.states > 0,
    };
    let Some(place) = parts.components.iter().position(|it| !there(it)) else { return Ok(()) };
    let reason = match parts.components[place] {
        Component::Heads => model.attention().err().map_or_else(
            || {
                "its layers have different numbers of heads, or heads that share an axis with others"
                    .to_owned()
            },
            |it| it.reason,
        ),
        Component::Neurons => {
            "no feed-forward layers of one width were found between the embeddings and the logits".to_owned()
        }
        Component::Layers => model
            .allows(Need::HiddenStates)
            .err()
            .map_or_else(|| "the folder's own relevance graph does not tell them".to_owned(), |it| it.reason),
    };
    let detail = format!("cannot be told apart in this model's graph: {reason}");
    Err(Misfit::new(format!("/parameters/components/{place}"), detail).into())
}

/// What reached the embeddings, what was absorbed on the way, and the same at every hidden state.
fn books(graph: &RelevanceGraph, row: &RelevanceRow, value: f64) -> Map<String, Value> {
    let sum = |values: &[f32]| values.iter().map(|&it| f64::from(it)).sum::<f64>();
    let (relevance, absorbed) = (sum(&row.tokens), sum(&row.absorbed));
    let length = row.tokens.len().max(1);
    let state = |(state, tokens): (usize, &[f32])| {
        let (relevance, absorbed) = (sum(tokens), sum(&row.absorbed[state + 1..]));
        json!({ "relevance": relevance, "absorbed": absorbed, "error": relevance + absorbed - value })
    };
    let layers: Vec<Value> = row.layers.chunks(length).enumerate().map(state).collect();
    let mut evidence = Map::new();
    evidence.insert("relevance".into(), json!(relevance));
    evidence.insert("absorbed".into(), json!(absorbed));
    evidence.insert("conservation_error".into(), json!(relevance + absorbed - value));
    evidence.insert("conservation_by_layer".into(), json!(layers));
    evidence.insert("substitutions".into(), json!(graph.substitutions));
    if graph.own {
        evidence.insert("own_graph".into(), json!(true));
    }
    evidence
}

/// The components that were asked for.
fn details(graph: &RelevanceGraph, row: &RelevanceRow, parts: &Parts<'_>, case: &Case<'_>) -> Option<Value> {
    let mut details = Map::new();
    for component in parts.components {
        match component {
            Component::Heads => {
                let heads = graph.heads.map_or(1, |it| it[1]);
                let layers: Vec<&[f32]> = row.heads.chunks(heads).collect();
                details.insert("heads".into(), json!(layers));
            }
            Component::Neurons => {
                let width = graph.neurons.map_or(1, |it| it[1]);
                let layers: Vec<Value> = row.neurons.chunks(width).map(|it| most(it, parts.k)).collect();
                details.insert("neurons".into(), json!(layers));
            }
            Component::Layers => {
                let layers: Vec<&[f32]> = row.layers.chunks(row.tokens.len().max(1)).collect();
                let names = case.row.ids.iter().map(|&id| case.subject.model.token_name(id));
                details.insert("tokens".into(), json!(names.collect::<Vec<_>>()));
                details.insert("layers".into(), json!(layers));
            }
        }
    }
    (!details.is_empty()).then_some(Value::Object(details))
}

/// The `k` largest neurons of a layer by size, and the sum of all.
fn most(neurons: &[f32], k: usize) -> Value {
    let mut order: Vec<usize> = (0..neurons.len()).collect();
    order.sort_by(|&a, &b| neurons[b].abs().total_cmp(&neurons[a].abs()).then(a.cmp(&b)));
    let one = |&unit: &usize| json!({ "unit": unit, "score": neurons[unit] });
    let top: Vec<Value> = order.iter().take(k).map(one).collect();
    json!({ "total": neurons.iter().map(|&it| f64::from(it)).sum::<f64>(), "top": top })
}
