//! Plan of a list: the ranges of indexes that it is read from, and their order.
//!
//! An index is in the order of the list only among entries with the same values of its first columns. A list over several
//! such values (for example three statuses) is merged from the first entries of each.

use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::Order;
use crate::{access::OrganizationId, timestamp::Timestamp};

/// Plan of a list.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Consecutive segments of the list in ascending order.
    pub segments: Vec<Segment>,
    /// Ascending instead of descending.
    pub ascending: bool,
}

/// Segment of a list, with its own order.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Name of the segment in positions; empty if it is the only one.
    pub name: String,
    /// Sort column; entries with the same value are ordered by id.
    pub column: &'static str,
    /// Ranges that the segment is merged from.
    pub ranges: Vec<Range>,
}

/// Range of one index. The entries of each group are in the order of the segment.
#[derive(Clone, Debug, Default)]
pub struct Range {
    /// SQL after `FROM`, if only a part of the table is read.
    pub source: Option<&'static str>,
    /// Conditions that so few entries fulfil that all of them are read, in any order.
    pub few: Conditions,
    /// Groups of the range; `None` if all entries are one group.
    pub groups: Option<Groups>,
    /// Conditions that the index serves.
    pub found: Conditions,
    /// Conditions that are checked for each entry.
    pub checked: Conditions,
}

/// Groups of entries: an index has the entries of a group next to each other.
#[derive(Clone, Debug)]
pub struct Groups {
    /// Columns whose values the entries of a group share.
    pub columns: &'static [&'static str],
    /// Values by column, one for each group.
    pub values: Vec<Vec<String>>,
}

impl Groups {
    /// Number of groups, at least one.
    pub(super) fn size(&self) -> i64 {
        self.values.first().map_or(1, |values| i64::try_from(values.len()).unwrap_or(i64::MAX)).max(1)
    }
}

/// Condition of a `WHERE` clause.
#[derive(Clone, Debug)]
enum Condition {
    Text(&'static str, String),
    OneOf(&'static str, Vec<String>),
    Prefix(&'static str, String),
    Uuid(&'static str, Uuid),
    Integer(&'static str, i32),
    AtLeast(&'static str, Timestamp),
    AtMost(&'static str, Timestamp),
    OfRun(String, OrganizationId),
    Holds(&'static str),
}

/// Conditions of a `WHERE` clause.
#[derive(Clone, Debug, Default)]
pub struct Conditions(Vec<Condition>);

impl Conditions {
    /// Filters by the organisation.
    #[must_use]
    pub fn organization(organization: &OrganizationId) -> Self {
        Self::default().equal("organization_id", Some(organization.as_str()))
    }

    /// Filters by a run of the organisation.
    #[must_use]
    pub fn of_run(organization: &OrganizationId, run_id: &str) -> Self {
        Self(vec![Condition::OfRun(run_id.to_owned(), organization.clone())])
    }

    fn and(mut self, condition: Option<Condition>) -> Self {
        self.0.extend(condition);
        self
    }

    /// Filters by one of these texts, if any are given.
    #[must_use]
    pub fn one_of(self, column: &'static str, texts: &[String]) -> Self {
        match texts {
            [] => self,
            [text] => self.equal(column, Some(text)),
            _ => self.and(Some(Condition::OneOf(column, texts.to_vec()))),
        }
    }

    /// Filters by exactly this text.
    #[must_use]
    pub fn equal(self, column: &'static str, text: Option<&str>) -> Self {
        self.and(text.map(|text| Condition::Text(column, text.to_owned())))
    }

    /// Filters by exactly this id.
    #[must_use]
    pub fn uuid(self, column: &'static str, id: Option<Uuid>) -> Self {
        self.and(id.map(|id| Condition::Uuid(column, id)))
    }

    /// Filters by exactly this number.
    #[must_use]
    pub fn integer(self, column: &'static str, number: Option<i32>) -> Self {
        self.and(number.map(|number| Condition::Integer(column, number)))
    }

    /// Filters by a prefix.
    #[must_use]
    pub fn prefix(self, column: &'static str, prefix: Option<&str>) -> Self {
        self.and(prefix.map(|prefix| Condition::Prefix(column, pattern(prefix))))
    }

    /// Filters by a range, both ends included.
    #[must_use]
    pub fn between(self, column: &'static str, (after, before): (Option<Timestamp>, Option<Timestamp>)) -> Self {
        self.and(after.map(|after| Condition::AtLeast(column, after)))
            .and(before.map(|before| Condition::AtMost(column, before)))
    }

    /// Filters by an SQL condition, which contains nothing from a caller.
    #[must_use]
    pub fn holds(self, sql: &'static str) -> Self {
        self.and(Some(Condition::Holds(sql)))
    }

    /// Adds all other conditions.
    #[must_use]
    pub fn with(mut self, other: &Self) -> Self {
        self.0.extend(other.0.iter().cloned());
        self
    }

    /// Splits the conditions into those on these columns and the others.
    #[must_use]
    pub fn split(self, columns: &[&str]) -> (Self, Self) {
        let (these, others) =
            self.0.into_iter().partition(|condition| condition.column().is_none_or(|column| columns.contains(&column)));
        (Self(these), Self(others))
    }

    /// Whether there is no condition.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends all conditions to the query, joined by `AND`.
    pub(super) fn push(&self, query: &mut QueryBuilder<Postgres>) {
        query.push("true");
        for condition in &self.0 {
            query.push(" AND ");
            condition.push(query);
        }
    }
}

/// Pattern for `LIKE` that matches the prefix.
#[must_use]
pub fn pattern(prefix: &str) -> String {
    prefix.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_") + "%"
}

impl Condition {
    fn column(&self) -> Option<&'static str> {
        match self {
            Self::Text(column, _)
            | Self::OneOf(column, _)
            | Self::Prefix(column, _)
            | Self::Uuid(column, _)
            | Self::Integer(column, _)
            | Self::AtLeast(column, _)
            | Self::AtMost(column, _) => Some(column),
            Self::OfRun(..) | Self::Holds(_) => None,
        }
    }

    fn push(&self, query: &mut QueryBuilder<Postgres>) {
        match self {
            Self::Text(column, text) => query.push(column).push(" = ").push_bind(text.clone()),
            Self::OneOf(column, texts) => query.push(column).push(" = ANY(").push_bind(texts.clone()).push(")"),
            Self::Prefix(column, pattern) => query.push(column).push(" LIKE ").push_bind(pattern.clone()),
            Self::Uuid(column, id) => query.push(column).push(" = ").push_bind(*id),
            Self::Integer(column, number) => query.push(column).push(" = ").push_bind(*number),
            Self::AtLeast(column, at) => query.push(column).push(" >= ").push_bind(*at),
            Self::AtMost(column, at) => query.push(column).push(" <= ").push_bind(*at),
            Self::OfRun(run_id, organization) => {
                query.push("run_id = (SELECT run_id FROM workflow_runs WHERE run_id = ").push_bind(run_id.clone());
                query.push(" AND organization_id = ").push_bind(organization.as_str().to_owned()).push(")")
            }
            Self::Holds(sql) => query.push(sql),
        };
    }
}

impl Plan {
    /// Plan of a list that is short or in the order of one index: the database evaluates all conditions.
    #[must_use]
    pub fn short(conditions: Conditions, order: Order) -> Self {
        Self::of(Range { found: conditions, ..Range::default() }, order)
    }

    /// Plan of a list that may be long. Its index has these columns, then the sort column; the other conditions are
    /// checked.
    #[must_use]
    pub fn long(conditions: Conditions, index: &[&str], order: Order) -> Self {
        let (found, checked) = conditions.split(&[index, &[order.column]].concat());
        Self::of(Range { found, checked, ..Range::default() }, order)
    }

    /// Plan of a list in which few entries fulfil the conditions `few`.
    #[must_use]
    pub fn few(few: Conditions, conditions: Conditions, order: Order) -> Self {
        Self::of(Range { few, found: conditions, ..Range::default() }, order)
    }

    fn of(range: Range, order: Order) -> Self {
        Self::merged(vec![range], order)
    }

    /// Plan of a list that is merged from these ranges.
    #[must_use]
    pub fn merged(ranges: Vec<Range>, order: Order) -> Self {
        let segment = Segment { name: String::new(), column: order.column, ranges };
        Self { segments: vec![segment], ascending: order.ascending }
    }

    /// Plan of an empty list.
    #[must_use]
    pub fn empty() -> Self {
        Self { segments: Vec::new(), ascending: true }
    }
}
