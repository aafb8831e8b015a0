//! Receiving a delivery of another service: it is verified, read, and starts a run of the webhook trigger.
//!
//! The id of the delivery is bound to the run in the transaction that starts it, so of equal deliveries, in whatever
//! process, one starts a run and the others find it.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderName, Method};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::fire_trigger::{self, Cause, FireError, Firer, Firing, Outcome};
use crate::{
    access::OrganizationId,
    db::{
        self, inbound,
        triggers::{NewFirings, TriggerRow},
    },
    expression, id,
    inbound::{Config, Delivery, Failure, Greeting, Preset, Proof, Unreadable, Webhook},
    input::{self, Node, to_raw},
    mapping::Scope,
    offload::{Offload, Overloaded, SMALL_BYTES},
    trigger::{self, Fired, TriggerKind},
    vault::Vault,
};

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;
/// Maximum bytes of an id of a delivery.
const MAX_ID_BYTES: usize = 4096;
/// Maximum number of transactions for one delivery, if another process starts the same run at that moment.
const ATTEMPTS: usize = 3;
/// Maximum number of refusals that wait to be recorded, of all triggers.
const MAX_REFUSALS: usize = 16;

/// Services that receive deliveries.
#[derive(Clone, Copy)]
pub struct Receiver<'a> {
    /// Database.
    pub pool: &'a db::Pool,
    /// Decrypts the secrets.
    pub vault: &'a Vault,
    /// Threads that read large bodies.
    pub offload: &'a Offload,
    /// Starts runs.
    pub firer: Firer<'a>,
    /// Header of this service's own API keys, which no run sees.
    pub key_header: &'a HeaderName,
    /// Whether the backlog of messages for Kafka is full.
    pub is_backlog_full: bool,
}

/// A delivery, as it arrived.
pub struct Parcel {
    /// Method of the request.
    pub method: Method,
    /// Query of the request.
    pub query: String,
    /// Headers of the request.
    pub headers: HeaderMap,
    /// Body of the request, as received.
    pub body: Bytes,
}

impl Parcel {
    fn delivery(&self) -> Delivery<'_> {
        Delivery { method: &self.method, query: &self.query, headers: &self.headers, body: &self.body }
    }
}

/// Circumstances of a delivery.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Time of the arrival.
    pub at: DateTime<Utc>,
    /// Correlation id of the request.
    pub correlation_id: &'a str,
    /// Number of runs that have led to the delivery.
    pub depth: i16,
}

/// What has become of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// It has started this run.
    Started(String),
    /// A delivery with the same id has started this run before.
    Repeated(String),
    /// The filter of the trigger does not want it.
    Filtered,
    /// It only tries the address.
    Greeting(Greeting),
}

/// Reason why a delivery was not received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The address is not that of a trigger.
    #[error("there is no such trigger")]
    NotFound,
    /// It is not proven who has sent it.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// The trigger is paused.
    #[error("the trigger is paused")]
    Paused,
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// An expression of the trigger has no value for it.
    #[error("{member}: {text}")]
    #[expect(missing_docs, reason = "said by the message")]
    Expression { member: &'static str, text: String },
    /// No run could be started; the firing is recorded.
    #[error("{}", .0.detail)]
    NotStarted(fire_trigger::Failure),
    /// The secrets cannot be decrypted.
    #[error("the secrets of the trigger cannot be decrypted")]
    Sealed(#[from] crate::vault::DecryptError),
    /// The stored trigger is of another release.
    #[error("the stored configuration is of another release")]
    Unknown,
    /// The service is overloaded.
    #[error("too much work is waiting")]
    Busy,
    /// The backlog of messages for Kafka is full.
    #[error("too many messages are waiting")]
    BacklogFull,
    /// The database failed.
    #[error(transparent)]
    Db(#[from] db::Error),
}

impl From<Overloaded> for ReceiveError {
    fn from(_: Overloaded) -> Self {
        Self::Busy
    }
}

impl From<FireError> for ReceiveError {
    fn from(error: FireError) -> Self {
        match error {
            FireError::Busy => Self::Busy,
            FireError::Db(error) => Self::Db(error),
        }
    }
}

/// Token of an address in plain text, and its hash.
#[must_use]
pub fn new_token() -> (String, Vec<u8>) {
    let bytes: [u8; TOKEN_BYTES] = rand::random();
    let token = crate::trace::hex(&bytes);
    let hash = hash(&token);
    (token, hash)
}

fn hash(text: &str) -> Vec<u8> {
    Sha256::digest(text).to_vec()
}

/// The trigger with that token in its address. The token is looked up by its hash, so the time shows nothing of others.
pub async fn by_token(pool: &db::Pool, token: &str) -> Result<Option<TriggerRow>, db::Error> {
    db::triggers::by_webhook_token(pool, &hash(token)).await
}

/// The trigger of that name, if its deliveries need a proof beside the address.
pub async fn by_name(
    pool: &db::Pool,
    organization: &OrganizationId,
    name: &str,
) -> Result<Option<TriggerRow>, db::Error> {
    let found = db::triggers::webhook_by_name(pool, organization, name).await?;
    Ok(found.filter(|row| webhook(row).is_ok_and(|webhook| webhook.config.preset.needs_secret())))
}

/// Configuration of a webhook trigger.
fn webhook(row: &TriggerRow) -> Result<Webhook, ReceiveError> {
    Webhook::read(&Node::new("config", &row.config.0)).map_err(|_| ReceiveError::Unknown)
}

/// Receives a delivery. Without a trigger it is verified nevertheless, so that this takes the same time.
pub async fn receive(
    receiver: Receiver<'_>,
    row: Option<&TriggerRow>,
    parcel: Parcel,
    arrival: Arrival<'_>,
) -> Result<Received, ReceiveError> {
    let now = arrival.at.timestamp();
    let Some(row) = row else {
        // Encrypting costs what decrypting does.
        drop(receiver.vault.encrypt(Uuid::nil(), &stored_secrets(&["decoy".to_owned()])));
        drop(decoy().verify(&["decoy".to_owned()], &decoy_headers(), &parcel.body, now));
        return Err(ReceiveError::NotFound);
    };
    let Webhook { config, .. } = webhook(row)?;
    let secrets = match &row.secrets {
        Some(stored) => read_secrets(&receiver.vault.decrypt(row.id, &stored.0)?),
        None => Vec::new(),
    };
    let proof = match config.verify(&secrets, &parcel.headers, &parcel.body, now) {
        Ok(proof) => proof,
        Err(failure) => {
            note_refusal(receiver.pool, row.id, failure.to_string());
            return Err(failure.into());
        }
    };
    let opened = open(receiver, row, config, proof, parcel, arrival.at).await;
    match opened {
        Ok(Opened::Greeting(greeting)) => Ok(Received::Greeting(greeting)),
        Ok(_) if !row.enabled => Err(ReceiveError::Paused),
        Ok(Opened::Filtered) => {
            let mut connection = receiver.pool.acquire().await.map_err(db::Error::from)?;
            let counted = NewFirings { firings: &[], counts: &[("filtered", 1)] };
            db::triggers::record(&mut connection, row.id, counted).await?;
            Ok(Received::Filtered)
        }
        Ok(Opened::Wanted { .. }) if receiver.is_backlog_full => Err(ReceiveError::BacklogFull),
        Ok(Opened::Wanted { what, id }) => start(receiver, row, what, id.as_deref(), arrival).await,
        Err(error) => {
            if matches!(error, ReceiveError::Unreadable(_) | ReceiveError::Expression { .. }) {
                inbound::record_refusal(receiver.pool, row.id, &error.to_string()).await?;
            }
            Err(error)
        }
    }
}

/// Records why a delivery was refused, apart from its answer: that would otherwise come later than the one of a trigger
/// that does not exist, and tell both apart. While too many wait already, nothing is recorded.
fn note_refusal(pool: &db::Pool, trigger_id: Uuid, reason: String) {
    static WAITING: Semaphore = Semaphore::const_new(MAX_REFUSALS);
    let Ok(permit) = WAITING.try_acquire() else {
        return tracing::debug!(%trigger_id, "too many refusals wait to be recorded");
    };
    let pool = pool.clone();
    tokio::spawn(async move {
        let recorded = db::bounded(async move { inbound::record_refusal(&pool, trigger_id, &reason).await }).await;
        if let Err(error) = recorded {
            tracing::debug!(error = &error as &dyn std::error::Error, %trigger_id, "a refusal was not recorded: {error}");
        }
        drop(permit);
    });
}

/// Stored secrets.
fn read_secrets(json: &RawValue) -> Vec<String> {
    input::elements(json).unwrap_or_default().into_iter().filter_map(input::text).collect()
}

/// Secrets in the form in which the vault encrypts them.
#[must_use]
pub fn stored_secrets(secrets: &[String]) -> Box<RawValue> {
    to_raw(secrets)
}

/// A configuration that costs as much as that of a trigger.
fn decoy() -> Config {
    Config {
        preset: Preset::Github,
        header: None,
        prefix: None,
        algorithm: None,
        encoding: None,
        signed: None,
        timestamp_header: None,
        dedupe_header: None,
        dedupe: None,
        filter: None,
    }
}

fn decoy_headers() -> HeaderMap {
    let value =
        http::HeaderValue::from_static("sha256=0000000000000000000000000000000000000000000000000000000000000000");
    HeaderMap::from_iter([(HeaderName::from_static("x-hub-signature-256"), value)])
}

/// A verified delivery that was read.
enum Opened {
    Greeting(Greeting),
    Filtered,
    Wanted { what: Box<RawValue>, id: Option<String> },
}

/// Reads a verified delivery, on another thread if it is large.
async fn open(
    receiver: Receiver<'_>,
    row: &TriggerRow,
    config: Config,
    proof: Proof,
    parcel: Parcel,
    at: DateTime<Utc>,
) -> Result<Opened, ReceiveError> {
    let is_small = parcel.body.len() <= SMALL_BYTES && !parcel.headers.contains_key(http::header::CONTENT_ENCODING);
    let (id, name, key_header) = (row.id, row.name.clone(), receiver.key_header.clone());
    let work = move || opened((id, &name), &config, &proof, &parcel.delivery(), &key_header, at);
    if is_small { work() } else { receiver.offload.run_soon(&row.organization(), work).await? }
}

fn opened(
    (id, name): (Uuid, &str),
    config: &Config,
    proof: &Proof,
    delivery: &Delivery<'_>,
    key_header: &HeaderName,
    at: DateTime<Utc>,
) -> Result<Opened, ReceiveError> {
    let body = delivery.read_body(config)?;
    if let Some(greeting) = delivery.greeting(config, &body) {
        return Ok(Opened::Greeting(greeting));
    }
    let event = delivery.event(config, &body, key_header)?;
    let what = trigger::what(Fired { kind: TriggerKind::Webhook.as_str(), id, name, at }, &event);
    let scope = Scope::of_trigger(&what);
    let fault = |member| {
        move |error: expression::ExpressionError| ReceiveError::Expression {
            member,
            text: input::shorten(&error.to_string()).into_owned(),
        }
    };
    if let Some(filter) = &config.filter
        && !expression::holds(filter, &scope).map_err(fault("filter"))?
    {
        return Ok(Opened::Filtered);
    }
    let id = match &config.dedupe {
        Some(dedupe) => {
            let value = expression::value(dedupe, &scope, MAX_ID_BYTES).map_err(fault("dedupe"))?;
            Some(value.get().to_owned()).filter(|json| json != "null" && json != "\"\"")
        }
        None => delivery.id(config, proof, &body),
    };
    Ok(Opened::Wanted { what, id })
}

/// Starts the run of a delivery, unless one with the same id has started one.
async fn start(
    receiver: Receiver<'_>,
    row: &TriggerRow,
    what: Box<RawValue>,
    id: Option<&str>,
    Arrival { at, correlation_id, depth }: Arrival<'_>,
) -> Result<Received, ReceiveError> {
    // The same delivery has the same run, also after its row has expired.
    let run_id = match id {
        Some(id) => id::derived_run_id(row.id, &format!("webhook {id}")),
        None => id::new_run_id(),
    };
    let correlation_id = Some(correlation_id.to_owned());
    let delivery = id.map(hash);
    let firing = Firing { run_id, at, due_at: None, what, depth, cause: Cause::Event, correlation_id, delivery };
    let mut attempts = 0;
    loop {
        attempts += 1;
        match try_start(receiver, row, &firing).await {
            // Another transaction has written the same run meanwhile; the next one finds it.
            Err(ReceiveError::Db(db::Error::Conflict { .. } | db::Error::Collision(_))) if attempts < ATTEMPTS => {}
            other => return other,
        }
    }
}

async fn try_start(receiver: Receiver<'_>, row: &TriggerRow, firing: &Firing) -> Result<Received, ReceiveError> {
    let delivery = firing.delivery.as_deref();
    let mut transaction = db::begin(receiver.pool).await?;
    // The trigger is as it is now: it may have been deleted or paused since it was found. It is not locked before it is
    // counted, so that its deliveries do not wait for each other.
    let row = db::triggers::hold(&mut transaction, &row.organization(), row.id).await?;
    let row = &row.ok_or(ReceiveError::NotFound)?;
    if !row.enabled {
        return Err(ReceiveError::Paused);
    }
    if let Some(delivery) = delivery
        && let Some(run_id) = inbound::claim_delivery(&mut transaction, row.id, delivery, &firing.run_id).await?
    {
        return Ok(Received::Repeated(run_id));
    }
    let outcomes = fire_trigger::fire(&mut transaction, receiver.firer, row, std::slice::from_ref(firing)).await?;
    let outcome = outcomes.first().cloned().ok_or(ReceiveError::Busy)?;
    if !db::triggers::is_enabled(&mut transaction, row.id).await? {
        return Err(ReceiveError::Paused);
    }
    if let (Outcome::Failed(_), Some(delivery)) = (&outcome, delivery) {
        // The sender may try it again.
        inbound::release_delivery(&mut transaction, row.id, delivery).await?;
    }
    db::commit(transaction).await?;
    fire_trigger::count_outcomes(row, &outcomes);
    match outcome {
        Outcome::Started => Ok(Received::Started(firing.run_id.clone())),
        Outcome::Present => Ok(Received::Repeated(firing.run_id.clone())),
        Outcome::Failed(failure) => Err(ReceiveError::NotStarted(failure)),
    }
}
