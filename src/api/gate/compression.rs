//! Compression of answers, for clients that accept it by `Accept-Encoding`.
//!
//! Not compressed are small answers, event streams, which are sent in pieces, and answers with secrets: the length of
//! a compressed text reveals its content to a client that can choose a part of it.

use axum::{body::Body, extract::Request, response::Response};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt as _;
use tower::{Layer as _, ServiceExt as _};
use tower_http::{
    CompressionLevel,
    compression::{
        CompressionLayer,
        predicate::{Predicate as _, SizeAbove},
    },
};

use super::answered;
use crate::{
    api::vocabulary::accept::preferences,
    permits::{Owners, Permits},
};

/// Smaller answers fit into one packet uncompressed.
const LARGE_ENOUGH: SizeAbove = SizeAbove::new(1024);
/// Maximum number of answers that are compressed at a time. Each holds up to two megabytes until its client has read
/// it; further answers are sent uncompressed.
const MAX_COMPRESSED: u64 = 64;

/// Marks an answer that must not be compressed.
#[derive(Clone, Copy, Debug)]
pub struct Secret;

/// Compression of answers.
pub struct Compression {
    layer: CompressionLayer<SizeAbove>,
    permits: Permits,
}

/// What a request says about the coding of its answer.
#[derive(Clone, Copy)]
pub struct Accepted {
    coding: Option<&'static str>,
    /// The answer has no body, and so none that could be compressed.
    is_head: bool,
}

impl Accepted {
    /// Reads the request.
    #[must_use]
    pub fn of(request: &Request) -> Self {
        Self { coding: wanted(request.headers()), is_head: request.method() == Method::HEAD }
    }
}

impl Default for Compression {
    fn default() -> Self {
        // The fastest level gives most of the gain.
        let layer = CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(LARGE_ENOUGH);
        Self { layer, permits: Permits::new(MAX_COMPRESSED, []) }
    }
}

impl Compression {
    /// Compresses the answer if its client accepts that and it is worth it.
    pub async fn apply(&self, accepted: Accepted, mut response: Response) -> Response {
        if response.status() == StatusCode::NOT_MODIFIED {
            response.headers_mut().append(header::VARY, header::ACCEPT_ENCODING.into());
        }
        if !accepted.is_head && self.is_worth_it(&response) {
            response = self.encode(accepted.coding, response).await;
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
        response
    }

    fn is_worth_it(&self, response: &Response) -> bool {
        let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default();
        let is_text = content_type.starts_with("application/json")
            || content_type.starts_with("application/x-ndjson")
            || content_type.starts_with("image/svg")
            || content_type.starts_with("text/");
        LARGE_ENOUGH.should_compress(response)
            && !response.headers().contains_key(header::CONTENT_ENCODING)
            && is_text
            && !content_type.starts_with("text/event-stream")
            && response.extensions().get::<Secret>().is_none()
            && self.permits.check(Owners::default(), 1).is_ok()
    }

    async fn encode(&self, coding: Option<&'static str>, response: Response) -> Response {
        let mut request = Request::default();
        // Only supported codings are passed on: an answer is never refused because of its coding.
        if let Some(coding) = coding {
            request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static(coding));
        }
        let encoded = self.layer.layer(answered(response)).oneshot(request).await;
        let encoded = encoded.unwrap_or_else(|never| match never {});
        let permit =
            encoded.headers().contains_key(header::CONTENT_ENCODING).then(|| self.permits.take(Owners::default(), 1));
        encoded.map(|body| match permit {
            Some(permit) => Body::new(body.map_frame(move |frame| {
                let _held = &permit;
                frame
            })),
            None => Body::new(body),
        })
    }
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
