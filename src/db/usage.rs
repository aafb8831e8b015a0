//! Usage of runs, and what calls under way have reserved of their limits.
//!
//! A call counts once, by the id that its agent knows: it is inserted when it is admitted or answered, and a repeat
//! replaces it. The rows of a run and of the runs above it are locked in the order of their ids.

use serde::Deserialize;
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

use super::{Error, Pool};
use crate::{
    access::OrganizationId,
    usage::{Admission, Cost, LimitKind, Limits, Totals, Want},
};

/// The run that the caller owns, and the runs above it, as `up`.
const UP: &str = "RECURSIVE up AS (
    SELECT run_id, parent_run_id, organization_id, workflow_id, 0 AS above FROM workflow_runs
    WHERE run_id = $1 AND lease_token = $2 AND (status = 'RUNNING') IS TRUE
    UNION ALL SELECT r.run_id, r.parent_run_id, r.organization_id, r.workflow_id, above + 1
    FROM up JOIN workflow_runs r ON r.run_id = up.parent_run_id WHERE above < 32
)";

/// Cost in a column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredCost(pub Cost);

impl From<String> for StoredCost {
    fn from(text: String) -> Self {
        // The columns have only sums of costs.
        Self(Cost::parse(&text).unwrap_or_default())
    }
}

/// Limits that hold for a run, its own or those of a run above it, with what counts towards them.
#[derive(Clone, Debug)]
pub struct Account {
    /// The run that has the limits.
    pub run_id: String,
    /// The limits.
    pub limits: Limits,
    /// What was used.
    pub totals: Totals,
}

#[derive(sqlx::FromRow)]
struct AccountRow {
    run_id: String,
    limits: Option<Json<Limits>>,
    total_calls: i64,
    total_tokens: i64,
    #[sqlx(try_from = "String")]
    total_cost: StoredCost,
    total_steps: i64,
    total_millis: i64,
    steps: i64,
    millis: i64,
}

/// Columns of an [`AccountRow`].
const ACCOUNT: &str = "run_id, limits, total_calls, total_input_tokens + total_output_tokens AS total_tokens,
    total_cost::text AS total_cost, total_steps, total_millis, steps, millis";

impl AccountRow {
    /// The account with this much more of steps and of time.
    fn account(&self, more: Progress) -> Option<Account> {
        let totals = Totals {
            calls: self.total_calls,
            tokens: self.total_tokens,
            cost: self.total_cost.0,
            steps: self.total_steps + more.steps,
            millis: self.total_millis + more.millis,
        };
        Some(Account { run_id: self.run_id.clone(), limits: self.limits.as_ref()?.0, totals })
    }
}

/// Steps that a run has begun, and its execution time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Attempts of steps.
    pub steps: i64,
    /// Milliseconds.
    pub millis: i64,
}

/// Limit that a run does not keep to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess {
    /// The limit.
    pub kind: LimitKind,
    /// The reason in words.
    pub reason: String,
    /// The run that has it.
    pub account_id: String,
}

impl Excess {
    /// Excess of a limit of that run.
    #[must_use]
    pub fn new(kind: LimitKind, limits: &Limits, account_id: &str) -> Self {
        Self { kind, reason: limits.reason(kind), account_id: account_id.to_owned() }
    }
}

/// Call to admit.
#[derive(Clone, Debug)]
pub struct NewCall {
    /// Id that the agent knows.
    pub attempt_id: String,
    /// Id of the row of the attempt.
    pub row_id: String,
    /// Id of the step.
    pub step_id: String,
    /// Name of the agent.
    pub agent_name: String,
    /// What may be used.
    pub want: Want,
}

/// Answer to [`admit`].
#[derive(Clone, Debug)]
pub enum Admitted {
    /// The step, and the call if there is one, may begin; the call was counted unless it had been before.
    Yes {
        /// Whether the call was not known before.
        is_new: bool,
    },
    /// Calls under way have reserved what is left.
    Busy,
    /// A limit is used up. It was noted.
    No(Excess),
    /// The caller does not own the run any more.
    Lost,
}

/// Opens the account of a run with limits that the caller owns: notes the limits in force. Returns the accounts that hold
/// for the run; `None` if the caller does not own it any more.
pub async fn open(
    pool: &Pool,
    (run_id, lease_token): (&str, Uuid),
    limits: Option<&Limits>,
    progress: Progress,
) -> Result<Option<Vec<Account>>, Error> {
    let mut transaction = super::begin(pool).await?;
    let ids = above(&mut transaction, (run_id, lease_token)).await?;
    if ids.is_empty() {
        return Ok(None);
    }
    let sql = "INSERT INTO run_usage (run_id, limits) VALUES ($1, $2)
               ON CONFLICT (run_id) DO UPDATE SET limits = excluded.limits";
    sqlx::query(sql).bind(run_id).bind(limits.map(Json)).execute(&mut *transaction).await?;
    let rows = lock(&mut transaction, &ids).await?;
    // Those of an earlier executor of the run.
    let sql = "DELETE FROM call_reservations WHERE account_id = ANY ($1) AND run_id = $2";
    sqlx::query(sql).bind(&ids).bind(run_id).execute(&mut *transaction).await?;
    let more = more(&rows, run_id, progress);
    note_progress(&mut transaction, &ids, run_id, more).await?;
    super::commit(transaction).await?;
    Ok(Some(rows.iter().filter_map(|row| row.account(more)).collect()))
}

/// Admits the begin of a step, or a call. `abandoned` has calls of the run that nothing is reserved for any more.
pub async fn admit(
    pool: &Pool,
    (run_id, lease_token): (&str, Uuid),
    progress: Progress,
    call: Option<&NewCall>,
    abandoned: &[String],
) -> Result<Admitted, Error> {
    let mut transaction = super::begin(pool).await?;
    let ids = above(&mut transaction, (run_id, lease_token)).await?;
    if ids.is_empty() {
        return Ok(Admitted::Lost);
    }
    let rows = lock(&mut transaction, &ids).await?;
    let more = more(&rows, run_id, progress);
    let accounts: Vec<Account> = rows.iter().filter_map(|row| row.account(more)).collect();
    let (granted, is_new) = match call {
        None => {
            let over =
                accounts.iter().find_map(|account| Some((account, account.limits.exceeded_by(&account.totals)?)));
            (over.map_or(Ok(Vec::new()), |(account, kind)| Err(Some(excess(account, kind)))), false)
        }
        Some(call) => {
            let known = "SELECT EXISTS (SELECT FROM call_usage WHERE attempt_id = $1)";
            let is_known: bool = sqlx::query_scalar(known).bind(&call.attempt_id).fetch_one(&mut *transaction).await?;
            let want = Want { is_new: !is_known, ..call.want };
            let reserved = reserved(&mut transaction, &ids, run_id, call, abandoned).await?;
            (fit(&accounts, &reserved, &want), !is_known)
        }
    };
    let granted = match granted {
        Ok(granted) => granted,
        Err(None) => {
            super::commit(transaction).await?;
            return Ok(Admitted::Busy);
        }
        Err(Some(excess)) => {
            note_excess(&mut *transaction, run_id, &excess).await?;
            super::commit(transaction).await?;
            return Ok(Admitted::No(excess));
        }
    };
    note_progress(&mut transaction, &ids, run_id, more).await?;
    if let Some(call) = call {
        let (accounts, tokens, costs) = columns(granted);
        let sql = "INSERT INTO call_reservations (account_id, attempt_id, run_id, tokens, cost)
                   SELECT account_id, $1, $2, tokens, cost::numeric
                   FROM unnest($3::text[], $4::bigint[], $5::text[]) AS r (account_id, tokens, cost)
                   ON CONFLICT (account_id, attempt_id) DO UPDATE SET tokens = excluded.tokens, cost = excluded.cost";
        sqlx::query(sql)
            .bind(&call.attempt_id)
            .bind(run_id)
            .bind(accounts)
            .bind(tokens)
            .bind(costs)
            .execute(&mut *transaction)
            .await?;
        if is_new {
            let counted = CountedCall { call, input_tokens: 0, output_tokens: 0, cost: call.want.call_cost };
            count(&mut transaction, (run_id, lease_token), &counted, Reservation::Stays).await?;
        }
    }
    super::commit(transaction).await?;
    Ok(Admitted::Yes { is_new })
}

/// Columns of reservations.
fn columns(granted: Vec<(String, i64, Cost)>) -> (Vec<String>, Vec<i64>, Vec<String>) {
    let mut columns = (Vec::new(), Vec::new(), Vec::new());
    for (account, tokens, cost) in granted {
        columns.0.push(account);
        columns.1.push(tokens);
        columns.2.push(cost.to_string());
    }
    columns
}

/// What to reserve of each account; the error: there is no room now (`None`), or at all.
fn fit(
    accounts: &[Account],
    reserved: &[(String, Totals)],
    want: &Want,
) -> Result<Vec<(String, i64, Cost)>, Option<Excess>> {
    let mut granted = Ok(Vec::new());
    for account in accounts {
        let held = reserved.iter().find(|(id, _)| *id == account.run_id).map(|(_, held)| *held).unwrap_or_default();
        match account.limits.admit(&account.totals, &held, want) {
            Admission::Full(kind) => return Err(Some(excess(account, kind))),
            Admission::Busy => granted = Err(None),
            Admission::Granted { tokens, cost } => {
                if let Ok(granted) = &mut granted {
                    granted.push((account.run_id.clone(), tokens, cost));
                }
            }
        }
    }
    granted
}

fn excess(account: &Account, kind: LimitKind) -> Excess {
    Excess::new(kind, &account.limits, &account.run_id)
}

/// Ids of the run that the caller owns and of the runs above it; none if it does not own the run.
async fn above(conn: &mut PgConnection, (run_id, lease_token): (&str, Uuid)) -> Result<Vec<String>, Error> {
    let sql = format!("WITH {UP} SELECT run_id FROM up");
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).bind(run_id).bind(lease_token).fetch_all(conn).await?)
}

/// Locks the accounts of these runs.
async fn lock(conn: &mut PgConnection, ids: &[String]) -> Result<Vec<AccountRow>, Error> {
    let sql = format!("SELECT {ACCOUNT} FROM run_usage WHERE run_id = ANY ($1) ORDER BY run_id FOR UPDATE");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(ids).fetch_all(conn).await?)
}

/// What the run has done since it was last noted.
fn more(rows: &[AccountRow], run_id: &str, now: Progress) -> Progress {
    let own = rows.iter().find(|row| row.run_id == run_id);
    let noted = own.map(|own| Progress { steps: own.steps, millis: own.millis }).unwrap_or_default();
    Progress { steps: (now.steps - noted.steps).max(0), millis: (now.millis - noted.millis).max(0) }
}

async fn note_progress(conn: &mut PgConnection, ids: &[String], run_id: &str, more: Progress) -> Result<(), Error> {
    let sql = "UPDATE run_usage SET total_steps = total_steps + $3, total_millis = total_millis + $4,
                   steps = steps + CASE WHEN run_id = $2 THEN $3 ELSE 0 END,
                   millis = millis + CASE WHEN run_id = $2 THEN $4 ELSE 0 END
               WHERE run_id = ANY ($1)";
    sqlx::query(sql).bind(ids).bind(run_id).bind(more.steps).bind(more.millis).execute(conn).await?;
    Ok(())
}

/// What other calls have reserved of each account. Reservations that were left behind are deleted.
async fn reserved(
    conn: &mut PgConnection,
    ids: &[String],
    run_id: &str,
    call: &NewCall,
    abandoned: &[String],
) -> Result<Vec<(String, Totals)>, Error> {
    let sql = "DELETE FROM call_reservations c WHERE account_id = ANY ($1) AND CASE WHEN run_id = $2
                   THEN attempt_id = ANY ($3)
                   ELSE NOT EXISTS (SELECT FROM workflow_runs r WHERE r.run_id = c.run_id
                       AND (r.status = 'RUNNING') IS TRUE) END";
    sqlx::query(sql).bind(ids).bind(run_id).bind(abandoned).execute(&mut *conn).await?;
    let sql = "SELECT account_id, sum(tokens)::bigint, sum(cost)::text FROM call_reservations
               WHERE account_id = ANY ($1) AND attempt_id <> $2 GROUP BY account_id";
    let rows: Vec<(String, i64, String)> =
        sqlx::query_as(sql).bind(ids).bind(&call.attempt_id).fetch_all(&mut *conn).await?;
    let totals =
        |tokens, cost: &str| Totals { tokens, cost: Cost::parse(cost).unwrap_or_default(), ..Totals::default() };
    Ok(rows.into_iter().map(|(id, tokens, cost)| (id, totals(tokens, &cost))).collect())
}

/// Notes that a run does not keep to a limit, its own or of a run above it; the first one stays.
pub async fn note_excess(db: impl PgExecutor<'_>, run_id: &str, excess: &Excess) -> Result<(), Error> {
    let sql = "UPDATE run_usage SET exceeded = coalesce(exceeded, $3) WHERE run_id IN ($1, $2)";
    sqlx::query(sql).bind(run_id).bind(&excess.account_id).bind(excess.kind.as_str()).execute(db).await?;
    Ok(())
}

/// Limit that the run, or a sub-run of it, did not keep to.
pub async fn exceeded(db: impl PgExecutor<'_>, run_id: &str) -> Result<Option<Excess>, Error> {
    let sql =
        "SELECT exceeded, limits FROM run_usage WHERE run_id = $1 AND exceeded IS NOT NULL AND limits IS NOT NULL";
    let row: Option<(String, Json<Limits>)> = sqlx::query_as(sql).bind(run_id).fetch_optional(db).await?;
    Ok(row.and_then(|(name, limits)| Some(Excess::new(LimitKind::parse(&name)?, &limits.0, run_id))))
}

/// Call with what it has used.
pub struct CountedCall<'a> {
    /// The call.
    pub call: &'a NewCall,
    /// Input tokens.
    pub input_tokens: i64,
    /// Output tokens.
    pub output_tokens: i64,
    /// Cost, the one for the call itself included.
    pub cost: Cost,
}

/// Notes what an answered call has used, in the place of what was reserved or noted for it before. Returns the limit that
/// this exceeds, of the run or of a run above it. Nothing is noted if the caller does not own the run any more.
pub async fn settle(pool: &Pool, claim: (&str, Uuid), counted: &CountedCall<'_>) -> Result<Option<Excess>, Error> {
    let mut connection = pool.acquire().await?;
    let accounts = count(&mut connection, claim, counted, Reservation::Ends).await?;
    let over = accounts.iter().find_map(|account| Some(excess(account, account.limits.exceeded_by(&account.totals)?)));
    if let Some(excess) = &over {
        note_excess(&mut *connection, claim.0, excess).await?;
    }
    Ok(over)
}

/// Takes a call back that was admitted and not made. `is_new`: whether it was counted when it was admitted.
pub async fn release(
    db: impl PgExecutor<'_>,
    (run_id, lease_token): (&str, Uuid),
    attempt_id: &str,
    is_new: bool,
) -> Result<(), Error> {
    let sql = format!(
        "WITH {UP}, freed AS (
            DELETE FROM call_reservations c USING up WHERE above = 0 AND c.attempt_id = $3
        ), gone AS (
            DELETE FROM call_usage c USING up WHERE above = 0 AND c.attempt_id = $3 AND c.run_id = $1 AND $4
            RETURNING c.cost
        )
        UPDATE run_usage u SET total_calls = total_calls - 1, total_cost = total_cost - gone.cost,
            calls = calls - CASE above WHEN 0 THEN 1 ELSE 0 END,
            cost = u.cost - CASE above WHEN 0 THEN gone.cost ELSE 0 END
        FROM up, gone WHERE u.run_id = up.run_id"
    );
    sqlx::query(AssertSqlSafe(sql)).bind(run_id).bind(lease_token).bind(attempt_id).bind(is_new).execute(db).await?;
    Ok(())
}

/// What becomes of the reservation of a call that is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reservation {
    Stays,
    Ends,
}

/// Writes a call, and adds what has changed to the run and to those above it. Returns the accounts among them.
async fn count(
    conn: &mut PgConnection,
    (run_id, lease_token): (&str, Uuid),
    counted: &CountedCall<'_>,
    reservation: Reservation,
) -> Result<Vec<Account>, Error> {
    let sql = format!(
        "WITH {UP}, old AS MATERIALIZED (
            SELECT input_tokens, output_tokens, cost FROM call_usage WHERE attempt_id = $3
        ), call AS (
            INSERT INTO call_usage (attempt_id, row_id, run_id, step_id, organization_id, workflow_id, agent_name,
                input_tokens, output_tokens, cost)
            SELECT $3, $4, run_id, $5, organization_id, workflow_id, $6, $7, $8, $9::numeric FROM up WHERE above = 0
            ON CONFLICT (attempt_id) DO UPDATE SET row_id = excluded.row_id, agent_name = excluded.agent_name,
                input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens, cost = excluded.cost,
                at = now()
        ), freed AS (
            DELETE FROM call_reservations c USING up WHERE above = 0 AND c.attempt_id = $3 AND $10
        ), more AS (
            SELECT 1 - (SELECT count(*) FROM old) AS calls,
                $7 - coalesce((SELECT input_tokens FROM old), 0) AS input_tokens,
                $8 - coalesce((SELECT output_tokens FROM old), 0) AS output_tokens,
                $9::numeric - coalesce((SELECT cost FROM old), 0) AS cost
        )
        INSERT INTO run_usage AS u (run_id, calls, input_tokens, output_tokens, cost,
            total_calls, total_input_tokens, total_output_tokens, total_cost)
        SELECT run_id, CASE above WHEN 0 THEN calls ELSE 0 END, CASE above WHEN 0 THEN input_tokens ELSE 0 END,
            CASE above WHEN 0 THEN output_tokens ELSE 0 END, CASE above WHEN 0 THEN cost ELSE 0 END,
            calls, input_tokens, output_tokens, cost
        FROM up, more ORDER BY run_id
        ON CONFLICT (run_id) DO UPDATE SET calls = u.calls + excluded.calls,
            input_tokens = u.input_tokens + excluded.input_tokens,
            output_tokens = u.output_tokens + excluded.output_tokens, cost = u.cost + excluded.cost,
            total_calls = u.total_calls + excluded.total_calls,
            total_input_tokens = u.total_input_tokens + excluded.total_input_tokens,
            total_output_tokens = u.total_output_tokens + excluded.total_output_tokens,
            total_cost = u.total_cost + excluded.total_cost
        RETURNING {ACCOUNT}"
    );
    let CountedCall { call, input_tokens, output_tokens, cost } = counted;
    let rows: Vec<AccountRow> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(run_id)
        .bind(lease_token)
        .bind(&call.attempt_id)
        .bind(&call.row_id)
        .bind(&call.step_id)
        .bind(&call.agent_name)
        .bind(input_tokens)
        .bind(output_tokens)
        .bind(cost.to_string())
        .bind(reservation == Reservation::Ends)
        .fetch_all(conn)
        .await?;
    Ok(rows.iter().filter_map(|row| row.account(Progress::default())).collect())
}

/// What a run has used, as the API shows it.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct RunUsage {
    pub own: Used,
    pub total: Used,
    pub limits: Option<Limits>,
    pub exceeded: Option<String>,
}

/// Sum of calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct Used {
    pub calls: i64,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cost: Cost,
}

/// Value of a column for a [`RunUsage`] of `run`.
pub const OF_RUN: &str =
    "(SELECT jsonb_build_object('own', jsonb_build_object('calls', calls, 'input_tokens', input_tokens,
        'output_tokens', output_tokens, 'cost', cost::text),
    'total', jsonb_build_object('calls', total_calls, 'input_tokens', total_input_tokens,
        'output_tokens', total_output_tokens, 'cost', total_cost::text), 'limits', u.limits, 'exceeded', exceeded)
    FROM run_usage u WHERE u.run_id = run.run_id)";

/// Sum of the counted calls of the runs of a workflow in that many hours before now, as far as they are kept.
pub async fn of_workflow(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    workflow_id: &str,
    hours: i32,
) -> Result<Used, Error> {
    let sql = "SELECT count(*), coalesce(sum(input_tokens), 0)::bigint, coalesce(sum(output_tokens), 0)::bigint,
                   coalesce(sum(cost), 0)::text
               FROM call_usage WHERE organization_id = $1 AND workflow_id = $2 AND at > now() - make_interval(hours => $3)";
    let (calls, input_tokens, output_tokens, cost): (i64, i64, i64, String) =
        sqlx::query_as(sql).bind(organization.as_str()).bind(workflow_id).bind(hours).fetch_one(db).await?;
    Ok(Used { calls, input_tokens, output_tokens, cost: StoredCost::from(cost).0 })
}
