//! Answering a callback: the first answer is stored, and every repeat returns it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use sqlx::types::Json;

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
    offload::{Offload, Overloaded},
    workflow::{InputSchema, wait_config::check_decision},
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
    /// Roles that the caller has; `None`: all.
    #[must_use]
    pub fn held(&self) -> Option<Vec<String>> {
        let here = self.role.map(|role| role.as_str().to_owned());
        (self.role != Some(Role::Admin)).then(|| self.roles.iter().cloned().chain(here).collect())
    }

    /// Checks that the caller has the role that the callback wants.
    fn must_decide(&self, callback: &CallbackRow) -> Result<(), AnswerError> {
        let wanted = |json: &Option<Json<Box<RawValue>>>| member(&json.as_ref()?.0, "role").and_then(text);
        let Some(role) = wanted(&callback.approval).or_else(|| wanted(&callback.question)) else { return Ok(()) };
        if !self.is_known {
            return Err(AnswerError::Unauthenticated);
        }
        if self.may_decide(&role, callback) { Ok(()) } else { Err(AnswerError::Forbidden(role)) }
    }

    /// Whether the caller may decide for that role about a run of that workflow.
    fn may_decide(&self, role: &str, callback: &CallbackRow) -> bool {
        let is_ours = self.organization.is_none_or(|ours| ours.as_str() == callback.organization_id);
        let workflow = &callback.workflow_name;
        let has_role = self.held().is_none_or(|held| held.iter().any(|held| held == role));
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
    /// The answer could not be checked, because too much other work waits.
    #[error(transparent)]
    Busy(#[from] Overloaded),
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
    offload: &Offload,
    context: Context<'_>,
    token: &str,
    by: CallbackCaller<'_>,
    answer: Option<&RawValue>,
) -> Result<Answered, AnswerError> {
    let hash = Sha256::digest(token);
    check_answer(pool, offload, &hash, by, answer).await?;
    let mut transaction = db::begin(pool).await?;
    if let Some(key) = context.key
        && let Some(run_id) = waits::run_of_callback(&mut *transaction, &hash).await?
    {
        db::idempotency::claim(&mut transaction, key, &run_id).await?;
    }
    let callback = waits::lock_callback(&mut transaction, &hash).await?.ok_or(AnswerError::NotFound)?;
    by.must_decide(&callback)?;
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
        check_decision(answer, callback.question.is_some()).map_err(AnswerError::Invalid)?;
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

/// Checks the answer to a question by the schema that its agent has given. This takes long, so it comes before the
/// transaction.
async fn check_answer(
    pool: &db::Pool,
    offload: &Offload,
    hash: &[u8],
    by: CallbackCaller<'_>,
    answer: Option<&RawValue>,
) -> Result<(), AnswerError> {
    let found = {
        let mut connection = pool.acquire().await.map_err(db::Error::from)?;
        waits::find_callback(&mut connection, hash).await?
    };
    let callback = found.ok_or(AnswerError::NotFound)?;
    let Some(question) = callback.question.as_ref().filter(|_| callback.answered_at.is_none()) else { return Ok(()) };
    by.must_decide(&callback)?;
    let Some(schema) = member(&question.0, "answer_schema").filter(|schema| schema.get() != "null") else {
        return Ok(());
    };
    let (schema, answer) = (schema.to_owned(), answer.map_or_else(|| input::object_of([]), ToOwned::to_owned));
    let organization = OrganizationId::stored(&callback.organization_id);
    let check = move || InputSchema::compile(&schema).map(|schema| schema.check(&answer));
    match offload.run_soon(&organization, check).await? {
        // It was compiled before it was stored, under other limits: any answer is accepted.
        Err(_) | Ok(Ok(())) => Ok(()),
        Ok(Err(errors)) => {
            let of_body = |error: FieldError| {
                let field = error.field.replacen("body.input_data", "body", 1);
                FieldError { field, ..error }
            };
            Err(AnswerError::Invalid(errors.into_iter().map(of_body).collect()))
        }
    }
}
