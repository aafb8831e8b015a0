//! Pausing and resuming a run.

use super::{Change, Context, Entity};
use crate::{
    db::{self, runs::RunRow},
    id,
    run::RunStatus,
    timestamp::Timestamp,
};

/// Reason why a run was neither paused nor resumed.
#[derive(Debug, thiserror::Error)]
pub enum PauseRunError {
    /// There is no such run.
    #[error("run not found")]
    NotFound,
    /// It has ended.
    #[error("a run in status {0} cannot be paused or resumed")]
    WrongState(String),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] db::Error),
}

/// Pauses the run, so that no further step begins, or resumes it. Repeating this changes nothing.
///
/// The executor of the run polls for this; a step in progress is completed.
pub async fn set_paused(
    pool: &db::Pool,
    context: Context<'_>,
    run_id: &str,
    wanted: bool,
) -> Result<RunRow, PauseRunError> {
    let mut transaction = db::begin(pool).await?;
    let run = db::runs::lock(&mut transaction, context.organization(), run_id).await?.ok_or(PauseRunError::NotFound)?;
    if RunStatus::parse(&run.status).is_none_or(RunStatus::is_terminal) {
        return Err(PauseRunError::WrongState(run.status));
    }
    if run.paused_at.is_some() == wanted {
        return Ok(run);
    }
    let (action, paused_at) = if wanted {
        ("pause", Some(db::runs::pause(&mut transaction, run_id, &context.actor.subject).await?))
    } else {
        db::runs::resume(&mut transaction, run_id, &context.actor.subject).await?;
        ("resume", None)
    };
    let at = Timestamp::now();
    let entity = Entity("run", id::run_entity_id(run_id), run_id);
    context.record(&mut transaction, entity, action, Change::default(), at).await?;
    db::commit(transaction).await?;
    Ok(RunRow { paused_at, updated_at: at, ..run })
}
