//! The command `run`: starts a run of a workflow and, if wanted, waits for its end.

use std::{
    fmt::Display,
    fs,
    io::{self, Read as _, Write as _},
    time::Duration,
};

use anyhow::{Context, bail};
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{CallError, Client, Target, events::Events, read, send};
use crate::{clock::Clock, config, run::RunStatus, usage::LimitKind, visible};

/// How long a request is repeated that the service cannot answer at the moment.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause before a request is repeated, unless the service names one.
const PAUSE: Duration = Duration::from_secs(1);

const AFTER_HELP: &str = "Environment, where there is no option:
  WORKFLOW_API_URL          address of the API; its default is PUBLIC_URL or http://localhost:API_PORT
  WORKFLOW_API_KEY          an API key
  WORKFLOW_API_KEY_FILE     a file that contains an API key
  WORKFLOW_API_TOKEN        a bearer token
  WORKFLOW_API_TOKEN_FILE   a file that contains a bearer token

Exit codes:
  0  the run has completed; without --wait: it was accepted
  1  an error: no run was started, or its end is not known
  2  wrong arguments
  3  the run has failed
  4  the run was cancelled
  5  the run has not ended within --timeout; it continues";

/// Options of `run`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    /// Name of the workflow
    name: String,
    /// The input, a JSON object; @FILE reads it from a file, - from stdin
    #[arg(default_value = "{}")]
    input: String,
    /// Wait for the end of the run: log on stderr, output as JSON on stdout. Otherwise print the id of the run
    #[arg(long)]
    wait: bool,
    /// Stop waiting after this number of seconds; the run continues
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    timeout: Option<u64>,
    /// Do not print the log of the run
    #[arg(long, short, requires = "wait")]
    quiet: bool,
    /// Priority, 0 to 9 [default: 5]
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// A limit of the run, such as cost=1.5: tokens, cost, calls, steps or seconds. Repeat it for several
    #[arg(long = "limit", value_name = "NAME=VALUE", value_parser = limit)]
    limits: Vec<(LimitKind, String)>,
    /// Find the run of an earlier command with this key instead of starting another one
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The run was accepted.
    Accepted,
    /// The run has completed.
    Completed,
    /// The run has failed.
    Failed,
    /// The run was cancelled.
    Cancelled,
    /// The run had not ended in time.
    TimedOut,
}

impl Outcome {
    /// Exit code of the process, as the help of the command describes it.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Accepted | Self::Completed => 0,
            Self::Failed => 3,
            Self::Cancelled => 4,
            Self::TimedOut => 5,
        }
    }
}

/// A run, as far as this command reads it.
#[derive(Deserialize)]
struct Run {
    run_id: String,
    status: String,
    error_message: Option<String>,
    output_data: Option<Box<RawValue>>,
}

/// Entry of a run's log.
#[derive(Deserialize)]
struct Entry {
    timestamp: String,
    level: String,
    message: String,
}

/// Body of a request to execute.
#[derive(Serialize)]
struct Request<'a> {
    input_data: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Box<RawValue>>,
}

/// Starts the run, and waits for its end if the options say so.
pub async fn run(options: &Options, api: &config::Api, clock: &Clock) -> anyhow::Result<Outcome> {
    let input = input(&options.input)?;
    let client = Client::new(&options.target, api)?;
    let run_id = start(&client, options, &input, clock).await?;
    if !options.wait {
        println!("{run_id}");
        return Ok(Outcome::Accepted);
    }
    let report = |line: &dyn Display| {
        if !options.quiet {
            say(line);
        }
    };
    report(&format!("Run {run_id} of {}", options.name));
    let end = follow(&client, &run_id, &report, clock);
    let run = if let Some(secs) = options.timeout {
        let Some(run) = clock.timeout(Duration::from_secs(secs), end).await else {
            say(&format!("workflow-api: run {run_id} has not ended after {secs} s; it continues"));
            return Ok(Outcome::TimedOut);
        };
        run?
    } else {
        end.await?
    };
    let outcome = match RunStatus::parse(&run.status) {
        Some(RunStatus::Completed) => {
            println!("{}", run.output_data.map_or_else(|| "null".to_owned(), |output| one_line(output.get())));
            return Ok(Outcome::Completed);
        }
        Some(RunStatus::Cancelled) => Outcome::Cancelled,
        _ => Outcome::Failed,
    };
    let reason = run.error_message.unwrap_or_else(|| "no reason was stored".to_owned());
    say(&format!("workflow-api: run {run_id} is {}: {reason}", run.status));
    Ok(outcome)
}

/// The input of the run.
fn input(given: &str) -> anyhow::Result<Box<RawValue>> {
    let text = match (given, given.strip_prefix('@')) {
        ("-", _) => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).context("the input cannot be read from stdin")?;
            text
        }
        (_, Some(path)) => fs::read_to_string(path).with_context(|| format!("the input cannot be read from {path}"))?,
        _ => given.to_owned(),
    };
    let value: Box<RawValue> = serde_json::from_str(text.trim()).context("the input is not JSON")?;
    if !value.get().starts_with('{') {
        bail!("the input is not a JSON object");
    }
    Ok(value)
}

/// A limit on the command line. The service checks its range.
fn limit(given: &str) -> Result<(LimitKind, String), String> {
    let names = || LimitKind::ALL.map(LimitKind::as_str).join(", ");
    let (name, value) = given.split_once('=').ok_or("it is not NAME=VALUE")?;
    let kind = LimitKind::ALL.into_iter().find(|kind| kind.as_str() == name);
    let kind = kind.ok_or_else(|| format!("the name is not one of {}", names()))?;
    let is_plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_number = match value.split_once('.') {
        Some((whole, places)) => kind == LimitKind::Cost && is_plain(whole) && is_plain(places),
        None => is_plain(value),
    };
    if is_number { Ok((kind, value.to_owned())) } else { Err(format!("{value:?} is no limit of {name}")) }
}

/// Limits as the service reads them; `None`: there are none. Of two with one name the last one counts.
fn limits(given: &[(LimitKind, String)]) -> Option<Box<RawValue>> {
    let of = |kind: LimitKind| given.iter().rev().find(|(of, _)| *of == kind).map(|(_, value)| (kind, value));
    // A text keeps the places of a cost as they are.
    let json = |(kind, value): (LimitKind, &String)| {
        let number = value.trim_start_matches('0');
        let number = if number.is_empty() { "0" } else { number };
        let value = if kind == LimitKind::Cost { format!("\"{value}\"") } else { number.to_owned() };
        format!("\"{}\":{value}", kind.as_str())
    };
    let members: Vec<_> = LimitKind::ALL.into_iter().filter_map(of).map(json).collect();
    let object = (!members.is_empty()).then(|| format!("{{{}}}", members.join(",")))?;
    RawValue::from_string(object).ok()
}

/// Starts the run; its id. Requests that may have been lost are repeated with the same idempotency key.
async fn start(client: &Client, options: &Options, input: &RawValue, clock: &Clock) -> anyhow::Result<String> {
    let body = serde_json::to_string(&Request {
        input_data: input,
        priority: options.priority,
        limits: limits(&options.limits),
    })?;
    let key = options.idempotency_key.clone().unwrap_or_else(|| Uuid::new_v4().to_string());
    let begun = clock.instant();
    loop {
        let request = client
            .post(&["workflow-names", &options.name, "execute"])
            .header("idempotency-key", &key)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.clone());
        match read::<Run>(request).await {
            Ok(run) => return Ok(run.run_id),
            Err(error) => {
                // Without a connection the address is wrong, or there is no service. 409: an earlier try is under way.
                let is_transient = error.is_transient() || error.status() == Some(StatusCode::CONFLICT);
                let pause = error.retry_after().unwrap_or(PAUSE);
                if matches!(error, CallError::Connect(_)) || !is_transient || clock.since(begun) + pause > PATIENCE {
                    return Err(error.into());
                }
                say(&format!("{:#}; trying again in {} s", anyhow::Error::from(error), pause.as_secs()));
                clock.sleep(pause).await;
            }
        }
    }
}

/// Reports the entries of a run's log as they come; the run as it is at its end. Streams end when a process stops, and
/// can be refused; whatever happened to one, the run itself is read, and if it has not ended the next stream goes on.
async fn follow(client: &Client, run_id: &str, report: &dyn Fn(&dyn Display), clock: &Clock) -> anyhow::Result<Run> {
    let mut last_id = String::new();
    let mut heard = clock.instant();
    let mut is_interrupted = false;
    loop {
        if stream(client, run_id, &mut last_id, report).await.is_ok() {
            (heard, is_interrupted) = (clock.instant(), false);
        }
        let mut pause = PAUSE;
        match read::<Run>(client.get(&["runs", run_id])).await {
            Ok(run) if RunStatus::parse(&run.status).is_some_and(RunStatus::is_terminal) => return Ok(run),
            Ok(_) => (heard, is_interrupted) = (clock.instant(), false),
            Err(error) => {
                pause = error.retry_after().unwrap_or(PAUSE);
                if !error.is_transient() || clock.since(heard) + pause > PATIENCE {
                    return Err(error).with_context(|| format!("the end of run {run_id} is not known; it continues"));
                }
                if !std::mem::replace(&mut is_interrupted, true) {
                    report(&format!("{:#}; trying again", anyhow::Error::from(error)));
                }
            }
        }
        clock.sleep(pause).await;
    }
}

/// Reads an event stream to its end, from where the one before has ended.
async fn stream(
    client: &Client,
    run_id: &str,
    last_id: &mut String,
    report: &dyn Fn(&dyn Display),
) -> Result<(), CallError> {
    let request = client.get(&["runs", run_id, "events"]).header("last-event-id", last_id.as_str());
    let mut events = Events::new(send(request).await?);
    while let Some((event, id)) = events.next().await? {
        *last_id = id;
        // Entries have no name. The event `end` has one, and nothing to show.
        if event.name.is_empty()
            && let Ok(Entry { timestamp, level, message }) = serde_json::from_str(&event.data)
        {
            report(&format!("{timestamp} {:<7} {}", level.to_uppercase(), message.replace(['\r', '\n'], " ")));
        }
    }
    Ok(())
}

/// Writes a line to stderr. The command goes on if there is no reader any more.
fn say(line: &dyn Display) {
    let _ = writeln!(io::stderr().lock(), "{}", visible::escaped_lines(&line.to_string()));
}

/// JSON in one line that shows all its characters. Line breaks and tabs stand between values only.
fn one_line(json: &str) -> String {
    visible::json(&json.replace(['\n', '\r', '\t'], " ")).into_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use axum::{Json, Router, response::IntoResponse};

    use super::*;

    /// Client of a service that answers every request with 503. Each request takes 10 s by the clock.
    async fn client_of_a_busy_service(clock: &Clock) -> (Client, Arc<AtomicU32>) {
        let requests = Arc::<AtomicU32>::default();
        let (clock, count) = (clock.clone(), Arc::clone(&requests));
        let answer = async move || {
            count.fetch_add(1, Ordering::Relaxed);
            clock.advance(Duration::from_secs(10));
            let body = Json(serde_json::json!({"detail": "Busy"}));
            (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "0")], body).into_response()
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/api/v1", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        (Client { http: reqwest::Client::builder().no_proxy().build().unwrap(), base }, requests)
    }

    #[tokio::test]
    async fn a_start_is_repeated_for_30_s() {
        let clock = Clock::stopped();
        let (client, requests) = client_of_a_busy_service(&clock).await;
        let target = Target { url: None, api_key_file: None, token_file: None };
        let options = Options {
            name: "w".to_owned(),
            input: "{}".to_owned(),
            wait: false,
            timeout: None,
            quiet: true,
            priority: None,
            limits: Vec::new(),
            idempotency_key: None,
            target,
        };
        let error = start(&client, &options, &input("{}").unwrap(), &clock).await.unwrap_err();
        assert!(error.to_string().contains("503 Service Unavailable: Busy"), "{error}");
        assert_eq!(requests.load(Ordering::Relaxed), 4);
    }

    #[tokio::test]
    async fn the_end_of_a_run_is_awaited_through_30_s_without_an_answer() {
        let clock = Clock::stopped();
        let (client, requests) = client_of_a_busy_service(&clock).await;
        let end = follow(&client, "run-1", &|_| {}, &clock).await;
        let error = end.err().expect("it is not known");
        assert_eq!(error.to_string(), "the end of run run-1 is not known; it continues");
        // Each time the event stream, then the run.
        assert_eq!(requests.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn an_output_is_one_line_with_its_numbers_as_they_are() {
        let output = "{\n\t\"a\": 12345678901234567890.10,\r\n \"b\": \"\u{202e}\"}";
        assert_eq!(one_line(output), r#"{  "a": 12345678901234567890.10,   "b": "\u202e"}"#);
    }

    #[test]
    fn limits_have_a_known_name_and_a_number() {
        let read = |given: &[&str]| given.iter().map(|given| limit(given)).collect::<Result<Vec<_>, _>>();
        let given = read(&["cost=1.50", "calls=007", "tokens=0", "calls=9"]).expect("limits");
        assert_eq!(limits(&given).expect("an object").get(), r#"{"tokens":0,"cost":"1.50","calls":9}"#);
        assert!(limits(&[]).is_none());
        for wrong in
            ["", "cost", "price=1", "cost=", "cost=1.", "cost=.5", "cost=-1", "calls=1.5", "calls=1e3", "calls= 1"]
        {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_input_is_a_json_object() {
        assert_eq!(input(" {\"n\": 1.50} ").unwrap().get(), "{\"n\": 1.50}");
        for wrong in ["", "[]", "1", "{", "text"] {
            assert!(input(wrong).is_err(), "{wrong}");
        }
    }
}
