//! Size of the tables, from the file system and the statistics. No table is read for it.

use chrono::NaiveDateTime;
use sqlx::PgExecutor;

use super::{Error, Pool};
use crate::retention::{Policies, Scan};

/// Days for which samples are kept.
const KEPT_DAYS: i32 = 40;
/// Days over which growth is measured.
const GROWTH_DAYS: i32 = 7;
/// Maximum number of runs that are read to count the next deletions.
const MAX_NEXT: i64 = 10_000;

/// Size of a table; of a partitioned one as a whole.
#[derive(Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "said by the names")]
pub struct TableSize {
    pub name: String,
    pub row_estimate: i64,
    pub dead_row_estimate: i64,
    /// With indexes and large values.
    pub bytes: i64,
    pub index_bytes: i64,
    /// Values that are stored separately because of their size.
    pub large_value_bytes: i64,
    /// Growth over the last week, or since the first sample; `None` before the second day.
    pub bytes_per_day: Option<f64>,
    /// See `bytes_per_day`.
    pub rows_per_day: Option<f64>,
}

/// The tables of the schema with their sizes, the largest first.
pub async fn tables(db: impl PgExecutor<'_>) -> Result<Vec<TableSize>, Error> {
    let sql = "
        WITH RECURSIVE part AS (
            SELECT c.oid AS root, c.oid FROM pg_class c
            WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
            UNION ALL SELECT part.root, i.inhrelid FROM part JOIN pg_inherits i ON i.inhparent = part.oid
        ), size AS (
            SELECT root, sum(pg_total_relation_size(part.oid))::bigint AS bytes,
                sum(pg_indexes_size(part.oid))::bigint AS index_bytes,
                sum(coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0))::bigint AS large_value_bytes,
                -- What the statistics have counted since they began, else what the last ANALYZE found.
                sum(coalesce(nullif(s.n_live_tup, 0), greatest(c.reltuples, 0)))::bigint AS row_estimate,
                sum(coalesce(s.n_dead_tup, 0))::bigint AS dead_row_estimate
            FROM part JOIN pg_class c ON c.oid = part.oid LEFT JOIN pg_stat_all_tables s ON s.relid = part.oid
            WHERE c.relkind = 'r' GROUP BY root
        )
        SELECT t.relname::text AS name, row_estimate, dead_row_estimate, size.bytes, index_bytes, large_value_bytes,
            (size.bytes - before.bytes) / before.days AS bytes_per_day,
            (size.row_estimate - before.row_count) / before.days AS rows_per_day
        FROM size JOIN pg_class t ON t.oid = size.root
        LEFT JOIN LATERAL (
            SELECT bytes, storage_samples.row_estimate AS row_count,
                (extract(epoch FROM now() - sampled_at) / 86400)::float8 AS days
            FROM storage_samples
            WHERE table_name = t.relname AND day >= (now() AT TIME ZONE 'UTC')::date - $1::int
                AND day < (now() AT TIME ZONE 'UTC')::date
            ORDER BY day LIMIT 1
        ) before ON before.days > 0
        ORDER BY size.bytes DESC, 1";
    Ok(sqlx::query_as(sql).bind(GROWTH_DAYS).fetch_all(db).await?)
}

/// Stores today's sizes, unless they are stored already.
pub async fn sample(pool: &Pool) -> Result<(), Error> {
    let sql = "SELECT EXISTS (SELECT FROM storage_samples WHERE day = (now() AT TIME ZONE 'UTC')::date)";
    if sqlx::query_scalar(sql).fetch_one(pool).await? {
        return Ok(());
    }
    let (mut names, mut bytes, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    for table in tables(pool).await? {
        names.push(table.name);
        bytes.push(table.bytes);
        rows.push(table.row_estimate);
    }
    let sql = "INSERT INTO storage_samples (day, table_name, bytes, row_estimate)
               SELECT (now() AT TIME ZONE 'UTC')::date, * FROM unnest($1::text[], $2::bigint[], $3::bigint[])
               ON CONFLICT DO NOTHING";
    sqlx::query(sql).bind(names).bind(bytes).bind(rows).execute(pool).await?;
    let sql = "DELETE FROM storage_samples WHERE day < (now() AT TIME ZONE 'UTC')::date - $1::int";
    sqlx::query(sql).bind(KEPT_DAYS).execute(pool).await?;
    Ok(())
}

/// Runs that retention deletes within a day.
#[derive(Debug)]
pub struct Next {
    /// Number of ended runs, including sub-runs, as far as they were counted.
    pub runs: u64,
    /// Whether all were counted.
    pub is_exact: bool,
    /// End of the run that ended first.
    pub oldest: Option<NaiveDateTime>,
}

/// Counts the runs whose retention is over at `at`, among a bounded number of runs that were not checked yet.
pub async fn next(pool: &Pool, policies: &Policies, mut scan: Scan, at: NaiveDateTime) -> Result<Next, Error> {
    let (mut next, mut left) = (Next { runs: 0, is_exact: true, oldest: None }, MAX_NEXT);
    while let Some(range) = scan.ahead(policies, at) {
        let rows = super::retention::ended(pool, range, left).await?;
        for run in &rows {
            if policies.is_over(&run.organization_id, &run.workflow_name, run.ended_at, at) {
                next.runs += 1;
                next.oldest = Some(next.oldest.map_or(run.ended_at, |oldest| oldest.min(run.ended_at)));
            }
        }
        left -= i64::try_from(rows.len()).unwrap_or(i64::MAX).min(left);
        if left == 0 {
            next.is_exact = false;
            break;
        }
        scan.advance(range, range.until, at);
    }
    Ok(next)
}
