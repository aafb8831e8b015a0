//! The command `run`, a client of the service.

use std::{
    process::Output,
    sync::{Arc, Mutex},
};

use axum::{Json, Router};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::process::Command;

use crate::program::{Environment, eventually, free_port};

/// Exit code, stdout and stderr.
fn seen(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    (output.status.code().expect("an exit code"), text(&output.stdout), text(&output.stderr))
}

async fn run(environment: &Environment, arguments: &[&str]) -> (i32, String, String) {
    seen(&environment.run(&[&["run"], arguments].concat()).await)
}

/// Stores a workflow of one step.
async fn store(environment: &Environment, name: &str, mut step: Value) {
    step["id"] = "only".into();
    let workflow = json!({"name": name, "start_step": "only", "steps": {"only": step}});
    let answer = environment.post("/api/v1/workflows", &workflow).await.expect("an answer");
    assert_eq!(answer.status(), 201);
}

#[sqlx::test(migrations = false)]
async fn run_prints_the_output_and_its_exit_code_is_the_end_of_the_run(pool: PgPool) {
    let environment = Environment::new(&pool);
    let port = free_port().to_string();
    let _agent = environment.start(&["demo-agent", "--port", &port]);
    let _api = environment.serve().await;
    let _executor = environment.start(&["executor"]);
    environment.chain("shout it/loud", &[format!("http://127.0.0.1:{port}/upper")]).await;
    let upper = format!("http://127.0.0.1:{port}/upper");
    environment.chain("shout twice", &[upper.clone(), upper]).await;
    environment.chain("broken", &["http://127.0.0.1:9/".to_owned()]).await;
    store(&environment, "ask", json!({"type": "callback"})).await;

    let hello = r#"{"text": "hello"}"#;
    let (code, output, log) = run(&environment, &["shout it/loud", hello, "--wait"]).await;
    assert_eq!(code, 0, "{log}");
    let text = |output: &str| serde_json::from_str::<Value>(output).expect("one line of JSON")["text"].clone();
    assert_eq!((text(&output), output.lines().count()), ("HELLO".into(), 1));
    for expected in
        ["of shout it/loud\n", "INFO    Run created", "Step 's0': attempt completed", "INFO    Run completed"]
    {
        assert!(log.contains(expected), "{expected}: {log}");
    }
    let arguments = ["run", "shout it/loud", "-", "--wait", "--quiet", "--priority", "9"];
    let (code, output, log) = seen(&environment.run_with_input(&arguments, hello).await);
    assert_eq!((code, text(&output), log.as_str()), (0, "HELLO".into(), ""));

    let (code, output, log) = run(&environment, &["broken", "--wait", "--quiet"]).await;
    assert_eq!((code, output.as_str()), (3, ""));
    assert!(log.starts_with("workflow-api: run run-") && log.contains(" is FAILED: "), "{log}");

    let limited = ["shout twice", hello, "--wait", "--quiet", "--limit", "calls=1", "--limit", "cost=1.5"];
    let (code, _, log) = run(&environment, &limited).await;
    assert_eq!(code, 3);
    assert!(log.contains("budget_exceeded") && log.contains("limits.calls"), "{log}");

    let (code, output, log) = run(&environment, &["ask", "--wait", "--timeout", "0"]).await;
    assert_eq!((code, output.as_str()), (5, ""));
    assert!(log.ends_with("has not ended after 0 s; it continues"), "{log}");

    // Without --wait only the id is printed, and a repeat with the same key finds the same run.
    let (code, id, log) = run(&environment, &["ask", "--idempotency-key", "one"]).await;
    assert_eq!((code, log.as_str()), (0, ""));
    assert_eq!(environment.get(&format!("/api/v1/runs/{id}")).await["workflow_name"], "ask");
    let mut waiting = environment.start(&["run", "ask", "--idempotency-key", "one", "--wait"]);
    eventually("the run is shown", async || waiting.log().contains("attempt waits").then_some(())).await;
    let answer = environment.post(&format!("/api/v1/runs/{id}/cancel"), &json!({"reason": "a test"})).await;
    assert_eq!(answer.expect("an answer").status(), 200);
    assert_eq!(waiting.exit_code().await, 4);
    assert!(waiting.log().contains(&format!("run {id} is CANCELLED: Cancelled: a test")), "{}", waiting.log());
}

#[sqlx::test(migrations = false)]
async fn run_goes_on_waiting_while_the_service_is_restarted(pool: PgPool) {
    let environment = Environment::new(&pool);
    let mut api = environment.serve().await;
    store(&environment, "ask", json!({"type": "callback"})).await;
    let _executor = environment.start(&["executor"]);
    let mut waiting = environment.start(&["run", "ask", "--wait"]);
    eventually("the run waits", async || waiting.log().contains("attempt waits").then_some(())).await;
    api.kill().await;
    eventually("the client has noticed", async || waiting.log().contains("trying again").then_some(())).await;
    let _api = environment.serve().await;
    let runs = environment.get("/api/v1/runs").await;
    let id = runs["items"][0]["id"].as_str().expect("an id");
    let open = environment.get(&format!("/api/v1/runs/{id}/callbacks")).await;
    let path = open[0]["url"].as_str().expect("a URL").split_once("/api/").expect("a path").1.to_owned();
    let answer = environment.post(&format!("/api/{path}"), &json!({"said": 1})).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(waiting.exit_code().await, 0, "{}", waiting.log());
    let log = waiting.log();
    let count = |text: &str| log.matches(text).count();
    assert_eq!((count("Run created"), count("attempt waits"), count("Run completed")), (1, 1, 1), "{log}");
    assert!(log.trim_end().ends_with(r#"{"said": 1}"#) || log.trim_end().ends_with(r#"{"said":1}"#), "{log}");
}

#[tokio::test]
async fn run_repeats_a_start_that_was_not_answered_with_the_same_idempotency_key() {
    let keys: Arc<Mutex<Vec<HeaderValue>>> = Arc::default();
    let handle = {
        let keys = Arc::clone(&keys);
        async move |headers: HeaderMap| {
            let mut keys = keys.lock().expect("no panic");
            keys.push(headers["idempotency-key"].clone());
            if keys.len() < 3 {
                return (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "0")], Json(json!({"detail": "Busy"})));
            }
            (StatusCode::ACCEPTED, [("location", "/")], Json(json!({"run_id": "run-1", "status": "PENDING"})))
        }
    };
    let router = Router::new().route("/api/v1/workflow-names/w/execute", axum::routing::post(handle));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let output = Command::new(env!("CARGO_BIN_EXE_workflow-api"))
        .args(["run", "w"])
        .env_clear()
        .env("WORKFLOW_API_URL", url)
        .output()
        .await
        .expect("the program starts");
    let (code, id, log) = seen(&output);
    assert_eq!((code, id.as_str()), (0, "run-1"), "{log}");
    assert_eq!(log.matches("503 Service Unavailable: Busy; trying again").count(), 2, "{log}");
    let keys = keys.lock().expect("no panic");
    assert!(keys.len() == 3 && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[sqlx::test(migrations = false)]
async fn run_tells_wrong_arguments_addresses_and_credentials_apart(pool: PgPool) {
    let environment = Environment::new(&pool).with("JWT_SECRET", "a-secret-of-the-tests-that-is-long-enough");
    let fails = async |environment: &Environment, arguments: &[&str], code: i32, reason: &str| {
        let (found, output, log) = run(environment, arguments).await;
        assert_eq!((found, output.as_str()), (code, ""), "{arguments:?}: {log}");
        assert!(log.contains(reason), "{arguments:?}: {log}");
        log
    };
    fails(&environment, &[], 2, "NAME").await;
    fails(&environment, &["w", "--timeout", "1"], 2, "--wait").await;
    fails(&environment, &["w", "--priority", "10"], 2, "--priority").await;
    fails(&environment, &["w", "--limit", "price=1"], 2, "tokens, cost, calls, steps, seconds").await;
    for (input, reason) in [("[]", "not a JSON object"), ("{", "not JSON"), ("@/no/file", "/no/file")] {
        fails(&environment, &["w", input], 1, reason).await;
    }
    fails(&environment, &["w", "--url", "ftp://host"], 1, "--url: an http or https URL").await;
    let log = fails(&environment, &["w", "--url", "http://me:hunter2@host"], 1, "--url: a URL without user").await;
    assert!(!log.contains("hunter2"), "{log}");
    fails(&environment, &["w"], 1, "cannot connect to the API").await;

    let _api = environment.serve().await;
    fails(&environment, &["w"], 1, "401 Unauthorized: A bearer token or an API key is required").await;
    let token = seen(&environment.run(&["token"]).await).1;
    let with_token = environment.clone().with("WORKFLOW_API_TOKEN", &token);
    // Authenticated: there is no such workflow.
    let not_found = "404 Not Found: Workflow not found";
    fails(&with_token, &["w"], 1, not_found).await;
    let other_prefix = format!("{}/elsewhere", environment.url);
    fails(&with_token.clone().with("WORKFLOW_API_URL", &other_prefix), &["w"], 1, "/elsewhere/workflow-names/w").await;
    fails(&with_token, &["w", "--url", &format!("{}/", environment.url)], 1, not_found).await;

    let key = seen(&environment.run(&["api-key", "--name", "client"]).await).1;
    let file = std::env::temp_dir().join(format!("client-key-{}", uuid::Uuid::new_v4()));
    std::fs::write(&file, format!("{key}\n")).expect("a file");
    let path = file.to_str().expect("UTF-8");
    // The option counts before the environment, which must not name two.
    fails(&with_token.clone().with("WORKFLOW_API_TOKEN", "wrong"), &["w", "--api-key-file", path], 1, not_found).await;
    fails(&environment.clone().with("WORKFLOW_API_KEY_FILE", path), &["w"], 1, not_found).await;
    fails(&with_token.with("WORKFLOW_API_KEY", &key), &["w"], 1, "WORKFLOW_API_KEY and WORKFLOW_API_TOKEN").await;
    fails(&environment, &["w", "--token-file", path], 1, "401").await;
    std::fs::remove_file(&file).expect("it is there");

    store_as(&environment, &token, "typed").await;
    let with_token = environment.clone().with("WORKFLOW_API_TOKEN", &token);
    let log = fails(&with_token, &["typed", r#"{"n": "1"}"#], 1, "422 Unprocessable").await;
    assert!(log.contains("\n  body.input_data.n: "), "{log}");
}

/// Stores a workflow whose input has a member `n`, a number.
async fn store_as(environment: &Environment, token: &str, name: &str) {
    let schema = json!({"type": "object", "properties": {"n": {"type": "number"}}});
    let step = json!({"id": "only", "type": "wait", "wait_config": {"duration_seconds": 1}});
    let workflow = json!({"name": name, "start_step": "only", "steps": {"only": step}, "input_schema": schema});
    let request = reqwest::Client::new().post(format!("{}/api/v1/workflows", environment.url)).bearer_auth(token);
    assert_eq!(request.json(&workflow).send().await.expect("an answer").status(), 201);
}
