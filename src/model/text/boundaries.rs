//! This file is where Unicode says where characters, words and sentences end.
//!
//! Word boundaries follow UAX #29. Scripts that write no spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) are
//! divided by dictionaries, which lie in the binary: plain UAX #29 would make every character of them a word. The
//! neural network that ICU4X offers beside the dictionaries makes the same words of Thai in a hundred times the time.

use std::sync::LazyLock;

use icu_segmenter::options::{SentenceBreakInvariantOptions, WordBreakInvariantOptions};
use icu_segmenter::{GraphemeClusterSegmenter, SentenceSegmenter, WordSegmenter, WordSegmenterBorrowed};

use super::encoded::Text;

static WORDS: LazyLock<WordSegmenterBorrowed<'static>> =
    LazyLock::new(|| WordSegmenter::new_dictionary(WordBreakInvariantOptions::default()));

/// Where words, punctuation marks and stretches of white space begin and end, in code points: 0 first, the text's
/// length last. None lies inside a character as a person sees it (a grapheme cluster).
pub(super) fn words(text: &Text) -> Vec<usize> {
    outside_characters(text, WORDS.segment_str(text.as_str()))
}

/// The same for sentences. Every line break ends one, as UAX #29 has it.
pub(super) fn sentences(text: &Text) -> Vec<usize> {
    let segmenter = SentenceSegmenter::new(SentenceBreakInvariantOptions::default());
    outside_characters(text, segmenter.segment_str(text.as_str()))
}

/// The same for characters as a person sees them.
pub(super) fn characters(text: &Text) -> Vec<usize> {
    let breaks = GraphemeClusterSegmenter::new().segment_str(text.as_str());
    breaks.map(|byte| text.point(byte)).collect()
}

/// Drops the boundaries that lie inside a character.
fn outside_characters(text: &Text, bytes: impl Iterator<Item = usize>) -> Vec<usize> {
    let characters = characters(text);
    let points = bytes.map(|byte| text.point(byte));
    points.filter(|point| characters.binary_search(point).is_ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str, boundaries: fn(&Text) -> Vec<usize>) -> Vec<String> {
        let text = Text::new(text.to_owned());
        boundaries(&text).windows(2).map(|it| text.slice(it[0], it[1]).to_owned()).collect()
    }

    #[test]
    fn scripts_without_spaces_are_divided_into_words() {
        // Thai, Chinese and Lao as ICU4C 78 divides them (Intl.Segmenter of Node.js).
        for text in [
            "ฉัน|ชอบ|ภาพยนตร์",
            "หนัง|เรื่อง|นี้|สนุก|มาก",
            "电影|非常|好看",
            "剧情|无聊|，|演员|很好|。",
            "ພາສາ|ລາວ",
        ] {
            assert_eq!(cut(&text.replace('|', ""), words).join("|"), text);
        }
        let japanese = cut("映画はとても面白かったです", words);
        assert!(
            japanese.contains(&"映画".to_owned()) && japanese.contains(&"面白".to_owned()),
            "{japanese:?}"
        );
    }

    #[test]
    fn words_keep_their_apostrophes_and_leave_their_punctuation() {
        for text in ["don't| |stop|!", "l’été| |(|3.5|/|5|)", "snake_case| |état|-|major", "a|  |b|\r\n|c"]
        {
            assert_eq!(cut(&text.replace('|', ""), words).join("|"), text);
        }
    }

    #[test]
    fn what_a_person_sees_as_one_character_is_never_divided() {
        let family = "👩\u{200d}👩\u{200d}👧";
        assert_eq!(cut(&format!("{family}{family}"), words), [family, family]);
        assert_eq!(cut("🇩🇪🇫🇷", words), ["🇩🇪", "🇫🇷"]);
        assert_eq!(cut("น้ำ", characters), ["น้ำ"]);
        assert_eq!(cut("\r\n", characters), ["\r\n"]);
    }

    #[test]
    fn a_line_break_ends_a_sentence() {
        for text in ["It was fun. |3.5 stars... |Ok?\n|- next\r\n|last", "面白い。|もう一度！"] {
            assert_eq!(cut(&text.replace('|', ""), sentences).join("|"), text);
        }
    }
}
