//! This file is where the element types of tensors are: their ONNX codes, names and widths.

use std::fmt;

/// The type of a tensor's elements, as ONNX numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Element {
    /// IEEE single precision.
    F32,
    /// Unsigned, 8 bits.
    U8,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 16 bits.
    U16,
    /// Signed, 16 bits.
    I16,
    /// Signed, 32 bits.
    I32,
    /// Signed, 64 bits.
    I64,
    /// One byte a truth value.
    Bool,
    /// IEEE half precision.
    F16,
    /// IEEE double precision.
    F64,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 64 bits.
    U64,
    /// Two single precision numbers.
    C64,
    /// Two double precision numbers.
    C128,
    /// The upper half of a single precision number.
    BF16,
    /// Eight bits, e4m3fn.
    F8E4M3FN,
    /// Eight bits, e4m3fnuz.
    F8E4M3FNUZ,
    /// Eight bits, e5m2.
    F8E5M2,
    /// Eight bits, e5m2fnuz.
    F8E5M2FNUZ,
    /// Unsigned, two to a byte.
    U4,
    /// Signed, two to a byte.
    I4,
    /// Floating, two to a byte.
    F4E2M1,
    /// Variable length; tensors of it cannot be held here.
    Text,
}

/// Code in `TensorProto.DataType`, name in the text form, bits an element.
const TABLE: &[(Element, i32, &str, usize)] = &[
    (Element::F32, 1, "float32", 32),
    (Element::U8, 2, "uint8", 8),
    (Element::I8, 3, "int8", 8),
    (Element::U16, 4, "uint16", 16),
    (Element::I16, 5, "int16", 16),
    (Element::I32, 6, "int32", 32),
    (Element::I64, 7, "int64", 64),
    (Element::Text, 8, "string", 0),
    (Element::Bool, 9, "bool", 8),
    (Element::F16, 10, "float16", 16),
    (Element::F64, 11, "float64", 64),
    (Element::U32, 12, "uint32", 32),
    (Element::U64, 13, "uint64", 64),
    (Element::C64, 14, "complex64", 64),
    (Element::C128, 15, "complex128", 128),
    (Element::BF16, 16, "bfloat16", 16),
    (Element::F8E4M3FN, 17, "float8e4m3fn", 8),
    (Element::F8E4M3FNUZ, 18, "float8e4m3fnuz", 8),
    (Element::F8E5M2, 19, "float8e5m2", 8),
    (Element::F8E5M2FNUZ, 20, "float8e5m2fnuz", 8),
    (Element::U4, 21, "uint4", 4),
    (Element::I4, 22, "int4", 4),
    (Element::F4E2M1, 23, "float4e2m1", 4),
];

impl Element {
    /// The element type with this ONNX code, if it is known.
    pub fn from_code(code: i32) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == code).map(|row| row.0)
    }

    /// The element type with this name in the text form.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// The ONNX code.
    pub fn code(self) -> i32 {
        self.row().1
    }

    /// The name in the text form.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Width in bits; 0 for text.
    pub fn bits(self) -> usize {
        self.row().3
    }

    /// Can a gradient flow through values of this type?
    pub fn is_floating(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::BF16)
    }

    fn row(self) -> &'static (Element, i32, &'static str, usize) {
        TABLE.iter().find(|row| row.0 == self).expect("every variant has its row, tested below")
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_lead_back_to_their_element() {
        for &(element, code, name, _) in TABLE {
            assert_eq!(Element::from_code(code), Some(element));
            assert_eq!(Element::from_name(name), Some(element));
            assert_eq!((element.code(), element.name()), (code, name));
        }
        assert_eq!(TABLE.len(), Element::Text as usize + 1);
    }
}
