//! Compression of answers, for clients that accept it by `Accept-Encoding`.
//!
//! Not compressed are small answers, event streams, which are sent in pieces, and answers with secrets: the length of
//! a compressed text reveals its content to a client that can choose a part of it.

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
};
use http::{Extensions, HeaderMap, HeaderValue, StatusCode, Version, header};
use http_body_util::BodyExt as _;
use tower_http::{
    CompressionLevel,
    compression::{
        CompressionLayer,
        predicate::{Predicate as _, SizeAbove},
    },
};

use crate::{
    api::vocabulary::accept::preferences,
    permits::{Owners, Permits},
};

/// Smaller answers fit into one packet uncompressed.
const COMPRESSED_FROM_BYTES: u64 = 1024;
/// Maximum number of answers that are compressed at a time. Each holds up to two megabytes until its client has read
/// it; further answers are sent uncompressed.
const MAX_COMPRESSED: u64 = 64;

/// Marks an answer that must not be compressed.
#[derive(Clone, Copy, Debug)]
pub struct Secret;

/// Adds compression to the service.
pub fn around(service: Router) -> Router {
    let permits = Permits::new(MAX_COMPRESSED, []);
    let has_room = permits.clone();
    let may_be = move |_: StatusCode, _: Version, headers: &HeaderMap, extensions: &Extensions| {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let is_text = content_type.starts_with("application/json")
            || content_type.starts_with("application/x-ndjson")
            || content_type.starts_with("image/svg")
            || content_type.starts_with("text/");
        is_text
            && !content_type.starts_with("text/event-stream")
            && extensions.get::<Secret>().is_none()
            && has_room.check(Owners::default(), 1).is_ok()
    };
    // The fastest level gives most of the gain.
    let layer = CompressionLayer::new()
        .quality(CompressionLevel::Fastest)
        .compress_when(SizeAbove::new(COMPRESSED_FROM_BYTES).and(may_be));
    service.layer(layer).layer(middleware::from_fn_with_state(permits, compress))
}

async fn compress(State(permits): State<Permits>, mut request: Request, next: Next) -> Response {
    // Only supported codings are passed on: an answer is never refused because of its coding.
    match wanted(request.headers()) {
        Some(coding) => drop(request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static(coding))),
        None => drop(request.headers_mut().remove(header::ACCEPT_ENCODING)),
    }
    let mut response = next.run(request).await;
    if response.status() == StatusCode::NOT_MODIFIED {
        response.headers_mut().append(header::VARY, header::ACCEPT_ENCODING.into());
    }
    if !response.headers().contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    // The bytes differ and the resource is the same, so the tag becomes weak (RFC 9110, 8.8.1).
    if let Some(tag) = response.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok())
        && tag.starts_with('"')
        && let Ok(weak) = HeaderValue::from_str(&format!("W/{tag}"))
    {
        response.headers_mut().insert(header::ETAG, weak);
    }
    let permit = permits.take(Owners::default(), 1);
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = &permit;
            frame
        }))
    })
}

/// The client's preferred coding among the supported ones; `None` if it accepts none.
fn wanted(headers: &HeaderMap) -> Option<&'static str> {
    let mut best = (0.0, None);
    for (name, quality) in preferences(headers, &header::ACCEPT_ENCODING) {
        let coding = match name.as_str() {
            "zstd" => "zstd",
            "gzip" | "x-gzip" | "*" => "gzip",
            _ => continue,
        };
        if quality > best.0 || (quality > 0.0 && quality >= best.0 && coding == "zstd") {
            best = (quality, Some(coding));
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supported_coding_with_the_highest_weight_is_chosen() {
        for (given, expected) in [
            ("gzip", Some("gzip")),
            ("gzip, deflate, br, zstd", Some("zstd")),
            ("zstd;q=0.5, gzip;q=0.8", Some("gzip")),
            ("GZIP; q=0.1", Some("gzip")),
            ("*", Some("gzip")),
            ("gzip;q=0", None),
            ("gzip;q=0, zstd;q=0, identity;q=0", None),
            ("br", None),
            ("identity", None),
            ("gzip;q=x", None),
            ("", None),
        ] {
            let headers = [(header::ACCEPT_ENCODING, HeaderValue::from_static(given))].into_iter().collect();
            assert_eq!(wanted(&headers), expected, "{given}");
        }
    }
}
