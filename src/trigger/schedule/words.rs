//! Times of a schedule in plain words.

use croner::Cron;

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A cron expression in words: the usual ones as people say them, the others field by field.
pub(super) fn of_cron(text: &str, cron: &Cron) -> String {
    let text = text.trim().to_ascii_lowercase();
    let text = match text.as_str() {
        "@hourly" => "0 * * * *",
        "@daily" | "@midnight" => "0 0 * * *",
        "@weekly" => "0 0 * * 0",
        "@monthly" => "0 0 1 * *",
        "@yearly" | "@annually" => "0 0 1 1 *",
        text => text,
    };
    let fields: Vec<&str> = text.split_whitespace().collect();
    let usual = match fields[..] {
        [minute, hour, day, month, weekday] | ["0", minute, hour, day, month, weekday] => {
            usual(minute, hour, day, month, weekday)
        }
        ["*", "*", "*", "*", "*", "*"] => Some("every second".to_owned()),
        _ => None,
    };
    usual.unwrap_or_else(|| cron.describe().trim_end_matches('.').to_lowercase())
}

fn usual(minute: &str, hour: &str, day: &str, month: &str, weekday: &str) -> Option<String> {
    let at = |hour: &str| {
        let (hour, minute): (u8, u8) = (hour.parse().ok()?, minute.parse().ok()?);
        Some(format!("{hour:02}:{minute:02}"))
    };
    match (minute, hour, day, month, weekday) {
        ("*", "*", "*", "*", "*") => Some("every minute".to_owned()),
        ("0", "*", "*", "*", "*") => Some("every hour".to_owned()),
        (minute, "*", "*", "*", "*") => match minute.strip_prefix("*/") {
            Some(step) => Some(format!("every {step} minutes")),
            None => Some(format!("every hour at minute {}", minute.parse::<u8>().ok()?)),
        },
        (_, hour, "*", "*", "*") => Some(format!("every day at {}", at(hour)?)),
        (_, hour, "*", "*", "1-5" | "mon-fri") => Some(format!("every day from Monday to Friday at {}", at(hour)?)),
        (_, hour, "*", "*", weekday) => Some(format!("every {} at {}", day_of_week(weekday)?, at(hour)?)),
        (_, hour, day, "*", "*") => Some(format!("on day {} of every month at {}", day.parse::<u8>().ok()?, at(hour)?)),
        _ => None,
    }
}

fn day_of_week(field: &str) -> Option<&'static str> {
    let by_number = field.parse::<usize>().ok().and_then(|day| DAYS.get(day % 7).filter(|_| day <= 7));
    by_number
        .or_else(|| DAYS.iter().find(|day| day.to_ascii_lowercase().starts_with(field) && field.len() == 3))
        .copied()
}

/// A period in words.
pub(super) fn of_period(text: &str) -> String {
    format!("every {}", text.trim())
}

#[cfg(test)]
mod tests {
    use super::{super::expression, of_cron};

    #[test]
    fn a_usual_expression_is_said_as_people_say_it() {
        for (text, words) in [
            ("0 9 * * 1", "every Monday at 09:00"),
            ("30 17 * * FRI", "every Friday at 17:30"),
            ("0 0 * * *", "every day at 00:00"),
            ("@daily", "every day at 00:00"),
            ("@hourly", "every hour"),
            ("*/15 * * * *", "every 15 minutes"),
            ("5 * * * *", "every hour at minute 5"),
            ("0 30 8 * * 1-5", "every day from Monday to Friday at 08:30"),
            ("0 6 1 * *", "on day 1 of every month at 06:00"),
            ("* * * * * *", "every second"),
            ("0 9 * * 7", "every Sunday at 09:00"),
        ] {
            assert_eq!(of_cron(text, &expression(text).expect(text).cron), words);
        }
        let other = of_cron("0 0 13 * 5", &expression("0 0 13 * 5").expect("valid").cron);
        assert!(other.contains("friday") && other.contains("13"), "{other}");
    }
}
