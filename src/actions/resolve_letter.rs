//! Resolving dead letters: redrive or discard.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{json, value::RawValue};
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Change, Context, Entity,
    fire_trigger::{self, FireError, Firer},
    receive_records,
};
use crate::{
    access::OrganizationId,
    db::{
        self,
        dead_letters::{self, Content, LetterRow},
    },
    input,
    kafka::{
        message::{Message, MessageError},
        producer::MAX_RECORD_BYTES,
    },
    timestamp::Timestamp,
    trigger::kafka::{Record, Unusable},
};

/// Reason why a letter was neither redriven nor discarded.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// There is no such letter.
    #[error("dead letter not found")]
    NotFound,
    /// The letter has been resolved already.
    #[error("the dead letter is {0}")]
    WrongState(String),
    /// The record to send is not a message that an executor can read; other consumers would stop at it.
    #[error("{0}")]
    Unreadable(MessageError),
    /// The message is about a run that does not belong to the letter.
    #[error("the message is about another run")]
    OtherRun,
    /// The record is larger than the topic accepts.
    #[error("the record is too large")]
    TooLarge,
    /// The trigger of the letter is deleted.
    #[error("the trigger of the dead letter is deleted")]
    NoTrigger,
    /// The record still cannot start a run of its trigger.
    #[error("{}", .0.detail)]
    NotStarted(Unusable),
    /// The service is overloaded.
    #[error("too much work is waiting")]
    Busy,
    /// The database failed.
    #[error(transparent)]
    Db(#[from] db::Error),
}

impl From<FireError> for ResolveError {
    fn from(error: FireError) -> Self {
        match error {
            FireError::Busy => Self::Busy,
            FireError::Db(error) => Self::Db(error),
        }
    }
}

/// Schedules the record to be sent to its topic again, with `corrected` instead of its value if given. The record of a
/// trigger starts its run at once instead. A repeat changes nothing.
pub async fn redrive(
    pool: &db::Pool,
    context: Context<'_>,
    firer: Firer<'_>,
    id: Uuid,
    corrected: Option<&RawValue>,
) -> Result<LetterRow, ResolveError> {
    let mut transaction = db::begin(pool).await?;
    let row = dead_letters::lock(&mut transaction, context.organization(), id).await?.ok_or(ResolveError::NotFound)?;
    let content = dead_letters::content(&mut *transaction, id, i32::MAX).await?.ok_or(ResolveError::NotFound)?;
    let corrected = corrected.map(|value| value.get().as_bytes());
    match row.status.as_str() {
        "open" => {}
        "redriving" | "redriven" if content.corrected.as_deref() == corrected => return Ok(row),
        _ => return Err(ResolveError::WrongState(row.status)),
    }
    if let Some(trigger) = row.trigger_id {
        return redrive_to_trigger(transaction, (context, firer), (row, trigger), content, corrected).await;
    }
    let value = corrected.or(content.value.as_deref()).unwrap_or_default();
    let message = Message::parse(value).map_err(ResolveError::Unreadable)?;
    let run_id = message.run_id();
    if run_id.contains('\0') || !is_of(&mut transaction, context.organization(), &row, run_id).await? {
        return Err(ResolveError::OtherRun);
    }
    if value.len() > MAX_RECORD_BYTES {
        return Err(ResolveError::TooLarge);
    }
    let at = Timestamp::now();
    dead_letters::redrive(&mut transaction, id, corrected, &context.actor.subject, at).await?;
    let next = resolved(context, &row, "redriving", at);
    let digest = corrected.map(digest_of);
    let change = input::to_raw(&json!({"status": next.status, "run_id": run_id, "corrected": digest}));
    record_change(context, &mut transaction, &row, "redrive", &change, at).await?;
    db::commit(transaction).await?;
    Ok(next)
}

/// Starts the run of a record that its trigger could not use. The topic may be of another program, so nothing is sent to it.
async fn redrive_to_trigger(
    mut transaction: db::Transaction,
    (context, firer): (Context<'_>, Firer<'_>),
    (row, trigger): (LetterRow, Uuid),
    content: Content,
    corrected: Option<&[u8]>,
) -> Result<LetterRow, ResolveError> {
    let found = db::triggers::lock(&mut transaction, context.organization(), trigger).await?;
    let trigger = found.ok_or(ResolveError::NoTrigger)?;
    if context.workflows.is_some_and(|bound| !bound.contains(&trigger.workflow_name)) {
        // Of another caller's workflow.
        return Err(ResolveError::NotFound);
    }
    let decoded = |(name, value): (String, Option<String>)| (name, value.and_then(|value| STANDARD.decode(value).ok()));
    let record = Record {
        topic: row.topic.clone(),
        partition: row.partition,
        offset: row.record_offset,
        timestamp: row.sent_at.map(|at| at.as_naive_utc().and_utc().timestamp_millis()),
        key: content.key,
        headers: content.headers.0.into_iter().map(decoded).collect(),
        value: corrected.map(<[u8]>::to_vec).or(content.value),
    };
    let started = receive_records::redrive(&mut transaction, firer, (&trigger, row.id), &record).await?;
    let (firing, outcome) = started.map_err(ResolveError::NotStarted)?;
    let (at, by) = (Timestamp::now(), context.actor.subject.as_str());
    let done = (firing.run_id.as_str(), corrected);
    db::kafka_triggers::letter_redriven(&mut transaction, row.id, done, (by, at)).await?;
    let next = LetterRow { run_id: Some(firing.run_id.clone()), ..resolved(context, &row, "redriven", at) };
    let digest = corrected.map(digest_of);
    let change = input::to_raw(&json!({"status": next.status, "run_id": firing.run_id, "corrected": digest}));
    record_change(context, &mut transaction, &row, "redrive", &change, at).await?;
    db::commit(transaction).await?;
    fire_trigger::count_outcomes(&trigger, &[outcome]);
    Ok(next)
}

/// Digest of the bytes that are sent.
fn digest_of(value: &[u8]) -> serde_json::Value {
    json!({"bytes": value.len(), "sha256": format!("{:x}", Sha256::digest(value))})
}

/// Whether a message about that run may replace the letter's record, since executors trust it. If the letter names no
/// run, any run of the organisation is allowed, and one of another program that is not known yet.
async fn is_of(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    letter: &LetterRow,
    run_id: &str,
) -> Result<bool, db::Error> {
    let is_ours = match db::runs::organization(&mut *conn, run_id).await? {
        Some(owner) => owner == *organization,
        // Runs of other programs belong to the default organisation.
        None => organization.is_default(),
    };
    Ok(is_ours
        && match letter.run_id.as_deref() {
            None => true,
            Some(named) => named == run_id || db::runs::organization(conn, named).await?.is_none(),
        })
}

/// Deletes the content of the record and keeps the letter. A repeat changes nothing.
pub async fn discard(pool: &db::Pool, context: Context<'_>, id: Uuid) -> Result<LetterRow, ResolveError> {
    let mut transaction = db::begin(pool).await?;
    let row = dead_letters::lock(&mut transaction, context.organization(), id).await?.ok_or(ResolveError::NotFound)?;
    match row.status.as_str() {
        "discarded" => return Ok(row),
        // Its content is being sent.
        "redriving" => return Err(ResolveError::WrongState(row.status)),
        _ => {}
    }
    let at = Timestamp::now();
    dead_letters::discard(&mut transaction, id, &context.actor.subject, at).await?;
    let next = resolved(context, &row, "discarded", at);
    let change = input::to_raw(&json!({"status": next.status}));
    record_change(context, &mut transaction, &row, "discard", &change, at).await?;
    db::commit(transaction).await?;
    Ok(next)
}

fn resolved(context: Context<'_>, row: &LetterRow, status: &str, at: Timestamp) -> LetterRow {
    let resolved_by = Some(context.actor.subject.clone());
    LetterRow { status: status.to_owned(), resolved_by, resolved_at: Some(at), ..row.clone() }
}

async fn record_change(
    context: Context<'_>,
    conn: &mut PgConnection,
    row: &LetterRow,
    action: &'static str,
    after: &RawValue,
    at: Timestamp,
) -> Result<(), db::Error> {
    let name = format!("{}/{}/{}", row.topic, row.partition, row.record_offset);
    let before = input::to_raw(&json!({"status": row.status}));
    context.record(conn, Entity("dead_letter", row.id, &name), action, Change::between(&before, after), at).await
}
