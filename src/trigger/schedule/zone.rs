//! Offsets of a time zone, and the instants at which they change.

use chrono::{DateTime, Offset as _, TimeDelta, TimeZone as _, Utc};
use chrono_tz::Tz;

/// Interval at which offsets are compared. No zone changes its offset and back within it.
const PROBE: TimeDelta = TimeDelta::hours(12);
/// No change of an offset is larger: zones have skipped a day.
const MAX_CHANGE: TimeDelta = TimeDelta::hours(26);

/// Change of the offset of a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The first instant with the new offset.
    pub(super) at: DateTime<Utc>,
    pub(super) before: TimeDelta,
    pub(super) after: TimeDelta,
}

/// Offset of local time from UTC at an instant.
pub(super) fn offset(zone: Tz, at: DateTime<Utc>) -> TimeDelta {
    TimeDelta::seconds(zone.offset_from_utc_datetime(&at.naive_utc()).fix().local_minus_utc().into())
}

/// The change whose repeated or skipped local times may still matter at this instant.
pub(super) fn recent_change(zone: Tz, at: DateTime<Utc>) -> Option<Change> {
    let mut later = at;
    while later > at - MAX_CHANGE {
        let earlier = later - PROBE;
        if offset(zone, earlier) != offset(zone, later) {
            return Some(between(zone, earlier, later));
        }
        later = earlier;
    }
    None
}

/// The first change after `from`, up to `until`.
pub(super) fn next_change(zone: Tz, from: DateTime<Utc>, until: DateTime<Utc>) -> Option<Change> {
    let (mut earlier, known) = (from, offset(zone, from));
    while earlier < until {
        let later = earlier + PROBE;
        if offset(zone, later) != known {
            return Some(between(zone, earlier, later)).filter(|change| change.at <= until);
        }
        earlier = later;
    }
    None
}

/// The change between two instants with different offsets.
fn between(zone: Tz, mut earlier: DateTime<Utc>, mut later: DateTime<Utc>) -> Change {
    let before = offset(zone, earlier);
    while later - earlier > TimeDelta::seconds(1) {
        let middle = earlier + TimeDelta::seconds((later - earlier).num_seconds() / 2);
        if offset(zone, middle) == before {
            earlier = middle;
        } else {
            later = middle;
        }
    }
    // Offsets change at full seconds.
    let at = DateTime::from_timestamp(later.timestamp(), 0).unwrap_or(later);
    Change { at, before, after: offset(zone, later) }
}
