//! Runs as other protocols show them: with what they wait for, and with their output.

use std::{sync::Arc, time::Duration};

use serde_json::value::RawValue;

use crate::{
    a2a::shown,
    actions::answer_callback::{self, AnswerError, Answered},
    api::vocabulary::{app::App, caller::Caller, error::ApiError, prefer::Patience},
    db::{
        self,
        idempotency::{ClaimError, IdempotencyKey},
        runs::TaskRow,
        waits::{self, Question},
    },
    run::State,
};

/// Maximum number of questions that are shown of a run.
const MAX_QUESTIONS: i64 = 20;
/// Maximum bytes of the input of a step that is shown with its question.
const MAX_QUESTION_BYTES: i32 = 64 << 10;

/// Run with what it waits for, and with its output.
pub struct ExposedRun {
    /// Row of the run.
    pub row: TaskRow,
    /// What it waits for.
    pub questions: Vec<Question>,
    /// Output, if it is completed.
    pub output: Option<Box<RawValue>>,
}

impl ExposedRun {
    /// A run that has just been started.
    #[must_use]
    pub fn open(row: TaskRow) -> Self {
        Self { row, questions: Vec::new(), output: None }
    }

    /// State of the run.
    #[must_use]
    pub fn state(&self) -> State {
        self.row.state()
    }

    /// Its questions as A2A clients see them.
    #[must_use]
    pub fn asked(&self) -> Vec<shown::Question<'_>> {
        self.questions.iter().map(|question| question.shown(&self.row.run_id)).collect()
    }

    /// Reads what belongs to the row.
    pub async fn of(app: &App, caller: &Caller, row: TaskRow) -> Result<Self, ApiError> {
        let mut run = Self::open(row);
        match run.state() {
            State::Completed => {
                let shown = app.runs.find(caller.organization(), &run.row.run_id).await?;
                run.output = shown.and_then(|shown| shown.output).map(|output| output.0);
            }
            State::Waiting => run.questions = questions(app, caller, &run.row.run_id).await?,
            State::Submitted | State::Working | State::Failed | State::Cancelled => {}
        }
        Ok(run)
    }
}

/// The organisation's run, if the caller may see it.
pub async fn find(app: &App, caller: &Caller, run_id: &str) -> Result<TaskRow, ApiError> {
    let row =
        if run_id.contains('\0') { None } else { db::runs::task(&app.pool, caller.organization(), run_id).await? };
    let is_bound =
        |row: &TaskRow| caller.grant.workflows.as_ref().is_none_or(|workflows| workflows.contains(&row.workflow_name));
    row.filter(is_bound).ok_or_else(ApiError::run_not_found)
}

/// What the run and its sub-runs wait for.
pub async fn questions(app: &App, caller: &Caller, run_id: &str) -> Result<Vec<Question>, ApiError> {
    let (pool, organization, run_id) = (app.pool.clone(), caller.organization().clone(), run_id.to_owned());
    let limits = (MAX_QUESTIONS, MAX_QUESTION_BYTES);
    // In a task of its own, so that a client of a stream that disconnects interrupts no statement.
    Ok(db::bounded(async move { waits::questions(&pool, &organization, &run_id, limits).await }).await?)
}

/// Waits until the run has ended or waits for an answer itself or by a sub-run, and at most so long. Returns the run as it
/// is then, and the time. The run is returned as it was if it cannot be read at the moment, or if the caller's credentials are no
/// longer valid.
pub async fn until_settled(
    app: &App,
    caller: &Caller,
    patience: &Patience,
    run: TaskRow,
    at_most: Duration,
) -> (TaskRow, Duration) {
    let started = app.clock.instant();
    patience.announce(at_most);
    let deadline = started + at_most;
    // Subscribed before the first read, so that no change between the two is missed.
    let mut watch = app.waiting.wait(&run.run_id, caller.owners());
    let mut latest = run;
    loop {
        match db::runs::task(&app.pool, caller.organization(), &latest.run_id).await {
            Ok(Some(row)) => latest = row,
            Ok(None) => break,
            Err(error) => {
                let error = Arc::new(error);
                tracing::debug!(
                    error = &*error as &dyn std::error::Error,
                    "a run that was waited for cannot be read: {error}"
                );
            }
        }
        let Some(watch) = watch.as_mut().filter(|_| !latest.state().is_settled()) else { break };
        let changed = async {
            tokio::select! {
                goes_on = watch.changed() => goes_on,
                () = caller.ended(app) => false,
            }
        };
        if app.clock.timeout_at(deadline, changed).await != Some(true) {
            break;
        }
    }
    (latest, app.clock.since(started))
}

/// Reason why an answer is for no question.
#[derive(Debug, PartialEq, Eq)]
pub enum NoQuestion {
    /// There is none of that name.
    Missing,
    /// Several steps ask: these.
    SeveralSteps(String),
    /// A step asks several questions, in branches, iterations or sub-runs: these.
    SeveralOfStep(String),
}

/// The question that an answer is for: the only one, the only one of that step, or that of that name.
pub fn chosen<'a>(
    questions: &'a [Question],
    step_id: Option<&str>,
    name: Option<&str>,
) -> Result<&'a Question, NoQuestion> {
    let matching: Vec<&Question> = questions
        .iter()
        .filter(|question| step_id.is_none_or(|step_id| question.step_id == step_id))
        .filter(|question| name.is_none_or(|name| question.name() == name))
        .collect();
    match matching.as_slice() {
        [] => Err(NoQuestion::Missing),
        [only] => Ok(only),
        [first, rest @ ..] if rest.iter().all(|question| question.step_id == first.step_id) => {
            let names: Vec<String> = matching.iter().map(|question| question.name()).collect();
            Err(NoQuestion::SeveralOfStep(names.join(", ")))
        }
        several => {
            let mut steps: Vec<&str> = several.iter().map(|question| question.step_id.as_str()).collect();
            steps.sort_unstable();
            steps.dedup();
            Err(NoQuestion::SeveralSteps(steps.join(", ")))
        }
    }
}

/// Answers a question on behalf of the caller. A repeat with the same key changes nothing.
pub async fn answer(
    app: &App,
    caller: &Caller,
    question: &Question,
    answer: &RawValue,
    key: Option<&IdempotencyKey>,
) -> Result<(), ApiError> {
    let context = caller.context(app).with_key(key);
    let by = caller.callback_caller();
    match answer_callback::answer_callback(&app.pool, &app.offload, context, &question.token, by, Some(answer)).await {
        Ok(Answered { run_id, step_id, is_repeat, .. }) => {
            if !is_repeat {
                tracing::info!(target: "api.routes.callbacks", run_id, step_id, "Callback answered");
            }
            Ok(())
        }
        Err(AnswerError::Key(ClaimError::Repeated(_))) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
