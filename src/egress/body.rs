//! Reader of answer bodies: up to a limit, with an excerpt for errors if the body is not the expected JSON.

use std::{
    error::Error as StdError,
    fmt::Write as _,
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use reqwest::Response;
use serde_json::value::RawValue;

use crate::{
    input::{JsonFault, check_json, shorten},
    permits::Permit,
};

/// Byte order mark, which precedes the text of some UTF-8 files,
/// <https://www.rfc-editor.org/rfc/rfc8259#section-8.1>.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Maximum bytes of an excerpt. A user of the excerpt masks it first and then cuts it to the space it has.
const EXCERPT_BYTES: usize = 1 << 10;

/// Memory for a body: large bodies wait for a permit before they are read.
pub struct Memory<'a> {
    /// Permit that grows with the bytes that are read.
    pub permit: &'a mut Permit,
    /// Bodies with fewer bytes need no permit.
    pub small: usize,
    /// How long to wait while no memory is released.
    pub patience: Duration,
    /// True while it waits.
    pub waits: &'a AtomicBool,
}

impl Memory<'_> {
    /// Grows the permit to this number of bytes.
    async fn reserve(&mut self, bytes: usize) -> Result<(), BodyError> {
        let more = (bytes as u64).saturating_sub(self.permit.amount());
        if more == 0 {
            return Ok(());
        }
        self.waits.store(true, Ordering::Relaxed);
        let grown = self.permit.grow_patiently(more, self.patience).await;
        self.waits.store(false, Ordering::Relaxed);
        grown.map_err(|_| BodyError::NoRoom)
    }
}

/// Reason why the body of an answer was not read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The decompressed body has more bytes than this.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// The body has a content coding that was not requested.
    #[error("the answer has the content coding {0}, which the request does not accept")]
    Coding(String),
    /// The body is not valid in the compression that it declares.
    #[error("the answer cannot be decompressed: {0}")]
    Compression(String),
    /// There is no memory for the body.
    #[error("there is no memory for the answer")]
    NoRoom,
    /// The connection failed.
    #[error("the answer is not complete")]
    Broken(#[source] reqwest::Error),
}

/// Error: an answer is not JSON that can be stored. `Display` shows its beginning on one line; it may contain
/// secrets.
#[derive(Debug, thiserror::Error)]
#[error("{fault}; {shown}")]
pub struct NotJson {
    fault: JsonFault,
    shown: String,
}

/// Body of an answer.
pub struct Body {
    bytes: Vec<u8>,
    media_type: Option<String>,
}

impl Body {
    /// The bytes without a byte order mark.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&self.bytes)
    }

    /// Whether the body is only white space.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes().trim_ascii().is_empty()
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<&RawValue, NotJson> {
        check_json(self.bytes()).map_err(|fault| NotJson { fault, shown: self.shown() })
    }

    /// Media type and excerpt, for errors.
    fn shown(&self) -> String {
        let media_type = self.media_type.as_deref().unwrap_or("of no content type");
        match self.excerpt() {
            None => format!("it is {media_type} and empty"),
            Some(excerpt) => format!("it is {media_type} and begins with {excerpt}"),
        }
    }

    /// Excerpt: the beginning of the body, for an HTML page from its title on, on one line and without control
    /// characters. `None` if the body is empty. It may contain secrets, and is not cut inside of a word, so that
    /// secrets are still found for masking.
    #[must_use]
    pub fn excerpt(&self) -> Option<String> {
        let title = self.bytes().windows(6).position(|window| window.eq_ignore_ascii_case(b"<title"));
        let text = String::from_utf8_lossy(&self.bytes()[title.unwrap_or_default()..]);
        let mut excerpt = String::new();
        for word in text.split_whitespace() {
            if !excerpt.is_empty() {
                if excerpt.len() + word.len() > EXCERPT_BYTES {
                    excerpt.push('…');
                    break;
                }
                excerpt.push(' ');
            }
            for char in word.chars() {
                if is_shown(char) {
                    excerpt.push(char);
                } else {
                    // Writing into a string does not fail.
                    let _ = write!(excerpt, "{}", char.escape_unicode());
                }
            }
        }
        (!excerpt.is_empty()).then_some(excerpt)
    }
}

/// Whether the character is shown: neither a control character nor one that changes how a line reads.
fn is_shown(char: char) -> bool {
    !(char.is_control()
        || matches!(char, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'))
}

/// Reads the body of an answer, up to a number of decompressed bytes.
pub async fn read_body(
    mut response: Response,
    limit: usize,
    mut memory: Option<Memory<'_>>,
) -> Result<Body, BodyError> {
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    // The client removes the codings that it decodes from the header.
    if let Some(coding) = header(CONTENT_ENCODING).filter(|coding| !coding.trim().eq_ignore_ascii_case("identity")) {
        return Err(BodyError::Coding(shorten(coding).into_owned()));
    }
    let media_type = header(CONTENT_TYPE).and_then(|value| value.split(';').next()).map(str::trim);
    let media_type = media_type.filter(|media_type| !media_type.is_empty()).map(|it| shorten(it).into_owned());
    let announced = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
    if announced > limit {
        return Err(BodyError::TooLarge(limit));
    }
    if let Some(memory) = memory.as_mut().filter(|memory| announced >= memory.small) {
        memory.reserve(announced).await?;
    }
    let mut bytes = Vec::with_capacity(announced);
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        let length = bytes.len() + chunk.len();
        if length > limit {
            return Err(BodyError::TooLarge(limit));
        }
        // A body of unknown size waits once, for the maximum. If several waited repeatedly for more, none of them
        // might be read to its end.
        if let Some(memory) = memory.as_mut().filter(|memory| length > announced && length >= memory.small) {
            memory.reserve(limit).await?;
        }
        bytes.extend_from_slice(&chunk);
    }
    if let Some(memory) = memory.filter(|memory| memory.permit.amount() > 0) {
        memory.permit.resize(bytes.len() as u64);
    }
    Ok(Body { bytes, media_type })
}

/// Error of the connection or of decompression: the client has one kind of error for both.
fn broken(error: reqwest::Error) -> BodyError {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.is::<hyper::Error>() {
            break;
        }
        if let Some(corrupt) = inner.downcast_ref::<io::Error>()
            && matches!(
                corrupt.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof
            )
        {
            return BodyError::Compression(corrupt.to_string());
        }
        cause = StdError::source(inner);
    }
    BodyError::Broken(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(media_type: Option<&str>, bytes: &[u8]) -> Body {
        Body { bytes: bytes.to_owned(), media_type: media_type.map(str::to_owned) }
    }

    #[test]
    fn an_error_shows_the_beginning_of_a_body_that_is_not_json() {
        for (media_type, bytes, expected) in [
            (None, &b""[..], "JSON decode error at byte 0; it is of no content type and empty"),
            (
                Some("text/html"),
                b"<!DOCTYPE html>\n<html>\n <head><TITLE>Sign in</TITLE></head>",
                "JSON decode error at byte 0; it is text/html and begins with <TITLE>Sign in</TITLE></head>",
            ),
            (
                Some("text/plain"),
                "a\n\x1b[1m\u{202e}b\u{85}c \u{ff}".as_bytes(),
                "JSON decode error at byte 0; it is text/plain and begins with a \\u{1b}[1m\\u{202e}b c ÿ",
            ),
        ] {
            assert_eq!(body(media_type, bytes).json().expect_err("no JSON").to_string(), expected);
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_answer() {
        let marked = body(None, b"\xef\xbb\xbf{\"a\":1}");
        assert_eq!(marked.json().expect("JSON").get(), "{\"a\":1}");
        assert!(body(None, b"\xef\xbb\xbf\n").is_empty());
    }

    #[test]
    fn an_excerpt_ends_with_a_word() {
        let long = "secret".repeat(1000);
        let excerpt = body(None, format!("{long} b {long}").as_bytes()).excerpt().expect("some");
        assert_eq!(excerpt, format!("{long}…"));
        let many = body(None, "ab ".repeat(1000).as_bytes()).excerpt().expect("some");
        assert!(many.len() < EXCERPT_BYTES + 5 && many.ends_with("ab…"), "{many}");
    }
}
