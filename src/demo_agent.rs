//! Demo agent: an agent for a first workflow and for testing failures of agents.
//!
//! It speaks A2A 1.0 and 0.3 over JSON-RPC 2.0 and has four skills for a text: `/` repeats it, `/upper` and `/reverse`
//! change it, `/count` counts its words. Tasks can be streamed. Delay and failure are set for all calls by [`Options`] and for the calls of one URL by
//! its query (`failure::FailureOverrides`): `/upper?task_ms=3000` answers with a task that is completed three seconds
//! later, and `/upper?asks=2` asks twice for more text before it answers; with `auth=true` it asks for an authorisation.
//! `/hooks` is a receiver of webhooks, which logs what it gets and shows it.

mod card;
mod failure;
mod hooks;
mod rpc;
mod streamed;
mod tasks;
mod wire;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Query, State, rejection::BytesRejection},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};

use self::{
    failure::{Failure, FailureOverrides, Failures},
    hooks::Deliveries,
    rpc::{Call, Request, RpcError},
    tasks::{Asking, Tasks},
};
use crate::{clock::Clock, id, lifecycle::Lifecycle, server};

/// Larger requests are rejected; the service has the same limit.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Header of the correlation id for the logs.
const CORRELATION_HEADER: &str = "x-correlation-id";

/// Address of the demo agent, and its simulated failures.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// Port to listen on
    #[arg(long, default_value_t = 9010)]
    pub port: u16,
    /// Wait this long before each answer
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub delay_ms: u64,
    /// Share of calls that fail with HTTP 503, from 0 to 1
    #[arg(long, value_name = "RATE", default_value_t = 0.0, value_parser = parse_rate)]
    pub fail_rate: f64,
    /// Fail the first N calls of each message with HTTP 503
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub fail_times: u32,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "must be a number from 0 to 1".to_owned())?;
    if (0.0..=1.0).contains(&rate) { Ok(rate) } else { Err("must be from 0 to 1".to_owned()) }
}

/// Skill of an agent in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skill {
    /// `/`: returns the same text.
    Echo,
    /// `/upper`: converts to capitals.
    Upper,
    /// `/reverse`: reverses the text.
    Reverse,
    /// `/count`: counts the words.
    Count,
}

impl Skill {
    const ALL: [Self; 4] = [Self::Echo, Self::Upper, Self::Reverse, Self::Count];

    fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Upper => "upper",
            Self::Reverse => "reverse",
            Self::Count => "count",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Echo => "Repeats the text",
            Self::Upper => "Puts the text in capitals",
            Self::Reverse => "Reverses the text",
            Self::Count => "Counts the words of the text",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Echo => "/",
            Self::Upper => "/upper",
            Self::Reverse => "/reverse",
            Self::Count => "/count",
        }
    }

    fn apply(self, text: &str) -> String {
        match self {
            Self::Echo => text.to_owned(),
            Self::Upper => text.to_uppercase(),
            Self::Reverse => text.chars().rev().collect(),
            Self::Count => text.split_whitespace().count().to_string(),
        }
    }
}

/// Starts the agent as a task of the lifecycle, inside of a runtime. Fails if the port is taken.
pub fn start(options: &Options, lifecycle: &Lifecycle) -> anyhow::Result<()> {
    let address = SocketAddr::new(options.host, options.port);
    let listener = server::bind(address).with_context(|| format!("the demo agent cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    tracing::info!(%address, "the demo agent listens on {address}");
    let bounds = server::Bounds::within(server::raise_limit(), 0);
    lifecycle.spawn(
        "demo agent",
        server::serve(listener, router(options), lifecycle.clone(), bounds, Clock::default(), None),
    );
    Ok(())
}

/// All routes of the agent.
fn router(options: &Options) -> Router {
    let behaviour = Arc::new(Behaviour {
        failures: Failures::new(options),
        tasks: Tasks::default(),
        deliveries: Deliveries::default(),
    });
    let mut router = Router::new().route("/health", get(async || Json(json!({"status": "healthy"}))));
    for skill in Skill::ALL {
        let card_path = format!("{}/.well-known/agent-card.json", skill.path().trim_end_matches('/'));
        let answer = move |behaviour: State<Arc<Behaviour>>, overrides, headers, body| {
            answer_call(skill, behaviour, overrides, headers, body)
        };
        router = router
            .route(skill.path(), post(answer))
            .route(&card_path, get(async move |headers: HeaderMap| Json(card::of(skill, &headers))));
    }
    let take = async |State(behaviour): State<Arc<Behaviour>>, headers: HeaderMap, body: Bytes| {
        behaviour.deliveries.take(&headers, &body);
        StatusCode::NO_CONTENT
    };
    let show = async |State(behaviour): State<Arc<Behaviour>>| Json(behaviour.deliveries.shown());
    router = router.route("/hooks", post(take).get(show));
    router.layer(DefaultBodyLimit::max(MAX_BODY_BYTES)).with_state(behaviour)
}

/// State that calls share.
struct Behaviour {
    failures: Failures,
    tasks: Tasks,
    deliveries: Deliveries,
}

/// Handles a call from its bytes to its answer, and logs it.
async fn answer_call(
    skill: Skill,
    State(behaviour): State<Arc<Behaviour>>,
    overrides: Result<Query<FailureOverrides>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let started = Instant::now();
    let correlation_id = id::correlation_id(headers.get(CORRELATION_HEADER).and_then(|value| value.to_str().ok()));
    let mut message_id = String::new();
    let (outcome, mut response) = match (overrides, body) {
        (Err(rejection), _) => ("bad_query", (rejection.status(), rejection.body_text()).into_response()),
        (_, Err(rejection)) => {
            let error = RpcError::INVALID_REQUEST.with(rejection.body_text());
            ("refused", (rejection.status(), Json(error.answer(&Value::Null))).into_response())
        }
        (Ok(Query(overrides)), Ok(body)) => match Request::parse(&body) {
            Err((id, error)) => ("refused", Json(error.answer(&id)).into_response()),
            Ok(None) => ("notified", StatusCode::NO_CONTENT.into_response()),
            Ok(Some(Request::Task { id, version, is_cancel, task })) => {
                let tasks = &behaviour.tasks;
                let result = if is_cancel { tasks.cancel(&task) } else { tasks.get(&task) };
                let shown = |task| rpc::result(&id, &wire::task(task, version));
                let answer = result.map_or_else(|error| error.answer(&id), shown);
                (if is_cancel { "cancelled" } else { "asked" }, Json(answer).into_response())
            }
            Ok(Some(Request::Send(call))) => {
                let Behaviour { failures, tasks, .. } = &*behaviour;
                message_id.clone_from(&call.message_id);
                let failure = failures.next(&overrides, &call.message_id);
                let delay = failures.delay(&overrides);
                // Even a sleep of no time takes the runtime up to a millisecond.
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                match failure {
                    None if call.task_id.is_some() || overrides.asks.is_some_and(|asks| asks > 0) => {
                        converse(tasks, skill, &call, &overrides)
                    }
                    None => {
                        let completed = call.completed(skill);
                        let time = overrides.task_ms.map(Duration::from_millis);
                        if call.is_streamed {
                            let time = time.unwrap_or_default();
                            let submitted = tasks.begin(completed.clone(), time);
                            let events = streamed::answer(&call.id, submitted, &completed, time, call.version);
                            ("streamed", events.into_response())
                        } else {
                            let (outcome, result) = match time {
                                None => ("completed", completed),
                                Some(time) => ("submitted", tasks.begin(completed, time)),
                            };
                            let result = wire::sent(result, call.version);
                            (outcome, Json(rpc::result(&call.id, &result)).into_response())
                        }
                    }
                    Some(failure) => (failure.name(), failed(failure, &call)),
                }
            }
        },
    };
    if let Ok(value) = HeaderValue::from_str(&correlation_id) {
        response.headers_mut().insert(CORRELATION_HEADER, value);
    }
    let (skill, duration_ms) = (skill.name(), u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
    tracing::info!(correlation_id, skill, message_id, outcome, duration_ms, "a call of {skill} ended: {outcome}");
    response
}

/// Answer of a call in a conversation: a question, or the task after the last answer.
fn converse(tasks: &Tasks, skill: Skill, call: &Call, overrides: &FailureOverrides) -> (&'static str, Response) {
    let shown = match &call.task_id {
        Some(task) => {
            let complete = |text: &str| call.completed_with(skill, text);
            tasks.answer(task, (&call.message_id, &call.text), complete)
        }
        None => Ok(tasks.begin_asking(
            call.completed(skill),
            Asking {
                most: overrides.asks.unwrap_or_default(),
                is_auth: overrides.auth,
                time: Duration::from_millis(overrides.task_ms.unwrap_or_default()),
                text: call.text.clone(),
                messages: vec![call.message_id.clone()],
            },
        )),
    };
    match shown {
        Err(error) => ("refused", Json(error.answer(&call.id)).into_response()),
        Ok(task) if call.is_streamed => ("streamed", streamed::state(&call.id, task, call.version).into_response()),
        Ok(task) => ("conversed", Json(rpc::result(&call.id, &wire::sent(task, call.version))).into_response()),
    }
}

/// Answer of a call that must fail.
fn failed(failure: Failure, call: &Call) -> Response {
    match failure {
        Failure::Unavailable => {
            let body = Json(json!({"error": "simulated failure of the demo agent"}));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
        Failure::JsonRpc => Json(RpcError::SIMULATED_FAILURE.answer(&call.id)).into_response(),
        // An error before the first byte makes hyper close the connection without an answer.
        Failure::Close => {
            let broken = stream::once(async { Err::<Bytes, _>(std::io::Error::other("simulated failure")) });
            Body::from_stream(broken).into_response()
        }
    }
}

#[cfg(test)]
mod tests;
