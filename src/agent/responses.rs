//! Settings of agents with the Responses API.

use serde_json::value::RawValue;

use super::model::{MODEL_CHARS, PROMPT_CHARS, is_json, read_format, read_parameters};
use crate::{
    input::{FieldError, Node, Read},
    usage::Price,
};

/// Members of the `config` of an agent of kind `responses`.
const MEMBERS: [&str; 7] =
    ["model", "instructions", "parameters", "response_format", "streaming", "background", "price"];
/// Parameters of a request that other members determine.
const OWN_PARAMETERS: [&str; 5] = ["model", "input", "instructions", "stream", "background"];

/// Settings of a model besides the input of the step.
#[derive(Clone, Debug)]
pub struct ResponsesConfig {
    /// Name of the model.
    pub model: String,
    /// Instructions before the input of the step.
    pub instructions: Option<String>,
    /// Further members of the request, such as `tools`, `reasoning` and `max_output_tokens`.
    pub parameters: Option<Box<RawValue>>,
    /// Format of the text; `None`: that of the API.
    pub format: Option<Box<RawValue>>,
    /// Whether the answer is streamed.
    pub streaming: bool,
    /// Whether the response is created in the background, and queried until it is done.
    pub background: bool,
}

impl ResponsesConfig {
    /// Reads an agent's `config`; unknown members are errors.
    pub fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors: Vec<FieldError> = Vec::new();
        object.only(&MEMBERS, &mut errors);
        let model = object.required("model", &mut errors, |node| node.not_blank(MODEL_CHARS));
        let instructions = object.nullable("instructions", &mut errors, |node| node.string(PROMPT_CHARS));
        let format = object.nullable("response_format", &mut errors, read_format);
        let is_own = |name: &str| OWN_PARAMETERS.contains(&name) || (name == "text" && format.is_some());
        let parameters = object.nullable("parameters", &mut errors, |node| read_parameters(node, is_own));
        let streaming = object.nullable("streaming", &mut errors, Node::boolean).unwrap_or_default();
        let background = object.nullable("background", &mut errors, Node::boolean).unwrap_or_default();
        // It is read where it is used.
        object.nullable("price", &mut errors, Price::read);
        if streaming && background {
            let field = format!("{}.streaming", node.path());
            errors.push(FieldError::rule(field, "must be false if background is true"));
        }
        match model {
            Some(model) if errors.is_empty() => {
                Ok(Self { model, instructions, parameters, format, streaming, background })
            }
            _ => Err(errors),
        }
    }

    /// Whether the text must be JSON.
    #[must_use]
    pub fn wants_json(&self) -> bool {
        is_json(self.format.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    fn read(config: &str) -> Read<ResponsesConfig> {
        ResponsesConfig::read(&Node::new("config", check_json(config.as_bytes()).expect(config)))
    }

    #[test]
    fn a_config_has_a_model_and_what_is_sent_besides_the_input() {
        let config = read(
            r#"{"model":"m","instructions":"i","parameters":{"tools":[],"text":{"verbosity":"low"}},"background":true}"#,
        );
        let config = config.expect("valid");
        assert!(config.background && !config.streaming && !config.wants_json());
        assert!(read(r#"{"model":"m","response_format":"json"}"#).expect("valid").wants_json());
        for (config, expected) in [
            ("{}", "config.model missing"),
            (r#"{"model":"m","system_prompt":"s"}"#, "config.system_prompt extra_forbidden"),
            (r#"{"model":"m","parameters":{"input":"x"}}"#, "config.parameters.input value_error"),
            (r#"{"model":"m","parameters":{"background":true}}"#, "config.parameters.background value_error"),
            (
                r#"{"model":"m","response_format":"json","parameters":{"text":{}}}"#,
                "config.parameters.text value_error",
            ),
            (r#"{"model":"m","response_format":"xml"}"#, "config.response_format value_error"),
            (r#"{"model":"m","background":"yes please"}"#, "config.background bool_type"),
            (r#"{"model":"m","streaming":true,"background":true}"#, "config.streaming value_error"),
        ] {
            let errors = read(config).map(|_| ()).expect_err(config);
            let found: Vec<_> = errors.iter().map(|error| format!("{} {}", error.field, error.kind)).collect();
            assert_eq!(found, [expected], "{config}");
        }
    }
}
