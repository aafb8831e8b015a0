//! Filters of lists: time, name, who triggered it, several statuses.

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{clock::Clock, db::migrations::MIGRATOR};

use crate::service::Service;

/// The values of one member of all items, in the order of the list.
fn column(page: &Value, member: &str) -> String {
    let items = page["items"].as_array().expect("items");
    items.iter().map(|item| item[member].as_str().expect("text")).collect::<Vec<_>>().join(" ")
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn runs_are_filtered_by_time_name_caller_and_statuses(pool: PgPool) {
    let service = Service::start(&pool);
    sqlx::query(
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, triggered_by, created_at, updated_at)
         VALUES ('a', 'w', 'daily', 'PENDING', 'ann', '2026-01-01 10:00', '2026-01-05 10:00'),
                ('b', 'w', 'daily_report', 'RUNNING', 'bob', '2026-01-02 10:00', '2026-01-04 10:00'),
                ('c', 'w', 'daily-report', 'FAILED', NULL, '2026-01-03 10:00', '2026-01-03 10:00'),
                ('d', 'w', 'DAILY', 'COMPLETED', 'ann', '2026-01-04 10:00', '2026-01-04 10:00')",
    )
    .execute(&pool)
    .await
    .expect("the runs");
    for (query, expected) in [
        ("status=PENDING", "a"),
        ("status=PENDING,FAILED", "a c"),
        ("status=PENDING,", "a"),
        ("status=", "a b c d"),
        ("status=,", "a b c d"),
        ("status=PENDING&status=", "a b c d"),
        ("name=&triggered_by=&workflow_id=&workflow_definition_id=&parent_run_id=", "a b c d"),
        ("created_after=&created_before=&updated_after=&updated_before=", "a b c d"),
        ("sort_by=&cursor=", "a b c d"),
        ("colour=blue", "a b c d"),
        ("status=pending,NONE", ""),
        ("name=daily", "a"),
        ("name_prefix=daily", "a b c"),
        ("name_prefix=daily_", "b"),
        ("name_prefix=%25", ""),
        ("name_prefix=%5C", ""),
        ("name_prefix=", "a b c d"),
        ("triggered_by=ann", "a d"),
        ("triggered_by=ann&status=COMPLETED,RUNNING", "d"),
        ("created_after=2026-01-02T10:00:00&created_before=2026-01-03T10:00:00", "b c"),
        ("updated_after=2026-01-04T10:00:00", "a b d"),
        ("updated_before=2026-01-04T10:00:00Z", "b c d"),
        ("updated_before=2026-01-04T10:00:00Z&name_prefix=daily", "b c"),
    ] {
        let page = service.get(&format!("/api/v1/runs?sort_order=asc&{query}")).await.expect(200);
        assert_eq!(column(&page, "run_id"), expected, "{query}");
        assert_eq!(page["total"], expected.split_whitespace().count(), "{query}");
    }
    let bad = service.get("/api/v1/runs?updated_after=yesterday").await;
    assert_eq!(bad.field_errors(), ["query.updated_after datetime_parsing"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn agents_and_workflows_are_filtered_by_time_prefix_and_statuses(pool: PgPool) {
    let service = Service::start(&pool);
    for name in ["mail-in", "mail_out", "print"] {
        service.agent(name, "http://a").await;
        service.chain(name, &["mail-in"]).await;
    }
    for table in ["agents", "workflow_definitions"] {
        let sql = format!(
            "UPDATE {table} SET created_at = created_at - interval '1 day',
                 status = CASE name WHEN 'mail-in' THEN 'inactive' ELSE 'deleted' END WHERE name <> 'print'"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql.as_str())).execute(&pool).await.expect("the change");
    }
    let yesterday = (Clock::default().now() - chrono::TimeDelta::hours(12)).format("%Y-%m-%dT%H:%M:%SZ").to_string();
    for list in ["/api/v1/agents?x=1", "/api/v1/workflows?sort_order=asc"] {
        for (query, expected) in [
            ("name_prefix=mail".to_owned(), "mail-in mail_out"),
            ("status=&name=&name_prefix=&created_after=&updated_before=".to_owned(), "mail-in mail_out print"),
            ("name_prefix=mail_".to_owned(), "mail_out"),
            ("status=active,inactive".to_owned(), "mail-in print"),
            (format!("created_after={yesterday}"), "print"),
            (format!("created_before={yesterday}&status=deleted"), "mail_out"),
            (format!("updated_after={yesterday}"), "mail-in mail_out print"),
            (format!("updated_before={yesterday}"), ""),
        ] {
            let page = service.get(&format!("{list}&{query}")).await.expect(200);
            assert_eq!(column(&page, "name"), expected, "{list} {query}");
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn filters_without_an_index_are_searched_in_pieces_and_other_totals_are_counted_up_to_the_limit_of_pages(
    pool: PgPool,
) {
    let service = Service::start(&pool);
    sqlx::query(
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, triggered_by, created_at, updated_at)
         SELECT 'r' || i, 'w', 'w', 'FAILED', CASE i WHEN 0 THEN 'ann' ELSE 'bob' END,
             timestamp '2026-01-01' + i * interval '1 s', timestamp '2026-01-02' + i * interval '1 s'
         FROM generate_series(0, 12000) AS i",
    )
    .execute(&pool)
    .await
    .expect("the runs");
    let about = |page: &Value| json!([page["total"], page["total_is_exact"], page["total_pages"]]);
    for (query, expected) in [
        ("status=FAILED", json!([12_001, true, 601])),
        ("triggered_by=bob", json!([10_000, false, 500])),
        ("triggered_by=ann", json!([1, true, 1])),
        ("created_before=2026-01-01T00:00:29", json!([30, true, 2])),
    ] {
        let page = service.get(&format!("/api/v1/runs?page_size=20&{query}")).await.expect(200);
        assert_eq!(about(&page), expected, "{query}");
    }
    // The run is the last one of 12 001 in this order.
    let list = "/api/v1/runs?triggered_by=ann&status=FAILED&sort_by=updated_at";
    let first = service.get(list).await.expect(200);
    assert_eq!((column(&first, "run_id"), &first["total_is_exact"]), (String::new(), &json!(false)));
    let next = first["next_cursor"].as_str().expect("not the end");
    let second = service.get(&format!("{list}&cursor={next}")).await.expect(200);
    assert_eq!((column(&second, "run_id"), &second["next_cursor"]), ("r0".to_owned(), &Value::Null));
    let back = second["prev_cursor"].as_str().expect("not the beginning");
    let before = service.get(&format!("{list}&cursor={back}")).await.expect(200);
    assert_eq!(column(&before, "run_id"), "");
}
