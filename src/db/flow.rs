//! Flow control: which held runs may go on. `docs/adr/0030-flow-control-at-start.md` has the design.
//!
//! A controlled run is inserted as *arrived* at its first stage, without a message. Who holds the lock of its key
//! decides: it is *queued*, it is cancelled, or it passes to the next stage, and behind the last one it is
//! *admitted*, with a message in the same transaction. The slots that are taken are counted each time, from the
//! admitted runs that have not ended, so none can leak.
//!
//! The locks of keys come before those of rows. The end of a run holds its row, so it takes no such lock: it adds a
//! row to `flow_wakes`, by a trigger, and the loop of the relay admits the next one.

mod concurrency;
mod debounce;
mod shown;
mod throttle;

use serde_json::value::RawValue;
use sqlx::{PgConnection, PgExecutor, types::Json};

pub use self::shown::{FlowState, MAX_AHEAD, Waiting, is_held_by_family, states, waiting};
use super::{Error, Pool};
use crate::workflow::{FlowControl, FlowKeys, FlowStage};

/// Maximum number of keys of one transaction of the loop.
const MAX_KEYS: i64 = 100;
/// Maximum number of runs of a key that one transaction admits, queues or cancels.
const MAX_RUNS: i64 = 500;
/// Number of keys that a part of the walk looks at.
const WALK: i64 = 500;

/// Key of a stage of flow control of a workflow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct FlowKey {
    pub organization_id: String,
    pub workflow_name: String,
    pub flow_stage: String,
    pub flow_key: String,
}

impl FlowKey {
    /// The keys of a run, of all its stages.
    pub fn of<'a>(
        keys: &'a FlowKeys,
        organization: &'a str,
        workflow_name: &'a str,
    ) -> impl Iterator<Item = Self> + use<'a> {
        keys.iter().map(move |(stage, key)| Self {
            organization_id: organization.to_owned(),
            workflow_name: workflow_name.to_owned(),
            flow_stage: stage.as_str().to_owned(),
            flow_key: key.to_owned(),
        })
    }
}

/// Columns of several keys.
struct Columns<'a> {
    organization_id: Vec<&'a str>,
    workflow_name: Vec<&'a str>,
    flow_stage: Vec<&'a str>,
    flow_key: Vec<&'a str>,
}

impl<'a> Columns<'a> {
    fn of(keys: impl IntoIterator<Item = &'a FlowKey>) -> Self {
        let mut columns = Self {
            organization_id: Vec::new(),
            workflow_name: Vec::new(),
            flow_stage: Vec::new(),
            flow_key: Vec::new(),
        };
        for key in keys {
            columns.organization_id.push(&key.organization_id);
            columns.workflow_name.push(&key.workflow_name);
            columns.flow_stage.push(&key.flow_stage);
            columns.flow_key.push(&key.flow_key);
        }
        columns
    }
}

/// Key with the flow control of its workflow, as it is now.
struct Controlled<'k> {
    key: &'k FlowKey,
    flow: FlowControl,
}

/// Numbers of runs that a decision has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// They may start: they have a message.
    pub admitted: usize,
    /// They have passed a stage and arrived at the next one.
    pub passed: usize,
    /// They wait from now on.
    pub queued: usize,
    /// They were cancelled, because the limit of concurrency was reached.
    pub skipped: usize,
    /// They were cancelled, because they came too early for the throttle.
    pub dropped: usize,
    /// They were cancelled, because newer ones take their places.
    pub replaced: usize,
}

impl Decided {
    /// The largest of the numbers.
    fn most(&self) -> usize {
        let Self { admitted, passed, queued, skipped, dropped, replaced } = *self;
        [admitted, passed, queued, skipped, dropped, replaced].into_iter().max().unwrap_or_default()
    }
}

impl std::ops::AddAssign for Decided {
    fn add_assign(&mut self, other: Self) {
        self.admitted += other.admitted;
        self.passed += other.passed;
        self.queued += other.queued;
        self.skipped += other.skipped;
        self.dropped += other.dropped;
        self.replaced += other.replaced;
    }
}

/// Locks these keys until the transaction ends, in one order for all.
pub async fn lock(conn: &mut PgConnection, keys: &[FlowKey]) -> Result<(), Error> {
    let of = Columns::of(keys);
    let sql = "SELECT pg_advisory_xact_lock(place) FROM (
                   SELECT DISTINCT
                       hashtextextended(concat_ws('/', 'flow', flow_stage, organization_id, workflow_name, flow_key), 0) AS place
                   FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
                       AS k (organization_id, workflow_name, flow_stage, flow_key)
                   ORDER BY place) AS places";
    sqlx::query(sql)
        .bind(of.organization_id)
        .bind(of.workflow_name)
        .bind(of.flow_stage)
        .bind(of.flow_key)
        .execute(conn)
        .await?;
    Ok(())
}

/// Work for the loop that admits runs.
#[derive(Debug, sqlx::FromRow)]
pub struct Work {
    /// There are rows in `flow_wakes` that are due.
    pub is_woken: bool,
    /// There are controlled runs that have not ended, so there may soon be.
    pub is_any_open: bool,
    /// There are rows in `flow_throttles`.
    pub has_throttles: bool,
}

/// Whether there is anything to do for [`admit_woken`].
pub async fn work(db: impl PgExecutor<'_>) -> Result<Work, Error> {
    // The order leaves the planner no other way than the index, however many ended runs were controlled.
    let sql = "SELECT EXISTS (SELECT FROM flow_wakes WHERE due_at <= now()) AS is_woken,
                   (SELECT true FROM workflow_runs WHERE flow_state IS NOT NULL AND status IN ('PENDING', 'RUNNING')
                    ORDER BY organization_id, workflow_name, flow_stage, flow_key LIMIT 1) IS NOT NULL AS is_any_open,
                   EXISTS (SELECT FROM flow_throttles) AS has_throttles";
    Ok(sqlx::query_as(sql).fetch_one(db).await?)
}

/// Takes keys from `flow_wakes` and decides for their runs, in a transaction. Keys that others have locked are left:
/// they come again.
pub async fn admit_woken(pool: &Pool) -> Result<Decided, Error> {
    let mut transaction = super::begin(pool).await?;
    let decided = admit_some_woken(&mut transaction).await?;
    super::commit(transaction).await?;
    Ok(decided)
}

async fn admit_some_woken(conn: &mut PgConnection) -> Result<Decided, Error> {
    let sql = "SELECT DISTINCT organization_id, workflow_name::text AS workflow_name, flow_stage, flow_key
               FROM (SELECT * FROM flow_wakes WHERE due_at <= now() ORDER BY due_at LIMIT 1000) AS w LIMIT $1";
    let woken: Vec<FlowKey> = sqlx::query_as(sql).bind(MAX_KEYS).fetch_all(&mut *conn).await?;
    let of = Columns::of(&woken);
    let sql = "SELECT organization_id, workflow_name, flow_stage, flow_key
               FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
                   AS k (organization_id, workflow_name, flow_stage, flow_key)
               WHERE pg_try_advisory_xact_lock(
                   hashtextextended(concat_ws('/', 'flow', flow_stage, organization_id, workflow_name, flow_key), 0))";
    let locked: Vec<FlowKey> = sqlx::query_as(sql)
        .bind(of.organization_id)
        .bind(of.workflow_name)
        .bind(of.flow_stage)
        .bind(of.flow_key)
        .fetch_all(&mut *conn)
        .await?;
    if locked.is_empty() { Ok(Decided::default()) } else { admit(conn, &locked).await }
}

/// Decides for the runs of these keys, which the caller has locked, stage by stage: what passes one of them is
/// decided at the next one too, if its key there is among these. Each statement sees what was committed before it.
pub async fn admit(conn: &mut PgConnection, keys: &[FlowKey]) -> Result<Decided, Error> {
    let mut all = Decided::default();
    for stage in FlowStage::ALL {
        let keys: Vec<&FlowKey> = keys.iter().filter(|key| key.flow_stage == stage.as_str()).collect();
        if keys.is_empty() {
            continue;
        }
        forget_wakes(&mut *conn, &keys).await?;
        let controlled = settings(&mut *conn, &keys).await?;
        let decided = match stage {
            FlowStage::Debounce => debounce::decide(&mut *conn, &controlled).await?,
            FlowStage::Throttle => throttle::decide(&mut *conn, &controlled).await?,
            FlowStage::Concurrency => concurrency::decide(&mut *conn, &controlled).await?,
        };
        if decided.most() >= usize::try_from(MAX_RUNS).unwrap_or(usize::MAX) {
            // There may be more of them.
            wake(&mut *conn, keys.iter().copied()).await?;
        }
        all += decided;
    }
    Ok(all)
}

/// Deletes the rows that have woken these keys. The ends that they tell of are visible to later statements.
async fn forget_wakes(conn: &mut PgConnection, keys: &[&FlowKey]) -> Result<(), Error> {
    let of = Columns::of(keys.iter().copied());
    let sql = "DELETE FROM flow_wakes w
               USING unnest($1::text[], $2::text[], $3::text[], $4::text[])
                   AS k (organization_id, workflow_name, flow_stage, flow_key)
               WHERE w.organization_id = k.organization_id AND w.workflow_name = k.workflow_name
                   AND w.flow_stage = k.flow_stage AND w.flow_key = k.flow_key";
    sqlx::query(sql)
        .bind(of.organization_id)
        .bind(of.workflow_name)
        .bind(of.flow_stage)
        .bind(of.flow_key)
        .execute(conn)
        .await?;
    Ok(())
}

/// Those of these keys whose workflows have a flow control that this release can read, with that of their newest
/// versions. Runs of other keys stay as they are.
async fn settings<'k>(conn: &mut PgConnection, keys: &[&'k FlowKey]) -> Result<Vec<Controlled<'k>>, Error> {
    let of = Columns::of(keys.iter().copied());
    let sql = "SELECT (SELECT flow_control FROM workflow_definitions d
                       WHERE d.name = k.workflow_name AND d.organization_id = k.organization_id
                       ORDER BY version DESC LIMIT 1)
               FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (organization_id, workflow_name, place)
               ORDER BY place";
    let found: Vec<Option<Json<Box<RawValue>>>> =
        sqlx::query_scalar(sql).bind(of.organization_id).bind(of.workflow_name).fetch_all(conn).await?;
    let mut controlled = Vec::with_capacity(keys.len());
    for (key, flow) in keys.iter().zip(found) {
        match flow.map_or_else(|| Ok(FlowControl::default()), |flow| serde_json::from_str(flow.0.get())) {
            Ok(flow) => controlled.push(Controlled { key, flow }),
            Err(error) => tracing::error!(
                workflow_name = key.workflow_name,
                "the flow control of a workflow cannot be read, and its runs are held: {error}"
            ),
        }
    }
    Ok(controlled)
}

/// Lets these held runs pass their stage: to the next one, or to the executors. A run that was cancelled or paused
/// meanwhile does not pass. Returns for each that has passed whether it may start now.
async fn pass(conn: &mut PgConnection, run_ids: &[String]) -> Result<Vec<(String, bool)>, Error> {
    if run_ids.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "
        WITH held AS MATERIALIZED (
            SELECT run_id, CASE
                    WHEN flow_stage = 'debounce' AND flow_rest ? 'throttle' THEN 'throttle'
                    WHEN flow_stage IN ('debounce', 'throttle') AND flow_rest ? 'concurrency' THEN 'concurrency'
                END AS next
            FROM workflow_runs
            WHERE run_id = ANY ($1) AND flow_state IN ('arrived', 'queued') AND paused_at IS NULL
                AND (status = 'PENDING') IS TRUE
            ORDER BY run_id FOR NO KEY UPDATE
        ), passed AS (
            UPDATE workflow_runs r
            SET flow_stage = coalesce(next, flow_stage), flow_state = CASE WHEN next IS NULL THEN 'admitted' ELSE 'arrived' END,
                flow_key = coalesce(flow_rest ->> next, flow_key),
                flow_rest = CASE WHEN next IS NOT NULL THEN flow_rest - next - 'since' END,
                flow_at = now(), flow_due = NULL, updated_at = now() AT TIME ZONE 'UTC',
                redispatch_at = CASE WHEN next IS NOT NULL THEN redispatch_at END,
                -- A sub-run starts without a message.
                wake_at = CASE WHEN next IS NULL AND parent_run_id IS NOT NULL THEN now() END
            FROM held WHERE r.run_id = held.run_id
            RETURNING r.run_id, next, organization_id, workflow_name, flow_stage, flow_key, execution_event_id, parent_run_id
        ), message AS (
            INSERT INTO outbox (run_id, event_id, kind, created_at)
            SELECT run_id, coalesce(execution_event_id, gen_random_uuid()), 'execution', clock_timestamp()
            FROM passed WHERE next IS NULL AND parent_run_id IS NULL
        ), arrived AS (
            INSERT INTO flow_wakes (organization_id, workflow_name, flow_stage, flow_key)
            SELECT organization_id, workflow_name, flow_stage, flow_key FROM passed WHERE next IS NOT NULL
        ), recorded AS (
            -- Of a run that has not waited, the log says nothing.
            INSERT INTO run_events (run_id, kind)
            SELECT run_id, 'run.admitted' FROM passed
            WHERE next IS NULL AND EXISTS (
                SELECT FROM run_events e WHERE e.run_id = passed.run_id AND e.kind = 'run.queued')
        )
        SELECT run_id, next IS NULL FROM passed";
    Ok(sqlx::query_as(sql).bind(run_ids).fetch_all(conn).await?)
}

/// How runs end that have arrived and find no room.
struct Refusal {
    /// State of the run afterwards; empty: they are queued.
    state: &'static str,
    /// Reason of the cancellation.
    message: String,
}

/// Queues the runs that have arrived at these keys and have not passed, or cancels them. One that a caller has
/// retried is queued in any case. Returns how many were queued, and how many were cancelled.
async fn settle_arrived(
    conn: &mut PgConnection,
    keys: &[Controlled<'_>],
    refusals: &[Refusal],
) -> Result<(usize, usize), Error> {
    let of = Columns::of(keys.iter().map(|controlled| controlled.key));
    let states: Vec<&str> = refusals.iter().map(|refusal| refusal.state).collect();
    let messages: Vec<&str> = refusals.iter().map(|refusal| refusal.message.as_str()).collect();
    let sql = "
        WITH arrived AS MATERIALIZED (
            SELECT r.run_id, k.message, k.state <> '' AND (r.flow_rest ? 'retried') IS NOT TRUE AS is_refused, k.state
            FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
                AS k (organization_id, workflow_name, flow_stage, flow_key, state, message)
            CROSS JOIN LATERAL (
                SELECT run_id, flow_rest FROM workflow_runs r
                WHERE r.organization_id = k.organization_id AND r.workflow_name = k.workflow_name
                    AND r.flow_stage = k.flow_stage AND r.flow_key = k.flow_key AND r.flow_state = 'arrived'
                    AND r.status IN ('PENDING', 'RUNNING')
                LIMIT $7) AS r
        ), refused AS (
            UPDATE workflow_runs r
            SET status = 'CANCELLED', cancelled_at = now() AT TIME ZONE 'UTC', updated_at = now() AT TIME ZONE 'UTC',
                cancelled_by = 'system', error_message = arrived.message, wake_at = NULL, flow_state = arrived.state,
                flow_at = now()
            FROM arrived
            WHERE r.run_id = arrived.run_id AND is_refused AND r.flow_state = 'arrived' AND (r.status = 'PENDING') IS TRUE
            RETURNING r.run_id
        ), queued AS (
            UPDATE workflow_runs r SET flow_state = 'queued', flow_at = now()
            FROM arrived
            WHERE r.run_id = arrived.run_id AND NOT is_refused AND r.flow_state = 'arrived' AND (r.status = 'PENDING') IS TRUE
            RETURNING r.run_id, r.flow_stage
        ), recorded AS (
            INSERT INTO run_events (run_id, kind, detail) SELECT run_id, 'run.queued', flow_stage FROM queued
        )
        SELECT (SELECT count(*) FROM queued), (SELECT count(*) FROM refused)";
    let (queued, refused): (i64, i64) = sqlx::query_as(sql)
        .bind(of.organization_id)
        .bind(of.workflow_name)
        .bind(of.flow_stage)
        .bind(of.flow_key)
        .bind(states)
        .bind(messages)
        .bind(MAX_RUNS)
        .fetch_one(conn)
        .await?;
    Ok((usize::try_from(queued).unwrap_or_default(), usize::try_from(refused).unwrap_or_default()))
}

/// Lets the loop look at these keys.
pub async fn wake(db: impl PgExecutor<'_>, keys: impl IntoIterator<Item = &FlowKey>) -> Result<(), Error> {
    let of = Columns::of(keys);
    let sql = "INSERT INTO flow_wakes (organization_id, workflow_name, flow_stage, flow_key)
               SELECT DISTINCT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])";
    sqlx::query(sql)
        .bind(of.organization_id)
        .bind(of.workflow_name)
        .bind(of.flow_stage)
        .bind(of.flow_key)
        .execute(db)
        .await?;
    Ok(())
}

/// Lets the loop look at the keys of the held runs, a part of them: after `after`, in their order. This finds what
/// no notice has told of. Returns where the next part begins; `None`: this was the last one.
pub async fn walk(db: impl PgExecutor<'_>, after: Option<&FlowKey>) -> Result<Option<FlowKey>, Error> {
    let sql = "
        WITH RECURSIVE next AS (
            (SELECT organization_id, workflow_name, flow_stage, flow_key FROM workflow_runs
             WHERE flow_state IS NOT NULL AND status IN ('PENDING', 'RUNNING')
                 AND (organization_id, workflow_name, flow_stage, flow_key) > ($1, $2, $3, $4)
             ORDER BY organization_id, workflow_name, flow_stage, flow_key LIMIT 1)
            UNION ALL SELECT found.* FROM next CROSS JOIN LATERAL (
                SELECT organization_id, workflow_name, flow_stage, flow_key FROM workflow_runs r
                WHERE flow_state IS NOT NULL AND status IN ('PENDING', 'RUNNING')
                    AND (r.organization_id, r.workflow_name, r.flow_stage, r.flow_key)
                        > (next.organization_id, next.workflow_name, next.flow_stage, next.flow_key)
                ORDER BY organization_id, workflow_name, flow_stage, flow_key LIMIT 1) AS found
        ), part AS MATERIALIZED (
            SELECT * FROM next LIMIT $5
        ), woken AS (
            INSERT INTO flow_wakes (organization_id, workflow_name, flow_stage, flow_key)
            -- For EXISTS, the planner may read the whole table.
            SELECT * FROM part WHERE (
                SELECT true FROM workflow_runs r
                WHERE r.organization_id = part.organization_id AND r.workflow_name = part.workflow_name
                    AND r.flow_stage = part.flow_stage AND r.flow_key = part.flow_key
                    AND r.flow_state IN ('arrived', 'queued') AND r.status IN ('PENDING', 'RUNNING')
                LIMIT 1) IS NOT NULL
        )
        SELECT organization_id, workflow_name::text AS workflow_name, flow_stage, flow_key FROM part
        ORDER BY organization_id, workflow_name, flow_stage, flow_key OFFSET $5 - 1";
    let text = |of: fn(&FlowKey) -> &str| after.map_or("", of);
    Ok(sqlx::query_as(sql)
        .bind(text(|key| &key.organization_id))
        .bind(text(|key| &key.workflow_name))
        .bind(text(|key| &key.flow_stage))
        .bind(text(|key| &key.flow_key))
        .bind(WALK)
        .fetch_optional(db)
        .await?)
}

/// Deletes the rows of throttles that are unused.
pub async fn forget_throttles(db: impl PgExecutor<'_>) -> Result<(), Error> {
    sqlx::query("DELETE FROM flow_throttles WHERE busy_until < now() - interval '1 minute'").execute(db).await?;
    Ok(())
}
