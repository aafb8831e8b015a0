//! A2A agents of all versions and bindings: their requests and answers, their cards and their credentials.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderMap, StatusCode, header};
use jsonwebtoken::{Algorithm, crypto, jwk::Jwk};
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{a2a::canonical::canonical, db::migrations::MIGRATOR};

use crate::{
    access::ed,
    path::{Agent, Call},
    service::eventually,
    steps::{Ended, World},
};

pub const CARD: &str = "/.well-known/agent-card.json";

/// A card that offers these interfaces: path, binding and version of each.
pub fn card(url: &str, interfaces: &[(&str, &str, &str)], more: &Value) -> Value {
    let interfaces: Vec<_> = interfaces
        .iter()
        .map(|(path, binding, version)| {
            json!({"url": format!("{url}{path}"), "protocolBinding": binding, "protocolVersion": version})
        })
        .collect();
    let mut card = json!({"name": "fake", "description": "d", "version": "1", "supportedInterfaces": interfaces,
        "capabilities": {}, "defaultInputModes": ["text/plain"], "defaultOutputModes": ["text/plain"], "skills": []});
    card.as_object_mut().expect("an object").extend(more.as_object().expect("members").clone());
    card
}

pub fn with_card(card: Value) -> Router {
    Router::new().route(CARD, get(move || std::future::ready(Json(card))))
}

pub fn method(call: &Call) -> &str {
    call.body["method"].as_str().unwrap_or_default()
}

pub fn methods(agent: &Agent) -> Vec<String> {
    agent.calls().iter().map(|call| method(call).to_owned()).collect()
}

pub fn rpc(call: &Call, result: &Value) -> Response {
    Json(json!({"jsonrpc": "2.0", "id": call.body["id"], "result": result})).into_response()
}

pub fn rpc_error(call: &Call, code: i32) -> Response {
    Json(json!({"jsonrpc": "2.0", "id": call.body["id"], "error": {"code": code, "message": "no"}})).into_response()
}

/// A completed task in the form of the request's version.
pub fn done(call: &Call) -> Response {
    match method(call) {
        "message/send" => rpc(
            call,
            &json!({"kind": "task", "id": "t", "contextId": "c", "status": {"state": "completed"},
                "artifacts": [{"artifactId": "a", "parts": [{"kind": "text", "text": "by 0.3"}]}]}),
        ),
        "SendMessage" => rpc(
            call,
            &json!({"task": {"id": "t", "contextId": "c", "status": {"state": "TASK_STATE_COMPLETED"},
                "artifacts": [{"artifactId": "a", "parts": [{"text": "by 1.0"}]}]}}),
        ),
        _ => rpc_error(call, -32601),
    }
}

/// An answer that goes on for ever without an end of its JSON.
pub fn dripping() -> Response {
    let ticks = tokio::time::interval(Duration::from_millis(50));
    let pieces = futures_util::stream::unfold(ticks, async |mut ticks| {
        ticks.tick().await;
        Some((Ok::<_, std::io::Error>(" "), ticks))
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(Box::pin(pieces))).into_response()
}

/// A world with this agent, called `a`, which is tried once and has no circuit breaker.
pub async fn world(pool: &PgPool, members: &Value) -> World {
    let world = World::start(pool, &[]).await;
    let mut agent = json!({"name": "a", "circuit_breaker_config": {"enabled": false},
        "retry_config": {"max_retries": 1, "initial_delay_ms": 100, "max_delay_ms": 1000}});
    agent.as_object_mut().expect("an object").extend(members.as_object().expect("members").clone());
    world.service.post("/api/v1/agents", &agent).await.expect(201);
    world
}

pub async fn run(world: &World, input: Value) -> Ended {
    let steps = json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": input}});
    world.run("ask", &steps, &json!({})).await
}

async fn shown(world: &World) -> Value {
    let agent = world.service.get("/api/v1/agents?name=a").await.expect(200)["items"][0].clone();
    world.service.get(&format!("/api/v1/agents/{}", agent["id"].as_str().expect("an id"))).await.expect(200)
}

/// The agent as shown once that holds.
pub async fn shown_when(world: &World, holds: impl Fn(&Value) -> bool) -> Value {
    eventually("the agent is shown so", async || Some(shown(world).await).filter(|agent| holds(agent))).await
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_agent_of_1_0_is_called_as_its_card_says(pool: PgPool) {
    let routes = |url: &str| {
        let mut card = card(url, &[("a2a", "JSONRPC", "1.0")], &json!({"defaultInputModes": ["application/json"]}));
        card["supportedInterfaces"][0]["tenant"] = "tenant-7".into();
        with_card(card)
    };
    let (agent, url) = Agent::start_with(routes, |_, call| {
        let status = |state: &str| json!({"state": format!("TASK_STATE_{state}"), "message": {"role": "ROLE_AGENT",
            "messageId": "m", "parts": [{"text": "all is well"}]}});
        match method(call) {
            "SendMessage" => rpc(call, &json!({"task": {"id": "t", "contextId": "c", "status": status("WORKING")}})),
            _ => rpc(call, &json!({"id": "t", "contextId": "c", "status": status("COMPLETED"), "artifacts": [
                {"artifactId": "a", "parts": [{"text": "4"}, {"text": "2"}, {"data": {"n": 42}, "mediaType": "application/json"},
                    {"url": "https://files.example/f.png", "filename": "f.png", "mediaType": "image/png"}]}]})),
        }
    })
    .await;
    let world = world(&pool, &json!({"url": url, "auth_type": "bearer", "auth_config": {"token": "s3cret"}})).await;
    let ended = run(&world, json!({"n": 40})).await;
    let output = ended.output();
    assert_eq!(
        (&output["text"], &output["data"], &output["response"]),
        (&json!("42"), &json!({"n": 42}), &json!("all is well"))
    );
    assert_eq!(
        output["files"],
        json!([{"name": "f.png", "media_type": "image/png", "url": "https://files.example/f.png"}])
    );
    assert_eq!((&output["task_id"], &output["context_id"]), (&json!("t"), &json!("c")));
    let calls = agent.calls();
    assert_eq!(methods(&agent), ["SendMessage", "GetTask"]);
    for call in &calls {
        assert_eq!(call.headers["a2a-version"], "1.0");
        assert_eq!(call.headers["authorization"], "Bearer s3cret");
        assert_eq!(call.body["params"]["tenant"], "tenant-7");
    }
    let sent = &calls[0].body["params"];
    let row = ended.rows[0]["id"].as_str().expect("an id");
    assert_eq!(
        sent["message"],
        json!({"messageId": format!("msg-task-{row}"), "role": "ROLE_USER",
            "parts": [{"data": {"n": 40}, "mediaType": "application/json"}]})
    );
    assert_eq!(
        sent["configuration"],
        json!({"returnImmediately": true, "historyLength": 0, "acceptedOutputModes": ["application/json", "text/plain"]})
    );
    run(&world, json!({"text": "plain"})).await.output();
    assert_eq!(agent.calls()[2].body["params"]["message"]["parts"], json!([{"text": "plain"}]));
    let shown = shown_when(&world, |agent| agent["protocol_seen"] == "1.0").await;
    let card = &shown["card"];
    assert_eq!(
        (&card["content"]["name"], &card["signature"], &card["problem"]),
        (&json!("fake"), &json!("absent"), &json!(null))
    );
    assert!(card["age_seconds"].as_i64().is_some_and(|age| age < 60) && card["drift"].is_null(), "{card}");
    let listed = world.service.get("/api/v1/agents").await.expect(200)["items"][0].clone();
    assert!(listed["card"].is_null() && listed["protocol_seen"].is_null(), "{listed}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_agent_without_a_card_is_called_as_before(pool: PgPool) {
    let (agent, url) = Agent::start(|_, call| done(call)).await;
    let world = world(&pool, &json!({"url": url})).await;
    assert_eq!(run(&world, json!({"n": 1})).await.output()["text"], "by 0.3");
    let [call] = &agent.calls()[..] else { panic!("one call") };
    assert!(!call.headers.contains_key("a2a-version"));
    assert_eq!(call.headers["accept"], "application/json");
    assert_eq!(call.body["params"]["message"]["parts"], json!([{"kind": "text", "text": "{\"n\":1}"}]));
    let shown = shown_when(&world, |agent| agent["protocol_seen"] == "0.3").await;
    assert_eq!(shown["card"]["content"], Value::Null);
    assert_eq!(shown["card"]["problem"], "the agent answers 405 for its card");
}

/// An agent with a card of 0.3 whose capabilities and modes would matter in 1.0.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_agent_of_today_with_a_card_of_0_3_sees_no_change(pool: PgPool) {
    let routes = |_: &str| {
        with_card(json!({"url": "http://0.0.0.0:1/", "protocolVersion": "0.3.0", "capabilities": {"streaming": true},
            "defaultInputModes": ["application/json"]}))
    };
    let (agent, url) = Agent::start_with(routes, |_, call| done(call)).await;
    let world = world(&pool, &json!({"url": url})).await;
    assert_eq!(run(&world, json!({"n": 1})).await.output()["text"], "by 0.3");
    assert_eq!(methods(&agent), ["message/send"]);
    assert_eq!(agent.calls()[0].body["params"]["message"]["parts"][0]["kind"], "text");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn http_json_is_spoken_where_a_card_offers_nothing_else_and_grpc_is_an_error(pool: PgPool) {
    let asked: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
    let seen = Arc::clone(&asked);
    let routes = |url: &str| {
        let (grpc, sent, got) = (card(url, &[("", "GRPC", "1.0")], &json!({})), Arc::clone(&seen), seen);
        let note = |seen: &Mutex<Vec<_>>, what: &str, headers: &HeaderMap, body: Value| {
            assert_eq!(headers["a2a-version"], "1.0");
            seen.lock().expect("no panic").push((what.to_owned(), body));
        };
        let answer = |value: Value| ([(header::CONTENT_TYPE, "application/a2a+json")], value.to_string());
        with_card(card(url, &[("grpc", "GRPC", "1.0"), ("rest/", "HTTP+JSON", "1.0")], &json!({})))
            .route(&format!("/grpc{CARD}"), get(move || std::future::ready(Json(grpc))))
            .route(
                "/rest/message:send",
                post(async move |headers: HeaderMap, body: String| {
                    assert_eq!(headers["content-type"], "application/a2a+json");
                    let body: Value = serde_json::from_str(&body).expect("JSON");
                    let text = body["message"]["parts"][0]["text"].clone();
                    note(&sent, "send", &headers, body);
                    if text == "refuse" {
                        let error = json!({"error": {"code": 400, "message": "bad part", "details": [
                            {"reason": "CONTENT_TYPE_NOT_SUPPORTED"}]}});
                        return (StatusCode::BAD_REQUEST, Json(error)).into_response();
                    }
                    answer(json!({"task": {"id": "t 1", "status": {"state": "TASK_STATE_SUBMITTED"}}})).into_response()
                }),
            )
            .route(
                "/rest/tasks/{id}",
                get(async move |headers: HeaderMap, axum::extract::Path(id): axum::extract::Path<String>| {
                    note(&got, &id, &headers, json!(null));
                    answer(json!({"id": id, "status": {"state": "TASK_STATE_COMPLETED"},
                        "artifacts": [{"artifactId": "a", "parts": [{"text": "by REST"}]}]}))
                }),
            )
    };
    let (agent, url) = Agent::start_with(routes, |_, call| done(call)).await;
    let world = world(&pool, &json!({"url": url})).await;
    assert_eq!(run(&world, json!({"text": "x"})).await.output()["text"], "by REST");
    let what: Vec<_> = asked.lock().expect("no panic").iter().map(|(what, _)| what.clone()).collect();
    assert_eq!(what, ["send", "t 1"]);
    assert_eq!(asked.lock().expect("no panic")[0].1["message"]["parts"], json!([{"text": "x"}]));
    let refused = run(&world, json!({"text": "refuse"})).await;
    assert_eq!(refused.cause(), "Step 'ask' failed: agent 'a': HTTP 400: Bad Request, bad part");
    let patch = json!({"url": format!("{url}grpc")});
    let id = shown(&world).await["id"].as_str().expect("an id").to_owned();
    world.service.put(&format!("/api/v1/agents/{id}"), &patch).await.expect(200);
    let expected = "Step 'ask' failed: agent 'a': its card offers only GRPC 1.0; this service speaks A2A 1.0 by JSONRPC \
        or HTTP+JSON, and 0.3 by JSONRPC";
    assert_eq!(run(&world, json!({"text": "x"})).await.cause(), expected);
    assert!(agent.calls().is_empty());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_card_leads_inputs_and_credentials_only_to_origins_that_the_settings_name(pool: PgPool) {
    let (elsewhere, other) = Agent::start(|_, call| done(call)).await;
    let named = other.clone();
    let (agent, url) = Agent::start_with(
        move |_| with_card(card(&named, &[("x", "JSONRPC", "1.0")], &json!({}))),
        |_, call| done(call),
    )
    .await;
    let world = world(&pool, &json!({"url": url, "auth_type": "bearer", "auth_config": {"token": "s3cret"}})).await;
    run(&world, json!({"text": "x"})).await.output();
    assert_eq!((methods(&agent), elsewhere.calls().len()), (vec!["SendMessage".to_owned()], 0));
    let id = shown(&world).await["id"].as_str().expect("an id").to_owned();
    let origin = other.trim_end_matches('/');
    let patch = json!({"config": {"origins": [origin]}});
    world.service.put(&format!("/api/v1/agents/{id}"), &patch).await.expect(200);
    run(&world, json!({"text": "x"})).await.output();
    assert_eq!((agent.calls().len(), elsewhere.calls().len()), (1, 1));
    assert_eq!(elsewhere.calls()[0].headers["authorization"], "Bearer s3cret");
    // An address that is not allowed is refused, whoever names it.
    let patch = json!({"config": {"origins": ["http://169.254.169.254"]}});
    world.service.put(&format!("/api/v1/agents/{id}"), &patch).await.expect(200);
    run(&world, json!({"text": "x"})).await.output();
    assert_eq!((agent.calls().len(), elsewhere.calls().len()), (2, 1));
}

/// Cards that harm whoever reads them trustfully. The agent is called as if it had none, and soon.
#[sqlx::test(migrator = "MIGRATOR")]
async fn no_card_delays_or_fails_a_call(pool: PgPool) {
    let routes = |_: &str| {
        let card = |path: &str| format!("/{path}{CARD}");
        let endless = || {
            let piece = axum::body::Bytes::from(vec![b' '; 64 << 10]);
            let pieces = futures_util::stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone()));
            Body::from_stream(futures_util::StreamExt::take(pieces, 100 << 4))
        };
        let drip = || {
            let ticks = tokio::time::interval(Duration::from_millis(50));
            let pieces = futures_util::stream::unfold(ticks, async |mut ticks| {
                ticks.tick().await;
                Some((Ok::<_, std::io::Error>(" "), ticks))
            });
            Box::pin(pieces)
        };
        Router::new()
            .route(&card("large"), get(async move || endless().into_response()))
            .route(
                &card("announced"),
                get(async move || ([("content-length", "104857600")], Body::from_stream(drip())).into_response()),
            )
            .route(&card("drip"), get(async move || Body::from_stream(drip()).into_response()))
            .route(&card("silent"), get(std::future::pending::<()>))
            .route(&card("half"), get(async || r#"{"name":"x","supportedInter"#))
            .route(&card("page"), get(async || ([("content-type", "text/html")], "<html>").into_response()))
            .route(&card("list"), get(async || "[]"))
            .route(
                &card("odd"),
                get(async || r#"{"supportedInterfaces":{"a":1},"capabilities":7,"url":[],"signatures":"x"}"#),
            )
            .route(
                &card("moved"),
                get(async || (StatusCode::FOUND, [("location", "http://169.254.169.254/latest/meta-data/")])),
            )
            .route(&card("failing"), get(async || (StatusCode::INTERNAL_SERVER_ERROR, "down")))
    };
    let (agent, url) = Agent::start_with(routes, |_, call| done(call)).await;
    let world = World::start(&pool, &[]).await;
    let names = ["large", "announced", "drip", "silent", "half", "page", "list", "odd", "moved", "failing"];
    for name in names {
        let body = json!({"name": name, "url": format!("{url}{name}"), "timeout_ms": 60_000});
        world.service.post("/api/v1/agents", &body).await.expect(201);
        let steps = json!({"ask": {"id": "ask", "agent_name": name, "input_mapping": {"text": "x"}}});
        assert_eq!(world.run("ask", &steps, &json!({})).await.output()["text"], "by 0.3", "{name}");
    }
    assert_eq!(methods(&agent), vec!["message/send"; names.len()]);
    for (name, expected) in [
        ("moved", "the agent answers 302 for its card"),
        ("half", "the card cannot be read: JSON decode error"),
        ("announced", "the card cannot be read: the answer is larger than 1048576 bytes"),
    ] {
        let path = format!("/api/v1/agents?name={name}");
        let id = world.service.get(&path).await.expect(200)["items"][0]["id"].as_str().expect("an id").to_owned();
        let shown = eventually("the problem is shown", async || {
            let agent = world.service.get(&format!("/api/v1/agents/{id}")).await.expect(200);
            agent["card"]["problem"].as_str().map(str::to_owned)
        })
        .await;
        assert!(shown.starts_with(expected), "{name}: {shown}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_card_is_asked_for_again_with_its_etag_and_a_change_is_drift_and_audited(pool: PgPool) {
    /// Version of the card, and the tags of the requests for it.
    type State = (&'static str, Vec<Option<String>>);
    let state: Arc<Mutex<State>> = Arc::new(Mutex::new(("1", Vec::new())));
    let served = Arc::clone(&state);
    let routes = |url: &str| {
        let url = url.to_owned();
        Router::new().route(
            CARD,
            get(async move |headers: HeaderMap| {
                let given = headers.get("if-none-match").map(|tag| tag.to_str().expect("ASCII").to_owned());
                let mut state = served.lock().expect("no panic");
                state.1.push(given.clone());
                let tag = format!("\"{}\"", state.0);
                if given.as_ref() == Some(&tag) {
                    return StatusCode::NOT_MODIFIED.into_response();
                }
                let card = card(&url, &[("", "JSONRPC", "1.0")], &json!({"version": state.0}));
                ([("etag", tag), ("cache-control", "max-age=1".to_owned())], Json(card)).into_response()
            }),
        )
    };
    let (_agent, url) = Agent::start_with(routes, |_, call| done(call)).await;
    let world = world(&pool, &json!({"url": url})).await;
    let asked = || state.lock().expect("no panic").1.clone();
    // A request for the card is over soon after its result is stored: at the latest with the next run.
    run(&world, json!({"text": "x"})).await.output();
    shown_when(&world, |agent| agent["card"]["content"]["version"] == "1").await;
    run(&world, json!({"text": "x"})).await.output();
    assert_eq!(asked(), [None], "at least a minute apart");
    // Another executor's result counts for as long as its server says, and so does the stored one.
    world.service.clock.advance(Duration::from_secs(61));
    sqlx::query("UPDATE agent_cards SET checked_at = now() - interval '61 s'").execute(&pool).await.expect("done");
    run(&world, json!({"text": "x"})).await.output();
    eventually("it is asked again", async || (asked() == [None, Some("\"1\"".to_owned())]).then_some(())).await;
    shown_when(&world, |agent| agent["card"]["drift"].is_null() && agent["card"]["age_seconds"].as_i64() < Some(300))
        .await;
    run(&world, json!({"text": "x"})).await.output();
    state.lock().expect("no panic").0 = "2";
    world.service.clock.advance(Duration::from_mins(6));
    sqlx::query("UPDATE agent_cards SET checked_at = now() - interval '6 minutes'").execute(&pool).await.expect("done");
    run(&world, json!({"text": "x"})).await.output();
    let shown = shown_when(&world, |agent| !agent["card"]["drift"].is_null()).await;
    assert_eq!(shown["card"]["drift"]["members"], json!(["version"]));
    assert_eq!(shown["card"]["content"]["version"], "2");
    let audit = world.service.get("/api/v1/audit-logs?action=card_changed").await.expect(200);
    let entry = &audit["items"][0];
    assert_eq!((&entry["entity_type"], &entry["entity_name"]), (&json!("agent"), &json!("a")), "{audit}");
    assert_eq!(entry["after"]["card"], json!({"changed": ["version"], "signature": "absent"}));
    // Saving the agent accepts the change, also with the values that it has.
    let path = format!("/api/v1/agents/{}", shown["id"].as_str().expect("an id"));
    let saved = world.service.put(&path, &json!({"url": shown["url"], "description": null})).await.expect(200);
    assert_eq!((&saved["card"]["drift"], &saved["updated_at"]), (&json!(null), &shown["updated_at"]));
    assert_eq!(self::shown(&world).await["card"]["drift"], json!(null));
    sqlx::query("UPDATE agent_cards SET changed_at = now(), changed_members = '{version}'")
        .execute(&pool)
        .await
        .expect("done");
    assert_eq!(self::shown(&world).await["card"]["drift"]["members"], json!(["version"]));
    world.service.put(&path, &json!({"description": "seen"})).await.expect(200);
    assert_eq!(self::shown(&world).await["card"]["drift"], json!(null));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn with_keys_only_a_signed_card_is_used(pool: PgPool) {
    let key = ed();
    let public = serde_json::to_value(Jwk::from_encoding_key(&key, Algorithm::EdDSA).expect("a key")).expect("JSON");
    let signed = move |mut card: Value, is_tampered: bool| {
        use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
        let protected = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA","typ":"JOSE"}"#);
        let payload = BASE64_URL_SAFE_NO_PAD.encode(canonical(&card));
        let signature = crypto::sign(format!("{protected}.{payload}").as_bytes(), &key, Algorithm::EdDSA).expect("it");
        if is_tampered {
            card["description"] = "tampered".into();
        }
        card["signatures"] = json!([{"protected": protected, "signature": signature}]);
        card
    };
    let routes = |url: &str| {
        let of = |path: &str| card(url, &[(path, "JSONRPC", "1.0")], &json!({}));
        let cards = [("good", signed(of("good"), false)), ("bad", signed(of("bad"), true)), ("bare", of("bare"))];
        cards.into_iter().fold(Router::new(), |router, (name, card)| {
            router.route(&format!("/{name}{CARD}"), get(move || std::future::ready(Json(card))))
        })
    };
    let (_agent, url) = Agent::start_with(routes, |_, call| done(call)).await;
    let world = World::start(&pool, &[]).await;
    let keys = json!({"card_keys": {"keys": [public]}});
    for (path, config, signature, text) in [
        ("good", &keys, "valid", "by 1.0"),
        ("bad", &keys, "invalid", "by 0.3"),
        ("bare", &keys, "absent", "by 0.3"),
        ("bad", &json!({}), "unchecked", "by 1.0"),
    ] {
        let name = format!("{path}-{signature}");
        let body = json!({"name": name, "url": format!("{url}{path}"), "config": config});
        let agent = world.service.post("/api/v1/agents", &body).await.expect(201);
        let steps = json!({"ask": {"id": "ask", "agent_name": name, "input_mapping": {"text": "x"}}});
        assert_eq!(world.run("ask", &steps, &json!({})).await.output()["text"], text, "{name}");
        let agent_path = format!("/api/v1/agents/{}", agent["id"].as_str().expect("an id"));
        // A call does not wait until the card is stored.
        let card = eventually("the card is stored", async || {
            let shown = world.service.get(&agent_path).await.expect(200);
            Some(shown["card"]["signature"].clone()).filter(|signature| !signature.is_null())
        });
        assert_eq!(card.await, signature, "{name}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn each_type_of_credentials_is_sent_and_the_card_for_authenticated_clients_is_used(pool: PgPool) {
    let tokens = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tokens);
    let routes = |url: &str| {
        let extended = json!({"capabilities": {"extendedAgentCard": true}});
        let token = async move |headers: HeaderMap, body: String| {
            assert!(headers["authorization"].to_str().expect("ASCII").starts_with("Basic "));
            assert!(body.contains("scope=work"), "{body}");
            let number = counted.fetch_add(1, Ordering::SeqCst);
            Json(json!({"access_token": format!("token-{number}"), "token_type": "Bearer", "expires_in": 3600}))
        };
        with_card(card(url, &[("", "JSONRPC", "1.0")], &extended)).route("/token", post(token))
    };
    let (agent, url) = Agent::start_with(routes, |_, call| match method(call) {
        "GetExtendedAgentCard" => {
            let host = call.headers["host"].to_str().expect("ASCII");
            rpc(call, &card(&format!("http://{host}/"), &[("", "JSONRPC", "1.0")], &json!({"name": "extended"})))
        }
        _ if call.headers.get("authorization").is_some_and(|value| value == "Bearer token-0")
            && call.text() == "stale" =>
        {
            StatusCode::UNAUTHORIZED.into_response()
        }
        _ => done(call),
    })
    .await;
    let world = World::start(&pool, &[]).await;
    let oauth =
        json!({"token_url": format!("{url}token"), "client_id": "c", "client_secret": "s3cret", "scope": "work"});
    for (name, auth_type, config) in [
        ("basic", "basic", json!({"username": "u", "password": "p4ssword"})),
        ("query", "apikey", json!({"key": "k3y", "query_name": "api_key"})),
        ("oauth2", "oauth2", oauth),
    ] {
        let body = json!({"name": name, "url": url, "auth_type": auth_type, "auth_config": config});
        world.service.post("/api/v1/agents", &body).await.expect(201);
        let steps = json!({"ask": {"id": "ask", "agent_name": name, "input_mapping": {"text": "x"}}});
        for _ in 0..2 {
            world.run("ask", &steps, &json!({})).await.output();
        }
        let sent = agent.calls().into_iter().rev().find(|call| method(call) == "SendMessage").expect("a call");
        let authorization = sent.headers.get("authorization").map(|value| value.to_str().expect("ASCII").to_owned());
        let expected = match name {
            "basic" => Some("Basic dTpwNHNzd29yZA=="),
            "oauth2" => Some("Bearer token-0"),
            _ => None,
        };
        assert_eq!(authorization.as_deref(), expected, "{name}");
        assert_eq!(sent.uri.query(), (name == "query").then_some("api_key=k3y"), "{name}");
        let path = format!("/api/v1/agents?name={name}");
        let shown = world.service.get(&path).await.expect(200)["items"][0].clone();
        let path = format!("/api/v1/agents/{}", shown["id"].as_str().expect("an id"));
        eventually("the other card is used", async || {
            (world.service.get(&path).await.expect(200)["card"]["content"]["name"] == "extended").then_some(())
        })
        .await;
    }
    assert_eq!(tokens.load(Ordering::SeqCst), 1, "a token is used until it expires");
    let steps = json!({"ask": {"id": "ask", "agent_name": "oauth2", "input_mapping": {"text": "stale"}}});
    world.run("ask", &steps, &json!({})).await.output();
    assert_eq!(tokens.load(Ordering::SeqCst), 2, "a refused token is replaced");
    let bad = json!({"name": "bad", "url": url, "auth_type": "oauth2", "auth_config": {
        "token_url": "http://169.254.169.254/token", "client_id": "c", "client_secret": "s"}});
    let errors = world.service.post("/api/v1/agents", &bad).await.field_errors();
    assert_eq!(errors, ["body.auth_config.token_url value_error"]);
}

/// Of a message, and of the question for its task.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_answer_that_drips_ends_with_the_time_of_the_agent(pool: PgPool) {
    let (agent, url) = Agent::start(|_, call| match (method(call), call.body["params"]["message"].is_object()) {
        ("message/send", _) if call.text() == "at once" => dripping(),
        ("message/send", _) => rpc(call, &json!({"kind": "task", "id": "t", "status": {"state": "working"}})),
        ("tasks/get", _) => dripping(),
        _ => rpc(call, &json!({"kind": "task", "id": "t", "status": {"state": "canceled"}})),
    })
    .await;
    let world = world(&pool, &json!({"url": url, "timeout_ms": 1000})).await;
    for (text, cancels) in [("at once", 0), ("later", 1)] {
        let ended = run(&world, json!({"text": text})).await;
        assert!(ended.cause().contains("no complete answer within 1000 ms"), "{text}: {}", ended.cause());
        eventually("the task is cancelled", async || {
            let cancelled = agent.calls().iter().filter(|call| method(call) == "tasks/cancel").count();
            (cancelled == cancels).then_some(())
        })
        .await;
    }
}
