//! Decoder of request data, with an error for every bad member.
//!
//! A body goes through [`check_json`] first, then member by member through an [`Object`]. Each read takes the list of
//! errors, so that one answer reports all of them in the order of the fields:
//!
//! ```
//! use workflow_api::input::{Node, Object, check_json};
//!
//! let body = Object::body(check_json(br#"{"input_data": [], "reason": 7}"#).unwrap()).unwrap();
//! let mut errors = Vec::new();
//! let input = body.required("input_data", &mut errors, Node::free_object);
//! let reason = body.nullable("reason", &mut errors, |reason| reason.string(0..=500));
//! assert!(input.is_none() && reason.is_none());
//! assert_eq!(errors[0].field, "body.input_data");
//! assert_eq!(errors[1].kind, "string_type");
//! ```
//!
//! A read that returns nothing for a bad member has pushed its error; check that `errors` is empty before use.
//! Unknown members are ignored, of equal members the last one counts, and free-form JSON stays the caller's text: a
//! `serde_json::Value` would change long integers. Kinds and messages are those of the contract's §3.3.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::{self, Display};
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

mod json;
#[cfg(test)]
pub(crate) mod look_ups;
mod params;
mod request_object;

pub use json::{
    JsonFault, MAX_JSON_DEPTH, check_json, compact, elements, member, members, object_of, stored_len, text, to_raw,
};
pub use params::{iso_8601, iso_duration, path_uuid, query_datetime, query_int};
pub(crate) use request_object::request_object;

/// Length range of strings without a limit of their own; the size of the body limits them.
pub const ANY_LENGTH: RangeInclusive<usize> = 0..=usize::MAX;

/// Maximum number of errors in one answer. A body can contain hundreds of thousands of them.
pub const MAX_ERRORS: usize = 100;

/// Maximum number of characters of a caller's key or reference that an error repeats.
const MAX_ECHOED_CHARS: usize = 255;

/// Result of reading a value: the value, or all of its errors.
pub type Read<T> = Result<T, Vec<FieldError>>;

/// One entry of `errors`.
// The field is `body`, `query` or `path`, then keys and indexes, joined with dots. The pointer (RFC 6901) is for names
// that contain dots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// Location of the error, such as `body.steps.a.agent_name`.
    pub field: String,
    /// Description of the error for people.
    pub message: String,
    /// Stable code of the error for programs.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    pub kind: Cow<'static, str>,
    /// For an input that breaks its `input_schema`: location in `input_data`, as a JSON Pointer. Absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub pointer: Option<String>,
}

impl FieldError {
    /// Creates an error of any kind.
    #[must_use]
    pub fn new(field: impl Into<String>, kind: &'static str, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), kind: Cow::Borrowed(kind), pointer: None }
    }

    /// Error: a required member is missing, or, with `body`, the whole body.
    #[must_use]
    pub fn missing(field: impl Into<String>) -> Self {
        Self::new(field, "missing", "Field required")
    }

    /// Error: a rule of the application is broken.
    #[must_use]
    pub fn rule(field: impl Into<String>, text: impl Display) -> Self {
        Self::new(field, "value_error", format!("Value error, {text}"))
    }
}

/// Maximum number of errors in a sentence.
const MAX_IN_WORDS: usize = 10;

/// The errors as one line for people, for answers that have no list of them. Their fields are named below `root`.
#[must_use]
pub fn in_words(errors: &[FieldError], root: &str) -> String {
    let of_error = |FieldError { field, message, .. }: &FieldError| match field.strip_prefix(root) {
        Some("") => message.clone(),
        Some(below) => format!("{}: {message}", below.trim_start_matches('.')),
        None => format!("{field}: {message}"),
    };
    errors.iter().take(MAX_IN_WORDS).map(of_error).collect::<Vec<_>>().join("; ")
}

/// Member of a partial update: it can be left unchanged, cleared, or set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Patch<T> {
    /// Absent: the value stays unchanged.
    #[default]
    Absent,
    /// Explicit null: the value is cleared.
    Null,
    /// New value.
    Value(T),
}

impl<T> Patch<T> {
    /// Whether the update leaves the member unchanged.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// Returns the member after the update, given the current value.
    #[must_use]
    pub fn or(self, current: Option<T>) -> Option<T> {
        match self {
            Self::Absent => current,
            Self::Null => None,
            Self::Value(value) => Some(value),
        }
    }
}

/// JSON value with its path.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    path: Path,
    raw: &'a RawValue,
}

/// Path to a value. It becomes text only for an error: keys can be long, and there can be many values.
#[derive(Clone, Debug)]
struct Path(Arc<Part>);

#[derive(Debug)]
enum Part {
    Root(String),
    Key(Path, String),
    Index(Path, usize),
}

impl Path {
    fn root(name: impl Into<String>) -> Self {
        Self(Arc::new(Part::Root(name.into())))
    }

    fn key(&self, key: &str) -> Self {
        Self(Arc::new(Part::Key(self.clone(), key.to_owned())))
    }

    fn index(&self, index: usize) -> Self {
        Self(Arc::new(Part::Index(self.clone(), index)))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Part::Root(name) => f.write_str(name),
            Part::Key(parent, key) => write!(f, "{parent}.{}", shorten(key)),
            Part::Index(parent, index) => write!(f, "{parent}.{index}"),
        }
    }
}

/// Shortens a caller's text for use in an error: a long text is cut off with an ellipsis.
#[must_use]
pub fn shorten(text: &str) -> Cow<'_, str> {
    shorten_to(text, MAX_ECHOED_CHARS)
}

/// [`shorten`] to another length.
#[must_use]
pub fn shorten_to(text: &str, chars: usize) -> Cow<'_, str> {
    match text.char_indices().nth(chars) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
    }
}

impl<'a> Node<'a> {
    /// Creates a node with the given path.
    #[must_use]
    pub fn new(path: impl Into<String>, raw: &'a RawValue) -> Self {
        Self { path: Path::root(path), raw }
    }

    /// Path of the value, as in [`FieldError::field`].
    #[must_use]
    pub fn path(&self) -> String {
        self.path.to_string()
    }

    /// JSON text of the value.
    #[must_use]
    pub fn raw(&self) -> &'a RawValue {
        self.raw
    }

    /// Whether the value is null.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.raw.get() == "null"
    }

    /// Creates an error about this value.
    #[must_use]
    pub fn error(&self, kind: &'static str, message: impl Into<String>) -> FieldError {
        FieldError::new(self.path(), kind, message)
    }

    fn fail<T>(&self, kind: &'static str, message: impl Into<String>) -> Read<T> {
        Err(vec![self.error(kind, message)])
    }

    /// Reads a string with a number of characters in this range.
    pub fn string(&self, chars: RangeInclusive<usize>) -> Read<String> {
        let Some(text) = text(self.raw) else { return self.fail("string_type", "Input should be a valid string") };
        let (min, max) = chars.into_inner();
        let length = text.chars().count();
        let bound = |word: &str, limit: usize| {
            format!("String should have at {word} {limit} character{}", if limit == 1 { "" } else { "s" })
        };
        match () {
            () if length < min => self.fail("string_too_short", bound("least", min)),
            () if length > max => self.fail("string_too_long", bound("most", max)),
            () => Ok(text),
        }
    }

    /// Reads a string with a number of characters in this range that is not only white space.
    pub fn not_blank(&self, chars: RangeInclusive<usize>) -> Read<String> {
        let text = self.string(chars)?;
        if text.trim().is_empty() {
            return Err(vec![FieldError::rule(self.path(), "must not be blank")]);
        }
        Ok(text)
    }

    /// Reads a string and parses it by a rule of the application; `Err` is the rule's text.
    pub fn parsed<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Read<T> {
        parse(&self.string(ANY_LENGTH)?).map_err(|text| vec![FieldError::rule(self.path(), text)])
    }

    /// Reads an integer. `2000`, `2000.0` and `"2000"` are equal; the limits of `i64` count as no bound.
    pub fn int(&self, range: RangeInclusive<i64>) -> Read<i64> {
        let number = match self.raw.get().as_bytes().first() {
            Some(b'"') => text(self.raw),
            Some(b'-' | b'0'..=b'9') => match whole_number(self.raw.get()) {
                Some(number) => Some(number),
                None => {
                    return self.fail(
                        "int_from_float",
                        "Input should be a valid integer, got a number with a fractional part",
                    );
                }
            },
            _ => None,
        };
        let Some(number) = number else { return self.fail("int_type", "Input should be a valid integer") };
        read_int(&number, range).map_err(|(kind, message)| vec![self.error(kind, message)])
    }

    /// Reads a number that is at least `min`. A string that contains a number is accepted.
    pub fn float(&self, min: f64) -> Read<f64> {
        let number = match self.raw.get().as_bytes().first() {
            Some(b'"') => {
                let Some(number) = text(self.raw).and_then(|text| text.trim().parse::<f64>().ok()) else {
                    let message = "Input should be a valid number, unable to parse string as a number";
                    return self.fail("float_parsing", message);
                };
                number
            }
            Some(b'-' | b'0'..=b'9') => self.raw.get().parse().unwrap_or(f64::INFINITY),
            _ => return self.fail("float_type", "Input should be a valid number"),
        };
        if !number.is_finite() {
            return self.fail("finite_number", "Input should be a finite number");
        }
        if number < min {
            return self.fail("greater_than_equal", format!("Input should be greater than or equal to {min}"));
        }
        Ok(number)
    }

    /// Reads a boolean.
    pub fn boolean(&self) -> Read<bool> {
        match self.raw.get() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => self.fail("bool_type", "Input should be a valid boolean"),
        }
    }

    /// Reads an object with fixed member names.
    pub fn object(&self) -> Read<Object<'a>> {
        let Some(members) = members(self.raw) else {
            let message = "Input should be a valid dictionary or object to extract fields from";
            return self.fail("model_attributes_type", message);
        };
        Ok(Object { path: self.path.clone(), members: members.into_iter().collect() })
    }

    /// Reads an object with arbitrary keys.
    pub fn map(&self) -> Read<Vec<(String, Self)>> {
        let Some(members) = members(self.raw) else { return self.not_a_map() };
        let nodes = members.into_iter().map(|(key, raw)| {
            let node = Self { path: self.path.key(&key), raw };
            (key, node)
        });
        Ok(nodes.collect())
    }

    /// Reads an array.
    pub fn list(&self) -> Read<Vec<Self>> {
        let Some(elements) = elements(self.raw) else {
            return self.fail("list_type", "Input should be a valid list");
        };
        let nodes = elements.into_iter().enumerate();
        Ok(nodes.map(|(index, raw)| Self { path: self.path.index(index), raw }).collect())
    }

    /// Reads an object and keeps its text unchanged.
    pub fn free_object(&self) -> Read<Box<RawValue>> {
        if self.raw.get().starts_with('{') { Ok(self.raw.to_owned()) } else { self.not_a_map() }
    }

    fn not_a_map<T>(&self) -> Read<T> {
        self.fail("dict_type", "Input should be a valid dictionary")
    }
}

/// Object whose members are read by name.
#[derive(Clone, Debug)]
pub struct Object<'a> {
    path: Path,
    members: HashMap<String, &'a RawValue>,
}

impl<'a> Object<'a> {
    /// Reads the whole body as an object; a null body counts as absent.
    pub fn body(raw: &'a RawValue) -> Read<Self> {
        let node = Node::new("body", raw);
        if node.is_null() { Err(vec![FieldError::missing("body")]) } else { node.object() }
    }

    /// The members with other names than these, sorted.
    #[must_use]
    pub fn unknown(&self, known: &[&str]) -> Vec<Node<'a>> {
        let mut names: Vec<&String> = self.members.keys().filter(|name| !known.contains(&name.as_str())).collect();
        names.sort_unstable();
        names.into_iter().filter_map(|name| self.member(name)).collect()
    }

    /// Path of the object, as in [`FieldError::field`].
    #[must_use]
    pub fn path(&self) -> String {
        self.path.to_string()
    }

    fn member(&self, name: &str) -> Option<Node<'a>> {
        self.members.get(name).map(|&raw| Node { path: self.path.key(name), raw })
    }

    /// Reports members with other names than these as errors. If they were ignored, a misspelt limit would have no
    /// effect.
    pub fn only(&self, known: &[&str], errors: &mut Vec<FieldError>) {
        let unknown = self.unknown(known);
        let refused = unknown.iter().map(|node| node.error("extra_forbidden", "Extra inputs are not permitted"));
        errors.extend(refused.take(MAX_ERRORS));
    }

    /// Reads a required member. `None` if it has an error.
    pub fn required<T>(
        &self,
        name: &str,
        errors: &mut Vec<FieldError>,
        read: impl FnOnce(&Node<'a>) -> Read<T>,
    ) -> Option<T> {
        #[cfg(test)]
        look_ups::record(self, name, look_ups::Presence::Required);
        let Some(node) = self.member(name) else {
            return keep(Err(vec![FieldError::missing(self.path.key(name).to_string())]), errors);
        };
        keep(read(&node), errors)
    }

    /// Reads an optional member with a default, which also replaces a bad value; null is an error.
    pub fn defaulted<T>(
        &self,
        name: &str,
        errors: &mut Vec<FieldError>,
        default: T,
        read: impl FnOnce(&Node<'a>) -> Read<T>,
    ) -> T {
        self.patch_not_null(name, errors, read).unwrap_or(default)
    }

    /// Reads a member that may be absent or null. `None` also if it has an error.
    pub fn nullable<T>(
        &self,
        name: &str,
        errors: &mut Vec<FieldError>,
        read: impl FnOnce(&Node<'a>) -> Read<T>,
    ) -> Option<T> {
        self.patch(name, errors, read).or(None)
    }

    /// Reads a member of a partial update that can be cleared. [`Patch::Absent`] also if it has an error.
    pub fn patch<T>(
        &self,
        name: &str,
        errors: &mut Vec<FieldError>,
        read: impl FnOnce(&Node<'a>) -> Read<T>,
    ) -> Patch<T> {
        #[cfg(test)]
        look_ups::record(self, name, look_ups::Presence::Nullable);
        match self.member(name) {
            None => Patch::Absent,
            Some(node) if node.is_null() => Patch::Null,
            Some(node) => keep(read(&node), errors).map_or(Patch::Absent, Patch::Value),
        }
    }

    /// Reads a member of a partial update that cannot be cleared; null is an error. `None` if it is absent or bad.
    pub fn patch_not_null<T>(
        &self,
        name: &str,
        errors: &mut Vec<FieldError>,
        read: impl FnOnce(&Node<'a>) -> Read<T>,
    ) -> Option<T> {
        #[cfg(test)]
        look_ups::record(self, name, look_ups::Presence::Optional);
        self.member(name).and_then(|node| keep(read(&node), errors))
    }
}

/// Returns the value, or `None` after adding its errors to `errors`, up to [`MAX_ERRORS`].
pub(crate) fn keep<T>(read: Read<T>, errors: &mut Vec<FieldError>) -> Option<T> {
    let room = MAX_ERRORS.saturating_sub(errors.len());
    read.map_err(|found| errors.extend(found.into_iter().take(room))).ok()
}

/// The digits of a JSON number without a fraction; `None` if it has one.
fn whole_number(number: &str) -> Option<String> {
    if !number.contains(['.', 'e', 'E']) {
        return Some(number.to_owned());
    }
    let float: f64 = number.parse().ok()?;
    // Only a number beyond every bound becomes infinity. It has no fraction, and is read as an overlong integer.
    if float.is_infinite() {
        return Some(format!("{}{}", if float < 0.0 { "-" } else { "" }, "9".repeat(400)));
    }
    (float.fract() == 0.0).then(|| format!("{float:.0}"))
}

/// Parses an integer with optional sign, zero fraction and surrounding white space. Otherwise returns kind and
/// message.
fn read_int(text: &str, range: RangeInclusive<i64>) -> Result<i64, (&'static str, String)> {
    let unparsable = || {
        let message = "Input should be a valid integer, unable to parse string as an integer".to_owned();
        ("int_parsing", message)
    };
    let text = text.trim();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = whole.strip_prefix(['+', '-']).unwrap_or(whole);
    let is_integer = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_integer || !fraction.bytes().all(|byte| byte == b'0') {
        return Err(unparsable());
    }
    // The parse fails only for an integer outside `i64`, which is outside every range.
    let beyond = if whole.starts_with('-') { i64::MIN } else { i64::MAX };
    let (number, is_exact) = whole.parse().map_or((beyond, false), |number: i64| (number, true));
    let (min, max) = range.into_inner();
    if number < min || (!is_exact && number == i64::MIN) {
        return Err(("greater_than_equal", format!("Input should be greater than or equal to {min}")));
    }
    if number > max || !is_exact {
        return Err(("less_than_equal", format!("Input should be less than or equal to {max}")));
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `json` at `body.x` and compares the value, or the kind and message of the first error.
    fn check<T: PartialEq + std::fmt::Debug>(
        json: &str,
        read: impl FnOnce(&Node<'_>) -> Read<T>,
        expected: Result<T, (&str, &str)>,
    ) {
        let raw = check_json(json.as_bytes()).expect(json);
        let found = read(&Node::new("body.x", raw));
        let found = found.map_err(|errors| {
            assert_eq!(errors[0].field, "body.x", "{json}");
            (errors[0].kind.to_string(), errors[0].message.clone())
        });
        assert_eq!(found, expected.map_err(|(kind, message)| (kind.to_owned(), message.to_owned())), "{json}");
    }

    #[test]
    fn a_string_has_its_type_and_length_checked_in_characters() {
        check(r#""éé""#, |node| node.string(1..=2), Ok("éé".to_owned()));
        check("1", |node| node.string(ANY_LENGTH), Err(("string_type", "Input should be a valid string")));
        check("null", |node| node.string(ANY_LENGTH), Err(("string_type", "Input should be a valid string")));
        let short = "String should have at least 1 character";
        check(r#""""#, |node| node.string(1..=2), Err(("string_too_short", short)));
        let long = "String should have at most 2 characters";
        check(r#""ééé""#, |node| node.string(1..=2), Err(("string_too_long", long)));
        check(r#"" \t""#, |node| node.not_blank(1..=2), Err(("value_error", "Value error, must not be blank")));
    }

    #[test]
    fn an_integer_is_read_leniently_but_never_rounded() {
        for json in ["2000", "2000.0", "\"2000\"", "2e3", "\" 2000.00 \"", "\"+2000\""] {
            check(json, |node| node.int(1000..=3000), Ok(2000));
        }
        let kinds = [
            ("2000.5", "int_from_float", "Input should be a valid integer, got a number with a fractional part"),
            ("\"abc\"", "int_parsing", "Input should be a valid integer, unable to parse string as an integer"),
            ("\"2000.5\"", "int_parsing", "Input should be a valid integer, unable to parse string as an integer"),
            ("null", "int_type", "Input should be a valid integer"),
            ("true", "int_type", "Input should be a valid integer"),
            ("[1]", "int_type", "Input should be a valid integer"),
            ("999", "greater_than_equal", "Input should be greater than or equal to 1000"),
            ("3001", "less_than_equal", "Input should be less than or equal to 3000"),
            ("1e300", "less_than_equal", "Input should be less than or equal to 3000"),
            ("-123456789012345678901234567890", "greater_than_equal", "Input should be greater than or equal to 1000"),
        ];
        for (json, kind, message) in kinds {
            check(json, |node| node.int(1000..=3000), Err((kind, message)));
        }
        let beyond = "Input should be less than or equal to 9223372036854775807";
        check("9223372036854775808", |node| node.int(1..=i64::MAX), Err(("less_than_equal", beyond)));
    }

    #[test]
    fn a_float_is_finite_and_bounded() {
        check("2", |node| node.float(1.0), Ok(2.0));
        check("\"1.5\"", |node| node.float(1.0), Ok(1.5));
        let low = "Input should be greater than or equal to 1";
        check("0.5", |node| node.float(1.0), Err(("greater_than_equal", low)));
        check("null", |node| node.float(1.0), Err(("float_type", "Input should be a valid number")));
        check("\"inf\"", |node| node.float(1.0), Err(("finite_number", "Input should be a finite number")));
        let text = "Input should be a valid number, unable to parse string as a number";
        check("\"x\"", |node| node.float(1.0), Err(("float_parsing", text)));
    }

    #[test]
    fn containers_have_their_type_checked() {
        let message = "Input should be a valid dictionary or object to extract fields from";
        check("[]", |node| node.object().map(|_| ()), Err(("model_attributes_type", message)));
        check("null", |node| node.map().map(|_| ()), Err(("dict_type", "Input should be a valid dictionary")));
        check("{}", |node| node.list().map(|_| ()), Err(("list_type", "Input should be a valid list")));
        check("[]", |node| node.free_object().map(|_| ()), Err(("dict_type", "Input should be a valid dictionary")));
        let untouched = r#"{"n":123456789012345678901234567890, "n":1}"#;
        check(untouched, |node| node.free_object().map(|raw| raw.get().to_owned()), Ok(untouched.to_owned()));
        check(r#"[1,"a"]"#, |node| node.list().map(|list| list[1].path()), Ok("body.x.1".to_owned()));
    }

    #[test]
    fn members_tell_absent_from_null_from_bad() {
        let body = Object::body(check_json(br#"{"null":null,"bad":1,"good":"a"}"#).expect("JSON")).expect("an object");
        let mut errors = Vec::new();
        let read = |node: &Node<'_>| node.string(ANY_LENGTH);
        assert_eq!(body.required("good", &mut errors, read), Some("a".to_owned()));
        assert_eq!(body.nullable("null", &mut errors, read), None);
        assert_eq!(body.nullable("absent", &mut errors, read), None);
        assert_eq!(body.defaulted("absent", &mut errors, "b".to_owned(), read), "b");
        assert_eq!(body.patch("absent", &mut errors, read), Patch::Absent);
        assert_eq!(body.patch("null", &mut errors, read), Patch::Null);
        assert_eq!(body.patch("good", &mut errors, read), Patch::Value("a".to_owned()));
        assert_eq!(errors, []);
        assert_eq!(body.required("absent", &mut errors, read), None);
        assert_eq!(body.patch_not_null("null", &mut errors, read), None);
        assert_eq!(body.patch("bad", &mut errors, read), Patch::Absent);
        let found: Vec<_> = errors.iter().map(|error| (error.field.as_str(), &*error.kind)).collect();
        assert_eq!(found, [("body.absent", "missing"), ("body.null", "string_type"), ("body.bad", "string_type")]);
    }

    #[test]
    fn many_errors_with_a_long_path_give_a_short_answer() {
        let json = format!(r#"{{"{}":[{}]}}"#, "k".repeat(100_000), vec!["1"; 100_000].join(","));
        let map = Node::new("body", check_json(json.as_bytes()).expect("JSON")).map().expect("a map");
        let mut errors = Vec::new();
        for node in map[0].1.list().expect("a list") {
            keep(node.string(ANY_LENGTH), &mut errors);
        }
        assert_eq!(errors.len(), MAX_ERRORS);
        assert_eq!(errors[7].field, format!("body.{}….7", "k".repeat(MAX_ECHOED_CHARS)));
    }

    #[test]
    fn a_null_body_is_missing_and_an_error_has_three_members() {
        let errors = Object::body(RawValue::NULL).expect_err("null");
        let json = serde_json::to_string(&errors[0]).expect("an error");
        assert_eq!(json, r#"{"field":"body","message":"Field required","type":"missing"}"#);
    }
}
