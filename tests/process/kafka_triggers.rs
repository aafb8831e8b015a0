//! Kafka triggers with several processes that are killed, and with a database that goes away: no record is lost, and none
//! starts a second run.

use std::time::Duration;

use rdkafka::{
    TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    producer::{FutureProducer, FutureRecord},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;
use workflow_api::kafka;

use crate::{
    dependencies::through_a_line,
    program::{Environment, Program, eventually, free_port},
};

const WAIT: Duration = Duration::from_secs(30);

/// Creates a topic.
pub async fn topic(environment: &Environment, partitions: i32) -> String {
    let name = format!("orders-{}", Uuid::new_v4().simple());
    let admin: AdminClient<DefaultClientContext> =
        kafka::client_config(&environment.kafka()).create().expect("valid settings");
    let topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
    admin.create_topics(&[topic], &AdminOptions::new()).await.expect("an answer")[0].as_ref().expect("a topic");
    name
}

/// Creates a trigger of the topic; returns its group.
async fn trigger(environment: &Environment, topic: &str) -> String {
    environment.chain("each", &["http://127.0.0.1:9/".to_owned()]).await;
    let body = json!({"name": "t", "kind": "kafka", "workflow_name": "each", "input": {"text": "${trigger.value}"},
        "config": {"topic": topic, "start": "earliest", "format": "text"}});
    let answer = environment.post("/api/v1/triggers", &body).await.expect("an answer");
    assert_eq!(answer.status(), 201);
    let trigger: Value = answer.json().await.expect("JSON");
    trigger["kafka"]["group_id"].as_str().expect("a group").to_owned()
}

/// Sends records with these texts, evenly to all partitions.
pub async fn send(environment: &Environment, topic: &str, texts: &[impl AsRef<str>], partitions: usize) {
    let producer: FutureProducer = kafka::producer_config(&environment.kafka()).create().expect("valid settings");
    let sent = texts.iter().enumerate().map(|(place, text)| {
        let partition = i32::try_from(place % partitions).expect("a partition");
        let record = FutureRecord::<str, str>::to(topic).partition(partition).payload(text.as_ref());
        producer.send(record, WAIT)
    });
    for result in futures_util::future::join_all(sent).await {
        result.expect("sent");
    }
}

/// As [`send`], with these numbers.
async fn count_up(environment: &Environment, topic: &str, numbers: std::ops::Range<usize>, partitions: usize) {
    send(environment, topic, &numbers.map(|number| number.to_string()).collect::<Vec<_>>(), partitions).await;
}

async fn count(pool: &PgPool) -> usize {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM workflow_runs").fetch_one(pool).await.expect("a count");
    usize::try_from(count).expect("a count")
}

/// Sum of the offsets that the group has committed.
fn committed(environment: &Environment, group: &str, topic: &str, partitions: i32) -> i64 {
    let client: BaseConsumer =
        kafka::client_config(&environment.kafka()).set("group.id", group).create().expect("valid settings");
    let mut asked = TopicPartitionList::new();
    for partition in 0..partitions {
        asked.add_partition(topic, partition);
    }
    let offsets = client.committed_offsets(asked, WAIT).expect("offsets");
    offsets.elements().iter().filter_map(|element| element.offset().to_raw()).filter(|offset| *offset > 0).sum()
}

/// Each number has one run, and nothing else happened.
async fn each_once(pool: &PgPool, records: usize) {
    let sql =
        "SELECT count(*), count(DISTINCT input_data ->> 'text'), max((input_data ->> 'text')::int) FROM workflow_runs";
    let (runs, texts, last): (i64, i64, i32) = sqlx::query_as(sql).fetch_one(pool).await.expect("counts");
    let records = i64::try_from(records).expect("a count");
    assert_eq!((runs, texts, i64::from(last)), (records, records, records - 1));
    let letters: i64 = sqlx::query_scalar("SELECT count(*) FROM dead_letters").fetch_one(pool).await.expect("a count");
    assert_eq!(letters, 0);
    let fired: i64 = sqlx::query_scalar("SELECT (counters ->> 'fired')::bigint FROM triggers")
        .fetch_one(pool)
        .await
        .expect("a counter");
    assert_eq!(fired, records);
}

/// Another API with this environment, at a port of its own.
fn another(environment: &Environment) -> Program {
    environment.clone().with("API_PORT", &free_port().to_string()).start(&["serve"])
}

/// C2, test 1: offsets are committed once a second, and the process dies between that and the transactions.
#[sqlx::test(migrations = false)]
async fn a_process_that_is_killed_before_its_offsets_are_committed_loses_and_repeats_nothing(pool: PgPool) {
    const RECORDS: usize = 3000;
    let environment = Environment::new(&pool);
    let mut api = environment.serve().await;
    let topic = topic(&environment, 2).await;
    let group = trigger(&environment, &topic).await;
    count_up(&environment, &topic, 0..RECORDS, 2).await;
    let (mut seen, mut killed, mut ahead) = (0, 0, 0);
    while seen < RECORDS {
        seen = eventually("more runs", async || Some(count(&pool).await).filter(|now| *now > seen)).await;
        if killed < 4 && seen < RECORDS {
            api.kill().await;
            killed += 1;
            let stored = committed(&environment, &group, &topic, 2);
            ahead += usize::from(count(&pool).await > usize::try_from(stored).expect("an offset"));
            api = environment.start(&["serve"]);
        }
    }
    assert!(
        killed > 0 && ahead > 0,
        "{killed} were killed, {ahead} of them with runs whose offsets were not committed"
    );
    all_committed(&environment, &group, &topic, 2, RECORDS).await;
    each_once(&pool, RECORDS).await;
}

/// C2, test 4.
#[sqlx::test(migrations = false)]
async fn five_processes_that_come_and_go_under_load_start_each_run_once(pool: PgPool) {
    const RECORDS: usize = 6000;
    let environment = Environment::new(&pool);
    let _first = environment.serve().await;
    let topic = topic(&environment, 6).await;
    let group = trigger(&environment, &topic).await;
    let mut others: Vec<Program> = (1..5).map(|_| another(&environment)).collect();
    let load = async {
        for begin in (0..RECORDS).step_by(500) {
            count_up(&environment, &topic, begin..begin + 500, 6).await;
        }
    };
    let churn = async {
        let (mut seen, mut changed) = (0, 0);
        while seen < RECORDS {
            seen = eventually("more runs", async || Some(count(&pool).await).filter(|now| *now > seen)).await;
            if changed < 6 {
                let victim = &mut others[changed % 4];
                if changed % 3 == 2 {
                    victim.terminate().await;
                } else {
                    victim.kill().await;
                }
                *victim = another(&environment);
                changed += 1;
            }
        }
        assert!(changed > 1, "{changed}");
    };
    tokio::join!(load, churn);
    all_committed(&environment, &group, &topic, 6, RECORDS).await;
    each_once(&pool, RECORDS).await;
}

/// Waits until this number of records waits for the trigger.
async fn lag_is(environment: &Environment, expected: f64) {
    eventually(&format!("the lag is {expected}"), async || {
        let metrics = reqwest::get(format!("{}/metrics", environment.url)).await.ok()?.text().await.ok()?;
        let line = metrics.lines().find(|line| line.starts_with("kafka_trigger_lag"))?;
        let lag: f64 = line.rsplit(' ').next()?.parse().ok()?;
        assert!(lag <= expected, "{lag}");
        (lag >= expected).then_some(())
    })
    .await;
}

/// Ids of the members of the group.
fn members(environment: &Environment, group: &str) -> Vec<String> {
    let client: BaseConsumer = kafka::client_config(&environment.kafka()).create().expect("valid settings");
    let groups = client.fetch_group_list(Some(group), WAIT).expect("an answer");
    groups.groups().iter().flat_map(rdkafka::groups::GroupInfo::members).map(|member| member.id().to_owned()).collect()
}

/// Waits until the group has committed this number of records.
async fn all_committed(environment: &Environment, group: &str, topic: &str, partitions: i32, records: usize) {
    eventually("all offsets are committed", async || {
        let committed = committed(environment, group, topic, partitions);
        (committed == i64::try_from(records).expect("a count")).then_some(())
    })
    .await;
}

/// C2, test 3. The member polls while it waits, so an outage of any length is as this one: `kafka_triggers::reader` is not
/// compiled if a turn of its loop could take longer than the group waits for a poll.
#[sqlx::test(migrations = false)]
async fn while_the_database_is_away_records_wait_and_none_becomes_a_dead_letter(pool: PgPool) {
    let (line, environment) = through_a_line(&pool).await;
    line.connect(true);
    let api = environment.serve().await;
    let topic = topic(&environment, 2).await;
    let group = trigger(&environment, &topic).await;
    count_up(&environment, &topic, 0..10, 2).await;
    all_committed(&environment, &group, &topic, 2, 10).await;
    let before = members(&environment, &group);
    assert_eq!(before.len(), 1);
    line.connect(false);
    count_up(&environment, &topic, 10..1000, 2).await;
    eventually("the reader has noticed", async || {
        let lines = api.log_lines();
        let waits =
            |line: &Value| line["message"].as_str().is_some_and(|text| text.contains("of a Kafka trigger wait"));
        lines.iter().any(waits).then_some(())
    })
    .await;
    lag_is(&environment, 990.0).await;
    // What comes while nothing is read is counted too.
    count_up(&environment, &topic, 1000..1500, 2).await;
    lag_is(&environment, 1490.0).await;
    assert_eq!(committed(&environment, &group, &topic, 2), 10);
    assert_eq!(members(&environment, &group), before);
    line.connect(true);
    all_committed(&environment, &group, &topic, 2, 1500).await;
    each_once(&pool, 1500).await;
    assert_eq!(members(&environment, &group), before);
}

/// C2, the other half of 3.
#[sqlx::test(migrations = false)]
async fn while_the_backlog_is_full_records_wait_and_afterwards_they_run(pool: PgPool) {
    let environment = Environment::new(&pool).with("MAX_BACKLOG", "700");
    let _api = environment.serve().await;
    let topic = topic(&environment, 2).await;
    let group = trigger(&environment, &topic).await;
    count_up(&environment, &topic, 0..10, 2).await;
    all_committed(&environment, &group, &topic, 2, 10).await;
    // Messages of another process, which does not send them.
    let sql = "WITH other AS (
                   INSERT INTO processes (id, role, heartbeat_at)
                   VALUES (gen_random_uuid(), 'serve', now() + interval '1 hour') RETURNING id
               )
               INSERT INTO outbox (run_id, event_id, kind, owner)
               SELECT 'run-' || n, gen_random_uuid(), 'execution', id FROM other, generate_series(1, 700) AS n";
    sqlx::query(sql).execute(&pool).await.expect("messages");
    eventually("the backlog is full", async || {
        let health = environment.get("/health/detailed").await;
        (health["components"]["outbox"]["status"] == "full").then_some(())
    })
    .await;
    count_up(&environment, &topic, 10..1000, 2).await;
    lag_is(&environment, 990.0).await;
    assert_eq!((count(&pool).await, committed(&environment, &group, &topic, 2)), (10, 10));
    sqlx::query("DELETE FROM outbox WHERE run_id NOT IN (SELECT run_id FROM workflow_runs)")
        .execute(&pool)
        .await
        .expect("sent");
    all_committed(&environment, &group, &topic, 2, 1000).await;
    each_once(&pool, 1000).await;
}
