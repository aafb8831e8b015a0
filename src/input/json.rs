//! JSON text before decoding: checks for the database and for recursive programs, and raw access.

use std::collections::HashMap;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use thiserror::Error;

use super::{FieldError, shorten};

/// Maximum nesting of arrays and objects: later readers are recursive.
pub const MAX_JSON_DEPTH: usize = 64;

/// Maximum characters of one number. The database keeps every digit, and arithmetic on them is quadratic.
const MAX_NUMBER_CHARS: usize = 1000;

/// A number with at most this number of characters and without an exponent is within the range of a double.
const SURELY_FINITE_CHARS: usize = 300;

/// Maximum magnitude of an exponent, as in an `f64`: its smallest number is `5e-324`.
const MAX_EXPONENT: u32 = 324;

/// Maximum sum of all exponents: the database writes `1e308` out, so a document could become sixty times as long.
const MAX_EXPONENT_SUM: usize = 1 << 20;

/// Error in a JSON text, with its byte offset.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message} at byte {offset}")]
pub struct JsonFault {
    /// Number of bytes before the error.
    pub offset: usize,
    /// `type` of the field error: `json_invalid`, `json_too_deep`, `string_nul`, `string_surrogate` or
    /// `number_out_of_range`.
    pub kind: &'static str,
    /// Message for the client.
    pub message: &'static str,
    /// Keys and indexes of the value with the error, each with a dot before it. `None` if the text is not JSON.
    pub path: Option<String>,
}

impl JsonFault {
    fn new(offset: usize, kind: &'static str, message: &'static str) -> Self {
        Self { offset, kind, message, path: None }
    }

    fn malformed(offset: usize) -> Self {
        Self::new(offset, "json_invalid", "JSON decode error")
    }

    fn number(offset: usize) -> Self {
        Self::new(offset, "number_out_of_range", "Number is too long or outside the range of a double")
    }
}

impl From<JsonFault> for FieldError {
    fn from(fault: JsonFault) -> Self {
        let field = match fault.path {
            Some(path) => format!("body{path}"),
            None => format!("body.{}", fault.offset),
        };
        Self::new(field, fault.kind, fault.message)
    }
}

/// Checks an external text and returns it as JSON, without the surrounding white space.
///
/// A valid text is well-formed UTF-8 and JSON, at most [`MAX_JSON_DEPTH`] deep, and can be stored as `jsonb`: it has
/// no NUL, no lone surrogate, and no number outside the range of a double. The time is linear in the length of the
/// text.
pub fn check_json(text: &[u8]) -> Result<&RawValue, JsonFault> {
    let text = std::str::from_utf8(text).map_err(|error| JsonFault::malformed(error.valid_up_to()))?;
    let raw = serde_json::from_str(text).map_err(|error| JsonFault::malformed(offset_of(&error, text)))?;
    match check_content(text.as_bytes()) {
        Ok(_) => Ok(raw),
        Err(fault) => Err(JsonFault { path: Some(path_to(text.as_bytes(), fault.offset)), ..fault }),
    }
}

/// Keys and indexes of the value at `offset` in a well-formed text, each with a dot before it. The content is valid up
/// to there. For a key it is the path of its object.
fn path_to(text: &[u8], offset: usize) -> String {
    // Of each open array its index, and of each open object its key, if that was read already.
    enum Place<'a> {
        Index(usize),
        Key(Option<&'a [u8]>),
    }
    let (mut at, mut open) = (0, Vec::new());
    while at < offset {
        let end = match text[at] {
            b'"' => string_end(text, at).unwrap_or(offset),
            _ => at + 1,
        };
        if end > offset {
            break;
        }
        match (text[at], open.last_mut()) {
            (b'{', _) => open.push(Place::Key(None)),
            (b'[', _) => open.push(Place::Index(0)),
            (b'}' | b']', _) => drop(open.pop()),
            (b'"', Some(Place::Key(key @ None))) => *key = Some(&text[at..end]),
            (b',', Some(Place::Key(key))) => *key = None,
            (b',', Some(Place::Index(index))) => *index += 1,
            _ => (),
        }
        at = end;
    }
    let part = |place: &Place<'_>| match place {
        Place::Index(index) => format!(".{index}"),
        Place::Key(key) => {
            let key = key.and_then(|key| serde_json::from_slice::<String>(key).ok());
            key.map(|key| format!(".{}", shorten(&key))).unwrap_or_default()
        }
    };
    open.iter().map(part).collect()
}

/// Byte offset at which the parser stopped; the parser counts lines and columns from 1.
fn offset_of(error: &serde_json::Error, text: &str) -> usize {
    let before: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    (before + error.column().saturating_sub(1)).min(text.len())
}

/// Checks the content in one pass. The text is well-formed JSON, so that single bytes can be examined. Returns the
/// sum of the exponents.
fn check_content(text: &[u8]) -> Result<usize, JsonFault> {
    let (mut at, mut depth, mut exponents) = (0, 0, 0);
    while let Some(&byte) = text.get(at) {
        at = match byte {
            b'"' => string_end(text, at)?,
            b'-' | b'0'..=b'9' => {
                let (end, exponent) = number_end(text, at)?;
                exponents += exponent;
                if exponents > MAX_EXPONENT_SUM {
                    return Err(JsonFault::number(at));
                }
                end
            }
            b'[' | b'{' => {
                depth += 1;
                if depth > MAX_JSON_DEPTH {
                    return Err(JsonFault::new(at, "json_too_deep", "JSON should be nested at most 64 levels deep"));
                }
                at + 1
            }
            b']' | b'}' => {
                depth -= 1;
                at + 1
            }
            _ => at + 1,
        };
    }
    Ok(exponents)
}

/// Maximum length of a checked text after it was stored and made [`compact`]: `jsonb` writes exponents out, and does
/// not lengthen anything else.
#[must_use]
pub fn stored_len(raw: &RawValue) -> usize {
    raw.get().len() + check_content(raw.get().as_bytes()).unwrap_or_default()
}

/// The same JSON without white space between its tokens, which the database inserts.
#[must_use]
pub fn compact(raw: &RawValue) -> Box<RawValue> {
    let text = raw.get();
    let mut kept = String::with_capacity(text.len());
    let (mut is_in_string, mut is_escaped) = (false, false);
    for c in text.chars() {
        if is_in_string {
            is_in_string = is_escaped || c != '"';
            is_escaped = !is_escaped && c == '\\';
        } else if matches!(c, ' ' | '\t' | '\n' | '\r') {
            continue;
        } else {
            is_in_string = c == '"';
        }
        kept.push(c);
    }
    // White space between tokens has no meaning, so the result is well-formed too.
    RawValue::from_string(kept).unwrap_or_else(|_| raw.to_owned())
}

/// Index after the string that starts at `start`.
fn string_end(text: &[u8], start: usize) -> Result<usize, JsonFault> {
    let mut at = start + 1;
    loop {
        match text.get(at) {
            None => return Err(JsonFault::malformed(at)),
            Some(b'"') => return Ok(at + 1),
            Some(b'\\') => match escaped_unit(text, at) {
                None => at += 2, // a short escape, which may be a backslash or a quote
                Some(0) => return Err(JsonFault::new(at, "string_nul", "String should not contain NUL characters")),
                Some(0xD800..=0xDBFF) if matches!(escaped_unit(text, at + 6), Some(0xDC00..=0xDFFF)) => at += 12,
                Some(0xD800..=0xDFFF) => {
                    return Err(JsonFault::new(at, "string_surrogate", "String should not contain lone surrogates"));
                }
                Some(_) => at += 6,
            },
            Some(_) => at += 1,
        }
    }
}

/// UTF-16 unit of the escape `\uXXXX` at `at`.
fn escaped_unit(text: &[u8], at: usize) -> Option<u16> {
    let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Index after the number that starts at `start`, and the magnitude of its exponent.
fn number_end(text: &[u8], start: usize) -> Result<(usize, usize), JsonFault> {
    let rest = &text[start..];
    let length = rest.iter().position(|byte| !matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'));
    let length = length.unwrap_or(rest.len());
    let number = &rest[..length];
    // Fast path: most numbers are short, and there can be half a million of them.
    if length <= SURELY_FINITE_CHARS && !number.iter().any(|byte| matches!(byte, b'e' | b'E')) {
        return Ok((start + length, 0));
    }
    let fault = || JsonFault::number(start);
    let number = std::str::from_utf8(number).map_err(|_| fault())?;
    let exponent = match number.split_once(['e', 'E']) {
        None => 0,
        // An exponent beyond `i32` is beyond the limit.
        Some((_, exponent)) => exponent.parse::<i32>().map_err(|_| fault())?.unsigned_abs(),
    };
    let is_finite = number.parse::<f64>().is_ok_and(f64::is_finite);
    if length > MAX_NUMBER_CHARS || exponent > MAX_EXPONENT || !is_finite {
        return Err(fault());
    }
    Ok((start + length, usize::try_from(exponent).map_err(|_| fault())?))
}

/// Members of a JSON object as raw text, in the order of each name's first occurrence.
///
/// If a name occurs more than once, the last member counts, as in `jsonb`. `None` if the value is not an object.
#[must_use]
pub fn members(raw: &RawValue) -> Option<Vec<(String, &RawValue)>> {
    serde_json::Deserializer::from_str(raw.get()).deserialize_map(Members).ok()
}

struct Members;

impl<'a> Visitor<'a> for Members {
    type Value = Vec<(String, &'a RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members: Self::Value = Vec::new();
        let mut indexes = HashMap::new();
        while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
            if let Some(&index) = indexes.get(&name) {
                let (_, earlier): &mut (String, &RawValue) = &mut members[index];
                *earlier = value;
            } else {
                indexes.insert(name.clone(), members.len());
                members.push((name, value));
            }
        }
        Ok(members)
    }
}

/// The member with this name of a JSON object; the other members are skipped without decoding. `None` also if the
/// value is not an object.
#[must_use]
pub fn member<'a>(raw: &'a RawValue, name: &str) -> Option<&'a RawValue> {
    serde_json::Deserializer::from_str(raw.get()).deserialize_map(FindMember(name)).ok()?
}

struct FindMember<'n>(&'n str);

impl<'a> Visitor<'a> for FindMember<'_> {
    type Value = Option<&'a RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_it) = map.next_key_seed(IsName(self.0))? {
            if is_it {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

struct IsName<'n>(&'n str);

impl<'a> DeserializeSeed<'a> for IsName<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for IsName<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

/// Elements of a JSON array as raw text. `None` if the value is not an array.
#[must_use]
pub fn elements(raw: &RawValue) -> Option<Vec<&RawValue>> {
    serde_json::from_str(raw.get()).ok()
}

/// Content of a JSON string. `None` if the value is not a string.
#[must_use]
pub fn text(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

/// Builds a JSON object of these members; their text is copied byte by byte.
pub fn object_of<'a>(members: impl IntoIterator<Item = (&'a str, &'a RawValue)>) -> Box<RawValue> {
    struct Object<'a>(Vec<(&'a str, &'a RawValue)>);
    impl Serialize for Object<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_map(self.0.iter().copied())
        }
    }
    to_raw(&Object(members.into_iter().collect()))
}

/// JSON text of one of the service's own values.
///
/// # Panics
///
/// If the value cannot be JSON: maps with keys other than strings, or a custom `Serialize` that fails.
#[must_use]
pub fn to_raw<T: Serialize + ?Sized>(value: &T) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("own types have string keys and cannot fail")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<(), (usize, &str)>) {
        let checked = check_json(text.as_bytes()).map(|_| ()).map_err(|fault| (fault.offset, fault.kind));
        let shown: String = text.chars().take(60).collect();
        assert_eq!(checked, expected, "{shown}");
    }

    #[test]
    fn only_well_formed_json_passes() {
        for text in ["{}", " [1, 2] \n", "null", r#""a""#, r#"{"a":1,"a":2}"#, "-0.5e-3", r#"{"":[{}]}"#] {
            check(text, Ok(()));
        }
        for (text, offset) in [
            ("", 0),
            ("   ", 2),
            ("{", 0),
            ("{} x", 3),
            ("{\"a\":1,}", 7),
            ("{\n\"a\": x}", 7),
            ("[01]", 2),
            ("{'a':1}", 1),
            ("NaN", 0),
            ("\u{feff}{}", 0),
        ] {
            check(text, Err((offset, "json_invalid")));
        }
        let fault = check_json(b"[\"\xff\"]").expect_err("not UTF-8");
        assert_eq!((fault.offset, fault.kind), (2, "json_invalid"));
    }

    #[test]
    fn depth_is_limited_without_recursion() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        check(&nested(MAX_JSON_DEPTH), Ok(()));
        check(&nested(MAX_JSON_DEPTH + 1), Err((MAX_JSON_DEPTH, "json_too_deep")));
        check(&nested(500_000), Err((MAX_JSON_DEPTH, "json_too_deep")));
        check(&format!("[{}]", vec!["[]"; 100].join(",")), Ok(()));
        check(&format!("\"{}\"", "[".repeat(100)), Ok(()));
    }

    #[test]
    fn strings_and_keys_have_no_nul_and_no_lone_surrogate() {
        for text in [r#""\\u0000""#, r#""\"\\\\u0000""#, r#""\ud83d\ude00""#, r#""\u00e9\\ud800""#, r#""\n\/""#] {
            check(text, Ok(()));
        }
        for (text, offset, kind) in [
            (r#""\u0000""#, 1, "string_nul"),
            (r#""\\\u0000""#, 3, "string_nul"),
            (r#"{"a\u0000":1}"#, 3, "string_nul"),
            (r#""\ud83d""#, 1, "string_surrogate"),
            (r#""\ud83dx\ude00""#, 1, "string_surrogate"),
            (r#""\ude00""#, 1, "string_surrogate"),
            (r#""\ud83d\ud83d""#, 1, "string_surrogate"),
            (r#"{"\uDFFF":1}"#, 2, "string_surrogate"),
        ] {
            check(text, Err((offset, kind)));
        }
    }

    #[test]
    fn an_error_in_the_content_names_the_member_and_one_in_the_form_the_byte() {
        let long = "k".repeat(300);
        let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(64), "]".repeat(64));
        for (text, field) in [
            (r#""\u0000""#, "body".to_owned()),
            (r#"{"name":"a\u0000b"}"#, "body.name".to_owned()),
            (r#"{"a":{"b":"}"},"c":["x",[{"d\"[":1}],{"e,":[1,2,"\u0000"]}]}"#, "body.c.2.e,.2".to_owned()),
            (r#"{"a":[1,{"b":2}],"\u0000":3}"#, "body".to_owned()),
            (r#"{"a":[1,{"b":2,"\ud800":3}]}"#, "body.a.1".to_owned()),
            (r#"{"a":[],"b":{},"c":1e999}"#, "body.c".to_owned()),
            (&format!(r#"{{"{long}":"\ud800"}}"#), format!("body.{}…", "k".repeat(255))),
            (&deep, format!("body.a{}", ".0".repeat(63))),
            (r#"{"a":"b}"#, "body.7".to_owned()),
        ] {
            let fault = check_json(text.as_bytes()).expect_err(text);
            assert_eq!(FieldError::from(fault).field, field, "{text}");
        }
    }

    #[test]
    fn numbers_fit_into_a_double_and_stay_short_when_written_out() {
        for text in ["123456789012345678901234567890", "1.7e308", "-1e-308", "[1E+2,0.1]", "0"] {
            check(text, Ok(()));
        }
        check(&format!("0.{}", "1".repeat(900)), Ok(()));
        check(&format!("0.{}", "1".repeat(1000)), Err((0, "number_out_of_range")));
        for text in ["1e309", "1e131071", "1e-400000", "99999e308", "1e99999999999999999999", "-1e400"] {
            check(text, Err((0, "number_out_of_range")));
        }
        check(&"9".repeat(400), Err((0, "number_out_of_range")));
        check(&format!("[{}]", vec!["1e300"; 3000].join(",")), Ok(()));
        let amplified = format!("[{}]", vec!["1e300"; 4000].join(","));
        assert!(check_json(amplified.as_bytes()).is_err_and(|fault| fault.kind == "number_out_of_range"));
    }

    #[test]
    fn of_equal_members_the_last_one_counts_and_text_is_untouched() {
        let raw = check_json(br#"{"a": 1.0, "b":[ 1 ], "a" : 123456789012345678901234567890 }"#).expect("JSON");
        let members = members(raw).expect("an object");
        let texts: Vec<_> = members.iter().map(|(name, value)| (name.as_str(), value.get())).collect();
        assert_eq!(texts, [("a", "123456789012345678901234567890"), ("b", "[ 1 ]")]);
        let again = object_of(members.iter().map(|(name, value)| (name.as_str(), *value)));
        assert_eq!(again.get(), r#"{"a":123456789012345678901234567890,"b":[ 1 ]}"#);
        assert!(super::members(RawValue::NULL).is_none());
        assert_eq!(member(raw, "a").map(RawValue::get), Some("123456789012345678901234567890"));
        assert!(member(raw, "c").is_none() && member(RawValue::NULL, "a").is_none());
    }

    #[test]
    fn compacting_takes_white_space_from_between_the_tokens_only() {
        let raw = check_json(br#"{"a b": [1, 2.50, " \\\" , "], "c" : {} , "d":"\\"}"#).expect("valid");
        assert_eq!(compact(raw).get(), r#"{"a b":[1,2.50," \\\" , "],"c":{},"d":"\\"}"#);
    }

    #[test]
    fn the_stored_length_counts_exponents() {
        assert_eq!(stored_len(check_json(b"[1e10,2E-3]").expect("valid")), 11 + 13);
    }
}
