//! Messages of A2A clients, of both versions: reading them, and what they mean as input of a run or as an answer.

use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::{
    errors::{A2aError, Failure, invalid_param},
    pushes::read_push,
};
use crate::{
    a2a::Version,
    actions::task_pushes::NewPush,
    api::vocabulary::{idempotency::MAX_KEY_CHARS, json_rpc::RpcError},
    db::waits::Question,
    egress::Allow,
    input::{FieldError, Node, Read, check_json, member, members, object_of, to_raw},
};

/// Length range of the ids in a message.
const ID_CHARS: std::ops::RangeInclusive<usize> = 0..=255;
/// Words that approve.
const YES: [&str; 4] = ["yes", "approve", "approved", "true"];
/// Words that reject.
const NO: [&str; 4] = ["no", "reject", "rejected", "false"];

/// Message of a client.
#[derive(Debug)]
pub struct Message {
    /// Id, by which a repeat is recognised.
    pub id: String,
    /// Label of the conversation.
    pub context_id: Option<String>,
    /// Id of the task that it answers.
    pub task_id: Option<String>,
    /// Id of the step that it answers, if the task waits for several.
    pub step_id: Option<String>,
    /// Id of the question that it answers, if a step asks several.
    pub question_id: Option<String>,
    /// SHA-256 of its text.
    pub fingerprint: Vec<u8>,
    /// Text of its text parts.
    text: Option<String>,
    /// Value of its data part.
    data: Option<Box<RawValue>>,
}

/// Parameters of a message. It has no `Debug`, since push notifications have secrets.
pub struct Sending {
    /// The message.
    pub message: Message,
    /// Push notifications that it wants.
    pub push: Option<NewPush>,
    /// Whether the client wants to wait for the end of the task.
    pub is_blocking: bool,
    /// Whether the client wants the messages of the task.
    pub wants_history: bool,
}

impl Sending {
    /// Reads the parameters of sending a message.
    pub fn read(params: &RawValue, version: Version, allow: &Allow) -> Result<Self, Failure> {
        let missing = || vec![FieldError::missing("message")];
        let raw = member(params, "message").filter(|raw| raw.get() != "null").ok_or_else(missing)?;
        let message = Node::new("message", raw).object()?;
        let mut errors = Vec::new();
        let id = message.required("messageId", &mut errors, |node| node.not_blank(1..=MAX_KEY_CHARS));
        let context_id = message.nullable("contextId", &mut errors, |node| node.string(ID_CHARS));
        let task_id = message.nullable("taskId", &mut errors, |node| node.string(ID_CHARS));
        message.required("role", &mut errors, |node| {
            let user = version.user_role();
            node.parsed(|role| if role == user { Ok(()) } else { Err(format!("must be {user:?}")) })
        });
        let named = message.nullable("metadata", &mut errors, |node| {
            let (mut errors, metadata) = (Vec::new(), node.object()?);
            let mut id = |name| metadata.nullable(name, &mut errors, |node| node.string(ID_CHARS));
            let named = (id("step_id"), id("question_id"));
            if errors.is_empty() { Ok(named) } else { Err(errors) }
        });
        let parts = message.required("parts", &mut errors, parts);
        let configuration = member(params, "configuration").filter(|raw| raw.get() != "null");
        let configuration = configuration.map(|raw| Node::new("configuration", raw).object()).transpose()?;
        let is_blocking = configuration.as_ref().is_none_or(|configuration| {
            let (name, default) = version.waiting_member();
            configuration.nullable(name, &mut errors, Node::boolean).is_none_or(|given| given == default)
        });
        let wants_history = configuration.as_ref().is_some_and(|configuration| {
            let length = configuration.nullable("historyLength", &mut errors, history_length);
            length.is_some_and(|length| length > 0)
        });
        let push = configuration.as_ref().and_then(|configuration| {
            let name = version.push_member();
            configuration.nullable(name, &mut errors, |node| read_push(node, version, allow))
        });
        let (Some(id), Some((text, data, is_other))) = (id, parts) else { return Err(errors.into()) };
        if !errors.is_empty() {
            return Err(errors.into());
        }
        if is_other {
            let text = "Only text and data parts are supported, not files";
            return Err(A2aError::ContentTypeNotSupported.with(text, &[]).into());
        }
        let given = |id: Option<String>| id.filter(|id| !id.is_empty());
        let fingerprint = Sha256::digest(raw.get()).to_vec();
        let (step_id, question_id) = named.unwrap_or_default();
        let (context_id, task_id) = (given(context_id), given(task_id));
        let (step_id, question_id) = (given(step_id), given(question_id));
        let message = Message { id, context_id, task_id, step_id, question_id, fingerprint, text, data };
        Ok(Self { message, push, is_blocking, wants_history })
    }
}

/// Number of messages that a client wants.
pub fn history_length(node: &Node<'_>) -> Read<i64> {
    node.int(0..=i64::from(i32::MAX))
}

/// Text, data, and whether there are other parts.
type Parts = (Option<String>, Option<Box<RawValue>>, bool);

/// Reads the parts of a message. Both versions are told apart by their members, so either is accepted.
fn parts(node: &Node<'_>) -> Read<Parts> {
    let nodes = node.list()?;
    if nodes.is_empty() {
        return Err(vec![node.error("too_short", "List should have at least 1 item after validation, not 0")]);
    }
    let (mut texts, mut data, mut is_other) = (Vec::new(), None, false);
    for part in &nodes {
        let object = part.object()?;
        let mut errors = Vec::new();
        let text = object.nullable("text", &mut errors, |node| node.string(0..=usize::MAX));
        if !errors.is_empty() {
            return Err(errors);
        }
        let given = member(part.raw(), "data");
        match (text, given) {
            (Some(text), None) => texts.push(text),
            (None, Some(_)) if data.is_some() => {
                return Err(vec![FieldError::rule(part.path(), "there may be one data part")]);
            }
            (None, Some(given)) => data = Some(given.to_owned()),
            (None, None) if ["raw", "url", "file"].iter().any(|name| member(part.raw(), name).is_some()) => {
                is_other = true;
            }
            _ => return Err(vec![FieldError::rule(part.path(), "needs one of text and data")]),
        }
    }
    Ok(((!texts.is_empty()).then(|| texts.join("\n")), data, is_other))
}

impl Message {
    /// Input of a run: the object of the data part, with the text as its member `text`.
    pub fn input(&self) -> Result<Box<RawValue>, RpcError> {
        match (&self.data, &self.text) {
            (Some(data), _) if members(data).is_none() => {
                Err(invalid_param("message.parts", "the data should be an object"))
            }
            (Some(data), Some(_)) if member(data, "text").is_some() => {
                Err(invalid_param("message.parts", "the data has a member `text` already, so there may be no text"))
            }
            (Some(data), None) => Ok(data.clone()),
            (Some(data), Some(text)) => {
                let text = to_raw(text);
                let given = members(data).unwrap_or_default();
                let given = given.iter().map(|(name, value)| (name.as_str(), *value));
                Ok(object_of(given.chain([("text", &*text)])))
            }
            (None, text) => Ok(object_of([("text", &*to_raw(text))])),
        }
    }

    /// Answer to a question. A text decides an approval only if it is one of a few words.
    pub fn answer_to(&self, question: &Question) -> Result<Box<RawValue>, RpcError> {
        match (&self.data, &self.text) {
            (Some(data), None) => Ok(data.clone()),
            (None, Some(text)) if question.approval.is_some() => {
                let word = text.trim().trim_end_matches(['.', '!']).to_lowercase();
                let approved = match word.as_str() {
                    word if YES.contains(&word) => RawValue::TRUE,
                    word if NO.contains(&word) => RawValue::FALSE,
                    _ => {
                        let text = "should be `yes` or `no`, or a data part with `approved` and perhaps `comment`";
                        return Err(invalid_param("message.parts", text));
                    }
                };
                Ok(object_of([("approved", approved)]))
            }
            // An answer with a schema may be written as JSON.
            (None, Some(text)) if question.answer_schema().is_some() => match check_json(text.as_bytes()) {
                Ok(json) => Ok(json.to_owned()),
                Err(_) => self.input(),
            },
            // The text beside a decision is its comment.
            (Some(data), Some(text)) if question.approval.is_some() && member(data, "comment").is_none() => {
                let text = to_raw(text);
                let given = members(data).unwrap_or_default();
                let given = given.iter().map(|(name, value)| (name.as_str(), *value));
                Ok(object_of(given.chain([("comment", &*text)])))
            }
            _ => self.input(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(params: &str, version: Version) -> Result<Sending, Failure> {
        Sending::read(check_json(params.as_bytes()).expect(params), version, &Allow::default())
    }

    fn question(is_approval: bool) -> Question {
        Question {
            run_id: "r".to_owned(),
            step_id: "s".to_owned(),
            attempt_id: "a".to_owned(),
            token: "t".to_owned(),
            expires_at: None,
            approval: is_approval.then(|| sqlx::types::Json(object_of([]))),
            question: None,
            round: None,
            input_data: None,
        }
    }

    #[test]
    fn parts_of_both_versions_become_the_input() {
        for (parts, expected) in [
            (r#"[{"text":"hello"}]"#, Ok(r#"{"text":"hello"}"#)),
            (r#"[{"kind":"text","text":"a"},{"kind":"text","text":"b"}]"#, Ok(r#"{"text":"a\nb"}"#)),
            (r#"[{"data":{"n":12345678901234567890}}]"#, Ok(r#"{"n":12345678901234567890}"#)),
            (r#"[{"kind":"data","data":{"n":1}},{"kind":"text","text":"x"}]"#, Ok(r#"{"n":1,"text":"x"}"#)),
            (r#"[{"data":{"text":1}},{"text":"x"}]"#, Err(-32602)),
            (r#"[{"data":[1]}]"#, Err(-32602)),
            (r#"[{"data":{}},{"data":{}}]"#, Err(-32602)),
            (r#"[{"url":"http://x/"}]"#, Err(-32005)),
            (r#"[{"kind":"file","file":{"bytes":""}}]"#, Err(-32005)),
            ("[{}]", Err(-32602)),
            ("[]", Err(-32602)),
            ("7", Err(-32602)),
        ] {
            for (version, role) in [(Version::V03, "user"), (Version::V1, "ROLE_USER")] {
                let params = format!(r#"{{"message":{{"messageId":"m","role":"{role}","parts":{parts}}}}}"#);
                let found = match read(&params, version) {
                    Ok(sending) => sending.message.input().map_err(|error| error.code),
                    Err(Failure::Rpc(error)) => Err(error.code),
                    Err(Failure::Http(error)) => panic!("{error:?}"),
                };
                assert_eq!(found.as_ref().map(|input| input.get()), expected.as_ref().copied(), "{params}");
            }
        }
    }

    #[test]
    fn a_client_waits_unless_it_says_otherwise_in_the_words_of_its_version() {
        for (version, role, configuration, expected) in [
            (Version::V1, "ROLE_USER", "{}", true),
            (Version::V1, "ROLE_USER", r#"{"returnImmediately":true}"#, false),
            (Version::V1, "ROLE_USER", r#"{"returnImmediately":false,"blocking":false}"#, true),
            (Version::V03, "user", "null", true),
            (Version::V03, "user", r#"{"blocking":false}"#, false),
            (Version::V03, "user", r#"{"blocking":true,"returnImmediately":true}"#, true),
        ] {
            let params = format!(
                r#"{{"message":{{"messageId":"m","role":"{role}","parts":[{{"text":"x"}}]}},"configuration":{configuration}}}"#
            );
            assert_eq!(read(&params, version).expect("valid").is_blocking, expected, "{params}");
        }
    }

    #[test]
    fn an_answer_with_a_schema_may_be_written_as_json() {
        let asked = r#"{"answer_schema":{"type":"object"}}"#;
        let asked = check_json(asked.as_bytes()).expect("JSON").to_owned();
        let question = Question { question: Some(sqlx::types::Json(asked)), round: Some(1), ..question(false) };
        for (text, expected) in [(r#"{\"n\": 1}"#, r#"{"n": 1}"#), ("one", r#"{"text":"one"}"#)] {
            let params =
                format!(r#"{{"message":{{"messageId":"m","role":"ROLE_USER","parts":[{{"text":"{text}"}}]}}}}"#);
            let message = read(&params, Version::V1).expect("valid").message;
            assert_eq!(message.answer_to(&question).expect(text).get(), expected);
        }
    }

    #[test]
    fn only_a_plain_word_or_a_member_decides_an_approval() {
        for (parts, is_approval, expected) in [
            (r#"[{"text":" Yes! "}]"#, true, Some(r#"{"approved":true}"#)),
            (r#"[{"text":"rejected"}]"#, true, Some(r#"{"approved":false}"#)),
            (r#"[{"text":"yes, but"}]"#, true, None),
            (r#"[{"data":{"approved":true}},{"text":"fine"}]"#, true, Some(r#"{"approved":true,"comment":"fine"}"#)),
            (r#"[{"text":"yes"}]"#, false, Some(r#"{"text":"yes"}"#)),
            (r#"[{"data":[1]}]"#, false, Some("[1]")),
        ] {
            let params = format!(r#"{{"message":{{"messageId":"m","role":"ROLE_USER","parts":{parts}}}}}"#);
            let message = read(&params, Version::V1).expect("valid").message;
            let answer = message.answer_to(&question(is_approval)).ok();
            assert_eq!(answer.as_ref().map(|answer| answer.get()), expected, "{params}");
        }
    }
}
