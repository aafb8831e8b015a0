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

/// Sends records with the texts of these numbers, evenly to all partitions.
async fn send(environment: &Environment, topic: &str, numbers: std::ops::Range<usize>, partitions: usize) {
    let producer: FutureProducer = kafka::producer_config(&environment.kafka()).create().expect("valid settings");
    let sent = numbers.map(|number| {
        let (producer, text) = (&producer, number.to_string());
        let partition = i32::try_from(number % partitions).expect("a partition");
        async move {
            let record = FutureRecord::<str, str>::to(topic).partition(partition).payload(&text);
            producer.send(record, WAIT).await.expect("sent");
        }
    });
    futures_util::future::join_all(sent).await;
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
    send(&environment, &topic, 0..RECORDS, 2).await;
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
    eventually("all offsets are committed", async || {
        (committed(&environment, &group, &topic, 2) == i64::try_from(RECORDS).expect("a count")).then_some(())
    })
    .await;
    each_once(&pool, RECORDS).await;
}

/// C2, test 4.
#[sqlx::test(migrations = false)]
async fn three_processes_that_come_and_go_under_load_start_each_run_once(pool: PgPool) {
    const RECORDS: usize = 6000;
    let environment = Environment::new(&pool);
    let _first = environment.serve().await;
    let topic = topic(&environment, 6).await;
    let group = trigger(&environment, &topic).await;
    let mut others = [another(&environment), another(&environment)];
    let load = async {
        for begin in (0..RECORDS).step_by(500) {
            send(&environment, &topic, begin..begin + 500, 6).await;
        }
    };
    let churn = async {
        let (mut seen, mut changed) = (0, 0);
        while seen < RECORDS {
            seen = eventually("more runs", async || Some(count(&pool).await).filter(|now| *now > seen)).await;
            if changed < 6 {
                let victim = &mut others[changed % 2];
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
    eventually("all offsets are committed", async || {
        (committed(&environment, &group, &topic, 6) == i64::try_from(RECORDS).expect("a count")).then_some(())
    })
    .await;
    each_once(&pool, RECORDS).await;
}

/// C2, test 3.
#[sqlx::test(migrations = false)]
async fn while_the_database_is_away_records_wait_and_none_becomes_a_dead_letter(pool: PgPool) {
    let (line, environment) = through_a_line(&pool).await;
    line.connect(true);
    let api = environment.serve().await;
    let topic = topic(&environment, 2).await;
    let group = trigger(&environment, &topic).await;
    send(&environment, &topic, 0..10, 2).await;
    eventually("the first offsets are committed", async || {
        (committed(&environment, &group, &topic, 2) == 10).then_some(())
    })
    .await;
    line.connect(false);
    send(&environment, &topic, 10..1000, 2).await;
    eventually("the reader has noticed", async || {
        let lines = api.log_lines();
        let waits =
            |line: &Value| line["message"].as_str().is_some_and(|text| text.contains("of a Kafka trigger wait"));
        lines.iter().any(waits).then_some(())
    })
    .await;
    // The lag is read from statistics of the client, every 15 s: the member is still in its group, and reads on.
    eventually("the lag is shown", async || {
        let metrics = reqwest::get(format!("{}/metrics", environment.url)).await.ok()?.text().await.ok()?;
        let lag = metrics
            .lines()
            .find(|line| line.starts_with("kafka_trigger_lag"))?
            .rsplit(' ')
            .next()?
            .parse::<f64>()
            .ok()?;
        (lag >= 900.0).then_some(())
    })
    .await;
    assert_eq!(committed(&environment, &group, &topic, 2), 10);
    line.connect(true);
    eventually("all offsets are committed", async || {
        (committed(&environment, &group, &topic, 2) == 1000).then_some(())
    })
    .await;
    each_once(&pool, 1000).await;
}
