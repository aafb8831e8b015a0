//! Push notifications of A2A agents: they cause a query of the task, and nothing else.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::response::Response;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{clock::Clock, db::migrations::MIGRATOR};

use crate::{
    agent_protocols::{card, method, methods, rpc, rpc_error, with_card},
    path::{Agent, Call, Executor, ended},
    service::eventually,
    steps::World,
};

const PUBLIC: (&str, &str) = ("PUBLIC_URL", "https://workflows.example");

/// State of the task of an agent, as the test sets it.
type State = Arc<Mutex<&'static str>>;

fn task(call: &Call, state: &str) -> Response {
    if call.headers.contains_key("a2a-version") {
        let state = format!("TASK_STATE_{}", state.to_uppercase().replace('-', "_"));
        let task = json!({"id": "t", "contextId": "c", "status": {"state": state},
            "artifacts": [{"artifactId": "a", "parts": [{"text": "said"}]}]});
        return rpc(call, &if method(call) == "SendMessage" { json!({"task": task}) } else { task });
    }
    rpc(
        call,
        &json!({"kind": "task", "id": "t", "contextId": "c", "status": {"state": state},
            "artifacts": [{"artifactId": "a", "parts": [{"kind": "text", "text": "said"}]}]}),
    )
}

/// An agent of that version which sends push notifications, and whose task is in that state.
async fn pushing(version: &str, state: &State, capabilities: Value) -> (Agent, String) {
    let state = Arc::clone(state);
    let routes =
        move |url: &str| with_card(card(url, &[("", "JSONRPC", version)], &json!({"capabilities": capabilities})));
    Agent::start_with(routes, move |_, call| task(call, *state.lock().expect("no panic"))).await
}

fn working() -> State {
    Arc::new(Mutex::new("working"))
}

/// A world with this agent, called `a`, in which time passes only when the test says so.
async fn world(pool: &PgPool, url: &str, settings: &[(&str, &str)]) -> World {
    let world = World::start_by(pool, &[], settings, Clock::stopped()).await;
    let agent = json!({"name": "a", "url": url, "config": {}, "timeout_ms": 300_000,
        "retry_config": {"max_retries": 1, "initial_delay_ms": 100, "max_delay_ms": 1000}});
    world.service.post("/api/v1/agents", &agent).await.expect(201);
    world
}

fn step() -> Value {
    json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": {"text": "x"}}})
}

/// Address and token that the agent has got with its message of that number, from 0.
async fn address(agent: &Agent, number: usize) -> (String, String) {
    let config = eventually("the agent has got the message", async || {
        let sent = agent.calls().into_iter().filter(|call| ["SendMessage", "message/send"].contains(&method(call)));
        let configuration = sent.skip(number).map(|call| call.body["params"]["configuration"].clone()).next()?;
        let names = ["taskPushNotificationConfig", "pushNotificationConfig"];
        names.iter().map(|name| configuration[*name].clone()).find(|config| !config.is_null())
    })
    .await;
    let text = |name: &str| config[name].as_str().expect("a text").to_owned();
    let path = text("url").strip_prefix(PUBLIC.1).expect("the public address").to_owned();
    (path, text("token"))
}

/// Lets the first queries of the task pass, until the next one is more than ten seconds away.
async fn pass_first_queries(world: &World, agent: &Agent, after: usize) {
    for query in 1..=15 {
        eventually("the task is queried", async || {
            world.service.clock.advance(Duration::from_secs(1));
            (agent.calls().len() >= after + query).then_some(())
        })
        .await;
    }
}

async fn push(world: &World, path: &str, headers: &[(&str, &str)], body: String) -> u16 {
    world.service.send("POST", path, headers, body).await.status.as_u16()
}

async fn addresses(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM agent_pushes").fetch_one(pool).await.expect("a count")
}

/// What is found soon: before the task would be queried without a notification.
async fn soon<T>(world: &World, what: &str, find: impl AsyncFn() -> Option<T>) -> T {
    let clock = &world.service.clock;
    let began = clock.instant();
    let found = eventually(what, async || {
        clock.advance(Duration::from_millis(5));
        find().await
    })
    .await;
    assert!(clock.since(began) < Duration::from_secs(10), "{what}: it was no notification");
    found
}

async fn until_ended(world: &World, run_id: &str) -> Value {
    soon(world, "the run has ended", async || {
        let run = world.service.get(&format!("/api/v1/runs/{run_id}")).await.expect(200);
        (run["status"] != "RUNNING" && run["status"] != "PENDING").then_some(run)
    })
    .await
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_notification_causes_a_query_of_the_task_in_both_versions(pool: PgPool) {
    for (version, header) in [("1.0", "X-A2A-Notification-Token"), ("0.3", "Authorization")] {
        let state = working();
        let (agent, url) = pushing(version, &state, json!({"pushNotifications": true})).await;
        let world = world(&pool, &url, &[PUBLIC]).await;
        let run_id = world.begin("ask", &step(), &json!({})).await;
        let (path, token) = address(&agent, 0).await;
        assert!(token.len() >= 43, "256 bits: {token}");
        pass_first_queries(&world, &agent, 1).await;
        let stored: Vec<u8> =
            sqlx::query_scalar("SELECT token_hash FROM agent_pushes").fetch_one(&pool).await.expect("it");
        assert!(stored.len() == 32 && stored != token.as_bytes());
        // What the notification says is not believed: the task still works.
        let value = if header == "Authorization" { format!("Bearer {token}") } else { token.clone() };
        let lie = json!({"id": "t", "status": {"state": "failed"}}).to_string();
        let before = agent.calls().len();
        assert_eq!(push(&world, &path, &[(header, &value)], lie).await, 204);
        soon(&world, "the task is queried", async || (agent.calls().len() > before).then_some(())).await;
        *state.lock().expect("no panic") = "completed";
        for _ in 0..3 {
            assert_eq!(push(&world, &path, &[(header, &value)], String::new()).await, 204, "it may be repeated");
        }
        let run = until_ended(&world, &run_id).await;
        assert_eq!((&run["status"], &run["output_data"]["text"]), (&json!("COMPLETED"), &json!("said")), "{run}");
        // After the end nobody is notified any more.
        soon(&world, "the address is deleted", async || (addresses(&pool).await == 0).then_some(())).await;
        assert_eq!(push(&world, &path, &[(header, &value)], "{}".to_owned()).await, 404);
        drop(world);
        sqlx::query("DELETE FROM agents").execute(&pool).await.expect("done");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_not_expected_is_refused_in_the_same_words_and_wakes_nobody(pool: PgPool) {
    let state = working();
    let (agent, url) = pushing("1.0", &state, json!({"pushNotifications": true})).await;
    let world = world(&pool, &url, &[PUBLIC, ("RATE_LIMIT_FAILED_AUTH", "0")]).await;
    world.begin("ask", &step(), &json!({})).await;
    let (path, token) = address(&agent, 0).await;
    let own = "X-A2A-Notification-Token";
    let elsewhere = format!("/api/v1/agent-pushes/{}", uuid::Uuid::new_v4());
    let mut answers = Vec::new();
    let long = "x".repeat(5000);
    for (path, headers) in [
        (path.as_str(), vec![]),
        (&path, vec![(own, "wrong")]),
        (&path, vec![(own, long.as_str())]),
        (&path, vec![(own, "wrong"), ("Authorization", "Bearer wrong")]),
        (&path, vec![("Authorization", token.as_str())]),
        (&elsewhere, vec![(own, &token)]),
        ("/api/v1/agent-pushes/none", vec![(own, &token)]),
    ] {
        let answer = world.service.send("POST", path, &headers, "{}").await;
        let body = answer.error(404);
        answers.push((body["code"].clone(), body["detail"].clone()));
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    let notified: i64 = sqlx::query_scalar("SELECT count(*) FROM agent_pushes WHERE is_notified")
        .fetch_one(&pool)
        .await
        .expect("a count");
    assert_eq!(notified, 0);
    // Its time is over.
    sqlx::query("UPDATE agent_pushes SET expires_at = now()").execute(&pool).await.expect("done");
    assert_eq!(push(&world, &path, &[(own, &token)], String::new()).await, 404);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn tokens_cannot_be_guessed_at_any_speed_and_credentials_are_not_needed(pool: PgPool) {
    let state = working();
    let (agent, url) = pushing("1.0", &state, json!({"pushNotifications": true})).await;
    let secret = "a-secret-of-at-least-thirty-two-bytes";
    let world = World::start_by(&pool, &[], &[PUBLIC], Clock::stopped()).await;
    let agent_body = json!({"name": "a", "url": url, "config": {}});
    world.service.post("/api/v1/agents", &agent_body).await.expect(201);
    world.begin("ask", &step(), &json!({})).await;
    let (path, token) = address(&agent, 0).await;
    // Another replica, with authentication, on the same database.
    let settings = [PUBLIC, ("JWT_SECRET", secret), ("RATE_LIMIT_FAILED_AUTH", "3")];
    let guarded = crate::service::Service::start_by(crate::service::config(&pool, &settings), Clock::stopped());
    let own = "X-A2A-Notification-Token";
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(
            guarded.open_from("192.0.2.7", "POST", &path, &[(own, "wrong")], "{}".into()).await.status().as_u16(),
        );
    }
    assert_eq!(statuses, [404, 404, 404, 429, 429, 429]);
    let headers = [(own, token.as_str()), ("Authorization", &format!("Bearer {token}"))];
    let answer = guarded.open_from("192.0.2.7", "POST", &path, &headers, "{}".into()).await;
    assert_eq!(answer.status(), 204, "a right token is taken from every address");
    guarded.stop().await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_notification_of_any_size_and_type_counts(pool: PgPool) {
    let state = working();
    let (agent, url) = pushing("1.0", &state, json!({"pushNotifications": true})).await;
    let world = world(&pool, &url, &[PUBLIC]).await;
    let run_id = world.begin("ask", &step(), &json!({})).await;
    let (path, token) = address(&agent, 0).await;
    let own = ("X-A2A-Notification-Token", token.as_str());
    *state.lock().expect("no panic") = "completed";
    for (headers, body) in [
        (vec![own, ("Content-Type", "application/a2a+json"), ("Content-Encoding", "gzip")], "\0 no JSON".to_owned()),
        (vec![own], "x".repeat(3 << 20)),
    ] {
        assert_eq!(push(&world, &path, &headers, body).await, 204);
    }
    assert_eq!(until_ended(&world, &run_id).await["status"], "COMPLETED");
}

/// The pauses between its queries grow to a minute.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_agent_that_never_notifies_is_queried_and_one_that_refuses_is_not_asked_to(pool: PgPool) {
    let state = working();
    let (agent, url) = pushing("1.0", &state, json!({"pushNotifications": true})).await;
    let silent = world(&pool, &url, &[PUBLIC]).await;
    let run_id = silent.begin("ask", &step(), &json!({})).await;
    address(&agent, 0).await;
    pass_first_queries(&silent, &agent, 1).await;
    *state.lock().expect("no panic") = "completed";
    eventually("the run has ended", async || {
        silent.service.clock.advance(Duration::from_secs(10));
        let run = silent.service.get(&format!("/api/v1/runs/{run_id}")).await.expect(200);
        (run["status"] == "COMPLETED").then_some(())
    })
    .await;
    drop(silent);
    sqlx::query("DELETE FROM agents").execute(&pool).await.expect("done");
    let routes = |url: &str| {
        with_card(card(url, &[("", "JSONRPC", "1.0")], &json!({"capabilities": {"pushNotifications": true}})))
    };
    let (refusing, url) = Agent::start_with(routes, |_, call| {
        let is_asked = !call.body["params"]["configuration"]["taskPushNotificationConfig"].is_null();
        if is_asked { rpc_error(call, -32003) } else { task(call, "completed") }
    })
    .await;
    let world = world(&pool, &url, &[PUBLIC]).await;
    world.run("ask", &step(), &json!({})).await.output();
    assert_eq!(methods(&refusing), ["SendMessage", "SendMessage"]);
    let id = |index: usize| refusing.calls()[index].body["params"]["message"]["messageId"].clone();
    assert_eq!(id(0), id(1), "it is the same message");
}

/// Settings, the version and the capabilities of the card, the config of the agent, and whether it is asked to notify.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a Value, Value, bool);

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_agent_is_asked_to_notify_only_where_it_can_and_may(pool: PgPool) {
    let can = json!({"pushNotifications": true});
    let both = json!({"pushNotifications": true, "streaming": true});
    let cases: [Case<'_>; 7] = [
        (&[PUBLIC], "1.0", &can, Value::Null, true),
        (&[PUBLIC], "1.0", &json!({}), json!({}), false),
        (&[], "1.0", &can, json!({}), false),
        (&[PUBLIC], "1.0", &can, json!({"push": false}), false),
        // Its pieces are read until its end.
        (&[PUBLIC], "1.0", &both, json!({}), false),
        // An agent of today sees no change.
        (&[PUBLIC], "0.3", &can, Value::Null, false),
        (&[PUBLIC], "0.3", &can, json!({}), true),
    ];
    for (settings, version, capabilities, config, expected) in cases {
        let state = Arc::new(Mutex::new("completed"));
        let (agent, url) = pushing(version, &state, capabilities.clone()).await;
        let world = World::start_with(&pool, &[], settings).await;
        let body = json!({"name": "a", "url": url, "config": config, "retry_config": {"max_retries": 1}});
        world.service.post("/api/v1/agents", &body).await.expect(201);
        world.run("ask", &step(), &json!({})).await.output();
        let configuration = agent.calls()[0].body["params"]["configuration"].clone();
        let has = !configuration["taskPushNotificationConfig"].is_null()
            || !configuration["pushNotificationConfig"].is_null();
        assert_eq!(has, expected, "{settings:?} {version} {capabilities} {config}: {configuration}");
        drop(world);
        sqlx::query("DELETE FROM agents").execute(&pool).await.expect("done");
    }
}

/// The message is not sent again, and the agent reports at the address that it has got.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_notification_reaches_the_executor_that_has_taken_the_run_over(pool: PgPool) {
    let state = working();
    let (agent, url) = pushing("1.0", &state, json!({"pushNotifications": true})).await;
    let mut world = World::start_by(&pool, &[], &[PUBLIC], Clock::adjustable()).await;
    let body = json!({"name": "a", "url": url, "config": {}, "timeout_ms": 300_000});
    world.service.post("/api/v1/agents", &body).await.expect(201);
    let run_id = world.begin("ask", &step(), &json!({})).await;
    let (path, token) = address(&agent, 0).await;
    eventually("the task is followed", async || (agent.calls().len() > 1).then_some(())).await;
    let waiter = async || {
        let sql = "SELECT waiter FROM agent_pushes";
        sqlx::query_scalar::<_, uuid::Uuid>(sql).fetch_one(&pool).await.expect("an address")
    };
    let first = waiter().await;
    world.kill_executor().await;
    sqlx::query("DELETE FROM processes WHERE role = 'executor'").execute(&pool).await.expect("the dead is buried");
    world.executor = Some(Executor::start(&world.service));
    eventually("the next one waits", async || (waiter().await != first).then_some(())).await;
    assert_eq!(addresses(&pool).await, 1);
    *state.lock().expect("no panic") = "completed";
    assert_eq!(push(&world, &path, &[("X-A2A-Notification-Token", &token)], "{}".to_owned()).await, 204);
    assert_eq!(ended(&world.service, &run_id).await["status"], "COMPLETED");
    eventually("the addresses are deleted", async || (addresses(&pool).await == 0).then_some(())).await;
}
