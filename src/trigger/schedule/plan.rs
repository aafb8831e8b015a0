//! What a schedule does at an instant: which firings are due, and which of them are missed.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{CatchUp, Next, Schedule};

/// Least age from which on a firing counts as one that was due while no process ran. Below it, a process was only slow.
const LATE: TimeDelta = TimeDelta::seconds(10);
/// The same for a process that has looked for due schedules without a gap: it had so many of them.
const LATE_OF_MANY: TimeDelta = TimeDelta::minutes(5);
/// Maximum number of instants that are looked at together.
const MAX_SCANNED: usize = 2_000;
/// Maximum number of firings that are decided together.
const MAX_FIRED: usize = 100;

/// Decision about the instants up to one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Nominal instants to fire for, in their order.
    pub fire: Vec<DateTime<Utc>>,
    /// Number of firings that are missed, with the first and the last nominal instant of them.
    pub missed: Option<(i64, DateTime<Utc>, DateTime<Utc>)>,
    /// Nominal instant up to which all are decided.
    pub processed_until: DateTime<Utc>,
    /// When there is something to decide next; `None`: never.
    pub due_at: Option<DateTime<Utc>>,
}

impl Schedule {
    /// Decides about the instants after `processed_until` that are due at `now`. If there are many, only about the first
    /// ones: then it is due again at once. `watched`: how long the process has looked for due schedules without a gap.
    #[must_use]
    pub fn due(&self, id: Uuid, processed_until: DateTime<Utc>, now: DateTime<Utc>, watched: TimeDelta) -> Due {
        let (mut cursor, mut found, mut due_at) = (processed_until, Vec::new(), Some(now));
        for _ in 0..MAX_SCANNED {
            match self.next(cursor) {
                Next::At(nominal) => {
                    let at = self.jittered(id, nominal);
                    if at > now {
                        due_at = Some(at);
                        break;
                    }
                    found.push((nominal, at));
                    cursor = nominal;
                }
                Next::NotUntil(instant) => {
                    cursor = instant;
                    if instant > now {
                        due_at = Some(instant);
                        break;
                    }
                }
                Next::Never => {
                    due_at = None;
                    break;
                }
            }
        }
        if due_at == Some(now)
            && let Next::At(nominal) = self.next(cursor)
        {
            // Whether there are more decides about the latest one.
            due_at = Some(self.jittered(id, nominal).max(now));
        }
        let mut due = self.decide(&found, (now, watched.clamp(LATE, LATE_OF_MANY)), due_at == Some(now));
        due.processed_until = cursor;
        due.due_at = due_at;
        if due.fire.len() > MAX_FIRED {
            due.fire.truncate(MAX_FIRED);
            // What is missed is older than what is fired.
            due.processed_until = due.fire.last().copied().unwrap_or(cursor);
            due.due_at = Some(now);
        }
        due
    }

    /// Decides which of the instants, each with the one at which it is due, are fired and which are missed. `late`: age
    /// from which on they are late at `now`; `has_more`: there are later ones that are due.
    fn decide(
        &self,
        found: &[(DateTime<Utc>, DateTime<Utc>)],
        (now, late): (DateTime<Utc>, TimeDelta),
        has_more: bool,
    ) -> Due {
        let window = TimeDelta::seconds(self.catch_up_window_seconds);
        let in_time = found.iter().position(|(_, at)| now - *at <= late).unwrap_or(found.len());
        let in_window = found[..in_time].iter().position(|(_, at)| now - *at <= window).unwrap_or(in_time);
        let first = match self.catch_up {
            CatchUp::None => in_time,
            CatchUp::Latest if has_more || in_time < found.len() => in_time,
            CatchUp::Latest => in_window.max(in_time.saturating_sub(1)),
            CatchUp::All => in_window,
        };
        let missed = &found[..first];
        let count = i64::try_from(missed.len()).unwrap_or(i64::MAX);
        let missed = missed.first().zip(missed.last()).map(|(first, last)| (count, first.0, last.0));
        Due { fire: found[first..].iter().map(|(nominal, _)| *nominal).collect(), missed, ..Due::default() }
    }

    /// Nominal instant up to which firings are decided when this schedule is changed to another one at `now`. Those that
    /// this one would still have made, because of the jitter or because no process has got to them, stay to be made if
    /// the other one has no instants besides: it makes up for none of the time before the change.
    #[must_use]
    pub fn decided_at_change(
        &self,
        to: &Self,
        id: Uuid,
        processed_until: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> DateTime<Utc> {
        let since = now - TimeDelta::seconds(self.jitter_seconds) - LATE;
        let (mut cursor, mut pending) = (processed_until.max(since), Vec::new());
        for _ in 0..MAX_SCANNED {
            match self.next(cursor) {
                Next::At(nominal) if nominal > now => break,
                Next::At(nominal) => {
                    if now - self.jittered(id, nominal) <= LATE {
                        pending.push(nominal);
                    }
                    cursor = nominal;
                }
                Next::NotUntil(instant) => cursor = instant,
                Next::Never => break,
            }
        }
        let Some(first) = pending.first() else { return now };
        let kept = to.range(*first, now + TimeDelta::microseconds(1), pending.len() + 1);
        match kept.first() {
            Some(first) if kept.iter().all(|nominal| pending.contains(nominal)) => *first - TimeDelta::microseconds(1),
            _ => now,
        }
    }

    /// Instants of a range without its end, at most so many.
    #[must_use]
    pub fn range(&self, from: DateTime<Utc>, to: DateTime<Utc>, max: usize) -> Vec<DateTime<Utc>> {
        let mut cursor = from - TimeDelta::microseconds(1);
        let mut found = Vec::new();
        while found.len() < max {
            match self.next(cursor) {
                Next::At(next) if next < to => {
                    found.push(next);
                    cursor = next;
                }
                Next::NotUntil(instant) if instant < to => cursor = instant,
                _ => break,
            }
        }
        found
    }
}
