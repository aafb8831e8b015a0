//! Price of an agent's calls.

use serde_json::value::RawValue;

use super::{Cost, Usage};
use crate::input::{Node, Read, member};

/// Members of a price.
const MEMBERS: [&str; 3] = ["input", "output", "call"];
/// Maximum of each.
const MAX: u64 = 1_000_000;
/// Decimal places of each.
const PLACES: u32 = 6;

/// Price of an agent's calls, in the unit in which the limits of runs are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Price {
    /// For a million input tokens.
    pub input: Cost,
    /// For a million output tokens.
    pub output: Cost,
    /// For each call.
    pub call: Cost,
}

impl Price {
    /// Reads the member `price` of an agent's `config`; unknown members are errors.
    pub fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        object.only(&MEMBERS, &mut errors);
        let mut part = |name| object.nullable(name, &mut errors, |node| Cost::read(node, MAX, PLACES));
        let (input, output, call) = (part("input"), part("output"), part("call"));
        let price = Self {
            input: input.unwrap_or_default(),
            output: output.unwrap_or_default(),
            call: call.unwrap_or_default(),
        };
        if errors.is_empty() { Ok(price) } else { Err(errors) }
    }

    /// Price in a stored `config` of any kind; `None` if it has none.
    #[must_use]
    pub fn of_config(config: Option<&RawValue>) -> Option<Self> {
        let price = member(config?, "price").filter(|price| price.get() != "null")?;
        Self::read(&Node::new("price", price)).ok()
    }

    /// Cost of a call with this usage.
    #[must_use]
    pub fn cost(&self, usage: Usage) -> Cost {
        self.call + self.cost_of_tokens(usage)
    }

    /// Cost of the tokens alone.
    #[must_use]
    pub fn cost_of_tokens(&self, usage: Usage) -> Cost {
        Cost::of_tokens(usage.input_tokens, self.input) + Cost::of_tokens(usage.output_tokens, self.output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    #[test]
    fn a_call_costs_its_tokens_and_itself() {
        let config = r#"{"model":"m","price":{"input":0.15,"output":"0.6","call":0.000001}}"#;
        let price = Price::of_config(check_json(config.as_bytes()).ok()).expect("a price");
        let usage = Usage { input_tokens: 11, output_tokens: 3 };
        assert_eq!(price.cost(usage).to_string(), "0.00000445");
        assert_eq!(Price::of_config(check_json(br#"{"price":null}"#).ok()), None);
        let bad = check_json(br#"{"input":-1,"output":[],"call":1e9,"x":1}"#).expect("JSON");
        let errors = Price::read(&Node::new("body.config.price", bad)).expect_err("bad");
        let fields: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
        let expected = ["x", "input", "output", "call"].map(|name| format!("body.config.price.{name}"));
        assert_eq!(fields, expected);
    }
}
