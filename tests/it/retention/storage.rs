//! `/system/storage`.

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use super::{pass, purge, run};
use crate::{
    access::Admin,
    service::{Service, config},
};

fn table<'a>(storage: &'a Value, name: &str) -> &'a Value {
    let tables = storage["tables"].as_array().expect("tables");
    tables.iter().find(|table| table["name"] == name).unwrap_or_else(|| panic!("{name} in {storage}"))
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_storage_shows_tables_growth_and_what_is_deleted_next(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("RUN_RETENTION_DAYS", "90")]));
    for number in 0..20 {
        run(&pool, &format!("old-{number}"), "COMPLETED", 95).await;
        run(&pool, &format!("young-{number}"), "COMPLETED", 80).await;
    }
    // Over within a day.
    run(&pool, "soon", "FAILED", 90).await;
    let sql = "UPDATE workflow_runs SET completed_at = completed_at + interval '1 hour' WHERE run_id = 'soon'";
    sqlx::query(sql).execute(&pool).await.expect("soon");
    for sql in ["ANALYZE workflow_runs", "ANALYZE audit_logs"] {
        sqlx::query(sql).execute(&pool).await.expect(sql);
    }
    let storage = service.get("/api/v1/system/storage").await.expect(200);
    let runs = table(&storage, "workflow_runs");
    assert_eq!(runs["row_estimate"], 41);
    assert!(runs["bytes"].as_i64() > runs["index_bytes"].as_i64() && runs["index_bytes"].as_i64() > Some(0), "{runs}");
    assert_eq!(runs["bytes_per_day"], Value::Null);
    let bytes: i64 =
        storage["tables"].as_array().expect("tables").iter().filter_map(|table| table["bytes"].as_i64()).sum();
    assert_eq!(storage["total_bytes"], bytes);
    // Partitions are part of their table.
    assert!(table(&storage, "audit_logs")["bytes"].as_i64() > Some(0));
    let names: Vec<&str> =
        storage["tables"].as_array().expect("tables").iter().filter_map(|table| table["name"].as_str()).collect();
    assert!(!names.iter().any(|name| name.starts_with("audit_logs_")), "{names:?}");
    let retention = &storage["retention"];
    assert_eq!((&retention["default_days"], &retention["next"]["runs"]), (&json!(90), &json!(21)));
    assert_eq!((&retention["next"]["is_exact"], &retention["last_pass"]), (&json!(true), &Value::Null));
    assert_eq!(retention["archive"], Value::Null);

    pass(&pool, &purge(&pool, &[])).await;
    let storage = service.get("/api/v1/system/storage").await.expect(200);
    let retention = &storage["retention"];
    assert_eq!((&retention["next"]["runs"], &retention["pass"]), (&json!(1), &Value::Null));
    assert_eq!(
        (&retention["last_pass"]["runs"], &retention["last_pass"]["rows"]["step_executions"]),
        (&json!(20), &json!(60))
    );
    assert_eq!(retention["last_pass"]["archived"], false);
    // Two days ago it was smaller. The pass has kept the sizes of today.
    let samples = "SELECT count(*) FROM storage_samples WHERE table_name = 'workflow_runs'";
    assert_eq!(sqlx::query_scalar::<_, i64>(samples).fetch_one(&pool).await.expect("a count"), 1);
    let sql = "UPDATE storage_samples SET day = day - 2, sampled_at = sampled_at - interval '2 days', bytes = 8192,
                   row_estimate = 1 WHERE table_name = 'workflow_runs'";
    sqlx::query(sql).execute(&pool).await.expect("older");
    let storage = service.get("/api/v1/system/storage").await.expect(200);
    let runs = table(&storage, "workflow_runs");
    let expected = (runs["bytes"].as_f64().expect("bytes") - 8192.0) / 2.0;
    assert!((runs["bytes_per_day"].as_f64().expect("growth") - expected).abs() < expected * 0.01, "{runs}");
    assert!(runs["rows_per_day"].is_number(), "{runs}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_deleted_next_is_counted_no_further_than_a_bound(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("RUN_RETENTION_DAYS", "90")]));
    let sql = "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, completed_at)
               SELECT 'run-' || n, 'w', 'w', 'COMPLETED', now() - make_interval(days => 90, secs => -n) FROM generate_series(1, 10100) n";
    sqlx::query(sql).execute(&pool).await.expect("runs");
    let storage = service.get("/api/v1/system/storage").await.expect(200);
    let next = &storage["retention"]["next"];
    assert_eq!((&next["runs"], &next["is_exact"]), (&json!(10_000), &json!(false)));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_storage_is_for_administrators_of_the_default_organisation(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    admin.get("/api/v1/system/storage").await.expect(200);
    admin.post("/api/v1/organizations", &json!({"id": "acme", "name": "Acme"})).await.expect(201);
    for body in [
        json!({"name": "theirs", "role": "admin", "organization_id": "acme"}),
        json!({"name": "editor", "role": "editor"}),
        json!({"name": "viewer", "role": "viewer"}),
        json!({"name": "executor", "role": "executor"}),
    ] {
        let (key, _) = admin.key(&body).await;
        let answer = admin.service.send("GET", "/api/v1/system/storage", &[("x-api-key", &key)], "").await;
        answer.error(403);
    }
    admin.service.get("/api/v1/system/storage").await.error(401);
}
