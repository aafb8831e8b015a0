//! Settings of events and webhooks: `WEBHOOK_RETENTION_DAYS`.

use super::{Reader, Section};

/// Settings of events and webhooks.
#[derive(Clone, Copy, Debug)]
pub struct Webhooks {
    /// `WEBHOOK_RETENTION_DAYS`: retention of events.
    pub retention_days: i32,
}

impl Section for Webhooks {
    fn read(reader: &mut Reader) -> Option<Self> {
        let retention_days = reader.number("webhook_retention_days", 14, 1..=365);
        Some(Self { retention_days: retention_days? })
    }
}
