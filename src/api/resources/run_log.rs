//! Log of a run, in pages and as an event stream.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt::{self, Write as _},
    time::{Duration, Instant},
};

use axum::{
    extract::State,
    response::{
        IntoResponse, Response,
        sse::{Event as SseEvent, KeepAlive, Sse},
    },
};
use futures_util::{Stream, stream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::{
    api::vocabulary::{
        accept::preferences,
        app::App,
        caller::{Caller, RECHECK_CALLER},
        cursor::{ListQuery, ListRequest},
        error::{ApiError, ErrorBody},
        extract::{Query, RunId},
        page::{self, Page},
        parameters, sets,
    },
    db::{
        self,
        deltas::{self, DeltaRow},
        events::{self, EventRow, Filter, LogTail},
    },
    input::{self, FieldError},
    run::{Level, RunStatus},
    run_poller::{Interest, Subscription},
    timestamp::Timestamp,
    visible,
};

/// Header by which a client resumes a stream. There is also a parameter, for clients that cannot send it.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Makes nginx forward events without buffering.
pub const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// Suffix of the id of the end event; its number is that of the last entry.
const END_SUFFIX: &str = "-end";
/// Interval of keep-alive comments: shorter than the time-outs of proxies.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Reconnection delay of a client whose stream was closed before the end of the run.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);
/// Maximum number of entries that a stream holds in memory.
const CHUNK: i64 = 100;
/// Maximum number of pieces of outputs that a stream holds in memory; each has at most 64 KiB.
const DELTA_CHUNK: i64 = 20;
/// Name of an event with a piece of an output.
const DELTA: &str = "step.output.delta";

/// Page of a run's log.
pub type RunEventPage = Page<Event>;

/// Entry of a run's log.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RunEvent, example = json!({
    "run_id": "run-01935e7c-7f6e-7c3a-9d51-2f8f0a4b6c1d", "seq": 4, "timestamp": "2026-02-03T09:00:00.120450Z",
    "kind": "agent.answered", "level": "info", "message": "Step 'summarise': agent 'writer' answered 200 in 84.2 ms",
    "step_id": "summarise", "attempt_id": "run-01935e7c-7f6e-7c3a-9d51-2f8f0a4b6c1d-summarise-0a1b2c3d",
    "agent_name": "writer", "http_status": 200, "duration_ms": 84.2, "detail": null
}))]
pub struct Event {
    /// Id of the run.
    run_id: String,
    /// Sequence number in the log, from 0 without gaps; entries are never changed or renumbered.
    seq: i32,
    /// Time when it was recorded.
    #[schema(value_type = String, format = DateTime)]
    timestamp: Timestamp,
    /// Kind of the entry.
    #[schema(value_type = sets::RunEventKind)]
    kind: String,
    /// Severity of the entry.
    #[schema(value_type = sets::LogLevel)]
    level: Level,
    /// Message for people.
    message: String,
    /// Id of the attempt's step.
    step_id: Option<String>,
    /// Id of the attempt, as in the run's steps.
    attempt_id: Option<String>,
    /// Name of the agent that the attempt calls.
    agent_name: Option<String>,
    /// HTTP status of the agent's answer.
    http_status: Option<i32>,
    /// Duration of the attempt or of the call.
    duration_ms: Option<f64>,
    /// The error message, the creator of the run, or a state without a kind of its own.
    detail: Option<String>,
}

impl From<EventRow> for Event {
    fn from(row: EventRow) -> Self {
        let message = message(&row);
        let duration_ms = row.duration_ms.map(|ms| (ms * 1e3).round() / 1e3);
        Self {
            run_id: row.run_id,
            seq: row.seq,
            timestamp: row.at,
            level: Level::of(&row.kind),
            kind: row.kind,
            message,
            step_id: row.step_id,
            attempt_id: row.attempt_id,
            agent_name: row.agent_name,
            http_status: row.http_status,
            duration_ms,
            detail: row.detail,
        }
    }
}

/// Piece of an output that an agent streams, as it is sent in an event `step.output.delta`. Pieces are a preview: they
/// are not stored, some may be missing, and at most 64 KiB of an attempt are sent. The output is in the run's steps.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RunOutputDelta, example = json!({
    "run_id": "run-01935e7c-7f6e-7c3a-9d51-2f8f0a4b6c1d", "step_id": "summarise",
    "attempt_id": "run-01935e7c-7f6e-7c3a-9d51-2f8f0a4b6c1d-summarise-0a1b2c3d",
    "timestamp": "2026-02-03T09:00:00.380120Z", "artifact_id": "answer", "append": true, "text": "The first half "
}))]
pub struct OutputDelta<'a> {
    /// Id of the run.
    run_id: &'a str,
    /// Id of the step.
    step_id: String,
    /// Id of the attempt, as in the run's steps.
    attempt_id: String,
    /// Time when it was recorded.
    #[schema(value_type = String, format = DateTime)]
    timestamp: Timestamp,
    /// The agent's id of the artifact; null for the text of a model, and for the agent's message about its state.
    artifact_id: Option<String>,
    /// Whether it continues the pieces of the same artifact; false: it replaces them.
    append: bool,
    /// Text.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// JSON, instead of text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    data: Option<Box<RawValue>>,
}

impl<'a> OutputDelta<'a> {
    fn new(run_id: &'a str, row: DeltaRow) -> Self {
        let DeltaRow { attempt_id, step_id, artifact_id, append, text, data, at, .. } = row;
        Self { run_id, step_id, attempt_id, timestamp: at, artifact_id, append, text, data: data.map(|data| data.0) }
    }
}

impl Event {
    /// Message for people.
    #[must_use]
    pub fn into_message(self) -> String {
        self.message
    }
}

/// Formats an entry as a line of text.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An error message may contain line breaks and control characters from an agent.
        let message = self.message.replace(['\r', '\n'], " ");
        let message = visible::escaped(&message);
        writeln!(f, "{:<27} {:<7} {message}", self.timestamp.to_string(), self.level.as_str().to_uppercase())
    }
}

fn message(row: &EventRow) -> String {
    let (subject, act) = row.kind.split_once('.').unwrap_or((&row.kind, ""));
    let agent = row.agent_name.as_deref().unwrap_or_default();
    let mut text = row.step_id.as_ref().map_or_else(String::new, |step| format!("Step '{step}': "));
    let what = match (subject, act) {
        ("run", "dispatched") => "Run sent to the executors".to_owned(),
        ("run", "taken_over") => "Run taken over by another executor".to_owned(),
        ("run", "retried") => "Run started again".to_owned(),
        ("run", act) => format!("Run {act}"),
        ("attempt", "waiting") => "attempt waits".to_owned(),
        // A block has none.
        ("attempt", "started") if agent.is_empty() => "attempt started".to_owned(),
        ("attempt", "started") => format!("attempt started, agent '{agent}'"),
        ("agent", act) => {
            let answer = row.http_status.map_or_else(|| "gave no answer".to_owned(), |code| format!("answered {code}"));
            let failed = if act == "failed" { ", call failed" } else { "" };
            format!("agent '{agent}' {answer}{failed}")
        }
        (subject, act) => format!("{subject} {act}"),
    };
    text += &what;
    if let Some(ms) = row.duration_ms {
        // Writing to memory cannot fail.
        let _ = write!(text, " in {ms:.1} ms");
    }
    match (row.kind.as_str(), row.detail.as_deref()) {
        ("run.created" | "run.paused" | "run.resumed" | "callback.answered", Some(by)) => text + " by " + by,
        (_, Some(detail)) => text + ": " + detail.strip_prefix("Cancelled: ").unwrap_or(detail),
        (_, None) => text,
    }
}

/// Get the log of a run
///
/// Its state changes, attempts, agent calls and errors, in their order. Of a run that is older than the release which
/// introduced logs, only the creation is shown for the time before.
///
/// With `Accept: text/plain` there is one line for each entry, and `Link` names the next page.
#[utoipa::path(
    get, path = "/runs/{run_id}/logs", tag = "runs",
    params(
        ("run_id" = String, Path),
        ("step_id" = Option<Vec<String>>, Query, explode = false, description = "Any of these steps"),
        ("level" = Option<sets::LogLevel>, Query, description = "Entries of this level and more severe ones"),
        ("sort_order" = Option<sets::SortOrder>, Query, description = "Ascending (the default) or descending"),
        parameters::Paging,
    ),
    responses(
        (status = 200, description = "A page of the log", content(
            (RunEventPage = "application/json"),
            (String = "text/plain", example = "2026-02-03T09:00:00.101120Z INFO    Run created by system\n\
                2026-02-03T09:00:00.104870Z INFO    Run started\n\
                2026-02-03T09:00:00.105031Z INFO    Step 'summarise': attempt started, agent 'writer'\n"),
        )),
        (status = 400, description = "The cursor belongs to another query", body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 422, body = ErrorBody),
    ),
)]
pub async fn get_logs(
    State(app): State<App>,
    caller: Caller,
    RunId(run_id): RunId,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, ApiError> {
    let mut parameters = ListQuery::new(&query);
    let steps = parameters.several("step_id");
    let level = match parameters.text("level") {
        None => Level::Info,
        Some(name) => Level::ALL
            .into_iter()
            .find(|level| level.as_str().eq_ignore_ascii_case(name))
            .ok_or_else(|| FieldError::rule("query.level", "`info`, `warning` or `error` is expected"))?,
    };
    let is_descending = parameters.text("sort_order").is_some_and(|order| order.eq_ignore_ascii_case("desc"));
    let order = events::order(!is_descending);
    let list = ListRequest::read(&app, &parameters, &format!("logs of {run_id}")).await?;
    caller.must_see_run(&app, &run_id).await?;
    events::number(&app.pool, &run_id).await?;
    let (run_id, filter, page) = (&run_id, &Filter { steps: &steps, kinds: &level.kinds() }, &list.page);
    let read = app.reads.read(|mut conn| async move { events::list(&mut conn, run_id, filter, order, page).await });
    let page = read.await?;
    let (_, next) = list.neighbours(&page.entries);
    let mut response = if prefers_text(&headers) {
        let mut text: String = page.entries.rows.into_iter().map(|row| Event::from(row).to_string()).collect();
        if let Some(cursor) = &next {
            text += "... more: ?";
            text += &query.with_cursor(cursor);
            text.push('\n');
        }
        let mut response = text.into_response();
        if let Some(cursor) = next
            && let Ok(link) = HeaderValue::from_str(&format!("<?{}>; rel=\"next\"", query.with_cursor(&cursor)))
        {
            response.headers_mut().insert(header::LINK, link);
        }
        response
    } else {
        page::answer(app, caller, &list, page, Event::from)
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

/// Whether text is accepted, and JSON is not.
fn prefers_text(headers: &HeaderMap) -> bool {
    let types: Vec<_> = preferences(headers, &header::ACCEPT).map(|(name, _)| name).collect();
    types.iter().any(|name| name == "text/plain") && !types.iter().any(|name| name == "application/json")
}

/// Position up to which a client has received the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    /// Sequence number of the last entry; -1 if none.
    seq: i32,
    /// Whether the end event was received too.
    end: bool,
}

impl Seen {
    /// Reads the position from the request. A reconnecting browser sends the current header, and the original
    /// parameter.
    fn read(headers: &HeaderMap, query: &Query) -> Option<Self> {
        let in_query = Self::parse(query.text("last_event_id").unwrap_or_default())?;
        match headers.get(LAST_EVENT_ID) {
            Some(value) => Self::parse(value.to_str().ok()?),
            None => Some(in_query),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self { seq: -1, end: false });
        }
        let (number, end) = text.strip_suffix(END_SUFFIX).map_or((text, false), |number| (number, true));
        let is_plain = number.bytes().all(|byte| byte.is_ascii_digit());
        number.parse().ok().filter(|_| is_plain).map(|seq| Self { seq, end })
    }
}

/// Stream the log of a run
///
/// Streams the log of a run as Server-Sent Events: first the existing entries, then new ones as they occur, and at
/// the end of the run an event `end`. If a stream is closed without `end`, it has to be opened again with the last
/// id, as browsers do by themselves.
///
/// Entries have no event name (`onmessage`). After a retry the same log continues. While an agent streams its output,
/// events named `step.output.delta` have pieces of it, as `RunOutputDelta`; they have no id, and are not repeated. If the run is deleted meanwhile,
/// because its retention is over, the data of `end` has `"deleted": true`.
#[utoipa::path(
    get, path = "/runs/{run_id}/events", tag = "runs",
    params(
        ("run_id" = String, Path),
        ("Last-Event-ID" = Option<String>, Header, description = "The last id that was received: the stream goes on \
            behind it, such as `3`", pattern = "^([0-9]+(-end)?)?$"),
        ("last_event_id" = Option<String>, Query, pattern = "^([0-9]+(-end)?)?$", description = "The same for clients that cannot set the header, \
            which counts if both are there"),
    ),
    responses(
        (status = 200, description = "Events whose `data` is a RunEvent; comments keep the connection alive", content(
            (String = "text/event-stream", example = "retry: 1000\n\nid: 0\ndata: {\"seq\":0,\"kind\":\"run.created\",\
                \"level\":\"info\",\"message\":\"Run created by system\"}\n\nid: 7\ndata: {\"seq\":7,\"kind\":\
                \"run.completed\",\"level\":\"info\",\"message\":\"Run completed\"}\n\nid: 7-end\nevent: end\n\
                data: {\"run_id\":\"run-01935e7c-7f6e-7c3a-9d51-2f8f0a4b6c1d\",\"status\":\"COMPLETED\"}\n\n"),
        )),
        (status = 204, description = "The run has ended, and the client has seen that: it need not come back"),
        (status = 400, description = "The id is not one of this stream", body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 429, description = "The caller or the organisation has too many streams open", body = ErrorBody),
        (status = 503, description = "Too many streams are open", body = ErrorBody),
    ),
)]
pub async fn stream_events(
    State(app): State<App>,
    caller: Caller,
    RunId(run_id): RunId,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, ApiError> {
    let unknown_id = || ApiError::bad_request("invalid_last_event_id", "Last-Event-ID is not an id of this stream");
    let seen = Seen::read(&headers, &query).ok_or_else(unknown_id)?;
    caller.must_see_run(&app, &run_id).await?;
    // Subscribed before the first read, so that no entry between the two is missed.
    let watch = app.waiting.watch(&run_id, Interest::Run, caller.owners()).map_err(|exhausted| {
        ApiError::exhausted(
            exhausted,
            "too_many_streams",
            "event streams that are open; GET the run or its logs instead",
        )
    })?;
    let rest = read(&app, &run_id, seen.seq).await?.ok_or_else(ApiError::run_not_found)?;
    if seen.seq > rest.last {
        return Err(unknown_id());
    }
    if seen.end && rest.rows.is_empty() && is_terminal(&rest.status) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let (phase, checked_at) = (Phase::Opening(rest), app.clock.instant());
    let seen = seen.seq;
    let reader = Reader { app, caller, run_id, seen, last_delta: 0, status: String::new(), watch, checked_at, phase };
    let events = Sse::new(reader.events()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    Ok(([(ACCEL_BUFFERING, HeaderValue::from_static("no"))], events).into_response())
}

fn is_terminal(status: &str) -> bool {
    RunStatus::parse(status).is_some_and(RunStatus::is_terminal)
}

/// Runs in a task of its own, so that a client that disconnects does not interrupt a statement.
async fn read(app: &App, run_id: &str, after: i32) -> Result<Option<LogTail>, db::Error> {
    let (pool, run_id) = (app.pool.clone(), run_id.to_owned());
    db::bounded(async move { events::rest(&pool, &run_id, after, CHUNK).await }).await
}

/// The same for pieces of outputs.
async fn read_deltas(app: &App, run_id: &str, after: i64) -> Result<Vec<DeltaRow>, db::Error> {
    let (pool, run_id) = (app.pool.clone(), run_id.to_owned());
    db::bounded(async move { deltas::after(&pool, &run_id, after, DELTA_CHUNK).await }).await
}

/// Data of the end event.
#[derive(Serialize)]
struct End<'a> {
    run_id: &'a str,
    /// Status at the last read.
    status: &'a str,
    /// Whether the run was deleted meanwhile, because its retention is over.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
}

/// Next action of a stream.
enum Phase {
    /// Begin with these entries, which were read first.
    Opening(LogTail),
    /// Send these pieces of outputs and entries, then continue: the end, the next chunk, or a wait.
    Sending(VecDeque<DeltaRow>, VecDeque<EventRow>, AfterRows),
    /// Close the stream.
    Closing,
}

/// Continuation after the entries of a chunk.
enum AfterRows {
    /// There may be more entries.
    Read,
    /// There are no more entries for now.
    Wait,
    /// There are no more entries: the run has ended, or was deleted.
    End {
        /// Whether the run was deleted.
        deleted: bool,
    },
}

/// Reader of one stream. It reads the next entries after its client has taken the previous ones, so a slow client
/// costs no memory.
struct Reader {
    app: App,
    caller: Caller,
    run_id: String,
    seen: i32,
    /// Number of the last piece of an output that was read.
    last_delta: i64,
    /// Status of the run at the last read.
    status: String,
    watch: Subscription,
    /// Time of the last check of the caller's authorisation.
    checked_at: Instant,
    phase: Phase,
}

impl Reader {
    fn events(self) -> impl Stream<Item = Result<SseEvent, Infallible>> {
        stream::unfold(self, |mut reader| async move { Some((Ok(reader.next().await?), reader)) })
    }

    async fn next(&mut self) -> Option<SseEvent> {
        loop {
            match std::mem::replace(&mut self.phase, Phase::Closing) {
                Phase::Opening(rest) => {
                    self.send(VecDeque::new(), rest);
                    return Some(SseEvent::default().retry(RECONNECT_AFTER));
                }
                Phase::Sending(mut deltas, mut rows, then) => {
                    if let Some(delta) = deltas.pop_front() {
                        self.phase = Phase::Sending(deltas, rows, then);
                        return Some(data(&OutputDelta::new(&self.run_id, delta)).event(DELTA));
                    }
                    if let Some(row) = rows.pop_front() {
                        self.phase = Phase::Sending(deltas, rows, then);
                        self.seen = row.seq;
                        return Some(event(row.seq.to_string(), &Event::from(row)));
                    }
                    // When the process stops, the client reconnects to another one and resumes there.
                    let goes_on = match then {
                        AfterRows::Read => !self.watch.is_over(),
                        AfterRows::Wait => self.changed().await,
                        AfterRows::End { deleted } => {
                            let end = End { run_id: &self.run_id, status: &self.status, deleted };
                            return Some(event(format!("{}{END_SUFFIX}", self.seen), &end).event("end"));
                        }
                    };
                    if !goes_on || !self.is_still_authorized().await {
                        return None;
                    }
                    match self.read().await {
                        Ok((deltas, Some(rest))) => self.send(deltas, rest),
                        // There are no more entries, so the client has no reason to reconnect.
                        Ok((deltas, None)) => {
                            self.phase = Phase::Sending(deltas, VecDeque::new(), AfterRows::End { deleted: true });
                        }
                        Err(error) => {
                            let (run_id, cause) = (&self.run_id, &error as &dyn std::error::Error);
                            tracing::warn!(error = cause, run_id, "an event stream is closed: {error}");
                            return None;
                        }
                    }
                }
                Phase::Closing => return None,
            }
        }
    }

    /// Waits until the log has grown. False if the process stops, and if the caller is no longer authorised.
    async fn changed(&mut self) -> bool {
        tokio::select! {
            goes_on = self.watch.changed() => goes_on,
            () = self.caller.ended(&self.app) => false,
        }
    }

    /// Whether the caller is authorised now, or was so at a recent check.
    async fn is_still_authorized(&mut self) -> bool {
        if self.app.clock.since(self.checked_at) < RECHECK_CALLER {
            return true;
        }
        self.checked_at = self.app.clock.instant();
        // An unavailable database is no reason to reject the caller.
        !matches!(self.caller.is_still_valid(&self.app).await, Ok(false))
    }

    /// The next pieces of outputs, if there are any, and the next entries. The pieces come first: an attempt's last piece
    /// is older than its end.
    async fn read(&mut self) -> Result<(VecDeque<DeltaRow>, Option<LogTail>), db::Error> {
        let mut deltas = Vec::new();
        if let Some(last) = self.new_deltas() {
            deltas = read_deltas(&self.app, &self.run_id, self.last_delta).await?;
            let is_whole = i64::try_from(deltas.len()).is_ok_and(|count| count < DELTA_CHUNK);
            let read = deltas.last().map_or(self.last_delta, |delta| delta.id);
            // Pieces that are not found are deleted.
            self.last_delta = if is_whole { read.max(last) } else { read };
        }
        Ok((deltas.into(), read(&self.app, &self.run_id, self.seen).await?))
    }

    /// Number of the last piece of an output, if it is not read yet.
    fn new_deltas(&self) -> Option<i64> {
        self.watch.last_delta().filter(|last| *last > self.last_delta)
    }

    fn send(&mut self, deltas: VecDeque<DeltaRow>, rest: LogTail) {
        let is_whole = i64::try_from(rest.rows.len()).is_ok_and(|count| count < CHUNK) && self.new_deltas().is_none();
        let then = match (is_whole, is_terminal(&rest.status)) {
            (false, _) => AfterRows::Read,
            (true, false) => AfterRows::Wait,
            (true, true) => AfterRows::End { deleted: false },
        };
        self.status = rest.status;
        self.phase = Phase::Sending(deltas, rest.rows.into(), then);
    }
}

fn event(id: String, content: &impl Serialize) -> SseEvent {
    data(content).id(id)
}

fn data(content: &impl Serialize) -> SseEvent {
    // Serialised without line breaks, so that it is one line of the stream.
    SseEvent::default().data(input::to_raw(content).get())
}
