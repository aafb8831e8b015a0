//! Answering a callback: the first answer is stored, and every repeat returns it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::{Change, Context, Entity};
use crate::{
    access::{Actor, OrganizationId, Role},
    db::{
        self,
        idempotency::ClaimError,
        waits::{self, CallbackRow},
    },
    id,
    input::{self, FieldError, member, text},
};

/// Result of an answer.
#[derive(Debug)]
pub struct Answered {
    /// Id of the run.
    pub run_id: String,
    /// Step that waits for the callback now or later.
    pub step_id: String,
    /// Time of the first answer.
    pub at: DateTime<Utc>,
    /// Decision of an approval.
    pub approved: Option<bool>,
    /// Whether it was answered before, so that this answer changed nothing.
    pub is_repeat: bool,
}

/// Caller that answers a callback, as far as it is authenticated.
#[derive(Clone, Copy, Debug)]
pub struct CallbackCaller<'a> {
    /// Actor for the audit.
    pub actor: &'a Actor,
    /// Whether the caller is authenticated; otherwise only its address is known.
    pub is_known: bool,
    /// Organisation of the caller; `None` if authentication is off.
    pub organization: Option<&'a OrganizationId>,
    /// Role in this service; `None` if the credentials are restricted so far that they cannot decide.
    pub role: Option<Role>,
    /// Roles in other systems.
    pub roles: &'a [String],
    /// Workflows that the caller is restricted to; `None`: all.
    pub workflows: Option<&'a [String]>,
}

impl CallbackCaller<'_> {
    /// Whether the caller may decide for that role about a run of that workflow.
    fn may_decide(&self, role: &str, callback: &CallbackRow) -> bool {
        let is_ours = self.organization.is_none_or(|ours| ours.as_str() == callback.organization_id);
        let workflow = &callback.workflow_name;
        let here = self.role.is_some_and(|held| held == Role::Admin || held.as_str() == role);
        let has_role = here || self.roles.iter().any(|held| held == role);
        is_ours && has_role && self.workflows.is_none_or(|workflows| workflows.contains(workflow))
    }
}

/// Reason why an answer is rejected.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// There is no such callback.
    #[error("callback not found")]
    NotFound,
    /// The callback has expired, or its attempt or run has ended.
    #[error("the callback has expired or its run has ended")]
    Over,
    /// The approval requires authentication.
    #[error("a role is needed")]
    Unauthenticated,
    /// The approval requires that role.
    #[error("the role {0} is needed")]
    Forbidden(String),
    /// The answer is not a valid decision.
    #[error("the answer is not valid")]
    Invalid(Vec<FieldError>),
    /// The idempotency key is taken.
    #[error(transparent)]
    Key(#[from] ClaimError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] db::Error),
}

#[derive(Serialize)]
struct Changes<'a> {
    step_id: &'a str,
    approved: Option<bool>,
    answer: &'a RawValue,
}

/// Whether a callback with that token exists, answered or not.
pub async fn exists(pool: &db::Pool, token: &str) -> Result<bool, db::Error> {
    waits::callback_exists(pool, &Sha256::digest(token)).await
}

/// Writes the answer and wakes the run, or returns the first answer. A key of the context is bound to the run.
pub async fn answer_callback(
    pool: &db::Pool,
    context: Context<'_>,
    token: &str,
    by: CallbackCaller<'_>,
    answer: Option<&RawValue>,
) -> Result<Answered, AnswerError> {
    let hash = Sha256::digest(token);
    let mut transaction = db::begin(pool).await?;
    if let Some(key) = context.key
        && let Some(run_id) = waits::run_of_callback(&mut *transaction, &hash).await?
    {
        db::idempotency::claim(&mut transaction, key, &run_id).await?;
    }
    let callback = waits::lock_callback(&mut transaction, &hash).await?.ok_or(AnswerError::NotFound)?;
    if let Some(approval) = &callback.approval
        && let Some(role) = member(&approval.0, "role").and_then(text)
    {
        if !by.is_known {
            return Err(AnswerError::Unauthenticated);
        }
        if !by.may_decide(&role, &callback) {
            return Err(AnswerError::Forbidden(role));
        }
    }
    let is_approval = callback.approval.is_some();
    let decision =
        |answer: &RawValue| is_approval.then(|| member(answer, "approved").map(RawValue::get) == Some("true"));
    let (run_id, step_id) = (callback.run_id.clone(), callback.step_id.clone());
    if let (Some(at), Some(first)) = (callback.answered_at, &callback.answer) {
        return Ok(Answered { run_id, step_id, at, approved: decision(&first.0), is_repeat: true });
    }
    if callback.is_over {
        return Err(AnswerError::Over);
    }
    let nothing = input::object_of([]);
    let answer = answer.unwrap_or(&nothing);
    if is_approval {
        check_decision(answer).map_err(AnswerError::Invalid)?;
    }
    let who = Some(by.actor.subject.as_str()).filter(|_| by.is_known);
    let at = waits::answer(&mut transaction, &callback, answer, who).await?;
    // The audit entry belongs to the run's organisation, whichever caller has answered.
    let actor = Actor { organization: OrganizationId::stored(&callback.organization_id), ..by.actor.clone() };
    let context = Context { actor: &actor, ..context };
    let entity = Entity("run", id::run_entity_id(&run_id), &run_id);
    let after = input::to_raw(&Changes { step_id: &step_id, approved: decision(answer), answer });
    context.record(&mut transaction, entity, "answer_callback", Change::to(&after), at.into()).await?;
    db::commit(transaction).await?;
    Ok(Answered { run_id, step_id, at, approved: decision(answer), is_repeat: false })
}

/// Checks that a decision is an object with `approved` and an optional comment.
fn check_decision(answer: &RawValue) -> Result<(), Vec<FieldError>> {
    let body = input::Object::body(answer)?;
    let mut errors = Vec::new();
    body.required("approved", &mut errors, input::Node::boolean);
    body.nullable("comment", &mut errors, |node| node.string(0..=MAX_COMMENT_CHARS));
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Maximum number of characters of a comment to a decision.
const MAX_COMMENT_CHARS: usize = 2000;
