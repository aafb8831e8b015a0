//! Questions of runs as questions to the user of a client, and the answers.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use super::{Failure, McpCall, invalid};
use crate::{
    api::{
        resources::exposed_run::{self, ExposedRun},
        vocabulary::{error::ApiError, signing::SIGNATURE_BYTES},
    },
    db::waits::Question,
    input::{check_json, in_words, member, members, object_of, shorten_to, text, to_raw},
};

/// State of a call that waits for the user: the run that it has started.
#[derive(Serialize, Deserialize)]
struct RequestState {
    run_id: String,
    /// Time until which the state is valid, in seconds since the epoch.
    until: f64,
}

/// Time for which the state of a call is valid.
const STATE_SECS: f64 = 86_400.0;

/// Name and status of a run.
#[must_use]
pub fn about(run: &ExposedRun) -> Box<RawValue> {
    let row = &run.row;
    to_raw(&json!({"run_id": row.run_id, "workflow": row.workflow_name, "status": row.status}))
}

/// Questions by their names, each as a form for the user.
#[must_use]
pub fn input_requests(questions: &[Question]) -> Box<RawValue> {
    let form = |question: &Question| {
        let text = |about: &str| {
            let text = json!({"type": "string", "title": "Answer", "description": about});
            json!({"type": "object", "required": ["text"], "properties": {"text": text}})
        };
        let schema = match (question.approval.is_some(), question.question.is_some(), question.answer_schema()) {
            (true, true, _) => json!({"type": "object", "required": ["approved"], "properties": {
                "approved": {"type": "boolean", "title": "The authorisation was given"},
            }}),
            (true, false, _) => json!({"type": "object", "required": ["approved"], "properties": {
                "approved": {"type": "boolean", "title": "Approved"},
                "comment": {"type": "string", "title": "Comment", "maxLength": 2000},
            }}),
            (false, _, Some(schema)) => form_of(schema)
                .unwrap_or_else(|| text(&format!("JSON of this schema: {}", shorten_to(schema.get(), 2000)))),
            (false, _, None) => {
                json!({"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "title": "Answer"}}})
            }
        };
        let params = json!({"mode": "form", "message": question.text(), "requestedSchema": schema});
        to_raw(&json!({"method": "elicitation/create", "params": params}))
    };
    let forms: Vec<_> = questions.iter().map(|question| (question.name(), form(question))).collect();
    object_of(forms.iter().map(|(name, form)| (name.as_str(), &**form)))
}

/// Members of a schema that a form may have, and those that it may leave out.
const FORM_MEMBERS: [&str; 3] = ["type", "properties", "required"];
const LEFT_OUT: [&str; 4] = ["$schema", "title", "description", "additionalProperties"];
/// Members of the schema of a field.
const FIELD_MEMBERS: [&str; 13] = [
    "type",
    "title",
    "description",
    "default",
    "enum",
    "enumNames",
    "format",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "pattern",
    "const",
];

/// The schema as the schema of a form; `None`: a form cannot have it, since forms are flat.
fn form_of(schema: &RawValue) -> Option<Value> {
    let schema: Value = serde_json::from_str(schema.get()).ok()?;
    let has_only = |value: &Value, known: &[&str]| {
        value.as_object().is_some_and(|object| object.keys().all(|name| known.contains(&name.as_str())))
    };
    let is_flat = |field: &Value| {
        let kind = field["type"].as_str().unwrap_or_default();
        ["string", "number", "integer", "boolean"].contains(&kind) && has_only(field, &FIELD_MEMBERS)
    };
    let is_form = schema["type"] == "object"
        && has_only(&schema, &[FORM_MEMBERS.as_slice(), &LEFT_OUT].concat())
        && schema["properties"].as_object()?.values().all(is_flat);
    let mut form = schema;
    form.as_object_mut()?.retain(|name, _| FORM_MEMBERS.contains(&name.as_str()));
    is_form.then_some(form)
}

/// The answer that the content of a form is.
fn answer_of(question: &Question, content: &RawValue) -> Box<RawValue> {
    let is_json = question.answer_schema().is_some_and(|schema| form_of(schema).is_none());
    let written = member(content, "text").filter(|_| is_json).and_then(text);
    let json = written.as_ref().and_then(|written| check_json(written.as_bytes()).ok());
    json.unwrap_or(content).to_owned()
}

impl McpCall {
    /// What the state of a call is signed for: only its caller may go on with it.
    fn purpose(&self) -> Vec<u8> {
        let actor = &self.caller.actor;
        to_raw(&("mcp call", actor.organization.as_str(), &actor.subject)).get().as_bytes().to_vec()
    }

    /// Result of a call that goes on when the user has answered.
    pub(super) async fn input_required(&self, run: &ExposedRun) -> Result<Box<RawValue>, Failure> {
        let state = RequestState { run_id: run.row.run_id.clone(), until: self.app.clock.epoch_secs() + STATE_SECS };
        let text = to_raw(&state);
        let key = self.app.signing.key().await?;
        let mut bytes = key.sign(&self.purpose(), text.get().as_bytes()).to_vec();
        bytes.extend_from_slice(text.get().as_bytes());
        let state = to_raw(&URL_SAFE_NO_PAD.encode(bytes));
        let requests = input_requests(&run.questions);
        Ok(self.client.result("input_required", &[("inputRequests", &requests), ("requestState", &state)]))
    }

    /// The run of a call that goes on with answers of the user; `None`: it is a new call.
    pub(super) async fn continued(&self) -> Result<Option<String>, Failure> {
        let Some(given) = member(&self.call.params, "requestState").and_then(text) else { return Ok(None) };
        let wrong = || invalid("`requestState` is not one of this call, or has expired: call the tool anew");
        let bytes = URL_SAFE_NO_PAD.decode(given).map_err(|_| wrong())?;
        let (signature, text) = bytes.split_at_checked(SIGNATURE_BYTES).ok_or_else(wrong)?;
        let key = self.app.signing.key().await?;
        if !key.verifies(&self.purpose(), text, signature) {
            return Err(wrong());
        }
        let state: RequestState = serde_json::from_slice(text).map_err(|_| wrong())?;
        if state.until < self.app.clock.epoch_secs() { Err(wrong()) } else { Ok(Some(state.run_id)) }
    }

    /// Gives the answers of the user to the questions of the run. Those to other questions are ignored, and so is a user
    /// who declined: nothing is decided then.
    pub(super) async fn give_answers(&self, run_id: &str) -> Result<(), Failure> {
        let Some(responses) = member(&self.call.params, "inputResponses").filter(|raw| raw.get() != "null") else {
            return Ok(());
        };
        let responses = members(responses).ok_or_else(|| invalid("`inputResponses` should be an object"))?;
        let questions = exposed_run::questions(&self.app, &self.caller, run_id).await?;
        for (name, response) in responses {
            let Some(question) = questions.iter().find(|question| question.name() == name) else { continue };
            if member(response, "action").and_then(text).as_deref() != Some("accept") {
                continue;
            }
            let nothing = object_of([]);
            let content = member(response, "content").unwrap_or(&nothing);
            let answer = answer_of(question, content);
            exposed_run::answer(&self.app, &self.caller, question, &answer, None).await.map_err(corrigible)?;
        }
        Ok(())
    }
}

/// An answer that is not valid is an error of the parameters.
fn corrigible(error: ApiError) -> Failure {
    if error.status() == http::StatusCode::UNPROCESSABLE_ENTITY {
        invalid(format!("The answer is not valid: {}", in_words(error.errors(), "body")))
    } else {
        error.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_flat_schema_is_a_form() {
        let form = |schema: &Value| form_of(&to_raw(schema));
        let flat = json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "required": ["n"],
            "properties": {"n": {"type": "integer", "minimum": 1}, "why": {"type": "string", "title": "Why"}}});
        let mut expected = flat.clone();
        expected.as_object_mut().expect("an object").remove("$schema");
        assert_eq!(form(&flat), Some(expected));
        for schema in [
            json!({"type": "object", "properties": {"who": {"type": "object"}}}),
            json!({"type": "object", "properties": {"n": {"type": "string", "not": {}}}}),
            json!({"type": "object", "properties": {"n": {"type": "string"}}, "minProperties": 1}),
            json!({"type": "string"}),
            json!({}),
        ] {
            assert_eq!(form(&schema), None, "{schema}");
        }
    }
}
