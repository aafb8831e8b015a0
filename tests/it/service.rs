//! The service as tests use it: requests go straight into the router, everything behind it is real.

use std::{collections::HashMap, time::Duration};

use axum::{Router, body::Body};
use futures_util::StreamExt as _;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use rdkafka::{
    consumer::{BaseConsumer, Consumer as _},
    message::{Message as _, OwnedHeaders, OwnedMessage},
    producer::{FutureProducer, FutureRecord},
};
use serde_json::{Value, json};
use sqlx::{PgPool, postgres::PgConnectOptions};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;
use workflow_api::{
    api::{
        self,
        gate::Gate,
        vocabulary::{app::App, client::Peer},
    },
    clock::Clock,
    config::{Config, ConnectOptions},
    db, kafka,
    lifecycle::Lifecycle,
};

pub use crate::eventually::eventually;
use crate::eventually::{MAX_POLLS, POLL};

pub struct Service {
    pub config: Config,
    pub lifecycle: Lifecycle,
    pub drained: CancellationToken,
    pub router: Router,
    /// Clock for credentials, cache entries and the time limits of requests.
    pub clock: Clock,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    /// Reads an answer to its end.
    pub async fn read(answer: Response<Body>) -> Self {
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.expect("a body that is complete").to_bytes();
        Self { status: parts.status, headers: parts.headers, text: String::from_utf8(body.to_vec()).expect("text") }
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("JSON expected, not {:?}", self.text))
    }

    /// The body, after a check of the status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self.json()
    }

    /// The `field type` of each entry of `errors`.
    pub fn field_errors(&self) -> Vec<String> {
        let body = self.json();
        let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let errors = body["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().map(|entry| format!("{} {}", text(entry, "field"), text(entry, "type"))).collect()
    }

    /// The body of an error, after a check of the status and of all that the contract says about errors.
    #[track_caller]
    pub fn error(self, status: u16) -> Value {
        let correlation_id = self.header("x-correlation-id").map(str::to_owned);
        assert_eq!(self.header("content-type"), Some("application/json"), "{}", self.text);
        let body = self.expect(status);
        let members: Vec<_> = body.as_object().expect("an object").keys().map(String::as_str).collect();
        let mut expected = vec!["code", "detail", "error", "path", "request_id", "status_code", "timestamp"];
        if status == 422 && body["code"] == "validation_error" {
            expected.insert(3, "errors");
            for entry in body["errors"].as_array().expect("a list") {
                assert!(["field", "message", "type"].iter().all(|name| entry[name].is_string()), "{body}");
            }
        }
        assert_eq!(members, expected);
        assert!(["code", "detail", "error", "path", "timestamp"].iter().all(|name| body[name].is_string()), "{body}");
        assert_eq!((&body["status_code"], body["request_id"].as_str()), (&json!(status), correlation_id.as_deref()));
        body
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Settings for a test's own database and topics. `more` comes last, so it may replace anything.
pub fn config(pool: &PgPool, more: &[(&str, &str)]) -> Config {
    let brokers = std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS names the test broker");
    let unique = Uuid::new_v4().simple().to_string();
    let mut environment: HashMap<String, String> = [
        ("DATABASE_URL", "postgresql://replaced.below/".to_owned()),
        ("KAFKA_BROKERS", brokers),
        ("KAFKA_EXECUTION_TOPIC", format!("execution-{unique}")),
        ("KAFKA_CANCELLATION_TOPIC", format!("cancellation-{unique}")),
        ("KAFKA_GROUP_ID", format!("group-{unique}")),
        ("KAFKA_TOPIC_PARTITIONS", "2".to_owned()),
        ("EGRESS_ALLOW", "127.0.0.0/8".to_owned()),
        // Many tests run at a time: what is slow is not yet a failure.
        ("DATABASE_ACQUIRE_TIMEOUT_MS", "8000".to_owned()),
        ("DATABASE_CONNECT_TIMEOUT_MS", "10000".to_owned()),
        // Tests write runs of any time.
        ("RUN_RETENTION_DAYS", "0".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    environment.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let mut config = Config::load(environment.into_iter()).expect("settings of a test are valid");
    config.database.connect = ConnectOptions::from((*pool.connect_options()).clone());
    config
}

/// The service's own pool, on a test's database.
pub fn own_pool(pool: &PgPool) -> db::Pool {
    db::pool(&config(pool, &[]).database)
}

/// The same settings, with a database behind a port on which nobody listens.
pub fn without_database(mut config: Config) -> Config {
    config.database.connect = "postgresql://nobody@127.0.0.1:1/none".parse::<PgConnectOptions>().expect("a URL").into();
    config
}

impl Service {
    pub fn start(pool: &PgPool) -> Self {
        Self::start_with(config(pool, &[]))
    }

    pub fn start_with(config: Config) -> Self {
        Self::start_by(config, Clock::adjustable())
    }

    pub fn start_by(config: Config, clock: Clock) -> Self {
        let (lifecycle, drained) = (Lifecycle::new(), CancellationToken::new());
        let app = App::start(config.clone(), db::pool(&config.database), &lifecycle, &drained, clock.clone())
            .expect("the parts start without any connection");
        let gate = Gate::start(app.clone(), &lifecycle).expect("the gate starts without any connection");
        Self { router: api::router(&gate), config, lifecycle, drained, clock }
    }

    /// Sends a request with any body and headers.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let (status, headers, bytes) = self.send_for_bytes(method, path, headers, body.into()).await;
        Answer { status, headers, text: String::from_utf8(bytes).expect("text") }
    }

    /// As [`Self::send`], without a body, over a connection from that address.
    pub async fn send_from(&self, peer: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        Answer::read(self.open_from(peer, method, path, headers, Body::empty()).await).await
    }

    /// Gets what need not be text.
    pub async fn bytes(&self, path: &str) -> (StatusCode, HeaderMap, Vec<u8>) {
        self.send_for_bytes("GET", path, &[], Body::empty()).await
    }

    /// Sends a request and leaves the body of the answer unread.
    pub async fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Body) -> Response<Body> {
        let request = request(method, path, headers, body);
        self.router.clone().oneshot(request).await.expect("the router answers")
    }

    /// As [`Self::open`], over a connection from that address.
    pub async fn open_from(
        &self,
        peer: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Response<Body> {
        let mut request = request(method, path, headers, body);
        request.extensions_mut().insert(Peer(peer.parse().expect("an address")));
        self.router.clone().oneshot(request).await.expect("the router answers")
    }

    async fn send_for_bytes(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> (StatusCode, HeaderMap, Vec<u8>) {
        let (parts, body) = self.open(method, path, headers, body).await.into_parts();
        let body = body.collect().await.expect("a body that is complete").to_bytes();
        (parts.status, parts.headers, body.to_vec())
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], Body::empty()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], Body::empty()).await
    }

    /// Registers an agent of that name; its URL leads nowhere unless given.
    pub async fn agent(&self, name: &str, url: &str) -> Value {
        self.post("/api/v1/agents", &json!({"name": name, "url": url})).await.expect(201)
    }

    /// Stores a workflow that calls these agents one after the other, the step ids being `s0`, `s1`, …
    pub async fn chain(&self, name: &str, agents: &[&str]) -> Value {
        let steps: serde_json::Map<String, Value> = agents
            .iter()
            .enumerate()
            .map(|(index, agent)| {
                let id = format!("s{index}");
                let next = (index + 1 < agents.len()).then(|| format!("s{}", index + 1));
                let source = match index {
                    0 => "${workflow.input.text}".to_owned(),
                    _ => format!("${{s{}.output.text}}", index - 1),
                };
                let step = json!({"id": id, "agent_name": agent, "next_step": next, "input_mapping": {"text": source}});
                (id, step)
            })
            .collect();
        let body = json!({"name": name, "start_step": "s0", "steps": steps});
        self.post("/api/v1/workflows", &body).await.expect(201)
    }

    /// An agent and a workflow of one step that calls it; returns the workflow's id.
    pub async fn one_step_workflow(&self) -> String {
        self.agent("worker", "http://127.0.0.1:9/").await;
        self.chain("one-step", &["worker"]).await["id"].as_str().expect("an id").to_owned()
    }

    /// Starts a run and returns its id.
    pub async fn execute(&self, workflow_id: &str) -> String {
        let path = format!("/api/v1/workflows/{workflow_id}/execute");
        let run = self.post(&path, &json!({"input_data": {"text": "hello"}})).await.expect(202);
        run["run_id"].as_str().expect("a run id").to_owned()
    }

    /// Stops as on SIGTERM: requests are over, what is queued is finished.
    pub async fn stop(&self) {
        self.lifecycle.soft_stop().cancel();
        self.drained.cancel();
        self.lifecycle.ended().await;
    }
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: Body) -> Request<Body> {
    let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).expect("a method")).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body).expect("a well-formed request")
}

impl Drop for Service {
    fn drop(&mut self) {
        self.lifecycle.soft_stop().cancel();
        self.drained.cancel();
        self.lifecycle.hard_stop().cancel();
    }
}

/// The outputs of many futures, some of which run at a time: as many as find a connection to the database.
pub async fn in_turn<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    futures_util::stream::iter(futures).buffered(16).collect().await
}

/// Advances the clock in such steps until the future is ready. Returns its output and the time by which the clock was
/// advanced.
pub async fn passing<F: Future>(clock: &Clock, step: Duration, future: F) -> (F::Output, Duration) {
    let (began, mut future) = (clock.instant(), std::pin::pin!(future));
    let mut steps = tokio::time::interval(Duration::from_millis(50));
    steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    steps.reset();
    loop {
        // Work that is due is done before the next step.
        tokio::select! {
            biased;
            output = &mut future => return (output, clock.since(began)),
            _ = steps.tick() => clock.advance(step),
        }
    }
}

/// Seed of a random test: the given one, or a new one. It is printed, so that a failure can be repeated.
pub fn seed() -> u64 {
    const GIVEN: &str = "WORKFLOW_API_TEST_SEED";
    let given = std::env::var(GIVEN).ok().map(|seed| seed.parse().expect("a seed is a number"));
    let seed = given.unwrap_or_else(rand::random);
    eprintln!("{GIVEN}={seed} repeats this");
    seed
}

/// A record as a consumer of somebody else sees it.
#[derive(Clone, Debug)]
pub struct Record {
    pub key: String,
    pub value: Value,
}

/// Sends a record as another program does.
pub async fn send(config: &Config, topic: &str, key: Option<&[u8]>, value: Option<&[u8]>, headers: OwnedHeaders) {
    kafka::topics::ensure(&config.kafka).await.expect("topics");
    let producer: FutureProducer =
        kafka::client_config(&config.kafka).set("message.max.bytes", "20000000").create().expect("valid settings");
    let mut record = FutureRecord::<[u8], [u8]>::to(topic).headers(headers);
    record.key = key;
    record.payload = value;
    producer.send(record, Duration::from_secs(30)).await.expect("sent");
}

/// Reads a topic from its beginning until `count` records are there.
pub async fn records(config: &Config, topic: &str, count: usize) -> Vec<Record> {
    let record = |message: &OwnedMessage| {
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let value = serde_json::from_str(&text(message.payload())).expect("JSON");
        Record { key: text(message.key()), value }
    };
    raw_records(config, topic, count, |_| true).await.iter().map(record).collect()
}

/// Reads a topic from its beginning until `count` records are there that are wanted.
pub async fn raw_records(
    config: &Config,
    topic: &str,
    count: usize,
    is_wanted: impl Fn(&OwnedMessage) -> bool + Send + 'static,
) -> Vec<OwnedMessage> {
    let (config, topic) = (config.clone(), topic.to_owned());
    let read = move || {
        let consumer: BaseConsumer = kafka::client_config(&config.kafka)
            .set("group.id", format!("reader-{}", Uuid::new_v4()))
            .set("auto.offset.reset", "earliest")
            .create()
            .expect("valid settings");
        consumer.subscribe(&[&topic]).expect("a topic name");
        let (mut records, mut polls) = (Vec::new(), 0..MAX_POLLS);
        while records.len() < count {
            if let Some(Ok(message)) = consumer.poll(POLL) {
                records.extend(Some(message.detach()).filter(&is_wanted));
            } else {
                assert!(polls.next().is_some(), "{} of {count} records on {topic}", records.len());
            }
        }
        records
    };
    tokio::task::spawn_blocking(read).await.expect("the reader does not panic")
}
