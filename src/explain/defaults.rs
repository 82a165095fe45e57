//! Where it is found out whether a method works on a model as it stands.

use std::sync::atomic::AtomicU64;

use serde_json::Map;

use super::{ExplainError, Limits, Method, Misfit, Subject, reading::caps};
use crate::model::{
    Model, Output, Unavailable,
    text::{Granularity, features},
};

/// Any text will do: it is priced, not run.
const TEXT: &str = "a b";

/// Whether `method` works on `model` with its default parameters.
///
/// # Errors
/// The graph or the companion that is missing; code `parameters` for a model that other parameters suit.
pub fn works_by_default(method: &dyn Method, model: &Model) -> Result<(), Unavailable> {
    let Ok(plan) = method.read(&Map::new()) else { return Ok(()) };
    plan.needs().into_iter().try_for_each(|need| model.allows(need))?;
    let limits = Limits::default();
    let Ok(encoded) = model.tokenizer.encode(TEXT, None, true, caps(&limits)) else { return Ok(()) };
    let Ok(features) = features(&encoded, &Granularity::Word) else { return Ok(()) };
    let told = AtomicU64::new(0);
    let subject = Subject {
        model,
        encoded: &encoded,
        features: &features,
        targets: 1,
        output: Output::Logit,
        seed: 0,
        pointer: "/inputs",
        caps: caps(&limits),
        most_passes: limits.max_passes,
        longest: encoded.tokens.len().into(),
        told: &told,
    };
    match plan.price(&subject) {
        Err(ExplainError::Misfits(misfits)) => misfits.iter().find_map(of_parameter).map_or(Ok(()), Err),
        _ => Ok(()),
    }
}

fn of_parameter(misfit: &Misfit) -> Option<Unavailable> {
    let name = misfit.pointer.strip_prefix("/parameters/")?;
    Some(Unavailable {
        method: None,
        code: "parameters".to_owned(),
        reason: format!("{name}: {}", misfit.detail),
        operators: Vec::new(),
        advice: format!("give `{name}` in `parameters`: its default does not suit this model"),
    })
}
