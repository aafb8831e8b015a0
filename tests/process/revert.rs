//! Migrations are reverted and run again one by one, with data of every kind in every table.

use std::time::Duration;

use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool};
use workflow_api::{
    config::{self, Database},
    db::migrations::{self, MIGRATOR, MigrationError, WaitLimit},
    kafka,
};

use crate::{
    empty_database::empty,
    program::{Environment, eventually},
    restore::{Agent, Runs, assert_consistent, becomes},
};

/// The schema of the reference deployment with some data, which going back leaves as they are.
const REFERENCE: &str = include_str!("../it/reference_schema.sql");
/// The migration whose reversal needs agents and workflows to have different names.
const ORGANIZATIONS: i64 = 20_261_121_000_021;

async fn run(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.expect(sql);
}

async fn texts(pool: &PgPool, sql: &str) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(pool).await.expect(sql)
}

/// The columns of each table, as text; the bookkeeping of the migrations is none of them.
async fn columns(pool: &PgPool) -> Vec<(String, String)> {
    let sql = "SELECT table_name::text, string_agg(quote_ident(column_name), ', ' ORDER BY column_name)
               FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> '_sqlx_migrations'
               GROUP BY table_name ORDER BY table_name";
    sqlx::query_as(sql).fetch_all(pool).await.expect("the catalogue")
}

/// The content of these columns, a line for each table.
async fn content(pool: &PgPool, columns: &[(String, String)]) -> Vec<String> {
    let mut lines = Vec::new();
    for (table, columns) in columns {
        let sql = format!(
            "SELECT '{table}: ' || coalesce(string_agg(entry.line, E'\\n' ORDER BY entry.line), '')
             FROM (SELECT to_jsonb(shown)::text AS line FROM (SELECT {columns} FROM {table}) AS shown) AS entry"
        );
        lines.extend(texts(pool, &sql).await);
    }
    lines
}

/// Columns, indexes, constraints and triggers of the tables.
async fn schema(pool: &PgPool) -> Vec<String> {
    let sql = "
        SELECT format('%s.%s %s %s %s', table_name, column_name, data_type, is_nullable, column_default)
        FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> '_sqlx_migrations'
        UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> '_sqlx_migrations'
        UNION ALL SELECT format('%s %s', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> '_sqlx_migrations'
        UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        ORDER BY 1";
    texts(pool, sql).await
}

async fn down(settings: &Database) -> Result<usize, MigrationError> {
    migrations::down(settings, 1, &WaitLimit::none()).await
}

/// Causes what no run of [`Runs`] does: a dead letter, a failed call, an answer to a repeated request, a cursor.
async fn cause_the_rest(environment: &Environment, pool: &PgPool) {
    let settings = environment.kafka();
    let producer: FutureProducer = kafka::client_config(&settings).create().expect("a client");
    let record = FutureRecord::<str, str>::to(&settings.execution_topic).payload("no request");
    producer.send(record, Duration::from_secs(30)).await.expect("sent");
    let unreachable = environment.chain("unreachable", &["http://127.0.0.1:9/".to_owned()]).await;
    let mut executor = environment.start(&["executor"]);
    let failed = environment.execute(&unreachable).await.expect("accepted");
    becomes(pool, &failed, "FAILED").await;
    eventually("the record is a dead letter", async || {
        (texts(pool, "SELECT id::text FROM dead_letters").await.len() == 1).then_some(())
    })
    .await;
    executor.terminate().await;
    assert_eq!(executor.exit_code().await, 0, "{}", executor.log());
    let agent = json!({"name": "repeated", "url": "http://127.0.0.1:9/"});
    let answer = reqwest::Client::new()
        .post(format!("{}/api/v1/agents", environment.url))
        .header("idempotency-key", "first")
        .json(&agent)
        .send();
    assert_eq!(answer.await.expect("an answer").status(), 201);
    for (path, body) in [
        ("organizations", json!({"id": "acme", "name": "Acme"})),
        ("api-keys", json!({"name": "own", "role": "admin"})),
        ("api-keys", json!({"name": "theirs", "role": "admin", "organization_id": "acme"})),
    ] {
        let answer = environment.post(&format!("/api/v1/{path}"), &body).await.expect("an answer");
        assert_eq!(answer.status(), 201, "{path}: {}", answer.text().await.expect("a text"));
    }
    assert!(environment.get("/api/v1/agents?page_size=1").await["next_cursor"].is_string());
}

/// Rows that the service writes seldom or only for a moment, and those of other programs.
const SELDOM: &str = "
    INSERT INTO storage_samples (day, table_name, bytes, row_estimate) VALUES ('2026-01-01', 'agents', 1, 1);
    INSERT INTO flow_wakes (organization_id, workflow_name, flow_stage, flow_key) VALUES ('default', 'w', 'throttle', '');
    INSERT INTO flow_throttles (organization_id, workflow_name, flow_key, busy_until) VALUES ('default', 'w', '', now());
    INSERT INTO run_wakes (run_id) SELECT run_id FROM workflow_runs WHERE parked_at IS NOT NULL LIMIT 1;
    INSERT INTO monitoring_outbox (id, updates) VALUES (gen_random_uuid(), ARRAY['{}']);
    INSERT INTO invariant_checks (name, violations) VALUES ('runs_are_counted', 0);
    INSERT INTO agent_cards (agent_id, url_digest) SELECT id, '\\x00' FROM agents LIMIT 1 ON CONFLICT DO NOTHING;
    INSERT INTO agent_hours (agent_id, hour, calls, failures, latency, tokens, cost)
        SELECT id, now(), 1, 0, ARRAY[1], 7, 0.5 FROM agents LIMIT 1 ON CONFLICT DO NOTHING;
    INSERT INTO agent_health (agent_id, url_digest, is_healthy) SELECT id, '\\x00', false FROM agents LIMIT 1
        ON CONFLICT DO NOTHING;
    UPDATE agents SET fallbacks = ARRAY['other'];
    INSERT INTO webhooks (id, organization_id, name, url, event_types, payload, ordering, signature, sealed, secret_hint,
        secret_created_at, max_in_flight, enabled, created_by, updated_by, created_at, updated_at)
        VALUES (gen_random_uuid(), 'default', 'w', 'https://example.com/', '{*}', 'thin', 'none', 'hmac', '{}', 'whsec_', now(),
        8, true, 'me', 'me', now(), now());
    INSERT INTO webhook_states (webhook_id) SELECT id FROM webhooks;
    INSERT INTO webhook_replays (id, webhook_id, which, since, until, phase, created_by)
        SELECT gen_random_uuid(), id, 'failed', now(), now(), 'deliveries', 'me' FROM webhooks;
    INSERT INTO webhook_deliveries (id, webhook_id, organization_id, event_id, event_type, event_at, body, state)
        SELECT id, id, 'default', id, 'run.failed', now(), '{}', 'failed' FROM webhooks;
    INSERT INTO webhooks (id, organization_id, name, lane) VALUES (gen_random_uuid(), 'default', 'push notifications', 1);
    INSERT INTO task_pushes (id, organization_id, run_id, name, url, protocol, sealed, webhook_id, created_by)
        SELECT id, 'default', 'run-1', 'a', 'https://example.com/', '1.0', '{}', id, 'me' FROM webhooks WHERE lane = 1;
    INSERT INTO given_up_tasks (attempt_id, run_id, organization_id, agent_name, task, cancel_at)
        VALUES ('a', 'run-1', 'default', 'a', jsonb_build_object('kind', 'a2a', 'id', 't'), now() + interval '1 hour');
    INSERT INTO webhook_deliveries (id, webhook_id, organization_id, event_id, event_type, event_at, body, state, push_id)
        SELECT id, id, 'default', id, 'run.failed', now(), '{}', 'failed', id FROM webhooks WHERE lane = 1;
    INSERT INTO webhook_attempts (id, delivery_id, created_at, number, started_at, duration_ms, outcome, is_internal)
        SELECT id, id, created_at, 1, now(), 1, 'network', false FROM webhook_deliveries;
    INSERT INTO workflow_silences (organization_id, workflow_name) VALUES ('default', 'w');
    INSERT INTO event_topics (topic) VALUES ('events');
    SELECT record_event('default', 'schedule.missed', NULL, '{}');
    INSERT INTO console_sessions (id, secret_hash, organization_id, subject, sealed_token, expires_at)
        VALUES (gen_random_uuid(), '\\x00', 'default', 'a', '\\x00', now() + interval '1 hour');
    INSERT INTO saved_views (id, organization_id, screen, name, query, created_by, updated_by)
        VALUES (gen_random_uuid(), 'default', 'runs', 'a', '', 'a', 'a');
    INSERT INTO step_deltas (run_id, attempt_id, step_id, append) SELECT run_id, 'a', 'a', false FROM workflow_runs LIMIT 1;
    INSERT INTO agent_pushes (id, token_hash, attempt_id, waiter, expires_at)
        VALUES (gen_random_uuid(), '\\x00', 'a', gen_random_uuid(), now());
    INSERT INTO run_usage (run_id, limits) SELECT run_id, '{}' FROM workflow_runs LIMIT 1;
    INSERT INTO call_reservations (account_id, attempt_id, run_id, tokens, cost) SELECT run_id, 'a', run_id, 1, 0.5 FROM run_usage;
    INSERT INTO run_usage (run_id, calls, cost) SELECT run_id, 1, 0.5 FROM workflow_runs OFFSET 1 LIMIT 1;
    INSERT INTO call_usage (attempt_id, row_id, run_id, step_id, organization_id, workflow_id, agent_name, cost)
        SELECT 'a', 'a', run_id, 'a', 'default', 'w', 'a', cost FROM run_usage WHERE calls = 1;
    INSERT INTO triggers (id, organization_id, name, kind, workflow_name, priority, labels, config, enabled, created_by,
            updated_by, created_at, updated_at)
        VALUES ('00000000-0000-0000-0000-000000000007', 'default', 'a', 'schedule', 'a', 5, '{}', '{}', true, 'a', 'a', now(), now());
    INSERT INTO trigger_firings (trigger_id, nominal_at, cause, outcome)
        SELECT id, now(), 'event', 'started' FROM triggers;
    INSERT INTO trigger_schedules (trigger_id, processed_until, failures_since) SELECT id, now(), now() FROM triggers;
    INSERT INTO trigger_backfills (id, trigger_id, state, from_at, to_at, overlap, force, total, processed_until, created_by)
        SELECT id, id, 'completed', now(), now(), 'allow', false, 0, now(), 'a' FROM triggers;
    UPDATE workflow_runs SET trigger_kind = 'schedule', trigger_id = '00000000-0000-0000-0000-000000000007', trigger_at = now()
        WHERE run_id = 'test-run-1';
    INSERT INTO audit_logs (entity_type, entity_id, action) VALUES ('agent', gen_random_uuid(), 'create');
    INSERT INTO workflow_steps (workflow_id, step_id) SELECT id, 'a' FROM workflow_definitions LIMIT 1;
    INSERT INTO ai_chat_sessions (id, status, created_at, updated_at, expires_at, messages)
        VALUES (gen_random_uuid(), 'active', now(), now(), now(), '[]');
    INSERT INTO triggers (id, organization_id, name, kind, workflow_name, priority, labels, config, enabled, created_by,
        updated_by, created_at, updated_at)
        VALUES (gen_random_uuid(), 'default', 'w', 'webhook', 'w', 5, '{}', '{\"preset\":\"none\"}', true, 'u', 'u', now(), now());
    INSERT INTO trigger_firings (trigger_id, nominal_at, cause, outcome) SELECT id, now(), 'event', 'started' FROM triggers;
    INSERT INTO webhook_triggers (trigger_id, token_hash) SELECT id, '\\x00' FROM triggers WHERE name = 'w';
    INSERT INTO kafka_triggers (trigger_id, group_id) SELECT id, 'wf-trigger-x' FROM triggers WHERE name = 'w';
    INSERT INTO kafka_groups_to_delete (group_id) VALUES ('wf-trigger-y');
    INSERT INTO webhook_trigger_deliveries (trigger_id, delivery_hash, run_id) SELECT id, '\\x00', 'r' FROM triggers WHERE name = 'w';
    INSERT INTO agents (name, url, organization_id) VALUES ('done-0', 'http://192.0.2.1/', 'acme');";

#[sqlx::test(migrations = false)]
async fn every_migration_is_reverted_and_run_again_with_data_in_every_table(pool: PgPool) {
    empty(&pool).await;
    run(&pool, REFERENCE).await;
    // Nothing is known of the message of this run.
    run(&pool, "UPDATE workflow_runs SET status = 'FAILED' WHERE run_id = 'test-run-1'").await;
    let (own_columns, own_schema) = (columns(&pool).await, schema(&pool).await);
    let environment = Environment::new(&pool);
    let mut api = environment.serve().await;
    cause_the_rest(&environment, &pool).await;
    let (agent, url) = Agent::start().await;
    let pending = environment.chain("pending", &[format!("{url}/pending")]).await;
    Runs::in_every_state(&environment, &pool, &agent, &url).await;
    for (what, sql) in [
        ("entries are sealed", "SELECT number::text FROM audit_seals LIMIT 1"),
        ("runs are counted", "SELECT status FROM run_counts_folded LIMIT 1"),
        ("messages are sent", "SELECT 'all' WHERE NOT EXISTS (SELECT FROM outbox_messages)"),
    ] {
        eventually(what, async || texts(&pool, sql).await.pop()).await;
    }
    api.kill().await;
    let mut api = environment.clone().with("KAFKA_BROKERS", "127.0.0.1:1").serve().await;
    for is_cancelled in [false, true] {
        let unsent = environment.execute(&pending).await.expect("accepted");
        if is_cancelled {
            let answer = environment.post(&format!("/api/v1/runs/{unsent}/cancel"), &json!({})).await;
            assert_eq!(answer.expect("an answer").status(), 200);
        }
    }
    api.kill().await;
    run(&pool, SELDOM).await;
    assert_consistent(&environment).await;
    let mut without_rows = Vec::new();
    let tables =
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
                  AND NOT relispartition ORDER BY 1";
    for table in texts(&pool, tables).await {
        let sql = format!("SELECT '{table}' WHERE NOT EXISTS (SELECT FROM {table})");
        without_rows.extend(texts(&pool, &sql).await);
    }
    assert_eq!(
        without_rows,
        Vec::<String>::new(),
        "each table needs rows, so that its migrations are tested with data"
    );

    let settings: Database = config::load(environment.variables.clone().into_iter()).expect("valid settings");
    let mut before = content(&pool, &own_columns).await;
    let versions: Vec<i64> = MIGRATOR
        .iter()
        .filter(|migration| migration.migration_type.is_up_migration())
        .map(|migration| migration.version)
        .collect();
    for &version in versions.iter().rev() {
        if version == ORGANIZATIONS {
            let error = format!("{:?}", down(&settings).await.expect_err("a name is used twice"));
            assert!(error.contains("both have the agent") && error.contains("done-0"), "{error}");
            run(&pool, "DELETE FROM agents WHERE organization_id = 'acme'").await;
            before = content(&pool, &own_columns).await;
        }
        for is_last in [false, true] {
            assert_eq!(down(&settings).await.expect("down"), 1, "{version}");
            assert_eq!(content(&pool, &own_columns).await, before, "{version} down");
            if !is_last {
                MIGRATOR.run_to(version, &pool).await.expect("up");
                assert_eq!(content(&pool, &own_columns).await, before, "{version} up");
            }
        }
        if version == ORGANIZATIONS {
            let names = texts(&pool, "SELECT name FROM api_keys").await;
            assert_eq!(names, ["own"], "keys of other organisations would be valid for all data");
        }
    }
    let mut left = schema(&pool).await;
    // The reference deployment has these indexes too; its schema here lacks them.
    left.retain(|line| !line.contains("ix_ai_chat_sessions"));
    assert_eq!(left, own_schema);
    migrations::up(&settings, &WaitLimit::none()).await.expect("up");
    assert_eq!(content(&pool, &own_columns).await, before);

    // Open runs have lost their place; they can be cancelled.
    let _api = environment.serve().await;
    let open = "SELECT run_id FROM workflow_runs WHERE status IN ('PENDING', 'RUNNING') ORDER BY 1";
    let runs = texts(&pool, open).await;
    assert_eq!(runs.len(), 6, "{runs:?}");
    for run_id in runs {
        let answer = environment.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await;
        assert_eq!(answer.expect("an answer").status(), 200, "{run_id}");
    }
    assert_consistent(&environment).await;
}

/// The migrations of one day.
#[sqlx::test(migrations = false)]
async fn runs_go_on_after_the_newest_migrations_were_reverted_and_run_again(pool: PgPool) {
    let environment = Environment::new(&pool);
    let mut api = environment.serve().await;
    let (agent, url) = Agent::start().await;
    let runs = Runs::in_every_state(&environment, &pool, &agent, &url).await;
    api.kill().await;
    let newest = MIGRATOR
        .iter()
        .filter(|migration| migration.migration_type.is_up_migration() && migration.version >= 20_261_129_000_000);
    let output = environment.run(&["migrate", "down", &newest.count().to_string(), "--yes"]).await;
    assert!(output.status.success(), "{output:?}");
    let output = environment.run(&["migrate", "up"]).await;
    assert!(output.status.success(), "{output:?}");
    let _api = environment.serve().await;
    let _executor = environment.start(&["executor"]);
    runs.go_on(&environment, &pool, &agent).await;
    assert_consistent(&environment).await;
}
