//! This file is where a text that cannot be encoded is told why.

/// The `tokenizers` crate's words on a file or a text that it does not accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TokenizerError(pub String);

/// A text that cannot be encoded. `segment` tells which text of a pair.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// There is no character, or nothing but white space.
    #[error("the text is empty")]
    EmptyText {
        /// Which text.
        segment: u8,
    },
    /// The text holds U+0000.
    #[error("the text holds a NUL character at position {at}")]
    NulCharacter {
        /// Which text.
        segment: u8,
        /// Where, in code points.
        at: usize,
    },
    /// The text has characters, but the tokenizer sees nothing in them.
    #[error("the tokenizer finds no token in the text")]
    NoTokens {
        /// Which text.
        segment: u8,
    },
    /// The text holds an added token of the tokenizer that the model has no embedding of.
    #[error("the text holds `{token}`, a token that the model has no embedding of")]
    UnknownToken {
        /// Which text.
        segment: u8,
        /// As the tokenizer spells it.
        token: String,
    },
    /// [`super::Caps::characters`] is exceeded.
    #[error("the text has {characters} characters; the limit is {limit}")]
    TooManyCharacters {
        /// Which text.
        segment: u8,
        /// How many it has.
        characters: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// [`super::Caps::run`] is exceeded.
    #[error("{characters} characters from position {start} on hold no white space; the limit is {limit}")]
    RunTooLong {
        /// Which text.
        segment: u8,
        /// Where the run starts, in code points.
        start: usize,
        /// How long it is.
        characters: usize,
        /// How long it may be.
        limit: usize,
    },
    /// The input has more tokens than the model takes, and may not or cannot be truncated.
    #[error("the input has {tokens} tokens; the model's limit is {limit}")]
    TooLong {
        /// How many it has, special ones included.
        tokens: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// The tokenizer failed: a fault of the model folder, not of the text.
    #[error("the tokenizer failed: {detail}")]
    Tokenizer {
        /// In the crate's words.
        detail: String,
    },
}

impl EncodeError {
    /// The text at fault; `None` if it is the input as a whole or the tokenizer.
    pub fn segment(&self) -> Option<u8> {
        match *self {
            Self::EmptyText { segment }
            | Self::NulCharacter { segment, .. }
            | Self::NoTokens { segment }
            | Self::UnknownToken { segment, .. }
            | Self::TooManyCharacters { segment, .. }
            | Self::RunTooLong { segment, .. } => Some(segment),
            Self::TooLong { .. } | Self::Tokenizer { .. } => None,
        }
    }
}
