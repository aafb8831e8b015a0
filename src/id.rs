//! Ids: those that the service generates, and those that it accepts from callers.

use uuid::Uuid;

/// Maximum length of a correlation id from a caller. A longer one is replaced by a generated id.
pub const MAX_CORRELATION_ID_CHARS: usize = 128;

/// A new run id: `run-` and a UUIDv7, so that ids grow with time and inserts stay at the right end of the index.
#[must_use]
pub fn new_run_id() -> String {
    format!("run-{}", Uuid::now_v7())
}

/// The run id that follows from a trigger and from what has happened.
#[must_use]
pub fn derived_run_id(trigger_id: Uuid, what: &str) -> String {
    format!("run-{}", Uuid::new_v5(&trigger_id, what.as_bytes()))
}

/// The UUID of a run in audit rows: the one in its id, or for ids of another form a derived one.
#[must_use]
pub fn run_entity_id(run_id: &str) -> Uuid {
    run_id.strip_prefix("run-").and_then(|uuid| Uuid::try_parse(uuid).ok()).unwrap_or_else(|| entity_id(run_id))
}

/// The UUID in audit rows for an entity without a UUID: a UUIDv5 of its id.
#[must_use]
pub fn entity_id(id: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, id.as_bytes())
}

/// The caller's correlation id if it can be used unchanged in logs, headers and messages, else a new one (`req-…`).
#[must_use]
pub fn correlation_id(given: Option<&str>) -> String {
    match given {
        Some(id) if is_plain_id(id) => id.to_owned(),
        _ => format!("req-{}", Uuid::new_v4().simple()),
    }
}

/// Printable ASCII without spaces, quotes and the like: safe in a header, a log line and a shell.
fn is_plain_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= MAX_CORRELATION_ID_CHARS
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@#".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_correlation_id_is_kept_only_if_it_is_plain() {
        for kept in ["req-abc123", "a", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"] {
            assert_eq!(correlation_id(Some(kept)), kept);
        }
        let long = "x".repeat(MAX_CORRELATION_ID_CHARS + 1);
        for replaced in ["", "two words", "a\"b", "ü", long.as_str()] {
            assert!(correlation_id(Some(replaced)).starts_with("req-"), "{replaced}");
        }
        assert!(correlation_id(None).starts_with("req-"));
    }

    #[test]
    fn an_audit_row_names_a_run_by_its_uuid_or_by_one_derived_from_its_id() {
        let run_id = new_run_id();
        assert_eq!(format!("run-{}", run_entity_id(&run_id)), run_id);
        assert_eq!(run_entity_id("ext-1"), run_entity_id("ext-1"));
        assert_ne!(run_entity_id("ext-1"), run_entity_id("ext-2"));
    }
}
