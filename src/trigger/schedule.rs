//! Schedules: times at which a trigger fires.

mod plan;
mod times;
mod words;
mod zone;

use chrono::{DateTime, NaiveDate, Utc};
use chrono_tz::Tz;
use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

pub use self::plan::Due;
use self::times::{Every, Excluded, Expression, Times};
pub use self::times::{Next, Note, Occurrence};
use crate::{
    input::{FieldError, Node, Object, Read, iso_8601, iso_duration, keep, request_object, to_raw},
    timestamp::Timestamp,
};

/// Maximum number of cron expressions.
const MAX_CRONS: usize = 10;
/// Maximum number of exclusions.
const MAX_EXCLUDED: usize = 100;
/// Maximum length of a cron expression.
const MAX_CRON_CHARS: usize = 255;
/// Maximum seconds of a period.
const MAX_PERIOD_SECS: f64 = 315_360_000.0;
/// Maximum jitter: a day.
const MAX_JITTER_SECS: i64 = 86_400;
/// Catch-up window: the default, and the range. The maximum is a year.
const CATCH_UP_SECS: i64 = 86_400;
const CATCH_UP_RANGE: std::ops::RangeInclusive<i64> = 10..=31_536_000;
/// Maximum number of failures in a row.
const MAX_FAILURES: i64 = 1000;
/// Maximum number of firings that wait for the end of another run.
pub const MAX_BUFFERED: usize = 1000;
/// Version of the time zone database.
pub const TIME_ZONES: &str = chrono_tz::IANA_TZDB_VERSION;

/// Defines a closed set of values, the first of which is the default.
macro_rules! choice {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $value:ident = $text:literal),+ $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$doc])* $value),+ }

        impl $name {
            /// Names on the wire.
            pub const NAMES: &'static [&'static str] = &[$($text),+];

            /// Name on the wire and in the database.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)+
                }
            }

            fn read(node: &Node<'_>) -> Read<Self> {
                node.parsed(|text| match text {
                    $($text => Ok(Self::$value),)+
                    _ => Err(format!("must be one of {}", Self::NAMES.join(", "))),
                })
            }
        }
    };
}

choice! {
    /// Firing at a local time that does not exist, because the clocks were put forward.
    DstGap {
        /// At the first instant after the gap.
        Next = "next",
        /// Not on that day.
        Skip = "skip",
    }
}

choice! {
    /// Firing at a local time that exists twice, because the clocks were put back.
    DstFold {
        /// Fixed times once, expressions with a wildcard in the time of the day at both.
        Auto = "auto",
        /// At the first one.
        First = "first",
        /// At both.
        Both = "both",
    }
}

choice! {
    /// What happens if a run of the same schedule has not ended.
    Overlap {
        /// The firing is skipped.
        Skip = "skip",
        /// One firing waits for the end of the run; further ones are dropped.
        BufferOne = "buffer_one",
        /// All firings wait, up to a maximum.
        BufferAll = "buffer_all",
        /// The run is cancelled.
        CancelOther = "cancel_other",
        /// The runs overlap.
        Allow = "allow",
    }
}

choice! {
    /// What is made up for of the firings that were due while no process ran.
    CatchUp {
        /// Nothing.
        None = "none",
        /// The latest one.
        Latest = "latest",
        /// All of them.
        All = "all",
    }
}

/// When a schedule fires, and what happens then.
#[derive(Clone, Debug, Serialize)]
pub struct Schedule {
    cron: Vec<String>,
    every: Option<String>,
    anchor: Option<Timestamp>,
    exclude: Vec<String>,
    time_zone: String,
    dst_gap: DstGap,
    dst_fold: DstFold,
    start_at: Option<Timestamp>,
    end_at: Option<Timestamp>,
    jitter_seconds: i64,
    /// See [`Overlap`].
    pub overlap: Overlap,
    /// See [`CatchUp`].
    pub catch_up: CatchUp,
    /// Age in seconds from which on a firing is not made up for.
    pub catch_up_window_seconds: i64,
    /// Number of failed runs in a row after which the schedule is paused; 0: never.
    pub pause_after_failures: i64,
    /// Number of firings that it has; `None`: no limit.
    pub remaining: Option<i64>,
    #[serde(skip)]
    times: Times,
}

request_object! {
    /// The `config` of a schedule. It has `cron`, `every` or both.
    #[schema(as = ScheduleConfig, example = json!({"cron": ["0 9 * * 1"], "time_zone": "Europe/Berlin"}))]
    pub struct ScheduleBody: deny_unknown_fields {
        /// Cron expressions with 5 fields, or 6 with seconds first, or `@hourly` and the like. It fires when any of them
        /// matches. If both days are restricted, either has to match.
        #[schema(value_type = Option<Vec<String>>, max_items = 10, example = json!(["0 9 * * 1"]))]
        cron: Option<Vec<(String, Expression)>> = nullable(|node| read_list(node, MAX_CRONS, read_cron)),
        /// Period as an ISO 8601 duration of at least a second, regardless of the clocks of the time zone.
        #[schema(value_type = Option<String>, example = "PT15M")]
        every: Option<(String, i64)> = nullable(read_period),
        /// An instant from which the periods count; the default is 1970-01-01T00:00:00Z.
        #[schema(value_type = Option<String>, format = DateTime)]
        anchor: Option<DateTime<Utc>> = nullable(read_instant),
        /// Dates, or cron expressions, at whose local times it does not fire.
        #[schema(value_type = Option<Vec<String>>, max_items = 100, example = json!(["2027-12-25"]))]
        exclude: Option<Vec<(String, Excluded)>> = nullable(|node| read_list(node, MAX_EXCLUDED, read_excluded)),
        /// Name of a time zone of the IANA database; the default is `UTC`.
        #[schema(value_type = Option<String>, example = "Europe/Berlin")]
        time_zone: Option<Tz> = nullable(read_zone),
        /// A local time that does not exist: `next` (the default) fires at the first instant after the gap, `skip` not at all.
        #[schema(value_type = Option<String>, pattern = "^(next|skip)$")]
        dst_gap: Option<DstGap> = nullable(DstGap::read),
        /// A local time that exists twice: `auto` (the default) fires at both if the expression has a wildcard in the time of
        /// the day, else at the first; `first` and `both` say what they do.
        #[schema(value_type = Option<String>, pattern = "^(auto|first|both)$")]
        dst_fold: Option<DstFold> = nullable(DstFold::read),
        /// It does not fire before this instant.
        #[schema(value_type = Option<String>, format = DateTime)]
        start_at: Option<DateTime<Utc>> = nullable(read_instant),
        /// It does not fire after this instant.
        #[schema(value_type = Option<String>, format = DateTime)]
        end_at: Option<DateTime<Utc>> = nullable(read_instant),
        /// Each firing is late by up to this many seconds, but never later than the following one. The default is 0.
        #[schema(minimum = 0, maximum = 86_400)]
        jitter_seconds: Option<i64> = nullable(|node| node.int(0..=MAX_JITTER_SECS)),
        /// If a run of this schedule has not ended: `skip` (the default) drops the firing; with `buffer_one` one firing waits,
        /// with `buffer_all` up to 1000 do; `cancel_other` cancels the run; `allow` starts another one.
        #[schema(value_type = Option<String>, pattern = "^(skip|buffer_one|buffer_all|cancel_other|allow)$")]
        overlap: Option<Overlap> = nullable(Overlap::read),
        /// What is made up for of the time while no process ran: nothing with `none`; one firing with `latest`, the default;
        /// everything with `all`, for which `overlap` has to be `buffer_all` or else `allow`.
        #[schema(value_type = Option<String>, pattern = "^(none|latest|all)$")]
        catch_up: Option<CatchUp> = nullable(CatchUp::read),
        /// What was due longer ago is missed. The default is 86 400.
        #[schema(minimum = 10, maximum = 31_536_000)]
        catch_up_window_seconds: Option<i64> = nullable(|node| node.int(CATCH_UP_RANGE)),
        /// After this many failed runs in a row it is paused; 0 (the default): never.
        #[schema(minimum = 0, maximum = 1000)]
        pause_after_failures: Option<i64> = nullable(|node| node.int(0..=MAX_FAILURES)),
        /// Number of firings, not counting those by hand and by a backfill, after which it ends; null: no limit.
        #[schema(minimum = 1)]
        remaining: Option<i64> = nullable(|node| node.int(1..=i64::from(i32::MAX))),
    }
}

impl Schedule {
    /// Reads a configuration.
    pub fn read(object: &Object<'_>) -> Read<Self> {
        let body = ScheduleBody::read(object)?;
        let at = |member: &str| format!("{}.{member}", object.path());
        let (cron, expressions): (Vec<_>, Vec<_>) = body.cron.unwrap_or_default().into_iter().unzip();
        let (exclude, excluded): (Vec<_>, Vec<_>) = body.exclude.unwrap_or_default().into_iter().unzip();
        let mut errors = Vec::new();
        if cron.is_empty() && body.every.is_none() {
            errors.push(FieldError::rule(at("cron"), "there must be at least one expression, or `every`"));
        }
        if body.anchor.is_some() && body.every.is_none() {
            errors.push(FieldError::rule(at("anchor"), "is only for `every`"));
        }
        if let (Some(start), Some(end)) = (body.start_at, body.end_at)
            && end < start
        {
            errors.push(FieldError::rule(at("end_at"), "must not be before `start_at`"));
        }
        let (overlap, catch_up) = (body.overlap.unwrap_or(Overlap::Skip), body.catch_up.unwrap_or(CatchUp::Latest));
        if catch_up == CatchUp::All && !matches!(overlap, Overlap::BufferAll | Overlap::Allow) {
            errors.push(FieldError::rule(at("catch_up"), "all needs the overlap buffer_all or allow"));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let zone = body.time_zone.unwrap_or(Tz::UTC);
        let anchor = body.anchor.unwrap_or_default();
        let (dst_gap, dst_fold) = (body.dst_gap.unwrap_or(DstGap::Next), body.dst_fold.unwrap_or(DstFold::Auto));
        let every = body.every.as_ref().map(|(_, micros)| Every { micros: *micros, anchor });
        Ok(Self {
            cron,
            every: body.every.map(|(text, _)| text),
            anchor: body.anchor.map(Timestamp::from),
            exclude,
            time_zone: zone.name().to_owned(),
            dst_gap,
            dst_fold,
            start_at: body.start_at.map(Timestamp::from),
            end_at: body.end_at.map(Timestamp::from),
            jitter_seconds: body.jitter_seconds.unwrap_or_default(),
            overlap,
            catch_up,
            catch_up_window_seconds: body.catch_up_window_seconds.unwrap_or(CATCH_UP_SECS),
            pause_after_failures: body.pause_after_failures.unwrap_or_default(),
            remaining: body.remaining,
            times: Times {
                expressions,
                every,
                excluded,
                zone,
                gap: dst_gap,
                fold: dst_fold,
                start: body.start_at,
                end: body.end_at,
            },
        })
    }

    /// Whether it fires within ten years, as far as that can be found out in bounded time.
    pub fn check(&self, path: &str, now: DateTime<Utc>) -> Result<(), Vec<FieldError>> {
        let text = match self.next(now) {
            Next::At(_) => return Ok(()),
            Next::Never if self.times.end.is_some_and(|end| end <= now) => {
                return Err(vec![FieldError::rule(format!("{path}.end_at"), "is in the past")]);
            }
            Next::Never => "it would not fire within ten years",
            Next::NotUntil(_) => "it fires so seldom, because of what is excluded, that the time cannot be found",
        };
        let member = if self.cron.is_empty() { "every" } else { "cron" };
        Err(vec![FieldError::rule(format!("{path}.{member}"), text)])
    }

    /// Its first instant after this one.
    #[must_use]
    pub fn next(&self, after: DateTime<Utc>) -> Next {
        self.times.next(after)
    }

    /// Its first instants after this one, at most so many.
    #[must_use]
    pub fn upcoming(&self, mut after: DateTime<Utc>, count: usize) -> Vec<DateTime<Utc>> {
        let mut found = Vec::with_capacity(count);
        while found.len() < count
            && let Next::At(next) = self.next(after)
        {
            found.push(next);
            after = next;
        }
        found
    }

    /// The instant at which it fires for this nominal one: with the jitter, which is the same each time.
    #[must_use]
    pub fn jittered(&self, id: Uuid, nominal: DateTime<Utc>) -> DateTime<Utc> {
        if self.jitter_seconds == 0 {
            return nominal;
        }
        let room = match self.next(nominal) {
            Next::At(next) => (next - nominal).num_microseconds().unwrap_or(i64::MAX),
            Next::Never | Next::NotUntil(_) => i64::MAX,
        };
        times::jittered(id, nominal, room.min(self.jitter_seconds * 1_000_000))
    }

    /// When there is something to decide after this nominal instant; `None`: never.
    #[must_use]
    pub fn due_at(&self, id: Uuid, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self.next(after) {
            Next::At(nominal) => Some(self.jittered(id, nominal)),
            Next::NotUntil(instant) => Some(instant),
            Next::Never => None,
        }
    }

    /// The configuration in its normal form.
    #[must_use]
    pub fn to_stored(&self) -> Box<RawValue> {
        to_raw(self)
    }

    /// How an instant at which it fires looks at its place.
    #[must_use]
    pub fn occurrence(&self, at: DateTime<Utc>) -> Occurrence {
        self.times.occurrence(at)
    }

    /// Name of its time zone.
    #[must_use]
    pub fn time_zone(&self) -> &str {
        &self.time_zone
    }

    /// Its times in plain words.
    #[must_use]
    pub fn in_words(&self) -> String {
        let crons = self.cron.iter().zip(&self.times.expressions).map(|(text, one)| words::of_cron(text, &one.cron));
        let every = self.every.as_deref().map(words::of_period);
        let times = crons.chain(every).collect::<Vec<_>>().join(", and ");
        format!("{times}, {}", self.time_zone)
    }
}

/// Reads the elements of a list, at most so many.
fn read_list<T>(node: &Node<'_>, max: usize, read: impl Fn(&Node<'_>) -> Read<T>) -> Read<Vec<T>> {
    let nodes = node.list()?;
    if nodes.len() > max {
        let message = format!("List should have at most {max} items after validation, not {}", nodes.len());
        return Err(vec![node.error("too_long", message)]);
    }
    let mut errors = Vec::new();
    let read: Vec<T> = nodes.iter().filter_map(|node| keep(read(node), &mut errors)).collect();
    if errors.is_empty() { Ok(read) } else { Err(errors) }
}

fn read_cron(node: &Node<'_>) -> Read<(String, Expression)> {
    let text = node.not_blank(1..=MAX_CRON_CHARS)?;
    let expression = expression(&text).map_err(|why| vec![FieldError::rule(node.path(), why)])?;
    Ok((text, expression))
}

/// Parses a cron expression. The error is for people.
fn expression(text: &str) -> Result<Expression, String> {
    let text = text.trim();
    let fields = match text.to_ascii_lowercase().as_str() {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        nickname if nickname.starts_with('@') => {
            return Err("the names are @yearly, @monthly, @weekly, @daily and @hourly".to_owned());
        }
        _ => text,
    };
    let count = fields.split_whitespace().count();
    if !(5..=6).contains(&count) {
        return Err(format!("there must be 5 fields, or 6 with seconds first, not {count}"));
    }
    let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
    let cron: Cron = parser.parse(fields).map_err(|error| format!("not a cron expression: {error}"))?;
    let time_fields = if count == 5 { 2 } else { 3 };
    let is_wildcard = fields.split_whitespace().take(time_fields).any(|field| field.contains('*'));
    Ok(Expression { cron, is_wildcard })
}

fn read_excluded(node: &Node<'_>) -> Read<(String, Excluded)> {
    let text = node.not_blank(1..=MAX_CRON_CHARS)?;
    if let Ok(date) = NaiveDate::parse_from_str(text.trim(), "%Y-%m-%d") {
        return Ok((text, Excluded::Date(date)));
    }
    let excluded = expression(&text).map_err(|why| {
        let text = format!("must be a date such as 2027-12-25, or a cron expression: {why}");
        vec![FieldError::rule(node.path(), text)]
    })?;
    Ok((text, Excluded::Times(Box::new(excluded.cron))))
}

/// Reads a period, with its microseconds.
fn read_period(node: &Node<'_>) -> Read<(String, i64)> {
    let text = node.not_blank(1..=MAX_CRON_CHARS)?;
    let secs = iso_duration(&text).map_err(|why| vec![FieldError::rule(node.path(), why)])?;
    if !(1.0..=MAX_PERIOD_SECS).contains(&secs) {
        return Err(vec![FieldError::rule(node.path(), "must be from a second to ten years")]);
    }
    #[expect(clippy::cast_possible_truncation, reason = "the range fits")]
    Ok((text, (secs * 1e6).round() as i64))
}

fn read_zone(node: &Node<'_>) -> Read<Tz> {
    node.parsed(|name| name.parse().map_err(|_| "must be a time zone such as Europe/Berlin".to_owned()))
}

fn read_instant(node: &Node<'_>) -> Read<DateTime<Utc>> {
    node.parsed(|text| {
        let wrong = || "must be a time with a zone, such as 2027-02-03T09:00:00Z".to_owned();
        let (local, offset) = iso_8601(text.trim()).ok_or_else(wrong)?;
        let offset = chrono::TimeDelta::seconds(offset.ok_or_else(wrong)?.local_minus_utc().into());
        let utc = local.checked_sub_signed(offset).ok_or_else(wrong)?.and_utc();
        let years = 1970..=2900;
        if years.contains(&chrono::Datelike::year(&utc)) { Ok(utc) } else { Err(wrong()) }
    })
}

request_object! {
    /// Body of a backfill request.
    #[schema(as = BackfillTriggerRequest,
        example = json!({"from": "2027-01-01T00:00:00Z", "to": "2027-02-01T00:00:00Z", "dry_run": false}))]
    pub struct BackfillBody: deny_unknown_fields {
        /// Begin of the range, inclusive.
        #[schema(value_type = String, format = DateTime)]
        from: DateTime<Utc> = required(read_instant),
        /// End of the range, exclusive.
        #[schema(value_type = String, format = DateTime)]
        to: DateTime<Utc> = required(read_instant),
        /// `allow` starts the runs as fast as possible, `buffer_all` one after the other. Absent: as the schedule has it, where
        /// everything but `allow` means one after the other.
        #[schema(value_type = Option<String>, pattern = "^(buffer_all|allow)$")]
        overlap: Option<Overlap> = nullable(|node| {
            let overlap = Overlap::read(node)?;
            let is_known = matches!(overlap, Overlap::BufferAll | Overlap::Allow);
            let wrong = || vec![FieldError::rule(node.path(), "must be one of buffer_all, allow")];
            if is_known { Ok(overlap) } else { Err(wrong()) }
        }),
        /// Whether the runs are only counted; the default is true.
        #[schema(nullable = false)]
        dry_run: Option<bool> = patch_not_null(Node::boolean),
        /// Whether runs are also started for instants that have a run; the default is false.
        #[schema(nullable = false)]
        force: Option<bool> = patch_not_null(Node::boolean),
    }
}

/// Backfill to make.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "described in the body")]
pub struct BackfillRequest {
    pub from: DateTime<Utc>,
    pub to: DateTime<Utc>,
    pub overlap: Option<Overlap>,
    pub dry_run: bool,
    pub force: bool,
}

impl BackfillRequest {
    /// Reads the body.
    pub fn parse(body: &RawValue) -> Read<Self> {
        let BackfillBody { from, to, overlap, dry_run, force } = BackfillBody::read(&Object::body(body)?)?;
        if to <= from {
            return Err(vec![FieldError::rule("body.to", "must be after `from`")]);
        }
        Ok(Self { from, to, overlap, dry_run: dry_run.unwrap_or(true), force: force.unwrap_or(false) })
    }
}

#[cfg(test)]
mod tests;
