//! Kafka triggers: records of topics that start runs. What needs several processes, or a process that dies, is in
//! tests/process.

use std::time::Duration;

use rdkafka::{
    ClientConfig, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;
use workflow_api::{config::Config, db::migrations::MIGRATOR, kafka, trigger::kafka::Start};

use crate::service::{Answer, Service, config, eventually};

const TRIGGERS: &str = "/api/v1/triggers";
const WAIT: Duration = Duration::from_secs(10);

/// A service with the workflow `one-step`, and a topic.
struct World {
    service: Service,
    topic: String,
    producer: FutureProducer,
    pool: PgPool,
}

impl World {
    async fn start(pool: &PgPool, partitions: i32) -> Self {
        Self::start_with(pool, partitions, &[]).await
    }

    async fn start_with(pool: &PgPool, partitions: i32, settings: &[(&str, &str)]) -> Self {
        let service = Service::start_with(config(pool, settings));
        service.one_step_workflow().await;
        let producer = client(&service.config)
            .set("message.max.bytes", "4000000")
            .set("compression.type", "gzip")
            .create()
            .expect("valid settings");
        let world =
            Self { service, topic: format!("orders-{}", Uuid::new_v4().simple()), producer, pool: pool.clone() };
        world.create_topic(partitions).await;
        world
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        client(&self.service.config).create().expect("valid settings")
    }

    async fn create_topic(&self, partitions: i32) {
        let topic =
            NewTopic::new(&self.topic, partitions, TopicReplication::Fixed(1)).set("max.message.bytes", "4000000");
        let made = self.admin().create_topics(&[topic], &AdminOptions::new()).await.expect("an answer");
        made[0].as_ref().expect("a topic");
    }

    /// Stores a trigger of `one-step`; returns the answer.
    async fn trigger(&self, name: &str, config: Value) -> Value {
        let mut all = json!({"topic": self.topic, "start": "earliest"});
        all.as_object_mut().expect("an object").extend(config.as_object().expect("an object").clone());
        let body = json!({"name": name, "kind": "kafka", "workflow_name": "one-step",
            "input": {"text": "${trigger.value.text:-none}", "key": "${trigger.key}", "at": "${trigger.offset}"},
            "config": all});
        self.service.post(TRIGGERS, &body).await.expect(201)
    }

    async fn shown(&self, trigger: &Value) -> Value {
        self.service.get(&path(trigger)).await.expect(200)
    }

    /// Waits until the group of the trigger has its begin.
    async fn begun(&self, trigger: &Value) {
        eventually("the group begins", || async {
            self.shown(trigger).await["kafka"]["started_at"].is_string().then_some(())
        })
        .await;
    }

    async fn send(&self, partition: i32, key: Option<&str>, value: Option<&[u8]>) {
        self.send_with(partition, key, value, OwnedHeaders::new()).await;
    }

    async fn send_with(&self, partition: i32, key: Option<&str>, value: Option<&[u8]>, headers: OwnedHeaders) {
        let mut record = FutureRecord::<str, [u8]>::to(&self.topic).partition(partition).headers(headers);
        (record.key, record.payload) = (key, value);
        self.producer.send(record, WAIT).await.expect("sent");
    }

    async fn say(&self, partition: i32, text: &str) {
        self.send(partition, Some("k"), Some(json!({"text": text}).to_string().as_bytes())).await;
    }

    /// Inputs of the runs of a trigger in the order in which these were created, once there are so many.
    async fn inputs(&self, trigger: &Value, count: usize) -> Vec<Value> {
        let id: Uuid = trigger["id"].as_str().expect("an id").parse().expect("a UUID");
        let sql = "SELECT input_data FROM workflow_runs WHERE trigger_id = $1 ORDER BY created_at, (input_data ->> 'at')::bigint";
        eventually(&format!("{count} runs"), || async {
            let all: Vec<Value> = sqlx::query_scalar(sql).bind(id).fetch_all(&self.pool).await.expect("runs");
            assert!(all.len() <= count, "{} runs instead of {count}", all.len());
            (all.len() == count).then_some(all)
        })
        .await
    }

    async fn texts(&self, trigger: &Value, count: usize) -> Vec<String> {
        let inputs = self.inputs(trigger, count).await;
        inputs.iter().map(|input| input["text"].as_str().expect("a text").to_owned()).collect()
    }

    /// Waits until a counter of the trigger has this value.
    async fn counted(&self, trigger: &Value, name: &str, count: i64) {
        eventually(&format!("{name} is {count}"), || async {
            (self.shown(trigger).await["counters"][name] == count).then_some(())
        })
        .await;
    }

    fn client_of_group(&self, trigger: &Value) -> BaseConsumer {
        let group = trigger["kafka"]["group_id"].as_str().expect("a group");
        client(&self.service.config).set("group.id", group).create().expect("valid settings")
    }

    /// Waits until the group has committed this offset.
    async fn committed(&self, trigger: &Value, partition: i32, offset: i64) {
        eventually(&format!("offset {offset} is committed"), || async {
            (self.offset(trigger, partition) == Some(offset)).then_some(())
        })
        .await;
    }

    fn offset(&self, trigger: &Value, partition: i32) -> Option<i64> {
        let mut asked = TopicPartitionList::new();
        asked.add_partition(&self.topic, partition);
        let offsets = self.client_of_group(trigger).committed_offsets(asked, WAIT).ok()?;
        offsets.elements()[0].offset().to_raw().filter(|offset| *offset >= 0)
    }

    async fn act(&self, trigger: &Value, act: &str) -> Value {
        self.service.post(&format!("{}/{act}", path(trigger)), &json!({})).await.expect(200)
    }

    async fn letters(&self) -> Vec<Value> {
        let page = self.service.get("/api/v1/dead-letters?sort_order=asc").await.expect(200);
        page["items"].as_array().expect("items").clone()
    }
}

fn path(trigger: &Value) -> String {
    format!("{TRIGGERS}/{}", trigger["id"].as_str().expect("an id"))
}

/// Places of the invalid members that an answer names.
fn fields(answer: &Answer) -> Vec<String> {
    answer.field_errors().iter().filter_map(|error| error.split(' ').next()).map(str::to_owned).collect()
}

fn client(config: &Config) -> ClientConfig {
    kafka::client_config(&config.kafka)
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_record_starts_a_run_with_what_it_has(pool: PgPool) {
    let world = World::start(&pool, 1).await;
    let trigger = world.trigger("orders", json!({"filter": "${trigger.headers.kind} == 'order'"})).await;
    assert_eq!(trigger["config"]["on_error"], "dead_letter");
    assert_eq!(trigger["kafka"]["group_id"], format!("wf-trigger-{}", trigger["id"].as_str().expect("an id")));
    let of = |kind: &str| OwnedHeaders::new().insert(Header { key: "kind", value: Some(kind) });
    let correlated = of("order").insert(Header { key: "x-correlation-id", value: Some("order-7") });
    world.send_with(0, Some("a"), Some(br#"{"text":"one"}"#), correlated).await;
    world.send_with(0, Some("b"), Some(br#"{"text":"no"}"#), of("other")).await;
    // A tombstone.
    world.send_with(0, Some("c"), None, of("order")).await;
    let inputs = world.inputs(&trigger, 2).await;
    assert_eq!(inputs[0], json!({"text": "one", "key": "a", "at": 0}));
    assert_eq!(inputs[1], json!({"text": "none", "key": "c", "at": 2}));
    world.committed(&trigger, 0, 3).await;
    let shown = world.shown(&trigger).await;
    let counters = json!({"fired": 2, "failed_to_start": 0, "filtered": 1, "repeated": 0, "dead_letters": 0});
    assert_eq!(shown["counters"], counters);
    assert_eq!(shown["firings"].as_array().expect("a list").len(), 2);
    assert_eq!(shown["kafka"]["error"], Value::Null);
    let runs = world.service.get(&format!("/api/v1/runs?trigger_id={}", trigger["id"].as_str().expect("an id"))).await;
    let runs = runs.expect(200)["items"].as_array().expect("a list").clone();
    for run in &runs {
        assert_eq!((&run["triggered_by"], &run["trigger"]["kind"]), (&json!("trigger:orders"), &json!("kafka")));
    }
    let sql = "SELECT count(*) FROM workflow_runs WHERE correlation_id = 'order-7'";
    let correlated: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a count");
    assert_eq!(correlated, 1);
}

/// C2, test 2, and the redrive of what was refused.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_record_that_cannot_work_becomes_one_dead_letter_and_the_next_ones_run(pool: PgPool) {
    let world = World::start(&pool, 1).await;
    world.send(0, None, Some(b"no JSON \xff\0")).await;
    for n in 0..3 {
        world.say(0, &format!("t{n}")).await;
    }
    let trigger = world.trigger("orders", json!({"filter": "${trigger.value.text} > 'a'"})).await;
    world.send(0, None, Some(b"{}")).await;
    assert_eq!(world.texts(&trigger, 3).await, ["t0", "t1", "t2"]);
    world.committed(&trigger, 0, 5).await;
    let letters = world.letters().await;
    let seen: Vec<_> = letters.iter().map(|letter| (&letter["offset"], letter["reason"].as_str())).collect();
    assert_eq!(seen, [(&json!(0), Some("record_unreadable")), (&json!(4), Some("expression_failed"))]);
    for letter in &letters {
        assert_eq!((&letter["trigger_id"], &letter["topic"]), (&trigger["id"], &json!(world.topic)));
        assert_eq!((&letter["organization_id"], &letter["status"]), (&json!("default"), &json!("open")));
    }
    let shown = world.shown(&trigger).await;
    let counters = json!({"fired": 3, "failed_to_start": 2, "filtered": 0, "repeated": 0, "dead_letters": 2});
    assert_eq!(shown["counters"], counters);
    // A second trigger has letters of its own for the same records.
    let other = world.trigger("others", json!({"filter": "${trigger.value.text} > 'a'"})).await;
    world.counted(&other, "dead_letters", 2).await;
    assert_eq!(world.letters().await.len(), 4);

    let redrive = |letter: &Value| format!("/api/v1/dead-letters/{}/redrive", letter["id"].as_str().expect("an id"));
    let still = world.service.post(&redrive(&letters[0]), &json!({})).await;
    assert_eq!(fields(&still), ["body.value"]);
    let corrected = json!({"value": {"text": "mended"}});
    let done = world.service.post(&redrive(&letters[0]), &corrected).await.expect(202);
    assert_eq!(done["status"], "redriven");
    let run = world.service.get(&format!("/api/v1/runs/{}", done["run_id"].as_str().expect("a run"))).await.expect(200);
    assert_eq!(run["input_data"]["text"], "mended");
    assert_eq!(run["trigger"]["id"], trigger["id"]);
    assert_eq!(world.service.post(&redrive(&letters[0]), &corrected).await.expect(202)["run_id"], done["run_id"]);
    assert_eq!(world.texts(&trigger, 4).await.len(), 4);
    // Nothing was sent to the topic, which may be of another program.
    let (_, high) = world.client_of_group(&trigger).fetch_watermarks(&world.topic, 0, WAIT).expect("offsets");
    assert_eq!(high, 5);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn with_stop_a_trigger_is_paused_in_front_of_a_record_that_cannot_work(pool: PgPool) {
    let world = World::start(&pool, 1).await;
    for value in [&br#"{"text":"a"}"#[..], b"{", br#"{"text":"b"}"#] {
        world.send(0, Some("k"), Some(value)).await;
    }
    sqlx::query("INSERT INTO event_topics (topic) VALUES ('events')").execute(&pool).await.expect("a topic");
    let trigger = world.trigger("orders", json!({"on_error": "stop"})).await;
    eventually("it is paused", || async { (world.shown(&trigger).await["enabled"] == false).then_some(()) }).await;
    let shown = world.shown(&trigger).await;
    let note = shown["note"].as_str().expect("a note");
    assert!(note.contains("its value is not JSON"), "{note}");
    assert_eq!(world.texts(&trigger, 1).await, ["a"]);
    // The owner sees the firing that stopped it, and is told.
    let firing = &shown["firings"][0];
    assert_eq!(
        (&firing["outcome"], &firing["reason"]),
        (&json!("failed_to_start"), &json!("record_unreadable")),
        "{shown}"
    );
    assert_eq!((&shown["counters"]["fired"], &shown["counters"]["failed_to_start"]), (&json!(1), &json!(1)));
    let sql = "SELECT data FROM webhook_events WHERE event_type = 'trigger.paused'";
    let told: Vec<Value> = sqlx::query_scalar(sql).fetch_all(&pool).await.expect("events");
    let paused = json!({"organization_id": "default", "trigger": {"kind": "kafka", "id": trigger["id"], "name": "orders"},
        "workflow": {"name": "one-step", "version": null}, "reason": "record_unreadable", "note": note});
    assert_eq!(told, [paused]);
    world.committed(&trigger, 0, 1).await;
    assert!(world.letters().await.is_empty());
    let audit = world.service.get("/api/v1/audit-logs?entity_type=trigger&action=pause").await.expect(200);
    assert_eq!(audit["items"].as_array().expect("a list").len(), 1, "{audit}");
    let config = json!({"topic": world.topic, "start": "earliest", "on_error": "dead_letter"});
    world.service.put(&path(&trigger), &json!({"config": config, "enabled": true})).await.expect(200);
    assert_eq!(world.texts(&trigger, 2).await, ["a", "b"]);
    assert_eq!(world.letters().await.len(), 1);
}

/// A record that an event of a run has caused goes on with its chain, and so does what is told of its dead letter.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_is_one_deeper_than_its_record_and_the_chain_ends(pool: PgPool) {
    let world = World::start(&pool, 1).await;
    sqlx::query("INSERT INTO event_topics (topic) VALUES ('events')").execute(&pool).await.expect("a topic");
    let trigger = world.trigger("orders", json!({})).await;
    for (depth, value) in
        [("15", r#"{"text":"a"}"#), ("16", r#"{"text":"b"}"#), ("x", "{}"), ("2", "no JSON"), ("16", "no JSON")]
    {
        let headers = OwnedHeaders::new().insert(Header { key: "Webhook-Depth", value: Some(depth) });
        world.send_with(0, None, Some(value.as_bytes()), headers).await;
    }
    world.send(0, None, Some(b"not JSON either")).await;
    world.counted(&trigger, "dead_letters", 5).await;
    assert_eq!(world.texts(&trigger, 1).await, ["a"]);
    let depth: i16 = sqlx::query_scalar("SELECT chain_depth FROM workflow_runs").fetch_one(&pool).await.expect("a run");
    assert_eq!(depth, 16);
    let letters = world.letters().await;
    let reasons: Vec<&str> = letters.iter().map(|letter| letter["reason"].as_str().expect("a reason")).collect();
    let expected = ["chain_too_long", "chain_too_long", "record_unreadable", "record_unreadable", "record_unreadable"];
    assert_eq!(reasons, expected);
    // What could make the chain longer is not told.
    let sql = "SELECT data -> 'trigger' FROM webhook_events ORDER BY position";
    let told: Vec<Value> = sqlx::query_scalar(sql).fetch_all(&pool).await.expect("events");
    let of = |depth: i64| json!({"kind": "kafka", "id": trigger["id"], "depth": depth});
    assert_eq!(told, [of(3), of(0)]);
}

/// C2, test 5.
#[sqlx::test(migrator = "MIGRATOR")]
async fn offsets_that_are_reset_by_hand_start_no_second_runs(pool: PgPool) {
    let world = World::start(&pool, 1).await;
    let trigger = world.trigger("orders", json!({})).await;
    for n in 0..5 {
        world.say(0, &format!("t{n}")).await;
    }
    world.inputs(&trigger, 5).await;
    world.committed(&trigger, 0, 5).await;
    world.act(&trigger, "pause").await;
    let mut back = TopicPartitionList::new();
    back.add_partition_offset(&world.topic, 0, rdkafka::Offset::Offset(1)).expect("a place");
    eventually("the group has no members, so its offsets can be reset", || async {
        world.client_of_group(&trigger).commit(&back, CommitMode::Sync).ok()
    })
    .await;
    assert_eq!(world.offset(&trigger, 0), Some(1));
    world.act(&trigger, "resume").await;
    world.counted(&trigger, "repeated", 4).await;
    world.say(0, "new").await;
    assert_eq!(world.texts(&trigger, 6).await.last().map(String::as_str), Some("new"));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_pause_loses_nothing(pool: PgPool) {
    let world = World::start(&pool, 2).await;
    // From now on, by default.
    world.say(0, "before").await;
    let trigger = world.trigger("orders", json!({"start": "latest"})).await;
    world.begun(&trigger).await;
    world.say(0, "first").await;
    assert_eq!(world.texts(&trigger, 1).await, ["first"]);
    world.committed(&trigger, 0, 2).await;
    world.act(&trigger, "pause").await;
    world.say(0, "paused").await;
    world.say(1, "paused too").await;
    assert_eq!(world.texts(&trigger, 1).await, ["first"]);
    world.act(&trigger, "resume").await;
    let mut texts = world.texts(&trigger, 3).await;
    texts.sort();
    assert_eq!(texts, ["first", "paused", "paused too"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_group_without_offsets_begins_where_start_says(pool: PgPool) {
    let world = World::start(&pool, 1).await;
    for (n, time) in [1_700_000_000_000, 1_700_000_100_000, 1_700_000_200_000].into_iter().enumerate() {
        let value = json!({"text": format!("t{n}")}).to_string();
        let record = FutureRecord::<str, str>::to(&world.topic).payload(&value).key("k").timestamp(time);
        world.producer.send(record, WAIT).await.expect("sent");
    }
    let cases = [
        ("earliest", vec!["t0", "t1", "t2", "last"]),
        ("latest", vec!["last"]),
        ("2023-11-14T22:14:00Z", vec!["t1", "t2", "last"]),
        ("2200-01-01T00:00:00Z", vec!["last"]),
    ];
    let mut triggers = Vec::new();
    for (start, expected) in cases {
        let trigger = world.trigger(start, json!({"start": start})).await;
        world.begun(&trigger).await;
        triggers.push((start, trigger, expected));
    }
    world.say(0, "last").await;
    for (start, trigger, expected) in triggers {
        assert_eq!(world.texts(&trigger, expected.len()).await, expected, "{start}");
    }
}

/// C2, test 6.
#[sqlx::test(migrator = "MIGRATOR")]
async fn of_records_with_the_same_key_in_several_partitions_one_starts_a_run(pool: PgPool) {
    let world = World::start(&pool, 3).await;
    for n in 0..12 {
        let value = json!({"text": "x", "order": n % 4}).to_string();
        world.send(n % 3, Some("k"), Some(value.as_bytes())).await;
    }
    let trigger = world.trigger("orders", json!({"idempotency": "${trigger.value.order}"})).await;
    world.counted(&trigger, "repeated", 8).await;
    world.inputs(&trigger, 4).await;
    let value = json!({"text": "x", "order": 2}).to_string();
    world.send(1, Some("k"), Some(value.as_bytes())).await;
    world.counted(&trigger, "repeated", 9).await;
    world.inputs(&trigger, 4).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_record_that_cannot_work_does_not_use_up_its_key(pool: PgPool) {
    let world = World::start(&pool, 1).await;
    for value in [json!({"order": 1}), json!({"order": 1, "text": "good"}), json!({"order": 1, "text": "again"})] {
        world.send(0, Some("k"), Some(value.to_string().as_bytes())).await;
    }
    let body = json!({"name": "n", "kind": "kafka", "workflow_name": "one-step", "input": {"text": "${trigger.value.text}"},
        "config": {"topic": world.topic, "start": "earliest", "idempotency": "${trigger.value.order}"}});
    let trigger = world.service.post(TRIGGERS, &body).await.expect(201);
    world.counted(&trigger, "repeated", 1).await;
    assert_eq!(world.texts(&trigger, 1).await, ["good"]);
    assert_eq!(world.letters().await[0]["reason"], "input_not_resolved");
    world.committed(&trigger, 0, 3).await;
}

/// C2, test 7.
#[sqlx::test(migrator = "MIGRATOR")]
async fn large_records_with_many_headers_in_compressed_batches_are_read(pool: PgPool) {
    let world = World::start(&pool, 1).await;
    let large = json!({"text": "large", "rest": "x".repeat(1 << 20)}).to_string();
    let many = (0..10_000).fold(OwnedHeaders::new(), |headers, n| {
        headers.insert(Header { key: &format!("header-{n}"), value: Some("value") })
    });
    world.send(0, Some("k"), Some(large.as_bytes())).await;
    world.send_with(0, Some("k"), Some(br#"{"text":"headers"}"#), many).await;
    let batch = (0..2000).map(|n| async move { format!("t{n:04}") });
    let texts: Vec<String> = futures_util::future::join_all(batch).await;
    futures_util::future::join_all(texts.iter().map(|text| world.say(0, text))).await;
    let trigger = world.trigger("orders", json!({})).await;
    let mut found = world.texts(&trigger, 2002).await;
    assert_eq!(found[..2], ["large", "headers"]);
    found.sort();
    found.dedup();
    assert_eq!(found.len(), 2002);
    world.committed(&trigger, 0, 2002).await;
    // An input with all of it would be too large for a message.
    let body = json!({"name": "all", "kind": "kafka", "workflow_name": "one-step",
        "config": {"topic": world.topic, "start": "earliest", "filter": "${trigger.offset} == 0"}});
    let all = world.service.post(TRIGGERS, &body).await.expect(201);
    world.counted(&all, "dead_letters", 1).await;
    let letters = world.letters().await;
    assert_eq!((&letters[0]["reason"], &letters[0]["bytes"]), (&json!("too_large"), &json!(large.len())));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn batches_of_every_compression_are_read(pool: PgPool) {
    let mut world = World::start(&pool, 1).await;
    let codecs = ["gzip", "lz4", "none", "snappy", "zstd"];
    for codec in codecs {
        let producer = client(&world.service.config).set("compression.type", codec).create();
        world.producer = producer.unwrap_or_else(|error| panic!("{codec}: {error}"));
        // A single small record is not compressed.
        let text = json!({"text": codec, "rest": "x".repeat(10_000)}).to_string();
        world.send(0, None, Some(text.as_bytes())).await;
    }
    let trigger = world.trigger("orders", json!({})).await;
    assert_eq!(world.texts(&trigger, codecs.len()).await, codecs);
}

/// C2, test 8.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_topic_that_is_created_again_has_other_records_at_the_same_places(pool: PgPool) {
    let world = World::start(&pool, 1).await;
    let trigger = world.trigger("orders", json!({})).await;
    for n in 0..5 {
        world.say(0, &format!("old{n}")).await;
    }
    world.inputs(&trigger, 5).await;
    world.committed(&trigger, 0, 5).await;
    world.act(&trigger, "pause").await;
    let deleted = world.admin().delete_topics(&[&world.topic], &AdminOptions::new()).await.expect("an answer");
    deleted[0].as_ref().expect("deleted");
    eventually("the topic is created again", || async {
        let made = world
            .admin()
            .create_topics(&[NewTopic::new(&world.topic, 1, TopicReplication::Fixed(1))], &AdminOptions::new())
            .await
            .expect("an answer");
        made[0].as_ref().ok().map(drop)
    })
    .await;
    for n in 0..3 {
        world.say(0, &format!("new{n}")).await;
    }
    world.act(&trigger, "resume").await;
    let texts = world.texts(&trigger, 8).await;
    assert_eq!(texts[5..], ["new0", "new1", "new2"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_used_up_quota_makes_records_wait_and_loses_none(pool: PgPool) {
    let world = World::start_with(&pool, 1, &[("QUOTA_QUEUED_RUNS", "3")]).await;
    for n in 0..8 {
        world.say(0, &format!("t{n}")).await;
    }
    let trigger = world.trigger("orders", json!({})).await;
    assert_eq!(world.texts(&trigger, 3).await, ["t0", "t1", "t2"]);
    world.committed(&trigger, 0, 3).await;
    let end =
        "UPDATE workflow_runs SET status = 'FAILED', completed_at = now() AT TIME ZONE 'UTC' WHERE status = 'PENDING'";
    for count in [6, 8] {
        sqlx::query(end).execute(&pool).await.expect("ended");
        world.inputs(&trigger, count).await;
    }
    world.committed(&trigger, 0, 8).await;
    assert!(world.letters().await.is_empty());
    assert_eq!(world.shown(&trigger).await["counters"]["failed_to_start"], 0);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_rate_is_kept_and_all_records_run_in_their_order(pool: PgPool) {
    let world = World::start(&pool, 1).await;
    for n in 0..12 {
        world.say(0, &format!("t{n:02}")).await;
    }
    let trigger = world.trigger("orders", json!({"max_per_second": 4})).await;
    let texts = world.texts(&trigger, 12).await;
    assert_eq!(texts, (0..12).map(|n| format!("t{n:02}")).collect::<Vec<_>>());
    let sql = "SELECT max(n) FROM (SELECT count(*) OVER (ORDER BY created_at RANGE BETWEEN CURRENT ROW
                   AND interval '0.9 second' FOLLOWING) AS n FROM workflow_runs) AS counted";
    let most: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a count");
    // A second without runs is made up for once.
    assert!(most <= 8, "{most} runs in less than a second");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_deleted_trigger_leaves_no_group_and_keeps_its_runs(pool: PgPool) {
    let world = World::start(&pool, 1).await;
    let trigger = world.trigger("orders", json!({"group_id": format!("wf-trigger-{}", Uuid::new_v4())})).await;
    world.say(0, "one").await;
    world.inputs(&trigger, 1).await;
    world.committed(&trigger, 0, 1).await;
    world.service.delete(&path(&trigger)).await.expect(200);
    eventually("the group is gone", || async {
        let left: i64 =
            sqlx::query_scalar("SELECT count(*) FROM kafka_groups_to_delete").fetch_one(&pool).await.ok()?;
        (left == 0 && world.offset(&trigger, 0).is_none()).then_some(())
    })
    .await;
    world.inputs(&trigger, 1).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_owner_sees_why_a_topic_is_not_read(pool: PgPool) {
    let world = World::start(&pool, 1).await;
    let topic = format!("later-{}", Uuid::new_v4().simple());
    let trigger = world.trigger("orders", json!({"topic": topic, "start": "latest"})).await;
    eventually("the reason is shown", || async {
        (world.shown(&trigger).await["kafka"]["error"] == "the topic does not exist").then_some(())
    })
    .await;
    let world = World { topic, ..world };
    world.create_topic(1).await;
    // All that is in a topic that is made later came after the trigger.
    world.say(0, "first").await;
    assert_eq!(world.texts(&trigger, 1).await, ["first"]);
    eventually("no reason is shown any more", || async {
        world.shown(&trigger).await["kafka"]["error"].is_null().then_some(())
    })
    .await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_trigger_that_stops_in_front_of_a_record_does_not_show_an_error_of_before(pool: PgPool) {
    let world = World::start(&pool, 1).await;
    let topic = format!("later-{}", Uuid::new_v4().simple());
    let trigger = world.trigger("orders", json!({"topic": topic, "on_error": "stop"})).await;
    eventually("the reason is shown", || async {
        world.shown(&trigger).await["kafka"]["error"].is_string().then_some(())
    })
    .await;
    let world = World { topic, ..world };
    world.create_topic(1).await;
    world.send(0, None, Some(b"no JSON")).await;
    eventually("it is paused", || async { (world.shown(&trigger).await["enabled"] == false).then_some(()) }).await;
    assert_eq!(world.shown(&trigger).await["kafka"]["error"], Value::Null);
}

/// A process that joins a group of others finds a topic that was made meanwhile, of which nothing is committed yet.
#[sqlx::test(migrator = "MIGRATOR")]
async fn where_a_group_begins_is_settled_while_others_read(pool: PgPool) {
    let world = World::start(&pool, 1).await;
    let group = format!("wf-trigger-{}", Uuid::new_v4());
    let member: BaseConsumer = client(&world.service.config)
        .set("group.id", &group)
        .set("enable.auto.commit", "false")
        .create()
        .expect("valid settings");
    member.subscribe(&[&world.topic]).expect("a subscription");
    eventually("it is a member", || async {
        let _ = member.poll(Duration::ZERO);
        member.assignment().is_ok_and(|partitions| partitions.count() == 1).then_some(())
    })
    .await;
    let (kafka, topic) = (world.service.config.kafka.clone(), world.topic.clone());
    let begin = move |has_begun| {
        kafka::trigger_consumer::begin(&kafka, (&topic, &group), Start::Earliest, has_begun).map_err(|_| "refused")
    };
    let settled = tokio::task::spawn_blocking(move || (begin(true), begin(false))).await.expect("an answer");
    assert_eq!(settled, (Ok(false), Err("refused")));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_cannot_be_read_or_may_not_is_refused_with_its_field(pool: PgPool) {
    let settings = [("MAX_KAFKA_TRIGGERS", "2"), ("KAFKA_TRIGGER_TOPICS", "open.*,{organization}.*")];
    let service = Service::start_with(config(&pool, &settings));
    let body = |name: &str, config: Value| json!({"name": name, "kind": "kafka", "workflow_name": "w", "enabled": false, "config": config});
    let own = service.config.kafka.execution_topic.clone();
    for (config, field) in [
        (json!({}), "topic"),
        (json!({"topic": "other"}), "topic"),
        (json!({"topic": own}), "topic"),
        (json!({"topic": "__consumer_offsets"}), "topic"),
        (json!({"topic": "acme.orders"}), "topic"),
        (json!({"topic": "open.a", "group_id": "billing"}), "group_id"),
        (json!({"topic": "open.a", "filter": "1 +"}), "filter"),
        (json!({"topic": "open.a", "filter": "${workflow.input.x} == 1"}), "filter"),
        (json!({"topic": "open.a", "idempotency": "'always the same'"}), "idempotency"),
    ] {
        let answer = service.post(TRIGGERS, &body("n", config.clone())).await;
        assert_eq!(fields(&answer), [format!("body.config.{field}")], "{config}");
    }
    let group = format!("wf-trigger-{}", Uuid::new_v4());
    let first = service.post(TRIGGERS, &body("a", json!({"topic": "open.a", "group_id": group}))).await.expect(201);
    let taken = service.post(TRIGGERS, &body("b", json!({"topic": "open.a", "group_id": group}))).await;
    assert_eq!(fields(&taken), ["body.config.group_id"]);
    let moved = service.put(&path(&first), &json!({"config": {"topic": "open.a"}})).await;
    assert_eq!(fields(&moved), ["body.config.group_id"]);
    let closed = service.put(&path(&first), &json!({"config": {"topic": "other", "group_id": group}})).await;
    assert_eq!(fields(&closed), ["body.config.topic"]);
    let about = json!({"config": {"topic": "open.a", "group_id": group, "filter": "${value.n} == 1"}});
    let changed = service.put(&path(&first), &about).await;
    assert_eq!(fields(&changed), ["body.config.filter"]);
    service.post(TRIGGERS, &body("b", json!({"topic": "default.x"}))).await.expect(201);
    let more = service.post(TRIGGERS, &body("c", json!({"topic": "open.a"}))).await.error(409);
    assert_eq!(more["code"], "too_many_kafka_triggers");
    let preview = json!({"trigger": {"value": {"n": 1}}});
    let preview = service.post(&format!("{}/preview", path(&first)), &preview).await.expect(200);
    assert_eq!(preview["reason"], "workflow_not_found");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_trigger_is_exported_and_imported_with_what_it_reads(pool: PgPool) {
    let world = World::start(&pool, 1).await;
    let service = &world.service;
    let (own, other) = (format!("wf-trigger-{}", Uuid::new_v4()), format!("wf-trigger-{}", Uuid::new_v4()));
    let config = json!({"group_id": own, "filter": "${trigger.value.text} != 'no'", "max_per_second": 100});
    let trigger = world.trigger("orders", config).await;
    world.say(0, "first").await;
    assert_eq!(world.texts(&trigger, 1).await, ["first"]);
    world.committed(&trigger, 0, 1).await;
    let document = service.get("/api/v1/export").await.expect(200);
    assert_eq!(document["triggers"][0]["config"], trigger["config"]);
    let import = async |document: &Value| service.post("/api/v1/import", document).await;
    // The same content changes nothing: it reads on with its group.
    assert_eq!(import(&document).await.expect(200)["unchanged"]["triggers"], json!(["orders"]));
    let mut changed = document.clone();
    changed["triggers"][0]["config"]["filter"] = json!("${trigger.value.text} == 'no'");
    assert_eq!(import(&changed).await.expect(200)["updated"]["triggers"], json!(["orders"]));
    world.say(0, "second").await;
    world.say(0, "no").await;
    assert_eq!(world.texts(&trigger, 2).await, ["first", "no"]);
    // Groups belong to one trigger, and topics may be closed: an entry that cannot be is named.
    let mut moved = document.clone();
    moved["triggers"][0]["config"]["group_id"] = json!(other);
    assert_eq!(fields(&import(&moved).await), ["body.triggers.0.config.group_id"]);
    let mut second = document.clone();
    second["triggers"][0]["name"] = json!("second");
    // Another entry follows, which is looked at all the same.
    second["triggers"].as_array_mut().expect("a list").push(
        json!({"name": "third", "kind": "schedule", "workflow_name": "one-step", "config": {"cron": ["@yearly"]}}),
    );
    assert_eq!(fields(&import(&second).await), ["body.triggers.0.config.group_id"]);
    second["triggers"][0]["config"]["topic"] = json!(service.config.kafka.execution_topic);
    assert_eq!(fields(&import(&second).await), ["body.triggers.0.config.topic"]);
    // Where there is no such trigger it is made, with a group of its own.
    second["triggers"][0]["config"] = json!({"topic": world.topic, "group_id": other, "start": "earliest"});
    assert_eq!(import(&second).await.expect(200)["created"]["triggers"], json!(["second", "third"]));
    let page = service.get(&format!("{TRIGGERS}?name=second")).await.expect(200);
    assert_eq!(world.texts(&page["items"][0], 3).await, ["first", "second", "no"]);
}
