//! Parameters that several operations take, as the OpenAPI document describes them.

#![expect(dead_code, reason = "describes what the extractors of `api` read")]

use chrono::{DateTime, Utc};
use utoipa::IntoParams;

/// Which part of a list is asked for.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Paging {
    /// Which page, from 1. Pages by number end at the 10 000th entry.
    #[param(minimum = 1, maximum = 10000)]
    page: Option<i64>,
    /// Entries of a page; absent is `DEFAULT_PAGE_SIZE`, more than `MAX_PAGE_SIZE` is that.
    #[param(minimum = 1)]
    page_size: Option<i64>,
    /// Instead of `page`: what an answer to the same query has as `next_cursor`, or as `prev_cursor`.
    cursor: Option<String>,
}

/// A span of time in which the entries were made.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Created {
    /// Made then or later. Seconds since 1970 are taken too.
    created_after: Option<DateTime<Utc>>,
    /// Made then or earlier. Seconds since 1970 are taken too.
    created_before: Option<DateTime<Utc>>,
}

/// A span of time in which the entries were changed last.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Updated {
    /// Changed last then or later. Seconds since 1970 are taken too.
    updated_after: Option<DateTime<Utc>>,
    /// Changed last then or earlier. Seconds since 1970 are taken too.
    updated_before: Option<DateTime<Utc>>,
}

/// Makes a request safe to repeat.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct IdempotencyKey {
    /// A repeat with the same key and body answers with what the first one made, and `Idempotency-Replayed: true`.
    #[param(rename = "Idempotency-Key", max_length = 255, pattern = "^[!-~]([ -~]*[!-~])?$")]
    key: Option<String>,
}

/// Makes a change depend on the state that was read.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct IfMatch {
    /// Only if the `ETag` is still this one.
    #[param(rename = "If-Match", pattern = r#"^(\*|(W/)?"[!#-+\--~]*"( *, *(W/)?"[!#-+\--~]*")*)$"#)]
    tags: Option<String>,
}

/// Makes an answer depend on the state that is known.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct IfNoneMatch {
    /// Only if the `ETag` is another one.
    #[param(rename = "If-None-Match", pattern = r#"^(\*|(W/)?"[!#-+\--~]*"( *, *(W/)?"[!#-+\--~]*")*)$"#)]
    tags: Option<String>,
}

/// Makes an execute wait.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct Prefer {
    /// `wait=N` waits up to N seconds, 60 at most, for the run to end.
    #[param(rename = "Prefer", example = "wait=5")]
    preference: Option<String>,
}
