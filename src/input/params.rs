//! Parsers of values from the query and the path.

use std::ops::RangeInclusive;

use chrono::{DateTime, Datelike, FixedOffset, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, Utc, Weekday};
use uuid::Uuid;

use super::{FieldError, read_int};

/// Epoch numbers above this are milliseconds, as in the reference implementation: in seconds it is the year 2603.
const MAX_EPOCH_SECS: f64 = 2e10;

/// Parses an integer of the query: `1`, `+1` and `1.0` are equal.
pub fn query_int(name: &str, text: &str, range: RangeInclusive<i64>) -> Result<i64, FieldError> {
    read_int(text, range).map_err(|(kind, message)| FieldError::new(format!("query.{name}"), kind, message))
}

/// Parses a UUID of the path: hyphenated, 32 digits, `urn:uuid:` or in braces, in either case.
pub fn path_uuid(name: &str, text: &str) -> Result<Uuid, FieldError> {
    Uuid::try_parse(text).or_else(|_| Uuid::parse_str(text)).map_err(|error| {
        FieldError::new(format!("path.{name}"), "uuid_parsing", format!("Input should be a valid UUID, {error}"))
    })
}

/// Parses an instant of the query: ISO 8601 with `T`, `t`, `_` or a space before the time, or an epoch number in
/// seconds (milliseconds if it is above 2e10). Without an offset it is UTC.
///
/// A `+` of an offset that form decoding has turned into a space is accepted.
pub fn query_datetime(name: &str, text: &str) -> Result<DateTime<Utc>, FieldError> {
    let text = text.trim();
    let instant = text.parse::<f64>().map_or_else(|_| iso_datetime(text), epoch_datetime);
    // The years that all connected programs can represent.
    instant.filter(|instant| (1..=9999).contains(&instant.year())).ok_or_else(|| {
        let message = "Input should be a valid datetime, in ISO 8601 or as a Unix time";
        FieldError::new(format!("query.{name}"), "datetime_parsing", message)
    })
}

fn epoch_datetime(number: f64) -> Option<DateTime<Utc>> {
    let secs = if number.abs() > MAX_EPOCH_SECS { number / 1e3 } else { number };
    // NaN, infinities and numbers beyond the calendar fail to parse.
    let micros: i64 = format!("{:.0}", secs * 1e6).parse().ok()?;
    DateTime::from_timestamp_micros(micros)
}

fn iso_datetime(text: &str) -> Option<DateTime<Utc>> {
    let (local, offset) = iso_8601(text)?;
    let offset = offset.map_or(0, |offset| offset.local_minus_utc());
    local.checked_sub_signed(TimeDelta::seconds(offset.into())).map(|utc| utc.and_utc())
}

/// Parses a date, or date and time, of ISO 8601, with its offset if it has one. Both forms, `2026-02-03T09:00:00Z`
/// and `20260203T090000Z`, with calendar, week (`2026-W06-2`) and ordinal (`2026-034`) dates.
#[must_use]
pub fn iso_8601(text: &str) -> Option<(NaiveDateTime, Option<FixedOffset>)> {
    if !text.is_ascii() {
        return None;
    }
    let Some((date, rest)) = text.split_once(['T', 't', '_', ' ']) else {
        return Some((iso_date(text)?.and_time(NaiveTime::MIN), None));
    };
    let (time, offset) = match rest.find(['Z', 'z', '+', '-', ' ']) {
        Some(end) => (&rest[..end], Some(parse_offset(&rest[end..])?)),
        None => (rest, None),
    };
    let (date, (time, is_next_day)) = (iso_date(date)?, iso_time(time)?);
    let date = if is_next_day { date.succ_opt()? } else { date };
    Some((date.and_time(time), offset))
}

fn iso_date(text: &str) -> Option<NaiveDate> {
    // The basic form is recognised by its length, and cut where the extended form has hyphens.
    let basic: Vec<&str> = match text.len() {
        8 if text.as_bytes()[4] == b'W' => vec![&text[..4], &text[4..7], &text[7..]],
        8 if !text.contains('-') => vec![&text[..4], &text[4..6], &text[6..]],
        7 if !text.contains('-') => vec![&text[..4], &text[4..]],
        _ => text.split('-').collect(),
    };
    let (year, rest) = basic.split_first()?;
    let year = i32::try_from(digits(year, 4)?).ok()?;
    match rest {
        [week, day] if week.starts_with('W') => {
            let day = u8::try_from(digits(day, 1)?.checked_sub(1)?).ok()?;
            NaiveDate::from_isoywd_opt(year, digits(&week[1..], 2)?, Weekday::try_from(day).ok()?)
        }
        [month, day] => NaiveDate::from_ymd_opt(year, digits(month, 2)?, digits(day, 2)?),
        [day] => NaiveDate::from_yo_opt(year, digits(day, 3)?),
        _ => None,
    }
}

/// Parses a time, and whether it is the end of the day (24:00), which is the beginning of the next day. Leap seconds
/// are refused: the columns cannot store them.
fn iso_time(text: &str) -> Option<(NaiveTime, bool)> {
    let (whole, fraction) = match text.split_once(['.', ',']) {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (text, None),
    };
    let parts: Vec<&str> = match whole.len() {
        4 if !whole.contains(':') => vec![&whole[..2], &whole[2..]],
        6 if !whole.contains(':') => vec![&whole[..2], &whole[2..4], &whole[4..]],
        _ => whole.split(':').collect(),
    };
    let (hour, minute, second) = match parts[..] {
        [hour] => (digits(hour, 2)?, 0, 0),
        [hour, minute] => (digits(hour, 2)?, digits(minute, 2)?, 0),
        [hour, minute, second] => (digits(hour, 2)?, digits(minute, 2)?, digits(second, 2)?),
        _ => return None,
    };
    let nanos = match fraction {
        None => 0,
        Some(fraction) if parts.len() == 3 && !fraction.is_empty() && fraction.bytes().all(|c| c.is_ascii_digit()) => {
            format!("{fraction:0<9}")[..9].parse().ok()?
        }
        Some(_) => return None,
    };
    if (hour, minute, second, nanos) == (24, 0, 0, 0) {
        return Some((NaiveTime::MIN, true));
    }
    NaiveTime::from_hms_nano_opt(hour, minute, second, nanos).map(|time| (time, false))
}

/// Parses a number with exactly this number of digits.
fn digits(text: &str, count: usize) -> Option<u32> {
    let is_number = text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

/// Parses `Z`, `+hh`, `+hhmm`, `+hh:mm`, the same with `-`, and with the space that form decoding makes of `+`.
fn parse_offset(text: &str) -> Option<FixedOffset> {
    if text.eq_ignore_ascii_case("z") {
        return FixedOffset::east_opt(0);
    }
    let (sign, digits) = text.split_at(1);
    let digits = digits.replacen(':', "", 1);
    if !matches!(digits.len(), 2 | 4) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (hours, minutes) = digits.split_at(2);
    let hours: i32 = hours.parse().ok()?;
    let minutes: i32 = if minutes.is_empty() { 0 } else { minutes.parse().ok()? };
    let secs = (hours * 60 + minutes) * 60;
    FixedOffset::east_opt(if sign == "-" { -secs } else { secs }).filter(|_| minutes < 60)
}

/// Seconds of an ISO 8601 duration of weeks, days, hours, minutes and seconds. Years and months are rejected, since
/// they differ in length.
pub fn iso_duration(text: &str) -> Result<f64, String> {
    let wrong = || "must be an ISO 8601 duration of weeks, days, hours, minutes or seconds, such as PT90S".to_owned();
    let rest = text.trim().strip_prefix('P').ok_or_else(wrong)?;
    let (date, time) = match rest.split_once('T') {
        Some((_, "")) => return Err(wrong()),
        Some((date, time)) => (date, time),
        None => (rest, ""),
    };
    let (days, time) =
        (parts(date, &[('W', 604_800.0), ('D', 86_400.0)]), parts(time, &[('H', 3600.0), ('M', 60.0), ('S', 1.0)]));
    match (days, time) {
        (Some(days), Some(time)) if !rest.is_empty() => Ok(days + time),
        _ => Err(wrong()),
    }
}

/// Parses numbers, each with one of these units, in their order.
fn parts(mut text: &str, units: &[(char, f64)]) -> Option<f64> {
    let mut secs = 0.0;
    for (unit, length) in units {
        if let Some((number, rest)) = text.split_once(*unit) {
            let is_number = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.' || byte == b',');
            secs += number.replace(',', ".").parse::<f64>().ok().filter(|_| is_number)? * length;
            text = rest;
        }
    }
    text.is_empty().then_some(secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_integer_may_have_a_sign_and_a_zero_fraction() {
        let check = |text: &str, expected: Result<i64, &str>| {
            let read = query_int("page", text, 1..=100);
            assert_eq!(read.as_ref().map_err(|error| &*error.kind).copied(), expected, "{text}");
            assert!(read.is_ok() || read.is_err_and(|error| error.field == "query.page"));
        };
        for (text, expected) in [("1", 1), ("+1", 1), ("1.0", 1), (" 7 ", 7), ("007", 7), ("100.", 100)] {
            check(text, Ok(expected));
        }
        for text in ["", "a", "1.5", "1e2", "--1", "+", ".0", "1 2", "١", "0x1", "-", "1.0.0"] {
            check(text, Err("int_parsing"));
        }
        for (text, kind) in [
            ("0", "greater_than_equal"),
            ("-99999999999999999999999", "greater_than_equal"),
            ("101", "less_than_equal"),
            ("99999999999999999999999", "less_than_equal"),
        ] {
            check(text, Err(kind));
        }
        let unbounded = query_int("page", "-99999999999999999999999", i64::MIN..=0);
        assert!(unbounded.is_err_and(|error| error.kind == "greater_than_equal"));
    }

    #[test]
    fn a_uuid_is_read_in_its_four_forms() {
        let hyphenated = "0b7c2a64-5d0e-4c39-9a55-0a6c1f0e7d11";
        for text in [
            hyphenated,
            "0B7C2A645D0E4C399A550A6C1F0E7D11",
            "urn:uuid:0b7c2a64-5d0e-4c39-9a55-0a6c1f0e7d11",
            "{0b7c2a64-5d0e-4c39-9a55-0a6c1f0e7d11}",
        ] {
            assert_eq!(path_uuid("agent_id", text).map(|id| id.to_string()), Ok(hyphenated.to_owned()));
        }
        for text in ["", "abc", "0b7c2a64-5d0e-4c39-9a55-0a6c1f0e7d1", "ü", "0b7c2a64-5d0e-4c39-9a55-0a6c1f0e7d1x"] {
            let error = path_uuid("agent_id", text).expect_err(text);
            assert_eq!((error.field.as_str(), &*error.kind), ("path.agent_id", "uuid_parsing"));
            assert!(error.message.starts_with("Input should be a valid UUID, "), "{}", error.message);
        }
    }

    #[test]
    fn an_instant_is_read_from_iso_text_or_an_epoch_number() {
        let check = |text: &str, expected: &str| {
            let read = query_datetime("created_after", text).map(|instant| instant.to_rfc3339());
            assert_eq!(read.as_deref().ok(), Some(expected), "{text}");
        };
        for text in ["2026-02-03T09:00:00", "2026-02-03t09:00", "2026-02-03_09:00:00.000", "2026-02-03 09:00:00Z"] {
            check(text, "2026-02-03T09:00:00+00:00");
        }
        for text in [
            "20260203T090000Z",
            "20260203T0900",
            "2026-02-03T09Z",
            "2026-02-03T09:00:00,0Z",
            "2026-W06-2T09:00Z",
            "2026W062T09:00Z",
            "2026-034T09:00",
            "2026034T090000+0000",
        ] {
            check(text, "2026-02-03T09:00:00+00:00");
        }
        check("2026-02-02T24:00:00Z", "2026-02-03T00:00:00+00:00");
        check("2026-02-03T09:00:00,5Z", "2026-02-03T09:00:00.500+00:00");
        check("2026-02-03T09:00:00.1234567891Z", "2026-02-03T09:00:00.123456789+00:00");
        for text in ["2026-02-03T11:00:00+02:00", "2026-02-03T11:00:00 02:00", "2026-02-03T06:30-0230", "1770109200"] {
            check(text, "2026-02-03T09:00:00+00:00");
        }
        check("2026-02-03", "2026-02-03T00:00:00+00:00");
        check("1770109200.5", "2026-02-03T09:00:00.500+00:00");
        check("1770109200000", "2026-02-03T09:00:00+00:00");
        check("2026-02-03T09:00:00.123456z", "2026-02-03T09:00:00.123456+00:00");
        check("0", "1970-01-01T00:00:00+00:00");
        for text in [
            "",
            "x",
            "2026-13-01",
            "2026-02-30T00:00:00",
            "2026-02-03X09:00",
            "2026-02-03T",
            "2026-02-03T25:00",
            "2026-02-03T24:00:01",
            "2026-02-03T0900:00",
            "2026-02-03T09:00.5",
            "2026-02-03T09:00:00.",
            "2026-2-3",
            "202602-03",
            "2026-W54-1",
            "2026-W06-8T09:00",
            "2026-366",
            "+026-02-03",
            "2026-02-03T09:00:60",
            "2026-02-03T09:00:00+2",
            "2026-02-03T09:00:00+99:00",
            "2026-02-03T09:00:00+01:60",
            "inf",
            "nan",
            "1e300",
            "0000-01-01",
            "0001-01-01T00:00:00+05:00",
            "９026-02-03",
            "2026-02-0é",
        ] {
            let error = query_datetime("created_after", text).expect_err(text);
            assert_eq!((error.field.as_str(), &*error.kind), ("query.created_after", "datetime_parsing"));
        }
    }
}
