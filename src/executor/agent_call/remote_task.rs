//! Tasks that an agent works on and that survive this executor: their ids are stored, and the attempt that repeats an
//! interrupted one follows its task instead of creating another.

use serde_json::{json, value::RawValue};

use super::{CallErrorKind, Failure, Request, Wire};
use crate::{
    db::{self, executions},
    executor::{database, retry::RetryDecision},
    input::{member, object_of, text, to_raw},
};

/// Maximum length of the id of a task.
const MAX_ID_BYTES: usize = 4 << 10;

/// Whether the id of a task can be kept.
pub(super) fn is_fit(id: &str) -> bool {
    // Dots would name another path.
    !["", ".", ".."].contains(&id) && id.len() <= MAX_ID_BYTES
}

/// Id of the task that an agent of this kind has created for the attempt before it was interrupted. An attempt that is
/// no repeat costs no statement.
pub(super) async fn of_interrupted(wire: &Wire<'_>, kind: &str) -> Result<Option<String>, Failure> {
    let Request { attempt_id, row: (_, row_id), .. } = wire.request;
    if attempt_id == row_id { Ok(None) } else { of_attempt(wire, kind, attempt_id).await }
}

/// Id of the task that an agent of this kind has created for that attempt.
pub(super) async fn of_attempt(wire: &Wire<'_>, kind: &str, attempt_id: &str) -> Result<Option<String>, Failure> {
    let Request { executor, run_id, .. } = wire.request;
    let mut repeats = Repeats::default();
    let task = loop {
        let (pool, run_id, attempt_id) = (executor.pool.clone(), run_id.to_owned(), attempt_id.to_owned());
        let read = executor.database(|| async move { executions::agent_task(&pool, &run_id, &attempt_id).await });
        match read.await {
            Ok(task) => break task,
            Err(error) => repeats.wait(error).await?,
        }
    };
    let of = |name| task.as_ref().and_then(|task| member(&task.0, name)).and_then(text);
    Ok(of("id").filter(|_| of("kind").as_deref() == Some(kind)))
}

/// Stores the id of the task that the agent has created for the attempt. Waits while the database is down.
pub(super) async fn keep(wire: &Wire<'_>, kind: &str, id: &str) -> Result<(), Failure> {
    let Request { executor, run_id, lease_token, attempt_id, row, conversation, .. } = wire.request;
    // An answer is no attempt of its own.
    let attempt_id = if conversation.answered.is_some() { row.1 } else { attempt_id };
    let task = to_raw(&json!({"kind": kind, "id": id}));
    let mut repeats = Repeats::default();
    loop {
        let (pool, run_id, attempt_id) = (executor.pool.clone(), run_id.to_owned(), attempt_id.to_owned());
        let task = task.clone();
        let write = executor.database(|| async move {
            executions::keep_agent_task(&pool, &run_id, lease_token, &attempt_id, &task).await
        });
        match write.await {
            Ok(()) => return Ok(()),
            Err(error) => repeats.wait(error).await?,
        }
    }
}

/// The input of the attempt whose question is answered.
pub(super) async fn input_of_attempt(wire: &Wire<'_>) -> Result<Box<RawValue>, Failure> {
    let Request { executor, run_id, row: (_, row_id), .. } = wire.request;
    let mut repeats = Repeats::default();
    loop {
        let (pool, run_id, row_id) = (executor.pool.clone(), run_id.to_owned(), row_id.to_owned());
        let read = executor.database(|| async move { executions::input(&pool, &run_id, &row_id).await });
        match read.await {
            Ok(input) => return Ok(input.map_or_else(|| object_of([]), |input| input.0)),
            Err(error) => repeats.wait(error).await?,
        }
    }
}

/// Repeats of a statement while the database is down; the time-out of the attempt ends them.
#[derive(Default)]
struct Repeats(u32);

impl Repeats {
    async fn wait(&mut self, error: db::Error) -> Result<(), Failure> {
        if !error.is_retryable() {
            tracing::error!(error = &error as &dyn std::error::Error, "the task of an agent cannot be stored: {error}");
            // The agent was not the cause.
            return Err(Failure::new(CallErrorKind::Unusable, RetryDecision::Never, "internal error"));
        }
        database::pause(self.0).await;
        self.0 += 1;
        Ok(())
    }
}
