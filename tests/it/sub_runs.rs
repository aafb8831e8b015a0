//! What is inside of a run ends with it, whatever others begin at the same moment: statements of two connections in the
//! one order that used to lose.

use std::{pin::pin, sync::Arc};

use futures_util::future::join;
use serde_json::{json, value::RawValue};
use sqlx::{Acquire as _, PgConnection, PgPool};
use uuid::Uuid;
use workflow_api::{
    access::OrganizationId,
    db::{
        self,
        executions::{self, Change, EndedAttempt, FinishedRun, Locked, ObservedRun, StepBegin, StepEnd},
        migrations::MIGRATOR,
        waits::{self, ChildRun, WaitCondition},
    },
    run::RunStatus,
    timestamp::Timestamp,
};

use crate::{
    service::{Service, eventually, own_pool},
    steps::{World, agent_step, repeating},
};

/// A run that an executor holds under this lease; without one, a parked one.
async fn run(pool: &PgPool, run_id: &str, parent: Option<&str>, lease: Option<Uuid>) {
    let sql = "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, parent_run_id, executor_id, lease_token,
                   wake_at)
               VALUES ($1, 'w', 'w', 'RUNNING', $2, $3, $3, CASE WHEN $3 IS NULL THEN 'infinity'::timestamptz END)";
    sqlx::query(sql).bind(run_id).bind(parent).bind(lease).execute(pool).await.expect("a run");
}

fn begun(id: &str) -> StepBegin {
    StepBegin {
        id: id.to_owned(),
        step_id: "step".to_owned(),
        step_name: "step".to_owned(),
        agent_name: String::new(),
        task_id: None,
        input: RawValue::from_string("{}".to_owned()).expect("JSON"),
        nested: None,
    }
}

/// A step that waits for a run of that id.
fn child(run_id: &str) -> WaitCondition {
    WaitCondition::Run(Box::new(ChildRun {
        run_id: run_id.to_owned(),
        definition_id: Uuid::new_v4(),
        workflow_name: "w".to_owned(),
        version: 1,
        input: RawValue::from_string("{}".to_owned()).expect("JSON"),
        traceparent: None,
        is_limited: false,
        flow: None,
    }))
}

/// How many wait for a lock in the test's database.
async fn blocked(pool: &PgPool) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    sqlx::query_scalar(sql).fetch_one(pool).await.expect("a count")
}

/// Waits until somebody waits for a lock.
async fn is_blocked(pool: &PgPool) {
    eventually("somebody waits", async || (blocked(pool).await > 0).then_some(())).await;
}

/// `id status` of all rows.
async fn rows(pool: &PgPool, table: &str, id: &str) -> Vec<String> {
    let sql = format!("SELECT {id} || ' ' || status FROM {table} ORDER BY 1");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql.as_str())).fetch_all(pool).await.expect("rows")
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_cancellation_reaches_the_run_that_a_sub_run_begins_at_the_same_moment(pool: PgPool) {
    let service = Service::start(&pool);
    let (of_top, of_middle) = (Uuid::new_v4(), Uuid::new_v4());
    run(&pool, "top", None, Some(of_top)).await;
    let mut connection = pool.acquire().await.expect("a connection");
    waits::begin(&mut connection, ("top", of_top), ("step", &begun("s1")), &child("middle"), None)
        .await
        .expect("begun");
    let held =
        "UPDATE workflow_runs SET status = 'RUNNING', executor_id = $1, lease_token = $1 WHERE run_id = 'middle'";
    sqlx::query(held).bind(of_middle).execute(&pool).await.expect("held");

    let mut executor = connection.begin().await.expect("a transaction");
    let begins =
        waits::begin(&mut executor, ("middle", of_middle), ("step", &begun("s2")), &child("inner"), None).await;
    assert_eq!(begins.expect("begun"), Some(false));
    let (empty, finishes) = (json!({}), async {
        is_blocked(&pool).await;
        executor.commit().await.expect("done");
    });
    let (answer, ()) = join(service.post("/api/v1/runs/top/cancel", &empty), finishes).await;
    answer.expect(200);
    assert_eq!(rows(&pool, "workflow_runs", "run_id").await, ["inner CANCELLED", "middle CANCELLED", "top CANCELLED"]);
    assert_eq!(rows(&pool, "step_executions", "id").await, ["s1 FAILED", "s2 FAILED"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn whoever_ends_a_run_closes_what_is_begun_while_he_waits_for_it(pool: PgPool) {
    // By the message of another program, and by the run's failure.
    for (run_id, fails) in [("cancelled", false), ("failed", true)] {
        let lease = Uuid::new_v4();
        run(&pool, run_id, None, Some(lease)).await;
        let (mut first, mut second) =
            (pool.acquire().await.expect("a connection"), pool.acquire().await.expect("another"));
        let mut executor = first.begin().await.expect("a transaction");
        let (step, inner) = (format!("s-{run_id}"), format!("in-{run_id}"));
        let (begun, child) = (begun(&step), child(&inner));
        waits::begin(&mut executor, (run_id, lease), ("step", &begun), &child, None).await.expect("begun");
        let ends = async {
            if fails {
                let finished =
                    FinishedRun { status: RunStatus::Failed, error_message: Some("why".to_owned()), failure: None };
                let run_id = run_id.to_owned();
                let of = Arc::new(ObservedRun {
                    workflow_id: Uuid::nil().to_string(),
                    workflow_name: "w".to_owned(),
                    organization: OrganizationId::default(),
                    traceparent: String::new(),
                });
                let finished = Some(finished);
                let change = Change { run_id, lease_token: lease, of, ended: None, begun: None, finished };
                let written = executions::write(&mut second, &[change], Locked::Wait, None).await;
                assert!(matches!(&written.expect("written")[..], [held] if held.run_id == "failed"));
            } else {
                let cancelled = executions::cancel(&mut *second, &[run_id.to_owned()], &[None], &[None]).await;
                assert_eq!(cancelled.expect("cancelled"), [""; 0]);
            }
        };
        let finishes = async {
            is_blocked(&pool).await;
            executor.commit().await.expect("done");
        };
        join(ends, finishes).await;
    }
    let expected = ["cancelled CANCELLED", "failed FAILED", "in-cancelled CANCELLED", "in-failed CANCELLED"];
    assert_eq!(rows(&pool, "workflow_runs", "run_id").await, expected);
    assert_eq!(rows(&pool, "step_executions", "id").await, ["s-cancelled FAILED", "s-failed FAILED"]);
}

/// A parked run `top` with so many runs inside of it, each with so many of its own that wait for a time.
async fn tree(pool: &PgPool, middle: i32, inner: i32) {
    run(pool, "top", None, None).await;
    let sql = "
        WITH inside AS (
            INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, parent_run_id, nesting, wake_at)
            SELECT 'm' || m, 'w', 'w', 'RUNNING', 'top', 1, 'infinity'::timestamptz FROM generate_series(1, $1) m
            UNION ALL SELECT 'm' || m || '-' || i, 'w', 'w', 'RUNNING', 'm' || m, 2, 'infinity'
            FROM generate_series(1, $1) m, generate_series(1, $2) i
            RETURNING run_id, parent_run_id, nesting
        ), steps AS (
            INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data)
            SELECT 's-' || run_id, parent_run_id, 's', 's', '', 'PENDING', '{}'::jsonb FROM inside
            UNION ALL SELECT 'w-' || run_id, run_id, 'w', 'w', '', 'PENDING', '{}' FROM inside WHERE nesting = 2
        )
        INSERT INTO step_waits (run_id, place, step_id, attempt_id, child_run_id)
        SELECT parent_run_id, 's', 's', 's-' || run_id, run_id FROM inside";
    sqlx::query(sql).bind(middle).bind(inner).execute(pool).await.expect("a tree");
}

/// How often the functions were called in this transaction that cancel what is inside of runs.
async fn calls(conn: &mut PgConnection) -> Vec<String> {
    let sql = "SELECT funcname || ' ' || calls FROM pg_stat_xact_user_functions WHERE funcname ~ 'cancel' ORDER BY 1";
    sqlx::query_scalar(sql).fetch_all(conn).await.expect("statistics")
}

/// `status count` of all rows.
async fn counts(conn: &mut PgConnection, table: &str) -> Vec<String> {
    let sql = format!("SELECT status || ' ' || count(*) FROM {table} GROUP BY status ORDER BY 1");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(conn).await.expect("counts")
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn thousands_of_sub_runs_are_cancelled_with_the_run_within_the_time_of_a_statement(pool: PgPool) {
    let service = Service::start(&pool);
    tree(&pool, 50, 61).await;
    service.post("/api/v1/runs/top/cancel", &json!({})).await.expect(200);
    let mut connection = pool.acquire().await.expect("a connection");
    assert_eq!(counts(&mut connection, "workflow_runs").await, ["CANCELLED 3101"]);
    assert_eq!(counts(&mut connection, "step_executions").await, ["FAILED 6150"]);
    // Each is in its run's log, and none woke the run around it.
    let sql = "SELECT kind || ' ' || count(DISTINCT run_id) FROM run_events
               WHERE kind IN ('run.cancelled', 'attempt.failed') GROUP BY kind ORDER BY 1";
    let logged: Vec<String> = sqlx::query_scalar(sql).fetch_all(&pool).await.expect("events");
    assert_eq!(logged, ["attempt.failed 3101", "run.cancelled 3101"]);
    let wakes: i64 = sqlx::query_scalar("SELECT count(*) FROM run_wakes").fetch_one(&pool).await.expect("a count");
    assert_eq!(wakes, 0);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn sub_runs_are_cancelled_level_by_level_and_not_one_by_one(pool: PgPool) {
    tree(&pool, 3, 40).await;
    let lease = Uuid::new_v4();
    let held = "UPDATE workflow_runs SET executor_id = $1, lease_token = $1, wake_at = NULL WHERE run_id = 'top'";
    sqlx::query(held).bind(lease).execute(&pool).await.expect("held");
    let of = Arc::new(ObservedRun {
        workflow_id: Uuid::nil().to_string(),
        workflow_name: "w".to_owned(),
        organization: OrganizationId::default(),
        traceparent: String::new(),
    });
    // At the time limit of the block around them.
    let given_up: Vec<Change> = (1..=3)
        .map(|number| {
            let (id, end) = (format!("s-m{number}"), StepEnd::Failed("why".to_owned()));
            let ended = Some(EndedAttempt { id, end, call: None, pause: None, of: None, memory: None });
            let (run_id, of) = ("top".to_owned(), Arc::clone(&of));
            Change { run_id, lease_token: lease, of, ended, begun: None, finished: None }
        })
        .collect();
    for way in ["API", "message", "program", "time limit"] {
        // The calls are counted by the connection.
        let mut connection = pool.acquire().await.expect("a connection").detach();
        let mut transaction = connection.begin().await.expect("a transaction");
        sqlx::query("SET LOCAL track_functions = 'all'").execute(&mut *transaction).await.expect("set");
        let (mut runs, mut closing) = (vec!["CANCELLED 124"], vec!["close_cancelled_run 1"]);
        match way {
            "API" => {
                let at = Timestamp::now();
                db::runs::cancel(&mut transaction, "top", "me", None, at).await.expect("cancelled");
            }
            "message" => {
                let run_ids = ["top".to_owned()];
                executions::cancel(&mut *transaction, &run_ids, &[None], &[None]).await.expect("cancelled");
            }
            "program" => {
                let sql = "UPDATE workflow_runs SET status = 'CANCELLED', executor_id = NULL, lease_token = NULL
                           WHERE run_id = 'top'";
                sqlx::query(sql).execute(&mut *transaction).await.expect("cancelled");
            }
            _ => {
                let held = executions::write(&mut transaction, &given_up, Locked::Skip, None).await.expect("written");
                assert_eq!(held.len(), 3);
                (runs, closing) = (vec!["CANCELLED 123", "RUNNING 1"], vec![]);
            }
        }
        let expected: Vec<&str> = ["cancel_runs 1", "cancel_sub_run 3"].into_iter().chain(closing).collect();
        assert_eq!(calls(&mut transaction).await, expected, "{way}");
        assert_eq!(counts(&mut transaction, "workflow_runs").await, runs, "{way}");
        assert_eq!(counts(&mut transaction, "step_executions").await, ["FAILED 243"], "{way}");
        // The run goes on without the steps that were given up, and only this one.
        let sql = "SELECT run_id FROM run_wakes";
        let woken: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut *transaction).await.expect("wakes");
        assert_eq!(woken, if way == "time limit" { vec!["top"] } else { vec![] }, "{way}");
        transaction.rollback().await.expect("done");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_sub_run_that_was_retried_goes_on_when_another_step_is_given_up(pool: PgPool) {
    tree(&pool, 2, 1).await;
    for sql in [
        "UPDATE step_executions SET status = 'FAILED', completed_at = now() - interval '1 minute' WHERE id = 's-m1'",
        "UPDATE workflow_runs SET status = 'PENDING' WHERE run_id = 'm1'",
        "UPDATE step_executions SET status = 'FAILED', completed_at = now() WHERE id = 's-m2'",
    ] {
        sqlx::query(sql).execute(&pool).await.expect(sql);
    }
    let expected = ["m1 PENDING", "m1-1 CANCELLED", "m2 CANCELLED", "m2-1 CANCELLED", "top RUNNING"];
    assert_eq!(rows(&pool, "workflow_runs", "run_id").await, expected);
}

/// The statements that begin sub-runs of one run wait for each other.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_that_begins_many_others_leaves_connections_to_other_runs(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let nap = json!({"nap": {"id": "nap", "type": "wait", "wait_config": {"duration_seconds": 0}}});
    let inner = world.define("nap", &nap).await;
    let each = json!({
        "each": {"id": "each", "type": "loop", "loop_config": {"collection": "${workflow.input.items}", "loop_body": ["sub"],
            "execution_mode": "parallel"}},
        "sub": {"id": "sub", "type": "sub_workflow", "sub_workflow_config": {"workflow_id": inner}}});
    let mut holder = pool.begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE sub_run_counts IN SHARE MODE").execute(&mut *holder).await.expect("held");
    let many = world.begin("each", &each, &json!({"items": (0..100).collect::<Vec<_>>()})).await;
    is_blocked(&pool).await;
    let other = world.begin("nap", &nap, &json!({})).await;
    world.end(other).await.output();
    assert!(blocked(&pool).await <= 4);
    holder.commit().await.expect("done");
    world.end(many).await.output();
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn two_branches_that_ask_for_the_address_of_a_callback_get_the_same(pool: PgPool) {
    let lease = Uuid::new_v4();
    run(&pool, "r", None, Some(lease)).await;
    let own = own_pool(&pool);
    let (mut holder, claim) = (pool.begin().await.expect("a transaction"), ("r", lease));
    sqlx::query("SELECT FROM workflow_runs FOR UPDATE").execute(&mut *holder).await.expect("held");
    let mut one = pin!(waits::prepare_callback(&own, claim, ("ask", "ask"), None, ("one", b"1")));
    let mut other = pin!(waits::prepare_callback(&own, claim, ("ask", "ask"), None, ("other", b"2")));
    let both = async {
        eventually("both wait", async || (blocked(&pool).await == 2).then_some(())).await;
        holder.commit().await.expect("done");
    };
    let (tokens, ()) = join(join(one.as_mut(), other.as_mut()), both).await;
    assert_eq!(tokens.0.expect("a token"), tokens.1.expect("a token"));
    // A process that does not own the run gets no token, and leaves no transaction open.
    let stranger = waits::prepare_callback(&own, ("r", Uuid::new_v4()), ("ask", "ask"), None, ("third", b"3")).await;
    assert_eq!(stranger.expect("an answer"), None);
    let open = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
    eventually("no transaction is open", async || {
        (sqlx::query_scalar::<_, i64>(open).fetch_one(&pool).await.expect("a count") == 0).then_some(())
    })
    .await;
}

/// A branch or step is given up while the statement is under way that begins its sub-run.
#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_given_up_while_it_begins_is_cancelled_at_once_and_not_only_with_the_run(pool: PgPool) {
    let ((quick, quick_url), (last, last_url)) = (repeating().await, repeating().await);
    let world = World::start(&pool, &[("a", &quick_url), ("last", &last_url)]).await;
    let nap = json!({"nap": {"id": "nap", "type": "wait", "wait_config": {"duration": "PT1H"}}});
    let inner = world.define("nap", &nap).await;
    let sub = json!({"id": "sub", "type": "sub_workflow", "sub_workflow_config": {"workflow_id": inner}});
    let after = json!({"id": "after", "agent_name": "last", "input_mapping": {}});
    let decided = json!({
        "fork": {"id": "fork", "type": "fork_join", "next_step": "after", "fork_join_config": {"join_policy": "any",
            "branches": {"x": {"steps": ["sub"]}, "y": {"steps": ["quick"]}}}},
        "sub": sub, "quick": agent_step("quick", &json!({"say": "quick"})), "after": after});
    let mut limited = sub;
    limited["timeout_seconds"] = json!(1);
    let over = json!({
        "each": {"id": "each", "type": "loop", "next_step": "after", "loop_config": {"collection": "${workflow.input.items}",
            "loop_body": ["sub"], "on_error": "continue"}},
        "sub": limited, "after": after});
    for (number, (start, steps, reason)) in [
        ("fork", decided, "abandoned: the join was decided without this branch"),
        ("each", over, "it took longer than 1 s"),
    ]
    .into_iter()
    .enumerate()
    {
        quick.hold();
        last.hold();
        // Who begins to wait needs this table, and nobody else writes it.
        let mut holder = pool.begin().await.expect("a transaction");
        sqlx::query("LOCK TABLE step_waits IN SHARE MODE").execute(&mut *holder).await.expect("held");
        let run_id = world.begin(start, &steps, &json!({"items": [1]})).await;
        // The time may be over before the sub-run is about to begin, on a slow machine.
        eventually("it is about to begin", async || {
            (blocked(&pool).await > 0 || (start == "each" && last.calls().len() > number)).then_some(())
        })
        .await;
        quick.0.gate.add_permits(1);
        eventually("it goes on", async || (last.calls().len() > number).then_some(())).await;
        holder.commit().await.expect("done");
        let open = "SELECT count(*) FROM workflow_runs WHERE status IN ('PENDING', 'RUNNING')";
        eventually("only the run itself is open", async || {
            (sqlx::query_scalar::<_, i64>(open).fetch_one(&pool).await.expect("a count") == 1).then_some(())
        })
        .await;
        last.0.gate.add_permits(1);
        // What is closed by the end of the run has another reason.
        let done = world.end(run_id).await;
        done.output();
        let of_sub = done.rows.iter().filter(|row| row["step_id"] == "sub");
        assert!(of_sub.clone().all(|row| row["error_message"] == reason), "{:?}", of_sub.collect::<Vec<_>>());
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_migration_closes_what_earlier_cancellations_have_missed(pool: PgPool) {
    for sql in [
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, parent_run_id) VALUES
            ('top', 'w', 'w', 'CANCELLED', NULL), ('lost', 'w', 'w', 'RUNNING', 'top'), ('inner', 'w', 'w', 'PENDING', 'lost'),
            ('retried', 'w', 'w', 'RUNNING', 'top'), ('busy', 'w', 'w', 'RUNNING', NULL), ('part', 'w', 'w', 'PENDING', 'busy')",
        "INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data) VALUES
            ('s1', 'top', 's', 's', '', 'FAILED', '{}'), ('s2', 'top', 's', 's', '', 'FAILED', '{}'),
            ('s3', 'top', 's', 's', '', 'RUNNING', '{}'), ('s4', 'lost', 's', 's', '', 'PENDING', '{}'),
            ('s5', 'busy', 's', 's', '', 'PENDING', '{}'), ('s6', 'retried', 's', 's', '', 'RUNNING', '{}')",
        "INSERT INTO step_waits (run_id, place, step_id, attempt_id, child_run_id) VALUES
            ('top', 's', 's', 's1', 'lost'), ('top', 's', 's', 's2', 'retried'), ('lost', 's', 's', 's4', 'inner'),
            ('busy', 's', 's', 's5', 'part')",
        "INSERT INTO run_events (run_id, kind) VALUES ('retried', 'run.retried')",
    ] {
        sqlx::query(sql).execute(&pool).await.expect(sql);
    }
    let migration = include_str!("../../migrations/20261128000060_cancel_sub_runs_whole.up.sql");
    sqlx::raw_sql(migration).execute(&pool).await.expect("it can be repeated");
    let expected =
        ["busy RUNNING", "inner CANCELLED", "lost CANCELLED", "part PENDING", "retried RUNNING", "top CANCELLED"];
    assert_eq!(rows(&pool, "workflow_runs", "run_id").await, expected);
    let expected = ["s1 FAILED", "s2 FAILED", "s3 FAILED", "s4 FAILED", "s5 PENDING", "s6 RUNNING"];
    assert_eq!(rows(&pool, "step_executions", "id").await, expected);
}
