//! Telemetry settings: `LOG_*`, `ENABLE_METRICS`, `METRICS_ACCESS` and `MANAGEMENT_PORT`.

use std::path::PathBuf;

use tracing::level_filters::LevelFilter;

use super::{LogLevels, Reader, Section};

/// Log settings.
#[derive(Clone, Debug)]
pub struct Log {
    /// `LOG_LEVEL`.
    pub levels: LogLevels,
    /// Whether `LOG_FORMAT` is `json` instead of `text`.
    pub json: bool,
    /// `LOG_FILE`: file that the log of a service is written to as well.
    pub file: Option<LogFile>,
}

/// Log file. When it is full, it is renamed, and another one begins.
#[derive(Clone, Debug)]
pub struct LogFile {
    /// `LOG_FILE`.
    pub path: PathBuf,
    /// `LOG_FILE_MAX_MB`: maximum size of a file, in bytes.
    pub max_bytes: u64,
    /// `LOG_FILE_COUNT`: number of older files that are kept.
    pub count: u32,
}

impl Log {
    /// Log settings alone. If they have problems, the defaults are used, so that the problems can be logged.
    #[must_use]
    pub fn load_or_default(environment: impl Iterator<Item = (String, String)>) -> Self {
        Self::read(&mut Reader::new(environment)).unwrap_or(Self {
            levels: LogLevels::of(LevelFilter::INFO),
            json: true,
            file: None,
        })
    }
}

impl Section for Log {
    fn read(reader: &mut Reader) -> Option<Self> {
        let default = LogLevels::of(LevelFilter::INFO);
        let levels = reader.parsed("log_level", default, |value| LogLevels::parse(value, LevelFilter::INFO));
        let json = reader.parsed("log_format", true, |value| match value.to_ascii_lowercase().as_str() {
            "json" => Ok(true),
            "text" => Ok(false),
            _ => Err(format!("must be json or text, not {value:?}")),
        });
        let path = reader.parsed("log_file", None, |value| {
            let path = PathBuf::from(value);
            if path.file_name().is_none() || value.ends_with('/') {
                return Err(format!("must be the path of a file, not {value:?}"));
            }
            Ok(Some(path))
        });
        let max_mb = reader.number("log_file_max_mb", 100_u64, 1..=100_000);
        let count = reader.number("log_file_count", 5, 1..=1000);
        let (path, max_bytes, count) = (path?, max_mb? << 20, count?);
        Some(Self { levels: levels?, json: json?, file: path.map(|path| LogFile { path, max_bytes, count }) })
    }
}

/// Settings of the metrics.
#[derive(Clone, Copy, Debug)]
pub struct Metrics {
    /// `ENABLE_METRICS`: serve `/metrics`.
    pub enabled: bool,
    /// `METRICS_ACCESS`: access to `/metrics` on the API's port.
    pub access: MetricsAccess,
    /// `MANAGEMENT_PORT`: port that serves health, metrics and the level of the log. `None`: no such port.
    pub management_port: Option<u16>,
}

/// Access to `/metrics` of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsAccess {
    /// Every client of the API's port.
    Open,
    /// Callers with credentials that may see the runs of the default organisation.
    Credentials,
    /// Nobody on the API's port. `MANAGEMENT_PORT` serves the metrics in any case.
    Management,
}

impl Section for Metrics {
    fn read(reader: &mut Reader) -> Option<Self> {
        let enabled = reader.boolean("enable_metrics", true);
        let access = reader.parsed("metrics_access", MetricsAccess::Open, |value| match value {
            "open" => Ok(MetricsAccess::Open),
            "credentials" => Ok(MetricsAccess::Credentials),
            "management" => Ok(MetricsAccess::Management),
            _ => Err(format!("must be open, credentials or management, not {value:?}")),
        });
        let management_port = reader.parsed("management_port", None, |value| match value.parse() {
            Ok(port) if port > 0 => Ok(Some(port)),
            _ => Err(format!("must be a port from 1 to 65535, not {value:?}")),
        });
        if access == Some(MetricsAccess::Management) && management_port == Some(None) {
            reader.problem::<()>("metrics_access", "management needs MANAGEMENT_PORT");
        }
        Some(Self { enabled: enabled?, access: access?, management_port: management_port? })
    }
}
