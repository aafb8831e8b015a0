//! Retention: old ended runs are deleted with all their rows, and nothing else.

mod archive;
mod storage;

use futures_util::{StreamExt as _, future::join_all};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use workflow_api::{
    db::{self, migrations::MIGRATOR},
    purge::Purge,
    retention,
};

use crate::{
    access::Admin,
    service::{Service, config, eventually},
};

/// Inserts a run that ended this many days ago, with rows in all tables.
async fn run(pool: &PgPool, run_id: &str, status: &str, days: i32) {
    let sql =
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, input_data, completed_at, cancelled_at,
                   created_at, updated_at, executor_id, lease_token)
               SELECT $1, 'w', 'flow', $2, '{\"n\": 12345678901234567890}', CASE WHEN $2 <> 'CANCELLED' THEN at END,
                   CASE WHEN $2 = 'CANCELLED' THEN at END, at - interval '1 hour', at, live, live
               FROM (SELECT now() AT TIME ZONE 'UTC' - make_interval(days => $3) AS at,
                   CASE WHEN $2 = 'RUNNING' THEN gen_random_uuid() END AS live) AS ended";
    sqlx::query(sql).bind(run_id).bind(status).bind(days).execute(pool).await.expect("a run");
    for sql in [
        "INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, output_data)
         SELECT $1 || '-' || n, $1, 's', 's', 'a', 'COMPLETED', '{}', '{\"text\": \"done\"}' FROM generate_series(1, 3) n",
        "INSERT INTO run_events (run_id, kind) VALUES ($1, 'run.started')",
        "INSERT INTO step_waits (run_id, place, step_id, token, token_hash) VALUES ($1, 's', 's', $1, sha256($1::bytea))",
        "INSERT INTO run_wakes (run_id) VALUES ($1)",
        "INSERT INTO outbox (run_id, event_id, kind) VALUES ($1, gen_random_uuid(), 'execution')",
        "INSERT INTO sub_run_counts (root_run_id, begun) VALUES ($1, 1)",
        "INSERT INTO idempotency_keys (scope, key, fingerprint, run_id) VALUES ('s', $1, 'f', $1)",
        "INSERT INTO run_usage (run_id, calls, cost) VALUES ($1, 1, 0.000000000001)",
        "INSERT INTO call_usage (attempt_id, row_id, run_id, step_id, organization_id, workflow_id, agent_name, cost)
         VALUES ($1, $1, $1, 's', 'default', 'w', 'a', 0.000000000001)",
        "INSERT INTO call_reservations (account_id, attempt_id, run_id, tokens, cost) VALUES ($1, $1, $1, 1, 0)",
    ] {
        sqlx::query(sql).bind(run_id).execute(pool).await.expect(sql);
    }
}

/// Inserts a sub-run of another run.
async fn sub_run(pool: &PgPool, run_id: &str, parent: &str, status: &str, days: i32) {
    run(pool, run_id, status, days).await;
    let sql = "UPDATE workflow_runs SET parent_run_id = $2 WHERE run_id = $1";
    sqlx::query(sql).bind(run_id).bind(parent).execute(pool).await.expect("a sub-run");
    let sql = "UPDATE step_waits SET child_run_id = $1 WHERE run_id = $2";
    sqlx::query(sql).bind(run_id).bind(parent).execute(pool).await.expect("a wait");
}

/// The ids of the runs in a table.
async fn runs_in(pool: &PgPool, table: &str) -> Vec<String> {
    let column = if table == "sub_run_counts" { "root_run_id" } else { "run_id" };
    let sql = format!("SELECT DISTINCT {column}::text FROM {table} ORDER BY 1");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(pool).await.expect(table)
}

/// All runs.
async fn runs(pool: &PgPool) -> Vec<String> {
    runs_in(pool, "workflow_runs").await
}

/// Deletion with the default settings and `more`.
fn purge(pool: &PgPool, more: &[(&str, &str)]) -> Purge {
    let config = config(pool, &[&[("RUN_RETENTION_DAYS", "90")], more].concat());
    Purge::new(db::pool(&config.database), &config.retention, config.audit).expect("valid settings")
}

/// Executes a whole pass over all runs, as soon as no service of the test executes one.
async fn pass(pool: &PgPool, purge: &Purge) {
    eventually("a pass", async || {
        // As a day later.
        let sql = "UPDATE run_retention SET scan = '{}' WHERE holder IS NULL";
        sqlx::query(sql).execute(pool).await.expect("reset");
        purge.pass().await.expect("a pass").then_some(())
    })
    .await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn ended_runs_are_deleted_after_their_retention_with_all_their_rows(pool: PgPool) {
    for status in ["COMPLETED", "FAILED", "CANCELLED", "PENDING", "RUNNING"] {
        for days in [89, 91, 4000] {
            run(&pool, &format!("{status}-{days}"), status, days).await;
        }
    }
    // It has no end time, and was changed lately.
    run(&pool, "timeless", "FAILED", 500).await;
    let sql = "UPDATE workflow_runs SET completed_at = NULL, updated_at = now() WHERE run_id = 'timeless'";
    sqlx::query(sql).execute(&pool).await.expect("updated");
    pass(&pool, &purge(&pool, &[])).await;
    let kept = [
        "CANCELLED-89",
        "COMPLETED-89",
        "FAILED-89",
        "PENDING-4000",
        "PENDING-89",
        "PENDING-91",
        "RUNNING-4000",
        "RUNNING-89",
        "RUNNING-91",
        "timeless",
    ];
    for table in [
        "workflow_runs",
        "step_executions",
        "run_events",
        "step_waits",
        "run_wakes",
        "outbox",
        "sub_run_counts",
        "idempotency_keys",
        "call_usage",
        "run_usage",
        "call_reservations",
    ] {
        assert_eq!(runs_in(&pool, table).await, kept, "{table}");
    }
    let counted: i64 =
        sqlx::query_scalar("SELECT sum(runs)::bigint FROM run_counts").fetch_one(&pool).await.expect("a count");
    assert_eq!(counted, 10, "the maintained counts follow");
    // Only the audit trail still refers to deleted runs.
    let sql = "SELECT table_name::text || '.' || column_name FROM information_schema.columns
               WHERE table_schema = 'public' AND column_name LIKE '%run_id' AND table_name NOT LIKE '%_overview'
                   -- Partitions.
                   AND table_name NOT IN (SELECT relname FROM pg_class WHERE relispartition)
                   AND table_name NOT IN ('outbox_messages', 'step_durations') ORDER BY 1";
    let columns: Vec<String> = sqlx::query_scalar(sql).fetch_all(&pool).await.expect("columns");
    let known = [
        "call_reservations.run_id",
        "call_usage.run_id",
        "dead_letters.run_id",
        // Deleted when the task has been cancelled, or after five attempts.
        "given_up_tasks.run_id",
        "idempotency_keys.run_id",
        "outbox.run_id",
        "run_events.run_id",
        "run_usage.run_id",
        "run_wakes.run_id",
        // Deleted some seconds after its attempt.
        "step_deltas.run_id",
        "step_executions.run_id",
        "step_waits.child_run_id",
        "step_waits.run_id",
        "sub_run_counts.root_run_id",
        // Deleted a day after the run has ended or is gone.
        "task_pushes.run_id",
        // Kept for days of their own, whatever the retention of runs.
        "trigger_firings.run_id",
        "webhook_deliveries.run_id",
        "webhook_events.run_id",
        "webhook_trigger_deliveries.run_id",
        "workflow_runs.parent_run_id",
        "workflow_runs.run_id",
    ];
    assert_eq!(columns, known, "does it go with its run?");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_pass_is_one_entry_of_the_audit_trail_and_counted_in_the_metrics(pool: PgPool) {
    let service = Service::start(&pool);
    for number in 0..7 {
        run(&pool, &format!("run-{number}"), "COMPLETED", 100 + number).await;
    }
    run(&pool, "other", "FAILED", 200).await;
    let sql = "UPDATE workflow_runs SET organization_id = 'acme' WHERE run_id = 'other'";
    sqlx::query(sql).execute(&pool).await.expect("moved");
    let purge = purge(&pool, &[]);
    pass(&pool, &purge).await;
    // A pass that deletes nothing writes no entry.
    pass(&pool, &purge).await;
    let entries = service.get("/api/v1/audit-logs?action=expire").await.expect(200)["items"].clone();
    assert_eq!(entries.as_array().map(Vec::len), Some(1), "{entries}");
    let changes = &entries[0]["after"];
    assert_eq!(
        (&changes["count"], &changes["reason"], &changes["archived"]),
        (&json!(7), &json!("retention"), &json!(false))
    );
    assert!(changes["ended_from"].as_str() < changes["ended_to"].as_str(), "{changes}");
    assert_eq!((&entries[0]["entity_type"], &entries[0]["user_id"]), (&json!("run"), &json!("system")));
    let sql = "SELECT (changes -> 'count')::int FROM audit_logs WHERE organization_id = 'acme' AND action = 'expire'";
    assert_eq!(sqlx::query_scalar::<_, i32>(sql).fetch_one(&pool).await.expect("its own entry"), 1);
    let metrics = service.get("/metrics").await.text;
    let deleted = |table: &str| {
        let name = format!("retention_deleted_rows_total{{table=\"{table}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok()).expect("counted")
    };
    // Other tests count here too.
    assert!(deleted("workflow_runs") >= 8 && deleted("step_executions") >= 24, "{metrics}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn workflows_and_organisations_can_have_their_own_retention(pool: PgPool) {
    let service = Service::start(&pool);
    let definition = |name: &str, days: Value| {
        json!({"name": name, "start_step": "p", "retention_days": days,
            "steps": {"p": {"id": "p", "type": "wait", "wait_config": {"duration_seconds": 1}}}})
    };
    service.post("/api/v1/workflows", &definition("short", json!(7))).await.expect(201);
    service.post("/api/v1/workflows", &definition("kept", json!(0))).await.expect(201);
    // The newest version counts.
    service.post("/api/v1/workflows", &definition("again", json!(1))).await.expect(201);
    service.post("/api/v1/workflows", &definition("again", json!(null))).await.expect(201);
    service
        .post("/api/v1/organizations", &json!({"id": "acme", "name": "Acme", "retention_days": 30}))
        .await
        .expect(201);
    for (workflow, organization) in [
        ("short", "default"),
        ("kept", "default"),
        ("again", "default"),
        ("flow", "default"),
        ("flow", "acme"),
        ("short", "acme"),
    ] {
        for days in [5, 10, 40, 100] {
            let run_id = format!("{organization}-{workflow}-{days}");
            run(&pool, &run_id, "COMPLETED", days).await;
            let sql = "UPDATE workflow_runs SET workflow_name = $2, organization_id = $3 WHERE run_id = $1";
            sqlx::query(sql).bind(run_id).bind(workflow).bind(organization).execute(&pool).await.expect("named");
        }
    }
    let days = async |prefix: &str| {
        let runs = runs(&pool).await.into_iter().filter(|run| run.starts_with(prefix));
        let mut days: Vec<u32> = runs.filter_map(|run| run.rsplit('-').next()?.parse().ok()).collect();
        days.sort_unstable();
        days
    };
    let purge = purge(&pool, &[]);
    pass(&pool, &purge).await;
    assert_eq!(days("default-short").await, [5]);
    assert_eq!(days("default-kept").await, [5, 10, 40, 100]);
    assert_eq!(days("default-again").await, [5, 10, 40]);
    assert_eq!(days("default-flow").await, [5, 10, 40]);
    assert_eq!(days("acme-flow").await, [5, 10]);
    // A workflow of the same name in another organisation is another one.
    assert_eq!(days("acme-short").await, [5, 10]);
    // A change applies to existing runs from the next pass on.
    service.put("/api/v1/organizations/acme", &json!({"retention_days": 7})).await.expect(200);
    let kept = service.get("/api/v1/workflow-names/kept").await.expect(200);
    let path = format!("/api/v1/workflows/{}", kept["id"].as_str().expect("an id"));
    service.put(&path, &json!({"retention_days": 20})).await.expect(200);
    pass(&pool, &purge).await;
    assert_eq!(days("acme-flow").await, [5]);
    assert_eq!(days("default-kept").await, [5, 10]);
    // 0 does not apply to workflows and organisations with their own value.
    let forever = self::purge(&pool, &[("RUN_RETENTION_DAYS", "0")]);
    service.put(&path, &json!({"retention_days": 6})).await.expect(200);
    pass(&pool, &forever).await;
    assert_eq!(days("default-kept").await, [5]);
    assert_eq!(days("default-flow").await, [5, 10, 40]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_and_its_sub_runs_are_deleted_together(pool: PgPool) {
    for (parent, parent_status, child_status, days) in [
        ("both", "COMPLETED", "COMPLETED", 100),
        ("running", "RUNNING", "COMPLETED", 100),
        ("retried", "FAILED", "RUNNING", 100),
        ("younger", "COMPLETED", "COMPLETED", 50),
    ] {
        run(&pool, parent, parent_status, 95).await;
        sub_run(&pool, &format!("{parent}-child"), parent, child_status, days).await;
        sub_run(&pool, &format!("{parent}-grandchild"), &format!("{parent}-child"), "CANCELLED", 200).await;
    }
    // The run that contained it does not exist.
    sub_run(&pool, "orphan", "gone", "COMPLETED", 100).await;
    let purge = purge(&pool, &[]);
    pass(&pool, &purge).await;
    let family = |name: &str| [name.to_owned(), format!("{name}-child"), format!("{name}-grandchild")];
    assert_eq!(runs(&pool).await, [family("retried"), family("running"), family("younger")].concat());
    // When the last run of a family has ended, the family is deleted.
    let sql =
        "UPDATE workflow_runs SET status = 'COMPLETED', completed_at = now() - interval '91 days', executor_id = NULL,
                   lease_token = NULL
               WHERE run_id IN ('running', 'retried-child')";
    sqlx::query(sql).execute(&pool).await.expect("ended");
    pass(&pool, &purge).await;
    assert_eq!(runs(&pool).await, family("younger"));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn batches_are_bounded_and_each_is_executed_once_with_any_number_of_processes(pool: PgPool) {
    for sql in [
        "CREATE TABLE batches (size bigint)",
        "CREATE FUNCTION note_batch() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN INSERT INTO batches SELECT count(*) FROM gone; RETURN NULL; END $$",
        "CREATE TRIGGER note AFTER DELETE ON workflow_runs REFERENCING OLD TABLE AS gone
         FOR EACH STATEMENT EXECUTE FUNCTION note_batch()",
        // Each thousand ended at the same time.
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, completed_at)
         SELECT 'run-' || n, 'w', 'w', 'COMPLETED', now() - make_interval(days => 100, secs => n / 1000) FROM generate_series(1, 2600) n",
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, completed_at)
         SELECT 'kept-' || n, 'w', 'w', 'COMPLETED', now() FROM generate_series(1, 10) n",
    ] {
        sqlx::query(sql).execute(&pool).await.expect(sql);
    }
    let purges: Vec<Purge> = (0..4).map(|_| purge(&pool, &[])).collect();
    let passes = join_all(purges.iter().map(Purge::pass)).await;
    assert!(passes.into_iter().any(|pass| pass.expect("a pass")));
    let whole = async || (runs(&pool).await.len() == 10).then_some(());
    eventually("all are deleted", async || {
        purges[0].pass().await.expect("a pass");
        whole().await
    })
    .await;
    let sizes: Vec<i64> =
        sqlx::query_scalar("SELECT size FROM batches WHERE size > 0").fetch_all(&pool).await.expect("sizes");
    assert_eq!(sizes.iter().sum::<i64>(), 2600);
    assert!(sizes.iter().all(|size| *size <= 500), "{sizes:?}");
    let sql = "SELECT sum((changes -> 'count')::int) FROM audit_logs WHERE action = 'expire'";
    let counted = async || {
        let counted: Option<i64> = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a sum");
        counted.filter(|count| *count == 2600)
    };
    eventually("all are in the audit trail", async || {
        purges[0].pass().await.expect("a pass");
        counted().await
    })
    .await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_process_that_has_lost_its_claim_deletes_nothing(pool: PgPool) {
    run(&pool, "old", "COMPLETED", 100).await;
    let own = crate::service::own_pool(&pool);
    let mut lost = db::retention::claim(&own, 60.0, true).await.expect("an answer").expect("the right");
    assert!(db::retention::claim(&own, 60.0, true).await.expect("an answer").is_none());
    // The same as after its expiry.
    sqlx::query("UPDATE run_retention SET next_at = now()").execute(&pool).await.expect("over");
    let mut holder = db::retention::claim(&own, 60.0, false).await.expect("an answer").expect("the right");
    let members = db::retention::families(&own, &["old".to_owned()]).await.expect("a family");
    let deleted = db::retention::delete(&own, &mut lost, &members, &[], 60.0).await.expect("an answer");
    assert!(deleted.is_none());
    assert_eq!(runs(&pool).await, ["old"]);
    assert_eq!(runs_in(&pool, "step_executions").await, ["old"]);
    let deleted = db::retention::delete(&own, &mut holder, &members, &[], 60.0).await.expect("an answer");
    assert_eq!(deleted.expect("deleted")["workflow_runs"], 1);
}

/// Run that failed long ago, and could be retried.
async fn failed(service: &Service, pool: &PgPool) -> String {
    let workflow = service.one_step_workflow().await;
    let run_id = service.execute(&workflow).await;
    let sql =
        "UPDATE workflow_runs SET status = 'FAILED', completed_at = now() - interval '100 days' WHERE run_id = $1";
    sqlx::query(sql).bind(&run_id).execute(pool).await.expect("failed");
    run_id
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_that_is_retried_at_the_same_moment_is_kept(pool: PgPool) {
    let service = Service::start(&pool);
    let run_id = failed(&service, &pool).await;
    let own = crate::service::own_pool(&pool);
    // The retry happens between the check of the run and its deletion.
    let members = db::retention::families(&own, std::slice::from_ref(&run_id)).await.expect("a family");
    assert_eq!(members.len(), 1);
    let retry = format!("/api/v1/runs/{run_id}/retry");
    service.post(&retry, &json!({})).await.expect(202);
    let mut claim =
        eventually("the right", async || db::retention::claim(&own, 60.0, true).await.expect("an answer")).await;
    let deleted = db::retention::delete(&own, &mut claim, &members, &[], 60.0).await.expect("an answer");
    assert_eq!(deleted.expect("a batch")["workflow_runs"], 0);
    db::retention::release(&own, claim.holder, 0.0).await.expect("released");
    assert_eq!(service.get(&format!("/api/v1/runs/{run_id}")).await.expect(200)["status"], "PENDING");

    // The retry has locked the run, and has not committed yet.
    let sql =
        "UPDATE workflow_runs SET status = 'FAILED', completed_at = now() - interval '100 days' WHERE run_id = $1";
    sqlx::query(sql).bind(&run_id).execute(&pool).await.expect("failed");
    let mut holder = pool.begin().await.expect("a transaction");
    let sql = "UPDATE workflow_runs SET status = 'PENDING', completed_at = NULL WHERE run_id = $1";
    sqlx::query(sql).bind(&run_id).execute(&mut *holder).await.expect("held");
    pass(&pool, &purge(&pool, &[])).await;
    holder.commit().await.expect("committed");
    assert_eq!(runs(&pool).await, [run_id]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_retry_that_waits_for_the_deletion_finds_no_run(pool: PgPool) {
    let service = Service::start(&pool);
    let run_id = failed(&service, &pool).await;
    let mut holder = pool.begin().await.expect("a transaction");
    sqlx::query("DELETE FROM outbox WHERE run_id = $1").bind(&run_id).execute(&mut *holder).await.expect("deleted");
    sqlx::query("DELETE FROM workflow_runs WHERE run_id = $1")
        .bind(&run_id)
        .execute(&mut *holder)
        .await
        .expect("deleted");
    let (retry, cancel) = (format!("/api/v1/runs/{run_id}/retry"), format!("/api/v1/runs/{run_id}/cancel"));
    let body = json!({});
    let (retried, cancelled, ()) = futures_util::join!(
        service.post(&retry, &body),
        service.post(&cancel, &body),
        async {
            let sql = "SELECT count(*) > 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            let both = async || sqlx::query_scalar::<_, bool>(sql).fetch_one(&pool).await.expect("an answer");
            eventually("both wait", async || both().await.then_some(())).await;
            holder.commit().await.expect("committed");
        }
    );
    assert_eq!(retried.error(404)["code"], "run_not_found");
    assert_eq!(cancelled.error(404)["code"], "run_not_found");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_deleted_run_is_not_found_and_its_idempotency_key_is_free_again(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow = service.one_step_workflow().await;
    let execute = format!("/api/v1/workflows/{workflow}/execute");
    let headers = [("content-type", "application/json"), ("idempotency-key", "order-7")];
    let body = json!({"input_data": {"text": "hello"}}).to_string();
    let first = service.send("POST", &execute, &headers, body.clone()).await.expect(202);
    let run_id = first["run_id"].as_str().expect("an id").to_owned();
    let sql =
        "UPDATE workflow_runs SET status = 'FAILED', completed_at = now() - interval '100 days' WHERE run_id = $1";
    sqlx::query(sql).bind(&run_id).execute(&pool).await.expect("failed");
    let repeated = service.send("POST", &execute, &headers, body.clone()).await.expect(202);
    assert_eq!(repeated["run_id"], first["run_id"]);
    pass(&pool, &purge(&pool, &[])).await;
    for path in ["", "/steps", "/logs", "/events", "/graph"] {
        let answer = service.get(&format!("/api/v1/runs/{run_id}{path}")).await;
        assert_eq!(answer.error(404)["code"], "run_not_found", "{path}");
    }
    let retry = format!("/api/v1/runs/{run_id}/retry");
    assert_eq!(service.send("POST", &retry, &headers, "{}").await.error(404)["code"], "run_not_found");
    let again = service.send("POST", &execute, &headers, body).await;
    assert_eq!(again.header("idempotency-replayed"), None);
    assert_ne!(again.expect(202)["run_id"], first["run_id"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_stream_of_a_run_that_is_deleted_meanwhile_ends_in_good_order(pool: PgPool) {
    let service = Service::start(&pool);
    run(&pool, "old", "COMPLETED", 100).await;
    let sql = "INSERT INTO run_events (run_id, kind) SELECT 'old', 'run.noted' FROM generate_series(1, 500)";
    sqlx::query(sql).execute(&pool).await.expect("events");
    let answer = service.open("GET", "/api/v1/runs/old/events", &[], axum::body::Body::empty()).await;
    let mut events = answer.into_body().into_data_stream();
    let mut text = String::new();
    while !text.contains("id: 5\n") {
        text += std::str::from_utf8(&events.next().await.expect("more").expect("a frame")).expect("text");
    }
    pass(&pool, &purge(&pool, &[])).await;
    while let Some(frame) = events.next().await {
        text += std::str::from_utf8(&frame.expect("a frame")).expect("text");
    }
    let end = text.trim_end().rsplit("\n\n").next().expect("an event");
    let data = r#"data: {"run_id":"old","status":"COMPLETED","deleted":true}"#;
    assert!(end.lines().any(|line| line == "event: end") && end.lines().any(|line| line == data), "{end}");
    assert!(!text.contains("id: 400\n"), "it was deleted before its log was read to the end");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn retention_is_a_member_of_workflows_and_organisations(pool: PgPool) {
    let service = Service::start(&pool);
    let mut body = json!({"name": "flow", "start_step": "p", "retention_days": 30,
        "steps": {"p": {"id": "p", "type": "wait", "wait_config": {"duration_seconds": 1}}}});
    let made = service.post("/api/v1/workflows", &body).await.expect(201);
    assert_eq!((&made["retention_days"], &made["version"]), (&json!(30), &json!(1)));
    let path = format!("/api/v1/workflows/{}", made["id"].as_str().expect("an id"));
    // It is not content, so there is no new version.
    let changed = service.put(&path, &json!({"retention_days": 0})).await.expect(200);
    assert_eq!((&changed["retention_days"], &changed["version"]), (&json!(0), &json!(1)));
    let sql = "SELECT previous || jsonb_build_object('after', changes) FROM audit_logs WHERE action = 'update'";
    let entry: Value = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("an entry");
    assert_eq!(entry, json!({"retention_days": 30, "after": {"retention_days": 0}}));
    // A new version keeps it, and a roll-back does not change it.
    body["steps"]["p"]["wait_config"]["duration_seconds"] = json!(2);
    let steps = service.put(&path, &json!({"steps": body["steps"]})).await.expect(200);
    assert_eq!((&steps["retention_days"], &steps["version"]), (&json!(0), &json!(2)));
    service.put(&path, &json!({"retention_days": 5})).await.expect(200);
    let rolled = service.post(&format!("{path}/rollback"), &json!({"version": 1})).await.expect(200);
    assert_eq!((&rolled["retention_days"], &rolled["version"]), (&json!(5), &json!(3)));
    // It is exported and imported.
    let export = service.get("/api/v1/export").await.expect(200);
    assert_eq!(export["workflows"][0]["retention_days"], 5);
    assert_eq!(service.post("/api/v1/import", &export).await.expect(200)["unchanged"]["workflows"], json!(["flow"]));
    let mut wanted = export.clone();
    wanted["workflows"][0].as_object_mut().expect("an object").remove("retention_days");
    assert_eq!(service.post("/api/v1/import", &wanted).await.expect(200)["updated"]["workflows"], json!(["flow"]));
    let named = service.get("/api/v1/workflow-names/flow").await.expect(200);
    assert_eq!((&named["retention_days"], &named["version"]), (&Value::Null, &json!(3)));
    assert_eq!(service.get("/api/v1/export").await.expect(200)["workflows"][0].get("retention_days"), None);
    let validated = service.post("/api/v1/workflows/validate", &body).await.expect(200);
    assert_eq!(validated["warnings"], json!([]));
    for wrong in [json!(-1), json!(36_501), json!(1.5), json!("x"), json!([])] {
        assert_eq!(service.put(&path, &json!({"retention_days": wrong})).await.field_errors().len(), 1, "{wrong}");
        body["retention_days"] = wrong.clone();
        assert_eq!(service.post("/api/v1/workflows", &body).await.field_errors().len(), 1, "{wrong}");
        let organization = json!({"id": "acme", "name": "Acme", "retention_days": wrong});
        assert_eq!(
            service.post("/api/v1/organizations", &organization).await.field_errors().len(),
            1,
            "{organization}"
        );
    }
    let made = service.post("/api/v1/organizations", &json!({"id": "acme", "name": "Acme"})).await.expect(201);
    assert_eq!(made["retention_days"], Value::Null);
    for days in [json!(10), json!(0), json!(null)] {
        let changed = service.put("/api/v1/organizations/acme", &json!({"retention_days": days})).await.expect(200);
        assert_eq!(changed["retention_days"], days);
        assert_eq!(service.get("/api/v1/organizations/acme").await.expect(200)["retention_days"], days);
    }
    assert_eq!(retention::MAX_DAYS, 36_500);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn only_administrators_of_the_default_organisation_change_the_retention_of_another(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    admin.post("/api/v1/organizations", &json!({"id": "acme", "name": "Acme"})).await.expect(201);
    let (key, _) = admin.key(&json!({"name": "theirs", "role": "admin", "organization_id": "acme"})).await;
    let headers = [("x-api-key", key.as_str()), ("content-type", "application/json")];
    let body = json!({"retention_days": 1}).to_string();
    admin.service.send("PUT", "/api/v1/organizations/acme", &headers, body).await.error(403);
}
