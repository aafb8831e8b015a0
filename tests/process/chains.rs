//! Webhooks that lead back to a webhook trigger of the same service: such a chain ends.

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    events::agent,
    program::{Environment, eventually},
};

/// Secret of both the endpoint and the trigger.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=";
/// Depth of the last run of a chain.
const MAX_CHAIN: i16 = 16;

/// A trigger that starts this workflow, and an endpoint that delivers events of these types to it.
async fn loop_back(environment: &Environment, workflow: &str, endpoint: Value) -> String {
    let trigger = json!({"name": "again", "kind": "webhook", "workflow_name": workflow, "input": {"text": "again"},
        "config": {"preset": "standard", "secrets": [SECRET]}});
    let answer = environment.post("/api/v1/triggers", &trigger).await.expect("an answer");
    assert_eq!(answer.status(), 201);
    let trigger: Value = answer.json().await.expect("JSON");
    let mut body =
        json!({"name": "loop", "secret": SECRET, "url": format!("{}/api/v1/hooks/default/again", environment.url)});
    body.as_object_mut().expect("an object").extend(endpoint.as_object().expect("an object").clone());
    let answer = environment.post("/api/v1/webhooks", &body).await.expect("an answer");
    assert_eq!(answer.status(), 201, "{}", answer.text().await.expect("text"));
    format!("/api/v1/triggers/{}", trigger["id"].as_str().expect("an id"))
}

/// Depths of the runs of a workflow.
async fn depths(pool: &PgPool, workflow: &str) -> Vec<i16> {
    let sql = "SELECT chain_depth FROM workflow_runs WHERE workflow_name = $1 ORDER BY chain_depth, run_id";
    sqlx::query_scalar(sql).bind(workflow).fetch_all(pool).await.expect("depths")
}

async fn count(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.expect("a count")
}

/// B6, pitfall 17: each completed run of a workflow starts the next one, by its event or by that of its sub-run.
#[sqlx::test(migrations = false)]
async fn workflows_that_start_themselves_by_their_events_end(pool: PgPool) {
    let environment = Environment::new(&pool).with("WEBHOOK_RETRY_SECONDS", "1,1");
    let _api = environment.serve().await;
    let inner = environment.chain("inner", &[agent().await]).await;
    let sub = json!({"id": "sub", "type": "sub_workflow", "sub_workflow_config": {"workflow_id": inner},
        "input_mapping": {"text": "${workflow.input.text}"}});
    let outer = json!({"name": "outer", "start_step": "sub", "steps": {"sub": sub}});
    let answer = environment.post("/api/v1/workflows", &outer).await.expect("an answer");
    assert_eq!(answer.status(), 201);
    let outer: Value = answer.json().await.expect("JSON");
    // The event of the sub-run starts the workflow around it again.
    let endpoint = json!({"event_types": ["run.completed"], "workflow_names": ["inner"]});
    let trigger = loop_back(&environment, "outer", endpoint).await;
    let _executor = environment.start(&["executor"]);
    environment.execute(outer["id"].as_str().expect("an id")).await.expect("a run");
    eventually("the chain is refused", async || {
        let shown = environment.get(&trigger).await;
        (shown["firings"][0]["reason"] == "chain_too_long").then_some(())
    })
    .await;
    eventually("nothing is sent any more", async || {
        let open = "SELECT count(*) FROM webhook_deliveries WHERE state NOT IN ('delivered', 'failed')";
        let runs = "SELECT count(*) FROM workflow_runs WHERE status IN ('PENDING', 'RUNNING')";
        (count(&pool, open).await + count(&pool, runs).await == 0).then_some(())
    })
    .await;
    let each_once: Vec<i16> = (0..=MAX_CHAIN).collect();
    assert_eq!(depths(&pool, "inner").await, each_once);
    assert_eq!(depths(&pool, "outer").await, each_once);
    // Three attempts of the last delivery, of which none is told: there is nobody to go on with it.
    let shown = environment.get(&trigger).await;
    assert_eq!((&shown["counters"]["fired"], &shown["counters"]["failed_to_start"]), (&json!(16), &json!(3)));
    let told = count(&pool, "SELECT count(*) FROM webhook_events WHERE event_type = 'trigger.failed_to_start'").await;
    assert_eq!(told, 0);
    // A run of a trigger says what started it, in its event as in the API; a sub-run says its depth.
    let sql = "SELECT e.data -> 'trigger' FROM webhook_events e JOIN workflow_runs r USING (run_id)
               WHERE event_type = 'run.completed' AND r.workflow_name = $1 AND chain_depth = $2";
    for (workflow, depth, kind) in [("outer", 0, None), ("outer", 7, Some("webhook")), ("inner", 0, None)] {
        let told: Option<Value> =
            sqlx::query_scalar(sql).bind(workflow).bind(depth).fetch_one(&pool).await.expect("an event");
        let told = told.unwrap_or_default();
        assert_eq!((told["kind"].as_str(), told["depth"].as_i64()), (kind, kind.map(|_| i64::from(depth))));
    }
    let of_sub_run: Value = sqlx::query_scalar(sql).bind("inner").bind(7_i32).fetch_one(&pool).await.expect("an event");
    assert_eq!(of_sub_run, json!({"kind": null, "id": null, "at": null, "depth": 7}));
    let sql = "SELECT run_id::text FROM workflow_runs WHERE workflow_name = 'outer' AND chain_depth = 7";
    let run: String = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a run");
    let run = environment.get(&format!("/api/v1/runs/{run}")).await;
    let sql = "SELECT data -> 'trigger' FROM webhook_events WHERE run_id = $1 AND event_type = 'run.completed'";
    let told: Value = sqlx::query_scalar(sql).bind(run["run_id"].as_str()).fetch_one(&pool).await.expect("an event");
    assert_eq!(told, run["trigger"]);
}

/// A trigger whose failure to start is delivered to itself: each failure is told once, however often its delivery is
/// repeated, and the chain ends.
#[sqlx::test(migrations = false)]
async fn a_trigger_that_is_told_of_its_own_failures_does_not_loop(pool: PgPool) {
    let environment = Environment::new(&pool).with("WEBHOOK_RETRY_SECONDS", "1,1");
    let _api = environment.serve().await;
    let endpoint = json!({"event_types": ["trigger.failed_to_start"]});
    let trigger = loop_back(&environment, "there is none", endpoint).await;
    let fired = environment.post(&format!("{trigger}/fire"), &json!({})).await.expect("an answer");
    assert!(fired.status().is_success() || fired.status().is_client_error(), "{fired:?}");
    let failed = "SELECT count(*) FROM webhook_deliveries WHERE state = 'failed'";
    eventually("all have failed", async || (count(&pool, failed).await == i64::from(MAX_CHAIN) + 1).then_some(()))
        .await;
    let attempts = "SELECT count(*) FROM webhook_attempts";
    assert_eq!(count(&pool, attempts).await, 3 * (i64::from(MAX_CHAIN) + 1));
    let sql = "SELECT (data -> 'trigger' ->> 'depth')::int FROM webhook_events ORDER BY 1";
    let told: Vec<i32> = sqlx::query_scalar(sql).fetch_all(&pool).await.expect("depths");
    assert_eq!(told, (0..=i32::from(MAX_CHAIN)).collect::<Vec<_>>());
    assert_eq!(count(&pool, "SELECT count(*) FROM webhook_events WHERE to_fan_out").await, 0);
}
