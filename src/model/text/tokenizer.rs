//! This file is where a text or a pair of texts becomes tokens that know their place.

use std::ops::Range;
use std::sync::Arc;

use tokenizers::tokenizer::{Model, OffsetType, PostProcessor, PreTokenizer};
use tokenizers::utils::truncation::TruncationDirection;
use tokenizers::{Encoding, Tokenizer as Inner};

use super::encoded::{Dropped, Encoded, Text, Token, Truncation};
use super::error::{EncodeError, TokenizerError};
use crate::model::manifest::{Manifest, Side};

/// A model's tokenizer. Immutable, so that any number of threads may encode with it; a clone shares its vocabulary.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
    max_tokens: Option<usize>,
    truncation_side: Side,
    /// Rows of the model's embedding table, where they are known.
    rows: Option<usize>,
}

/// How large a text may be before the tokenizer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Most code points of one text.
    pub characters: usize,
    /// Most code points without white space between them: a tokenizer may take more than linear time on one
    /// word. Scripts without spaces need room here.
    pub run: usize,
}

impl Tokenizer {
    /// Opens the tokenizer of a model folder, with the folder's limit on tokens.
    ///
    /// # Errors
    /// `tokenizer.json` cannot be read, or the `tokenizers` crate does not accept it.
    pub fn open(manifest: &Manifest) -> Result<Self, TokenizerError> {
        let json = std::fs::read(&manifest.tokenizer).map_err(|it| TokenizerError(it.to_string()))?;
        Self::from_json(&json, manifest.max_length, manifest.truncation_side)
    }

    /// Reads a `tokenizer.json`. The padding and truncation that the file may ask for are left out: they are the
    /// caller's business, and the crate would apply them unasked.
    ///
    /// `max_tokens` counts special tokens; `None` is for a model that takes any number.
    ///
    /// # Errors
    /// The `tokenizers` crate does not accept the file.
    pub fn from_json(
        json: &[u8],
        max_tokens: Option<usize>,
        truncation_side: Side,
    ) -> Result<Self, TokenizerError> {
        let refused = |it: tokenizers::Error| TokenizerError(it.to_string());
        let mut inner = Inner::from_bytes(json).map_err(refused)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(refused)?;
        Ok(Self { inner: Arc::new(inner), max_tokens, truncation_side, rows: None })
    }

    /// The same tokenizer with another limit.
    pub fn with_limit(&self, max_tokens: Option<usize>, truncation_side: Side) -> Self {
        Self { inner: Arc::clone(&self.inner), max_tokens, truncation_side, rows: self.rows }
    }

    /// The same tokenizer for an embedding table of so many rows. Added tokens may lie beyond it, since no text
    /// has to hold them; one that does is refused.
    ///
    /// # Errors
    /// Tokens that any text may be made of lie beyond the table.
    pub fn within(self, rows: usize) -> Result<Self, TokenizerError> {
        let last = self.inner.get_vocab(false).into_values().max().unwrap_or(0);
        if last as usize >= rows {
            let detail = format!("token ids go up to {last}; the model's embedding table has {rows} rows");
            return Err(TokenizerError(detail));
        }
        Ok(Self { rows: Some(rows), ..self })
    }

    /// A token as the vocabulary spells it (`[CLS]`, `##ing`, `Ġthe`); `None` for one that the model has no embedding
    /// of, too.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id).filter(|_| !self.is_beyond(id))
    }

    fn is_beyond(&self, id: u32) -> bool {
        self.rows.is_some_and(|rows| id as usize >= rows)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Number of tokens of the vocabulary, added ones included.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The first token that is another one in `other`, in words; `None` where the vocabularies are the same.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let (ours, theirs) = (self.inner.get_vocab(true), other.inner.get_vocab(true));
        let place = |id: Option<&u32>| id.map_or("absent".to_owned(), |id| format!("number {id}"));
        let first = ours.iter().filter(|it| theirs.get(it.0) != Some(it.1)).min_by_key(|it| it.1);
        let extra = || theirs.iter().filter(|it| !ours.contains_key(it.0)).min_by_key(|it| it.1);
        let (token, _) = first.or_else(extra)?;
        let (here, there) = (place(ours.get(token)), place(theirs.get(token)));
        Some(format!("`{token}` is {here} in the classifier's and {there} in this one"))
    }

    /// How many special tokens an input gets.
    pub fn specials(&self, is_pair: bool) -> usize {
        self.inner.get_post_processor().map_or(0, |it| it.added_tokens(is_pair))
    }

    /// The ids of the shortest input, special tokens included.
    pub fn shortest_ids(&self) -> Vec<u32> {
        self.inner.encode_fast("a", true).map(|it| it.get_ids().to_vec()).unwrap_or_default()
    }

    /// The ids of a piece of text without special tokens, as if a text began with it. May be none.
    ///
    /// # Errors
    /// The piece is too large or holds U+0000; or the tokenizer fails.
    pub fn piece_ids(&self, text: &str, caps: Caps) -> Result<Vec<u32>, EncodeError> {
        check_size(text, 0, caps)?;
        Ok(self.known(text, 0)?.get_ids().to_vec())
    }

    /// Encodes a text, or a pair of texts as one input.
    ///
    /// An input over the model's limit is refused, or, with `truncate`, loses content tokens at the end that the
    /// model's folder names, the longer text of a pair first.
    ///
    /// # Errors
    /// A text is empty, too large, or holds nothing for the model; or the tokenizer fails.
    pub fn encode(
        &self,
        text: &str,
        pair: Option<&str>,
        truncate: bool,
        caps: Caps,
    ) -> Result<Encoded, EncodeError> {
        let mut parts = Vec::with_capacity(2);
        for (segment, text) in std::iter::once(text).chain(pair).enumerate() {
            parts.push(self.part(text, segment as u8, caps)?);
        }
        let truncated = self.fit(&mut parts, truncate)?;
        let tokens = self.assemble(&parts)?;
        Ok(Encoded { texts: parts.into_iter().map(|it| it.text).collect(), tokens, truncated })
    }

    /// Encodes one text without special tokens.
    fn part(&self, text: &str, segment: u8, caps: Caps) -> Result<Part, EncodeError> {
        check(text, segment, caps)?;
        let encoding = self.known(text, segment)?;
        let text = Text::new(text.to_owned());
        let tokens = encoding.get_tokens().iter().zip(encoding.get_offsets());
        let places: Vec<_> = tokens.map(|(token, &(start, end))| place(&text, token, start..end)).collect();
        let visible = |it: &Range<usize>| !text.slice(it.start, it.end).chars().all(char::is_whitespace);
        if !places.iter().any(visible) {
            return Err(EncodeError::NoTokens { segment });
        }
        Ok(Part { text, encoding, places, segment })
    }

    /// The tokens of a text, all of which the model knows.
    fn known(&self, text: &str, segment: u8) -> Result<Encoding, EncodeError> {
        let encoding = self.bare(text).map_err(failed)?;
        match encoding.get_ids().iter().find(|id| self.is_beyond(**id)) {
            None => Ok(encoding),
            Some(&id) => {
                let token = self.inner.id_to_token(id).unwrap_or_default();
                Err(EncodeError::UnknownToken { segment, token })
            }
        }
    }

    /// The crate's own way from text to tokens, but for its post-processor: that one would trim the places of
    /// byte-level tokens by guesswork. Places are in bytes of `text`.
    fn bare(&self, text: &str) -> tokenizers::Result<Encoding> {
        let added = self.inner.get_added_vocabulary();
        let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        let model = self.inner.get_model();
        pieces.tokenize(|piece| model.tokenize(piece.get()))?;
        pieces.into_encoding(None, 0, OffsetType::Byte)
    }

    /// Cuts the parts so that they fit together with their special tokens.
    fn fit(&self, parts: &mut [Part], truncate: bool) -> Result<Option<Truncation>, EncodeError> {
        let specials = self.specials(parts.len() > 1);
        let tokens = specials + parts.iter().map(|it| it.places.len()).sum::<usize>();
        let Some(limit) = self.max_tokens.filter(|&limit| tokens > limit) else { return Ok(None) };
        let room = limit.saturating_sub(specials);
        if !truncate || room < parts.len() {
            return Err(EncodeError::TooLong { tokens, limit });
        }
        let shares = match &*parts {
            [one, other] => longest_first(one.places.len(), other.places.len(), room),
            _ => [room, 0],
        };
        let cut = |(part, share): (&mut Part, usize)| part.cut(share, self.truncation_side);
        let dropped = parts.iter_mut().zip(shares).filter_map(cut).collect();
        Ok(Some(Truncation { tokens, limit, dropped }))
    }

    /// Puts the special tokens around the parts, as the tokenizer's post-processor wants it.
    fn assemble(&self, parts: &[Part]) -> Result<Vec<Token>, EncodeError> {
        let mut encodings = parts.iter().map(|it| it.encoding.clone());
        let first = encodings.next().unwrap_or_default();
        let whole = self.inner.post_process(first, encodings.next(), true).map_err(failed)?;
        let mut next = [0, 0];
        let mut tokens = Vec::with_capacity(whole.len());
        let rows = whole.get_ids().iter().zip(whole.get_type_ids()).zip(whole.get_special_tokens_mask());
        for (((&id, &type_id), &special), sequence) in rows.zip(whole.get_sequence_ids()) {
            let Some(sequence) = sequence.filter(|_| special == 0) else {
                tokens.push(Token { id, type_id, segment: None, special: true, start: 0, end: 0 });
                continue;
            };
            let part = &parts[sequence];
            let places = part.places.get(next[sequence]).cloned();
            let Range { start, end } = places.ok_or_else(|| failed("the post-processor repeats a text"))?;
            next[sequence] += 1;
            tokens.push(Token { id, type_id, segment: Some(part.segment), special: false, start, end });
        }
        if parts.iter().zip(next).any(|(part, used)| part.places.len() != used) {
            return Err(failed("the post-processor leaves out a part of the text"));
        }
        Ok(tokens)
    }
}

/// One text of an input on its way.
struct Part {
    text: Text,
    encoding: Encoding,
    /// The place of each token of `encoding`, in code points.
    places: Vec<Range<usize>>,
    segment: u8,
}

impl Part {
    /// Keeps `share` tokens and says what went.
    fn cut(&mut self, share: usize, side: Side) -> Option<Dropped> {
        let surplus = self.places.len().checked_sub(share).filter(|&it| it > 0)?;
        let (gone, direction): (Vec<_>, _) = match side {
            Side::Right => (self.places.drain(share..).collect(), TruncationDirection::Right),
            Side::Left => (self.places.drain(..surplus).collect(), TruncationDirection::Left),
        };
        self.encoding.truncate(share, 0, direction);
        self.encoding.take_overflowing();
        let start = gone.iter().map(|it| it.start).min()?;
        let end = gone.iter().map(|it| it.end).max()?;
        Some(Dropped { segment: self.segment, tokens: surplus, start, end })
    }
}

/// Refuses what no tokenizer should see.
fn check(text: &str, segment: u8, caps: Caps) -> Result<(), EncodeError> {
    check_size(text, segment, caps)?;
    match text.chars().all(char::is_whitespace) {
        true => Err(EncodeError::EmptyText { segment }),
        false => Ok(()),
    }
}

/// As [`check`], for what may be empty.
fn check_size(text: &str, segment: u8, caps: Caps) -> Result<(), EncodeError> {
    let limit = caps.characters;
    let characters = text.chars().count();
    if characters > limit {
        return Err(EncodeError::TooManyCharacters { segment, characters, limit });
    }
    if let Some(at) = text.chars().position(|it| it == '\0') {
        return Err(EncodeError::NulCharacter { segment, at });
    }
    let limit = caps.run;
    let mut start = 0;
    for run in text.split(char::is_whitespace) {
        let characters = run.chars().count();
        if characters > limit {
            return Err(EncodeError::RunTooLong { segment, start, characters, limit });
        }
        start += characters + 1;
    }
    Ok(())
}

/// How many tokens each text of a pair keeps: the longer one gives way until both are of a length.
fn longest_first(one: usize, other: usize, room: usize) -> [usize; 2] {
    let half = room / 2;
    if one.min(other) <= half {
        return if one <= other { [one, room - one] } else { [room - other, other] };
    }
    // Transformers gives the odd token to the longer text, and to the second one if both are as long.
    if one > other { [room - half, half] } else { [half, room - half] }
}

/// How vocabularies spell the space before a word.
const MARKS: [char; 2] = ['▁', 'Ġ'];

/// The code points of a token, from the bytes that the crate aligns it with.
fn place(text: &Text, token: &str, bytes: Range<usize>) -> Range<usize> {
    let points = text.points(bytes);
    let slice = text.slice(points.start, points.end);
    if slice.chars().all(char::is_whitespace) {
        return points;
    }
    // A mark that the tokenizer puts before a text is aligned with the character after it.
    let only_marks = token.chars().all(|it| MARKS.contains(&it) || it.is_whitespace());
    if only_marks && !slice.contains(MARKS) {
        return points.start..points.start;
    }
    let before = slice.chars().take_while(|it| it.is_whitespace()).count();
    let after = slice.chars().rev().take_while(|it| it.is_whitespace()).count();
    points.start + before..points.end - after
}

fn failed(detail: impl ToString) -> EncodeError {
    EncodeError::Tokenizer { detail: detail.to_string() }
}
