//! The registry: one row a method, in the order of `GET /methods`.

use super::{Method, gradient, perturbation};

/// Every method.
pub static METHODS: &[&dyn Method] = &[
    perturbation::leave_one_out::METHOD,
    gradient::saliency::METHOD,
    gradient::gradient_x_input::METHOD,
    gradient::integrated_gradients::METHOD,
    gradient::discretized_integrated_gradients::METHOD,
    gradient::sequential_integrated_gradients::METHOD,
    gradient::smooth_grad::METHOD,
    gradient::gradient_shap::METHOD,
];

/// The method of this name.
pub fn find(slug: &str) -> Option<&'static dyn Method> {
    METHODS.iter().copied().find(|it| it.about().slug == slug)
}
