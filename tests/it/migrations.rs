//! The schema: from nothing, from the reference deployment's database, there and back.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use sqlx::PgPool;
use workflow_api::{
    clock::Clock,
    config::{self, ConnectOptions},
    db::migrations::{self, MigrationError, WaitLimit},
};

use crate::{
    empty_database::empty,
    service::{Service, config, eventually, records},
};

/// Migrates to the newest schema.
async fn up(settings: &config::Database) -> Result<usize, MigrationError> {
    migrations::up(settings, &WaitLimit::none()).await
}

/// Reverts the newest migrations.
async fn down(settings: &config::Database, count: usize) -> Result<usize, MigrationError> {
    migrations::down(settings, count, &WaitLimit::none()).await
}

/// Everything that a schema consists of, as text, without this program's bookkeeping.
async fn schema(pool: &PgPool) -> Vec<String> {
    let sql = "
        SELECT format('%s.%s %s %s %s', table_name, column_name, data_type, is_nullable, column_default)
        FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> '_sqlx_migrations'
        UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> '_sqlx_migrations'
        UNION ALL SELECT format('%s %s', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace AND conrelid <> '_sqlx_migrations'::regclass
        UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        ORDER BY 1";
    sqlx::query_scalar(sql).fetch_all(pool).await.expect("the catalogue")
}

/// The checksum of each migration that a database somewhere may have run; a changed one would refuse to start there. A
/// new migration gets its line here.
#[test]
fn a_published_migration_never_changes() {
    let hex = |bytes: &[u8]| bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let present: Vec<String> = migrations::MIGRATOR
        .iter()
        .filter(|migration| migration.migration_type.is_up_migration())
        .map(|migration| format!("{} {}", migration.version, hex(&migration.checksum)))
        .collect();
    let published: Vec<&str> = include_str!("published_migrations.txt").lines().collect();
    assert_eq!(present, published);
}

async fn load_reference_schema(pool: &PgPool) {
    sqlx::raw_sql(include_str!("reference_schema.sql")).execute(pool).await.expect("the reference schema");
}

#[sqlx::test(migrations = false)]
async fn the_schema_goes_up_and_down_and_up_again(pool: PgPool) {
    empty(&pool).await;
    let settings = config(&pool, &[]).database;
    let count = up(&settings).await.expect("up");
    assert!(count >= 2);
    let first = schema(&pool).await;
    assert_eq!(up(&settings).await.expect("nothing to do"), 0);
    assert!(migrations::status(&settings).await.expect("status").iter().all(|state| state.applied && !state.altered));
    assert_eq!(down(&settings, 1).await.expect("one down"), 1);
    assert!(!migrations::is_current(&pool).await.expect("an answer"));
    assert_eq!(down(&settings, 99).await.expect("the rest"), count - 1);
    assert_eq!(schema(&pool).await, Vec::<String>::new());
    up(&settings).await.expect("up again");
    assert_eq!(schema(&pool).await, first);
    assert!(migrations::is_current(&pool).await.expect("an answer"));
}

/// A database that has run the published text of every migration, as a superuser.
#[sqlx::test(migrations = false)]
async fn a_revised_migration_leads_to_the_same_schema_and_counts_as_the_published_one(pool: PgPool) {
    empty(&pool).await;
    let settings = config(&pool, &[]).database;
    let published = sqlx::migrate!();
    // Just before and just after the migration that makes both equal.
    let last = published.iter().map(|migration| migration.version).max().expect("there are some");
    for target in [20_261_128_000_093, last] {
        published.run_to(target, &pool).await.expect("the published texts");
        up(&settings).await.expect("the rest");
        let states = migrations::status(&settings).await.expect("status");
        assert!(states.iter().all(|state| state.applied && !state.altered), "{states:?}");
        let as_published = schema(&pool).await;
        down(&settings, 999).await.expect("down");
        up(&settings).await.expect("from nothing");
        assert_eq!(schema(&pool).await, as_published);
        assert!(!as_published.iter().any(|definition| definition.contains("SET \"workflow_api.")), "needs a grant");
        down(&settings, 999).await.expect("down");
    }
}

#[sqlx::test(migrations = false)]
async fn of_many_replicas_that_start_at_once_one_migrates(pool: PgPool) {
    empty(&pool).await;
    let settings = config(&pool, &[]).database;
    let counts = join_all((0..5).map(|_| up(&settings))).await;
    let mut counts: Vec<usize> = counts.into_iter().map(|count| count.expect("up")).collect();
    counts.sort_unstable();
    assert_eq!(counts[..4], [0; 4]);
    assert!(counts[4] > 0);
}

/// A role without any right to change the schema.
#[sqlx::test(migrations = false)]
async fn where_nothing_is_to_be_done_no_right_is_needed(pool: PgPool) {
    empty(&pool).await;
    let mut settings = config(&pool, &[]).database;
    up(&settings).await.expect("up");
    let role: String =
        sqlx::query_scalar("SELECT 'reading_' || md5(current_database())").fetch_one(&pool).await.expect("a name");
    for sql in [format!("CREATE ROLE {role}"), format!("GRANT SELECT ON _sqlx_migrations TO {role}")] {
        sqlx::query(sqlx::AssertSqlSafe(sql.as_str())).execute(&pool).await.expect(&sql);
    }
    let options = settings.connect.hosts[0].clone().options([("role", role.as_str())]);
    settings.connect = ConnectOptions::from(options);
    assert_eq!(up(&settings).await.expect("nothing to do"), 0);
    for sql in [format!("REVOKE SELECT ON _sqlx_migrations FROM {role}"), format!("DROP ROLE {role}")] {
        sqlx::query(sqlx::AssertSqlSafe(sql.as_str())).execute(&pool).await.expect(&sql);
    }
}

/// The busy writer holds its lock until the migration gives up.
#[sqlx::test(migrations = false)]
async fn a_migration_that_finds_a_table_locked_pauses_and_names_the_session_and_gives_up_in_the_end(pool: PgPool) {
    empty(&pool).await;
    let settings = config(&pool, &[]).database;
    load_reference_schema(&pool).await;
    let mut writer = pool.begin().await.expect("a transaction");
    sqlx::raw_sql("SET application_name = 'a busy writer'; LOCK TABLE workflow_runs")
        .execute(&mut *writer)
        .await
        .expect("a lock");
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *writer).await.expect("a pid");
    let clock = Clock::stopped();
    let limit = WaitLimit { limit: Some(Duration::from_mins(2)), clock: clock.clone() };
    let migrating = tokio::spawn({
        let settings = settings.clone();
        async move { migrations::up(&settings, &limit).await }
    });
    let is_waiting = async |expected: bool| {
        let sql = "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                   WHERE NOT granted AND a.datname = current_database() AND l.relation = 'workflow_runs'::regclass)";
        eventually("the migration waits, or does not", || async {
            let is_waiting: bool = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("an answer");
            if expected && !is_waiting {
                // It may have waited in between, and pauses now.
                clock.advance(Duration::from_millis(10));
            }
            (is_waiting == expected).then_some(())
        })
        .await;
    };
    is_waiting(true).await;
    // It lets others pass while it pauses.
    is_waiting(false).await;
    is_waiting(true).await;
    clock.advance(Duration::from_mins(2));
    let error = migrating.await.expect("no panic").expect_err("the lock is still held");
    let text = error.to_string();
    assert!(matches!(error, MigrationError::Locked { .. }), "{text}");
    for part in ["gave up after 120 s", &format!("session {pid} "), "\"a busy writer\", idle in transaction, in its"] {
        assert!(text.contains(part), "{text}");
    }
    writer.rollback().await.expect("the end of the lock");
    assert!(up(&settings).await.expect("up") > 0);
}

/// Such an index stays behind when its creation is interrupted, and serves no query.
#[sqlx::test(migrations = false)]
async fn an_index_whose_creation_was_interrupted_is_created_again(pool: PgPool) {
    empty(&pool).await;
    let settings = config(&pool, &[]).database;
    up(&settings).await.expect("up");
    let later = migrations::MIGRATOR
        .iter()
        .filter(|migration| migration.migration_type.is_up_migration() && migration.version >= 20_261_129_000_122);
    down(&settings, later.count()).await.expect("down");
    let is_valid = async || {
        let sql = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'idempotency_keys_run'::regclass";
        sqlx::query_scalar::<_, bool>(sql).fetch_one(&pool).await.expect("the index")
    };
    let mut writer = pool.begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE idempotency_keys IN ROW EXCLUSIVE MODE").execute(&mut *writer).await.expect("a lock");
    let error = migrations::up(&settings, &WaitLimit::of(Duration::from_millis(100))).await.expect_err("it is locked");
    assert!(matches!(error, MigrationError::Locked { .. }), "{error}");
    assert!(!is_valid().await);
    writer.rollback().await.expect("the end of the lock");
    up(&settings).await.expect("up");
    assert!(is_valid().await);
}

/// An earlier release has counted the migration as run, although the index was not complete.
#[sqlx::test(migrations = false)]
async fn an_invalid_index_of_an_earlier_release_is_built_again(pool: PgPool) {
    empty(&pool).await;
    let settings = config(&pool, &[]).database;
    up(&settings).await.expect("up");
    let spoil = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idempotency_keys_run'::regclass";
    sqlx::query(spoil).execute(&pool).await.expect("a superuser may do this");
    let invalid = async || {
        let states = migrations::status(&settings).await.expect("status");
        states.into_iter().filter(|state| state.has_invalid_index).map(|state| state.version).collect::<Vec<_>>()
    };
    assert_eq!(invalid().await, [20_261_129_000_122]);
    assert_eq!(up(&settings).await.expect("up"), 0);
    assert_eq!(invalid().await, [0; 0]);

    // Without the right to do so.
    sqlx::query(spoil).execute(&pool).await.expect("a superuser may do this");
    let role = format!("reader_{}", uuid::Uuid::new_v4().simple());
    for sql in [format!("CREATE ROLE {role} LOGIN"), format!("GRANT SELECT ON _sqlx_migrations TO {role}")] {
        sqlx::query(sqlx::AssertSqlSafe(sql.as_str())).execute(&pool).await.expect(&sql);
    }
    let mut limited = settings.clone();
    limited.connect.hosts = limited.connect.hosts.into_iter().map(|host| host.username(&role)).collect();
    let error = up(&limited).await.expect_err("it is not the owner");
    let command = "REINDEX INDEX CONCURRENTLY idempotency_keys_run";
    assert!(matches!(error, MigrationError::InvalidIndex { .. }) && error.to_string().ends_with(command), "{error}");
    for sql in [format!("DROP OWNED BY {role}"), format!("DROP ROLE {role}")] {
        sqlx::query(sqlx::AssertSqlSafe(sql.as_str())).execute(&pool).await.expect(&sql);
    }
}

#[sqlx::test(migrations = false)]
async fn what_would_be_undone_and_lost_is_known_before(pool: PgPool) {
    empty(&pool).await;
    let settings = config(&pool, &[]).database;
    let count = up(&settings).await.expect("up");
    let plan = async |count| migrations::plan_down(&settings, count).await.expect("a plan");
    assert!(plan(count + 1).await.is_none());
    assert!(!plan(count).await.expect("a plan").loses_data, "there is none");
    let service = Service::start(&pool);
    service.agent("worker", "http://127.0.0.1:9/").await;
    service.stop().await;
    assert!(!plan(1).await.expect("a plan").loses_data);
    let all = plan(count).await.expect("a plan");
    assert!(all.loses_data);
    assert_eq!(all.names.len(), count);
    assert!(all.names[count - 1].starts_with("20261121000001"), "{:?}", all.names);
}

#[sqlx::test(migrations = false)]
async fn a_database_of_the_reference_deployment_is_adopted_with_its_data(pool: PgPool) {
    empty(&pool).await;
    load_reference_schema(&pool).await;
    let settings = config(&pool, &[]).database;
    up(&settings).await.expect("up");
    let bookkeeping: String =
        sqlx::query_scalar("SELECT version_num FROM alembic_version").fetch_one(&pool).await.expect("it");
    assert_eq!(bookkeeping, "002_ai_chat_sessions");

    let service = Service::start(&pool);
    let agent = service.get("/api/v1/agents?name=old-agent").await.expect(200)["items"][0].clone();
    assert_eq!(agent["auth_config"], json!(null));
    let workflow = "/api/v1/workflows/22222222-2222-2222-2222-222222222222";
    assert_eq!(service.get(workflow).await.expect(200)["version"], 4);
    let run = "/api/v1/runs/run-33333333-3333-3333-3333-333333333333";
    assert_eq!(service.get(run).await.expect(200)["status"], "FAILED");
    assert_eq!(service.get(&format!("{run}/steps")).await.expect(200)[0]["input_data"], json!({}));
    // Both an old run and an old definition can be started.
    service.post(&format!("{run}/retry"), &json!({})).await.expect(202);
    service.post(&format!("{workflow}/execute"), &json!({"input_data": {}})).await.expect(202);
    records(&service.config, &service.config.kafka.execution_topic, 2).await;
    let next = json!({"name": "old-workflow", "start_step": "a",
        "steps": {"a": {"id": "a", "agent_name": "old-agent", "input_mapping": {}}}});
    assert_eq!(service.post("/api/v1/workflows", &next).await.expect(201)["version"], 5);
    service.stop().await;

    // Going back leaves the reference deployment what is its own.
    down(&settings, 99).await.expect("down");
    let runs: i64 = sqlx::query_scalar("SELECT count(*) FROM workflow_runs").fetch_one(&pool).await.expect("runs");
    assert_eq!(runs, 3);
}

#[sqlx::test(migrations = false)]
async fn a_fresh_schema_has_all_that_the_reference_deployments_has(pool: PgPool) {
    empty(&pool).await;
    up(&config(&pool, &[]).database).await.expect("up");
    let ours = schema(&pool).await;
    down(&config(&pool, &[]).database, 99).await.expect("down");
    load_reference_schema(&pool).await;
    let theirs = schema(&pool).await;
    let there = |line: &String| {
        let line = if line.contains("UNIQUE") && line.contains("(name") {
            // Names and versions are unique too, though in an organisation.
            line.replace(')', ", organization_id)")
        } else if line.contains("audit_logs") {
            // That table is partitioned by time, which its primary key has to name; its list is of an organisation.
            line.replace("ON public.audit_logs", "ON ONLY public.audit_logs")
                .replace("(id)", "(id, created_at)")
                .replace("(created_at)", "(organization_id, created_at, id)")
        } else {
            line.clone()
        };
        ours.contains(&line)
    };
    // Other indexes replace these: see the migration that drops them.
    let superseded = [
        "idx_run_status",
        "idx_audit_logs_entity",
        "idx_run_workflow_definition_id",
        "idx_step_run_id",
        "idx_step_status",
    ];
    let is_superseded = |line: &String| superseded.iter().any(|name| line.contains(&format!(" {name} ")));
    let missing: Vec<_> =
        theirs.iter().filter(|line| !there(line) && !line.contains("alembic") && !is_superseded(line)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[sqlx::test(migrations = false)]
async fn a_release_runs_on_the_schema_of_a_later_one(pool: PgPool) {
    empty(&pool).await;
    let settings = config(&pool, &[]).database;
    up(&settings).await.expect("up");
    let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (99991231000000, 'later', true, '\\x00', 0)";
    sqlx::query(later).execute(&pool).await.expect("a later release's row");
    assert_eq!(up(&settings).await.expect("no objection"), 0);
    assert!(migrations::is_current(&pool).await.expect("an answer"));

    // It cannot revert the other's, nor what is below it.
    let before = schema(&pool).await;
    let plan = migrations::plan_down(&settings, 2).await.expect_err("no plan");
    for error in [plan, down(&settings, 1).await.expect_err("unknown"), down(&settings, 2).await.expect_err("unknown")]
    {
        assert!(matches!(error, MigrationError::OfLaterRelease(99_991_231_000_000)), "{error}");
    }
    assert_eq!(schema(&pool).await, before);
}

#[sqlx::test(migrations = false)]
async fn every_table_column_and_view_is_described_in_the_database(pool: PgPool) {
    empty(&pool).await;
    up(&config(&pool, &[]).database).await.expect("up");
    let sql = "
        SELECT format('%s.%s', c.relname, coalesce(a.attname, '')) FROM pg_class c
        LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind <> 'v'
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
            AND c.relname <> '_sqlx_migrations'
            AND (obj_description(c.oid, 'pg_class') IS NULL
                OR a.attnum IS NOT NULL AND col_description(c.oid, a.attnum) IS NULL)";
    let bare: Vec<String> = sqlx::query_scalar(sql).fetch_all(&pool).await.expect("the catalogue");
    assert_eq!(bare, Vec::<String>::new());
}

#[sqlx::test]
async fn the_set_up_document_lists_the_tables_of_the_database(pool: PgPool) {
    let document = include_str!("../../docs/DATABASE_SETUP.md");
    let (_, section) = document.split_once("\n## Tables\n").expect("a section about the tables");
    let (section, _) = section.split_once("\n## ").expect("a section after it");
    // The names are the code in the first cell of each row.
    let cells = section.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
    let mut documented: Vec<&str> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    documented.sort_unstable();
    let sql = "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
               AND NOT relispartition";
    let mut tables: Vec<String> = sqlx::query_scalar(sql).fetch_all(&pool).await.expect("the catalogue");
    tables.sort_unstable();
    assert_eq!(documented, tables);
}

#[sqlx::test]
async fn the_views_show_a_run_its_attempts_and_its_agent_in_utc_and_join_without_casts(pool: PgPool) {
    let sql = "
        INSERT INTO agents (name, url) VALUES ('a', 'http://192.0.2.1/');
        INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, created_at, execution_started_at, completed_at)
            VALUES ('run-1', '22222222-2222-2222-2222-222222222222', 'w', 'COMPLETED',
                '2026-01-01 10:00:00', '2026-01-01 10:00:01', '2026-01-01 10:00:05'),
                ('run-2', 'not a uuid', 'w', 'PENDING', '2026-01-01 11:00:00', NULL, NULL);
        INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, started_at, completed_at)
            VALUES ('1', 'run-1', 's', 's', 'a', 'FAILED', '{}', '2026-01-01 10:00:01', '2026-01-01 10:00:02'),
                ('2', 'run-1', 's', 's', 'a', 'COMPLETED', '{}', '2026-01-01 10:00:02', '2026-01-01 10:00:05')";
    sqlx::raw_sql(sql).execute(&pool).await.expect("rows");
    let sql = "
        SELECT format('%s %s %s %s %s', o.run_id, o.workflow_id, to_char(o.ended_at AT TIME ZONE 'UTC', 'HH24:MI:SS'),
            o.queued_seconds, o.total_seconds) FROM run_overview o ORDER BY o.run_id";
    let runs: Vec<String> = sqlx::query_scalar(sql).fetch_all(&pool).await.expect("runs");
    assert_eq!(runs, ["run-1 22222222-2222-2222-2222-222222222222 10:00:05 1 5", "run-2    "]);
    let sql = "
        SELECT format('%s %s %s %s %s %s', d.attempt, d.seconds, o.status, s.attempts, s.failed, s.mean_seconds)
        FROM step_durations d JOIN run_overview o USING (run_id)
        JOIN agent_stats s ON s.agent_name = d.agent_name AND s.organization_id = d.organization_id ORDER BY d.attempt";
    let attempts: Vec<String> = sqlx::query_scalar(sql).fetch_all(&pool).await.expect("attempts");
    assert_eq!(attempts, ["1 1 COMPLETED 2 1 3", "2 3 COMPLETED 2 1 3"]);
}
