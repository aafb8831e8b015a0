//! A claimed run as a driver gets it, whether a message or the sweep brought it.

use std::{sync::Arc, time::Duration};

use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{access::OrganizationId, input::object_of};

/// A claimed run, with all that is needed to drive it.
#[derive(Debug)]
pub(super) struct Assignment {
    pub(super) run_id: String,
    pub(super) lease_token: Uuid,
    /// Whose run it is, and whose agents it calls.
    pub(super) organization: OrganizationId,
    pub(super) workflow_id: String,
    pub(super) workflow_name: String,
    pub(super) correlation_id: Option<String>,
    pub(super) traceparent: Option<String>,
    /// `None`: the definition that the run is pinned to is gone.
    pub(super) plan: Option<Arc<RawValue>>,
    pub(super) input: Box<RawValue>,
    /// What was done of it before.
    pub(super) before: Progress,
    /// How often it was taken from an executor that died since it last got on.
    pub(super) takeovers: i16,
    /// For how long it has been executed so far.
    pub(super) elapsed: Duration,
}

/// What was done of a run before it was claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing.
    Nothing,
    /// Perhaps something, and it ended there: by the end of the run or of its executor.
    Interrupted,
    /// It was parked, and goes on where it was.
    Parked,
}

/// JSON text of our own database as a value; what cannot be read counts as absent.
pub(super) fn stored(text: Option<String>) -> Option<Box<RawValue>> {
    RawValue::from_string(text?).ok()
}

/// The input of a run: an empty object for none, as the contract says.
pub(super) fn input_or_empty(input: Option<Box<RawValue>>) -> Box<RawValue> {
    input.filter(|input| input.get() != "null").unwrap_or_else(|| object_of([]))
}
