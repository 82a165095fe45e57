//! This file is where the tests' stand-in classifier and the numbers published for it are kept.
//!
//! Text "not a good movie , but not bad either"; features are its distinct words (not, a, good, movie, but,
//! bad, either); the score is sigmoid(2 good - 1.5 bad + 0.5 movie - [not and good]). The numbers were
//! computed with lime 0.2.0.1 and shap 0.51.0, or by enumerating their sampling distribution.

use std::collections::BTreeMap;

use super::game::Coalition;

pub(super) const NOT: usize = 0;
pub(super) const GOOD: usize = 2;
pub(super) const MOVIE: usize = 3;
pub(super) const BAD: usize = 5;

/// The stand-in classifier's probability when only the coalition's words are left.
pub(super) fn stand_in(words: &Coalition) -> f64 {
    let has = |word: usize| f64::from(u8::from(words.contains(word)));
    let z = 2.0 * has(GOOD) - 1.5 * has(BAD) + 0.5 * has(MOVIE) - has(NOT) * has(GOOD);
    1.0 / (1.0 + (-z).exp())
}

/// Its exact Shapley values.
pub(super) const EXACT_SHAPLEY: [f64; 7] = [-0.099533, 0.0, 0.305057, 0.105726, 0.0, -0.31125, 0.0];

/// The Shapley values as the mean marginal contribution over all orders of the players: slow, and unlike any
/// of the estimators.
pub(super) fn mean_over_orders(players: usize, worth: impl Fn(&Coalition) -> f64) -> Vec<f64> {
    fn extend(prefix: &Coalition, worth: &impl Fn(&Coalition) -> f64, sums: &mut [f64]) -> f64 {
        let before = worth(prefix);
        let mut orders = 0.0;
        for player in prefix.complement().members() {
            let mut longer = prefix.clone();
            longer.insert(player);
            let completions = extend(&longer, worth, sums);
            sums[player] += completions * (worth(&longer) - before);
            orders += completions;
        }
        if orders == 0.0 { 1.0 } else { orders }
    }
    let mut sums = vec![0.0; players];
    let orders = extend(&Coalition::empty(players), &worth, &mut sums);
    sums.iter().map(|sum| sum / orders).collect()
}

/// A game without structure: a hash of the coalition as a number in [0, 1).
pub(super) fn rough(coalition: &Coalition) -> f64 {
    let code = coalition.members().fold(0x9e37_79b9_7f4a_7c15_u64, |code, member| {
        (code ^ (member as u64 + 1)).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(27)
    });
    (code.wrapping_mul(0x94d0_49bb_1331_11eb) >> 11) as f64 / (1u64 << 53) as f64
}

/// A real classifier's probability for every set of a sentence's words (`tests/fixtures/games`).
pub(super) struct Table {
    pub(super) players: usize,
    pub(super) exact: Vec<f64>,
    /// The mean squared error of `shap.KernelExplainer(l1_reg=False)` by number of samples.
    pub(super) peer_error: BTreeMap<usize, f64>,
    worth: Vec<f64>,
}

impl Table {
    pub(super) fn worth(&self, coalition: &Coalition) -> f64 {
        self.worth[coalition.members().map(|member| 1 << member).sum::<usize>()]
    }
}

/// Two sentences of twelve words.
pub(super) fn tables() -> Vec<Table> {
    #[derive(serde::Deserialize)]
    struct File {
        players: usize,
        exact: Vec<f64>,
        shap_mse: BTreeMap<usize, f64>,
        worth: Vec<f64>,
    }
    [
        include_str!("../../../tests/fixtures/games/salton_sea_12.json"),
        include_str!("../../../tests/fixtures/games/urban_mosaic_12.json"),
    ]
    .iter()
    .map(|text| {
        let file: File = serde_json::from_str(text).unwrap();
        Table { players: file.players, exact: file.exact, peer_error: file.shap_mse, worth: file.worth }
    })
    .collect()
}

/// Some players, and what they are worth by how many of them are present.
type Group = (Vec<usize>, Box<dyn Fn(f64) -> f64>);

/// A game of groups: Σ_g f_g(how many of group g are present). Every member of a group of a players has an a-th
/// of f_g(a) - f_g(0).
pub(super) struct Groups {
    pub(super) players: usize,
    groups: Vec<Group>,
}

impl Groups {
    /// Words that count alone, pairs and triples that count together, or most words saturating together.
    pub(super) fn several(players: usize) -> [Self; 3] {
        let size = |place: usize| ((place * 37 + 11) % 19) as f64 / 9.0 - 1.0;
        let alone = |place: usize| -> Group {
            let own = size(place).powi(3);
            (vec![place], Box::new(move |present| own * present))
        };
        let together = |place: usize| -> Group {
            let (own, count) = (0.7 * size(place + 5), 2 + place % 2);
            let of = (0..count).map(|k| (place + k * (1 + place % 3)) % players).collect();
            (of, Box::new(move |present| if present as usize == count { own } else { 0.0 }))
        };
        let all = |every: usize, steep: f64| -> Group {
            let of: Vec<usize> = (0..players).filter(|it| it % every != 1).collect();
            let count = of.len() as f64;
            (of, Box::new(move |present| (steep * (present / count - 0.5)).tanh()))
        };
        [
            (0..players).map(alone).chain((0..players).map(together)).collect(),
            (0..players / 4).map(alone).chain([all(3, 4.0)]).collect(),
            (0..players).step_by(3).map(together).chain([all(2, 2.0), all(5, 6.0)]).collect(),
        ]
        .map(|groups| Self { players, groups })
    }

    pub(super) fn worth(&self, coalition: &Coalition) -> f64 {
        let present = |of: &Vec<usize>| of.iter().filter(|&&it| coalition.contains(it)).count() as f64;
        self.groups.iter().map(|(of, worth)| worth(present(of))).sum()
    }

    pub(super) fn exact(&self) -> Vec<f64> {
        let mut values = vec![0.0; self.players];
        for (of, worth) in &self.groups {
            let count = of.len() as f64;
            of.iter().for_each(|&it| values[it] += (worth(count) - worth(0.0)) / count);
        }
        values
    }
}
