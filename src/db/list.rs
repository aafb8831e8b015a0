//! Pagination: a page by number or from a position, and the total number of entries.
//!
//! A position is the sort value and the id of an entry (keyset). Inserts and deletes before it shift nothing, and the
//! index finds it directly at any depth. Every order ends with the id, so that it is total.

use std::collections::VecDeque;

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Postgres, QueryBuilder, Row as _, postgres::PgRow};
use uuid::Uuid;

use super::Error;
use crate::{access::OrganizationId, timestamp::Timestamp};

/// Sort order: a column, then the id in the same direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Column of the table.
    pub column: &'static str,
    /// Whether values may be null. Nulls come first when descending and last when ascending, as in PostgreSQL.
    pub nullable: bool,
    /// Ascending instead of descending.
    pub ascending: bool,
}

/// Sort value of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "a variant a column type")]
pub enum SortValue {
    Absent,
    Instant(NaiveDateTime),
    Text(String),
    Integer(i32),
}

/// Id of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "a variant a column type")]
pub enum EntryId {
    Uuid(Uuid),
    Text(String),
}

/// Position in a list, whether or not its entry still exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "said by the types")]
pub struct Position {
    pub value: SortValue,
    pub id: EntryId,
}

/// Start of a page.
#[derive(Clone, Debug)]
pub enum PageStart {
    /// After that many entries.
    Offset(i64),
    /// With the entry after the position.
    After(Position),
    /// So that the page ends with the entry before the position.
    Before(Position),
}

/// Requested page.
#[derive(Clone, Debug)]
pub struct PageRequest {
    /// Start of the page.
    pub start: PageStart,
    /// Maximum number of entries.
    pub size: i64,
}

/// Page of a list.
#[derive(Debug)]
pub struct Page<T> {
    /// Entries of the page.
    pub entries: Entries<T>,
    /// Total number of entries of the list.
    pub total: i64,
}

/// Row type of a list.
pub trait ListRow {
    /// Table of the rows.
    const TABLE: Table;
}

/// Table that lists are read from.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "said by the types")]
pub struct Table {
    pub name: &'static str,
    pub columns: &'static str,
    pub id: &'static str,
    /// Columns that may be large. Only with some must the id be unique.
    pub large: &'static [&'static str],
}

/// Builder of a `WHERE` clause.
pub struct FilterBuilder<'q>(pub &'q mut QueryBuilder<Postgres>);

impl FilterBuilder<'_> {
    /// Filters by the organisation.
    pub fn organization(&mut self, organization: &OrganizationId) {
        self.equal("organization_id", Some(organization.as_str()));
    }

    /// Filters by one of these texts, if any are given.
    pub fn one_of(&mut self, column: &str, texts: &[String]) {
        match texts {
            [] => {}
            [text] => self.equal(column, Some(text)),
            _ => drop(self.0.push(format!(" AND {column} = ANY(")).push_bind(texts.to_vec()).push(")")),
        }
    }

    /// Filters by exactly this text.
    pub fn equal(&mut self, column: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.0.push(format!(" AND {column} = ")).push_bind(text.to_owned());
        }
    }

    /// Filters by exactly this id.
    pub fn uuid(&mut self, column: &str, id: Option<Uuid>) {
        if let Some(id) = id {
            self.0.push(format!(" AND {column} = ")).push_bind(id);
        }
    }

    /// Filters by a prefix.
    pub fn prefix(&mut self, column: &str, prefix: Option<&str>) {
        if let Some(prefix) = prefix {
            let mut pattern = prefix.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
            pattern.push('%');
            self.0.push(format!(" AND {column} LIKE ")).push_bind(pattern);
        }
    }

    /// Filters by a range, both ends included.
    pub fn between(&mut self, column: &str, (after, before): (Option<Timestamp>, Option<Timestamp>)) {
        if let Some(after) = after {
            self.0.push(format!(" AND {column} >= ")).push_bind(after);
        }
        if let Some(before) = before {
            self.0.push(format!(" AND {column} <= ")).push_bind(before);
        }
    }
}

/// Maximum stored bytes of several entries that are read at a time. PostgreSQL compresses JSON to as little as a
/// hundredth of its length.
const SMALL_BYTES: i64 = 64 << 10;

/// Entries of a page. Large ones are not read yet.
#[derive(Debug)]
pub struct Entries<T> {
    /// Positions of all entries, including those of `rest`.
    pub positions: Vec<Position>,
    /// First entries, as long as they are small together.
    pub rows: Vec<T>,
    /// Batches of ids of the other entries for [`read`]: several that are small together, or one that is large.
    pub rest: VecDeque<Vec<EntryId>>,
    /// There are entries before these.
    pub has_previous: bool,
    /// There are entries after these.
    pub has_next: bool,
}

/// Reads a page of the filtered list.
pub async fn fetch<T>(
    conn: &mut PgConnection,
    conditions: impl Fn(&mut FilterBuilder<'_>),
    order: Order,
    request: &PageRequest,
) -> Result<Page<T>, Error>
where
    T: ListRow + for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    let entries = page(&mut *conn, &conditions, order, request).await?;
    let length = entries.positions.len();
    let total = match request.start {
        // For the last page by number, the total follows from its end. Most lists are short and need no count.
        PageStart::Offset(offset) if !entries.has_next && (offset == 0 || length > 0) => {
            offset.saturating_add_unsigned(length as u64)
        }
        _ => {
            let mut count = QueryBuilder::new(format!("SELECT count(*) FROM {} WHERE true", T::TABLE.name));
            conditions(&mut FilterBuilder(&mut count));
            count.build_query_scalar().fetch_one(conn).await?
        }
    };
    Ok(Page { entries, total })
}

/// As [`fetch`], without the total.
pub async fn page<T>(
    conn: &mut PgConnection,
    conditions: impl Fn(&mut FilterBuilder<'_>),
    order: Order,
    request: &PageRequest,
) -> Result<Entries<T>, Error>
where
    T: ListRow + for<'r> FromRow<'r, PgRow>,
{
    let Table { name, columns, id, large } = T::TABLE;
    // A page before a position is read backwards and then reversed.
    let is_backward = matches!(request.start, PageStart::Before(_));
    let is_rising = order.ascending != is_backward;
    let direction = |is_rising: bool| if is_rising { "ASC" } else { "DESC" };
    let (shown, read) = (direction(order.ascending), direction(is_rising));
    // `pg_column_size` returns the stored size without reading the value.
    let sizes: Vec<_> = large.iter().map(|column| format!(" + coalesce(pg_column_size({column}), 0)")).collect();
    let sizes = sizes.concat();
    let value = order.column;
    let mut page = QueryBuilder::new(format!(
        "SELECT page.entry_value, page.entry_id, page.entry_bytes, page.entry_is_small, small.*
         FROM (
             SELECT *, 0{sizes} AS entry_bytes,
                 sum(0{sizes}) OVER (ORDER BY entry_value {shown}, entry_id {shown}) <= {SMALL_BYTES} AS entry_is_small
             FROM (SELECT {columns}, {value} AS entry_value, {id} AS entry_id FROM {name} WHERE true"
    ));
    conditions(&mut FilterBuilder(&mut page));
    let offset = match &request.start {
        PageStart::Offset(offset) => *offset,
        PageStart::After(position) | PageStart::Before(position) => {
            push_beyond(&mut page, order, is_rising, id, position);
            0
        }
    };
    page.push(format!(" ORDER BY {value} {read}, {id} {read} LIMIT "));
    // One additional row shows whether the list continues.
    page.push_bind(request.size.saturating_add(1)).push(" OFFSET ").push_bind(offset);
    page.push(format!(
        ") AS page
         ) AS page LEFT JOIN LATERAL (SELECT page.*) AS small ON page.entry_is_small
         ORDER BY page.entry_value {shown}, page.entry_id {shown}"
    ));
    let mut found = page.build().fetch_all(&mut *conn).await?;
    let size = usize::try_from(request.size).unwrap_or(usize::MAX);
    let goes_on = found.len() > size;
    if goes_on {
        found.remove(if is_backward { 0 } else { size });
    }
    let (has_previous, has_next) = match request.start {
        PageStart::Offset(offset) => (offset > 0, goes_on),
        PageStart::After(_) => (true, goes_on),
        PageStart::Before(_) => (goes_on, true),
    };
    let mut entries =
        Entries { positions: Vec::new(), rows: Vec::new(), rest: VecDeque::new(), has_previous, has_next };
    // Bytes of the last batch in `rest`.
    let mut bytes = i64::MAX;
    for row in &found {
        let position = Position { value: SortValue::of(row, 0)?, id: EntryId::of(row, 1)? };
        if row.try_get(3)? {
            entries.rows.push(T::from_row(row)?);
        } else {
            let size = i64::from(row.try_get::<i32, _>(2)?);
            bytes = bytes.saturating_add(size);
            match entries.rest.back_mut() {
                Some(ids) if bytes <= SMALL_BYTES => ids.push(position.id.clone()),
                _ => {
                    entries.rest.push_back(vec![position.id.clone()]);
                    bytes = size;
                }
            }
        }
        entries.positions.push(position);
    }
    Ok(entries)
}

/// Reads the entries of these ids in their order; deleted ones are omitted.
pub async fn read<T>(conn: &mut PgConnection, ids: &[EntryId]) -> Result<Vec<T>, Error>
where
    T: ListRow + for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    let Table { name, columns, id, .. } = T::TABLE;
    let sql = format!("SELECT {columns} FROM {name} WHERE {id} = ANY($1) ORDER BY array_position($1, {id})");
    // All ids are of the same type.
    let (mut uuids, mut texts) = (Vec::new(), Vec::new());
    for id in ids {
        match id {
            EntryId::Uuid(id) => uuids.push(*id),
            EntryId::Text(id) => texts.push(id.as_str()),
        }
    }
    let query = sqlx::query_as(AssertSqlSafe(sql));
    let query = if texts.is_empty() { query.bind(uuids) } else { query.bind(texts) };
    Ok(query.fetch_all(conn).await?)
}

/// Entries beyond the position in the direction of reading. For a column that is never null, an index serves the row
/// comparison. A null is not comparable and is placed explicitly.
fn push_beyond(
    query: &mut QueryBuilder<Postgres>,
    Order { column, nullable, .. }: Order,
    is_rising: bool,
    id: &str,
    position: &Position,
) {
    let sign = if is_rising { ">" } else { "<" };
    if position.value == SortValue::Absent {
        // Ascending, nulls come last; descending, they come first.
        query.push(format!(" AND ({column} IS NULL AND {id} {sign} "));
        push_id(query, &position.id);
        query.push(if is_rising { ")".to_owned() } else { format!(" OR {column} IS NOT NULL)") });
        return;
    }
    query.push(format!(" AND (({column}, {id}) {sign} ("));
    match &position.value {
        SortValue::Absent => {}
        SortValue::Instant(instant) => drop(query.push_bind(*instant)),
        SortValue::Text(text) => drop(query.push_bind(text.clone())),
        SortValue::Integer(integer) => drop(query.push_bind(*integer)),
    }
    query.push(", ");
    push_id(query, &position.id);
    query.push(if nullable && is_rising { format!(") OR {column} IS NULL)") } else { "))".to_owned() });
}

fn push_id(query: &mut QueryBuilder<Postgres>, id: &EntryId) {
    match id {
        EntryId::Uuid(id) => query.push_bind(*id),
        EntryId::Text(id) => query.push_bind(id.clone()),
    };
}

impl SortValue {
    fn of(row: &PgRow, column: usize) -> Result<Self, sqlx::Error> {
        let instant = || row.try_get(column).map(|at: Option<NaiveDateTime>| at.map(Self::Instant));
        let utc = || row.try_get(column).map(|at: Option<DateTime<Utc>>| at.map(|at| Self::Instant(at.naive_utc())));
        let text = || row.try_get(column).map(|text: Option<String>| text.map(Self::Text));
        let integer = || row.try_get(column).map(|number: Option<i32>| number.map(Self::Integer));
        let value = instant().or_else(|_| utc()).or_else(|_| text()).or_else(|_| integer())?;
        Ok(value.unwrap_or(Self::Absent))
    }
}

impl EntryId {
    /// The id, if it is of that type.
    #[must_use]
    pub fn uuid(&self) -> Option<Uuid> {
        if let Self::Uuid(id) = self { Some(*id) } else { None }
    }

    fn of(row: &PgRow, column: usize) -> Result<Self, sqlx::Error> {
        row.try_get(column).map(Self::Uuid).or_else(|_| row.try_get(column).map(Self::Text))
    }
}
