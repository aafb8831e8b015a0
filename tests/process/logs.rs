//! The log of the services, as operators and log shippers read it: every line is JSON, the level changes while the
//! service runs, and a file has the same lines.

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::program::{Environment, eventually, free_port};

/// All lines as JSON.
#[track_caller]
fn lines(text: &str) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
    text.lines().map(parse).collect()
}

#[sqlx::test(migrations = false)]
async fn every_line_of_a_service_that_cannot_start_is_json(pool: PgPool) {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().map(|address| (taken, address.port().to_string())).expect("an address");
    for (name, value, cause) in [
        ("API_WORKERS", "many", "API_WORKERS"),
        ("LOG_LEVEL", "LOUD", "LOG_LEVEL"),
        ("API_PORT", taken.1.as_str(), "API_PORT"),
        ("LOG_FILE", "/nowhere/workflow-api.log", "LOG_FILE"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL"),
    ] {
        let output = Environment::new(&pool).with(name, value).run(&["serve"]).await;
        let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success() && errors.is_empty(), "{name}: {errors}");
        let lines = lines(&text);
        let is_cause = |line: &Value| line["level"] == "ERROR" && line["message"].to_string().contains(cause);
        assert!(lines.iter().any(is_cause), "{name}: {text}");
    }
}

#[sqlx::test(migrations = false)]
async fn the_level_changes_while_a_service_runs_and_is_reverted_after_a_time(pool: PgPool) {
    let port = free_port().to_string();
    let file = std::env::temp_dir().join(format!("workflow-api-test-{}.log", uuid::Uuid::new_v4()));
    let environment = Environment::new(&pool)
        .with("MANAGEMENT_PORT", &port)
        .with("METRICS_ACCESS", "open")
        .with("LOG_FILE", file.to_str().expect("UTF-8"));
    let api = environment.serve().await;
    let url = format!("http://127.0.0.1:{port}/log-level");
    let get = async || reqwest::get(&url).await.expect("an answer").json::<Value>().await.expect("JSON");
    let put = async |body: &Value| {
        let answer = reqwest::Client::new().put(&url).json(body).send().await.expect("an answer");
        (answer.status().as_u16(), answer.json::<Value>().await.expect("JSON"))
    };
    assert_eq!(get().await, json!({"filter": "INFO", "configured": "INFO", "reverts_at": null}));
    for wrong in [json!({"filter": "LOUD"}), json!({"filter": "INFO", "duration_seconds": 0}), json!([])] {
        let (status, body) = put(&wrong).await;
        assert!(status == 400 && body["detail"].is_string(), "{wrong}: {body}");
    }
    assert_eq!(get().await["filter"], "INFO", "nothing has changed");

    let request_lines = || lines(&api.log()).iter().filter(|line| line["logger"] == "api.request").count();
    let before = request_lines();
    assert_eq!(put(&json!({"filter": "INFO,api.request=OFF"})).await.0, 200);
    environment.get("/api/v1/agents").await;
    let (status, body) = put(&json!({"filter": "DEBUG", "duration_seconds": 1})).await;
    assert!(status == 200 && body["filter"] == "DEBUG" && body["reverts_at"].is_string(), "{body}");
    environment.get("/api/v1/agents").await;
    eventually("it is reverted", async || (get().await["filter"] == "INFO").then_some(())).await;
    assert_eq!(request_lines(), before + 1, "the first request was not logged, the second was");

    // The file has the same lines, and belongs to this process.
    let in_file = std::fs::read_to_string(&file).expect("a file");
    let log = api.log();
    let missing: Vec<&str> = in_file.lines().filter(|line| !log.contains(line)).collect();
    assert!(missing.is_empty() && in_file.lines().count() > 5, "{missing:?}");
    let second =
        environment.with("API_PORT", &free_port().to_string()).with("MANAGEMENT_PORT", &free_port().to_string());
    let output = second.run(&["serve"]).await;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && text.contains("another process writes it"), "{text}");
    std::fs::remove_file(file).expect("removed");
}

#[sqlx::test(migrations = false)]
async fn single_loggers_have_levels_of_their_own_from_the_start(pool: PgPool) {
    let port = free_port().to_string();
    let environment = Environment::new(&pool)
        .with("LOG_LEVEL", "WARNING,api.request=INFO,workflow_api::readiness=DEBUG")
        .with("MANAGEMENT_PORT", &port)
        .with("METRICS_ACCESS", "open");
    let api = environment.serve().await;
    environment.get("/api/v1/agents").await;
    let shown = reqwest::get(format!("http://127.0.0.1:{port}/log-level")).await.expect("an answer");
    let shown: Value = shown.json().await.expect("JSON");
    assert_eq!(shown["configured"], "WARNING,api.request=INFO,workflow_api::readiness=DEBUG");
    let is_at = |line: &Value, logger: &str, level: &str| line["logger"] == logger && line["level"] == level;
    eventually("both loggers write", async || {
        let lines = lines(&api.log());
        let requests = lines.iter().any(|line| is_at(line, "api.request", "INFO"));
        let readiness = lines.iter().any(|line| is_at(line, "readiness", "INFO"));
        (requests && readiness).then_some(())
    })
    .await;
    let others = |line: &Value| !is_at(line, "api.request", "INFO") && line["logger"] != "readiness";
    for line in lines(&api.log()).into_iter().filter(others) {
        assert!(line["level"] == "WARNING" || line["level"] == "ERROR", "{line}");
    }
    let refused = environment.with("LOG_LEVEL", "INFO,executor=LOUD").run(&["check", "config"]).await;
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && errors.contains("LOG_LEVEL") && errors.contains("LOUD"), "{errors}");
}

#[sqlx::test(migrations = false)]
async fn the_memory_of_a_process_is_told_on_its_management_port(pool: PgPool) {
    let port = free_port().to_string();
    let environment = Environment::new(&pool).with("MANAGEMENT_PORT", &port).with("METRICS_ACCESS", "open");
    let _api = environment.serve().await;
    let answer = reqwest::get(format!("http://127.0.0.1:{port}/memory")).await.expect("an answer");
    let memory: Value = answer.json().await.expect("JSON");
    let figure =
        |part: &str, name: &str| memory[part][name].as_u64().unwrap_or_else(|| panic!("{part}.{name}: {memory}"));
    assert!(figure("process", "resident") >= figure("process", "anonymous"), "{memory}");
    assert!(figure("process", "threads") > 1, "{memory}");
    // The allocator has less than the process, and its parts are its sum.
    let (arenas, mapped) = (figure("allocator", "in_arenas"), figure("allocator", "mapped"));
    assert_eq!(figure("allocator", "in_use") + figure("allocator", "free"), arenas + mapped, "{memory}");
    assert!(figure("allocator", "in_use") > 100_000 && figure("allocator", "arenas") > 0, "{memory}");
    let public = environment.get("/memory").await;
    assert!(public["process"].is_null(), "not on the public port: {public}");
}
