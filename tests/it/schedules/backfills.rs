//! Backfills: the runs of a range of time.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;
use workflow_api::db::migrations::MIGRATOR;

use super::{TRIGGERS, World, at};
use crate::service::{Answer, eventually};

async fn backfill(world: &World, id: Uuid, body: Value) -> Answer {
    world.service.post(&format!("{TRIGGERS}/{id}/backfills"), &body).await
}

/// The job as it is when it has ended. The service's own loop makes it.
async fn ended(world: &World, id: Uuid, job: &Value) -> Value {
    let path = format!("{TRIGGERS}/{id}/backfills/{}", job["id"].as_str().expect("an id"));
    eventually("the backfill ends", async || {
        let job = world.service.get(&path).await.expect(200);
        (job["state"] != "running").then_some(job)
    })
    .await
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_backfill_makes_all_runs_of_its_range_and_a_repeat_none(pool: PgPool) {
    let world = World::start(&pool).await;
    let config = json!({"cron": ["30 2 * * *"], "time_zone": "Europe/Berlin", "overlap": "allow",
        "start_at": "2026-01-01T00:00:00Z"});
    let id = world.schedule("nightly", config).await;
    // With a change of the clocks in the range, whose end does not belong to it.
    let range = json!({"from": "2026-03-27T01:30:00Z", "to": "2026-03-31T00:30:00Z"});
    let dry = backfill(&world, id, range.clone()).await.expect(200);
    let times = ["2026-03-27T01:30:00Z", "2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"];
    assert_eq!((&dry["total"], &dry["first"]), (&json!(4), &json!(times)));
    assert!(world.runs(id).await.is_empty());
    let mut real = range.clone();
    real["dry_run"] = json!(false);
    let job = backfill(&world, id, real.clone()).await.expect(202);
    assert_eq!((&job["state"], &job["total"], &job["overlap"]), (&json!("running"), &json!(4), &json!("allow")));
    let done = ended(&world, id, &job).await;
    assert_eq!((&done["state"], &done["started"], &done["done"]), (&json!("completed"), &json!(4), &json!(4)));
    assert_eq!(world.runs(id).await, times.map(at));
    let job = world.service.post(&format!("{TRIGGERS}/{id}/backfill"), &real).await.expect(202);
    let done = ended(&world, id, &job).await;
    assert_eq!((&done["present"], &done["started"]), (&json!(4), &json!(0)));
    real["force"] = json!(true);
    let job = backfill(&world, id, real).await.expect(202);
    assert_eq!(ended(&world, id, &job).await["started"], 4);
    assert_eq!(world.runs(id).await.len(), 8);
    assert_eq!(world.trigger(id).await["firings"][0]["cause"], "backfill");
    let list = world.service.get(&format!("{TRIGGERS}/{id}/backfills")).await.expect(200);
    assert_eq!(list["items"].as_array().map(Vec::len), Some(3));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_backfill_without_overlap_starts_one_run_after_the_other_and_can_be_stopped(pool: PgPool) {
    let world = World::start(&pool).await;
    let id = world.schedule("hourly", json!({"cron": ["@hourly"], "start_at": "2026-01-01T00:00:00Z"})).await;
    let range = json!({"from": "2026-03-01T00:00:00Z", "to": "2026-03-02T00:00:00Z", "dry_run": false});
    let job = backfill(&world, id, range).await.expect(202);
    assert_eq!(job["overlap"], "buffer_all");
    for count in 1..=3 {
        eventually("the next run starts", async || (world.runs(id).await.len() == count).then_some(())).await;
        let open = "SELECT count(*) FROM workflow_runs WHERE trigger_id = $1 AND status = 'PENDING'";
        let open: i64 = sqlx::query_scalar(open).bind(id).fetch_one(&pool).await.expect("a count");
        assert_eq!(open, 1);
        if count < 3 {
            world.end_runs(id, "COMPLETED").await;
        }
    }
    let path = format!("{TRIGGERS}/{id}/backfills/{}/stop", job["id"].as_str().expect("an id"));
    let stopped = world.service.post(&path, &json!({})).await.expect(200);
    assert_eq!((&stopped["state"], &stopped["done"]), (&json!("stopped"), &json!(3)));
    assert!(stopped["ended_at"].is_string());
    assert_eq!(world.service.post(&path, &json!({})).await.expect(200), stopped);
    world.end_runs(id, "COMPLETED").await;
    assert!(!world.scheduler.turn(None, Duration::ZERO).await.expect("a turn"));
    assert_eq!(world.runs(id).await.len(), 3);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_backfill_is_bounded_and_says_what_is_wrong(pool: PgPool) {
    let world = World::start(&pool).await;
    let id = world.schedule("often", json!({"cron": ["* * * * *"], "start_at": "2026-01-01T00:00:00Z"})).await;
    for (body, error) in [
        (json!({"from": "2026-03-01T00:00:00Z"}), "body.to missing"),
        (json!({"from": "2026-03-02T00:00:00Z", "to": "2026-03-01T00:00:00Z"}), "body.to value_error"),
        (json!({"from": "2026-03-01T00:00:00Z", "to": "2026-03-09T00:00:00Z"}), "body.to value_error"),
        (
            json!({"from": "2026-03-01T00:00:00Z", "to": "2026-03-02T00:00:00Z", "overlap": "skip"}),
            "body.overlap value_error",
        ),
    ] {
        assert_eq!(backfill(&world, id, body.clone()).await.field_errors(), [error], "{body}");
    }
    let body = json!({"from": "2026-03-01T00:00:00Z", "to": "2026-03-02T00:00:00Z", "dry_run": false});
    for _ in 0..5 {
        backfill(&world, id, body.clone()).await.expect(202);
    }
    assert_eq!(backfill(&world, id, body.clone()).await.error(409)["code"], "too_many_backfills");
    assert_eq!(backfill(&world, Uuid::nil(), body).await.error(404)["code"], "trigger_not_found");
    let path = format!("{TRIGGERS}/{id}/backfills/{}", Uuid::nil());
    assert_eq!(world.service.get(&path).await.error(404)["code"], "backfill_not_found");
}
