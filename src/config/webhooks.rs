//! `WEBHOOK_*`: outgoing webhooks.

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;

use super::{Reader, Section};

/// Pauses of the specification of Standard Webhooks: ten attempts in 75 h 35 min.
const DEFAULT_RETRY: [u64; 9] = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400];
/// Maximum number of pauses, and maximum length of one in seconds.
const MAX_PAUSES: usize = 30;
const MAX_PAUSE: u64 = 604_800;

/// Settings of outgoing webhooks.
#[derive(Clone, Debug)]
pub struct Webhooks {
    /// `WEBHOOK_RETENTION_DAYS`: days for which events and deliveries are kept.
    pub retention_days: i32,
    /// `WEBHOOK_RETRY_SECONDS`: pauses between the attempts of a delivery.
    pub retry: Arc<[Duration]>,
    /// `WEBHOOK_DISABLE_AFTER_HOURS`: time without success after which an endpoint is disabled.
    pub disable_after: TimeDelta,
}

impl Section for Webhooks {
    fn read(reader: &mut Reader) -> Option<Self> {
        let retention_days = reader.number("webhook_retention_days", 14, 1..=365);
        let default: Arc<[Duration]> = DEFAULT_RETRY.map(Duration::from_secs).into();
        let retry = reader.parsed("webhook_retry_seconds", default, |text| {
            let pause = |text: &str| text.trim().parse().ok().filter(|secs| (1..=MAX_PAUSE).contains(secs));
            let pauses: Option<Vec<Duration>> =
                text.split(',').map(|text| pause(text).map(Duration::from_secs)).collect();
            pauses.filter(|pauses| pauses.len() <= MAX_PAUSES).map(Arc::from).ok_or_else(|| {
                format!("must be at most {MAX_PAUSES} numbers of seconds from 1 to {MAX_PAUSE}, separated by commas")
            })
        });
        let disable_after = reader.number("webhook_disable_after_hours", 120_i64, 1..=8760);
        Some(Self { retention_days: retention_days?, retry: retry?, disable_after: TimeDelta::hours(disable_after?) })
    }
}
