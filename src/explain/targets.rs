//! Where the labels are chosen whose scores are explained, before and after the prediction is known.

use super::{ExplainError, Misfit, OneTarget, TargetSpec};
use crate::model::{ALL, Labels, PREDICTED};

/// Whose scores are explained, each label once.
#[derive(Debug, PartialEq)]
pub(super) enum Targets {
    All,
    These(Vec<One>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum One {
    Index(usize),
    Predicted,
}

impl Targets {
    /// What the request says, as far as the labels tell.
    ///
    /// # Errors
    /// Every label that the model does not have.
    pub fn read(spec: &TargetSpec, labels: &Labels) -> Result<Self, ExplainError> {
        let given = match spec {
            TargetSpec::One(OneTarget::Name(name)) if name == ALL => return Ok(Self::All),
            TargetSpec::One(target) => vec![one(target, labels, "/target".to_owned())],
            TargetSpec::Many(targets) if targets.is_empty() => {
                return Err(Misfit::new("/target", "holds no label").into());
            }
            TargetSpec::Many(targets) => {
                let at = |(index, it)| one(it, labels, format!("/target/{index}"));
                targets.iter().enumerate().map(at).collect()
            }
        };
        let (mut these, mut misfits) = (Vec::new(), Vec::new());
        for target in given {
            match target {
                Ok(it) if these.contains(&it) => {}
                Ok(it) => these.push(it),
                Err(misfit) => misfits.push(misfit),
            }
        }
        if misfits.is_empty() { Ok(Self::These(these)) } else { Err(ExplainError::Misfits(misfits)) }
    }

    /// How many labels there are to explain, at the most: the predicted one may be among the others.
    pub fn count(&self, labels: &Labels) -> usize {
        match self {
            Self::All => labels.len(),
            Self::These(targets) => targets.len().min(labels.len()),
        }
    }

    /// The labels' indices in the order of the request.
    ///
    /// # Errors
    /// Logits that are not finite predict nothing.
    pub fn resolve(&self, labels: &Labels, logits: &[f32]) -> Result<Vec<usize>, ExplainError> {
        let Self::These(targets) = self else { return Ok((0..labels.len()).collect()) };
        let mut indices = Vec::with_capacity(targets.len());
        for target in targets {
            let index = match target {
                One::Index(index) => *index,
                One::Predicted => labels.predicted(logits)?,
            };
            if !indices.contains(&index) {
                indices.push(index);
            }
        }
        Ok(indices)
    }
}

fn one(target: &OneTarget, labels: &Labels, pointer: String) -> Result<One, Misfit> {
    let found = match target {
        OneTarget::Index(index) => labels.check(*index),
        OneTarget::Name(name) if name == PREDICTED => return Ok(One::Predicted),
        OneTarget::Name(name) if name == ALL => {
            return Err(Misfit::new(pointer, "`all` stands alone, not in a list"));
        }
        OneTarget::Name(name) => labels.find(name),
    };
    found.map(One::Index).map_err(|error| Misfit::new(pointer, error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::Activation;

    fn labels(names: [&str; 2]) -> Labels {
        Labels::named(names.map(str::to_owned).to_vec(), Activation::Softmax, 1.0)
    }

    fn read(spec: Value, labels: &Labels) -> Result<Targets, ExplainError> {
        Targets::read(&serde_json::from_value(spec).unwrap(), labels)
    }

    fn resolved(spec: Value, labels: &Labels) -> Vec<usize> {
        read(spec, labels).unwrap().resolve(labels, &[0.0, 1.0]).unwrap()
    }

    #[test]
    fn a_label_that_is_named_twice_is_explained_once_where_it_came_first() {
        let labels = labels(["no", "yes"]);
        assert_eq!(resolved(json!(["yes", 1, "yes"]), &labels), [1]);
        assert_eq!(resolved(json!(["predicted", 0, "yes", "predicted"]), &labels), [1, 0]);
        assert_eq!(read(json!(["predicted", 0, "yes"]), &labels).unwrap().count(&labels), 2);
    }

    #[test]
    fn keywords_win_over_labels_of_the_same_name() {
        let labels = labels(["predicted", "all"]);
        assert_eq!(resolved(json!("predicted"), &labels), [1]);
        assert_eq!(resolved(json!("all"), &labels), [0, 1]);
        assert_eq!(resolved(json!([0]), &labels), [0]);
        assert!(read(json!(["all"]), &labels).is_err());
    }

    #[test]
    fn every_label_that_is_not_there_is_pointed_at() {
        let Err(ExplainError::Misfits(found)) = read(json!(["yes", 7, "nope"]), &labels(["no", "yes"]))
        else {
            panic!("not refused");
        };
        let pointers: Vec<&str> = found.iter().map(|it| it.pointer.as_str()).collect();
        assert_eq!(pointers, ["/target/1", "/target/2"]);
    }
}
