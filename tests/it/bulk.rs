//! One action on many runs.

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::{access::Admin, service::Service};

const BULK: &str = "/api/v1/runs/bulk";

async fn bulk(service: &Service, query: &str, body: &Value) -> Value {
    service.post(&format!("{BULK}?{query}"), body).await.expect(200)
}

/// Number of runs in that status.
async fn count(service: &Service, status: &str) -> i64 {
    service.get(&format!("/api/v1/runs?status={status}")).await.expect(200)["total"].as_i64().expect("a number")
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_run_that_a_filter_matches_is_changed_page_by_page(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow = service.one_step_workflow().await;
    for _ in 0..7 {
        service.execute(&workflow).await;
    }
    let other = service.chain("other", &["worker"]).await;
    let other = service.execute(other["id"].as_str().expect("an id")).await;
    let query = format!("workflow_id={workflow}");
    let dry = bulk(&service, &query, &json!({"action": "cancel", "dry_run": true})).await;
    let expected = json!({"action": "cancel", "dry_run": true, "total": 7, "total_is_exact": true, "done": 0, "refused": [], "next_cursor": null});
    assert_eq!(dry, expected);
    assert_eq!(count(&service, "PENDING").await, 8, "nothing has changed");
    let body = json!({"action": "cancel", "dry_run": false, "reason": "by mistake"});
    let mut cursor = String::new();
    let mut done = Vec::new();
    loop {
        let page = bulk(&service, &format!("{query}&page_size=3{cursor}"), &body).await;
        done.push(page["done"].as_i64().expect("a number"));
        assert_eq!(page["refused"], json!([]));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(done, [3, 3, 1]);
    assert_eq!((count(&service, "CANCELLED").await, count(&service, "PENDING").await), (7, 1));
    let runs = service.get(&format!("/api/v1/runs?{query}")).await.expect(200);
    for run in runs["items"].as_array().expect("runs") {
        assert_eq!(run["error_message"], "Cancelled: by mistake", "{run}");
    }
    let entries = service.get("/api/v1/audit-logs?action=cancel").await.expect(200);
    assert_eq!(entries["total"], 7, "an entry for each");
    assert_eq!(service.get(&format!("/api/v1/runs/{other}")).await.expect(200)["status"], "PENDING");
    // They are not in a state for it any more.
    let again = bulk(&service, &query, &body).await;
    assert_eq!((&again["total"], &again["done"]), (&json!(0), &json!(0)));
    let retried = bulk(&service, &query, &json!({"action": "retry", "dry_run": false})).await;
    assert_eq!((&retried["total"], &retried["done"]), (&json!(7), &json!(7)), "{retried}");
    assert_eq!(count(&service, "PENDING").await, 8);
    let first = &runs["items"][0]["id"].as_str().expect("an id");
    service.post(&format!("/api/v1/runs/{first}/pause"), &json!({})).await.expect(200);
    // Those that are so already do not count.
    for (action, is_paused, count) in [("resume", false, 1), ("pause", true, 7), ("resume", false, 7)] {
        let dry = bulk(&service, &query, &json!({"action": action, "dry_run": true})).await;
        assert_eq!(dry["total"], count, "{dry}");
        let paused = bulk(&service, &query, &json!({"action": action, "dry_run": false})).await;
        assert_eq!((&paused["total"], &paused["done"]), (&json!(count), &json!(count)), "{paused}");
        let runs = service.get(&format!("/api/v1/runs?{query}")).await.expect(200);
        let runs = runs["items"].as_array().expect("runs");
        assert!(runs.iter().all(|run| run["paused_at"].is_null() != is_paused), "{action}: {runs:?}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_with_which_it_is_not_possible_is_named_and_delays_no_other(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow = service.one_step_workflow().await;
    let run = service.execute(&workflow).await;
    service.post(&format!("/api/v1/runs/{run}/cancel"), &json!({})).await.expect(200);
    let sql =
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status) VALUES ('foreign', 'w', 'w', 'FAILED')";
    sqlx::query(sql).execute(&pool).await.expect("a run without a definition");
    let retried = bulk(&service, "", &json!({"action": "retry", "dry_run": false})).await;
    assert_eq!((&retried["total"], &retried["done"]), (&json!(2), &json!(1)), "{retried}");
    let refused = retried["refused"].as_array().expect("runs");
    assert_eq!(
        (refused.len(), &refused[0]["run_id"], &refused[0]["code"]),
        (1, &json!("foreign"), &json!("run_without_definition"))
    );
    // A filter by states in which it is not possible matches none, and not all.
    let none = bulk(&service, "status=COMPLETED", &json!({"action": "cancel", "dry_run": false})).await;
    assert_eq!((&none["total"], &none["done"]), (&json!(0), &json!(0)));
    assert_eq!(count(&service, "PENDING").await, 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn it_stays_in_the_organization_and_says_what_is_wrong(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let sql = "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, organization_id)
               VALUES ('own', 'w', 'w', 'PENDING', 'default'), ('other', 'w', 'w', 'PENDING', 'acme')";
    sqlx::query(sql).execute(&pool).await.expect("runs");
    let cancelled = admin.post(BULK, &json!({"action": "cancel", "dry_run": false})).await.expect(200);
    assert_eq!((&cancelled["total"], &cancelled["done"]), (&json!(1), &json!(1)), "{cancelled}");
    let status: String = sqlx::query_scalar("SELECT status FROM workflow_runs WHERE run_id = 'other'")
        .fetch_one(&pool)
        .await
        .expect("a run");
    assert_eq!(status, "PENDING");
    for (query, body, expected) in [
        ("", json!({"dry_run": true}), "body.action missing"),
        ("", json!({"action": "delete", "dry_run": true}), "body.action value_error"),
        ("", json!({"action": "cancel"}), "body.dry_run missing"),
        ("", json!({"action": "cancel", "dry_run": true, "status": "FAILED"}), "body.status extra_forbidden"),
        ("?page=2", json!({"action": "cancel", "dry_run": true}), "query.page value_error"),
        ("?created_after=x", json!({"action": "cancel", "dry_run": true}), "query.created_after datetime_parsing"),
    ] {
        assert_eq!(admin.post(&format!("{BULK}{query}"), &body).await.field_errors(), [expected], "{query} {body}");
    }
    let body = json!({"action": "cancel", "dry_run": true});
    assert_eq!(admin.post(&format!("{BULK}?cursor=x"), &body).await.error(400)["code"], "invalid_cursor");
}
