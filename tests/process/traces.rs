//! Traces as a collector receives them: one from the caller through API, Kafka and executor to the agent.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{Json, Router, body::Bytes, extract::State, routing::post};
use http::{HeaderMap, StatusCode};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as Attribute},
    trace::v1::{Span, span::SpanKind},
};
use prost::Message as _;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::program::{Environment, eventually};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const TOKEN: &str = "collector-token-9d2f";

/// A collector, and an agent that remembers the headers of its calls.
#[derive(Clone, Default)]
struct Receiver {
    /// Spans with the name of their service.
    spans: Arc<Mutex<Vec<(String, Span)>>>,
    calls: Arc<Mutex<Vec<HeaderMap>>>,
}

impl Receiver {
    /// Starts both on ports of their own. The collector ends with its task.
    async fn start() -> (Self, tokio::task::JoinHandle<()>, String, String) {
        let receiver = Self::default();
        let collect = async |State(receiver): State<Self>, headers: HeaderMap, body: Bytes| {
            let is_ours = headers["x-token"] == TOKEN && headers["content-type"] == "application/x-protobuf";
            let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
            for of_resource in request.resource_spans {
                let attributes = of_resource.resource.map(|resource| resource.attributes).unwrap_or_default();
                let service = text(&attributes, "service.name");
                assert_eq!(text(&attributes, "deployment.environment.name"), "test");
                let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                receiver.spans.lock().expect("no panic").extend(spans.map(|span| (service.clone(), span)));
            }
            if is_ours { StatusCode::OK } else { StatusCode::UNAUTHORIZED }
        };
        let answer = async |State(receiver): State<Self>, headers: HeaderMap, Json(call): Json<Value>| {
            receiver.calls.lock().expect("no panic").push(headers);
            let result = json!({"kind": "task", "id": "t", "status": {"state": "completed"}});
            Json(json!({"jsonrpc": "2.0", "id": call["id"], "result": result}))
        };
        let (collector, url) =
            serve(Router::new().route("/v1/traces", post(collect)).with_state(receiver.clone())).await;
        let (_, agent) = serve(Router::new().fallback(post(answer)).with_state(receiver.clone())).await;
        (receiver, collector, url, agent)
    }

    fn spans(&self) -> Vec<(String, Span)> {
        self.spans.lock().expect("no panic").clone()
    }

    /// `traceparent` of the last call.
    fn last_traceparent(&self) -> String {
        let calls = self.calls.lock().expect("no panic");
        calls.last().expect("a call")["traceparent"].to_str().expect("text").to_owned()
    }
}

async fn serve(router: Router) -> (tokio::task::JoinHandle<()>, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let serving = async move { axum::serve(listener, router).await.expect("it serves") };
    (tokio::spawn(serving), url)
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key).and_then(|attribute| attribute.value.clone());
    match found.and_then(|value| value.value) {
        Some(Attribute::StringValue(text)) => text,
        Some(Attribute::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

/// Starts a run with this `traceparent`; its id.
async fn execute(environment: &Environment, workflow_id: &str, traceparent: &str) -> String {
    let url = format!("{}/api/v1/workflows/{workflow_id}/execute", environment.url);
    let body = json!({"input_data": {"text": "secret-of-a-user"}});
    let request = reqwest::Client::new().post(url).json(&body).header("traceparent", traceparent);
    let answer = request.header("prefer", "wait=30").send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let run: Value = answer.json().await.expect("JSON");
    assert_eq!(run["status"], "COMPLETED");
    run["run_id"].as_str().expect("an id").to_owned()
}

#[sqlx::test(migrations = false)]
async fn a_run_is_one_trace_from_its_caller_to_the_agent(pool: PgPool) {
    let (receiver, collector, url, agent) = Receiver::start().await;
    let environment = Environment::new(&pool)
        .with("OTEL_EXPORTER_OTLP_ENDPOINT", &url)
        .with("OTEL_EXPORTER_OTLP_HEADERS", &format!("x-token={TOKEN}"))
        .with("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test");
    let api = environment.serve().await;
    let executor = environment.start(&["executor"]);
    let workflow_id = environment.chain("traced", &[format!("{agent}/path-secret?key=query-secret")]).await;
    let run_id = execute(&environment, &workflow_id, &format!("00-{TRACE}-{CALLER}-01")).await;

    let spans = eventually("all spans of the trace are there", async || {
        let spans = receiver.spans().into_iter().filter(|(_, span)| hex(&span.trace_id) == TRACE);
        let spans: Vec<_> = spans.collect();
        (spans.len() >= 5).then_some(spans)
    })
    .await;
    let mut names = HashMap::new();
    for (service, span) in &spans {
        let kind = SpanKind::try_from(span.kind).expect("a kind").as_str_name();
        let kind = kind.strip_prefix("SPAN_KIND_").expect("a prefix");
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano && span.start_time_unix_nano > 0);
        assert!(names.insert(kind, (service.as_str(), span)).is_none(), "two spans of the kind {kind}");
    }
    let mut parent = CALLER.to_owned();
    for (kind, service, name) in [
        ("SERVER", "workflow-api", "POST /api/v1/workflows/{workflow_id}/execute".to_owned()),
        ("PRODUCER", "workflow-api", format!("send {}", environment.variables["KAFKA_EXECUTION_TOPIC"])),
        ("CONSUMER", "workflow-executor", "run traced".to_owned()),
        ("INTERNAL", "workflow-executor", "step s0".to_owned()),
        ("CLIENT", "workflow-executor", "POST".to_owned()),
    ] {
        let (of_service, span) = names[kind];
        assert_eq!(
            (of_service, span.name.as_str(), hex(&span.parent_span_id)),
            (service, name.as_str(), parent),
            "{kind}"
        );
        parent = hex(&span.span_id);
    }
    assert_eq!(receiver.last_traceparent(), format!("00-{TRACE}-{parent}-01"));
    assert_eq!(text(&names["CONSUMER"].1.attributes, "workflow_api.run.id"), run_id);
    assert_eq!(text(&names["CLIENT"].1.attributes, "http.response.status_code"), "200");
    let shown = format!("{spans:?}");
    assert!(!shown.contains("secret"), "{shown}");
    for program in [&api, &executor] {
        let log = program.log();
        assert!(log.contains(&format!(r#""trace_id":"{TRACE}""#)) && !log.contains(TOKEN), "{log}");
    }

    // A caller that is not sampled records nothing, and its trace goes on.
    let unsampled = format!("00-{}-{CALLER}-00", TRACE.replace('4', "5"));
    execute(&environment, &workflow_id, &unsampled).await;
    assert_eq!(receiver.last_traceparent(), unsampled);

    // Without a collector the service works as before.
    collector.abort();
    execute(&environment, &workflow_id, &format!("00-{}-{CALLER}-01", TRACE.replace('4', "6"))).await;
    let unwanted = receiver.spans().into_iter().find(|(_, span)| hex(&span.trace_id) == TRACE.replace('4', "5"));
    assert!(unwanted.is_none(), "{unwanted:?}");
    eventually("the log says that spans are lost", async || {
        api.log().contains("spans cannot be exported").then_some(())
    })
    .await;
}
