//! Tasks as streams of events: the log of the run as it happens, then its output and its end.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::response::{
    IntoResponse as _, Response,
    sse::{Event as SseEvent, KeepAlive, Sse},
};
use futures_util::stream;
use http::HeaderValue;
use serde_json::value::RawValue;

use super::{
    AgentCall,
    errors::{A2aError, Failure},
    message::Sending,
    tasks::LISTED_OUTPUT_BYTES,
};
use crate::{
    a2a::shown::Output,
    api::{
        resources::{
            exposed_run::ExposedRun,
            run_log::{ACCEL_BUFFERING, Event},
        },
        vocabulary::{caller::RECHECK_CALLER, error::ApiError, json_rpc},
    },
    db::{self, events, runs::TaskRow, waits::Question},
    run::State,
    run_poller::{Interest, Subscription},
};

/// Interval of keep-alive comments: shorter than the time-outs of proxies.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Maximum number of entries that a stream holds in memory.
const CHUNK: i64 = 100;

/// Stream of one client. It reads the next entries after its client has taken the previous events.
struct TaskStream {
    call: AgentCall,
    row: TaskRow,
    watch: Subscription,
    /// Sequence number of the last entry that was sent.
    seen: i32,
    /// Events to send.
    events: VecDeque<Box<RawValue>>,
    /// Whether it ends when the task waits for an answer.
    ends_at_question: bool,
    /// Whether nothing follows the events.
    is_last: bool,
    /// Whether there may be entries that are not read yet.
    has_more: bool,
    checked_at: std::time::Instant,
    /// Names of the questions that the last status has shown.
    asked: Vec<String>,
}

impl AgentCall {
    /// Sends a message, and streams the task until it has ended or waits for an answer.
    pub(super) async fn stream(self) -> Result<Response, Failure> {
        let Sending { message, push, .. } = self.sending()?;
        // A stream that cannot be opened must not leave a run behind.
        self.app.waiting.check_stream(self.caller.owners()).map_err(refusal)?;
        let row = self.deliver(message, push).await?;
        self.open(row, true).await
    }

    /// Streams a task until it has ended.
    pub(super) async fn subscribe(self) -> Result<Response, Failure> {
        let (row, _) = self.named_task().await?;
        if row.state().is_terminal() {
            let text = "The task has ended: GetTask has its output";
            return Err(A2aError::UnsupportedOperation.with(text, &[("taskId", &row.run_id)]).into());
        }
        self.open(row, false).await
    }

    async fn open(self, row: TaskRow, ends_at_question: bool) -> Result<Response, Failure> {
        // Subscribed before the first read, so that no change between the two is missed.
        let watch = self.app.waiting.watch(&row.run_id, Interest::Family, self.caller.owners()).map_err(refusal)?;
        let row = self.task(&row.run_id).await.unwrap_or(row);
        let seen = last_entry(&self, &row.run_id).await;
        let run = self.bounded(row).await?;
        let state = run.state();
        let is_last = state.is_terminal() || (ends_at_question && state == State::Waiting);
        let events = [self.version.started(run.row.shown(), &run.asked(), self.output(&run), None)].into();
        let (checked_at, asked) = (self.app.clock.instant(), names(&run));
        let (row, has_more) = (run.row, false);
        let stream =
            TaskStream { call: self, row, watch, seen, events, ends_at_question, is_last, has_more, checked_at, asked };
        let events = stream::unfold(stream, |mut stream| async move { Some((stream.next().await?, stream)) });
        let events = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
        Ok(([(ACCEL_BUFFERING, HeaderValue::from_static("no"))], events).into_response())
    }
}

impl AgentCall {
    /// A run with its questions, and with its output unless that is large: what a stream holds is not counted.
    async fn bounded(&self, row: TaskRow) -> Result<ExposedRun, ApiError> {
        if row.state() != State::Completed {
            return ExposedRun::of(&self.app, &self.caller, row).await;
        }
        let (pool, ids) = (self.app.pool.clone(), [row.run_id.clone()]);
        let read = async move { db::runs::small_outputs(&pool, &ids, LISTED_OUTPUT_BYTES).await };
        let output = db::bounded(read).await?.pop().map(|(_, output)| output.0);
        Ok(ExposedRun { output, ..ExposedRun::open(row) })
    }

    /// Output of a run that was read for a stream.
    fn output<'a>(&self, run: &'a ExposedRun) -> Output<'a> {
        match &run.output {
            None if run.state() == State::Completed => Output::At(self.address(&run.row)),
            _ => Output::of(run.output.as_deref()),
        }
    }
}

/// Sequence number of the last entry of the log: the first event shows what came before. 0 if it cannot be read.
async fn last_entry(call: &AgentCall, run_id: &str) -> i32 {
    let (pool, run_id) = (call.app.pool.clone(), run_id.to_owned());
    let read = db::bounded(async move { events::rest(&pool, &run_id, i32::MAX, 1).await }).await;
    read.ok().flatten().map_or(0, |tail| tail.last)
}

/// Names of the questions that a run waits for.
fn names(run: &ExposedRun) -> Vec<String> {
    run.questions.iter().map(Question::name).collect()
}

fn refusal(exhausted: crate::permits::Exhausted) -> ApiError {
    ApiError::exhausted(exhausted, "too_many_streams", "event streams that are open; get the task instead")
}

impl TaskStream {
    async fn next(&mut self) -> Option<Result<SseEvent, Infallible>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                let text = json_rpc::result_text(self.call.call.id.as_deref(), &event);
                // Serialised without line breaks, so that it is one line of the stream.
                return Some(Ok(SseEvent::default().data(text.get())));
            }
            if self.is_last || !self.goes_on().await {
                return None;
            }
            if let Err(error) = self.read().await {
                let cause = &*error as &dyn std::error::Error;
                tracing::warn!(error = cause, run_id = self.row.run_id, "an event stream is closed: {error}");
                return None;
            }
        }
    }

    /// Waits until there may be more. False if the process stops, and if the caller is no longer authorised.
    async fn goes_on(&mut self) -> bool {
        let goes_on = if self.has_more {
            !self.watch.is_over()
        } else {
            tokio::select! {
                goes_on = self.watch.changed() => goes_on,
                () = self.call.caller.ended(&self.call.app) => false,
            }
        };
        if !goes_on || self.call.app.clock.since(self.checked_at) < RECHECK_CALLER {
            return goes_on;
        }
        self.checked_at = self.call.app.clock.instant();
        // An unavailable database is no reason to reject the caller.
        !matches!(self.call.caller.is_still_valid(&self.call.app).await, Ok(false))
    }

    /// Reads what has happened since, in a task of its own, so that a client that disconnects interrupts no statement.
    async fn read(&mut self) -> Result<(), Arc<db::Error>> {
        let (pool, run_id, after) = (self.call.app.pool.clone(), self.row.run_id.clone(), self.seen);
        let organization = self.call.caller.organization().clone();
        let read = db::bounded(async move {
            // The run is read first, so that what has caused its state is among the entries.
            let Some(row) = db::runs::task(&pool, &organization, &run_id).await? else { return Ok(None) };
            let tail = events::rest(&pool, &run_id, after, CHUNK).await?;
            Ok(tail.map(|tail| (tail, row)))
        });
        // A deleted run has no more events.
        let Some((tail, row)) = read.await? else {
            self.is_last = true;
            return Ok(());
        };
        let is_whole = i64::try_from(tail.rows.len()).is_ok_and(|count| count < CHUNK);
        self.has_more = !is_whole || tail.status != row.status;
        let version = self.call.version;
        for entry in tail.rows {
            self.seen = entry.seq;
            let (seq, at, kind) = (entry.seq, entry.at, entry.kind.clone());
            // These are the events that follow.
            if !matches!(kind.as_str(), "run.completed" | "run.failed" | "run.cancelled") {
                let status = version.progress(row.shown(), seq, at, Event::from(entry).into_message());
                self.events.push_back(version.status_event(row.shown(), &status, false));
            }
        }
        self.row = row;
        let state = self.row.state();
        if !self.has_more && (state.is_terminal() || state == State::Waiting) {
            match self.call.bounded(self.row.clone()).await {
                // What was asked before goes on to wait.
                Ok(run) if !state.is_terminal() && names(&run).iter().all(|name| self.asked.contains(name)) => {}
                Ok(run) => self.finish(&run),
                // The stream is closed without an end, so the client asks again.
                Err(_) => self.is_last = true,
            }
        }
        Ok(())
    }

    /// Adds the events of a task that has ended or waits.
    fn finish(&mut self, run: &ExposedRun) {
        let (version, state) = (self.call.version, run.state());
        self.events.extend(version.artifact_event(run.row.shown(), self.call.output(run)));
        self.is_last = state.is_terminal() || (self.ends_at_question && state == State::Waiting);
        self.asked = names(run);
        let status = version.status(run.row.shown(), &run.asked());
        self.events.push_back(version.status_event(run.row.shown(), &status, self.is_last));
    }
}
