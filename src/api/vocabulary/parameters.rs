//! Parameters that several operations share, as the OpenAPI document describes them.

#![expect(dead_code, reason = "describes what the extractors of `api` read")]

use chrono::{DateTime, Utc};
use utoipa::IntoParams;

/// Page of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Paging {
    /// Number of the page, from 1. Pages by number end at the 10 000th entry.
    #[param(minimum = 1, maximum = 10000)]
    page: Option<i64>,
    /// Number of entries on a page; the default is `DEFAULT_PAGE_SIZE`, and the maximum `MAX_PAGE_SIZE`.
    #[param(minimum = 1)]
    page_size: Option<i64>,
    /// Replaces `page`: the `next_cursor`, or the `prev_cursor`, of an answer to the same query.
    cursor: Option<String>,
}

/// Time span of creation.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Created {
    /// Created at this time or later. Seconds since 1970 are accepted too.
    created_after: Option<DateTime<Utc>>,
    /// Created at this time or earlier. Seconds since 1970 are accepted too.
    created_before: Option<DateTime<Utc>>,
}

/// Time span of the last change.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Updated {
    /// Last changed at this time or later. Seconds since 1970 are accepted too.
    updated_after: Option<DateTime<Utc>>,
    /// Last changed at this time or earlier. Seconds since 1970 are accepted too.
    updated_before: Option<DateTime<Utc>>,
}

/// Idempotency key: makes a request safe to repeat.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct IdempotencyKey {
    /// A repeat with the same key and body gets the answer of the first request, and `Idempotency-Replayed: true`.
    #[param(rename = "Idempotency-Key", max_length = 255, pattern = "^[!-~]([ -~]*[!-~])?$")]
    key: Option<String>,
}

/// Condition for a change: the version that was read.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct IfMatch {
    /// The change is made only if the `ETag` is still this one.
    #[param(rename = "If-Match", pattern = r#"^(\*|(W/)?"[!#-+\--~]*"( *, *(W/)?"[!#-+\--~]*")*)$"#)]
    tags: Option<String>,
}

/// Condition for an answer: the version that the client has.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct IfNoneMatch {
    /// The resource is sent only if its `ETag` is another one.
    #[param(rename = "If-None-Match", pattern = r#"^(\*|(W/)?"[!#-+\--~]*"( *, *(W/)?"[!#-+\--~]*")*)$"#)]
    tags: Option<String>,
}

/// Preference to wait for the end of the run.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct Prefer {
    /// `wait=N` waits up to N seconds, 60 at most, for the run to end.
    #[param(rename = "Prefer", example = "wait=5")]
    preference: Option<String>,
}

/// A workflow that is an agent.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct ExposedAgent {
    /// Id of the organisation
    #[param(example = "default")]
    organization: String,
    /// Name of the workflow
    #[param(example = "hello")]
    workflow: String,
}
