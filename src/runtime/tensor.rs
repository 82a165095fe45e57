//! Where our tensors become ONNX Runtime's values, and back.

use std::borrow::Cow;

use half::f16;
use ort::value::{DynValue, Tensor as OrtTensor, TensorElementType};

/// The element types that cross the border.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// 64-bit float.
    F64,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// Truth value.
    Bool,
    /// 8-bit unsigned integer.
    U8,
    /// 8-bit signed integer.
    I8,
}

/// Values in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// See [`Element::F32`].
    F32(Vec<f32>),
    /// See [`Element::F16`].
    F16(Vec<f16>),
    /// See [`Element::F64`].
    F64(Vec<f64>),
    /// See [`Element::I64`].
    I64(Vec<i64>),
    /// See [`Element::I32`].
    I32(Vec<i32>),
    /// See [`Element::Bool`].
    Bool(Vec<bool>),
    /// See [`Element::U8`].
    U8(Vec<u8>),
    /// See [`Element::I8`].
    I8(Vec<i8>),
}

/// A dense tensor in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Sizes of the axes; empty for a scalar.
    pub dims: Vec<usize>,
    /// As many values as the product of `dims`.
    pub data: Data,
}

impl Tensor {
    /// A float tensor.
    pub fn f32(dims: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        Self { dims: dims.into(), data: Data::F32(values) }
    }

    /// An integer tensor.
    pub fn i64(dims: impl Into<Vec<usize>>, values: Vec<i64>) -> Self {
        Self { dims: dims.into(), data: Data::I64(values) }
    }

    /// The values as floats, converted from any element type; floats are not copied.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        match &self.data {
            Data::F32(it) => it.into(),
            Data::F16(it) => it.iter().map(|v| v.to_f32()).collect(),
            Data::F64(it) => it.iter().map(|&v| v as f32).collect(),
            Data::I64(it) => it.iter().map(|&v| v as f32).collect(),
            Data::I32(it) => it.iter().map(|&v| v as f32).collect(),
            Data::Bool(it) => it.iter().map(|&v| f32::from(u8::from(v))).collect(),
            Data::U8(it) => it.iter().map(|&v| f32::from(v)).collect(),
            Data::I8(it) => it.iter().map(|&v| f32::from(v)).collect(),
        }
    }

    /// Hands the values to ONNX Runtime without copying them.
    pub(super) fn into_value(self) -> ort::Result<DynValue> {
        let dims: Vec<i64> = self.dims.iter().map(|&d| d as i64).collect();
        Ok(match self.data {
            Data::F32(it) => OrtTensor::from_array((dims, it))?.into_dyn(),
            Data::F16(it) => OrtTensor::from_array((dims, it))?.into_dyn(),
            Data::F64(it) => OrtTensor::from_array((dims, it))?.into_dyn(),
            Data::I64(it) => OrtTensor::from_array((dims, it))?.into_dyn(),
            Data::I32(it) => OrtTensor::from_array((dims, it))?.into_dyn(),
            Data::Bool(it) => OrtTensor::from_array((dims, it))?.into_dyn(),
            Data::U8(it) => OrtTensor::from_array((dims, it))?.into_dyn(),
            Data::I8(it) => OrtTensor::from_array((dims, it))?.into_dyn(),
        })
    }

    /// Copies a value out of ONNX Runtime.
    pub(super) fn from_value(value: &DynValue) -> ort::Result<Self> {
        macro_rules! take {
            ($type:ty, $variant:ident) => {{
                let (shape, values) = value.try_extract_tensor::<$type>()?;
                let dims = shape.iter().map(|&d| d.max(0) as usize).collect();
                Ok(Self { dims, data: Data::$variant(values.to_vec()) })
            }};
        }
        match value.dtype().tensor_type() {
            Some(TensorElementType::Float32) => take!(f32, F32),
            Some(TensorElementType::Float16) => take!(f16, F16),
            Some(TensorElementType::Float64) => take!(f64, F64),
            Some(TensorElementType::Int64) => take!(i64, I64),
            Some(TensorElementType::Int32) => take!(i32, I32),
            Some(TensorElementType::Bool) => take!(bool, Bool),
            Some(TensorElementType::Uint8) => take!(u8, U8),
            Some(TensorElementType::Int8) => take!(i8, I8),
            _ => Err(ort::Error::new(format!("output of type {} is not read", value.dtype()))),
        }
    }
}

/// Our name of an ONNX Runtime element type, where we read it.
pub(super) fn element_of(kind: TensorElementType) -> Option<Element> {
    Some(match kind {
        TensorElementType::Float32 => Element::F32,
        TensorElementType::Float16 => Element::F16,
        TensorElementType::Float64 => Element::F64,
        TensorElementType::Int64 => Element::I64,
        TensorElementType::Int32 => Element::I32,
        TensorElementType::Bool => Element::Bool,
        TensorElementType::Uint8 => Element::U8,
        TensorElementType::Int8 => Element::I8,
        _ => return None,
    })
}
