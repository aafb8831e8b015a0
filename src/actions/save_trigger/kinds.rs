//! What the kinds of triggers write beside the row of a trigger.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};
use sqlx::{PgConnection, types::Json};

use super::{
    super::{Context, SaveError},
    SaveTriggerError, TriggerRefusal,
};
use crate::{
    actions::{fire_schedule, receive_webhook},
    db::{self, schedules::ScheduleRow, triggers::TriggerRow},
    inbound::Webhook,
    input::FieldError,
    trigger::{Config, KafkaTrigger, Schedule, TriggerKind},
};

/// Saved trigger.
pub(super) struct Saved<'a> {
    /// Row before a change; `None` if the trigger is new.
    pub(super) before: Option<&'a TriggerRow>,
    /// Row as it was written.
    pub(super) row: &'a TriggerRow,
    /// Its configuration, as it was given in the request if it was.
    pub(super) config: &'a Config,
    /// Time of the change.
    pub(super) now: DateTime<Utc>,
}

/// Called in the transaction that has written the row. Returns members that only the answer to a create request shows.
pub(super) async fn saved(
    conn: &mut PgConnection,
    context: Context<'_>,
    saved: Saved<'_>,
) -> Result<Map<String, Value>, SaveTriggerError> {
    match saved.config {
        Config::Schedule(schedule) => {
            save_schedule(conn, &saved, schedule).await?;
            Ok(Map::new())
        }
        Config::Webhook(webhook) => saved_webhook(conn, context, &saved, webhook).await,
        Config::Kafka(kafka) => {
            save_kafka(conn, context, &saved, kafka).await?;
            Ok(Map::new())
        }
    }
}

/// Called in the transaction that deletes a trigger, before that.
pub(super) async fn deleting(conn: &mut PgConnection, row: &TriggerRow) -> Result<(), db::Error> {
    match TriggerKind::parse(&row.kind) {
        Some(TriggerKind::Kafka) => db::kafka_triggers::delete_group(conn, row.id).await,
        _ => Ok(()),
    }
}

/// Gives a Kafka trigger its group. One that is resumed, or gets another topic, begins where its member `start` says, unless
/// the group has offsets.
async fn save_kafka(
    conn: &mut PgConnection,
    context: Context<'_>,
    saved: &Saved<'_>,
    kafka: &KafkaTrigger,
) -> Result<(), SaveTriggerError> {
    let Saved { before, row, .. } = *saved;
    let topic_of = |row: &TriggerRow| match Config::from_stored(&row.kind, &row.config.0) {
        Some(Config::Kafka(kafka)) => Some(kafka.topic),
        _ => None,
    };
    let has_other_topic = before.and_then(topic_of).as_ref() != Some(&kafka.topic);
    if has_other_topic && let Err(why) = context.kafka_triggers.check(&kafka.topic, context.organization()) {
        return Err(vec![FieldError::rule("body.config.topic", why)].into());
    }
    let group = kafka.group(row.id);
    let Some(before) = before else {
        let most = context.kafka_triggers.most;
        if db::kafka_triggers::count_locked(conn).await? >= most {
            return Err(SaveError::Other(TriggerRefusal::TooManyOfKafka(most)));
        }
        let taken = |text: &str| Err(vec![FieldError::rule("body.config.group_id", text)].into());
        if db::kafka_triggers::is_group_going(conn, &group).await? {
            return taken("is that of a deleted trigger, and is being deleted");
        }
        let is_free = db::kafka_triggers::insert(conn, row.id, &group).await?;
        return if is_free { Ok(()) } else { taken("is that of another trigger") };
    };
    let state = db::kafka_triggers::find(&mut *conn, row.id).await?;
    if state.is_some_and(|state| state.group_id != group) {
        return Err(vec![FieldError::rule("body.config.group_id", "cannot be changed")].into());
    }
    if has_other_topic || (row.enabled && !before.enabled) {
        db::kafka_triggers::restart(conn, row.id).await?;
    }
    Ok(())
}

/// Stores the secrets of a webhook trigger if they are given, and makes the token of a new one.
async fn saved_webhook(
    conn: &mut PgConnection,
    context: Context<'_>,
    saved: &Saved<'_>,
    webhook: &Webhook,
) -> Result<Map<String, Value>, SaveTriggerError> {
    let Saved { before, row, now, .. } = *saved;
    let preset_before = before.and_then(|row| match Config::from_stored(&row.kind, &row.config.0) {
        Some(Config::Webhook(webhook)) => Some(webhook.config.preset),
        _ => None,
    });
    let has_stored = before.is_some_and(|row| row.secrets.is_some()) && preset_before == Some(webhook.config.preset);
    webhook.check_secrets("body.config", has_stored)?;
    let needs_secret = webhook.config.preset.needs_secret();
    match webhook.secrets.as_ref().filter(|_| needs_secret) {
        Some(secrets) => {
            let sealed = context.vault.encrypt(row.id, &receive_webhook::stored_secrets(secrets));
            db::inbound::set_secrets(conn, row.id, Some(&Json(sealed))).await?;
        }
        None if !needs_secret && before.is_some_and(|row| row.secrets.is_some()) => {
            db::inbound::set_secrets(conn, row.id, None).await?;
        }
        None => {}
    }
    if before.is_some() {
        return Ok(Map::new());
    }
    let (token, hash) = receive_webhook::new_token();
    db::inbound::set_token(conn, row.id, &hash, now).await?;
    Ok(Map::from_iter([("token".to_owned(), json!(token))]))
}

/// Sets how far the schedule is decided. What it would still have made before the change stays to be made, if the changed
/// schedule has it too.
async fn save_schedule(conn: &mut PgConnection, saved: &Saved<'_>, schedule: &Schedule) -> Result<(), db::Error> {
    let Saved { before, row, now, .. } = *saved;
    let remaining = schedule.remaining.and_then(|remaining| i32::try_from(remaining).ok());
    let stored = match before {
        Some(_) => db::schedules::find(&mut *conn, row.id).await?,
        None => None,
    };
    let state = match (before, stored) {
        (Some(before), Some(stored)) => {
            let Some(Config::Schedule(old)) = Config::from_stored(&before.kind, &before.config.0) else {
                return insert(conn, row, schedule, (now, remaining)).await;
            };
            let is_same = old.to_stored().get() == schedule.to_stored().get();
            if is_same && before.enabled == row.enabled {
                return Ok(());
            }
            let processed_until =
                if before.enabled { old.decided_at_change(schedule, row.id, stored.processed_until, now) } else { now };
            let is_resumed = row.enabled && !before.enabled;
            if !row.enabled {
                fire_schedule::record_dropped(conn, row.id, (&old, &stored.buffered), now).await?;
            }
            ScheduleRow {
                due_at: None,
                processed_until,
                remaining: if old.remaining == schedule.remaining { stored.remaining } else { remaining },
                buffered: if row.enabled { stored.buffered } else { Vec::new() },
                failures_since: if is_resumed { now } else { stored.failures_since },
            }
        }
        _ => return insert(conn, row, schedule, (now, remaining)).await,
    };
    write(conn, row, schedule, state, now).await
}

/// The state of a new schedule.
async fn insert(
    conn: &mut PgConnection,
    row: &TriggerRow,
    schedule: &Schedule,
    (now, remaining): (DateTime<Utc>, Option<i32>),
) -> Result<(), db::Error> {
    let buffered = Vec::new();
    let state = ScheduleRow { due_at: None, processed_until: now, remaining, buffered, failures_since: now };
    write(conn, row, schedule, state, now).await
}

/// Writes the state with the instant at which there is something to do.
async fn write(
    conn: &mut PgConnection,
    row: &TriggerRow,
    schedule: &Schedule,
    mut state: ScheduleRow,
    now: DateTime<Utc>,
) -> Result<(), db::Error> {
    if row.enabled && state.remaining != Some(0) {
        let next = schedule.due_at(row.id, state.processed_until);
        state.due_at = if state.buffered.is_empty() { next } else { Some(now) };
    }
    db::schedules::save(conn, row.id, &state).await
}
