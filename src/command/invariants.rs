//! `check invariants`: the report as text, as JSON, and as metrics for the text file collector of `node_exporter`.

use std::{
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde_json::json;
use workflow_api::{
    clock::Clock,
    config,
    db::invariants::{self, Invariant},
    visible,
};

/// Options of `check invariants`.
#[derive(clap::Args)]
pub struct Options {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write metrics to this file, for the text file collector of Prometheus's node exporter; its name has to end with .prom
    #[arg(long, value_name = "PATH")]
    textfile: Option<PathBuf>,
    /// Store the result in the database, for the metrics of the API
    #[arg(long)]
    record: bool,
}

/// Exit code if something could not be checked.
const UNKNOWN: u8 = 2;

/// Checks the invariants and reports. Exit code 0: all hold; 1: some are violated; 2: some could not be checked.
pub async fn run(settings: anyhow::Result<config::Database>, options: &Options) -> ExitCode {
    let began = Instant::now();
    let checked = match &settings {
        Ok(settings) => invariants::check(settings).await.context("DATABASE_URL"),
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    };
    let took = began.elapsed();
    let (found, is_checked) = match checked {
        Ok(found) => (found, true),
        Err(error) => {
            let why = visible::escaped_lines(&visible::with_causes(error.as_ref()));
            eprintln!("workflow-api: the invariants could not be checked: {why}");
            (Vec::new(), false)
        }
    };
    let is_known = is_checked && found.iter().all(|invariant| invariant.error.is_none());
    let is_violated = found.iter().any(|invariant| invariant.violations > 0);
    if options.json {
        println!("{}", json(&found, is_known, took));
    } else if is_checked {
        print!("{}", text(&found, took));
    }
    let mut code = match (is_violated, is_known) {
        (true, _) => 1,
        (false, true) => 0,
        (false, false) => UNKNOWN,
    };
    if options.record
        && is_checked
        && let Ok(settings) = &settings
        && let Err(error) = invariants::record(settings, &found).await
    {
        eprintln!("workflow-api: --record: {}", visible::escaped_lines(&visible::with_causes(&error)));
        code = code.max(UNKNOWN);
    }
    if let Some(path) = &options.textfile
        && let Err(error) = replace(path, &metrics(&found, is_known, took))
    {
        eprintln!("workflow-api: --textfile: {error:#}");
        code = code.max(UNKNOWN);
    }
    ExitCode::from(code)
}

fn text(found: &[Invariant], took: Duration) -> String {
    let mut text = String::new();
    for Invariant { name, rule, violations, ids, error } in found {
        let state = match (error, violations) {
            (Some(_), _) => "unknown",
            (None, 0) => "ok",
            (None, _) => "violated",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{state:8} {name:34} {violations}");
        if *violations > 0 {
            let _ = writeln!(text, "         not everywhere: {rule}");
            for id in ids {
                let _ = writeln!(text, "           {id}");
            }
            let more = violations.saturating_sub(ids.len() as u64);
            if more > 0 {
                let _ = writeln!(text, "           and {more} more");
            }
        }
        if let Some(error) = error {
            let _ = writeln!(text, "         not checked completely: {error}");
        }
    }
    let violated = found.iter().filter(|invariant| invariant.violations > 0).count();
    let _ =
        writeln!(text, "{violated} of {} invariants are violated; checked in {:.1} s", found.len(), took.as_secs_f64());
    text
}

fn json(found: &[Invariant], is_known: bool, took: Duration) -> serde_json::Value {
    let invariants: Vec<_> = found
        .iter()
        .map(|Invariant { name, rule, violations, ids, error }| {
            json!({"name": name, "rule": rule, "violations": violations, "ids": ids, "error": error})
        })
        .collect();
    json!({"complete": is_known, "seconds": took.as_secs_f64(), "invariants": invariants})
}

/// What is written if nothing could be checked, too: then only the success changes.
fn metrics(found: &[Invariant], is_known: bool, took: Duration) -> String {
    let mut text = String::from(
        "# HELP workflow_api_invariant_violations Violations of an invariant of the database.\n\
         # TYPE workflow_api_invariant_violations gauge\n",
    );
    for invariant in found.iter().filter(|invariant| invariant.error.is_none()) {
        let (name, count) = (invariant.name, invariant.violations);
        let _ = writeln!(text, "workflow_api_invariant_violations{{invariant=\"{name}\"}} {count}");
    }
    for (name, help, value) in [
        ("check_success", "1 if all invariants could be checked.", f64::from(u8::from(is_known))),
        ("check_duration_seconds", "Duration of the check.", took.as_secs_f64()),
        ("check_timestamp_seconds", "Time of the check.", Clock::default().now().timestamp() as f64),
    ] {
        let name = format!("workflow_api_invariants_{name}");
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
    }
    text
}

/// Replaces the file at once: a reader finds the previous text or the new one.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().context("the path names no file")?.to_string_lossy();
    // The collector reads files that end with .prom only.
    let part = folder.join(format!(".{name}.{}", std::process::id()));
    let written = std::fs::File::create(&part).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.and_then(|()| std::fs::rename(&part, path)).with_context(|| {
        // The error is that of the write.
        let _ = std::fs::remove_file(&part);
        path.display().to_string()
    })
}
