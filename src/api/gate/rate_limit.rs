//! Rate limits: 429 for too many requests, and headers that show the remaining quota.
//!
//! The limits are for this process; behind a balancer each replica has its own. They are checked before any query to
//! the database.

use std::{hash::Hash, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::{
    api::vocabulary::{
        caller::{Caller, Proof},
        client::ClientAddress,
        error::ApiError,
    },
    clock::Clock,
    config,
    rate::{Buckets, Rate, State},
};

/// Name of the policy for wrong credentials.
const FAILED_AUTHENTICATION: &str = "failed-authentication";
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// Headers for the tightest limit: its quota, the remaining quota, the seconds until it is full again, and its window
/// in seconds. The first three as in the draft's versions up to 7, and as many services use them.
const SINGLE: [[HeaderName; 4]; 2] = [
    [
        HeaderName::from_static("ratelimit-limit"),
        HeaderName::from_static("ratelimit-remaining"),
        HeaderName::from_static("ratelimit-reset"),
        HeaderName::from_static("ratelimit-window"),
    ],
    [
        HeaderName::from_static("x-ratelimit-limit"),
        HeaderName::from_static("x-ratelimit-remaining"),
        HeaderName::from_static("x-ratelimit-reset"),
        HeaderName::from_static("x-ratelimit-window"),
    ],
];

/// All headers of this module, for the CORS settings.
pub fn header_names() -> impl Iterator<Item = HeaderName> {
    [RATE_LIMIT, RATE_LIMIT_POLICY].into_iter().chain(SINGLE.into_iter().flatten())
}

/// Rate limits from the settings.
pub struct RateLimits {
    clock: Clock,
    principal: Option<Buckets>,
    address: Option<Buckets>,
    failed: Option<Buckets>,
}

/// Limits that apply to a request.
#[derive(Default)]
pub struct AppliedLimits(Vec<(&'static str, Rate, State)>);

impl RateLimits {
    /// Creates the limits with full buckets, which refill by that clock.
    #[must_use]
    pub fn new(settings: &config::Limits, clock: Clock) -> Self {
        let buckets = |rate: Option<Rate>| rate.map(|rate| Buckets::new(rate, clock.instant()));
        let config::Limits { per_principal, per_address, failed_authentication, .. } = *settings;
        Self {
            principal: buckets(per_principal),
            address: buckets(per_address),
            failed: buckets(failed_authentication),
            clock,
        }
    }

    /// Counts a request from that address.
    pub fn count_address(&self, client: Option<ClientAddress>, applied: &mut AppliedLimits) -> Result<(), ApiError> {
        self.take("address", self.address.as_ref(), client.map(ClientAddress::network), applied)
    }

    /// Counts a request of that caller: an API key counts together with its tokens, otherwise the subject of the
    /// token.
    pub fn count_principal(&self, caller: &Caller, applied: &mut AppliedLimits) -> Result<(), ApiError> {
        let (key_id, subject) = match caller.proof {
            Proof::Nothing | Proof::Address => return Ok(()),
            Proof::Token(_) => (None, Some((caller.organization(), &caller.actor.subject))),
            Proof::TokenOfApiKey { id, .. } | Proof::ApiKey(id) => (Some(id), None),
        };
        self.take("principal", self.principal.as_ref(), Some((key_id, subject)), applied)
    }

    /// Counts wrong credentials from that address.
    pub fn count_failure(&self, client: Option<ClientAddress>, applied: &mut AppliedLimits) -> Result<(), ApiError> {
        self.take(FAILED_AUTHENTICATION, self.failed.as_ref(), client.map(ClientAddress::network), applied)
    }

    /// Whether further wrong credentials from that address would be refused.
    #[must_use]
    pub fn is_over_failure_limit(&self, client: Option<ClientAddress>) -> bool {
        let state = self
            .failed
            .as_ref()
            .zip(client)
            .map(|(buckets, client)| buckets.look(client.network(), self.clock.instant()));
        state.is_some_and(|state| state.refused_for.is_some())
    }

    fn take(
        &self,
        name: &'static str,
        buckets: Option<&Buckets>,
        key: Option<impl Hash>,
        applied: &mut AppliedLimits,
    ) -> Result<(), ApiError> {
        let (Some(buckets), Some(key)) = (buckets, key) else { return Ok(()) };
        let state = buckets.take(key, self.clock.instant());
        applied.0.push((name, buckets.rate(), state));
        match state.refused_for {
            None => Ok(()),
            Some(time) => {
                // The name is also that of a policy in headers, where it is longer.
                let reason = if name == FAILED_AUTHENTICATION { "failed_auth" } else { name };
                metrics::counter!("requests_refused_total", "reason" => reason).increment(1);
                Err(refusal(time))
            }
        }
    }
}

/// 429 with the time of the next possible retry.
pub fn refusal(time: Duration) -> ApiError {
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", "Too many requests; Retry-After says when to retry")
        .with_header(header::RETRY_AFTER, HeaderValue::from(whole_secs(time)))
}

impl AppliedLimits {
    /// Adds headers with the limits and the remaining quotas, after draft-ietf-httpapi-ratelimit-headers-11.
    pub fn show(&self, headers: &mut HeaderMap) {
        let Some((_, rate, state)) = self.0.iter().min_by_key(|(.., state)| state.remaining) else { return };
        let policies = self.0.iter().map(|(name, rate, _)| format!("\"{name}\";q={};w={}", rate.burst, window(*rate)));
        let states = self
            .0
            .iter()
            .map(|(name, _, state)| format!("\"{name}\";r={};t={}", state.remaining, whole_secs(state.full_in)));
        for (name, items) in
            [(RATE_LIMIT_POLICY, policies.collect::<Vec<_>>()), (RATE_LIMIT, states.collect::<Vec<_>>())]
        {
            if let Ok(value) = HeaderValue::from_str(&items.join(", ")) {
                headers.insert(name, value);
            }
        }
        for [limit, remaining, reset, window_secs] in SINGLE {
            headers.insert(limit, rate.burst.into());
            headers.insert(remaining, state.remaining.into());
            headers.insert(reset, whole_secs(state.full_in).into());
            headers.insert(window_secs, window(*rate).into());
        }
    }
}

/// Window: seconds in which an empty bucket fills.
fn window(rate: Rate) -> u64 {
    (u64::from(rate.burst) * 60).div_ceil(u64::from(rate.per_minute))
}

/// Rounded up, so that a retry at that time is not refused.
fn whole_secs(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
