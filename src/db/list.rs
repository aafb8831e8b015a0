//! Lists: a page by its number or from a position, and how many entries there are in all.
//!
//! A position is the sort value and the id of an entry (keyset): what is inserted or deleted before it moves nothing,
//! and the index finds it at once, however deep it is. Every order ends with the id, so that it is total.

use chrono::NaiveDateTime;
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder, postgres::PgRow};
use uuid::Uuid;

use super::Error;
use crate::{access::OrganizationId, timestamp::Timestamp};

/// What a list is ordered by; then by id in the same direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// A column of the table.
    pub column: &'static str,
    /// Absent values come first when descending and last when ascending, as PostgreSQL has it.
    pub nullable: bool,
    /// Not descending.
    pub ascending: bool,
}

/// The sort value of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "a variant a column type")]
pub enum SortValue {
    Absent,
    Instant(NaiveDateTime),
    Text(String),
    Integer(i32),
}

/// The id of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "a variant a column type")]
pub enum EntryId {
    Uuid(Uuid),
    Text(String),
}

/// A place in a list, whether or not the entry is still there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "said by the types")]
pub struct Position {
    pub value: SortValue,
    pub id: EntryId,
}

/// Where a page begins.
#[derive(Clone, Debug)]
pub enum Start {
    /// After so many entries.
    Offset(i64),
    /// With the entry that follows.
    After(Position),
    /// So that it ends with the entry before.
    Before(Position),
}

/// The part of a list that is asked for.
#[derive(Clone, Debug)]
pub struct Cut {
    /// Where it begins.
    pub start: Start,
    /// Entries at most.
    pub size: i64,
}

/// The part of a list that was found.
#[derive(Debug)]
pub struct Part<T> {
    /// The entries.
    pub rows: Vec<T>,
    /// How many there are in the whole list.
    pub total: i64,
    /// There are entries before these.
    pub has_previous: bool,
    /// There are entries after these.
    pub has_next: bool,
}

/// A row that a list can be made of.
pub trait Listed {
    /// Name and type of the id.
    const TABLE: Table;

    /// Where the row stands when the list is ordered by that column.
    fn position(&self, column: &str) -> Position;
}

/// A table that a list is made of.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "said by the types")]
pub struct Table {
    pub name: &'static str,
    pub columns: &'static str,
    pub id: &'static str,
}

/// A `WHERE` clause that grows.
pub struct Narrow<'q>(pub &'q mut QueryBuilder<Postgres>);

impl Narrow<'_> {
    /// Of that organisation.
    pub fn organization(&mut self, organization: &OrganizationId) {
        self.equal("organization_id", Some(organization.as_str()));
    }

    /// One of these texts, if any are given.
    pub fn one_of(&mut self, column: &str, texts: &[String]) {
        match texts {
            [] => {}
            [text] => self.equal(column, Some(text)),
            _ => drop(self.0.push(format!(" AND {column} = ANY(")).push_bind(texts.to_vec()).push(")")),
        }
    }

    /// Exactly this text.
    pub fn equal(&mut self, column: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.0.push(format!(" AND {column} = ")).push_bind(text.to_owned());
        }
    }

    /// Exactly this id.
    pub fn uuid(&mut self, column: &str, id: Option<Uuid>) {
        if let Some(id) = id {
            self.0.push(format!(" AND {column} = ")).push_bind(id);
        }
    }

    /// Begins with this text.
    pub fn prefix(&mut self, column: &str, prefix: Option<&str>) {
        if let Some(prefix) = prefix {
            let mut pattern = prefix.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
            pattern.push('%');
            self.0.push(format!(" AND {column} LIKE ")).push_bind(pattern);
        }
    }

    /// Between the two, which are included.
    pub fn between(&mut self, column: &str, (after, before): (Option<Timestamp>, Option<Timestamp>)) {
        if let Some(after) = after {
            self.0.push(format!(" AND {column} >= ")).push_bind(after);
        }
        if let Some(before) = before {
            self.0.push(format!(" AND {column} <= ")).push_bind(before);
        }
    }
}

/// A page, without knowing how many entries there are in all.
#[derive(Debug)]
#[expect(missing_docs, reason = "as those of [`Part`]")]
pub struct Rows<T> {
    pub rows: Vec<T>,
    pub has_previous: bool,
    pub has_next: bool,
}

/// Reads a part of the list that `narrow` leaves.
pub async fn fetch<T>(
    conn: &mut PgConnection,
    narrow: impl Fn(&mut Narrow<'_>),
    order: Order,
    cut: &Cut,
) -> Result<Part<T>, Error>
where
    T: Listed + for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    let Rows { rows, has_previous, has_next } = page(&mut *conn, &narrow, order, cut).await?;
    let total = match cut.start {
        // The last page by number, so that what it shows is the end: most lists are short, and need no counting.
        Start::Offset(offset) if !has_next && (offset == 0 || !rows.is_empty()) => {
            offset.saturating_add_unsigned(rows.len() as u64)
        }
        _ => {
            let mut count = QueryBuilder::new(format!("SELECT count(*) FROM {} WHERE true", T::TABLE.name));
            narrow(&mut Narrow(&mut count));
            count.build_query_scalar().fetch_one(conn).await?
        }
    };
    Ok(Part { rows, total, has_previous, has_next })
}

/// As [`fetch`], without counting.
pub async fn page<T>(
    conn: &mut PgConnection,
    narrow: impl Fn(&mut Narrow<'_>),
    order: Order,
    cut: &Cut,
) -> Result<Rows<T>, Error>
where
    T: Listed + for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    let Table { name, columns, id } = T::TABLE;
    // A page before a position is read backwards and turned round.
    let is_backward = matches!(cut.start, Start::Before(_));
    let is_rising = order.ascending != is_backward;
    let mut page = QueryBuilder::new(format!("SELECT {columns} FROM {name} WHERE true"));
    narrow(&mut Narrow(&mut page));
    let offset = match &cut.start {
        Start::Offset(offset) => *offset,
        Start::After(position) | Start::Before(position) => {
            push_beyond(&mut page, order, is_rising, id, position);
            0
        }
    };
    let direction = if is_rising { "ASC" } else { "DESC" };
    page.push(format!(" ORDER BY {} {direction}, {id} {direction} LIMIT ", order.column));
    // One more than asked for tells whether the list goes on.
    page.push_bind(cut.size.saturating_add(1)).push(" OFFSET ").push_bind(offset);
    let mut rows: Vec<T> = page.build_query_as().fetch_all(&mut *conn).await?;
    let size = usize::try_from(cut.size).unwrap_or(usize::MAX);
    let goes_on = rows.len() > size;
    rows.truncate(size);
    if is_backward {
        rows.reverse();
    }
    let (has_previous, has_next) = match cut.start {
        Start::Offset(offset) => (offset > 0, goes_on),
        Start::After(_) => (true, goes_on),
        Start::Before(_) => (goes_on, true),
    };
    Ok(Rows { rows, has_previous, has_next })
}

/// The entries beyond the position in the direction of reading. For a column that is never null the row comparison
/// is one that an index serves; a null compares with nothing and is put in its place by hand.
fn push_beyond(
    query: &mut QueryBuilder<Postgres>,
    Order { column, nullable, .. }: Order,
    is_rising: bool,
    id: &str,
    position: &Position,
) {
    let sign = if is_rising { ">" } else { "<" };
    if position.value == SortValue::Absent {
        // Reading upwards the nulls are the end, downwards they are the beginning.
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

impl From<Timestamp> for SortValue {
    fn from(instant: Timestamp) -> Self {
        Self::Instant(instant.naive())
    }
}

impl From<Option<Timestamp>> for SortValue {
    fn from(instant: Option<Timestamp>) -> Self {
        instant.map_or(Self::Absent, Self::from)
    }
}
