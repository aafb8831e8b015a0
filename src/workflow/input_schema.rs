//! Input schemas: JSON Schemas of workflows for the input of their runs.
//!
//! A schema from one caller is applied to another caller's input, so its cost is bounded: that of compiling it in
//! advance (`budget`), that of checking an input during the check (`metered`). References must lead into the schema
//! itself and never form a cycle; patterns have no look-around.

use std::{
    fmt::{self, Write as _},
    time::{Duration, Instant},
};

use jsonschema::{PatternOptions, ValidationError, Validator};
use serde_json::{Value, value::RawValue};

use self::{
    budget::Cost,
    metered::{Metered, Seen},
};
use crate::input::{FieldError, Node, Read, shorten};

mod budget;
mod metered;

/// Maximum size of a schema.
const MAX_BYTES: usize = 64 << 10;
/// Maximum size of a compiled pattern. The budget of states is the tighter bound.
const MAX_PATTERN_BYTES: usize = 8 << 20;
/// Size of a pattern's match cache.
const MAX_PATTERN_CACHE_BYTES: usize = 256 << 10;
/// Maximum number of steps for checking one input: about a second.
const MAX_STEPS: usize = 30_000_000;
/// Time-out of a check, however long the steps take under load.
const MAX_TIME: Duration = Duration::from_secs(5);
/// Maximum number of steps for further violations after the first: each may add one, which takes memory.
const MAX_LISTING_STEPS: usize = 100_000;
/// Maximum number of reported violations.
const MAX_VIOLATIONS: usize = 100;
/// Maximum size of a violation's text, which repeats the value.
const MAX_TEXT_BYTES: usize = 2048;

/// Supported dialects. Older ones resolve references in other ways.
const DIALECTS: [&str; 3] = [
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
];

/// Compiled schema.
pub struct InputSchema {
    validator: Validator<Metered>,
    cost: Cost,
}

impl fmt::Debug for InputSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InputSchema")
    }
}

/// Result of checking an input within a number of steps.
enum Checked {
    Good,
    Bad(Vec<FieldError>),
    /// The check takes more steps.
    Unknown,
}

impl InputSchema {
    /// Compiles a schema, or returns in a sentence why it cannot be used. Takes up to a tenth of a second.
    pub fn compile(schema: &RawValue) -> Result<Self, String> {
        if schema.get().len() > MAX_BYTES {
            return Err(format!("must have at most {MAX_BYTES} bytes"));
        }
        let schema: Value = serde_json::from_str(schema.get()).map_err(|error| error.to_string())?;
        if !schema.is_object() {
            return Err("must be an object".to_owned());
        }
        if let Some(dialect) = schema.get("$schema") {
            let known = dialect.as_str().is_some_and(|dialect| DIALECTS.contains(&dialect.trim_end_matches('#')));
            if !known {
                return Err(format!("$schema must be one of {}", DIALECTS.join(", ")));
            }
        }
        let cost = budget::cost(&schema)?;
        let patterns = PatternOptions::regex().size_limit(MAX_PATTERN_BYTES).dfa_size_limit(MAX_PATTERN_CACHE_BYTES);
        let options = jsonschema::options_for::<Metered>().with_pattern_options(patterns).offline();
        match options.build(&schema) {
            Ok(validator) => Ok(Self { validator, cost }),
            Err(error) => {
                let pointer = error.instance_path().to_string();
                let pointer = if pointer.is_empty() { String::new() } else { format!("{}: ", shorten(&pointer)) };
                Err(format!("is not a valid JSON Schema: {pointer}{}", text_of(&error)))
            }
        }
    }

    /// Estimated size in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.cost.bytes
    }

    /// Reports all violations of the schema, below `body.input_data`. Takes up to about a second.
    pub fn check(&self, input: &RawValue) -> Read<()> {
        let input = parse(input)?;
        match self.check_within(&input, MAX_STEPS) {
            Checked::Good => Ok(()),
            Checked::Bad(errors) => Err(errors),
            Checked::Unknown => {
                let message = "The input is too large or too complex for the schema: checking it takes too much work";
                Err(vec![FieldError::new(AT, "schema_too_costly", message)])
            }
        }
    }

    /// The same in a fraction of a millisecond, if that is enough; `None` if it is not.
    #[must_use]
    pub fn check_small(&self, input: &RawValue) -> Option<Read<()>> {
        if input.get().len() > MAX_SMALL_INPUT {
            return None;
        }
        let input = match parse(input) {
            Ok(input) => input,
            Err(errors) => return Some(Err(errors)),
        };
        match self.check_within(&input, MAX_SMALL_STEPS) {
            Checked::Good => Some(Ok(())),
            Checked::Bad(errors) => Some(Err(errors)),
            Checked::Unknown => None,
        }
    }

    fn check_within(&self, input: &Value, steps: usize) -> Checked {
        self.check_until(input, steps, Instant::now() + MAX_TIME)
    }

    fn check_until(&self, input: &Value, steps: usize, until: Instant) -> Checked {
        let states = self.cost.pattern_states;
        match metered::within((steps, until), states, || self.validator.is_valid(Seen(input))) {
            None => return Checked::Unknown,
            Some(true) => return Checked::Good,
            Some(false) => {}
        }
        let list = || self.validator.iter_errors(Seen(input)).take(MAX_VIOLATIONS).map(|error| violation(&error));
        if let Some(errors) = metered::within((steps.min(MAX_LISTING_STEPS), until), states, || list().collect()) {
            return Checked::Bad(errors);
        }
        match metered::within((steps, until), states, || {
            self.validator.validate(Seen(input)).map_err(|error| violation(&error))
        }) {
            None => Checked::Unknown,
            Some(Ok(())) => Checked::Good,
            Some(Err(mut error)) => {
                error.message += "; the input is too large to look for further violations";
                Checked::Bad(vec![error])
            }
        }
    }
}

/// Field of the errors.
const AT: &str = "body.input_data";
/// Maximum size of a small input.
const MAX_SMALL_INPUT: usize = 4 << 10;
/// Maximum number of steps for checking a small input.
const MAX_SMALL_STEPS: usize = 20_000;

fn parse(input: &RawValue) -> Read<Value> {
    serde_json::from_str(input.get()).map_err(|_| {
        let message = "A number in it is too large to be compared with the schema";
        vec![FieldError::new(AT, "schema_error", message)]
    })
}

fn violation(error: &ValidationError<'_>) -> FieldError {
    let pointer = error.instance_path().to_string();
    let path = pointer.replace('/', ".").replace("~1", "/").replace("~0", "~");
    let field = format!("{AT}{}", shorten(&path));
    FieldError { pointer: Some(pointer), ..FieldError::new(field, "schema_error", text_of(error)) }
}

/// Text of an error, truncated because it may repeat a large value.
fn text_of(error: &ValidationError<'_>) -> String {
    struct Beginning(String);
    impl fmt::Write for Beginning {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.push_str(text);
            if self.0.len() > MAX_TEXT_BYTES { Err(fmt::Error) } else { Ok(()) }
        }
    }
    let mut text = Beginning(String::new());
    // The writer ends early on purpose.
    let _ = write!(text, "{error}");
    shorten(&text.0).into_owned()
}

/// Reads and checks the schema in a body.
pub(super) fn read(node: &Node<'_>) -> Read<Box<RawValue>> {
    let schema = node.free_object()?;
    InputSchema::compile(&schema).map_err(|text| vec![FieldError::rule(node.path(), text)])?;
    Ok(schema)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::input::check_json;

    fn compile(json: &str) -> Result<InputSchema, String> {
        InputSchema::compile(check_json(json.as_bytes()).expect(json))
    }

    #[test]
    fn every_violation_of_an_input_is_reported_with_its_path() {
        let schema = compile(
            r##"{"type":"object","required":["a"],"properties":{"a":{"$ref":"#/$defs/n"},"l":{"items":{"type":"string","pattern":"^x+$"}}},
                "$defs":{"n":{"type":"integer","minimum":1}}}"##,
        )
        .expect("a schema");
        let fields = |json: &str| {
            let errors = schema.check(check_json(json.as_bytes()).expect(json)).err().unwrap_or_default();
            errors.into_iter().map(|error| error.field).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
        };
        assert_eq!(fields(r#"{"a":1,"l":["x"]}"#), Vec::<String>::new());
        assert_eq!(fields(r#"{"l":["x","y",3]}"#), ["body.input_data", "body.input_data.l.1", "body.input_data.l.2"]);
        assert_eq!(fields(r#"{"a":0}"#), ["body.input_data.a"]);
        assert_eq!(fields(r#"{"a":123456789012345678901234567890}"#), Vec::<String>::new());
    }

    #[test]
    fn the_error_of_an_unusable_schema_has_the_reason() {
        let doubling: Vec<_> = (1..40)
            .map(|n| format!(r##""d{n}":{{"allOf":[{{"$ref":"#/$defs/d{0}"}},{{"$ref":"#/$defs/d{0}"}}]}}"##, n - 1))
            .collect();
        let doubling = format!(r##"{{"$ref":"#/$defs/d39","$defs":{{"d0":{{}},{}}}}}"##, doubling.join(","));
        for (schema, part) in [
            ("[]", "must be an object"),
            (r#"{"type":"nothing"}"#, "not a valid JSON Schema"),
            (r#"{"type":"string","pattern":"("}"#, "not a valid JSON Schema"),
            (r#"{"pattern":"(?=a)"}"#, "not a valid JSON Schema"),
            (r#"{"pattern":"(\\w{1000}){1000}"}"#, "at most 20000 states"),
            (r##"{"$ref":"#"}"##, "leads back to itself"),
            (r##"{"properties":{"c":{"$ref":"#"}}}"##, "leads back to itself"),
            (r#"{"$ref":"https://example.com/schema.json"}"#, "must lead to a value in the schema"),
            (r#"{"$ref":"file:///etc/passwd"}"#, "must lead to a value in the schema"),
            (r##"{"$ref":"#/$defs/gone"}"##, "must lead to a value in the schema"),
            (r##"{"$dynamicRef":"#x"}"##, "must not use $dynamicRef"),
            (r#"{"items":{"$id":"http://x/"}}"#, "must not have an $id"),
            (r#"{"$schema":"http://json-schema.org/draft-04/schema#"}"#, "$schema must be one of"),
            (&doubling, "values with its references expanded"),
        ] {
            assert!(compile(schema).as_ref().is_err_and(|text| text.contains(part)), "{schema}: {:?}", compile(schema));
        }
        let large = format!(r#"{{"title":"{}"}}"#, "x".repeat(MAX_BYTES));
        assert!(compile(&large).is_err_and(|text| text.contains("bytes")));
        assert!(compile("{}").is_ok() && compile(r#"{"$id":"https://example.com/a","type":"object"}"#).is_ok());
        // This pattern takes exponential time in other engines.
        let slow = compile(r#"{"properties":{"s":{"pattern":"^(a+)+$"}}}"#).expect("a schema");
        let input = format!(r#"{{"s":"{}!"}}"#, "a".repeat(50_000));
        assert!(slow.check(check_json(input.as_bytes()).expect("JSON")).is_err());
    }

    #[test]
    fn patterns_are_counted_with_their_repetitions_and_all_together() {
        let many = |count: usize, pattern: &str| {
            let members: Vec<_> = (0..count).map(|n| format!(r#""p{n}":{{"pattern":"{n}{pattern}"}}"#)).collect();
            compile(&format!(r#"{{"properties":{{{}}}}}"#, members.join(",")))
        };
        let refused = |schema: Result<InputSchema, String>, part: &str| {
            assert!(schema.as_ref().is_err_and(|text| text.contains(part)), "{schema:?}");
        };
        refused(many(1000, "[a-z]{1400}"), "states in all its patterns");
        refused(many(1000, "[a-z]{14000}"), "at most 20000 states, not 28");
        refused(many(1, "([a-z]{100}){300}"), "at most 20000 states, not 60");
        refused(many(1, "(([a-z]{1000}){1000}){1000}"), "at most 20000 states");
        assert!(many(500, "[a-z]{1,20}").is_ok());
        assert!(many(1, "[a-z]{1,255}-[0-9a-f]{8}(-[0-9a-f]{4}){3}").is_ok());
        // The same pattern at several locations is compiled once.
        let shared: Vec<_> = (0..400).map(|n| format!(r#""p{n}":{{"pattern":"^[a-z]{{1,200}}$"}}"#)).collect();
        assert!(compile(&format!(r#"{{"properties":{{{}}}}}"#, shared.join(","))).is_ok());
    }

    #[test]
    fn the_pointers_of_deeply_nested_values_are_counted() {
        let leaves = vec!["{}"; 2000].join(",");
        let nested = |depth: usize, name: &str| {
            (0..depth).fold(format!(r#"{{"anyOf":[{leaves}]}}"#), |inner, _| {
                format!(r#"{{"properties":{{"{name}":{inner}}}}}"#)
            })
        };
        assert!(compile(&nested(25, "name")).is_ok());
        assert!(compile(&nested(1, &"x".repeat(1000))).is_ok());
        assert!(
            compile(&nested(25, &"x".repeat(1000)))
                .is_err_and(|text| text.contains("in the JSON pointers of its values"))
        );
    }

    /// Schema that checks each number of `n` so many times.
    fn repeated(times: usize, schema: &str) -> InputSchema {
        let refs = vec![r##"{"$ref":"#/$defs/a"}"##; times].join(",");
        let json =
            format!(r#"{{"properties":{{"n":{{"items":{{"anyOf":[{refs},true]}}}}}},"$defs":{{"a":{schema}}}}}"#);
        compile(&json).expect("a schema")
    }

    fn numbers(count: usize) -> String {
        format!(r#"{{"n":[{}]}}"#, vec!["1"; count].join(","))
    }

    /// Whether so many steps are enough to check an input.
    fn is_known_within(schema: &InputSchema, steps: usize, input: &str) -> bool {
        let input = serde_json::from_str(input).expect("JSON");
        !matches!(schema.check_within(&input, steps), Checked::Unknown)
    }

    #[test]
    fn the_steps_of_checking_are_counted_whether_they_succeed_or_fail() {
        for rule in [r#"{"type":"string"}"#, r#"{"minLength":1,"not":{"type":"integer"}}"#, r#"{"enum":["a","b"]}"#] {
            let schema = repeated(1500, rule);
            assert!(!is_known_within(&schema, 300_000, &numbers(300)), "{rule}");
            assert!(is_known_within(&schema, 300_000, &numbers(10)), "{rule}");
        }
    }

    #[test]
    fn checking_ends_when_its_time_is_over() {
        let schema = compile(r#"{"type":"object","additionalProperties":{"type":"integer"}}"#).expect("a schema");
        let input = Value::Object((0..10_000).map(|number| (number.to_string(), number.into())).collect());
        let later = Instant::now() + Duration::from_hours(1);
        assert!(matches!(schema.check_until(&input, MAX_STEPS, later), Checked::Good));
        assert!(matches!(schema.check_until(&input, MAX_STEPS, Instant::now()), Checked::Unknown));
    }

    #[test]
    fn an_input_that_takes_too_many_steps_is_refused() {
        let errors =
            repeated(1500, r#"{"type":"string"}"#).check(check_json(numbers(30_000).as_bytes()).expect("JSON"));
        let errors = errors.expect_err("too much work");
        assert_eq!((errors[0].field.as_str(), &*errors[0].kind), ("body.input_data", "schema_too_costly"));
    }

    #[test]
    fn texts_cost_what_matching_them_with_the_hardest_pattern_may_take() {
        let schema = compile(r#"{"properties":{"s":{"pattern":"[01]*1[01]{1000}$"}}}"#).expect("a schema");
        let text = |length: usize| format!(r#"{{"s":"{}"}}"#, "01".repeat(length / 2));
        assert!(!is_known_within(&schema, 300_000, &text(20_000)));
        assert!(is_known_within(&schema, 300_000, &text(1_000)));
        let plain = compile(r#"{"properties":{"s":{"pattern":"^[01]+$"}}}"#).expect("a schema");
        assert!(is_known_within(&plain, 300_000, &text(20_000)));
        let names = compile(r#"{"patternProperties":{"[01]*1[01]{1000}$":true}}"#).expect("a schema");
        assert!(!is_known_within(&names, 300_000, &format!(r#"{{"{}":1}}"#, "01".repeat(10_000))));
    }

    #[test]
    fn comparing_the_elements_of_arrays_takes_steps_for_each() {
        let list = format!(r#"{{"n":[[{}]]}}"#, (0..1000).map(|n| n.to_string()).collect::<Vec<_>>().join(","));
        let all = vec![r##"{"$ref":"#/$defs/a"}"##; 1000].join(",");
        let json = format!(
            r#"{{"properties":{{"n":{{"items":{{"allOf":[{all}]}}}}}},"$defs":{{"a":{{"uniqueItems":true}}}}}}"#
        );
        let schema = compile(&json).expect("a schema");
        assert!(!is_known_within(&schema, 300_000, &list));
        assert!(is_known_within(&schema, 6_000_000, &list));
        let constant = compile(&format!(r#"{{"not":{{"const":{list}}}}}"#)).expect("a schema");
        assert!(!is_known_within(&constant, 500, &list));
        assert!(is_known_within(&constant, 5_000, &list));
    }

    #[test]
    fn one_violation_of_a_large_input_is_reported_and_all_of_an_ordinary_one() {
        let schema = compile(r#"{"properties":{"n":{"items":{"type":"string"}}}}"#).expect("a schema");
        let errors =
            |count| schema.check(check_json(numbers(count).as_bytes()).expect("JSON")).expect_err("violations");
        assert_eq!(errors(50).len(), 50);
        assert_eq!(errors(2000).len(), MAX_VIOLATIONS);
        let one = errors(200_000);
        assert_eq!((one.len(), one[0].field.as_str()), (1, "body.input_data.n.0"));
        assert!(
            one[0].message.ends_with("the input is too large to look for further violations"),
            "{}",
            one[0].message
        );
    }

    #[test]
    fn a_small_input_is_checked_in_a_few_steps_or_not_at_all() {
        let small = |schema: &InputSchema, json: &str| schema.check_small(check_json(json.as_bytes()).expect("JSON"));
        let plain = compile(r#"{"required":["a"]}"#).expect("a schema");
        assert_eq!(small(&plain, r#"{"a":1}"#), Some(Ok(())));
        assert!(small(&plain, "{}").is_some_and(|checked| checked.is_err()));
        assert_eq!(small(&plain, &format!(r#"{{"a":"{}"}}"#, "x".repeat(MAX_SMALL_INPUT))), None);
        assert_eq!(small(&repeated(1500, r#"{"type":"string"}"#), &numbers(100)), None);
    }

    #[test]
    fn a_violation_repeats_little_of_a_large_value() {
        let schema = compile(r#"{"properties":{"n":{"type":"string"}}}"#).expect("a schema");
        let errors = schema.check(check_json(numbers(10_000).as_bytes()).expect("JSON")).expect_err("a violation");
        assert!(errors[0].message.len() < 300, "{}", errors[0].message);
    }
}
