//! Where operators of our own run: what takes ONNX's operators several passes over memory, in one.
//!
//! Graphs name them in the domain [`KERNELS`]; they are for processors, in single precision. The compiler puts them into
//! graphs that are served, never into graphs that are exported, and reads no file that holds them.

mod product;
mod pullback;

use std::panic::{AssertUnwindSafe, catch_unwind};

use ort::operator::OperatorDomain;

use crate::compile::builder::KERNELS;

/// The operators, for one session.
pub(super) fn domain() -> ort::Result<OperatorDomain> {
    let domain = OperatorDomain::new(KERNELS)?.add(product::Product)?;
    pullback::PULLBACKS.iter().try_fold(domain, |domain, &kernel| domain.add(kernel))
}

/// Keeps a panic from ONNX Runtime, whose frames cannot be unwound.
fn completes(compute: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(compute)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_kept() {
        assert!(completes(|| ()) && !completes(|| panic!("of the operator")));
    }
}
