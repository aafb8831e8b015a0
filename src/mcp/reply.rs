//! Answers of servers: results of tools, and tasks.

use std::time::Duration;

use serde_json::value::RawValue;

use crate::input::{check_json, elements, member, members, object_of, text, to_raw};

/// Answer to the call of a tool.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    /// The tool has ended.
    Done(ToolResult<'a>),
    /// It takes longer.
    Task(Task<'a>),
    /// The server asks for something before it goes on.
    AsksBack(Questions<'a>),
}

impl<'a> Answer<'a> {
    /// Reads the result of a call. The error says what is wrong with it.
    pub fn read(result: &'a RawValue) -> Result<Self, String> {
        // Older revisions have no such member.
        let kind = member(result, "resultType").and_then(text);
        match kind.as_deref() {
            None | Some("complete") => ToolResult::read(result).map(Self::Done),
            Some("input_required") => Ok(Self::AsksBack(Questions(result))),
            Some("task") => Ok(Self::Task(Task(result))),
            Some(other) => Err(format!("it has the unknown resultType {other:?}")),
        }
    }
}

/// Result of a tool.
#[derive(Clone, Copy, Debug)]
pub struct ToolResult<'a>(&'a RawValue);

impl<'a> ToolResult<'a> {
    fn read(result: &'a RawValue) -> Result<Self, String> {
        let has = |name| member(result, name).is_some_and(|value| value.get() != "null");
        if members(result).is_some() && (has("content") || has("structuredContent")) {
            Ok(Self(result))
        } else {
            Err("it has neither content nor structuredContent".to_owned())
        }
    }

    /// Whether the tool has failed.
    #[must_use]
    pub fn is_error(self) -> bool {
        member(self.0, "isError").is_some_and(|flag| flag.get() == "true")
    }

    /// Whether it has a structured output.
    #[must_use]
    pub fn is_structured(self) -> bool {
        self.structured().is_some()
    }

    fn structured(self) -> Option<&'a RawValue> {
        member(self.0, "structuredContent").filter(|data| data.get() != "null")
    }

    fn content(self) -> Vec<&'a RawValue> {
        member(self.0, "content").and_then(elements).unwrap_or_default()
    }

    /// The text of all blocks with text, a line each.
    #[must_use]
    pub fn text(self) -> String {
        let of_block = |block: &'a RawValue| {
            let is_text = member(block, "type").and_then(text).as_deref() == Some("text");
            member(block, "text").filter(|_| is_text).and_then(text)
        };
        self.content().into_iter().filter_map(of_block).collect::<Vec<_>>().join("\n")
    }

    /// Output of a step: `text`, `data`, `content`.
    #[must_use]
    pub fn output(self) -> Box<RawValue> {
        let said = self.text();
        // Servers without structured results, and those that support older clients, write the JSON into the text.
        let is_alone = self.content().len() == 1;
        let in_text = || {
            let json = check_json(said.as_bytes()).ok()?;
            (is_alone && json.get().starts_with(['{', '['])).then_some(json)
        };
        let data = self.structured().or_else(in_text).unwrap_or(RawValue::NULL);
        let (text, none) = (to_raw(&said), to_raw(&[(); 0]));
        let content = member(self.0, "content").filter(|content| content.get() != "null").unwrap_or(&none);
        object_of([("text", &*text), ("data", data), ("content", content)])
    }
}

/// What a server asks for: its `inputRequests`.
#[derive(Clone, Copy, Debug)]
pub struct Questions<'a>(pub &'a RawValue);

/// Question for a person.
#[derive(Clone, Debug)]
pub struct Elicitation<'a> {
    /// Name of the question, which the answer has too.
    pub key: String,
    /// The question in words.
    pub message: String,
    /// JSON Schema of the answer; `None`: the person is sent to an address, and answers nothing here.
    pub schema: Option<&'a RawValue>,
}

impl<'a> Questions<'a> {
    fn requests(self) -> Vec<(String, &'a RawValue)> {
        member(self.0, "inputRequests").and_then(members).unwrap_or_default()
    }

    /// The questions, if a person can answer all of them.
    #[must_use]
    pub fn elicitations(self) -> Option<Vec<Elicitation<'a>>> {
        let read = |(key, request): (String, &'a RawValue)| {
            let named = |holder: &'a RawValue, name: &str| member(holder, name).and_then(text);
            let is_elicitation = named(request, "method").as_deref() == Some("elicitation/create");
            let params = member(request, "params").filter(|_| is_elicitation)?;
            let message = named(params, "message").unwrap_or_default();
            match named(params, "mode").as_deref() {
                None | Some("form") => {
                    let schema = member(params, "requestedSchema").filter(|schema| members(schema).is_some())?;
                    Some(Elicitation { key, message, schema: Some(schema) })
                }
                Some("url") => {
                    let message = format!("{message} {}", named(params, "url")?).trim().to_owned();
                    Some(Elicitation { key, message, schema: None })
                }
                Some(_) => None,
            }
        };
        self.requests().into_iter().map(read).collect()
    }

    /// What the server wants to get back with the answers.
    #[must_use]
    pub fn state(self) -> Option<&'a RawValue> {
        member(self.0, "requestState").filter(|state| state.get() != "null")
    }

    /// The questions in words.
    #[must_use]
    pub fn words(self) -> String {
        let requests = self.requests();
        let word = |request: &RawValue| {
            let method = member(request, "method").and_then(text).unwrap_or_default();
            let message = member(request, "params").and_then(|params| member(params, "message")).and_then(text);
            message.unwrap_or(method)
        };
        requests.into_iter().map(|(_, request)| word(request)).collect::<Vec<_>>().join("; ")
    }
}

/// State of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskStatus {
    /// Under way; an unknown state counts as this.
    Working,
    /// The server asks for something.
    InputRequired,
    /// The call has an answer.
    Completed,
    /// The call has an error.
    Failed,
    /// The task was cancelled.
    Cancelled,
}

/// Task.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a>(pub &'a RawValue);

impl<'a> Task<'a> {
    /// The server's id of it.
    #[must_use]
    pub fn id(self) -> Option<String> {
        member(self.0, "taskId").and_then(text).filter(|id| !id.is_empty())
    }

    /// Its state; `None`: this is no task.
    #[must_use]
    pub fn status(self) -> Option<TaskStatus> {
        Some(match member(self.0, "status").and_then(text)?.as_str() {
            "input_required" => TaskStatus::InputRequired,
            "completed" => TaskStatus::Completed,
            "failed" => TaskStatus::Failed,
            "cancelled" => TaskStatus::Cancelled,
            _ => TaskStatus::Working,
        })
    }

    /// What the server says about the state.
    #[must_use]
    pub fn message(self) -> Option<String> {
        member(self.0, "statusMessage").and_then(text).filter(|text| !text.is_empty())
    }

    /// Pause between two queries that the server wants.
    #[must_use]
    pub fn poll_interval(self) -> Option<Duration> {
        member(self.0, "pollIntervalMs")?.get().parse().ok().map(Duration::from_millis)
    }

    /// Result of the call, once completed.
    pub fn result(self) -> Result<ToolResult<'a>, String> {
        ToolResult::read(member(self.0, "result").ok_or("its task is completed and has no result")?)
    }

    /// Error of the call, once failed, in the form of a response.
    #[must_use]
    pub fn error(self) -> &'a RawValue {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn output(result: &Value) -> Value {
        let raw = to_raw(result);
        let Ok(Answer::Done(done)) = Answer::read(&raw) else { panic!("{result}") };
        serde_json::from_str(done.output().get()).expect("JSON")
    }

    #[test]
    fn a_result_becomes_an_output() {
        let said = |text: &str| json!({"type": "text", "text": text});
        let image = json!({"type": "image", "data": "AA==", "mimeType": "image/png"});
        for (result, text, data) in [
            (json!({"content": [said("a"), image, said("b")]}), "a\nb", json!(null)),
            (json!({"content": [said("{\"n\":1}")]}), "{\"n\":1}", json!({"n": 1})),
            (json!({"content": [said("{\"n\":1}"), said("x")]}), "{\"n\":1}\nx", json!(null)),
            (json!({"content": [said("7")]}), "7", json!(null)),
            (
                json!({"resultType": "complete", "content": [said("t")], "structuredContent": {"n": 2}}),
                "t",
                json!({"n": 2}),
            ),
            (json!({"structuredContent": [1], "content": null}), "", json!([1])),
        ] {
            let output = output(&result);
            assert_eq!((&output["text"], &output["data"]), (&json!(text), &data), "{result}");
            let content = if result["content"].is_array() { result["content"].clone() } else { json!([]) };
            assert_eq!(output["content"], content);
        }
        for (result, expected) in [
            (json!({}), "neither content"),
            (json!([]), "neither content"),
            (json!({"resultType": "odd"}), "unknown resultType \"odd\""),
        ] {
            let error = Answer::read(&to_raw(&result)).expect_err("no result");
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_task_and_a_question_are_read() {
        let raw = to_raw(&json!({"resultType": "task", "taskId": "t", "status": "working", "pollIntervalMs": 250}));
        let Ok(Answer::Task(task)) = Answer::read(&raw) else { panic!("a task") };
        assert_eq!(
            (task.id().as_deref(), task.status(), task.poll_interval()),
            (Some("t"), Some(TaskStatus::Working), Some(Duration::from_millis(250)))
        );
        let raw = to_raw(&json!({"status": "dreaming", "pollIntervalMs": -1, "statusMessage": ""}));
        assert_eq!(
            (Task(&raw).id(), Task(&raw).status(), Task(&raw).poll_interval(), Task(&raw).message()),
            (None, Some(TaskStatus::Working), None, None)
        );
        let asked = json!({"resultType": "input_required", "inputRequests": {
            "a": {"method": "elicitation/create", "params": {"message": "Which one?"}}, "b": {"method": "roots/list"}}});
        let raw = to_raw(&asked);
        let Ok(Answer::AsksBack(questions)) = Answer::read(&raw) else { panic!("questions") };
        assert_eq!(questions.words(), "Which one?; roots/list");
        assert!(questions.elicitations().is_none(), "no person can answer the second one");
    }

    #[test]
    fn a_question_for_a_person_has_a_form_or_an_address() {
        let ask = |params: Value| {
            to_raw(
                &json!({"inputRequests": {"k": {"method": "elicitation/create", "params": params}}, "requestState": "s"}),
            )
        };
        let schema = json!({"type": "object", "properties": {}});
        for (params, expected) in [
            (json!({"message": "m", "requestedSchema": schema}), Some(("m", true))),
            (json!({"mode": "form", "message": "m", "requestedSchema": schema}), Some(("m", true))),
            (json!({"mode": "form", "message": "m"}), None),
            (json!({"mode": "form", "message": "m", "requestedSchema": true}), None),
            (
                json!({"mode": "url", "message": "Sign in:", "url": "https://x.example"}),
                Some(("Sign in: https://x.example", false)),
            ),
            (json!({"mode": "url", "message": "m"}), None),
            (json!({"mode": "dream"}), None),
        ] {
            let raw = ask(params.clone());
            let found = Questions(&raw).elicitations();
            let found = found.as_deref().map(|found| (found[0].message.as_str(), found[0].schema.is_some()));
            assert_eq!(found, expected, "{params}");
            assert_eq!(Questions(&raw).state().map(RawValue::get), Some("\"s\""));
        }
    }
}
