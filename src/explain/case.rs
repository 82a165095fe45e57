//! Where a method meets its input: what is known before it runs, and how it asks for evaluations.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use serde_json::{Map, Value};

use super::{Attribution, ExplainError};
use crate::{
    model::{
        Model, Output,
        text::{Caps, Encoded, Feature},
    },
    runtime::{Lane, Program, Row, RowOut, Stop},
};

/// One input as it is known before anything was evaluated.
pub struct Subject<'a> {
    /// The model that is asked.
    pub model: &'a Model,
    /// The input's tokens.
    pub encoded: &'a Encoded,
    /// What scores are asked for, in the order of the text; never empty.
    pub features: &'a [Feature],
    /// How many targets are explained; at least 1.
    pub targets: usize,
    /// Which scalar is explained.
    pub output: Output,
    /// The request's seed.
    pub seed: u64,
    /// JSON pointer of the input.
    pub pointer: &'a str,
    /// How large a text among the parameters may be.
    pub caps: Caps,
    /// The most passes of one request.
    pub most_passes: u64,
    /// Tokens of the longest row that the input is priced by.
    pub longest: AtomicUsize,
    /// Numbers that the request's inputs so far will tell beside their attributions.
    pub told: &'a AtomicU64,
}

impl Subject<'_> {
    /// Notes that a method builds rows of so many tokens: more than the input's own have their price.
    pub fn lengthen(&self, tokens: usize) {
        self.longest.fetch_max(tokens, Ordering::Relaxed);
    }

    /// Notes that the details of each of the input's targets will hold so many numbers; gives what the request's
    /// inputs will tell together, this one and those priced before it.
    pub fn tell(&self, numbers: u64) -> u64 {
        let numbers = numbers.saturating_mul(self.targets as u64);
        self.told.fetch_add(numbers, Ordering::Relaxed).saturating_add(numbers)
    }
}

/// One input while it is explained.
pub struct Case<'a> {
    /// What was known before.
    pub subject: Subject<'a>,
    /// The input's own row.
    pub row: Row,
    /// The model's answer to it, as served.
    pub logits: Vec<f32>,
    /// Indices of the labels to explain.
    pub targets: Vec<usize>,
    /// The request's way to the workers.
    pub lane: &'a Lane,
    /// Rows that were evaluated before in this request.
    pub memo: &'a Memo,
}

/// What a method found for one target.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The explained scalar as the method's own graph computed it; compared with the served one.
    pub value: f64,
    /// The scalar with everything absent.
    pub base_value: Option<f64>,
    /// One for each feature, and special tokens where the method gives them a score.
    pub attributions: Vec<Attribution>,
    /// The method's own figures; `parity` is added by the caller.
    pub evidence: Map<String, Value>,
    /// What the method found beside the attributions.
    pub details: Option<Value>,
}

/// Forward rows of one request by their content: an equal row is evaluated once.
#[derive(Default)]
pub struct Memo {
    logits: Mutex<HashMap<u128, Arc<[f32]>>>,
    reused: AtomicU64,
}

impl Memo {
    /// Rows that were answered from an equal row.
    pub fn reused(&self) -> u64 {
        self.reused.load(Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u128, Arc<[f32]>>> {
        self.logits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The logits of each row; rows that equal one another, or one from before, run once.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn forward(
        &self,
        lane: &Lane,
        program: &Arc<Program>,
        rows: Vec<Row>,
    ) -> Result<Vec<Arc<[f32]>>, Stop> {
        let keys: Vec<u128> = rows.iter().map(key).collect();
        let count = keys.len() as u64;
        let mut fresh: Vec<(u128, Row)> = Vec::new();
        {
            let known = self.lock();
            let mut asked = std::collections::HashSet::new();
            for (key, row) in keys.iter().zip(rows) {
                if !known.contains_key(key) && asked.insert(*key) {
                    fresh.push((*key, row));
                }
            }
        }
        self.reused.fetch_add(count - fresh.len() as u64, Ordering::Relaxed);
        let (fresh_keys, fresh_rows): (Vec<u128>, Vec<Row>) = fresh.into_iter().unzip();
        let outs = lane.evaluate(program, fresh_rows)?;
        let mut known = self.lock();
        for (key, out) in fresh_keys.into_iter().zip(outs) {
            known.insert(key, out.values.into_iter().next().unwrap_or_default().into());
        }
        let missing = || Stop::Failed("a row came back without logits".to_owned());
        keys.iter().map(|key| known.get(key).cloned().ok_or_else(missing)).collect()
    }
}

/// 128 bits of a keyed hash of everything that a forward row holds. The key is drawn once a process, so
/// nobody can prepare two rows that collide.
fn key(row: &Row) -> u128 {
    static KEYS: std::sync::OnceLock<[ahash::RandomState; 2]> = std::sync::OnceLock::new();
    let keys = KEYS.get_or_init(|| [ahash::RandomState::new(), ahash::RandomState::new()]);
    let half = |state: &ahash::RandomState| u128::from(state.hash_one((&row.ids, &row.types, &row.mask)));
    half(&keys[0]) << 64 | half(&keys[1])
}

impl Case<'_> {
    /// The model's logits for each row. Rows that are equal are evaluated once.
    ///
    /// # Errors
    /// Deadline, cancellation, a failed run.
    pub fn forward(&self, rows: Vec<Row>) -> Result<Vec<Arc<[f32]>>, ExplainError> {
        Ok(self.memo.forward(self.lane, &self.subject.model.forward, rows)?)
    }

    /// The explained scalar of every target, for each row: `[row][target]`.
    ///
    /// # Errors
    /// As [`Case::forward`], and logits that are not finite.
    pub fn scores(&self, rows: Vec<Row>) -> Result<Vec<Vec<f64>>, ExplainError> {
        self.forward(rows)?.iter().map(|logits| self.scalars(logits)).collect()
    }

    /// The explained scalar of every target, of one row of logits.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub fn scalars(&self, logits: &[f32]) -> Result<Vec<f64>, ExplainError> {
        let all = self.subject.model.labels.values(self.subject.output, logits)?;
        Ok(self.targets.iter().map(|&target| all[target]).collect())
    }

    /// Runs a derived graph on each row.
    ///
    /// # Errors
    /// Deadline, cancellation, a failed run.
    pub fn run(&self, program: &Arc<Program>, rows: Vec<Row>) -> Result<Vec<RowOut>, ExplainError> {
        Ok(self.lane.evaluate(program, rows)?)
    }

    /// One attribution for each feature of the request.
    pub fn attributions(&self, scores: &[f64]) -> Vec<Attribution> {
        attributions(self.subject.encoded, self.subject.features, scores)
    }

    /// Attributions from one score a token: summed over each feature's tokens, then the special tokens
    /// one by one. Tokens outside of every feature (between a caller's spans) are left out; their sum is
    /// the second value.
    pub fn token_attributions(&self, scores: &[f64]) -> (Vec<Attribution>, f64) {
        let (encoded, features) = (self.subject.encoded, self.subject.features);
        let sums: Vec<f64> = features.iter().map(|it| it.tokens.iter().map(|&at| scores[at]).sum()).collect();
        let mut all = attributions(encoded, features, &sums);
        let mut covered = vec![false; encoded.tokens.len()];
        features.iter().flat_map(|it| &it.tokens).for_each(|&at| covered[at] = true);
        for (at, token) in encoded.tokens.iter().enumerate().filter(|(_, it)| it.special) {
            covered[at] = true;
            all.push(Attribution {
                text: self.subject.model.token_name(token.id),
                start: token.start,
                end: token.end,
                score: scores[at],
                standard_error: None,
                segment: token.segment.unwrap_or(0),
                special: true,
            });
        }
        let outside = scores.iter().zip(&covered).filter(|(_, covered)| !**covered).map(|(it, _)| it).sum();
        (all, outside)
    }
}

/// One attribution for each of `features`, in their order.
pub fn attributions(encoded: &Encoded, features: &[Feature], scores: &[f64]) -> Vec<Attribution> {
    features
        .iter()
        .zip(scores)
        .map(|(feature, &score)| Attribution {
            text: encoded.slice(feature.segment, feature.start, feature.end).to_owned(),
            start: feature.start,
            end: feature.end,
            score,
            standard_error: None,
            segment: feature.segment,
            special: false,
        })
        .collect()
}
