//! Records that no executor can use. The table is the truth; the dead-letter topic has a copy of each, and both the
//! copy and a redrive are sent from here, at least once (`copy_at`, `redrive_at`).

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

use super::{
    Error, Pool, audit,
    list::{self, FilterBuilder, ListRow, Order, Page, PageRequest, Table},
};
use crate::{
    access::{Actor, OrganizationId},
    input::{object_of, to_raw},
    timestamp::Timestamp,
};

/// Whoever has taken a letter to send it has so long for it; then it is taken again.
pub const SEND_WITHIN_SECS: f64 = 30.0;

/// Headers of a record in their order, values in base64.
pub type Headers = Vec<(String, Option<String>)>;

/// A record to keep.
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

/// Keeps records. One that is kept already is left as it is, so a repeat does no harm.
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

/// A row of `dead_letters`, without what the record holds.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct LetterRow {
    pub id: Uuid,
    pub organization_id: String,
    pub run_id: Option<String>,
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

const COLUMNS: &str = "id, organization_id, run_id, topic, partition, record_offset,
    sent_at AT TIME ZONE 'UTC' AS sent_at, bytes, reason, detail, status, resolved_by,
    resolved_at AT TIME ZONE 'UTC' AS resolved_at, created_at AT TIME ZONE 'UTC' AS created_at";

/// What a record holds, up to a number of bytes of the value.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct Content {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Json<Headers>,
    pub corrected: Option<Vec<u8>>,
}

/// What a list is narrowed to.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Whose letters.
    pub organization: OrganizationId,
    /// One of these; any if there are none.
    pub topics: Vec<String>,
    /// One of these; any if there are none.
    pub reasons: Vec<String>,
    /// One of these; any if there are none.
    pub statuses: Vec<String>,
    /// Exactly this run.
    pub run_id: Option<String>,
    /// Kept between the two.
    pub created: (Option<Timestamp>, Option<Timestamp>),
}

/// By time.
#[must_use]
pub fn order(ascending: bool) -> Order {
    Order { column: "created_at", nullable: false, ascending }
}

impl ListRow for LetterRow {
    const TABLE: Table = Table { name: "dead_letters", columns: COLUMNS, id: "id", large: &["detail"] };
}

/// A part of the organisation's letters.
pub async fn list(
    conn: &mut PgConnection,
    filter: &Filter,
    order: Order,
    page: &PageRequest,
) -> Result<Page<LetterRow>, Error> {
    let conditions = |builder: &mut FilterBuilder<'_>| {
        builder.organization(&filter.organization);
        builder.one_of("topic", &filter.topics);
        builder.one_of("reason", &filter.reasons);
        builder.one_of("status", &filter.statuses);
        builder.equal("run_id", filter.run_id.as_deref());
        builder.between("created_at", filter.created);
    };
    list::fetch(conn, conditions, order, page).await
}

/// The organisation's letter of that id.
pub async fn find(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<LetterRow>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM dead_letters WHERE id = $1 AND organization_id = $2");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// As [`find`], and holds the row until the transaction ends.
pub async fn lock(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<LetterRow>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM dead_letters WHERE id = $1 AND organization_id = $2 FOR NO KEY UPDATE");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(conn).await?)
}

/// What the record of a letter holds, at most so many bytes of a value.
pub async fn content(db: impl PgExecutor<'_>, id: Uuid, max_bytes: i32) -> Result<Option<Content>, Error> {
    let sql = "SELECT substring(key FOR $2) AS key, substring(value FOR $2) AS value, headers,
                   substring(corrected FOR $2) AS corrected
               FROM dead_letters WHERE id = $1";
    Ok(sqlx::query_as(sql).bind(id).bind(max_bytes).fetch_optional(db).await?)
}

/// Has the record sent again to where it stood; `corrected` instead of its value.
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

/// Forgets what the record holds.
pub async fn discard(conn: &mut PgConnection, id: Uuid, by: &str, at: Timestamp) -> Result<(), Error> {
    let sql = "UPDATE dead_letters SET status = 'discarded', key = NULL, value = NULL, headers = '[]', copy_at = NULL,
                   corrected = NULL, detail = '', resolved_by = $2, resolved_at = $3 AT TIME ZONE 'UTC'
               WHERE id = $1";
    sqlx::query(sql).bind(id).bind(by).bind(at).execute(conn).await?;
    Ok(())
}

/// A letter that is to be sent.
#[derive(Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct Due {
    pub id: Uuid,
    /// To the dead-letter topic.
    pub is_copy: bool,
    /// To its own topic.
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

/// Takes letters that are to be sent, those first that are due longest. They are due again after [`SEND_WITHIN_SECS`].
pub async fn take(db: impl PgExecutor<'_>, limit: i64) -> Result<Vec<Due>, Error> {
    let sql = "
        WITH copying AS (
            SELECT id FROM dead_letters WHERE copy_at <= now() ORDER BY copy_at LIMIT $1 FOR UPDATE SKIP LOCKED
        ), redriving AS (
            SELECT id FROM dead_letters WHERE redrive_at <= now() ORDER BY redrive_at LIMIT $1 FOR UPDATE SKIP LOCKED
        ), due AS (
            SELECT id, bool_or(is_copy) AS is_copy, bool_or(NOT is_copy) AS is_redrive
            FROM (SELECT id, true AS is_copy FROM copying UNION ALL SELECT id, false FROM redriving) AS either GROUP BY id
        )
        UPDATE dead_letters l
        SET copy_at = CASE WHEN is_copy THEN now() + make_interval(secs => $2) ELSE copy_at END,
            redrive_at = CASE WHEN is_redrive THEN now() + make_interval(secs => $2) ELSE redrive_at END
        FROM due WHERE l.id = due.id
        RETURNING l.id, is_copy, is_redrive, topic, partition, record_offset, sent_at AT TIME ZONE 'UTC' AS sent_at, key,
            value, corrected, headers, reason, detail, created_at AT TIME ZONE 'UTC' AS created_at";
    Ok(sqlx::query_as(sql).bind(limit).bind(SEND_WITHIN_SECS).fetch_all(db).await?)
}

/// The copies of these letters are in the dead-letter topic, or never will be.
pub async fn copied(db: impl PgExecutor<'_>, ids: &[Uuid]) -> Result<(), Error> {
    sqlx::query("UPDATE dead_letters SET copy_at = NULL WHERE id = ANY ($1)").bind(ids).execute(db).await?;
    Ok(())
}

/// These letters have been sent again; with `refused`, Kafka never takes them, and they are open as before.
pub async fn redriven(db: impl PgExecutor<'_>, ids: &[Uuid], refused: Option<&str>) -> Result<(), Error> {
    let sql = "UPDATE dead_letters SET redrive_at = NULL, status = CASE WHEN $2::text IS NULL THEN 'redriven' ELSE 'open' END,
                   detail = coalesce($2, detail)
               WHERE id = ANY ($1) AND status = 'redriving'";
    sqlx::query(sql).bind(ids).bind(refused).execute(db).await?;
    Ok(())
}

/// Letters of an organisation that were deleted.
#[derive(Debug, PartialEq, Eq, sqlx::FromRow)]
#[expect(missing_docs, reason = "said by the names")]
pub struct Expired {
    pub organization_id: String,
    /// Nobody had decided on them.
    pub is_open: bool,
    /// There were too many; else they were too old.
    pub is_surplus: bool,
    pub count: i64,
}

impl Expired {
    /// Why they were deleted: the setting that says so.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        if self.is_surplus { "MAX_DEAD_LETTERS" } else { "DEAD_LETTER_RETENTION_DAYS" }
    }
}

/// As [`expire`], in one transaction with the entries of the audit trail for open letters, if there is one; and how many
/// letters are open now.
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

/// Says in the audit trail that letters were deleted on which nobody had decided.
async fn record(conn: &mut PgConnection, lost: &Expired) -> Result<(), Error> {
    let actor = Actor { organization: OrganizationId::stored(&lost.organization_id), ..Actor::system() };
    let after = object_of([("count", &*to_raw(&lost.count)), ("reason", &*to_raw(&lost.reason()))]);
    let entry = audit::Entry {
        entity_type: "dead_letter",
        // They are many.
        entity_id: Uuid::nil(),
        entity_name: "",
        action: "expire",
        before: None,
        after: Some(&after),
    };
    audit::insert(conn, &actor, entry, Timestamp::now()).await
}

/// Deletes letters that are older than so many days, and of what is above so many the oldest: first those that somebody
/// has decided on.
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

/// How many letters nobody has decided on.
pub async fn open(db: impl PgExecutor<'_>) -> Result<i64, Error> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM dead_letters WHERE status = 'open'").fetch_one(db).await?)
}
