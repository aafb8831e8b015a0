//! Levels of the log: `LOG_LEVEL`, and the request that changes them while the process runs.

use std::fmt;

use tracing::{Level, level_filters::LevelFilter};

/// A level, and levels of single loggers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevels {
    /// Level of all other loggers.
    pub level: LevelFilter,
    /// Loggers, as the log or the source names them, each with its level. The most exact name applies.
    pub loggers: Vec<(String, LevelFilter)>,
}

impl LogLevels {
    /// One level for all.
    #[must_use]
    pub fn of(level: LevelFilter) -> Self {
        Self { level, loggers: Vec::new() }
    }

    /// Parses what is between commas: a level, or a logger with its level, such as `INFO,executor.journal=DEBUG`. Without a
    /// level, `default` applies.
    pub fn parse(text: &str, default: LevelFilter) -> Result<Self, String> {
        let mut levels = Self::of(default);
        let mut has_level = false;
        for part in text.split(',').map(str::trim) {
            let (logger, level) = match part.split_once('=') {
                Some((logger, level)) => (Some(logger.trim()), level.trim()),
                None => (None, part),
            };
            let level = level_of(level).ok_or_else(|| {
                format!("{part:?}: a level must be OFF, ERROR, WARNING, INFO, DEBUG or TRACE, not {level:?}")
            })?;
            match logger {
                None if std::mem::replace(&mut has_level, true) => return Err("there are two levels".to_owned()),
                None => levels.level = level,
                Some(logger) if is_logger(logger) => levels.loggers.push((logger.to_owned(), level)),
                Some(logger) => return Err(format!("{logger:?} is not the name of a logger")),
            }
        }
        Ok(levels)
    }
}

impl fmt::Display for LogLevels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(self.level))?;
        self.loggers.iter().try_for_each(|(logger, level)| write!(f, ",{logger}={}", name_of(*level)))
    }
}

fn level_of(name: &str) -> Option<LevelFilter> {
    match name.to_ascii_uppercase().as_str() {
        "OFF" => Some(LevelFilter::OFF),
        "ERROR" | "CRITICAL" => Some(LevelFilter::ERROR),
        "WARNING" | "WARN" => Some(LevelFilter::WARN),
        "INFO" => Some(LevelFilter::INFO),
        "DEBUG" => Some(LevelFilter::DEBUG),
        "TRACE" => Some(LevelFilter::TRACE),
        _ => None,
    }
}

/// Name of a level, as in the log.
fn name_of(level: LevelFilter) -> &'static str {
    match level.into_level() {
        None => "OFF",
        Some(Level::WARN) => "WARNING",
        Some(level) => level.as_str(),
    }
}

fn is_logger(name: &str) -> bool {
    let is_part =
        |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    name.len() <= 200 && name.replace("::", ".").split('.').all(is_part)
}
