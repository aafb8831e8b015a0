//! `check invariants`: what it finds when the rows of different tables contradict each other.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;
use sqlx::PgPool;
use workflow_api::db::{
    invariants::{self, Invariant},
    migrations::MIGRATOR,
};

use crate::service::{Service, config, eventually};

async fn check(pool: &PgPool) -> Vec<Invariant> {
    let found = invariants::check(&config(pool, &[]).database).await.expect("a report");
    let failed: Vec<_> = found.iter().filter(|invariant| invariant.error.is_some()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    found
}

fn violated(found: &[Invariant]) -> BTreeSet<&'static str> {
    found.iter().filter(|invariant| invariant.violations > 0).map(|invariant| invariant.name).collect()
}

/// What only a mistake or somebody with all rights can do.
async fn past_the_triggers(pool: &PgPool, sql: &str) {
    let mut transaction = pool.begin().await.expect("a transaction");
    sqlx::query("SET LOCAL session_replication_role = replica").execute(&mut *transaction).await.expect("done");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *transaction).await.expect(sql);
    transaction.commit().await.expect("done");
}

/// A run with everything that belongs to one: steps, events, a key, a wait.
const RUN: &str = "
    INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, workflow_version, claimed_at)
    VALUES ('run-a', 'w', 'w', 'COMPLETED', 1, now()), ('run-b', 'w', 'w', 'FAILED', 1, now());
    INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data)
    VALUES ('s', 'run-a', 's', 's', 'a', 'COMPLETED', '{}');
    INSERT INTO step_waits (run_id, place, step_id, attempt_id, child_run_id) VALUES ('run-a', '/s', 's', 's', 'run-b');
    INSERT INTO idempotency_keys (scope, key, fingerprint, run_id) VALUES ('x', 'k', '', 'run-a');";

#[sqlx::test(migrator = "MIGRATOR")]
async fn rows_that_contradict_each_other_are_found_by_name(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    let run_id = service.execute(&workflow_id).await;
    service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    let open = service.execute(&workflow_id).await;
    eventually("the trail is sealed", async || {
        let found = service.get("/api/v1/audit-logs/verify").await.expect(200);
        (found["unsealed"] == 0 && found["entries"].as_i64() > Some(0)).then_some(())
    })
    .await;
    sqlx::raw_sql(RUN).execute(&pool).await.expect("a run");
    assert_eq!(violated(&check(&pool).await), BTreeSet::new());
    service.stop().await;
    assert_eq!(violated(&check(&pool).await), BTreeSet::new(), "without a service");

    let mut expected = BTreeSet::new();
    for (sql, names) in [
        ("UPDATE step_waits SET child_run_id = 'run-none'", &["waits_have_their_sub_run"][..]),
        ("UPDATE step_executions SET status = 'RUNNING' WHERE id = 's'", &["ended_runs_have_no_open_step"]),
        (
            "DELETE FROM workflow_runs WHERE run_id = 'run-a'",
            &["steps_have_a_run", "waits_have_a_run", "events_have_a_run", "idempotency_keys_have_their_run"],
        ),
        ("INSERT INTO run_wakes (run_id) VALUES ('run-none')", &["wakes_have_a_run"]),
        (
            "INSERT INTO outbox_batches (id, owner, run_ids, event_ids)
             VALUES (gen_random_uuid(), gen_random_uuid(), '{run-none}', ARRAY[gen_random_uuid()])",
            &["outbox_messages_have_a_run"],
        ),
        ("UPDATE workflow_runs SET workflow_version = 99 WHERE status = 'PENDING'", &["open_runs_have_a_definition"]),
        ("UPDATE workflow_runs SET workflow_version = NULL WHERE status = 'PENDING'; DELETE FROM outbox;
             DELETE FROM outbox_batches WHERE run_ids <> '{run-none}'",
            &["pending_runs_are_dispatched"]),
        (
            "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, claimed_at, wake_at)
             VALUES ('run-lost', 'w', 'w', 'RUNNING', now(), NULL), ('run-parked', 'w', 'w', 'RUNNING', now(), 'infinity')",
            &["running_runs_are_recoverable", "parked_runs_can_wake"],
        ),
        (
            "INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data)
             VALUES ('asks', 'run-parked', 's', 's', 'a', 'PENDING', '{}');
             INSERT INTO step_waits (run_id, place, step_id, attempt_id, answered_at, answer)
             VALUES ('run-parked', '/s', 's', 'asks', now(), '{}')",
            &["waits_wake_their_run"],
        ),
        (
            "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, parent_run_id, wake_at)
             VALUES ('run-child', 'w', 'w', 'PENDING', 'run-none', now())",
            &["open_sub_runs_have_an_open_parent", "sub_runs_have_a_parent"],
        ),
        ("INSERT INTO run_totals_folded (organization_id, status, runs) VALUES ('other', 'FAILED', 1)", &["run_totals_are_exact"]),
        (
            "INSERT INTO run_counts_folded (organization_id, workflow_id, workflow_name, status, runs)
             VALUES ('default', 'deleted', 'deleted', 'FAILED', 1)",
            &["run_counts_are_exact"],
        ),
        ("INSERT INTO run_usage (run_id, calls) VALUES ('run-parked', 1)", &["run_usage_is_exact"]),
        (
            "UPDATE workflow_runs SET flow_stage = 'concurrency', flow_state = 'queued', flow_key = '',
                 flow_at = now() - interval '1 minute' WHERE run_id = 'run-child'",
            &["held_runs_have_a_reason"],
        ),
        (
            "UPDATE workflow_definitions
             SET flow_control = '{\"concurrency\": {\"limit\": 1}}', updated_at = updated_at - interval '1 hour';
             UPDATE workflow_runs SET flow_stage = 'concurrency', flow_state = 'admitted', flow_key = 'k', flow_at = now(),
                 workflow_name = 'one-step' WHERE run_id IN ('run-lost', 'run-parked')",
            &["slots_are_within_their_limit"],
        ),
        (
            "INSERT INTO triggers (id, organization_id, name, kind, workflow_name, priority, labels, config, enabled,
                 created_by, updated_by, created_at, updated_at)
             SELECT gen_random_uuid(), 'default', kind, kind, 'w', 5, '{}', '{}', true, 'x', 'x', now(), now()
             FROM unnest(ARRAY['schedule', 'webhook']) AS kind",
            &["triggers_can_fire"],
        ),
        (
            "INSERT INTO webhooks (id, organization_id, url) VALUES (gen_random_uuid(), 'default', 'https://example.com/');
             INSERT INTO webhook_states (webhook_id) SELECT id FROM webhooks;
             INSERT INTO webhook_deliveries (id, webhook_id, organization_id, event_id, event_type, event_at, body, state)
             SELECT gen_random_uuid(), id, 'default', gen_random_uuid(), 'run.failed', now(), '{}', 'pending' FROM webhooks",
            &["webhook_deliveries_go_on"],
        ),
        ("UPDATE audit_logs SET user_id = 'another' WHERE action = 'cancel'", &["audit_trail_is_whole"]),
    ] {
        past_the_triggers(&pool, sql).await;
        expected.extend(names);
        // What one fault hides of another.
        for (fault, hidden) in [
            ("steps_have_a_run", "ended_runs_have_no_open_step"),
            ("pending_runs_are_dispatched", "open_runs_have_a_definition"),
            ("waits_wake_their_run", "parked_runs_can_wake"),
        ] {
            if names.contains(&fault) {
                expected.remove(hidden);
            }
        }
        assert_eq!(violated(&check(&pool).await), expected, "{sql}");
    }
    let found = check(&pool).await;
    let ids = |name: &str| found.iter().find(|invariant| invariant.name == name).expect("there").ids.clone();
    assert_eq!(ids("pending_runs_are_dispatched"), [open]);
    assert_eq!(ids("running_runs_are_recoverable"), ["run-lost"]);
    assert_eq!((ids("triggers_can_fire").len(), ids("webhook_deliveries_go_on").len()), (2, 1));
    assert_eq!(ids("run_counts_are_exact"), ["default deleted FAILED"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn tables_larger_than_a_part_are_checked_to_their_end(pool: PgPool) {
    let sql = "
        INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, parent_run_id)
        SELECT 'run-' || n, 'w', 'w', 'PENDING', 'run-none' FROM generate_series(1, 10000) AS n;
        INSERT INTO idempotency_keys (scope, key, fingerprint, run_id)
        SELECT 'scope', n, '', 'run-none' || n FROM generate_series(1, 10001) AS n;
        INSERT INTO run_events (run_id, kind) SELECT 'run-none' || n % 10002, 'run.created' FROM generate_series(1, 20004) AS n;
        INSERT INTO run_wakes (run_id) SELECT 'run-none' FROM generate_series(1, 10003);
        INSERT INTO outbox (run_id, event_id, kind)
        SELECT 'run-none', gen_random_uuid(), 'execution' FROM generate_series(1, 10004);
        INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data)
        SELECT n, 'run-none', 's', 's', 'a', 'COMPLETED', '{}' FROM generate_series(1, 10005) AS n;
        INSERT INTO step_waits (run_id, place, step_id) SELECT 'run-none', '/s', 's' FROM generate_series(1, 10006)";
    past_the_triggers(&pool, sql).await;
    let found = check(&pool).await;
    for (name, count) in [
        ("pending_runs_are_dispatched", 10_000),
        ("sub_runs_have_a_parent", 10_000),
        ("idempotency_keys_have_their_run", 10_001),
        ("events_have_a_run", 10_002),
        ("wakes_have_a_run", 10_003),
        ("outbox_messages_have_a_run", 10_004),
        ("steps_have_a_run", 10_005),
        ("waits_have_a_run", 10_006),
    ] {
        let invariant = found.iter().find(|invariant| invariant.name == name).expect("there");
        assert_eq!((invariant.violations, invariant.ids.len()), (count, 10), "{invariant:?}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_recorded_result_is_in_the_metrics_of_the_api(pool: PgPool) {
    let service = Service::start(&pool);
    let settings = config(&pool, &[]).database;
    sqlx::query("INSERT INTO run_wakes (run_id) VALUES ('run-none')").execute(&pool).await.expect("a row");
    let mut found = invariants::check(&settings).await.expect("a report");
    let unknown = found[0].name;
    found[0].error = Some("it took too long".to_owned());
    invariants::record(&settings, &found).await.expect("recorded");
    let metrics = eventually("the metrics have it", async || {
        service.clock.advance(Duration::from_secs(5));
        let text = service.get("/metrics").await.text;
        text.contains("\nworkflow_api_invariants_check_success 0\n").then_some(text)
    })
    .await;
    let line = |name: &str, count: u64| format!("workflow_api_invariant_violations{{invariant=\"{name}\"}} {count}\n");
    assert!(
        metrics.contains(&line("wakes_have_a_run", 1)) && metrics.contains(&line("steps_have_a_run", 0)),
        "{metrics}"
    );
    assert!(!metrics.contains(&format!("invariant=\"{unknown}\"")), "{metrics}");

    // A release that has one invariant less.
    invariants::record(&settings, &found[1..]).await.expect("recorded");
    let recorded = invariants::recorded(&pool).await.expect("results");
    let expected: BTreeSet<&str> = found[1..].iter().map(|invariant| invariant.name).collect();
    assert_eq!(recorded.iter().map(|one| one.name.as_str()).collect::<BTreeSet<_>>(), expected);
}
