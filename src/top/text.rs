//! Makes text from others safe for a terminal: keys, user agents, errors.
//!
//! Always holds: a text from [`safe`] contains only letters, digits, printable ASCII and the few symbols that `top`
//! draws. So no escape sequence, control character, direction mark, zero-width character or stacked accent reaches the
//! terminal, and each character is as wide as [`columns`] says.

use std::fmt::Write as _;

use unicode_width::UnicodeWidthChar as _;

/// Largest number of characters of one text that are processed. The relay already cuts texts to a few KiB.
const MOST: usize = 4096;
/// Symbols that are drawn, by the relay (`∞`) or by `top`.
const SIGNS: &str = "…∞–▲▼▁▂▃▄▅▆▇█";
/// Letters that are not shown as they are: those of scripts written from right to left, since a terminal may reorder
/// them together with their neighbours, and letters that are invisible.
const UNSHOWN: [(char, char); 9] = [
    ('\u{0590}', '\u{08ff}'),
    ('\u{fb1d}', '\u{fdff}'),
    ('\u{fe70}', '\u{feff}'),
    ('\u{10800}', '\u{10fff}'),
    ('\u{1e800}', '\u{1efff}'),
    // Invisible fillers.
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{ffa0}', '\u{ffa0}'),
];

/// The text with all other characters escaped, as in `\u{1b}`.
pub(super) fn safe(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for (count, char) in text.chars().enumerate() {
        if count == MOST {
            shown.push('…');
            break;
        }
        if is_safe(char) {
            shown.push(char);
        } else {
            // Writing to a string cannot fail.
            let _ = write!(shown, "{}", char.escape_unicode());
        }
    }
    shown
}

fn is_safe(char: char) -> bool {
    if char.is_ascii() {
        return char.is_ascii_graphic() || char == ' ';
    }
    let takes_room = matches!(char.width(), Some(1 | 2));
    takes_room
        && (char.is_alphanumeric() || SIGNS.contains(char))
        && !UNSHOWN.iter().any(|(first, last)| (*first..=*last).contains(&char))
}

/// The width of a safe text in columns.
pub(super) fn columns(text: &str) -> usize {
    text.chars().map(|char| char.width().unwrap_or_default()).sum()
}

/// Fits a safe text to this width: cut with `…`, or padded with spaces.
pub(super) fn fit(text: &str, width: usize, right: bool) -> String {
    let taken = columns(text);
    if taken <= width {
        let fill = " ".repeat(width - taken);
        return if right { fill + text } else { text.to_owned() + &fill };
    }
    let mut cut = String::new();
    let mut left = width.saturating_sub(1);
    for char in text.chars() {
        let takes = char.width().unwrap_or_default();
        if takes > left {
            break;
        }
        left -= takes;
        cut.push(char);
    }
    if width > 0 {
        cut.push('…');
    }
    cut.push_str(&" ".repeat(left));
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_steer_a_terminal_is_escaped() {
        for (text, want) in [
            ("plain /a/b?c=d \"e\" \\", "plain /a/b?c=d \"e\" \\"),
            ("\u{1b}[2J\u{1b}]0;x\u{7}", "\\u{1b}[2J\\u{1b}]0;x\\u{7}"),
            ("a\rb\nc\td\u{8}", "a\\u{d}b\\u{a}c\\u{9}d\\u{8}"),
            ("\u{9b}2J\u{7f}", "\\u{9b}2J\\u{7f}"),
            ("a\u{202e}b\u{2066}c\u{200f}\u{61c}", "a\\u{202e}b\\u{2066}c\\u{200f}\\u{61c}"),
            ("a\u{200b}\u{200d}\u{feff}\u{ad}\u{2060}b", "a\\u{200b}\\u{200d}\\u{feff}\\u{ad}\\u{2060}b"),
            ("e\u{301}\u{e0041}\u{fe0f}", "e\\u{301}\\u{e0041}\\u{fe0f}"),
            ("\u{2028}\u{2800}\u{3164}\u{115f}", "\\u{2028}\\u{2800}\\u{3164}\\u{115f}"),
            ("שלום", "\\u{5e9}\\u{5dc}\\u{5d5}\\u{5dd}"),
            ("ключ 鍵 café ∞ …", "ключ 鍵 café ∞ …"),
        ] {
            assert_eq!(safe(text), want);
        }
    }

    #[test]
    fn no_character_at_all_escapes_the_rule() {
        for char in '\0'..=char::MAX {
            for shown in safe(&char.to_string()).chars() {
                assert!(!shown.is_control() && matches!(shown.width(), Some(1 | 2)), "{char:?} gives {shown:?}");
            }
        }
    }

    #[test]
    fn a_text_takes_the_columns_that_it_is_given() {
        for (text, width, want) in [
            ("abc", 5, "abc  "),
            ("abc", 3, "abc"),
            ("abcd", 3, "ab…"),
            ("鍵鍵鍵", 4, "鍵… "),
            ("abc", 1, "…"),
            ("abc", 0, ""),
        ] {
            assert_eq!(fit(text, width, false), want);
            assert_eq!(columns(&fit(text, width, false)), width);
        }
        assert_eq!(fit("7", 3, true), "  7");
        assert!(columns(&safe(&"x".repeat(MOST * 2))) == MOST + 1);
    }
}
