//! Answers of agents as HTTP brings them: compressed, marked, pages instead of JSON, and with the agent's credentials.

use std::io::Write as _;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::{path::Agent, steps::World};

/// A world with these agents, each tried as often as it says, without circuit breakers.
async fn world(pool: &PgPool, agents: &[Value]) -> World {
    let world = World::start(pool, &[]).await;
    for agent in agents {
        let mut body = json!({"retry_config": {"max_retries": 1, "initial_delay_ms": 100, "max_delay_ms": 1000},
            "circuit_breaker_config": {"enabled": false}});
        body.as_object_mut().expect("an object").extend(agent.as_object().expect("members").clone());
        world.service.post("/api/v1/agents", &body).await.expect(201);
    }
    world
}

async fn run(world: &World, agent: &str, text: &str) -> crate::steps::Ended {
    let steps = json!({"ask": {"id": "ask", "agent_name": agent, "input_mapping": {"text": text}}});
    world.run("ask", &steps, &json!({})).await
}

/// Why the step failed.
async fn error(world: &World, agent: &str, text: &str) -> String {
    let ended = run(world, agent, text).await;
    assert_eq!(ended.run["status"], "FAILED", "{}", ended.run);
    ended.rows[0]["error_message"].as_str().expect("a message").to_owned()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).expect("memory");
    encoder.finish().expect("memory")
}

fn deflate(plain: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).expect("memory");
    encoder.finish().expect("memory")
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_compressed_answer_is_read_up_to_the_bound_of_its_plain_bytes(pool: PgPool) {
    let (agent, url) = Agent::start(|_, call| {
        let json = br#"{"a":1}"#;
        let (coding, body) = match call.body["text"].as_str().expect("a text") {
            "gzip" => ("gzip", gzip(json)),
            "deflate" => ("deflate", deflate(json)),
            "identity" => ("identity", json.to_vec()),
            "empty" => ("gzip", gzip(b"")),
            "nothing" => ("gzip", Vec::new()),
            "bomb" => ("gzip", gzip(&vec![b'0'; (10 << 20) + 1])),
            "corrupt" => ("gzip", json.to_vec()),
            "cut" => ("gzip", gzip(json)[..12].to_vec()),
            "twice" => ("gzip, gzip", gzip(&gzip(json))),
            other => (if other == "br" { "br" } else { "none" }, json.to_vec()),
        };
        ([("content-type", "application/json"), ("content-encoding", coding)], body).into_response()
    })
    .await;
    let world = world(&pool, &[json!({"name": "a", "url": url, "kind": "http"})]).await;
    for (text, expected) in [
        ("gzip", json!({"a": 1})),
        ("deflate", json!({"a": 1})),
        ("identity", json!({"a": 1})),
        ("empty", json!({})),
        ("nothing", json!({})),
    ] {
        assert_eq!(run(&world, "a", text).await.output(), &expected, "{text}");
    }
    let accepted = agent.calls()[0].headers["accept-encoding"].to_str().expect("ASCII").to_owned();
    assert!(accepted.contains("gzip") && accepted.contains("deflate") && !accepted.contains("br"), "{accepted}");
    for (text, expected) in [
        ("bomb", "agent 'a': the answer is larger than 10485760 bytes"),
        ("corrupt", "agent 'a': the answer cannot be decompressed"),
        ("cut", "agent 'a': the answer cannot be decompressed"),
        ("br", "agent 'a': the answer has the content coding br, which the request does not accept"),
        ("twice", "agent 'a': the answer has the content coding gzip, gzip, which the request does not accept"),
    ] {
        let error = error(&world, "a", text).await;
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_page_is_shown_and_a_byte_order_mark_is_not_read(pool: PgPool) {
    let (_agent, url) = Agent::start(|_, call| {
        let page = "<!DOCTYPE html>\n<html><title>Sign in</title>\nBearer s3cret-token";
        match call.body["text"].as_str() {
            Some("marked") => b"\xef\xbb\xbf{\"a\":1}".into_response(),
            Some("down") => (StatusCode::BAD_GATEWAY, [("content-type", "text/html")], page).into_response(),
            _ => ([("content-type", "text/html; charset=utf-8")], page).into_response(),
        }
    })
    .await;
    let with = |name: &str, config: Value| {
        json!({"name": name, "url": url, "kind": name, "config": config, "auth_type": "bearer",
            "auth_config": {"token": "s3cret-token"}})
    };
    let agents = [with("http", json!(null)), with("a2a", json!(null)), with("openai", json!({"model": "m"}))];
    let world = world(&pool, &agents).await;
    let shown = "it is text/html and begins with <title>Sign in</title> Bearer ***";
    for (agent, what) in [
        ("http", "the answer is not JSON that can be stored"),
        ("a2a", "the answer is not a JSON-RPC 2.0 response"),
        ("openai", "the answer is no chat completion"),
    ] {
        let expected = format!("agent '{agent}': {what}: JSON decode error at byte 0; {shown}");
        assert_eq!(error(&world, agent, "page").await, expected);
    }
    let expected = "agent 'http': HTTP 502: Bad Gateway, <title>Sign in</title> Bearer ***";
    assert_eq!(error(&world, "http", "down").await, expected);
    assert_eq!(run(&world, "http", "marked").await.output(), &json!({"a": 1}));
}

/// A part of a secret cannot be found any more.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_error_is_masked_before_it_is_cut(pool: PgPool) {
    const SECRET: &str = "s3cret-of-the-agent-0123456789";
    let said = |call: &crate::path::Call| {
        let before = call.body.to_string().split("pad ").nth(1).and_then(|rest| rest.split('"').next()?.parse().ok());
        format!("{}{SECRET} {}", "x".repeat(before.expect("a number")), "y".repeat(1000))
    };
    let (_agent, url) = Agent::start(move |_, call| {
        let said = said(call);
        match call.headers["x-kind"].to_str().expect("ASCII") {
            // Its key is the kind; the secret is in the query of its URL.
            "of-http" => (StatusCode::CONFLICT, Json(json!({"detail": said}))).into_response(),
            "of-a2a" => Json(json!({"jsonrpc": "2.0", "error": {"code": 1, "message": said}})).into_response(),
            _ => Json(json!({"error": {"message": said}})).into_response(),
        }
    })
    .await;
    let with = |kind: &str, config: Value| {
        json!({"name": kind, "kind": kind, "config": config, "url": format!("{url}?key={SECRET}"), "auth_type": "apikey",
            "auth_config": {"key": format!("of-{kind}"), "header_name": "X-Kind"}})
    };
    let agents = [with("http", json!(null)), with("a2a", json!(null)), with("openai", json!({"model": "m"}))];
    let world = world(&pool, &agents).await;
    for agent in ["http", "a2a", "openai"] {
        for pad in [240, 450] {
            let error = error(&world, agent, &format!("pad {pad}")).await;
            assert!(
                error.contains("***") && error.ends_with("y…") && !error.contains("s3cret"),
                "{agent} {pad}: {error}"
            );
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_models_error_in_a_success_is_repeated_as_its_code_says_and_one_of_money_is_not(pool: PgPool) {
    let (agent, url) = Agent::start(|number, call| {
        let error = |code: Value| json!({"error": {"message": "so be it", "code": code, "type": code}});
        let completion = || json!({"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]});
        let answer = |status, body: Value| -> Response { (status, Json(body)).into_response() };
        match (call.body["messages"][0]["content"].as_str(), number) {
            (Some("busy"), 0) => answer(StatusCode::OK, error(json!(429))),
            (Some("busy"), _) => answer(StatusCode::OK, completion()),
            _ => answer(StatusCode::TOO_MANY_REQUESTS, error(json!("insufficient_quota"))),
        }
    })
    .await;
    let retry = json!({"max_retries": 3, "initial_delay_ms": 100, "max_delay_ms": 1000});
    let members = json!({"name": "a", "url": url, "kind": "openai", "config": {"model": "m"}, "retry_config": retry});
    let world = world(&pool, &[members]).await;
    let busy = run(&world, "a", "busy").await;
    assert_eq!(busy.output()["text"], "yes");
    let first = busy.rows.iter().find(|row| row["status"] == "FAILED").expect("a failed attempt");
    assert_eq!(first["error_message"], "agent 'a': the answer is an error 429: so be it");
    let broke = run(&world, "a", "broke").await;
    assert_eq!(broke.rows[0]["error_message"], "agent 'a': HTTP 429: Too Many Requests, so be it");
    assert_eq!((broke.rows.len(), agent.calls().len()), (1, 3), "it is not tried again");
}
