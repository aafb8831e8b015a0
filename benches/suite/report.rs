//! Results: the table, the JSON file, and whether aims were met.

use std::{
    fmt::{self, Write as _},
    fs,
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    plot::Plot,
    statistics::{median, range},
};

/// Aim of a measure: of its ratio if it has a control, otherwise of its value.
#[derive(Clone, Copy, Debug)]
pub enum Aim {
    /// Lower bound.
    AtLeast(f64),
    /// Upper bound.
    AtMost(f64),
}

impl Aim {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "≥ {bound}"),
            Self::AtMost(bound) => write!(f, "≤ {bound}"),
        }
    }
}

/// Row of the table: the values of all rounds.
#[derive(Debug)]
pub struct Row {
    measure: String,
    unit: &'static str,
    ours: Vec<f64>,
    control: Option<(&'static str, Vec<f64>)>,
    /// Values of which it is the sum.
    parts: Vec<(&'static str, Vec<f64>)>,
    aim: Option<Aim>,
}

impl Row {
    /// Measure with its values.
    pub fn new(measure: impl Into<String>, unit: &'static str, ours: Vec<f64>) -> Self {
        Self { measure: measure.into(), unit, ours, control: None, parts: Vec::new(), aim: None }
    }

    /// With the values of a control in the same rounds.
    pub fn against(mut self, name: &'static str, control: Vec<f64>) -> Self {
        self.control = Some((name, control));
        self
    }

    /// With the parts of which it is the sum.
    pub fn parts(mut self, parts: Vec<(&'static str, Vec<f64>)>) -> Self {
        self.parts = parts;
        self
    }

    /// With an aim.
    pub fn aim(mut self, aim: Aim) -> Self {
        self.aim = Some(aim);
        self
    }

    /// Ratio of each round.
    fn ratios(&self) -> Vec<f64> {
        let Some((_, control)) = &self.control else { return Vec::new() };
        if control.len() == self.ours.len() {
            self.ours.iter().zip(control).map(|(ours, control)| ours / control).collect()
        } else {
            vec![median(&self.ours) / median(control)]
        }
    }

    /// Value that the aim is about.
    fn judged(&self) -> f64 {
        if self.control.is_some() { median(&self.ratios()) } else { median(&self.ours) }
    }

    fn is_met(&self) -> Option<bool> {
        self.aim.map(|aim| aim.is_met(self.judged()))
    }

    fn cells(&self) -> [String; 6] {
        let ratios = self.ratios();
        let control = self.control.as_ref().map(|(name, values)| format!("{} {name}", number(median(values))));
        let part = |(name, values): &(&str, Vec<f64>)| format!("{name} {}", number(median(values)));
        let parts: Vec<String> = self.parts.iter().map(part).collect();
        let with_range = |values: &[f64]| match range(values) {
            (low, high) if values.len() > 1 => {
                format!("{} ({} to {})", number(median(values)), number(low), number(high))
            }
            _ => number(median(values)),
        };
        let ours = if ratios.is_empty() { with_range(&self.ours) } else { number(median(&self.ours)) };
        let unit = if self.aim.is_some() && ratios.is_empty() { format!(" {}", self.unit) } else { String::new() };
        [
            self.measure.clone(),
            format!("{ours} {}", self.unit).trim_end().to_owned(),
            control.unwrap_or_else(|| parts.join(", ")),
            if ratios.is_empty() { String::new() } else { with_range(&ratios) },
            self.aim.map_or_else(String::new, |aim| format!("{aim}{unit}").trim_end().to_owned()),
            self.is_met().map_or("", |met| if met { "yes" } else { "NO" }).to_owned(),
        ]
    }

    fn json(&self) -> Value {
        let ratios = self.ratios();
        let (low, high) = range(&ratios);
        json!({
            "measure": self.measure, "unit": self.unit, "median": median(&self.ours), "values": self.ours,
            "control": self.control.as_ref().map(|(name, values)| json!({"name": name, "median": median(values), "values": values})),
            "ratio": (!ratios.is_empty()).then(|| json!({"median": median(&ratios), "min": low, "max": high})),
            "parts": self.parts.iter().map(|(name, values)| json!({"name": name, "median": median(values), "values": values}))
                .collect::<Vec<_>>(),
            "aim": self.aim.map(|aim| aim.to_string()), "met": self.is_met(),
        })
    }
}

/// Number with three significant digits.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        value if value >= 100.0 || value == 0.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

/// Result of one benchmark.
#[derive(Debug)]
pub struct Report {
    name: &'static str,
    rows: Vec<Row>,
    /// Checks with their failures: what is missing after the load, or a request that was refused.
    checks: Vec<(String, Result<String, String>)>,
    notes: serde_json::Map<String, Value>,
    plot: Option<Plot>,
}

impl Report {
    /// Empty report.
    pub fn new(name: &'static str) -> Self {
        Self { name, rows: Vec::new(), checks: Vec::new(), notes: serde_json::Map::new(), plot: None }
    }

    /// Adds a row.
    pub fn row(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Adds the outcome of a check: what was found, or what is wrong.
    pub fn check(&mut self, what: impl Into<String>, outcome: Result<String, String>) {
        self.checks.push((what.into(), outcome));
    }

    /// Adds the outcome of a check that is worth a line only if it has failed.
    pub fn must(&mut self, what: impl Into<String>, outcome: Result<String, String>) {
        if outcome.is_err() {
            self.check(what, outcome);
        }
    }

    /// Adds data to the JSON file only.
    pub fn note(&mut self, name: &str, value: Value) {
        self.notes.insert(name.to_owned(), value);
    }

    /// Sets the plot, which is written as an SVG file.
    pub fn plot(&mut self, plot: Plot) {
        self.plot = Some(plot);
    }

    /// Whether all checks have succeeded.
    pub fn is_sound(&self) -> bool {
        self.checks.iter().all(|(_, outcome)| outcome.is_ok())
    }

    /// Prints the table and writes the files.
    pub fn publish(&self, environment: &Value) -> Result<()> {
        println!("\n{}", self.table());
        for (what, outcome) in &self.checks {
            match outcome {
                Ok(found) => println!("checked: {what}: {found}"),
                Err(fault) => println!("FAILED: {what}: {fault}"),
            }
        }
        let folder = folder()?;
        let checks = self.checks.iter().map(|(what, outcome)| {
            json!({"check": what, "ok": outcome.is_ok(), "found": outcome.as_ref().unwrap_or_else(|fault| fault)})
        });
        let document = json!({
            "name": self.name, "environment": environment, "rows": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
            "checks": checks.collect::<Vec<_>>(), "details": self.notes,
        });
        let file = folder.join(format!("{}.json", self.name));
        fs::write(&file, format!("{document:#}\n")).with_context(|| file.display().to_string())?;
        println!("written: {}", file.display());
        if let Some(plot) = &self.plot {
            let file = folder.join(format!("{}.svg", self.name));
            fs::write(&file, plot.svg()).with_context(|| file.display().to_string())?;
            println!("written: {}", file.display());
        }
        Ok(())
    }

    fn table(&self) -> String {
        let head = ["measure", "ours", "control or parts", "ratio: median (range)", "aim", "met"].map(str::to_owned);
        let cells: Vec<[String; 6]> = std::iter::once(head).chain(self.rows.iter().map(Row::cells)).collect();
        let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
        let widths: [usize; 6] = std::array::from_fn(width);
        let mut text = format!("## {}\n\n", self.name);
        for (index, row) in cells.iter().enumerate() {
            for (cell, width) in row.iter().zip(widths) {
                let _ = write!(text, "| {cell:width$} ");
            }
            text.push_str("|\n");
            if index == 0 {
                for width in widths {
                    let _ = write!(text, "|{}", "-".repeat(width + 2));
                }
                text.push_str("|\n");
            }
        }
        text
    }
}

/// Folder of the results: `target/bench`.
pub fn folder() -> Result<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}
