//! Workflows as MCP tools, for clients of the newest revision and of older ones.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::{
    access::Admin,
    agent_questions::{asking, asking_step},
    path::{Agent, shouting},
    service::{Answer, Service, config, passing},
    steps::{World, agent_step},
};

const FIXED: [&str; 7] =
    ["approval_answer", "run_await", "run_cancel", "run_get", "run_start", "runs_list", "workflows_search"];
const VERSION: &str = "2026-07-28";

/// A client: what it can do, and its credentials.
#[derive(Clone, Default)]
pub struct Client {
    capabilities: Value,
    is_legacy: bool,
    key: Option<String>,
    headers: Vec<(&'static str, String)>,
    id: Option<Value>,
    meta: Value,
}

impl Client {
    fn with(capabilities: Value) -> Self {
        Self { capabilities, ..Self::default() }
    }

    fn legacy() -> Self {
        Self { is_legacy: true, ..Self::default() }
    }

    pub async fn send(&self, service: &Service, method: &str, params: &Value) -> Answer {
        let mut params = params.clone();
        let mut headers = vec![("content-type", "application/json".to_owned())];
        headers.extend(self.key.clone().map(|key| ("x-api-key", key)));
        headers.extend(self.headers.clone());
        if self.is_legacy {
            headers.push(("mcp-protocol-version", "2025-06-18".to_owned()));
        } else {
            let capabilities = if self.capabilities.is_null() { json!({}) } else { self.capabilities.clone() };
            let mut meta = json!({"io.modelcontextprotocol/protocolVersion": VERSION,
                "io.modelcontextprotocol/clientCapabilities": capabilities});
            if let Some(more) = self.meta.as_object() {
                meta.as_object_mut().expect("an object").extend(more.clone());
            }
            params["_meta"] = meta;
            headers.extend([("mcp-protocol-version", VERSION.to_owned()), ("mcp-method", method.to_owned())]);
            let name = ["name", "uri", "taskId"].iter().find_map(|name| params[name].as_str());
            headers.extend(name.map(|name| ("mcp-name", name.to_owned())));
        }
        let id = self.id.clone().unwrap_or(json!(1));
        let body = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string();
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        service.send("POST", "/mcp", &headers, body).await
    }

    async fn result(&self, service: &Service, method: &str, params: &Value) -> Value {
        let answer = self.send(service, method, params).await.expect(200);
        assert_eq!(answer.get("error"), None, "{method} {params}: {answer}");
        let result = answer["result"].clone();
        assert_eq!(result.get("resultType").is_some(), !self.is_legacy, "{result}");
        result
    }

    async fn tool(&self, service: &Service, name: &str, arguments: &Value) -> Value {
        self.result(service, "tools/call", &json!({"name": name, "arguments": arguments})).await
    }
}

fn said(result: &Value) -> &str {
    result["content"][0]["text"].as_str().expect("a text")
}

fn shout(name: &str) -> Value {
    let step = agent_step("s", &json!({"text": "${workflow.input.text}"}));
    let schema = json!({"required": ["text"], "properties": {"text": {"type": "string"}}});
    json!({"start_step": "s", "steps": {"s": step}, "input_schema": schema, "description": "Shouts a text.",
        "expose": {"mcp": {"name": name}}})
}

fn approval() -> Value {
    let step = json!({"id": "ok", "type": "callback", "callback_config": {"approval": {}},
        "input_mapping": {"question": "Is it fine?"}});
    json!({"start_step": "ok", "steps": {"ok": step}, "expose": {"mcp": {}}})
}

async fn put(service: &Service, name: &str, definition: &Value) {
    let stored = service.put(&format!("/api/v1/workflow-names/{name}"), definition).await;
    assert!(stored.status.is_success(), "{}", stored.text);
}

fn names(list: &Value) -> Vec<String> {
    let tools = list["tools"].as_array().expect("tools").iter();
    tools.map(|tool| tool["name"].as_str().expect("a name").to_owned()).collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn tools_are_listed_in_one_order_with_their_schemas_and_in_pages(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("a", "http://127.0.0.1:9/").await;
    for (workflow, tool) in [("b", "beta"), ("a", "alpha")] {
        put(&service, workflow, &shout(tool)).await;
    }
    let mut hidden = shout("x");
    hidden["expose"] = json!({"a2a": true});
    put(&service, "c", &hidden).await;
    let client = Client::default();
    let list = client.result(&service, "tools/list", &json!({})).await;
    assert_eq!(names(&list), [&FIXED[..], &["alpha", "beta"]].concat());
    assert_eq!(
        (&list["ttlMs"], &list["cacheScope"], list.get("nextCursor")),
        (&json!(60_000), &json!("private"), None)
    );
    let tool = &list["tools"][7];
    assert_eq!((&tool["description"], &tool["title"]), (&json!("Shouts a text."), &json!("a")));
    assert_eq!(
        tool["inputSchema"],
        json!({"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}})
    );
    for tool in list["tools"].as_array().expect("tools") {
        assert_eq!(tool["inputSchema"]["type"], "object", "{tool}");
    }
    // Clients would have to repeat such arguments in headers.
    let mut definition = shout("alpha");
    definition["input_schema"] = json!({"properties": {"text": {"type": "string", "x-mcp-header": "Text"}}});
    put(&service, "a", &definition).await;
    let list = client.result(&service, "tools/list", &json!({})).await;
    assert_eq!(list["tools"][7]["inputSchema"]["properties"], json!({"text": {"type": "string"}}));
    // A page ends early if its schemas are large.
    let large = json!({"type": "object", "description": "x".repeat(60 << 10)});
    for number in 0..6 {
        let mut definition = shout(&format!("large-{number}"));
        definition["input_schema"] = large.clone();
        put(&service, &format!("large-{number}"), &definition).await;
    }
    let (mut seen, mut cursor, mut pages) = (Vec::new(), None, 0);
    loop {
        let params = cursor.as_ref().map_or(json!({}), |cursor| json!({"cursor": cursor}));
        let page = client.result(&service, "tools/list", &params).await;
        seen.extend(names(&page));
        pages += 1;
        match page.get("nextCursor") {
            Some(next) => cursor = Some(next.clone()),
            None => break,
        }
    }
    let large = ["large-0", "large-1", "large-2", "large-3", "large-4", "large-5"];
    assert_eq!(seen, [&FIXED[..], &["alpha", "beta"], &large].concat());
    assert!(pages > 1, "{pages}");
    let answer = client.send(&service, "tools/list", &json!({"cursor": "\u{e4}"})).await.expect(200);
    assert_eq!(answer["error"]["code"], -32602);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn clients_of_the_newest_revision_and_older_ones_are_served_without_sessions(pool: PgPool) {
    let service = Service::start(&pool);
    let client = Client::default();
    let found = client.result(&service, "server/discover", &json!({})).await;
    assert_eq!(found["supportedVersions"][0], VERSION);
    assert_eq!(found["capabilities"]["extensions"], json!({"io.modelcontextprotocol/tasks": {}}));
    assert_eq!(found["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "workflow-api");
    let unknown = client.send(&service, "initialize", &json!({})).await;
    assert_eq!(unknown.expect(404)["error"]["code"], -32601);
    // Changes are not announced, so there is nothing to listen to.
    assert_eq!((&found["capabilities"]["tools"], &found["capabilities"]["resources"]), (&json!({}), &json!({})));
    let listening =
        client.send(&service, "subscriptions/listen", &json!({"notifications": {"toolsListChanged": true}})).await;
    assert_eq!(listening.expect(404)["error"]["code"], -32601);
    for (wanted, expected) in [("2025-06-18", "2025-06-18"), ("2025-11-25", "2025-11-25"), ("2024-11-05", "2025-11-25")]
    {
        let params =
            json!({"protocolVersion": wanted, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
        let body = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}).to_string();
        let answer = service.send("POST", "/mcp", &[("content-type", "application/json")], body).await;
        assert_eq!(answer.header("mcp-session-id"), None);
        assert_eq!(answer.expect(200)["result"]["protocolVersion"], expected);
    }
    let note = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    let answer = service.send("POST", "/mcp", &[("content-type", "application/json")], note).await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (202, ""));
    assert_eq!(Client::legacy().result(&service, "ping", &json!({})).await, json!({}));
    assert_eq!(names(&Client::legacy().result(&service, "tools/list", &json!({})).await), FIXED);
    // A client that has not declared tasks has none.
    for method in ["tasks/get", "tasks/update", "tasks/cancel"] {
        let refused = client.send(&service, method, &json!({"taskId": "x"})).await.expect(400);
        assert_eq!(
            (&refused["error"]["code"], &refused["error"]["data"]["requiredCapabilities"]),
            (&json!(-32021), &json!({"extensions": {"io.modelcontextprotocol/tasks": {}}})),
            "{method}: {refused}"
        );
    }
    let unknown = Client::legacy().send(&service, "tasks/get", &json!({"taskId": "x"})).await.expect(200);
    assert_eq!(unknown["error"]["code"], -32601);
    for method in ["GET", "DELETE"] {
        assert_eq!(service.send(method, "/mcp", &[], "").await.error(405)["code"], "method_not_allowed");
    }
    let batch = r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#;
    let answer = service.send("POST", "/mcp", &[("content-type", "application/json")], batch).await.expect(400);
    assert_eq!(answer["error"]["code"], -32600);
    let headers = [("content-type", "application/json"), ("mcp-protocol-version", VERSION)];
    let answer =
        service.send("POST", "/mcp", &headers, r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#).await.expect(400);
    assert_eq!(answer["error"]["code"], -32602);
    // A page of another site must not use the server.
    for (origin, status) in
        [("https://evil.example", 403), ("http://localhost:3000", 200), ("http://localhost:8000", 200)]
    {
        let client = Client { headers: vec![("origin", origin.to_owned())], ..Client::default() };
        let answer = client.send(&service, "tools/list", &json!({})).await;
        assert_eq!(answer.status.as_u16(), status, "{origin}: {}", answer.text);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_tool_runs_its_workflow_and_returns_the_output(pool: PgPool) {
    let (agent, url) = Agent::start(shouting).await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    put(service, "shout", &shout("shout_it")).await;
    let client = Client::default();
    let result = client.tool(service, "shout_it", &json!({"text": "hello"})).await;
    assert_eq!(
        (&result["isError"], &result["structuredContent"]["text"]),
        (&json!(false), &json!("HELLO")),
        "{result}"
    );
    assert_eq!(serde_json::from_str::<Value>(said(&result)).expect("JSON"), result["structuredContent"]);
    // What a model can correct is a result.
    let wrong = client.tool(service, "shout_it", &json!({"text": 7})).await;
    assert_eq!(wrong["isError"], true, "{wrong}");
    assert!(said(&wrong).starts_with("The call is not valid.\narguments.text: "), "{wrong}");
    let unknown = client.send(service, "tools/call", &json!({"name": "nothing", "arguments": {}})).await.expect(200);
    assert_eq!(unknown["error"]["code"], -32602);
    assert_eq!(agent.calls().len(), 1);
    // A key, and an id that is unique, make a call safe to repeat; a counter does not.
    let keyed = Client { meta: json!({"idempotencyKey": "k"}), ..Client::default() };
    let unique = Client { id: Some(json!("0f8fad5b-d9cb-469f-a165-70867728950e")), ..Client::default() };
    for client in [&keyed, &unique, &Client::default()] {
        for _ in 0..2 {
            client.tool(service, "shout_it", &json!({"text": "again"})).await;
        }
    }
    assert_eq!(agent.calls().len(), 1 + 1 + 1 + 2);
    unique.tool(service, "shout_it", &json!({"text": "other"})).await;
    assert_eq!(agent.calls().len(), 6);
    let reused = keyed.tool(service, "shout_it", &json!({"text": "other"})).await;
    assert_eq!(reused["isError"], true);
    let result = Client::legacy().tool(service, "shout_it", &json!({"text": "old"})).await;
    assert_eq!(result["structuredContent"]["text"], "OLD");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_trace_in_the_metadata_of_a_call_goes_on_to_the_agent_unless_a_header_has_one(pool: PgPool) {
    let (agent, url) = Agent::start(shouting).await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    put(service, "shout", &shout("shout_it")).await;
    let trace = |digit: &str| format!("00-{}-00f067aa0ba902b7-01", digit.repeat(32));
    for (number, (in_meta, in_header, expected)) in [
        (json!(trace("a")), None, Some("a")),
        (json!(trace("a")), Some("b"), Some("b")),
        (json!("nonsense"), None, None),
    ]
    .into_iter()
    .enumerate()
    {
        let headers = in_header.map(|digit| ("traceparent", trace(digit))).into_iter().collect();
        let client = Client { meta: json!({"traceparent": in_meta}), headers, ..Client::default() };
        client.tool(service, "shout_it", &json!({"text": "hello"})).await;
        let calls = agent.calls();
        assert_eq!(calls.len(), number + 1);
        let sent = calls[number].headers.get("traceparent").map(|header| header.to_str().expect("text").to_owned());
        let ids = sent.as_deref().map(|sent| sent.split('-').nth(1).expect("the id of a trace"));
        assert_eq!(ids, expected.map(|digit| digit.repeat(32)).as_deref(), "{in_meta} {in_header:?}: {sent:?}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_large_output_is_a_resource(pool: PgPool) {
    let (_agent, url) = Agent::start(|_, call| crate::path::completed(call, &"x".repeat(60_000))).await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    put(service, "shout", &shout("shout_it")).await;
    let client = Client::default();
    let result = client.tool(service, "shout_it", &json!({"text": "hello"})).await;
    assert_eq!(result.get("structuredContent"), None);
    let link = &result["content"][1];
    assert_eq!((&link["type"], &link["mimeType"]), (&json!("resource_link"), &json!("application/json")), "{link}");
    let read = client.result(service, "resources/read", &json!({"uri": link["uri"]})).await;
    let output: Value = serde_json::from_str(read["contents"][0]["text"].as_str().expect("text")).expect("JSON");
    assert_eq!(output["text"].as_str().map(str::len), Some(60_000));
    let run_id = link["uri"].as_str().expect("a URI").split('/').nth(3).expect("an id");
    let run = client.tool(service, "run_get", &json!({"run_id": run_id})).await;
    assert_eq!((&run["structuredContent"]["output_uri"], run["structuredContent"].get("output")), (&link["uri"], None));
    let missing =
        client.send(service, "resources/read", &json!({"uri": "workflow-api://runs/x/output"})).await.expect(200);
    assert_eq!(missing["error"]["code"], -32602);
    let missing = Client::legacy().send(service, "resources/read", &json!({"uri": "x"})).await.expect(200);
    assert_eq!(missing["error"]["code"], -32002);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_that_takes_longer_is_a_task_or_is_awaited(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[]));
    service.agent("a", "http://127.0.0.1:9/").await;
    put(&service, "shout", &shout("shout_it")).await;
    let tasks = Client::with(json!({"extensions": {"io.modelcontextprotocol/tasks": {}}}));
    let step = Duration::from_secs(1);
    let (task, waited) = passing(&service.clock, step, tasks.tool(&service, "shout_it", &json!({"text": "x"}))).await;
    assert!(waited >= Duration::from_secs(10), "{waited:?}");
    assert_eq!(
        (&task["resultType"], &task["status"], &task["ttlMs"]),
        (&json!("task"), &json!("working"), &json!(null)),
        "{task}"
    );
    let id = task["taskId"].clone();
    let got = tasks.result(&service, "tasks/get", &json!({"taskId": id})).await;
    assert_eq!((&got["resultType"], &got["status"], &got["taskId"]), (&json!("complete"), &json!("working"), &id));
    let acknowledged = tasks.result(&service, "tasks/cancel", &json!({"taskId": id})).await;
    assert_eq!(acknowledged["resultType"], "complete");
    assert_eq!(tasks.result(&service, "tasks/get", &json!({"taskId": id})).await["status"], "cancelled");
    tasks.result(&service, "tasks/cancel", &json!({"taskId": id})).await;
    let unknown = tasks.send(&service, "tasks/get", &json!({"taskId": "run-x"})).await.expect(200);
    assert_eq!(unknown["error"]["code"], -32602);

    for client in [Client::default(), Client::legacy()] {
        let arguments = json!({"text": "x"});
        let call = client.tool(&service, "shout_it", &arguments);
        let (result, _) = passing(&service.clock, step, call).await;
        assert!(result["isError"] == false && said(&result).contains("run_await"), "{result}");
        let id = result["structuredContent"]["run_id"].clone();
        let arguments = json!({"run_id": id, "timeout_seconds": 2});
        let call = client.tool(&service, "run_await", &arguments);
        let (result, waited) = passing(&service.clock, step, call).await;
        assert!(waited >= Duration::from_secs(2), "{waited:?}");
        assert_eq!(result["structuredContent"]["status"], "PENDING");
        let result = client.tool(&service, "run_cancel", &json!({"run_id": id, "reason": "enough"})).await;
        assert_eq!(result["structuredContent"]["status"], "CANCELLED");
        let again = client.tool(&service, "run_cancel", &json!({"run_id": id})).await;
        assert_eq!(again["isError"], true);
        let wrong = client.tool(&service, "run_await", &json!({"run_id": id, "timeout_seconds": 31})).await;
        assert!(wrong["isError"] == true && said(&wrong).contains("timeout_seconds"), "{wrong}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_approval_is_asked_of_the_user_and_never_given_by_itself(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let service = &world.service;
    put(service, "ask", &approval()).await;
    let forms = Client::with(json!({"elicitation": {"form": {}}}));
    let first = forms.tool(service, "ask", &json!({})).await;
    assert_eq!(first["resultType"], "input_required", "{first}");
    let (key, request) = first["inputRequests"].as_object().expect("requests").iter().next().expect("one");
    assert_eq!(
        (&request["method"], &request["params"]["message"]),
        (&json!("elicitation/create"), &json!("Is it fine?"))
    );
    assert_eq!(request["params"]["requestedSchema"]["required"], json!(["approved"]));
    let answering = |response: Value| json!({"name": "ask", "arguments": {}, "requestState": first["requestState"], "inputResponses": {key: response}});
    // Declining decides nothing.
    let declined = forms.result(service, "tools/call", &answering(json!({"action": "decline"}))).await;
    assert_eq!(declined["resultType"], "input_required");
    let wrong =
        forms.send(service, "tools/call", &answering(json!({"action": "accept", "content": {}}))).await.expect(200);
    assert_eq!(wrong["error"]["code"], -32602, "{wrong}");
    let mut forged = answering(json!({"action": "accept", "content": {"approved": true}}));
    forged["requestState"] = json!("AAAA");
    assert_eq!(forms.send(service, "tools/call", &forged).await.expect(200)["error"]["code"], -32602);
    let accepted = answering(json!({"action": "accept", "content": {"approved": true, "comment": "yes"}}));
    let ended = forms.result(service, "tools/call", &accepted).await;
    assert_eq!(
        (&ended["resultType"], &ended["structuredContent"]["approved"]),
        (&json!("complete"), &json!(true)),
        "{ended}"
    );
    assert_eq!(service.get("/api/v1/runs").await.expect(200)["total"], 1);

    // A task asks by its own methods.
    let tasks = Client::with(json!({"elicitation": {}, "extensions": {"io.modelcontextprotocol/tasks": {}}}));
    let task = tasks.tool(service, "ask", &json!({})).await;
    let id = task["taskId"].clone();
    let asked = tasks.result(service, "tasks/get", &json!({"taskId": id})).await;
    assert_eq!(asked["status"], "input_required", "{asked}");
    let key = asked["inputRequests"].as_object().expect("requests").keys().next().expect("one").clone();
    let unclear = json!({key.as_str(): {"action": "accept", "content": {"approved": "no"}}});
    let refused =
        tasks.send(service, "tasks/update", &json!({"taskId": id, "inputResponses": unclear})).await.expect(200);
    let told = refused["error"]["message"].as_str().expect("a message");
    assert!(told.starts_with("The answer is not valid: approved: ") && !told.contains('{'), "{told}");
    let response = json!({key: {"action": "accept", "content": {"approved": false}}, "other": {"action": "accept"}});
    tasks.result(service, "tasks/update", &json!({"taskId": id, "inputResponses": response})).await;
    let ended = tasks.tool(service, "run_await", &json!({"run_id": id})).await;
    assert_eq!(ended["structuredContent"]["status"], "FAILED");
    let got = tasks.result(service, "tasks/get", &json!({"taskId": id})).await;
    assert_eq!((&got["status"], &got["result"]["isError"]), (&json!("completed"), &json!(true)), "{got}");

    // Others answer by a tool.
    let only_tasks = Client::with(json!({"extensions": {"io.modelcontextprotocol/tasks": {}}}));
    for client in [Client::default(), Client::legacy(), only_tasks] {
        let result = client.tool(service, "run_start", &json!({"workflow": "ask"})).await;
        assert!(said(&result).contains("approval_answer") && said(&result).contains("Is it fine?"), "{result}");
        let id = result["structuredContent"]["run_id"].clone();
        if !client.capabilities.is_null() {
            // It may look at the task all the same.
            let task = client.result(service, "tasks/get", &json!({"taskId": id})).await;
            let message = task["statusMessage"].as_str().expect("a message");
            assert!(task["status"] == "working" && task.get("inputRequests").is_none(), "{task}");
            assert!(message.contains("approval_answer") && message.contains("Is it fine?"), "{message}");
        }
        let run = client.tool(service, "run_get", &json!({"run_id": id})).await["structuredContent"].clone();
        assert_eq!(
            (&run["status"], &run["questions"][0]["question"]),
            (&json!("WAITING_FOR_ANSWER"), &json!("Is it fine?"))
        );
        for arguments in [
            json!({"run_id": id}),
            json!({"run_id": id, "answer": {"approved": true}}),
            json!({"run_id": id, "approved": "yes"}),
        ] {
            assert_eq!(client.tool(service, "approval_answer", &arguments).await["isError"], true, "{arguments}");
        }
        let arguments = json!({"run_id": id, "step_id": "ok", "approved": true, "comment": "fine"});
        assert_eq!(client.tool(service, "approval_answer", &arguments).await["isError"], false);
        let ended = client.tool(service, "run_await", &json!({"run_id": id})).await;
        assert_eq!(ended["structuredContent"]["output"]["comment"], "fine", "{ended}");
        assert_eq!(client.tool(service, "approval_answer", &arguments).await["isError"], true);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_approval_in_a_sub_workflow_is_asked_and_answered_by_the_run_around_it(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let service = &world.service;
    put(service, "inner", &approval()).await;
    let step = json!({"id": "call", "type": "sub_workflow", "sub_workflow_config": {"workflow_name": "inner"}});
    put(service, "outer", &json!({"start_step": "call", "steps": {"call": step}, "expose": {"mcp": {}}})).await;
    let result = Client::default().tool(service, "outer", &json!({})).await;
    assert!(said(&result).contains("Is it fine?"), "{result}");
    let id = result["structuredContent"]["run_id"].clone();
    let run = Client::default().tool(service, "run_await", &json!({"run_id": id})).await["structuredContent"].clone();
    let inner = service.get("/api/v1/runs?workflow_name=inner").await.expect(200)["items"][0]["run_id"].clone();
    assert_eq!((&run["status"], &run["questions"][0]["sub_run_id"]), (&json!("WAITING_FOR_ANSWER"), &inner), "{run}");
    let listed = Client::default().tool(service, "runs_list", &json!({"workflow": "outer"})).await;
    assert_eq!(listed["structuredContent"]["runs"][0]["is_waiting"], true);
    let question_id = &run["questions"][0]["question_id"];
    let arguments = json!({"run_id": id, "question_id": question_id, "approved": true, "comment": "fine"});
    assert_eq!(Client::default().tool(service, "approval_answer", &arguments).await["isError"], false);
    let ended = Client::default().tool(service, "run_await", &json!({"run_id": id})).await;
    assert_eq!(ended["structuredContent"]["output"]["comment"], "fine", "{ended}");

    let forms = Client::with(json!({"elicitation": {}}));
    let asked = forms.tool(service, "outer", &json!({})).await;
    let key = asked["inputRequests"].as_object().expect("requests").keys().next().expect("one").clone();
    let response = json!({key: {"action": "accept", "content": {"approved": true, "comment": "yes"}}});
    let answer =
        json!({"name": "outer", "arguments": {}, "requestState": asked["requestState"], "inputResponses": response});
    let ended = forms.result(service, "tools/call", &answer).await;
    assert_eq!(ended["structuredContent"]["comment"], "yes", "{ended}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn workflows_are_found_and_runs_listed_for_the_organisation_of_the_caller_only(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let service = &admin.service;
    for organization in ["one", "two"] {
        admin.post("/api/v1/organizations", &json!({"id": organization, "name": organization})).await.expect(201);
    }
    let client = async |name: &str, organization: &str, role: &str, workflows: Value| {
        let body = json!({"name": name, "role": role, "organization_id": organization, "workflows": workflows});
        Client { key: Some(admin.key(&body).await.0), ..Client::default() }
    };
    let editor = client("e", "one", "editor", json!(null)).await;
    let steps = json!({"w": {"id": "w", "type": "wait", "wait_config": {"duration_seconds": 600}}});
    let body = json!({"start_step": "w", "steps": steps, "description": "Waits a little.", "expose": {"mcp": {}}});
    let headers = [("x-api-key", editor.key.as_deref().expect("a key")), ("content-type", "application/json")];
    service.send("PUT", "/api/v1/workflow-names/pause", &headers, body.to_string()).await.expect(201);
    let (one, two) =
        (client("o", "one", "operator", json!(null)).await, client("t", "two", "operator", json!(null)).await);
    assert_eq!(names(&one.result(service, "tools/list", &json!({})).await).last().map(String::as_str), Some("pause"));
    assert_eq!(names(&two.result(service, "tools/list", &json!({})).await), FIXED);
    let found = one.tool(service, "workflows_search", &json!({"query": "WAITS"})).await;
    assert_eq!(found["structuredContent"]["workflows"][0]["name"], "pause");
    let found = two.tool(service, "workflows_search", &json!({})).await;
    assert_eq!(found["structuredContent"]["workflows"], json!([]));
    let started = one.tool(service, "run_start", &json!({"workflow": "pause", "wait_seconds": 0})).await;
    let id = started["structuredContent"]["run_id"].clone();
    assert!(id.is_string(), "{started}");
    let listed = one.tool(service, "runs_list", &json!({"workflow": "pause", "status": "PENDING"})).await;
    assert_eq!(listed["structuredContent"]["runs"][0]["run_id"], id);
    assert_eq!(two.tool(service, "runs_list", &json!({})).await["structuredContent"]["runs"], json!([]));
    for (tool, arguments) in [
        ("run_get", json!({"run_id": id})),
        ("run_await", json!({"run_id": id})),
        ("run_cancel", json!({"run_id": id})),
        ("approval_answer", json!({"run_id": id, "approved": true})),
        ("run_start", json!({"workflow": "pause"})),
    ] {
        assert_eq!(two.tool(service, tool, &arguments).await["isError"], true, "{tool}");
    }
    for (method, params) in [
        ("tools/call", json!({"name": "pause", "arguments": {}})),
        ("tasks/get", json!({"taskId": id})),
        ("tasks/cancel", json!({"taskId": id})),
        ("tasks/update", json!({"taskId": id, "inputResponses": {}})),
    ] {
        let tasks = json!({"extensions": {"io.modelcontextprotocol/tasks": {}}});
        let answer = Client { capabilities: tasks, ..two.clone() }.send(service, method, &params).await.expect(200);
        assert_eq!(answer["error"]["code"], -32602, "{method}: {answer}");
    }
    // A viewer sees and does what it may by the REST API.
    let viewer = client("v", "one", "viewer", json!(null)).await;
    let seen = names(&viewer.result(service, "tools/list", &json!({})).await);
    assert_eq!(seen, ["run_await", "run_get", "runs_list", "workflows_search"]);
    for name in ["pause", "run_start", "run_cancel", "approval_answer"] {
        let refused = viewer.tool(service, name, &json!({})).await;
        let expected = "The caller may not do this: it needs ";
        assert!(refused["isError"] == true && said(&refused).starts_with(expected), "{name}: {refused}");
    }
    let bound = client("b", "one", "operator", json!(["another"])).await;
    let seen = names(&bound.result(service, "tools/list", &json!({})).await);
    assert_eq!(seen, ["approval_answer", "run_await", "run_cancel", "run_get", "run_start"]);
    assert_eq!(bound.tool(service, "run_get", &json!({"run_id": id})).await["isError"], true);
    for name in ["runs_list", "workflows_search"] {
        let refused = bound.tool(service, name, &json!({})).await;
        let expected = "The API key is bound to workflows, and the tool lists others too";
        assert_eq!((&refused["isError"], said(&refused)), (&json!(true), expected), "{name}");
    }
    // What is no tool has an error of the protocol.
    let tasks = Client { capabilities: json!({"extensions": {"io.modelcontextprotocol/tasks": {}}}), ..viewer };
    for method in ["tasks/update", "tasks/cancel"] {
        let answer = tasks.send(service, method, &json!({"taskId": id, "inputResponses": {}})).await.expect(200);
        let error = json!({"code": -32602, "message": "The caller may not do this: it needs runs:write"});
        assert_eq!(answer["error"], error, "{method}");
    }
    assert_eq!(Client::default().send(service, "tools/list", &json!({})).await.error(401)["code"], "unauthorized");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_question_of_an_agent_is_a_form_with_its_own_schema(pool: PgPool) {
    let number =
        json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer", "title": "Number"}}});
    let nested = json!({"type": "object", "required": ["who"], "properties": {"who": {"type": "object"}}});
    let questions = json!([{"text": "Which?"}, {"text": "How many?", "schema": number}, {"text": "Who?", "schema": nested},
        {"text": "May I?", "auth": true}]);
    let (tasks, _agent, url) = asking(questions, true).await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    let step = asking_step("ask", &json!({}));
    put(service, "ask", &json!({"start_step": "ask", "steps": {"ask": step}, "expose": {"mcp": {}}})).await;
    let forms = Client::with(json!({"elicitation": {"form": {}}}));
    let mut asked = forms.tool(service, "ask", &json!({})).await;
    let mut keys = Vec::new();
    for (message, required, content) in [
        ("Which?", "text", json!({"text": "blue"})),
        ("How many?", "n", json!({"n": 2})),
        ("Who?", "text", json!({"text": "{\"who\": {\"name\": \"ada\"}}"})),
        ("May I?", "approved", json!({"approved": true})),
    ] {
        assert_eq!(asked["resultType"], "input_required", "{asked}");
        let (key, request) = asked["inputRequests"].as_object().expect("requests").iter().next().expect("one");
        let params = &request["params"];
        assert_eq!((&params["message"], &params["requestedSchema"]["required"]), (&json!(message), &json!([required])));
        if message == "How many?" {
            assert_eq!(params["requestedSchema"], number);
            let wrong = json!({"name": "ask", "arguments": {}, "requestState": asked["requestState"],
                "inputResponses": {key: {"action": "accept", "content": {"n": "two"}}}});
            assert_eq!(forms.send(service, "tools/call", &wrong).await.expect(200)["error"]["code"], -32602);
        }
        keys.push(key.clone());
        let answer = json!({"name": "ask", "arguments": {}, "requestState": asked["requestState"],
            "inputResponses": {key: {"action": "accept", "content": content}}});
        asked = forms.result(service, "tools/call", &answer).await;
    }
    assert_eq!(
        asked["structuredContent"]["text"], r#"begin blue {"n":2} {"who":{"name":"ada"}} The authorisation was given."#,
        "{asked}"
    );
    assert_eq!(tasks.said().len(), 1);
    keys.dedup();
    assert_eq!(keys.len(), 4, "an answer to one question is none to the next");
}
