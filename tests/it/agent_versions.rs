//! Which version of A2A an agent is called in: by its card, its settings, its answers, and what other executors have seen.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    response::IntoResponse,
    routing::{get, post},
};
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::{
    agent_protocols::{CARD, card, done, dripping, method, methods, rpc, rpc_error, run, shown_when, with_card, world},
    path::{Agent, Executor},
    service::eventually,
    steps::World,
};

/// What an agent speaks, what is expected of it, and what it is asked by the first run and by the second.
type Case = (&'static str, Option<&'static str>, Value, &'static [&'static str], &'static [&'static str]);

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_other_version_is_tried_once_where_nothing_was_done(pool: PgPool) {
    let auto = || json!(null);
    let cases: [Case; 14] = [
        // Unknown method, and unknown version, in both directions.
        ("1.0", None, auto(), &["message/send", "SendMessage"], &["SendMessage"]),
        ("0.3", Some("1.0"), auto(), &["SendMessage", "message/send"], &["message/send"]),
        ("1.0 by -32009", None, auto(), &["message/send", "SendMessage"], &["SendMessage"]),
        ("1.0 by -32009 and 400", None, auto(), &["message/send", "SendMessage"], &["SendMessage"]),
        ("0.3 by -32009", Some("1.0"), auto(), &["SendMessage", "message/send"], &["message/send"]),
        // A stream is one more method that an agent may not know.
        (
            "1.0 without streams",
            Some("streams"),
            auto(),
            &["SendStreamingMessage", "SendMessage"],
            &["SendStreamingMessage", "SendMessage"],
        ),
        ("0.3", Some("streams"), auto(), &["SendStreamingMessage", "SendMessage", "message/send"], &["message/send"]),
        // Neither: once is enough.
        ("none", None, auto(), &["message/send", "SendMessage"], &["message/send", "SendMessage"]),
        // Something may have been done.
        ("500", None, auto(), &["message/send"], &["message/send"]),
        ("-32602", None, auto(), &["message/send"], &["message/send"]),
        ("nothing in time", None, auto(), &["message/send"], &["message/send"]),
        ("nothing in time", Some("1.0"), auto(), &["SendMessage"], &["SendMessage"]),
        // The settings decide.
        ("1.0", None, json!({"protocol": "0.3"}), &["message/send"], &["message/send"]),
        ("0.3", Some("0.3"), json!({"protocol": "1.0"}), &["SendMessage"], &["SendMessage"]),
    ];
    let (agent, url) = Agent::start_with(
        |url| {
            let card = card(url, &[("1.0", "JSONRPC", "1.0")], &json!({}));
            let mut streams = card.clone();
            streams["capabilities"]["streaming"] = true.into();
            Router::new()
                .route(&format!("/1{CARD}"), get(move || std::future::ready(Json(card))))
                .route(&format!("/streams{CARD}"), get(move || std::future::ready(Json(streams))))
        },
        |_, call| {
            let speaks = call.headers["x-speaks"].to_str().expect("ASCII");
            let is_1 = method(call).starts_with("Send");
            match speaks {
                "nothing in time" => dripping(),
                "1.0 without streams" if method(call) == "SendStreamingMessage" => rpc_error(call, -32601),
                "0.3 by -32009" if is_1 => rpc_error(call, -32009),
                "500" => (StatusCode::INTERNAL_SERVER_ERROR, rpc_error(call, -32601)).into_response(),
                "-32602" => rpc_error(call, -32602),
                "none" => rpc_error(call, -32601),
                "1.0 by -32009" if !is_1 => rpc_error(call, -32009),
                "1.0 by -32009 and 400" if !is_1 => (StatusCode::BAD_REQUEST, rpc_error(call, -32009)).into_response(),
                "0.3" if is_1 => rpc_error(call, -32601),
                "1.0" if !is_1 => rpc_error(call, -32601),
                _ => done(call),
            }
        },
    )
    .await;
    let world = World::start(&pool, &[]).await;
    for (number, (speaks, card, config, first, second)) in cases.into_iter().enumerate() {
        let name = format!("agent-{number}");
        let path = match card {
            Some("1.0") => "1",
            Some("streams") => "streams",
            _ => "without",
        };
        let time = if speaks == "nothing in time" { 1000 } else { 60_000 };
        let body = json!({"name": name, "url": format!("{url}{path}"), "config": config, "timeout_ms": time, "auth_type": "apikey",
            "circuit_breaker_config": {"enabled": false}, "auth_config": {"key": speaks, "header_name": "X-Speaks"},
            "retry_config": {"max_retries": 1, "initial_delay_ms": 100, "max_delay_ms": 1000}});
        world.service.post("/api/v1/agents", &body).await.expect(201);
        for expected in [first, second] {
            let before = agent.calls().len();
            let steps = json!({"ask": {"id": "ask", "agent_name": name, "input_mapping": {"text": "x"}}});
            world.run("ask", &steps, &json!({})).await;
            assert_eq!(methods(&agent)[before..], *expected, "{speaks} {card:?}");
        }
    }
    // The messages of both attempts have one id, and after an hour the card counts again.
    let calls = agent.calls();
    let id = |index: usize| calls[index].body["params"]["message"]["messageId"].clone();
    assert_eq!(id(0), id(1));
    let before = calls.len();
    world.service.clock.advance(Duration::from_mins(61));
    let steps = json!({"ask": {"id": "ask", "agent_name": "agent-1", "input_mapping": {"text": "x"}}});
    world.run("ask", &steps, &json!({})).await.output();
    assert_eq!(methods(&agent)[before..], ["SendMessage", "message/send"]);
}

/// Whatever was asked: some servers answer one version in the form of the other.
#[sqlx::test(migrator = "MIGRATOR")]
async fn answers_of_either_form_with_unknown_members_and_states_are_read(pool: PgPool) {
    let routes = |url: &str| {
        let card = card(url, &[("1.0", "JSONRPC", "1.0")], &json!({}));
        Router::new().route(&format!("/1{CARD}"), get(move || std::future::ready(Json(card))))
    };
    let (agent, url) = Agent::start_with(routes, |_, call| {
        let old = json!({"kind": "task", "id": "t", "odd": {"a": [1]}, "status": {"state": "pondering", "mood": 7}});
        let new = json!({"task": {"id": "t", "odd": null, "status": {"state": "TASK_STATE_PONDERING"}}, "odd": 1});
        let done = |part: Value, state: &str| {
            json!({"id": "t", "status": {"state": state}, "artifacts": [{"artifactId": "a", "parts": [part]}]})
        };
        match method(call) {
            "message/send" => rpc(call, &new),
            "SendMessage" => rpc(call, &old),
            "tasks/get" => rpc(call, &json!({"task": done(json!({"text": "new", "odd": 1}), "TASK_STATE_COMPLETED")})),
            _ => rpc(call, &done(json!({"kind": "text", "text": "old", "odd": 1}), "completed")),
        }
    })
    .await;
    let world = World::start(&pool, &[]).await;
    for (path, text, expected) in
        [("without", "new", ["message/send", "tasks/get"]), ("1", "old", ["SendMessage", "GetTask"])]
    {
        world.service.post("/api/v1/agents", &json!({"name": path, "url": format!("{url}{path}")})).await.expect(201);
        let before = agent.calls().len();
        let steps = json!({"ask": {"id": "ask", "agent_name": path, "input_mapping": {"text": "x"}}});
        assert_eq!(world.run("ask", &steps, &json!({})).await.output()["text"], text);
        assert_eq!(methods(&agent)[before..], expected);
    }
}

/// The settings say only in which version; the rest is in the card.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_version_that_is_fixed_is_spoken_as_the_card_says(pool: PgPool) {
    let routes = |url: &str| {
        let more = json!({"defaultInputModes": ["application/json"]});
        let mut both = card(url, &[("1", "JSONRPC", "1.0"), ("03", "JSONRPC", "0.3")], &more);
        both["supportedInterfaces"][0]["tenant"] = "tenant-7".into();
        let rest = card(url, &[("grpc", "GRPC", "1.0"), ("rest", "HTTP+JSON", "1.0")], &more);
        let answer = json!({"message": {"messageId": "m", "role": "ROLE_AGENT", "parts": [{"text": "by REST"}]}});
        with_card(both)
            .route(&format!("/by-rest{CARD}"), get(move || std::future::ready(Json(rest))))
            .route("/rest/message:send", post(move || std::future::ready(Json(answer))))
    };
    let (agent, url) = Agent::start_with(routes, |_, call| done(call)).await;
    let world = World::start(&pool, &[]).await;
    for (name, path, version, text) in [
        ("new", "", "1.0", "by 1.0"),
        ("old", "", "0.3", "by 0.3"),
        ("rest", "by-rest", "1.0", "by REST"),
        // What a card does not offer is tried all the same: cards are hints.
        ("other", "by-rest", "0.3", "by 0.3"),
    ] {
        let before = agent.calls().len();
        let body = json!({"name": name, "url": format!("{url}{path}"), "config": {"protocol": version}});
        let id = world.service.post("/api/v1/agents", &body).await.expect(201)["id"].clone();
        let steps = json!({"ask": {"id": "ask", "agent_name": name, "input_mapping": {"n": 1}}});
        assert_eq!(world.run("ask", &steps, &json!({})).await.output()["text"], text, "{name}");
        if let Some(call) = agent.calls().get(before) {
            let is_new = version == "1.0";
            let (tenant, part) = if is_new {
                (json!("tenant-7"), json!({"data": {"n": 1}, "mediaType": "application/json"}))
            } else {
                (Value::Null, json!({"kind": "text", "text": "{\"n\":1}"}))
            };
            assert_eq!((&call.body["params"]["tenant"], &call.body["params"]["message"]["parts"][0]), (&tenant, &part));
        }
        // A call does not wait until the card is stored.
        let path = format!("/api/v1/agents/{}", id.as_str().expect("an id"));
        eventually("the card is shown", async || {
            let shown = world.service.get(&path).await.expect(200);
            (shown["card"]["signature"] == "absent" && shown["protocol_seen"] == version).then_some(())
        })
        .await;
    }
}

/// What the card says, and in which version the agent answers.
#[sqlx::test(migrator = "MIGRATOR")]
async fn the_next_executor_does_not_try_the_version_that_was_refused(pool: PgPool) {
    for (path, methods_of_first) in
        [("1", ["SendMessage", "message/send"]), ("without", ["message/send", "SendMessage"])]
    {
        let speaks = methods_of_first[1];
        let (agent, url) = Agent::start_with(
            |url| {
                let card = card(url, &[("1.0", "JSONRPC", "1.0")], &json!({}));
                Router::new().route(&format!("/1{CARD}"), get(move || std::future::ready(Json(card))))
            },
            move |_, call| if method(call) == speaks { done(call) } else { rpc_error(call, -32601) },
        )
        .await;
        let mut world = World::start(&pool, &[]).await;
        let body = json!({"name": path, "url": format!("{url}{path}")});
        world.service.post("/api/v1/agents", &body).await.expect(201);
        let steps = json!({"ask": {"id": "ask", "agent_name": path, "input_mapping": {"text": "x"}}});
        let workflow = json!({"name": path, "start_step": "ask", "steps": steps});
        let workflow = world.service.post("/api/v1/workflows", &workflow).await.expect(201);
        let execute = format!("/api/v1/workflows/{}/execute", workflow["id"].as_str().expect("an id"));
        let asked = async |world: &World| {
            let before = agent.calls().len();
            let run = world.service.post(&execute, &json!({"input_data": {}})).await.expect(202);
            world.end(run["run_id"].as_str().expect("an id").to_owned()).await.output();
            methods(&agent)[before..].to_vec()
        };
        assert_eq!(asked(&world).await, methods_of_first, "{path}");
        eventually("it is noted", async || {
            let sql =
                "SELECT seen_at IS NOT NULL FROM agent_cards c JOIN agents a ON a.id = agent_id WHERE a.name = $1";
            let noted = sqlx::query_scalar::<_, bool>(sql).bind(path).fetch_optional(&pool).await.expect("a row");
            noted.filter(|noted| *noted)
        })
        .await;
        world.executor.take().expect("an executor").stop().await;
        let next = Executor::start(&world.service);
        assert_eq!(asked(&world).await, [speaks], "{path}");
        // After an hour the card counts again, or what is spoken without one.
        world.service.clock.advance(Duration::from_mins(61));
        assert_eq!(asked(&world).await, methods_of_first, "{path}");
        next.kill().await;
        world.service.stop().await;
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_next_executor_knows_what_the_first_has_found(pool: PgPool) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let routes = |url: &str| {
        let card = card(url, &[("", "JSONRPC", "1.0")], &json!({}));
        Router::new().route(
            CARD,
            get(async move || {
                counted.fetch_add(1, Ordering::SeqCst);
                Json(card)
            }),
        )
    };
    let (agent, url) = Agent::start_with(routes, |_, call| done(call)).await;
    let mut world = world(&pool, &json!({"url": url})).await;
    run(&world, json!({"text": "x"})).await.output();
    shown_when(&world, |agent| agent["protocol_seen"] == "1.0").await;
    world.executor.take().expect("an executor").stop().await;
    let _next = Executor::start(&world.service);
    run(&world, json!({"text": "x"})).await.output();
    assert_eq!((methods(&agent), asked.load(Ordering::SeqCst)), (vec!["SendMessage".to_owned(); 2], 1));
}
