//! What is sent over Kafka is what `docs/kafka` says, and what that says is what is read.

use std::collections::BTreeMap;

use axum::response::IntoResponse as _;
use http::StatusCode;
use rdkafka::message::{Headers, Message as _, OwnedHeaders, OwnedMessage};
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{config::Config, db::migrations::MIGRATOR, kafka::message::Message};

use crate::{
    path::{Agent, Executor, completed, ended},
    service::{Service, config, eventually, raw_records, send},
};

const EXECUTION: &str = include_str!("../../docs/kafka/execution-request.schema.json");
const CANCELLATION: &str = include_str!("../../docs/kafka/cancellation-request.schema.json");
const MONITORING: &str = include_str!("../../docs/kafka/monitoring-update.schema.json");
const HEADERS: &str = include_str!("../../docs/kafka/headers.schema.json");
const DEAD_LETTER: &str = include_str!("../../docs/kafka/dead-letter-headers.schema.json");
const ASYNC_API: &str = include_str!("../../docs/asyncapi.json");

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Valid, and without a member that the schema does not name.
#[track_caller]
fn conforms(schema: &str, instance: &Value) {
    let schema: Value = serde_json::from_str(schema).expect("JSON");
    let validator =
        jsonschema::draft202012::options().should_validate_formats(true).build(&schema).expect("a JSON Schema");
    let errors: Vec<String> = validator.iter_errors(instance).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}: {instance}");
    for (name, value) in instance.as_object().expect("an object") {
        let described = &schema["properties"][name];
        assert!(described.is_object(), "{name} is not described: {instance}");
        let inside = value.as_object().filter(|_| name == "metadata" || name == "workflow_plan");
        for name in inside.into_iter().flat_map(serde_json::Map::keys) {
            assert!(described["properties"][name].is_object(), "{name} is not described: {instance}");
        }
    }
}

pub fn headers(record: &OwnedMessage) -> Value {
    let text = |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
    let all: BTreeMap<String, String> = record
        .headers()
        .into_iter()
        .flat_map(Headers::iter)
        .map(|header| (header.key.to_owned(), text(header.value)))
        .collect();
    json!(all)
}

/// The records of a topic: each has those headers, and a value of that schema. Returns values and traces.
async fn sent(config: &Config, topic: &str, count: usize, schema: &str) -> Vec<(Value, String)> {
    let records = raw_records(config, topic, count, |_| true).await;
    let read = |record: &OwnedMessage| {
        let value: Value = serde_json::from_slice(record.payload().expect("a value")).expect("JSON");
        conforms(schema, &value);
        assert_eq!(record.key(), value["run_id"].as_str().map(str::as_bytes));
        let headers = headers(record);
        conforms(HEADERS, &headers);
        let trace = headers["traceparent"].as_str().and_then(|header| header.get(3..35)).expect("a trace").to_owned();
        (value, trace)
    };
    records.iter().map(read).collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_sent_conforms_to_its_schema_and_carries_the_trace_of_the_request(pool: PgPool) {
    let monitoring = format!("monitoring-{}", uuid::Uuid::new_v4().simple());
    let settings = config(&pool, &[("KAFKA_MONITORING_TOPIC", &monitoring), ("KAFKA_TOPIC_PARTITIONS", "1")]);
    let service = Service::start_with(settings);
    let kafka = &service.config.kafka;
    let (_agent, url) = Agent::start(|number, call| {
        let answer = completed(call, "fine");
        if number == 1 { (StatusCode::BAD_REQUEST, "no").into_response() } else { answer }
    })
    .await;
    service.agent("worker", &url).await;
    let workflow = service.chain("told", &["worker"]).await;
    let path = format!("/api/v1/workflows/{}/execute", workflow["id"].as_str().expect("an id"));
    let traceparent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let traced = [("content-type", "application/json"), ("traceparent", traceparent.as_str())];
    let start = async |headers: &[(&str, &str)]| {
        let run = service.send("POST", &path, headers, r#"{"input_data": {"text": "hi"}}"#).await.expect(202);
        run["run_id"].as_str().expect("an id").to_owned()
    };
    let [traced_run, own_run, cancelled] = [start(&traced).await, start(&traced[..1]).await, start(&traced).await];
    service.post(&format!("/api/v1/runs/{cancelled}/cancel"), &json!({"reason": "no"})).await.expect(200);

    let requests = sent(&service.config, &kafka.execution_topic, 3, EXECUTION).await;
    let cancellations = sent(&service.config, &kafka.cancellation_topic, 1, CANCELLATION).await;
    let trace_of = |run_id: &str| {
        let of_run = requests.iter().chain(&cancellations).filter(|(value, _)| value["run_id"] == run_id);
        of_run.map(|(_, trace)| trace.clone()).collect::<Vec<_>>()
    };
    assert_eq!(trace_of(&traced_run), [TRACE]);
    assert_eq!(trace_of(&cancelled), [TRACE, TRACE]);
    let own = trace_of(&own_run);
    assert!(own.len() == 1 && own[0] != TRACE, "{own:?}");

    // Whichever is called second fails.
    let _executor = Executor::start(&service);
    let statuses = [ended(&service, &traced_run).await, ended(&service, &own_run).await];
    let mut statuses = statuses.each_ref().map(|run| run["status"].as_str().expect("text"));
    statuses.sort_unstable();
    assert_eq!(statuses, ["COMPLETED", "FAILED"]);
    for (update, trace) in sent(&service.config, &monitoring, 6, MONITORING).await {
        assert_eq!(vec![trace], trace_of(update["run_id"].as_str().expect("text")));
        assert_eq!((&update["workflow_id"], &update["workflow_name"]), (&workflow["id"], &json!("told")));
        assert_eq!(update["organization_id"], "default");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_dead_letter_has_the_headers_of_its_schema_and_no_words_of_the_program(pool: PgPool) {
    let topic = format!("dead-letters-{}", uuid::Uuid::new_v4().simple());
    let service = Service::start_with(config(&pool, &[("KAFKA_DEAD_LETTER_TOPIC", &topic)]));
    let wrong = [
        r#"{"run_id": 7, "workflow_plan": {}}"#,
        r#"{"workflow_plan": {}}"#,
        r#"{"run_id": "r", "workflow_plan": 7}"#,
        r#"{"run_id": "r", "workflow_plan": {"steps": 7}}"#,
        r#"{"run_id": "r", "workflow_plan": {}, "event_id": "e"}"#,
        r#"{"run_id": "r", "reason": {}}"#,
        r#"{"run_id": "r", "workflow_plan": {}"#,
        "[]",
        "7",
    ];
    for value in wrong {
        let topic = &service.config.kafka.execution_topic;
        send(&service.config, topic, None, Some(value.as_bytes()), OwnedHeaders::new()).await;
    }
    let _executor = Executor::start(&service);
    for record in raw_records(&service.config, &topic, wrong.len(), |_| true).await {
        let headers = headers(&record);
        conforms(DEAD_LETTER, &headers);
        let detail = headers["dead-letter-detail"].as_str().expect("text");
        for internal in ["struct", "enum", "variant", "expected", "missing field", "::", "serde", "`"] {
            assert!(!detail.contains(internal), "{detail}");
        }
    }
    eventually("nothing is left to copy", || async {
        let sql = "SELECT count(*) FROM dead_letters WHERE copy_at IS NOT NULL";
        (sqlx::query_scalar::<_, i64>(sql).fetch_one(&pool).await.expect("it") == 0).then_some(())
    })
    .await;
}

/// The smallest messages that the schemas allow, and what is just outside.
#[test]
fn what_the_schemas_allow_is_read() {
    let plan = json!({"start_step": "a", "steps": {"a": {"agent_name": "x"}}});
    let execution = json!({"run_id": "r", "workflow_plan": plan});
    let mut full = execution.clone();
    for (name, value) in [("input_data", Value::Null), ("event_id", Value::Null), ("correlation_id", Value::Null)] {
        full[name] = value;
    }
    full["message_type"] = json!("execution_request");
    for (schema, message, is_allowed) in [
        (EXECUTION, execution, true),
        (EXECUTION, full, true),
        (EXECUTION, json!({"run_id": "r", "workflow_plan": plan, "event_id": 7}), false),
        (EXECUTION, json!({"workflow_plan": plan}), false),
        (CANCELLATION, json!({"run_id": "r", "reason": "no"}), true),
        (CANCELLATION, json!({"run_id": "r", "message_type": "cancellation_request", "cancelled_by": null}), true),
        (CANCELLATION, json!({"run_id": "r"}), false),
        (CANCELLATION, json!({"reason": "no"}), false),
    ] {
        let schema: Value = serde_json::from_str(schema).expect("JSON");
        assert_eq!(jsonschema::draft202012::is_valid(&schema, &message), is_allowed, "{message}");
        assert_eq!(Message::parse(message.to_string().as_bytes()).is_ok(), is_allowed, "{message}");
    }
}

#[test]
fn the_asyncapi_document_names_the_default_topics_and_the_schemas() {
    let document: Value = serde_json::from_str(ASYNC_API).expect("JSON");
    assert_eq!(document["asyncapi"], "3.0.0");
    let brokers = [("KAFKA_BROKERS".to_owned(), "127.0.0.1:1".to_owned())];
    let kafka: workflow_api::config::Kafka = workflow_api::config::load(brokers.into_iter()).expect("valid settings");
    let monitoring = kafka.monitoring_topic.expect("a topic");
    for (channel, topic) in [
        ("executionRequests", &kafka.execution_topic),
        ("cancellationRequests", &kafka.cancellation_topic),
        ("monitoringUpdates", &monitoring),
        ("deadLetters", &kafka.dead_letter_topic),
        ("events", &"workflow.events".to_owned()),
        // Those of triggers have no names of their own.
        ("triggerRecords", &"{topic}".to_owned()),
    ] {
        assert_eq!(&document["channels"][channel]["address"], topic);
    }
    // Every topic is written or read.
    let used: std::collections::BTreeSet<&str> = document["operations"]
        .as_object()
        .expect("operations")
        .values()
        .map(|operation| operation["channel"]["$ref"].as_str().expect("a reference"))
        .collect();
    let channels = document["channels"].as_object().expect("channels").keys().map(|name| format!("#/channels/{name}"));
    assert_eq!(used.into_iter().map(str::to_owned).collect::<std::collections::BTreeSet<_>>(), channels.collect());
    assert_eq!(document["operations"]["startRuns"]["action"], "receive");
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let mut left = vec![&document];
    let mut files = 0;
    while let Some(value) = left.pop() {
        match value {
            Value::Object(members) => {
                if let Some(reference) = members.get("$ref").and_then(Value::as_str) {
                    if let Some(pointer) = reference.strip_prefix('#') {
                        assert!(document.pointer(pointer).is_some(), "{reference}");
                    } else {
                        assert!(docs.join(reference).is_file(), "{reference}");
                        files += 1;
                    }
                }
                left.extend(members.values());
            }
            Value::Array(items) => left.extend(items),
            _ => {}
        }
    }
    assert_eq!(files, 9, "headers and payloads of four messages, headers of one");
}
