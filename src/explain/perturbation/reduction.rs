//! Where a text is reduced: a beam search that takes out one feature after the other while the prediction stays.

use std::{collections::HashSet, sync::Arc};

use crate::{
    explain::{Case, ExplainError, Masker},
    model::{Activation, GradientGraph, Labels},
    runtime::{Extra, Row, RowOut},
};

/// What tells how important a feature of a text is.
pub(super) enum Guide<'a> {
    /// The magnitude of gradient times embedding, one gradient row for each text.
    Gradient(&'a GradientGraph),
    /// The confidence that is lost without it, one row for each feature of each text.
    LeaveOneOut,
}

/// A search, ready to run.
pub(super) struct Search<'a> {
    pub case: &'a Case<'a>,
    pub masker: Masker,
    pub guide: Guide<'a>,
    /// Texts kept at each length.
    pub beam: usize,
    /// Features that are never taken out.
    pub locked: Vec<bool>,
}

/// A text on the way.
#[derive(Clone)]
pub(super) struct Reduced {
    /// Whether each feature is still there.
    pub kept: Vec<bool>,
    /// What was taken out, in this order, and the model's answer after it.
    pub removed: Vec<(usize, Arc<[f32]>)>,
    /// The model's answer.
    pub logits: Arc<[f32]>,
    /// How important each feature is; only those that are there have a meaning.
    importance: Vec<f64>,
}

/// What a search found and what it took.
pub(super) struct Found {
    /// The shortest texts, the most confident first.
    pub texts: Vec<Reduced>,
    /// The model's answer to the input, as the guide's graph computed it.
    pub logits: Arc<[f32]>,
    /// Features taken out one after the other.
    pub steps: usize,
    /// Rows that were asked for.
    pub rows: usize,
    /// How often rows were asked for.
    pub batches: usize,
}

impl Reduced {
    fn whole(features: usize, logits: Arc<[f32]>) -> Self {
        Self { kept: vec![true; features], removed: Vec::new(), logits, importance: Vec::new() }
    }

    /// The text without one more feature, not yet asked about.
    fn without(&self, feature: usize) -> Self {
        let mut next = self.clone();
        next.kept[feature] = false;
        next.removed.push((feature, Arc::from([])));
        next
    }

    fn answered(mut self, logits: Arc<[f32]>, importance: Vec<f64>) -> Self {
        if let Some((_, after)) = self.removed.last_mut() {
            *after = logits.clone();
        }
        Self { logits, importance, ..self }
    }
}

impl Search<'_> {
    /// Runs until nothing more can be taken out.
    ///
    /// # Errors
    /// Deadline, cancellation, a failed run, logits that are not finite.
    pub fn run(&self) -> Result<Found, ExplainError> {
        let mut found = Found { texts: Vec::new(), logits: Arc::from([]), steps: 0, rows: 0, batches: 0 };
        let whole = Reduced::whole(self.masker.len(), self.case.logits.clone().into());
        found.texts = match &self.guide {
            Guide::Gradient(graph) => self.judged(graph, vec![whole], &mut found)?,
            Guide::LeaveOneOut => vec![whole],
        };
        found.logits = found.texts[0].logits.clone();
        let decision = self.decision()?;
        loop {
            let next = match &self.guide {
                Guide::Gradient(graph) => self.by_gradient(graph, decision, &mut found)?,
                Guide::LeaveOneOut => self.by_leaving_out(decision, &mut found)?,
            };
            if next.is_empty() {
                break;
            }
            found.texts = next;
            found.steps += 1;
        }
        let mut ranked = Vec::with_capacity(found.texts.len());
        for text in std::mem::take(&mut found.texts) {
            ranked.push((self.confidence(&text.logits)?, text));
        }
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        found.texts = ranked.into_iter().map(|it| it.1).collect();
        Ok(found)
    }

    /// How sure the model is of the input's prediction.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub fn confidence(&self, logits: &[f32]) -> Result<f64, ExplainError> {
        self.decision()?.confidence(&self.case.subject.model.labels, logits)
    }

    fn decision(&self) -> Result<Decision, ExplainError> {
        Decision::of(&self.case.subject.model.labels, &self.case.logits)
    }

    /// The least important features go first, as many candidates at once as there is room for, until the beam is full.
    fn by_gradient(
        &self,
        graph: &GradientGraph,
        decided: Decision,
        found: &mut Found,
    ) -> Result<Vec<Reduced>, ExplainError> {
        let mut candidates = Vec::new();
        for (from, text) in found.texts.iter().enumerate() {
            let mut own = self.removable(text);
            own.sort_by(|a, b| text.importance[*a].total_cmp(&text.importance[*b]));
            own.truncate(self.beam);
            candidates.extend(own.into_iter().map(|feature| (text.importance[feature], from, feature)));
        }
        candidates.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let mut seen = HashSet::new();
        let mut waiting = candidates
            .into_iter()
            .map(|(_, from, feature)| found.texts[from].without(feature))
            .filter(|it| seen.insert(it.kept.clone()))
            .collect::<Vec<_>>()
            .into_iter();
        let mut next = Vec::new();
        while next.len() < self.beam {
            let batch: Vec<_> = waiting.by_ref().take(self.beam).collect();
            if batch.is_empty() {
                break;
            }
            for text in self.judged(graph, batch, found)? {
                if decided.holds(&self.case.subject.model.labels, &text.logits)? {
                    next.push(text);
                }
            }
        }
        next.truncate(self.beam);
        Ok(next)
    }

    /// Every feature of every text is left out, all in one batch; what costs the least confidence goes first.
    fn by_leaving_out(&self, decided: Decision, found: &mut Found) -> Result<Vec<Reduced>, ExplainError> {
        let mut seen = HashSet::new();
        let mut candidates = Vec::new();
        for text in &found.texts {
            let before = self.confidence(&text.logits)?;
            let own = self.removable(text).into_iter().map(|feature| (before, text.without(feature)));
            candidates.extend(own.filter(|it| seen.insert(it.1.kept.clone())));
        }
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<Row> = candidates.iter().map(|it| self.row(&it.1.kept)).collect();
        found.rows += rows.len();
        found.batches += 1;
        let mut surviving = Vec::new();
        for ((before, text), logits) in candidates.into_iter().zip(self.case.forward(rows)?) {
            if decided.holds(&self.case.subject.model.labels, &logits)? {
                let lost = before - self.confidence(&logits)?;
                surviving.push((lost, text.answered(logits, Vec::new())));
            }
        }
        // Stable: of equals, the earlier in the beam and in the text.
        surviving.sort_by(|a, b| a.0.total_cmp(&b.0));
        surviving.truncate(self.beam);
        Ok(surviving.into_iter().map(|it| it.1).collect())
    }

    /// Features that may go next: at least one of each text stays.
    fn removable(&self, text: &Reduced) -> Vec<usize> {
        let features = self.case.subject.features;
        let mut left = [0usize; 2];
        for (feature, _) in features.iter().zip(&text.kept).filter(|it| *it.1) {
            left[usize::from(feature.segment.min(1))] += 1;
        }
        let may_go = |at: &usize| {
            let alone = left[usize::from(features[*at].segment.min(1))] == 1;
            text.kept[*at] && !self.locked[*at] && !alone
        };
        (0..features.len()).filter(may_go).collect()
    }

    /// The row of the text with these features.
    pub fn row(&self, kept: &[bool]) -> Row {
        self.masker.rows(|it| !kept[it], 0).swap_remove(0)
    }

    /// The texts with the answers to them and the importance of each of their features, from one batch of gradient
    /// rows.
    fn judged(
        &self,
        graph: &GradientGraph,
        texts: Vec<Reduced>,
        found: &mut Found,
    ) -> Result<Vec<Reduced>, ExplainError> {
        let labels = &self.case.subject.model.labels;
        let slope: Arc<[f32]> = self.decision()?.margin(labels.len()).into();
        let row = |text: &Reduced| {
            let row = self.row(&text.kept);
            let (words, ids) = (graph.words.clone(), row.ids.clone());
            let embeddings = Extra::Fill(Arc::new(move |into: &mut [f32]| {
                for (into, &id) in into.chunks_mut(words.hidden).zip(&*ids) {
                    into.copy_from_slice(words.row(id));
                }
            }));
            Row { extras: vec![embeddings, Extra::Values(slope.clone())], ..row }
        };
        let rows: Vec<Row> = texts.iter().map(row).collect();
        found.rows += rows.len();
        found.batches += 1;
        let ids: Vec<Arc<[u32]>> = rows.iter().map(|it| it.ids.clone()).collect();
        let outs = self.case.run(&graph.gradient, rows)?;
        let judged = |((text, ids), out): ((Reduced, Arc<[u32]>), RowOut)| {
            let mut values = out.values.into_iter();
            let logits = values.next().unwrap_or_default();
            let slopes = values.next().unwrap_or_default();
            let products = slopes.chunks(graph.words.hidden).zip(&*ids).map(|(slope, &id)| {
                slope.iter().zip(graph.words.row(id)).map(|(g, e)| f64::from(*g) * f64::from(*e)).sum()
            });
            let importance = self.by_feature(&text.kept, products);
            text.answered(logits.into(), importance)
        };
        Ok(texts.into_iter().zip(ids).zip(outs).map(judged).collect())
    }

    /// Sums over the tokens of each feature that is there, as magnitudes.
    fn by_feature(&self, kept: &[bool], products: impl Iterator<Item = f64>) -> Vec<f64> {
        let features = self.case.subject.features;
        let mut owner = vec![None; self.case.subject.encoded.tokens.len()];
        for (at, feature) in features.iter().enumerate() {
            feature.tokens.iter().for_each(|&token| owner[token] = Some(at));
        }
        let mut sums = vec![0.0; features.len()];
        let there = owner.into_iter().filter(|it| it.is_none_or(|at| kept[at]));
        for (owner, product) in there.zip(products) {
            if let Some(at) = owner {
                sums[at] += product;
            }
        }
        sums.into_iter().map(f64::abs).collect()
    }
}

/// What the model decides of a text: which label it predicts or, where labels are true or not one by one, whether that
/// one is.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Decision {
    label: usize,
    /// `None` where labels stand against one another.
    is: Option<bool>,
}

impl Decision {
    fn of(labels: &Labels, logits: &[f32]) -> Result<Self, ExplainError> {
        let label = labels.predicted(logits)?;
        let one_by_one = labels.len() == 1 || labels.activation() == Activation::Sigmoid;
        Ok(Self { label, is: one_by_one.then_some(logits[label] > 0.0) })
    }

    /// Whether the model still decides so.
    fn holds(self, labels: &Labels, logits: &[f32]) -> Result<bool, ExplainError> {
        let predicted = labels.predicted(logits)?;
        Ok(match self.is {
            Some(is) => (logits[self.label] > 0.0) == is,
            None => predicted == self.label,
        })
    }

    /// The calibrated probability of the decision.
    fn confidence(self, labels: &Labels, logits: &[f32]) -> Result<f64, ExplainError> {
        let score = labels.scores(logits)?[self.label];
        let is_not = self.is == Some(false) && labels.activation() != Activation::Identity;
        Ok(if is_not { 1.0 - score } else { score })
    }

    /// The slope of the decision's logit, against the mean of the others' where labels stand against one another: with
    /// two labels, that of its log-odds.
    fn margin(self, labels: usize) -> Vec<f32> {
        let (own, others) = match self.is {
            Some(true) => (1.0, 0.0),
            Some(false) => (-1.0, 0.0),
            None => (1.0, -1.0 / (labels - 1) as f32),
        };
        (0..labels).map(|label| if label == self.label { own } else { others }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_margin_weighs_a_label_against_the_mean_of_the_others() {
        let margin = |label, is, labels| Decision { label, is }.margin(labels);
        assert_eq!(margin(1, None, 2), [-1.0, 1.0]);
        assert_eq!(margin(0, None, 3), [1.0, -0.5, -0.5]);
        assert_eq!(margin(0, Some(false), 1), [-1.0]);
        assert_eq!(margin(1, Some(true), 3), [0.0, 1.0, 0.0]);
    }

    #[test]
    fn labels_that_are_true_one_by_one_are_decided_at_one_half() {
        for width in [1, 3] {
            let labels = Labels::numbered(width, Activation::Sigmoid, 2.0);
            let of = |logit: f32| (0..width).map(|it| logit - it as f32).collect::<Vec<f32>>();
            let yes = Decision::of(&labels, &of(0.1)).unwrap();
            assert_eq!(yes, Decision { label: 0, is: Some(true) });
            assert!(yes.holds(&labels, &of(0.2)).unwrap());
            assert!(!yes.holds(&labels, &of(-0.2)).unwrap(), "still the largest, and no longer true");
            let no = Decision::of(&labels, &of(-0.1)).unwrap();
            let unsure = no.confidence(&labels, &of(-2.0)).unwrap();
            assert!((unsure - 1.0 / (1.0 + (-1.0f64).exp())).abs() < 1e-12);
        }
        let labels = Labels::numbered(3, Activation::Softmax, 1.0);
        let first = Decision::of(&labels, &[-0.1, -0.2, -0.3]).unwrap();
        assert!(first.holds(&labels, &[-5.0, -6.0, -7.0]).unwrap());
        assert!(!first.holds(&labels, &[1.0, 2.0, 0.0]).unwrap());
    }
}
