//! Schedules: when they fire, what they start, and what they do not. The clock is that of the tests: schedules begin in a
//! year to come, and are evaluated as of instants in it.

mod backfills;
mod base;
mod overlap;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;
use workflow_api::{
    actions::fire_schedule::run_id,
    db,
    db::migrations::MIGRATOR,
    input::{Node, to_raw},
    offload::Offload,
    scheduler::Scheduler,
    trigger::{Config, TriggerKind},
};

use crate::service::{Service, config, own_pool};

const TRIGGERS: &str = "/api/v1/triggers";

pub fn at(text: &str) -> DateTime<Utc> {
    text.parse().expect("an instant")
}

/// A service with a workflow `one-step`, and what evaluates its schedules.
pub struct World {
    pub service: Service,
    pub scheduler: Scheduler,
    pool: PgPool,
}

impl World {
    pub async fn start(pool: &PgPool) -> Self {
        let service = Service::start_with(config(pool, &[]));
        service.one_step_workflow().await;
        Self { scheduler: scheduler(&service, pool), service, pool: pool.clone() }
    }

    /// Stores a schedule of `one-step` that begins in 2027; returns its id.
    pub async fn schedule(&self, name: &str, mut config: Value) -> Uuid {
        if config.get("start_at").is_none() {
            config["start_at"] = json!("2027-01-01T00:00:00Z");
        }
        let body = json!({"name": name, "kind": "schedule", "workflow_name": "one-step",
            "input": {"text": "${trigger.scheduled_at}"}, "config": config});
        let trigger = self.service.post(TRIGGERS, &body).await.expect(201);
        trigger["id"].as_str().expect("an id").parse().expect("a UUID")
    }

    /// Evaluates everything that is due at that instant.
    pub async fn pass(&self, now: &str) {
        self.pass_at(at(now)).await;
    }

    pub async fn pass_at(&self, now: DateTime<Utc>) {
        while self.scheduler.turn(Some(now), Duration::ZERO).await.expect("a turn") {}
    }

    pub async fn trigger(&self, id: Uuid) -> Value {
        self.service.get(&format!("{TRIGGERS}/{id}")).await.expect(200)
    }

    /// The value of a counter.
    pub async fn count(&self, id: Uuid, name: &str) -> i64 {
        self.trigger(id).await["counters"][name].as_i64().expect("a number")
    }

    /// The nominal instants of the runs of a schedule, in their order.
    pub async fn runs(&self, id: Uuid) -> Vec<DateTime<Utc>> {
        let sql = "SELECT trigger_at FROM workflow_runs WHERE trigger_id = $1 ORDER BY 1";
        sqlx::query_scalar(sql).bind(id).fetch_all(&self.pool).await.expect("instants")
    }

    /// Ends the open runs of a schedule as an executor does, without their steps.
    pub async fn end_runs(&self, id: Uuid, status: &str) {
        let sql = "UPDATE workflow_runs SET status = $2, completed_at = now() AT TIME ZONE 'UTC'
                   WHERE trigger_id = $1 AND status IN ('PENDING', 'RUNNING')";
        sqlx::query(sql).bind(id).bind(status).execute(&self.pool).await.expect("ended");
    }

    pub async fn act(&self, id: Uuid, act: &str, body: &Value) -> Value {
        self.service.post(&format!("{TRIGGERS}/{id}/{act}"), body).await.expect(200)
    }
}

/// What evaluates schedules in another process.
pub fn scheduler(service: &Service, pool: &PgPool) -> Scheduler {
    Scheduler {
        pool: own_pool(pool),
        definitions: Arc::default(),
        offload: Offload::default(),
        quotas: service.config.quotas,
        audit: service.config.audit,
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_schedule_starts_a_run_at_each_of_its_times_with_the_nominal_one_as_input(pool: PgPool) {
    let world = World::start(&pool).await;
    let id = world.schedule("report", json!({"cron": ["0 9 * * 1"], "time_zone": "Europe/Berlin"})).await;
    let next = ["2027-01-04T08:00:00Z", "2027-01-11T08:00:00Z"];
    assert_eq!(world.trigger(id).await["next"].as_array().expect("a list")[..2], [json!(next[0]), json!(next[1])]);
    world.pass("2027-01-04T07:59:59Z").await;
    assert!(world.runs(id).await.is_empty());
    world.pass("2027-01-04T08:00:03Z").await;
    // Whoever looks again finds nothing to do.
    world.pass("2027-01-04T08:00:04Z").await;
    world.end_runs(id, "COMPLETED").await;
    world.pass("2027-01-11T08:00:00Z").await;
    assert_eq!(world.runs(id).await, next.map(at));
    let run = world.service.get(&format!("/api/v1/runs/{}", run_id(id, at(next[0])))).await.expect(200);
    assert_eq!(run["trigger"], json!({"kind": "schedule", "id": id, "at": next[0], "depth": 0}));
    assert_eq!((&run["input_data"], &run["triggered_by"]), (&json!({"text": next[0]}), &json!("trigger:report")));
    let trigger = world.trigger(id).await;
    let counters = json!({"fired": 2, "failed_to_start": 0, "missed": 0, "overlap_skipped": 0, "buffer_dropped": 0});
    assert_eq!(trigger["counters"], counters);
    let firing = &trigger["firings"][1];
    assert_eq!(
        (&firing["at"], &firing["outcome"], &firing["run_id"]),
        (&json!(next[0]), &json!("started"), &run["run_id"])
    );
    // Runs of clients have no trigger, and the list tells both apart.
    let workflow_id = run["workflow_id"].as_str().expect("an id");
    let other = world.service.execute(workflow_id).await;
    assert_eq!(world.service.get(&format!("/api/v1/runs/{other}")).await.expect(200)["trigger"], json!(null));
    let list = world.service.get(&format!("/api/v1/runs?trigger_id={id}")).await.expect(200);
    assert_eq!((list["items"].as_array().map(Vec::len), &list["total"]), (Some(2), &json!(2)));
    assert_eq!(world.service.get("/api/v1/runs?trigger_id=x").await.field_errors(), ["query.trigger_id uuid_parsing"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_outage_of_ten_hours_of_an_hourly_schedule_is_made_up_for_as_it_says(pool: PgPool) {
    let world = World::start(&pool).await;
    for (policy, runs, missed) in [("none", 0, 10), ("latest", 1, 9), ("all", 10, 0)] {
        let config =
            json!({"cron": ["@hourly"], "overlap": "allow", "catch_up": policy, "start_at": "2027-01-01T00:30:00Z"});
        let id = world.schedule(policy, config).await;
        world.pass("2027-01-01T10:30:00Z").await;
        assert_eq!((world.runs(id).await.len(), world.count(id, "missed").await), (runs, missed), "{policy}");
        if missed > 0 {
            let firings = world.trigger(id).await["firings"].clone();
            let found = firings.as_array().expect("a list").iter().find(|one| one["outcome"] == "missed");
            let found = found.expect("it is told");
            assert!(
                found["detail"].as_str().expect("a text").starts_with(&format!("{missed} firings from")),
                "{found}"
            );
        }
        // Afterwards it goes on as always.
        world.pass("2027-01-01T11:00:01Z").await;
        assert_eq!(world.runs(id).await.len(), runs + 1, "{policy}");
        world.service.delete(&format!("{TRIGGERS}/{id}")).await.expect(200);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_schedule_that_was_paused_for_a_day_makes_up_for_nothing(pool: PgPool) {
    let world = World::start(&pool).await;
    let config = json!({"cron": ["* * * * *"], "overlap": "allow", "catch_up": "all"});
    let id = world.schedule("minutely", config).await;
    let paused = world.act(id, "pause", &json!({"note": "too expensive"})).await;
    assert_eq!(
        (&paused["enabled"], &paused["note"], &paused["next"]),
        (&json!(false), &json!("too expensive"), &json!([]))
    );
    world.pass("2027-01-02T00:00:30Z").await;
    assert!(world.runs(id).await.is_empty());
    // It is resumed by the database's clock, which is before its begin here; so that its past is that of the pause, it is
    // moved there.
    let sql = "UPDATE trigger_schedules SET processed_until = now() - interval '1 day'";
    sqlx::query(sql).execute(&pool).await.expect("moved");
    let resumed = world.act(id, "resume", &json!({})).await;
    assert_eq!((&resumed["enabled"], &resumed["note"]), (&json!(true), &json!(null)));
    let sql = "SELECT processed_until > now() - interval '1 minute' FROM trigger_schedules";
    assert!(sqlx::query_scalar::<_, bool>(sql).fetch_one(&pool).await.expect("a row"));
    world.pass("2027-01-01T00:01:00Z").await;
    assert_eq!(world.runs(id).await, [at("2027-01-01T00:00:00Z"), at("2027-01-01T00:01:00Z")]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_schedule_that_becomes_frequent_makes_up_for_nothing_before_the_change(pool: PgPool) {
    let world = World::start(&pool).await;
    let config = json!({"every": "PT24H", "jitter_seconds": 80_000, "overlap": "allow", "catch_up": "all",
        "start_at": "2020-01-01T00:00:00Z"});
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(world.schedule(&format!("s{n}"), config.clone()).await);
    }
    // As if the firing of today, which is still ahead for some of them, was not decided.
    let sql = "UPDATE trigger_schedules SET processed_until = date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - interval '1 hour'";
    sqlx::query(sql).execute(&pool).await.expect("moved");
    let before = db::triggers::now(&pool).await.expect("a time");
    let often = json!({"every": "PT1S", "overlap": "allow", "catch_up": "all", "start_at": "2020-01-01T00:00:00Z"});
    for id in &ids {
        world.service.put(&format!("{TRIGGERS}/{id}"), &json!({"config": often})).await.expect(200);
    }
    world.pass_at(db::triggers::now(&pool).await.expect("a time")).await;
    for id in ids {
        let runs = world.runs(id).await;
        assert!(runs.iter().all(|nominal| *nominal > before), "{runs:?} after {before}");
        assert_eq!(world.count(id, "missed").await, 0);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_change_within_the_jitter_loses_nothing_that_is_ahead(pool: PgPool) {
    let world = World::start(&pool).await;
    // Due at each full hour of the database's clock, and late by up to an hour.
    let config =
        json!({"every": "PT1H", "jitter_seconds": 3599, "overlap": "allow", "start_at": "2020-01-01T00:00:00Z"});
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(world.schedule(&format!("s{n}"), config.clone()).await);
    }
    // As if they had fired up to the last hour but one.
    let sql = "UPDATE trigger_schedules SET processed_until = date_trunc('hour', now()) - interval '1 hour'";
    sqlx::query(sql).execute(&pool).await.expect("moved");
    let mut changed = config.clone();
    changed["catch_up_window_seconds"] = json!(86_399);
    for id in ids {
        world.service.put(&format!("{TRIGGERS}/{id}"), &json!({"config": changed})).await.expect(200);
        let sql = "SELECT due_at, now() FROM trigger_schedules WHERE trigger_id = $1";
        let (due_at, now): (DateTime<Utc>, DateTime<Utc>) =
            sqlx::query_as(sql).bind(id).fetch_one(&pool).await.expect("a row");
        let hour = DateTime::from_timestamp(now.timestamp() / 3600 * 3600, 0).expect("an instant");
        let raw = to_raw(&changed);
        let schedule = Config::read(TriggerKind::Schedule, &Node::new("config", &raw)).expect("valid");
        let Config::Schedule(schedule) = schedule else { unreachable!("it is a schedule") };
        let jittered = schedule.jittered(id, hour);
        // What is due about now may have been made meanwhile.
        if jittered > now + TimeDelta::seconds(15) {
            assert_eq!(due_at, jittered, "the firing of this hour is still ahead");
        } else if jittered < now - TimeDelta::seconds(15) {
            assert!(due_at >= hour + TimeDelta::hours(1), "the firing of this hour is over");
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_change_of_the_name_keeps_history_and_place(pool: PgPool) {
    let world = World::start(&pool).await;
    let id = world.schedule("often", json!({"cron": ["@hourly"]})).await;
    world.pass("2027-01-01T00:00:00Z").await;
    let state = async || -> (DateTime<Utc>, Option<DateTime<Utc>>) {
        let sql = "SELECT processed_until, due_at FROM trigger_schedules";
        sqlx::query_as(sql).fetch_one(&pool).await.expect("a row")
    };
    let (before, place) = (world.trigger(id).await, state().await);
    let change = json!({"name": "renamed", "labels": {"a": "b"}, "workflow_name": "one-step", "priority": 7});
    let renamed = world.service.put(&format!("{TRIGGERS}/{id}"), &change).await.expect(200);
    assert_eq!((&renamed["id"], &renamed["name"]), (&json!(id), &json!("renamed")));
    assert_eq!((&renamed["counters"], &renamed["firings"]), (&before["counters"], &before["firings"]));
    assert_eq!(state().await, place);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_cannot_start_is_recorded_once_and_not_tried_again(pool: PgPool) {
    let world = World::start(&pool).await;
    let id = world.schedule("report", json!({"cron": ["@hourly"]})).await;
    sqlx::query("INSERT INTO event_topics (topic) VALUES ('events')").execute(&pool).await.expect("a topic");
    let workflow = world.service.get("/api/v1/workflow-names/one-step").await.expect(200);
    let path = format!("/api/v1/workflows/{}", workflow["id"].as_str().expect("an id"));
    let schema = json!({"type": "object", "properties": {"text": {"type": "integer"}}});
    world.service.put(&path, &json!({"input_schema": schema})).await.expect(200);
    world.pass("2027-01-01T00:00:01Z").await;
    world.pass("2027-01-01T00:00:02Z").await;
    world.service.delete(&path).await.expect(200);
    world.pass("2027-01-01T01:00:01Z").await;
    world.service.put(&format!("{TRIGGERS}/{id}"), &json!({"workflow_name": "gone"})).await.expect(200);
    world.pass("2027-01-01T02:00:01Z").await;
    let input = json!({"input": {"a": "${trigger.nothing}"}, "workflow_name": "one-step"});
    world.service.put(&format!("{TRIGGERS}/{id}"), &input).await.expect(200);
    world.service.chain("one-step", &["worker"]).await;
    world.pass("2027-01-01T03:00:01Z").await;
    assert!(world.runs(id).await.is_empty());
    let trigger = world.trigger(id).await;
    assert_eq!((&trigger["counters"]["failed_to_start"], &trigger["counters"]["fired"]), (&json!(4), &json!(0)));
    let reasons: Vec<_> =
        trigger["firings"].as_array().expect("a list").iter().map(|one| one["reason"].clone()).collect();
    assert_eq!(reasons, ["input_not_resolved", "workflow_not_found", "workflow_not_active", "input_invalid"]);
    let details = trigger["firings"][3]["detail"].as_str().expect("a text");
    assert!(details.contains("input_data.text"), "{details}");
    let sql = "SELECT to_jsonb(e) FROM webhook_events e WHERE event_type = 'trigger.failed_to_start' ORDER BY position";
    let told: Vec<Value> = sqlx::query_scalar(sql).fetch_all(&pool).await.expect("events");
    let reasons: Vec<_> = told.iter().map(|event| event["data"]["reason"].clone()).collect();
    assert_eq!(reasons, ["input_invalid", "workflow_not_active", "workflow_not_found", "input_not_resolved"]);
    let data = &told[0]["data"];
    let what = json!({"kind": "schedule", "id": id, "name": "report", "at": "2027-01-01T00:00:00Z", "depth": 0});
    assert_eq!((&data["trigger"], &data["count"]), (&what, &json!(1)));
    assert_eq!((&data["detail"], &told[0]["workflow_name"]), (&trigger["firings"][3]["detail"], &json!("one-step")));
    let others: i64 =
        sqlx::query_scalar("SELECT count(*) FROM webhook_events").fetch_one(&pool).await.expect("a count");
    assert_eq!(others, 4);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn failures_in_a_row_pause_a_schedule(pool: PgPool) {
    let world = World::start(&pool).await;
    sqlx::query("INSERT INTO event_topics (topic) VALUES ('events')").execute(&pool).await.expect("a topic");
    let id = world.schedule("fragile", json!({"cron": ["@hourly"], "pause_after_failures": 3})).await;
    for (hour, status) in
        ["FAILED", "FAILED", "COMPLETED", "FAILED", "CANCELLED", "FAILED", "FAILED"].iter().enumerate()
    {
        world.pass(&format!("2027-01-01T0{hour}:00:00Z")).await;
        assert_eq!(world.runs(id).await.len(), hour + 1, "it still fires");
        world.end_runs(id, status).await;
    }
    world.pass("2027-01-01T07:00:00Z").await;
    let trigger = world.trigger(id).await;
    assert_eq!((&trigger["enabled"], &trigger["updated_by"]), (&json!(false), &json!("system")));
    assert_eq!(trigger["note"], "paused because 3 runs in a row have failed");
    assert_eq!(world.runs(id).await.len(), 7);
    let sql = "SELECT data #>> '{schedule,name}' FROM webhook_events WHERE event_type = 'schedule.paused'";
    assert_eq!(sqlx::query_scalar::<_, String>(sql).fetch_all(&pool).await.expect("events"), ["fragile"]);
    let entries = world.service.get(&format!("/api/v1/audit-logs?entity_id={id}")).await.expect(200);
    assert_eq!((&entries["items"][0]["action"], &entries["items"][0]["user_id"]), (&json!("pause"), &json!("system")));
    // The failures before it was resumed do not count.
    world.act(id, "resume", &json!({})).await;
    world.pass("2027-01-01T08:00:00Z").await;
    assert_eq!(world.trigger(id).await["enabled"], true);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_limited_schedule_ends_and_firing_by_hand_does_not_count(pool: PgPool) {
    let world = World::start(&pool).await;
    let id = world
        .schedule("thrice", json!({"cron": ["@hourly"], "remaining": 3, "overlap": "allow", "catch_up": "all"}))
        .await;
    let fired = world.service.post(&format!("{TRIGGERS}/{id}/fire"), &json!({})).await.expect(202);
    assert_eq!(fired["outcome"], "started");
    let shown = async || {
        let trigger = world.trigger(id).await;
        (trigger["schedule"]["remaining"].clone(), trigger["next"].as_array().expect("a list").len())
    };
    assert_eq!(shown().await, (json!(3), 3));
    world.pass("2027-01-01T00:00:00Z").await;
    world.pass("2027-01-02T00:00:00Z").await;
    assert_eq!(world.count(id, "fired").await, 4);
    assert_eq!(shown().await, (json!(0), 0));
    let sql = "SELECT remaining = 0 AND due_at IS NULL FROM trigger_schedules";
    assert!(sqlx::query_scalar::<_, bool>(sql).fetch_one(&pool).await.expect("a row"));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn many_processes_start_each_run_once(pool: PgPool) {
    let world = World::start(&pool).await;
    let mut ids = Vec::new();
    for n in 0..20 {
        let config = json!({"cron": ["*/5 * * * * *"], "overlap": "allow", "catch_up": "all"});
        ids.push(world.schedule(&format!("s{n}"), config).await);
    }
    let others: Vec<Scheduler> = (0..5).map(|_| scheduler(&world.service, &pool)).collect();
    let begin = at("2027-01-01T00:00:00Z");
    // Their clocks differ: nobody holds a lease.
    for minute in 0..5 {
        let turn = |(n, scheduler): (i64, &Scheduler)| {
            let (scheduler, now) = (scheduler.clone(), begin + TimeDelta::seconds(minute * 60 + n * 3));
            async move { while scheduler.turn(Some(now), Duration::ZERO).await.expect("a turn") {} }
        };
        join_all((0..).zip(&others).map(turn)).await;
    }
    world.pass_at(begin + TimeDelta::seconds(300)).await;
    let expected: Vec<DateTime<Utc>> = (0..=60).map(|n| begin + TimeDelta::seconds(n * 5)).collect();
    for id in ids {
        assert_eq!(world.runs(id).await, expected);
        assert_eq!(world.count(id, "fired").await, 61);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn ten_thousand_schedules_cost_one_look_at_an_index(pool: PgPool) {
    let world = World::start(&pool).await;
    let id = world.schedule("template", json!({"cron": ["0 0 1 1 *"]})).await;
    let copy = "WITH t AS (
            INSERT INTO triggers (id, organization_id, name, kind, workflow_name, priority, labels, config, enabled,
                created_by, updated_by, created_at, updated_at)
            SELECT gen_random_uuid(), organization_id, 'copy ' || n, kind, workflow_name, priority, labels, config, true, '', '',
                now(), now()
            FROM triggers, generate_series(1, 10000) AS n WHERE id = $1 RETURNING id
        ) INSERT INTO trigger_schedules (trigger_id, due_at, processed_until, failures_since)
          SELECT id, now() + random() * interval '300 days' + interval '1 day', now(), now() FROM t";
    sqlx::query(copy).bind(id).execute(&pool).await.expect("copies");
    sqlx::query("VACUUM ANALYZE trigger_schedules").execute(&pool).await.expect("analysed");
    let sql = format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {}", db::schedules::DUE);
    let mut conn = pool.acquire().await.expect("a connection");
    let explain = sqlx::query_scalar::<_, Value>(sqlx::AssertSqlSafe(sql));
    let plan = explain.bind(None::<DateTime<Utc>>).bind(1000_i64).fetch_one(&mut *conn).await.expect("a plan");
    let text = plan.to_string();
    assert!(text.contains("trigger_schedules_due"), "{text}");
    let blocks = plan[0]["Plan"]["Shared Hit Blocks"].as_i64().expect("a number")
        + plan[0]["Plan"]["Shared Read Blocks"].as_i64().expect("a number");
    assert!(blocks <= 20, "{blocks} blocks: {text}");
    assert!(!world.scheduler.turn(None, Duration::ZERO).await.expect("a turn"));
    assert!(world.runs(id).await.is_empty());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_schedule_of_another_release_or_refused_by_the_database_delays_no_other(pool: PgPool) {
    let world = World::start(&pool).await;
    let strange = world.schedule("strange", json!({"cron": ["@hourly"]})).await;
    let good = world.schedule("good", json!({"cron": ["@hourly"]})).await;
    let sql = "UPDATE triggers SET config = '{\"moon\": \"full\"}' WHERE id = $1";
    sqlx::query(sql).bind(strange).execute(&pool).await.expect("changed");
    world.pass("2027-01-01T00:00:01Z").await;
    assert_eq!((world.runs(strange).await.len(), world.runs(good).await.len()), (0, 1));
    let wrong = world.service.put(&format!("{TRIGGERS}/{strange}"), &json!({"enabled": false})).await;
    assert_eq!(wrong.field_errors(), ["body.config value_error"]);
    let config = json!({"cron": ["@hourly"], "start_at": "2027-01-01T00:00:00Z"});
    world.service.put(&format!("{TRIGGERS}/{strange}"), &json!({"config": config})).await.expect(200);
    world.pass("2027-01-01T01:00:01Z").await;
    assert_eq!(world.runs(strange).await.len(), 1);
}
