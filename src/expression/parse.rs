//! Parser of conditions: text to an expression tree.

use std::fmt;

use serde_json::{Number, Value};

use super::ExpressionError;
use crate::input::shorten;

/// Maximum depth of brackets, `not` and `-`, since parser and evaluator are recursive.
const MAX_DEPTH: usize = 50;

/// Expression. Operators of one rank are a list, so that only brackets make the tree deep.
#[derive(Debug)]
pub(super) enum Expr {
    Literal(Value),
    Reference(String),
    List(Vec<Expr>),
    Object(Vec<(Expr, Expr)>),
    Not(Box<Expr>),
    Negate(Box<Expr>),
    Or(Vec<Expr>),
    And(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    Arithmetic(Box<Expr>, Vec<(Arithmetic, Expr)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
    Contains,
    /// Only with null.
    Is,
    IsNot,
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::In => "in",
            Self::NotIn => "not in",
            Self::Contains => "contains",
            Self::Is => "is",
            Self::IsNot => "is not",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Plus,
    Minus,
    Times,
    Divide,
    Modulo,
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plus => "+",
            Self::Minus => "-",
            Self::Times => "*",
            Self::Divide => "/",
            Self::Modulo => "%",
        })
    }
}

/// Parses the whole text as one expression.
pub(super) fn parse(text: &str) -> Result<Expr, ExpressionError> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, end: text.chars().count() + 1, depth: 0 };
    let expr = parser.or()?;
    match parser.peek() {
        None => Ok(expr),
        Some(_) => Err(parser.fault("expected the end or an operator")),
    }
}

/// The references of an expression, in their order.
pub(super) fn references(text: &str) -> Result<Vec<String>, ExpressionError> {
    parse(text)?;
    let of_token = |(_, token)| match token {
        Token::Reference(reference) => Some(reference),
        Token::Literal(_) | Token::Sign(_) | Token::Word(_) => None,
    };
    Ok(tokens(text)?.into_iter().filter_map(of_token).collect())
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Literal(Value),
    Reference(String),
    /// Operator sign or bracket.
    Sign(&'static str),
    /// Keyword such as `and` or `in`.
    Word(&'static str),
}

/// Operator signs and brackets, longer ones first.
const SIGNS: [&str; 19] =
    ["==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "(", ")", "[", "]", "{", "}", ",", ":"];
const WORDS: [&str; 6] = ["and", "or", "not", "in", "is", "contains"];

/// Splits a text into tokens, each with the number of its first character, from 1.
fn tokens(text: &str) -> Result<Vec<(usize, Token)>, ExpressionError> {
    let mut tokens = Vec::new();
    let (mut rest, mut at) = (text, 1);
    loop {
        let trimmed = rest.trim_start();
        at += rest[..rest.len() - trimmed.len()].chars().count();
        rest = trimmed;
        let Some(first) = rest.chars().next() else { return Ok(tokens) };
        let syntax = |message: String| ExpressionError::Syntax { at, message };
        let (token, length) = match first {
            '$' => reference(rest).map_err(syntax)?,
            '\'' | '"' => string(rest, first).map_err(syntax)?,
            '0'..='9' => number(rest).map_err(syntax)?,
            _ if first.is_alphabetic() || first == '_' => word(rest).map_err(syntax)?,
            _ => match SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
                Some(sign) => (Token::Sign(sign), sign.len()),
                None => return Err(syntax(unknown_sign(first))),
            },
        };
        tokens.push((at, token));
        at += rest[..length].chars().count();
        rest = &rest[length..];
    }
}

fn unknown_sign(first: char) -> String {
    let instead = match first {
        '=' => "; equality is '=='",
        '&' => "; write 'and'",
        '|' => "; write 'or'",
        '!' => "; write 'not'",
        _ => "",
    };
    format!("'{first}' is not an operator{instead}")
}

/// Reads `${…}`. Like the following functions, it returns the token and its length in bytes.
fn reference(rest: &str) -> Result<(Token, usize), String> {
    let Some(inside) = rest.strip_prefix("${") else { return Err("a reference is written ${…}".to_owned()) };
    match inside.find('}') {
        None => Err("the reference does not end".to_owned()),
        Some(0) => Err("the reference is empty".to_owned()),
        Some(length) => Ok((Token::Reference(inside[..length].to_owned()), length + 3)),
    }
}

fn string(rest: &str, quote: char) -> Result<(Token, usize), String> {
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == quote {
            if text.contains("${") {
                return Err("a reference is written without quotes, and a string cannot contain ${".to_owned());
            }
            return Ok((Token::Literal(Value::String(text)), at + 1));
        }
        text.push(if c == '\\' {
            match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, 'r')) => '\r',
                Some((_, 't')) => '\t',
                Some((_, escaped @ ('\\' | '\'' | '"'))) => escaped,
                Some((_, other)) => return Err(format!("unknown escape '\\{other}'")),
                None => break,
            }
        } else {
            c
        });
    }
    Err("the string does not end".to_owned())
}

fn number(rest: &str) -> Result<(Token, usize), String> {
    let bytes = rest.as_bytes();
    let is_part = |at: usize| match bytes[at] {
        b'+' | b'-' => matches!(bytes[at - 1], b'e' | b'E'),
        byte => byte.is_ascii_alphanumeric() || byte == b'.',
    };
    let length = (1..bytes.len()).find(|at| !is_part(*at)).unwrap_or(bytes.len());
    let number =
        rest[..length].parse::<Number>().map_err(|_| format!("'{}' is not a number", shorten(&rest[..length])))?;
    Ok((Token::Literal(Value::Number(number)), length))
}

fn word(rest: &str) -> Result<(Token, usize), String> {
    let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    let word = &rest[..length];
    let token = match word {
        "true" | "True" => Token::Literal(Value::Bool(true)),
        "false" | "False" => Token::Literal(Value::Bool(false)),
        "null" | "None" => Token::Literal(Value::Null),
        _ => match WORDS.iter().find(|known| **known == word) {
            Some(known) => Token::Word(known),
            None => {
                return Err(format!(
                    "unknown word '{}': text needs quotes, values are written ${{…}}, and there are no functions",
                    shorten(word)
                ));
            }
        },
    };
    Ok((token, length))
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    /// Number of the character after the last one.
    end: usize,
    depth: usize,
}

/// Recursive-descent parser, with one function for each rank of operators, from the loosest to the tightest.
impl Parser {
    fn or(&mut self) -> Result<Expr, ExpressionError> {
        let first = self.and()?;
        let mut operands = vec![first];
        while self.take_word("or") {
            operands.push(self.and()?);
        }
        Ok(one_or(operands, Expr::Or))
    }

    fn and(&mut self) -> Result<Expr, ExpressionError> {
        let mut operands = vec![self.not()?];
        while self.take_word("and") {
            operands.push(self.not()?);
        }
        Ok(one_or(operands, Expr::And))
    }

    fn not(&mut self) -> Result<Expr, ExpressionError> {
        if self.take_word("not") {
            return self.deeper(|parser| Ok(Expr::Not(Box::new(parser.not()?))));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expr, ExpressionError> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        while let Some(comparison) = self.comparison_sign()? {
            let right = self.sum()?;
            if matches!(comparison, Comparison::Is | Comparison::IsNot) && !matches!(right, Expr::Literal(Value::Null))
            {
                return Err(self.fault_before("'is' is followed by null or not null"));
            }
            rest.push((comparison, right));
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(Box::new(first), rest) })
    }

    fn comparison_sign(&mut self) -> Result<Option<Comparison>, ExpressionError> {
        let signs = [
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        if let Some((_, comparison)) = signs.into_iter().find(|(sign, _)| self.take_sign(sign)) {
            return Ok(Some(comparison));
        }
        Ok(if self.take_word("in") {
            Some(Comparison::In)
        } else if self.take_word("contains") {
            Some(Comparison::Contains)
        } else if self.take_word("is") {
            Some(if self.take_word("not") { Comparison::IsNot } else { Comparison::Is })
        } else if self.take_word("not") {
            if !self.take_word("in") {
                return Err(self.fault("expected 'in'"));
            }
            Some(Comparison::NotIn)
        } else {
            None
        })
    }

    fn sum(&mut self) -> Result<Expr, ExpressionError> {
        self.arithmetic(&[("+", Arithmetic::Plus), ("-", Arithmetic::Minus)], Self::product)
    }

    fn product(&mut self) -> Result<Expr, ExpressionError> {
        let signs = [("*", Arithmetic::Times), ("/", Arithmetic::Divide), ("%", Arithmetic::Modulo)];
        self.arithmetic(&signs, Self::signed)
    }

    fn arithmetic(
        &mut self,
        signs: &[(&str, Arithmetic)],
        operand: fn(&mut Self) -> Result<Expr, ExpressionError>,
    ) -> Result<Expr, ExpressionError> {
        let first = operand(self)?;
        let mut rest = Vec::new();
        while let Some((_, operator)) = signs.iter().find(|(sign, _)| self.take_sign(sign)) {
            rest.push((*operator, operand(self)?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Arithmetic(Box::new(first), rest) })
    }

    fn signed(&mut self) -> Result<Expr, ExpressionError> {
        if self.take_sign("-") {
            return self.deeper(|parser| Ok(Expr::Negate(Box::new(parser.signed()?))));
        }
        self.operand()
    }

    fn operand(&mut self) -> Result<Expr, ExpressionError> {
        match self.peek().cloned() {
            Some(Token::Literal(value)) => {
                self.at += 1;
                Ok(Expr::Literal(value))
            }
            Some(Token::Reference(reference)) => {
                self.at += 1;
                Ok(Expr::Reference(reference))
            }
            Some(Token::Sign("(")) => self.deeper(|parser| {
                parser.at += 1;
                let inside = parser.or()?;
                parser.expect(")")?;
                Ok(inside)
            }),
            Some(Token::Sign("[")) => self.deeper(|parser| parser.list("]", Self::or).map(Expr::List)),
            Some(Token::Sign("{")) => self.deeper(|parser| parser.list("}", Self::member).map(Expr::Object)),
            Some(_) => Err(self.fault("expected a value")),
            None => Err(self.fault("the expression ends too early")),
        }
    }

    fn member(&mut self) -> Result<(Expr, Expr), ExpressionError> {
        let key = self.or()?;
        self.expect(":")?;
        Ok((key, self.or()?))
    }

    /// Parses a list, from the opening bracket to the closing one.
    fn list<T>(
        &mut self,
        close: &str,
        item: fn(&mut Self) -> Result<T, ExpressionError>,
    ) -> Result<Vec<T>, ExpressionError> {
        self.at += 1;
        let mut items = Vec::new();
        if self.take_sign(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.take_sign(close) {
                return Ok(items);
            }
            if !self.take_sign(",") {
                return Err(self.fault(&format!("expected ',' or '{close}'")));
            }
        }
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, ExpressionError>) -> Result<T, ExpressionError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.fault("the expression is nested too deeply"));
        }
        let parsed = parse(self)?;
        self.depth -= 1;
        Ok(parsed)
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn take_sign(&mut self, sign: &str) -> bool {
        let is_it = matches!(self.peek(), Some(Token::Sign(found)) if *found == sign);
        self.at += usize::from(is_it);
        is_it
    }

    fn take_word(&mut self, word: &str) -> bool {
        let is_it = matches!(self.peek(), Some(Token::Word(found)) if *found == word);
        self.at += usize::from(is_it);
        is_it
    }

    fn expect(&mut self, sign: &str) -> Result<(), ExpressionError> {
        if self.take_sign(sign) { Ok(()) } else { Err(self.fault(&format!("expected '{sign}'"))) }
    }

    fn fault(&self, message: &str) -> ExpressionError {
        let at = self.tokens.get(self.at).map_or(self.end, |(at, _)| *at);
        ExpressionError::Syntax { at, message: message.to_owned() }
    }

    /// A syntax error at the token that was just read.
    fn fault_before(&self, message: &str) -> ExpressionError {
        let at = self.tokens.get(self.at.saturating_sub(1)).map_or(self.end, |(at, _)| *at);
        ExpressionError::Syntax { at, message: message.to_owned() }
    }
}

/// A single operand as it is, several as a list.
fn one_or(mut operands: Vec<Expr>, list: fn(Vec<Expr>) -> Expr) -> Expr {
    if operands.len() == 1
        && let Some(only) = operands.pop()
    {
        return only;
    }
    list(operands)
}
