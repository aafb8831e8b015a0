//! Wire types of triggers and their firings.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value, value::RawValue};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    actions::fire_trigger::{Firing, Outcome},
    api::vocabulary::{app::App, page::Page, sets},
    db::{
        self,
        runs::RunRow,
        triggers::{FiringRow, HealthRow, TriggerRow},
    },
    run::RunStatus,
    timestamp::Timestamp,
    trigger::{Config, Labels, TriggerKind},
};

/// Number of next and of last firings in an answer.
const SHOWN_FIRINGS: usize = 10;

/// Page of the list of triggers.
pub type TriggerPage = Page<Trigger>;

/// Trigger: what starts runs of a workflow without a client.
#[derive(Serialize, ToSchema)]
pub struct Trigger {
    /// Id; never changed.
    id: Uuid,
    /// Name, unique in the organisation.
    #[schema(example = "monday-report")]
    name: String,
    /// Kind of the trigger.
    #[schema(value_type = sets::TriggerKind)]
    kind: String,
    /// Name of the workflow that it starts.
    #[schema(example = "report")]
    workflow_name: String,
    /// Version of the workflow; null: the newest one.
    version: Option<i32>,
    /// Input of its runs, with references; null: the object `trigger` with all that can be referred to.
    #[schema(value_type = Option<std::collections::HashMap<String, Value>>)]
    input: Option<Box<RawValue>>,
    /// Priority of its runs.
    priority: i16,
    /// Texts by name, for its owners.
    #[schema(value_type = std::collections::HashMap<String, String>)]
    labels: Labels,
    /// Whether it fires; false: it is paused.
    enabled: bool,
    /// Why it is paused, or anything else.
    note: Option<String>,
    /// When it fires, with all defaults.
    #[schema(value_type = std::collections::HashMap<String, Value>)]
    config: Box<RawValue>,
    /// Numbers of what has happened since its creation: `fired`, `failed_to_start`, and further ones of its kind.
    #[schema(value_type = std::collections::HashMap<String, i64>, example = json!({"fired": 12, "failed_to_start": 0}))]
    counters: BTreeMap<String, i64>,
    /// When it was last due, whether a run started or not.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_fired_at: Option<Timestamp>,
    /// How it fares.
    health: TriggerHealth,
    /// User who created it.
    created_by: String,
    /// User who changed it last.
    updated_by: String,
    /// Time of creation.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Time of the last change by a user.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl Trigger {
    /// The row with what is known of its firings.
    pub(super) fn new(row: TriggerRow, health: Option<&HealthRow>) -> Self {
        let mut counters: BTreeMap<String, i64> = row.counters.0.into_iter().collect();
        let of_kind = TriggerKind::parse(&row.kind).map_or(&[] as &[_], TriggerKind::counters);
        for name in ["fired", "failed_to_start"].iter().chain(of_kind) {
            counters.entry((*name).to_owned()).or_default();
        }
        Self {
            id: row.id,
            name: row.name,
            kind: row.kind,
            workflow_name: row.workflow_name,
            version: row.workflow_version,
            input: row.input.map(|input| input.0),
            priority: row.priority,
            labels: row.labels.0,
            enabled: row.enabled,
            note: row.note,
            config: row.config.0,
            counters,
            last_fired_at: row.last_fired_at,
            health: health.map(TriggerHealth::from).unwrap_or_default(),
            created_by: row.created_by,
            updated_by: row.updated_by,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// How a trigger fares, by its last firing.
#[derive(Serialize, ToSchema)]
pub struct TriggerHealth {
    /// In one word.
    #[schema(value_type = sets::TriggerHealthStatus)]
    status: &'static str,
    /// When it was last due; null: it has not fired yet.
    #[schema(value_type = Option<String>, format = DateTime)]
    at: Option<Timestamp>,
    /// What came of it, as in the firings of one trigger.
    #[schema(example = "started")]
    outcome: Option<String>,
    /// Code of the reason why no run has started.
    reason: Option<String>,
    /// That reason for people.
    detail: Option<String>,
    /// The run, which may be deleted.
    run_id: Option<String>,
    /// Status of that run; null: there is none, or it is deleted.
    #[schema(value_type = Option<sets::RunStatus>)]
    run_status: Option<String>,
    /// Why the topic of a Kafka trigger cannot be read; null: it can.
    error: Option<String>,
    /// When that was noticed.
    #[schema(value_type = Option<String>, format = DateTime)]
    error_at: Option<Timestamp>,
}

impl Default for TriggerHealth {
    fn default() -> Self {
        Self {
            status: "unknown",
            at: None,
            outcome: None,
            reason: None,
            detail: None,
            run_id: None,
            run_status: None,
            error: None,
            error_at: None,
        }
    }
}

impl From<&HealthRow> for TriggerHealth {
    fn from(row: &HealthRow) -> Self {
        let is_dropped = matches!(row.outcome.as_deref(), Some("failed_to_start" | "missed" | "buffer_dropped"));
        let has_failed = row.run_status.as_deref() == Some(RunStatus::Failed.as_str());
        let status = if is_dropped || has_failed || row.error.is_some() {
            "failing"
        } else if row.outcome.is_some() {
            "healthy"
        } else {
            "unknown"
        };
        Self {
            status,
            at: row.nominal_at.map(Timestamp::from),
            outcome: row.outcome.clone(),
            reason: row.reason.clone(),
            detail: row.detail.clone(),
            run_id: row.run_id.clone(),
            run_status: row.run_status.clone(),
            error: row.error.clone(),
            error_at: row.error_at.map(Timestamp::from),
        }
    }
}

/// Trigger with its next and its last firings.
#[derive(Serialize, ToSchema)]
pub struct TriggerDetail {
    #[serde(flatten)]
    trigger: Trigger,
    /// Next times at which it fires, without jitter, as far as they are known; none while it is paused.
    #[schema(value_type = Vec<DateTime<Utc>>)]
    next: Vec<Timestamp>,
    /// Last firings, the latest first.
    firings: Vec<ShownFiring>,
    /// Address of a webhook trigger; absent for other kinds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = WebhookAddress, required = false)]
    webhook: Option<WebhookAddress>,
    /// How the topic of a Kafka trigger is read; absent for other kinds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = KafkaReading, required = false)]
    kafka: Option<KafkaReading>,
    /// What is left of a schedule; absent for other kinds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = ScheduleProgress, required = false)]
    schedule: Option<ScheduleProgress>,
    /// What only the answer to the create request has, such as a token.
    #[serde(flatten)]
    #[schema(ignore)]
    shown_once: Map<String, Value>,
}

impl TriggerDetail {
    /// Reads what belongs to the row.
    pub(super) async fn read(app: &App, row: TriggerRow) -> Result<Self, db::Error> {
        let mut conn = app.pool.acquire().await.map_err(db::Error::from)?;
        let limit = i64::try_from(SHOWN_FIRINGS).unwrap_or(i64::MAX);
        let firings = db::triggers::last_firings(&mut *conn, &[row.id], limit).await?.remove(&row.id);
        let health = db::triggers::health(&mut *conn, &[row.id]).await?.remove(&row.id);
        let webhook = match TriggerKind::parse(&row.kind) {
            Some(TriggerKind::Webhook) => WebhookAddress::read(app, &mut conn, &row).await?,
            _ => None,
        };
        let kafka = match TriggerKind::parse(&row.kind) {
            Some(TriggerKind::Kafka) => db::kafka_triggers::find(&mut *conn, row.id).await?.map(KafkaReading::from),
            _ => None,
        };
        let schedule = ScheduleProgress::read(&mut conn, &row).await?;
        let next = if row.enabled {
            let now = db::triggers::now(&mut *conn).await?;
            drop(conn);
            next_of(&row, now, schedule.as_ref())
        } else {
            Vec::new()
        };
        Ok(Self {
            next,
            firings: firings.unwrap_or_default().into_iter().map(ShownFiring::from).collect(),
            trigger: Trigger::new(row, health.as_ref()),
            webhook,
            kafka,
            schedule,
            shown_once: Map::new(),
        })
    }

    /// The same with members that are shown once. A token is shown with its address.
    pub(super) fn with(self, app: &App, mut shown_once: Map<String, Value>) -> Self {
        if let Some(token) = shown_once.get("token").and_then(Value::as_str) {
            let url = format!("{}{token}", app.config.api.hooks_url());
            shown_once.insert("url".to_owned(), Value::String(url));
        }
        Self { shown_once, ..self }
    }

    /// Revision of what changes without a change by a user.
    pub(super) fn state_revision(&self) -> String {
        let sum: i64 = self.trigger.counters.values().sum();
        let micros = |at: Timestamp| at.as_naive_utc().and_utc().timestamp_micros();
        let fired = self.trigger.last_fired_at.map_or(0, micros);
        let next = self.next.first().copied().map_or(0, micros);
        let refused = self.webhook.as_ref().map_or(0, |webhook| webhook.refused);
        let kafka = self
            .kafka
            .as_ref()
            .map_or(0, |kafka| kafka.error_at.map_or(0, micros) ^ kafka.started_at.map_or(0, micros));
        let run = self.trigger.health.run_status.as_deref().unwrap_or_default();
        format!("{sum:x}-{fired:x}-{next:x}-{refused:x}-{kafka:x}-{run}")
    }
}

/// What is left of a schedule.
#[derive(Serialize, ToSchema)]
pub struct ScheduleProgress {
    /// Number of firings that are left of `config.remaining`; null: no limit. At 0 it has ended.
    remaining: Option<i32>,
}

impl ScheduleProgress {
    /// The state of a schedule; `None` for other kinds.
    pub(super) async fn read(conn: &mut db::PooledConnection, row: &TriggerRow) -> Result<Option<Self>, db::Error> {
        if row.kind != TriggerKind::Schedule.as_str() {
            return Ok(None);
        }
        let state = db::schedules::find(&mut **conn, row.id).await?;
        Ok(state.map(|state| Self { remaining: state.remaining }))
    }
}

/// Next times of a trigger, no more than are left of a schedule.
pub(super) fn next_of(row: &TriggerRow, now: DateTime<Utc>, schedule: Option<&ScheduleProgress>) -> Vec<Timestamp> {
    let left = schedule.and_then(|schedule| schedule.remaining).map(|left| usize::try_from(left).unwrap_or_default());
    let config = Config::from_stored(&row.kind, &row.config.0);
    let next = config.map(|config| config.next(now, left.unwrap_or(SHOWN_FIRINGS).min(SHOWN_FIRINGS)));
    next.unwrap_or_default().into_iter().map(Timestamp::from).collect()
}

/// Address of a webhook trigger, and what was refused there. The address with the token is shown once, when the token is
/// made.
#[derive(Serialize, ToSchema)]
pub struct WebhookAddress {
    /// Address by the name of the trigger; null if the trigger requires no proof but the token.
    url_by_name: Option<String>,
    /// When the token was made.
    #[schema(value_type = String, format = DateTime)]
    token_at: Timestamp,
    /// Number of deliveries that were refused; at most one a second is counted.
    refused: i64,
    /// Time of the last one.
    #[schema(value_type = Option<String>, format = DateTime)]
    refused_at: Option<Timestamp>,
    /// Why that one was refused. The sender does not learn it.
    refused_for: Option<String>,
}

impl WebhookAddress {
    async fn read(app: &App, conn: &mut db::PooledConnection, row: &TriggerRow) -> Result<Option<Self>, db::Error> {
        let needs_secret = match Config::from_stored(&row.kind, &row.config.0) {
            Some(Config::Webhook(webhook)) => webhook.config.preset.needs_secret(),
            _ => false,
        };
        let url_by_name = needs_secret.then(|| {
            let mut url = url::Url::parse(&app.config.api.hooks_url()).ok()?;
            url.path_segments_mut().ok()?.pop_if_empty().push(&row.organization_id).push(&row.name);
            Some(url.to_string())
        });
        let found = db::inbound::address(&mut **conn, row.id).await?;
        Ok(found.map(|address| Self {
            url_by_name: url_by_name.flatten(),
            token_at: address.token_at,
            refused: address.refused,
            refused_at: address.refused_at,
            refused_for: address.refused_for,
        }))
    }
}

/// How the topic of a Kafka trigger is read.
#[derive(Serialize, ToSchema)]
pub struct KafkaReading {
    /// Consumer group in which all processes read the topic.
    #[schema(example = "wf-trigger-0197a6b2-6ba4-7c19-9d1c-6cfd0d4ff1b0")]
    group_id: String,
    /// When the member `start` was applied to the group last. That happens again if the trigger is paused for longer than
    /// the brokers keep offsets (`offsets.retention.minutes`).
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Timestamp>,
    /// Why the topic cannot be read; null: it can.
    error: Option<String>,
    /// When that was noticed.
    #[schema(value_type = Option<String>, format = DateTime)]
    error_at: Option<Timestamp>,
}

impl From<db::kafka_triggers::StateRow> for KafkaReading {
    fn from(row: db::kafka_triggers::StateRow) -> Self {
        Self { group_id: row.group_id, started_at: row.started_at, error: row.error, error_at: row.error_at }
    }
}

/// Firing of a trigger.
#[derive(Serialize, ToSchema)]
#[schema(as = TriggerFiring)]
pub struct ShownFiring {
    /// When the trigger was due, without jitter.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// When it was due, with jitter.
    #[schema(value_type = String, format = DateTime)]
    due_at: Timestamp,
    /// When that was processed.
    #[schema(value_type = String, format = DateTime)]
    fired_at: Timestamp,
    /// Why it has fired.
    #[schema(value_type = sets::FiringCause)]
    cause: String,
    /// `started`; `present`: there was a run of that id; `failed_to_start`; or why there was to be no run, such as
    /// `missed` and `overlap_skipped`.
    #[schema(example = "started")]
    outcome: String,
    /// Code of the reason of `failed_to_start`.
    reason: Option<String>,
    /// That reason for people.
    detail: Option<String>,
    /// The run, which may be deleted.
    run_id: Option<String>,
}

impl From<FiringRow> for ShownFiring {
    fn from(row: FiringRow) -> Self {
        Self {
            at: row.nominal_at.into(),
            due_at: row.due_at.unwrap_or(row.nominal_at).into(),
            fired_at: row.fired_at.into(),
            cause: row.cause,
            outcome: row.outcome,
            reason: row.reason,
            detail: row.detail,
            run_id: row.run_id,
        }
    }
}

/// Run that a trigger has started by hand.
#[derive(Serialize, ToSchema)]
pub struct FiredTrigger {
    /// Id of the run.
    run_id: String,
    /// Time of the firing, which references of the input saw.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// `started`.
    #[schema(example = "started")]
    outcome: &'static str,
}

impl FiredTrigger {
    /// The started run.
    pub(super) fn new(firing: Firing, outcome: &Outcome) -> Self {
        let outcome = if *outcome == Outcome::Present { "present" } else { "started" };
        Self { run_id: firing.run_id, at: firing.at.into(), outcome }
    }

    /// The run that an earlier request has started.
    pub(super) fn again(run: &RunRow) -> Self {
        let at = run.trigger_at.map_or(run.created_at, Timestamp::from);
        Self { run_id: run.run_id.clone(), at, outcome: "started" }
    }
}

/// What a firing would do.
#[derive(Serialize, ToSchema)]
pub struct TriggerPreview {
    /// Input that the run would have; null: no run would start.
    #[schema(value_type = Option<std::collections::HashMap<String, Value>>)]
    pub(super) input: Option<Box<RawValue>>,
    /// Code of the reason why no run would start.
    pub(super) reason: Option<&'static str>,
    /// That reason for people.
    pub(super) detail: Option<String>,
    /// Next times at which it fires, without jitter, as far as they are known.
    #[schema(value_type = Vec<DateTime<Utc>>)]
    pub(super) next: Vec<Timestamp>,
}
