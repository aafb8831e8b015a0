//! Question of an agent: what an interrupted task asks of its client, and what is sent back. Pure.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    a2a::{Task, TaskState},
    input::{check_json, elements, member, members, object_of, shorten_to, text, to_raw},
    mcp::reply::{Elicitation, Questions},
    usage::Usage,
};

/// Maximum characters of the text of a question.
const MAX_TEXT_CHARS: usize = 10_000;
/// Maximum bytes of the data of a question, and of the schema of its answer. Larger ones are omitted.
const MAX_DATA_BYTES: usize = 64 << 10;
const MAX_SCHEMA_BYTES: usize = 16 << 10;
/// Maximum characters of the agent's ids.
const MAX_ID_CHARS: usize = 1024;
/// Maximum number of questions that an MCP server asks at once, and maximum bytes of their names and of its state.
const MAX_ELICITATIONS: usize = 16;
const MAX_KEY_BYTES: usize = 4 << 10;
const MAX_STATE_BYTES: usize = 64 << 10;
/// Member of a message's metadata with the schema of the answer.
const ANSWER_SCHEMA: &str = "answer_schema";
/// Text of the message that follows an authorisation.
const AUTHORISED: &str = "The authorisation was given.";

/// Question of an agent.
#[derive(Clone, Debug)]
pub(super) struct AgentQuestion {
    /// Whether the agent needs an authorisation, and no input.
    pub(super) is_auth: bool,
    /// The agent's id of the task; empty: the question is one of an MCP server, which keeps none.
    pub(super) task_id: String,
    pub(super) context_id: Option<String>,
    /// What the agent says.
    pub(super) text: Option<String>,
    /// Data beside the text.
    pub(super) data: Option<Box<RawValue>>,
    /// JSON Schema of the answer.
    pub(super) answer_schema: Option<Box<RawValue>>,
    /// Whether the agent has said anything.
    has_message: bool,
    message_id: Option<String>,
    timestamp: Option<String>,
    /// What the answer to an MCP server needs.
    of_server: Option<OfServer>,
    /// What the task has told to have used until then.
    pub(super) used: Option<Usage>,
}

/// What the answer to an MCP server needs.
#[derive(Clone, Debug, Serialize)]
struct OfServer {
    /// Names of the questions.
    keys: Vec<String>,
    /// What the server wants to get back.
    state: Option<Box<RawValue>>,
}

/// Members of a stored question.
#[derive(Serialize)]
struct Stored<'a> {
    agent: &'a str,
    state: &'a str,
    text: Option<&'a str>,
    data: Option<&'a RawValue>,
    answer_schema: Option<&'a RawValue>,
    task_id: &'a str,
    context_id: Option<&'a str>,
    role: Option<&'a str>,
    has_message: bool,
    message_id: Option<&'a str>,
    timestamp: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    of_server: Option<&'a OfServer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<Usage>,
}

impl AgentQuestion {
    /// The question of an interrupted task; `None`: the task cannot be continued, since it has no usable id.
    pub(super) fn of(task: Task<'_>) -> Option<Self> {
        let state = task.state().filter(TaskState::is_interrupted)?;
        let status = task.status_message();
        let raw = status.message.map(crate::a2a::Message::raw);
        let is_id = |id: &String| id.chars().count() <= MAX_ID_CHARS;
        let timestamp = member(task.raw(), "status").and_then(|status| member(status, "timestamp")).and_then(text);
        let answer_schema = raw.and_then(|message| member(member(message, "metadata")?, ANSWER_SCHEMA));
        let answer_schema = answer_schema.or_else(|| status.data.iter().copied().find(|data| is_schema(data)));
        let answer_schema = answer_schema.filter(|schema| members(schema).is_some());
        Some(Self {
            is_auth: state == TaskState::AuthRequired,
            task_id: status.task_id.filter(is_id)?,
            context_id: status.context_id.filter(is_id),
            text: status.text,
            data: status.data.first().map(|data| (*data).to_owned()),
            answer_schema: answer_schema.map(ToOwned::to_owned),
            has_message: raw.is_some(),
            message_id: raw.and_then(|message| member(message, "messageId")).and_then(text).filter(is_id),
            timestamp: timestamp.filter(is_id),
            of_server: None,
            used: Usage::of_whole_task(task.raw()),
        })
    }

    /// The questions of an MCP server that are not in `answered`, as one; `None`: no person can answer them, or they are
    /// too large. `task_id` is the task that waits for the answers; empty: the call is to be sent again with them.
    pub(super) fn of_server(questions: Questions<'_>, task_id: &str, answered: Option<&Self>) -> Option<Self> {
        let mut asked = questions.elicitations()?;
        let known = answered.and_then(|answered| answered.of_server.as_ref()).map(|of_server| &of_server.keys);
        asked.retain(|asked| !known.is_some_and(|known| known.contains(&asked.key)));
        let keys: Vec<String> = asked.iter().map(|asked| asked.key.clone()).collect();
        let size: usize = keys.iter().map(String::len).sum();
        let state = questions.state().map(ToOwned::to_owned);
        let is_fit = (1..=MAX_ELICITATIONS).contains(&keys.len())
            && size <= MAX_KEY_BYTES
            && state.as_ref().is_none_or(|state| state.get().len() <= MAX_STATE_BYTES);
        if !is_fit {
            return None;
        }
        let said = asked.iter().map(|asked| asked.message.as_str()).filter(|said| !said.is_empty());
        let said = said.collect::<Vec<_>>().join("\n");
        Some(Self {
            is_auth: asked.iter().all(|asked| asked.schema.is_none()),
            task_id: task_id.to_owned(),
            context_id: None,
            text: Some(said),
            data: None,
            answer_schema: schema_of(&asked),
            has_message: true,
            message_id: None,
            timestamp: None,
            of_server: Some(OfServer { keys, state }),
            used: None,
        })
    }

    /// Whether all that an MCP server asks for is answered by the answer to this question: it has not read it yet.
    pub(super) fn answers(&self, questions: Questions<'_>) -> bool {
        let Some(OfServer { keys, .. }) = &self.of_server else { return false };
        questions.elicitations().is_some_and(|asked| asked.iter().all(|asked| keys.contains(&asked.key)))
    }

    /// Whether it is a question of an MCP server.
    pub(super) fn is_of_server(&self) -> bool {
        self.of_server.is_some()
    }

    /// What an MCP server wants to get back with the answers.
    pub(super) fn state_of_server(&self) -> Option<&RawValue> {
        self.of_server.as_ref()?.state.as_deref()
    }

    /// The answers to an MCP server by their names, for the reply that was made of the answer.
    pub(super) fn input_responses(&self, reply: &RawValue) -> Box<RawValue> {
        let keys = self.of_server.as_ref().map_or(&[][..], |of_server| &of_server.keys);
        let (accept, nothing) = (to_raw("accept"), object_of([]));
        let of = |key: &String| {
            // Of one question, the answer is the content of its form.
            let content = if keys.len() == 1 { Some(reply) } else { member(reply, key) };
            let content = content.filter(|_| !self.is_auth).unwrap_or(&nothing);
            let members = [("action", &*accept), ("content", content)];
            object_of(members.into_iter().take(if self.is_auth { 1 } else { 2 }))
        };
        let responses: Vec<_> = keys.iter().map(|key| (key.as_str(), of(key))).collect();
        object_of(responses.iter().map(|(key, response)| (*key, &**response)))
    }

    /// A question of a test.
    pub(super) fn of_test(is_auth: bool, said: String, answer_schema: Option<Box<RawValue>>) -> Self {
        Self {
            is_auth,
            task_id: "task-of-the-test".to_owned(),
            context_id: Some("context-of-the-test".to_owned()),
            text: Some(said),
            data: None,
            answer_schema,
            has_message: true,
            message_id: None,
            timestamp: None,
            of_server: None,
            used: None,
        }
    }

    /// The same without what is too large to be kept, and without what `mask` hides.
    pub(super) fn bounded(self, mask: impl Fn(String) -> String) -> Self {
        let json = |json: Option<Box<RawValue>>, most: usize| {
            let json = json.filter(|json| json.get().len() <= most)?;
            let masked = mask(json.get().to_owned());
            // What cannot be stored is omitted.
            check_json(masked.as_bytes()).ok().map(ToOwned::to_owned)
        };
        let said = self.text.map(|said| shorten_to(&mask(said), MAX_TEXT_CHARS).into_owned());
        Self {
            text: said.filter(|said| !said.is_empty()),
            data: json(self.data, MAX_DATA_BYTES),
            answer_schema: json(self.answer_schema, MAX_SCHEMA_BYTES),
            ..self
        }
    }

    /// The same with that schema of the answer.
    pub(super) fn with_schema(self, answer_schema: Option<Box<RawValue>>) -> Self {
        Self { answer_schema, ..self }
    }

    fn state(&self) -> &'static str {
        if self.is_auth { "auth-required" } else { "input-required" }
    }

    /// The question as it is stored.
    pub(super) fn stored(&self, agent: &str, role: Option<&str>) -> Box<RawValue> {
        to_raw(&Stored {
            agent,
            state: self.state(),
            text: self.text.as_deref(),
            data: self.data.as_deref(),
            answer_schema: self.answer_schema.as_deref(),
            task_id: &self.task_id,
            context_id: self.context_id.as_deref(),
            role,
            has_message: self.has_message,
            message_id: self.message_id.as_deref(),
            timestamp: self.timestamp.as_deref(),
            of_server: self.of_server.as_ref(),
            used: self.used,
        })
    }

    /// Reads a stored question, with the name of its agent.
    pub(super) fn from_stored(stored: &RawValue) -> Option<(String, Self)> {
        let given = |name: &str| member(stored, name).filter(|raw| raw.get() != "null");
        let texts = |name: &str| given(name).and_then(text);
        let question = Self {
            is_auth: texts("state").as_deref() == Some("auth-required"),
            task_id: texts("task_id")?,
            context_id: texts("context_id"),
            text: texts("text"),
            data: given("data").map(ToOwned::to_owned),
            answer_schema: given("answer_schema").map(ToOwned::to_owned),
            has_message: given("has_message").is_some_and(|raw| raw.get() == "true"),
            message_id: texts("message_id"),
            timestamp: texts("timestamp"),
            of_server: given("of_server").map(|of_server| OfServer {
                keys: member(of_server, "keys")
                    .and_then(elements)
                    .unwrap_or_default()
                    .into_iter()
                    .filter_map(text)
                    .collect(),
                state: member(of_server, "state").filter(|state| state.get() != "null").map(ToOwned::to_owned),
            }),
            used: given("used").and_then(Usage::read),
        };
        Some((texts("agent")?, question))
    }

    /// Output of a step that completes with the question.
    pub(super) fn output(&self) -> Box<RawValue> {
        let null = || RawValue::NULL.to_owned();
        let members = [
            ("state", to_raw(self.state())),
            ("context_id", to_raw(&self.context_id)),
            ("task_id", to_raw(&self.task_id)),
            ("question", to_raw(&self.text)),
            ("data", self.data.clone().unwrap_or_else(null)),
            ("answer_schema", self.answer_schema.clone().unwrap_or_else(null)),
        ];
        object_of(members.iter().map(|(name, value)| (*name, &**value)))
    }

    /// Whether it is this other question; `None`: that is not known.
    fn is(&self, other: &Self) -> Option<bool> {
        let same = |ours: &Option<String>, theirs: &Option<String>| {
            ours.as_ref().zip(theirs.as_ref()).map(|(ours, theirs)| ours == theirs)
        };
        same(&self.message_id, &other.message_id).or_else(|| same(&self.timestamp, &other.timestamp))
    }

    /// Whether a task that shows this question has not got the answer to it, which was sent: agents may answer a message
    /// before they have read it. They may also have taken the question out of the status already.
    pub(super) fn is_left_over(&self, answered: &Self) -> bool {
        self.is(answered).unwrap_or(!self.has_message)
    }

    /// Whether a task that shows this question may not have got the answer to it, which was perhaps sent.
    pub(super) fn is_open(&self, answered: &Self) -> bool {
        self.is(answered) != Some(false)
    }

    /// What is sent to the agent for that answer.
    pub(super) fn reply(&self, answer: Option<Box<RawValue>>) -> Box<RawValue> {
        if self.is_auth {
            return object_of([("text", &*to_raw(AUTHORISED))]);
        }
        let answer = answer.unwrap_or_else(|| object_of([]));
        match text(&answer) {
            Some(_) if self.answer_schema.is_none() => object_of([("text", &*answer)]),
            _ => answer,
        }
    }
}

/// Schema of the answer to questions of an MCP server: that of the only form, or an object with the contents of all by
/// their names.
fn schema_of(asked: &[Elicitation<'_>]) -> Option<Box<RawValue>> {
    if let [Elicitation { schema, .. }] = asked {
        return schema.map(ToOwned::to_owned);
    }
    let forms: Vec<_> = asked.iter().filter_map(|asked| Some((asked.key.as_str(), asked.schema?))).collect();
    if forms.is_empty() {
        return None;
    }
    let (kind, names) = (to_raw("object"), to_raw(&forms.iter().map(|(key, _)| *key).collect::<Vec<_>>()));
    let properties = object_of(forms);
    Some(object_of([("type", &*kind), ("required", &*names), ("properties", &*properties)]))
}

/// Whether a data part is a JSON Schema of an object.
fn is_schema(data: &RawValue) -> bool {
    let is_object = || {
        member(data, "type").and_then(text).as_deref() == Some("object")
            && member(data, "properties").and_then(members).is_some()
    };
    member(data, "$schema").and_then(text).is_some() || is_object()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(status: &str) -> Option<AgentQuestion> {
        let task = format!(r#"{{"id":"t","contextId":"c","status":{status}}}"#);
        AgentQuestion::of(Task(check_json(task.as_bytes()).expect(status)))
    }

    fn asked(more: &str) -> AgentQuestion {
        question(&format!(r#"{{"state":"input-required"{more}}}"#)).expect(more)
    }

    #[test]
    fn a_question_has_its_text_its_data_and_the_schema_of_its_answer() {
        let schema = r#"{"type":"object","properties":{"n":{"type":"integer"}}}"#;
        let said = r#"{"kind":"text","text":"How many?"}"#;
        for (message, expected) in [
            (format!(r#"{{"parts":[{said},{{"kind":"data","data":{schema}}}]}}"#), Some(schema)),
            (format!(r#"{{"parts":[{said},{{"data":{{"$schema":"x"}}}}]}}"#), Some(r#"{"$schema":"x"}"#)),
            (format!(r#"{{"parts":[{said}],"metadata":{{"answer_schema":{schema}}}}}"#), Some(schema)),
            (format!(r#"{{"parts":[{said}],"metadata":{{"answer_schema":true}}}}"#), None),
            (format!(r#"{{"parts":[{said},{{"kind":"data","data":{{"type":"object"}}}}]}}"#), None),
            (format!(r#"{{"parts":[{said},{{"kind":"data","data":[1]}}]}}"#), None),
        ] {
            let asked = asked(&format!(r#","message":{message}"#));
            assert_eq!(asked.text.as_deref(), Some("How many?"), "{message}");
            assert_eq!(asked.answer_schema.as_deref().map(RawValue::get), expected, "{message}");
            assert_eq!((asked.task_id.as_str(), asked.context_id.as_deref()), ("t", Some("c")));
            let (agent, read) = AgentQuestion::from_stored(&asked.stored("clerk", Some("boss"))).expect("stored");
            assert_eq!((agent.as_str(), read.output().get()), ("clerk", asked.output().get()));
            assert_eq!(read.is(&asked), asked.is(&asked));
        }
        assert!(question(r#"{"state":"working"}"#).is_none());
        assert!(question(r#"{"state":"TASK_STATE_AUTH_REQUIRED"}"#).expect("a question").is_auth);
    }

    #[test]
    fn a_question_is_recognised_by_its_message_or_its_time() {
        let message = |id: &str| format!(r#","message":{{"messageId":"{id}","parts":[]}}"#);
        let at = |time: &str| format!(r#","timestamp":"{time}""#);
        let plain = || r#","message":{"parts":[]}"#.to_owned();
        for (first, then, left_over, open) in [
            (message("a"), message("a"), true, true),
            (message("a"), message("b"), false, false),
            (message("a") + &at("1"), message("b") + &at("1"), false, false),
            (message("a") + &at("1"), at("1"), true, true),
            (message("a") + &at("1"), at("2"), false, false),
            (message("a"), String::new(), true, true),
            (plain(), plain(), false, true),
            (plain() + &at("1"), plain() + &at("2"), false, false),
        ] {
            let (answered, shown) = (asked(&first), asked(&then));
            assert_eq!(shown.is_left_over(&answered), left_over, "{first} {then}");
            assert_eq!(shown.is_open(&answered), open, "{first} {then}");
        }
    }

    #[test]
    fn what_is_kept_of_a_question_is_bounded_and_has_no_secret() {
        let long = "x".repeat(MAX_DATA_BYTES);
        let message = format!(r#","message":{{"parts":[{{"text":"the secret"}},{{"data":{{"a":"{long}"}}}}]}}"#);
        let kept = asked(&message).bounded(|text| text.replace("secret", "***"));
        assert_eq!((kept.text.as_deref(), kept.data.is_none()), (Some("the ***"), true));
        let message = r#","message":{"parts":[{"data":{"a":"secret"}}]}"#;
        let kept = asked(message).bounded(|text| text.replace("secret", "***"));
        assert_eq!(kept.data.as_deref().map(RawValue::get), Some(r#"{"a":"***"}"#));
        let broken = asked(message).bounded(|text| text.replace("\"secret\"", "***"));
        assert!(broken.data.is_none());
    }

    #[test]
    fn questions_of_an_mcp_server_are_one_question() {
        let form =
            r#"{"method":"elicitation/create","params":{"message":"Which?","requestedSchema":{"type":"object"}}}"#;
        let page = r#"{"method":"elicitation/create","params":{"mode":"url","message":"Sign in","url":"https://x"}}"#;
        let of = |requests: &str| {
            let asked = format!(r#"{{"inputRequests":{{{requests}}},"requestState":"s"}}"#);
            let asked = check_json(asked.as_bytes()).expect(requests).to_owned();
            let question = AgentQuestion::of_server(Questions(&asked), "t", None)?;
            let (_, read) = AgentQuestion::from_stored(&question.stored("a", None)).expect("stored");
            assert!(read.answers(Questions(&asked)) && read.is_of_server());
            assert!(AgentQuestion::of_server(Questions(&asked), "t", Some(&read)).is_none(), "all is answered");
            assert_eq!(read.state_of_server().map(RawValue::get), Some(r#""s""#));
            Some(read)
        };
        let responses = |question: &AgentQuestion, answer: &str| {
            let answer = check_json(answer.as_bytes()).expect(answer).to_owned();
            question.input_responses(&question.reply(Some(answer))).get().to_owned()
        };
        let one = of(&format!(r#""a":{form}"#)).expect("a question");
        assert_eq!((one.text.as_deref(), one.is_auth, one.task_id.as_str()), (Some("Which?"), false, "t"));
        assert_eq!(one.answer_schema.as_deref().map(RawValue::get), Some(r#"{"type":"object"}"#));
        assert_eq!(responses(&one, r#"{"n":1}"#), r#"{"a":{"action":"accept","content":{"n":1}}}"#);
        let two = of(&format!(r#""a":{form},"b":{form}"#)).expect("a question");
        let expected =
            r#"{"type":"object","required":["a","b"],"properties":{"a":{"type":"object"},"b":{"type":"object"}}}"#;
        assert_eq!(two.answer_schema.as_deref().map(RawValue::get), Some(expected));
        let expected = r#"{"a":{"action":"accept","content":{"n":1}},"b":{"action":"accept","content":{}}}"#;
        assert_eq!(responses(&two, r#"{"a":{"n":1},"b":{}}"#), expected);
        let auth = of(&format!(r#""a":{page}"#)).expect("a question");
        assert_eq!((auth.text.as_deref(), auth.is_auth), (Some("Sign in https://x"), true));
        assert_eq!(responses(&auth, r#"{"approved":true}"#), r#"{"a":{"action":"accept"}}"#);
        assert!(of(r#""a":{"method":"roots/list"}"#).is_none() && of("").is_none());
        let many: Vec<_> = (0..=MAX_ELICITATIONS).map(|number| format!(r#""{number}":{form}"#)).collect();
        assert!(of(&many.join(",")).is_none());
    }

    #[test]
    fn an_answer_is_sent_as_it_is_but_for_an_authorisation() {
        let reply = |question: &AgentQuestion, answer: &str| {
            question.reply(Some(check_json(answer.as_bytes()).expect(answer).to_owned())).get().to_owned()
        };
        let plain = asked("");
        assert_eq!(reply(&plain, r#""blue""#), r#"{"text":"blue"}"#);
        assert_eq!(reply(&plain, r#"{"n":1}"#), r#"{"n":1}"#);
        assert_eq!(plain.reply(None).get(), "{}");
        let auth = question(r#"{"state":"auth-required"}"#).expect("a question");
        assert_eq!(reply(&auth, r#"{"approved":true,"password":"x"}"#), r#"{"text":"The authorisation was given."}"#);
    }
}
