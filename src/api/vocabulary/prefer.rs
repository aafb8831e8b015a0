//! `Prefer: wait=N` (RFC 7240): an execute can be answered at the end of the run.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::extract::FromRequestParts;
use http::{HeaderMap, request::Parts};

use super::{error::ApiError, headers::PREFER, request_permit::RequestPermit};

/// Maximum wait in seconds; longer requests are reduced to this.
const MAX_WAIT_SECS: u64 = 60;
/// Maximum wait, also for requests that name no time.
pub const MAX_WAIT: Duration = Duration::from_secs(MAX_WAIT_SECS);

/// Wait preference of a request, in seconds, if there is one.
pub struct Wait {
    secs: Option<u64>,
    permit: RequestPermit,
}

/// Time for which an answer has waited because its client wanted that. It is an extension of the response.
#[derive(Clone, Copy)]
pub struct Waited(pub Duration);

/// Time for which the handler of a request waits because its client wanted that, which it learns from the body. It is an
/// extension of the request. The time limit of the request is that much later.
#[derive(Clone, Default)]
pub struct Patience {
    millis: Arc<AtomicU64>,
    permit: RequestPermit,
}

impl Patience {
    /// Announces a wait, and releases the permit of the request, since it only waits.
    pub fn announce(&self, wait: Duration) {
        self.millis.fetch_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.permit.release();
    }

    /// The announced time.
    #[must_use]
    pub fn time(&self) -> Duration {
        Duration::from_millis(self.millis.load(Ordering::Relaxed))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Patience {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let announced = parts.extensions.get::<Self>().cloned().unwrap_or_default();
        Ok(Self { permit: RequestPermit::from_request_parts(parts, state).await?, ..announced })
    }
}

impl Wait {
    /// Reads the preference from the headers. An unknown or malformed preference is ignored, as the RFC demands.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let texts = headers.get_all(&PREFER).iter().filter_map(|value| value.to_str().ok());
        // A preference may have parameters behind a semicolon; of repeated preferences the first counts.
        let mut preferences = texts.flat_map(|text| text.split(',')).filter_map(|text| text.split(';').next());
        let wait = preferences.find_map(|preference| {
            let (name, value) = preference.split_once('=')?;
            name.trim().eq_ignore_ascii_case("wait").then(|| seconds(value.trim().trim_matches('"')))
        });
        let secs = wait.flatten().filter(|secs| *secs > 0).map(|secs| secs.min(MAX_WAIT_SECS));
        Self { secs, permit: RequestPermit::default() }
    }

    /// Requested waiting time.
    #[must_use]
    pub fn time(&self) -> Option<Duration> {
        self.secs.map(Duration::from_secs)
    }

    /// Releases the permit of the request while it only waits.
    pub fn release_permit(&self) {
        self.permit.release();
    }
}

/// Parses any number of digits.
fn seconds(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

impl<S: Send + Sync> FromRequestParts<S> for Wait {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        Ok(Self { permit: RequestPermit::from_request_parts(parts, state).await?, ..Self::of(&parts.headers) })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

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
