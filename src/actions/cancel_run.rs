//! Cancelling a run.

use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Change, Context, Entity, record};
use crate::{
    access::Actor,
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

/// Run that was ended in a transaction.
struct Ended {
    at: Timestamp,
    error_message: Option<String>,
    /// Whether the message belongs to the given owner.
    is_ours: bool,
}

/// Writes the end of a run that the caller has locked, with its message and its audit row.
async fn end(
    conn: &mut PgConnection,
    (actor, audit): (&Actor, bool),
    run: &RunRow,
    reason: Option<&str>,
    (event_id, owner): (Uuid, Option<Uuid>),
) -> Result<Ended, db::Error> {
    let (at, run_id) = (Timestamp::now(), run.run_id.as_str());
    let error_message = reason.map(|reason| format!("Cancelled: {reason}"));
    db::runs::cancel(conn, run_id, &actor.subject, error_message.as_deref(), at).await?;
    let (by, kind) = (Some(actor.subject.as_str()), Kind::Cancellation);
    let is_ours = db::outbox::insert(conn, run_id, event_id, kind, owner, by, reason).await?;
    let changes = input::to_raw(&Changes { reason, previous_status: &run.status });
    let entity = Entity("run", id::run_entity_id(run_id), run_id);
    record(conn, (actor, audit), entity, "cancel", Change::to(&changes), at).await?;
    Ok(Ended { at, error_message, is_ours })
}

/// Cancels a run in the caller's transaction, on behalf of the service, unless it has ended. Whichever process sweeps the
/// outbox notifies the executors. Returns whether it was cancelled, for [`count`] after the commit.
pub(super) async fn cancel_in(
    conn: &mut PgConnection,
    (actor, audit): (&Actor, bool),
    run_id: &str,
    reason: &str,
) -> Result<Option<RunRow>, db::Error> {
    let Some(run) = db::runs::lock(conn, &actor.organization, run_id).await? else { return Ok(None) };
    if RunStatus::parse(&run.status).is_none_or(|status| !status.is_cancellable()) {
        return Ok(None);
    }
    end(conn, (actor, audit), &run, Some(reason), (Uuid::now_v7(), None)).await?;
    Ok(Some(run))
}

/// Counts a cancelled run, given as it was before, in the metrics.
pub(super) fn count(run: &RunRow) {
    catalogue::count_execution(RunStatus::Cancelled, &run.workflow_id);
    let before = RunStatus::parse(&run.status).map_or("", RunStatus::as_str);
    catalogue::count_transition(before, RunStatus::Cancelled.as_str(), 1);
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
    if RunStatus::parse(&run.status).is_none_or(|status| !status.is_cancellable()) {
        return Err(CancelRunError::WrongState(run.status));
    }
    let reason = reason.filter(|reason| !reason.is_empty());
    let event_id = Uuid::now_v7();
    let reservation = relay.reserve(MESSAGE_BYTES);
    let owner = reservation.as_ref().map(crate::outbox::Reservation::owner);
    let by = Some(context.actor.subject.as_str());
    let (author, message) = ((context.actor, context.audit), (event_id, owner));
    let Ended { at, error_message, is_ours } = end(&mut transaction, author, &run, reason, message).await?;
    if let Some(reservation) = relay.commit(transaction, (reservation, is_ours), (run_id, event_id)).await? {
        let (correlation_id, traceparent) = (run.correlation_id.as_deref(), run.traceparent.as_deref());
        let cancelled = CancelledRun { run_id, correlation_id, traceparent, cancelled_by: by, reason };
        relay.cancel(reservation, event_id, cancelled);
    }
    count(&run);
    Ok(RunRow {
        status: RunStatus::Cancelled.as_str().to_owned(),
        cancelled_at: Some(at),
        cancelled_by: Some(context.actor.subject.clone()),
        updated_at: at,
        error_message: error_message.or(run.error_message),
        ..run
    })
}
