//! Times of schedules, with clocks of the past and of the future.

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Next, Note, Schedule, expression};
use crate::input::{Node, check_json};

fn read(config: &Value) -> Result<Schedule, Vec<String>> {
    let text = config.to_string();
    let raw = check_json(text.as_bytes()).expect("JSON");
    let read = Node::new("config", raw).object().and_then(|object| Schedule::read(&object));
    read.map_err(|errors| errors.into_iter().map(|error| error.field).collect())
}

fn schedule(config: &Value) -> Schedule {
    read(config).unwrap_or_else(|errors| panic!("{config}: {errors:?}"))
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().expect("an instant")
}

/// The instants from the first to the second, with their notes, in UTC without the date if it is that of the first.
fn times(config: &Value, from: &str, to: &str) -> Vec<String> {
    let schedule = schedule(config);
    let instants = schedule.range(at(from), at(to), 1000);
    let show = |instant: DateTime<Utc>| {
        let note = match schedule.occurrence(instant).note {
            Some(Note::Gap) => " gap",
            Some(Note::Fold) => " fold",
            None => "",
        };
        format!("{}{note}", instant.format("%dT%H:%M"))
    };
    instants.into_iter().map(show).collect()
}

#[test]
fn a_local_time_that_does_not_exist_is_fired_after_the_gap_or_skipped() {
    let berlin = |gap: &str| json!({"cron": ["30 2 * * *"], "time_zone": "Europe/Berlin", "dst_gap": gap});
    let (from, to) = ("2027-03-27T12:00:00Z", "2027-03-29T12:00:00Z");
    assert_eq!(times(&berlin("next"), from, to), ["28T01:00 gap", "29T00:30"]);
    assert_eq!(times(&berlin("skip"), from, to), ["29T00:30"]);
    // What fires at the end of the gap anyway fires once.
    let two = json!({"cron": ["30 2 * * *", "0 3 * * *"], "time_zone": "Europe/Berlin"});
    assert_eq!(times(&two, from, to), ["28T01:00", "29T00:30", "29T01:00"]);
    // With a wildcard in the time of the day, the neighbours are near.
    let often = json!({"cron": ["30 * * * *"], "time_zone": "Europe/Berlin"});
    assert_eq!(times(&often, "2027-03-28T00:00:00Z", "2027-03-28T03:00:00Z"), ["28T00:30", "28T01:30", "28T02:30"]);
    // The clocks of Lord Howe are put forward by half an hour, and those of Casablanca after Ramadan.
    let lord_howe = |gap: &str| json!({"cron": ["15 2 * * *"], "time_zone": "Australia/Lord_Howe", "dst_gap": gap});
    let (from, to) = ("2027-10-02T00:00:00Z", "2027-10-04T00:00:00Z");
    assert_eq!(times(&lord_howe("next"), from, to), ["02T15:30 gap", "03T15:15"]);
    assert_eq!(times(&lord_howe("skip"), from, to), ["03T15:15"]);
    let casablanca = json!({"cron": ["30 2 * * *"], "time_zone": "Africa/Casablanca"});
    let (from, to) = ("2027-01-01T00:00:00Z", "2028-01-01T00:00:00Z");
    assert_eq!(schedule(&casablanca).range(at(from), at(to), 1000).len(), 365);
    // Samoa has skipped a day.
    let apia = json!({"cron": ["0 12 * * *"], "time_zone": "Pacific/Apia"});
    let (from, to) = ("2011-12-29T00:00:00Z", "2012-01-01T00:00:00Z");
    assert_eq!(times(&apia, from, to), ["29T22:00", "30T10:00 gap", "30T22:00", "31T22:00"]);
}

#[test]
fn a_local_time_that_exists_twice_is_fired_once_or_twice() {
    let berlin = |cron: &str, fold: &str| json!({"cron": [cron], "time_zone": "Europe/Berlin", "dst_fold": fold});
    let (from, to) = ("2027-10-30T12:00:00Z", "2027-11-01T00:00:00Z");
    assert_eq!(times(&berlin("30 2 * * *", "auto"), from, to), ["31T00:30 fold"]);
    assert_eq!(times(&berlin("30 2 * * *", "first"), from, to), ["31T00:30 fold"]);
    assert_eq!(times(&berlin("30 2 * * *", "both"), from, to), ["31T00:30 fold", "31T01:30 fold"]);
    let (from, to) = ("2027-10-31T00:00:00Z", "2027-10-31T02:00:00Z");
    let all = times(&berlin("*/15 * * * *", "auto"), from, to);
    assert_eq!(all.len(), 8, "{all:?}");
    assert!(all.iter().all(|one| one.ends_with("fold")), "{all:?}");
    assert_eq!(times(&berlin("*/15 * * * *", "first"), from, to).len(), 4);
    let lord_howe = |fold: &str| json!({"cron": ["45 1 * * *"], "time_zone": "Australia/Lord_Howe", "dst_fold": fold});
    let (from, to) = ("2027-04-03T00:00:00Z", "2027-04-04T00:00:00Z");
    assert_eq!(times(&lord_howe("auto"), from, to), ["03T14:45 fold"]);
    assert_eq!(times(&lord_howe("both"), from, to), ["03T14:45 fold", "03T15:15 fold"]);
    // A search that begins in the second half does not go back to the first.
    let found = schedule(&berlin("30 2 * * *", "auto")).next(at("2027-10-31T01:15:00Z"));
    assert_eq!(found, Next::At(at("2027-11-01T01:30:00Z")));
    let found = schedule(&berlin("30 2 * * *", "both")).next(at("2027-10-31T01:15:00Z"));
    assert_eq!(found, Next::At(at("2027-10-31T01:30:00Z")));
}

#[test]
fn a_period_counts_in_absolute_time_from_its_anchor() {
    let config = json!({"every": "PT36H", "anchor": "2027-03-27T00:00:00Z", "time_zone": "Europe/Berlin"});
    let (from, to) = ("2027-03-26T00:00:00Z", "2027-03-30T00:00:00Z");
    assert_eq!(times(&config, from, to), ["27T00:00", "28T12:00"]);
    // Also before the anchor, and together with expressions.
    let both = json!({"every": "PT24H", "anchor": "2030-01-01T06:00:00Z", "cron": ["0 6,7 * * *"]});
    assert_eq!(times(&both, "2027-01-01T00:00:00Z", "2027-01-02T00:00:00Z"), ["01T06:00", "01T07:00"]);
}

#[test]
fn days_of_the_month_and_of_the_week_are_alternatives() {
    let config = json!({"cron": ["0 0 13 * 5"]});
    // In January 2027: the Fridays 1, 8, 15, 22, 29, and the 13th.
    let found = times(&config, "2027-01-01T00:00:00Z", "2027-02-01T00:00:00Z");
    assert_eq!(found, ["01T00:00", "08T00:00", "13T00:00", "15T00:00", "22T00:00", "29T00:00"]);
}

#[test]
fn begin_end_and_exclusions_bound_a_schedule() {
    let config = json!({"cron": ["0 * * * *"], "start_at": "2027-01-01T10:00:00Z", "end_at": "2027-01-01T14:00:00Z",
        "exclude": ["0 12 * * *"]});
    let (from, to) = ("2026-12-31T00:00:00Z", "2027-01-03T00:00:00Z");
    assert_eq!(times(&config, from, to), ["01T10:00", "01T11:00", "01T13:00", "01T14:00"]);
    assert_eq!(schedule(&config).next(at("2027-01-01T14:00:00Z")), Next::Never);
    // A date is one of the time zone, and is skipped at once.
    let holiday =
        json!({"cron": ["* * * * * *"], "exclude": ["2027-12-25", "2027-12-26"], "time_zone": "Europe/Berlin"});
    let next = schedule(&holiday).next(at("2027-12-24T22:59:59Z"));
    assert_eq!(next, Next::At(at("2027-12-26T23:00:00Z")));
}

#[test]
fn what_never_fires_is_found_out_in_bounded_time() {
    let now = at("2026-11-29T12:00:00Z");
    let (mut everything, mut dates) = (json!({"cron": ["0 0 * * *"]}), Vec::new());
    for day in 0..100 {
        dates.push((now + TimeDelta::days(day)).date_naive().to_string());
    }
    everything["exclude"] = json!(dates);
    everything["end_at"] = json!("2027-01-01T00:00:00Z");
    for config in [
        json!({"cron": ["0 0 30 2 *"]}),
        json!({"cron": ["0 0 31 4,6,9,11 *"], "time_zone": "Europe/Berlin"}),
        json!({"cron": ["*/5 * * * *"], "exclude": ["* * * * *"]}),
        json!({"cron": ["* * * * * *"], "exclude": ["* * * * * *"]}),
        everything,
    ] {
        let errors = schedule(&config).check("config", now).expect_err("it does not fire");
        assert_eq!(errors[0].field, "config.cron", "{config}");
    }
    // Seldom is not never.
    assert!(schedule(&json!({"cron": ["0 0 29 2 *"]})).check("config", now).is_ok());
}

#[test]
fn what_is_wrong_is_said_with_its_field() {
    let cron = json!(["0 0 * * *"]);
    for (config, field) in [
        (json!({}), "config.cron"),
        (json!({"cron": []}), "config.cron"),
        (json!({"cron": ["* * * *"]}), "config.cron.0"),
        (json!({"cron": ["0 0 0 1 1 * 2027"]}), "config.cron.0"),
        (json!({"cron": ["61 * * * *"]}), "config.cron.0"),
        (json!({"cron": ["@reboot"]}), "config.cron.0"),
        (json!({"cron": ["0 0 * * *", "x"]}), "config.cron.1"),
        (json!({"cron": vec!["0 0 * * *"; 11]}), "config.cron"),
        (json!({"every": "PT0.5S"}), "config.every"),
        (json!({"every": "P1M"}), "config.every"),
        (json!({"cron": cron, "anchor": "2027-01-01T00:00:00Z"}), "config.anchor"),
        (json!({"cron": cron, "time_zone": "Europe/Atlantis"}), "config.time_zone"),
        (json!({"cron": cron, "exclude": ["2027-02-30"]}), "config.exclude.0"),
        (json!({"cron": cron, "start_at": "2027-01-02T00:00:00Z", "end_at": "2027-01-01T00:00:00Z"}), "config.end_at"),
        (json!({"cron": cron, "start_at": "2027-01-02T00:00:00"}), "config.start_at"),
        (json!({"cron": cron, "jitter_seconds": -1}), "config.jitter_seconds"),
        (json!({"cron": cron, "overlap": "sometimes"}), "config.overlap"),
        (json!({"cron": cron, "catch_up_window_seconds": 9}), "config.catch_up_window_seconds"),
        (json!({"cron": cron, "remaining": 0}), "config.remaining"),
        (json!({"cron": cron, "timezone": "UTC"}), "config.timezone"),
        // One run at a time could not make up for all of them.
        (json!({"cron": cron, "catch_up": "all"}), "config.catch_up"),
        (json!({"cron": cron, "catch_up": "all", "overlap": "buffer_one"}), "config.catch_up"),
    ] {
        assert_eq!(read(&config).map(|_| ()), Err(vec![field.to_owned()]), "{config}");
    }
}

#[test]
fn a_schedule_that_cannot_fire_is_refused_with_the_member_that_ends_it() {
    for (config, field) in [
        (json!({"cron": ["0 0 30 2 *"]}), "config.cron"),
        (json!({"cron": ["@daily"], "end_at": "2026-01-01T00:00:00Z"}), "config.end_at"),
        (json!({"every": "PT1H", "end_at": "2026-01-01T00:00:00Z"}), "config.end_at"),
        (json!({"cron": ["@daily"], "end_at": "2026-01-02T00:00:01Z"}), "config.cron"),
    ] {
        let errors = schedule(&config).check("config", at("2026-01-02T00:00:00Z")).expect_err("it cannot fire");
        assert_eq!(errors[0].field, field, "{config}");
    }
}

#[test]
fn the_normal_form_is_read_as_the_same_schedule() {
    let config = json!({"cron": ["@hourly", "0 9 * * MON"], "every": "PT90S", "anchor": "2027-01-01T00:00:00Z",
        "exclude": ["2027-12-25"], "time_zone": "Europe/Berlin", "jitter_seconds": 30, "remaining": 7,
        "start_at": "2027-01-01T00:00:00.5Z", "overlap": "allow", "catch_up": "all"});
    let stored = schedule(&config).to_stored();
    let again = schedule(&serde_json::from_str(stored.get()).expect("JSON"));
    assert_eq!(again.to_stored().get(), stored.get());
    let from = at("2027-01-01T00:00:00Z");
    assert_eq!(again.upcoming(from, 50), schedule(&config).upcoming(from, 50));
}

#[test]
fn jitter_is_the_same_each_time_and_ends_before_the_following_firing() {
    let config = schedule(&json!({"cron": ["* * * * *"], "jitter_seconds": 3600}));
    let (id, mut nominal) = (Uuid::from_u128(7), at("2027-01-01T00:00:00Z"));
    let mut late = Vec::new();
    for _ in 0..200 {
        let Next::At(next) = config.next(nominal) else { panic!("it fires each minute") };
        let jittered = config.jittered(id, nominal);
        assert!(nominal <= jittered && jittered < next, "{nominal} {jittered}");
        assert_eq!(jittered, config.jittered(id, nominal));
        late.push((jittered - nominal).num_seconds());
        nominal = next;
    }
    assert!(late.iter().any(|secs| *secs < 15) && late.iter().any(|secs| *secs > 45), "they are spread: {late:?}");
    let other = (0..200).filter(|n| {
        let nominal = at("2027-01-01T00:00:00Z") + TimeDelta::minutes(*n);
        config.jittered(id, nominal) != config.jittered(Uuid::from_u128(8), nominal)
    });
    assert!(other.count() > 190, "schedules of the same times are spread");
}

#[test]
fn an_outage_is_made_up_for_by_nothing_by_the_latest_or_by_all() {
    let (id, now) = (Uuid::from_u128(7), at("2027-01-01T10:30:00Z"));
    let due = |policy: &str, window: i64| {
        let config =
            json!({"cron": ["0 * * * *"], "overlap": "allow", "catch_up": policy, "catch_up_window_seconds": window});
        schedule(&config).due(id, at("2027-01-01T00:30:00Z"), now, TimeDelta::zero())
    };
    let hours = |hours: std::ops::RangeInclusive<i64>| {
        hours.map(|hour| at("2027-01-01T00:00:00Z") + TimeDelta::hours(hour)).collect::<Vec<_>>()
    };
    let (none, latest, all) = (due("none", 86_400), due("latest", 86_400), due("all", 86_400));
    assert_eq!((none.fire.len(), none.missed.map(|missed| missed.0)), (0, Some(10)));
    assert_eq!((latest.fire, latest.missed.map(|missed| missed.0)), (hours(10..=10), Some(9)));
    assert_eq!((all.fire, all.missed), (hours(1..=10), None));
    assert_eq!(all.due_at, Some(at("2027-01-01T11:00:00Z")));
    // The window keeps the newest.
    let (first, last) = (at("2027-01-01T01:00:00Z"), at("2027-01-01T07:00:00Z"));
    let some = due("all", 3 * 3600);
    assert_eq!((some.fire, some.missed), (hours(8..=10), Some((7, first, last))));
    assert!(due("latest", 600).fire.is_empty(), "even the latest is too old");
}

/// Ten thousand that are due at the same moment take a process longer than that.
#[test]
fn a_firing_that_a_process_gets_to_late_is_not_missed_if_it_has_looked_all_the_time() {
    let (id, until) = (Uuid::from_u128(7), at("2027-01-01T00:30:00Z"));
    let missed = |policy: &str, (late, watched): (i64, i64)| {
        let config = json!({"cron": ["0 * * * *"], "catch_up": policy});
        let now = at("2027-01-01T01:00:00Z") + TimeDelta::seconds(late);
        let due = schedule(&config).due(id, until, now, TimeDelta::seconds(watched));
        assert_eq!(due.fire.len() + due.missed.map_or(0, |_| 1), 1);
        due.missed.is_some()
    };
    for (times, is_missed) in [
        ((10, 0), false),
        ((11, 0), true),
        ((60, 59), true),
        ((60, 60), false),
        ((300, 9000), false),
        ((301, 9000), true),
    ] {
        assert_eq!(missed("none", times), is_missed, "{times:?}");
        assert!(!missed("latest", times));
    }
}

#[test]
fn a_long_outage_is_decided_in_parts_and_nothing_is_lost_or_counted_twice() {
    let (id, begin) = (Uuid::from_u128(7), at("2027-01-01T00:00:00Z"));
    for (policy, fired) in [("none", 11), ("latest", 11), ("all", 3601)] {
        let config =
            json!({"cron": ["* * * * * *"], "overlap": "allow", "catch_up": policy, "catch_up_window_seconds": 3600});
        let (schedule, now) = (schedule(&config), begin + TimeDelta::hours(5));
        let (mut until, mut count, mut missed, mut turns) = (begin, 0, 0, 0);
        loop {
            let due = schedule.due(id, until, now, TimeDelta::zero());
            assert!(due.processed_until > until, "each turn makes progress");
            (until, count, turns) = (due.processed_until, count + due.fire.len(), turns + 1);
            missed += due.missed.map_or(0, |missed| missed.0);
            if due.due_at > Some(now) {
                break;
            }
        }
        // Those of the last 10 s are in time.
        assert_eq!((count, missed), (fired, 5 * 3600 - i64::try_from(fired).expect("small")), "{policy}");
        assert!(turns < 60, "{turns}");
    }
    // The number that is looked at together is exactly that of what is due.
    let config = json!({"cron": ["* * * * *"], "overlap": "allow", "catch_up_window_seconds": 31_536_000});
    let now = begin + TimeDelta::minutes(2000) + TimeDelta::seconds(30);
    let due = schedule(&config).due(id, begin, now, TimeDelta::zero());
    assert_eq!((due.fire.len(), due.missed.map(|missed| missed.0)), (1, Some(1999)));
}

#[test]
fn a_change_loses_nothing_that_is_late_by_jitter() {
    let (id, nominal) = (Uuid::from_u128(7), at("2027-01-01T10:00:00Z"));
    let config = json!({"cron": ["0 * * * *"], "jitter_seconds": 600});
    let schedule = schedule(&config);
    let jittered = schedule.jittered(id, nominal);
    let processed = at("2027-01-01T09:00:00Z");
    let before = schedule.decided_at_change(&schedule, id, processed, jittered - TimeDelta::seconds(1));
    assert_eq!(schedule.due_at(id, before), Some(jittered), "it is still ahead");
    // What has been made is not made again, and neither is what was due long ago.
    let now = jittered + TimeDelta::seconds(30);
    assert_eq!(schedule.decided_at_change(&schedule, id, nominal, now), now);
    assert_eq!(schedule.decided_at_change(&schedule, id, processed, now), now);
}

#[test]
fn a_changed_schedule_makes_up_for_none_of_its_own_instants_before_the_change() {
    let (nominal, processed, now) =
        (at("2027-01-01T10:00:00Z"), at("2027-01-01T09:00:00Z"), at("2027-01-01T10:20:00Z"));
    let hourly = schedule(&json!({"cron": ["0 * * * *"], "jitter_seconds": 3599}));
    // One of which the instant is still ahead.
    let is_ahead = |id: &Uuid| hourly.jittered(*id, nominal) > now;
    let id = (0..100).map(Uuid::from_u128).find(is_ahead).expect("an id");
    for (to, fired) in [
        // The same instant, and none besides.
        (json!({"cron": ["0 * * * *"]}), vec![nominal]),
        (json!({"cron": ["0,30 * * * *"]}), vec![nominal]),
        (json!({"cron": ["0 10 * * *"], "jitter_seconds": 1800}), vec![nominal]),
        // Others before the change.
        (json!({"cron": ["* * * * *"]}), vec![]),
        (json!({"cron": ["*/15 * * * *"]}), vec![]),
        (json!({"cron": ["5 * * * *"]}), vec![]),
        (json!({"cron": ["0 11 * * *"]}), vec![]),
    ] {
        let mut to = to;
        to["overlap"] = json!("allow");
        to["catch_up"] = json!("all");
        let changed = schedule(&to);
        let until = hourly.decided_at_change(&changed, id, processed, now);
        // With the jitter over, but before anything that comes after the change.
        let due = changed.due(id, until, now, TimeDelta::zero());
        let next = changed.range(until + TimeDelta::microseconds(1), at("2027-01-01T10:20:01Z"), 100);
        assert_eq!((next, due.missed), (fired.clone(), None), "{to}");
        if changed.jittered(id, nominal) <= now {
            assert_eq!(due.fire, fired, "{to}");
        }
    }
}

/// A random expression of the usual forms; the same from the same seed.
fn random_cron(random: &mut StdRng) -> String {
    fn field(random: &mut StdRng, low: u32, high: u32) -> String {
        let one = |random: &mut StdRng| random.random_range(low..=high);
        match random.random_range(0..6) {
            0 | 1 => "*".to_owned(),
            2 => one(random).to_string(),
            3 => {
                let (a, b) = (one(random), one(random));
                format!("{}-{}", a.min(b), a.max(b))
            }
            4 => format!("*/{}", random.random_range(2..=(high / 2).max(2))),
            _ => format!("{},{}", one(random), one(random)),
        }
    }
    let seconds = if random.random_range(0..4) == 0 { field(random, 0, 59) + " " } else { String::new() };
    let time = format!("{} {}", field(random, 0, 59), field(random, 0, 23));
    // Days that every month has, so that each expression fires.
    format!("{seconds}{time} {} {} {}", field(random, 1, 28), field(random, 1, 12), field(random, 0, 6))
}

/// Zones that change their clocks by an hour, by half an hour, for a month, and never.
const ZONES: [&str; 6] =
    ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Kathmandu"];

/// A random instant, every other time near a change of the clocks.
fn random_begin(random: &mut StdRng, round: usize) -> DateTime<Utc> {
    if round.is_multiple_of(2) {
        at("2027-03-27T00:00:00Z") + TimeDelta::minutes(random.random_range(0..400_000))
    } else {
        at("2027-10-30T18:00:00Z") + TimeDelta::minutes(random.random_range(0..900))
    }
}

#[test]
fn a_thousand_random_expressions_fire_when_croner_says() {
    let mut random = StdRng::seed_from_u64(20_261_129);
    let mut compared = 0;
    for round in 0..1000 {
        let cron = random_cron(&mut random);
        let zone = ZONES[round % ZONES.len()];
        let ours = schedule(&json!({"cron": [cron], "time_zone": zone}));
        let theirs = expression(&cron).expect("valid");
        let tz: Tz = zone.parse().expect("a zone");
        let from = random_begin(&mut random, round);
        // Croner takes lists and ranges in the time of the day for wildcards, this service does not: only asterisks are.
        let is_fixed = theirs.cron.determine_job_type() == croner::JobType::FixedTime;
        let is_same_type = is_fixed != theirs.is_wildcard;
        let mut cursor = from.with_timezone(&tz);
        for instant in ours.upcoming(from, 20) {
            let occurrence = ours.occurrence(instant);
            let next = theirs.cron.find_next_occurrence(&cursor, false).expect("it fires").with_timezone(&Utc);
            if !is_same_type && (next != instant || occurrence.note.is_some()) {
                // From here on both are at different instants about the change of the clocks.
                break;
            }
            assert_eq!(instant, next, "{cron} in {zone} after {cursor}");
            cursor = next.with_timezone(&tz);
            compared += 1;
        }
    }
    assert!(compared > 15_000, "{compared}");
}

#[test]
fn a_thousand_random_expressions_fire_as_previewed() {
    let mut random = StdRng::seed_from_u64(17);
    for round in 0..1000 {
        // Zones, policies and jitter in all combinations.
        let (gap, fold) = (["next", "skip"][round / 6 % 2], ["auto", "first", "both"][round / 12 % 3]);
        let jitter = [0, 90][round / 36 % 2];
        let config = json!({"cron": [random_cron(&mut random)], "time_zone": ZONES[round % ZONES.len()], "dst_gap": gap,
            "dst_fold": fold, "overlap": "allow", "catch_up": "all", "jitter_seconds": jitter,
            "catch_up_window_seconds": 31_536_000});
        let (schedule, id) = (schedule(&config), Uuid::from_u128(round as u128));
        let begin = random_begin(&mut random, round);
        let preview = schedule.upcoming(begin, 30);
        // The clock goes on in steps of any length, as that of a process that is slow or away.
        let (mut now, mut until, mut due_at, mut fired) = (begin, begin, schedule.due_at(id, begin), Vec::new());
        while fired.len() < 30 {
            let Some(due) = due_at else { break };
            now = now.max(due + TimeDelta::seconds(random.random_range(0..7200)));
            let decided = schedule.due(id, until, now, TimeDelta::zero());
            assert_eq!(decided.missed, None, "{config}");
            assert!(decided.fire.iter().all(|nominal| schedule.jittered(id, *nominal) <= now), "none too early");
            fired.extend(decided.fire);
            (until, due_at) = (decided.processed_until, decided.due_at);
        }
        fired.truncate(30);
        assert_eq!(fired, preview, "{config}");
    }
}
