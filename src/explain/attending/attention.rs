//! Attention: the probabilities themselves, of the position that the classifier reads.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{Reading, Square, Weights};
use crate::{
    explain::{
        About, Case, ExplainError, Family, Finding, Method, Misfit, Price, Subject, Typed,
        gradient::token_finding, nothing_more,
    },
    model::{Need, Output},
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&ATTENTION;

static ATTENTION: Typed<Attention> = Typed {
    about: About {
        slug: "attention",
        family: Family::Attention,
        summary: "How much the position that the classifier reads attends to a token; where it is not known \
                  (`read_position`), the mean of all. Plain attention is no explanation of the score by itself: all \
                  targets get the same numbers.",
        reference: "Bahdanau, Cho and Bengio (2015), arXiv:1409.0473; Jain and Wallace (2019), Attention is not \
                    Explanation, arXiv:1902.10186",
        output: Output::Logit,
        needs: &[Need::Attention],
        stops_early: false,
        example: "{}",
    },
    needs: nothing_more,
    price,
    run,
};

/// Parameters of attention.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Attention {
    /// Which layer, from 0; the mean of all by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub layer: Option<usize>,
    /// Which head, from 0; the mean of all by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub head: Option<usize>,
    /// Tell the probabilities of every pair of tokens in the details, head by head: tokens² numbers for each, and
    /// again for each target. One answer holds at most 500 000 of them.
    #[schema(default = false)]
    pub matrices: bool,
}

fn price(parameters: &Attention, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let heads = &subject.model.attention()?.heads;
    let layers = heads.len();
    let refuse = |name: &str, detail: String| Err(Misfit::parameter(name, detail).into());
    if let Some(layer) = parameters.layer.filter(|&it| it >= layers) {
        return refuse("layer", format!("there is no layer {layer}; the model has 0 to {}", layers - 1));
    }
    if let Some(head) = parameters.head {
        let fewest = match parameters.layer {
            Some(layer) => heads[layer],
            None => heads.iter().copied().min().unwrap_or(0),
        };
        if head >= fewest {
            return refuse(
                "head",
                format!("there is no head {head}; a layer has 0 to {}", fewest.max(1) - 1),
            );
        }
    }
    if parameters.matrices {
        let chosen = parameters.layer.map_or(&heads[..], |layer| &heads[layer..=layer]);
        let count: usize = chosen.iter().map(|&it| if parameters.head.is_some() { 1 } else { it }).sum();
        let numbers = subject.tell((count * subject.encoded.tokens.len().pow(2)) as u64);
        if numbers > MOST_NUMBERS {
            let detail = format!(
                "would tell {numbers} numbers or more, and at most {MOST_NUMBERS} are told in one answer; choose a \
                 layer or a head, or ask for fewer inputs and targets"
            );
            return Err(Misfit::over("/parameters/matrices", detail, "matrices", MOST_NUMBERS).into());
        }
    }
    Ok(Price { forward: 1, gradient: Reading::gradients(subject)? })
}

/// The most probabilities that one answer holds, all inputs and targets together: some 10 MB of JSON.
const MOST_NUMBERS: u64 = 500_000;

/// `score(token) = A[read position, token]`, of one head or the mean over heads and layers.
fn run(parameters: &Attention, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let weights = Weights::of(case)?;
    let tokens = weights.tokens;
    let reading = Reading::if_known(case)?;
    let layers: Vec<usize> = match parameters.layer {
        Some(layer) => vec![layer],
        None => (0..weights.layers.len()).collect(),
    };
    let of_head = |layer: usize, head: usize| {
        let values = &weights.layers[layer][head * tokens * tokens..][..tokens * tokens];
        Square { size: tokens, values: values.iter().map(|&it| f64::from(it)).collect() }
    };
    let mut scores = vec![0.0; tokens];
    for &layer in &layers {
        let square = match parameters.head {
            Some(head) => of_head(layer, head),
            None => weights.mean(layer),
        };
        scores
            .iter_mut()
            .zip(reading.of_rows(&square))
            .for_each(|(sum, it)| *sum += it / layers.len() as f64);
    }
    let heads = &case.subject.model.attention()?.heads;
    let told = |&layer: &usize| -> Value {
        let all = match parameters.head {
            Some(head) => head..head + 1,
            None => 0..heads[layer],
        };
        let matrix = |head: usize| -> Value {
            let rows = weights.layers[layer][head * tokens * tokens..][..tokens * tokens].chunks(tokens);
            json!({ "head": head, "rows": rows.collect::<Vec<_>>() })
        };
        json!({ "layer": layer, "heads": all.map(matrix).collect::<Vec<_>>() })
    };
    let details =
        parameters.matrices.then(|| json!({ "layers": layers.iter().map(told).collect::<Vec<_>>() }));
    let finding = |value: f64| {
        let finding = token_finding(case, value, None, &scores, reading.evidence());
        Finding { details: details.clone(), ..finding }
    };
    Ok(case.scalars(&weights.logits)?.into_iter().map(finding).collect())
}
