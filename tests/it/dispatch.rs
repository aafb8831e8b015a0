//! From the outbox to Kafka: at least once, in healthy operation exactly once, in order within a run.

use std::collections::HashSet;

use futures_util::future::join_all;
use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;
use workflow_api::{
    config::Config,
    db::{migrations::MIGRATOR, outbox},
    kafka,
};

use crate::{
    execute::outbox_is_empty,
    service::{Service, config, eventually, records},
};

/// Settings that differ in nothing but in a broker that does not answer.
fn without_kafka(config: &Config) -> Config {
    let mut config = config.clone();
    config.kafka.brokers = "127.0.0.1:1".to_owned();
    config
}

async fn count(pool: &PgPool, sql: &str) -> i64 {
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(pool).await.expect(sql)
}

/// How many records a topic holds.
async fn size_of_topic(config: &Config, topic: &str) -> i64 {
    let (config, topic) = (config.clone(), topic.to_owned());
    let ask = move || {
        let time = std::time::Duration::from_secs(30);
        let consumer: BaseConsumer = kafka::client_config(&config.kafka).create().expect("valid settings");
        let metadata = consumer.fetch_metadata(Some(&topic), time).expect("metadata");
        let partitions = metadata.topics()[0].partitions().iter();
        partitions.map(|partition| consumer.fetch_watermarks(&topic, partition.id(), time).expect("offsets").1).sum()
    };
    tokio::task::spawn_blocking(ask).await.expect("no panic")
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn runs_that_were_accepted_while_kafka_was_away_arrive_when_it_is_back(pool: PgPool) {
    let settings = config(&pool, &[]);
    let service = Service::start_with(without_kafka(&settings));
    let workflow_id = service.one_step_workflow().await;
    let mut accepted = HashSet::new();
    for _ in 0..25 {
        accepted.insert(service.execute(&workflow_id).await);
    }
    assert_eq!(count(&pool, "SELECT count(*) FROM outbox_messages").await, 25);
    service.stop().await;
    assert_eq!(count(&pool, "SELECT count(*) FROM processes").await, 0);

    let service = Service::start_with(settings);
    let sent = records(&service.config, &service.config.kafka.execution_topic, 25).await;
    let arrived: HashSet<String> = sent.iter().map(|record| record.key.clone()).collect();
    assert_eq!(arrived, accepted);
    assert_eq!(sent[0].value["input_data"], json!({"text": "hello"}));
    eventually("the outbox is empty", || outbox_is_empty(&pool)).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn runs_above_the_limit_of_the_backlog_are_refused_until_kafka_is_back(pool: PgPool) {
    let settings = config(&pool, &[("MAX_BACKLOG", "3")]);
    let service = Service::start_with(without_kafka(&settings));
    let workflow_id = service.one_step_workflow().await;
    for _ in 0..3 {
        service.execute(&workflow_id).await;
    }
    eventually("the backlog is full", || async {
        let health = service.get("/health/detailed").await.expect(200);
        (health["components"]["outbox"]["status"] == "full").then_some(())
    })
    .await;
    let path = format!("/api/v1/workflows/{workflow_id}/execute");
    let refused = service.post(&path, &json!({"input_data": {}})).await;
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.expect(503)["code"], "backlog_full");
    assert_eq!(count(&pool, "SELECT count(*) FROM workflow_runs").await, 3);
    service.stop().await;

    let service = Service::start_with(settings);
    eventually("the outbox is empty", || outbox_is_empty(&pool)).await;
    eventually("runs are accepted", || async {
        let health = service.get("/health/detailed").await.expect(200);
        (health["components"]["outbox"]["status"] != "full").then_some(())
    })
    .await;
    service.execute(&workflow_id).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_messages_of_a_process_that_died_are_sent_by_another(pool: PgPool) {
    let settings = config(&pool, &[]);
    let dying = Service::start_with(without_kafka(&settings));
    let workflow_id = dying.one_step_workflow().await;
    eventually("the process is registered", || async {
        (count(&pool, "SELECT count(*) FROM processes").await == 1).then_some(())
    })
    .await;
    let run_id = dying.execute(&workflow_id).await;
    assert_eq!(count(&pool, "SELECT count(*) FROM outbox_messages WHERE owner IS NOT NULL").await, 1);
    // What kill -9 leaves: a row that nobody refreshes any more, and that has been silent for long enough.
    drop(dying);
    let silent = "UPDATE processes SET id = gen_random_uuid(), heartbeat_at = now() - interval '9 seconds'";
    sqlx::query(silent).execute(&pool).await.expect("an update");

    let service = Service::start_with(settings);
    let sent = records(&service.config, &service.config.kafka.execution_topic, 1).await;
    assert_eq!(sent[0].key, run_id);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn two_processes_on_one_database_publish_each_run_once(pool: PgPool) {
    let settings = config(&pool, &[]);
    let services = [Service::start_with(settings.clone()), Service::start_with(settings.clone())];
    let workflow_id = services[0].one_step_workflow().await;
    let runs = join_all((0..300).map(|index| services[index % 2].execute(&workflow_id))).await;
    let sent = records(&settings, &settings.kafka.execution_topic, 300).await;
    let keys: HashSet<&String> = sent.iter().map(|record| &record.key).collect();
    assert_eq!(keys, runs.iter().collect());
    eventually("the outbox is empty", || outbox_is_empty(&pool)).await;
    assert_eq!(size_of_topic(&settings, &settings.kafka.execution_topic).await, 300);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_cancel_and_a_retry_follow_their_run_in_order(pool: PgPool) {
    let settings = config(&pool, &[]);
    let service = Service::start_with(without_kafka(&settings));
    let workflow_id = service.one_step_workflow().await;
    let run_id = service.execute(&workflow_id).await;
    let cancel = json!({"reason": "changed my mind"});
    service.post(&format!("/api/v1/runs/{run_id}/cancel"), &cancel).await.expect(200);
    service.post(&format!("/api/v1/runs/{run_id}/retry"), &json!({})).await.expect(202);
    let events: Vec<(String, Option<String>)> =
        sqlx::query_as("SELECT event_id::text, owner::text FROM outbox_messages ORDER BY created_at")
            .fetch_all(&pool)
            .await
            .expect("rows");
    assert_eq!(events.len(), 3);
    // Only the first may be in a process's memory; the others wait until it is sent.
    assert!(events[1].1.is_none() && events[2].1.is_none(), "{events:?}");
    service.stop().await;

    let service = Service::start_with(settings);
    let executions = records(&service.config, &service.config.kafka.execution_topic, 2).await;
    let sent: Vec<&Value> = executions.iter().map(|record| &record.value["event_id"]).collect();
    assert_eq!(sent, [&json!(events[0].0), &json!(events[2].0)]);
    let cancellations = records(&service.config, &service.config.kafka.cancellation_topic, 1).await;
    let message = &cancellations[0].value;
    assert_eq!(cancellations[0].key, run_id);
    assert_eq!(message["reason"], "changed my mind");
    assert_eq!(message["cancelled_by"], "system");
    assert_eq!(message["message_type"], "cancellation_request");
    assert_eq!(message["event_id"], json!(events[1].0));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn both_topics_are_made_with_the_same_partition_count(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("KAFKA_TOPIC_PARTITIONS", "3")]));
    let topics = [&service.config.kafka.execution_topic, &service.config.kafka.cancellation_topic];
    eventually("the topics are there", || async {
        let (config, topics) = (service.config.clone(), topics.map(String::clone));
        let ask = move || {
            let consumer: BaseConsumer = kafka::client_config(&config.kafka).create().expect("valid settings");
            topics.map(|topic| {
                let time = std::time::Duration::from_secs(30);
                let metadata = consumer.fetch_metadata(Some(&topic), time).expect("metadata");
                metadata.topics()[0].partitions().len()
            })
        };
        (tokio::task::spawn_blocking(ask).await.expect("no panic") == [3, 3]).then_some(())
    })
    .await;
}

/// A broker that lost its data, or the in-process one of `workflow-api dev` after a restart.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_pending_run_that_the_broker_has_forgotten_is_dispatched_again(pool: PgPool) {
    let settings = config(&pool, &[]);
    let service = Service::start_with(settings.clone());
    let workflow_id = service.one_step_workflow().await;
    let run_id = service.execute(&workflow_id).await;
    let first = records(&settings, &settings.kafka.execution_topic, 1).await;
    eventually("the outbox is empty", || outbox_is_empty(&pool)).await;
    let long_ago = "UPDATE workflow_runs SET updated_at = updated_at - interval '1 hour'";
    sqlx::query(long_ago).execute(&pool).await.expect("an update");
    let both = records(&settings, &settings.kafka.execution_topic, 2).await;
    assert_eq!([&both[0].key, &both[1].key], [&run_id, &run_id]);
    assert_eq!(both[1].value["event_id"], first[0].value["event_id"]);
    // Each repeat waits longer than the one before, so a long queue is not filled up with repeats.
    assert_eq!(count(&pool, "SELECT count(*) FROM workflow_runs WHERE redispatch_at > now()").await, 1);
}

/// `jsonb` comes back longer than it was given, with blanks between its tokens and its exponents written out.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_large_input_still_fits_when_its_message_is_made_again(pool: PgPool) {
    let settings = config(&pool, &[]);
    let service = Service::start_with(without_kafka(&settings));
    let workflow_id = service.one_step_workflow().await;
    let path = format!("/api/v1/workflows/{workflow_id}/execute");
    let headers = [("content-type", "application/json")];
    let many = format!(r#"{{"input_data":{{"a":[{}1]}}}}"#, "1,".repeat(500_000));
    let run = service.send("POST", &path, &headers, many).await.expect(202);
    // These would be four times as long.
    let huge = format!(r#"{{"input_data":{{"a":[{}1]}}}}"#, "1e40,".repeat(26_000));
    assert_eq!(service.send("POST", &path, &headers, huge).await.expect(413)["code"], "payload_too_large");
    service.stop().await;

    let service = Service::start_with(settings);
    let sent = records(&service.config, &service.config.kafka.execution_topic, 1).await;
    assert_eq!(json!(sent[0].key), run["run_id"]);
    assert_eq!(sent[0].value["input_data"]["a"].as_array().map(Vec::len), Some(500_001));
}

/// Runs with inputs of that size, and free outbox rows for them, as a dead process leaves them.
async fn leave_free_rows(pool: &PgPool, workflow_id: &str, count: i32, input_bytes: i32) {
    let sql = "WITH run AS (
                   INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, workflow_definition_id, status,
                       input_data, workflow_version, execution_event_id)
                   SELECT 'run-' || gen_random_uuid(), $1, 'one-step', $1, 'PENDING',
                       jsonb_build_object('text', repeat('x', $3)), 1, gen_random_uuid()
                   FROM generate_series(1, $2) RETURNING run_id, execution_event_id)
               INSERT INTO outbox (run_id, event_id, kind) SELECT run_id, execution_event_id, 'execution' FROM run";
    sqlx::query(sql).bind(workflow_id).bind(count).bind(input_bytes).execute(pool).await.expect("rows");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_sweep_takes_no_more_than_the_producer_can_hold_and_ends_when_asked_to(pool: PgPool) {
    let settings = config(&pool, &[]);
    let service = Service::start_with(settings.clone());
    let workflow_id = service.one_step_workflow().await;
    service.stop().await;
    leave_free_rows(&pool, &workflow_id, 800, 200_000).await;
    let statistics =
        "SELECT coalesce(sum(n_tup_upd + n_tup_del), 0)::bigint FROM pg_stat_user_tables WHERE relname = 'outbox'";
    let before = count(&pool, statistics).await;

    let service = Service::start_with(without_kafka(&settings));
    eventually("some rows are taken", || async {
        (count(&pool, "SELECT count(*) FROM outbox_messages WHERE owner IS NOT NULL").await > 100).then_some(())
    })
    .await;
    service.stop().await;
    let changes = count(&pool, statistics).await - before;
    assert!(changes < 5000, "{changes} changes of 800 rows");

    let service = Service::start_with(settings);
    let sent = records(&service.config, &service.config.kafka.execution_topic, 800).await;
    let keys: HashSet<&String> = sent.iter().map(|record| &record.key).collect();
    assert_eq!(keys.len(), 800);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_sweep_reads_no_more_of_a_backlog_than_it_takes_and_in_order_within_a_run(pool: PgPool) {
    leave_free_rows(&pool, "w", 3000, 10).await;
    // The oldest requests are those of the first runs; two of them have a cancellation, one the message of a batch.
    let age = "UPDATE outbox SET created_at = now() - interval '1 hour' + n * interval '1 second'
               FROM (SELECT run_id AS id, row_number() OVER (ORDER BY run_id) AS n FROM outbox) AS numbered
               WHERE run_id = id";
    sqlx::raw_sql(age).execute(&pool).await.expect("ages");
    let runs: Vec<String> = sqlx::query_scalar("SELECT run_id FROM outbox ORDER BY created_at LIMIT 5")
        .fetch_all(&pool)
        .await
        .expect("ids");
    let cancel = "INSERT INTO outbox (run_id, event_id, kind, created_at)
                  SELECT run_id, gen_random_uuid(), 'cancellation', now() - interval '1 minute' * extra
                  FROM unnest($1::text[], ARRAY[1, 100]) AS cancelled (run_id, extra)";
    sqlx::query(cancel).bind(&runs[..2]).execute(&pool).await.expect("cancellations");
    let batch = "INSERT INTO outbox_batches (id, owner, run_ids, event_ids)
                 SELECT gen_random_uuid(), gen_random_uuid(), array_agg(run_id), array_agg(event_id)
                 FROM outbox WHERE run_id = $1";
    sqlx::query(batch).bind(&runs[2]).execute(&pool).await.expect("a batch");
    sqlx::raw_sql("ANALYZE").execute(&pool).await.expect("statistics");

    let (owner, batch) = (Uuid::new_v4(), Uuid::new_v4());
    let mut transaction = pool.begin().await.expect("a transaction");
    // These count since the session last reported its statistics.
    let rows_read = "SELECT pg_stat_get_xact_tuples_returned('outbox'::regclass)
                         + pg_stat_get_xact_tuples_fetched('outbox'::regclass)";
    let before: i64 = sqlx::query_scalar(rows_read).fetch_one(&mut *transaction).await.expect("statistics");
    let taken = outbox::take(&mut *transaction, owner, batch, 4).await.expect("rows").rows;
    let after: i64 = sqlx::query_scalar(rows_read).fetch_one(&mut *transaction).await.expect("statistics");
    let read = after - before;
    transaction.commit().await.expect("committed");
    // The second cancellation is older than the request of its run, and is sent before it.
    let kinds: Vec<_> = taken.iter().map(|row| (row.run_id.as_str(), row.kind)).collect();
    let request = |run: usize| (runs[run].as_str(), outbox::Kind::Execution);
    assert_eq!(kinds, [(runs[1].as_str(), outbox::Kind::Cancellation), request(0), request(3), request(4)]);
    assert!(read < 50, "{read} rows were read");
    let batches = "SELECT count(*) FROM outbox_batches WHERE id = $1 AND owner = $2 AND cardinality(run_ids) = 3";
    let batches: i64 = sqlx::query_scalar(batches).bind(batch).bind(owner).fetch_one(&pool).await.expect("a count");
    assert_eq!(batches, 1);
    assert_eq!(count(&pool, "SELECT count(*) FROM outbox WHERE owner IS NOT NULL").await, 1);
    assert_eq!(count(&pool, "SELECT count(*) FROM outbox").await, 3002 - 3);
}

/// As after a commit whose answer was lost: the row belongs to a process that lives and does not know of it.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_row_that_its_owner_does_not_know_of_is_sent_all_the_same(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    service.execute(&workflow_id).await;
    eventually("the outbox is empty", || outbox_is_empty(&pool)).await;
    leave_free_rows(&pool, &workflow_id, 1, 10).await;
    let forget = "UPDATE outbox SET owner = (SELECT id FROM processes), created_at = now() - interval '11 seconds'";
    sqlx::query(forget).execute(&pool).await.expect("an update");
    records(&service.config, &service.config.kafka.execution_topic, 2).await;
    eventually("the outbox is empty", || outbox_is_empty(&pool)).await;
}

/// The same for a batch: it becomes rows of its own.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_batch_that_its_owner_does_not_know_of_is_sent_all_the_same(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    service.execute(&workflow_id).await;
    eventually("the outbox is empty", || outbox_is_empty(&pool)).await;
    leave_free_rows(&pool, &workflow_id, 3, 10).await;
    let forget = "WITH free AS (DELETE FROM outbox RETURNING run_id, event_id)
                  INSERT INTO outbox_batches (id, owner, run_ids, event_ids, created_at)
                  SELECT gen_random_uuid(), (SELECT id FROM processes), array_agg(run_id), array_agg(event_id),
                      now() - interval '11 seconds' FROM free";
    sqlx::query(forget).execute(&pool).await.expect("a batch");
    records(&service.config, &service.config.kafka.execution_topic, 4).await;
    eventually("the outbox is empty", || outbox_is_empty(&pool)).await;
}

/// An execution topic that takes batches of 20 000 bytes.
async fn make_small_topic(settings: &Config) {
    let admin: AdminClient<DefaultClientContext> =
        kafka::client_config(&settings.kafka).create().expect("valid settings");
    let small = NewTopic::new(&settings.kafka.execution_topic, 1, TopicReplication::Fixed(1));
    let made = admin.create_topics(&[small.set("max.message.bytes", "20000")], &AdminOptions::new()).await;
    assert!(made.expect("an answer")[0].is_ok());
}

/// The broker refuses the batch with all that is in it, also those that it would take alone.
#[sqlx::test(migrator = "MIGRATOR")]
async fn runs_whose_messages_are_too_large_together_are_dispatched_one_by_one(pool: PgPool) {
    let settings = config(&pool, &[]);
    make_small_topic(&settings).await;
    let service = Service::start_with(settings);
    let workflow_id = service.one_step_workflow().await;
    leave_free_rows(&pool, &workflow_id, 40, 3000).await;
    records(&service.config, &service.config.kafka.execution_topic, 40).await;
    eventually("the outbox is empty", || outbox_is_empty(&pool)).await;
    assert_eq!(count(&pool, "SELECT count(*) FROM workflow_runs WHERE status = 'PENDING'").await, 40);
}

/// Each cause by its own words.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_that_can_never_be_dispatched_fails_and_says_why(pool: PgPool) {
    let settings = config(&pool, &[]);
    make_small_topic(&settings).await;
    let service = Service::start_with(settings);
    let workflow_id = service.one_step_workflow().await;
    leave_free_rows(&pool, &workflow_id, 1, 10).await;
    leave_free_rows(&pool, &workflow_id, 1, 100_000).await;
    let gone = "WITH run AS (
                    INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, input_data, workflow_version)
                    VALUES ('run-gone', $1, 'gone', 'PENDING', '{}', 7))
                INSERT INTO outbox (run_id, event_id, kind) VALUES ('run-gone', gen_random_uuid(), 'execution')";
    sqlx::query(gone).bind(workflow_id).execute(&pool).await.expect("rows");
    eventually("the outbox is empty", || outbox_is_empty(&pool)).await;
    let runs: Vec<(String, Option<String>)> =
        sqlx::query_as("SELECT status, error_message FROM workflow_runs ORDER BY length(input_data::text), run_id")
            .fetch_all(&pool)
            .await
            .expect("runs");
    let failed = |why: &str| ("FAILED".to_owned(), Some(format!("the run could not be dispatched: {why}")));
    let expected = [
        failed("the workflow version that the run is pinned to does not exist"),
        ("PENDING".to_owned(), None),
        failed("its message is larger than the topic takes (max.message.bytes)"),
    ];
    assert_eq!(runs, expected);
    let metrics = service.get("/metrics").await.text;
    for code in ["dispatch_failed", "message_too_large"] {
        let start = format!("workflow_error_total{{error_code=\"{code}\"}} ");
        let counted = metrics.lines().find_map(|line| line.strip_prefix(&start)).expect("it is there from the start");
        assert_ne!(counted, "0", "{code}");
    }
}

/// The broker takes some of the messages that were started together, and refuses the others.
#[sqlx::test(migrator = "MIGRATOR")]
async fn each_run_of_a_batch_is_settled_on_its_own(pool: PgPool) {
    let settings = config(&pool, &[]);
    make_small_topic(&settings).await;
    let service = Service::start_with(settings);
    let workflow_id = service.one_step_workflow().await;
    let path = format!("/api/v1/workflows/{workflow_id}/execute");
    let inputs = [10, 30_000, 20, 40_000, 30].map(|length| json!({"input_data": {"text": "x".repeat(length)}}));
    let started = join_all(inputs.iter().cycle().take(50).map(|input| service.post(&path, input))).await;
    assert!(started.iter().all(|answer| answer.status == 202));
    eventually("the outbox is empty", || outbox_is_empty(&pool)).await;
    let outcomes: Vec<(String, i64)> =
        sqlx::query_as("SELECT status, count(*) FROM workflow_runs GROUP BY 1 ORDER BY 1")
            .fetch_all(&pool)
            .await
            .expect("runs");
    assert_eq!(outcomes, [("FAILED".to_owned(), 20), ("PENDING".to_owned(), 30)]);
}

/// More open runs than are checked at a time, of which the last one is overdue.
#[sqlx::test(migrator = "MIGRATOR")]
async fn open_runs_are_checked_for_being_overdue_part_by_part(pool: PgPool) {
    let sql = "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, workflow_version, updated_at, organization_id)
               SELECT 'run-' || n, 'w', 'w', 'PENDING', 1, now() - interval '1 minute' * CASE n WHEN 7 THEN 1 ELSE 0 END,
                   'org-' || n % 3
               FROM generate_series(1, 10) n";
    sqlx::query(sql).execute(&pool).await.expect("runs");
    let (mut after, mut found, mut parts) = (None, Vec::new(), 0);
    loop {
        let part = outbox::overdue(&pool, after.as_ref(), 4, 10.0).await.expect("a part");
        found.extend(part.run_ids);
        parts += 1;
        after = part.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((found, parts), (vec!["run-7".to_owned()], 3));
}
