//! Fills a database with many runs and what belongs to them, as fast as the server writes.

use anyhow::{Result, ensure};
use sqlx::{AssertSqlSafe, PgPool};

/// Workflows of the rows: half of the runs, one of 2000, and the others on [`OTHER_WORKFLOWS`].
pub struct Workflows {
    /// Id of the workflow with half of the runs.
    pub half: String,
    /// Id of the workflow with 0.05 % of the runs.
    pub rare: String,
}

/// Rows of one statement.
const CHUNK: i64 = 250_000;
/// Statements at a time.
const WRITERS: i64 = 2;

/// The runs `$1` to `$2` of `$3`, in the order of their creation over the last 80 days, which retention leaves alone.
const RUNS: &str = "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, workflow_definition_id, status,
        input_data, triggered_by, created_at, updated_at, completed_at, cancelled_at, workflow_version, correlation_id)
    SELECT 'run-01a00000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'), workflow, name, workflow, status,
        '{\"text\": \"hello\"}', 'user-' || n % 100, at, at + interval '2 seconds',
        CASE WHEN status <> 'CANCELLED' THEN at + interval '2 seconds' END,
        CASE WHEN status = 'CANCELLED' THEN at + interval '2 seconds' END, 1, 'load-' || n
    FROM (
        SELECT n, (now() AT TIME ZONE 'UTC') - interval '80 days' * (1 - n::float8 / $3) AS at,
            CASE WHEN n % 20 = 3 THEN 'FAILED' WHEN n % 33 = 5 THEN 'CANCELLED' ELSE 'COMPLETED' END AS status,
            CASE WHEN n % 2 = 0 THEN $4 WHEN n % 2000 = 1 THEN $5
                ELSE '00000000-0000-4000-8000-' || lpad((n % 100)::text, 12, '0') END AS workflow,
            CASE WHEN n % 2 = 0 THEN 'scale-half' WHEN n % 2000 = 1 THEN 'scale-rare' ELSE 'scale-' || n % 100 END AS name
        FROM generate_series($1::bigint, $2::bigint) AS n
    ) AS run";

/// Their audit entries.
const ENTRIES: &str = "INSERT INTO audit_logs (id, entity_type, entity_id, entity_name, action, user_id, changes,
        created_at, updated_at)
    SELECT ('02a00000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'run',
        ('01a00000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
        'run-01a00000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'), 'execute', 'user-' || n % 100,
        '{\"workflow_name\": \"scale\"}', at, at
    FROM (
        SELECT n, (now() AT TIME ZONE 'UTC') - interval '80 days' * (1 - n::float8 / $3) AS at, $4, $5
        FROM generate_series($1::bigint, $2::bigint) AS n
    ) AS entry";

/// Fills the database. No API may be running on it.
pub async fn fill(pool: &PgPool, runs: i64, workflows: &Workflows) -> Result<()> {
    table(pool, "workflow_runs", RUNS, runs, workflows).await?;
    table(pool, "audit_logs", ENTRIES, runs, workflows).await?;
    definitions(pool, (runs / 1000).max(100)).await?;
    // Earlier releases count when they are asked.
    let counts: bool =
        sqlx::query_scalar("SELECT to_regprocedure('recount_runs()') IS NOT NULL").fetch_one(pool).await?;
    if counts {
        eprintln!("scale: counting the runs");
        sqlx::raw_sql("SELECT recount_runs()").execute(pool).await?;
    }
    eprintln!("scale: vacuum and analyze");
    sqlx::raw_sql("VACUUM (ANALYZE)").execute(pool).await?;
    Ok(())
}

/// Inserts rows while the table has neither triggers nor indexes, apart from its primary key.
async fn table(pool: &PgPool, table: &str, insert: &'static str, rows: i64, workflows: &Workflows) -> Result<()> {
    let indexes: Vec<(String, String)> = sqlx::query_as(
        "SELECT indexname::text, indexdef FROM pg_indexes WHERE tablename = $1 AND schemaname = current_schema()
         AND indexname NOT IN (SELECT conname FROM pg_constraint WHERE conrelid = $1::regclass)",
    )
    .bind(table)
    .fetch_all(pool)
    .await?;
    let triggers: Vec<(String, bool)> = sqlx::query_as(
        "SELECT tgname::text, tgenabled = 'A' FROM pg_trigger WHERE tgrelid = $1::regclass AND NOT tgisinternal",
    )
    .bind(table)
    .fetch_all(pool)
    .await?;
    for (index, _) in &indexes {
        execute(pool, format!("DROP INDEX {index}")).await?;
    }
    for (trigger, _) in &triggers {
        execute(pool, format!("ALTER TABLE {table} DISABLE TRIGGER {trigger}")).await?;
    }
    let chunks = (rows + CHUNK - 1) / CHUNK;
    let writers = (0..WRITERS).map(|writer| {
        let (pool, half, rare) = (pool.clone(), workflows.half.clone(), workflows.rare.clone());
        async move {
            for chunk in (writer..chunks).step_by(WRITERS.unsigned_abs().try_into()?) {
                let (first, last) = (chunk * CHUNK + 1, ((chunk + 1) * CHUNK).min(rows));
                let query = sqlx::query(insert).bind(first).bind(last).bind(rows).bind(&half).bind(&rare);
                query.execute(&pool).await?;
            }
            anyhow::Ok(())
        }
    });
    eprintln!("scale: {rows} rows of {table}");
    futures_util::future::try_join_all(writers).await?;
    for (position, (index, definition)) in indexes.iter().enumerate() {
        eprintln!("scale: index {} of {}: {index}", position + 1, indexes.len());
        // Of a partitioned table the definition says ONLY, which would leave out its partitions.
        let definition = definition.replace(" ON ONLY ", " ON ");
        // The setting is the transaction's.
        execute(pool, format!("BEGIN; SET LOCAL maintenance_work_mem = '1GB'; {definition}; COMMIT")).await?;
    }
    for (trigger, is_always) in &triggers {
        let how = if *is_always { "ENABLE ALWAYS" } else { "ENABLE" };
        execute(pool, format!("ALTER TABLE {table} {how} TRIGGER {trigger}")).await?;
    }
    Ok(())
}

/// Copies the first agent and the first workflow under other names.
async fn definitions(pool: &PgPool, count: i64) -> Result<()> {
    let agents = sqlx::query(
        "INSERT INTO agents (name, url) SELECT 'agent-' || n, 'http://127.0.0.1:9/' FROM generate_series(1, $1) AS n",
    )
    .bind(count)
    .execute(pool)
    .await?;
    let workflows = sqlx::query(
        "INSERT INTO workflow_definitions (name, version, workflow_data, status)
         SELECT 'workflow-' || n, 1, d.workflow_data, d.status
         FROM generate_series(1, $1) AS n, (SELECT * FROM workflow_definitions LIMIT 1) AS d",
    )
    .bind(count)
    .execute(pool)
    .await?;
    ensure!(agents.rows_affected() == workflows.rows_affected(), "not all definitions were copied");
    Ok(())
}

async fn execute(pool: &PgPool, statement: String) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(pool).await?;
    Ok(())
}
