//! The registry: one row a method, in the order of `GET /methods`.

use super::{Method, perturbation};

/// Every method.
pub static METHODS: &[&dyn Method] = &[perturbation::leave_one_out::METHOD];

/// The method of this name.
pub fn find(slug: &str) -> Option<&'static dyn Method> {
    METHODS.iter().copied().find(|it| it.about().slug == slug)
}
