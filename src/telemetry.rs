//! Telemetry: logs, metrics and traces of the process.
//!
//! A log line is one JSON object: `timestamp`, `level`, `logger`, `message`, then the fields of the event and of the
//! enclosing spans (`correlation_id`, `user_id`, `workflow_id`, `run_id`, …). With `LOG_FORMAT=text` it is readable
//! text with the same content.

pub mod catalogue;
pub mod spans;

use std::{fmt, sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    filter::Targets,
    fmt::{
        FmtContext, FormatEvent, FormattedFields,
        format::{JsonFields, Writer},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::{config, timestamp::Timestamp, visible};

/// Upper bounds of the latency histograms' buckets in seconds: fine in the expected range, up to the hardest limit.
const LATENCY_BUCKETS_SECS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Buckets of the reference.
const REFERENCE_BUCKETS_SECS: [f64; 4] = [0.1, 0.5, 1.0, 5.0];
/// Buckets of run durations, up to a day.
const RUN_BUCKETS_SECS: [f64; 13] =
    [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 10_800.0, 86_400.0];
/// Buckets of requests or writes per statement.
const BATCH_BUCKETS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Version of the program.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Revision of the source that the program was built from; `unknown` if the build had no `REVISION`.
const REVISION: &str = match option_env!("REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// Interval of moving observations into their buckets.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Sets up logging to stdout, also of panics. A second call does nothing.
pub fn init(log: &config::Log) {
    let level = LevelFilter::from_level(log.level);
    let dependencies = if log.level >= Level::DEBUG { LevelFilter::DEBUG } else { level.min(LevelFilter::WARN) };
    // librdkafka logs an unavailable broker at every attempt; the relay and the executor log it once.
    let rdkafka = if log.level >= Level::DEBUG { LevelFilter::DEBUG } else { LevelFilter::OFF };
    let filter = Targets::new()
        .with_default(dependencies)
        .with_targets([("workflow_api", level), ("api", level), ("sqlx::query", level)])
        .with_targets([("librdkafka", rdkafka), ("rdkafka", rdkafka)]);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().fmt_fields(JsonFields::new()).event_format(LogLine { json: log.json });
    if registry.with(lines).try_init().is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let message = panic.payload_as_str().unwrap_or("without a message");
            tracing::error!("a task panicked: {message}");
            let location = panic.location().map(ToString::to_string).unwrap_or_default();
            tracing::debug!(location, "location of the panic");
        }));
    }
}

/// Component of the service, for the metrics of its process.
#[derive(Clone, Copy, Debug)]
pub enum Component {
    /// `serve`.
    Api,
    /// `executor`.
    Executor,
}

/// Recorder of metrics, installed at the first call.
fn recorder() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let buckets: [(&str, &[f64]); 4] = [
            ("api_request_duration_seconds", &REFERENCE_BUCKETS_SECS),
            ("run_writer_batch_size", &BATCH_BUCKETS),
            ("run_reader_batch_size", &BATCH_BUCKETS),
            ("executor_journal_batch_size", &BATCH_BUCKETS),
        ];
        let mut builder = PrometheusBuilder::new().set_buckets(&LATENCY_BUCKETS_SECS).expect("not empty");
        for (name, buckets) in buckets.into_iter().chain([("workflow_duration_seconds", &RUN_BUCKETS_SECS[..])]) {
            builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets).expect("not empty");
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        // This fails only if another recorder is installed, which our code never does.
        drop(metrics::set_global_recorder(recorder));
        catalogue::register(catalogue::PROCESS);
        catalogue::register(catalogue::SHARED);
        handle
    })
}

/// Starts recording metrics; those of this component start at 0.
pub fn count(part: Component) {
    recorder();
    match part {
        Component::Api => {
            catalogue::register(catalogue::API);
            catalogue::register_transitions(catalogue::API_TRANSITIONS);
            catalogue::register_old_names();
        }
        Component::Executor => {
            catalogue::register(catalogue::EXECUTOR);
            catalogue::register_transitions(catalogue::EXECUTOR_TRANSITIONS);
        }
    }
}

/// Loop of a process that moves histogram observations into buckets. Without it, they would be kept one by one if the
/// metrics are never read.
pub async fn keep_histograms_small(stop: CancellationToken) {
    while !stop.is_cancelled() {
        recorder().run_upkeep();
        tokio::select! {
            () = tokio::time::sleep(UPKEEP_EVERY) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Readiness of the process, and the result of each of its checks.
pub fn ready(is_ready: bool, checks: &[(&'static str, bool)]) {
    metrics::gauge!("service_ready").set(f64::from(u8::from(is_ready)));
    for (check, is_ok) in checks {
        metrics::gauge!("service_check", "check" => *check).set(f64::from(u8::from(*is_ok)));
    }
}

/// All metrics in the text format of Prometheus, version 0.0.4.
#[must_use]
pub fn render() -> String {
    let recorder = recorder();
    metrics_process::Collector::default().collect();
    metrics::gauge!("build_info", "version" => VERSION, "revision" => REVISION).set(1.0);
    let mut text = recorder.render();
    text.push_str(&catalogue::old_names(&text));
    text
}

/// Converts `rust::path` to `dotted.path`, without the crate's name.
fn logger(target: &str) -> String {
    target.strip_prefix("workflow_api::").unwrap_or(target).replace("::", ".")
}

/// Formatter of events as set by `LOG_FORMAT`.
struct LogLine {
    json: bool,
}

/// Members of a log line, the most relevant first.
#[derive(Serialize)]
struct Line {
    timestamp: Timestamp,
    level: &'static str,
    logger: String,
    message: Value,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

impl<S> FormatEvent<S, JsonFields> for LogLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Map::new();
        for span in context.event_scope().into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
            if let Some(formatted) = span.extensions().get::<FormattedFields<JsonFields>>()
                && let Ok(of_span) = serde_json::from_str::<Map<String, Value>>(formatted)
            {
                fields.extend(of_span);
            }
        }
        event.record(&mut Fields(&mut fields));
        let metadata = event.metadata();
        let line = Line {
            timestamp: Timestamp::now(),
            level: if *metadata.level() == Level::WARN { "WARNING" } else { metadata.level().as_str() },
            logger: logger(metadata.target()),
            message: fields.remove("message").unwrap_or_else(|| "".into()),
            fields,
        };
        let text = if self.json { serde_json::to_string(&line).map_err(|_| fmt::Error)? } else { line.text() };
        // External text must neither move a terminal's cursor nor begin a line.
        writeln!(writer, "{}", visible::json(&text))
    }
}

impl Line {
    /// Text for `LOG_FORMAT=text`. Strings are escaped as in JSON: one line stays one line.
    fn text(&self) -> String {
        let message = self.message.to_string();
        let message = message.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(&message);
        let fields = self.fields.iter().map(|(name, value)| format!(" {name}={value}"));
        format!("{} {:7} {} {message}{}", self.timestamp, self.level, self.logger, fields.collect::<String>())
    }
}

/// Collector of an event's fields. An error is written with its causes.
struct Fields<'a>(&'a mut Map<String, Value>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_error(&mut self, field: &Field, mut error: &(dyn std::error::Error + 'static)) {
        let mut text = error.to_string();
        while let Some(source) = error.source() {
            text.push_str(": ");
            text.push_str(&source.to_string());
            error = source;
        }
        self.0.insert(field.name().to_owned(), text.into());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex, PoisonError},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Log output in that format.
    fn logged(json: bool, log: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let lines = tracing_subscriber::fmt::layer()
            .fmt_fields(JsonFields::new())
            .event_format(LogLine { json })
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), log);
        let bytes = written.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn no_line_of_either_format_has_a_character_that_does_not_show() {
        let hostile = "a\u{1b}[2Jb\u{b}c\u{85}d\u{2028}e\u{202e}f\u{200b}g\u{7f}h\u{9b}i\nj";
        for json in [true, false] {
            let text = logged(json, || {
                let span = tracing::info_span!("request", user_id = hostile);
                span.in_scope(|| tracing::warn!(error = hostile, "an agent says: {hostile}"));
            });
            let line = text.strip_suffix('\n').expect("a line");
            assert!(!line.contains(visible::is_hidden), "{line:?}");
            let shown = r"a\u001b[2Jb\u000bc\u0085d\u2028e\u202ef\u200bg\u007fh\u009bi\nj";
            assert_eq!(line.matches(shown).count(), 3, "{line}");
        }
        let text = logged(true, || tracing::warn!(error = hostile, "x"));
        let line: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(line["error"], hostile);
    }
}
