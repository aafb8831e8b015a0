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

use crate::{
    dependencies::through_a_line,
    program::{Environment, eventually},
};

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

/// Kafka acknowledges a message while the database is away.
#[sqlx::test(migrations = false)]
async fn an_outage_of_the_database_is_no_line_for_each_attempt_to_settle_the_outbox(pool: PgPool) {
    let (line, environment) = through_a_line(&pool).await;
    line.connect(true);
    let broker = MockCluster::new(1).expect("a broker");
    let environment = environment.with("KAFKA_BROKERS", &broker.bootstrap_servers());
    let kafka = environment.kafka();
    for topic in
        [kafka.execution_topic, kafka.cancellation_topic, kafka.dead_letter_topic].iter().chain(&kafka.monitoring_topic)
    {
        broker.create_topic(topic, 2, 1).expect("a topic");
    }
    let api = environment.serve().await;
    let workflow_id = environment.chain("late", &["http://127.0.0.1:9/".to_owned()]).await;
    // The messages of a process that is not registered yet wait in the table for a sweep.
    eventually("the API is registered", async || {
        let sql = "SELECT EXISTS (SELECT FROM processes)";
        sqlx::query_scalar::<_, bool>(sql).fetch_one(&pool).await.expect("a truth value").then_some(())
    })
    .await;
    let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 1000];
    broker.request_errors(RDKafkaApiKey::Produce, &refused);
    environment.execute(&workflow_id).await.expect("accepted");
    line.connect(false);
    broker.clear_request_errors(RDKafkaApiKey::Produce);
    let says = async |text: &str| {
        eventually(text, async || api.log().contains(text).then_some(())).await;
    };
    says("outbox rows are settled later").await;
    eventually("the API notices", async || environment.is_ready().await.is_none().then_some(())).await;
    line.connect(true);
    says("outbox rows are settled again").await;
    assert_eq!(api.log().matches("outbox rows are settled later").count(), 1, "{}", api.log());
}
