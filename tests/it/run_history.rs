//! Numbers of runs over time.

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::service::Service;

/// Runs of that workflow and status, created at that time.
async fn insert(pool: &PgPool, workflow: &str, status: &str, at: &str, runs: i32) {
    let sql = "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, created_at)
               SELECT gen_random_uuid()::text, $1, 'name of ' || $1, $2, $3::timestamp + make_interval(secs => n::float / 1000)
               FROM generate_series(0, $4 - 1) AS n";
    sqlx::query(sql).bind(workflow).bind(status).bind(at).bind(runs).execute(pool).await.expect("runs");
}

async fn counts(service: &Service, query: &str) -> Value {
    service.get(&format!("/api/v1/runs/counts?{query}")).await.expect(200)
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn runs_are_counted_by_the_hour_and_the_day_of_their_creation(pool: PgPool) {
    let service = Service::start(&pool);
    insert(&pool, "a", "COMPLETED", "2026-01-01 09:00:00", 3).await;
    insert(&pool, "a", "FAILED", "2026-01-01 09:59:59", 2).await;
    insert(&pool, "b", "FAILED", "2026-01-01 11:00:00", 1).await;
    insert(&pool, "b", "RUNNING", "2026-01-02 00:00:00", 1).await;
    insert(&pool, "b", "COMPLETED", "2026-01-02 02:00:00", 1).await;
    let sql = "UPDATE workflow_runs SET organization_id = 'other' WHERE created_at = '2026-01-02 02:00:00'";
    sqlx::query(sql).execute(&pool).await.expect("done");
    let hours = counts(&service, "created_after=2026-01-01T09:30:00Z&created_before=2026-01-01T12:00:00Z").await;
    let expected = json!({
        "interval": "hour", "from": "2026-01-01T09:00:00Z", "to": "2026-01-01T12:00:00Z", "is_complete": true,
        "buckets": [
            {"begin": "2026-01-01T09:00:00Z", "runs": {"COMPLETED": 3, "FAILED": 2}, "total": 5},
            {"begin": "2026-01-01T10:00:00Z", "runs": {}, "total": 0},
            {"begin": "2026-01-01T11:00:00Z", "runs": {"FAILED": 1}, "total": 1},
        ],
        "failing_workflows": [
            {"workflow_id": "a", "workflow_name": "name of a", "failed": 2},
            {"workflow_id": "b", "workflow_name": "name of b", "failed": 1},
        ],
    });
    assert_eq!(hours, expected);
    let days = counts(&service, "interval=day&created_after=2026-01-01&created_before=2026-01-02T23:00:00Z").await;
    let totals: Vec<_> =
        days["buckets"].as_array().expect("buckets").iter().map(|bucket| bucket["total"].clone()).collect();
    assert_eq!(totals, [6, 1], "{days}");
    let of_one =
        counts(&service, "interval=day&workflow_id=b&created_after=2026-01-01&created_before=2026-01-03").await;
    let totals: Vec<_> =
        of_one["buckets"].as_array().expect("buckets").iter().map(|bucket| bucket["total"].clone()).collect();
    assert_eq!((totals, &of_one["failing_workflows"]), (vec![json!(1), json!(1)], &json!([])), "{of_one}");
    // The last day up to now.
    let recent = counts(&service, "").await;
    assert_eq!(recent["buckets"].as_array().map(Vec::len), Some(24));
    let run = service.execute(&service.one_step_workflow().await).await;
    let recent = counts(&service, "").await;
    assert_eq!(recent["buckets"][23]["runs"], json!({"PENDING": 1}), "{run}: {recent}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn only_the_latest_of_very_many_runs_are_counted_and_the_answer_says_so(pool: PgPool) {
    let service = Service::start(&pool);
    insert(&pool, "a", "COMPLETED", "2026-01-01 08:00:00", 5).await;
    insert(&pool, "a", "COMPLETED", "2026-01-01 09:59:59.5", 600).await;
    insert(&pool, "a", "FAILED", "2026-01-01 08:30:00", 7).await;
    insert(&pool, "a", "COMPLETED", "2026-01-01 10:30:00", 19_700).await;
    let found = counts(&service, "created_after=2026-01-01T08:00:00Z&created_before=2026-01-01T11:30:00Z").await;
    // 20 000 of those that are completed begin shortly before 10:00, so 10:00 is the first whole hour.
    assert_eq!((&found["is_complete"], &found["from"]), (&json!(false), &json!("2026-01-01T10:00:00Z")), "{found}");
    let totals: Vec<_> =
        found["buckets"].as_array().expect("buckets").iter().map(|bucket| bucket["total"].clone()).collect();
    assert_eq!(totals, [19_800, 0], "{found}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_query_that_makes_no_sense_is_refused_with_its_reason(pool: PgPool) {
    let service = Service::start(&pool);
    for (query, expected) in [
        ("interval=minute", "query.interval enum"),
        ("created_after=x", "query.created_after datetime_parsing"),
        ("created_after=2026-01-02&created_before=2026-01-01", "query.created_after value_error"),
        ("created_after=2025-01-01&created_before=2026-01-01", "query.created_after value_error"),
        ("interval=day&created_after=0001-01-01&created_before=2026-01-01", "query.created_after value_error"),
    ] {
        let answer = service.get(&format!("/api/v1/runs/counts?{query}")).await;
        assert_eq!(answer.field_errors(), [expected], "{query}");
        answer.error(422);
    }
    let year = counts(&service, "interval=day&created_after=2025-01-01&created_before=2026-01-01").await;
    assert_eq!(year["buckets"].as_array().map(Vec::len), Some(365));
}
