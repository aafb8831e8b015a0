//! One attempt is one request, whatever happens on the wire. An agent's `Retry-After` sets the time of the next one.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Json, response::IntoResponse};
use chrono::{DateTime, TimeDelta, Utc};
use http::StatusCode;
use serde_json::json;
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use workflow_api::{clock::Clock, db::migrations::MIGRATOR};

use crate::{
    path::{Agent, attempts, completed, ended},
    service::{eventually, passing},
    steps::World,
};

/// Reads one request with a body of announced length; `None` at the end of the connection.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            return Some(text);
        }
    }
}

/// A connection that is kept after the first answer and closed after the second request has been read is where clients
/// like to repeat a request on their own.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_request_whose_connection_is_closed_is_not_repeated(pool: PgPool) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let requests: Arc<Mutex<Vec<(usize, String)>>> = Arc::default();
    let seen = Arc::clone(&requests);
    tokio::spawn(async move {
        for number in 0.. {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                while let Some(text) = request(&mut stream).await {
                    let count = {
                        let mut seen = seen.lock().expect("no panic");
                        seen.push((number, text));
                        seen.len()
                    };
                    if count > 1 {
                        return;
                    }
                    let body = r#"{"jsonrpc":"2.0","result":{"id":"t","status":{"state":"completed"}}}"#;
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    stream.write_all(answer.as_bytes()).await.expect("a reader");
                }
            });
        }
    });
    let world = World::start(&pool, &[("a", &url)]).await;
    let steps = json!({
        "one": {"id": "one", "agent_name": "a", "next_step": "two", "input_mapping": {"text": "1"}},
        "two": {"id": "two", "agent_name": "a", "input_mapping": {"text": "2"}}});
    let failed = world.run("one", &steps, &json!({})).await;
    assert!(
        failed.run["error_message"].as_str().is_some_and(|text| text.contains("the connection failed")),
        "{}",
        failed.run
    );
    let seen = requests.lock().expect("no panic").clone();
    assert_eq!(seen.len(), 2, "one request for each attempt");
    assert_eq!((seen[0].0, seen[1].0), (0, 0), "the connection is kept from step to step");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_agent_says_when_it_wants_to_be_asked_again(pool: PgPool) {
    let clock = Clock::stopped();
    let world = World::start_by(&pool, &[], &[], clock.clone()).await;
    // A date has whole seconds, so that it is between one and two seconds away.
    let date = |at: DateTime<Utc>| (at + TimeDelta::seconds(2)).format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    for name in ["seconds", "date"] {
        let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let (seen, agents_clock) = (Arc::clone(&times), clock.clone());
        let (agent, url) = Agent::start(move |number, call| {
            seen.lock().expect("no panic").push(agents_clock.instant());
            if number > 0 {
                return completed(call, "fine");
            }
            let wanted = if name == "date" { date(agents_clock.now()) } else { "1".to_owned() };
            (StatusCode::TOO_MANY_REQUESTS, [("retry-after", wanted)], Json(json!({}))).into_response()
        })
        .await;
        let patient = json!({"name": name, "url": url,
            "retry_config": {"max_retries": 2, "initial_delay_ms": 100, "max_delay_ms": 1000}});
        world.service.post("/api/v1/agents", &patient).await.expect(201);
        let steps = json!({"ask": {"id": "ask", "agent_name": name, "input_mapping": {"text": "x"}}});
        let run_id = world.begin("ask", &steps, &json!({})).await;
        eventually("the first attempt has failed", async || {
            (attempts(&world.service, &run_id).await == ["ask FAILED"]).then_some(())
        })
        .await;
        let done = passing(&clock, Duration::from_millis(250), world.end(run_id)).await.0;
        done.output();
        assert_eq!(done.rows.len(), 2);
        let times = times.lock().expect("no panic");
        assert!(times[1] - times[0] >= Duration::from_secs(1), "{name}: {:?}", times[1] - times[0]);
        let ids: Vec<_> = agent.calls().iter().map(|call| call.headers["idempotency-key"].clone()).collect();
        assert_ne!(ids[0], ids[1], "each attempt has its own");
    }
}

/// The run's time ends first: an agent that wants an hour does not hold the run for an hour.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_wish_for_a_long_pause_does_not_outlast_the_run(pool: PgPool) {
    let (_agent, url) = Agent::start(|_, _| {
        (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "3600")], Json(json!({}))).into_response()
    })
    .await;
    let clock = Clock::stopped();
    let world = World::start_by(&pool, &[], &[("MAX_WORKFLOW_DURATION_MS", "60000")], clock.clone()).await;
    world.service.agent("a", &url).await;
    let workflow = world.service.chain("w", &["a"]).await;
    let run_id = world.service.execute(workflow["id"].as_str().expect("an id")).await;
    eventually("the first attempt has failed", async || {
        (attempts(&world.service, &run_id).await == ["s0 FAILED"]).then_some(())
    })
    .await;
    clock.advance(Duration::from_mins(1));
    assert_eq!(ended(&world.service, &run_id).await["status"], "FAILED");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_answer_that_is_too_large_is_not_read(pool: PgPool) {
    let (_agent, url) = Agent::start(|_, call| completed(call, &"x".repeat(11 << 20))).await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let steps = json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": {"text": "x"}}});
    let failed = world.run("ask", &steps, &json!({})).await;
    assert!(failed.run["error_message"].as_str().is_some_and(|text| text.contains("larger than")), "{}", failed.run);
}
