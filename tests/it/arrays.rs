//! This file is where the arrays of `.npz` files are read.

use std::fs;
use std::path::Path;

use explaind::compile::graph::Tensor;
use ndarray::{ArrayD, IxDyn, OwnedRepr};
use ndarray_npy::NpzReader;

/// Arrays of an `.npz` file.
pub struct Arrays(NpzReader<fs::File>);

impl Arrays {
    /// Opens a file.
    pub fn open(path: &Path) -> Self {
        Self(NpzReader::new(fs::File::open(path).unwrap()).unwrap())
    }

    /// The arrays' names.
    pub fn names(&mut self) -> Vec<String> {
        let names = self.0.names().unwrap();
        names.into_iter().map(|it| it.trim_end_matches(".npy").to_owned()).collect()
    }

    /// An array of int64.
    pub fn ints(&mut self, name: &str) -> Option<Tensor> {
        let array: ArrayD<i64> = self.0.by_name::<OwnedRepr<i64>, IxDyn>(name).ok()?;
        Some(Tensor::from_i64(array.shape(), &array.iter().copied().collect::<Vec<_>>()))
    }

    /// An array of float32.
    pub fn floats(&mut self, name: &str) -> Option<Tensor> {
        let array: ArrayD<f32> = self.0.by_name::<OwnedRepr<f32>, IxDyn>(name).ok()?;
        Some(Tensor::from_f32(array.shape(), &array.iter().copied().collect::<Vec<_>>()))
    }

    /// The values of an array of float64.
    pub fn doubles(&mut self, name: &str) -> Option<Vec<f64>> {
        let array: ArrayD<f64> = self.0.by_name::<OwnedRepr<f64>, IxDyn>(name).ok()?;
        Some(array.iter().copied().collect())
    }
}
