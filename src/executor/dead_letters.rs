//! Write buffer for dead letters: records that cannot be used, on their way into the table of dead letters.
//!
//! A record's offset is stored once its letter is committed. If the process dies before, the record is redelivered, and
//! its letter is still stored only once. While the database is down, the records wait in this buffer, and so do their
//! partitions' offsets; reading continues until the buffer is full. `crate::dead_letters` copies the letters from the
//! table to the dead-letter topic.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rdkafka::message::{Headers as _, Message as _, OwnedMessage};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Executor, request::InvalidRecord};
use crate::{
    db::{
        self,
        dead_letters::{Headers, NewLetter},
    },
    input::shorten,
    kafka::{
        self,
        consumer::{Consumer, Position},
        message::ExecutionRequest,
    },
};

/// Maximum number of letters in one statement.
const MAX_BATCH: usize = 100;
/// Maximum bytes of values in one statement, unless a single one is larger.
const MAX_BATCH_BYTES: usize = 8 << 20;
/// Maximum length of an explanation.
const MAX_DETAIL_CHARS: usize = 1000;
/// Maximum length of a run id.
const MAX_RUN_ID_CHARS: usize = 255;

/// Write buffer for dead letters.
#[derive(Default)]
pub(super) struct DeadLetters {
    waiting: Vec<PendingLetter>,
    bytes: usize,
}

struct PendingLetter {
    position: Position,
    letter: NewLetter,
    /// For a request: its event id, and the error with which its run fails.
    request: Option<(Option<Uuid>, String)>,
}

impl DeadLetters {
    /// Adds a record. If it is a request, the run that waits for it fails.
    pub(super) fn push(
        &mut self,
        position: Position,
        record: &OwnedMessage,
        fault: &InvalidRecord,
        request: Option<&ExecutionRequest>,
    ) {
        let letter = letter(record, fault);
        let InvalidRecord { code, text } = fault;
        let (topic, partition, offset) = (&letter.topic, letter.partition, letter.offset);
        let run_id = letter.run_id.as_deref().map(shorten).unwrap_or_default();
        // The log has no details, since they may repeat the content.
        tracing::warn!(topic, partition, offset, reason = code, "a record about run {run_id:?} becomes a dead letter");
        self.bytes += letter.value.as_ref().map_or(0, Vec::len);
        let request = request.map(|request| (request.event_id, text.clone()));
        self.waiting.push(PendingLetter { position, letter, request });
    }

    /// Number of waiting records.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes of the waiting records.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Stores the waiting letters. After an error the rest waits for the next call.
    pub(super) async fn process(&mut self, executor: &Executor, consumer: &Consumer) -> Result<(), db::Error> {
        while !self.waiting.is_empty() {
            let mut bytes = 0;
            let fitting = self.waiting.iter().take(MAX_BATCH).take_while(|waiting| {
                bytes += waiting.letter.value.as_ref().map_or(0, Vec::len);
                bytes <= MAX_BATCH_BYTES
            });
            let count = fitting.count().max(1);
            let letters: Vec<NewLetter> =
                self.waiting.iter().take(count).map(|waiting| waiting.letter.clone()).collect();
            let failing: Vec<(String, Option<Uuid>, String)> =
                self.waiting.iter().take(count).filter_map(failing).collect();
            let pool = executor.pool.clone();
            db::bounded(async move {
                db::dead_letters::insert(&pool, &letters).await?;
                for (run_id, event_id, error) in failing {
                    db::runs::fail_pending(&pool, &run_id, event_id, &error).await?;
                }
                Ok(())
            })
            .await?;
            for PendingLetter { position, letter, .. } in self.waiting.drain(..count) {
                self.bytes -= letter.value.as_ref().map_or(0, Vec::len);
                metrics::counter!("executor_dead_letters_total", "reason" => letter.reason).increment(1);
                consumer.done(position);
            }
        }
        Ok(())
    }
}

fn failing(waiting: &PendingLetter) -> Option<(String, Option<Uuid>, String)> {
    let (event_id, error) = waiting.request.as_ref()?;
    Some((waiting.letter.run_id.clone()?, *event_id, format!("the execution request cannot be used: {error}")))
}

fn letter(record: &OwnedMessage, fault: &InvalidRecord) -> NewLetter {
    let value = record.payload();
    let mut digest = Sha256::new();
    for part in [record.key(), value] {
        // The digest includes the lengths, so that different records cannot have the same input.
        digest.update(part.map_or(-1, |part| i64::try_from(part.len()).unwrap_or(i64::MAX)).to_be_bytes());
        digest.update(part.unwrap_or_default());
    }
    NewLetter {
        run_id: run_id(record),
        topic: record.topic().to_owned(),
        partition: record.partition(),
        offset: record.offset(),
        sent_at: kafka::consumer::sent_at(record),
        key: record.key().map(<[u8]>::to_vec),
        value: value.map(<[u8]>::to_vec),
        headers: headers(record),
        digest: digest.finalize().to_vec(),
        reason: fault.code,
        detail: fault.text.replace('\0', "").chars().take(MAX_DETAIL_CHARS).collect(),
    }
}

/// Headers of a record. The client ensures UTF-8 names; the database does not accept NUL.
fn headers(record: &OwnedMessage) -> Headers {
    let of_one = |header: rdkafka::message::Header<'_, &[u8]>| {
        (header.key.replace('\0', ""), header.value.map(|value| STANDARD.encode(value)))
    };
    record.headers().map(|headers| headers.iter().map(of_one).collect()).unwrap_or_default()
}

/// Id of the run that the record is about, from its value or else from its key.
fn run_id(record: &OwnedMessage) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        run_id: String,
    }
    let named = record.payload().and_then(|value| serde_json::from_slice::<Named>(value).ok());
    let key = || std::str::from_utf8(record.key()?).ok().map(str::to_owned);
    let fits = |id: &String| !id.is_empty() && !id.contains('\0') && id.chars().count() <= MAX_RUN_ID_CHARS;
    named.map(|named| named.run_id).filter(fits).or_else(key).filter(fits)
}
