//! What a suspended organisation does by itself: nothing, until it is active again.

use std::time::Duration;

use chrono::{DateTime, Utc};
use rdkafka::{
    ClientConfig, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    producer::{FutureProducer, FutureRecord},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;
use workflow_api::{
    db::{
        self,
        migrations::MIGRATOR,
        webhooks::sending::{self, Places},
    },
    kafka,
};

use super::Admin;
use crate::{
    schedules::{at, scheduler},
    service::{eventually, own_pool},
    webhooks::Receiver,
};

/// Nominal instants of the runs of a trigger.
async fn runs(pool: &PgPool, trigger: &Value) -> Vec<DateTime<Utc>> {
    let id: Uuid = trigger["id"].as_str().expect("an id").parse().expect("a UUID");
    let sql = "SELECT trigger_at FROM workflow_runs WHERE trigger_id = $1 ORDER BY 1";
    sqlx::query_scalar(sql).bind(id).fetch_all(pool).await.expect("instants")
}

async fn end_runs(pool: &PgPool) {
    let sql = "UPDATE workflow_runs SET status = 'COMPLETED', completed_at = now() AT TIME ZONE 'UTC'
               WHERE status IN ('PENDING', 'RUNNING')";
    sqlx::query(sql).execute(pool).await.expect("ended");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_suspended_organisation_starts_and_sends_nothing_until_it_is_active_again(pool: PgPool) {
    let admin = Admin::start(&pool, &[("KAFKA_TRIGGER_TOPICS", "{organization}.*")]);
    let acme = admin.organization("acme", &json!(null)).await;
    acme.workflow("w").await;
    let set = async |status: &str| {
        admin.put("/api/v1/organizations/acme", &json!({"status": status})).await.expect(200);
    };
    let create = async |name: &str, kind: &str, config: Value| {
        let body = json!({"name": name, "kind": kind, "workflow_name": "w", "input": {}, "config": config});
        acme.post("/triggers", &body).await.expect(201)
    };
    let hourly =
        json!({"cron": ["@hourly"], "overlap": "allow", "catch_up": "all", "start_at": "2027-01-01T00:00:00Z"});
    let schedule = create("hourly", "schedule", hourly).await;
    let daily = json!({"cron": ["@daily"], "overlap": "buffer_all", "start_at": "2027-02-01T00:00:00Z"});
    let backfilled = create("daily", "schedule", daily).await;
    let topic = format!("acme.{}", Uuid::new_v4().simple());
    let client = || -> ClientConfig { kafka::client_config(&admin.service.config.kafka) };
    let brokers: AdminClient<DefaultClientContext> = client().create().expect("valid settings");
    let new = [NewTopic::new(&topic, 1, TopicReplication::Fixed(1))];
    brokers.create_topics(&new, &AdminOptions::new()).await.expect("an answer")[0].as_ref().expect("a topic");
    let producer: FutureProducer = client().create().expect("valid settings");
    let send = async || {
        let record = FutureRecord::<str, str>::to(&topic).partition(0).payload("{}");
        producer.send(record, Duration::from_secs(10)).await.expect("sent");
    };
    let read = create("read", "kafka", json!({"topic": topic, "start": "earliest"})).await;
    let receiver = Receiver::content().await;
    let endpoint = json!({"name": "e", "url": receiver.url("/"), "event_types": ["agent.recovered"]});
    acme.post("/webhooks", &endpoint).await.expect(201);

    // While it is active, everything works. A backfill goes on when its run has ended.
    send().await;
    eventually("a record starts a run", async || (runs(&pool, &read).await.len() == 1).then_some(())).await;
    let path = format!("/triggers/{}/backfills", backfilled["id"].as_str().expect("an id"));
    let range = json!({"from": "2027-02-01T00:00:00Z", "to": "2027-02-04T00:00:00Z", "dry_run": false});
    acme.post(&path, &range).await.expect(202);
    let scheduler = scheduler(&admin.service, &pool);
    let pass = async |now: &str| while scheduler.turn(Some(at(now)), Duration::ZERO).await.expect("a turn") {};
    eventually("the backfill begins", async || {
        pass("2026-12-31T00:00:00Z").await;
        (runs(&pool, &backfilled).await.len() == 1).then_some(())
    })
    .await;
    pass("2027-01-01T00:00:01Z").await;
    assert_eq!(runs(&pool, &schedule).await, [at("2027-01-01T00:00:00Z")]);

    set("suspended").await;
    let (own, lease) = (own_pool(&pool), Uuid::new_v4());
    assert!(db::kafka_triggers::enabled(&own, 10).await.expect("triggers").is_empty());
    let group = read["kafka"]["group_id"].as_str().expect("a group");
    let member: BaseConsumer = client().set("group.id", group).create().expect("valid settings");
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(&topic, 0, rdkafka::Offset::Offset(1)).expect("a place");
    eventually("the topic has no reader", async || member.commit(&place, CommitMode::Sync).ok()).await;
    send().await;
    let sql = "SELECT record_event('acme', 'agent.recovered', NULL, '{}')";
    sqlx::query(sql).execute(&pool).await.expect("an event");
    eventually("there is a delivery", async || {
        let sql = "SELECT count(*) FROM webhook_deliveries WHERE state = 'pending' AND due_at <= now()";
        let waiting: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a count");
        (waiting == 1).then_some(())
    })
    .await;
    let places = Places { limit: 10, free: 10, ..Places::default() };
    assert!(sending::claim(&own, Duration::ZERO, lease, &places).await.expect("an answer").is_empty());
    assert!(db::webhooks::counts(&own).await.expect("counts").oldest_due_seconds < f64::EPSILON);
    end_runs(&pool).await;
    pass("2027-01-01T10:00:01Z").await;
    assert_eq!(runs(&pool, &schedule).await.len(), 1);
    assert_eq!(runs(&pool, &backfilled).await.len(), 1);
    assert_eq!(runs(&pool, &read).await.len(), 1);
    assert!(receiver.at("/").is_empty());

    set("active").await;
    receiver.got("/", 1).await;
    eventually("the record is read", async || (runs(&pool, &read).await.len() == 2).then_some(())).await;
    // A schedule goes on as after a pause; the backfill with what is left of it.
    pass("2027-01-01T11:00:01Z").await;
    assert_eq!(runs(&pool, &schedule).await, ["2027-01-01T00:00:00Z", "2027-01-01T11:00:00Z"].map(at));
    eventually("the backfill goes on", async || {
        end_runs(&pool).await;
        pass("2027-01-01T11:00:01Z").await;
        (runs(&pool, &backfilled).await.len() == 3).then_some(())
    })
    .await;
}
