//! This file is where LRP composites are: for each role that an operator plays, how its gradient is bent.
//!
//! A composite is a table without a wildcard arm: a new role must be decided in every one of them. `None` is a
//! decision, too: the composite has no rule for the role, and a graph that plays it is refused. Papers give rules
//! for what was known when they were written; [`Composite::covers`] says for which roles a table borrows from
//! AttnLRP, and answers name these substitutions.

/// A choice of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Composite {
    /// Rule 0 for linear layers.
    Lrp0,
    /// Rule ε for linear layers.
    Epsilon,
    /// Rule γ, generalised to operands and results of either sign, for linear layers.
    Gamma,
    /// Rule αβ with α = 2 and β = 1 for linear layers.
    AlphaBeta,
    /// Rule z⁺, that is αβ with α = 1 and β = 0, for linear layers.
    ZPlus,
    /// Attention probabilities and normalization statistics constant.
    CpLrp,
    /// Attention-aware LRP.
    AttnLrp,
    /// Deep Taylor decomposition with the w² rule at the embeddings.
    DeepTaylor,
    /// Deep Taylor decomposition with the z^B rule at the embeddings.
    DeepTaylorBox,
}

/// What a node is on its path; derived from the operator's kind and from which of its operands are active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// A product with weights of the embeddings themselves.
    Entry,
    /// A product of an active operand with weights.
    Layer,
    /// A product of several active operands.
    Interaction,
    /// Elements times constants.
    Scaling,
    /// An active operand by a divisor.
    Quotient,
    /// A product of elements of one operand.
    Accumulation,
    /// A sum of several active operands.
    Addition,
    /// A sum of parts of an operand, or of an operand and constants.
    Sum,
    /// A function of each element that is positively homogeneous.
    Rectifier,
    /// Any other function of each element.
    Activation,
    /// Softmax or its logarithm.
    Softmax,
    /// Centring or scaling by statistics of the operand itself.
    Normalization,
    /// One of several elements is taken.
    Maximum,
    /// Elements are moved.
    Routing,
}

/// What stands in for an operator's gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bend {
    /// The gradient itself.
    Gradient,
    /// Of several active operands each gets an equal share of its gradient.
    Share,
    /// The result over the operand stands in for the slope: relevance passes unchanged.
    Secant,
    /// The gradient with statistics, or the divisor, held constant.
    Hold,
    /// The result counts as a constant: no relevance enters.
    Constant,
    /// A rule for products with weights.
    Linear(Linear),
}

/// A rule for `z_j = Σᵢ xᵢ·w_ij + b_j`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Linear {
    /// `R_i = Σ_j xᵢw_ij/(z_j + ε·sign z_j)·R_j`
    Epsilon(f64),
    /// Contributions of the sign of `z_j` count `1 + γ` times.
    Gamma(f64),
    /// `R_i = Σ_j (α·(xᵢw_ij)⁺/z_j⁺ − β·(xᵢw_ij)⁻/z_j⁻)·R_j`
    AlphaBeta {
        /// Weight of positive contributions.
        alpha: f64,
        /// Weight of negative ones; `α − β = 1`.
        beta: f64,
        /// Is the bias one of the contributions? Otherwise it gets nothing.
        bias: bool,
    },
    /// `R_i = Σ_j w_ij²/Σᵢ w_ij²·R_j`
    Squares,
    /// `R_i = Σ_j (xᵢw_ij − l·w_ij⁺ − h·w_ij⁻)/Σᵢ(…)·R_j` for operands between `l` and `h`
    Box,
}

/// zennit's and lxt's.
const EPSILON: f64 = 1e-6;
/// Montavon et al. 2019, section 10.2.3.
const GAMMA: f64 = 0.25;
const ALPHA_2_BETA_1: Linear = Linear::AlphaBeta { alpha: 2.0, beta: 1.0, bias: true };
const Z_PLUS: Linear = Linear::AlphaBeta { alpha: 1.0, beta: 0.0, bias: true };
/// Deep Taylor's z⁺ knows no bias (Montavon et al. 2017, equation 16).
const Z_PLUS_OF_WEIGHTS: Linear = Linear::AlphaBeta { alpha: 1.0, beta: 0.0, bias: false };

impl Composite {
    /// Every composite.
    pub const ALL: [Self; 9] = [
        Self::Lrp0,
        Self::Epsilon,
        Self::Gamma,
        Self::AlphaBeta,
        Self::ZPlus,
        Self::CpLrp,
        Self::AttnLrp,
        Self::DeepTaylor,
        Self::DeepTaylorBox,
    ];

    /// Its name in files and on the command line.
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Lrp0 => "lrp-0",
            Self::Epsilon => "epsilon",
            Self::Gamma => "gamma",
            Self::AlphaBeta => "alpha-beta",
            Self::ZPlus => "z-plus",
            Self::CpLrp => "cp-lrp",
            Self::AttnLrp => "attn-lrp",
            Self::DeepTaylor => "deep-taylor",
            Self::DeepTaylorBox => "deep-taylor-box",
        }
    }

    /// What to do at a role; `None` when the composite has no rule for it.
    pub fn bend(self, role: Role) -> Option<Bend> {
        match self {
            Self::AttnLrp => attn_lrp(role),
            Self::CpLrp => cp_lrp(role),
            Self::Lrp0 => layered(Bend::Gradient, role),
            Self::Epsilon => layered(Bend::Linear(Linear::Epsilon(EPSILON)), role),
            Self::Gamma => layered(Bend::Linear(Linear::Gamma(GAMMA)), role),
            Self::AlphaBeta => layered(Bend::Linear(ALPHA_2_BETA_1), role),
            Self::ZPlus => layered(Bend::Linear(Z_PLUS), role),
            Self::DeepTaylor => deep_taylor(Linear::Squares, role),
            Self::DeepTaylorBox => deep_taylor(Linear::Box, role),
        }
    }

    /// Does the composite's own paper have the rule? Otherwise the table borrows it from AttnLRP.
    pub fn covers(self, role: Role) -> bool {
        match self {
            Self::AttnLrp | Self::CpLrp => true,
            Self::Lrp0 | Self::Epsilon | Self::Gamma | Self::AlphaBeta | Self::ZPlus => {
                !matches!(role, Role::Interaction | Role::Softmax | Role::Normalization)
            }
            Self::DeepTaylor | Self::DeepTaylorBox => !matches!(
                role,
                Role::Interaction
                    | Role::Softmax
                    | Role::Normalization
                    | Role::Activation
                    | Role::Addition
                    | Role::Quotient
            ),
        }
    }

    /// Does the paper ask for an [`Role::Entry`], whose absence is a substitution as well?
    pub fn wants_entry(self) -> bool {
        matches!(self, Self::DeepTaylor | Self::DeepTaylorBox)
    }
}

/// AttnLRP (Achtibat et al. 2024, arXiv:2402.05602): products of activations are halved (equation 15), softmax is
/// its first-order Taylor expansion (equation 13), which as a bent gradient is the gradient; activations pass
/// relevance on (equation 9), normalization statistics are constant (equation 17). Linear layers take rule 0, the
/// limit of the paper's rule ε, as the authors' own efficient implementation does.
fn attn_lrp(role: Role) -> Option<Bend> {
    Some(match role {
        Role::Entry | Role::Layer => Bend::Gradient,
        Role::Interaction => Bend::Share,
        Role::Scaling | Role::Addition | Role::Sum | Role::Routing | Role::Maximum => Bend::Gradient,
        Role::Quotient => Bend::Hold,
        Role::Rectifier => Bend::Gradient,
        Role::Activation => Bend::Secant,
        Role::Softmax => Bend::Gradient,
        Role::Normalization => Bend::Hold,
        Role::Accumulation => return None,
    })
}

/// CP-LRP (Ali et al. 2022, arXiv:2202.07304): attention probabilities are constants (rule AH), and so are
/// normalization statistics (rule LN); the rest as rule 0.
fn cp_lrp(role: Role) -> Option<Bend> {
    Some(match role {
        Role::Entry | Role::Layer => Bend::Gradient,
        Role::Interaction => Bend::Share,
        Role::Scaling | Role::Addition | Role::Sum | Role::Routing | Role::Maximum => Bend::Gradient,
        Role::Quotient => Bend::Hold,
        Role::Rectifier => Bend::Gradient,
        Role::Activation => Bend::Secant,
        Role::Softmax => Bend::Constant,
        Role::Normalization => Bend::Hold,
        Role::Accumulation => return None,
    })
}

/// The rules for linear layers (Bach et al. 2015, doi:10.1371/journal.pone.0130140, equations 56, 58 and 60;
/// Montavon et al. 2019, doi:10.1007/978-3-030-28954-6_10, for 0, ε and γ): activations pass relevance on, maxima
/// give it to the winner. What these papers do not know is AttnLRP's.
fn layered(linear: Bend, role: Role) -> Option<Bend> {
    Some(match role {
        Role::Entry | Role::Layer => linear,
        Role::Interaction => Bend::Share,
        Role::Scaling | Role::Addition | Role::Sum | Role::Routing | Role::Maximum => Bend::Gradient,
        Role::Quotient => Bend::Hold,
        Role::Rectifier => Bend::Gradient,
        Role::Activation => Bend::Secant,
        Role::Softmax => Bend::Gradient,
        Role::Normalization => Bend::Hold,
        Role::Accumulation => return None,
    })
}

/// Deep Taylor decomposition (Montavon et al. 2017, doi:10.1016/j.patcog.2016.11.008): z⁺ for hidden layers, w² or
/// z^B where the embeddings enter. It was made for rectifier networks; the rest is AttnLRP's.
fn deep_taylor(entry: Linear, role: Role) -> Option<Bend> {
    Some(match role {
        Role::Entry => Bend::Linear(entry),
        Role::Layer => Bend::Linear(Z_PLUS_OF_WEIGHTS),
        Role::Interaction => Bend::Share,
        Role::Scaling | Role::Addition | Role::Sum | Role::Routing | Role::Maximum => Bend::Gradient,
        Role::Quotient => Bend::Hold,
        Role::Rectifier => Bend::Gradient,
        Role::Activation => Bend::Secant,
        Role::Softmax => Bend::Gradient,
        Role::Normalization => Bend::Hold,
        Role::Accumulation => return None,
    })
}

impl Role {
    /// The role in words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Entry => "weights of the embeddings",
            Self::Layer => "weights",
            Self::Interaction => "product of activations",
            Self::Scaling => "scaling",
            Self::Quotient => "quotient",
            Self::Accumulation => "product of the elements of one operand",
            Self::Addition => "sum of activations",
            Self::Sum => "sum",
            Self::Rectifier => "rectifier",
            Self::Activation => "activation",
            Self::Softmax => "softmax",
            Self::Normalization => "normalization",
            Self::Maximum => "maximum",
            Self::Routing => "routing",
        }
    }

    /// What AttnLRP does at the role, for answers that name a substitution.
    pub const fn borrowed(self) -> &'static str {
        match self {
            Self::Interaction => "shared equally",
            Self::Softmax => "its first-order Taylor expansion",
            Self::Normalization => "statistics constant",
            Self::Activation => "passed on unchanged",
            Self::Addition | Self::Sum => "shared in proportion",
            Self::Quotient => "divisor constant",
            Self::Entry
            | Self::Layer
            | Self::Scaling
            | Self::Accumulation
            | Self::Rectifier
            | Self::Maximum
            | Self::Routing => "its gradient",
        }
    }
}
