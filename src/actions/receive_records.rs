//! Receiving records of a topic: they start runs of a Kafka trigger.
//!
//! Runs, counts, firings and dead letters of a batch are written in one transaction; the caller stores the offset of what
//! was taken after it. The id of a run follows from its record, so a record that is read again finds its run.

use std::{collections::HashSet, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::{DateTime, Utc};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Change, Entity,
    fire_trigger::{self, Cause, FireError, Firer, Firing, Outcome},
    record,
};
use crate::{
    access::Actor,
    db::{
        self,
        dead_letters::NewLetter,
        kafka_triggers,
        triggers::{FiringRow, NewFirings, TriggerRow},
    },
    id,
    input::to_raw,
    offload::{Overloaded, SMALL_BYTES},
    timestamp::Timestamp,
    trigger::{
        Config, KafkaTrigger,
        kafka::{OnError, Opened, Record, Unusable},
    },
};

/// Maximum number of open dead letters of a trigger. With so many it is paused, before they displace others.
pub const MAX_OPEN_LETTERS: i64 = 1000;
/// Maximum number of transactions for one batch.
const ATTEMPTS: usize = 4;
/// Reason of a firing that waits for others instead of having failed.
const QUOTA: &str = "quota_exceeded";
/// Reason of a dead letter that the database refuses.
const REFUSED: &str = "refused_by_database";
/// Reason of a pause without a record that is to blame.
const TOO_MANY_LETTERS: &str = "too_many_dead_letters";

/// What has become of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Number of records, from the first one, that are done with: their offsets may be stored.
    pub count: usize,
    /// Why the others wait; `None`: nothing but their turn.
    pub waits: Option<Wait>,
}

/// Why records wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// As many runs of the organisation are queued as its quota allows.
    Quota,
    /// The trigger has started as many runs as it may in a second.
    Rate,
    /// The trigger is paused, deleted or changed.
    Changed,
}

/// How many records have become what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    started: usize,
    present: usize,
    filtered: usize,
    dead: usize,
}

/// A record that cannot start a run.
struct Dead<'a> {
    record: &'a Record,
    why: Unusable,
    /// When it was due; `None`: the firing has been recorded.
    at: Option<DateTime<Utc>>,
}

/// What a transaction has written.
type Written = (Taken, Vec<Outcome>, Counts);

/// Result of one transaction.
enum Attempt {
    /// It was committed.
    Done(Taken),
    /// It was rolled back: only so many records can be taken, and that is why.
    Fewer(usize, Rest),
}

/// What is in front of the records that were not taken.
#[derive(Clone, Debug)]
enum Rest {
    Nothing,
    Quota,
    /// A record that cannot start a run, in front of which the trigger stops, and when it was due.
    Stop(Unusable, DateTime<Utc>),
}

/// Why the service pauses a trigger.
struct Pause {
    reason: &'static str,
    note: String,
    /// Record in front of which it stops, and when that was due.
    stopped: Option<(Unusable, DateTime<Utc>)>,
}

/// Receives records of one topic, those of a partition in their order. On an error nothing was written.
pub async fn receive(
    pool: &db::Pool,
    firer: Firer<'_>,
    (trigger, config): (&TriggerRow, &Arc<KafkaTrigger>),
    records: &[Arc<Record>],
) -> Result<Taken, FireError> {
    let now = db::triggers::now(pool).await?;
    let mut opened = open(firer, trigger, config, records, now).await?;
    let (mut limit, mut rest) = (records.len(), Rest::Nothing);
    if config.on_error == OnError::Stop {
        for (index, one) in opened.iter().enumerate() {
            if let Opened::Unusable(why) = one {
                let at = records[index].time().unwrap_or(now);
                (limit, rest) = (index, Rest::Stop(why.clone(), at));
                break;
            }
        }
    }
    let mut attempts = 0;
    loop {
        attempts += 1;
        let batch = Batch { trigger, config, records: &records[..limit], opened: &opened[..limit], now };
        match batch.attempt(pool, firer, &rest).await {
            Ok(Attempt::Done(taken)) => return Ok(taken),
            Ok(Attempt::Fewer(0, Rest::Quota)) => return Ok(Taken { count: 0, waits: Some(Wait::Quota) }),
            Ok(Attempt::Fewer(fewer, why)) => (limit, rest) = (fewer, why),
            // Another transaction has written the same run meanwhile; the next one finds it.
            Err(FireError::Db(db::Error::Conflict { .. } | db::Error::Collision(_))) if attempts < ATTEMPTS => {}
            // Alone it shows which record the database refuses.
            Err(FireError::Db(error)) if !error.is_retryable() && attempts < ATTEMPTS => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    trigger_id = %trigger.id,
                    "the database refuses records of a trigger: {error}"
                );
                if limit > 1 {
                    (limit, rest) = (1, Rest::Nothing);
                } else if let Some(first) = opened.first_mut() {
                    let why = Unusable { reason: REFUSED, detail: "the database refuses its run".to_owned() };
                    if config.on_error == OnError::Stop {
                        (limit, rest) = (0, Rest::Stop(why, records[0].time().unwrap_or(now)));
                    } else {
                        *first = Opened::Unusable(why);
                    }
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Reads the records for the trigger, on another thread if they are large.
async fn open(
    firer: Firer<'_>,
    trigger: &TriggerRow,
    config: &Arc<KafkaTrigger>,
    records: &[Arc<Record>],
    now: DateTime<Utc>,
) -> Result<Vec<Opened>, Overloaded> {
    let (config, records, id, name) = (Arc::clone(config), records.to_vec(), trigger.id, trigger.name.clone());
    let is_small = records.iter().map(|record| record.bytes()).sum::<usize>() <= SMALL_BYTES;
    let work = move || records.iter().map(|record| record.open(&config, (id, &name), now)).collect::<Vec<_>>();
    if is_small { Ok(work()) } else { firer.offload.run_soon(&trigger.organization(), work).await }
}

/// Records that are written in one transaction.
struct Batch<'a> {
    trigger: &'a TriggerRow,
    config: &'a KafkaTrigger,
    records: &'a [Arc<Record>],
    opened: &'a [Opened],
    now: DateTime<Utc>,
}

impl Batch<'_> {
    async fn attempt(&self, pool: &db::Pool, firer: Firer<'_>, rest: &Rest) -> Result<Attempt, FireError> {
        let mut transaction = db::begin(pool).await?;
        let attempt = self.write(&mut transaction, firer, rest).await?;
        let (taken, outcomes, counts) = match attempt {
            Ok(written) => written,
            Err((fewer, why)) => {
                transaction.rollback().await.map_err(db::Error::from)?;
                return Ok(Attempt::Fewer(fewer, why));
            }
        };
        db::commit(transaction).await?;
        fire_trigger::count_outcomes(self.trigger, &outcomes);
        for (name, count) in [
            ("started", counts.started),
            ("present", counts.present),
            ("filtered", counts.filtered),
            ("dead_letter", counts.dead),
        ] {
            metrics::counter!("kafka_trigger_records_total", "outcome" => name).increment(count as u64);
        }
        Ok(Attempt::Done(taken))
    }

    /// Writes everything. `Ok(Err)`: it has to be rolled back, and repeated with fewer records.
    async fn write(
        &self,
        conn: &mut PgConnection,
        firer: Firer<'_>,
        rest: &Rest,
    ) -> Result<Result<Written, (usize, Rest)>, FireError> {
        let changed = Taken { count: 0, waits: Some(Wait::Changed) };
        let organization = self.trigger.organization();
        // The lock keeps a pause strict, and the runs of all processes apart.
        let current = db::triggers::lock(conn, &organization, self.trigger.id).await?;
        if !current.is_some_and(|row| row.enabled && row.revision() == self.trigger.revision()) {
            return Ok(Ok((changed, Vec::new(), Counts::default())));
        }
        let (mut firings, mut places) = (Vec::new(), Vec::new());
        // Records whose run another one of the batch starts.
        let (mut seen, mut others) = (HashSet::new(), Vec::new());
        for (place, opened) in self.opened.iter().enumerate() {
            let Opened::Wanted(wanted) = opened else { continue };
            if seen.insert(wanted.run_id.as_str()) {
                places.push(place);
                firings.push(Firing {
                    run_id: wanted.run_id.clone(),
                    at: wanted.at,
                    due_at: None,
                    what: wanted.what.clone(),
                    depth: wanted.depth,
                    cause: Cause::Event,
                    correlation_id: wanted.correlation_id.clone(),
                    delivery: None,
                });
            } else {
                others.push((place, wanted.run_id.as_str()));
            }
        }
        let (mut count, mut waits) = (self.records.len(), matches!(rest, Rest::Quota).then_some(Wait::Quota));
        if let Some(rate) = self.config.max_per_second.filter(|_| !firings.is_empty()) {
            let wanted = i64::try_from(firings.len()).unwrap_or(i64::MAX);
            let allowed = kafka_triggers::allow(conn, self.trigger.id, rate, wanted).await?;
            let allowed = usize::try_from(allowed).unwrap_or_default();
            if let Some(place) = places.get(allowed) {
                (count, waits) = (*place, Some(Wait::Rate));
                firings.truncate(allowed);
                places.truncate(allowed);
            }
        }
        let outcomes = if firings.is_empty() {
            Vec::new()
        } else {
            fire_trigger::fire(conn, firer, self.trigger, &firings).await?
        };
        let mut dead = Vec::new();
        for ((place, firing), outcome) in places.iter().zip(&firings).zip(&outcomes) {
            let Outcome::Failed(failure) = outcome else { continue };
            if failure.reason == QUOTA {
                return Ok(Err((*place, Rest::Quota)));
            }
            let why = Unusable { reason: failure.reason, detail: failure.detail.clone() };
            if self.config.on_error == OnError::Stop {
                return Ok(Err((*place, Rest::Stop(why, firing.at))));
            }
            if let Some((other, _)) = others.iter().find(|(other, run_id)| *other < count && *run_id == firing.run_id) {
                // That one may be better, so it gets a try of its own.
                return Ok(Err((*other, Rest::Nothing)));
            }
            dead.push(Dead { record: &self.records[*place], why, at: None });
        }
        for (record, opened) in self.records[..count].iter().zip(self.opened) {
            if let Opened::Unusable(why) = opened {
                let at = Some(record.time().unwrap_or(self.now));
                dead.push(Dead { record, why: why.clone(), at });
            }
        }
        let of = |is: fn(&Opened) -> bool| self.opened[..count].iter().filter(|one| is(one)).count();
        let started = outcomes.iter().filter(|one| **one == Outcome::Started).count();
        let failed = outcomes.iter().filter(|one| matches!(one, Outcome::Failed(_))).count();
        let counts = Counts {
            started,
            present: of(|one| matches!(one, Opened::Wanted(_))) - started - failed,
            filtered: of(|one| matches!(one, Opened::Filtered)),
            dead: dead.len(),
        };
        let pause = match rest {
            Rest::Stop(why, at) if waits.is_none() => Some(Pause {
                reason: why.reason,
                note: format!("paused at a record that cannot start a run: {}", why.detail),
                stopped: Some((why.clone(), *at)),
            }),
            _ => None,
        };
        if pause.is_some() {
            waits = Some(Wait::Changed);
        }
        self.keep(conn, firer, &dead, counts, pause).await?;
        Ok(Ok((Taken { count, waits }, outcomes, counts)))
    }

    /// Writes dead letters, firings and counts, and pauses the trigger if it has to be.
    async fn keep(
        &self,
        conn: &mut PgConnection,
        firer: Firer<'_>,
        dead: &[Dead<'_>],
        counts: Counts,
        mut pause: Option<Pause>,
    ) -> Result<(), db::Error> {
        let id = self.trigger.id;
        let now = db::triggers::now(&mut *conn).await?;
        if !dead.is_empty() {
            let letters: Vec<NewLetter> = dead.iter().map(|dead| letter(id, dead.record, &dead.why)).collect();
            kafka_triggers::insert_letters(conn, (&self.trigger.organization(), id), &letters).await?;
            if kafka_triggers::open_letters(conn, id, MAX_OPEN_LETTERS).await? >= MAX_OPEN_LETTERS {
                let note = format!("paused because {MAX_OPEN_LETTERS} of its dead letters are open");
                pause.get_or_insert(Pause { reason: TOO_MANY_LETTERS, note, stopped: None });
            }
        }
        let mut rows: Vec<FiringRow> = dead.iter().filter_map(|dead| Some(failed(dead.at?, &dead.why, now))).collect();
        let stopped = pause.as_ref().and_then(|pause| pause.stopped.as_ref());
        rows.extend(stopped.map(|(why, at)| failed(*at, why, now)));
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let counted: Vec<_> = [
            ("filtered", counts.filtered),
            ("repeated", counts.present),
            ("dead_letters", counts.dead),
            // The others are counted by the firings.
            ("failed_to_start", rows.len()),
        ]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| (name, number(count)))
        .collect();
        db::triggers::record(conn, id, NewFirings { firings: &rows, counts: &counted }).await?;
        let untried = dead.iter().filter(|dead| dead.at.is_some()).map(|dead| dead.why.reason);
        for reason in untried.chain(stopped.map(|(why, _)| why.reason)) {
            metrics::counter!("trigger_firings_total", "outcome" => reason).increment(1);
        }
        match pause {
            Some(pause) => self.pause(conn, firer, &pause, now).await,
            None => Ok(()),
        }
    }

    /// Pauses the trigger on behalf of the service, and tells it.
    async fn pause(
        &self,
        conn: &mut PgConnection,
        firer: Firer<'_>,
        pause: &Pause,
        now: DateTime<Utc>,
    ) -> Result<(), db::Error> {
        let organization = self.trigger.organization();
        let actor = Actor { organization: organization.clone(), ..Actor::system() };
        let note = crate::input::shorten_to(&pause.note, 1000);
        let TriggerRow { id, kind, name, workflow_name, workflow_version, .. } = self.trigger;
        let told = to_raw(&json!({
            "trigger": {"kind": kind, "id": id, "name": name},
            "workflow": {"name": workflow_name, "version": workflow_version},
            "reason": pause.reason, "note": note,
        }));
        db::webhook_events::record_of_workflow(&mut *conn, &organization, "trigger.paused", workflow_name, &told)
            .await?;
        db::triggers::pause(conn, self.trigger.id, &note, &actor.subject).await?;
        tracing::warn!(trigger_id = %self.trigger.id, "a Kafka trigger was paused by the service");
        let before = to_raw(&json!({"enabled": true, "note": self.trigger.note}));
        let after = to_raw(&json!({"enabled": false, "note": note}));
        let (entity, change) =
            (Entity("trigger", self.trigger.id, &self.trigger.name), Change::between(&before, &after));
        record(conn, (&actor, firer.audit), entity, "pause", change, Timestamp::from(now)).await
    }
}

/// Firing of a record that was not even tried.
fn failed(at: DateTime<Utc>, why: &Unusable, now: DateTime<Utc>) -> FiringRow {
    FiringRow {
        nominal_at: at,
        due_at: None,
        fired_at: now,
        cause: Cause::Event.as_str().to_owned(),
        outcome: "failed_to_start".to_owned(),
        reason: Some(why.reason.to_owned()),
        detail: Some(why.detail.clone()),
        run_id: None,
    }
}

/// The record as a dead letter of the trigger.
fn letter(trigger: Uuid, record: &Record, why: &Unusable) -> NewLetter {
    let digest = Sha256::new().chain_update(trigger.as_bytes()).chain_update(record.digest()).finalize();
    // The database does not accept NUL.
    let header = |(name, value): &(String, Option<Vec<u8>>)| {
        (name.replace('\0', ""), value.as_ref().map(|value| STANDARD.encode(value)))
    };
    NewLetter {
        run_id: None,
        topic: record.topic.clone(),
        partition: record.partition,
        offset: record.offset,
        sent_at: record.time(),
        key: record.key.clone(),
        value: record.value.clone(),
        headers: record.headers.iter().map(header).collect(),
        digest: digest.to_vec(),
        reason: why.reason,
        detail: why.detail.replace('\0', ""),
    }
}

/// Starts the run of a dead letter's record, with another value if one is given. The caller has locked the letter.
/// `Ok(Err)`: why it still cannot start one.
pub(super) async fn redrive(
    conn: &mut PgConnection,
    firer: Firer<'_>,
    (trigger, letter): (&TriggerRow, Uuid),
    record: &Record,
) -> Result<Result<(Firing, Outcome), Unusable>, FireError> {
    let Some(Config::Kafka(config)) = Config::from_stored(&trigger.kind, &trigger.config.0) else {
        let detail = "the trigger is none for records any more".to_owned();
        return Ok(Err(Unusable { reason: Unusable::REASONS[0], detail }));
    };
    let now = db::triggers::now(&mut *conn).await?;
    // Its sender wants a run: the filter does not count.
    let config = KafkaTrigger { filter: None, ..*config };
    let record = Arc::new(record.clone());
    let wanted = match open(firer, trigger, &Arc::new(config.clone()), &[record], now).await?.pop() {
        Some(Opened::Wanted(wanted)) => wanted,
        Some(Opened::Unusable(why)) => return Ok(Err(why)),
        Some(Opened::Filtered) | None => return Err(FireError::Busy),
    };
    // By its place the record has no run, and another value would be another record.
    let run_id = match config.idempotency {
        Some(_) => wanted.run_id,
        None => id::derived_run_id(trigger.id, &format!("dead letter {letter}")),
    };
    let firing = Firing {
        run_id,
        at: wanted.at,
        due_at: None,
        what: wanted.what,
        depth: wanted.depth,
        cause: Cause::Manual,
        correlation_id: wanted.correlation_id,
        delivery: None,
    };
    match fire_trigger::fire(conn, firer, trigger, std::slice::from_ref(&firing)).await?.pop() {
        Some(Outcome::Failed(failure)) => Ok(Err(Unusable { reason: failure.reason, detail: failure.detail })),
        Some(outcome) => Ok(Ok((firing, outcome))),
        None => Err(FireError::Busy),
    }
}
