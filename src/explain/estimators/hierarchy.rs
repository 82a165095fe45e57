//! This file is where a text's pieces become a hierarchy: subwords, words, clauses, sentences, texts.

use std::ops::Range;

use super::game::Coalition;

/// A binary tree over players. Node k < players is player k; node players + m joins the two nodes of merge m;
/// the last node is the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    players: usize,
    merges: Vec<[usize; 2]>,
}

impl Hierarchy {
    /// The tree of these merges; none unless every node but the last is joined exactly once, after it exists.
    pub fn new(players: usize, merges: Vec<[usize; 2]>) -> Option<Self> {
        let mut joined = vec![false; players + merges.len()];
        for (place, merge) in merges.iter().enumerate() {
            for &node in merge {
                if node >= players + place || std::mem::replace(&mut joined[node], true) {
                    return None;
                }
            }
        }
        (players > 0 && merges.len() + 1 == players).then_some(Self { players, merges })
    }

    /// How many leaves.
    pub fn players(&self) -> usize {
        self.players
    }

    /// The pairs joined, in order.
    pub fn merges(&self) -> &[[usize; 2]] {
        &self.merges
    }

    /// The node of everybody.
    pub fn root(&self) -> usize {
        self.players + self.merges.len() - 1
    }

    /// The two parts of a node; none for a player.
    pub fn parts(&self, node: usize) -> Option<[usize; 2]> {
        node.checked_sub(self.players).map(|merge| self.merges[merge])
    }

    /// The players below each node.
    pub fn members(&self) -> Vec<Coalition> {
        let mut members: Vec<_> =
            (0..self.players).map(|player| Coalition::of(self.players, [player])).collect();
        for &[left, right] in &self.merges {
            members.push(members[left].union(&members[right]));
        }
        members
    }
}

/// A player as the builder sees it.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Its text.
    pub text: &'a str,
    /// What begins with it.
    pub begins: Begins,
    /// Which text of a pair it belongs to.
    pub segment: u8,
}

/// What begins between a piece and the one before it, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Begins {
    /// Nothing: the word before goes on.
    Part,
    /// A word of the same sentence.
    Word,
    /// A sentence.
    Sentence,
}

/// Joins neighbouring pieces greedily, the closest pair first: parts of a word, then the words and clauses of a
/// sentence, then sentences, then the two texts of a pair. None for no pieces. A node holds whole words or parts of one,
/// and whole sentences or parts of one.
///
/// Within a sentence the score of a pair is that of shap's text masker, with the signs of other scripts beside the
/// Latin ones.
pub fn text_hierarchy(pieces: &[Piece<'_>]) -> Option<Hierarchy> {
    let count = pieces.len();
    let mut balanced: Vec<bool> = pieces.iter().map(|piece| bracket(piece.text).is_none()).collect();
    // Groups side by side: node and the pieces that it covers.
    let mut groups: Vec<(usize, Range<usize>)> = (0..count).map(|place| (place, place..place + 1)).collect();
    let between = |balanced: &[bool], pair: &[(usize, Range<usize>)]| {
        closeness(pieces, balanced, &pair[0].1, &pair[1].1)
    };
    let mut scores: Vec<i64> = groups.windows(2).map(|pair| between(&balanced, pair)).collect();
    let mut merges = Vec::with_capacity(count.saturating_sub(1));
    while groups.len() > 1 {
        let best = (0..scores.len()).rev().max_by_key(|&place| scores[place]).unwrap_or(0);
        let (right, behind) = groups.remove(best + 1);
        let (left, before) = groups[best].clone();
        merges.push([left, right]);
        let joined = before.start..behind.end;
        if let (Some(Bracket::Opens(close)), last) =
            (bracket(pieces[joined.start].text), pieces[joined.end - 1].text)
            && last.starts_with(close)
        {
            balanced[joined.start] = true;
            balanced[joined.end - 1] = true;
        }
        groups[best] = (count + merges.len() - 1, joined);
        scores.remove(best);
        for place in [best.checked_sub(1), Some(best)].into_iter().flatten() {
            if let Some(pair) = groups.get(place..place + 2) {
                scores[place] = between(&balanced, pair);
            }
        }
    }
    Hierarchy::new(count, merges)
}

/// How close two neighbouring groups are; the closest are joined first.
fn closeness(pieces: &[Piece<'_>], balanced: &[bool], before: &Range<usize>, behind: &Range<usize>) -> i64 {
    let (first, last) = (&pieces[before.start], &pieces[before.end - 1]);
    let (next, end) = (&pieces[behind.start], &pieces[behind.end - 1]);
    let mut score = -(before.len() as i64 + behind.len() as i64);
    // More than all that follows, however long the groups.
    const APART: i64 = 1 << 32;
    score -= match next.begins {
        _ if last.segment != next.segment => 3 * APART,
        Begins::Sentence => 2 * APART,
        Begins::Word => APART,
        Begins::Part => 0,
    };
    let suffix = |text: &str| matches!(text, "t" | "s");
    if apostrophe(next.text) && (behind.len() == 1 || behind.len() == 2 && suffix(end.text)) {
        score += 15;
    }
    if apostrophe(last.text) && suffix(next.text) {
        score += 15;
    }
    if matches!(bracket(next.text), Some(Bracket::Opens(_))) && !balanced[behind.start] {
        score -= 100;
    }
    if matches!(bracket(last.text), Some(Bracket::Closes)) && !balanced[before.end - 1] {
        score -= 100;
    }
    if matches!(bracket(first.text), Some(Bracket::Opens(_))) {
        score -= 2;
    }
    if connects(last.text) || connects(next.text) {
        score -= 2;
    }
    for (ends, cost) in [(ends_clause as fn(&str) -> bool, 10), (ends_sentence, 20)] {
        if ends(last.text) {
            score -= cost;
        }
        // A sign joins what it ends before it is reached across.
        if ends(next.text) && next.text.chars().count() == 1 {
            score -= if behind.len() > 1 { cost } else { 1 };
        }
    }
    score
}

enum Bracket {
    /// Opens, and this closes it.
    Opens(char),
    Closes,
}

fn bracket(text: &str) -> Option<Bracket> {
    const PAIRS: [(char, char); 9] = [
        ('(', ')'),
        ('[', ']'),
        ('{', '}'),
        ('（', '）'),
        ('「', '」'),
        ('『', '』'),
        ('《', '》'),
        ('“', '”'),
        ('«', '»'),
    ];
    let mut signs = text.chars();
    let sign = signs.next().filter(|_| signs.next().is_none())?;
    PAIRS.iter().find_map(|&(open, close)| match sign {
        _ if sign == open => Some(Bracket::Opens(close)),
        _ if sign == close => Some(Bracket::Closes),
        _ => None,
    })
}

fn apostrophe(text: &str) -> bool {
    matches!(text, "'" | "’")
}

fn connects(text: &str) -> bool {
    ["but", "and", "or"].iter().any(|word| text.eq_ignore_ascii_case(word))
}

fn ends_clause(text: &str) -> bool {
    text.ends_with([',', ';', ':', '،', '؛', '，', '、', '；', '：'])
}

fn ends_sentence(text: &str) -> bool {
    text.ends_with(['.', '?', '!', '…', '؟', '।', '。', '？', '！'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'a>(texts: &[&'a str]) -> Vec<Piece<'a>> {
        texts.iter().map(|text| Piece { text, begins: Begins::Word, segment: 0 }).collect()
    }

    #[test]
    fn the_tree_is_that_of_shap() {
        // shap 0.51.0, regex masker \W+, "not a good movie , but not bad either".
        let tree =
            text_hierarchy(&words(&["not", "a", "good", "movie ,", "but", "not", "bad", "either"])).unwrap();
        assert_eq!(tree.merges(), [[0, 1], [2, 3], [5, 6], [10, 7], [8, 9], [4, 11], [12, 13]]);
    }

    #[test]
    fn sentences_are_joined_last_and_word_parts_first() {
        let mut pieces = words(&["one", "two", ".", "thr", "ee", "!"]);
        (pieces[3].begins, pieces[4].begins) = (Begins::Sentence, Begins::Part);
        let tree = text_hierarchy(&pieces).unwrap();
        assert_eq!(tree.merges()[0], [3, 4]);
        let members = tree.members();
        let [first, second] = tree.parts(tree.root()).unwrap();
        assert_eq!(members[first].members().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(members[second].members().collect::<Vec<_>>(), [3, 4, 5]);
    }

    #[test]
    fn no_node_cuts_a_word_or_a_sentence() {
        let texts = [
            "It", "cost", "3", ".", "14", ",", "e", ".", "g", ".", "a", "lot", ".", "Go", "!", "See", "it",
            ".",
        ];
        let mut pieces = words(&texts);
        [3, 4, 7, 8].into_iter().for_each(|at| pieces[at].begins = Begins::Part);
        [13, 15].into_iter().for_each(|at| pieces[at].begins = Begins::Sentence);
        let starts = |unit: Begins| -> Vec<usize> {
            let begins = (1..texts.len()).filter(|&at| pieces[at].begins >= unit);
            [0].into_iter().chain(begins).chain([texts.len()]).collect()
        };
        let nodes: Vec<Vec<usize>> =
            text_hierarchy(&pieces).unwrap().members().iter().map(|it| it.members().collect()).collect();
        for unit in [Begins::Word, Begins::Sentence] {
            for bounds in starts(unit).windows(2) {
                let unit: Vec<usize> = (bounds[0]..bounds[1]).collect();
                assert!(nodes.contains(&unit), "{unit:?}");
                for node in &nodes {
                    let inside = node.iter().filter(|it| unit.contains(it)).count();
                    assert!(
                        inside == 0 || inside == unit.len() || inside == node.len(),
                        "{node:?} cuts {unit:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_texts_of_a_pair_meet_at_the_root() {
        let mut pieces = words(&["a", "b", ".", "c", ".", "d"]);
        pieces[4..].iter_mut().for_each(|piece| piece.segment = 1);
        let tree = text_hierarchy(&pieces).unwrap();
        let [first, second] = tree.parts(tree.root()).unwrap();
        assert_eq!((tree.members()[first].len(), tree.members()[second].len()), (4, 2));
    }

    #[test]
    fn merges_that_are_no_tree_are_refused() {
        assert!(Hierarchy::new(3, vec![[0, 1], [0, 2]]).is_none());
        assert!(Hierarchy::new(3, vec![[0, 1]]).is_none());
        assert!(Hierarchy::new(2, vec![[0, 2]]).is_none());
        assert!(Hierarchy::new(1, vec![]).is_some());
    }
}
