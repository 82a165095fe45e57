//! This file is where constant tensors are: shared bytes with an element type and dimensions.

use bytes::Bytes;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::Element;

/// A dense tensor, row-major, little-endian; clones share the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Tensor {
    element: Element,
    dims: Vec<usize>,
    data: Bytes,
}

/// Why bytes are not a tensor of the given type and dimensions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// Element type and dimensions ask for another number of bytes.
    #[error("{element} with dimensions {dims:?} needs {needed} bytes, not {found}")]
    Size {
        /// Declared element type.
        element: Element,
        /// Declared dimensions.
        dims: Vec<usize>,
        /// Bytes that these ask for.
        needed: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// The number of bytes does not fit into the address space.
    #[error("dimensions {0:?} are too large")]
    Overflow(Vec<usize>),
    /// Tensors of text are not represented.
    #[error("tensors of text are not supported")]
    Text,
}

impl Tensor {
    /// Checks that `data` has the length that `element` and `dims` ask for.
    pub fn new(element: Element, dims: Vec<usize>, data: Bytes) -> Result<Self, TensorError> {
        if element == Element::Text {
            return Err(TensorError::Text);
        }
        let bits = dims.iter().try_fold(element.bits(), |bits, &dim| bits.checked_mul(dim));
        let needed = bits.ok_or_else(|| TensorError::Overflow(dims.clone()))?.div_ceil(8);
        if data.len() != needed {
            return Err(TensorError::Size { element, dims, needed, found: data.len() });
        }
        Ok(Self { element, dims, data })
    }

    /// A float32 tensor; `values.len()` must be the product of `dims`.
    pub fn from_f32(dims: &[usize], values: &[f32]) -> Self {
        Self::collect(Element::F32, dims, values, |it| it.to_le_bytes())
    }

    /// An int64 tensor; `values.len()` must be the product of `dims`.
    pub fn from_i64(dims: &[usize], values: &[i64]) -> Self {
        Self::collect(Element::I64, dims, values, |it| it.to_le_bytes())
    }

    /// A tensor of a floating type, rounded from float64; float32 if `element` is none.
    pub fn from_f64(element: Element, dims: &[usize], values: &[f64]) -> Self {
        match element {
            Element::F64 => Self::collect(element, dims, values, |it| it.to_le_bytes()),
            Element::F16 => Self::collect(element, dims, values, |it| f16::from_f64(it).to_le_bytes()),
            Element::BF16 => Self::collect(element, dims, values, |it| bf16::from_f64(it).to_le_bytes()),
            _ => Self::collect(Element::F32, dims, values, |it| (it as f32).to_le_bytes()),
        }
    }

    /// A tensor of truth values; `values.len()` must be the product of `dims`.
    pub fn from_bool(dims: &[usize], values: &[bool]) -> Self {
        Self::collect(Element::Bool, dims, values, |it| [u8::from(it)])
    }

    /// The element type.
    pub fn element(&self) -> Element {
        self.element
    }

    /// The dimensions; empty for a scalar.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The bytes, row-major, little-endian; not necessarily aligned.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Does the tensor hold no element?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same bytes under other dimensions of the same product.
    pub fn reshaped(&self, dims: &[usize]) -> Option<Self> {
        Self::new(self.element, dims.to_vec(), self.data.clone()).ok()
    }

    /// Elements of an integer or truth type as int64; `None` for other types.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        match self.element {
            Element::I64 => Some(self.each(i64::from_le_bytes)),
            Element::U64 => Some(self.each(|it| u64::from_le_bytes(it) as i64)),
            Element::I32 => Some(self.each(|it| i64::from(i32::from_le_bytes(it)))),
            Element::U32 => Some(self.each(|it| i64::from(u32::from_le_bytes(it)))),
            Element::I16 => Some(self.each(|it| i64::from(i16::from_le_bytes(it)))),
            Element::U16 => Some(self.each(|it| i64::from(u16::from_le_bytes(it)))),
            Element::I8 => Some(self.each(|it: [u8; 1]| i64::from(it[0] as i8))),
            Element::U8 | Element::Bool => Some(self.each(|it: [u8; 1]| i64::from(it[0]))),
            _ => None,
        }
    }

    /// Elements of a floating type as float64; `None` for other types.
    pub fn to_f64(&self) -> Option<Vec<f64>> {
        match self.element {
            Element::F64 => Some(self.each(f64::from_le_bytes)),
            Element::F32 => Some(self.each(|it| f64::from(f32::from_le_bytes(it)))),
            Element::F16 => Some(self.each(|it| f16::from_le_bytes(it).to_f64())),
            Element::BF16 => Some(self.each(|it| bf16::from_le_bytes(it).to_f64())),
            _ => None,
        }
    }

    /// Elements of a floating type as float32; `None` for other types.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        match self.element {
            Element::F32 => Some(self.each(f32::from_le_bytes)),
            Element::F16 => Some(self.each(f16::from_le_bytes).to_f32_vec()),
            Element::BF16 => Some(self.each(|it| bf16::from_le_bytes(it).to_f32())),
            Element::F64 => Some(self.each(|it| f64::from_le_bytes(it) as f32)),
            _ => None,
        }
    }

    /// The only element of a floating tensor of any rank.
    pub fn scalar(&self) -> Option<f64> {
        if self.len() == 1 { self.to_f64()?.first().copied() } else { None }
    }

    fn each<const N: usize, T>(&self, read: impl Fn([u8; N]) -> T) -> Vec<T> {
        let word = |chunk: &[u8]| read(chunk.try_into().expect("chunks_exact gives N bytes"));
        self.data.chunks_exact(N).map(word).collect()
    }

    fn collect<T: Copy, const N: usize>(
        element: Element,
        dims: &[usize],
        values: &[T],
        write: impl Fn(T) -> [u8; N],
    ) -> Self {
        assert_eq!(values.len(), dims.iter().product::<usize>(), "values fill the dimensions {dims:?}");
        let mut data = Vec::with_capacity(values.len() * N);
        values.iter().for_each(|&it| data.extend_from_slice(&write(it)));
        Self { element, dims: dims.to_vec(), data: data.into() }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// `float32[2, 3]`, followed by the values when they are at most eight.
impl std::fmt::Display for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:?}", self.element, self.dims)?;
        match (self.len(), self.to_i64(), self.to_f64()) {
            (0..=8, Some(ints), _) => write!(f, " {ints:?}"),
            (0..=8, _, Some(floats)) => write!(f, " {floats:?}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_number_of_bytes_is_refused() {
        let error = Tensor::new(Element::F32, vec![2, 3], Bytes::from(vec![0; 23])).unwrap_err();
        assert_eq!(error.to_string(), "float32 with dimensions [2, 3] needs 24 bytes, not 23");
    }

    #[test]
    fn dimensions_beyond_the_address_space_are_refused() {
        let error = Tensor::new(Element::F32, vec![1 << 40, 1 << 40], Bytes::new()).unwrap_err();
        assert_eq!(error, TensorError::Overflow(vec![1 << 40, 1 << 40]));
    }

    #[test]
    fn four_bit_elements_round_up_to_whole_bytes() {
        assert!(Tensor::new(Element::I4, vec![3], Bytes::from(vec![0; 2])).is_ok());
    }

    #[test]
    fn half_precision_reads_back_as_single() {
        let tensor = Tensor::from_f64(Element::F16, &[3], &[1.0, -0.5, 65504.0]);
        assert_eq!(tensor.to_f32(), Some(vec![1.0, -0.5, 65504.0]));
    }
}
