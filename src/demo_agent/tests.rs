use tower::ServiceExt;

use super::*;

fn agent() -> Router {
    let host = std::net::Ipv4Addr::LOCALHOST.into();
    router(&Options { host, port: 0, delay_ms: 0, fail_rate: 0.0, fail_times: 0 })
}

async fn send(uri: &str, body: impl Into<Body>) -> (StatusCode, HeaderMap, Value) {
    let request = http::Request::post(uri).header(CORRELATION_HEADER, "corr-1").body(body.into()).unwrap();
    let response = agent().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, 2 << 20).await.unwrap_or_default();
    (parts.status, parts.headers, serde_json::from_slice(&bytes).unwrap_or_default())
}

fn message(text: &str) -> String {
    json!({"jsonrpc": "2.0", "id": "task-1", "method": "message/send", "params": {"message": {
        "role": "user", "messageId": "msg-task-1", "parts": [{"kind": "text", "text": text}]}}})
    .to_string()
}

#[tokio::test]
async fn every_skill_answers_with_a_completed_task() {
    for (path, expected) in [("/", "ab Cd"), ("/upper", "AB CD"), ("/reverse", "dC ba"), ("/count", "2")] {
        let (status, headers, answer) = send(path, message("ab Cd")).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers[CORRELATION_HEADER], "corr-1");
        assert_eq!(answer["id"], "task-1");
        let result = &answer["result"];
        assert_eq!(result["status"]["state"], "completed", "{answer}");
        assert_eq!(result["artifacts"][0]["parts"][0], json!({"kind": "text", "text": expected}));
        assert_eq!(result["artifacts"][0]["parts"][1]["data"], result["data"]);
        assert_eq!(result["history"][1]["parts"][0]["text"], expected);
        assert_eq!(result["data"]["words"], 2);
    }
}

#[tokio::test]
async fn a_message_of_1_0_gets_an_answer_of_1_0() {
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": {
        "role": "ROLE_USER", "messageId": "m", "parts": [{"text": "ab"}, {"data": {"kind": "x"}}]}}});
    let (_, _, answer) = send("/upper", body.to_string()).await;
    let task = &answer["result"]["task"];
    assert_eq!(task["status"]["state"], "TASK_STATE_COMPLETED", "{answer}");
    assert_eq!(task["artifacts"][0]["parts"][0], json!({"text": "AB\n{\"KIND\":\"X\"}"}));
    assert_eq!((&task["history"][0]["role"], &task["history"][1]["role"]), (&json!("ROLE_USER"), &json!("ROLE_AGENT")));
    assert!(task.get("kind").is_none() && task.get("data").is_none(), "{task}");
}

#[tokio::test]
async fn a_streamed_task_arrives_in_pieces_of_either_version() {
    for (method, artifact, status, state) in [
        ("message/stream", "", "", "completed"),
        ("SendStreamingMessage", "/artifactUpdate", "/statusUpdate", "TASK_STATE_COMPLETED"),
    ] {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"message": {
            "messageId": "m", "parts": [{"text": "ab cd"}]}}});
        let request = http::Request::post("/upper").body(Body::from(body.to_string())).unwrap();
        let response = agent().oneshot(request).await.unwrap();
        let text = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
        let text = String::from_utf8(text.to_vec()).unwrap();
        let events: Vec<Value> = text
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .map(|data| serde_json::from_str::<Value>(data).unwrap()["result"].clone())
            .collect();
        assert_eq!(events.len(), 5, "{text}");
        let piece = |index: usize| events[index].pointer(&format!("{artifact}/artifact/parts/0/text")).cloned();
        assert_eq!((piece(1), piece(2)), (Some(json!("AB ")), Some(json!("CD"))), "{text}");
        let append = |index: usize| events[index].pointer(&format!("{artifact}/append")).cloned();
        assert_eq!((append(1), append(2)), (Some(json!(false)), Some(json!(true))));
        assert_eq!(events[4].pointer(&format!("{status}/status/state")), Some(&json!(state)), "{text}");
    }
}

#[tokio::test]
async fn json_rpc_errors_carry_the_code_of_their_cause() {
    let call = |id: Value, method: &str, params: Value| {
        json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()
    };
    let no_parts = json!({"message": {"role": "user", "messageId": "m", "parts": []}});
    for (body, code, id) in [
        ("{".to_owned(), -32700, Value::Null),
        ("[]".to_owned(), -32600, Value::Null),
        (json!({"jsonrpc": "1.0", "id": 7, "method": "message/send"}).to_string(), -32600, json!(7)),
        (json!({"jsonrpc": "2.0", "id": 7}).to_string(), -32600, json!(7)),
        (call(json!({}), "message/send", json!({})), -32600, Value::Null),
        (call(json!(7), "tasks/list", json!({})), -32601, json!(7)),
        (call(json!(7), "tasks/get", json!({})), -32602, json!(7)),
        (call(json!(7), "tasks/cancel", json!({"id": "unknown"})), -32001, json!(7)),
        (call(json!("x"), "message/send", json!({})), -32602, json!("x")),
        (call(json!("x"), "message/send", no_parts), -32602, json!("x")),
    ] {
        let (status, _, answer) = send("/", body.clone()).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert_eq!((answer["error"]["code"].as_i64(), &answer["id"]), (Some(code), &id), "{body}");
    }
}

#[tokio::test]
async fn a_notification_gets_no_answer_and_a_large_body_is_refused() {
    let notification = json!({"jsonrpc": "2.0", "method": "message/send", "params": {}}).to_string();
    assert_eq!(send("/", notification).await.0, StatusCode::NO_CONTENT);
    let (status, _, answer) = send("/", "x".repeat(MAX_BODY_BYTES + 1)).await;
    assert_eq!((status, answer["error"]["code"].as_i64()), (StatusCode::PAYLOAD_TOO_LARGE, Some(-32600)));
}

#[tokio::test]
async fn a_call_fails_in_the_way_that_its_url_requests() {
    assert_eq!(send("/upper?fail=503", message("a")).await.0, StatusCode::SERVICE_UNAVAILABLE);
    let (status, _, answer) = send("/upper?fail=jsonrpc", message("a")).await;
    assert_eq!((status, answer["error"]["code"].as_i64()), (StatusCode::OK, Some(-32000)));
    assert_eq!(send("/upper?fail=sometimes", message("a")).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn every_skill_has_a_card_with_its_own_url() {
    for (path, url) in [("", "http://agent:9010/"), ("/upper", "http://agent:9010/upper")] {
        let request = http::Request::get(format!("{path}/.well-known/agent-card.json")).header("host", "agent:9010");
        let response = agent().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap()["url"], url);
    }
}

#[tokio::test]
async fn a_slow_task_is_polled_and_cancelled() {
    let agent = agent();
    let send = async |uri: &str, body: String| -> Value {
        let response = agent.clone().oneshot(http::Request::post(uri).body(Body::from(body)).unwrap()).await.unwrap();
        serde_json::from_slice(&axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap()).unwrap()
    };
    let about = |method: &str, task: &Value| {
        json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"id": task["result"]["id"]}}).to_string()
    };
    let state = |answer: &Value| answer["result"]["status"]["state"].as_str().unwrap_or("none").to_owned();
    let slow = send("/upper?task_ms=600000", message("a")).await;
    assert_eq!(state(&slow), "submitted");
    assert_eq!(state(&send("/upper", about("tasks/get", &slow)).await), "working");
    assert_eq!(state(&send("/upper", about("tasks/cancel", &slow)).await), "canceled");
    assert_eq!(state(&send("/upper", about("tasks/get", &slow)).await), "canceled");
    let quick = send("/upper?task_ms=0", message("a")).await;
    let done = send("/upper", about("tasks/get", &quick)).await;
    assert_eq!((state(&done).as_str(), &done["result"]["data"]["text"]), ("completed", &json!("A")));
    assert_eq!(send("/upper", about("tasks/cancel", &quick)).await["error"]["code"], -32002);
}

#[tokio::test]
async fn an_agent_that_asks_completes_the_task_with_all_answers() {
    let agent = agent();
    let call = async |uri: &str, method: &str, params: Value| {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let response = agent.clone().oneshot(http::Request::post(uri).body(Body::from(body)).unwrap()).await.unwrap();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
        serde_json::from_slice::<Value>(&bytes).unwrap()
    };
    let message =
        |id: &str, part: Value, task: &Value| json!({"message": {"messageId": id, "parts": [part], "taskId": task}});
    let uri = "/upper?asks=2";
    let first = call(uri, "message/send", message("m1", json!({"text": "a"}), &Value::Null)).await["result"].clone();
    assert_eq!(first["status"]["state"], "input-required", "{first}");
    assert_eq!(first["status"]["message"]["parts"][0]["text"], "What else? Question 1 of 2");
    let id = &first["id"];
    let get = call(uri, "GetTask", json!({"id": id})).await["result"].clone();
    assert_eq!(get["status"]["state"], "TASK_STATE_INPUT_REQUIRED");
    assert_eq!(get["status"]["message"]["role"], "ROLE_AGENT");
    // A repeat is no second answer.
    for _ in 0..2 {
        let answer = message("m2", json!({"data": {"text": "b"}}), id);
        let second = call(uri, "SendMessage", answer).await["result"]["task"].clone();
        assert_eq!(second["status"]["message"]["parts"][0]["text"], "What else? Question 2 of 2", "{second}");
    }
    for _ in 0..2 {
        let done = call(uri, "SendMessage", message("m3", json!({"text": "c"}), id)).await["result"]["task"].clone();
        assert_eq!((&done["id"], &done["artifacts"][0]["parts"][0]["text"]), (id, &json!("A\nB\nC")), "{done}");
    }
    let late = call(uri, "message/send", message("m4", json!({"text": "d"}), id)).await;
    assert_eq!(late["error"]["code"], -32004, "{late}");
    let unknown = call(uri, "message/send", message("m5", json!({"text": "d"}), &json!("none"))).await;
    assert_eq!(unknown["error"]["code"], -32001, "{unknown}");
    let auth = call("/?asks=1&auth=true", "message/send", message("m6", json!({"text": "a"}), &Value::Null)).await;
    assert_eq!(auth["result"]["status"]["state"], "auth-required", "{auth}");
    call(uri, "tasks/cancel", json!({"id": auth["result"]["id"]})).await;
    let cancelled = call(uri, "tasks/get", json!({"id": auth["result"]["id"]})).await;
    assert_eq!(cancelled["result"]["status"]["state"], "canceled");
}
