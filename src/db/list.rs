//! Pagination: a page by number or from a position, and the total number of entries.
//!
//! A position is the sort value and the id of an entry (keyset). Inserts and deletes before it shift nothing, and the
//! index finds it directly at any depth. Every order ends with the id, so that it is total.
//!
//! A page costs the same for a list of any length. Its order is that of an index (`db::list::plan`). For conditions that
//! no index serves, at most [`MAX_SCANNED`] entries are read. The page may then have fewer entries than requested, or none, but it
//! still has the position of the next page.

mod plan;
mod read;

use std::collections::VecDeque;

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection, Row as _, postgres::PgRow};
use uuid::Uuid;

pub use self::{
    plan::{Conditions, Groups, Plan, Range, Segment, pattern},
    read::{are_few, page, read},
};
use super::Error;

/// Maximum number of entries up to the end of a page by number. The database reads all of them for it. Totals are counted
/// up to this number too.
pub const MAX_PAGE_DEPTH: i64 = 10_000;
/// Maximum number of entries that are read for a page or a count if no index contains only the wanted ones.
pub const MAX_SCANNED: i64 = 10_000;

/// Sort order: a column, then the id in the same direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Column of the table, which is never null.
    pub column: &'static str,
    /// Ascending instead of descending.
    pub ascending: bool,
}

/// Sort value of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "a variant a column type")]
pub enum SortValue {
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
pub struct Position {
    /// Segment of the list; empty if the list has only one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub segment: String,
    /// Sort value of the entry in the order of the segment.
    pub value: SortValue,
    /// Id of the entry.
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
    pub total: Total,
}

/// Number of entries of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Total {
    /// Number of entries, or a lower bound of it.
    pub count: i64,
    /// Whether the number is exact.
    pub is_exact: bool,
}

impl Total {
    /// An exact number.
    #[must_use]
    pub const fn exact(count: i64) -> Self {
        Self { count, is_exact: true }
    }
}

/// Row type of a list.
pub trait ListRow {
    /// Table of the rows.
    const TABLE: Table;
}

/// Table that lists are read from.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// SQL after `FROM`.
    pub name: &'static str,
    /// Columns that are read.
    pub columns: &'static str,
    /// Column of the id. An entry is found by it; with the sort value, if `is_found_by_value`.
    pub id: &'static str,
    /// Whether the id alone does not find exactly one entry by an index.
    pub is_found_by_value: bool,
    /// Columns that may be large. Only with some must the id be unique.
    pub large: &'static [&'static str],
}

/// Entries of a page. Large ones are not read yet.
#[derive(Debug)]
pub struct Entries<T> {
    /// Positions of all entries, including those of `rest`.
    pub positions: Vec<Position>,
    /// First entries, as long as they are small together.
    pub rows: Vec<T>,
    /// Batches of ids of the other entries for [`read()`]: several that are small together, or one that is large.
    pub rest: VecDeque<Vec<EntryId>>,
    /// Position after the previous page; `None` if there is no previous page.
    pub previous: Option<Position>,
    /// Position before the next page; `None` if there is no next page.
    pub next: Option<Position>,
}

/// Reads a page of a list. The total is counted unless it is `known`.
pub async fn fetch<T>(
    conn: &mut PgConnection,
    plan: &Plan,
    request: &PageRequest,
    known: Option<i64>,
) -> Result<Page<T>, Error>
where
    T: ListRow + for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    let entries: Entries<T> = page(&mut *conn, plan, request).await?;
    let length = i64::try_from(entries.positions.len()).unwrap_or(i64::MAX);
    let seen = match request.start {
        PageStart::Offset(offset) if length > 0 => offset.saturating_add(length),
        _ => length,
    };
    // For the last page by number, the total follows from its end. Most lists are short and need no count.
    let is_end =
        matches!(request.start, PageStart::Offset(offset) if entries.next.is_none() && (offset == 0 || length > 0));
    let total = if is_end {
        Total::exact(seen)
    } else if let Some(count) = known {
        // The known total was read before the page, which may have new entries.
        Total::exact(count.max(seen))
    } else {
        let total = read::count::<T>(conn, plan).await?;
        Total { count: total.count.max(seen), ..total }
    };
    Ok(Page { entries, total })
}

impl SortValue {
    fn of(row: &PgRow, column: usize) -> Result<Self, sqlx::Error> {
        let instant = || row.try_get(column).map(|at: NaiveDateTime| Self::Instant(at));
        let utc = || row.try_get(column).map(|at: DateTime<Utc>| Self::Instant(at.naive_utc()));
        let text = || row.try_get(column).map(|text: String| Self::Text(text));
        let integer = || row.try_get(column).map(|number: i32| Self::Integer(number));
        instant().or_else(|_| utc()).or_else(|_| text()).or_else(|_| integer())
    }
}

impl EntryId {
    /// The id, if it is of that type.
    #[must_use]
    pub fn uuid(&self) -> Option<Uuid> {
        if let Self::Uuid(id) = self { Some(*id) } else { None }
    }

    /// The id, if it is a text.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        if let Self::Text(id) = self { Some(id.clone()) } else { None }
    }

    fn of(row: &PgRow, column: usize) -> Result<Self, sqlx::Error> {
        row.try_get(column).map(Self::Uuid).or_else(|_| row.try_get(column).map(Self::Text))
    }
}
