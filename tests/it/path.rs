//! The whole path: created over HTTP, dispatched over Kafka, claimed, run against a real agent, watched to its end.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::post,
};
use http::{HeaderMap, StatusCode, Uri};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::sync::Semaphore;
use workflow_api::{db, db::migrations::MIGRATOR, executor, lifecycle::Lifecycle};

use crate::service::{Service, eventually};

/// What an agent was asked.
#[derive(Clone, Debug)]
pub struct Call {
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Call {
    /// The text part of the message.
    pub fn text(&self) -> &str {
        self.body["params"]["message"]["parts"][0]["text"].as_str().expect("a text part")
    }
}

/// Makes the answer to the call of that number, from 0.
pub type Answering = dyn Fn(usize, &Call) -> Response + Send + Sync;

/// An agent that answers what a test wants and remembers what it was asked.
#[derive(Clone)]
pub struct Agent(pub Arc<Parts>);

pub struct Parts {
    calls: Mutex<Vec<Call>>,
    answer: Box<Answering>,
    /// Closed gates hold answers back.
    pub gate: Semaphore,
}

impl Agent {
    /// Answers with what `answer` makes of the call's number, from 0, and the call.
    pub async fn start(answer: impl Fn(usize, &Call) -> Response + Send + Sync + 'static) -> (Self, String) {
        Self::start_with(|_| Router::new(), answer).await
    }

    /// As [`Self::start`], with further routes, which know the agent's URL.
    pub async fn start_with(
        routes: impl FnOnce(&str) -> Router,
        answer: impl Fn(usize, &Call) -> Response + Send + Sync + 'static,
    ) -> (Self, String) {
        let gate = Semaphore::new(Semaphore::MAX_PERMITS);
        let parts = Parts { calls: Mutex::default(), answer: Box::new(answer), gate };
        let agent = Self(Arc::new(parts));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        let router = Router::new().fallback(post(Self::handle)).with_state(agent.clone()).merge(routes(&url));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (agent, url)
    }

    async fn handle(State(agent): State<Self>, uri: Uri, headers: HeaderMap, Json(body): Json<Value>) -> Response {
        let call = Call { uri, headers, body };
        let number = {
            let mut calls = agent.0.calls.lock().expect("no panic");
            calls.push(call.clone());
            calls.len() - 1
        };
        drop(agent.0.gate.acquire().await);
        (agent.0.answer)(number, &call)
    }

    pub fn calls(&self) -> Vec<Call> {
        self.0.calls.lock().expect("no panic").clone()
    }

    /// Holds back every answer from now on.
    pub fn hold(&self) {
        self.0.gate.forget_permits(Semaphore::MAX_PERMITS);
    }
}

/// A completed A2A task whose artifact is that text.
pub fn completed(call: &Call, text: &str) -> Response {
    let result = json!({"id": "srv-17", "contextId": "ctx-4", "kind": "task", "status": {"state": "completed"},
        "score": 0.93, "artifacts": [{"artifactId": "a1", "parts": [{"kind": "text", "text": text}]}],
        "history": [{"role": "agent", "parts": [{"kind": "text", "text": "done"}]}]});
    Json(json!({"jsonrpc": "2.0", "id": call.body["id"], "result": result})).into_response()
}

pub fn shouting(_: usize, call: &Call) -> Response {
    completed(call, &call.text().to_uppercase())
}

/// An executor beside the service. Stopped hard when it goes out of scope, as if it had been killed.
pub struct Executor(Lifecycle);

impl Executor {
    pub fn start(service: &Service) -> Self {
        let lifecycle = Lifecycle::new();
        let pool = db::pool(&service.config.database);
        executor::start(&service.config, pool, &lifecycle, service.clock.clone()).expect("valid settings");
        Self(lifecycle)
    }

    pub async fn stop(&self) {
        self.0.soft_stop().cancel();
        self.0.ended().await;
    }

    /// Stops it hard, and waits until it does nothing more.
    pub async fn kill(self) {
        self.0.soft_stop().cancel();
        self.0.hard_stop().cancel();
        self.0.ended().await;
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.0.soft_stop().cancel();
        self.0.hard_stop().cancel();
    }
}

/// The run, once it has ended.
pub async fn ended(service: &Service, run_id: &str) -> Value {
    eventually("the run ends", || async {
        let answer = service.get(&format!("/api/v1/runs/{run_id}")).await;
        // On a machine that has too much to do, the database may be found to be silent.
        let run = if answer.status == 503 { return None } else { answer.expect(200) };
        ["COMPLETED", "FAILED", "CANCELLED"].iter().any(|status| run["status"] == *status).then_some(run)
    })
    .await
}

pub async fn steps(service: &Service, run_id: &str) -> Vec<Value> {
    let steps = service.get(&format!("/api/v1/runs/{run_id}/steps")).await.expect(200);
    steps.as_array().expect("an array").clone()
}

/// `step status` of each attempt.
pub async fn attempts(service: &Service, run_id: &str) -> Vec<String> {
    let text = |step: &Value, name: &str| step[name].as_str().expect("text").to_owned();
    steps(service, run_id)
        .await
        .iter()
        .map(|step| format!("{} {}", text(step, "step_id"), text(step, "status")))
        .collect()
}

/// contract/examples.md, §1: the definition, the input, what the agents see, what comes out.
#[sqlx::test(migrator = "MIGRATOR")]
async fn the_reference_example_runs_from_create_to_completed(pool: PgPool) {
    let service = Service::start(&pool);
    let _executor = Executor::start(&service);
    let (glossary, glossary_url) = Agent::start(|_, call| completed(call, "Minimum members needed to decide.")).await;
    let (proofreader, proofreader_url) = Agent::start(|_, call| completed(call, "fine")).await;
    let with_token = json!({"name": "glossary", "url": glossary_url, "auth_type": "bearer",
        "auth_config": {"token": "s3cret"}, "timeout_ms": 5000, "retry_config": {"max_retries": 2, "initial_delay_ms": 200}});
    service.post("/api/v1/agents", &with_token).await.expect(201);
    service.agent("proofreader", &proofreader_url).await;
    let definition = json!({"name": "define-and-check", "start_step": "step-define", "steps": {
        "step-define": {"id": "step-define", "agent_name": "glossary", "next_step": "step-check",
            "input_mapping": {"term": "${workflow.input.term}", "lang": "${workflow.input.opts.lang}"}},
        "step-check": {"id": "step-check", "agent_name": "proofreader", "next_step": null,
            "input_mapping": {"text": "Check: ${step-define.output.text}"}}}});
    let workflow = service.post("/api/v1/workflows", &definition).await.expect(201);
    let path = format!("/api/v1/workflows/{}/execute", workflow["id"].as_str().expect("an id"));
    let input = json!({"input_data": {"term": "quorum", "opts": {"lang": "en"}}});
    let headers = [("x-correlation-id", "demo-1"), ("content-type", "application/json")];
    let run = service.send("POST", &path, &headers, input.to_string()).await.expect(202);
    let run_id = run["run_id"].as_str().expect("an id");

    let run = ended(&service, run_id).await;
    assert_eq!((&run["status"], &run["error_message"]), (&json!("COMPLETED"), &json!(null)));
    assert!(run["completed_at"].is_string());
    let rows = steps(&service, run_id).await;
    assert_eq!(attempts(&service, run_id).await, ["step-define COMPLETED", "step-check COMPLETED"]);
    assert_eq!(rows[0]["step_name"], "glossary");
    let output = &rows[0]["output_data"];
    assert_eq!(output["text"], "Minimum members needed to decide.");
    assert_eq!(
        (&output["response"], &output["context_id"], &output["task_id"]),
        (&json!("done"), &json!("ctx-4"), &json!("srv-17"))
    );
    assert_eq!(output["score"], 0.93);
    assert_eq!(rows[1]["input_data"], json!({"text": "Check: Minimum members needed to decide."}));

    let [call] = &glossary.calls()[..] else { panic!("one call") };
    assert_eq!(
        (&call.headers["authorization"], &call.headers["x-correlation-id"]),
        (&"Bearer s3cret".parse().expect("it"), &"demo-1".parse().expect("it"))
    );
    assert_eq!((&call.body["jsonrpc"], &call.body["method"]), (&json!("2.0"), &json!("message/send")));
    assert_eq!(serde_json::from_str::<Value>(call.text()).expect("JSON"), json!({"term": "quorum", "lang": "en"}));
    assert_eq!(proofreader.calls()[0].text(), "Check: Minimum members needed to decide.");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_failing_step_is_tried_as_its_agent_says_and_a_retry_does_not_repeat_what_is_done(pool: PgPool) {
    let service = Service::start(&pool);
    let _executor = Executor::start(&service);
    let (first, first_url) = Agent::start(shouting).await;
    let is_mended = Arc::new(AtomicBool::new(false));
    let mended = Arc::clone(&is_mended);
    let (second, second_url) = Agent::start(move |_, call| {
        if mended.load(Ordering::Relaxed) {
            completed(call, "fine")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "overloaded").into_response()
        }
    })
    .await;
    service.agent("first", &first_url).await;
    let patient = json!({"name": "second", "url": second_url,
        "retry_config": {"max_retries": 3, "initial_delay_ms": 100, "max_delay_ms": 1000}});
    service.post("/api/v1/agents", &patient).await.expect(201);
    let workflow = service.chain("pair", &["first", "second"]).await;
    let run_id = service.execute(workflow["id"].as_str().expect("an id")).await;

    let run = ended(&service, &run_id).await;
    assert_eq!(run["status"], "FAILED");
    let message = run["error_message"].as_str().expect("a message");
    assert!(message.contains("s1") && message.contains("503"), "{message}");
    assert_eq!(second.calls().len(), 3);
    let ids: std::collections::HashSet<String> =
        second.calls().iter().map(|call| call.body["id"].to_string()).collect();
    assert_eq!(ids.len(), 3, "each attempt has an id of its own");
    let rows = steps(&service, &run_id).await;
    let time = |row: &Value, name: &str| row[name].as_str()?.parse::<chrono::DateTime<chrono::Utc>>().ok();
    let pauses: Vec<_> = rows
        .iter()
        .map(|row| Some((time(row, "next_attempt_at")? - time(row, "completed_at")?).num_milliseconds()))
        .collect();
    assert!(matches!(pauses[..], [None, Some(0..=100), Some(0..=200), None]), "{pauses:?}");

    is_mended.store(true, Ordering::Relaxed);
    service.post(&format!("/api/v1/runs/{run_id}/retry"), &json!({})).await.expect(202);
    let run = ended(&service, &run_id).await;
    assert_eq!((&run["status"], &run["error_message"]), (&json!("COMPLETED"), &json!(null)));
    assert_eq!((first.calls().len(), second.calls().len()), (1, 4));
    assert_eq!(steps(&service, &run_id).await.last().expect("a step")["input_data"], json!({"text": "HELLO"}));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_list_says_which_step_of_a_run_is_tried_again_and_when(pool: PgPool) {
    let service = Service::start(&pool);
    let _executor = Executor::start(&service);
    let (_, fine_url) = Agent::start(shouting).await;
    let busy = |_, _: &Call| (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "600")], "busy").into_response();
    let (_, busy_url) = Agent::start(busy).await;
    service.agent("fine", &fine_url).await;
    let patient = json!({"name": "busy", "url": busy_url,
        "retry_config": {"max_retries": 3, "initial_delay_ms": 100, "max_delay_ms": 1000}});
    service.post("/api/v1/agents", &patient).await.expect(201);
    let workflow = service.chain("pair", &["fine", "busy"]).await;
    let run_id = service.execute(workflow["id"].as_str().expect("an id")).await;
    let listed = async || service.get("/api/v1/runs?status=RUNNING,CANCELLED").await.expect(200)["items"][0].clone();
    let run =
        eventually("the step waits", async || Some(listed().await).filter(|run| run["retrying"].is_object())).await;
    let row = steps(&service, &run_id).await[1].clone();
    let message = row["error_message"].as_str().expect("a message");
    assert!(message.contains("503"), "{message}");
    let expected = json!({"step_id": "s1", "agent_name": "busy", "attempts": 1, "next_attempt_at": row["next_attempt_at"],
        "error_message": message});
    assert_eq!(run["retrying"], expected);
    service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    assert!(listed().await.get("retrying").is_none());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_wrong_with_an_agent_or_a_plan_is_said_in_the_runs_error(pool: PgPool) {
    let service = Service::start(&pool);
    let _executor = Executor::start(&service);
    let (_, error_url) = Agent::start(|_, call| {
        let error = json!({"code": -32001, "message": "no such skill"});
        Json(json!({"jsonrpc": "2.0", "id": call.body["id"], "error": error})).into_response()
    })
    .await;
    let (nonsense, nonsense_url) = Agent::start(|_, _| "not json".into_response()).await;
    let (slow, slow_url) = Agent::start(shouting).await;
    slow.hold();
    let (_, odd_url) = Agent::start(|_, call| completed(call, "a\u{0}b")).await;
    let once = json!({"max_retries": 1, "initial_delay_ms": 100, "max_delay_ms": 1000});
    for (name, url) in [
        ("erring", error_url.as_str()),
        ("talking", &nonsense_url),
        ("slow", &slow_url),
        ("gone", "http://127.0.0.1:1/"),
        ("odd", &odd_url),
    ] {
        let agent = json!({"name": name, "url": url, "timeout_ms": 1000, "retry_config": once});
        service.post("/api/v1/agents", &agent).await.expect(201);
    }
    let mut runs = Vec::new();
    for (agent, expected) in
        [("erring", "no such skill"), ("talking", ""), ("slow", "1000 ms"), ("gone", ""), ("odd", "")]
    {
        let workflow = service.chain(&format!("with-{agent}"), &[agent]).await;
        runs.push((agent, service.execute(workflow["id"].as_str().expect("an id")).await, expected));
    }
    let missing = json!({"name": "missing", "start_step": "a", "steps": {
        "a": {"id": "a", "agent_name": "gone", "input_mapping": {"x": "${workflow.input.nowhere.deep}"}}}});
    let workflow = service.post("/api/v1/workflows", &missing).await.expect(201);
    runs.push(("a", service.execute(workflow["id"].as_str().expect("an id")).await, "nowhere"));

    for (name, run_id, expected) in runs {
        let run = ended(&service, &run_id).await;
        let message = run["error_message"].as_str().unwrap_or_default();
        if name == "odd" && run["status"] == "COMPLETED" {
            continue;
        }
        assert_eq!(run["status"], "FAILED", "{name}");
        assert!(message.len() > 10 && message.contains(expected), "{name}: {message}");
        assert!(!message.contains("::") && !message.contains("sqlx"), "{name}: {message}");
    }
    // An answer that is no JSON is final: repeating the call would not mend it.
    assert_eq!(nonsense.calls().len(), 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_is_cancelled_before_and_during_its_execution(pool: PgPool) {
    let service = Service::start(&pool);
    let (agent, url) = Agent::start(shouting).await;
    agent.hold();
    service.agent("slow", &url).await;
    let workflow = service.chain("slow", &["slow", "slow"]).await;
    let workflow_id = workflow["id"].as_str().expect("an id");
    let before = service.execute(workflow_id).await;
    service.post(&format!("/api/v1/runs/{before}/cancel"), &json!({"reason": "wrong term"})).await.expect(200);

    let _executor = Executor::start(&service);
    let during = service.execute(workflow_id).await;
    eventually("the agent is called", || async { (!agent.calls().is_empty()).then_some(()) }).await;
    let cancelled = service.post(&format!("/api/v1/runs/{during}/cancel"), &json!({})).await.expect(200);
    assert_eq!((&cancelled["status"], &cancelled["cancelled_by"]), (&json!("CANCELLED"), &json!("system")));
    // The call that was under way may end now; nothing comes of it.
    agent.0.gate.add_permits(100);
    let third = service.execute(workflow_id).await;
    assert_eq!(ended(&service, &third).await["status"], "COMPLETED");

    let run = service.get(&format!("/api/v1/runs/{during}")).await.expect(200);
    assert_eq!(run["status"], "CANCELLED");
    assert_eq!(attempts(&service, &during).await, ["s0 FAILED"]);
    let run = service.get(&format!("/api/v1/runs/{before}")).await.expect(200);
    assert_eq!((&run["status"], &run["error_message"]), (&json!("CANCELLED"), &json!("Cancelled: wrong term")));
    assert_eq!(attempts(&service, &before).await, Vec::<String>::new());
    // One call of the cancelled run, two of the third.
    assert_eq!(agent.calls().len(), 3);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn runs_of_an_executor_that_stops_go_on_with_another_at_once(pool: PgPool) {
    let service = Service::start(&pool);
    let (first, first_url) = Agent::start(shouting).await;
    let (second, second_url) = Agent::start(shouting).await;
    second.hold();
    service.agent("first", &first_url).await;
    service.agent("second", &second_url).await;
    let workflow = service.chain("pair", &["first", "second", "first"]).await;
    let executor = Executor::start(&service);
    let run_id = service.execute(workflow["id"].as_str().expect("an id")).await;
    eventually("the second agent is called", || async { (!second.calls().is_empty()).then_some(()) }).await;
    let stopping = executor.stop();
    // What is under way may finish while the executor stops.
    second.0.gate.add_permits(100);
    stopping.await;
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM processes WHERE role = 'executor'")
        .fetch_one(&pool)
        .await
        .expect("a count");
    assert_eq!(left, 0);

    let _next = Executor::start(&service);
    assert_eq!(ended(&service, &run_id).await["status"], "COMPLETED");
    assert_eq!((first.calls().len(), second.calls().len()), (2, 1));
}

/// Plans that no stored definition holds: messages of other programs, with and without a row.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_message_of_another_program_is_executed(pool: PgPool) {
    let service = Service::start(&pool);
    let _executor = Executor::start(&service);
    let (agent, url) = Agent::start(shouting).await;
    service.agent("worker", &url).await;
    let plan = json!({"workflow_id": "wf-x-1", "name": "x", "version": "1", "start_step": "a", "steps": {
        "a": {"id": "a", "agent_name": "worker", "next_step": null, "input_mapping": {"text": "${workflow.input.t}"}}}});
    let producer: rdkafka::producer::FutureProducer =
        workflow_api::kafka::client_config(&service.config.kafka).create().expect("valid settings");
    workflow_api::kafka::topics::ensure(&service.config.kafka).await.expect("topics");
    for value in
        [json!({"nonsense": true}), json!({"run_id": "ext-1", "workflow_plan": plan, "input_data": {"t": "hi"}})]
    {
        let (key, payload) = ("ext-1".to_owned(), value.to_string());
        let record =
            rdkafka::producer::FutureRecord::to(&service.config.kafka.execution_topic).key(&key).payload(&payload);
        producer.send(record, std::time::Duration::from_secs(30)).await.expect("sent");
    }
    let run = eventually("the run has a row", || async {
        let answer = service.get("/api/v1/runs/ext-1").await;
        (answer.status == 200).then(|| answer.json())
    })
    .await;
    assert_eq!((&run["workflow_id"], &run["workflow_name"]), (&json!("wf-x-1"), &json!("x")));
    assert_eq!(ended(&service, "ext-1").await["status"], "COMPLETED");
    assert_eq!(agent.calls()[0].text(), "hi");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_retry_can_name_the_step_to_go_on_from(pool: PgPool) {
    let service = Service::start(&pool);
    let _executor = Executor::start(&service);
    let (agent, url) = Agent::start(shouting).await;
    let (last, last_url) = Agent::start(|number, call| {
        let answer = completed(call, "fine");
        if number == 0 { (StatusCode::BAD_REQUEST, "not yet").into_response() } else { answer }
    })
    .await;
    service.agent("worker", &url).await;
    service.agent("last", &last_url).await;
    let workflow = service.chain("four", &["worker", "worker", "worker", "last"]).await;
    let run_id = service.execute(workflow["id"].as_str().expect("an id")).await;
    assert_eq!(ended(&service, &run_id).await["status"], "FAILED");
    assert_eq!((agent.calls().len(), last.calls().len()), (3, 1));

    let path = format!("/api/v1/runs/{run_id}/retry");
    let unknown = service.post(&path, &json!({"resume_from_step": "s9"})).await;
    assert_eq!(unknown.field_errors(), ["body.resume_from_step value_error"]);
    service.post(&path, &json!({"resume_from_step": "s1"})).await.expect(202);
    assert_eq!(ended(&service, &run_id).await["status"], "COMPLETED");
    let repeated =
        ["s0 COMPLETED", "s1 COMPLETED", "s2 COMPLETED", "s3 FAILED", "s1 COMPLETED", "s2 COMPLETED", "s3 COMPLETED"];
    assert_eq!(attempts(&service, &run_id).await, repeated);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_goes_on_from_a_named_step_without_what_failed_before_it(pool: PgPool) {
    let service = Service::start(&pool);
    let _executor = Executor::start(&service);
    let (broken, broken_url) = Agent::start(|_, _| (StatusCode::BAD_REQUEST, "never").into_response()).await;
    let (agent, url) = Agent::start(shouting).await;
    service.agent("broken", &broken_url).await;
    service.agent("worker", &url).await;
    let step = |id: &str, agent: &str, next: Value| json!({"id": id, "agent_name": agent, "next_step": next, "input_mapping": {"text": "${workflow.input.text}"}});
    let steps = json!({"s0": step("s0", "broken", json!("s1")), "s1": step("s1", "worker", Value::Null)});
    let workflow = json!({"name": "w", "start_step": "s0", "steps": steps});
    let workflow = service.post("/api/v1/workflows", &workflow).await.expect(201);
    let run_id = service.execute(workflow["id"].as_str().expect("an id")).await;
    assert_eq!(ended(&service, &run_id).await["status"], "FAILED");
    let path = format!("/api/v1/runs/{run_id}/retry");
    service.post(&path, &json!({"resume_from_step": "s1"})).await.expect(202);
    assert_eq!(ended(&service, &run_id).await["status"], "COMPLETED");
    assert_eq!(attempts(&service, &run_id).await, ["s0 FAILED", "s1 COMPLETED"]);
    assert_eq!((broken.calls().len(), agent.calls().len()), (1, 1));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_log_has_dispatch_attempts_and_agent_calls_in_their_order(pool: PgPool) {
    let service = Service::start(&pool);
    let _executor = Executor::start(&service);
    let (_, url) = Agent::start(shouting).await;
    let (_, late_url) = Agent::start(|number, call| match number {
        0 => (StatusCode::SERVICE_UNAVAILABLE, "overloaded").into_response(),
        _ => completed(call, "fine"),
    })
    .await;
    service.agent("worker", &url).await;
    for (name, url) in [("late", late_url.as_str()), ("gone", "http://127.0.0.1:1/")] {
        let agent = json!({"name": name, "url": url, "auth_type": "bearer", "auth_config": {"token": "s3cret"},
            "retry_config": {"max_retries": if name == "late" { 2 } else { 1 }, "initial_delay_ms": 100}});
        service.post("/api/v1/agents", &agent).await.expect(201);
    }
    let workflow = service.chain("logged", &["worker", "late", "gone"]).await;
    let run_id = service.execute(workflow["id"].as_str().expect("an id")).await;
    ended(&service, &run_id).await;
    let log = service.get(&format!("/api/v1/runs/{run_id}/logs?page_size=100")).await.expect(200);
    let items = log["items"].as_array().expect("items");
    let lines: Vec<String> = items
        .iter()
        .map(|item| {
            let part = |name: &str| item[name].as_str().map_or_else(|| item[name].to_string(), str::to_owned);
            format!("{} {} {} {}", part("kind"), part("step_id"), part("http_status"), part("level"))
        })
        .collect();
    let expected = [
        "run.created null null info",
        "run.dispatched null null info",
        "run.started null null info",
        "attempt.started s0 null info",
        "agent.answered s0 200 info",
        "attempt.completed s0 null info",
        "attempt.started s1 null info",
        "agent.failed s1 503 warning",
        "attempt.failed s1 null warning",
        "attempt.started s1 null info",
        "agent.answered s1 200 info",
        "attempt.completed s1 null info",
        "attempt.started s2 null info",
        "agent.failed s2 null warning",
        "attempt.failed s2 null warning",
        "run.failed null null error",
    ];
    assert_eq!(lines, expected);
    assert!(items[4]["duration_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{}", items[4]);
    assert_eq!((&items[7]["detail"], &items[13]["detail"]), (&json!("http_5xx"), &json!("network")));
    assert!(!log.to_string().contains("s3cret") && !log.to_string().contains("HELLO"), "{log}");
}
