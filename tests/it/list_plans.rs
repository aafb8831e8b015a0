//! List of runs at the database: each filter in each order finds the right runs, and a page reads only as much as it shows,
//! for any number of runs. The server counts the rows that are read, so that no clock is needed.

use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use uuid::Uuid;
use workflow_api::{
    access::OrganizationId,
    db::{
        list::{EntryId, Page, PageRequest, PageStart, Position},
        migrations::MIGRATOR,
        run_counts,
        runs::{Filter, RunRow, Sort, list},
    },
    timestamp::Timestamp,
};

use crate::service::own_pool;

/// Triggers of which one has started half of the runs, and the other a few.
const OFTEN: Uuid = Uuid::from_u128(1);
const SELDOM: Uuid = Uuid::from_u128(2);

/// A filter, the same as SQL, and whether its total is maintained.
type FilterCase = (fn(&mut Filter), &'static str, bool);

const FILTERS: [FilterCase; 30] = [
    (|_| {}, "true", true),
    (|f| f.statuses = texts(&["FAILED"]), "status = 'FAILED'", true),
    (
        |f| f.statuses = texts(&["PENDING", "RUNNING", "COMPLETED"]),
        "status IN ('PENDING', 'RUNNING', 'COMPLETED')",
        true,
    ),
    (|f| f.statuses = texts(&["ODD"]), "status = 'ODD'", true),
    (|f| f.statuses = texts(&["NONE"]), "false", true),
    (|f| f.workflow_id = Some("w0".to_owned()), "workflow_id = 'w0'", true),
    (|f| f.workflow_id = Some("none".to_owned()), "false", true),
    (
        |f| (f.workflow_id, f.statuses) = (Some("w0".to_owned()), texts(&["FAILED"])),
        "workflow_id = 'w0' AND status = 'FAILED'",
        true,
    ),
    (
        |f| (f.workflow_id, f.statuses) = (Some("w1".to_owned()), texts(&["CANCELLED", "RUNNING"])),
        "workflow_id = 'w1' AND status IN ('CANCELLED', 'RUNNING')",
        true,
    ),
    (|f| f.name = Some("flow-2".to_owned()), "workflow_name = 'flow-2'", true),
    (|f| f.name = Some("none".to_owned()), "false", true),
    (|f| f.name_prefix = Some("flow".to_owned()), "workflow_name LIKE 'flow%'", true),
    (|f| f.name_prefix = Some("%".to_owned()), "false", true),
    (
        |f| (f.name_prefix, f.statuses) = (Some("flow-".to_owned()), texts(&["COMPLETED", "FAILED"])),
        "workflow_name LIKE 'flow-%' AND status IN ('COMPLETED', 'FAILED')",
        true,
    ),
    (|f| f.triggered_by = Some("ann".to_owned()), "triggered_by = 'ann'", false),
    (|f| f.triggered_by = Some("nobody".to_owned()), "false", false),
    (
        |f| (f.triggered_by, f.workflow_id) = (Some("ann".to_owned()), Some("w1".to_owned())),
        "triggered_by = 'ann' AND workflow_id = 'w1'",
        false,
    ),
    (|f| f.workflow_definition_id = Some("w0".to_owned()), "workflow_definition_id = 'w0'", false),
    (|f| f.parent_run_id = Some("parent".to_owned()), "parent_run_id = 'parent'", false),
    (|f| f.trigger_id = Some(OFTEN), "trigger_id = '00000000-0000-0000-0000-000000000001'", false),
    (|f| f.trigger_id = Some(SELDOM), "trigger_id = '00000000-0000-0000-0000-000000000002'", false),
    (
        |f| (f.trigger_id, f.statuses) = (Some(OFTEN), texts(&["FAILED"])),
        "trigger_id = '00000000-0000-0000-0000-000000000001' AND status = 'FAILED'",
        false,
    ),
    (|f| f.context = Some("talk".to_owned()), "context_id = 'talk'", false),
    (
        |f| (f.context, f.name) = (Some("talk".to_owned()), Some("flow-1".to_owned())),
        "context_id = 'talk' AND workflow_name = 'flow-1'",
        false,
    ),
    (|f| f.context = Some("none".to_owned()), "false", false),
    (|f| f.is_waiting = Some(true), "false", false),
    (|f| f.is_waiting = Some(false), "true", false),
    (|f| f.is_paused = Some(true), "false", false),
    (|f| f.is_paused = Some(false), "true", false),
    (|f| f.created = (None, Some(noon())), "created_at <= timestamp '2026-01-01 12:00'", false),
];

const SORTS: [(Sort, &str); 4] = [
    (Sort::CreatedAt, "created_at DIR, run_id DIR"),
    (Sort::UpdatedAt, "updated_at DIR, run_id DIR"),
    (Sort::CompletedAt, "(completed_at IS NULL) DIR, coalesce(completed_at, created_at) DIR, run_id DIR"),
    (Sort::Status, "status COLLATE \"C\" DIR, created_at DIR, run_id DIR"),
];

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn noon() -> Timestamp {
    Timestamp::from(chrono::DateTime::parse_from_rfc3339("2026-01-01T12:00:00Z").expect("an instant").to_utc())
}

fn filter((set, ..): FilterCase, sort: Sort, ascending: bool) -> Filter {
    let mut filter = Filter {
        organization: OrganizationId::stored("default"),
        statuses: Vec::new(),
        workflow_id: None,
        workflow_definition_id: None,
        name: None,
        name_prefix: None,
        trigger_id: None,
        parent_run_id: None,
        triggered_by: None,
        context: None,
        is_waiting: None,
        is_paused: None,
        created: (None, None),
        updated: (None, None),
        sort,
        ascending,
    };
    set(&mut filter);
    filter
}

/// Inserts that many runs of five workflows, in all statuses, with few different times, of two organisations.
async fn insert_runs(pool: &PgPool, count: i64) {
    sqlx::query(
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, workflow_definition_id, status, triggered_by,
             created_at, updated_at, completed_at, parent_run_id, organization_id, context_id, trigger_id)
         SELECT 'run-' || md5(i::text), 'w' || i % 5, 'flow-' || i % 5,
             CASE i % 10 WHEN 5 THEN 'other' WHEN 7 THEN 'w0' WHEN 3 THEN NULL ELSE 'w' || i % 5 END, status,
             CASE WHEN i % 3 = 0 THEN 'ann' WHEN i % 3 = 1 THEN 'bob' END,
             timestamp '2026-01-01' + i / 3 * interval '86400 s' / ($1 / 3),
             timestamp '2026-01-02' + i * 7 % $1 / 2 * interval '1 s',
             -- Some of it is as only other programs write it.
             CASE WHEN (status IN ('COMPLETED', 'FAILED') AND (i % 50 > 0 OR $1 > 1000)) OR i % 40 = 3
                 THEN timestamp '2026-01-03' + i * 11 % $1 / 2 * interval '1 s' END,
             CASE WHEN i < 30 THEN 'parent' END, CASE i % 20 WHEN 19 THEN 'other' ELSE 'default' END,
             CASE i % 12 WHEN 0 THEN 'talk' END,
             CASE WHEN i % 2 = 1 THEN uuid '00000000-0000-0000-0000-000000000001'
                 WHEN i < 40 THEN uuid '00000000-0000-0000-0000-000000000002' END
         FROM (SELECT i, (ARRAY['COMPLETED', 'FAILED', 'CANCELLED', 'RUNNING', 'PENDING', 'ODD'])
             [CASE WHEN i % 17 < 12 THEN 1 ELSE i % 17 - 10 END] AS status FROM generate_series(0, $1 - 1) AS i) AS run",
    )
    .bind(count)
    .execute(pool)
    .await
    .expect("runs");
    sqlx::query("ANALYZE").execute(pool).await.expect("statistics");
}

async fn read(conn: &mut PgConnection, filter: &Filter, start: PageStart, size: i64) -> Page<RunRow> {
    list(conn, filter, &PageRequest { start, size }).await.expect("a page")
}

fn ids(page: &Page<RunRow>) -> Vec<String> {
    let id = |position: &Position| match &position.id {
        EntryId::Text(id) => id.clone(),
        EntryId::Uuid(id) => panic!("{id} is no run"),
    };
    let ids: Vec<String> = page.entries.positions.iter().map(id).collect();
    assert_eq!(page.entries.rows.iter().map(|row| row.run_id.clone()).collect::<Vec<_>>(), ids);
    ids
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_filter_in_every_order_lists_what_sql_finds_whichever_way_it_is_paged(pool: PgPool) {
    insert_runs(&pool, 340).await;
    let mut conn = pool.acquire().await.expect("a connection");
    for case in FILTERS {
        for (sort, order) in SORTS {
            for ascending in [true, false] {
                let order = order.replace("DIR", if ascending { "ASC" } else { "DESC" });
                let sql = format!(
                    "SELECT run_id FROM workflow_runs WHERE organization_id = 'default' AND {} ORDER BY {order}",
                    case.1
                );
                let expected: Vec<String> =
                    sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_all(&mut *conn).await.expect(&sql);
                let filter = filter(case, sort, ascending);
                let size = 37;
                let mut start = PageStart::Offset(0);
                let (mut forward, mut last) = (Vec::new(), None);
                loop {
                    let page = read(&mut conn, &filter, start, size).await;
                    let found = ids(&page);
                    let by_number =
                        read(&mut conn, &filter, PageStart::Offset(i64::try_from(forward.len()).expect("few")), size)
                            .await;
                    assert_eq!(ids(&by_number), found, "by number: {sql}");
                    if by_number.entries.positions.is_empty() && !forward.is_empty() {
                        assert!(page.entries.next.is_none());
                    }
                    assert_eq!(
                        (page.total.count, page.total.is_exact),
                        (i64::try_from(expected.len()).expect("few"), true),
                        "{sql}"
                    );
                    forward.extend(found);
                    last = page.entries.positions.last().cloned().or(last);
                    let Some(next) = page.entries.next else { break };
                    start = PageStart::After(next);
                    assert!(forward.len() <= expected.len(), "{sql}");
                }
                assert_eq!(forward, expected, "forward: {sql}");
                let mut backward: Vec<String> = expected.last().into_iter().cloned().collect();
                let mut position = last;
                while let Some(before) = position {
                    let page = read(&mut conn, &filter, PageStart::Before(before), size).await;
                    backward.extend(ids(&page).into_iter().rev());
                    position = page.entries.previous;
                }
                backward.reverse();
                assert_eq!(backward, expected, "backward: {sql}");
            }
        }
    }
}

/// Index entries and rows of the table of runs that the current transaction has read, and rows that it has read without
/// an index.
async fn reads(conn: &mut PgConnection) -> (i64, i64) {
    sqlx::query_as(
        "SELECT coalesce(sum(pg_stat_get_xact_tuples_returned(indexrelid)), 0)::bigint,
             pg_stat_get_xact_tuples_returned('workflow_runs'::regclass)
         FROM pg_index WHERE indrelid = 'workflow_runs'::regclass",
    )
    .fetch_one(conn)
    .await
    .expect("statistics")
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_page_reads_as_much_as_it_shows_of_each_group_and_counts_no_further_than_pages_by_number_go(pool: PgPool) {
    insert_runs(&pool, 40_000).await;
    run_counts::fold(&own_pool(&pool), 1_000_000).await.expect("folded");
    sqlx::query("VACUUM (ANALYZE)").execute(&pool).await.expect("vacuum");
    let mut conn = pool.acquire().await.expect("a connection");
    // The table is still so small that reading all of it can be the cheapest way to count to 10 000.
    sqlx::query("SET enable_seqscan = off").execute(&mut *conn).await.expect("a setting");
    for case in FILTERS {
        for (sort, order) in SORTS {
            for ascending in [true, false] {
                let filter = filter(case, sort, ascending);
                let first = read(&mut conn, &filter, PageStart::Offset(0), 20).await;
                let mut starts = vec![PageStart::Offset(0)];
                if let Some(next) = &first.entries.next {
                    starts.extend([PageStart::After(next.clone()), PageStart::Before(next.clone())]);
                }
                for start in starts {
                    let about = format!("{} by {order}, ascending {ascending}: {start:?}", case.1);
                    let mut transaction = sqlx::Connection::begin(&mut *conn).await.expect("a transaction");
                    let before = reads(&mut transaction).await;
                    let page = read(&mut transaction, &filter, start, 20).await;
                    let after = reads(&mut transaction).await;
                    transaction.rollback().await.expect("the end");
                    // Of 30 groups, a page and one more each; and with room for another index.
                    let mut most = 2 * 30 * 21;
                    if !case.2 {
                        // For the count, and for entries that do not match.
                        most += 2 * 10_001 + 6 * 10_000;
                    }
                    assert!(after.0 - before.0 <= most, "{} entries: {about}", after.0 - before.0);
                    assert_eq!(after.1, before.1, "without an index: {about}");
                    assert!(page.total.is_exact || !case.2, "{about}");
                }
            }
        }
    }
}
