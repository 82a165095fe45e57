//! Where a vector for each token, an embedding or a hidden state, is edited in part.

use std::sync::Arc;

use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{explain::random, model::Words, runtime::Extra};

/// What becomes of the edited components.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Edit {
    /// They become 0.
    Zero,
    /// Embeddings become the mean of the vocabulary's; a unit of a hidden state becomes its mean over the input's
    /// positions.
    Mean,
    /// Embeddings become those of vocabulary rows drawn at random.
    Random,
    /// Gaussian noise is added; its standard deviation is relative to that of the token's own vector.
    Noise,
    /// They change places among themselves at random.
    Shuffle,
    /// They become those of another layer's hidden state.
    Swap,
}

impl Edit {
    /// Whether two draws differ.
    pub fn is_random(self) -> bool {
        match self {
            Self::Random | Self::Noise | Self::Shuffle => true,
            Self::Zero | Self::Mean | Self::Swap => false,
        }
    }
}

/// What an edit needs beside the state.
#[derive(Clone)]
pub enum How {
    /// Every component becomes 0.
    Zero,
    /// Components become those of a vector, `[width]`.
    Vector(Arc<[f32]>),
    /// Vectors become rows of the vocabulary.
    Random(Arc<Words>),
    /// Noise of this many standard deviations of the token's own vector is added.
    Noise(f64),
    /// Components change places.
    Shuffle,
    /// Components become those of another state, `[tokens, width]`.
    State(Arc<[f32]>),
}

/// The components that are edited together.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// The vectors of some tokens.
    Tokens(Vec<usize>),
    /// Some units of every token's vector.
    Units(Vec<usize>),
    /// All of them.
    Whole,
}

/// A vector for each token, and how it is edited.
#[derive(Clone)]
pub struct Editor {
    /// `[tokens, width]`, row-major.
    pub state: Arc<[f32]>,
    /// Length of a vector.
    pub width: usize,
    /// What is done.
    pub how: How,
    /// The request's seed.
    pub seed: u64,
}

impl Editor {
    /// The state with one part edited, written when its batch is put together; draws of different `stream`s are
    /// independent.
    pub fn edited(&self, part: Part, stream: u64) -> Extra {
        let editor = self.clone();
        Extra::Fill(Arc::new(move |into: &mut [f32]| editor.write(&part, stream, into)))
    }

    fn write(&self, part: &Part, stream: u64, into: &mut [f32]) {
        into.copy_from_slice(&self.state);
        let width = self.width;
        let places = self.places(part);
        let mut random = random::stream(self.seed, stream);
        match &self.how {
            How::Zero => places.iter().for_each(|&at| into[at] = 0.0),
            How::Vector(vector) => places.iter().for_each(|&at| into[at] = vector[at % width]),
            How::State(other) => places.iter().for_each(|&at| into[at] = other[at]),
            How::Random(words) => {
                for run in places.chunks(width) {
                    let row = words.row(random.random_range(0..words.count() as u32));
                    run.iter().for_each(|&at| into[at] = row[at % width]);
                }
            }
            How::Noise(scale) => {
                let sds: Vec<f64> =
                    self.state.chunks(width).map(|it| scale * random::deviation(it)).collect();
                for &at in &places {
                    let noise: f64 = StandardNormal.sample(&mut random);
                    into[at] += (sds[at / width] * noise) as f32;
                }
            }
            How::Shuffle => {
                for left in (1..places.len()).rev() {
                    into.swap(places[left], places[random.random_range(0..=left)]);
                }
            }
        }
    }

    /// The places of a part's components, in order.
    fn places(&self, part: &Part) -> Vec<usize> {
        let width = self.width;
        match part {
            Part::Tokens(tokens) => tokens.iter().flat_map(|it| it * width..(it + 1) * width).collect(),
            Part::Units(units) => {
                let tokens = self.state.len() / width.max(1);
                (0..tokens).flat_map(|token| units.iter().map(move |unit| token * width + unit)).collect()
            }
            Part::Whole => (0..self.state.len()).collect(),
        }
    }
}

/// The mean vector over the tokens of a state.
pub fn mean_vector(state: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; width];
    for row in state.chunks(width) {
        sums.iter_mut().zip(row).for_each(|(sum, it)| *sum += f64::from(*it));
    }
    let tokens = (state.len() / width.max(1)).max(1) as f64;
    sums.into_iter().map(|it| (it / tokens) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];

    fn edited(how: How, part: Part) -> Vec<f32> {
        let editor = Editor { state: STATE.into(), width: 3, how, seed: 3 };
        let mut into = vec![0.0; 6];
        editor.write(&part, 0, &mut into);
        into
    }

    #[test]
    fn a_part_is_edited_and_the_rest_stays() {
        assert_eq!(edited(How::Zero, Part::Tokens(vec![1])), [1.0, 2.0, 3.0, 0.0, 0.0, 0.0]);
        assert_eq!(edited(How::Zero, Part::Units(vec![0, 2])), [0.0, 2.0, 0.0, 0.0, 5.0, 0.0]);
        assert_eq!(edited(How::Zero, Part::Whole), [0.0; 6]);
        let mean = How::Vector(mean_vector(&STATE, 3).into());
        assert_eq!(edited(mean, Part::Units(vec![1])), [1.0, 3.5, 3.0, 4.0, 3.5, 6.0]);
        let other = How::State([9.0; 6].into());
        assert_eq!(edited(other, Part::Tokens(vec![0])), [9.0, 9.0, 9.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn shuffling_keeps_the_components_of_the_part() {
        let mut shuffled = edited(How::Shuffle, Part::Tokens(vec![0]));
        assert_eq!(shuffled[3..], STATE[3..]);
        shuffled.sort_by(f32::total_cmp);
        assert_eq!(shuffled, STATE);
        // One unit of two tokens either stays or changes places.
        let unit = edited(How::Shuffle, Part::Units(vec![2]));
        assert!([unit[2], unit[5]] == [3.0, 6.0] || [unit[2], unit[5]] == [6.0, 3.0]);
    }

    #[test]
    fn noise_is_measured_by_the_vectors_own_deviation() {
        assert_eq!(edited(How::Noise(0.0), Part::Whole), STATE);
        let wide: Vec<f32> = (0..20_000).map(|it| if it % 2 == 0 { 3.0 } else { -3.0 }).collect();
        let editor = Editor { state: wide.clone().into(), width: 20_000, how: How::Noise(0.5), seed: 0 };
        let mut into = vec![0.0; wide.len()];
        editor.write(&Part::Whole, 1, &mut into);
        let added: Vec<f32> = into.iter().zip(&wide).map(|(a, b)| a - b).collect();
        assert!((random::deviation(&added) - 1.5).abs() < 0.03, "{}", random::deviation(&added));
    }
}
