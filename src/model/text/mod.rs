//! This file is where text features begin: a text becomes tokens with places in it, and tokens become features.
//!
//! Places are counted in Unicode code points of the original text, start included, end excluded.

mod boundaries;
mod encoded;
mod error;
mod features;
mod spans;
mod tokenizer;

pub use self::encoded::{Dropped, Encoded, Text, Token, Truncation};
pub use self::error::{EncodeError, TokenizerError};
pub use self::features::{Feature, FeatureError, Granularity, features, windows};
pub use self::spans::Span;
pub use self::tokenizer::{Caps, Tokenizer};

#[cfg(test)]
mod tests;
