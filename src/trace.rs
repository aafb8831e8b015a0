//! W3C Trace Context: the header `traceparent`, as far as it is propagated. Pure.

use std::fmt::{self, Write as _};

use sha2::{Digest as _, Sha256};

/// The header's name, in HTTP and on records.
pub const TRACEPARENT: &str = "traceparent";
/// Length of version, trace id, parent id and flags, with their separators. Later versions may append more.
const LENGTH: usize = 55;

/// The known part of the header's value; `None`: it is not valid, and is ignored.
#[must_use]
pub fn valid(value: &str) -> Option<&str> {
    let (known, rest) = value.trim().split_at_checked(LENGTH)?;
    let mut parts = known.split('-');
    let mut next = |length: usize| {
        let part = parts.next()?;
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (part.len() == length && part.bytes().all(is_hex)).then_some(part)
    };
    let (version, trace_id, parent_id, _) = (next(2)?, next(32)?, next(16)?, next(2)?);
    let is_zero = |id: &str| id.bytes().all(|byte| byte == b'0');
    let fits_version = match version {
        "00" => rest.is_empty(),
        "ff" => false,
        _ => rest.is_empty() || rest.starts_with('-'),
    };
    (fits_version && !is_zero(trace_id) && !is_zero(parent_id)).then_some(known)
}

/// Identity of a span, as a `traceparent` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanContext {
    /// Id of the trace.
    pub trace_id: [u8; 16],
    /// Id of the span.
    pub span_id: [u8; 8],
    /// Whether the spans of the trace are recorded. The service in which the trace began has decided this.
    pub is_sampled: bool,
}

impl SpanContext {
    /// Parses the header's value; `None` if it is not valid.
    #[must_use]
    pub fn parse(traceparent: &str) -> Option<Self> {
        let known = valid(traceparent)?;
        let byte = |at: usize| u8::from_str_radix(&known[at..at + 2], 16).unwrap_or_default();
        Some(Self {
            trace_id: std::array::from_fn(|index| byte(3 + 2 * index)),
            span_id: std::array::from_fn(|index| byte(36 + 2 * index)),
            is_sampled: byte(53) & 1 == 1,
        })
    }

    /// Id of the trace in a valid `traceparent`.
    #[must_use]
    pub fn trace_id_of(traceparent: &str) -> Option<&str> {
        traceparent.get(3..35)
    }

    /// Id of the span in a valid `traceparent`.
    #[must_use]
    pub fn span_id_of(traceparent: &str) -> Option<&str> {
        traceparent.get(36..52)
    }
}

impl fmt::Display for SpanContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace_id, span_id, is_sampled } = self;
        write!(f, "00-{}-{}-{:02x}", hex(trace_id), hex(span_id), u8::from(*is_sampled))
    }
}

/// Id of the span that a run is in its trace: the sending of its request.
#[must_use]
pub fn span_of_run(run_id: &str) -> [u8; 8] {
    let digest = Sha256::digest(run_id);
    std::array::from_fn(|index| digest[16 + index])
}

/// The header of everything that is sent about a run. It belongs to the trace of the request that started the run, if
/// that had one, else to a trace of its own. The parent is the run itself, so that all of its parts are connected.
#[must_use]
pub fn of_run(run_id: &str, given: Option<&str>) -> String {
    let span_id = hex(&span_of_run(run_id));
    match given.and_then(valid) {
        Some(given) => format!("00-{}-{span_id}-{}", &given[3..35], &given[53..]),
        // Not sampled: no spans of it were recorded.
        None => format!("00-{}-{span_id}-00", hex(&Sha256::digest(run_id)[..16])),
    }
}

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing into a string cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn only_what_the_recommendation_allows_is_valid() {
        assert_eq!(valid(GIVEN), Some(GIVEN));
        assert_eq!(valid(&format!(" {GIVEN} ")), Some(GIVEN));
        let later = GIVEN.replacen("00", "cc", 1);
        assert_eq!(valid(&later), Some(later.as_str()));
        assert_eq!(valid(&format!("{later}-what-may-come")), Some(later.as_str()));
        for wrong in [
            String::new(),
            format!("{GIVEN}-more"),
            format!("{later}more"),
            GIVEN.to_uppercase(),
            GIVEN.replacen("00", "ff", 1),
            GIVEN.replace('-', "_"),
            GIVEN.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            GIVEN.replace("00f067aa0ba902b7", &"0".repeat(16)),
            GIVEN.replace('4', "\u{e4}"),
        ] {
            assert_eq!(valid(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_span_is_named_as_it_was_parsed() {
        let context = SpanContext::parse(GIVEN).expect("valid");
        assert_eq!((context.to_string().as_str(), context.is_sampled), (GIVEN, true));
        let unsampled = GIVEN.replace("-01", "-00");
        assert!(!SpanContext::parse(&unsampled).expect("valid").is_sampled);
        assert_eq!(SpanContext::trace_id_of(GIVEN), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        assert_eq!(SpanContext::span_id_of(GIVEN), Some("00f067aa0ba902b7"));
        assert_eq!(SpanContext::parse("nonsense"), None);
        let of_run = SpanContext::parse(&of_run("run-1", Some(GIVEN))).expect("valid");
        assert_eq!((of_run.trace_id, of_run.span_id), (context.trace_id, span_of_run("run-1")));
    }

    #[test]
    fn a_run_keeps_the_trace_that_it_was_started_in_or_has_its_own() {
        let of = |run_id, given| of_run(run_id, given);
        let carried = of("run-1", Some(GIVEN));
        assert!(carried.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && carried.ends_with("-01"), "{carried}");
        assert_ne!(carried, GIVEN, "its parent is the run, and not the caller");
        let own = of("run-1", None);
        assert_eq!(own, of("run-1", Some("nonsense")));
        assert_eq!(valid(&own), Some(own.as_str()));
        assert_ne!(own, of("run-2", None));
    }
}
