//! Spans of OpenTelemetry traces: what the service records of requests, messages, runs, steps and calls of agents.
//!
//! Recording is off unless an endpoint is set; then a [`Span`] is empty and costs one load of a pointer. Whether a trace
//! is recorded is decided where it begins, and the decision is part of its `traceparent`.

mod export;

use std::{sync::OnceLock, time::Duration};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value},
    trace::v1::{Span as Record, Status, span::SpanKind, status::StatusCode},
};
use tokio::sync::{mpsc, oneshot};

use super::Component;
use crate::{
    config::{Sampler, TraceExport},
    timestamp::Timestamp,
    trace::SpanContext,
};

/// Maximum number of spans that wait for their export. Further ones are dropped.
const MAX_WAITING: usize = 4096;
/// Time limit of the last export of a process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Recorder of this process, once spans are exported.
static RECORDER: OnceLock<Recorder> = OnceLock::new();

struct Recorder {
    sampler: Sampler,
    queue: mpsc::Sender<Item>,
}

/// Entry of the export queue.
enum Item {
    Span(Box<Record>),
    /// Request to export all spans before it now.
    Flush(oneshot::Sender<()>),
}

/// Starts the export of spans, in a task of the current runtime.
pub fn start(settings: &TraceExport, component: Component) -> reqwest::Result<()> {
    let exporter = export::Exporter::new(settings, component)?;
    let (queue, items) = mpsc::channel(MAX_WAITING);
    if RECORDER.set(Recorder { sampler: settings.sampler, queue }).is_ok() {
        super::recorder();
        super::catalogue::register(super::catalogue::TRACES);
        tokio::spawn(exporter.run(items));
        tracing::info!(endpoint = settings.endpoint.as_str(), "spans are exported to {}", settings.endpoint);
    }
    Ok(())
}

/// Whether spans are recorded.
#[must_use]
pub fn is_on() -> bool {
    RECORDER.get().is_some()
}

/// Exports the spans that wait, before the process ends. It takes two seconds at most.
pub async fn flush() {
    let Some(recorder) = RECORDER.get() else { return };
    let (done, is_done) = oneshot::channel();
    let flushing = async {
        if recorder.queue.send(Item::Flush(done)).await.is_ok() {
            // Without an answer the exporter has ended.
            is_done.await.ok();
        }
    };
    if tokio::time::timeout(FLUSH_TIMEOUT, flushing).await.is_err() {
        tracing::warn!("the last spans could not be exported in time");
    }
}

/// Kind of a span.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Work inside of the service.
    Internal,
    /// Answer to a request.
    Server,
    /// Request to another service.
    Client,
    /// Message that is sent.
    Producer,
    /// Message that is processed.
    Consumer,
}

/// Span that is recorded until it is dropped, or nothing.
#[derive(Default)]
pub struct Span(Option<Box<Record>>);

/// Begins the span of a request with this `traceparent`, and returns with it the `traceparent` of all that the request
/// causes. The decision whether the trace is recorded is taken here.
#[must_use]
pub fn server(given: Option<&str>, name: impl FnOnce() -> String) -> (Span, Option<String>) {
    let Some(recorder) = RECORDER.get() else { return (Span::default(), given.map(str::to_owned)) };
    let caller = given.and_then(SpanContext::parse);
    let trace_id = caller.map_or_else(rand::random, |caller| caller.trace_id);
    let is_sampled = recorder.sampler.samples(caller, trace_id);
    if !is_sampled {
        let parent = caller.map(|caller| SpanContext { is_sampled, ..caller }.to_string());
        return (Span::default(), parent);
    }
    let context = SpanContext { trace_id, span_id: rand::random(), is_sampled };
    let span = Span::begin(context, caller.map(|caller| caller.span_id), Kind::Server, name());
    (span, Some(context.to_string()))
}

/// Begins a span inside of another one, if that is recorded.
#[must_use]
pub fn child(parent: Option<SpanContext>, kind: Kind, name: impl FnOnce() -> String) -> Span {
    match parent.filter(|parent| parent.is_sampled && is_on()) {
        Some(parent) => {
            let context = SpanContext { span_id: rand::random(), ..parent };
            Span::begin(context, Some(parent.span_id), kind, name())
        }
        None => Span::default(),
    }
}

impl Span {
    fn begin(context: SpanContext, parent: Option<[u8; 8]>, kind: Kind, name: String) -> Self {
        let kind = match kind {
            Kind::Internal => SpanKind::Internal,
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
            Kind::Producer => SpanKind::Producer,
            Kind::Consumer => SpanKind::Consumer,
        };
        Self(Some(Box::new(Record {
            trace_id: context.trace_id.to_vec(),
            span_id: context.span_id.to_vec(),
            parent_span_id: parent.map_or_else(Vec::new, |id| id.to_vec()),
            flags: 1,
            name,
            kind: kind.into(),
            start_time_unix_nano: now_nanos(),
            ..Record::default()
        })))
    }

    /// The span with this id instead of a random one.
    #[must_use]
    pub fn with_id(mut self, span_id: [u8; 8]) -> Self {
        if let Some(record) = &mut self.0 {
            record.span_id = span_id.to_vec();
        }
        self
    }

    /// Whether the span is recorded.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// Identity of the span, if it is recorded.
    #[must_use]
    pub fn context(&self) -> Option<SpanContext> {
        let record = self.0.as_ref()?;
        let trace_id = record.trace_id.as_slice().try_into().ok()?;
        Some(SpanContext { trace_id, span_id: record.span_id.as_slice().try_into().ok()?, is_sampled: true })
    }

    /// Sets an attribute. Its value must be no secret and no content of a user.
    pub fn set(&mut self, key: &'static str, value: &str) {
        self.set_value(key, || any_value::Value::StringValue(value.to_owned()));
    }

    /// Sets an attribute that is a number.
    pub fn set_number(&mut self, key: &'static str, value: impl Into<i64>) {
        self.set_value(key, || any_value::Value::IntValue(value.into()));
    }

    fn set_value(&mut self, key: &'static str, value: impl FnOnce() -> any_value::Value) {
        if let Some(record) = &mut self.0 {
            let value = Some(AnyValue { value: Some(value()) });
            record.attributes.push(KeyValue { key: key.to_owned(), value, ..KeyValue::default() });
        }
    }

    /// Marks the span as failed, with a code of the error.
    pub fn fail(&mut self, code: &str) {
        self.set("error.type", code);
        if let Some(record) = &mut self.0 {
            record.status = Some(Status { message: String::new(), code: StatusCode::Error.into() });
        }
    }

    /// Forgets the span.
    pub fn discard(mut self) {
        self.0 = None;
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some((mut record, recorder)) = self.0.take().zip(RECORDER.get()) else { return };
        record.end_time_unix_nano = now_nanos().max(record.start_time_unix_nano);
        if recorder.queue.try_send(Item::Span(record)).is_err() {
            metrics::counter!("trace_spans_dropped_total", "reason" => export::QUEUE_FULL).increment(1);
        }
    }
}

impl Sampler {
    /// Whether a trace is recorded. Services with the same ratio decide the same for a trace.
    fn samples(self, caller: Option<SpanContext>, trace_id: [u8; 16]) -> bool {
        if let Some(caller) = caller.filter(|_| self.follows_caller) {
            return caller.is_sampled;
        }
        // As the SDKs of OpenTelemetry decide, by the second half of the id. A float has 53 bits of it exactly.
        let number = (u128::from_be_bytes(trace_id) & u128::from(u64::MAX)) >> 11;
        (number as f64) < self.ratio * (1_u64 << 53) as f64
    }
}

fn now_nanos() -> u64 {
    let nanos = Timestamp::now().as_naive_utc().and_utc().timestamp_nanos_opt();
    nanos.and_then(|nanos| u64::try_from(nanos).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_or_the_ratio_decides() {
        let caller = |is_sampled| Some(SpanContext { trace_id: [1; 16], span_id: [1; 8], is_sampled });
        let follows = Sampler { follows_caller: true, ratio: 0.0 };
        assert!(follows.samples(caller(true), [1; 16]) && !follows.samples(caller(false), [1; 16]));
        assert!(!follows.samples(None, [1; 16]));
        let all = Sampler { follows_caller: false, ratio: 1.0 };
        assert!(all.samples(caller(false), [1; 16]) && all.samples(None, [0xff; 16]));
        let half = Sampler { follows_caller: true, ratio: 0.5 };
        let trace_id = |byte| std::array::from_fn(|index| if index == 8 { byte } else { 0 });
        assert!(half.samples(None, trace_id(0x7f)) && !half.samples(None, trace_id(0x80)));
    }

    #[test]
    fn without_an_endpoint_nothing_is_recorded_and_a_caller_s_trace_goes_on() {
        let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let (span, traceparent) = server(Some(given), || unreachable!("the span is not recorded"));
        assert!(!span.is_recorded() && span.context().is_none());
        assert_eq!(traceparent.as_deref(), Some(given));
        assert!(!child(SpanContext::parse(given), Kind::Client, || unreachable!("as above")).is_recorded());
    }
}
