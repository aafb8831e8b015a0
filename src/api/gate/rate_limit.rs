//! How much one may ask for: 429 to who asks for more, and headers that say so before.
//!
//! The limits hold for this process; behind a balancer each replica grants them anew. They are asked before anything is
//! asked of the database.

use std::{hash::Hash, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::{
    api::vocabulary::{
        caller::{Caller, Proof},
        client::ClientAddress,
        error::ApiError,
    },
    config,
    rate::{Buckets, Rate, State},
};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// Of the tightest limit: the quota, what is left of it, the seconds until it is whole, and the seconds that it is for.
/// The first three as in the draft's versions up to 7, and as many services have them.
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

/// All headers of this module, for scripts in browsers.
pub fn header_names() -> impl Iterator<Item = HeaderName> {
    [RATE_LIMIT, RATE_LIMIT_POLICY].into_iter().chain(SINGLE.into_iter().flatten())
}

/// The limits of the settings.
pub struct RateLimits {
    principal: Option<Buckets>,
    address: Option<Buckets>,
    failed: Option<Buckets>,
}

/// The limits that a request came under.
#[derive(Default)]
pub struct AppliedLimits(Vec<(&'static str, Rate, State)>);

impl RateLimits {
    /// With full buckets.
    #[must_use]
    pub fn new(settings: &config::Limits) -> Self {
        let buckets = |rate: Option<Rate>| rate.map(Buckets::new);
        let config::Limits { per_principal, per_address, failed_authentication, .. } = *settings;
        Self {
            principal: buckets(per_principal),
            address: buckets(per_address),
            failed: buckets(failed_authentication),
        }
    }

    /// Counts a request from that address.
    pub fn count_address(&self, client: Option<ClientAddress>, applied: &mut AppliedLimits) -> Result<(), ApiError> {
        take("address", self.address.as_ref(), client.map(ClientAddress::network), applied)
    }

    /// Counts a request of that caller: of an API key and its tokens together, or of a token's subject.
    pub fn count_principal(&self, caller: &Caller, applied: &mut AppliedLimits) -> Result<(), ApiError> {
        let (key_id, subject) = match caller.proof {
            Proof::Nothing | Proof::Address => return Ok(()),
            Proof::Token(_) => (None, Some((caller.organization(), &caller.actor.subject))),
            Proof::TokenOfApiKey { id, .. } | Proof::ApiKey(id) => (Some(id), None),
        };
        take("principal", self.principal.as_ref(), Some((key_id, subject)), applied)
    }

    /// Counts credentials from that address that were wrong.
    pub fn count_failure(&self, client: Option<ClientAddress>, applied: &mut AppliedLimits) -> Result<(), ApiError> {
        take("failed-authentication", self.failed.as_ref(), client.map(ClientAddress::network), applied)
    }

    /// Whether further credentials from that address that are wrong would be refused.
    #[must_use]
    pub fn is_over_failure_limit(&self, client: Option<ClientAddress>) -> bool {
        let state = self.failed.as_ref().zip(client).map(|(buckets, client)| buckets.look(client.network()));
        state.is_some_and(|state| state.refused_for.is_some())
    }
}

fn take(
    name: &'static str,
    buckets: Option<&Buckets>,
    key: Option<impl Hash>,
    applied: &mut AppliedLimits,
) -> Result<(), ApiError> {
    let (Some(buckets), Some(key)) = (buckets, key) else { return Ok(()) };
    let state = buckets.take(key);
    applied.0.push((name, buckets.rate(), state));
    match state.refused_for {
        None => Ok(()),
        Some(time) => {
            metrics::counter!("requests_refused_total", "reason" => name).increment(1);
            Err(refusal(time))
        }
    }
}

/// 429: again after that time.
pub fn refusal(time: Duration) -> ApiError {
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", "Too many requests; Retry-After says when to go on")
        .with_header(header::RETRY_AFTER, HeaderValue::from(whole_secs(time)))
}

impl AppliedLimits {
    /// Says in the answer what the limits are and what is left, after draft-ietf-httpapi-ratelimit-headers-11.
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

/// Seconds in which an empty bucket fills.
fn window(rate: Rate) -> u64 {
    (u64::from(rate.burst) * 60).div_ceil(u64::from(rate.per_minute))
}

/// Rounded up: who comes back then is not refused.
fn whole_secs(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
