//! Usage: the tokens that models take, what they cost, and the limits of runs. Pure.

mod cost;
mod limits;
mod price;

use serde::Serialize;
use serde_json::value::RawValue;

pub use self::{
    cost::Cost,
    limits::{Admission, LimitKind, Limits, Totals, Want},
    price::Price,
};
use crate::input::{elements, member};

/// Maximum number of tokens of one call that counts. More is no answer of a model.
const MAX_CALL_TOKENS: u64 = 1_000_000_000_000;
/// Names of the number of input tokens: of chat completions, of Open Responses and most others, of Gemini.
const INPUT_NAMES: [&str; 3] = ["prompt_tokens", "input_tokens", "promptTokenCount"];
/// Names of the number of output tokens, in the same order.
const OUTPUT_NAMES: [&str; 3] = ["completion_tokens", "output_tokens", "candidatesTokenCount"];
/// Output tokens that Gemini counts apart.
const THOUGHTS: &str = "thoughtsTokenCount";
/// Parameters of a model that limit its output.
const MAX_OUTPUT_NAMES: [&str; 3] = ["max_completion_tokens", "max_tokens", "max_output_tokens"];
/// Output tokens that are expected without such a parameter.
const EXPECTED_OUTPUT_TOKENS: u64 = 4096;
/// Members of an A2A metadata object that hold usage: the general name, and that of Google's ADK.
const METADATA_NAMES: [&str; 2] = ["usage", "adk_usage_metadata"];

/// Tokens that one call has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens of the input.
    pub input_tokens: u64,
    /// Tokens of the output, thoughts included.
    pub output_tokens: u64,
}

impl Usage {
    /// Reads a usage object. `None` if it has no number of tokens by a known name.
    #[must_use]
    pub fn read(usage: &RawValue) -> Option<Self> {
        let number = |name: &&str| Some(member(usage, name)?.get().parse::<u64>().ok()?.min(MAX_CALL_TOKENS));
        let (input, output) = (INPUT_NAMES.iter().find_map(number), OUTPUT_NAMES.iter().find_map(number));
        let total = ["total_tokens", "totalTokenCount"].iter().find_map(number);
        if input.is_none() && output.is_none() && total.is_none() {
            return None;
        }
        let input_tokens = input.unwrap_or_default();
        let output = output.map(|output| output + number(&THOUGHTS).unwrap_or_default());
        let rest = || total.unwrap_or_default().saturating_sub(input_tokens);
        Some(Self { input_tokens, output_tokens: output.unwrap_or_else(rest) })
    }

    /// Usage of an answer: its member `usage`, or that of its metadata.
    #[must_use]
    pub fn of_answer(answer: &RawValue) -> Option<Self> {
        let own = member(answer, "usage").and_then(Self::read);
        own.or_else(|| Self::of_metadata_in(answer))
    }

    /// Usage of an A2A task or message: that of its metadata, else that of the message of its status, else the sum of
    /// those of its artifacts.
    #[must_use]
    pub fn of_a2a(result: &RawValue) -> Option<Self> {
        Self::told_by_a2a(result).map(|(usage, _)| usage)
    }

    /// The same, if it is what the task has used in all its rounds, and not only in the last one.
    #[must_use]
    pub fn of_whole_task(result: &RawValue) -> Option<Self> {
        Self::told_by_a2a(result).filter(|(_, is_whole)| *is_whole).map(|(usage, _)| usage)
    }

    /// Usage of an A2A task since it has told to have used `before`.
    #[must_use]
    pub fn of_a2a_since(result: &RawValue, before: Self) -> Option<Self> {
        let (usage, is_whole) = Self::told_by_a2a(result)?;
        Some(if is_whole { usage.minus(before) } else { usage })
    }

    /// Usage that an A2A task or message tells, and whether it is that of all rounds of the task.
    fn told_by_a2a(result: &RawValue) -> Option<(Self, bool)> {
        // Version 1.0 wraps the result.
        let result = member(result, "task").or_else(|| member(result, "message")).unwrap_or(result);
        let is_task = member(result, "status").is_some();
        let of_status = || member(member(result, "status")?, "message").and_then(Self::of_metadata_in);
        let of_artifacts = || {
            let artifacts = member(result, "artifacts").and_then(elements)?;
            artifacts.into_iter().filter_map(Self::of_metadata_in).reduce(Self::plus)
        };
        let own = Self::of_metadata_in(result).map(|usage| (usage, is_task));
        let of_status = || of_status().map(|usage| (usage, false));
        own.or_else(of_status).or_else(|| of_artifacts().map(|usage| (usage, is_task)))
    }

    fn of_metadata_in(holder: &RawValue) -> Option<Self> {
        let metadata = member(holder, "metadata")?;
        METADATA_NAMES.iter().find_map(|name| member(metadata, name).and_then(Self::read))
    }

    /// Tokens to reserve for a call of an agent with this stored `config`, besides those of its input: those of the
    /// prompts in it, and the most that its parameters allow for the output. `None`: it has neither a model nor a price, so
    /// no tokens are expected.
    #[must_use]
    pub fn expected(config: Option<&RawValue>) -> Option<Self> {
        let config = config?;
        let given = |name| member(config, name).is_some_and(|value| value.get() != "null");
        // A tool tells no tokens, unless it has a price for them.
        let of_tokens = |price: &RawValue| ["input", "output"].iter().any(|name| member(price, name).is_some());
        let is_tool = given("tool") && !member(config, "price").is_some_and(of_tokens);
        if is_tool || (!given("model") && !given("price")) {
            return None;
        }
        let parameters = member(config, "parameters");
        let most = MAX_OUTPUT_NAMES.iter().find_map(|name| member(parameters?, name)?.get().parse::<u64>().ok());
        let output_tokens = most.unwrap_or(EXPECTED_OUTPUT_TOKENS).min(MAX_CALL_TOKENS);
        Some(Self { input_tokens: 1 + config.get().len() as u64 / 4, output_tokens })
    }

    /// Sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            input_tokens: (self.input_tokens + other.input_tokens).min(MAX_CALL_TOKENS),
            output_tokens: (self.output_tokens + other.output_tokens).min(MAX_CALL_TOKENS),
        }
    }

    /// Difference, at least zero.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_sub(other.input_tokens),
            output_tokens: self.output_tokens.saturating_sub(other.output_tokens),
        }
    }

    /// All tokens.
    #[must_use]
    pub fn tokens(self) -> u64 {
        self.input_tokens + self.output_tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    fn raw(json: &str) -> &RawValue {
        check_json(json.as_bytes()).expect(json)
    }

    fn tokens(usage: Option<Usage>) -> Option<(u64, u64)> {
        usage.map(|usage| (usage.input_tokens, usage.output_tokens))
    }

    #[test]
    fn usage_is_read_by_the_names_of_all_apis() {
        for (json, expected) in [
            (r#"{"prompt_tokens":11,"completion_tokens":3,"total_tokens":14}"#, Some((11, 3))),
            (r#"{"input_tokens":5,"output_tokens":0}"#, Some((5, 0))),
            (
                r#"{"promptTokenCount":2,"candidatesTokenCount":3,"thoughtsTokenCount":4,"totalTokenCount":9}"#,
                Some((2, 7)),
            ),
            (r#"{"prompt_tokens":2,"total_tokens":9}"#, Some((2, 7))),
            (r#"{"total_tokens":9}"#, Some((0, 9))),
            (r#"{"prompt_tokens":18446744073709551615,"completion_tokens":-1}"#, Some((MAX_CALL_TOKENS, 0))),
            (r#"{"prompt_tokens":"7"}"#, None),
            ("{}", None),
            ("null", None),
        ] {
            assert_eq!(tokens(Usage::read(raw(json))), expected, "{json}");
        }
    }

    #[test]
    fn tokens_are_expected_of_models_and_of_what_has_a_price_for_them() {
        for (config, expected) in [
            (r#"{"model":"m","parameters":{"max_tokens":10}}"#, Some(10)),
            (r#"{"price":{"call":1}}"#, Some(EXPECTED_OUTPUT_TOKENS)),
            (r#"{"tool":"t","price":{"call":1}}"#, None),
            (r#"{"tool":"t","price":{"call":1,"output":2}}"#, Some(EXPECTED_OUTPUT_TOKENS)),
            (r#"{"tool":"t"}"#, None),
            ("{}", None),
        ] {
            assert_eq!(tokens(Usage::expected(Some(raw(config)))).map(|(_, output)| output), expected, "{config}");
        }
    }

    #[test]
    fn an_a2a_agent_gives_its_usage_in_metadata() {
        let usage = r#"{"usage":{"input_tokens":5,"output_tokens":2}}"#;
        for (json, expected) in [
            (format!(r#"{{"id":"t","metadata":{usage},"status":{{"message":{{"metadata":{usage}}}}}}}"#), Some((5, 2))),
            (format!(r#"{{"task":{{"id":"t","metadata":{usage}}}}}"#), Some((5, 2))),
            (format!(r#"{{"message":{{"metadata":{usage}}}}}"#), Some((5, 2))),
            (format!(r#"{{"id":"t","status":{{"message":{{"metadata":{usage}}}}}}}"#), Some((5, 2))),
            (format!(r#"{{"artifacts":[{{"metadata":{usage}}},{{}},{{"metadata":{usage}}}]}}"#), Some((10, 4))),
            (
                r#"{"metadata":{"adk_usage_metadata":{"promptTokenCount":1,"candidatesTokenCount":2}}}"#.to_owned(),
                Some((1, 2)),
            ),
            (r#"{"id":"t","usage":{"input_tokens":1}}"#.to_owned(), None),
        ] {
            assert_eq!(tokens(Usage::of_a2a(raw(&json))), expected, "{json}");
        }
    }

    #[test]
    fn what_a_task_tells_of_all_its_rounds_counts_once() {
        let before = Usage { input_tokens: 3, output_tokens: 2 };
        let usage = r#""metadata":{"usage":{"input_tokens":5,"output_tokens":2}}"#;
        for (json, whole, since) in [
            (format!(r#"{{"status":{{}},{usage}}}"#), Some((5, 2)), Some((2, 0))),
            (format!(r#"{{"task":{{"status":{{}},{usage}}}}}"#), Some((5, 2)), Some((2, 0))),
            (format!(r#"{{"status":{{}},"artifacts":[{{{usage}}},{{{usage}}}]}}"#), Some((10, 4)), Some((7, 2))),
            // What is told of a message is only of that.
            (format!(r#"{{"status":{{"message":{{{usage}}}}}}}"#), None, Some((5, 2))),
            (format!(r#"{{"message":{{"parts":[],{usage}}}}}"#), None, Some((5, 2))),
            (r#"{"status":{}}"#.to_owned(), None, None),
        ] {
            assert_eq!(tokens(Usage::of_whole_task(raw(&json))), whole, "{json}");
            assert_eq!(tokens(Usage::of_a2a_since(raw(&json), before)), since, "{json}");
        }
    }
}
