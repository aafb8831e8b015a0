//! Invariants: rules that the rows of different tables keep between them, checked by `workflow-api check invariants`.
//!
//! Tables are read in parts by key, each with a statement of its own: every part is a consistent view, and no snapshot
//! lasts longer than a part. The check writes nothing; its result can be recorded.

mod flow;
mod triggers;

use serde::Deserialize;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgExecutor, types::Json};

use super::{
    Error,
    audit::{self, Chain},
    connect,
};
use crate::{access::OrganizationId, config, visible};

/// Rows that a statement reads.
const PART: i64 = 5000;
/// Seals of the audit trail that a statement reads, each of up to some thousand entries.
const SEALS: i64 = 10;
/// Time-out of a statement. Only the counts of a workflow with many runs, and the search for added audit entries, take
/// long.
const STATEMENT_TIMEOUT: &str = "SET statement_timeout = '2min'";
/// Number of ids that are kept for each invariant.
const SHOWN: usize = 10;

/// Invariant with its violations.
#[derive(Clone, Debug)]
pub struct Invariant {
    /// Name in reports and metrics.
    pub name: &'static str,
    /// What holds if nothing is wrong.
    pub rule: &'static str,
    /// Number of violations.
    pub violations: u64,
    /// First ids of what violates it.
    pub ids: Vec<String>,
    /// Reason why it could not be checked completely.
    pub error: Option<String>,
}

/// Names and rules, in the order of a report.
const RULES: [(&str, &str); 23] = [
    (
        "pending_runs_are_dispatched",
        "a PENDING run has a message in the outbox, or is found by the sweep for lost messages",
    ),
    ("running_runs_are_recoverable", "a RUNNING run has the lease of an executor, or is parked or paused"),
    ("parked_runs_can_wake", "a parked run has a time to go on, or a wait that wakes it"),
    ("open_runs_have_a_definition", "the definition of a run that has not ended is there"),
    ("open_sub_runs_have_an_open_parent", "the parent of a sub-run that has not ended has not ended either"),
    ("sub_runs_have_a_parent", "the parent of a sub-run is there"),
    ("steps_have_a_run", "the run of a step is there"),
    ("ended_runs_have_no_open_step", "a run that an executor of this service has ended has no open step"),
    ("waits_have_a_run", "the run of a wait is there, and its attempt"),
    ("waits_have_their_sub_run", "the sub-run that a wait is for is there"),
    ("waits_wake_their_run", "a wait that is over wakes its parked run"),
    ("wakes_have_a_run", "the run of an event that wakes it is there"),
    ("events_have_a_run", "the run of a log entry is there"),
    ("outbox_messages_have_a_run", "the run of a message that is still to be sent is there"),
    ("slots_are_within_their_limit", "no more runs of a concurrency key have a slot than its limit allows"),
    (
        "held_runs_have_a_reason",
        "a run that flow control holds waits for a slot or a time, or its key is about to be looked at",
    ),
    ("triggers_can_fire", "a schedule has its next time, and a webhook trigger its address"),
    ("webhook_deliveries_go_on", "a webhook has its state, and each delivery that is to be sent has a time for it"),
    ("idempotency_keys_have_their_run", "the run that an idempotency key has started is there"),
    ("run_usage_is_exact", "what a run has used is the sum of its calls"),
    ("run_counts_are_exact", "the maintained numbers of runs by workflow and status equal the rows"),
    ("run_totals_are_exact", "the maintained totals of runs equal the sum of those numbers"),
    ("audit_trail_is_whole", "the audit trail agrees with its chain of hashes"),
];

/// End of a statement that reads a part. Before it, `part` has the rows in order, with their `place`, and `violated` the
/// name of the invariant and the id for each violation.
const REPORT: &str = "
    SELECT (SELECT place FROM part LIMIT 1 OFFSET $2 - 1) AS place,
        coalesce((SELECT jsonb_agg(jsonb_build_object('name', name, 'count', count, 'ids', ids)) FROM (
            SELECT name, count(*) AS count, (array_agg(id ORDER BY id))[:10] AS ids FROM violated GROUP BY name
        ) AS by_name), '[]') AS violated";

/// Violations of one invariant in a part.
#[derive(Debug, Deserialize)]
struct Violated {
    name: String,
    count: u64,
    ids: Vec<String>,
}

/// Part of a table.
#[derive(Debug, sqlx::FromRow)]
struct Part {
    /// Place of the last row, behind which the next part begins; `None` if this was the last part.
    place: Option<Vec<String>>,
    violated: Json<Vec<Violated>>,
}

/// Table that is read in parts.
struct Scan {
    /// Names of the invariants that it checks.
    names: &'static [&'static str],
    /// Place before all rows.
    start: &'static [&'static str],
    /// Statement of a part, with the place and the number of rows as parameters.
    sql: String,
}

/// Stores the results, for the metrics of the API. Those of invariants that this release does not know are deleted.
pub async fn record(settings: &config::Database, found: &[Invariant]) -> Result<(), Error> {
    let names: Vec<&str> = found.iter().map(|invariant| invariant.name).collect();
    let violations: Vec<Option<i64>> = found
        .iter()
        .map(|invariant| invariant.error.is_none().then(|| i64::try_from(invariant.violations).unwrap_or(i64::MAX)))
        .collect();
    let sql = "
        WITH deleted AS (DELETE FROM invariant_checks WHERE name <> ALL ($1))
        INSERT INTO invariant_checks (name, violations) SELECT * FROM unnest($1::text[], $2::bigint[])
        ON CONFLICT (name) DO UPDATE SET violations = excluded.violations, checked_at = excluded.checked_at";
    let mut conn = connect(settings).await?;
    sqlx::query(sql).bind(names).bind(violations).execute(&mut conn).await?;
    Ok(conn.close().await?)
}

/// Recorded result for one invariant.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Recorded {
    /// Name of the invariant.
    pub name: String,
    /// Violations; `None`: it could not be checked completely.
    pub violations: Option<i64>,
    /// Time of the check, in seconds since 1970.
    pub checked_at_secs: f64,
}

/// The last recorded results; none before the first one.
pub async fn recorded(db: impl PgExecutor<'_>) -> Result<Vec<Recorded>, Error> {
    let sql =
        "SELECT name, violations, extract(epoch FROM checked_at)::float8 AS checked_at_secs FROM invariant_checks";
    Ok(sqlx::query_as(sql).fetch_all(db).await?)
}

/// Checks all invariants, on a connection of its own. An error is that of the connection: what happens to a single
/// check is in its result.
pub async fn check(settings: &config::Database) -> Result<Vec<Invariant>, Error> {
    let mut conn = connect(settings).await?;
    for setting in
        [STATEMENT_TIMEOUT, "SET default_transaction_read_only = on", "SET application_name = 'workflow-api-check'"]
    {
        sqlx::query(setting).execute(&mut conn).await?;
    }
    let mut report =
        Report(RULES.map(|(name, rule)| Invariant { name, rule, violations: 0, ids: Vec::new(), error: None }).into());
    for scan in scans() {
        if let Err(error) = read(&mut conn, &scan, &mut report).await {
            report.fail(scan.names, &error)?;
        }
    }
    if let Err(error) = compare_counts(&mut conn, &mut report).await {
        report.fail(&["run_counts_are_exact"], &error)?;
    }
    if let Err(error) = compare_totals(&mut conn, &mut report).await {
        report.fail(&["run_totals_are_exact"], &error)?;
    }
    if let Err(error) = verify_audit_trail(&mut conn, &mut report).await {
        report.fail(&["audit_trail_is_whole"], &error)?;
    }
    Ok(report.0)
}

struct Report(Vec<Invariant>);

impl Report {
    fn add(&mut self, name: &str, count: u64, ids: impl IntoIterator<Item = String>) {
        let invariant = self.0.iter_mut().find(|invariant| invariant.name == name).expect("a name of RULES");
        invariant.violations += count;
        let free = SHOWN.saturating_sub(invariant.ids.len());
        invariant.ids.extend(ids.into_iter().take(free));
    }

    /// Notes that these could not be checked. Without a database there is no report.
    fn fail(&mut self, names: &[&str], error: &Error) -> Result<(), Error> {
        if let Error::Unavailable(sqlx::Error::Io(cause)) = error {
            return Err(Error::Unavailable(sqlx::Error::Io(cause.kind().into())));
        }
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let text = visible::escaped_lines(&format!("{error}{cause}"));
        for invariant in self.0.iter_mut().filter(|invariant| names.contains(&invariant.name)) {
            invariant.error = Some(text.clone());
        }
        Ok(())
    }
}

async fn read(conn: &mut PgConnection, scan: &Scan, report: &mut Report) -> Result<(), Error> {
    let mut place: Vec<String> = scan.start.iter().map(|&part| part.to_owned()).collect();
    loop {
        let part: Part =
            sqlx::query_as(AssertSqlSafe(scan.sql.as_str())).bind(&place).bind(PART).fetch_one(&mut *conn).await?;
        for Violated { name, count, ids } in part.violated.0 {
            report.add(&name, count, ids);
        }
        match part.place {
            Some(last) => place = last,
            None => return Ok(()),
        }
    }
}

fn scans() -> [Scan; 13] {
    [
        open_runs(),
        sub_runs(),
        steps(),
        waits(),
        wakes(),
        events(),
        outbox(),
        batches(),
        flow::keys(),
        triggers::triggers(),
        triggers::webhooks(),
        idempotency_keys(),
        usage(),
    ]
}

/// The runs that have not ended, in the order of their index.
fn open_runs() -> Scan {
    let sql = format!(
        "WITH part AS MATERIALIZED (
            SELECT r.*, ARRAY[organization_id, status, updated_at::text, run_id]::text[] AS place FROM workflow_runs r
            WHERE status NOT IN ('COMPLETED', 'FAILED', 'CANCELLED')
                AND (organization_id, status, updated_at, run_id) > (($1::text[])[1], ($1::text[])[2], ($1::text[])[3]::timestamp, ($1::text[])[4])
            ORDER BY organization_id, status, updated_at, run_id LIMIT $2
        ), undispatched AS MATERIALIZED (
            -- `wake` finds a sub-run, and a paused run once it is resumed; the sweep of the outbox every other run of this
            -- API.
            SELECT run_id FROM part
            WHERE status = 'PENDING' AND wake_at IS NULL AND paused_at IS NULL AND workflow_version IS NULL
                AND (flow_state IN ('arrived', 'queued')) IS NOT TRUE
            EXCEPT SELECT run_id FROM outbox_messages
        ), violated AS (
            SELECT rule.name, r.run_id AS id FROM part r
                LEFT JOIN workflow_runs parent ON parent.run_id = r.parent_run_id
                CROSS JOIN LATERAL (VALUES
                ('pending_runs_are_dispatched', (r.status = 'PENDING' AND r.executor_id IS NOT NULL)
                    OR r.run_id IN (SELECT run_id FROM undispatched)),
                -- A run without a claim belongs to the reference executor.
                ('running_runs_are_recoverable', r.status = 'RUNNING' AND r.claimed_at IS NOT NULL
                    AND r.executor_id IS NULL AND r.wake_at IS NULL AND r.paused_at IS NULL),
                -- `IS TRUE`, because null does not end the evaluation of AND.
                ('parked_runs_can_wake', (r.wake_at = 'infinity') IS TRUE AND r.paused_at IS NULL
                    AND NOT EXISTS (SELECT FROM step_waits w WHERE w.run_id = r.run_id)
                    AND NOT EXISTS (SELECT FROM run_wakes w WHERE w.run_id = r.run_id)),
                ('open_runs_have_a_definition', r.workflow_plan IS NULL AND r.workflow_version IS NOT NULL
                    AND NOT EXISTS (SELECT FROM workflow_definitions d WHERE d.name = r.workflow_name
                        AND d.version = r.workflow_version AND d.organization_id = r.organization_id)),
                ('open_sub_runs_have_an_open_parent', r.parent_run_id IS NOT NULL
                    AND (parent.status IN ('PENDING', 'RUNNING')) IS NOT TRUE)
            ) AS rule (name, is_violated) WHERE rule.is_violated
        ) {REPORT}"
    );
    let names = &[
        "pending_runs_are_dispatched",
        "running_runs_are_recoverable",
        "parked_runs_can_wake",
        "open_runs_have_a_definition",
        "open_sub_runs_have_an_open_parent",
    ];
    Scan { names, start: &["", "", "-infinity", ""], sql }
}

fn sub_runs() -> Scan {
    let sql = format!(
        "WITH part AS MATERIALIZED (
            SELECT run_id, parent_run_id, ARRAY[parent_run_id, created_at::text, run_id]::text[] AS place
            FROM workflow_runs
            WHERE parent_run_id IS NOT NULL AND (parent_run_id, created_at, run_id) > (($1::text[])[1], ($1::text[])[2]::timestamp, ($1::text[])[3])
            ORDER BY parent_run_id, created_at, run_id LIMIT $2
        ), violated AS (
            SELECT 'sub_runs_have_a_parent' AS name, run_id AS id FROM part
            WHERE NOT EXISTS (SELECT FROM workflow_runs r WHERE r.run_id = part.parent_run_id)
        ) {REPORT}"
    );
    Scan { names: &["sub_runs_have_a_parent"], start: &["", "-infinity", ""], sql }
}

fn steps() -> Scan {
    let sql = format!(
        "WITH part AS MATERIALIZED (
            SELECT id, run_id, status, ARRAY[id]::text[] AS place FROM step_executions WHERE id > ($1::text[])[1]
            ORDER BY id LIMIT $2
        ), violated AS (
            SELECT rule.name, s.id FROM part s LEFT JOIN workflow_runs r ON r.run_id = s.run_id
                CROSS JOIN LATERAL (VALUES
                ('steps_have_a_run', r.run_id IS NULL),
                ('ended_runs_have_no_open_step', s.status IN ('PENDING', 'RUNNING') AND r.claimed_at IS NOT NULL
                    AND r.status IN ('COMPLETED', 'FAILED', 'CANCELLED'))
            ) AS rule (name, is_violated) WHERE rule.is_violated
        ) {REPORT}"
    );
    Scan { names: &["steps_have_a_run", "ended_runs_have_no_open_step"], start: &[""], sql }
}

fn waits() -> Scan {
    let sql = format!(
        "WITH part AS MATERIALIZED (
            SELECT id, run_id, attempt_id, due_at, answered_at, child_run_id, ARRAY[id]::text[] AS place
            FROM step_waits WHERE id > ($1::text[])[1]::uuid ORDER BY id LIMIT $2
        ), violated AS (
            SELECT rule.name, w.id::text AS id FROM part w
                LEFT JOIN workflow_runs r ON r.run_id = w.run_id
                LEFT JOIN step_executions s ON s.id = w.attempt_id
                LEFT JOIN workflow_runs child ON child.run_id = w.child_run_id
                CROSS JOIN LATERAL (VALUES
                ('waits_have_a_run', r.run_id IS NULL OR (w.attempt_id IS NOT NULL AND s.id IS NULL)),
                ('waits_have_their_sub_run', w.child_run_id IS NOT NULL AND child.run_id IS NULL),
                -- The run is parked, the step waits, and what it waits for has happened or is due: an event wakes the
                -- run, or its time is no later than that of the wait.
                ('waits_wake_their_run', r.status = 'RUNNING' AND (r.wake_at > now() + interval '1 s') IS TRUE
                    AND s.status = 'PENDING'
                    AND (w.answered_at IS NOT NULL OR child.status IN ('COMPLETED', 'FAILED', 'CANCELLED')
                        OR r.wake_at > w.due_at + interval '1 s')
                    AND NOT EXISTS (SELECT FROM run_wakes k WHERE k.run_id = w.run_id))
            ) AS rule (name, is_violated) WHERE rule.is_violated
        ) {REPORT}"
    );
    let names = &["waits_have_a_run", "waits_have_their_sub_run", "waits_wake_their_run"];
    Scan { names, start: &["00000000-0000-0000-0000-000000000000"], sql }
}

fn wakes() -> Scan {
    let sql = format!(
        "WITH part AS MATERIALIZED (
            SELECT id, run_id, ARRAY[id]::text[] AS place FROM run_wakes WHERE id > ($1::text[])[1]::bigint
            ORDER BY id LIMIT $2
        ), violated AS (
            SELECT 'wakes_have_a_run' AS name, run_id AS id FROM part
            WHERE NOT EXISTS (SELECT FROM workflow_runs r WHERE r.run_id = part.run_id)
        ) {REPORT}"
    );
    Scan { names: &["wakes_have_a_run"], start: &["0"], sql }
}

/// The logs: one entry of each run, found by the index.
fn events() -> Scan {
    let sql = format!(
        "WITH RECURSIVE run AS (
            (SELECT run_id FROM run_events WHERE run_id > ($1::text[])[1] ORDER BY run_id LIMIT 1)
            UNION ALL SELECT (SELECT run_id FROM run_events e WHERE e.run_id > run.run_id ORDER BY run_id LIMIT 1)
            FROM run WHERE run.run_id IS NOT NULL
        ), part AS MATERIALIZED (
            SELECT run_id, ARRAY[run_id]::text[] AS place FROM (SELECT run_id FROM run LIMIT $2) AS next
            WHERE run_id IS NOT NULL
        ), violated AS (
            SELECT 'events_have_a_run' AS name, run_id AS id FROM part
            WHERE NOT EXISTS (SELECT FROM workflow_runs r WHERE r.run_id = part.run_id)
        ) {REPORT}"
    );
    Scan { names: &["events_have_a_run"], start: &[""], sql }
}

fn outbox() -> Scan {
    let sql = format!(
        "WITH part AS MATERIALIZED (
            SELECT run_id, ARRAY[run_id, event_id::text]::text[] AS place FROM outbox
            WHERE (run_id, event_id) > (($1::text[])[1], ($1::text[])[2]::uuid) ORDER BY run_id, event_id LIMIT $2
        ), violated AS (
            SELECT 'outbox_messages_have_a_run' AS name, run_id AS id FROM part
            WHERE NOT EXISTS (SELECT FROM workflow_runs r WHERE r.run_id = part.run_id)
        ) {REPORT}"
    );
    Scan { names: &["outbox_messages_have_a_run"], start: &["", "00000000-0000-0000-0000-000000000000"], sql }
}

fn batches() -> Scan {
    let sql = format!(
        "WITH part AS MATERIALIZED (
            SELECT run_ids, ARRAY[id]::text[] AS place FROM outbox_batches WHERE id > ($1::text[])[1]::uuid ORDER BY id LIMIT $2
        ), violated AS (
            SELECT 'outbox_messages_have_a_run' AS name, message.run_id AS id FROM part, unnest(run_ids) AS message (run_id)
            WHERE NOT EXISTS (SELECT FROM workflow_runs r WHERE r.run_id = message.run_id)
        ) {REPORT}"
    );
    Scan { names: &["outbox_messages_have_a_run"], start: &["00000000-0000-0000-0000-000000000000"], sql }
}

/// Keys of runs. Keys of other objects stay when these are deleted.
fn idempotency_keys() -> Scan {
    let sql = format!(
        "WITH part AS MATERIALIZED (
            SELECT run_id, ARRAY[scope, key]::text[] AS place FROM idempotency_keys
            WHERE (scope, key) > (($1::text[])[1], ($1::text[])[2]) ORDER BY scope, key LIMIT $2
        ), violated AS (
            SELECT 'idempotency_keys_have_their_run' AS name, run_id AS id FROM part
            WHERE run_id LIKE 'run-%' AND NOT EXISTS (SELECT FROM workflow_runs r WHERE r.run_id = part.run_id)
        ) {REPORT}"
    );
    Scan { names: &["idempotency_keys_have_their_run"], start: &["", ""], sql }
}

fn usage() -> Scan {
    let sql = format!(
        "WITH part AS MATERIALIZED (
            SELECT *, ARRAY[run_id]::text[] AS place FROM run_usage WHERE run_id > ($1::text[])[1] ORDER BY run_id LIMIT $2
        ), violated AS (
            SELECT 'run_usage_is_exact' AS name, run_id AS id FROM part CROSS JOIN LATERAL (
                SELECT count(*) AS calls, coalesce(sum(input_tokens), 0) AS input_tokens,
                    coalesce(sum(output_tokens), 0) AS output_tokens, coalesce(sum(cost), 0) AS cost
                FROM call_usage c WHERE c.run_id = part.run_id) AS sum
            WHERE (part.calls, part.input_tokens, part.output_tokens, part.cost)
                IS DISTINCT FROM (sum.calls, sum.input_tokens, sum.output_tokens, sum.cost)
        ) {REPORT}"
    );
    Scan { names: &["run_usage_is_exact"], start: &[""], sql }
}

/// Compares the maintained numbers of runs with the rows, one workflow after the other.
async fn compare_counts(conn: &mut PgConnection, report: &mut Report) -> Result<(), Error> {
    let next = "
        SELECT organization_id, workflow_id FROM (
            (SELECT organization_id, workflow_id FROM workflow_runs
             WHERE (organization_id, workflow_id) > ($1, $2) ORDER BY 1, 2 LIMIT 1)
            UNION ALL (SELECT organization_id, workflow_id FROM run_counts_folded
             WHERE (organization_id, workflow_id) > ($1, $2) ORDER BY 1, 2 LIMIT 1)
            UNION ALL (SELECT organization_id, workflow_id FROM run_count_changes
             WHERE (organization_id, workflow_id) > ($1, $2) ORDER BY 1, 2 LIMIT 1)
        ) AS next ORDER BY 1, 2 LIMIT 1";
    // One statement: both numbers are those of one moment.
    let differences = "
        SELECT concat_ws(' ', $1, $2, status) FROM (
            SELECT status, count(*) AS runs FROM workflow_runs WHERE organization_id = $1 AND workflow_id = $2 GROUP BY 1
        ) AS found FULL JOIN (
            SELECT status, sum(runs)::bigint AS runs FROM run_counts WHERE organization_id = $1 AND workflow_id = $2
            GROUP BY 1
        ) AS counted USING (status)
        WHERE coalesce(found.runs, 0) <> coalesce(counted.runs, 0) ORDER BY 1";
    let mut place = (String::new(), String::new());
    while let Some(found) =
        sqlx::query_as::<_, (String, String)>(next).bind(&place.0).bind(&place.1).fetch_optional(&mut *conn).await?
    {
        let ids: Vec<String> =
            sqlx::query_scalar(differences).bind(&found.0).bind(&found.1).fetch_all(&mut *conn).await?;
        report.add("run_counts_are_exact", ids.len() as u64, ids);
        place = found;
    }
    Ok(())
}

async fn compare_totals(conn: &mut PgConnection, report: &mut Report) -> Result<(), Error> {
    let sql = "
        SELECT concat_ws(' ', organization_id, status) FROM (
            SELECT organization_id, status, sum(runs) AS runs FROM run_totals GROUP BY 1, 2
        ) AS total FULL JOIN (
            SELECT organization_id, status, sum(runs) AS runs FROM run_counts GROUP BY 1, 2
        ) AS counted USING (organization_id, status)
        WHERE coalesce(total.runs, 0) <> coalesce(counted.runs, 0) ORDER BY 1";
    let ids: Vec<String> = sqlx::query_scalar(sql).fetch_all(conn).await?;
    report.add("run_totals_are_exact", ids.len() as u64, ids);
    Ok(())
}

/// Verifies the audit trail of each organisation, as `GET /audit-logs/verify` does.
async fn verify_audit_trail(conn: &mut PgConnection, report: &mut Report) -> Result<(), Error> {
    const NAME: &str = "audit_trail_is_whole";
    let organizations: Vec<String> =
        sqlx::query_scalar("SELECT id FROM organizations ORDER BY id").fetch_all(&mut *conn).await?;
    let is_shortened = audit::is_shortened(conn).await?;
    for organization in organizations {
        let organization = OrganizationId::stored(&organization);
        let mut chain = Chain::new(0, is_shortened);
        loop {
            let seals = audit::check_seals(conn, &organization, chain.number(), SEALS).await?;
            if seals.is_empty() {
                break;
            }
            for seal in seals {
                if let Some(problem) = chain.add(&seal) {
                    report.add(NAME, 1, [format!("{organization} {problem} {}", seal.number)]);
                }
                let entries = seal.changed.len() + seal.missing.len();
                let ids = seal.changed.iter().chain(&seal.missing).take(SHOWN);
                report.add(NAME, entries as u64, ids.map(|id| format!("{organization} entry {id}")));
            }
        }
        let limit = i64::try_from(SHOWN).unwrap_or(i64::MAX);
        let added = audit::uncovered(conn, &organization, limit).await?;
        report.add(NAME, added.len() as u64, added.iter().map(|id| format!("{organization} entry_added {id}")));
    }
    Ok(())
}
