//! Filter of the log: the lines that are written. It can be changed while the process runs, on the management port.

use std::{
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use axum::{Json, Router, body::Bytes, extract::DefaultBodyLimit, response::IntoResponse, routing::get};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Registry, filter::Targets, reload};

use crate::{config::LogLevels, timestamp::Timestamp};

/// Maximum length of a request to change the filter.
const MAX_BYTES: usize = 4096;
/// Maximum time after which a change is reverted: a day.
const MAX_SECS: u64 = 86_400;

impl LogLevels {
    /// Filter of these levels. The libraries' lines are part of the log from DEBUG on, or if their loggers are named.
    fn targets(&self) -> Targets {
        let Self { level, loggers } = self;
        let is_debug = *level >= LevelFilter::DEBUG;
        let dependencies = if is_debug { LevelFilter::DEBUG } else { (*level).min(LevelFilter::WARN) };
        // librdkafka logs an unavailable broker at every attempt; the relay and the executor log it once.
        let rdkafka = if is_debug { LevelFilter::DEBUG } else { LevelFilter::OFF };
        let targets = Targets::new()
            .with_default(dependencies)
            .with_targets([("workflow_api", *level), ("api", *level), ("sqlx::query", *level)])
            .with_targets([("librdkafka", rdkafka), ("rdkafka", rdkafka)]);
        // The log shows a module of this program with dots, and without the program's name.
        loggers.iter().fold(targets, |targets, (logger, level)| {
            let module = format!("workflow_api::{}", logger.replace('.', "::"));
            targets.with_targets([(logger.replace('.', "::"), *level), (logger.clone(), *level), (module, *level)])
        })
    }

    /// Layer with this filter, and the handle that changes it.
    pub(super) fn reloadable(&self) -> (reload::Layer<Targets, Registry>, Handle) {
        reload::Layer::new(self.targets())
    }
}

/// Handle of the filter in use.
pub(super) type Handle = reload::Handle<Targets, Registry>;

/// Control of the filter of this process.
struct Control {
    handle: Handle,
    configured: LogLevels,
    state: Mutex<State>,
}

struct State {
    current: LogLevels,
    reverts_at: Option<Timestamp>,
    /// Number of changes. A change that was replaced is not reverted.
    changes: u64,
}

static CONTROL: OnceLock<Control> = OnceLock::new();

/// Makes the filter changeable.
pub(super) fn control(handle: Handle, configured: LogLevels) {
    let state = Mutex::new(State { current: configured.clone(), reverts_at: None, changes: 0 });
    // The log is set up once.
    drop(CONTROL.set(Control { handle, configured, state }));
}

impl Control {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the filter, and returns the number of the change.
    fn change(&self, directives: LogLevels, reverts_at: Option<Timestamp>) -> Result<u64, reload::Error> {
        let mut state = self.state();
        self.handle.reload(directives.targets())?;
        state.current = directives;
        state.reverts_at = reverts_at;
        state.changes += 1;
        Ok(state.changes)
    }

    fn revert(&self, change: u64) {
        if self.state().changes == change && self.change(self.configured.clone(), None).is_ok() {
            tracing::warn!("the log filter is {} again", self.configured);
        }
    }

    fn shown(&self) -> Shown {
        let state = self.state();
        Shown {
            filter: state.current.to_string(),
            configured: self.configured.to_string(),
            reverts_at: state.reverts_at,
        }
    }
}

/// Answer of the endpoint.
#[derive(Serialize)]
struct Shown {
    filter: String,
    configured: String,
    reverts_at: Option<Timestamp>,
}

/// Request to change the filter.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    filter: String,
    duration_seconds: Option<u64>,
}

/// Router of `/log-level`: `GET` shows the filter of the log, and `PUT` changes it.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/log-level", get(show).put(change)).layer(DefaultBodyLimit::max(MAX_BYTES))
}

async fn show() -> impl IntoResponse {
    match CONTROL.get() {
        Some(control) => (StatusCode::OK, Json(json!(control.shown()))),
        None => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"detail": "The log of this process is not set up here"})))
        }
    }
}

async fn change(body: Bytes) -> impl IntoResponse {
    let Some(control) = CONTROL.get() else { return show().await.into_response() };
    let (directives, duration) = match wanted(&body, control.configured.level) {
        Ok(wanted) => wanted,
        Err(detail) => return (StatusCode::BAD_REQUEST, Json(json!({"detail": detail}))).into_response(),
    };
    let reverts_at = duration.map(Timestamp::after_now);
    match control.change(directives, reverts_at) {
        Ok(change) => {
            let Shown { filter, .. } = control.shown();
            // A warning, so that it is in the log whatever the filter was.
            tracing::warn!("the log filter is {filter} now, by a request to the management port");
            if let Some(duration) = duration {
                tokio::spawn(async move {
                    tokio::time::sleep(duration).await;
                    control.revert(change);
                });
            }
            show().await.into_response()
        }
        Err(error) => {
            tracing::error!("the log filter cannot be changed: {error}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// The filter of a request, and the time after which it is reverted; or what is wrong with the request.
fn wanted(body: &[u8], default: LevelFilter) -> Result<(LogLevels, Option<Duration>), String> {
    let expected = r#"expected is {"filter": "DEBUG", "duration_seconds": 600}; the second member is optional"#;
    let Wanted { filter, duration_seconds } =
        serde_json::from_slice(body).map_err(|error| format!("{error}; {expected}"))?;
    if duration_seconds.is_some_and(|secs| !(1..=MAX_SECS).contains(&secs)) {
        return Err(format!("duration_seconds must be from 1 to {MAX_SECS}"));
    }
    let directives = LogLevels::parse(&filter, default).map_err(|why| format!("filter: {why}"))?;
    Ok((directives, duration_seconds.map(Duration::from_secs)))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn names_select_levels_of_loggers_as_the_log_shows_them() {
        let parse = |text| LogLevels::parse(text, LevelFilter::INFO).expect(text);
        let directives = parse("warning, executor.journal=debug,api.request=off,hyper::proto=trace");
        assert_eq!(directives.to_string(), "WARNING,executor.journal=DEBUG,api.request=OFF,hyper::proto=TRACE");
        let targets = directives.targets();
        for (target, level, expected) in [
            ("workflow_api::executor::journal", Level::DEBUG, true),
            ("workflow_api::executor::drive", Level::INFO, false),
            ("workflow_api::executor::drive", Level::WARN, true),
            ("api.request", Level::ERROR, false),
            ("hyper::proto::h1", Level::TRACE, true),
            ("rdkafka", Level::ERROR, false),
        ] {
            assert_eq!(targets.would_enable(target, &level), expected, "{target} {level}");
        }
        // A logger may also be named as in the source.
        let targets = parse("INFO,workflow_api::executor=DEBUG").targets();
        assert!(targets.would_enable("workflow_api::executor::journal", &Level::DEBUG));
        assert!(!targets.would_enable("workflow_api::outbox", &Level::DEBUG));
        assert_eq!(parse("executor=DEBUG").level, LevelFilter::INFO, "the default");
        assert!(parse("TRACE").targets().would_enable("rdkafka", &Level::DEBUG));
    }

    #[test]
    fn a_wrong_request_is_refused_with_the_reason() {
        for (body, reason) in [
            ("", "expected is"),
            (r#"{"filter": "LOUD"}"#, "LOUD"),
            (r#"{"filter": ""}"#, "a level must be"),
            (r#"{"filter": "INFO,DEBUG"}"#, "two levels"),
            (r#"{"filter": "a b=INFO"}"#, "not the name of a logger"),
            (r#"{"filter": "=INFO"}"#, "not the name of a logger"),
            (r#"{"filter": "INFO", "duration_seconds": 0}"#, "duration_seconds"),
            (r#"{"filter": "INFO", "seconds": 5}"#, "unknown field"),
            (r#"{"level": "INFO"}"#, "unknown field"),
        ] {
            let why = wanted(body.as_bytes(), LevelFilter::INFO).expect_err(body);
            assert!(why.contains(reason), "{body}: {why}");
        }
        let (directives, duration) =
            wanted(br#"{"filter": "debug", "duration_seconds": 5}"#, LevelFilter::INFO).unwrap();
        assert_eq!((directives.to_string().as_str(), duration), ("DEBUG", Some(Duration::from_secs(5))));
    }
}
