//! Escaping of invisible text: control characters, line separators, direction marks and characters without width are
//! escaped, so that a text cannot hide in another one, overwrite it on a terminal, or look like it.

use std::{borrow::Cow, fmt::Write as _};

/// Whether the character is invisible, or changes how the text around it is shown: control characters, separators of
/// lines and paragraphs, bidirectional controls, and what Unicode calls default ignorable.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// Text of an error with its causes. A cause that the text before it ends with is not repeated.
#[must_use]
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The text with each hidden character as `\u{200b}`.
#[must_use]
pub fn escaped(text: &str) -> Cow<'_, str> {
    replaced(text, |c, shown| {
        let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
    })
}

/// As [`escaped`], but line breaks are kept.
#[must_use]
pub fn escaped_lines(text: &str) -> String {
    text.split('\n').map(escaped).collect::<Vec<_>>().join("\n")
}

/// Equivalent JSON, with each hidden character as JSON writes it: `\u200b`. Outside of its strings the text must not
/// have any.
#[must_use]
pub fn json(text: &str) -> Cow<'_, str> {
    replaced(text, |c, shown| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(shown, "\\u{unit:04x}");
        }
    })
}

/// Replaces the hidden characters of a text. Writing to a string cannot fail.
fn replaced(text: &str, write: impl Fn(char, &mut String)) -> Cow<'_, str> {
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) || !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_hidden(c) { write(c, &mut shown) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_are_escaped_and_all_others_stay() {
        for (text, shown) in [
            ("", ""),
            ("plain ~ text", "plain ~ text"),
            ("größe 第一 🙂 \\n", "größe 第一 🙂 \\n"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("a\u{b}b\u{85}c\u{9b}d\u{7f}", "a\\u{b}b\\u{85}c\\u{9b}d\\u{7f}"),
            ("a\nb\r\tc", "a\\u{a}b\\u{d}\\u{9}c"),
            ("a\u{2028}b\u{2029}c", "a\\u{2028}b\\u{2029}c"),
            ("\u{202e}nimda\u{202c}\u{2066}", "\\u{202e}nimda\\u{202c}\\u{2066}"),
            ("sys\u{200b}tem\u{feff}\u{ad}\u{e0041}", "sys\\u{200b}tem\\u{feff}\\u{ad}\\u{e0041}"),
        ] {
            assert_eq!(escaped(text), shown);
        }
        assert_eq!(escaped_lines("a\u{1b}\nb"), "a\\u{1b}\nb");
    }

    #[test]
    fn escaped_json_says_the_same() {
        let text = "{\"a\":\"x\u{202e}y\u{85}z\u{e0041}ü\"}";
        let shown = json(text);
        assert_eq!(shown, r#"{"a":"x\u202ey\u0085z\udb40\udc41ü"}"#);
        let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(parse(&shown), parse(text));
    }
}
