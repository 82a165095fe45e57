//! The registry: one row a method, in the order of `GET /methods`.

use super::{Method, attending, decomposition, gradient, perturbation, surrogate};

/// Every method.
pub static METHODS: &[&dyn Method] = &[
    perturbation::leave_one_out::METHOD,
    perturbation::input_reduction::METHOD,
    gradient::saliency::METHOD,
    gradient::gradient_x_input::METHOD,
    gradient::integrated_gradients::METHOD,
    gradient::discretized_integrated_gradients::METHOD,
    gradient::sequential_integrated_gradients::METHOD,
    gradient::smooth_grad::METHOD,
    gradient::gradient_shap::METHOD,
    surrogate::lime::METHOD,
    surrogate::kernel_shap::METHOD,
    surrogate::permutation_shap::METHOD,
    surrogate::exact_shap::METHOD,
    surrogate::partition_shap::METHOD,
    surrogate::trans_shap::METHOD,
    surrogate::decision_tree::METHOD,
    surrogate::anchors::METHOD,
    decomposition::lrp::METHOD,
    decomposition::deep_taylor::METHOD,
    attending::attention::METHOD,
    attending::attention_rollout::METHOD,
    attending::attention_relevance::METHOD,
];

/// The method of this name.
pub fn find(slug: &str) -> Option<&'static dyn Method> {
    METHODS.iter().copied().find(|it| it.about().slug == slug)
}
