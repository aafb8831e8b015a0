//! Conditions: a small, closed expression language over the values of a run. It has no functions and no side effects,
//! and its cost is bounded; `docs/executor.md` describes it for authors of definitions.
//!
//! Text is parsed before any reference is resolved, so no value can be mistaken for a part of the expression. A
//! meaningless operation, such as an order of null and a number, is an error and not false.

mod parse;
mod value;

use std::{borrow::Cow, cmp::Ordering, collections::BTreeMap, fmt};

use serde_json::{Value, value::RawValue};
use thiserror::Error;

use self::{
    parse::{Arithmetic, Comparison, Expr},
    value::{Held, Item, Kind, View, computed, is_numeric, kind, order_numbers},
};
use crate::{
    input::{elements, members, shorten, text},
    mapping::{Scope, reference::LookUp},
};

/// Maximum bytes of values that one condition may compare or search.
const MAX_COMPARED_BYTES: usize = 64 << 20;

/// Reason why a condition has no value. `Display` is fit for the step's error message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExpressionError {
    /// The text is not an expression of the language.
    #[error("at character {at}: {message}")]
    Syntax {
        /// Number of the character, from 1.
        at: usize,
        /// Description of the fault.
        message: String,
    },
    /// The expression has no result with these values.
    #[error("{0}")]
    Value(String),
}

/// Checks that the text is an expression, whatever the values.
pub fn check(expression: &str) -> Result<(), ExpressionError> {
    parse::parse(expression).map(drop)
}

/// The references of an expression, without `${` and `}`.
pub fn references(expression: &str) -> Result<Vec<String>, ExpressionError> {
    parse::references(expression)
}

/// Checks that the expression depends on known values, which `known` describes: that it has a reference, and that each is
/// known. The error is for people.
pub fn check_about(expression: &str, known: &str, is_known: fn(&str) -> bool) -> Result<(), String> {
    let references = references(expression).map_err(|error| error.to_string())?;
    if references.is_empty() {
        return Err(format!("it has the same value each time; it must refer to {known}"));
    }
    match references.iter().find(|reference| !is_known(reference)) {
        Some(reference) => Err(format!("reference '{}' must be {known}", shorten(reference))),
        None => Ok(()),
    }
}

/// Whether the condition holds: whether its value is anything but false, null, zero or empty.
pub fn holds(expression: &str, scope: &Scope<'_>) -> Result<bool, ExpressionError> {
    holds_within(expression, scope, MAX_COMPARED_BYTES)
}

/// The value of the expression as JSON, of at most `max_bytes`.
pub fn value(expression: &str, scope: &Scope<'_>, max_bytes: usize) -> Result<Box<RawValue>, ExpressionError> {
    let expression = parse::parse(expression)?;
    let value = Evaluator { values: LookUp::new(scope), left: MAX_COMPARED_BYTES }.value(&expression)?;
    let too_large = || ExpressionError::Value(format!("the value is larger than {max_bytes} bytes"));
    value.json(max_bytes).ok_or_else(too_large)
}

fn holds_within(expression: &str, scope: &Scope<'_>, max_compared: usize) -> Result<bool, ExpressionError> {
    let expression = parse::parse(expression)?;
    let value = Evaluator { values: LookUp::new(scope), left: max_compared }.value(&expression)?;
    Ok(value.is_truthy())
}

struct Evaluator<'e> {
    values: LookUp<'e>,
    /// Bytes left of [`MAX_COMPARED_BYTES`].
    left: usize,
}

/// Value with its source text, which errors name.
struct Operand<'e> {
    source: &'e Expr,
    value: Held<'e>,
}

impl<'e> Evaluator<'e> {
    /// Evaluates an expression. Recursion ends at the depth that the parser allows.
    fn value(&mut self, expr: &'e Expr) -> Result<Held<'e>, ExpressionError> {
        match expr {
            Expr::Literal(value) => Ok(Held::Scalar(Cow::Borrowed(value))),
            Expr::Reference(reference) => self.reference(reference),
            Expr::List(items) => {
                let items: Result<_, _> = items.iter().map(|item| self.value(item)).collect();
                Ok(Held::List(items?))
            }
            Expr::Object(members) => self.object(members),
            Expr::Not(operand) => Ok(Held::from(!self.value(operand)?.is_truthy())),
            // As in the reference deployment, the result is the operand that decides.
            Expr::Or(operands) => self.first(operands, true),
            Expr::And(operands) => self.first(operands, false),
            Expr::Compare(first, rest) => self.compare(first, rest),
            Expr::Arithmetic(first, rest) => self.arithmetic(first, rest),
            Expr::Negate(operand) => {
                let zero = Operand { source: operand, value: Held::Scalar(Cow::Owned(Value::from(0))) };
                let operand = self.operand(operand)?;
                self.compute(Arithmetic::Minus, &zero, &operand)
            }
        }
    }

    /// The value of a reference. A missing value is null, so that conditions can test for it.
    fn reference(&mut self, reference: &str) -> Result<Held<'e>, ExpressionError> {
        match self.values.get(reference) {
            Ok(raw) => Ok(Held::Raw(raw)),
            Err(fault) if fault.is_missing() => Ok(Held::Scalar(Cow::Owned(Value::Null))),
            Err(fault) => Err(ExpressionError::Value(format!("reference '{}': {fault}", shorten(reference)))),
        }
    }

    fn object(&mut self, members: &'e [(Expr, Expr)]) -> Result<Held<'e>, ExpressionError> {
        let mut object = BTreeMap::new();
        for (key, value) in members {
            let key = self.value(key)?;
            let View::Text(name) = self.view(key.item())? else {
                return Err(ExpressionError::Value("the keys of an object must be strings".to_owned()));
            };
            object.insert(name.into_owned(), self.value(value)?);
        }
        Ok(Held::Object(object))
    }

    /// The first operand with that truth value, or the last one. Later operands are not evaluated.
    fn first(&mut self, operands: &'e [Expr], wanted: bool) -> Result<Held<'e>, ExpressionError> {
        let mut value = Held::Scalar(Cow::Owned(Value::Null));
        for operand in operands {
            value = self.value(operand)?;
            if value.is_truthy() == wanted {
                break;
            }
        }
        Ok(value)
    }

    /// `a < b < c` is `a < b and b < c`, with `b` evaluated once.
    fn compare(&mut self, first: &'e Expr, rest: &'e [(Comparison, Expr)]) -> Result<Held<'e>, ExpressionError> {
        let mut left = self.operand(first)?;
        for (comparison, right) in rest {
            let right = self.operand(right)?;
            if !self.compares(*comparison, &left, &right)? {
                return Ok(Held::from(false));
            }
            left = right;
        }
        Ok(Held::from(true))
    }

    fn arithmetic(&mut self, first: &'e Expr, rest: &'e [(Arithmetic, Expr)]) -> Result<Held<'e>, ExpressionError> {
        let mut left = self.operand(first)?;
        for (operator, right) in rest {
            let right = self.operand(right)?;
            left.value = self.compute(*operator, &left, &right)?;
        }
        Ok(left.value)
    }

    fn operand(&mut self, source: &'e Expr) -> Result<Operand<'e>, ExpressionError> {
        Ok(Operand { source, value: self.value(source)? })
    }

    /// Decodes the outermost layer of a value.
    fn view<'v>(&mut self, item: Item<'v>) -> Result<View<'v>, ExpressionError> {
        Ok(match item {
            Item::Made(Held::List(items)) => View::List(items.iter().map(Held::item).collect()),
            Item::Made(Held::Object(members)) => View::Object(
                members.iter().map(|(name, member)| (Cow::Borrowed(name.as_str()), member.item())).collect(),
            ),
            Item::Made(Held::Scalar(value)) => match &**value {
                Value::Bool(is_true) => View::Bool(*is_true),
                Value::Number(number) => View::Number(number.clone()),
                Value::String(text) => View::Text(Cow::Borrowed(text)),
                // A scalar is never an array or an object.
                Value::Null | Value::Array(_) | Value::Object(_) => View::Null,
            },
            Item::Made(Held::Raw(raw)) => self.view_raw(raw)?,
            Item::Raw(raw) => self.view_raw(raw)?,
        })
    }

    fn view_raw<'v>(&mut self, raw: &'v RawValue) -> Result<View<'v>, ExpressionError> {
        self.spend(raw.get().len())?;
        let unreadable = || ExpressionError::Value(format!("'{}' cannot be compared", shorten(raw.get())));
        Ok(match raw.get().as_bytes().first() {
            Some(b't') => View::Bool(true),
            Some(b'f') => View::Bool(false),
            Some(b'"') => View::Text(Cow::Owned(text(raw).ok_or_else(unreadable)?)),
            Some(b'[') => View::List(elements(raw).ok_or_else(unreadable)?.into_iter().map(Item::Raw).collect()),
            Some(b'{') => {
                let members = members(raw).ok_or_else(unreadable)?;
                View::Object(members.into_iter().map(|(name, member)| (Cow::Owned(name), Item::Raw(member))).collect())
            }
            Some(b'-' | b'0'..=b'9') => View::Number(raw.get().parse().map_err(|_| unreadable())?),
            _ => View::Null,
        })
    }

    fn spend(&mut self, bytes: usize) -> Result<(), ExpressionError> {
        let Some(left) = self.left.checked_sub(bytes) else {
            let text = format!("it compares more than {} MiB of values", MAX_COMPARED_BYTES >> 20);
            return Err(ExpressionError::Value(text));
        };
        self.left = left;
        Ok(())
    }

    fn compares(
        &mut self,
        comparison: Comparison,
        left: &Operand<'_>,
        right: &Operand<'_>,
    ) -> Result<bool, ExpressionError> {
        match comparison {
            Comparison::Equal | Comparison::Is => self.is_equal(left.value.item(), right.value.item()),
            Comparison::NotEqual | Comparison::IsNot => {
                self.is_equal(left.value.item(), right.value.item()).map(|is_equal| !is_equal)
            }
            Comparison::Less => self.order(comparison, left, right).map(Ordering::is_lt),
            Comparison::LessOrEqual => self.order(comparison, left, right).map(Ordering::is_le),
            Comparison::Greater => self.order(comparison, left, right).map(Ordering::is_gt),
            Comparison::GreaterOrEqual => self.order(comparison, left, right).map(Ordering::is_ge),
            Comparison::In => self.is_in(left, right),
            Comparison::NotIn => self.is_in(left, right).map(|is_in| !is_in),
            Comparison::Contains => self.is_in(right, left),
        }
    }

    /// Equality. Numbers compare by their value, whether whole or not; true and false are 1 and 0. Recursion ends at
    /// the depth of values from outside and of expressions.
    fn is_equal(&mut self, left: Item<'_>, right: Item<'_>) -> Result<bool, ExpressionError> {
        // Values that cannot be equal are not decoded.
        if kind(left) != kind(right) && !(is_numeric(left) && is_numeric(right)) {
            return Ok(false);
        }
        match (self.view(left)?, self.view(right)?) {
            (View::Null, View::Null) => Ok(true),
            (View::Text(left), View::Text(right)) => Ok(left == right),
            (View::List(left), View::List(right)) => {
                if left.len() != right.len() {
                    return Ok(false);
                }
                for (left, right) in left.into_iter().zip(right) {
                    if !self.is_equal(left, right)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            (View::Object(left), View::Object(right)) => {
                if left.len() != right.len() || !left.keys().eq(right.keys()) {
                    return Ok(false);
                }
                for (left, right) in left.into_values().zip(right.into_values()) {
                    if !self.is_equal(left, right)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            (left, right) => {
                Ok(left.number().zip(right.number()).is_some_and(|(left, right)| order_numbers(&left, &right).is_eq()))
            }
        }
    }

    fn order(
        &mut self,
        comparison: Comparison,
        left: &Operand<'_>,
        right: &Operand<'_>,
    ) -> Result<Ordering, ExpressionError> {
        let refused = || {
            let text = format!("'{comparison}' compares two numbers or two strings, not {left} and {right}");
            Err(ExpressionError::Value(text))
        };
        let (one, other) = (left.value.item(), right.value.item());
        let are_texts = kind(one) == Kind::Text && kind(other) == Kind::Text;
        let are_numbers = is_numeric(one) && is_numeric(other);
        if !are_texts && !are_numbers {
            return refused();
        }
        match (self.view(one)?, self.view(other)?) {
            (View::Text(left), View::Text(right)) => Ok(left.cmp(&right)),
            (one, other) => match one.number().zip(other.number()) {
                Some((left, right)) => Ok(order_numbers(&left, &right)),
                None => refused(),
            },
        }
    }

    /// Whether a text contains a part, an array an element, or an object a key.
    fn is_in(&mut self, item: &Operand<'_>, holder: &Operand<'_>) -> Result<bool, ExpressionError> {
        let (item_kind, holder_kind) = (kind(item.value.item()), kind(holder.value.item()));
        match (holder_kind, item_kind) {
            (Kind::Object, kind) if kind != Kind::Text => return Ok(false),
            (Kind::Text, kind) if kind != Kind::Text => {
                return Err(ExpressionError::Value(format!("only a string can be part of a string, not {item}")));
            }
            (Kind::Null | Kind::Bool | Kind::Number, _) => {
                let text = format!("only an array, a string or an object can contain a value, not {holder}");
                return Err(ExpressionError::Value(text));
            }
            _ => {}
        }
        match self.view(holder.value.item())? {
            View::List(elements) => {
                for element in elements {
                    if self.is_equal(element, item.value.item())? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            View::Text(text) => match self.view(item.value.item())? {
                View::Text(part) => Ok(text.contains(&*part)),
                _ => Ok(false),
            },
            View::Object(members) => match self.view(item.value.item())? {
                View::Text(name) => Ok(members.contains_key(&name)),
                _ => Ok(false),
            },
            View::Null | View::Bool(_) | View::Number(_) => Ok(false),
        }
    }

    fn compute(
        &mut self,
        operator: Arithmetic,
        left: &Operand<'_>,
        right: &Operand<'_>,
    ) -> Result<Held<'e>, ExpressionError> {
        let (one, other) = (left.value.item(), right.value.item());
        let numbers = if kind(one) == Kind::Number && kind(other) == Kind::Number {
            (self.view(one)?, self.view(other)?)
        } else {
            (View::Null, View::Null)
        };
        let (View::Number(a), View::Number(b)) = numbers else {
            return Err(ExpressionError::Value(format!("'{operator}' takes two numbers, not {left} and {right}")));
        };
        let result = computed(operator, &a, &b);
        let result = result.ok_or_else(|| ExpressionError::Value(format!("'{operator}' has no result here")))?;
        Ok(Held::Scalar(Cow::Owned(Value::Number(result))))
    }
}

impl fmt::Display for Operand<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match kind(self.value.item()) {
            Kind::Null => "null",
            Kind::Bool => "a bool",
            Kind::Number => "a number",
            Kind::Text => "a string",
            Kind::List => "an array",
            Kind::Object => "an object",
        };
        match self.source {
            Expr::Reference(reference) => write!(f, "${{{}}}, which is {kind}", shorten(reference)),
            _ => f.write_str(kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    /// Checks that an expression holds, does not hold, or fails with the expected text.
    fn check(expression: &str, expected: Result<bool, &str>) {
        let raw = |json: &'static str| check_json(json.as_bytes()).expect(json);
        let input = raw(r#"{"t":0.8,"tags":["a"],"s":"abc","ok":true,"n":null,"o":{"k":1},"big":9007199254740993}"#);
        let mut run = Scope::new(input);
        run.set("step-1", raw(r#"{"score":0.9,"items":[1,2],"status":"done","rows":[{"score":0.7}]}"#).to_owned());
        run.set("other", raw(r#""text""#).to_owned());
        let item = raw(r#"{"x":3}"#);
        let found = holds(expression, &run.iteration(item, 0, 2)).map_err(|error| error.to_string());
        match expected {
            Ok(expected) => assert_eq!(found, Ok(expected), "{expression}"),
            Err(part) => {
                assert!(found.as_ref().is_err_and(|text| text.contains(part)), "{expression}: {found:?}");
            }
        }
    }

    #[test]
    fn the_contracts_examples_have_their_results() {
        check("${step-1.output.score} > ${workflow.input.t}", Ok(true));
        check("'a' in ${workflow.input.tags} and not ${workflow.input.n}", Ok(true));
        check("${step-1.output.items[1]} == 2", Ok(true));
        check("${workflow.input.missing} == null", Ok(true));
        check("(${workflow.input.ok} or false) and ${workflow.input.s} != 'x'", Ok(true));
        check("${step-1.output.rows[0].score} < 0.5", Ok(false));
        check("${step-1.output.status} == 'failed'", Ok(false));
        // The reference deployment calls these false.
        check("${workflow.input.missing} > 0", Err("not ${workflow.input.missing}, which is null and a number"));
        check("${workflow.input.s} == abc", Err("at character 24: unknown word 'abc'"));
    }

    #[test]
    fn every_operator_knows_its_types() {
        for (expression, expected) in [
            ("1 == 1.0", Ok(true)),
            ("true == 1 and false == 0 and true != 2", Ok(true)),
            ("1 == '1'", Ok(false)),
            ("[1, [2]] == [1.0, [2.0]] and {'a': 1} == {'a': true}", Ok(true)),
            ("null == false", Ok(false)),
            ("9007199254740993 > 9007199254740992", Ok(true)),
            ("${workflow.input.big} == 9007199254740993", Ok(true)),
            ("18446744073709551615 > -1", Ok(true)),
            ("1 < 2 < 3", Ok(true)),
            ("1 < 2 < 2", Ok(false)),
            ("'a' < 'b' <= 'b' >= 'a'", Ok(true)),
            ("'a' < 1", Err("'<' compares two numbers or two strings, not a string and a number")),
            ("[1] < [2]", Err("not an array and an array")),
            ("'b' in 'abc' and 'x' not in 'abc'", Ok(true)),
            ("1 in 'abc'", Err("only a string can be part of a string")),
            ("1.0 in [0, 1] and [1] in [[1]]", Ok(true)),
            ("'k' in ${workflow.input.o} and 1 not in ${workflow.input.o}", Ok(true)),
            ("1 in null", Err("can contain a value, not null")),
            ("${workflow.input.tags} contains 'a' and 'abc' contains 'c'", Ok(true)),
            ("${workflow.input.n} is null and ${workflow.input.s} is not null", Ok(true)),
            ("${workflow.input.n} is None and True and not False", Ok(true)),
            ("1 + 2 * 3 - 4 / 2 == 5", Ok(true)),
            ("-7 % 3 == 2 and 7 % -3 == -2 and 7.5 % 2 == 1.5", Ok(true)),
            ("9223372036854775807 + 1 >= 9223372036854775807", Ok(true)),
            ("1 / 0 == 1", Err("'/' has no result")),
            ("1 % 0 == 1", Err("'%' has no result")),
            ("'a' + 'b' == 'ab'", Err("'+' takes two numbers")),
            ("-(1) == -1 and - -1 == 1", Ok(true)),
            ("-'a' == 1", Err("takes two numbers")),
        ] {
            check(expression, expected);
        }
    }

    #[test]
    fn and_binds_tighter_than_or_and_not_less_than_comparisons() {
        check("true or false and false", Ok(true));
        check("(true or false) and false", Ok(false));
        check("not 1 == 2", Ok(true));
        check("not 'a' in ['a']", Ok(false));
        check("not not true", Ok(true));
        check("2 + 3 > 4 and -1 + 1 == 0", Ok(true));
    }

    #[test]
    fn operands_after_the_decision_are_not_evaluated() {
        check("true or ${workflow.input.s} > 1", Ok(true));
        check("false and ${workflow.input.s} > 1", Ok(false));
        check("2 < 1 < 'a'", Ok(false));
        check("true and ${workflow.input.s} > 1", Err("'>' compares"));
        // The whole text must be an expression, whatever the result.
        check("true or )", Err("at character 9"));
    }

    #[test]
    fn truth_is_what_is_neither_empty_nor_zero() {
        for falsy in ["false", "null", "0", "0.0", "-0", "''", "[]", "{}", "${workflow.input.missing}"] {
            check(falsy, Ok(false));
        }
        for truthy in ["true", "1", "'0'", "[0]", "{'a': null}", "${workflow.input.s}", "${workflow.input}"] {
            check(truthy, Ok(true));
        }
        check("(null or 'x') == 'x' and (1 and 2) == 2", Ok(true));
    }

    #[test]
    fn every_reference_works_and_a_value_is_never_read_as_syntax() {
        check("${other.output} == 'text'", Ok(true));
        check("${steps.step-1.output.items} == [1, 2]", Ok(true));
        check("${loop.item.x} == 3 and ${loop.is_first} and ${loop.total} == 2", Ok(true));
        check("${workflow.input.missing:-5} > 4", Ok(true));
        check("${nobody.output.x} is null", Ok(true));
        check("${nonsense} == 1", Err("reference 'nonsense': must be workflow.input"));
        check("${workflow.input.s} == 'abc' and \"it's\" == 'it\\'s'", Ok(true));
        check("'${workflow.input.s}' == 'abc'", Err("a reference is written without quotes"));
    }

    #[test]
    fn a_syntax_error_names_its_position() {
        for (expression, expected) in [
            ("", "the expression ends too early"),
            ("1 ==", "at character 5: the expression ends too early"),
            ("1 = 1", "at character 3: '=' is not an operator; equality is '=='"),
            ("true && true", "at character 6: '&' is not an operator; write 'and'"),
            ("true || true", "write 'or'"),
            ("!true", "write 'not'"),
            ("len('a') > 0", "unknown word 'len'"),
            ("'a'.upper() == 'A'", "at character 4"),
            ("1 2", "at character 3: expected the end or an operator"),
            ("(1", "expected ')'"),
            ("[1 2]", "expected ',' or ']'"),
            ("{'a' 1}", "expected ':'"),
            ("{1: 2}", "keys of an object must be strings"),
            ("'open", "at character 1: the string does not end"),
            (r"'\q'", "unknown escape"),
            ("${workflow.input.s", "the reference does not end"),
            ("${}", "the reference is empty"),
            ("1 is 2", "'is' is followed by null or not null"),
            ("1 not 2", "expected 'in'"),
            ("1e999 > 0", "not a number"),
            ("\u{1F600}", "at character 1"),
        ] {
            check(expression, Err(expected));
        }
    }

    #[test]
    fn depth_is_limited_and_length_costs_no_stack() {
        for (open, close) in [("(", ")"), ("[", "]"), ("not ", ""), ("-", "")] {
            let nested = |depth| format!("{}1{} == 5 or true", open.repeat(depth), close.repeat(depth));
            check(&nested(30), Ok(true));
            check(&nested(100_000), Err("nested too deeply"));
        }
        check(&format!("0{} == 100000", " + 1".repeat(100_000)), Ok(true));
        check(&format!("1{}", " and 1".repeat(100_000)), Ok(true));
        check(&format!("1{}", " <= 1".repeat(100_000)), Ok(true));
    }

    #[test]
    fn a_large_value_is_mentioned_thousands_of_times_without_being_copied() {
        let numbers = vec!["1"; 20_000].join(",");
        let json = format!(r#"{{"big":[{numbers}],"same":[{numbers}]}}"#);
        let scope = Scope::new(check_json(json.as_bytes()).expect("JSON"));
        let holds = |expression: &str| holds_within(expression, &scope, 1 << 20).map_err(|error| error.to_string());
        let mentions = vec!["${workflow.input.big}"; 2000].join(",");
        assert_eq!(holds(&format!("[{mentions}]")), Ok(true));
        assert_eq!(holds(&format!("[{mentions}] == null")), Ok(false));
        assert_eq!(holds("${workflow.input.big} == ${workflow.input.same}"), Ok(true));
        let compared = vec!["${workflow.input.big}"; 50].join(" == ");
        assert_eq!(holds(&compared), Err("it compares more than 64 MiB of values".to_owned()));
        assert_eq!(holds(&format!("'x' in [{mentions}]")), Ok(false));
    }
}
