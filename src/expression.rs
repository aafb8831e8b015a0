//! Conditions: a small, closed language over what the run has so far. It has no functions, no side effects and no
//! way to take long; `docs/executor.md` describes it for authors of definitions.
//!
//! Text is parsed before any reference is resolved, so no value can be mistaken for a part of the expression. What
//! cannot be meant, such as an order of null and a number, is an error and not false.

use std::{borrow::Cow, cmp::Ordering, fmt};

use serde_json::{Map, Number, Value};
use thiserror::Error;

use self::parse::{Arithmetic, Comparison, Expr};
use crate::{
    input::shorten,
    mapping::{Scope, reference::LookUp},
};

mod parse;

/// Why a condition has no value. `Display` is fit for the step's error message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExpressionError {
    /// It is not an expression of the language.
    #[error("at character {at}: {message}")]
    Syntax {
        /// Counted from 1.
        at: usize,
        /// What is wrong there.
        message: String,
    },
    /// It cannot be computed from these values.
    #[error("{0}")]
    Value(String),
}

/// Whether the text is an expression at all, whatever the values.
pub fn check(expression: &str) -> Result<(), ExpressionError> {
    parse::parse(expression).map(drop)
}

/// Whether the condition holds: whether its value is anything but false, null, zero or empty.
pub fn holds(expression: &str, scope: &Scope<'_>) -> Result<bool, ExpressionError> {
    let expression = parse::parse(expression)?;
    let value = Evaluator { values: LookUp::new(scope) }.value(&expression)?;
    Ok(is_truthy(&value))
}

struct Evaluator<'s> {
    values: LookUp<'s>,
}

/// A value with what the author wrote for it, to be named in errors.
struct Operand<'e> {
    source: &'e Expr,
    value: Value,
}

impl Evaluator<'_> {
    /// Recursion ends at the depth that the parser allows.
    fn value(&mut self, expr: &Expr) -> Result<Value, ExpressionError> {
        match expr {
            Expr::Literal(value) => Ok(value.clone()),
            Expr::Reference(reference) => self.reference(reference),
            Expr::List(items) => items.iter().map(|item| self.value(item)).collect(),
            Expr::Object(members) => self.object(members),
            Expr::Not(operand) => Ok(Value::Bool(!is_truthy(&self.value(operand)?))),
            // As in the reference deployment, these give the operand that decided.
            Expr::Or(operands) => self.first(operands, true),
            Expr::And(operands) => self.first(operands, false),
            Expr::Compare(first, rest) => self.compare(first, rest),
            Expr::Arithmetic(first, rest) => self.arithmetic(first, rest),
            Expr::Negate(operand) => {
                let zero = Operand { source: &Expr::Literal(Value::Null), value: Value::from(0) };
                compute(Arithmetic::Minus, &zero, &self.operand(operand)?)
            }
        }
    }

    /// What a run does not have is null: whether it is there is a thing to ask for.
    fn reference(&mut self, reference: &str) -> Result<Value, ExpressionError> {
        let error =
            |reason: &dyn fmt::Display| ExpressionError::Value(format!("reference '{}': {reason}", shorten(reference)));
        match self.values.get(reference) {
            Ok(raw) => serde_json::from_str(raw.get()).map_err(|fault| error(&fault)),
            Err(fault) if fault.is_missing() => Ok(Value::Null),
            Err(fault) => Err(error(&fault)),
        }
    }

    fn object(&mut self, members: &[(Expr, Expr)]) -> Result<Value, ExpressionError> {
        let mut object = Map::new();
        for (key, value) in members {
            let Value::String(name) = self.value(key)? else {
                return Err(ExpressionError::Value("the keys of an object must be strings".to_owned()));
            };
            object.insert(name, self.value(value)?);
        }
        Ok(Value::Object(object))
    }

    /// The first operand of that truth value, or the last one; those after it are not looked at.
    fn first(&mut self, operands: &[Expr], wanted: bool) -> Result<Value, ExpressionError> {
        let mut value = Value::Null;
        for operand in operands {
            value = self.value(operand)?;
            if is_truthy(&value) == wanted {
                break;
            }
        }
        Ok(value)
    }

    /// `a < b < c` is `a < b and b < c`, with `b` looked at once.
    fn compare(&mut self, first: &Expr, rest: &[(Comparison, Expr)]) -> Result<Value, ExpressionError> {
        let mut left = self.operand(first)?;
        for (comparison, right) in rest {
            let right = self.operand(right)?;
            if !compares(*comparison, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    fn arithmetic(&mut self, first: &Expr, rest: &[(Arithmetic, Expr)]) -> Result<Value, ExpressionError> {
        let mut left = self.operand(first)?;
        for (operator, right) in rest {
            let right = self.operand(right)?;
            left.value = compute(*operator, &left, &right)?;
        }
        Ok(left.value)
    }

    fn operand<'e>(&mut self, source: &'e Expr) -> Result<Operand<'e>, ExpressionError> {
        Ok(Operand { source, value: self.value(source)? })
    }
}

impl fmt::Display for Operand<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.value {
            Value::Null => "null",
            Value::Bool(_) => "a bool",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        };
        match self.source {
            Expr::Reference(reference) => write!(f, "${{{}}}, which is {kind}", shorten(reference)),
            _ => f.write_str(kind),
        }
    }
}

/// Not false, null, zero or empty.
fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is_true) => *is_true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

fn compares(comparison: Comparison, left: &Operand<'_>, right: &Operand<'_>) -> Result<bool, ExpressionError> {
    match comparison {
        Comparison::Equal | Comparison::Is => Ok(is_equal(&left.value, &right.value)),
        Comparison::NotEqual | Comparison::IsNot => Ok(!is_equal(&left.value, &right.value)),
        Comparison::Less => order(comparison, left, right).map(Ordering::is_lt),
        Comparison::LessOrEqual => order(comparison, left, right).map(Ordering::is_le),
        Comparison::Greater => order(comparison, left, right).map(Ordering::is_gt),
        Comparison::GreaterOrEqual => order(comparison, left, right).map(Ordering::is_ge),
        Comparison::In => is_in(left, right),
        Comparison::NotIn => is_in(left, right).map(|is_in| !is_in),
        Comparison::Contains => is_in(right, left),
    }
}

/// Numbers by their value, whether whole or not; true and false are 1 and 0.
fn is_equal(left: &Value, right: &Value) -> bool {
    if let (Some(left), Some(right)) = (number(left), number(right)) {
        return order_numbers(&left, &right).is_eq();
    }
    match (left, right) {
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| is_equal(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            let is_same = |(name, left)| right.get(name).is_some_and(|right| is_equal(left, right));
            left.len() == right.len() && left.iter().all(is_same)
        }
        _ => left == right,
    }
}

fn order(comparison: Comparison, left: &Operand<'_>, right: &Operand<'_>) -> Result<Ordering, ExpressionError> {
    if let (Some(left), Some(right)) = (number(&left.value), number(&right.value)) {
        return Ok(order_numbers(&left, &right));
    }
    if let (Value::String(left), Value::String(right)) = (&left.value, &right.value) {
        return Ok(left.cmp(right));
    }
    let text = format!("'{comparison}' compares two numbers or two strings, not {left} and {right}");
    Err(ExpressionError::Value(text))
}

fn number(value: &Value) -> Option<Cow<'_, Number>> {
    match value {
        Value::Number(number) => Some(Cow::Borrowed(number)),
        Value::Bool(is_true) => Some(Cow::Owned(Number::from(u8::from(*is_true)))),
        _ => None,
    }
}

/// Whole numbers of 64 bits exactly, others as doubles.
fn order_numbers(left: &Number, right: &Number) -> Ordering {
    match (left.as_i128(), right.as_i128()) {
        (Some(left), Some(right)) => left.cmp(&right),
        // JSON has no number that is none.
        _ => left.as_f64().partial_cmp(&right.as_f64()).unwrap_or(Ordering::Equal),
    }
}

/// A part of a text, an element of an array, a key of an object.
fn is_in(item: &Operand<'_>, holder: &Operand<'_>) -> Result<bool, ExpressionError> {
    match (&holder.value, &item.value) {
        (Value::Array(items), item) => Ok(items.iter().any(|element| is_equal(element, item))),
        (Value::String(text), Value::String(part)) => Ok(text.contains(part.as_str())),
        (Value::Object(members), Value::String(name)) => Ok(members.contains_key(name)),
        (Value::Object(_), _) => Ok(false),
        (Value::String(_), _) => {
            Err(ExpressionError::Value(format!("only a string can be part of a string, not {item}")))
        }
        _ => Err(ExpressionError::Value(format!("only an array, a string or an object contains things, not {holder}"))),
    }
}

fn compute(operator: Arithmetic, left: &Operand<'_>, right: &Operand<'_>) -> Result<Value, ExpressionError> {
    let (Value::Number(a), Value::Number(b)) = (&left.value, &right.value) else {
        return Err(ExpressionError::Value(format!("'{operator}' takes two numbers, not {left} and {right}")));
    };
    let exact = a.as_i64().zip(b.as_i64()).and_then(|(a, b)| match operator {
        Arithmetic::Plus => a.checked_add(b),
        Arithmetic::Minus => a.checked_sub(b),
        Arithmetic::Times => a.checked_mul(b),
        Arithmetic::Divide => None,
        // With the sign of the divisor, as in the reference deployment.
        Arithmetic::Modulo => {
            a.checked_rem(b).map(|rest| if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
        }
    });
    if let Some(exact) = exact {
        return Ok(Value::from(exact));
    }
    let result = a.as_f64().zip(b.as_f64()).and_then(|(a, b)| {
        Number::from_f64(match operator {
            Arithmetic::Plus => a + b,
            Arithmetic::Minus => a - b,
            Arithmetic::Times => a * b,
            Arithmetic::Divide => a / b,
            Arithmetic::Modulo => a - b * (a / b).floor(),
        })
    });
    result.map(Value::Number).ok_or_else(|| ExpressionError::Value(format!("'{operator}' has no result here")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    /// An expression holds, or not, or says this.
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
            ("1 in null", Err("contains things, not null")),
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
    fn what_is_decided_is_not_looked_at_further() {
        check("true or ${workflow.input.s} > 1", Ok(true));
        check("false and ${workflow.input.s} > 1", Ok(false));
        check("2 < 1 < 'a'", Ok(false));
        check("true and ${workflow.input.s} > 1", Err("'>' compares"));
        // Good or bad, the whole expression has to be one.
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
        check("'${workflow.input.s}' == 'abc'", Err("a reference stands without quotes"));
    }

    #[test]
    fn what_is_not_of_the_language_says_where() {
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
}
