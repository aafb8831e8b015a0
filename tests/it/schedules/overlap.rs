//! What happens when a run of the same schedule has not ended.

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use super::{World, at, run_id};

const HOURS: [&str; 4] =
    ["2027-01-01T00:00:00Z", "2027-01-01T01:00:00Z", "2027-01-01T02:00:00Z", "2027-01-01T03:00:00Z"];

async fn statuses(world: &World, id: uuid::Uuid) -> Vec<String> {
    let list = world.service.get(&format!("/api/v1/runs?trigger_id={id}&sort_order=asc")).await.expect(200);
    let items = list["items"].as_array().expect("a list").clone();
    items.iter().map(|run| run["status"].as_str().expect("a status").to_owned()).collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_firing_is_skipped_while_a_run_is_open_even_if_that_is_paused(pool: PgPool) {
    let world = World::start(&pool).await;
    let id = world.schedule("skip", json!({"cron": ["@hourly"]})).await;
    // The runs of another schedule and of clients do not matter.
    let other = world.schedule("other", json!({"cron": ["@hourly"], "overlap": "allow"})).await;
    world.pass(HOURS[0]).await;
    let paused = format!("/api/v1/runs/{}/pause", run_id(id, at(HOURS[0])));
    world.service.post(&paused, &json!({})).await.expect(200);
    world.pass(HOURS[1]).await;
    assert_eq!((world.runs(id).await.len(), world.runs(other).await.len()), (1, 2));
    assert_eq!(world.count(id, "overlap_skipped").await, 1);
    assert_eq!(world.trigger(id).await["firings"][0]["outcome"], "overlap_skipped");
    world.end_runs(id, "COMPLETED").await;
    world.pass(HOURS[2]).await;
    assert_eq!(world.runs(id).await, [at(HOURS[0]), at(HOURS[2])]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn one_firing_waits_for_the_end_of_the_run_and_further_ones_are_dropped(pool: PgPool) {
    let world = World::start(&pool).await;
    let id = world.schedule("one", json!({"cron": ["@hourly"], "overlap": "buffer_one"})).await;
    for hour in &HOURS[..3] {
        world.pass(hour).await;
    }
    assert_eq!((world.runs(id).await.len(), world.count(id, "buffer_dropped").await), (1, 1));
    world.end_runs(id, "FAILED").await;
    world.pass("2027-01-01T02:30:00Z").await;
    assert_eq!(world.runs(id).await, [at(HOURS[0]), at(HOURS[1])], "it starts when the other one has ended");
    let input = world.service.get(&format!("/api/v1/runs/{}", run_id(id, at(HOURS[1])))).await.expect(200);
    assert_eq!(input["input_data"]["text"], HOURS[1], "with its nominal instant");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn all_firings_wait_up_to_a_thousand(pool: PgPool) {
    let world = World::start(&pool).await;
    let config = json!({"cron": ["* * * * *"], "overlap": "buffer_all", "catch_up": "all"});
    let id = world.schedule("all", config).await;
    world.pass("2027-01-01T16:59:00Z").await;
    // 1020 firings: one started, a thousand wait.
    assert_eq!((world.runs(id).await.len(), world.count(id, "buffer_dropped").await), (1, 19));
    for n in 0..3 {
        world.end_runs(id, "COMPLETED").await;
        world.pass(&format!("2027-01-01T16:59:1{n}Z")).await;
    }
    let first: Vec<_> = (0..4).map(|n| at("2027-01-01T00:00:00Z") + chrono::TimeDelta::minutes(n)).collect();
    assert_eq!(world.runs(id).await, first);
    let paused = world.act(id, "pause", &json!({})).await;
    assert_eq!(paused["enabled"], false);
    let waiting: Vec<i32> =
        sqlx::query_scalar("SELECT cardinality(buffered) FROM trigger_schedules").fetch_all(&pool).await.expect("rows");
    assert_eq!(waiting, [0], "a pause drops what waits");
    assert_eq!(world.count(id, "buffer_dropped").await, 19 + 997, "and counts it");
    let last = &world.trigger(id).await["firings"][0];
    assert_eq!((&last["outcome"], &last["at"]), (&json!("buffer_dropped"), &json!("2027-01-01T16:40:00Z")));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_other_run_is_cancelled_before_the_next_one_starts(pool: PgPool) {
    let world = World::start(&pool).await;
    let id = world.schedule("replace", json!({"cron": ["@hourly"], "overlap": "cancel_other"})).await;
    world.pass(HOURS[0]).await;
    world.pass(HOURS[1]).await;
    assert_eq!(statuses(&world, id).await, ["CANCELLED", "PENDING"]);
    let run = world.service.get(&format!("/api/v1/runs/{}", run_id(id, at(HOURS[0])))).await.expect(200);
    assert_eq!(
        (&run["cancelled_by"], &run["error_message"]),
        (&json!("system"), &json!("Cancelled: the schedule replace has fired again"))
    );
    let messages: Vec<Value> =
        sqlx::query_scalar("SELECT to_jsonb(a) FROM audit_logs a WHERE action = 'cancel' AND entity_name = $1")
            .bind(run["run_id"].as_str())
            .fetch_all(&pool)
            .await
            .expect("entries");
    assert_eq!(messages.len(), 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn runs_overlap_if_they_may(pool: PgPool) {
    let world = World::start(&pool).await;
    let id = world.schedule("allow", json!({"cron": ["@hourly"], "overlap": "allow"})).await;
    for hour in HOURS {
        world.pass(hour).await;
    }
    assert_eq!(statuses(&world, id).await, ["PENDING"; 4]);
}
