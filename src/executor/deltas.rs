//! Pieces of outputs that agents stream, on their way to the event streams of the API. They are collected for a moment
//! and written with one statement for all runs. They are never the truth: those that cannot be written are dropped, and
//! all are deleted soon after their attempt has ended.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    clock::Clock,
    db::{
        self,
        deltas::{self, NewDeltas},
    },
    input::shorten_to,
    lifecycle::Lifecycle,
};

/// Time for which pieces are collected.
const COLLECT: Duration = Duration::from_millis(250);
/// Maximum size of all pieces of one attempt.
const MAX_ATTEMPT_BYTES: usize = 64 << 10;
/// Maximum size of all pieces that wait to be written. Further ones are dropped.
const MAX_WAITING_BYTES: usize = 4 << 20;
/// Time between the end of an attempt and the deletion of its pieces.
const KEEP: Duration = Duration::from_secs(5);
/// Interval at which the pieces of dead executors are deleted.
const SWEEP_EVERY: Duration = Duration::from_hours(1);
/// Maximum length of an agent's id of an artifact.
const MAX_ID_CHARS: usize = 255;

/// Writer of pieces. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Deltas(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Default)]
struct Queue {
    /// Pieces to write, by attempt, in the order of the attempts' first pieces.
    attempts: Vec<Attempt>,
    places: HashMap<String, usize>,
    bytes: usize,
    /// Attempts whose pieces have to be deleted, and since when.
    ended: VecDeque<(Instant, String, String)>,
}

struct Attempt {
    of: Arc<Streamed>,
    pieces: Vec<Piece>,
}

/// Attempt that is streamed.
pub(super) struct Streamed {
    pub(super) run_id: String,
    pub(super) lease_token: Uuid,
    pub(super) attempt_id: String,
    pub(super) step_id: String,
}

#[derive(Debug, PartialEq)]
struct Piece {
    artifact_id: Option<String>,
    append: bool,
    text: Option<String>,
    data: Option<Box<str>>,
}

impl Deltas {
    /// Starts the loop that writes pieces. Without pieces it does nothing.
    pub(super) fn start(&self, pool: db::Pool, clock: Clock, lifecycle: &Lifecycle) {
        let (this, stop) = (self.clone(), lifecycle.soft_stop().clone());
        lifecycle.spawn("executor deltas", async move { this.run(pool, clock, stop).await });
    }

    /// Pieces of that attempt.
    pub(super) fn of(&self, streamed: Streamed) -> DeltaWriter {
        DeltaWriter { deltas: self.clone(), of: Arc::new(streamed), left: MAX_ATTEMPT_BYTES, wrote: false }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be written and deleted next: what comes within a moment, so that there are few statements however
    /// often agents send something. Nothing, at times, while there is nothing.
    async fn collect(&self, clock: &Clock) -> (NewDeltas, Attempts) {
        let is_idle = {
            let queue = self.queue();
            queue.attempts.is_empty() && queue.ended.is_empty()
        };
        if is_idle {
            tokio::select! {
                () = self.0.arrived.notified() => {}
                () = clock.sleep(SWEEP_EVERY) => {}
            }
        }
        clock.sleep(COLLECT).await;
        let mut queue = self.queue();
        (queue.take(), queue.take_ended(clock.instant()))
    }

    async fn run(self, pool: db::Pool, clock: Clock, stop: CancellationToken) {
        let mut swept: Option<Instant> = None;
        while !stop.is_cancelled() {
            if swept.is_none_or(|at| clock.since(at) >= SWEEP_EVERY) {
                swept = Some(clock.instant());
                let pool = pool.clone();
                report(db::bounded(async move { deltas::delete_old(&pool).await }).await);
            }
            let (new, (run_ids, attempt_ids)) = tokio::select! {
                collected = self.collect(&clock) => collected,
                () = stop.cancelled() => return,
            };
            if !new.run_id.is_empty() {
                let pool = pool.clone();
                report(db::bounded(async move { deltas::insert(&pool, new).await }).await);
            }
            if !run_ids.is_empty() {
                let pool = pool.clone();
                report(db::bounded(async move { deltas::delete(&pool, &run_ids, &attempt_ids).await }).await);
            }
        }
    }
}

/// Runs and attempts, in pairs.
type Attempts = (Vec<String>, Vec<String>);

fn report(written: Result<(), db::Error>) {
    if let Err(error) = written {
        tracing::debug!(error = &error as &dyn std::error::Error, "pieces of outputs are dropped: {error}");
    }
}

impl Queue {
    fn push(&mut self, of: &Arc<Streamed>, piece: Piece) {
        self.bytes += piece.bytes();
        let place = *self.places.entry(of.attempt_id.clone()).or_insert_with(|| {
            self.attempts.push(Attempt { of: Arc::clone(of), pieces: Vec::new() });
            self.attempts.len() - 1
        });
        let pieces = &mut self.attempts[place].pieces;
        match (pieces.last_mut(), &piece) {
            (
                Some(Piece { artifact_id, text: Some(text), .. }),
                Piece { artifact_id: same, append: true, text: Some(more), data: None },
            ) if artifact_id == same => text.push_str(more),
            _ => pieces.push(piece),
        }
    }

    fn take(&mut self) -> NewDeltas {
        self.places.clear();
        self.bytes = 0;
        let mut new = NewDeltas::default();
        for Attempt { of, pieces } in mem::take(&mut self.attempts) {
            for Piece { artifact_id, append, text, data } in pieces {
                new.run_id.push(of.run_id.clone());
                new.lease_token.push(of.lease_token);
                new.attempt_id.push(of.attempt_id.clone());
                new.step_id.push(of.step_id.clone());
                new.artifact_id.push(artifact_id);
                new.append.push(append);
                new.text.push(text);
                new.data.push(data.map(String::from));
            }
        }
        new
    }

    /// Runs and attempts whose pieces are to be deleted now.
    fn take_ended(&mut self, now: Instant) -> Attempts {
        let due = self.ended.iter().take_while(|(at, ..)| now.saturating_duration_since(*at) >= KEEP).count();
        self.ended.drain(..due).map(|(_, run_id, attempt_id)| (run_id, attempt_id)).unzip()
    }
}

impl Piece {
    fn bytes(&self) -> usize {
        self.text.as_ref().map_or(0, String::len) + self.data.as_ref().map_or(0, |data| data.len())
    }
}

/// Writer of the pieces of one attempt. Dropped when the attempt ends.
pub(super) struct DeltaWriter {
    deltas: Deltas,
    of: Arc<Streamed>,
    /// Bytes that the attempt may still write.
    left: usize,
    wrote: bool,
}

impl DeltaWriter {
    /// Adds text. What exceeds the limit of the attempt is cut off.
    pub(super) fn text(&mut self, artifact_id: Option<&str>, append: bool, text: &str) {
        let mut end = text.len().min(self.left);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        // A NUL cannot be stored.
        let text = text[..end].replace('\0', "");
        if !text.is_empty() {
            self.push(Piece { artifact_id: short(artifact_id), append, text: Some(text), data: None });
        }
    }

    /// Adds JSON, unless it exceeds the limit of the attempt.
    pub(super) fn data(&mut self, artifact_id: Option<&str>, append: bool, data: &RawValue) {
        if data.get().len() <= self.left {
            self.push(Piece { artifact_id: short(artifact_id), append, text: None, data: Some(data.get().into()) });
        }
    }

    fn push(&mut self, piece: Piece) {
        let bytes = piece.bytes();
        self.left = self.left.saturating_sub(bytes);
        let mut queue = self.deltas.queue();
        if queue.bytes + bytes > MAX_WAITING_BYTES {
            return;
        }
        queue.push(&self.of, piece);
        drop(queue);
        self.wrote = true;
        self.deltas.0.arrived.notify_one();
    }
}

impl Drop for DeltaWriter {
    fn drop(&mut self) {
        if self.wrote {
            // The loop measures the time with its own clock, of which this is only the order.
            let ended = (Instant::now(), self.of.run_id.clone(), self.of.attempt_id.clone());
            self.deltas.queue().ended.push_back(ended);
            self.deltas.0.arrived.notify_one();
        }
    }
}

fn short(id: Option<&str>) -> Option<String> {
    id.map(|id| shorten_to(id, MAX_ID_CHARS).replace('\0', ""))
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::input::check_json;

    fn writer(deltas: &Deltas, attempt: &str) -> DeltaWriter {
        let id = || attempt.to_owned();
        deltas.of(Streamed { run_id: id(), lease_token: Uuid::nil(), attempt_id: id(), step_id: id() })
    }

    #[test]
    fn pieces_of_one_artifact_are_joined_until_they_are_written() {
        let deltas = Deltas::default();
        let (mut a, mut b) = (writer(&deltas, "a"), writer(&deltas, "b"));
        a.text(Some("x"), false, "1");
        a.text(Some("x"), true, "2");
        b.text(None, true, "b");
        a.text(Some("x"), true, "3\0");
        a.text(Some("y"), true, "4");
        a.text(Some("y"), false, "5");
        a.data(Some("y"), true, check_json(b"{}").expect("JSON"));
        a.text(Some("y"), true, "6");
        a.text(Some("y"), true, "");
        let new = deltas.queue().take();
        assert_eq!(new.attempt_id, ["a", "a", "a", "a", "a", "b"]);
        let texts: Vec<_> = new.text.iter().map(|text| text.as_deref().unwrap_or("-")).collect();
        assert_eq!(texts, ["123", "4", "5", "-", "6", "b"]);
        assert_eq!(new.append, [false, true, false, true, true, true]);
        a.text(Some("y"), true, "7");
        assert_eq!(deltas.queue().take().text, [Some("7".to_owned())]);
        assert!(deltas.queue().take().run_id.is_empty());
    }

    #[tokio::test]
    async fn what_an_agent_streams_is_written_four_times_a_second_at_most() {
        let (deltas, clock) = (Deltas::default(), Clock::stopped());
        let mut streamed = writer(&deltas, "a");
        for round in 0..3 {
            let mut written = pin!(deltas.collect(&clock));
            for number in 0..100 {
                streamed.text(None, true, &format!("{round}.{number} "));
                assert!(written.as_mut().now_or_never().is_none());
            }
            clock.advance(COLLECT.saturating_sub(Duration::from_millis(1)));
            streamed.text(None, true, "the last");
            assert!(written.as_mut().now_or_never().is_none(), "in round {round}");
            clock.advance(Duration::from_millis(1));
            let (new, _) = written.as_mut().now_or_never().expect("250 ms are over");
            assert_eq!(new.text.len(), 1, "one piece for all");
            let text = new.text[0].as_deref().expect("a text");
            assert!(text.starts_with(&format!("{round}.0 ")) && text.ends_with(".99 the last"), "{text}");
        }
    }

    #[test]
    fn an_attempt_writes_a_bounded_number_of_bytes_and_so_do_all_together() {
        let deltas = Deltas::default();
        let mut one = writer(&deltas, "a");
        let long = "é".repeat(MAX_ATTEMPT_BYTES);
        one.text(None, true, &long);
        one.text(None, true, "more");
        one.data(None, true, check_json(b"[1]").expect("JSON"));
        assert_eq!(deltas.queue().bytes, MAX_ATTEMPT_BYTES);
        for number in 0..1000 {
            writer(&deltas, &number.to_string()).text(None, true, &long);
        }
        assert_eq!(deltas.queue().bytes, MAX_WAITING_BYTES);
    }

    #[test]
    fn pieces_are_deleted_some_time_after_the_attempt() {
        let deltas = Deltas::default();
        drop(writer(&deltas, "silent"));
        let mut streamed = writer(&deltas, "a");
        streamed.text(None, true, "x");
        drop(streamed);
        let now = Instant::now();
        assert!(deltas.queue().take_ended(now).0.is_empty());
        assert_eq!(deltas.queue().take_ended(now + KEEP), (vec!["a".to_owned()], vec!["a".to_owned()]));
        assert!(deltas.queue().ended.is_empty());
    }
}
