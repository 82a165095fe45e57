//! This file is where the laws of text features are tried on texts that are unkind to offsets.

use icu_segmenter::GraphemeClusterSegmenter;
use proptest::prelude::*;

use super::*;

/// Space and what looks like it.
const GAPS: &[&str] = &[
    " ", "  ", "\r\n", "\n", "\t", "\u{a0}", "\u{3000}", "\u{2028}", "\u{85}", "\u{feff}", "\u{200b}",
    "\u{200d}", "\u{ad}",
];

/// What tokenizers and their normalisers stumble over.
const STONES: &[&str] = &[
    "😀",
    "👩\u{200d}👩\u{200d}👧\u{200d}👦",
    "🇩🇪🇫🇷",
    "👍🏽",
    "✌\u{fe0f}",
    "e\u{301}",
    "é",
    "a\u{308}\u{323}",
    "q\u{323}\u{307}",
    "ﬁ",
    "…",
    "㍿",
    "ﷺ",
    "İ",
    "ß",
    "Ǆ",
    "각",
    "ᄀ\u{1161}\u{11a8}",
    "हिन्दी",
    "நி",
    "\u{301}",
    "สวัสดีครับ",
    "ภาพยนตร์",
    "น้ำ",
    "这部电影",
    "映画はとても",
    "カタカナ",
    "ﾊﾟ",
    "שָׁלוֹם",
    "مُحَمَّد",
    "\u{202e}abc\u{202c}",
    "[SEP]",
    "[MASK]",
    "<mask>",
    "</s>",
    "<s>",
    "▁",
    "Ġ",
    "##a",
    "<0x0A>",
    "don't",
    "U.S.A.",
    "3.5/5",
];

/// Texts that are unkind to offsets.
fn text() -> impl Strategy<Value = String> {
    let character = any::<char>().prop_filter("NUL is refused", |&it| it != '\0');
    let pieces = prop_oneof![
        4 => "[a-zA-Z]{1,8}",
        1 => "[0-9.,'’-]{1,4}",
        3 => proptest::sample::select(GAPS).prop_map(String::from),
        4 => proptest::sample::select(STONES).prop_map(String::from),
        1 => character.prop_map(String::from),
    ];
    proptest::collection::vec(pieces, 1..12).prop_map(|it| it.concat())
}

fn is_character_boundary(text: &Text, at: usize) -> bool {
    let byte = text.slice(0, at).len();
    GraphemeClusterSegmenter::new().segment_str(text.as_str()).any(|it| it == byte)
}

/// What must hold of every input and every granularity.
fn check(name: &str, input: &Encoded) -> Result<(), TestCaseError> {
    for token in &input.tokens {
        prop_assert_eq!(token.special, token.segment.is_none());
        prop_assert!(token.start <= token.end, "{}: {:?}", name, token);
        let length = token.segment.map_or(0, |it| input.texts[usize::from(it)].len());
        prop_assert!(token.end <= length, "{}: {:?}", name, token);
    }
    let starts =
        |segment| input.tokens.iter().filter(move |it| it.segment == Some(segment)).map(|it| it.start);
    prop_assert!(starts(0).is_sorted() && starts(1).is_sorted(), "{}: {:?}", name, input.tokens);
    for granularity in [Granularity::Token, Granularity::Word, Granularity::Sentence] {
        let features = features(input, &granularity).unwrap();
        let mut seen: Vec<usize> = features.iter().flat_map(|it| it.tokens.iter().copied()).collect();
        seen.sort_unstable();
        prop_assert_eq!(&seen, &input.content().collect::<Vec<_>>(), "{} {:?}", name, granularity);
        for feature in &features {
            prop_assert!(feature.tokens.is_sorted() && !feature.tokens.is_empty());
            let text = &input.texts[usize::from(feature.segment)];
            prop_assert!(feature.start <= feature.end && feature.end <= text.len());
            for &index in &feature.tokens {
                let token = &input.tokens[index];
                prop_assert_eq!(token.segment, Some(feature.segment));
                let inside = feature.start <= token.start && token.end <= feature.end;
                prop_assert!(
                    inside || input.token_slice(token).trim().is_empty(),
                    "{}: {:?} {:?}",
                    name,
                    feature,
                    token
                );
            }
            if granularity != Granularity::Token && !text.slice(feature.start, feature.end).trim().is_empty()
            {
                let whole =
                    is_character_boundary(text, feature.start) && is_character_boundary(text, feature.end);
                prop_assert!(whole, "{}: {:?}", name, text.slice(feature.start, feature.end));
            }
        }
        if granularity != Granularity::Token {
            for pair in features.windows(2).filter(|it| it[0].segment == it[1].segment) {
                prop_assert!(pair[0].end <= pair[1].start, "{} {:?}: {:?}", name, granularity, pair);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn ids_are_those_of_the_crate_and_no_token_is_lost_or_counted_twice(text in text(), pair in proptest::option::of(text())) {
        for Family { name, tokenizer, theirs, .. } in FAMILIES.iter() {
            let input = match tokenizer.encode(&text, pair.as_deref(), false, ROOM) {
                Err(EncodeError::EmptyText { .. } | EncodeError::NoTokens { .. }) => continue,
                input => input.unwrap(),
            };
            let want = match &pair {
                Some(pair) => theirs.encode((text.as_str(), pair.as_str()), true).unwrap(),
                None => theirs.encode(text.as_str(), true).unwrap(),
            };
            prop_assert_eq!(input.ids(), want.get_ids(), "{}", name);
            prop_assert_eq!(input.type_ids(), want.get_type_ids(), "{}", name);
            prop_assert_eq!(input.texts[0].as_str(), &text);
            check(name, &input)?;
        }
    }

    #[test]
    fn truncation_keeps_the_limit_and_accounts_for_every_token(text in text(), pair in text(), limit in 6usize..14) {
        for Family { name, tokenizer, .. } in FAMILIES.iter() {
            let Ok(whole) = tokenizer.encode(&text, Some(&pair), false, ROOM) else { continue };
            for side in [Side::Left, Side::Right] {
                let cut = limited(name, limit, side).encode(&text, Some(&pair), true, ROOM).unwrap();
                prop_assert_eq!(cut.tokens.len(), whole.tokens.len().min(limit));
                prop_assert_eq!(cut.special().count(), whole.special().count());
                let dropped = cut.truncated.iter().flat_map(|it| &it.dropped).map(|it| it.tokens).sum::<usize>();
                prop_assert_eq!(cut.tokens.len() + dropped, whole.tokens.len());
                check(name, &cut)?;
            }
        }
    }

    #[test]
    fn spans_share_no_token_and_keep_their_ends(text in text(), cuts in proptest::collection::btree_set(0usize..40, 2..9)) {
        for Family { name, tokenizer, .. } in FAMILIES.iter() {
            let Ok(input) = tokenizer.encode(&text, None, false, ROOM) else { continue };
            let cuts: Vec<usize> = cuts.iter().copied().filter(|&it| it <= input.texts[0].len()).collect();
            let spans: Vec<Span> = cuts.windows(2).step_by(2).map(|it| span(it[0], it[1])).collect();
            match features(&input, &Granularity::Spans(spans.clone())) {
                Err(error) => {
                    let expected = matches!(error, FeatureError::SpanWithoutToken { .. } | FeatureError::NoSpans);
                    prop_assert!(expected, "{}: {}", name, error);
                }
                Ok(features) => {
                    let ends: Vec<Span> = features.iter().map(|it| span(it.start, it.end)).collect();
                    prop_assert_eq!(ends, spans);
                    let mut seen: Vec<usize> = features.into_iter().flat_map(|it| it.tokens).collect();
                    let all = seen.len();
                    seen.sort_unstable();
                    seen.dedup();
                    prop_assert_eq!(seen.len(), all);
                }
            }
        }
    }
}

#[test]
fn words_of_ten_thousand_characters_lose_nothing() {
    for word in ["a", "ab", "é", "🙈", "文", "ก", "e\u{301}", "👩\u{200d}", "x-", "\u{301}"] {
        let text = word.repeat(10_000 / word.chars().count());
        for Family { name, tokenizer, .. } in FAMILIES.iter() {
            match tokenizer.encode(&text, None, false, ROOM) {
                Err(EncodeError::NoTokens { .. }) => {}
                input => check(name, &input.unwrap()).unwrap(),
            }
        }
    }
}
