//! What all triggers have in common: creating, changing, firing by hand, and who may do that.

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{
    access::Quotas,
    actions::{
        fire_trigger::{Cause, Firer, Firing, Outcome, fire},
        start_run::Definitions,
    },
    db::{self, migrations::MIGRATOR},
    input::to_raw,
    offload::Offload,
};

use super::{TRIGGERS, World, at};
use crate::service::own_pool;

fn body(name: &str) -> Value {
    json!({"name": name, "kind": "schedule", "workflow_name": "one-step", "config": {"cron": ["0 0 1 1 *"]}})
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_trigger_is_created_read_changed_and_deleted(pool: PgPool) {
    let world = World::start(&pool).await;
    let service = &world.service;
    let key = [JSON, ("idempotency-key", "k1")];
    let created = service.send("POST", TRIGGERS, &key, body("yearly").to_string()).await;
    let path = created.header("location").expect("a path").to_owned();
    let tag = created.header("etag").expect("a tag").to_owned();
    let created = created.expect(201);
    assert_eq!(
        (&created["enabled"], &created["priority"], &created["version"]),
        (&json!(true), &json!(5), &json!(null))
    );
    assert_eq!(created["config"]["overlap"], "skip");
    let again = service.send("POST", TRIGGERS, &key, body("yearly").to_string()).await;
    assert_eq!((again.header("idempotency-replayed"), &again.json()["id"]), (Some("true"), &created["id"]));
    assert_eq!(service.post(TRIGGERS, &body("yearly")).await.error(409)["code"], "trigger_name_taken");
    let found = service.get(&path).await;
    let shown = found.header("etag").expect("a tag").to_owned();
    assert_eq!(found.expect(200)["name"], "yearly");
    assert_eq!(service.send("GET", &path, &[("if-none-match", &shown)], String::new()).await.status, 304);
    let stale = [JSON, ("if-match", "\"0\"")];
    let change = json!({"priority": 9, "note": "soon", "labels": {"team": "a"}}).to_string();
    assert_eq!(service.send("PUT", &path, &stale, change.clone()).await.status, 412);
    let fresh = [JSON, ("if-match", tag.as_str())];
    let changed = service.send("PUT", &path, &fresh, change).await.expect(200);
    assert_eq!((&changed["priority"], &changed["labels"]), (&json!(9), &json!({"team": "a"})));
    let list = service.get(&format!("{TRIGGERS}?kind=schedule&name_prefix=year&enabled=true")).await.expect(200);
    assert_eq!((&list["total"], &list["items"][0]["id"]), (&json!(1), &created["id"]));
    assert_eq!(service.get(&format!("{TRIGGERS}?enabled=false")).await.expect(200)["total"], 0);
    service.delete(&path).await.expect(200);
    assert_eq!(service.get(&path).await.error(404)["code"], "trigger_not_found");
    let id = created["id"].as_str().expect("an id");
    let entries = service.get(&format!("/api/v1/audit-logs?entity_id={id}")).await.expect(200);
    let actions: Vec<_> =
        entries["items"].as_array().expect("a list").iter().map(|entry| entry["action"].clone()).collect();
    assert_eq!(actions, ["delete", "update", "create"]);
    assert_eq!(entries["items"][1]["after"], json!({"labels": {"team": "a"}, "note": "soon", "priority": 9}));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_wrong_with_a_trigger_is_said_with_its_field(pool: PgPool) {
    let world = World::start(&pool).await;
    for (change, error) in [
        (json!({"kind": "moon"}), "body.kind value_error"),
        (json!({"name": " "}), "body.name value_error"),
        (json!({"config": {"cron": ["0 0 30 2 *"]}}), "body.config.cron value_error"),
        (json!({"config": {"cron": ["x"]}}), "body.config.cron.0 value_error"),
        (json!({"config": {"cron": ["0 * * * *"], "catch_up": "all"}}), "body.config.catch_up value_error"),
        (json!({"config": {"cron": ["0 * * * *"], "zone": "UTC"}}), "body.config.zone extra_forbidden"),
        (json!({"input": {"a": "${workflow.input.x}"}}), "body.input value_error"),
        (json!({"priority": 10}), "body.priority less_than_equal"),
        (json!({"labels": {"a": 1}}), "body.labels.a string_type"),
        (json!({"surprise": 1}), "body.surprise extra_forbidden"),
    ] {
        let mut body = body("wrong");
        for (name, value) in change.as_object().expect("an object") {
            body[name] = value.clone();
        }
        assert_eq!(world.service.post(TRIGGERS, &body).await.field_errors(), [error], "{change}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_trigger_is_fired_by_hand_once_for_a_key_and_previewed_without_effect(pool: PgPool) {
    let world = World::start(&pool).await;
    let id = world.schedule("manual", json!({"cron": ["@hourly"]})).await;
    world.act(id, "pause", &json!({"note": "by hand only"})).await;
    let preview = world.act(id, "preview", &json!({"trigger": {"scheduled_at": "some day"}})).await;
    assert_eq!((&preview["input"], &preview["reason"]), (&json!({"text": "some day"}), &json!(null)));
    assert!(world.runs(id).await.is_empty());
    let path = format!("{TRIGGERS}/{id}/fire");
    let key = [JSON, ("idempotency-key", "once")];
    let fired = world.service.send("POST", &path, &key, "{}").await.expect(202);
    let again = world.service.send("POST", &path, &key, "{}").await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(again.expect(202)["run_id"], fired["run_id"]);
    let run =
        world.service.get(&format!("/api/v1/runs/{}", fired["run_id"].as_str().expect("an id"))).await.expect(200);
    assert_eq!((&run["trigger"]["id"], &run["trigger"]["at"]), (&json!(id), &fired["at"]));
    assert_eq!(world.trigger(id).await["firings"][0]["cause"], "manual");
    world.service.put(&format!("{TRIGGERS}/{id}"), &json!({"workflow_name": "none"})).await.expect(200);
    assert_eq!(world.service.post(&path, &json!({})).await.error(409)["code"], "workflow_not_found");
    assert_eq!(world.act(id, "preview", &json!({})).await["reason"], "workflow_not_found");
    assert_eq!(world.count(id, "failed_to_start").await, 1, "a preview does not count");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn times_are_previewed_without_a_trigger(pool: PgPool) {
    let world = World::start(&pool).await;
    let query = "cron=30+2+*+*+*&time_zone=Europe/Berlin&from=2027-03-27T12:00:00Z&count=2";
    let preview = world.service.get(&format!("{TRIGGERS}/preview?{query}")).await.expect(200);
    assert_eq!(preview["words"], "every day at 02:30, Europe/Berlin");
    assert_eq!(
        preview["times"],
        json!([
            {"at": "2027-03-28T01:00:00Z", "local": "2027-03-28T03:00:00+02:00", "note": "gap"},
            {"at": "2027-03-29T00:30:00Z", "local": "2027-03-29T02:30:00+02:00", "note": null},
        ])
    );
    let version = preview["time_zones"].as_str().expect("a version");
    assert_eq!(world.service.get("/health/detailed").await.expect(200)["time_zones"], version);
    for (query, error) in [
        ("", "query.cron value_error"),
        ("cron=x", "query.cron.0 value_error"),
        ("cron=@daily&time_zone=Mars", "query.time_zone value_error"),
        ("cron=@daily&count=101", "query.count less_than_equal"),
        ("cron=@daily&from=x", "query.from datetime_parsing"),
    ] {
        let answer = world.service.get(&format!("{TRIGGERS}/preview?{query}")).await;
        assert_eq!(answer.field_errors(), [error], "{query}");
    }
    let never = world.service.get(&format!("{TRIGGERS}/preview?cron=0+0+30+2+*")).await.expect(200);
    assert_eq!(never["times"], json!([]));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn several_expressions_are_previewed_together_with_what_is_excluded(pool: PgPool) {
    let world = World::start(&pool).await;
    let preview = async |query: &str| world.service.get(&format!("{TRIGGERS}/preview?{query}")).await;
    let query = "cron=0+9+*+*+*%0A%0A+30+8+*+*+1+&every=P1D&anchor=2027-01-01T12:00:00Z&exclude=2027-01-05%0A0+9+6+1+*\
                 &start_at=2027-01-04T00:00:00Z&end_at=2027-01-06T23:00:00Z&from=2027-01-01T00:00:00Z&count=20";
    let shown = preview(query).await.expect(200);
    let times: Vec<&str> =
        shown["times"].as_array().expect("a list").iter().filter_map(|time| time["at"].as_str()).collect();
    // Not on the 5th, and on the 6th not at nine.
    let expected = ["2027-01-04T08:30:00Z", "2027-01-04T09:00:00Z", "2027-01-04T12:00:00Z", "2027-01-06T12:00:00Z"];
    assert_eq!(times, expected);
    assert_eq!(shown["words"], "every day at 09:00, and every Monday at 08:30, and every P1D, UTC");
    for (query, error) in [
        ("cron=0+9+*+*+*%0Ax", "query.cron.1 value_error"),
        (&*format!("cron={}", "@daily%0A".repeat(11)), "query.cron too_long"),
        ("cron=@daily&exclude=x", "query.exclude.0 value_error"),
        ("cron=@daily&start_at=2027-01-02T00:00:00Z&end_at=2027-01-01T00:00:00Z", "query.end_at value_error"),
    ] {
        assert_eq!(preview(query).await.field_errors(), [error], "{query}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_list_tells_which_triggers_are_ill(pool: PgPool) {
    let world = World::start(&pool).await;
    let names = ["new", "started", "failed", "refused", "missed", "unread"];
    let mut ids = Vec::new();
    for name in names {
        ids.push(world.schedule(name, json!({"cron": ["0 0 1 1 *"]})).await);
    }
    for id in &ids[1..4] {
        if *id == ids[3] {
            world.service.put(&format!("{TRIGGERS}/{id}"), &json!({"workflow_name": "none"})).await.expect(200);
        }
        let fired = world.service.post(&format!("{TRIGGERS}/{id}/fire"), &json!({})).await;
        assert_eq!(fired.status.as_u16(), if *id == ids[3] { 409 } else { 202 }, "{}", fired.text);
    }
    world.end_runs(ids[2], "FAILED").await;
    let sql = "INSERT INTO trigger_firings (trigger_id, nominal_at, cause, outcome, reason)
               VALUES ($1, '2027-01-01Z', 'event', 'missed', 'too_late')";
    sqlx::query(sql).bind(ids[4]).execute(&pool).await.expect("a firing");
    let sql = "INSERT INTO kafka_triggers (trigger_id, group_id, error, error_at) VALUES ($1, 'g', 'no topic', now())";
    sqlx::query(sql).bind(ids[5]).execute(&pool).await.expect("a topic that cannot be read");
    let list = world.service.get(TRIGGERS).await.expect(200);
    let health: Vec<_> = list["items"].as_array().expect("a list").iter().map(|item| item["health"].clone()).collect();
    let shown = |member: &str| health.iter().map(|health| health[member].clone()).collect::<Vec<_>>();
    assert_eq!(shown("status"), ["unknown", "healthy", "failing", "failing", "failing", "failing"]);
    let outcomes = json!([null, "started", "started", "failed_to_start", "missed", null]);
    assert_eq!(json!(shown("outcome")), outcomes);
    assert_eq!(json!(shown("run_status")), json!([null, "PENDING", "FAILED", null, null, null]));
    assert_eq!(json!(shown("reason")), json!([null, null, null, "workflow_not_found", "too_late", null]));
    assert_eq!((&health[5]["error"], health[5]["error_at"].is_string()), (&json!("no topic"), true));
    assert_eq!(health[4]["at"], "2027-01-01T00:00:00Z");
    // A firing that succeeds ends it.
    world.service.put(&format!("{TRIGGERS}/{}", ids[3]), &json!({"workflow_name": "one-step"})).await.expect(200);
    world.service.post(&format!("{TRIGGERS}/{}/fire", ids[3]), &json!({})).await.expect(202);
    let list = world.service.get(&format!("{TRIGGERS}?name=refused")).await.expect(200);
    assert_eq!(list["items"][0]["health"]["status"], "healthy");
    // One trigger shows the same, and its tag tells that the run has failed meanwhile.
    let path = format!("{TRIGGERS}/{}", ids[1]);
    let before = world.service.get(&path).await;
    let tag = before.header("etag").expect("a tag").to_owned();
    assert_eq!(before.expect(200)["health"]["status"], "healthy");
    world.end_runs(ids[1], "FAILED").await;
    let after = world.service.send("GET", &path, &[("if-none-match", &tag)], String::new()).await;
    assert_eq!(after.expect(200)["health"]["status"], "failing");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_chain_of_runs_is_bounded_and_a_present_run_is_not_started_again(pool: PgPool) {
    let world = World::start(&pool).await;
    let id = world.schedule("chain", json!({"cron": ["@hourly"], "overlap": "allow"})).await;
    let (own, definitions, offload) = (own_pool(&pool), Definitions::default(), Offload::default());
    let quotas = Quotas::default();
    let firer = Firer { definitions: &definitions, offload: &offload, quotas: &quotas, audit: true };
    let firing = |run: &str, depth| Firing {
        run_id: format!("run-{run}"),
        at: at("2027-01-01T00:00:00Z"),
        due_at: None,
        what: to_raw(&json!({"scheduled_at": "x"})),
        depth,
        cause: Cause::Event,
        correlation_id: Some("chain-1".to_owned()),
        delivery: None,
    };
    let firings = [firing("a", 16), firing("b", 17)];
    sqlx::query("INSERT INTO event_topics (topic) VALUES ('events')").execute(&pool).await.expect("a topic");
    for round in 0..2 {
        let outcomes = db::in_transaction(&own, async |conn| {
            let trigger = db::triggers::lock_free(conn, id).await?.expect("a trigger");
            Ok::<_, db::Error>(fire(conn, firer, &trigger, &firings).await.expect("outcomes"))
        });
        let outcomes = outcomes.await.expect("committed");
        assert_eq!(outcomes[0], if round == 0 { Outcome::Started } else { Outcome::Present });
        assert!(matches!(&outcomes[1], Outcome::Failed(failure) if failure.reason == "chain_too_long"), "{outcomes:?}");
    }
    let run = world.service.get("/api/v1/runs/run-a").await.expect(200);
    assert_eq!(run["trigger"]["depth"], 16);
    // An event of it could make the chain longer.
    let sql = "SELECT count(*) FROM webhook_events WHERE event_type = 'trigger.failed_to_start'";
    assert_eq!(sqlx::query_scalar::<_, i64>(sql).fetch_one(&pool).await.expect("a count"), 0);
    assert_eq!(world.count(id, "fired").await, 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn triggers_are_exported_and_imported_with_the_workflows(pool: PgPool) {
    let world = World::start(&pool).await;
    let service = &world.service;
    let id = world.schedule("report", json!({"cron": ["0 9 * * 1"], "time_zone": "Europe/Berlin"})).await;
    let document = service.get("/api/v1/export").await.expect(200);
    assert_eq!(document["triggers"][0]["name"], "report");
    let report = service.post("/api/v1/import", &document).await.expect(200);
    assert_eq!(report["unchanged"]["triggers"], json!(["report"]));
    let mut other = document.clone();
    other["triggers"][0]["config"]["cron"] = json!(["0 8 * * 1"]);
    other["triggers"].as_array_mut().expect("a list").push(body("second"));
    let report = service.post("/api/v1/import", &other).await.expect(200);
    assert_eq!(
        (&report["updated"]["triggers"], &report["created"]["triggers"]),
        (&json!(["report"]), &json!(["second"]))
    );
    let trigger = world.trigger(id).await;
    assert_eq!(trigger["config"]["cron"], json!(["0 8 * * 1"]));
    other["triggers"][1]["config"]["cron"] = json!(["x"]);
    assert_eq!(
        service.post("/api/v1/import", &other).await.field_errors(),
        ["body.triggers.1.config.cron.0 value_error"]
    );
}

/// C1, test 6: what the routes show beforehand is when runs start.
#[sqlx::test(migrator = "MIGRATOR")]
async fn schedules_fire_at_the_times_that_the_previews_show(pool: PgPool) {
    const TIMES: usize = 4;
    let world = World::start(&pool).await;
    let minutes = ["*/20", "0", "7,37", "30", "*", "59"];
    let hours = ["*", "2", "1-3", "*/6", "23"];
    let days = ["* * *", "28 * *", "* * 0", "*/9 * 1-5", "* 3,10 *"];
    let zones =
        ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Kathmandu"];
    let mut made = Vec::new();
    for n in 0..150 {
        let cron = format!("{} {} {}", minutes[n % minutes.len()], hours[n % hours.len()], days[n / 7 % days.len()]);
        let (zone, gap, fold) = (zones[n % zones.len()], ["next", "skip"][n % 2], ["auto", "first", "both"][n % 3]);
        // Around both changes of the clocks of 2027.
        let from = ["2027-03-27T21:00:00Z", "2027-10-30T21:00:00Z", "2027-06-01T00:00:00Z"][n / 3 % 3];
        let escaped = cron.replace('*', "%2A").replace('/', "%2F").replace(' ', "+").replace(',', "%2C");
        let query = format!("cron={escaped}&time_zone={zone}&from={from}&count={TIMES}&dst_gap={gap}&dst_fold={fold}");
        let preview = world.service.get(&format!("{TRIGGERS}/preview?{query}")).await.expect(200);
        let times = preview["times"].as_array().expect("a list").iter();
        let times: Vec<_> = times.map(|time| at(time["at"].as_str().expect("a time"))).collect();
        assert_eq!(times.len(), TIMES, "{cron} in {zone}: {preview}");
        let config = json!({"cron": [cron], "time_zone": zone, "dst_gap": gap, "dst_fold": fold, "start_at": from,
            "end_at": times[TIMES - 1], "overlap": "allow", "catch_up": "all", "catch_up_window_seconds": 31_536_000});
        let id = world.schedule(&format!("s{n}"), config.clone()).await;
        let next = world.trigger(id).await["next"].clone();
        made.push((id, times, next, config));
    }
    // What was due longer ago than a year would be missed.
    for now in ["2027-08-01T00:00:00Z", "2028-01-01T00:00:00Z", "2028-06-01T00:00:00Z"] {
        world.pass(now).await;
    }
    for (id, times, next, config) in made {
        assert_eq!(world.runs(id).await, times, "{config}");
        let next = next.as_array().expect("a list").iter().map(|time| at(time.as_str().expect("a time")));
        assert_eq!(next.collect::<Vec<_>>(), times, "{config}");
    }
}
