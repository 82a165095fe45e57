//! Where a method is defined: what it is called, what it needs, what it costs, and how it runs.

use std::{any::Any, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use utoipa::{
    ToSchema,
    openapi::{RefOr, Schema},
};

use super::{Case, ExplainError, Finding, Misfit, Subject};
use crate::model::{Need, Output};

/// What is said of a method in `GET /methods`.
#[derive(Debug, Clone, Copy)]
pub struct About {
    /// The path segment of `POST /explain/{slug}`.
    pub slug: &'static str,
    /// The family that it belongs to.
    pub family: Family,
    /// One sentence: what the score of a feature is.
    pub summary: &'static str,
    /// The paper or book.
    pub reference: &'static str,
    /// Which scalar it explains unless the request says otherwise.
    pub output: Output,
    /// Which derived graphs it runs.
    pub needs: &'static [Need],
    /// Whether it may spend less than its price: it stops when an answer is good enough.
    pub stops_early: bool,
    /// Parameters of an example request that answers within a second on the bundled model, as JSON.
    pub example: &'static str,
}

/// The families of local explanation, in the order of `GET /methods`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Change the input, watch the score.
    Perturbation,
    /// Derivatives of the score.
    Gradient,
    /// A simple model fitted around the input.
    Surrogate,
    /// The score handed back layer by layer.
    Decomposition,
    /// What attention weights say.
    Attention,
}

/// Evaluations that a method spends on one input: known before it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Price {
    /// Rows run forward, those that turn out equal counted each.
    pub forward: u64,
    /// Rows run forward and backward.
    pub gradient: u64,
}

/// A method, whatever its parameters: one row of the registry.
pub trait Method: Send + Sync {
    /// What it is.
    fn about(&self) -> &About;
    /// Its parameters' schema, named, with the schemas that it refers to behind it.
    fn schemas(&self) -> Vec<(String, RefOr<Schema>)>;
    /// Parameters from a body that has passed the schema, with defaults filled in.
    ///
    /// # Errors
    /// What the schema cannot say: values of the right shape that serde does not read.
    fn read(&self, raw: &Map<String, Value>) -> Result<Arc<dyn Plan>, Misfit>;
}

/// A method with its parameters.
pub trait Plan: Send + Sync {
    /// The parameters with every default filled in.
    fn resolved(&self) -> Value;
    /// Graphs that these parameters need, beside those that the method always needs.
    fn needs(&self) -> Vec<Need>;
    /// What one input costs, the evaluation of the input itself not counted; an upper bound for methods
    /// that stop early.
    ///
    /// # Errors
    /// Parameters that do not fit the input or the model.
    fn price(&self, subject: &Subject<'_>) -> Result<Price, ExplainError>;
    /// Explains one input: one finding for each target, in the case's order.
    ///
    /// # Errors
    /// See [`ExplainError`].
    fn run(&self, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError>;
}

/// A method with parameters of type `P`: what a method file exports.
pub struct Typed<P: 'static> {
    /// What it is.
    pub about: About,
    /// Graphs that certain parameters need; most methods answer with an empty list.
    pub needs: fn(&P) -> Vec<Need>,
    /// See [`Plan::price`]. Checks that span fields belong here.
    pub price: fn(&P, &Subject<'_>) -> Result<Price, ExplainError>,
    /// See [`Plan::run`].
    pub run: fn(&P, &Case<'_>) -> Result<Vec<Finding>, ExplainError>,
}

/// For [`Typed::needs`] of a method whose parameters need nothing more.
pub fn nothing_more<P>(_: &P) -> Vec<Need> {
    Vec::new()
}

struct Bound<P: 'static> {
    method: &'static Typed<P>,
    parameters: P,
}

impl<P> Method for &'static Typed<P>
where
    P: Serialize + DeserializeOwned + ToSchema + Send + Sync + Any,
{
    fn about(&self) -> &About {
        &self.about
    }

    fn schemas(&self) -> Vec<(String, RefOr<Schema>)> {
        let mut schemas = vec![(P::name().into_owned(), P::schema())];
        P::schemas(&mut schemas);
        schemas
    }

    fn read(&self, raw: &Map<String, Value>) -> Result<Arc<dyn Plan>, Misfit> {
        let parameters = serde_json::from_value(Value::Object(raw.clone()))
            .map_err(|error| Misfit::new("/parameters", error.to_string()))?;
        Ok(Arc::new(Bound { method: self, parameters }))
    }
}

impl<P> Plan for Bound<P>
where
    P: Serialize + Send + Sync + Any,
{
    fn resolved(&self) -> Value {
        serde_json::to_value(&self.parameters).unwrap_or(Value::Null)
    }

    fn needs(&self) -> Vec<Need> {
        let mut needs = self.method.about.needs.to_vec();
        needs.extend((self.method.needs)(&self.parameters));
        needs
    }

    fn price(&self, subject: &Subject<'_>) -> Result<Price, ExplainError> {
        (self.method.price)(&self.parameters, subject)
    }

    fn run(&self, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
        (self.method.run)(&self.parameters, case)
    }
}
