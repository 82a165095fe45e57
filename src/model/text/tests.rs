//! This file is where the text features meet hostile, foreign and plain texts, with four kinds of tokenizer.

use std::sync::LazyLock;

use super::*;
use crate::model::manifest::Side;

mod properties;

const ROOM: Caps = Caps { characters: 100_000, run: 100_000 };

struct Family {
    name: &'static str,
    json: Vec<u8>,
    tokenizer: Tokenizer,
    theirs: tokenizers::Tokenizer,
}

/// WordPiece, byte-level BPE, Unigram with a character map, BPE without pre-tokenizer.
static FAMILIES: LazyLock<Vec<Family>> = LazyLock::new(|| {
    let family = |(name, file): (&'static str, &str)| {
        let json = std::fs::read(file).unwrap();
        let tokenizer = Tokenizer::from_json(&json, None, Side::Right).unwrap();
        let theirs = tokenizers::Tokenizer::from_bytes(&json).unwrap();
        Family { name, json, tokenizer, theirs }
    };
    let files = [
        ("wordpiece", "models/sst2/tokenizer.json"),
        ("byte-level", "tests/tokenizers/byte-level-bpe.json"),
        ("unigram", "tests/tokenizers/unigram.json"),
        ("byte-fallback", "tests/tokenizers/byte-fallback-bpe.json"),
    ];
    files.into_iter().map(family).collect()
});

fn family(name: &str) -> &'static Family {
    FAMILIES.iter().find(|it| it.name == name).unwrap()
}

/// The family's tokenizer with a limit on tokens.
fn limited(name: &str, tokens: usize, side: Side) -> Tokenizer {
    family(name).tokenizer.with_limit(Some(tokens), side)
}

/// The slices of the features of one text, as a list.
fn slices(name: &str, granularity: &Granularity, text: &str) -> Vec<String> {
    let input = family(name).tokenizer.encode(text, None, false, ROOM).unwrap();
    let features = features(&input, granularity).unwrap();
    features.iter().map(|it| input.texts[0].slice(it.start, it.end).to_owned()).collect()
}

fn words(name: &str, text: &str) -> Vec<String> {
    slices(name, &Granularity::Word, text)
}

#[test]
fn words_are_words_whatever_the_vocabulary_makes_of_them() {
    let text = "I don't like  the café's\tfilms, e.g. \"über\" (3.5/5)!";
    let want = [
        "I", "don't", "like", "the", "café's", "films", ",", "e.g", ".", "\"", "über", "\"", "(", "3.5", "/",
        "5", ")", "!",
    ];
    for name in ["wordpiece", "byte-level", "unigram"] {
        assert_eq!(words(name, text), want, "{name}");
    }
}

#[test]
fn a_token_over_several_words_joins_them() {
    let input =
        family("byte-fallback").tokenizer.encode("it was a delight, full", None, false, ROOM).unwrap();
    let joined: Vec<&str> =
        input.tokens.iter().map(|it| input.token_slice(it)).filter(|it| it.contains(' ')).collect();
    for slice in &joined {
        let words = words("byte-fallback", "it was a delight, full");
        assert!(words.iter().any(|it| it.contains(slice)), "{slice} of {words:?}");
    }
    let added = r#"{"id": 12288, "content": "new york", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": false}"#;
    let json = String::from_utf8(family("wordpiece").json.clone()).unwrap();
    let json = json.replacen("\"added_tokens\":[", &format!("\"added_tokens\":[{added},"), 1);
    let json = json.replacen("\"added_tokens\": [", &format!("\"added_tokens\": [{added},"), 1);
    let tokenizer = Tokenizer::from_json(json.as_bytes(), None, Side::Right).unwrap();
    let input = tokenizer.encode("in new york, now", None, false, ROOM).unwrap();
    let features = features(&input, &Granularity::Word).unwrap();
    let slices: Vec<&str> = features.iter().map(|it| input.texts[0].slice(it.start, it.end)).collect();
    assert_eq!(slices, ["in", "new york", ",", "now"]);
}

#[test]
fn words_of_scripts_without_spaces_become_features() {
    for text in ["映画|は|面白", "好看|电影", "สนุก|มาก"] {
        let bytes = words("byte-fallback", &format!("x {}", text.replace('|', "")));
        assert_eq!(bytes[1..].join("|"), text);
    }
}

#[test]
fn words_keep_the_accents_that_the_normaliser_drops() {
    assert_eq!(words("wordpiece", "cafe\u{301} noe\u{308}l"), ["cafe\u{301}", "noe\u{308}l"]);
    let input = family("wordpiece").tokenizer.encode("cafe\u{301}!", None, false, ROOM).unwrap();
    let last = &input.tokens[input.tokens.len() - 2];
    assert_eq!((input.token_slice(last), last.start, last.end), ("!", 5, 6));
}

#[test]
fn tokens_that_split_one_character_share_its_place() {
    let input = family("byte-level").tokenizer.encode("a 🙈b", None, false, ROOM).unwrap();
    let places: Vec<(usize, usize)> =
        input.content().map(|it| (input.tokens[it].start, input.tokens[it].end)).collect();
    assert!(places.iter().filter(|&&it| it == (2, 3)).count() > 1, "{places:?}");
    assert_eq!((places[0], *places.last().unwrap()), ((0, 1), (3, 4)));
}

#[test]
fn the_space_before_a_word_is_not_part_of_its_slice() {
    for name in ["byte-level", "unigram", "byte-fallback"] {
        let input = family(name).tokenizer.encode("the  film", None, false, ROOM).unwrap();
        let tokens = input.content().map(|it| input.token_slice(&input.tokens[it]));
        let visible: Vec<&str> = tokens.filter(|it| !it.trim().is_empty()).collect();
        assert_eq!(visible.concat(), "thefilm", "{name}: {visible:?}");
    }
}

#[test]
fn a_mark_that_the_tokenizer_made_up_has_an_empty_slice_and_goes_with_its_word() {
    let input = family("unigram").tokenizer.encode("xylo", None, false, ROOM).unwrap();
    let mark = &input.tokens[1];
    assert_eq!(family("unigram").tokenizer.token_text(mark.id).unwrap(), "▁");
    assert_eq!((mark.start, mark.end), (0, 0));
    let features = features(&input, &Granularity::Word).unwrap();
    assert_eq!(features[0].tokens, input.content().collect::<Vec<_>>());
    let literal = family("unigram").tokenizer.encode("a ▁", None, false, ROOM).unwrap();
    let last = &literal.tokens[literal.tokens.len() - 2];
    assert_eq!((last.start, last.end), (2, 3));
}

#[test]
fn a_literal_special_token_in_the_text_is_text() {
    let sst2 = &family("wordpiece").tokenizer;
    let input = sst2.encode("so [MASK] [SEP] good", None, false, ROOM).unwrap();
    assert_eq!(words("wordpiece", "so [MASK] [SEP] good"), ["so", "[MASK]", "[SEP]", "good"]);
    assert_eq!((input.tokens[2].id, input.tokens[2].special), (sst2.id("[MASK]").unwrap(), false));
    assert_eq!(input.special().collect::<Vec<_>>(), [0, 5]);
}

#[test]
fn pairs_carry_their_segment_and_their_own_places() {
    let input = family("wordpiece").tokenizer.encode("good film", Some("bad film"), false, ROOM).unwrap();
    let segments: Vec<Option<u8>> = input.tokens.iter().map(|it| it.segment).collect();
    assert_eq!(segments, [None, Some(0), Some(0), None, Some(1), Some(1), None]);
    assert_eq!(input.type_ids(), [0, 0, 0, 0, 1, 1, 1]);
    let features = features(&input, &Granularity::Word).unwrap();
    let places: Vec<_> = features.iter().map(|it| (it.segment, it.start, it.end)).collect();
    assert_eq!(places, [(0, 0, 4), (0, 5, 9), (1, 0, 3), (1, 4, 8)]);
}

#[test]
fn sentences_end_at_full_stops_and_line_breaks() {
    let text = "It's fun. Is it? Yes!\r\nA list:\n- one\n\n\n- two";
    let want = ["It's fun.", "Is it?", "Yes!", "A list:", "- one", "- two"];
    for name in ["wordpiece", "byte-level", "unigram"] {
        assert_eq!(slices(name, &Granularity::Sentence, text), want, "{name}");
    }
    assert_eq!(
        slices("byte-level", &Granularity::Sentence, "面白い。もう一度！"),
        ["面白い。", "もう一度！"]
    );
}

#[test]
fn windows_run_over_words_and_the_last_one_ends_with_the_text() {
    let windows = |window, stride, text| {
        let input = family("wordpiece").tokenizer.encode(text, None, false, ROOM).unwrap();
        let found = super::windows(&input, window, stride).unwrap();
        found.iter().map(|it| input.slice(0, it.start, it.end).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(windows(2, 2, "a b c d e"), ["a b", "c d", "e"]);
    assert_eq!(windows(3, 1, "a b c d e"), ["a b c", "b c d", "c d e"]);
    assert_eq!(windows(9, 2, "a b"), ["a b"]);
    assert_eq!(windows(usize::MAX, 1, "a b"), ["a b"]);
    let input = family("wordpiece").tokenizer.encode("a b", Some("c"), false, ROOM).unwrap();
    for (window, stride) in [(0, 1), (1, 0), (2, 3)] {
        let error = super::windows(&input, window, stride).unwrap_err();
        assert_eq!(error, FeatureError::Windows { window, stride });
    }
    let pair = super::windows(&input, 5, 5).unwrap();
    assert_eq!(pair.iter().map(|it| it.segment).collect::<Vec<_>>(), [0, 1]);
}

fn span(start: usize, end: usize) -> Span {
    Span { segment: 0, start, end }
}

#[test]
fn spans_keep_their_order_and_their_exact_ends() {
    let spans = Granularity::Spans(vec![span(10, 17), span(0, 5)]);
    assert_eq!(slices("wordpiece", &spans, "good old bad film"), ["ad film", "good "]);
    let input = family("wordpiece").tokenizer.encode("good old bad film", None, false, ROOM).unwrap();
    let features = features(&input, &spans).unwrap();
    assert_eq!((&features[0].tokens[..], &features[1].tokens[..]), (&[3, 4][..], &[1][..]));
}

#[test]
fn a_token_goes_to_the_span_that_holds_most_of_it_and_to_no_other() {
    let input = family("wordpiece").tokenizer.encode("good film", None, false, ROOM).unwrap();
    let tokens = |spans: Vec<Span>| {
        let found = features(&input, &Granularity::Spans(spans))?;
        Ok::<_, FeatureError>(found.into_iter().map(|it| it.tokens).collect::<Vec<_>>())
    };
    assert_eq!(tokens(vec![span(0, 1), span(1, 6)]), Err(FeatureError::SpanWithoutToken { index: 0 }));
    assert_eq!(tokens(vec![span(0, 2), span(2, 9)]), Ok(vec![vec![1], vec![2]]));
    assert_eq!(tokens(vec![span(8, 9)]), Ok(vec![vec![2]]));
}

#[test]
fn spans_that_make_no_sense_are_refused_by_kind_and_index() {
    let input = family("wordpiece").tokenizer.encode("good film", None, false, ROOM).unwrap();
    let refused = |spans: &[Span]| features(&input, &Granularity::Spans(spans.to_vec())).unwrap_err();
    assert_eq!(refused(&[]), FeatureError::NoSpans);
    assert_eq!(
        refused(&[span(0, 4), span(5, 10)]),
        FeatureError::SpanOutside { index: 1, end: 10, length: 9 }
    );
    assert_eq!(refused(&[span(3, 3)]), FeatureError::EmptySpan { index: 0 });
    assert_eq!(refused(&[span(3, 2)]), FeatureError::EmptySpan { index: 0 });
    assert_eq!(refused(&[span(4, 6), span(0, 5)]), FeatureError::SpansOverlap { index: 1, other: 0 });
    assert_eq!(refused(&[span(4, 5)]), FeatureError::SpanWithoutToken { index: 0 });
    let second = Span { segment: 1, start: 0, end: 1 };
    assert_eq!(refused(&[second]), FeatureError::NoSuchSegment { index: 0, segment: 1, segments: 1 });
}

#[test]
fn texts_in_which_there_is_nothing_are_refused() {
    for Family { name, tokenizer, .. } in FAMILIES.iter() {
        for text in ["", " ", " \t\r\n\u{a0}\u{3000}"] {
            let error = tokenizer.encode(text, None, false, ROOM).unwrap_err();
            assert_eq!(error, EncodeError::EmptyText { segment: 0 }, "{name}");
            let error = tokenizer.encode("fine", Some(text), false, ROOM).unwrap_err();
            assert_eq!(error.segment(), Some(1), "{name}");
        }
        let nul = tokenizer.encode("é\0", None, true, ROOM).unwrap_err();
        assert_eq!(nul, EncodeError::NulCharacter { segment: 0, at: 1 }, "{name}");
    }
    let zero_width = family("unigram").tokenizer.encode("\u{200b}", None, false, ROOM).unwrap_err();
    assert_eq!(zero_width, EncodeError::NoTokens { segment: 0 });
    let control = family("wordpiece").tokenizer.encode("\u{200d}\u{1}", None, false, ROOM).unwrap_err();
    assert_eq!(control, EncodeError::NoTokens { segment: 0 });
}

#[test]
fn caps_are_checked_before_the_tokenizer_works() {
    let caps = Caps { characters: 20, run: 8 };
    let tokenizer = &family("wordpiece").tokenizer;
    assert!(tokenizer.encode("eightchr eightchr", None, false, caps).is_ok());
    let error = tokenizer.encode("fine", Some("a ninechars"), false, caps).unwrap_err();
    assert_eq!(error, EncodeError::RunTooLong { segment: 1, start: 2, characters: 9, limit: 8 });
    let error = tokenizer.encode(&"é ".repeat(11), None, true, caps).unwrap_err();
    assert_eq!(error, EncodeError::TooManyCharacters { segment: 0, characters: 22, limit: 20 });
}

#[test]
fn a_text_over_the_limit_is_refused_or_cut_and_what_was_cut_is_told() {
    let text = "the film is very good indeed";
    let tokenizer = limited("wordpiece", 6, Side::Right);
    assert_eq!(tokenizer.encode(text, None, false, ROOM), Err(EncodeError::TooLong { tokens: 8, limit: 6 }));
    let input = tokenizer.encode(text, None, true, ROOM).unwrap();
    let dropped = Dropped { segment: 0, tokens: 2, start: 17, end: 28 };
    assert_eq!(input.truncated, Some(Truncation { tokens: 8, limit: 6, dropped: vec![dropped] }));
    assert_eq!(input.texts[0].slice(17, 28), "good indeed");
    assert_eq!((input.tokens.len(), input.special().count()), (6, 2));

    let input = limited("wordpiece", 6, Side::Left).encode(text, None, true, ROOM).unwrap();
    let dropped = &input.truncated.as_ref().unwrap().dropped[0];
    assert_eq!(input.texts[0].slice(dropped.start, dropped.end), "the film");
    assert_eq!(input.token_slice(&input.tokens[1]), "is");
    assert!(limited("wordpiece", 8, Side::Right).encode(text, None, true, ROOM).unwrap().truncated.is_none());
    assert!(matches!(
        limited("wordpiece", 2, Side::Right).encode(text, None, true, ROOM),
        Err(EncodeError::TooLong { tokens: 8, limit: 2 })
    ));
}

#[test]
fn pairs_are_cut_as_transformers_cuts_them() {
    // The crate's own truncation, strategy longest-first, is the reference.
    let word = |n: usize| vec!["film"; n].join(" ");
    for limit in 5..16 {
        let ours = limited("wordpiece", limit, Side::Right);
        let mut theirs = family("wordpiece").theirs.clone();
        let params = tokenizers::TruncationParams { max_length: limit, ..Default::default() };
        theirs.with_truncation(Some(params)).unwrap();
        for (one, other) in [(1, 9), (9, 1), (4, 4), (5, 6), (6, 5), (2, 3)] {
            let (text, pair) = (word(one), word(other));
            let want = theirs.encode((text.as_str(), pair.as_str()), true).unwrap();
            let got = ours.encode(&text, Some(&pair), true, ROOM).unwrap();
            assert_eq!(
                (got.ids().as_slice(), got.type_ids().as_slice()),
                (want.get_ids(), want.get_type_ids())
            );
        }
    }
}

#[test]
fn one_tokenizer_serves_many_threads_with_the_same_answer() {
    let text = "I don't like the café's films, 面白い 🙈";
    for Family { tokenizer, .. } in FAMILIES.iter() {
        let want = tokenizer.encode(text, None, false, ROOM).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..20).for_each(|_| assert_eq!(tokenizer.encode(text, None, false, ROOM).unwrap(), want))
                });
            }
        });
    }
}
