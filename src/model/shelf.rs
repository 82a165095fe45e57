//! Where the models stand by name.

use std::sync::Arc;

use indexmap::IndexMap;

use super::Model;

/// The models of this process, in the order in which they were named.
#[derive(Default)]
pub struct Shelf(IndexMap<String, Entry>);

/// A model that was asked for at the start.
#[derive(Clone)]
pub enum Entry {
    /// It is served.
    Ready(Arc<Model>),
    /// It did not open; the text says why.
    Failed(String),
}

/// Why no model is there to be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// No model has this name.
    #[error("there is no model `{0}`")]
    Unknown(String),
    /// The model is listed and did not open.
    #[error("the model `{name}` did not open: {reason}")]
    Failed {
        /// Its name.
        name: String,
        /// Why it did not open.
        reason: String,
    },
}

impl Shelf {
    /// Adds a model, or replaces the one of that name.
    pub fn put(&mut self, name: impl Into<String>, entry: Entry) {
        self.0.insert(name.into(), entry);
    }

    /// Every model with its name, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.0.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// The model of that name, or the first if none is named.
    ///
    /// # Errors
    /// [`FindError`]: there is none, or it did not open.
    pub fn find(&self, name: Option<&str>) -> Result<Arc<Model>, FindError> {
        let found = match name {
            Some(name) => self.0.get_key_value(name),
            None => self.0.first(),
        };
        match found {
            Some((_, Entry::Ready(model))) => Ok(model.clone()),
            Some((name, Entry::Failed(reason))) => {
                Err(FindError::Failed { name: name.clone(), reason: reason.clone() })
            }
            None => Err(FindError::Unknown(name.unwrap_or_default().to_owned())),
        }
    }
}
