//! State of Kafka triggers: their consumer groups, and what is left of those of deleted triggers.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

use super::{
    Error,
    dead_letters::NewLetter,
    triggers::{self, TriggerRow},
};
use crate::{access::OrganizationId, timestamp::Timestamp};

/// How long a process may take to apply `start`; it gives up well before.
const START_WITHIN_SECS: f64 = 60.0;
/// Interval of the attempts to delete a group.
const DELETE_EVERY_SECS: f64 = 30.0;
/// Number of attempts to delete a group: those of a day.
const MAX_DELETIONS: i32 = 2880;

/// State of a trigger.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct StateRow {
    pub group_id: String,
    pub started_at: Option<Timestamp>,
    pub error: Option<String>,
    pub error_at: Option<Timestamp>,
}

/// State of the trigger.
pub async fn find(db: impl PgExecutor<'_>, id: Uuid) -> Result<Option<StateRow>, Error> {
    let sql =
        "SELECT group_id, started_at AT TIME ZONE 'UTC' AS started_at, error, error_at AT TIME ZONE 'UTC' AS error_at
               FROM kafka_triggers WHERE trigger_id = $1";
    Ok(sqlx::query_as(sql).bind(id).fetch_optional(db).await?)
}

/// Stores the state of a new trigger. Returns `false` if another trigger has the group; the transaction can go on.
pub async fn insert(conn: &mut PgConnection, id: Uuid, group: &str) -> Result<bool, Error> {
    let sql = "INSERT INTO kafka_triggers (trigger_id, group_id) VALUES ($1, $2) ON CONFLICT (group_id) DO NOTHING";
    Ok(sqlx::query(sql).bind(id).bind(group).execute(conn).await?.rows_affected() == 1)
}

/// Lets `start` be applied to the group again, as far as it has no offsets.
pub async fn restart(conn: &mut PgConnection, id: Uuid) -> Result<(), Error> {
    let sql = "UPDATE kafka_triggers SET started_at = NULL, error = NULL, error_at = NULL WHERE trigger_id = $1";
    sqlx::query(sql).bind(id).execute(conn).await?;
    Ok(())
}

/// Number of Kafka triggers of all organisations. Locks it against other transactions that add to it.
pub async fn count_locked(conn: &mut PgConnection) -> Result<i64, Error> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('quota/kafka_triggers', 0))")
        .execute(&mut *conn)
        .await?;
    Ok(sqlx::query_scalar("SELECT count(*) FROM kafka_triggers").fetch_one(conn).await?)
}

/// Triggers of active organisations that are not paused, the oldest first; at most `limit`.
pub async fn enabled(db: impl PgExecutor<'_>, limit: i64) -> Result<Vec<TriggerRow>, Error> {
    let sql = triggers::select(
        " WHERE enabled AND id IN (SELECT trigger_id FROM kafka_triggers) AND NOT EXISTS (
             SELECT FROM organizations o WHERE o.id = triggers.organization_id AND o.status = 'suspended')
         ORDER BY created_at, id LIMIT $1",
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(limit).fetch_all(db).await?)
}

/// Takes the right to apply `start`. Returns whether this process has it now.
pub async fn begin_start(db: impl PgExecutor<'_>, id: Uuid) -> Result<bool, Error> {
    let sql = "UPDATE kafka_triggers SET starting_until = clock_timestamp() + make_interval(secs => $2)
               WHERE trigger_id = $1 AND (starting_until IS NULL OR starting_until < clock_timestamp())";
    let done = sqlx::query(sql).bind(id).bind(START_WITHIN_SECS).execute(db).await?;
    Ok(done.rows_affected() > 0)
}

/// Records that `start` was applied, or gives the right back if it was not.
pub async fn end_start(db: impl PgExecutor<'_>, id: Uuid, is_applied: bool) -> Result<(), Error> {
    let sql = "UPDATE kafka_triggers SET starting_until = NULL,
                   started_at = CASE WHEN $2 THEN clock_timestamp() ELSE started_at END
               WHERE trigger_id = $1";
    sqlx::query(sql).bind(id).bind(is_applied).execute(db).await?;
    Ok(())
}

/// Records why the topic cannot be read, or that it can.
pub async fn note_error(db: impl PgExecutor<'_>, id: Uuid, error: Option<&str>) -> Result<(), Error> {
    let sql = "UPDATE kafka_triggers SET error = $2, error_at = CASE WHEN $2 IS NULL THEN NULL ELSE clock_timestamp() END
               WHERE trigger_id = $1 AND (error IS DISTINCT FROM $2 OR error_at < clock_timestamp() - interval '1 minute')";
    sqlx::query(sql).bind(id).bind(error).execute(db).await?;
    Ok(())
}

/// Number of runs, at most `wanted`, that may start now if the trigger starts at most `rate` in a second. They count as
/// started. What was not used for a second is lost.
pub async fn allow(conn: &mut PgConnection, id: Uuid, rate: i64, wanted: i64) -> Result<i64, Error> {
    let sql = "
        WITH seen AS (
            SELECT greatest(free_at, clock_timestamp() - interval '1 second') AS free_at, clock_timestamp() AS now
            FROM kafka_triggers WHERE trigger_id = $1 FOR UPDATE
        ), allowed AS (
            SELECT free_at, greatest(0, least($3::bigint,
                floor(extract(epoch FROM now - free_at) * $2::bigint)::bigint)) AS count FROM seen
        )
        UPDATE kafka_triggers k SET free_at = a.free_at + make_interval(secs => a.count::double precision / $2)
        FROM allowed a WHERE k.trigger_id = $1 RETURNING a.count";
    Ok(sqlx::query_scalar(sql).bind(id).bind(rate).bind(wanted).fetch_optional(conn).await?.unwrap_or_default())
}

/// Stores records that the trigger cannot use. Those that are stored already stay unchanged. Returns the number of new ones.
pub async fn insert_letters(
    conn: &mut PgConnection,
    (organization, trigger): (&OrganizationId, Uuid),
    letters: &[NewLetter],
) -> Result<u64, Error> {
    let sql = "
        INSERT INTO dead_letters (id, organization_id, trigger_id, topic, partition, record_offset, sent_at, key, value,
            headers, digest, bytes, reason, detail)
        SELECT id, $12, $13, topic, partition, record_offset, sent_at, key, value, headers, digest,
            coalesce(length(value), 0), reason, detail
        FROM unnest($1::uuid[], $2::text[], $3::int[], $4::bigint[], $5::timestamptz[], $6::bytea[], $7::bytea[],
            $8::jsonb[], $9::bytea[], $10::text[], $11::text[])
            AS l (id, topic, partition, record_offset, sent_at, key, value, headers, digest, reason, detail)
        ON CONFLICT ON CONSTRAINT dead_letters_of_a_record DO NOTHING";
    let of = |get: fn(&NewLetter) -> &str| letters.iter().map(get).collect::<Vec<_>>();
    let done = sqlx::query(sql)
        .bind(letters.iter().map(|_| Uuid::now_v7()).collect::<Vec<_>>())
        .bind(of(|letter| &letter.topic))
        .bind(letters.iter().map(|letter| letter.partition).collect::<Vec<_>>())
        .bind(letters.iter().map(|letter| letter.offset).collect::<Vec<_>>())
        .bind(letters.iter().map(|letter| letter.sent_at).collect::<Vec<Option<DateTime<Utc>>>>())
        .bind(letters.iter().map(|letter| letter.key.as_deref()).collect::<Vec<_>>())
        .bind(letters.iter().map(|letter| letter.value.as_deref()).collect::<Vec<_>>())
        .bind(letters.iter().map(|letter| Json(&letter.headers)).collect::<Vec<_>>())
        .bind(letters.iter().map(|letter| letter.digest.as_slice()).collect::<Vec<_>>())
        .bind(of(|letter| letter.reason))
        .bind(of(|letter| &letter.detail))
        .bind(organization.as_str())
        .bind(trigger)
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}

/// Number of open dead letters of the trigger, counted up to `limit`.
pub async fn open_letters(conn: &mut PgConnection, trigger: Uuid, limit: i64) -> Result<i64, Error> {
    let sql = "SELECT count(*) FROM (SELECT FROM dead_letters
                   WHERE trigger_id = $1 AND trigger_id IS NOT NULL AND status = 'open' LIMIT $2) AS counted";
    Ok(sqlx::query_scalar(sql).bind(trigger).bind(limit).fetch_one(conn).await?)
}

/// Records that the record of a letter has started a run.
pub async fn letter_redriven(
    conn: &mut PgConnection,
    letter: Uuid,
    (run_id, corrected): (&str, Option<&[u8]>),
    (by, at): (&str, Timestamp),
) -> Result<(), Error> {
    let sql = "UPDATE dead_letters SET status = 'redriven', run_id = $2, corrected = $3, resolved_by = $4,
                   resolved_at = $5 AT TIME ZONE 'UTC'
               WHERE id = $1";
    sqlx::query(sql).bind(letter).bind(run_id).bind(corrected).bind(by).bind(at).execute(conn).await?;
    Ok(())
}

/// Lets the group of a trigger be deleted, whose deletion is in the same transaction.
pub async fn delete_group(conn: &mut PgConnection, trigger: Uuid) -> Result<(), Error> {
    let sql = "INSERT INTO kafka_groups_to_delete (group_id)
               SELECT group_id FROM kafka_triggers WHERE trigger_id = $1 ON CONFLICT DO NOTHING";
    sqlx::query(sql).bind(trigger).execute(conn).await?;
    Ok(())
}

/// Whether the group is still to be deleted.
pub async fn is_group_going(conn: &mut PgConnection, group: &str) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT FROM kafka_groups_to_delete WHERE group_id = $1)";
    Ok(sqlx::query_scalar(sql).bind(group).fetch_one(conn).await?)
}

/// Takes groups that are to be deleted now. They are due again later; those that have been tried for a day are given up.
pub async fn groups_to_delete(db: impl PgExecutor<'_>, limit: i64) -> Result<Vec<String>, Error> {
    let sql = "
        WITH due AS (
            SELECT group_id FROM kafka_groups_to_delete WHERE delete_at <= clock_timestamp()
            ORDER BY delete_at LIMIT $1 FOR UPDATE SKIP LOCKED
        ), given_up AS (
            DELETE FROM kafka_groups_to_delete g USING due WHERE g.group_id = due.group_id AND attempts >= $3
        )
        UPDATE kafka_groups_to_delete g SET attempts = attempts + 1,
            delete_at = clock_timestamp() + make_interval(secs => $2)
        FROM due WHERE g.group_id = due.group_id AND g.attempts < $3 RETURNING g.group_id";
    Ok(sqlx::query_scalar(sql).bind(limit).bind(DELETE_EVERY_SECS).bind(MAX_DELETIONS).fetch_all(db).await?)
}

/// Records that the brokers have these groups no longer.
pub async fn groups_deleted(db: impl PgExecutor<'_>, groups: &[String]) -> Result<(), Error> {
    sqlx::query("DELETE FROM kafka_groups_to_delete WHERE group_id = ANY ($1)").bind(groups).execute(db).await?;
    Ok(())
}
