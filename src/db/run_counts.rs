//! Counts of runs by organisation, workflow and status. Triggers maintain them, so that lists need no count.
//!
//! Each statement that writes runs appends its changes to `run_count_changes`, and [`fold`] periodically adds these to
//! the sums. The views `run_counts` and `run_totals` contain both, as of the reader's snapshot.
//! [ADR 18](../../docs/adr/0018-maintained-counts.md) has the reasons.

use sqlx::{PgConnection, PgExecutor, Postgres, QueryBuilder};

use super::{Error, Pool, list};
use crate::access::OrganizationId;

/// Number of runs with the same workflow and status.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Group {
    /// Workflow of the runs; empty if the group is of all workflows.
    pub workflow_id: String,
    /// Status of the runs.
    pub status: String,
    /// Number of runs, at least one.
    pub runs: i64,
}

/// Filter of groups.
#[derive(Clone, Copy, Debug)]
pub struct GroupFilter<'a> {
    /// Organisation of the runs.
    pub organization: &'a OrganizationId,
    /// Accepted statuses; all if empty.
    pub statuses: &'a [String],
    /// Exact `workflow_id`.
    pub workflow_id: Option<&'a str>,
    /// Exact name of the workflow.
    pub name: Option<&'a str>,
    /// Prefix of the workflow's name.
    pub name_prefix: Option<&'a str>,
}

/// Groups that a filter matches, and the number of their runs.
#[derive(Debug)]
pub struct Groups {
    /// First groups, up to the limit.
    pub groups: Vec<Group>,
    /// Whether `groups` contains all groups.
    pub is_whole: bool,
    /// Number of runs in all groups.
    pub runs: i64,
}

/// Reads the groups that have runs, at most `limit` of them.
pub async fn groups(conn: &mut PgConnection, filter: GroupFilter<'_>, limit: usize) -> Result<Groups, Error> {
    let GroupFilter { organization, statuses, workflow_id, name, name_prefix } = filter;
    let is_of_workflows = workflow_id.is_some() || name.is_some() || name_prefix.is_some();
    let (id, view) = if is_of_workflows { ("workflow_id", "run_counts") } else { ("''", "run_totals") };
    let mut query = QueryBuilder::<Postgres>::new(format!(
        "SELECT {id} AS workflow_id, status, sum(runs)::bigint AS runs, (sum(sum(runs)) OVER ())::bigint AS total
         FROM {view} WHERE organization_id = "
    ));
    query.push_bind(organization.as_str().to_owned());
    if !statuses.is_empty() {
        query.push(" AND status = ANY(").push_bind(statuses.to_vec()).push(")");
    }
    for (column, text) in [("workflow_id", workflow_id), ("workflow_name", name)] {
        if let Some(text) = text {
            query.push(format!(" AND {column} = ")).push_bind(text.to_owned());
        }
    }
    if let Some(prefix) = name_prefix {
        query.push(" AND workflow_name LIKE ").push_bind(list::pattern(prefix));
    }
    query.push(" GROUP BY 1, 2 HAVING sum(runs) > 0 ORDER BY 1, 2 LIMIT ");
    query.push_bind(i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1));
    let rows: Vec<(String, String, i64, i64)> = query.build_query_as().fetch_all(conn).await?;
    let (is_whole, runs) = (rows.len() <= limit, rows.first().map_or(0, |row| row.3));
    let groups = rows.into_iter().take(limit).map(|(workflow_id, status, runs, _)| Group { workflow_id, status, runs });
    Ok(Groups { groups: groups.collect(), is_whole, runs })
}

/// Number of runs that have not ended.
pub async fn open(db: impl PgExecutor<'_>) -> Result<i64, Error> {
    let sql = "SELECT coalesce(sum(runs), 0)::bigint FROM run_totals WHERE status IN ('PENDING', 'RUNNING')";
    Ok(sqlx::query_scalar(sql).fetch_one(db).await?)
}

/// Result of a fold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// All changes are in the sums, or another process folds.
    Done,
    /// There may be more changes.
    More,
    /// The database was copied from another server, whose transaction ids are meaningless here: see [`recount`].
    Foreign,
}

/// Adds about `most` changes to the sums.
///
/// One process at a time folds; its statement sees the commits of the previous fold. As in a snapshot, transaction ids
/// define which changes are in the sums: all before a certain id, except those of transactions that were open.
pub async fn fold(pool: &Pool, most: i64) -> Result<Fold, Error> {
    let sql = "
        WITH last AS MATERIALIZED (
            SELECT id, next_xid, open_xids FROM run_count_folds ORDER BY id DESC LIMIT 1
        ), unfolded AS MATERIALIZED (
            SELECT c.ctid AS location, c.xid FROM run_count_changes c
            WHERE c.xid >= (SELECT next_xid FROM last) AND c.xid <= '18446744073709551615'
            ORDER BY c.xid LIMIT $1
        ), bound AS MATERIALIZED (
            -- All changes. If there are more than were read: those of the transactions before the last one that was
            -- read, or of that one if it is the only one.
            SELECT CASE WHEN count(*) < $1 THEN pg_snapshot_xmax(pg_current_snapshot())
                WHEN min(xid) < max(xid) THEN max(xid)
                ELSE coalesce((SELECT min(c.xid) FROM run_count_changes c WHERE c.xid > (SELECT max(xid) FROM unfolded)),
                    pg_snapshot_xmax(pg_current_snapshot())) END AS next_xid,
                count(*) = $1 AS is_cut
            FROM unfolded
        ), taken AS (
            DELETE FROM run_count_changes
            WHERE ctid = ANY (ARRAY(
                SELECT c.ctid FROM run_count_changes c
                WHERE c.xid >= (SELECT next_xid FROM last) AND c.xid < (SELECT next_xid FROM bound)
                UNION ALL
                SELECT c.ctid FROM run_count_changes c
                WHERE c.xid = ANY (ARRAY(SELECT unnest(open_xids) FROM last))))
            RETURNING organization_id, workflow_id, workflow_name, status, runs
        ), changed AS MATERIALIZED (
            SELECT organization_id, workflow_id, workflow_name, status, sum(runs)::bigint AS runs FROM taken
            GROUP BY 1, 2, 3, 4 HAVING sum(runs) <> 0
        ), by_workflow AS (
            INSERT INTO run_counts_folded AS folded (organization_id, workflow_id, workflow_name, status, runs)
            SELECT * FROM changed
            ON CONFLICT (organization_id, workflow_id, workflow_name, status)
                DO UPDATE SET runs = folded.runs + excluded.runs
        ), totals AS (
            INSERT INTO run_totals_folded AS folded (organization_id, status, runs)
            SELECT organization_id, status, sum(runs)::bigint FROM changed GROUP BY 1, 2
            ON CONFLICT (organization_id, status) DO UPDATE SET runs = folded.runs + excluded.runs
        ), deleted AS (
            DELETE FROM run_count_folds WHERE id <= (SELECT id FROM last)
        ), recorded AS (
            INSERT INTO run_count_folds (next_xid, open_xids)
            SELECT next_xid, ARRAY(SELECT xid FROM pg_snapshot_xip(pg_current_snapshot()) AS open (xid)
                WHERE xid < next_xid)
            FROM bound
        )
        SELECT is_cut FROM bound";
    // A fold without changes would only create row versions.
    let state = "SELECT coalesce(next_xid <= pg_snapshot_xmax(pg_current_snapshot()), false),
                     EXISTS (SELECT FROM run_count_changes WHERE xid >= next_xid AND xid <= '18446744073709551615')
                         OR EXISTS (SELECT FROM run_count_changes WHERE xid = ANY (open_xids))
                 FROM (SELECT 1) AS one LEFT JOIN run_count_folds ON true ORDER BY id DESC LIMIT 1";
    let (is_of_this_server, has_changes): (bool, bool) = sqlx::query_as(state).fetch_one(pool).await?;
    if !is_of_this_server {
        return Ok(Fold::Foreign);
    }
    if !has_changes {
        return Ok(Fold::Done);
    }
    let mut transaction = pool.begin().await?;
    let may_be_more =
        is_alone(&mut transaction).await? && sqlx::query_scalar(sql).bind(most).fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(if may_be_more { Fold::More } else { Fold::Done })
}

/// Counts all runs again, unless another process does. Takes a second for a million runs, without a statement timeout.
pub async fn recount(pool: &Pool) -> Result<(), Error> {
    let mut transaction = pool.begin().await?;
    if is_alone(&mut transaction).await? {
        sqlx::query("SET LOCAL statement_timeout = 0").execute(&mut *transaction).await?;
        sqlx::query("SELECT recount_runs()").execute(&mut *transaction).await?;
        tracing::warn!("recounted all runs: the database was copied from another server");
    }
    transaction.commit().await?;
    Ok(())
}

/// Lock of the process that writes the sums, until the end of the transaction. False if another process has it.
async fn is_alone(conn: &mut PgConnection) -> Result<bool, Error> {
    let sql = "SELECT pg_try_advisory_xact_lock(hashtextextended('run_counts', 0))";
    Ok(sqlx::query_scalar(sql).fetch_one(conn).await?)
}
