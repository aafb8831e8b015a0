//! The listener of the broker with TLS, client certificates, SASL and ACLs. `deploy/lib/services.sh` sets it up.

use std::path::{Path, PathBuf};

use axum::{Json, Router, http::HeaderMap, response::IntoResponse, routing::post};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use uuid::Uuid;
use workflow_api::kafka;

use crate::{
    kafka_triggers,
    program::{Environment, Program, eventually, free_port},
};

const PASSWORD: &str = "scram-password";
const WRONG_PASSWORD: &str = "planted-wrong-password-31c7";
const CLIENT_KEY_PASSWORD: &str = "client-key";

/// Resource types of ACLs, by their numbers in the protocol.
const TOPIC: u8 = 2;
const GROUP: u8 = 3;
/// Operations of ACLs.
const ALL: u8 = 2;
const CREATE: u8 = 5;
const DESCRIBE: u8 = 8;

/// The name of a variable that the tests need.
fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; ./deploy-api.sh test sets it"))
}

/// Sends a request of the Kafka protocol to the listener on which everything is allowed; the answer's body.
async fn request(key: u16, version: u16, body: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(variable("KAFKA_BROKERS")).await.expect("the broker accepts");
    let mut message = Vec::new();
    message.extend(key.to_be_bytes());
    message.extend(version.to_be_bytes());
    // The correlation id, and no client id.
    message.extend([0, 0, 0, 1, 0xff, 0xff]);
    message.extend(body);
    stream.write_u32(u32::try_from(message.len()).expect("short")).await.expect("it is sent");
    stream.write_all(&message).await.expect("it is sent");
    let mut answer = vec![0; usize::try_from(stream.read_u32().await.expect("an answer")).expect("short")];
    stream.read_exact(&mut answer).await.expect("an answer");
    answer.split_off(4)
}

fn text(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).expect("short").to_be_bytes()[..], text.as_bytes()].concat()
}

/// Allows the user an operation.
async fn allow(user: &str, resource: u8, name: &str, operation: u8) {
    const LITERAL: u8 = 3;
    const ALLOW: u8 = 3;
    let principal = text(&format!("User:{user}"));
    let parts: [&[u8]; 6] =
        [&[0, 0, 0, 1, resource], &text(name), &[LITERAL], &principal, &text("*"), &[operation, ALLOW]];
    let answer = request(30, 1, &parts.concat()).await;
    assert_eq!(answer[8..10], [0, 0], "the ACL is created");
}

/// Limits the bytes a second that the user may send.
async fn limit_producing(user: &str, bytes: f64) {
    let parts: [&[u8]; 8] = [
        &[0, 0, 0, 1],
        &[0, 0, 0, 1],
        &text("user"),
        &text(user),
        &[0, 0, 0, 1],
        &text("producer_byte_rate"),
        &bytes.to_be_bytes(),
        &[0, 0],
    ];
    let answer = request(49, 0, &parts.concat()).await;
    assert_eq!(answer[8..10], [0, 0], "the quota is set");
}

/// A folder for files of one test, removed at the end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("workflow-api-test-{}", Uuid::new_v4()));
        std::fs::create_dir(&path).expect("a folder");
        Self(path)
    }

    /// Path of a file in it.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }

    /// Replaces a file at once, as Kubernetes does; its path.
    pub fn put(&self, name: &str, text: &str) -> String {
        let (path, part) = (self.path(name), self.path("part"));
        std::fs::write(&part, text).expect("written");
        std::fs::rename(part, &path).expect("renamed");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn certificate(name: &str) -> String {
    std::fs::read_to_string(Path::new(&variable("TEST_KAFKA_TLS")).join(name)).expect("a file with a certificate")
}

/// An environment with topics of its own at the secure listener, and what TLS needs.
fn secured(pool: &PgPool, folder: &Folder) -> (Environment, Vec<String>) {
    let unique = Uuid::new_v4().simple().to_string();
    let mut environment = Environment::new(pool)
        .with("KAFKA_BROKERS", &variable("TEST_KAFKA_SECURE"))
        .with("KAFKA_DEAD_LETTER_TOPIC", &format!("dead-letters-{unique}"))
        .with("KAFKA_MONITORING_TOPIC", &format!("monitoring-{unique}"))
        .with("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
        .with("KAFKA_SSL_KEY_PASSWORD", CLIENT_KEY_PASSWORD)
        .with("KAFKA_PROPERTY_socket_timeout_ms", "14000")
        .with("MANAGEMENT_PORT", &free_port().to_string());
    for (name, file) in [
        ("KAFKA_SSL_CA_FILE", "ca.crt"),
        ("KAFKA_SSL_CERTIFICATE_FILE", "client.crt"),
        ("KAFKA_SSL_KEY_FILE", "client-encrypted.key"),
    ] {
        environment = environment.with(name, &folder.put(file, &certificate(file)));
    }
    let topics = ["EXECUTION", "CANCELLATION", "DEAD_LETTER", "MONITORING"];
    let topics = topics.map(|name| environment.variables[&format!("KAFKA_{name}_TOPIC")].clone());
    (environment, topics.into())
}

/// An agent that completes each call.
async fn start_agent() -> String {
    let handle = async |Json(call): Json<Value>| {
        let result = json!({"kind": "task", "id": "t", "status": {"state": "completed"}});
        Json(json!({"jsonrpc": "2.0", "id": call["id"], "result": result}))
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(post(handle))).await });
    url
}

/// Waits for a text in the log of each program.
async fn all_say(programs: &[&Program], text: &str) {
    eventually(&format!("both say: {text}"), async || {
        programs.iter().all(|program| program.log().contains(text)).then_some(())
    })
    .await;
}

/// Waits until readiness has exactly these problems.
async fn problems_are(url: &str, expected: &[&str]) {
    eventually(&format!("the problems are {expected:?}"), async || {
        let ready: Value = reqwest::get(url).await.ok()?.json().await.ok()?;
        let problems = ready["problems"].as_array().cloned().unwrap_or_default();
        let status = if expected.is_empty() { "ready" } else { "degraded" };
        (problems == expected && ready["status"] == status).then_some(())
    })
    .await;
}

async fn run_completes(environment: &Environment, run_id: &str) {
    eventually("the run completes", async || {
        (environment.get(&format!("/api/v1/runs/{run_id}")).await["status"] == "COMPLETED").then_some(())
    })
    .await;
}

#[sqlx::test(migrations = false)]
async fn wrong_certificates_passwords_and_acls_are_named_and_mended_while_the_service_runs(pool: PgPool) {
    let folder = Folder::new();
    let (environment, topics) = secured(&pool, &folder);
    let environment = environment
        .with("KAFKA_SASL_MECHANISM", "SCRAM-SHA-512")
        .with("KAFKA_SASL_USERNAME", "scram")
        .with("KAFKA_SASL_PASSWORD_FILE", &folder.put("password", WRONG_PASSWORD));
    folder.put("ca.crt", &certificate("other-ca.crt"));
    let api = environment.start(&["serve"]);
    let executor = environment.start(&["executor"]);
    let both = [&api, &executor];
    let management = &environment.variables["MANAGEMENT_PORT"];
    let readiness =
        [format!("{}/health/ready", environment.url), format!("http://127.0.0.1:{management}/health/ready")];

    let tls = "no TLS connection to Kafka can be opened";
    all_say(&both, tls).await;
    for url in &readiness {
        problems_are(url, &[tls]).await;
    }

    folder.put("ca.crt", &certificate("ca.crt"));
    let credentials = "Kafka refuses the credentials";
    all_say(&both, credentials).await;
    for url in &readiness {
        problems_are(url, &[credentials]).await;
    }
    let checked = environment.run(&["check", "kafka"]).await;
    assert!(!checked.status.success() && String::from_utf8_lossy(&checked.stderr).contains(credentials), "{checked:?}");

    // With a line break at the end, as editors write it.
    folder.put("password", &format!("{PASSWORD}\n"));
    let describing = "Kafka denies access: describing a topic is not allowed, an ACL is missing";
    all_say(&both, describing).await;
    let workflow_id = environment.chain("secured", &[start_agent().await]).await;
    let held = environment.execute(&workflow_id).await.expect("accepted without Kafka");

    for topic in &topics {
        allow("scram", TOPIC, topic, DESCRIBE).await;
        allow("scram", TOPIC, topic, CREATE).await;
    }
    let sending = "Kafka denies access: sending messages is not allowed, an ACL is missing";
    all_say(&both[..1], sending).await;
    problems_are(&readiness[0], &[sending]).await;
    all_say(&both[1..], "Kafka denies access: receiving messages is not allowed, an ACL is missing").await;

    for topic in &topics {
        allow("scram", TOPIC, topic, ALL).await;
    }
    allow("scram", GROUP, &environment.variables["KAFKA_GROUP_ID"], ALL).await;
    run_completes(&environment, &held).await;
    for url in &readiness {
        problems_are(url, &[]).await;
    }
    all_say(&both, "this is over: Kafka denies access").await;
    let checked = environment.run(&["check", "kafka"]).await;
    assert!(checked.status.success(), "{checked:?}");

    // Triggers read their topics with the same settings.
    let plain = Environment::new(&pool);
    let (orders, group) = (kafka_triggers::topic(&plain, 1).await, format!("wf-trigger-{}", Uuid::new_v4()));
    allow("scram", TOPIC, &orders, ALL).await;
    allow("scram", GROUP, &group, ALL).await;
    kafka_triggers::send(&plain, &orders, &["{}"], 1).await;
    let trigger = json!({"name": "orders", "kind": "kafka", "workflow_name": "secured", "input": {"text": "x"},
        "config": {"topic": orders, "group_id": group, "start": "earliest"}});
    let trigger: Value =
        environment.post("/api/v1/triggers", &trigger).await.expect("an answer").json().await.expect("JSON");
    let path = format!("/api/v1/runs?trigger_id={}", trigger["id"].as_str().expect("an id"));
    eventually("a record has started a run", async || (environment.get(&path).await["total"] == 1).then_some(())).await;

    eventually("the lag is exported", async || {
        let metrics = reqwest::get(format!("http://127.0.0.1:{management}/metrics")).await.ok()?.text().await.ok()?;
        let lag = metrics.lines().filter(|line| line.starts_with("kafka_consumer_lag{"));
        let zeros = lag.clone().filter(|line| line.ends_with(" 0")).count();
        (zeros == 4 && lag.count() == 4).then_some(())
    })
    .await;
    limit_producing("scram", 1.0).await;
    eventually("a quota slows the API down", async || {
        environment.execute(&workflow_id).await?;
        api.log().contains("a quota of Kafka slows the client for runs down").then_some(())
    })
    .await;
    for program in both {
        let log = program.log();
        for secret in [PASSWORD, WRONG_PASSWORD, CLIENT_KEY_PASSWORD, "PRIVATE KEY"] {
            assert!(!log.contains(secret), "{secret}");
        }
    }
}

#[sqlx::test(migrations = false)]
async fn tokens_for_kafka_come_from_an_authorisation_server(pool: PgPool) {
    let folder = Folder::new();
    let (environment, topics) = secured(&pool, &folder);
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let token_url = format!("http://{}/token", server.local_addr().expect("an address"));
    let issue = async |headers: HeaderMap, form: String| {
        // Both parts are encoded: a secret may have any characters.
        let expected = format!("Basic {}", base64::prelude::BASE64_STANDARD.encode("runs:s%3Acret"));
        let is_known = headers.get("authorization").is_some_and(|given| given == expected.as_str());
        if !is_known || form != "grant_type=client_credentials&scope=kafka" {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        let now = workflow_api::clock::Clock::default().now().timestamp();
        let [head, claims] = [json!({"alg": "none"}), json!({"sub": "runs", "iat": now, "exp": now + 300})]
            .map(|part| BASE64_URL_SAFE_NO_PAD.encode(part.to_string()));
        Json(json!({"access_token": format!("{head}.{claims}."), "token_type": "Bearer", "expires_in": 300}))
            .into_response()
    };
    tokio::spawn(async move { axum::serve(server, Router::new().route("/token", post(issue))).await });
    let environment = environment
        .with("KAFKA_SASL_MECHANISM", "OAUTHBEARER")
        .with("KAFKA_OAUTH_TOKEN_URL", &token_url)
        .with("KAFKA_OAUTH_CLIENT_ID", "runs")
        .with("KAFKA_OAUTH_CLIENT_SECRET_FILE", &folder.put("secret", "wrong"))
        .with("KAFKA_OAUTH_SCOPE", "kafka");
    let plain = Environment::new(&pool);
    let mut plain = Environment { variables: plain.variables, url: String::new() };
    for name in ["EXECUTION", "CANCELLATION", "DEAD_LETTER", "MONITORING"] {
        let name = format!("KAFKA_{name}_TOPIC");
        plain = plain.with(&name, &environment.variables[&name]);
    }
    kafka::topics::ensure(&plain.kafka()).await.expect("topics");
    for topic in &topics {
        allow("runs", TOPIC, topic, ALL).await;
    }
    allow("runs", GROUP, &environment.variables["KAFKA_GROUP_ID"], ALL).await;

    let api = environment.start(&["serve"]);
    let executor = environment.start(&["executor"]);
    all_say(&[&api, &executor], "the token endpoint answered 401").await;
    problems_are(&format!("{}/health/ready", environment.url), &["Kafka refuses the credentials"]).await;
    folder.put("secret", "s:cret");
    let workflow_id = environment.chain("tokens", &[start_agent().await]).await;
    let run_id = environment.execute(&workflow_id).await.expect("accepted");
    run_completes(&environment, &run_id).await;
    problems_are(&format!("{}/health/ready", environment.url), &[]).await;
    let checked = environment.run(&["check", "kafka"]).await;
    assert!(checked.status.success(), "{checked:?}");
}
