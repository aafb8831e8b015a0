//! Brokers that answer and take no messages, and topics with dangerous settings.

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    mocking::MockCluster,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use serde_json::Value;
use sqlx::PgPool;

use crate::program::{Environment, eventually};

/// The errors come from librdkafka's mock: a real broker needs others for this, which go away.
#[sqlx::test(migrations = false)]
async fn messages_wait_while_there_are_not_enough_replicas_and_the_reason_is_shown(pool: PgPool) {
    let broker = MockCluster::new(1).expect("a broker");
    let environment = Environment::new(&pool).with("KAFKA_BROKERS", &broker.bootstrap_servers());
    let kafka = environment.kafka();
    for topic in
        [kafka.execution_topic, kafka.cancellation_topic, kafka.dead_letter_topic].iter().chain(&kafka.monitoring_topic)
    {
        broker.create_topic(topic, 2, 1).expect("a topic");
    }
    let api = environment.serve().await;
    let workflow_id = environment.chain("waiting", &["http://127.0.0.1:9/".to_owned()]).await;
    let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 1000];
    broker.request_errors(RDKafkaApiKey::Produce, &refused);
    let run_id = environment.execute(&workflow_id).await.expect("accepted");
    let problem = "Kafka takes no messages: not enough replicas are in sync";
    eventually("the reason is shown", async || {
        let ready: Value = environment.get("/health/ready").await;
        (ready["status"] == "degraded" && ready["problems"][0] == problem && api.log().contains(problem)).then_some(())
    })
    .await;
    let metrics = reqwest::get(format!("{}/metrics", environment.url)).await.expect("an answer").text().await;
    let metrics = metrics.expect("text");
    let refused =
        metrics.lines().find(|line| line.contains(r#"kafka_send_failures_total{reason="not_enough_replicas"}"#));
    assert!(refused.is_some_and(|line| !line.ends_with(" 0")), "{refused:?}");
    // This one waits in the table from the start.
    let second = environment.execute(&workflow_id).await.expect("accepted");

    broker.clear_request_errors(RDKafkaApiKey::Produce);
    environment.wait_for_messages([run_id, second].into()).await;
    eventually("all is well again", async || {
        let ready: Value = environment.get("/health/ready").await;
        (ready["status"] == "ready" && ready.get("problems").is_none()).then_some(())
    })
    .await;
}

#[sqlx::test(migrations = false)]
async fn topics_that_lose_messages_are_reported_at_the_start_and_by_check_kafka(pool: PgPool) {
    let environment = Environment::new(&pool);
    let brokers = &environment.variables["KAFKA_BROKERS"];
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a client");
    let topic = NewTopic::new(&environment.variables["KAFKA_EXECUTION_TOPIC"], 2, TopicReplication::Fixed(1))
        .set("cleanup.policy", "compact")
        .set("max.message.bytes", "1000")
        .set("retention.ms", "1000");
    admin.create_topics([&topic], &AdminOptions::new()).await.expect("a topic");
    let api = environment.serve().await;
    let texts = ["cleanup.policy contains compact", "max.message.bytes is 1000", "retention.ms is 1000"];
    eventually("the settings are reported", async || {
        let log = api.log();
        texts.iter().all(|text| log.contains(text)).then_some(())
    })
    .await;
    let checked = environment.run(&["check", "kafka"]).await;
    let shown = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(!checked.status.success() && texts.iter().all(|text| shown.contains(text)), "{shown}");
    assert!(shown.contains("error: topic execution-") && shown.contains("warning: topic execution-"), "{shown}");
}
