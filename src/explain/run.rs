//! The path of every explanation: check, price, admit, run, wrap.

use std::{
    panic::resume_unwind,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    Case, ExplainAnswer, ExplainError, ExplainRequest, Explanation, Finding, GranularitySpec, House, Input,
    InputResult, Limits, Memo, Method, Misfit, ModelRef, Plan, Price, Subject, Target, Timing, Unit, Usage,
    error::Gathered,
    predict::prediction,
    random::GENERATOR,
    reading::{caps, feature_misfit, read_text},
    targets::Targets,
};
use crate::{
    model::{
        Labels, Model, Need, Output, ScoreError, Unavailable,
        text::{Encoded, Feature, Granularity, Span, features},
    },
    runtime::{Cancel, Lane, ProgramKind, Row},
};

/// What is known of a request beside its body.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// The request's id.
    pub id: String,
    /// When its first byte was read; deadlines count from here.
    pub at: Instant,
    /// Set when the caller goes away.
    pub cancel: Cancel,
}

/// One input, ready to be priced.
struct Read<'a> {
    input: &'a Input,
    pointer: String,
    encoded: Encoded,
    features: Vec<Feature>,
}

/// Explains every input of `request`. Blocks until the answer stands: call it on a thread that may wait.
///
/// # Errors
/// Everything in [`ExplainError`]; a refusal costs no evaluation, except that labels and texts are read.
pub fn explain(
    house: &House,
    method: &dyn Method,
    request: &ExplainRequest,
    arrival: &Arrival,
) -> Result<ExplainAnswer, ExplainError> {
    explain_within(house, &house.limits, method, request, arrival)
}

/// As [`explain`], under other limits than the house's own.
///
/// # Errors
/// As [`explain`].
pub fn explain_within(
    house: &House,
    limits: &Limits,
    method: &dyn Method,
    request: &ExplainRequest,
    arrival: &Arrival,
) -> Result<ExplainAnswer, ExplainError> {
    let model = house.models.find(request.model.as_deref())?;
    let about = method.about();
    let plan = method.read(&request.parameters)?;
    for need in plan.needs() {
        model.allows(need).map_err(|missing| missing.for_method(about.slug))?;
    }
    let output = request.output.unwrap_or_else(|| default_output(about.output, &model.labels));
    let mut misfits = Gathered::default();
    let targets = misfits.keep(Targets::read(&request.target, &model.labels))?;
    misfits.keep(check_output(output, &model.labels))?;
    let inputs = misfits.keep(read_inputs(limits, &model, request))?;
    let (targets, inputs) = misfits.both(targets, inputs)?;
    let tokenized = arrival.at.elapsed();
    let told = AtomicU64::new(0);
    let subjects: Vec<Subject<'_>> = inputs
        .iter()
        .map(|read| Subject {
            model: &model,
            encoded: &read.encoded,
            features: &read.features,
            targets: targets.count(&model.labels),
            output,
            seed: request.seed,
            pointer: &read.pointer,
            caps: caps(limits),
            most_passes: limits.max_passes,
            longest: read.encoded.tokens.len().into(),
            told: &told,
        })
        .collect();
    let bill = priced(limits, &*plan, &subjects)?;
    let deadline = arrival.at + limits.timeout(request.timeout_ms)?;
    let lane = house
        .scheduler
        .admit_bound(about.slug, bill.cost, deadline, arrival.cancel.clone())
        .map_err(|busy| ExplainError::Overloaded { retry_after: busy.retry_after })?;

    let started = Instant::now();
    let memo = Memo::default();
    let rows: Vec<Row> = inputs.iter().map(|read| read.encoded.row()).collect();
    let logits = memo.forward(&lane, &model.forward, rows.clone())?;
    let cases: Vec<Case<'_>> = subjects
        .into_iter()
        .zip(rows)
        .zip(logits)
        .map(|((subject, row), logits)| {
            Ok(Case {
                targets: targets.resolve(&model.labels, &logits)?,
                subject,
                row,
                logits: logits.to_vec(),
                lane: &lane,
                memo: &memo,
            })
        })
        .collect::<Result<_, ExplainError>>()?;
    let findings = run_all(&*plan, &cases)?;
    let derived = plan.needs().into_iter().any(Need::is_derived);
    let results = inputs
        .iter()
        .zip(&cases)
        .zip(findings)
        .map(|((read, case), findings)| {
            let result = result(read, case, findings)?;
            if derived {
                holds(read, case, &result).map_err(|missing| missing.for_method(about.slug))?;
            }
            Ok::<_, ExplainError>(result)
        })
        .collect::<Result<_, _>>()?;

    let usage = usage(&lane, &memo, bill);
    Ok(ExplainAnswer {
        id: arrival.id.clone(),
        model: ModelRef { name: model.name.clone(), digest: model.digest.clone() },
        method: about.slug.to_owned(),
        parameters: plan.resolved(),
        seed: request.seed,
        generator: GENERATOR,
        results,
        usage,
        warnings: model.warnings.clone(),
        timing: timing(arrival, tokenized, started, &lane),
    })
}

/// Runs every case, side by side where there are several, so that one input's last chunk does not leave a
/// worker idle.
fn run_all(plan: &dyn Plan, cases: &[Case<'_>]) -> Result<Vec<Vec<Finding>>, ExplainError> {
    side_by_side(cases, |case| plan.run(case))
}

/// A panic of `work` goes on in the caller, as it does where there is one item.
fn side_by_side<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R, ExplainError> + Sync,
) -> Result<Vec<R>, ExplainError> {
    if let [item] = items {
        return Ok(vec![work(item)?]);
    }
    const AT_ONCE: usize = 4;
    let mut done = Vec::with_capacity(items.len());
    for group in items.chunks(AT_ONCE) {
        let group: Vec<Result<R, ExplainError>> = std::thread::scope(|scope| {
            let running: Vec<_> = group.iter().map(|item| scope.spawn(|| work(item))).collect();
            running.into_iter().map(|it| it.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        });
        for result in group {
            done.push(result?);
        }
    }
    Ok(done)
}

fn read_inputs<'a>(
    limits: &Limits,
    model: &Model,
    request: &'a ExplainRequest,
) -> Result<Vec<Read<'a>>, ExplainError> {
    let list = request.inputs.list();
    limits.check_inputs(list.len())?;
    Gathered::all(list.iter().enumerate().map(|(index, input)| {
        let pointer = request.inputs.pointer(index);
        let (encoded, features) = read_input(limits, model, request, input, &pointer)?;
        Ok(Read { input, pointer, encoded, features })
    }))
}

fn read_input(
    limits: &Limits,
    model: &Model,
    request: &ExplainRequest,
    input: &Input,
    pointer: &str,
) -> Result<(Encoded, Vec<Feature>), ExplainError> {
    let encoded = read_text(model, input.texts(), request.truncate, limits, pointer)?;
    let granularity = granularity(&request.granularity)?;
    let features = features(&encoded, &granularity)
        .map_err(|error| feature_misfit(&error, &request.granularity, pointer))?;
    if features.is_empty() {
        return Err(Misfit::new(pointer, "holds nothing that could be explained").into());
    }
    Ok((encoded, features))
}

fn granularity(spec: &GranularitySpec) -> Result<Granularity, ExplainError> {
    Ok(match spec {
        GranularitySpec::Unit(Unit::Token) => Granularity::Token,
        GranularitySpec::Unit(Unit::Word) => Granularity::Word,
        GranularitySpec::Unit(Unit::Sentence) => Granularity::Sentence,
        GranularitySpec::Spans(list) => {
            let span = |(index, numbers): (usize, &Vec<usize>)| match numbers[..] {
                [start, end] => Ok(Span { segment: 0, start, end }),
                [start, end, segment @ (0 | 1)] => Ok(Span { segment: segment as u8, start, end }),
                _ => Err(Misfit::new(
                    format!("/granularity/spans/{index}"),
                    "is neither [start, end] nor [start, end, segment] with segment 0 or 1",
                )),
            };
            Granularity::Spans(list.spans.iter().enumerate().map(span).collect::<Result<_, _>>()?)
        }
    })
}

/// The method's own choice, but a regression has nothing other than its logit.
fn default_output(wanted: Output, labels: &Labels) -> Output {
    match labels.activation() {
        crate::model::Activation::Identity => Output::Logit,
        crate::model::Activation::Softmax | crate::model::Activation::Sigmoid => wanted,
    }
}

fn check_output(output: Output, labels: &Labels) -> Result<(), ExplainError> {
    if output == Output::Logit {
        return Ok(());
    }
    match labels.values(output, &vec![0.0; labels.len()]) {
        Ok(_) => Ok(()),
        Err(error) => Err(Misfit::new("/output", error.to_string()).into()),
    }
}

/// What a request will cost at the most.
#[derive(Clone, Copy)]
struct Bill {
    /// Rows, forward and gradient.
    passes: u64,
    /// Token passes, weighted by kind.
    cost: u64,
}

/// The request's bill, once it is known to be within the limits.
fn priced(limits: &Limits, plan: &dyn Plan, subjects: &[Subject<'_>]) -> Result<Bill, ExplainError> {
    let (mut passes, mut cost) = (0u64, 0u64);
    for subject in subjects {
        let Price { forward, gradient } = plan.price(subject)?;
        let rows = 1 + forward;
        passes = passes.saturating_add(rows).saturating_add(gradient);
        let tokens = subject.longest.load(Ordering::Relaxed) as u64;
        let weighted = rows * ProgramKind::Forward.cost() + gradient * ProgramKind::Gradient.cost();
        cost = cost.saturating_add(weighted.saturating_mul(tokens));
    }
    let most = limits.max_passes;
    if passes > most {
        let detail = format!("asks for {passes} passes; at most {most} are made for one request");
        return Err(Misfit::over("/parameters", detail, "max_passes", most).into());
    }
    Ok(Bill { passes, cost })
}

fn result(read: &Read<'_>, case: &Case<'_>, findings: Vec<Finding>) -> Result<InputResult, ExplainError> {
    let labels = &case.subject.model.labels;
    let served = case.scalars(&case.logits)?;
    let explanations = findings
        .into_iter()
        .zip(case.targets.iter().zip(served))
        .map(|(finding, (&index, value))| {
            check_finite(&finding)?;
            let mut evidence = finding.evidence;
            evidence.insert("parity".to_owned(), json!(finding.value - value));
            Ok(Explanation {
                target: Target { label: labels.names()[index].clone(), index },
                output: case.subject.output,
                value,
                base_value: finding.base_value,
                attributions: finding.attributions,
                evidence,
                details: finding.details,
            })
        })
        .collect::<Result<_, ExplainError>>()?;
    Ok(InputResult {
        id: read.input.id().map(str::to_owned),
        prediction: prediction(labels, &case.logits)?,
        explanations,
        truncated: read.encoded.truncated.is_some(),
        truncation: read.encoded.truncated.as_ref().map(|it| json!(it)),
    })
}

/// Logits of a row that are all smaller count as of this size: what rounds them off is.
const SMALLEST_LOGIT: f64 = 0.1;

/// No score moves by more than this many times as much as the logits that it is made of.
const STEEPEST_OUTPUT: f64 = 2.0;

/// Refuses what a derived graph said of a text for which it does not compute the served score: it was measured with
/// texts of other lengths and contents.
fn holds(read: &Read<'_>, case: &Case<'_>, result: &InputResult) -> Result<(), Unavailable> {
    let largest = case.logits.iter().fold(SMALLEST_LOGIT, |most, it| most.max(f64::from(it.abs())));
    let most = case.subject.model.tolerance * largest * STEEPEST_OUTPUT;
    let parity = |it: &Explanation| it.evidence["parity"].as_f64().map(f64::abs);
    let worst = result.explanations.iter().filter_map(parity).fold(0.0, f64::max);
    if worst > most { Err(Unavailable::not_for_this_text(&read.pointer, worst)) } else { Ok(()) }
}

/// A finite logit may have a slope, or a way from its baseline, that is not.
fn check_finite(finding: &Finding) -> Result<(), ScoreError> {
    let scores = finding.attributions.iter().map(|it| ("an attribution", it.score));
    let base = finding.base_value.map(|it| ("the base value", it));
    let mut all = std::iter::once(("the explained score", finding.value)).chain(base).chain(scores);
    match all.find(|(_, value)| !value.is_finite()) {
        Some((what, value)) => Err(ScoreError::NotANumber { what, value }),
        None => Ok(()),
    }
}

fn usage(lane: &Lane, memo: &Memo, bill: Bill) -> Usage {
    let spent = lane.spent();
    Usage {
        forward_passes: spent.forward_passes,
        gradient_passes: spent.gradient_passes,
        reused_passes: memo.reused(),
        priced_passes: bill.passes,
        tokens: spent.tokens,
        queue_ms: spent.queued.as_secs_f64() * 1e3,
        compute_ms: spent.computed.as_secs_f64() * 1e3,
    }
}

fn timing(arrival: &Arrival, tokenized: Duration, started: Instant, lane: &Lane) -> Timing {
    let queue = lane.spent().queued;
    let forward = started.elapsed().saturating_sub(queue);
    let reduce = arrival.at.elapsed().saturating_sub(tokenized + queue + forward);
    Timing { tokenize: tokenized, queue, forward, reduce }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::Attribution;

    #[test]
    fn a_panic_beside_others_is_a_panic_too() {
        let work = |number: &u32| match number {
            3 => panic!("three"),
            _ => Ok(*number),
        };
        assert_eq!(side_by_side(&[1, 2, 4, 5, 6], work).ok(), Some(vec![1, 2, 4, 5, 6]));
        let caught = std::panic::catch_unwind(|| side_by_side(&[1, 3, 2], work).ok());
        let words = caught.expect_err("it panics");
        assert_eq!(words.downcast_ref::<&str>(), Some(&"three"));
    }

    fn finding(value: f64, base_value: Option<f64>, score: f64) -> Finding {
        let text = "film".to_owned();
        let attribution =
            Attribution { text, start: 0, end: 4, score, standard_error: None, segment: 0, special: false };
        let attributions = vec![attribution];
        Finding { value, base_value, attributions, evidence: serde_json::Map::new(), details: None }
    }

    #[test]
    fn what_is_not_finite_is_no_answer() {
        assert_eq!(check_finite(&finding(1.0, Some(0.0), -1.0)), Ok(()));
        assert_eq!(check_finite(&finding(1.0, None, -1.0)), Ok(()));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let broken = [finding(bad, None, 1.0), finding(1.0, Some(bad), 1.0), finding(1.0, None, bad)];
            let words = broken.map(|it| check_finite(&it).unwrap_err().to_string());
            let named = ["the explained score", "the base value", "an attribution"];
            assert_eq!(words, named.map(|it| format!("{it} came out as {bad}")));
        }
    }
}
