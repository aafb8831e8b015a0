//! Clients of Kafka that lose their brokers.

use std::{collections::HashSet, time::Duration};

use serde_json::json;
use sqlx::PgPool;
use workflow_api::{db::migrations::MIGRATOR, kafka};

use crate::{
    broker::Detour,
    execute::outbox_is_empty,
    path::{Agent, Executor, ended, shouting},
    service::{Service, config, eventually, records},
};

/// One such answer makes librdkafka 2.12 drop its brokers for good (its issue 5301): every client has to be replaced.
#[sqlx::test(migrator = "MIGRATOR")]
async fn clients_that_were_told_that_there_is_no_broker_find_it_again_and_nothing_is_lost_or_doubled(pool: PgPool) {
    let monitoring = format!("monitoring-{}", uuid::Uuid::new_v4().simple());
    let direct = config(&pool, &[("KAFKA_MONITORING_TOPIC", &monitoring), ("KAFKA_TOPIC_PARTITIONS", "1")]);
    let detour = Detour::start().await;
    let mut settings = direct.clone();
    settings.kafka.brokers = detour.address.to_string();
    settings.kafka.renew_after = Duration::from_secs(1);
    let service = Service::start_with(settings);
    let _executor = Executor::start(&service);
    let (agent, url) = Agent::start(shouting).await;
    service.agent("worker", &url).await;
    let workflow_id = service.chain("one", &["worker"]).await["id"].as_str().expect("an id").to_owned();
    let first = service.execute(&workflow_id).await;
    assert_eq!(ended(&service, &first).await["status"], "COMPLETED");
    let kafka_is = async |expected: &str| {
        eventually(&format!("Kafka is {expected}"), || async {
            (service.get("/health/ready").await.json()["checks"]["kafka"] == expected).then_some(())
        })
        .await;
    };

    detour.fence(true);
    kafka_is("disconnected").await;
    let mut runs = HashSet::from([first]);
    for _ in 0..5 {
        runs.insert(service.execute(&workflow_id).await);
    }
    let seen = detour.told();
    // Relay, consumer, monitoring updates and twice dead letters: each has asked, or has lost all whom it could ask.
    eventually("all have been told", || async { (detour.told() >= seen + 5).then_some(()) }).await;
    detour.fence(false);

    kafka_is("connected").await;
    runs.insert(service.execute(&workflow_id).await);
    for run_id in &runs {
        assert_eq!(ended(&service, run_id).await["status"], "COMPLETED");
    }
    assert_eq!(agent.calls().len(), runs.len());
    eventually("the outbox is empty", || outbox_is_empty(&pool)).await;
    let sent: Vec<(String, uuid::Uuid)> =
        sqlx::query_as("SELECT run_id, execution_event_id FROM workflow_runs").fetch_all(&pool).await.expect("runs");
    let dispatched = records(&direct, &direct.kafka.execution_topic, runs.len()).await;
    for record in dispatched {
        let (_, event_id) = sent.iter().find(|(run_id, _)| *run_id == record.key).expect("a run of ours");
        assert_eq!(record.value["event_id"], json!(event_id));
    }
    eventually("observers were told of everything", || async {
        let sql = "SELECT count(*) FROM monitoring_outbox";
        (sqlx::query_scalar::<_, i64>(sql).fetch_one(&pool).await.expect("it") == 0).then_some(())
    })
    .await;
    records(&direct, &monitoring, 3 * runs.len()).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_producer_that_gets_no_acknowledgement_while_brokers_answer_is_replaced_and_nothing_is_lost(pool: PgPool) {
    let direct = config(&pool, &[("KAFKA_TOPIC_PARTITIONS", "1")]);
    let detour = Detour::start().await;
    let mut settings = direct.clone();
    settings.kafka.brokers = detour.address.to_string();
    settings.kafka.stalled_after = Duration::from_secs(2);
    let service = Service::start_with(settings);
    let workflow_id = service.one_step_workflow().await;
    let mut runs = HashSet::from([service.execute(&workflow_id).await]);
    eventually("the outbox is empty", || outbox_is_empty(&pool)).await;
    let before = detour.producers();

    detour.acknowledge(false);
    runs.insert(service.execute(&workflow_id).await);
    eventually("another producer has begun", || async { (detour.producers() > before).then_some(()) }).await;
    // Sooner than librdkafka gives up, which begins anew after eleven attempts.
    assert!((1..=10).contains(&detour.withheld()), "{}", detour.withheld());
    detour.acknowledge(true);

    runs.insert(service.execute(&workflow_id).await);
    eventually("the outbox is empty", || outbox_is_empty(&pool)).await;
    // The broker has what it did not acknowledge, so that it comes twice.
    let sent = records(&direct, &direct.kafka.execution_topic, runs.len() + 1).await;
    assert_eq!(sent.into_iter().map(|record| record.key).collect::<HashSet<_>>(), runs);
}

/// What librdkafka would wait for: a minute for an answer, half a minute for a connection.
#[test]
fn a_broker_that_has_vanished_is_noticed_within_15_seconds() {
    let variables = [("KAFKA_BROKERS".to_owned(), "127.0.0.1:1".to_owned())];
    let settings: workflow_api::config::Kafka =
        workflow_api::config::load(variables.into_iter()).expect("valid settings");
    for config in [kafka::client_config(&settings), kafka::producer_config(&settings)] {
        assert_eq!(config.get("socket.timeout.ms"), Some("15000"));
        assert_eq!(config.get("socket.connection.setup.timeout.ms"), Some("10000"));
    }
    assert_eq!(kafka::producer_config(&settings).get("request.timeout.ms"), Some("10000"));
}
