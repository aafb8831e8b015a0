//! The instants of a schedule. Cron expressions are matched against local times as if no clock was ever changed; the
//! policies for changes of the offset say which instants these local times are.

use chrono::{DateTime, NaiveDate, NaiveDateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use croner::Cron;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    DstFold, DstGap,
    zone::{self, Change},
};

/// Time ahead in which an instant is searched for.
const HORIZON: TimeDelta = TimeDelta::days(3653);
/// Maximum number of instants that one search finds to be excluded.
const MAX_EXCLUDED: usize = 5_000;

/// Result of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The instant.
    At(DateTime<Utc>),
    /// There is none within ten years.
    Never,
    /// Many instants up to this one are excluded; there may be others after it.
    NotUntil(DateTime<Utc>),
}

/// Particularity of an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// It stands for a local time that does not exist.
    Gap,
    /// Its local time exists twice.
    Fold,
}

/// Instant at which a schedule fires, as its place has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrence {
    /// The instant.
    pub at: DateTime<Utc>,
    /// Local time with its offset, as ISO 8601.
    pub local: String,
    /// Whether the clocks are changed about that time.
    pub note: Option<Note>,
}

/// Cron expression.
#[derive(Clone, Debug)]
pub struct Expression {
    pub(super) cron: Cron,
    /// Whether the time of the day has a wildcard.
    pub(super) is_wildcard: bool,
}

/// Times at which a schedule does not fire.
#[derive(Clone, Debug)]
pub enum Excluded {
    /// A day.
    Date(NaiveDate),
    /// What a cron expression matches.
    Times(Box<Cron>),
}

/// Period in absolute time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Every {
    pub(super) micros: i64,
    pub(super) anchor: DateTime<Utc>,
}

/// All that says when a schedule fires.
#[derive(Clone, Debug)]
pub(super) struct Times {
    pub(super) expressions: Vec<Expression>,
    pub(super) every: Option<Every>,
    pub(super) excluded: Vec<Excluded>,
    pub(super) zone: Tz,
    pub(super) gap: DstGap,
    pub(super) fold: DstFold,
    pub(super) start: Option<DateTime<Utc>>,
    pub(super) end: Option<DateTime<Utc>>,
}

impl Times {
    /// The first instant after this one.
    pub(super) fn next(&self, after: DateTime<Utc>) -> Next {
        let mut after = match self.start {
            // It is inclusive.
            Some(start) => after.max(start - TimeDelta::microseconds(1)),
            None => after,
        };
        let horizon = after + HORIZON;
        let end = self.end.map_or(horizon, |end| end.min(horizon));
        for _ in 0..MAX_EXCLUDED {
            let crons = self.expressions.iter().filter_map(|expression| self.next_of(expression, after, horizon));
            let every = self.every.and_then(|every| every.next(after));
            let Some(found) = crons.chain(every).min().filter(|found| *found <= end) else { return Next::Never };
            match self.exclusion(found) {
                None => return Next::At(found),
                Some(until) => after = until,
            }
        }
        Next::NotUntil(after)
    }

    fn local(&self, at: DateTime<Utc>) -> NaiveDateTime {
        at.naive_utc() + zone::offset(self.zone, at)
    }

    /// If the instant is excluded: an instant up to which all are.
    fn exclusion(&self, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let local = self.local(at);
        self.excluded.iter().find_map(|excluded| match excluded {
            Excluded::Date(date) if *date == local.date() => {
                let midnight = date.succ_opt()?.and_hms_opt(0, 0, 0)?;
                let before = at + (midnight - local) - TimeDelta::microseconds(1);
                // Where the clocks are changed meanwhile, the day may end earlier.
                Some(if self.local(before).date() == *date { before.max(at) } else { at })
            }
            Excluded::Times(cron) if cron.is_time_matching(&local.and_utc()).unwrap_or(false) => Some(at),
            _ => None,
        })
    }

    /// The first instant after this one at which the expression fires.
    fn next_of(&self, expression: &Expression, after: DateTime<Utc>, horizon: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let is_twice = match self.fold {
            DstFold::Auto => expression.is_wildcard,
            DstFold::First => false,
            DstFold::Both => true,
        };
        let find = |from: NaiveDateTime, inclusive: bool| {
            let found = expression.cron.find_next_occurrence(&from.and_utc(), inclusive).ok()?;
            Some(found.naive_utc()).filter(|local| *local <= horizon.naive_utc() + TimeDelta::days(2))
        };
        // The part of the time line with one offset that has `after`, and what of its local times existed before.
        let mut offset = zone::offset(self.zone, after);
        let (mut from, mut inclusive) = (after.naive_utc() + offset, false);
        if let Some(Change { before, at, .. }) = zone::recent_change(self.zone, after)
            && !is_twice
            && at.naive_utc() + before > from
        {
            (from, inclusive) = (at.naive_utc() + before, true);
        }
        let mut begin = after;
        loop {
            let local = find(from, inclusive)?;
            let found = (local - offset).and_utc();
            let Some(change) = zone::next_change(self.zone, begin, found.max(begin)) else { return Some(found) };
            // Local times from here on are after the change.
            let (old, new) = (change.at.naive_utc() + change.before, change.at.naive_utc() + change.after);
            if local < old {
                return Some(found);
            }
            if local < new && self.gap == DstGap::Next && !expression.is_wildcard {
                return Some(change.at);
            }
            offset = change.after;
            begin = change.at;
            from = if is_twice { new } else { new.max(old) };
            inclusive = true;
        }
    }

    /// How the instant looks at the place of the schedule.
    pub(super) fn occurrence(&self, at: DateTime<Utc>) -> Occurrence {
        let (offset, local) = (zone::offset(self.zone, at), self.local(at));
        let near = zone::recent_change(self.zone, at).filter(|change| change.before > change.after);
        let is_second = near.is_some_and(|change| local < change.at.naive_utc() + change.before);
        let ahead = zone::next_change(self.zone, at, at + TimeDelta::hours(26));
        let is_first =
            ahead.is_some_and(|change| change.before > change.after && local >= change.at.naive_utc() + change.after);
        let is_after_gap =
            zone::recent_change(self.zone, at).is_some_and(|change| change.at == at && change.after > change.before);
        let matches = |expression: &Expression| expression.cron.is_time_matching(&local.and_utc()).unwrap_or(false);
        let is_regular = self.expressions.iter().any(matches) || self.every.is_some_and(|every| every.has(at));
        let note = if is_first || is_second {
            Some(Note::Fold)
        } else if is_after_gap && !is_regular {
            Some(Note::Gap)
        } else {
            None
        };
        let minutes = offset.num_minutes();
        let sign = if minutes < 0 { '-' } else { '+' };
        let (hours, minutes) = (minutes.abs() / 60, minutes.abs() % 60);
        let local = format!("{}{sign}{hours:02}:{minutes:02}", local.format("%Y-%m-%dT%H:%M:%S%.f"));
        Occurrence { at, local, note }
    }
}

impl Every {
    fn next(self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let passed = (after - self.anchor).num_microseconds()?;
        let periods = passed.div_euclid(self.micros).checked_add(1)?;
        self.anchor.checked_add_signed(TimeDelta::microseconds(periods.checked_mul(self.micros)?))
    }

    fn has(self, at: DateTime<Utc>) -> bool {
        (at - self.anchor).num_microseconds().is_some_and(|passed| passed % self.micros == 0)
    }
}

/// An instant in the `room` microseconds from the nominal one, which only depends on the schedule and on the nominal
/// instant.
pub(super) fn jittered(id: Uuid, nominal: DateTime<Utc>, room: i64) -> DateTime<Utc> {
    let mut hash = Sha256::new();
    hash.update(id.as_bytes());
    hash.update(nominal.timestamp_micros().to_be_bytes());
    let digest = hash.finalize();
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    let part = (u128::from(u64::from_be_bytes(bytes)) * u128::from(room.unsigned_abs())) >> 64;
    nominal + TimeDelta::microseconds(i64::try_from(part).unwrap_or_default())
}
