//! Statements that read pages and count entries.

use std::collections::VecDeque;

use sqlx::{AssertSqlSafe, FromRow, PgConnection, Postgres, QueryBuilder, Row as _, postgres::PgRow};

use super::{
    Conditions, Entries, EntryId, Groups, ListRow, MAX_PAGE_DEPTH, MAX_SCANNED, PageRequest, PageStart, Plan, Position,
    Range, Segment, SortValue, Table, Total,
};
use crate::db::Error;

/// Maximum stored bytes of several entries that are read at a time. PostgreSQL compresses JSON to as little as a
/// hundredth of its length.
const SMALL_BYTES: i64 = 64 << 10;
/// Entries that are read of each group even if many groups share [`MAX_SCANNED`].
const MIN_SCANNED: i64 = 100;

/// Entry of a page.
struct Found {
    row: PgRow,
    position: Position,
}

/// As [`super::fetch`], without the total.
pub async fn page<T>(conn: &mut PgConnection, plan: &Plan, request: &PageRequest) -> Result<Entries<T>, Error>
where
    T: ListRow + for<'r> FromRow<'r, PgRow>,
{
    let (mut offset, mut position) = match &request.start {
        PageStart::Offset(offset) => (*offset, None),
        PageStart::After(position) | PageStart::Before(position) => (0, Some(position)),
    };
    // A page before a position is read backwards and then reversed.
    let is_backward = matches!(request.start, PageStart::Before(_));
    let is_rising = plan.ascending != is_backward;
    let mut segments: Vec<&Segment> = plan.segments.iter().collect();
    if !is_rising {
        segments.reverse();
    }
    let mut found: Vec<Found> = Vec::new();
    // Position at which reading stopped before the end of the list.
    let mut end = None;
    for segment in segments {
        if let Some(behind) = position {
            let is_passed = if is_rising { segment.name < behind.segment } else { segment.name > behind.segment };
            if is_passed {
                continue;
            }
            if segment.name != behind.segment {
                position = None;
            }
        }
        // One additional entry shows whether the list continues.
        let wanted = request.size.saturating_add(1) - i64::try_from(found.len()).unwrap_or(i64::MAX);
        let reading = Reading { table: T::TABLE, segment, is_rising, position: position.take(), wanted, offset };
        let before = found.len();
        for row in reading.rows(&mut *conn, plan.ascending).await? {
            let (is_entry, is_end): (bool, bool) = (row.try_get(2)?, row.try_get(3)?);
            let value = SortValue::of(&row, 0)?;
            let position = Position { segment: segment.name.clone(), value, id: EntryId::of(&row, 1)? };
            end = is_end.then(|| position.clone());
            if is_entry {
                found.push(Found { row, position });
            }
            if is_end {
                break;
            }
        }
        if end.is_some() || found.len() > before && i64::try_from(found.len()).is_ok_and(|length| length > request.size)
        {
            break;
        }
        if found.len() > before {
            offset = 0;
        } else if offset > 0 && plan.segments.len() > 1 {
            offset -= count_ranges::<T>(&mut *conn, [segment], is_rising, offset).await?.count.min(offset);
        }
    }
    let size = usize::try_from(request.size).unwrap_or(usize::MAX);
    if found.len() > size {
        found.truncate(size);
        end = found.last().map(|last| last.position.clone());
    }
    if is_backward {
        found.reverse();
    }
    let first = found.first().map(|first| first.position.clone());
    let last = found.last().map(|last| last.position.clone());
    let (previous, next) = match request.start {
        PageStart::Offset(offset) => (first.filter(|_| offset > 0), end),
        PageStart::After(_) => (first, end),
        PageStart::Before(_) => (end, last),
    };
    let mut entries = Entries { positions: Vec::new(), rows: Vec::new(), rest: VecDeque::new(), previous, next };
    // Bytes of the last batch in `rest`.
    let mut bytes = i64::MAX;
    for Found { row, position } in found {
        if entries.rest.is_empty() && row.try_get(5)? {
            entries.rows.push(T::from_row(&row)?);
        } else {
            let size = i64::from(row.try_get::<i32, _>(4)?);
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

/// Counts a list up to [`MAX_PAGE_DEPTH`].
pub(super) async fn count<T: ListRow>(conn: &mut PgConnection, plan: &Plan) -> Result<Total, Error> {
    count_ranges::<T>(conn, &plan.segments, plan.ascending, MAX_PAGE_DEPTH).await
}

/// Whether at most [`MAX_SCANNED`] entries fulfil these conditions, which an index must serve.
pub async fn are_few<T: ListRow>(conn: &mut PgConnection, conditions: &Conditions) -> Result<bool, Error> {
    let name = T::TABLE.name;
    let mut query = QueryBuilder::new(format!("SELECT count(*) <= {MAX_SCANNED} FROM (SELECT FROM {name} WHERE "));
    conditions.push(&mut query);
    query.push(format!(" LIMIT {}) AS entry", MAX_SCANNED + 1));
    Ok(query.build_query_scalar().fetch_one(conn).await?)
}

/// Counts the entries of these segments, up to `most`.
async fn count_ranges<T: ListRow>(
    conn: &mut PgConnection,
    segments: impl IntoIterator<Item = &Segment>,
    is_rising: bool,
    most: i64,
) -> Result<Total, Error> {
    let mut query = QueryBuilder::new(format!(
        "SELECT least(count(*) FILTER (WHERE entry_matches), {most}),
             count(*) FILTER (WHERE entry_matches) <= {most} AND bool_or(entry_is_end) IS NOT TRUE
         FROM (SELECT * FROM ("
    ));
    let mut separator = "";
    for segment in segments {
        let reading = Reading { table: T::TABLE, segment, is_rising, position: None, wanted: most + 1, offset: 0 };
        for range in &segment.ranges {
            query.push(separator);
            reading.push_range(&mut query, range);
            separator = " UNION ALL ";
        }
    }
    if separator.is_empty() {
        return Ok(Total::exact(0));
    }
    query.push(format!(") AS entry LIMIT {}) AS entry", most + 1));
    let (count, is_exact) = query.build_query_as().fetch_one(conn).await?;
    Ok(Total { count, is_exact })
}

/// One read of a segment.
struct Reading<'a> {
    table: Table,
    segment: &'a Segment,
    is_rising: bool,
    /// Only entries beyond this position are read.
    position: Option<&'a Position>,
    /// Maximum number of entries.
    wanted: i64,
    /// Number of entries that are skipped.
    offset: i64,
}

fn direction(is_rising: bool) -> &'static str {
    if is_rising { "ASC" } else { "DESC" }
}

impl Reading<'_> {
    /// Rows in the order of reading. Columns: sort value, id, whether it is an entry of the list, whether reading stopped
    /// at it, size, whether it is small together with those shown before it, and if so the columns of the table.
    async fn rows(&self, conn: &mut PgConnection, ascending: bool) -> Result<Vec<PgRow>, Error> {
        let Table { name, columns, id, is_found_by_value, large } = self.table;
        let (shown, read, value) = (direction(ascending), direction(self.is_rising), self.segment.column);
        // `pg_column_size` returns the stored size without reading the value.
        let sizes: Vec<_> = large.iter().map(|column| format!(" + coalesce(pg_column_size({column}), 0)")).collect();
        let sizes = sizes.concat();
        let mut query = QueryBuilder::new(format!(
            "SELECT page.entry_value, page.entry_id, page.entry_matches, page.entry_is_end, page.entry_bytes,
                 page.entry_is_small, small.*
             FROM (
                 SELECT entry.*, listed.*, sum(listed.entry_bytes) OVER
                     (ORDER BY entry.entry_value {shown}, entry.entry_id {shown}) <= {SMALL_BYTES} AS entry_is_small
                 FROM ("
        ));
        self.push(&mut query);
        // `OFFSET 0` makes the planner look up entries one by one.
        let by_value = if is_found_by_value { format!(" AND {value} = entry.entry_value") } else { String::new() };
        query.push(format!(
            ") AS entry CROSS JOIN LATERAL (
                     SELECT {columns}, 0{sizes} AS entry_bytes FROM {name} WHERE {id} = entry.entry_id{by_value} OFFSET 0
                 ) AS listed
             ) AS page LEFT JOIN LATERAL (SELECT page.*) AS small ON page.entry_is_small
             ORDER BY page.entry_value {read}, page.entry_id {read}"
        ));
        // Pages deep in a list are rare, and each has its own SQL text, so it is not cached.
        Ok(query.build().persistent(self.offset == 0).fetch_all(conn).await?)
    }

    /// Appends the query for sort values and ids. Limits are part of its text, so that a prepared statement is planned for
    /// them.
    fn push(&self, query: &mut QueryBuilder<Postgres>) {
        let Self { wanted, offset, .. } = self;
        let read = direction(self.is_rising);
        let is_checked = self.segment.ranges.iter().any(|range| !range.checked.is_empty());
        let skips = *offset > 0 && is_checked;
        let columns = "entry_value, entry_id, entry_matches, entry_is_end";
        if skips {
            query.push(format!(
                "SELECT entry_value, entry_id, entry_matches AND entry_nth > {offset} AS entry_matches, entry_is_end
                 FROM (SELECT *, count(*) FILTER (WHERE entry_matches)
                     OVER (ORDER BY entry_value {read}, entry_id {read}) AS entry_nth FROM ("
            ));
        } else {
            query.push(format!("SELECT {columns} FROM ("));
        }
        for (index, range) in self.segment.ranges.iter().enumerate() {
            if index > 0 {
                query.push(" UNION ALL ");
            }
            self.push_range(query, range);
        }
        query.push(") AS entry");
        if skips {
            query.push(format!(") AS entry WHERE entry_nth > {offset} OR entry_is_end"));
        }
        query.push(format!(" ORDER BY entry_value {read}, entry_id {read} LIMIT {wanted}"));
        if *offset > 0 && !skips {
            query.push(format!(" OFFSET {offset}"));
        }
    }

    /// Appends the query for the first entries of each group of a range.
    fn push_range(&self, query: &mut QueryBuilder<Postgres>, range: &Range) {
        let Range { source, few, groups, found, checked } = range;
        query.push("(");
        if let Some(groups) = groups {
            let columns = "entry.entry_value, entry.entry_id, entry.entry_matches, entry.entry_is_end";
            query.push(format!("SELECT {columns} FROM unnest("));
            for (index, values) in groups.values.iter().enumerate() {
                if index > 0 {
                    query.push(", ");
                }
                query.push_bind(values.clone()).push("::text[]");
            }
            query.push(format!(") AS given ({}) CROSS JOIN LATERAL (", groups.columns.join(", ")));
        }
        let Table { name, id, .. } = self.table;
        let (value, read) = (self.segment.column, direction(self.is_rising));
        let limit = self.wanted.saturating_add(self.offset);
        let order = format!("ORDER BY {value} {read}, {id} {read}");
        // The groups share the limit of entries; more are read only for pages deep in a list.
        let each = MAX_SCANNED / groups.as_ref().map_or(1, Groups::size);
        let most =
            each.max(self.wanted.min(MIN_SCANNED)).max(self.offset.min(each * 10) + self.wanted.min(MIN_SCANNED));
        if checked.is_empty() {
            query.push(format!(
                "SELECT {value} AS entry_value, {id} AS entry_id, true AS entry_matches, false AS entry_is_end"
            ));
        } else {
            query.push(format!(
                "SELECT entry_value, entry_id, entry_matches, entry_nth = {most} AS entry_is_end FROM (SELECT {value} AS entry_value, {id} AS entry_id, (",
            ));
            checked.push(query);
            query.push(format!(") IS TRUE AS entry_matches, row_number() OVER ({order}) AS entry_nth"));
        }
        if few.is_empty() {
            query.push(format!(" FROM {} WHERE ", source.unwrap_or(name)));
        } else {
            query.push(format!(" FROM (SELECT * FROM {name} WHERE "));
            few.push(query);
            query.push(format!(" OFFSET 0) AS {name} WHERE "));
        }
        found.push(query);
        for column in groups.iter().flat_map(|groups| groups.columns) {
            query.push(format!(" AND {column} = given.{column}"));
        }
        if let Some(position) = self.position {
            push_beyond(query, value, id, self.is_rising, position);
        }
        query.push(format!(" {order} LIMIT "));
        if checked.is_empty() {
            query.push(limit);
        } else {
            query.push(format!(
                "{most}) AS scanned WHERE entry_matches OR entry_nth = {most}
                 ORDER BY entry_value {read}, entry_id {read} LIMIT {limit}"
            ));
        }
        query.push(if groups.is_some() { ") AS entry)" } else { ")" });
    }
}

/// Entries beyond the position in the direction of reading: a row comparison, which an index serves.
fn push_beyond(query: &mut QueryBuilder<Postgres>, value: &str, id: &str, is_rising: bool, position: &Position) {
    query.push(format!(" AND ({value}, {id}) {} (", if is_rising { ">" } else { "<" }));
    match &position.value {
        SortValue::Instant(instant) => query.push_bind(*instant),
        SortValue::Text(text) => query.push_bind(text.clone()),
        SortValue::Integer(integer) => query.push_bind(*integer),
    };
    query.push(", ");
    match &position.id {
        EntryId::Uuid(id) => query.push_bind(*id),
        EntryId::Text(id) => query.push_bind(id.clone()),
    };
    query.push(")");
}
