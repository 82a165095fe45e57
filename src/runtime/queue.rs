//! Where chunks wait: fair between lanes, in order within a lane.

use std::collections::{HashMap, VecDeque};

/// Chunks of many lanes. The next chunk is always that of the lane which was served least so far, measured
/// in cost (start-time fair queueing), so a request of 5,000 rows and one of 20 advance side by side.
pub(super) struct Queue<T> {
    lanes: HashMap<u64, Waiting<T>>,
    /// Virtual time of the last chunk served: where a newly busy lane joins.
    clock: u64,
    depth: usize,
}

struct Waiting<T> {
    /// Cost served so far, in the queue's virtual time.
    served: u64,
    chunks: VecDeque<(u64, T)>,
}

/// What the queue looks like from outside, for metrics and for admission.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Gauges {
    /// Chunks that wait.
    pub depth: usize,
    /// Admitted cost of the rows that are not run yet, in token passes.
    pub cost: u64,
    /// The most cost that is admitted.
    pub budget: u64,
    /// Lanes that are open: requests that were admitted and have not ended.
    pub lanes: usize,
    /// Cost served a second, smoothed; 0 before the first chunk.
    pub rate: f64,
    /// Rows evaluated since the start.
    pub rows: u64,
    /// Rows of those that had a backward pass.
    pub gradient_rows: u64,
    /// Computed tokens since the start, padding included.
    pub tokens: u64,
    /// Computed tokens that were padding.
    pub padding: u64,
    /// Batches that failed.
    pub failures: u64,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self { lanes: HashMap::new(), clock: 0, depth: 0 }
    }

    /// Appends a chunk of the given cost to a lane.
    pub(super) fn push(&mut self, lane: u64, cost: u64, chunk: T) {
        let clock = self.clock;
        let waiting =
            self.lanes.entry(lane).or_insert_with(|| Waiting { served: clock, chunks: VecDeque::new() });
        if waiting.chunks.is_empty() {
            // Time spent idle is no credit.
            waiting.served = waiting.served.max(clock);
        }
        waiting.chunks.push_back((cost, chunk));
        self.depth += 1;
    }

    /// Takes the next chunk of the lane that was served least; the oldest lane breaks a tie.
    pub(super) fn pop(&mut self) -> Option<(u64, T)> {
        let (&lane, waiting) = self
            .lanes
            .iter_mut()
            .filter(|(_, it)| !it.chunks.is_empty())
            .min_by_key(|(lane, it)| (it.served, **lane))?;
        let (cost, chunk) = waiting.chunks.pop_front()?;
        self.clock = self.clock.max(waiting.served);
        waiting.served += cost;
        self.depth -= 1;
        Some((lane, chunk))
    }

    /// Puts the part of a chunk that is not run yet back, before everything else of its lane.
    pub(super) fn put_back(&mut self, lane: u64, cost: u64, chunk: T) {
        let Some(waiting) = self.lanes.get_mut(&lane) else { return };
        waiting.served -= cost.min(waiting.served);
        waiting.chunks.push_front((cost, chunk));
        self.depth += 1;
    }

    /// Forgets a lane and hands back what it still had waiting.
    pub(super) fn remove(&mut self, lane: u64) -> Vec<T> {
        let waiting = self.lanes.remove(&lane).map_or_else(VecDeque::new, |it| it.chunks);
        self.depth -= waiting.len();
        waiting.into_iter().map(|(_, chunk)| chunk).collect()
    }

    /// Chunks that wait.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(queue: &mut Queue<&'static str>) -> Option<&'static str> {
        queue.pop().map(|(_, chunk)| chunk)
    }

    fn drain(queue: &mut Queue<&'static str>) -> String {
        std::iter::from_fn(|| next(queue)).collect()
    }

    #[test]
    fn lanes_advance_side_by_side() {
        let mut queue = Queue::new();
        (0..6).for_each(|_| queue.push(1, 10, "a"));
        (0..3).for_each(|_| queue.push(2, 10, "b"));
        assert_eq!(drain(&mut queue), "abababaaa");
    }

    #[test]
    fn fairness_is_in_cost_not_in_chunks() {
        let mut queue = Queue::new();
        (0..3).for_each(|_| queue.push(1, 20, "a"));
        (0..4).for_each(|_| queue.push(2, 10, "b"));
        assert_eq!(drain(&mut queue), "abbabba");
    }

    #[test]
    fn a_newcomer_waits_for_no_chunk_that_has_not_begun() {
        let mut queue = Queue::new();
        (0..500).for_each(|_| queue.push(1, 10, "a"));
        (0..400).for_each(|_| assert_eq!(next(&mut queue), Some("a")));
        queue.push(2, 10, "b");
        assert_eq!([next(&mut queue), next(&mut queue)].concat_names(), "ba");
    }

    #[test]
    fn idle_time_is_no_credit() {
        let mut queue = Queue::new();
        queue.push(1, 10, "a");
        assert_eq!(next(&mut queue), Some("a"));
        (0..50).for_each(|_| queue.push(2, 10, "b"));
        (0..40).for_each(|_| assert_eq!(next(&mut queue), Some("b")));
        (0..40).for_each(|_| queue.push(1, 10, "a"));
        let first: String = (0..6).filter_map(|_| next(&mut queue)).collect();
        assert_eq!(first, "aababa");
    }

    #[test]
    fn what_is_put_back_comes_first_and_is_not_charged() {
        let mut queue = Queue::new();
        queue.push(1, 40, "whole");
        queue.push(1, 10, "next");
        queue.push(2, 20, "other");
        assert_eq!(queue.pop(), Some((1, "whole")));
        queue.put_back(1, 30, "rest");
        assert_eq!(queue.depth(), 3);
        assert_eq!(drain(&mut queue), "otherrestnext");
    }

    #[test]
    fn a_removed_lane_leaves_nothing_behind() {
        let mut queue = Queue::new();
        (0..3).for_each(|_| queue.push(1, 10, "a"));
        queue.push(2, 10, "b");
        assert_eq!(queue.remove(1).len(), 3);
        assert_eq!((queue.depth(), drain(&mut queue).as_str()), (1, "b"));
    }

    trait Names {
        fn concat_names(self) -> String;
    }

    impl Names for [Option<&'static str>; 2] {
        fn concat_names(self) -> String {
            self.into_iter().flatten().collect()
        }
    }
}
