//! Types of events, as endpoints choose them.

use crate::event::catalogue;

/// Whether the text is a type of the catalogue, `GROUP.*` or `*`. Of a group, at least one type must be sent without being
/// named itself.
#[must_use]
pub fn is_pattern(text: &str) -> bool {
    let is_group = |group: &str| group.is_empty() || group.ends_with('.');
    catalogue::find(text).is_some()
        || text.strip_suffix('*').is_some_and(is_group)
            && catalogue::TYPES.iter().any(|known| takes(&[text.to_owned()], known.name))
}

/// Whether an endpoint with these patterns takes events of that type.
#[must_use]
pub fn takes(patterns: &[String], event_type: &str) -> bool {
    patterns.iter().any(|pattern| {
        if pattern == event_type {
            return true;
        }
        // Frequent types must be named.
        if catalogue::find(event_type).is_some_and(|known| known.is_frequent) {
            return false;
        }
        match pattern.strip_suffix('*') {
            Some("") => true,
            Some(group) => event_type.starts_with(group),
            None => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_type_a_group_or_everything() {
        for right in ["run.completed", "run.*", "*", "dead_letter.created", "webhook.ping"] {
            assert!(is_pattern(right), "{right}");
        }
        let syntax = ["", ".*", "run.", "Run.x", "run*", "run.*.x", "**", "run..x", "run.x y", "dead_*"];
        for wrong in syntax.into_iter().chain(["run.complete", "step.*", "runs.*", "run.completed.*"]) {
            assert!(!is_pattern(wrong), "{wrong}");
        }
    }

    #[test]
    fn frequent_events_are_sent_only_to_endpoints_that_name_them() {
        let takes = |patterns: &[&str], event_type| {
            takes(&patterns.iter().map(|pattern| (*pattern).to_owned()).collect::<Vec<_>>(), event_type)
        };
        assert!(takes(&["*"], "run.failed") && takes(&["run.*"], "run.failed") && takes(&["run.failed"], "run.failed"));
        assert!(!takes(&["run.*"], "runner.failed") && !takes(&["run.failed"], "run.completed"));
        assert!(!takes(&["*", "step.*"], "step.failed") && takes(&["step.failed"], "step.failed"));
    }
}
