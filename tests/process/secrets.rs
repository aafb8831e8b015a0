//! Secrets are planted wherever they are taken, and looked for wherever something comes out.

use std::fmt::Write as _;

use axum::{
    Json, Router,
    http::{HeaderMap, Uri},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::access::api_key::ApiKey;

use crate::program::{Environment, eventually};

const AGENT_TOKEN: &str = "planted-agent-token-5d1f";
const AGENT_KEY: &str = "planted-agent-key-77aa";
/// In the query of agents' URLs, which are stored in clear.
const AGENT_QUERY: &str = "sown-agent-query-88c4";
const REPLACED_TOKEN: &str = "planted-replaced-token-19c2";
const REFUSED_TOKEN: &str = "planted-refused-token-e03b";
const IMPORTED_TOKEN: &str = "planted-imported-token-40fe";
const JWT_SECRET: &str = "planted-jwt-secret-that-is-long-enough-8c1d";
const DATABASE_PASSWORD: &str = "planted-database-password-b6d2";
const ENCRYPTION_KEY: &str = "9f3c1b7a5d2e8f406c1d3b5a79e8f0c2d4b6a89f7e5c3d1b0a2f4e6d8c9b7a51";

/// An agent that refuses the call, and repeats its credentials as it does so.
async fn start_agent() -> String {
    let handle = async |uri: Uri, headers: HeaderMap, Json(call): Json<Value>| {
        let headers = headers.iter().map(|(name, value)| format!("{name}: {value:?}"));
        let shown: Vec<_> = [uri.to_string()].into_iter().chain(headers).collect();
        Json(json!({"jsonrpc": "2.0", "id": call["id"], "error": {"code": -32000, "message": shown.join(", ")}}))
    };
    let router = Router::new().fallback(axum::routing::any(handle));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

/// Every row of every table, as text.
async fn dump(pool: &PgPool) -> String {
    let sql = "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'public'";
    let tables: Vec<String> = sqlx::query_scalar(sql).fetch_all(pool).await.expect("tables");
    assert!(tables.len() > 5, "{tables:?}");
    let mut text = String::new();
    for table in tables {
        let rows: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT t::text FROM \"{table}\" t")))
            .fetch_all(pool)
            .await
            .unwrap_or_else(|error| panic!("{table}: {error}"));
        writeln!(text, "{table}: {}", rows.join("\n")).expect("a string");
    }
    text
}

#[sqlx::test(migrations = false)]
async fn planted_secrets_come_out_nowhere(pool: PgPool) {
    let bootstrap = ApiKey::generate("live");
    let environment = Environment::new(&pool);
    let url = environment.variables["DATABASE_URL"].clone();
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let (user, host) = rest.split_once('@').expect("a user");
    let user = user.split(':').next().expect("a name");
    let environment = environment
        .with("DATABASE_URL", &format!("{scheme}://{user}:{DATABASE_PASSWORD}@{host}"))
        .with("JWT_SECRET", JWT_SECRET)
        .with("BOOTSTRAP_API_KEY", bootstrap.expose())
        .with("ENCRYPTION_KEY", ENCRYPTION_KEY)
        .with("RATE_LIMIT_FAILED_AUTH", "3")
        .with("LOG_LEVEL", "DEBUG")
        .with("DATABASE_ECHO", "true");
    let mut api = environment.serve().await;
    let mut executor = environment.start(&["executor"]);
    let agent = start_agent().await;
    let client = reqwest::Client::new();
    let admin = bootstrap.expose();
    let send = async |method: &str, path: &str, (name, value): (&str, &str), body: String| {
        let method = method.parse::<reqwest::Method>().expect("a method");
        let request = client.request(method, format!("{}{path}", environment.url)).header(name, value);
        let request = request.header("content-type", "application/json").body(body);
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    };
    let as_admin = async |method: &str, path: &str, body: Value, status: u16| {
        let (got, text) = send(method, path, ("x-api-key", admin), body.to_string()).await;
        assert_eq!(got, status, "{method} {path}: {text}");
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    eventually("the first key counts", async || {
        (send("GET", "/api/v1/agents", ("x-api-key", admin), String::new()).await.0 == 200).then_some(())
    })
    .await;

    // What is taken.
    let with = |name: &str, auth_type: &str, auth_config: Value| {
        json!({"name": name, "url": format!("{agent}/?key={AGENT_QUERY}"), "auth_type": auth_type,
        "auth_config": auth_config, "retry_config": {"max_retries": 1}})
    };
    let bearer =
        as_admin("POST", "/api/v1/agents", with("bearer", "bearer", json!({"token": REPLACED_TOKEN})), 201).await;
    let bearer_path = format!("/api/v1/agents/{}", bearer["id"].as_str().expect("an id"));
    as_admin("PUT", &bearer_path, json!({"auth_config": {"token": AGENT_TOKEN}}), 200).await;
    let keyed = json!({"key": AGENT_KEY, "header_name": "X-Agent-Key"});
    as_admin("POST", "/api/v1/agents", with("keyed", "apikey", keyed), 201).await;
    let document = json!({"format": "workflow-api/definitions", "version": 1,
        "agents": [with("imported", "bearer", json!({"token": IMPORTED_TOKEN}))]});
    let exported = as_admin("GET", "/api/v1/export", Value::Null, 200).await;
    let document = json!({"format": exported["format"], "version": exported["version"], "agents": document["agents"]});
    as_admin("POST", "/api/v1/import", document.clone(), 200).await;
    let made = as_admin("POST", "/api/v1/api-keys", json!({"name": "made", "role": "viewer"}), 201).await;
    let made = made["key"].as_str().expect("a key").to_owned();
    let (_, issued) = send("POST", "/api/v1/auth/token", ("x-api-key", &made), String::new()).await;
    let issued: Value = serde_json::from_str(&issued).expect("JSON");
    let issued = issued["access_token"].as_str().expect("a token").to_owned();

    // What is refused, or fails.
    for (path, body) in [
        ("/api/v1/agents", with("bearer", "bearer", json!({"token": REFUSED_TOKEN})).to_string()),
        ("/api/v1/agents", with("x", "bearer", json!({"token": format!("{REFUSED_TOKEN}\n")})).to_string()),
        ("/api/v1/agents", with("x", "none", json!({"token": REFUSED_TOKEN})).to_string()),
        ("/api/v1/agents", with("x", "apikey", json!({"key": REFUSED_TOKEN, "header_name": "a b"})).to_string()),
        ("/api/v1/agents", format!("{{\"auth_config\":{{\"token\":\"{REFUSED_TOKEN}\"")),
        ("/api/v1/agents", format!("{{\"auth_config\":\"{REFUSED_TOKEN}\",\"name\":1}}")),
        ("/api/v1/import", json!({"agents": [with("y", "bearer", json!({"key": REFUSED_TOKEN}))]}).to_string()),
    ] {
        let (status, text) = send("POST", path, ("x-api-key", admin), body).await;
        assert!((400..500).contains(&status) && !text.contains("planted"), "{path}: {status} {text}");
    }
    let guess = ApiKey::generate("live");
    for index in 0..8 {
        let (status, text) = send("GET", "/api/v1/agents", ("x-api-key", guess.expose()), String::new()).await;
        assert!(status == 401 && index < 4 || status == 429, "{index}: {status}");
        assert!(!text.contains(guess.expose()));
        let forged = format!("Bearer {REFUSED_TOKEN}");
        let (_, text) = send("GET", "/api/v1/agents", ("authorization", &forged), String::new()).await;
        assert!(!text.contains(REFUSED_TOKEN), "{text}");
    }
    let step = |agent: &str| json!({"id": "s", "agent_name": agent, "input_mapping": {}});
    let mut runs = Vec::new();
    for name in ["bearer", "keyed"] {
        let workflow = json!({"name": name, "start_step": "s", "steps": {"s": step(name)}});
        let workflow = as_admin("POST", "/api/v1/workflows", workflow, 201).await;
        let path = format!("/api/v1/workflows/{}/execute", workflow["id"].as_str().expect("an id"));
        let run = as_admin("POST", &path, json!({"input_data": {}}), 202).await;
        let path = format!("/api/v1/runs/{}", run["run_id"].as_str().expect("an id"));
        let run = eventually("the run fails", async || {
            let run = as_admin("GET", &path, Value::Null, 200).await;
            (run["status"] == "FAILED").then_some(run)
        })
        .await;
        // The agent has shown what it got, and the secret is taken out.
        assert!(run["error_message"].as_str().is_some_and(|text| text.contains("***")), "{run}");
        runs.push(path);
    }
    as_admin("GET", &format!("{bearer_path}/health"), Value::Null, 200).await;

    // What others see.
    let mut seen = String::new();
    let mut paths: Vec<String> = [
        "agents",
        "agents?name=keyed",
        "export",
        "export?include_secrets=true",
        "workflows",
        "runs",
        "api-keys",
        "workflow-names/bearer",
    ]
    .map(|path| format!("/api/v1/{path}"))
    .into();
    paths.extend(["/openapi.json", "/metrics", "/health/ready", "/", "/docs"].map(str::to_owned));
    paths.extend([bearer_path.clone(), format!("{bearer_path}/health")]);
    paths.extend(
        runs.iter().flat_map(|run| ["", "/steps", "/logs", "/events", "/graph"].map(|end| format!("{run}{end}"))),
    );
    for role in ["viewer", "operator", "editor"] {
        let token = environment.run(&["token", "--role", role]).await.stdout;
        let token = format!("Bearer {}", String::from_utf8(token).expect("text").trim());
        for path in &paths {
            let (status, text) = send("GET", path, ("authorization", &token), String::new()).await;
            assert!(matches!(status, 200 | 403), "{role} {path}: {status} {text}");
            writeln!(seen, "{role} {path} {text}").expect("a string");
        }
        let (_, text) = send("PUT", &bearer_path, ("authorization", &token), r#"{"timeout_ms":2000}"#.to_owned()).await;
        let (_, report) = send("POST", "/api/v1/import", ("authorization", &token), document.to_string()).await;
        writeln!(seen, "{text} {report}").expect("a string");
    }
    assert!(seen.contains("********"), "nothing was masked");
    for command in [&["check", "config"][..], &["check", "db"], &["migrate", "status"], &["rotate-keys"]] {
        let output = environment.run(command).await;
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        seen.extend([output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
    }
    for program in [&mut api, &mut executor] {
        program.terminate().await;
        assert_eq!(program.exit_code().await, 0);
    }
    let (logs, tables) = (api.log() + &executor.log(), dump(&pool).await);
    assert!(logs.contains("sqlx::query") || logs.contains("sqlx.query"), "statements are not in the log");
    assert!(tables.contains("audit_logs: (") && tables.contains("run_events: ("), "rows are missing");
    for secret in [
        AGENT_TOKEN,
        AGENT_KEY,
        REPLACED_TOKEN,
        REFUSED_TOKEN,
        IMPORTED_TOKEN,
        JWT_SECRET,
        DATABASE_PASSWORD,
        ENCRYPTION_KEY,
        bootstrap.expose(),
        &made,
        &issued,
        guess.expose(),
        "planted",
    ] {
        for (location, text) in [("an answer", &seen), ("the log", &logs), ("the database", &tables)] {
            let found = text.lines().find(|line| line.contains(secret));
            assert!(found.is_none(), "{location} shows {secret}: {}", found.unwrap_or_default());
        }
    }
    for (location, text) in [("an answer", &seen), ("the log", &logs)] {
        let found = text.lines().find(|line| line.contains(AGENT_QUERY));
        assert!(found.is_none(), "{location} shows {AGENT_QUERY}: {}", found.unwrap_or_default());
    }
    assert_eq!(tables.matches(AGENT_QUERY).count(), 3, "it is in the rows of the three agents alone");
}
