//! Where a model's initializers are kept, in memory once for all of its sessions.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytemuck::NoUninit;
use bytes::Bytes;
use half::f16;
use ort::{
    session::builder::PrepackedWeights,
    value::{DynValue, Shape},
};

use super::{Data, Element, Graph, RuntimeError, Tensor, tensor::element_of};

// ONNX keeps numbers in this order, and what is held is compared with them byte by byte.
#[cfg(target_endian = "big")]
compile_error!("explaind runs on little-endian machines");

/// One initializer, as raw little-endian bytes.
#[derive(Clone)]
pub struct Weight {
    /// The initializer's name.
    pub name: String,
    /// Its element type.
    pub element: Element,
    /// Its dimensions.
    pub dims: Vec<usize>,
    /// Row-major values.
    pub bytes: Bytes,
}

/// The initializers of one model, together with the forms that kernels pack them into. Two graphs may use one name for
/// different tensors: each has its own then.
#[derive(Clone, Default)]
pub struct SharedWeights {
    values: Arc<Mutex<HashMap<String, Vec<Arc<DynValue>>>>>,
    packed: Arc<Mutex<Option<PrepackedWeights>>>,
}

impl SharedWeights {
    /// How many tensors are held.
    pub fn count(&self) -> usize {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).values().map(Vec::len).sum()
    }

    /// Takes the weight in, and answers with its bytes where they lie now: who keeps these keeps no second copy.
    ///
    /// # Errors
    /// As [`super::Session::open`].
    pub fn hold(&self, weight: &Weight) -> Result<Bytes, RuntimeError> {
        let held = Bytes::from_owner(Held(self.value(weight)?));
        Ok(if held.len() == weight.bytes.len() { held } else { weight.bytes.clone() })
    }

    /// Lets go of the weights that no session and nobody else uses.
    pub fn forget_unused(&self) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.values_mut().for_each(|named| named.retain(|it| Arc::strong_count(it) > 1));
        values.retain(|_, named| !named.is_empty());
    }

    /// The values of a graph's weights, in their order.
    pub(super) fn of(&self, graph: &Graph) -> Result<Vec<Arc<DynValue>>, RuntimeError> {
        graph.weights.iter().map(|it| self.value(it)).collect()
    }

    pub(super) fn value(&self, weight: &Weight) -> Result<Arc<DynValue>, RuntimeError> {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let named = values.entry(weight.name.clone()).or_default();
        if let Some(value) = named.iter().find(|it| weight.is_held_by(it)) {
            return Ok(value.clone());
        }
        let value = Arc::new(weight.tensor()?.into_value()?);
        named.push(value.clone());
        Ok(value)
    }

    pub(super) fn packed(&self) -> PrepackedWeights {
        let mut packed = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        packed.get_or_insert_with(PrepackedWeights::new).clone()
    }
}

impl Weight {
    fn tensor(&self) -> Result<Tensor, RuntimeError> {
        fn each<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
            bytes.as_chunks::<N>().0.iter().map(|it| read(*it)).collect()
        }
        let bytes = &self.bytes;
        let data = match self.element {
            Element::F32 => Data::F32(each(bytes, f32::from_le_bytes)),
            Element::F16 => Data::F16(each(bytes, f16::from_le_bytes)),
            Element::F64 => Data::F64(each(bytes, f64::from_le_bytes)),
            Element::I64 => Data::I64(each(bytes, i64::from_le_bytes)),
            Element::I32 => Data::I32(each(bytes, i32::from_le_bytes)),
            Element::U8 => Data::U8(bytes.to_vec()),
            Element::I8 => Data::I8(bytes.iter().map(|&b| b as i8).collect()),
            Element::Bool => Data::Bool(bytes.iter().map(|&b| b != 0).collect()),
        };
        Ok(Tensor { dims: self.dims.clone(), data })
    }

    /// Whether `value` is this very tensor, bit for bit.
    fn is_held_by(&self, value: &DynValue) -> bool {
        let kind = value.dtype();
        let dims = self.dims.iter().map(|&it| it as i64);
        let same = kind.tensor_type().and_then(element_of) == Some(self.element)
            && kind.tensor_shape().is_some_and(|shape| shape.iter().copied().eq(dims));
        // Often it is the very memory, and nothing is compared.
        same && bytes(value).is_some_and(|it| it.as_ptr() == self.bytes.as_ptr() || *it == self.bytes)
    }
}

/// A tensor of the runtime's as bytes that can be shared.
struct Held(Arc<DynValue>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        bytes(&self.0).unwrap_or_default()
    }
}

/// The memory of a tensor; `None` for an element type that explaind does not feed or read.
fn bytes(value: &DynValue) -> Option<&[u8]> {
    fn cast<'a, T: NoUninit>(found: ort::Result<(&'a Shape, &'a [T])>) -> Option<&'a [u8]> {
        found.ok().map(|it| bytemuck::cast_slice(it.1))
    }
    match element_of(value.dtype().tensor_type()?)? {
        Element::F32 => cast(value.try_extract_tensor::<f32>()),
        Element::F16 => cast(value.try_extract_tensor::<f16>()),
        Element::F64 => cast(value.try_extract_tensor::<f64>()),
        Element::I64 => cast(value.try_extract_tensor::<i64>()),
        Element::I32 => cast(value.try_extract_tensor::<i32>()),
        Element::U8 => cast(value.try_extract_tensor::<u8>()),
        Element::I8 => cast(value.try_extract_tensor::<i8>()),
        Element::Bool => cast(value.try_extract_tensor::<bool>()),
    }
}
