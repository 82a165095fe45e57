//! Where a request's text is read, and where what is wrong with it gets a JSON pointer.

use super::{ExplainError, GranularitySpec, Limits, Misfit};
use crate::model::{
    Model,
    text::{Caps, EncodeError, Encoded, FeatureError},
};

/// Reads one input. `pointer` is that of its text.
///
/// # Errors
/// A misfit of the text, or of the second text of a pair.
pub(super) fn read_text(
    model: &Model,
    (text, pair): (&str, Option<&str>),
    truncate: bool,
    limits: &Limits,
    pointer: &str,
) -> Result<Encoded, ExplainError> {
    model.tokenizer.encode(text, pair, truncate, caps(limits)).map_err(|error| refusal(&error, pointer))
}

/// How large a text may be.
pub(super) fn caps(limits: &Limits) -> Caps {
    Caps { characters: limits.max_text_chars, run: limits.max_run_chars }
}

/// What is wrong with the text at `pointer`.
pub(super) fn refusal(error: &EncodeError, pointer: &str) -> ExplainError {
    // Only an input with fields has a second text, and then `pointer` ends in `/text`.
    let pointer = if error.segment() == Some(1) { format!("{pointer}_pair") } else { pointer.to_owned() };
    let detail = error.to_string();
    match *error {
        EncodeError::EmptyText { .. }
        | EncodeError::NulCharacter { .. }
        | EncodeError::NoTokens { .. }
        | EncodeError::UnknownToken { .. } => Misfit::new(pointer, detail).into(),
        EncodeError::TooManyCharacters { limit, .. } => {
            Misfit::over(pointer, detail, "max_text_chars", limit as u64).into()
        }
        EncodeError::RunTooLong { limit, .. } => {
            Misfit::over(pointer, detail, "max_run_chars", limit as u64).into()
        }
        EncodeError::TooLong { limit, .. } => {
            Misfit::over(pointer, detail, "max_length", limit as u64).into()
        }
        EncodeError::Tokenizer { .. } => ExplainError::Internal(detail),
    }
}

/// The misfit of a granularity that does not suit the input at `pointer`.
pub(super) fn feature_misfit(error: &FeatureError, spec: &GranularitySpec, pointer: &str) -> Misfit {
    let pointer = match (spec, error.index()) {
        (GranularitySpec::Unit(_), _) => pointer.to_owned(),
        (GranularitySpec::Spans(_), None) => "/granularity/spans".to_owned(),
        (GranularitySpec::Spans(_), Some(index)) => format!("/granularity/spans/{index}"),
    };
    Misfit::new(pointer, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn misfit(error: &EncodeError) -> Misfit {
        match refusal(error, "/inputs/3/text") {
            ExplainError::Misfits(mut misfits) => misfits.remove(0),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn each_text_of_a_pair_is_pointed_at() {
        assert_eq!(misfit(&EncodeError::EmptyText { segment: 0 }).pointer, "/inputs/3/text");
        assert_eq!(misfit(&EncodeError::NoTokens { segment: 1 }).pointer, "/inputs/3/text_pair");
        assert_eq!(misfit(&EncodeError::TooLong { tokens: 9, limit: 8 }).pointer, "/inputs/3/text");
    }

    #[test]
    fn a_limit_that_was_hit_is_named_with_its_value() {
        let limit = |error| misfit(&error).limit.map(|it| (it.name, it.value));
        assert_eq!(limit(EncodeError::TooLong { tokens: 9, limit: 8 }), Some(("max_length", 8)));
        let long = EncodeError::TooManyCharacters { segment: 0, characters: 9, limit: 7 };
        assert_eq!(limit(long), Some(("max_text_chars", 7)));
        let run = EncodeError::RunTooLong { segment: 0, start: 0, characters: 9, limit: 6 };
        assert_eq!(limit(run), Some(("max_run_chars", 6)));
    }
}
