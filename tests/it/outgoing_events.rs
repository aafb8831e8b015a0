//! Events for other programs: recorded with the change that they tell of, in the order of the run's log, and sent to the
//! Kafka topic.

use std::collections::BTreeSet;

use axum::response::IntoResponse as _;
use futures_util::future::join_all;
use http::StatusCode;
use rdkafka::message::Message as _;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use workflow_api::{
    config::Config,
    db::{
        migrations::MIGRATOR,
        watches,
        webhook_events::{self, EventRow},
    },
    event::{catalogue, wire_id},
};

use crate::{
    path::{Agent, Executor, completed, ended},
    service::{Service, config, eventually, own_pool, raw_records},
};

const API: &str = "http://localhost:8000/api/v1";

async fn run(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.expect(sql);
}

/// An endpoint, for which events of the organisation are recorded.
async fn endpoint(pool: &PgPool, organization: &str) {
    run(pool, &format!("INSERT INTO webhooks (id, organization_id) VALUES (gen_random_uuid(), '{organization}')"))
        .await;
}

/// Types of the recorded events of a run, or of all events, in their order.
async fn types(pool: &PgPool, run_id: Option<&str>) -> Vec<String> {
    let sql = "SELECT event_type FROM webhook_events WHERE $1::text IS NULL OR run_id = $1 ORDER BY position";
    sqlx::query_scalar(sql).bind(run_id).fetch_all(pool).await.expect("events")
}

/// What the next fan-out takes. For tests without a service, whose own fan-out would take it.
async fn take_next(pool: &PgPool) -> Vec<EventRow> {
    let own = own_pool(pool);
    let mut transaction = own.begin().await.expect("a transaction");
    let rows = webhook_events::take(&mut transaction, 100).await.expect("events");
    transaction.commit().await.expect("committed");
    rows
}

/// The events since the last call, as a fan-out takes them.
async fn take(pool: &PgPool) -> Vec<EventRow> {
    run(pool, "CREATE TABLE IF NOT EXISTS seen_events (id uuid PRIMARY KEY)").await;
    let sql = "SELECT place_events(array_agg(id), min(created_at)) FROM webhook_events";
    sqlx::query(sql).execute(pool).await.expect("places");
    let sql = "WITH seen AS (INSERT INTO seen_events SELECT id FROM webhook_events ON CONFLICT DO NOTHING RETURNING id)
               SELECT e.id, created_at AT TIME ZONE 'UTC' AS created_at, position, organization_id, event_type, run_id, seq,
                   workflow_name, data, traceparent
               FROM webhook_events e JOIN seen USING (id) ORDER BY position";
    sqlx::query_as(sql).fetch_all(pool).await.expect("events")
}

/// The event as an endpoint gets it, which must be as the catalogue says.
fn envelope(row: &EventRow) -> Value {
    let envelope: Value = serde_json::from_str(row.event().envelope(API).get()).expect("JSON");
    let schema = catalogue::find(&row.event_type).expect("a known type").schema();
    let validator = jsonschema::draft202012::options().should_validate_formats(true).build(&schema).expect("a schema");
    let errors: Vec<String> = validator.iter_errors(&envelope).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{envelope:#}: {errors:?}");
    envelope
}

/// A run that other programs have written.
async fn foreign_run(pool: &PgPool, run_id: &str, status: &str) {
    run(
        pool,
        &format!("INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status) VALUES ('{run_id}', 'w', 'w', '{status}')"),
    )
    .await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn each_change_of_a_run_is_an_event_with_its_place_in_the_log(pool: PgPool) {
    endpoint(&pool, "default").await;
    let service = Service::start(&pool);
    let _executor = Executor::start(&service);
    let (_agent, url) = Agent::start(|_, call| completed(call, "fine")).await;
    let (_broken, broken_url) = Agent::start(|_, _| (StatusCode::SERVICE_UNAVAILABLE, "no").into_response()).await;
    service.agent("good", &url).await;
    let bad = json!({"name": "bad", "url": broken_url, "retry_config": {"max_retries": 1, "initial_delay_ms": 100}});
    service.post("/api/v1/agents", &bad).await.expect(201);
    let good = service.chain("good", &["good"]).await;
    let bad = service.chain("bad", &["good", "bad"]).await;
    let done = service.execute(good["id"].as_str().expect("an id")).await;
    ended(&service, &done).await;
    let failed = service.execute(bad["id"].as_str().expect("an id")).await;
    let run = ended(&service, &failed).await;
    service.post(&format!("/api/v1/runs/{failed}/retry"), &json!({})).await.expect(202);
    eventually("it has failed again", || async { (types(&pool, Some(&failed)).await.len() == 7).then_some(()) }).await;
    assert_eq!(types(&pool, Some(&done)).await, ["run.started", "run.completed"]);
    let again = ["run.retried", "run.started", "step.failed", "run.failed"];
    let expected: Vec<&str> = ["run.started", "step.failed", "run.failed"].into_iter().chain(again).collect();
    assert_eq!(types(&pool, Some(&failed)).await, expected);

    let rows = take(&pool).await;
    assert!(rows.windows(2).all(|two| two[0].position < two[1].position));
    let kinds = [
        ("run.started", "run.started"),
        ("run.completed", "run.completed"),
        ("run.failed", "run.failed"),
        ("run.retried", "run.retried"),
        ("step.failed", "attempt.failed"),
    ];
    for row in &rows {
        let event = envelope(row);
        let run_id = row.run_id.as_deref().expect("a run");
        let log = service.get(&format!("/api/v1/runs/{run_id}/logs?page_size=100")).await.expect(200);
        let entry = log["items"].as_array().expect("entries").iter().find(|entry| entry["seq"] == event["data"]["seq"]);
        let kind = kinds.iter().find(|(of, _)| *of == row.event_type).expect("a kind").1;
        assert_eq!(entry.expect("an entry")["kind"], kind, "{event:#}");
        assert_eq!(event["data"]["links"]["run"], format!("{API}/runs/{run_id}"));
        assert!(wire_id(row.id).strip_prefix("evt_").is_some_and(|digits| digits.len() == 32));
    }
    let of_failed: Vec<Value> =
        rows.iter().filter(|row| row.run_id.as_deref() == Some(&failed)).map(envelope).collect();
    let seqs: Vec<i64> = of_failed.iter().map(|event| event["data"]["seq"].as_i64().expect("a place")).collect();
    assert!(seqs.is_sorted_by(|a, b| a < b), "{seqs:?}");
    let data = &of_failed[2]["data"];
    assert_eq!((&data["status"], &data["attempt"]), (&json!("FAILED"), &json!(1)));
    assert_eq!(data["error"]["step_id"], "s1");
    assert_eq!(data["error"]["code"], "http_5xx");
    assert_eq!(data["error"]["message"], run["error_message"]);
    assert_eq!(data["workflow"], json!({"id": bad["id"], "name": "bad", "version": 1}));
    assert_eq!(of_failed[6]["data"]["attempt"], 2);
    assert_eq!(of_failed[1]["data"]["step"]["agent_name"], "bad");
    assert!(take(&pool).await.is_empty(), "each is taken once");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn pauses_cancellations_and_waits_are_events_too(pool: PgPool) {
    endpoint(&pool, "default").await;
    let service = Service::start(&pool);
    let executor = Executor::start(&service);
    let steps = json!({"ask": {"id": "ask", "type": "callback"}});
    let workflow = service.post("/api/v1/workflows", &json!({"name": "w", "start_step": "ask", "steps": steps})).await;
    let run_id = service.execute(workflow.expect(201)["id"].as_str().expect("an id")).await;
    eventually("the step waits", || async {
        types(&pool, Some(&run_id)).await.contains(&"run.waiting".to_owned()).then_some(())
    })
    .await;
    for action in ["pause", "pause", "resume", "resume"] {
        service.send("POST", &format!("/api/v1/runs/{run_id}/{action}"), &[], "").await.expect(200);
    }
    let reason = json!({"reason": "no longer needed"});
    service.post(&format!("/api/v1/runs/{run_id}/cancel"), &reason).await.expect(200);
    assert_eq!(
        types(&pool, Some(&run_id)).await,
        ["run.started", "run.waiting", "run.paused", "run.resumed", "run.cancelled"],
        "what changes nothing is no event, and a step that ends with its run is none"
    );
    let events: Vec<Value> = take(&pool).await.iter().map(envelope).collect();
    assert_eq!(events[1]["data"]["waiting"]["kind"], "callback");
    assert_eq!(events[1]["data"]["waiting"]["step_id"], "ask");
    assert!(!events[1].to_string().contains("/callbacks/"), "the address is a permission");
    assert_eq!(events[4]["data"]["error"]["message"], "Cancelled: no longer needed");
    assert!(events[4]["data"]["ended_at"].is_string());
    drop(executor);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_event_exists_if_and_only_if_the_state_has_changed(pool: PgPool) {
    endpoint(&pool, "default").await;
    foreign_run(&pool, "r", "PENDING").await;
    assert!(types(&pool, None).await.is_empty(), "no executor has begun it");
    // Another program's executor: no statement of ours.
    run(&pool, "UPDATE workflow_runs SET status = 'RUNNING' WHERE run_id = 'r'").await;
    run(&pool, "BEGIN; UPDATE workflow_runs SET status = 'FAILED' WHERE run_id = 'r'; ROLLBACK").await;
    run(&pool, "UPDATE workflow_runs SET status = 'COMPLETED' WHERE run_id = 'r'").await;
    // The end is final, so this changes nothing.
    run(&pool, "UPDATE workflow_runs SET status = 'FAILED' WHERE run_id = 'r'").await;
    run(&pool, "UPDATE workflow_runs SET status = 'COMPLETED', updated_at = now() WHERE run_id = 'r'").await;
    foreign_run(&pool, "begun", "RUNNING").await;
    assert_eq!(types(&pool, Some("r")).await, ["run.started", "run.completed"]);
    assert_eq!(types(&pool, Some("begun")).await, ["run.started"]);
    // Many runs in one statement, some of which change.
    for number in 0..50 {
        foreign_run(&pool, &format!("many-{number}"), if number % 2 == 0 { "RUNNING" } else { "COMPLETED" }).await;
    }
    run(&pool, "UPDATE workflow_runs SET status = 'COMPLETED' WHERE run_id LIKE 'many-%'").await;
    let ended = types(&pool, None).await.iter().filter(|kind| *kind == "run.completed").count();
    assert_eq!(ended, 1 + 25);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn nothing_is_recorded_that_nobody_wants_to_know(pool: PgPool) {
    foreign_run(&pool, "r", "RUNNING").await;
    endpoint(&pool, "other").await;
    run(&pool, "UPDATE workflow_runs SET status = 'FAILED' WHERE run_id = 'r'").await;
    let sql = "SELECT record_event('default', 'schedule.missed', NULL, '{}') IS NULL,
                   record_event('other', 'schedule.missed', NULL, '{\"schedule\": {\"id\": \"s\", \"name\": \"n\"}}') IS NOT NULL";
    let recorded: (bool, bool) = sqlx::query_as(sql).fetch_one(&pool).await.expect("an answer");
    assert_eq!(recorded, (true, true));
    assert_eq!(types(&pool, None).await, ["schedule.missed"]);
    let rows = take_next(&pool).await;
    assert_eq!((rows.len(), rows[0].organization_id.as_str()), (1, "other"));
    assert_eq!(envelope(&rows[0])["data"]["schedule"]["name"], "n");
    // A topic is for all organisations.
    run(&pool, "INSERT INTO event_topics (topic) VALUES ('t')").await;
    run(&pool, "UPDATE workflow_runs SET status = 'PENDING' WHERE run_id = 'r'").await;
    assert_eq!(types(&pool, Some("r")).await, ["run.retried"]);
    assert!(take_next(&pool).await.is_empty(), "it has no endpoint");
}

/// The first event is committed after the second one was taken.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_event_that_is_committed_late_is_not_missed(pool: PgPool) {
    endpoint(&pool, "default").await;
    foreign_run(&pool, "late", "PENDING").await;
    foreign_run(&pool, "early", "PENDING").await;
    let mut late = pool.begin().await.expect("a transaction");
    sqlx::query("UPDATE workflow_runs SET status = 'RUNNING' WHERE run_id = 'late'")
        .execute(&mut *late)
        .await
        .expect("it");
    run(&pool, "UPDATE workflow_runs SET status = 'RUNNING' WHERE run_id = 'early'").await;
    let ids = |rows: Vec<EventRow>| rows.into_iter().map(|row| row.run_id.expect("a run")).collect::<Vec<_>>();
    assert_eq!(ids(take_next(&pool).await), ["early"]);
    late.commit().await.expect("committed");
    assert_eq!(ids(take_next(&pool).await), ["late"]);
    // While one process makes deliveries, another one gets nothing, and what is given up is taken again.
    run(&pool, "UPDATE workflow_runs SET status = 'COMPLETED'").await;
    let own = own_pool(&pool);
    let mut holder = own.begin().await.expect("a transaction");
    assert_eq!(webhook_events::take(&mut holder, 1).await.expect("events").len(), 1);
    assert!(take_next(&pool).await.is_empty());
    holder.rollback().await.expect("rolled back");
    let mut rest = ids(take_next(&pool).await);
    rest.sort();
    assert_eq!(rest, ["early", "late"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn partitions_are_made_ahead_and_dropped_when_everybody_has_seen_them(pool: PgPool) {
    let own = own_pool(&pool);
    endpoint(&pool, "default").await;
    let parts = || async {
        let sql =
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'webhook_events'::regclass ORDER BY 1";
        sqlx::query_scalar::<_, String>(sql).fetch_all(&pool).await.expect("partitions")
    };
    // The migration has made those of today and the next eight days.
    assert_eq!(parts().await.len(), 10);
    let (day, other): (String, String) = sqlx::query_as(
        "SELECT to_char(now() AT TIME ZONE 'UTC' + interval '5 days', 'YYYY_MM_DD'),
             to_char(now() AT TIME ZONE 'UTC' + interval '6 days', 'YYYY_MM_DD')",
    )
    .fetch_one(&pool)
    .await
    .expect("days");
    run(&pool, &format!("DROP TABLE webhook_events_{day}, webhook_events_{other}")).await;
    // An event of a day without a partition is kept all the same, where it stays.
    let insert = "INSERT INTO webhook_events (id, created_at, organization_id, event_type, data, to_fan_out, to_publish)
                  VALUES (gen_random_uuid(), now() + interval '5 days', 'default', 'schedule.missed', '{}', false, false)";
    run(&pool, insert).await;
    webhook_events::keep_partitions(&own, 14).await.expect("kept");
    let made = parts().await;
    assert!(made.len() == 9 && made.contains(&format!("webhook_events_{other}")), "{made:?}");
    run(&pool, "DELETE FROM webhook_events").await;
    webhook_events::keep_partitions(&own, 14).await.expect("kept");
    assert_eq!(parts().await.len(), 10);
    run(&pool, "CREATE TABLE webhook_events_old PARTITION OF webhook_events FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-01-02 00:00+00')").await;
    run(
        &pool,
        "INSERT INTO webhook_events (id, created_at, organization_id, event_type, data, to_fan_out, to_publish)
         SELECT gen_random_uuid(), '2020-01-01 12:00+00', 'default', 'schedule.missed', '{}', n = 1, true FROM generate_series(1, 100) n;
         INSERT INTO webhook_events (id, created_at, organization_id, event_type, data, to_fan_out, to_publish)
         SELECT gen_random_uuid(), '2019-01-01 12:00+00', 'default', 'schedule.missed', '{}', n = 1, false FROM generate_series(1, 100) n",
    )
    .await;
    let old = || async {
        let sql = "SELECT count(*) FILTER (WHERE created_at < '2020-01-01'), count(*) FILTER (WHERE created_at >= '2020-01-01') FROM webhook_events";
        sqlx::query_as::<_, (i64, i64)>(sql).fetch_one(&pool).await.expect("counts")
    };
    webhook_events::keep_partitions(&own, 14).await.expect("kept");
    assert_eq!(old().await, (1, 100), "of those with one that nobody has seen, the partition stays whole");
    run(&pool, "UPDATE webhook_events SET to_fan_out = false; INSERT INTO event_topics (topic) VALUES ('t')").await;
    webhook_events::keep_partitions(&own, 14).await.expect("kept");
    assert_eq!(old().await, (0, 100), "the topic has not got them");
    // A reader of the table delays nobody but the drop.
    run(&pool, "UPDATE webhook_events SET to_publish = false").await;
    let mut reader = pool.begin().await.expect("a transaction");
    sqlx::query("SELECT FROM webhook_events LIMIT 1").execute(&mut *reader).await.expect("read");
    webhook_events::keep_partitions(&own, 14).await.expect("given up for now");
    assert_eq!(old().await, (0, 100));
    reader.commit().await.expect("done");
    webhook_events::keep_partitions(&own, 14).await.expect("kept");
    assert_eq!(old().await, (0, 0));
    assert_eq!(parts().await.len(), 10);
}

/// A topic of the test's own.
fn with_topic(pool: &PgPool) -> Config {
    config(pool, &[("KAFKA_EVENTS_TOPIC", &format!("events-{}", uuid::Uuid::new_v4().simple()))])
}

/// The first `count` events of the topic, with their keys; each is as the documents say.
async fn published(config: &Config, count: usize) -> Vec<(String, Value)> {
    let topic = config.kafka.events_topic.clone().expect("a topic");
    let schema: Value = serde_json::from_str(include_str!("../../docs/kafka/event.schema.json")).expect("a schema");
    let validator = jsonschema::draft202012::options().should_validate_formats(true).build(&schema).expect("a schema");
    let records = raw_records(config, &topic, count, |_| true).await;
    let read = records.iter().map(|record| {
        let value: Value = serde_json::from_slice(record.payload().expect("a value")).expect("JSON");
        let errors: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{value:#}: {errors:?}");
        let known = catalogue::find(value["type"].as_str().expect("text")).expect("a known type");
        assert!(jsonschema::draft202012::is_valid(&known.data_schema(), &value["data"]), "{value:#}");
        let headers = crate::messages::headers(record);
        assert_eq!(headers["content-type"], "application/cloudevents+json; charset=UTF-8");
        let depth = value["data"]["trigger"]["depth"].as_i64().unwrap_or_default();
        assert_eq!(headers["webhook-depth"], depth.to_string());
        let key = String::from_utf8(record.key().expect("a key").to_vec()).expect("text");
        assert_eq!(value["subject"], key);
        (key, value)
    });
    read.collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_topic_gets_the_events_of_a_run_in_their_order_as_cloud_events(pool: PgPool) {
    let service = Service::start_with(with_topic(&pool));
    eventually("the topic is known", || async {
        sqlx::query_scalar::<_, String>("SELECT topic FROM event_topics")
            .fetch_optional(&pool)
            .await
            .expect("a row")
            .map(drop)
    })
    .await;
    let _executor = Executor::start(&service);
    let (_agent, url) = Agent::start(|_, call| completed(call, "fine")).await;
    service.agent("good", &url).await;
    let workflow = service.chain("good", &["good"]).await;
    let id = workflow["id"].as_str().expect("an id").to_owned();
    let runs = join_all((0..20).map(|_| service.execute(&id))).await;
    for run_id in &runs {
        ended(&service, run_id).await;
    }
    run(
        &pool,
        "INSERT INTO dead_letters (id, topic, partition, record_offset, digest, bytes, reason, detail)
                VALUES (gen_random_uuid(), 't', 0, 7, '\\x00', 0, 'invalid_json', 'd')",
    )
    .await;
    let events = published(&service.config, 41).await;
    for run_id in &runs {
        let of_run: Vec<&Value> = events.iter().filter(|(key, _)| key == run_id).map(|(_, event)| event).collect();
        let types: Vec<&str> = of_run.iter().map(|event| event["type"].as_str().expect("text")).collect();
        assert_eq!(types, ["run.started", "run.completed"]);
        assert!(of_run[0]["data"]["seq"].as_i64() < of_run[1]["data"]["seq"].as_i64());
        assert!(of_run.iter().all(|event| event["traceparent"].is_string() && event["source"] == API));
    }
    let letter = events.iter().find(|(_, event)| event["type"] == "dead_letter.created").expect("an event");
    assert_eq!((letter.0.as_str(), &letter.1["data"]["dead_letter"]["offset"]), ("default", &json!(7)));
    let ids: BTreeSet<&str> = events.iter().map(|(_, event)| event["id"].as_str().expect("an id")).collect();
    assert_eq!(ids.len(), 41);
    eventually("all are marked", || async {
        let sql = "SELECT NOT EXISTS (SELECT FROM webhook_events WHERE to_publish)";
        sqlx::query_scalar::<_, bool>(sql).fetch_one(&pool).await.expect("an answer").then_some(())
    })
    .await;
    let sql = "SELECT count(*) FROM webhook_deliveries";
    assert_eq!(sqlx::query_scalar::<_, i64>(sql).fetch_one(&pool).await.expect("a count"), 0, "there is no endpoint");
}

/// The first process has sent the event, and dies before it could say so.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_event_whose_sender_has_died_is_sent_again_with_its_id(pool: PgPool) {
    let config = with_topic(&pool);
    let topic = config.kafka.events_topic.clone().expect("a topic");
    foreign_run(&pool, "r", "PENDING").await;
    run(&pool, "UPDATE workflow_runs SET chain_depth = 3").await;
    // A process that is dead, whose event was sent or not: nobody knows.
    let sql = "INSERT INTO event_topics (topic, owner) VALUES ($1, gen_random_uuid())";
    sqlx::query(sql).bind(&topic).execute(&pool).await.expect("a row");
    run(&pool, "UPDATE workflow_runs SET status = 'RUNNING' WHERE run_id = 'r'").await;
    let service = Service::start_with(config);
    let first = published(&service.config, 1).await;
    eventually("it is marked", || async {
        let sql = "SELECT NOT to_publish FROM webhook_events";
        sqlx::query_scalar::<_, bool>(sql).fetch_one(&pool).await.expect("an answer").then_some(())
    })
    .await;
    run(&pool, "UPDATE webhook_events SET to_publish = true").await;
    assert_eq!(first[0].1["data"]["trigger"], json!({"kind": null, "id": null, "at": null, "depth": 3}));
    let both = published(&service.config, 2).await;
    assert_eq!(both[0], first[0]);
    assert_eq!(both[1], first[0], "consumers drop what they know by its id");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn events_wait_while_kafka_is_away(pool: PgPool) {
    let topic = format!("events-{}", uuid::Uuid::new_v4().simple());
    let settings = [("KAFKA_EVENTS_TOPIC", topic.as_str()), ("KAFKA_BROKERS", "127.0.0.1:1")];
    let service = Service::start_with(config(&pool, &settings));
    eventually("the topic is known", || async {
        sqlx::query_scalar::<_, String>("SELECT topic FROM event_topics")
            .fetch_optional(&pool)
            .await
            .expect("a row")
            .map(drop)
    })
    .await;
    foreign_run(&pool, "r", "RUNNING").await;
    run(&pool, "UPDATE workflow_runs SET status = 'COMPLETED' WHERE run_id = 'r'").await;
    let metrics = || async { service.send("GET", "/metrics", &[], "").await.text };
    assert!(metrics().await.contains("events_pending{reader=\"topic\"} 2"), "{}", metrics().await);
    service.stop().await;
    let service = Service::start_with(config(&pool, &[("KAFKA_EVENTS_TOPIC", &topic)]));
    let types: Vec<Value> =
        published(&service.config, 2).await.into_iter().map(|(_, event)| event["type"].clone()).collect();
    assert_eq!(types, ["run.started", "run.completed"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_topic_that_no_process_wants_any_more_is_forgotten(pool: PgPool) {
    let own = own_pool(&pool);
    let known = || async {
        sqlx::query_scalar::<_, String>("SELECT topic FROM event_topics ORDER BY 1")
            .fetch_all(&pool)
            .await
            .expect("topics")
    };
    run(
        &pool,
        "INSERT INTO event_topics (topic, wanted_at) VALUES ('old', now() - interval '2 hours'), ('new', now())",
    )
    .await;
    webhook_events::forget_topics(&own, Some("old")).await.expect("done");
    assert_eq!(known().await, ["new", "old"], "it is wanted, or was a moment ago");
    webhook_events::forget_topics(&own, None).await.expect("done");
    assert_eq!(known().await, ["new"]);
    // Two processes: one sends, until it is dead.
    let (first, second) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
    let register = "INSERT INTO processes (id, role) VALUES ($1, 'serve'), ($2, 'serve')";
    sqlx::query(register).bind(first).bind(second).execute(&pool).await.expect("rows");
    assert!(webhook_events::hold_topic(&own, "new", first).await.expect("an answer"));
    assert!(!webhook_events::hold_topic(&own, "new", second).await.expect("an answer"));
    sqlx::query("DELETE FROM processes WHERE id = $1").bind(first).execute(&pool).await.expect("dead");
    assert!(webhook_events::hold_topic(&own, "new", second).await.expect("an answer"));
    webhook_events::release_topic(&own, second).await.expect("released");
    assert!(webhook_events::hold_topic(&own, "new", second).await.expect("an answer"));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_breaker_of_an_agent_tells_when_it_opens_and_closes(pool: PgPool) {
    endpoint(&pool, "default").await;
    let service = Service::start(&pool);
    let agent = service.agent("a", "http://127.0.0.1:9/").await;
    let id = agent["id"].as_str().expect("an id");
    for state in ["closed", "open", "half_open", "open", "half_open", "closed", "open"] {
        run(
            &pool,
            &format!(
                "INSERT INTO circuit_breakers (agent_id, state) VALUES ('{id}', 'closed') ON CONFLICT DO NOTHING;
                             UPDATE circuit_breakers SET state = '{state}' WHERE agent_id = '{id}'"
            ),
        )
        .await;
    }
    run(&pool, "DELETE FROM circuit_breakers").await;
    let rows = take(&pool).await;
    let events: Vec<Value> = rows.iter().map(envelope).collect();
    let told: Vec<&str> = rows.iter().map(|row| row.event_type.as_str()).collect();
    assert_eq!(told, ["agent.unavailable", "agent.recovered", "agent.unavailable", "agent.recovered"]);
    assert_eq!(events[0]["data"]["agent"], json!({"id": id, "name": "a"}));
}

/// The deadline of a run that has not ended, and of one that has.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_missed_deadline_is_one_event_however_many_processes_look(pool: PgPool) {
    endpoint(&pool, "default").await;
    let service = Service::start(&pool);
    service.agent("worker", "http://127.0.0.1:9/").await;
    let steps = json!({"s": {"id": "s", "agent_name": "worker", "input_mapping": {"text": "hi"}}});
    let body = json!({"name": "w", "start_step": "s", "steps": steps, "deadline_seconds": 3600});
    let workflow = service.post("/api/v1/workflows", &body).await.expect(201);
    assert_eq!((&workflow["deadline_seconds"], &workflow["deadline_action"]), (&json!(3600), &json!(null)));
    let path = format!("/api/v1/workflows/{}/execute", workflow["id"].as_str().expect("an id"));
    let start = async |more: Value| {
        let mut body = json!({"input_data": {}});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        service.post(&path, &body).await.expect(202)["run_id"].as_str().expect("an id").to_owned()
    };
    let (late, own, in_time) = (
        start(json!({})).await,
        start(json!({"deadline_seconds": 60, "deadline_action": "cancel"})).await,
        start(json!({})).await,
    );
    let sql = "SELECT run_id, extract(epoch FROM deadline_at - created_at AT TIME ZONE 'UTC')::float8, deadline_action
               FROM workflow_runs ORDER BY created_at, run_id";
    let deadlines: Vec<(String, f64, Option<String>)> = sqlx::query_as(sql).fetch_all(&pool).await.expect("rows");
    for (run_id, seconds, action) in deadlines {
        let (expected, of_run) = if run_id == own { (60.0, Some("cancel")) } else { (3600.0, None) };
        assert!((seconds - expected).abs() < 30.0 && action.as_deref() == of_run, "{run_id}: {seconds} {action:?}");
    }
    assert!(service.get(&format!("/api/v1/runs/{late}")).await.expect(200)["deadline_at"].is_string());
    run(
        &pool,
        &format!("UPDATE workflow_runs SET status = 'COMPLETED', completed_at = now() WHERE run_id = '{in_time}'"),
    )
    .await;
    let pass = "UPDATE workflow_runs SET deadline_at = now() - interval '1 second', deadline_due_at = now() - interval '1 second'";
    run(&pool, pass).await;
    let pools: Vec<_> = (0..5).map(|_| own_pool(&pool)).collect();
    for _ in 0..3 {
        join_all(pools.iter().map(async |own| watches::miss_deadlines(own).await.expect("looked"))).await;
    }
    let cancelled = eventually("the service cancels it", || async {
        let found = service.get(&format!("/api/v1/runs/{own}")).await.expect(200);
        if found["status"] == "CANCELLED" {
            return Some(found);
        }
        // Whoever has seen it first has perhaps given up.
        let again = format!("UPDATE workflow_runs SET deadline_due_at = now() WHERE run_id = '{own}'");
        run(&pool, &again).await;
        None
    })
    .await;
    assert_eq!(cancelled["error_message"], "Cancelled: the deadline of 60 s was missed");
    assert_eq!(types(&pool, Some(&late)).await, ["run.deadline_missed"]);
    assert_eq!(types(&pool, Some(&own)).await, ["run.deadline_missed", "run.cancelled"]);
    assert_eq!(types(&pool, Some(&in_time)).await, ["run.completed"]);
    let missed = service.get(&format!("/api/v1/runs/{late}")).await.expect(200);
    assert!(missed["deadline_missed_at"].is_string() && missed["status"] == "PENDING", "{missed}");
    assert!(service.get(&format!("/api/v1/runs/{in_time}")).await.expect(200).get("deadline_missed_at").is_none());
    let rows = take(&pool).await;
    let event = rows.iter().find(|row| row.run_id.as_deref() == Some(&own)).map(envelope).expect("an event");
    assert_eq!(
        (&event["data"]["deadline"]["seconds"], &event["data"]["deadline"]["action"]),
        (&json!(60), &json!("cancel"))
    );
    // A retry has its whole deadline again.
    service.post(&format!("/api/v1/runs/{own}/retry"), &json!({})).await.expect(202);
    let run = service.get(&format!("/api/v1/runs/{own}")).await.expect(200);
    assert!(run["deadline_at"].is_string() && run.get("deadline_missed_at").is_none(), "{run}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn silence_is_one_event_until_the_next_success(pool: PgPool) {
    endpoint(&pool, "default").await;
    let own = own_pool(&pool);
    let service = Service::start(&pool);
    let steps = json!({"s": {"id": "s", "type": "wait", "wait_config": {"duration_seconds": 1}}});
    let body = json!({"name": "w", "start_step": "s", "steps": steps, "silence_hours": 24});
    let workflow = service.post("/api/v1/workflows", &body).await.expect(201);
    let id = workflow["id"].as_str().expect("an id").to_owned();
    let shown = || async { service.get(&format!("/api/v1/workflows/{id}")).await.expect(200) };
    // What has passed by the clock of the database.
    let pass = async |hours: i64| {
        let sql = format!(
            "UPDATE workflow_silences SET watched_since = watched_since - interval '{hours} hours',
                 last_success_at = last_success_at - interval '{hours} hours',
                 silent_since = silent_since - interval '{hours} hours', due_at = now();
             UPDATE workflow_runs SET completed_at = completed_at - interval '{hours} hours'"
        );
        run(&pool, &sql).await;
        let looks = (0..3).map(async |_| watches::find_silence(&own).await.expect("looked"));
        join_all(looks).await;
        eventually("somebody has looked", || async {
            let sql = "SELECT due_at > now() FROM workflow_silences";
            sqlx::query_scalar::<_, bool>(sql).fetch_one(&pool).await.expect("a row").then_some(())
        })
        .await;
    };
    let silent = || async { types(&pool, None).await.iter().filter(|kind| *kind == "workflow.silent").count() };
    pass(23).await;
    assert_eq!((silent().await, shown().await.get("silent_since")), (0, None));
    pass(2).await;
    assert_eq!(silent().await, 1);
    assert!(shown().await["silent_since"].is_string());
    pass(48).await;
    assert_eq!(silent().await, 1, "it was told");
    let succeed = format!(
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, completed_at)
         VALUES (gen_random_uuid()::text, '{id}', 'w', 'COMPLETED', now() AT TIME ZONE 'UTC')"
    );
    run(&pool, &succeed).await;
    let after = shown().await;
    assert!(after["last_success_at"].is_string() && after.get("silent_since").is_none(), "{after}");
    pass(0).await;
    assert_eq!(silent().await, 1);
    pass(25).await;
    assert_eq!(silent().await, 2, "a new silence");
    let rows: Vec<EventRow> = take(&pool).await.into_iter().filter(|row| row.event_type == "workflow.silent").collect();
    let event = envelope(&rows[1]);
    assert_eq!(event["data"]["workflow"], json!({"id": id, "name": "w", "version": 1}));
    assert!(event["data"]["silence"]["last_success_at"].is_string());
    assert_eq!(rows[1].workflow_name.as_deref(), Some("w"));
    // Nothing is watched any more.
    service.put(&format!("/api/v1/workflows/{id}"), &json!({"silence_hours": null})).await.expect(200);
    run(&pool, "UPDATE workflow_silences SET due_at = now()").await;
    eventually("it is forgotten", || async {
        let sql = "SELECT NOT EXISTS (SELECT FROM workflow_silences)";
        sqlx::query_scalar::<_, bool>(sql).fetch_one(&pool).await.expect("an answer").then_some(())
    })
    .await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn deadline_and_silence_are_members_of_a_workflow_and_make_no_new_version(pool: PgPool) {
    let service = Service::start(&pool);
    let steps = json!({"s": {"id": "s", "type": "wait", "wait_config": {"duration_seconds": 1}}});
    let body = |more: Value| {
        let mut body = json!({"name": "w", "start_step": "s", "steps": steps});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        body
    };
    let all = json!({"deadline_seconds": 60, "deadline_action": "cancel", "silence_hours": 2});
    for (wrong, field) in [
        (json!({"deadline_seconds": 0}), "body.deadline_seconds"),
        (json!({"deadline_seconds": 31_622_401}), "body.deadline_seconds"),
        (json!({"deadline_action": "explode"}), "body.deadline_action"),
        (json!({"silence_hours": 8761}), "body.silence_hours"),
        (json!({"silence_hours": "soon"}), "body.silence_hours"),
    ] {
        let answer = service.post("/api/v1/workflows", &body(wrong)).await;
        let errors = answer.field_errors();
        assert!(errors.len() == 1 && errors[0].starts_with(field), "{errors:?}");
    }
    let workflow = service.post("/api/v1/workflows", &body(all.clone())).await.expect(201);
    let path = format!("/api/v1/workflows/{}", workflow["id"].as_str().expect("an id"));
    let members = |of: &Value| json!({"deadline_seconds": of["deadline_seconds"], "deadline_action": of["deadline_action"], "silence_hours": of["silence_hours"]});
    assert_eq!(members(&workflow), all);
    let changed = service.put(&path, &json!({"deadline_seconds": 90, "silence_hours": null})).await.expect(200);
    assert_eq!(
        (&changed["version"], &changed["deadline_seconds"], &changed["silence_hours"]),
        (&json!(1), &json!(90), &json!(null))
    );
    let exported = service.get("/api/v1/export").await.expect(200);
    assert_eq!(exported["workflows"][0]["deadline_seconds"], 90);
    assert_eq!(exported["workflows"][0]["deadline_action"], "cancel");
    assert!(exported["workflows"][0].get("silence_hours").is_none());
    let other = json!({"s": {"id": "s", "type": "wait", "wait_config": {"duration_seconds": 2}}});
    service.put(&path, &json!({"steps": other, "deadline_seconds": 30})).await.expect(200);
    let diff = service.get(&format!("{path}/versions/1/diff/2")).await.expect(200);
    assert_eq!(diff["deadline_seconds"], json!({"before": 90, "after": 30}));
    assert_eq!(diff["deadline_action"], json!(null));
    // The document of the export leads to the same again.
    let imported = service.post("/api/v1/import", &exported).await.expect(200);
    assert!(imported.to_string().contains("updated"), "{imported}");
    assert_eq!(service.get(&path).await.expect(200)["deadline_seconds"], 90);
    let answer = service.post(&format!("{path}/execute"), &json!({"input_data": {}, "deadline_seconds": -1})).await;
    assert!(answer.field_errors()[0].starts_with("body.deadline_seconds"), "{}", answer.text);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_catalogue_and_the_openapi_document_have_the_schema_of_every_type(pool: PgPool) {
    let service = Service::start(&pool);
    let catalogue = service.get("/api/v1/webhook-events").await.expect(200);
    let document = service.get("/openapi.json").await.expect(200);
    let items = catalogue["items"].as_array().expect("types");
    assert_eq!(items.len(), document["webhooks"].as_object().expect("webhooks").len());
    for item in items {
        let name = item["type"].as_str().expect("a name");
        let content = &document["webhooks"][name]["post"]["requestBody"]["content"]["application/json"];
        assert_eq!((&content["schema"], &content["example"]), (&item["schema"], &item["example"]), "{name}");
        assert!(jsonschema::draft202012::is_valid(&item["schema"], &item["example"]), "{name}");
        assert!(!item["description"].as_str().expect("text").is_empty());
    }
    let names: BTreeSet<&str> = items.iter().map(|item| item["type"].as_str().expect("a name")).collect();
    let topic: Value = serde_json::from_str(include_str!("../../docs/kafka/event.schema.json")).expect("a schema");
    let of_topic = topic["properties"]["type"]["enum"].as_array().expect("types");
    assert_eq!(names, of_topic.iter().map(|name| name.as_str().expect("a name")).collect());
    let asyncapi = service.get("/docs/asyncapi.json").await.expect(200);
    assert_eq!(asyncapi["channels"].as_object().expect("channels").len(), 6);
    assert!(!asyncapi.to_string().contains("\"kafka/"), "the schemas are in the document");
}
