//! What a worker takes from the queue: rows of one lane, with their cost.

use std::{
    sync::{Arc, mpsc::Sender},
    time::{Duration, Instant},
};

use super::{Cancel, Program, ProgramKind, Row, RowOut, Stop};

/// Rows of one lane that are run together.
pub(super) struct Chunk {
    pub(super) program: Arc<Program>,
    pub(super) rows: Vec<Row>,
    /// The rows' places in the caller's list.
    pub(super) places: Vec<usize>,
    pub(super) cancel: Cancel,
    pub(super) deadline: Instant,
    pub(super) submitted: Instant,
    pub(super) reply: Sender<Served>,
}

/// What became of a chunk.
pub(super) struct Served {
    pub(super) places: Vec<usize>,
    pub(super) outcome: Result<Vec<RowOut>, Stop>,
    pub(super) waited: Duration,
    pub(super) computed: Duration,
    pub(super) tokens: u64,
}

/// A backward pass costs about as much again as the forward pass that it follows, and its memory traffic
/// more: one gradient row is priced as this many forward rows.
const GRADIENT_COST: u64 = 3;

impl ProgramKind {
    /// Cost of one row of this kind, in forward rows.
    pub const fn cost(self) -> u64 {
        match self {
            Self::Forward => 1,
            Self::Gradient => GRADIENT_COST,
        }
    }
}

impl Chunk {
    /// Keeps the first rows that fit into `tokens`, at least one, and gives the rest, if there is one.
    pub(super) fn split(&mut self, tokens: usize) -> Option<Self> {
        let longest = self.rows.iter().map(Row::len).max().unwrap_or(0);
        let keep = (tokens / longest.max(1)).max(1);
        if keep >= self.rows.len() {
            return None;
        }
        Some(Self {
            program: self.program.clone(),
            rows: self.rows.split_off(keep),
            places: self.places.split_off(keep),
            cancel: self.cancel.clone(),
            deadline: self.deadline,
            submitted: self.submitted,
            reply: self.reply.clone(),
        })
    }

    /// Computed tokens, padding included.
    pub(super) fn tokens(&self) -> u64 {
        let longest = self.rows.iter().map(Row::len).max().unwrap_or(0);
        (longest * self.rows.len()) as u64
    }

    /// Tokens of the rows themselves, which is what the lane was admitted for.
    pub(super) fn own_tokens(&self) -> u64 {
        self.rows.iter().map(|it| it.len() as u64).sum()
    }

    pub(super) fn cost(&self) -> u64 {
        self.tokens() * self.program.kind.cost()
    }
}
