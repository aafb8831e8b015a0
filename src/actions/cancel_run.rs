//! Cancelling a run.

use serde::Serialize;
use uuid::Uuid;

use super::{Change, Context, Entity};
use crate::{
    db::{self, outbox::Kind, runs::RunRow},
    id, input,
    outbox::{CancelledRun, Relay},
    run::RunStatus,
    telemetry::catalogue,
    timestamp::Timestamp,
};

/// Bytes that are reserved for a message: ids and a reason.
const MESSAGE_BYTES: usize = 4096;

/// Reason why a run was not cancelled.
#[derive(Debug, thiserror::Error)]
pub enum CancelRunError {
    /// There is no such run.
    #[error("run not found")]
    NotFound,
    /// It has ended already.
    #[error("a run in status {0} cannot be cancelled")]
    WrongState(String),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] db::Error),
}

#[derive(Serialize)]
struct Changes<'a> {
    reason: Option<&'a str>,
    previous_status: &'a str,
}

/// Ends the run in the database, which is final for every executor, and notifies the executors.
pub async fn cancel_run(
    pool: &db::Pool,
    relay: &Relay,
    context: Context<'_>,
    run_id: &str,
    reason: Option<&str>,
) -> Result<RunRow, CancelRunError> {
    let mut transaction = db::begin(pool).await?;
    let run =
        db::runs::lock(&mut transaction, context.organization(), run_id).await?.ok_or(CancelRunError::NotFound)?;
    let Some(previous) = RunStatus::parse(&run.status).filter(|status| status.is_cancellable()) else {
        return Err(CancelRunError::WrongState(run.status));
    };
    let at = Timestamp::now();
    let reason = reason.filter(|reason| !reason.is_empty());
    let error_message = reason.map(|reason| format!("Cancelled: {reason}"));
    db::runs::cancel(&mut transaction, run_id, &context.actor.subject, error_message.as_deref(), at).await?;
    let event_id = Uuid::now_v7();
    let reservation = relay.reserve(MESSAGE_BYTES);
    let owner = reservation.as_ref().map(crate::outbox::Reservation::owner);
    let (by, kind) = (Some(context.actor.subject.as_str()), Kind::Cancellation);
    let is_ours = db::outbox::insert(&mut transaction, run_id, event_id, kind, owner, by, reason).await?;
    let changes = input::to_raw(&Changes { reason, previous_status: &run.status });
    let entity = Entity("run", id::run_entity_id(run_id), run_id);
    context.record(&mut transaction, entity, "cancel", Change::to(&changes), at).await?;
    if let Some(reservation) = relay.commit(transaction, (reservation, is_ours), (run_id, event_id)).await? {
        let (correlation_id, traceparent) = (run.correlation_id.as_deref(), run.traceparent.as_deref());
        let cancelled = CancelledRun { run_id, correlation_id, traceparent, cancelled_by: by, reason };
        relay.cancel(reservation, event_id, cancelled);
    }
    catalogue::count_execution(RunStatus::Cancelled, &run.workflow_id);
    catalogue::count_transition(previous.as_str(), RunStatus::Cancelled.as_str(), 1);
    Ok(RunRow {
        status: RunStatus::Cancelled.as_str().to_owned(),
        cancelled_at: Some(at),
        cancelled_by: Some(context.actor.subject.clone()),
        updated_at: at,
        error_message: error_message.or(run.error_message),
        ..run
    })
}
