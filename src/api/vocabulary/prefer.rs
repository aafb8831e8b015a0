//! `Prefer: wait=N` (RFC 7240): the answer to an execute may come when the run has ended.

use std::{sync::Arc, time::Duration};

use axum::{extract::FromRequestParts, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts};

use super::error::ApiError;
use crate::{
    api::{
        App,
        gate::{auth::Caller, load::Place},
        resources::runs::{self, Run, RunDetail},
    },
    db,
    run::RunStatus,
};

/// The request header.
const PREFER: HeaderName = HeaderName::from_static("prefer");
/// Says that and how the preference was honoured.
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// Longest wait; who asks for more gets this.
const MAX_WAIT_SECS: u64 = 60;
/// When to look again for a run that has not ended.
const RETRY_AFTER_SECS: HeaderValue = HeaderValue::from_static("1");

/// How many seconds the client is ready to wait, if it is at all.
pub struct Wait {
    secs: Option<u64>,
    place: Place,
}

impl Wait {
    /// Of a request with these headers. What cannot be understood is no preference, as the RFC has it.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let texts = headers.get_all(&PREFER).iter().filter_map(|value| value.to_str().ok());
        // A preference may have parameters of its own behind a semicolon; of repeated ones the first counts.
        let mut preferences = texts.flat_map(|text| text.split(',')).filter_map(|text| text.split(';').next());
        let wait = preferences.find_map(|preference| {
            let (name, value) = preference.split_once('=')?;
            name.trim().eq_ignore_ascii_case("wait").then(|| seconds(value.trim().trim_matches('"')))
        });
        let secs = wait.flatten().filter(|secs| *secs > 0).map(|secs| secs.min(MAX_WAIT_SECS));
        Self { secs, place: Place::default() }
    }

    /// The time that a request may take beyond what every request may.
    #[must_use]
    pub fn time(&self) -> Duration {
        Duration::from_secs(self.secs.unwrap_or_default())
    }
}

/// Digits, however many.
fn seconds(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

impl<S: Send + Sync> FromRequestParts<S> for Wait {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        Ok(Self { place: Place::from_request_parts(parts, state).await?, ..Self::of(&parts.headers) })
    }
}

/// The answer to a start: at once 202 with the run, or if the client waits, 200 with the run that has ended. One that
/// takes longer, or cannot be read at the moment, is 202 as well: it is durable.
pub async fn answer(app: &App, caller: &Caller, run: Run, wait: Wait) -> Response {
    let Some(secs) = wait.secs else { return runs::accepted(app, StatusCode::ACCEPTED, &RunDetail::open(run)) };
    wait.place.leave();
    app.waiting.until_ended(run.run_id(), wait.time(), caller.holders()).await;
    let found = look_again(app, caller, run.run_id()).await.unwrap_or_else(|error| {
        tracing::debug!(
            error = &*error as &dyn std::error::Error,
            "the run that was waited for cannot be read: {error}"
        );
        None
    });
    let detail = found.unwrap_or_else(|| RunDetail::open(run));
    let has_ended = RunStatus::parse(detail.status()).is_some_and(RunStatus::is_terminal);
    let status = if has_ended { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut response = runs::accepted(app, status, &detail);
    if !has_ended {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECS);
    }
    if let Ok(applied) = HeaderValue::from_str(&format!("wait={secs}")) {
        response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    }
    response
}

/// The run as it is now, unless the credentials of the caller have ended meanwhile.
async fn look_again(app: &App, caller: &Caller, run_id: &str) -> Result<Option<RunDetail>, Arc<db::Error>> {
    if !caller.still_counts(app).await? {
        return Ok(None);
    }
    match db::runs::find(&app.pool, caller.organization(), run_id).await? {
        Some(row) => Ok(Some(RunDetail::read(app, row).await?)),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preference_is_found_among_others_and_bounded() {
        for (headers, expected) in [
            (&["wait=10"][..], Some(10)),
            (&["respond-async, WAIT = \"7\""], Some(7)),
            (&["return=minimal", "wait=61; x=y"], Some(60)),
            (&["wait=0"], None),
            (&["wait=-1"], None),
            (&["wait"], None),
            (&["wait=soon, wait=5"], None),
            (&["waiting=5"], None),
            (&[], None),
        ] {
            let headers: HeaderMap = headers.iter().map(|value| (PREFER, HeaderValue::from_static(value))).collect();
            assert_eq!(Wait::of(&headers).secs, expected, "{headers:?}");
        }
    }
}
