//! This file is where a cooperative game is defined: players, coalitions, and what a coalition is worth.

use std::error::Error;
use std::fmt;

/// Something whose worth can be asked for any set of present features.
///
/// The implementation decides what absence means (deleted, masked, replaced), runs the rows, and owns
/// deadlines, cancellation and the detection of repeated rows. An estimator only chooses coalitions.
pub trait Game {
    /// How many features take part.
    fn players(&self) -> usize;

    /// How many scalars each evaluation gives; targets explained together share their evaluations.
    fn outputs(&self) -> usize;

    /// The worth of each coalition: one row a coalition in the given order, one column an output.
    ///
    /// # Errors
    /// [`Stop`] when the rows were not, or not all, evaluated; an estimator keeps what earlier calls gave.
    fn evaluate(&mut self, coalitions: &[Coalition]) -> Result<Vec<Vec<f64>>, Stop>;

    /// The variance of the worth that stood for `coalition`, by output, where that was a mean over draws: not a
    /// number where one draw says nothing of it. None where worths are certain.
    fn spread(&self, _coalition: &Coalition) -> Option<Vec<f64>> {
        None
    }

    /// Whether work between evaluations may go on.
    ///
    /// # Errors
    /// [`Stop`] once an evaluation would end with it.
    fn check(&self) -> Result<(), Stop> {
        Ok(())
    }

    /// How many coalitions to hand over in one call at most. No result depends on it.
    fn chunk(&self) -> usize {
        1024
    }
}

/// Why a game gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The request's time was over.
    #[error("the deadline passed")]
    Deadline,
    /// The caller went away.
    #[error("the request was cancelled")]
    Cancelled,
    /// An evaluation failed.
    #[error("an evaluation failed: {0}")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
}

/// A set of players, as bits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Coalition {
    players: u32,
    words: Box<[u64]>,
}

impl Coalition {
    /// Nobody, out of `players`.
    pub fn empty(players: usize) -> Self {
        let players = u32::try_from(players).expect("a text has fewer than 2^32 features");
        Self { players, words: vec![0; (players as usize).div_ceil(64)].into() }
    }

    /// Everybody.
    pub fn full(players: usize) -> Self {
        Self::empty(players).complement()
    }

    /// Exactly the named members.
    pub fn of(players: usize, members: impl IntoIterator<Item = usize>) -> Self {
        let mut coalition = Self::empty(players);
        members.into_iter().for_each(|member| coalition.insert(member));
        coalition
    }

    /// The coalition whose bit pattern is `code` (bit i is player i); for up to 64 players.
    pub fn from_code(players: usize, code: u64) -> Self {
        let mut coalition = Self::empty(players);
        if let Some(first) = coalition.words.first_mut() {
            *first = code;
        }
        coalition
    }

    /// How many could be members.
    pub fn players(&self) -> usize {
        self.players as usize
    }

    /// How many are members.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether nobody is a member.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Whether `player` is a member.
    pub fn contains(&self, player: usize) -> bool {
        self.words[player / 64] >> (player % 64) & 1 == 1
    }

    /// Adds `player`.
    pub fn insert(&mut self, player: usize) {
        debug_assert!(player < self.players());
        self.words[player / 64] |= 1 << (player % 64);
    }

    /// Removes `player`.
    pub fn remove(&mut self, player: usize) {
        self.words[player / 64] &= !(1 << (player % 64));
    }

    /// Those who are not members.
    pub fn complement(&self) -> Self {
        let mut words: Box<[u64]> = self.words.iter().map(|word| !word).collect();
        let used = self.players() % 64;
        if used > 0
            && let Some(last) = words.last_mut()
        {
            *last &= (1 << used) - 1;
        }
        Self { players: self.players, words }
    }

    /// Those who are members of either.
    pub fn union(&self, other: &Self) -> Self {
        let words = self.words.iter().zip(&other.words).map(|(a, b)| a | b).collect();
        Self { players: self.players, words }
    }

    /// Whether every member of `other` is a member.
    pub fn is_superset(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).all(|(a, b)| a & b == *b)
    }

    /// The members, ascending.
    pub fn members(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(place, &word)| {
            std::iter::successors(Some(word), |rest| Some(rest & rest.wrapping_sub(1)))
                .take_while(|&rest| rest != 0)
                .map(move |rest| place * 64 + rest.trailing_zeros() as usize)
        })
    }
}

impl fmt::Debug for Coalition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.members()).finish()
    }
}

/// A game given by a function of the coalition; one output.
#[cfg(test)]
pub(crate) struct Function<F> {
    pub(crate) players: usize,
    pub(crate) worth: F,
    /// How many coalitions were asked for.
    pub(crate) asked: usize,
    /// Stop with [`Stop::Deadline`] rather than exceed this many.
    pub(crate) limit: usize,
    pub(crate) chunk: usize,
}

#[cfg(test)]
impl<F: FnMut(&Coalition) -> f64> Function<F> {
    pub(crate) fn new(players: usize, worth: F) -> Self {
        Self { players, worth, asked: 0, limit: usize::MAX, chunk: 1024 }
    }
}

#[cfg(test)]
impl<F: FnMut(&Coalition) -> f64> Game for Function<F> {
    fn players(&self) -> usize {
        self.players
    }

    fn outputs(&self) -> usize {
        1
    }

    fn evaluate(&mut self, coalitions: &[Coalition]) -> Result<Vec<Vec<f64>>, Stop> {
        assert!(coalitions.len() <= self.chunk, "an estimator handed over more than a chunk");
        if self.asked + coalitions.len() > self.limit {
            return Err(Stop::Deadline);
        }
        self.asked += coalitions.len();
        Ok(coalitions.iter().map(|coalition| vec![(self.worth)(coalition)]).collect())
    }

    fn chunk(&self) -> usize {
        self.chunk
    }
}

/// A game that is over for a reason which only [`Game::check`] tells.
#[cfg(test)]
pub(crate) struct Over<G>(pub(crate) G, pub(crate) fn() -> Stop);

#[cfg(test)]
impl<G: Game> Game for Over<G> {
    fn players(&self) -> usize {
        self.0.players()
    }

    fn outputs(&self) -> usize {
        self.0.outputs()
    }

    fn evaluate(&mut self, coalitions: &[Coalition]) -> Result<Vec<Vec<f64>>, Stop> {
        self.0.evaluate(coalitions)
    }

    fn check(&self) -> Result<(), Stop> {
        Err(self.1())
    }
}

/// A game whose worths are means over draws, more scattered the fewer are present; one output.
#[cfg(test)]
pub(crate) struct Drawn<F> {
    pub(crate) players: usize,
    pub(crate) worth: F,
    pub(crate) draws: usize,
    pub(crate) seed: u64,
    spread: std::collections::HashMap<Coalition, f64>,
}

#[cfg(test)]
impl<F: FnMut(&Coalition) -> f64> Drawn<F> {
    pub(crate) fn new(players: usize, draws: usize, seed: u64, worth: F) -> Self {
        Self { players, worth, draws, seed, spread: Default::default() }
    }
}

#[cfg(test)]
impl<F: FnMut(&Coalition) -> f64> Game for Drawn<F> {
    fn players(&self) -> usize {
        self.players
    }

    fn outputs(&self) -> usize {
        1
    }

    fn evaluate(&mut self, coalitions: &[Coalition]) -> Result<Vec<Vec<f64>>, Stop> {
        let mut row = |coalition: &Coalition| {
            let code = coalition
                .members()
                .fold(0u64, |code, it| code.wrapping_mul(0x1_0001).wrapping_add(it as u64 + 1));
            let mut stream = super::random::Stream::new(self.seed, code, 0);
            let absent = (self.players - coalition.len()) as f64;
            let mut draw = || absent.sqrt() * (stream.fraction() + stream.fraction() - 1.0);
            let draws: Vec<f64> = (0..self.draws).map(|_| draw()).collect();
            let (mean, variance) = mean_and_variance(&draws);
            self.spread.insert(coalition.clone(), variance);
            vec![(self.worth)(coalition) + mean]
        };
        Ok(coalitions.iter().map(&mut row).collect())
    }

    fn spread(&self, coalition: &Coalition) -> Option<Vec<f64>> {
        Some(vec![self.spread.get(coalition).copied().unwrap_or(0.0)])
    }
}

/// The mean of draws, and its variance as they tell it: not a number for one.
pub fn mean_and_variance(draws: &[f64]) -> (f64, f64) {
    let count = draws.len() as f64;
    let mean = draws.iter().sum::<f64>() / count;
    let squares: f64 = draws.iter().map(|it| (it - mean).powi(2)).sum();
    (mean, squares / (count - 1.0) / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_back_across_word_borders() {
        let set = Coalition::of(130, [0, 63, 64, 129]);
        assert_eq!(set.members().collect::<Vec<_>>(), [0, 63, 64, 129]);
        assert_eq!(set.len(), 4);
    }

    #[test]
    fn the_complement_holds_no_bit_beyond_the_last_player() {
        for players in [1, 63, 64, 65, 130] {
            assert_eq!(Coalition::full(players).len(), players);
            assert_eq!(Coalition::full(players).complement(), Coalition::empty(players));
        }
    }

    #[test]
    fn a_superset_is_one_whatever_else_it_holds() {
        let rule = Coalition::of(70, [3, 69]);
        assert!(Coalition::of(70, [3, 5, 69]).is_superset(&rule));
        assert!(!Coalition::of(70, [3, 5]).is_superset(&rule));
    }
}
