//! Audit trail: an entry for every change, in the transaction of the change, and seals that chain the entries.

use serde_json::value::RawValue;
use sqlx::{PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

use super::{
    Error, Pool,
    list::{self, Conditions, Entries, ListRow, Order, Page, PageRequest, Plan, Table},
};
use crate::{
    access::{Actor, OrganizationId},
    timestamp::Timestamp,
};

/// Maximum number of entries that one seal covers.
const MAX_SEALED: i64 = 5000;

/// Audit entry to write.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Type of the object: `agent`, `workflow`, `run`, `api_key`, `organization`, `dead_letter`, `webhook`,
    /// `session`, `saved_view`.
    pub entity_type: &'static str,
    /// Id of the object.
    pub entity_id: Uuid,
    /// Name of the object; the id for a run.
    pub entity_name: &'a str,
    /// Action: `create`, `update`, `delete`, `execute`, `retry`, `cancel`, `pause`, `resume`, `answer_callback`,
    /// `redrive`, `discard`, `expire`, `restore`, `revoke`, `card_changed`, `health_failing`, `health_recovered`,
    /// `rotate_secret`, `enable`, `disable`, `recover`, `redeliver`, `sign_in`,
    /// `sign_out`.
    pub action: &'static str,
    /// Previous values of the members of `after`, without secrets; `None` if there was nothing.
    pub before: Option<&'a RawValue>,
    /// Changed members, without secrets; `None` is stored as a JSON null.
    pub after: Option<&'a RawValue>,
}

/// Members that are bodies. An entry has only their SHA-256 and size, since entries cannot be deleted and their readers
/// may not have the right to read the bodies.
const BODIES: [&str; 5] = ["answer", "config", "input_data", "input_schema", "workflow_data"];

/// Writes the entry.
pub async fn insert(conn: &mut PgConnection, actor: &Actor, entry: Entry<'_>, at: Timestamp) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO audit_logs (id, entity_type, entity_id, entity_name, action, user_id, key_id, address,
             correlation_id, organization_id, previous, changes, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, nullif($6, ''), $7, $8, nullif($9, ''), $10, audit_members($11, $14),
             coalesce(audit_members($12, $14), 'null'::jsonb), $13, $13)",
    )
    .bind(Uuid::now_v7())
    .bind(entry.entity_type)
    .bind(entry.entity_id)
    .bind(entry.entity_name)
    .bind(entry.action)
    .bind(&actor.subject)
    .bind(actor.key_id)
    .bind(actor.address.map(|address| address.to_string()))
    .bind(&actor.correlation_id)
    .bind(actor.organization.as_str())
    .bind(entry.before.map(Json))
    .bind(entry.after.map(Json))
    .bind(at)
    .bind(&BODIES[..])
    .execute(conn)
    .await?;
    Ok(())
}

/// Entry of a denied attempt, or of a number of them.
#[derive(Clone, Debug)]
pub struct DeniedEntry {
    /// Id of the entry, so that a repeated write inserts it once.
    pub id: Uuid,
    /// Actor of the attempt; without a subject if unknown.
    pub actor: Actor,
    /// HTTP method, or `omitted`.
    pub action: String,
    /// Route template, or `(many)`.
    pub route: String,
    /// Answer to the attempt, or the number of attempts.
    pub after: Box<RawValue>,
    /// Time of the attempt; of the first one for several.
    pub at: Timestamp,
    /// Number of attempts that the entry stands for.
    pub attempts: u64,
}

/// Writes the entries that are not written yet, all or none.
pub async fn insert_denied(pool: &Pool, entries: &[DeniedEntry]) -> Result<(), Error> {
    let text = |of: fn(&DeniedEntry) -> Option<String>| entries.iter().map(of).collect::<Vec<_>>();
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    sqlx::query(
        "INSERT INTO audit_logs (id, entity_type, entity_id, entity_name, action, outcome, user_id, key_id, address,
             correlation_id, organization_id, changes, created_at, updated_at)
         SELECT id, 'request', $1, route, action, 'denied', user_id, key_id, address, correlation_id, organization_id,
             changes::jsonb, created_at, created_at
         FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::uuid[], $7::text[], $8::text[], $9::text[],
             $10::text[], $11::timestamp[])
             AS e (id, route, action, user_id, key_id, address, correlation_id, organization_id, changes, created_at)
         ON CONFLICT DO NOTHING",
    )
    .bind(Uuid::nil())
    .bind(entries.iter().map(|entry| entry.id).collect::<Vec<_>>())
    .bind(text(|entry| Some(entry.route.clone())))
    .bind(text(|entry| Some(entry.action.clone())))
    .bind(entries.iter().map(|entry| some(&entry.actor.subject)).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| entry.actor.key_id).collect::<Vec<_>>())
    .bind(text(|entry| entry.actor.address.map(|address| address.to_string())))
    .bind(entries.iter().map(|entry| some(&entry.actor.correlation_id)).collect::<Vec<_>>())
    .bind(text(|entry| Some(entry.actor.organization.to_string())))
    .bind(text(|entry| Some(entry.after.get().to_owned())))
    .bind(entries.iter().map(|entry| entry.at.as_naive_utc()).collect::<Vec<_>>())
    .execute(pool)
    .await?;
    Ok(())
}

/// Row of `audit_logs`.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migrations")]
pub struct AuditRow {
    pub id: Uuid,
    pub organization_id: String,
    pub created_at: Timestamp,
    pub user_id: Option<String>,
    pub key_id: Option<Uuid>,
    pub address: Option<String>,
    pub correlation_id: Option<String>,
    pub action: String,
    pub entity_type: String,
    pub entity_id: Uuid,
    pub entity_name: Option<String>,
    pub outcome: String,
    pub previous: Option<Json<Box<RawValue>>>,
    pub changes: Option<Json<Box<RawValue>>>,
}

const COLUMNS: &str = "id, organization_id, created_at, user_id, key_id, address, correlation_id, action, entity_type,
    entity_id, entity_name, outcome, previous, changes";

/// Filter of a list of entries.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Organisation of the entries.
    pub organization: OrganizationId,
    /// Accepted subjects; all if empty.
    pub users: Vec<String>,
    /// Accepted actions; all if empty.
    pub actions: Vec<String>,
    /// Accepted entity types; all if empty.
    pub entity_types: Vec<String>,
    /// Exact id of the object.
    pub entity_id: Option<Uuid>,
    /// Accepted outcomes; all if empty.
    pub outcomes: Vec<String>,
    /// Exact correlation id of the request.
    pub correlation_id: Option<String>,
    /// Range of the time.
    pub created: (Option<Timestamp>, Option<Timestamp>),
}

impl Filter {
    /// Plan of a list: entries are read in their order, unless an index finds few of them.
    async fn plan(&self, conn: &mut PgConnection, order: Order) -> Result<Plan, Error> {
        let by_index = [
            Conditions::default().uuid("entity_id", self.entity_id),
            Conditions::default().one_of("user_id", &self.users),
            Conditions::default().one_of("action", &self.actions),
            Conditions::default().one_of("entity_type", &self.entity_types),
        ];
        let conditions = Conditions::organization(&self.organization)
            .one_of("outcome", &self.outcomes)
            .equal("correlation_id", self.correlation_id.as_deref())
            .between("created_at", self.created);
        let all = by_index.iter().fold(conditions, Conditions::with);
        for few in by_index {
            if !few.is_empty() && list::are_few::<AuditRow>(&mut *conn, &few).await? {
                return Ok(Plan::few(few, all, order));
            }
        }
        Ok(Plan::long(all, &["organization_id"], order))
    }
}

/// Sort order: time.
#[must_use]
pub fn order(ascending: bool) -> Order {
    Order { column: "created_at", ascending }
}

impl ListRow for AuditRow {
    const TABLE: Table = Table {
        name: "audit_logs",
        columns: COLUMNS,
        id: "id",
        is_found_by_value: true,
        large: &["previous", "changes"],
    };
}

/// Page of the organisation's entries.
pub async fn list(
    conn: &mut PgConnection,
    filter: &Filter,
    order: Order,
    page: &PageRequest,
) -> Result<Page<AuditRow>, Error> {
    let plan = filter.plan(&mut *conn, order).await?;
    list::fetch(conn, &plan, page, None).await
}

/// As [`list()`], without the total.
pub async fn page(
    conn: &mut PgConnection,
    filter: &Filter,
    order: Order,
    page: &PageRequest,
) -> Result<Entries<AuditRow>, Error> {
    let plan = filter.plan(&mut *conn, order).await?;
    list::page(conn, &plan, page).await
}

/// Creates the partitions needed next, and drops those whose entries are all older than the retention.
pub async fn keep_partitions(db: impl PgExecutor<'_>, kept_days: i32) -> Result<(), Error> {
    sqlx::query("SELECT keep_audit_partitions($1)").bind(kept_days).execute(db).await?;
    Ok(())
}

/// Result of [`seal`].
#[derive(Debug)]
pub struct Sealed {
    /// Whether there may be more entries to seal.
    pub is_cut: bool,
    /// Transaction id before which no entry is left to seal, as text: `after` of the next call.
    pub before: String,
}

/// Adds a seal for each organisation that covers its unsealed entries.
///
/// Entries of transactions before `after` (`"0"` for none) are sealed already, by this process or another. They are not
/// read: deleted rows are stored as long as an old snapshot may see them. An id that this server has not reached is of
/// another one, and ignored.
///
/// A lock serialises this, so that the numbers have no gaps. The statement sees what the previous one committed.
pub async fn seal(pool: &Pool, after: &str) -> Result<Sealed, Error> {
    let sql = "
        WITH taken AS (
            DELETE FROM audit_unsealed_batches WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM audit_unsealed_batches
                WHERE xid >= CASE WHEN $2::text::xid8 <= pg_snapshot_xmax(pg_current_snapshot()) THEN $2::text::xid8
                        ELSE '0'::xid8 END
                    AND xid <= '18446744073709551615'
                ORDER BY xid LIMIT $1))
            RETURNING organization_id, entry_ids, entry_ats, entry_hashes
        ), covered AS (
            -- One scan feeds all arrays, so that they have the same order.
            SELECT organization_id, array_agg(e.id) AS entry_ids, array_agg(e.at) AS entry_ats,
                string_agg(substring(entry_hashes FROM (place * 32 - 31)::int FOR 32), '') AS entry_hashes
            FROM taken, unnest(entry_ids, entry_ats) WITH ORDINALITY AS e (id, at, place)
            GROUP BY organization_id
        ), numbered AS (
            SELECT covered.*, coalesce(last.number, 0) + 1 AS number,
                coalesce(last.hash, decode(repeat('00', 32), 'hex')) AS previous
            FROM covered LEFT JOIN LATERAL (
                SELECT number, hash FROM audit_seals s WHERE s.organization_id = covered.organization_id
                ORDER BY number DESC LIMIT 1) AS last ON true
        ), sealed AS (
            INSERT INTO audit_seals (organization_id, number, entry_ids, entry_ats, entry_hashes, previous, hash)
            SELECT organization_id, number, entry_ids, entry_ats, entry_hashes, previous,
                audit_seal_hash(organization_id, number, entry_hashes, previous)
            FROM numbered
        )
        SELECT count(*), pg_snapshot_xmin(pg_current_snapshot())::text FROM taken";
    let mut transaction = pool.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('audit_seals', 0))").execute(&mut *transaction).await?;
    let (count, before): (i64, String) =
        sqlx::query_as(sql).bind(MAX_SEALED).bind(after).fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    let is_cut = count == MAX_SEALED;
    Ok(Sealed { is_cut, before: if is_cut { after.to_owned() } else { before } })
}

/// Entries without a seal.
#[derive(Clone, Copy, Debug, sqlx::FromRow)]
pub struct Unsealed {
    /// Number of entries, of a bounded number of batches.
    pub entries: i64,
    /// Age of the oldest one in seconds; 0 if there is none.
    pub oldest_secs: f64,
}

/// Counts the entries without a seal.
pub async fn unsealed(db: impl PgExecutor<'_>) -> Result<Unsealed, Error> {
    // The batches are in the order of their transactions.
    let sql = "SELECT coalesce(sum(cardinality(entry_ids)), 0)::bigint AS entries,
                   coalesce(extract(epoch FROM now() AT TIME ZONE 'UTC' - min(entry_ats[1])), 0)::float8 AS oldest_secs
               FROM (SELECT entry_ids, entry_ats FROM audit_unsealed_batches ORDER BY xid LIMIT 10000) AS batch";
    Ok(sqlx::query_as(sql).fetch_one(db).await?)
}

/// Seal compared with the stored entries.
#[derive(Debug, sqlx::FromRow)]
pub struct CheckedSeal {
    /// Number of the seal.
    pub number: i64,
    /// Hash of the seal, in hexadecimal.
    pub hash: String,
    /// Hash of the previous seal, as recorded in this one.
    pub previous: String,
    /// Whether `hash` matches the other columns.
    pub is_whole: bool,
    /// Number of covered entries that exist, whatever their content.
    pub present: i64,
    /// Entries that differ from their sealed content.
    pub changed: Vec<Uuid>,
    /// Entries that are missing although they are not expired.
    pub missing: Vec<Uuid>,
}

/// Chain of an organisation's seals, as far as it was checked.
#[derive(Debug)]
pub struct Chain {
    number: i64,
    hash: Option<String>,
    may_jump: bool,
}

impl Chain {
    /// Chain behind that seal, 0 for the first one. The first seal of a shortened trail may have any number.
    #[must_use]
    pub fn new(after: i64, is_shortened: bool) -> Self {
        Self { number: after, hash: None, may_jump: is_shortened }
    }

    /// Number of the last seal.
    #[must_use]
    pub fn number(&self) -> i64 {
        self.number
    }

    /// Hash of the last seal.
    #[must_use]
    pub fn hash(self) -> Option<String> {
        self.hash
    }

    /// Adds the next seal. Returns what is wrong with it, besides its entries.
    pub fn add(&mut self, seal: &CheckedSeal) -> Option<&'static str> {
        let follows = seal.number == self.number + 1 || self.may_jump;
        let continues = self.hash.as_ref().is_none_or(|hash| *hash == seal.previous);
        *self = Self { number: seal.number, hash: Some(seal.hash.clone()), may_jump: false };
        if follows { (!seal.is_whole || !continues).then_some("seal_changed") } else { Some("seal_missing") }
    }
}

/// The organisation's next seals after that number, compared with the entries.
pub async fn check_seals(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    after: i64,
    limit: i64,
) -> Result<Vec<CheckedSeal>, Error> {
    let sql = "
        SELECT s.number, encode(s.hash, 'hex') AS hash, encode(s.previous, 'hex') AS previous,
            s.hash = audit_seal_hash(s.organization_id, s.number, s.entry_hashes, s.previous)
                AND length(s.entry_hashes) = 32 * cardinality(s.entry_ids)
                AND cardinality(s.entry_ats) = cardinality(s.entry_ids) AS is_whole,
            found.*
        FROM audit_seals s, LATERAL (
            SELECT count(a.id) AS present,
                coalesce(array_agg(e.id) FILTER (WHERE a.id IS NOT NULL AND (a.organization_id <> s.organization_id
                    OR audit_entry_hash(a) <> substring(s.entry_hashes FROM (place * 32 - 31)::int FOR 32))), '{}')
                    AS changed,
                coalesce(array_agg(e.id) FILTER (WHERE a.id IS NULL
                    AND e.at >= (SELECT max(dropped_before) FROM audit_retention)), '{}') AS missing
            FROM unnest(s.entry_ids, s.entry_ats) WITH ORDINALITY AS e (id, at, place)
            LEFT JOIN audit_logs a ON a.id = e.id AND a.created_at = e.at
        ) AS found
        WHERE s.organization_id = $1 AND s.number > $2 ORDER BY s.number LIMIT $3";
    Ok(sqlx::query_as(sql).bind(organization.as_str()).bind(after).bind(limit).fetch_all(conn).await?)
}

/// Whether entries or seals were ever dropped because of their age.
pub async fn is_shortened(conn: &mut PgConnection) -> Result<bool, Error> {
    let sql = "SELECT coalesce(bool_or(dropped_before > '-infinity'), false) FROM audit_retention";
    Ok(sqlx::query_scalar(sql).fetch_one(conn).await?)
}

/// Number of the organisation's entries, and number of those without a seal.
pub async fn count(conn: &mut PgConnection, organization: &OrganizationId) -> Result<(i64, i64), Error> {
    let sql = "SELECT (SELECT count(*) FROM audit_logs WHERE organization_id = $1),
                   (SELECT count(*) FROM audit_unsealed u JOIN audit_logs a ON a.id = u.entry_id AND a.created_at = u.entry_at
                    WHERE u.organization_id = $1)";
    Ok(sqlx::query_as(sql).bind(organization.as_str()).fetch_one(conn).await?)
}

/// Entries of the organisation that no seal covers or will cover: they were inserted bypassing the trigger.
pub async fn uncovered(conn: &mut PgConnection, organization: &OrganizationId, limit: i64) -> Result<Vec<Uuid>, Error> {
    let sql = "
        SELECT a.id FROM audit_logs a
        LEFT JOIN (SELECT unnest(entry_ids) AS id FROM audit_seals WHERE organization_id = $1) AS sealed ON sealed.id = a.id
        WHERE a.organization_id = $1 AND sealed.id IS NULL
            AND NOT EXISTS (SELECT 1 FROM audit_unsealed u WHERE u.entry_id = a.id)
            -- The seal of an entry written at the turn of a month may have been dropped with the previous month.
            AND a.created_at > (SELECT max(dropped_before) + interval '1 day' FROM audit_retention)
        LIMIT $2";
    Ok(sqlx::query_scalar(sql).bind(organization.as_str()).bind(limit).fetch_all(conn).await?)
}
