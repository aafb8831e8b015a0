//! Requests to agents.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Operation, Version};
use crate::{input::to_raw, mapping};

/// Message to send.
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    /// Id of the message, by which agents recognise a repeat.
    pub message_id: &'a str,
    /// Input of the step.
    pub input: &'a RawValue,
    /// Whether the agent accepts JSON besides text. Only 1.0 is sent JSON.
    pub accepts_json: bool,
    /// Whether the input is sent as data in any case: the agent has asked for it.
    pub is_data: bool,
    /// Task that the message continues.
    pub task_id: Option<&'a str>,
    /// Conversation that the message continues.
    pub context_id: Option<&'a str>,
    /// Tenant of the interface.
    pub tenant: Option<&'a str>,
    /// Where the agent reports that the task has changed.
    pub push: Option<Push<'a>>,
}

/// Address for push notifications.
#[derive(Clone, Copy, Debug)]
pub struct Push<'a> {
    /// Address.
    pub url: &'a str,
    /// Token that each notification must have.
    pub token: &'a str,
}

/// Scheme by which the token may be sent too.
const PUSH_SCHEME: &str = "Bearer";

/// Parameters that send a message. Versions differ in its parts and in the configuration.
#[derive(Serialize)]
struct Send<'a, P, C> {
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    message: SentMessage<'a, P>,
    configuration: C,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SentMessage<'a, P> {
    /// Only 0.3 has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    role: &'static str,
    message_id: &'a str,
    parts: [P; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    task_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context_id: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Part03<'a> {
    Text { text: &'a str },
    Data { data: &'a RawValue },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Configuration03<'a> {
    /// Empty: all modes of the agent. Servers of 0.2 require the member.
    accepted_output_modes: [&'static str; 0],
    blocking: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    push_notification_config: Option<Push03<'a>>,
}

#[derive(Serialize)]
struct Push03<'a> {
    url: &'a str,
    token: &'a str,
    authentication: Authentication03<'a>,
}

#[derive(Serialize)]
struct Authentication03<'a> {
    schemes: [&'static str; 1],
    credentials: &'a str,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Part1<'a> {
    Text {
        text: &'a str,
    },
    #[serde(rename_all = "camelCase")]
    Data {
        data: &'a RawValue,
        media_type: &'static str,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Configuration1<'a> {
    return_immediately: bool,
    history_length: u32,
    accepted_output_modes: [&'static str; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    task_push_notification_config: Option<Push1<'a>>,
}

#[derive(Serialize)]
struct Push1<'a> {
    url: &'a str,
    token: &'a str,
    authentication: Authentication1<'a>,
}

#[derive(Serialize)]
struct Authentication1<'a> {
    scheme: &'static str,
    credentials: &'a str,
}

/// Parameters that send a message. The answer comes before the task has ended, so that it can be cancelled.
#[must_use]
pub fn send(version: Version, outgoing: &Outgoing<'_>) -> Box<RawValue> {
    let &Outgoing { message_id, input, accepts_json, is_data, task_id, context_id, tenant, push } = outgoing;
    let said = mapping::message_text(input);
    match version {
        Version::V03 => {
            let parts = [if is_data { Part03::Data { data: input } } else { Part03::Text { text: &said } }];
            let message = SentMessage { kind: Some("message"), role: "user", message_id, parts, task_id, context_id };
            let push_notification_config = push.map(|Push { url, token }| {
                let authentication = Authentication03 { schemes: [PUSH_SCHEME], credentials: token };
                Push03 { url, token, authentication }
            });
            let configuration =
                Configuration03 { accepted_output_modes: [], blocking: false, push_notification_config };
            to_raw(&Send { tenant: None, message, configuration })
        }
        Version::V1 => {
            // The text of an input is the input as JSON if it has no other.
            let is_plain = !is_data && (!accepts_json || said != input.get());
            let part = if is_plain {
                Part1::Text { text: &said }
            } else {
                Part1::Data { data: input, media_type: "application/json" }
            };
            let role = "ROLE_USER";
            let message = SentMessage { kind: None, role, message_id, parts: [part], task_id, context_id };
            let configuration = Configuration1 {
                return_immediately: true,
                history_length: 0,
                accepted_output_modes: ["application/json", "text/plain"],
                task_push_notification_config: push.map(|Push { url, token }| {
                    let authentication = Authentication1 { scheme: PUSH_SCHEME, credentials: token };
                    Push1 { url, token, authentication }
                }),
            };
            to_raw(&Send { tenant, message, configuration })
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct About<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    history_length: Option<u32>,
}

/// Parameters that name a task; without one, those of the extended card.
#[must_use]
pub fn about(version: Version, operation: Operation, task: Option<&str>, tenant: Option<&str>) -> Box<RawValue> {
    let history_length = (version == Version::V1 && operation == Operation::Get).then_some(0);
    to_raw(&About { tenant: tenant.filter(|_| version == Version::V1), id: task, history_length })
}

#[derive(Serialize)]
struct Rpc<'a> {
    jsonrpc: &'static str,
    id: &'a str,
    method: &'static str,
    params: &'a RawValue,
}

/// Body of a JSON-RPC 2.0 request.
#[must_use]
pub fn rpc(id: &str, version: Version, operation: Operation, params: &RawValue) -> String {
    to_raw(&Rpc { jsonrpc: "2.0", id, method: version.method(operation), params }).get().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::input::check_json;

    fn sent(version: Version, input: &str, accepts_json: bool, ids: Option<&str>) -> Value {
        sent_as(version, input, (accepts_json, false), ids)
    }

    fn sent_as(version: Version, input: &str, (accepts_json, is_data): (bool, bool), ids: Option<&str>) -> Value {
        let input = check_json(input.as_bytes()).expect(input);
        let (task_id, context_id, tenant) = (ids, ids, ids);
        let outgoing =
            Outgoing { message_id: "m", input, accepts_json, is_data, task_id, context_id, tenant, push: None };
        serde_json::from_str(send(version, &outgoing).get()).expect("JSON")
    }

    #[test]
    fn a_message_of_0_3_is_one_text() {
        let message = |text: &str| {
            json!({"message": {"kind": "message", "role": "user", "messageId": "m",
                "parts": [{"kind": "text", "text": text}]},
                "configuration": {"acceptedOutputModes": [], "blocking": false}})
        };
        for accepts_json in [true, false] {
            assert_eq!(sent(Version::V03, r#"{"text":"hi","n":1}"#, accepts_json, None), message("hi"));
            assert_eq!(sent(Version::V03, r#"{"n":1}"#, accepts_json, None), message(r#"{"n":1}"#));
        }
        assert_eq!(sent(Version::V03, "{}", false, Some("i"))["message"]["taskId"], "i");
    }

    #[test]
    fn a_message_of_1_0_is_a_text_or_data() {
        let configuration = json!({"returnImmediately": true, "historyLength": 0,
            "acceptedOutputModes": ["application/json", "text/plain"]});
        let message = |part: Value| json!({"message": {"messageId": "m", "role": "ROLE_USER", "parts": [part]}, "configuration": configuration});
        let data = json!({"data": {"n": 1}, "mediaType": "application/json"});
        for (input, accepts_json, part) in [
            (r#"{"text":"hi","n":1}"#, true, json!({"text": "hi"})),
            (r#"{"query":"q"}"#, true, json!({"text": "q"})),
            (r#"{"n":1}"#, true, data),
            (r#"{"n":1}"#, false, json!({"text": r#"{"n":1}"#})),
        ] {
            assert_eq!(sent(Version::V1, input, accepts_json, None), message(part), "{input}");
        }
        let all = sent(Version::V1, "{}", false, Some("i"));
        assert_eq!((&all["tenant"], &all["message"]["contextId"]), (&json!("i"), &json!("i")));
    }

    #[test]
    fn an_address_for_push_notifications_is_sent_in_the_form_of_each_version() {
        let input = check_json(b"{}").expect("JSON");
        let push = Some(Push { url: "https://us.example/p", token: "s3cret" });
        let (task_id, context_id, tenant) = (None, None, None);
        let outgoing =
            Outgoing { message_id: "m", input, accepts_json: false, is_data: false, task_id, context_id, tenant, push };
        for (version, member, authentication) in [
            (Version::V03, "pushNotificationConfig", json!({"schemes": ["Bearer"], "credentials": "s3cret"})),
            (Version::V1, "taskPushNotificationConfig", json!({"scheme": "Bearer", "credentials": "s3cret"})),
        ] {
            let params: Value = serde_json::from_str(send(version, &outgoing).get()).expect("JSON");
            let expected = json!({"url": "https://us.example/p", "token": "s3cret", "authentication": authentication});
            assert_eq!(params["configuration"][member], expected);
        }
    }

    #[test]
    fn what_the_agent_has_asked_for_as_data_is_sent_as_data() {
        for (version, more) in [(Version::V03, ("kind", "data")), (Version::V1, ("mediaType", "application/json"))] {
            let mut part = json!({"data": {"text": "hi"}});
            part[more.0] = more.1.into();
            let message = sent_as(version, r#"{"text":"hi"}"#, (false, true), Some("t"))["message"].clone();
            assert_eq!((&message["parts"], &message["taskId"]), (&json!([part]), &json!("t")));
        }
    }

    #[test]
    fn a_task_is_named_with_the_tenant_of_1_0() {
        let about = |version, operation| about(version, operation, Some("t"), Some("x")).get().to_owned();
        assert_eq!(about(Version::V03, Operation::Get), r#"{"id":"t"}"#);
        assert_eq!(about(Version::V1, Operation::Get), r#"{"tenant":"x","id":"t","historyLength":0}"#);
        assert_eq!(about(Version::V1, Operation::Cancel), r#"{"tenant":"x","id":"t"}"#);
        let body = rpc("1", Version::V1, Operation::Get, check_json(b"{}").expect("JSON"));
        assert_eq!(body, r#"{"jsonrpc":"2.0","id":"1","method":"GetTask","params":{}}"#);
    }
}
