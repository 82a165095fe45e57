//! Where a graph becomes runnable: a session for every worker, and its layout.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use ort::value::DynValue;

use super::{Graph, Layout, Row, RowOut, Runtime, RuntimeError, Session, SharedWeights, session::Optimise};

/// What a program computes; the counters of a request are kept by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramKind {
    /// Logits from tokens or from embeddings.
    Forward,
    /// Logits and a backward pass: gradients, relevances, or attention gradients.
    Gradient,
}

/// A graph ready to run on every worker.
pub struct Program {
    /// What its passes count as.
    pub kind: ProgramKind,
    /// How rows become batches.
    pub layout: Layout,
    sessions: Vec<Mutex<Session>>,
}

/// How many times as long the row is that another is tried beside.
const PADDED_TO: usize = 3;

impl Program {
    /// Opens `workers` sessions of `graph` that share `weights`.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn open(
        runtime: &Runtime,
        graph: &Graph,
        weights: &SharedWeights,
        kind: ProgramKind,
        layout: Layout,
        workers: usize,
    ) -> Result<Self, RuntimeError> {
        Self::with(runtime, graph, &weights.of(graph)?, weights, kind, layout, workers)
    }

    /// As [`Program::open`], the graph's `values` looked up among `weights` before.
    pub(super) fn with(
        runtime: &Runtime,
        graph: &Graph,
        values: &[Arc<DynValue>],
        weights: &SharedWeights,
        kind: ProgramKind,
        layout: Layout,
        workers: usize,
    ) -> Result<Self, RuntimeError> {
        let open = |_| Session::with(runtime, graph, values, weights, Optimise::Everything).map(Mutex::new);
        let sessions = (0..workers.max(1)).map(open).collect::<Result<_, _>>()?;
        Ok(Self { kind, layout, sessions })
    }

    /// A program of one session.
    pub fn of(session: Session, kind: ProgramKind, layout: Layout) -> Self {
        Self { kind, layout, sessions: vec![Mutex::new(session)] }
    }

    /// The size of the first output's last axis, found by running `row`.
    ///
    /// # Errors
    /// ONNX Runtime's words, or an output that is not [batch, size].
    pub fn probe_width(&mut self, row: &Row) -> Result<usize, RuntimeError> {
        match self.probe(row)?[..] {
            [1, width] if width > 0 => Ok(width),
            ref found => {
                let name = &self.layout.outputs[0].name;
                Err(RuntimeError::Session(format!("output `{name}` has shape {found:?}, not [1, labels]")))
            }
        }
    }

    /// The shape of the first output, batch axis included, found by running `row`.
    ///
    /// # Errors
    /// ONNX Runtime's words.
    pub fn probe(&mut self, row: &Row) -> Result<Vec<usize>, RuntimeError> {
        let inputs = self.layout.stack(std::slice::from_ref(row));
        let name = self.layout.outputs[0].name.as_str();
        let session = self.sessions[0].get_mut().unwrap_or_else(PoisonError::into_inner);
        Ok(session.run(inputs, [name])?.swap_remove(0).dims)
    }

    /// Whether `row` gets the same first output beside a longer row, padded, as alone: to within a hundredth of
    /// its largest value, which leaves room for what batches do to rounding.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn hides_padding(&self, row: &Row) -> Result<bool, RuntimeError> {
        self.keeps(&[row.clone(), Row::of(row.ids.repeat(PADDED_TO), None)], 1)
    }

    /// Whether rows of one length get the same first outputs beside each other as alone, though they hold `token`
    /// unequally often: to within as much as in [`Program::hides_padding`]. `row` is made longer, and `other` stands for
    /// most of its tokens in one of the rows.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn counts_apart(&self, row: &Row, token: u32, other: u32) -> Result<bool, RuntimeError> {
        let ids = [&*row.ids, &[token]].concat().repeat(PADDED_TO);
        let ids = [&ids, &*row.ids].concat();
        let last = ids.iter().rposition(|&it| it == token);
        let once = ids.iter().enumerate().map(|(at, &id)| match id == token && Some(at) != last {
            true => other,
            false => id,
        });
        let once: Vec<u32> = once.collect();
        self.keeps(&[Row::of(ids, None), Row::of(once, None)], 2)
    }

    /// The first number of equal rows whose first outputs are not those of `other`, to within a twentieth of a row's largest
    /// value, which leaves room for half precision; and the difference in parts of it.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn strays_from(
        &self,
        other: &Self,
        row: &Row,
        counts: impl IntoIterator<Item = usize>,
    ) -> Result<Option<(usize, f32)>, RuntimeError> {
        for count in counts {
            let rows = vec![row.clone(); count];
            let (ours, theirs) = (self.run(0, &rows)?, other.run(0, &rows)?);
            let gaps = ours.iter().zip(&theirs).map(|(a, b)| gap(&a.values[0], &b.values[0]));
            let gap = gaps.max_by(f32::total_cmp).unwrap_or(0.0);
            if gap > 0.05 {
                return Ok(Some((count, gap)));
            }
        }
        Ok(None)
    }

    /// Whether the first `count` of `rows` get the same first output beside the others as alone.
    fn keeps(&self, rows: &[Row], count: usize) -> Result<bool, RuntimeError> {
        let together = self.run(0, rows)?;
        for (row, beside) in rows.iter().zip(together).take(count) {
            let alone = self.run(0, std::slice::from_ref(row))?.swap_remove(0).values.swap_remove(0);
            if gap(&beside.values[0], &alone) > 0.01 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Runs one batch on the session of `worker`, on the calling thread.
    ///
    /// # Errors
    /// ONNX Runtime's words, or the output whose shape is not the layout's.
    pub fn run(&self, worker: usize, rows: &[Row]) -> Result<Vec<RowOut>, RuntimeError> {
        let lengths: Vec<usize> = rows.iter().map(Row::len).collect();
        let inputs = self.layout.stack(rows);
        let session = &self.sessions[worker % self.sessions.len()];
        let names = self.layout.outputs.iter().map(|slot| slot.name.as_str());
        // A panic inside a run left no half-written state of ours behind: the session stays usable.
        let outputs = session.lock().unwrap_or_else(PoisonError::into_inner).run(inputs, names)?;
        self.layout.unstack(&outputs, &lengths).map_err(RuntimeError::Session)
    }
}

/// The largest difference in parts of the largest value of `known`; infinite where a value is no number.
fn gap(values: &[f32], known: &[f32]) -> f32 {
    let largest = known.iter().fold(0.0f32, |most, it| most.max(it.abs()));
    let part = |(a, b): (&f32, &f32)| match (a - b).abs() {
        0.0 => 0.0,
        it if it.is_nan() => f32::INFINITY,
        it => it / largest,
    };
    values.iter().zip(known).map(part).fold(0.0, f32::max)
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("kind", &self.kind).field("sessions", &self.sessions.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::gap;

    #[test]
    fn a_gap_is_told_in_parts_of_the_largest_value_and_never_lost_in_what_is_no_number() {
        assert_eq!(gap(&[1.0, -3.0], &[1.0, -4.0]), 0.25);
        assert_eq!((gap(&[0.0], &[0.0]), gap(&[1.0], &[0.0])), (0.0, f32::INFINITY));
        for values in [[f32::NAN, 1.0], [1.0, f32::NAN]] {
            assert_eq!(
                (gap(&values, &[1.0, 1.0]), gap(&[1.0, 1.0], &values)),
                (f32::INFINITY, f32::INFINITY)
            );
        }
    }
}
