//! CPU time by process over a period.

use crate::{process::Watched, report::Row};

/// Period under way.
pub struct Meter(Vec<(&'static str, Watched, f64)>);

impl Meter {
    /// Begins a period.
    pub fn start(watched: Vec<(&'static str, Watched)>) -> Self {
        Self(watched.into_iter().map(|(name, watched)| (name, watched, watched.cpu())).collect())
    }

    /// CPU seconds of each process since the begin.
    pub fn stop(self) -> Vec<(&'static str, f64)> {
        self.0.into_iter().map(|(name, watched, before)| (name, watched.cpu() - before)).collect()
    }
}

/// CPU times of several rounds by process.
#[derive(Debug, Default)]
pub struct CpuTimes(Vec<(&'static str, Vec<f64>)>);

impl CpuTimes {
    /// Adds the milliseconds per request of one round.
    pub fn add(&mut self, times: impl IntoIterator<Item = (&'static str, f64)>) {
        for (name, time) in times {
            match self.0.iter_mut().find(|(known, _)| *known == name) {
                Some((_, values)) => values.push(time),
                None => self.0.push((name, vec![time])),
            }
        }
    }

    /// Row with the sum, and the parts of each process.
    pub fn row(&self, measure: impl Into<String>, unit: &'static str) -> Row {
        let rounds = self.0.iter().map(|(_, values)| values.len()).max().unwrap_or_default();
        let sum = |round: usize| self.0.iter().filter_map(|(_, values)| values.get(round)).sum();
        Row::new(measure, unit, (0..rounds).map(sum).collect()).parts(self.0.clone())
    }
}
