//! Costs: exact decimal numbers without a currency.

use std::{
    fmt,
    ops::{Add, Sub},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::input::{FieldError, Node, Read, text};

/// Decimal places that a cost can have.
const PLACES: u32 = 12;
/// Length of a number that is read.
const MAX_CHARS: usize = 60;

/// Cost, in millionths of a millionth. A price per million tokens with six places makes a cost per token with twelve, so
/// every cost is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost(u128);

impl Cost {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// Parses a decimal number that is not negative, with up to twelve places; an exponent is allowed.
    #[must_use]
    pub fn parse(number: &str) -> Option<Self> {
        if number.len() > MAX_CHARS {
            return None;
        }
        let (mantissa, exponent) = match number.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (number, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        if whole.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        // Zeros at the end are no places.
        let kept = digits.trim_end_matches('0');
        let dropped = i32::try_from(digits.len() - kept.len()).ok()?;
        let Some(value) = (!kept.is_empty()).then(|| kept.parse::<u128>().ok()) else { return Some(Self::ZERO) };
        let shift = i32::try_from(PLACES).ok()?.checked_add(exponent)? - i32::try_from(fraction.len()).ok()? + dropped;
        let factor = 10_u128.checked_pow(u32::try_from(shift).ok()?)?;
        value?.checked_mul(factor).map(Self)
    }

    /// Reads a cost up to `most` with up to that many places: a number, or a string with one.
    pub fn read(node: &Node<'_>, most: u64, places: u32) -> Read<Self> {
        let rule = |text: String| vec![FieldError::rule(node.path(), text)];
        let json = node.raw().get();
        let number = match json.as_bytes().first() {
            Some(b'"') => text(node.raw()).unwrap_or_default(),
            Some(b'0'..=b'9' | b'-') => json.to_owned(),
            _ => return Err(rule("must be a decimal number, or a string with one".to_owned())),
        };
        if number.starts_with('-') {
            return Err(rule("must not be negative".to_owned()));
        }
        // More than fits is no number that `parse` knows.
        let is_huge = || {
            number.starts_with(|c: char| c.is_ascii_digit()) && number.parse::<f64>().is_ok_and(|it| it > most as f64)
        };
        if is_huge() {
            return Err(rule(format!("must be at most {most}")));
        }
        let read = Self::parse(&number).filter(|cost| cost.0.is_multiple_of(10_u128.pow(PLACES - places)));
        let cost =
            read.ok_or_else(|| rule(format!("must be a decimal number with at most {places} decimal places")))?;
        if cost > Self::whole(most) {
            return Err(rule(format!("must be at most {most}")));
        }
        Ok(cost)
    }

    /// That number of units.
    #[must_use]
    pub fn whole(units: u64) -> Self {
        Self(u128::from(units) * 10_u128.pow(PLACES))
    }

    /// Cost of that many tokens at a price per million of them, which has six places at most.
    #[must_use]
    pub(super) fn of_tokens(tokens: u64, per_million: Self) -> Self {
        Self((per_million.0 / 1_000_000).saturating_mul(u128::from(tokens)))
    }

    /// Whole billionths, for metrics.
    #[must_use]
    pub fn billionths(self) -> u64 {
        u64::try_from((self.0 + 500) / 1000).unwrap_or(u64::MAX)
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Cost {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

/// Without zeros at the end.
impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = 10_u128.pow(PLACES);
        let (whole, fraction) = (self.0 / unit, self.0 % unit);
        if fraction == 0 {
            return write!(f, "{whole}");
        }
        let fraction = format!("{fraction:012}");
        write!(f, "{whole}.{}", fraction.trim_end_matches('0'))
    }
}

/// A string, since many programs read a JSON number as a float.
impl Serialize for Cost {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cost {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = String::deserialize(deserializer)?;
        Self::parse(&number).ok_or_else(|| D::Error::custom("no cost"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    #[test]
    fn costs_are_exact_and_shown_without_zeros() {
        for (number, expected) in [
            ("0", "0"),
            ("0.000", "0"),
            ("1.10", "1.1"),
            ("0.000000000001", "0.000000000001"),
            ("1e-12", "0.000000000001"),
            ("2.5E3", "2500"),
            ("1000000.000000000001", "1000000.000000000001"),
            ("0.1000000000000", "0.1"),
        ] {
            assert_eq!(Cost::parse(number).expect(number).to_string(), expected, "{number}");
        }
        for number in ["", ".5", "-1", "1e-13", "0.0000000000001", "1e40", "1.2.3", "NaN", "1e99999999999", "0x1"] {
            assert_eq!(Cost::parse(number), None, "{number}");
        }
        // What a float makes 0.30000000000000004.
        let sum = Cost::parse("0.1").expect("a cost") + Cost::parse("0.2").expect("a cost");
        assert_eq!(sum.to_string(), "0.3");
        let many = (0..1000).fold(Cost::ZERO, |sum, _| sum + Cost::of_tokens(3, Cost::parse("0.15").expect("a cost")));
        assert_eq!(many.to_string(), "0.00045");
    }

    #[test]
    fn a_bad_cost_is_refused_with_its_field() {
        for (json, expected) in [
            ("-1", "negative"),
            ("\"-0.5\"", "negative"),
            ("true", "decimal number"),
            ("0.0000001", "6 decimal places"),
            ("11", "at most 10"),
            ("1000000000000000000000000000000", "at most 10"),
            ("\"1e400\"", "at most 10"),
            ("\"inf\"", "decimal"),
            ("\"x\"", "decimal"),
            ("[]", "decimal"),
        ] {
            let node = Node::new("body.price", check_json(json.as_bytes()).expect(json));
            let errors = Cost::read(&node, 10, 6).expect_err(json);
            assert!(errors[0].field == "body.price" && errors[0].message.contains(expected), "{json}: {errors:?}");
        }
    }
}
