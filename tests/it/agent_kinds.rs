//! Agents that do not speak A2A: plain HTTP, and chat completions.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::{
    path::{Agent, Call, Executor, steps},
    service::Service,
    steps::World,
};

const AGENTS: &str = "/api/v1/agents";

/// A world with one agent of these members, called `a`, which is tried once.
async fn world(pool: &PgPool, members: Value) -> World {
    let world = World::start(pool, &[]).await;
    let mut agent = json!({"name": "a",
        "retry_config": {"max_retries": 1, "initial_delay_ms": 100, "max_delay_ms": 1000}});
    agent.as_object_mut().expect("an object").extend(members.as_object().expect("members").clone());
    world.service.post(AGENTS, &agent).await.expect(201);
    world
}

/// Runs one step with this input.
async fn run(world: &World, input: Value) -> crate::steps::Ended {
    let steps = json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": input}});
    world.run("ask", &steps, &json!({})).await
}

fn error(ended: &crate::steps::Ended) -> &str {
    assert_eq!(ended.run["status"], "FAILED");
    ended.run["error_message"].as_str().expect("a message")
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_plain_agent_gets_the_input_and_gives_the_output(pool: PgPool) {
    let (agent, url) = Agent::start(|_, call| match call.body["want"].as_str() {
        Some("number") => Json(json!(7)).into_response(),
        Some("nothing") => StatusCode::NO_CONTENT.into_response(),
        Some("text") => "plain".into_response(),
        Some("busy") => (StatusCode::CONFLICT, Json(json!({"detail": "already there"}))).into_response(),
        Some("broken") => (StatusCode::BAD_GATEWAY, "down").into_response(),
        Some("moved") => (StatusCode::FOUND, [("location", "/elsewhere")]).into_response(),
        _ => Json(json!({"sum": 12_345_678_901_234_567_890_u64, "input": call.body})).into_response(),
    })
    .await;
    let auth = json!({"url": format!("{url}sum?x=1"), "kind": "HTTP", "auth_type": "apikey",
        "auth_config": {"key": "s3cret", "header_name": "X-Key"}, "circuit_breaker_config": {"enabled": false}});
    let world = world(&pool, auth).await;
    let input = json!({"text": "t", "n": [1, {"deep": true}]});
    let done = run(&world, input.clone()).await;
    assert_eq!(done.output(), &json!({"sum": 12_345_678_901_234_567_890_u64, "input": input}));
    let [call] = &agent.calls()[..] else { panic!("one call") };
    assert_eq!(call.body, input);
    let header = |name: &str| call.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let row = done.rows[0]["id"].as_str().expect("an id");
    assert_eq!(
        (header("x-key"), header("content-type"), header("idempotency-key")),
        ("s3cret", "application/json", row)
    );
    assert!(!header("x-correlation-id").is_empty());

    for (want, expected) in [("number", json!(7)), ("nothing", json!({}))] {
        assert_eq!(run(&world, json!({"want": want})).await.output(), &expected);
    }
    for (want, expected) in [
        ("text", "the answer is not JSON"),
        ("busy", "HTTP 409: Conflict, already there"),
        ("broken", "HTTP 502: Bad Gateway"),
        ("moved", "HTTP 302: Found (redirects are not followed)"),
    ] {
        let failed = run(&world, json!({"want": want})).await;
        assert!(error(&failed).contains(expected), "{}", error(&failed));
        assert!(!error(&failed).contains("s3cret"));
    }
}

fn completion(call: &Call) -> Response {
    let said = call.body["messages"].as_array().and_then(|all| all.last()).expect("a message")["content"].clone();
    let content =
        if call.body["response_format"]["type"] == "json_object" { r#"{"tone":"kind"}"#.into() } else { said };
    Json(json!({"id": "chatcmpl-1", "object": "chat.completion", "model": "small-2026",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}}))
    .into_response()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_model_is_an_agent(pool: PgPool) {
    let (agent, url) = Agent::start(|_, call| completion(call)).await;
    let config =
        json!({"model": "small", "system_prompt": "Be brief.", "parameters": {"temperature": 0.5, "max_tokens": 9}});
    let members = json!({"url": format!("{url}v1"), "kind": "openai", "config": config, "auth_type": "bearer",
        "auth_config": {"token": "sk-1"}});
    let world = world(&pool, members).await;
    let usage = json!({"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14});
    let done = run(&world, json!({"text": "Hello"})).await;
    let expected = json!({"text": "Hello", "content": "Hello", "finish_reason": "stop", "model": "small-2026", "usage": usage,
        "id": "chatcmpl-1"});
    assert_eq!(done.output(), &expected);
    let call = agent.calls()[0].clone();
    let system = json!({"role": "system", "content": "Be brief."});
    let expected = json!({"model": "small", "temperature": 0.5, "max_tokens": 9,
        "messages": [system, {"role": "user", "content": "Hello"}]});
    assert_eq!((&call.body, &call.headers["authorization"]), (&expected, &"Bearer sk-1".parse().expect("a header")));
    let row = done.rows[0]["id"].as_str().expect("an id");
    assert_eq!(call.headers["idempotency-key"].to_str().ok(), Some(row));

    let talk = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    run(&world, json!({"messages": talk})).await.output();
    assert_eq!(agent.calls()[1].body["messages"], json!([system, talk[0], talk[1]]));

    let id = world.service.get(&format!("{AGENTS}?name=a")).await.expect(200)["items"][0]["id"].clone();
    let path = format!("{AGENTS}/{}", id.as_str().expect("an id"));
    let config = json!({"model": "small", "response_format": "json"});
    world.service.put(&path, &json!({"config": config, "status": "active"})).await.expect(200);
    assert_eq!(run(&world, json!({"text": "Hello"})).await.output()["content"], json!({"tone": "kind"}));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_a_model_cannot_do_is_said_in_the_runs_error(pool: PgPool) {
    let (agent, url) = Agent::start(|_, call| {
        let message = |message: Value| Json(json!({"choices": [{"message": message, "finish_reason": "length"}]}));
        match call.body["messages"][0]["content"].as_str() {
            Some("quota") => {
                let error = json!({"error": {"message": "You exceeded your quota", "type": "insufficient_quota"}});
                (StatusCode::TOO_MANY_REQUESTS, Json(error)).into_response()
            }
            Some("model") => {
                (StatusCode::NOT_FOUND, Json(json!({"error": {"message": "no such model"}}))).into_response()
            }
            Some("refusal") => message(json!({"content": null, "refusal": "I must not"})).into_response(),
            Some("empty") => message(json!({"content": null})).into_response(),
            Some("cut") => message(json!({"content": "{\"a\":"})).into_response(),
            _ => Json(json!({"choices": []})).into_response(),
        }
    })
    .await;
    let config = json!({"model": "m", "response_format": {"type": "json_object"}});
    let world = world(
        &pool,
        json!({"url": url, "kind": "openai", "config": config,
        "circuit_breaker_config": {"enabled": false}}),
    )
    .await;
    for (text, expected) in [
        ("quota", "HTTP 429: Too Many Requests, You exceeded your quota"),
        ("model", "HTTP 404: Not Found, no such model"),
        ("refusal", "the model refuses: I must not"),
        ("empty", "the model answered without text (finish_reason length)"),
        ("cut", "the model did not answer with JSON (finish_reason length)"),
        ("odd", "the answer is no chat completion: it has no choices"),
    ] {
        let failed = run(&world, json!({"text": text})).await;
        assert!(error(&failed).contains(expected), "{}", error(&failed));
    }
    assert_eq!(agent.calls().len(), 6);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_kind_and_its_config_fit_each_other(pool: PgPool) {
    let service = Service::start(&pool);
    let model = json!({"model": "m"});
    for (members, expected) in [
        (json!({"kind": "grpc"}), "body.kind value_error"),
        (json!({"kind": 7}), "body.kind string_type"),
        (json!({"kind": null}), "body.kind string_type"),
        (json!({"config": model}), "body.config.model extra_forbidden"),
        (json!({"kind": "http", "config": {}}), "body.config value_error"),
        (json!({"kind": "openai"}), "body.config value_error"),
        (json!({"kind": "openai", "config": []}), "body.config dict_type"),
        (json!({"kind": "openai", "config": {"model": ""}}), "body.config.model string_too_short"),
        (json!({"kind": "openai", "config": {"model": "m", "x": 1}}), "body.config.x extra_forbidden"),
        (
            json!({"circuit_breaker_config": {"failure_threshold": 0}}),
            "body.circuit_breaker_config.failure_threshold greater_than_equal",
        ),
    ] {
        let mut body = json!({"name": "n", "url": "http://a"});
        body.as_object_mut().expect("an object").extend(members.as_object().expect("members").clone());
        let answer = service.post(AGENTS, &body).await;
        assert_eq!(answer.field_errors(), [expected], "{members}");
        answer.error(422);
    }
    let agent = service.agent("n", "http://a").await;
    let path = format!("{AGENTS}/{}", agent["id"].as_str().expect("an id"));
    for (patch, kind, config) in [
        (json!({"kind": "openai", "config": model}), "openai", model.clone()),
        (json!({"description": "d"}), "openai", model.clone()),
        (json!({"kind": "OpenAI"}), "openai", model.clone()),
        (json!({"config": {"model": "other"}}), "openai", json!({"model": "other"})),
        (json!({"kind": "http"}), "http", json!(null)),
        (json!({"kind": "a2a", "config": null}), "a2a", json!(null)),
    ] {
        let shown = service.put(&path, &patch).await.expect(200);
        assert_eq!((&shown["kind"], &shown["config"]), (&json!(kind), &config), "{patch}");
        assert_eq!(service.get(&path).await.expect(200), shown);
        // As a client that edits sends it back.
        assert_eq!(service.put(&path, &shown).await.expect(200), shown);
    }
    for (patch, expected) in [
        (json!({"kind": "openai"}), "body.config value_error"),
        (json!({"config": model}), "body.config.model extra_forbidden"),
        (json!({"kind": "http", "config": model}), "body.config value_error"),
    ] {
        assert_eq!(service.put(&path, &patch).await.field_errors(), [expected], "{patch}");
    }
}

/// A row of a later release, or of somebody's hand.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_agent_of_an_unknown_kind_is_not_called_and_keeps_its_kind(pool: PgPool) {
    let service = Service::start(&pool);
    let _executor = Executor::start(&service);
    let (agent, url) = Agent::start(|_, call| completion(call)).await;
    let registered = service.agent("odd", &url).await;
    let path = format!("{AGENTS}/{}", registered["id"].as_str().expect("an id"));
    sqlx::query("UPDATE agents SET kind = 'carrier-pigeon'").execute(&pool).await.expect("a kind");
    let shown = service.put(&path, &json!({"description": "coo"})).await.expect(200);
    assert_eq!(shown["kind"], "carrier-pigeon");
    let workflow = service.chain("w", &["odd"]).await;
    let run_id = service.execute(workflow["id"].as_str().expect("an id")).await;
    let run = crate::path::ended(&service, &run_id).await;
    assert!(run["error_message"].as_str().is_some_and(|text| text.contains("kind")), "{run}");
    assert_eq!((agent.calls().len(), steps(&service, &run_id).await.len()), (0, 1));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_health_of_an_agent_is_asked_as_its_kind_wants(pool: PgPool) {
    use axum::{Router, routing::get};
    let service = Service::start(&pool);
    let router = Router::new()
        .route("/v1/models", get(async || Json(json!({"data": []}))))
        .route("/plain", axum::routing::post(async || "x"))
        .route("/broken", get(async || StatusCode::BAD_GATEWAY));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let config = json!({"model": "m"});
    for (name, path, kind, config, expected) in [
        ("base", "/v1", "openai", config.clone(), "healthy"),
        ("whole", "/v1/chat/completions", "openai", config.clone(), "healthy"),
        ("wrong", "/v2", "openai", config, "unhealthy"),
        ("plain", "/plain", "http", json!(null), "healthy"),
        ("broken", "/broken", "http", json!(null), "unhealthy"),
    ] {
        let agent = json!({"name": name, "url": format!("{url}{path}"), "kind": kind, "config": config});
        let agent = service.post(AGENTS, &agent).await.expect(201);
        let health =
            service.get(&format!("{AGENTS}/{}/health", agent["id"].as_str().expect("an id"))).await.expect(200);
        assert_eq!((&health["status"], &health["agent_card"]), (&json!(expected), &json!(null)), "{name}: {health}");
        assert!(health["response_time_ms"].is_u64(), "{health}");
    }
}
