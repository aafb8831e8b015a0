//! Log of the process.
//!
//! A log line is one JSON object: `timestamp`, `level`, `logger`, `message`, then the fields of the event and of the
//! enclosing spans (`correlation_id`, `user_id`, `workflow_id`, `run_id`, …). With `LOG_FORMAT=text` it is readable
//! text with the same content. `docs/logs.md` lists fields and messages.

mod file;
pub mod filter;

use std::{fmt, io::Write, sync::Mutex};

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormattedFields,
        format::{JsonFields, Writer},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use self::file::LogFile;
use crate::{config, timestamp::Timestamp, visible};

/// Sets up the log on stdout, also of panics. A second call does nothing.
pub fn init(log: &config::Log) {
    start(log, None);
    log_panics();
}

/// Sets up the log of a service: on stdout, and in `LOG_FILE` if it is set.
pub fn init_service(log: &config::Log) -> anyhow::Result<()> {
    let file = log.file.as_ref().map(|settings| LogFile::open(settings, log.json)).transpose()?;
    start(log, file);
    log_panics();
    Ok(())
}

/// Logs panics, also before the log is set up.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        start(&config::Log::load_or_default(config::environment()), None);
        let message = panic.payload_as_str().unwrap_or("without a message");
        tracing::error!("a task panicked: {message}");
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::debug!(location, "location of the panic");
    }));
}

fn start(log: &config::Log, file: Option<LogFile>) {
    let (filter, handle) = log.levels.reloadable();
    let output: Option<&'static Mutex<LogFile>> = file.map(|file| &*Box::leak(Box::new(Mutex::new(file))));
    let lines = tracing_subscriber::fmt::layer()
        .fmt_fields(JsonFields::new())
        .event_format(LogLine { json: log.json })
        .with_writer(move || Output { file: output });
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        filter::control(handle, log.levels.clone());
    }
}

/// Destinations of a line. It is written to each at once.
struct Output {
    file: Option<&'static Mutex<LogFile>>,
}

impl Write for Output {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if let Some(file) = self.file {
            file::write(file, line);
        }
        std::io::stdout().write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stdout().flush()
    }
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

/// Line about the log itself, which cannot be logged.
fn own_line(json: bool, message: &str) -> String {
    let (timestamp, level, logger) = (Timestamp::now(), "ERROR", logger(module_path!()));
    let line = Line { timestamp, level, logger, message: message.into(), fields: Map::new() };
    let text = if json { serde_json::to_string(&line).unwrap_or_default() } else { line.text() };
    format!("{}\n", visible::json(&text))
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

    fn record_error(&mut self, field: &Field, error: &(dyn std::error::Error + 'static)) {
        self.0.insert(field.name().to_owned(), visible::with_causes(error).into());
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

    /// The panic is in a process of its own, since the hook is one for the process.
    #[test]
    fn a_panic_is_a_line_of_json() {
        const MARK: &str = "WORKFLOW_API_TEST_PANIC";
        if std::env::var_os(MARK).is_some() {
            log_panics();
            panic!("on \u{1b}[1mpurpose");
        }
        let program = std::env::current_exe().expect("this program");
        let arguments = ["telemetry::log::tests::a_panic_is_a_line_of_json", "--exact", "--nocapture"];
        let output = std::process::Command::new(program).args(arguments).env(MARK, "1").output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout);
        // The harness of the tests writes lines, too, and one without an end.
        let line = text.lines().find_map(|line| line.get(line.find("{\"timestamp")?..)).expect("a line");
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(
            (&line["level"], &line["message"]),
            (&"ERROR".into(), &"a task panicked: on \u{1b}[1mpurpose".into())
        );
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
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
