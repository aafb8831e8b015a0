//! Starting runs of a trigger, in the transaction of the caller, which has found that it is due.
//!
//! The id of a run follows from the trigger and from what has happened, so that any number of processes may find out the
//! same: a run of that id that exists counts as present. What cannot be started is recorded with its reason, and is not
//! tried again.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Change, Context, Entity,
    start_run::{self, Definitions, StartRunError},
};
use crate::{
    access::{Actor, OrganizationId, Quotas},
    db::{
        self,
        idempotency::ClaimError,
        runs::{Definition, NewRun, Quota, StartBatch, StartingTrigger},
        triggers::{FiringRow, NewFirings, TriggerRow},
    },
    id,
    offload::{Offload, Overloaded},
    outbox,
    run::RunStatus,
    telemetry::catalogue,
    timestamp::Timestamp,
    trigger::{self, Fired, MAX_CHAIN, TriggerKind},
    workflow::{Deadline, FlowKeys},
};

/// Number of attempts if the definition keeps changing while runs of it are started.
const ATTEMPTS: usize = 5;
/// Maximum length of the text of a reason.
const MAX_DETAIL_CHARS: usize = 500;

/// Services that start runs of triggers.
#[derive(Clone, Copy)]
pub struct Firer<'a> {
    /// Cache of definitions.
    pub definitions: &'a Definitions,
    /// Threads that check inputs.
    pub offload: &'a Offload,
    /// Default quotas of organisations without quotas of their own.
    pub quotas: &'a Quotas,
    /// Whether audit rows are written.
    pub audit: bool,
}

/// Why a trigger fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// What its kind waits for has happened.
    Event,
    /// A caller has asked for it.
    Manual,
    /// It makes up for what has not happened.
    Backfill,
}

impl Cause {
    /// Text in the column `cause`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Manual => "manual",
            Self::Backfill => "backfill",
        }
    }
}

/// One firing of a trigger.
#[derive(Clone, Debug)]
pub struct Firing {
    /// Id of the run.
    pub run_id: String,
    /// When the trigger was due, without jitter.
    pub at: DateTime<Utc>,
    /// The same with jitter; `None`: it has none.
    pub due_at: Option<DateTime<Utc>>,
    /// What has happened: the object that references of the input refer to.
    pub what: Box<RawValue>,
    /// Number of runs that have led to this one, each by an event of the one before; 0 if no run has.
    pub depth: i16,
    /// Why it fires.
    pub cause: Cause,
    /// Correlation id; `None`: a new one.
    pub correlation_id: Option<String>,
    /// SHA-256 of the id of what has happened, if it is repeated after a failure.
    pub delivery: Option<Vec<u8>>,
}

/// Result of a firing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The run has been written.
    Started,
    /// There is a run of that id already.
    Present,
    /// There is no run.
    Failed(Failure),
}

/// Reason why a firing started no run. It is recorded; the firing is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Stable code.
    pub reason: &'static str,
    /// The same for people.
    pub detail: String,
}

impl Failure {
    /// Codes of all reasons.
    pub const REASONS: [&str; 7] = [
        "workflow_not_found",
        "workflow_not_active",
        "input_not_resolved",
        "input_invalid",
        "too_large",
        "quota_exceeded",
        "chain_too_long",
    ];

    fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        let detail: String = detail.into();
        Self { reason, detail: crate::input::shorten_to(&detail, MAX_DETAIL_CHARS).into_owned() }
    }
}

/// Reason why nothing was decided: the transaction has to be rolled back, and may be repeated later.
#[derive(Debug, thiserror::Error)]
pub enum FireError {
    /// The service is overloaded with checks, or the definition keeps changing.
    #[error("the service is overloaded")]
    Busy,
    /// The database failed. [`db::Error::Conflict`]: another transaction has written a run of the same id meanwhile, so a
    /// repeat finds it present.
    #[error(transparent)]
    Db(#[from] db::Error),
}

impl From<Overloaded> for FireError {
    fn from(_: Overloaded) -> Self {
        Self::Busy
    }
}

/// Fires a trigger: starts a run for each firing, records the outcomes, and counts them. The outcomes are in the order of
/// the firings. Nothing is committed, and the messages are sent by whichever process sweeps the outbox.
///
/// No two firings may have the same run id. At most 500 at a time. The caller has locked the row of the trigger, before any
/// other lock, or holds it if it is one for webhooks (`lock_to_fire`): the locks of the quota and of the keys of flow
/// control follow here, and the row is written at the end.
pub async fn fire(
    conn: &mut PgConnection,
    firer: Firer<'_>,
    trigger: &TriggerRow,
    firings: &[Firing],
) -> Result<Vec<Outcome>, FireError> {
    let outcomes = start(conn, firer, trigger, firings).await?;
    let now = db::triggers::now(&mut *conn).await?;
    let rows: Vec<FiringRow> =
        firings.iter().zip(&outcomes).map(|(firing, outcome)| kept(firing, outcome, now)).collect();
    let count =
        |is: fn(&Outcome) -> bool| i64::try_from(outcomes.iter().filter(|one| is(one)).count()).unwrap_or(i64::MAX);
    let counts = [
        ("fired", count(|one| *one == Outcome::Started)),
        ("failed_to_start", count(|one| matches!(one, Outcome::Failed(_)))),
    ];
    let counts: Vec<_> = counts.into_iter().filter(|(_, number)| *number > 0).collect();
    db::triggers::record(&mut *conn, trigger.id, NewFirings { firings: &rows, counts: &counts }).await?;
    tell(conn, trigger, firings, &outcomes).await?;
    Ok(outcomes)
}

/// Locks a trigger that is to fire. One for webhooks is only held, so that its deliveries do not wait for each other
/// before they are written; all that fire it do so, and in one order.
async fn lock_to_fire(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<TriggerRow>, db::Error> {
    // Kinds never change.
    match db::triggers::find(&mut *conn, organization, id).await? {
        Some(row) if row.kind == TriggerKind::Webhook.as_str() => db::triggers::hold(conn, organization, id).await,
        Some(_) => db::triggers::lock(conn, organization, id).await,
        None => Ok(None),
    }
}

/// Records events of the firings that have started no run, one for each reason. Such an event may itself be what a
/// trigger fires for, so this bounds the chain: nothing is told at its end, nor again when a delivery is repeated. If a
/// delivery of a chain has no id, nothing is told either: each repeat would begin a branch.
async fn tell(
    conn: &mut PgConnection,
    trigger: &TriggerRow,
    firings: &[Firing],
    outcomes: &[Outcome],
) -> Result<(), db::Error> {
    let mut told: Vec<(&Firing, &Failure, usize)> = Vec::new();
    for (firing, outcome) in firings.iter().zip(outcomes).filter(|(firing, _)| firing.depth <= MAX_CHAIN) {
        let Outcome::Failed(failure) = outcome else { continue };
        let is_new = match &firing.delivery {
            Some(delivery) => db::inbound::is_first_failure(&mut *conn, trigger.id, delivery).await?,
            None => firing.depth == 0 || trigger.kind != TriggerKind::Webhook.as_str(),
        };
        if !is_new {
            continue;
        }
        match told.iter_mut().find(|(_, known, _)| known.reason == failure.reason) {
            Some(known) => *known = (firing, failure, known.2 + 1),
            None => told.push((firing, failure, 1)),
        }
    }
    for (Firing { at, depth, .. }, Failure { reason, detail }, count) in told {
        let TriggerRow { id, kind, name, workflow_name, workflow_version, .. } = trigger;
        let data = crate::input::to_raw(&serde_json::json!({
            "trigger": {"kind": kind, "id": id, "name": name, "at": Timestamp::from(*at), "depth": depth},
            "workflow": {"name": workflow_name, "version": workflow_version},
            "reason": reason, "detail": detail, "count": count,
        }));
        let (organization, event) = (trigger.organization(), "trigger.failed_to_start");
        db::webhook_events::record_of_workflow(&mut *conn, &organization, event, workflow_name, &data).await?;
    }
    Ok(())
}

/// The firing as it is kept.
fn kept(firing: &Firing, outcome: &Outcome, now: DateTime<Utc>) -> FiringRow {
    let (name, failure) = match outcome {
        Outcome::Started => ("started", None),
        Outcome::Present => ("present", None),
        Outcome::Failed(failure) => ("failed_to_start", Some(failure)),
    };
    FiringRow {
        nominal_at: firing.at,
        due_at: firing.due_at,
        fired_at: now,
        cause: firing.cause.as_str().to_owned(),
        outcome: name.to_owned(),
        reason: failure.map(|failure| failure.reason.to_owned()),
        detail: failure.map(|failure| failure.detail.clone()),
        run_id: failure.is_none().then(|| firing.run_id.clone()),
    }
}

/// The input that a run of this firing would have. Nothing is written.
pub async fn preview(
    conn: &mut PgConnection,
    firer: Firer<'_>,
    trigger: &TriggerRow,
    firing: &Firing,
) -> Result<Result<Box<RawValue>, Failure>, FireError> {
    let organization = trigger.organization();
    let workflow = (trigger.workflow_name.as_str(), trigger.workflow_version);
    let Some(found) = db::triggers::definition(&mut *conn, &organization, workflow).await? else {
        return Ok(Err(Failure::new("workflow_not_found", "there is no such workflow")));
    };
    match firer.definitions.current(conn, firer.offload, &organization, &found).await {
        Ok(definition) => {
            let checked = checked(firer, &definition, trigger, firing).await?;
            Ok(checked.map(|(input, _)| input))
        }
        Err(error) => failure(error).map(Err),
    }
}

/// Reason why a trigger was not fired by hand.
#[derive(Debug, thiserror::Error)]
pub enum FireNowError {
    /// There is no such trigger.
    #[error("trigger not found")]
    NotFound,
    /// The idempotency key is taken.
    #[error(transparent)]
    Key(#[from] ClaimError),
    /// Nothing was decided.
    #[error(transparent)]
    Fire(#[from] FireError),
}

impl From<db::Error> for FireNowError {
    fn from(error: db::Error) -> Self {
        Self::Fire(error.into())
    }
}

/// Fires a trigger once, now, whether it is paused or not. Returns the firing with its outcome.
pub async fn fire_now(
    pool: &db::Pool,
    context: Context<'_>,
    firer: Firer<'_>,
    id: Uuid,
    members: &[(String, Box<RawValue>)],
) -> Result<(Firing, Outcome), FireNowError> {
    let (trigger, firing, outcomes) = db::in_transaction(pool, async |conn| {
        let run_id = id::new_run_id();
        context.claim(conn, &run_id).await?;
        let found = lock_to_fire(conn, context.organization(), id).await?;
        let trigger = found.ok_or(FireNowError::NotFound)?;
        let at = db::triggers::now(&mut *conn).await?;
        let firing = by_hand(&trigger, at, members, (run_id, &context.actor.correlation_id));
        let outcomes = fire(conn, firer, &trigger, std::slice::from_ref(&firing)).await?;
        let change = crate::input::to_raw(&serde_json::json!({"run_id": firing.run_id}));
        let entity = Entity("trigger", id, &trigger.name);
        context.record(conn, entity, "fire", Change::to(&change), Timestamp::from(at)).await?;
        Ok::<_, FireNowError>((trigger, firing, outcomes))
    })
    .await?;
    count_outcomes(&trigger, &outcomes);
    let outcome = outcomes.into_iter().next().ok_or(FireError::Busy)?;
    Ok((firing, outcome))
}

/// A firing by hand.
#[must_use]
pub fn by_hand(
    trigger: &TriggerRow,
    at: DateTime<Utc>,
    members: &[(String, Box<RawValue>)],
    (run_id, correlation_id): (String, &str),
) -> Firing {
    let fired = Fired { kind: &trigger.kind, id: trigger.id, name: &trigger.name, at };
    let what = trigger::what(fired, members);
    let correlation_id = Some(correlation_id.to_owned());
    Firing { run_id, at, due_at: None, what, depth: 0, cause: Cause::Manual, correlation_id, delivery: None }
}

/// Counts outcomes in the metrics. To be called after the commit.
pub fn count_outcomes(trigger: &TriggerRow, outcomes: &[Outcome]) {
    for outcome in outcomes {
        let name = match outcome {
            Outcome::Started => "started",
            Outcome::Present => "present",
            Outcome::Failed(failure) => failure.reason,
        };
        metrics::counter!("trigger_firings_total", "outcome" => name).increment(1);
        if *outcome == Outcome::Started {
            let organization_id = catalogue::ORGANIZATIONS.of(&trigger.organization_id);
            metrics::counter!("organization_runs_started_total", "organization_id" => organization_id).increment(1);
            catalogue::count_transition("NONE", RunStatus::Pending.as_str(), 1);
        }
    }
}

async fn start(
    conn: &mut PgConnection,
    firer: Firer<'_>,
    trigger: &TriggerRow,
    firings: &[Firing],
) -> Result<Vec<Outcome>, FireError> {
    let ids: Vec<String> = firings.iter().map(|firing| firing.run_id.clone()).collect();
    let present = db::runs::existing(&mut *conn, &ids).await?;
    let mut outcomes: Vec<Option<Outcome>> =
        ids.iter().map(|run_id| present.contains(run_id).then_some(Outcome::Present)).collect();
    for _ in 0..ATTEMPTS {
        if outcomes.iter().all(Option::is_some) {
            break;
        }
        try_start(conn, firer, trigger, firings, &mut outcomes).await?;
    }
    outcomes.into_iter().map(|outcome| outcome.ok_or(FireError::Busy)).collect()
}

/// Starts what has no outcome yet. A definition that changes meanwhile leaves it so.
async fn try_start(
    conn: &mut PgConnection,
    firer: Firer<'_>,
    trigger: &TriggerRow,
    firings: &[Firing],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), FireError> {
    let organization = trigger.organization();
    let workflow = (trigger.workflow_name.as_str(), trigger.workflow_version);
    let found = db::triggers::definition(&mut *conn, &organization, workflow).await?;
    let fail_all = |outcomes: &mut [Option<Outcome>], failure: &Failure| {
        for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_none()) {
            *outcome = Some(Outcome::Failed(failure.clone()));
        }
    };
    let Some(found) = found else {
        fail_all(outcomes, &Failure::new("workflow_not_found", "there is no such workflow"));
        return Ok(());
    };
    let definition = match firer.definitions.current(conn, firer.offload, &organization, &found).await {
        Ok(definition) => definition,
        Err(error) => {
            fail_all(outcomes, &failure(error)?);
            return Ok(());
        }
    };
    let mut runs = Vec::new();
    for (firing, outcome) in firings.iter().zip(outcomes.iter_mut()) {
        if outcome.is_some() {
            continue;
        }
        match checked(firer, &definition, trigger, firing).await? {
            Ok(start) => runs.push(new_run(&organization, trigger, firing, definition.definition(), start)),
            Err(failure) => *outcome = Some(Outcome::Failed(failure)),
        }
    }
    if runs.is_empty() {
        return Ok(());
    }
    let own = db::organizations::find(&mut *conn, &organization).await?.map(|row| row.quotas).unwrap_or_default();
    let quota = own.or(*firer.quotas).queued_runs.map(|max_queued| Quota { organization, max_queued });
    let batch = StartBatch { runs, quota, messages: None };
    // What flow control has let through is sent by whichever process sweeps the outbox, like the other messages.
    let started = db::runs::start_within(conn, batch.quota.as_ref(), &batch.runs, batch.messages, firer.audit).await?;
    for (index, run) in batch.runs.iter().enumerate() {
        let outcome = if index >= started.admitted {
            let limit = batch.quota.as_ref().map_or(0, |quota| quota.max_queued);
            let text = format!("{limit} runs of the organisation are queued, which is its quota");
            Some(Outcome::Failed(Failure::new("quota_exceeded", text)))
        } else {
            started.run_ids.contains(&run.run_id).then_some(Outcome::Started)
        };
        if let Some(place) = firings.iter().position(|firing| firing.run_id == run.run_id) {
            outcomes[place] = outcome;
        }
    }
    Ok(())
}

/// Input of a run, and its keys of flow control.
type Start = (Box<RawValue>, Option<FlowKeys>);

/// The input of the run, if the workflow accepts it.
async fn checked(
    firer: Firer<'_>,
    definition: &super::start_run::Checked,
    trigger: &TriggerRow,
    firing: &Firing,
) -> Result<Result<Start, Failure>, FireError> {
    if firing.depth > MAX_CHAIN {
        let text = format!(
            "the run would be the end of a chain of more than {MAX_CHAIN} runs, each started by the one before"
        );
        return Ok(Err(Failure::new("chain_too_long", text)));
    }
    let mapping = trigger.input.as_ref().map(|input| &*input.0);
    let input = match trigger::resolve_input(mapping, &firing.what) {
        Ok(input) => input,
        Err(text) => return Ok(Err(Failure::new("input_not_resolved", text))),
    };
    if !outbox::fits_a_record(&definition.definition().plan, &input) {
        return Ok(Err(Failure::new("too_large", "plan and input are too large for a message")));
    }
    let keys = match definition.check(firer.offload, &input).await {
        Ok(()) => start_run::flow_keys(firer.offload, definition.definition(), &input).await,
        Err(error) => Err(error),
    };
    match keys {
        Ok(keys) => Ok(Ok((input, keys.map(|keys| *keys)))),
        Err(error) => failure(error).map(Err),
    }
}

/// The failure of a firing, unless the error is one of the service.
fn failure(error: StartRunError) -> Result<Failure, FireError> {
    match error {
        StartRunError::WorkflowNotFound => Ok(Failure::new("workflow_not_found", "there is no such workflow")),
        StartRunError::NotActive(status) => {
            Ok(Failure::new("workflow_not_active", format!("the workflow is {status}")))
        }
        StartRunError::InvalidInput(errors) => {
            let texts: Vec<String> =
                errors.iter().take(5).map(|error| format!("{}: {}", error.field, error.message)).collect();
            Ok(Failure::new("input_invalid", texts.join("; ")))
        }
        StartRunError::TooLarge => Ok(Failure::new("too_large", error.to_string())),
        StartRunError::Quota(exceeded) => Ok(Failure::new("quota_exceeded", exceeded.to_string())),
        StartRunError::Db(error) => Err(match Arc::try_unwrap(error) {
            Ok(error) => FireError::Db(error),
            Err(_) => FireError::Busy,
        }),
        StartRunError::BacklogFull
        | StartRunError::Overloaded
        | StartRunError::Busy(_)
        | StartRunError::KeyReused
        | StartRunError::KeyInFlight => Err(FireError::Busy),
    }
}

fn new_run(
    organization: &OrganizationId,
    trigger: &TriggerRow,
    firing: &Firing,
    definition: &Arc<Definition>,
    (input, flow): Start,
) -> NewRun {
    let kind = TriggerKind::parse(&trigger.kind).map_or("", TriggerKind::as_str);
    let actor = Actor {
        subject: Actor::of_trigger(&trigger.name),
        organization: organization.clone(),
        correlation_id: id::correlation_id(firing.correlation_id.as_deref()),
        ..Actor::system()
    };
    NewRun {
        run_id: firing.run_id.clone(),
        definition: Arc::clone(definition),
        input,
        priority: trigger.priority,
        actor: Arc::new(actor),
        key: None,
        context_id: None,
        limits: None,
        deadline: Deadline::default(),
        flow,
        trigger: Some(Box::new(StartingTrigger { kind, id: trigger.id, at: firing.at, depth: firing.depth })),
        created_at: Timestamp::now(),
        event_id: Uuid::now_v7(),
        is_queued: false,
        audit_id: Uuid::now_v7(),
    }
}
