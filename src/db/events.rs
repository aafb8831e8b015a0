//! Log of a run: filled by triggers on the shared tables (see the migration), or by statements that record themselves
//! (see `executions`). Rows get their sequence number when the log is first read.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor};

use super::{
    Error, Pool,
    family::{family, questions_of_family},
    list::{self, Conditions, ListRow, Order, Page, PageRequest, Plan, Range, Table},
};
use crate::timestamp::Timestamp;

/// Entry of a log.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct EventRow {
    pub run_id: String,
    pub seq: i32,
    pub at: Timestamp,
    pub kind: String,
    pub step_id: Option<String>,
    pub attempt_id: Option<String>,
    pub agent_name: Option<String>,
    pub http_status: Option<i32>,
    pub duration_ms: Option<f64>,
    pub detail: Option<String>,
}

/// The logs of all runs, as a table expression. The creation of a run is entry 0.
const LOG: &str = "(
    SELECT run_id, 0 AS seq, created_at AS at, 'run.created' AS kind, NULL::varchar AS step_id,
        NULL::varchar AS attempt_id, NULL::varchar AS agent_name, NULL::integer AS http_status,
        NULL::float8 AS duration_ms, triggered_by::text AS detail
    FROM workflow_runs
    UNION ALL
    SELECT run_id, seq, at AT TIME ZONE 'UTC', kind, step_id, attempt_id, agent_name, http_status, duration_ms, detail
    FROM run_events WHERE seq IS NOT NULL
) AS log";
/// The two parts of the log, with the columns that lists filter by.
const CREATIONS: &str =
    "(SELECT run_id, 0 AS seq, 'run.created' AS kind, NULL::varchar AS step_id FROM workflow_runs) AS created";
const EVENTS: &str = "run_events";
const COLUMNS: &str = "run_id, seq, at, kind, step_id, attempt_id, agent_name, http_status, duration_ms, detail";

impl ListRow for EventRow {
    const TABLE: Table = Table { name: LOG, columns: COLUMNS, id: "run_id", is_found_by_value: true, large: &[] };
}

/// Sort order of a log.
#[must_use]
pub fn order(ascending: bool) -> Order {
    Order { column: "seq", ascending }
}

/// Assigns sequence numbers to the rows of a run that became visible since the last call, in the order in which they
/// were written. If two processes do this at the same time, both begin with the same number. The table rejects the
/// second one, which then retries.
pub async fn number(pool: &Pool, run_id: &str) -> Result<(), Error> {
    // Rows are locked in one order to avoid a deadlock.
    let sql = "
        WITH unnumbered AS MATERIALIZED (
            SELECT ctid AS location, id FROM run_events WHERE run_id = $1 AND seq IS NULL ORDER BY id FOR UPDATE
        ), numbered AS (
            SELECT location, row_number() OVER (ORDER BY id)
                + coalesce((SELECT max(seq) FROM run_events WHERE run_id = $1), 0) AS number
            FROM unnumbered
        )
        UPDATE run_events e SET seq = number FROM numbered WHERE e.ctid = location AND e.run_id = $1";
    loop {
        match sqlx::query(sql).bind(run_id).execute(pool).await.map_err(Error::from) {
            Err(Error::Conflict { .. }) => {}
            other => return other.map(drop),
        }
    }
}

/// Filter of a log.
#[derive(Debug, Default)]
pub struct Filter<'a> {
    /// Exact ids of steps; all entries if empty.
    pub steps: &'a [String],
    /// Exact kinds; all if empty.
    pub kinds: &'a [String],
}

/// Page of the log of a run, as far as it is [numbered](number).
pub async fn list(
    conn: &mut PgConnection,
    run_id: &str,
    filter: &Filter<'_>,
    order: Order,
    page: &PageRequest,
) -> Result<Page<EventRow>, Error> {
    let of_run = Conditions::default().equal("run_id", Some(run_id));
    let conditions = Conditions::default().one_of("step_id", filter.steps).one_of("kind", filter.kinds);
    // Sequence numbers have no gaps.
    let known = if conditions.is_empty() {
        let sql = "SELECT coalesce(max(seq), 0)::bigint + 1 FROM run_events WHERE run_id = $1";
        Some(sqlx::query_scalar(sql).bind(run_id).fetch_one(&mut *conn).await?)
    } else {
        None
    };
    let created = Range { source: Some(CREATIONS), found: of_run.clone().with(&conditions), ..Range::default() };
    let events = of_run.holds("seq IS NOT NULL");
    let events = Range { source: Some(EVENTS), found: events, checked: conditions, ..Range::default() };
    list::fetch(conn, &Plan::merged(vec![created, events], order), page, known).await
}

/// Rest of a log for a reader that has read a part of it.
#[derive(Debug)]
pub struct LogTail {
    /// Status of the run. The entry that caused it is in the log.
    pub status: String,
    /// Last assigned sequence number; 0 if there is none.
    pub last: i32,
    /// The next entries.
    pub rows: Vec<EventRow>,
}

/// Entries after the sequence number `after`; `None` if the run does not exist.
pub async fn rest(pool: &Pool, run_id: &str, after: i32, limit: i64) -> Result<Option<LogTail>, Error> {
    // The status is read first, so that its cause is among the entries read next.
    let sql = "SELECT status FROM workflow_runs WHERE run_id = $1";
    let Some(status) = sqlx::query_scalar(sql).bind(run_id).fetch_optional(pool).await? else { return Ok(None) };
    number(pool, run_id).await?;
    let sql = "SELECT coalesce(max(seq), 0) FROM run_events WHERE run_id = $1";
    let last = sqlx::query_scalar(sql).bind(run_id).fetch_one(pool).await?;
    let sql = format!("SELECT {COLUMNS} FROM {LOG} WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3");
    let rows = sqlx::query_as(AssertSqlSafe(sql)).bind(run_id).bind(after).bind(limit).fetch_all(pool).await?;
    Ok(Some(LogTail { status, last, rows }))
}

/// Progress of a run. It changes with every entry of the log, and with a question of a sub-run if that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct Progress {
    /// The run is in a terminal state, or deleted.
    pub has_ended: bool,
    /// Last sequence number, if one is assigned.
    last: Option<i32>,
    /// Number of rows without a sequence number.
    unnumbered: i64,
    /// Number of the last piece of a streamed output, if there is one (see [`super::deltas`]).
    pub last_delta: Option<i64>,
    /// Time of the last question of a sub-run that nobody has answered, if that is wanted.
    last_asked: Option<DateTime<Utc>>,
}

/// Progress of these runs, each with its id; and whether questions of sub-runs are wanted. While no agent streams, the
/// table of the pieces is empty, and only that is checked, once.
pub async fn progress(
    db: impl PgExecutor<'_>,
    (run_ids, are_families): (&[String], &[bool]),
) -> Result<Vec<(String, Progress)>, Error> {
    const SQL: &str = concat!(
        "SELECT given.run_id, coalesce(status IN ('COMPLETED', 'FAILED', 'CANCELLED'), true) AS has_ended,
            (SELECT max(seq) FROM run_events e WHERE e.run_id = given.run_id) AS last,
            (SELECT count(*) FROM run_events e WHERE e.run_id = given.run_id AND seq IS NULL) AS unnumbered,
            CASE WHEN (SELECT EXISTS (SELECT FROM step_deltas)) THEN
                (SELECT max(d.id) FROM step_deltas d WHERE d.run_id = given.run_id)
            END AS last_delta,
            CASE WHEN is_family AND status = 'RUNNING' THEN (WITH RECURSIVE ",
        family!(
            "SELECT child.run_id FROM workflow_runs child
             WHERE child.parent_run_id = given.run_id AND child.status = 'RUNNING'"
        ),
        "SELECT max(w.created_at) ",
        questions_of_family!(),
        ") END AS last_asked
        FROM unnest($1::text[], $2::bool[]) AS given (run_id, is_family)
            LEFT JOIN workflow_runs r ON r.run_id = given.run_id"
    );
    #[derive(sqlx::FromRow)]
    struct Row {
        run_id: String,
        #[sqlx(flatten)]
        progress: Progress,
    }
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(SQL)).bind(run_ids).bind(are_families).fetch_all(db).await?;
    Ok(rows.into_iter().map(|row| (row.run_id, row.progress)).collect())
}
