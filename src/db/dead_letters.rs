//! Dead letters: records that no executor can process, or that cannot start the run of a trigger. The table is authoritative. The dead-letter topic has a copy of
//! each record. Copies and redriven records are sent from here, at least once (`copy_at`, `redrive_at`).

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

use super::{
    Error, Pool, audit,
    list::{self, Conditions, ListRow, Order, Page, PageRequest, Plan, Table},
};
use crate::{
    access::{Actor, OrganizationId},
    input::{object_of, to_raw},
    timestamp::Timestamp,
};

/// Lease of a process on a letter that it sends. After this time another process may take the letter.
pub const SEND_WITHIN_SECS: f64 = 30.0;

/// Record headers in their order, values in base64.
pub type Headers = Vec<(String, Option<String>)>;

/// Record to store.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct NewLetter {
    pub run_id: Option<String>,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub sent_at: Option<DateTime<Utc>>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Headers,
    pub digest: Vec<u8>,
    pub reason: &'static str,
    pub detail: String,
}

/// Stores records. Records that are stored already stay unchanged, so repeating this is safe.
pub async fn insert(db: impl PgExecutor<'_>, letters: &[NewLetter]) -> Result<(), Error> {
    let sql = "
        INSERT INTO dead_letters (id, organization_id, run_id, topic, partition, record_offset, sent_at, key, value,
            headers, digest, bytes, reason, detail)
        SELECT id, coalesce((SELECT organization_id FROM workflow_runs r WHERE r.run_id = l.run_id), 'default'), run_id,
            topic, partition, record_offset, sent_at, key, value, headers, digest, coalesce(length(value), 0), reason,
            detail
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::int[], $5::bigint[], $6::timestamptz[], $7::bytea[],
            $8::bytea[], $9::jsonb[], $10::bytea[], $11::text[], $12::text[])
            AS l (id, run_id, topic, partition, record_offset, sent_at, key, value, headers, digest, reason, detail)
        ON CONFLICT ON CONSTRAINT dead_letters_of_a_record DO NOTHING";
    let of = |get: fn(&NewLetter) -> Option<&str>| letters.iter().map(get).collect::<Vec<_>>();
    sqlx::query(sql)
        .bind(letters.iter().map(|_| Uuid::now_v7()).collect::<Vec<_>>())
        .bind(of(|letter| letter.run_id.as_deref()))
        .bind(of(|letter| Some(&letter.topic)))
        .bind(letters.iter().map(|letter| letter.partition).collect::<Vec<_>>())
        .bind(letters.iter().map(|letter| letter.offset).collect::<Vec<_>>())
        .bind(letters.iter().map(|letter| letter.sent_at).collect::<Vec<_>>())
        .bind(letters.iter().map(|letter| letter.key.as_deref()).collect::<Vec<_>>())
        .bind(letters.iter().map(|letter| letter.value.as_deref()).collect::<Vec<_>>())
        .bind(letters.iter().map(|letter| Json(&letter.headers)).collect::<Vec<_>>())
        .bind(letters.iter().map(|letter| letter.digest.as_slice()).collect::<Vec<_>>())
        .bind(of(|letter| Some(letter.reason)))
        .bind(of(|letter| Some(&letter.detail)))
        .execute(db)
        .await?;
    Ok(())
}

/// Row of `dead_letters`, without the content of the record.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct LetterRow {
    pub id: Uuid,
    pub organization_id: String,
    pub run_id: Option<String>,
    pub trigger_id: Option<Uuid>,
    pub topic: String,
    pub partition: i32,
    pub record_offset: i64,
    pub sent_at: Option<Timestamp>,
    pub bytes: i64,
    pub reason: String,
    pub detail: String,
    pub status: String,
    pub resolved_by: Option<String>,
    pub resolved_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

const COLUMNS: &str = "id, organization_id, run_id, trigger_id, topic, partition, record_offset,
    sent_at AT TIME ZONE 'UTC' AS sent_at, bytes, reason, detail, status, resolved_by,
    resolved_at AT TIME ZONE 'UTC' AS resolved_at, created_at AT TIME ZONE 'UTC' AS created_at";

/// Content of a record, with the value truncated to a number of bytes.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct Content {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Json<Headers>,
    pub corrected: Option<Vec<u8>>,
}

/// Filter of a list of letters.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Organisation of the letters.
    pub organization: OrganizationId,
    /// Accepted topics; all if empty.
    pub topics: Vec<String>,
    /// Accepted reasons; all if empty.
    pub reasons: Vec<String>,
    /// Accepted statuses; all if empty.
    pub statuses: Vec<String>,
    /// Exact id of the run.
    pub run_id: Option<String>,
    /// Range of the time of storing.
    pub created: (Option<Timestamp>, Option<Timestamp>),
}

/// Sort order: time.
#[must_use]
pub fn order(ascending: bool) -> Order {
    Order { column: "created_at", ascending }
}

impl ListRow for LetterRow {
    const TABLE: Table =
        Table { name: "dead_letters", columns: COLUMNS, id: "id", is_found_by_value: false, large: &["detail"] };
}

/// Page of the organisation's letters.
pub async fn list(
    conn: &mut PgConnection,
    filter: &Filter,
    order: Order,
    page: &PageRequest,
) -> Result<Page<LetterRow>, Error> {
    let conditions = Conditions::organization(&filter.organization)
        .one_of("topic", &filter.topics)
        .one_of("reason", &filter.reasons)
        .one_of("status", &filter.statuses)
        .equal("run_id", filter.run_id.as_deref())
        .between("created_at", filter.created);
    list::fetch(conn, &Plan::long(conditions, &["organization_id"], order), page, None).await
}

/// Finds the organisation's letter by id.
pub async fn find(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<LetterRow>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM dead_letters WHERE id = $1 AND organization_id = $2");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// As [`find`], and locks the row until the transaction ends.
pub async fn lock(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<LetterRow>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM dead_letters WHERE id = $1 AND organization_id = $2 FOR NO KEY UPDATE");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(conn).await?)
}

/// Content of a letter's record, with at most `max_bytes` of the value.
pub async fn content(db: impl PgExecutor<'_>, id: Uuid, max_bytes: i32) -> Result<Option<Content>, Error> {
    let sql = "SELECT substring(key FOR $2) AS key, substring(value FOR $2) AS value, headers,
                   substring(corrected FOR $2) AS corrected
               FROM dead_letters WHERE id = $1";
    Ok(sqlx::query_as(sql).bind(id).bind(max_bytes).fetch_optional(db).await?)
}

/// Schedules the record to be sent to its topic again, with `corrected` instead of its value if given.
pub async fn redrive(
    conn: &mut PgConnection,
    id: Uuid,
    corrected: Option<&[u8]>,
    by: &str,
    at: Timestamp,
) -> Result<(), Error> {
    let sql = "UPDATE dead_letters SET status = 'redriving', redrive_at = now(), corrected = $2, resolved_by = $3,
                   resolved_at = $4 AT TIME ZONE 'UTC'
               WHERE id = $1";
    sqlx::query(sql).bind(id).bind(corrected).bind(by).bind(at).execute(conn).await?;
    Ok(())
}

/// Deletes the content of the record and keeps the letter.
pub async fn discard(conn: &mut PgConnection, id: Uuid, by: &str, at: Timestamp) -> Result<(), Error> {
    let sql = "UPDATE dead_letters SET status = 'discarded', key = NULL, value = NULL, headers = '[]', copy_at = NULL,
                   corrected = NULL, detail = '', resolved_by = $2, resolved_at = $3 AT TIME ZONE 'UTC'
               WHERE id = $1";
    sqlx::query(sql).bind(id).bind(by).bind(at).execute(conn).await?;
    Ok(())
}

/// Letter that is due to be sent.
#[derive(Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct Due {
    pub id: Uuid,
    /// A copy is due for the dead-letter topic.
    pub is_copy: bool,
    /// The record is due for its own topic.
    pub is_redrive: bool,
    pub topic: String,
    pub partition: i32,
    pub record_offset: i64,
    pub sent_at: Option<Timestamp>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub corrected: Option<Vec<u8>>,
    pub headers: Json<Headers>,
    pub reason: String,
    pub detail: String,
    pub created_at: Timestamp,
}

/// Takes due letters, the longest due first. They are due again after [`SEND_WITHIN_SECS`].
pub async fn take(db: impl PgExecutor<'_>, limit: i64) -> Result<Vec<Due>, Error> {
    let sql = "
        WITH copying AS (
            SELECT id FROM dead_letters WHERE copy_at <= now() ORDER BY copy_at LIMIT $1 FOR UPDATE SKIP LOCKED
        ), redriving AS (
            SELECT id FROM dead_letters WHERE redrive_at <= now() ORDER BY redrive_at LIMIT $1 FOR UPDATE SKIP LOCKED
        ), due AS (
            SELECT id, bool_or(is_copy) AS is_copy, bool_or(NOT is_copy) AS is_redrive
            FROM (SELECT id, true AS is_copy FROM copying UNION ALL SELECT id, false FROM redriving) AS selected GROUP BY id
        )
        UPDATE dead_letters l
        SET copy_at = CASE WHEN is_copy THEN now() + make_interval(secs => $2) ELSE copy_at END,
            redrive_at = CASE WHEN is_redrive THEN now() + make_interval(secs => $2) ELSE redrive_at END
        FROM due WHERE l.id = due.id
        RETURNING l.id, is_copy, is_redrive, topic, partition, record_offset, sent_at AT TIME ZONE 'UTC' AS sent_at, key,
            value, corrected, headers, reason, detail, created_at AT TIME ZONE 'UTC' AS created_at";
    Ok(sqlx::query_as(sql).bind(limit).bind(SEND_WITHIN_SECS).fetch_all(db).await?)
}

/// Records that the copies of these letters are in the dead-letter topic, or can never be sent.
pub async fn copied(db: impl PgExecutor<'_>, ids: &[Uuid]) -> Result<(), Error> {
    sqlx::query("UPDATE dead_letters SET copy_at = NULL WHERE id = ANY ($1)").bind(ids).execute(db).await?;
    Ok(())
}

/// Records that these letters were sent again. With `refused`, Kafka rejected them for good, and they are open again.
pub async fn redriven(db: impl PgExecutor<'_>, ids: &[Uuid], refused: Option<&str>) -> Result<(), Error> {
    let sql = "UPDATE dead_letters SET redrive_at = NULL, status = CASE WHEN $2::text IS NULL THEN 'redriven' ELSE 'open' END,
                   detail = coalesce($2, detail)
               WHERE id = ANY ($1) AND status = 'redriving'";
    sqlx::query(sql).bind(ids).bind(refused).execute(db).await?;
    Ok(())
}

/// Number of deleted letters of an organisation.
#[derive(Debug, PartialEq, Eq, sqlx::FromRow)]
#[expect(missing_docs, reason = "said by the names")]
pub struct Expired {
    pub organization_id: String,
    /// Whether they were open, without a decision.
    pub is_open: bool,
    /// Whether they exceeded the maximum number; otherwise their age.
    pub is_surplus: bool,
    pub count: i64,
}

impl Expired {
    /// Names of the settings that cause deletions.
    pub const REASONS: [&str; 2] = ["MAX_DEAD_LETTERS", "DEAD_LETTER_RETENTION_DAYS"];

    /// Name of the setting that caused the deletion.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        Self::REASONS[usize::from(!self.is_surplus)]
    }
}

/// As [`expire`], in one transaction with the audit entries for open letters, if auditing is on. Also returns the
/// number of open letters.
pub async fn expire_and_record(
    pool: &Pool,
    kept_days: i32,
    most: i64,
    has_audit: bool,
) -> Result<(Vec<Expired>, i64), Error> {
    let mut transaction = pool.begin().await?;
    let expired = expire(&mut *transaction, kept_days, most).await?;
    for lost in expired.iter().filter(|letters| letters.is_open && has_audit) {
        record(&mut transaction, lost).await?;
    }
    let open = open(&mut *transaction).await?;
    transaction.commit().await?;
    Ok((expired, open))
}

/// Writes an audit entry for open letters that were deleted.
async fn record(conn: &mut PgConnection, lost: &Expired) -> Result<(), Error> {
    let actor = Actor { organization: OrganizationId::stored(&lost.organization_id), ..Actor::system() };
    let after = object_of([("count", &*to_raw(&lost.count)), ("reason", &*to_raw(&lost.reason()))]);
    let entry = audit::Entry {
        entity_type: "dead_letter",
        // The entry stands for several letters.
        entity_id: Uuid::nil(),
        entity_name: "",
        action: "expire",
        before: None,
        after: Some(&after),
    };
    audit::insert(conn, &actor, entry, Timestamp::now()).await
}

/// Deletes letters older than `kept_days`, and the oldest ones above `most`, those with a decision first.
pub async fn expire(db: impl PgExecutor<'_>, kept_days: i32, most: i64) -> Result<Vec<Expired>, Error> {
    let sql = "
        WITH deleted AS (
            DELETE FROM dead_letters WHERE redrive_at IS NULL AND (created_at < now() - make_interval(days => $1)
                OR id IN (SELECT id FROM dead_letters
                          ORDER BY status IN ('open', 'redriving') DESC, created_at DESC, id DESC OFFSET $2))
            RETURNING organization_id, status = 'open' AS is_open,
                created_at >= now() - make_interval(days => $1) AS is_surplus
        )
        SELECT organization_id, is_open, is_surplus, count(*) AS count FROM deleted GROUP BY 1, 2, 3 ORDER BY 1, 2, 3";
    Ok(sqlx::query_as(sql).bind(kept_days).bind(most).fetch_all(db).await?)
}

/// Number of open letters.
pub async fn open(db: impl PgExecutor<'_>) -> Result<i64, Error> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM dead_letters WHERE status = 'open'").fetch_one(db).await?)
}
