//! Outgoing webhooks: what arrives at a receiver, when, and how often.

mod endpoints;
mod isolation;
mod limits;
mod recovery;
mod sending;

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, Uri};
use serde_json::{Value, json};
use sqlx::PgPool;
use standardwebhooks::Webhook;
use tokio::sync::Semaphore;

use workflow_api::event::catalogue;

use crate::service::{Answer, Service, eventually};

pub const WEBHOOKS: &str = "/api/v1/webhooks";

/// What a receiver got.
#[derive(Clone, Debug)]
pub struct Received {
    pub path: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    /// Whether the official verifier accepts it with that secret.
    pub fn is_verified_with(&self, secret: &str) -> bool {
        Webhook::new(secret).expect("a secret").verify(self.body.as_bytes(), &self.headers).is_ok()
    }

    /// Whether one of its signatures is the one that the official crate makes with that secret. Its age does not matter:
    /// tests advance the clock.
    pub fn is_signed_with(&self, secret: &str) -> bool {
        let at = self.header("webhook-timestamp").parse().expect("seconds");
        let signer = Webhook::new(secret).expect("a secret");
        let expected = signer.sign(self.header("webhook-id"), at, self.body.as_bytes()).expect("a signature");
        self.header("webhook-signature").split(' ').any(|signature| signature == expected)
    }
}

type Answering = dyn Fn(&Received, usize) -> Response + Send + Sync;

/// A receiver that answers what a test wants and remembers what it got.
#[derive(Clone)]
pub struct Receiver(Arc<Parts>);

struct Parts {
    url: String,
    got: Mutex<Vec<Received>>,
    answer: Box<Answering>,
    /// While closed, requests to `/slow` are not answered.
    gate: Semaphore,
}

impl Receiver {
    /// Answers with what `answer` makes of a request and the number of those to its path before it.
    pub async fn start(answer: impl Fn(&Received, usize) -> Response + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let parts = Parts { url, got: Mutex::default(), answer: Box::new(answer), gate: Semaphore::new(0) };
        let receiver = Self(Arc::new(parts));
        let router = Router::new().fallback(Self::handle).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        receiver
    }

    /// Answers everything with 204.
    pub async fn content() -> Self {
        Self::start(|_, _| StatusCode::NO_CONTENT.into_response()).await
    }

    async fn handle(State(receiver): State<Self>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
        let body = String::from_utf8(body.to_vec()).expect("text");
        check_schema(&body);
        let received = Received { path: uri.path().to_owned(), headers, body };
        let before = {
            let mut got = receiver.0.got.lock().expect("no panic");
            let before = got.iter().filter(|other| other.path == received.path).count();
            got.push(received.clone());
            before
        };
        if received.path == "/slow" {
            drop(receiver.0.gate.acquire().await);
        }
        (receiver.0.answer)(&received, before)
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.0.url)
    }

    /// What it got at that path.
    pub fn at(&self, path: &str) -> Vec<Received> {
        self.0.got.lock().expect("no panic").iter().filter(|received| received.path == path).cloned().collect()
    }

    /// The number of requests that it got at that path.
    pub fn count(&self, path: &str) -> usize {
        self.0.got.lock().expect("no panic").iter().filter(|received| received.path == path).count()
    }

    /// Lets requests to `/slow` be answered.
    pub fn open(&self) {
        self.0.gate.add_permits(Semaphore::MAX_PERMITS);
    }

    /// What it got at that path, as soon as that is so many.
    pub async fn got(&self, path: &str, count: usize) -> Vec<Received> {
        eventually(&format!("{count} deliveries at {path}"), async || {
            let got = self.count(path);
            assert!(got <= count, "{got} at {path}, not {count}");
            (got == count).then(|| self.at(path))
        })
        .await
    }
}

/// Checks that an event is as the catalogue has it, unless a test has made it up.
fn check_schema(body: &str) {
    let Ok(event) = serde_json::from_str::<Value>(body) else { return };
    let Some(known) = event["type"].as_str().and_then(catalogue::find) else { return };
    let data = &event["data"];
    // The member that says what it is about.
    let subject = match known.name.split_once('.') {
        Some(("run" | "step", _)) => "run_id",
        Some((subject, _)) => subject,
        None => return,
    };
    if data.get(subject).is_none() || data.get("n").is_some() {
        return;
    }
    let schema = known.schema();
    let validator = jsonschema::draft202012::options().should_validate_formats(true).build(&schema).expect("a schema");
    let errors: Vec<String> = validator.iter_errors(&event).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}: {body}");
}

/// Creates a webhook; `more` may replace anything.
pub async fn create(service: &Service, url: &str, more: Value) -> Value {
    let mut body = json!({"name": "hook", "url": url, "event_types": ["*"]});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    service.post(WEBHOOKS, &body).await.expect(201)
}

pub fn path(webhook: &Value) -> String {
    format!("{WEBHOOKS}/{}", webhook["id"].as_str().expect("an id"))
}

pub fn secret(webhook: &Value) -> &str {
    webhook["secret"].as_str().expect("a secret")
}

/// Sends a PATCH.
pub async fn patch(service: &Service, webhook: &Value, body: &Value) -> Answer {
    service.send("PATCH", &path(webhook), &[("content-type", "application/json")], body.to_string()).await
}

pub async fn get(service: &Service, webhook: &Value) -> Value {
    service.get(&path(webhook)).await.expect(200)
}

/// Its deliveries, the oldest first, as soon as all have ended and there are so many.
pub async fn ended(service: &Service, webhook: &Value, count: usize) -> Vec<Value> {
    let list = format!("{}/deliveries?sort_order=asc&page_size=100", path(webhook));
    eventually(&format!("{count} deliveries end"), async || {
        let found = service.get(&list).await.expect(200)["items"].as_array().cloned().expect("a list");
        (found.len() == count && found.iter().all(|delivery| !delivery["ended_at"].is_null())).then_some(found)
    })
    .await
}

/// The delivery with its attempts.
pub async fn delivery(service: &Service, id: &Value) -> Value {
    service.get(&format!("/api/v1/webhook-deliveries/{}", id.as_str().expect("an id"))).await.expect(200)
}

/// Records events of no run.
pub async fn record(pool: &PgPool, event_type: &str, count: i32) {
    record_of(pool, "default", event_type, count).await;
}

/// As [`record`], of that organisation.
pub async fn record_of(pool: &PgPool, organization: &str, event_type: &str, count: i32) {
    let sql = "SELECT count(record_event($3, $1, NULL, jsonb_build_object('n', n))) FROM generate_series(1, $2) n";
    sqlx::query(sql).bind(event_type).bind(count).bind(organization).execute(pool).await.expect("events");
}

/// Number of the deliveries in that state.
pub async fn in_state(pool: &PgPool, state: &str) -> i64 {
    let sql = "SELECT count(*) FROM webhook_deliveries WHERE state = $1";
    sqlx::query_scalar(sql).bind(state).fetch_one(pool).await.expect("a count")
}
