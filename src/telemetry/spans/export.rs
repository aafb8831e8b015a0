//! Export of spans by OTLP over HTTP: in batches, in the background. While the collector does not answer, spans wait in
//! a queue of a bounded size, and what does not fit is dropped and counted. Nothing else notices.

use std::{collections::BTreeMap, time::Duration};

use http::StatusCode;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span as Record},
};
use prost::Message as _;
use reqwest::Client;
use tokio::{sync::mpsc::Receiver, time::Instant};

use super::Item;
use crate::{config::TraceExport, egress, telemetry::Component};

/// Maximum number of spans of one request.
const MAX_BATCH: usize = 512;
/// Maximum wait of a span for others to be exported together with.
const BATCH_DELAY: Duration = Duration::from_secs(2);
/// Pauses before a batch is sent again.
const RETRY_PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// Reason of dropped spans: too many wait.
pub(super) const QUEUE_FULL: &str = "queue_full";
/// Reason of dropped spans: the collector did not take them.
pub(super) const FAILED: &str = "export_failed";

/// Sender of batches.
pub(super) struct Exporter {
    client: Client,
    settings: TraceExport,
    resource: Resource,
    is_failing: bool,
}

impl Exporter {
    pub(super) fn new(settings: &TraceExport, component: Component) -> reqwest::Result<Self> {
        let client = Client::builder()
            .no_proxy()
            .timeout(settings.timeout)
            .user_agent(concat!("workflow-api/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { client, resource: resource(settings, component), settings: settings.clone(), is_failing: false })
    }

    /// Exports spans as long as the process lives.
    pub(super) async fn run(mut self, mut items: Receiver<Item>) {
        while let Some(first) = items.recv().await {
            let (mut spans, mut flushes, mut next) = (Vec::new(), Vec::new(), Some(first));
            let deadline = Instant::now() + BATCH_DELAY;
            while let Some(item) = next {
                match item {
                    Item::Span(span) => spans.push(*span),
                    Item::Flush(done) => flushes.push(done),
                }
                if spans.len() >= MAX_BATCH || !flushes.is_empty() {
                    break;
                }
                next = tokio::time::timeout_at(deadline, items.recv()).await.ok().flatten();
            }
            if !spans.is_empty() {
                let pauses = if flushes.is_empty() { &RETRY_PAUSES[..] } else { &[] };
                self.export(spans, pauses).await;
            }
            for done in flushes {
                // The process may have stopped waiting.
                done.send(()).ok();
            }
        }
    }

    /// Sends a batch, and again after each of these pauses if a failure may pass.
    async fn export(&mut self, spans: Vec<Record>, pauses: &[Duration]) {
        let count = spans.len() as u64;
        let body = self.encode(spans);
        let mut sent = self.send(body.clone()).await;
        for pause in pauses {
            if !matches!(&sent, Err(Failure { may_pass: true, .. })) {
                break;
            }
            tokio::time::sleep(*pause).await;
            sent = self.send(body.clone()).await;
        }
        match sent {
            Ok(()) => {
                metrics::counter!("trace_spans_exported_total").increment(count);
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!("spans are exported again");
                }
            }
            Err(Failure { text, .. }) => {
                metrics::counter!("trace_spans_dropped_total", "reason" => FAILED).increment(count);
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::warn!("spans cannot be exported and are dropped: {text}");
                }
            }
        }
    }

    async fn send(&self, body: bytes::Bytes) -> Result<(), Failure> {
        let request = self.client.post(self.settings.endpoint.clone()).body(body);
        let headers = self.settings.headers.iter().cloned().collect();
        let request = request.headers(headers).header(http::header::CONTENT_TYPE, "application/x-protobuf");
        let response = request.send().await.map_err(|error| {
            let why = egress::cause_of(&error).unwrap_or_else(|| "no answer in time".to_owned());
            Failure { text: format!("the collector does not answer: {why}"), may_pass: true }
        })?;
        let status = response.status();
        let may_pass = [
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::BAD_GATEWAY,
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::GATEWAY_TIMEOUT,
        ]
        .contains(&status);
        if status.is_success() {
            return Ok(());
        }
        Err(Failure { text: format!("the collector answered {status}"), may_pass })
    }

    fn encode(&self, spans: Vec<Record>) -> bytes::Bytes {
        let scope = InstrumentationScope {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
        let resource_spans =
            vec![ResourceSpans { resource: Some(self.resource.clone()), scope_spans, ..ResourceSpans::default() }];
        ExportTraceServiceRequest { resource_spans }.encode_to_vec().into()
    }
}

/// Reason why a batch was not exported.
struct Failure {
    text: String,
    /// Whether the same request may succeed later.
    may_pass: bool,
}

/// Attributes of the process. The settings come before the defaults, and `OTEL_SERVICE_NAME` before an attribute.
fn resource(settings: &TraceExport, component: Component) -> Resource {
    let name = match component {
        Component::Api => "workflow-api",
        Component::Executor => "workflow-executor",
    };
    let mut attributes = BTreeMap::from([
        ("service.name", name.to_owned()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id", uuid::Uuid::new_v4().to_string()),
    ]);
    attributes.extend(settings.resource.iter().map(|(key, value)| (key.as_str(), value.clone())));
    attributes.extend(settings.service_name.iter().map(|name| ("service.name", name.clone())));
    let attribute = |(key, value): (&str, String)| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value)) }),
        ..KeyValue::default()
    };
    Resource { attributes: attributes.into_iter().map(attribute).collect(), ..Resource::default() }
}
