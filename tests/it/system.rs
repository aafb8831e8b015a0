//! What surrounds the routes: health, readiness, metrics, authentication, CORS, prefix, audit, redirects and HEAD.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use workflow_api::{
    access::{OrganizationId, Role},
    api::{
        self,
        gate::Gate,
        vocabulary::{app::App, token},
    },
    clock::Clock,
    config::{Api, Auth, Config, NAMES, load},
    db::{self, migrations::MIGRATOR, processes::Registration},
    lifecycle::Lifecycle,
};

use crate::{
    access::Admin,
    empty_database::empty,
    path::Executor,
    service::{Answer, Service, config, eventually, own_pool, without_database},
};

/// Kafka settings that lead to a port on which nobody listens.
const NO_KAFKA: (&str, &str) = ("KAFKA_BROKERS", "127.0.0.1:1");
const SECRET: &str = "5b8719f27917be74b8d2acf60e4f759b0d0e5b0c10073abdff49a2f01aefc5cd";

/// Asks for readiness until this status and this word are answered.
async fn becomes(service: &Service, status: u16, word: &str) -> Answer {
    let ready = || async {
        let answer = service.get("/health/ready").await;
        let is_it = answer.status.as_u16() == status && answer.json()["status"] == word;
        is_it.then_some(answer)
    };
    eventually(&format!("/health/ready is {status} {word}"), ready).await
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_root_names_the_service_and_its_paths(pool: PgPool) {
    let settings =
        [("API_TITLE", "Flows"), ("API_VERSION", "7.8.9"), ("API_DESCRIPTION", "Ours"), ("API_PREFIX", "/p")];
    let service = Service::start_with(config(&pool, &settings));
    let expected = json!({
        "name": "Flows", "version": "7.8.9", "description": "Ours", "status": "operational",
        "documentation": {"swagger_ui": "/docs", "redoc": "/redoc", "openapi_spec": "/openapi.json"},
        "endpoints": {"agents": "/p/agents", "workflows": "/p/workflows", "runs": "/p/runs",
            "ai_workflows": "/p/ai-workflows", "health": "/health", "health_ready": "/health/ready",
            "metrics": "/metrics"},
    });
    assert_eq!(service.get("/").await.expect(200), expected);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_service_with_database_and_kafka_is_ready(pool: PgPool) {
    let service = Service::start(&pool);
    let mut ready = becomes(&service, 200, "ready").await.json();
    let timestamp = ready.as_object_mut().and_then(|members| members.remove("timestamp"));
    assert!(timestamp.is_some_and(|at| at.as_str().is_some_and(|at| at.ends_with('Z'))));
    let checks = json!({"database": "connected", "kafka": "connected", "schema": "current"});
    assert_eq!(ready, json!({"status": "ready", "ready": true, "checks": checks}));

    let health = service.get("/health").await.expect(200);
    assert_eq!((&health["status"], &health["version"]), (&json!("healthy"), &json!("1.0.0")));
    assert!(health["uptime_seconds"].is_f64() && health["timestamp"].is_string(), "{health}");
    assert_eq!(health.get("services"), Some(&Value::Null));

    service.lifecycle.soft_stop().cancel();
    let draining = service.get("/health/ready").await;
    assert_eq!(draining.header("retry-after"), Some("2"));
    assert_eq!(draining.expect(503)["checks"]["process"], "stopping");
}

#[sqlx::test(migrations = false)]
async fn a_database_without_the_schema_is_not_ready(pool: PgPool) {
    empty(&pool).await;
    let service = Service::start(&pool);
    let answer = eventually("the database is asked", || async {
        let answer = service.get("/health/ready").await;
        (answer.json()["checks"]["schema"] == "outdated").then_some(answer)
    })
    .await;
    assert_eq!(answer.expect(503)["status"], "not_ready");
    assert_eq!(service.get("/api/v1/agents").await.error(503)["code"], "database_unavailable");
    MIGRATOR.run(&pool).await.expect("the migrations run");
    becomes(&service, 200, "ready").await;
    service.get("/api/v1/agents").await.expect(200);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_statement_that_takes_too_long_is_not_told_as_a_database_that_is_away(pool: PgPool) {
    let service = Service::start(&pool);
    let run_id = service.execute(&service.one_step_workflow().await).await;
    let mut holder = pool.begin().await.expect("a transaction");
    sqlx::query("SELECT FROM workflow_runs FOR UPDATE").execute(&mut *holder).await.expect("held");
    let (path, empty) = (format!("/api/v1/runs/{run_id}/cancel"), json!({}));
    // The server cancels it as at the end of its time.
    let cancels = eventually("it is cancelled", || async {
        let sql = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
        sqlx::query_scalar::<_, bool>(sql).fetch_optional(&pool).await.expect("an answer")
    });
    let (answer, _) = tokio::join!(service.post(&path, &empty), cancels);
    assert_eq!(answer.header("retry-after"), Some("2"));
    let error = answer.error(503);
    assert_eq!(error["code"], "database_unavailable");
    assert_eq!(error["detail"], "The database has taken too long for this operation; nothing was changed");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_locked_table_is_no_disconnected_database(pool: PgPool) {
    let service = Service::start(&pool);
    becomes(&service, 200, "ready").await;
    let mut transaction = pool.begin().await.expect("a transaction");
    let lock = "LOCK TABLE _sqlx_migrations IN ACCESS EXCLUSIVE MODE";
    sqlx::query(lock).execute(&mut *transaction).await.expect("a lock");
    let waiting = "SELECT max(query_start)::text FROM pg_stat_activity JOIN pg_locks USING (pid)
                   WHERE NOT granted AND relation = '_sqlx_migrations'::regclass AND datname = current_database()";
    let mut before = None;
    // The second check begins when the first has given up.
    for _ in 0..2 {
        let began = eventually("a check waits", || async {
            let began: Option<String> = sqlx::query_scalar(waiting).fetch_one(&pool).await.expect("a time");
            began.filter(|began| before.as_ref() != Some(began))
        });
        before = Some(began.await);
    }
    let ready = service.get("/health/ready").await.expect(200);
    assert_eq!((&ready["checks"]["database"], &ready["checks"]["schema"]), (&json!("connected"), &json!("current")));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn without_its_database_a_service_lives_and_answers_503(pool: PgPool) {
    let service = Service::start_with(without_database(config(&pool, &[])));
    let ready = becomes(&service, 503, "not_ready").await;
    assert_eq!((ready.header("retry-after"), &ready.json()["ready"]), (Some("2"), &json!(false)));
    assert_eq!(ready.json()["checks"]["database"], "disconnected");
    for path in ["/health", "/", "/metrics", "/openapi.json", "/docs"] {
        assert_eq!(service.get(path).await.status.as_u16(), 200, "{path}");
    }
    let id = "00000000-0000-0000-0000-000000000000";
    let agent = json!({"name": "a", "url": "http://a"});
    let workflow =
        json!({"name": "w", "start_step": "s", "steps": {"s": {"id": "s", "agent_name": "a", "input_mapping": {}}}});
    let requests = [
        ("GET", "/api/v1/agents".to_owned(), Value::Null),
        ("GET", "/api/v1/agents?name=a".to_owned(), Value::Null),
        ("POST", "/api/v1/agents".to_owned(), agent),
        ("GET", format!("/api/v1/agents/{id}"), Value::Null),
        ("PUT", format!("/api/v1/agents/{id}"), json!({})),
        ("DELETE", format!("/api/v1/agents/{id}"), Value::Null),
        ("GET", format!("/api/v1/agents/{id}/health"), Value::Null),
        ("GET", "/api/v1/workflows".to_owned(), Value::Null),
        ("POST", "/api/v1/workflows".to_owned(), workflow),
        ("GET", format!("/api/v1/workflows/{id}/versions"), Value::Null),
        ("POST", format!("/api/v1/workflows/{id}/execute"), json!({"input_data": {}})),
        ("GET", "/api/v1/runs".to_owned(), Value::Null),
        ("GET", "/api/v1/runs/r".to_owned(), Value::Null),
        ("GET", "/api/v1/runs/r/steps".to_owned(), Value::Null),
        ("GET", "/api/v1/runs/r/logs".to_owned(), Value::Null),
        ("POST", "/api/v1/runs/r/cancel".to_owned(), json!({})),
        ("POST", "/api/v1/runs/r/retry".to_owned(), json!({})),
    ];
    let headers = [("content-type", "application/json")];
    let answers = futures_util::future::join_all(
        requests.iter().map(|(method, path, body)| service.send(method, path, &headers, body.to_string())),
    )
    .await;
    for ((method, path, _), answer) in requests.iter().zip(answers) {
        assert!(answer.header("retry-after").is_some(), "{method} {path}: {}", answer.text);
        assert_eq!(answer.error(503)["code"], "database_unavailable", "{method} {path}");
    }
    // What is wrong with a request is said even so.
    service.post("/api/v1/agents", &json!({})).await.error(422);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn without_kafka_a_service_is_degraded_and_accepts(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[NO_KAFKA]));
    let degraded = becomes(&service, 200, "degraded").await.json();
    assert_eq!((&degraded["ready"], &degraded["checks"]["kafka"]), (&json!(true), &json!("disconnected")));
    let workflow_id = service.one_step_workflow().await;
    let run_id = service.execute(&workflow_id).await;
    service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    let waiting: i64 =
        sqlx::query_scalar("SELECT count(*) FROM outbox_messages").fetch_one(&pool).await.expect("the outbox");
    assert_eq!(waiting, 2);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_service_that_requires_kafka_is_not_ready_without_it(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[NO_KAFKA, ("READINESS_REQUIRES_KAFKA", "true")]));
    let answer = eventually("the database is connected", || async {
        let answer = service.get("/health/ready").await;
        (answer.json()["checks"]["database"] == "connected").then_some(answer)
    })
    .await;
    assert_eq!(answer.header("retry-after"), Some("2"));
    let body = answer.expect(503);
    assert_eq!((&body["ready"], &body["checks"]["kafka"]), (&json!(false), &json!("disconnected")));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn metrics_have_the_names_of_the_contract(pool: PgPool) {
    let service = Service::start(&pool);
    service.get("/metrics").await; // installs the recorder, so that the next requests are counted
    service.get("/api/v1/runs/missing").await.error(404);
    let workflow_id = service.one_step_workflow().await;
    service.execute(&workflow_id).await;
    let answer = service.get("/metrics").await;
    assert_eq!(answer.status.as_u16(), 200);
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for line in [
        r#"api_info{version="1.0.0"} 1"#,
        "# TYPE api_uptime_seconds gauge",
        "# TYPE api_requests_total counter",
        "# TYPE api_request_duration_seconds histogram",
        r#"api_request_duration_seconds_bucket{le="0.1"}"#,
        r#"api_request_duration_seconds_bucket{le="5"}"#,
        r#"api_request_duration_seconds_bucket{le="+Inf"}"#,
        "# TYPE workflow_executions_total counter",
        "# TYPE workflow_execution_failures_total counter",
        "# TYPE http_request_latency_seconds histogram",
        "# TYPE http_requests_active gauge",
        "# TYPE runtime_tasks gauge",
        "# TYPE runtime_queued_tasks gauge",
        "# TYPE db_pool_size gauge",
        "# TYPE db_pool_in_use gauge",
        "# TYPE db_pool_max gauge",
        r#"http_requests_total{method="GET",endpoint="/api/v1/runs/{run_id}",status="404"}"#,
        // The metrics are those of all tests, and of a hundred workflows.
        r#"workflow_executions_total{status="PENDING",workflow_id=""#,
        r#"workflow_state_transition_total{from_state="NONE",to_state="PENDING"}"#,
        r#"workflow_state_transition_total{from_state="FAILED",to_state="PENDING"}"#,
        r#"workflow_error_total{error_code="dispatch_failed"}"#,
        "# TYPE workflow_instances_active gauge",
        "# TYPE workflow_runs_oldest_waiting_seconds gauge",
        r#"workflow_runs{state="paused"}"#,
        r#"service_check{check="schema"}"#,
        "# TYPE service_ready gauge",
        "# TYPE db_pool_waiting gauge",
        "# TYPE db_pool_wait_seconds histogram",
        "# TYPE audit_unsealed_entries gauge",
        &format!(r#"build_info{{version="{}",revision="#, env!("CARGO_PKG_VERSION")),
        r#"requests_refused_total{reason="failed_auth"} "#,
    ] {
        assert!(answer.text.contains(line), "{line} is not in\n{}", answer.text);
    }
    assert!(!answer.text.contains("missing"), "a raw path is a label");
    assert!(answer.text.contains(r#"organization_runs_started_total{organization_id="default"}"#), "{}", answer.text);
    assert!(answer.text.contains(r#"workflow_runs{state="waiting"}"#), "{}", answer.text);
    let off = Service::start_with(config(&pool, &[("ENABLE_METRICS", "false")]));
    off.get("/metrics").await.error(404);
    off.get("/health").await.expect(200);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_prefix_moves_the_routes_and_nothing_else(pool: PgPool) {
    for (prefix, moved) in [("/api/v2/", "/api/v2"), ("x", "/x"), ("/", "")] {
        let service = Service::start_with(config(&pool, &[("API_PREFIX", prefix)]));
        for path in ["/agents", "/workflows", "/runs"] {
            service.get(&format!("{moved}{path}")).await.expect(200);
            service.get(&format!("/api/v1{path}")).await.error(404);
        }
        service.get("/health").await.expect(200);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_trailing_slash_is_redirected_to_this_host(pool: PgPool) {
    let service = Service::start(&pool);
    for (method, path, location) in [
        ("GET", "/api/v1/agents/", "/api/v1/agents"),
        ("GET", "/api/v1/agents/?name=a%20b&x", "/api/v1/agents?name=a%20b&x"),
        ("POST", "/api/v1/workflows/", "/api/v1/workflows"),
        ("GET", "/health/", "/health"),
        ("GET", "/docs/", "/docs"),
    ] {
        let answer = service.send(method, path, &[], "").await;
        assert_eq!((answer.status.as_u16(), answer.header("location")), (307, Some(location)), "{method} {path}");
    }
    // A browser takes each of these as the address of another host.
    for path in ["//evil.test/", "/\\evil.test/", "//evil.test//", "/\\/evil.test/"] {
        service.get(path).await.error(404);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn head_is_get_without_the_body(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    let run_id = service.execute(&workflow_id).await;
    let agent = service.get("/api/v1/agents?name=worker").await.expect(200)["items"][0]["id"].take();
    let agent = agent.as_str().expect("an id");
    becomes(&service, 200, "ready").await;
    for path in [
        "/".to_owned(),
        "/health".to_owned(),
        "/health/ready".to_owned(),
        "/metrics".to_owned(),
        "/docs".to_owned(),
        "/redoc".to_owned(),
        "/openapi.json".to_owned(),
        "/api/v1/agents".to_owned(),
        format!("/api/v1/agents/{agent}"),
        format!("/api/v1/agents/{agent}/health"),
        "/api/v1/workflows".to_owned(),
        format!("/api/v1/workflows/{workflow_id}"),
        format!("/api/v1/workflows/{workflow_id}/versions"),
        "/api/v1/runs".to_owned(),
        format!("/api/v1/runs/{run_id}"),
        format!("/api/v1/runs/{run_id}/steps"),
        format!("/api/v1/runs/{run_id}/logs"),
        "/api/v1/runs/missing".to_owned(),
    ] {
        let (head, get) = (service.send("HEAD", &path, &[], "").await, service.get(&path).await);
        assert_eq!((head.status, head.text.as_str()), (get.status, ""), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn audit_rows_are_written_unless_they_are_switched_off(pool: PgPool) {
    let audited = || async {
        let actions: Vec<String> =
            sqlx::query_scalar("SELECT entity_type || ' ' || action FROM audit_logs ORDER BY created_at")
                .fetch_all(&pool)
                .await
                .expect("audit rows");
        actions
    };
    for (switch, expected) in [
        ("false", &[][..]),
        ("true", &["agent create", "workflow create", "run execute", "run cancel", "run retry", "workflow delete"]),
    ] {
        let service = Service::start_with(config(&pool, &[("ENABLE_AUDIT_LOGGING", switch)]));
        service.agent(switch, "http://a").await;
        let workflow = service.chain(switch, &[switch]).await;
        let id = workflow["id"].as_str().expect("an id");
        let run = service.execute(id).await;
        service.post(&format!("/api/v1/runs/{run}/cancel"), &json!({})).await.expect(200);
        service.post(&format!("/api/v1/runs/{run}/retry"), &json!({})).await.expect(202);
        service.delete(&format!("/api/v1/workflows/{id}")).await.expect(200);
        assert_eq!(audited().await, expected, "ENABLE_AUDIT_LOGGING={switch}");
    }
}

/// A token of these parts, signed with HS256.
fn signed(header: &Value, claims: &Value, secret: &str) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    let encode = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::HS256);
    format!("{message}.{}", signature.expect("a signature"))
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn with_a_secret_every_route_needs_a_token(pool: PgPool) {
    let settings: Config = config(&pool, &[("JWT_SECRET", SECRET), ("JWT_EXPIRATION_MINUTES", "5")]);
    let token = token::issue(
        &settings.auth,
        "user@example.com",
        Role::Admin,
        &OrganizationId::default(),
        Clock::default().now(),
    )
    .expect("there is a secret");
    let service = Service::start_with(settings);
    let (now, hs256) = (Clock::default().now().timestamp(), json!({"alg": "HS256", "typ": "JWT"}));
    let valid = json!({"sub": "u", "role": "admin", "exp": now + 300});
    let claims = |more: Value| {
        let mut claims = valid.clone();
        claims.as_object_mut().expect("an object").extend(more.as_object().expect("members").clone());
        claims
    };
    let bearer =
        |header: &Value, claims: &Value, secret: &str| Some(format!("Bearer {}", signed(header, claims, secret)));
    let unsigned = signed(&json!({"alg": "none"}), &valid, SECRET);
    let unsigned = unsigned.rsplit_once('.').map(|(message, _)| format!("Bearer {message}."));
    for (name, header) in [
        ("no header", None),
        ("an empty header", Some(String::new())),
        ("no token", Some("Bearer ".to_owned())),
        ("rubbish", Some("Bearer a.b.c".to_owned())),
        ("another scheme", Some(format!("Basic {token}"))),
        ("no scheme", Some(token.clone())),
        ("another key", bearer(&hs256, &valid, &SECRET.to_uppercase())),
        ("no signature", unsigned),
        ("alg none with a signature", bearer(&json!({"alg": "none"}), &valid, SECRET)),
        ("another algorithm", bearer(&json!({"alg": "HS512"}), &valid, SECRET)),
        ("expired", bearer(&hs256, &claims(json!({"exp": now - 3600})), SECRET)),
        ("expiry as text", bearer(&hs256, &claims(json!({"exp": "9999999999"})), SECRET)),
        ("no expiry", bearer(&hs256, &json!({"sub": "u"}), SECRET)),
        ("not valid yet", bearer(&hs256, &claims(json!({"nbf": now + 3600})), SECRET)),
        ("start as text", bearer(&hs256, &claims(json!({"nbf": "9999999999"})), SECRET)),
        ("no subject", bearer(&hs256, &json!({"exp": now + 300}), SECRET)),
        ("an empty subject", bearer(&hs256, &claims(json!({"sub": ""})), SECRET)),
        ("a subject with NUL", bearer(&hs256, &claims(json!({"sub": "a\0b"})), SECRET)),
    ] {
        let headers: Vec<_> = header.iter().map(|value| ("authorization", value.as_str())).collect();
        for (method, path) in [("GET", "/api/v1/agents"), ("POST", "/api/v1/agents"), ("GET", "/api/v1/nowhere")] {
            let answer = service.send(method, path, &headers, r#"{"name":"a","url":"http://a"}"#).await;
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{name}: {}", answer.text);
            assert_eq!(answer.error(401)["code"], "unauthorized", "{name}");
        }
    }
    for path in ["/", "/health", "/metrics", "/docs", "/redoc", "/openapi.json", "/docs/start.js"] {
        assert_eq!(service.get(path).await.status.as_u16(), 200, "{path}");
    }
    for header in [format!("Bearer {token}"), format!("bearer  {token}")] {
        service.send("GET", "/api/v1/agents", &[("authorization", &header)], "").await.expect(200);
    }
    let header = bearer(&hs256, &valid, SECRET).expect("a token");
    let headers = [("authorization", header.as_str())];
    let agent = service.send("POST", "/api/v1/agents", &headers, r#"{"name":"a","url":"http://a"}"#).await.expect(201);
    assert_eq!(agent["created_by"], "u");
    let by: String = sqlx::query_scalar("SELECT user_id FROM audit_logs WHERE outcome = 'success'")
        .fetch_one(&pool)
        .await
        .expect("one row");
    assert_eq!(by, "u");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn without_a_prefix_only_the_business_routes_need_a_token(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("JWT_SECRET", SECRET), ("API_PREFIX", "/")]));
    for path in ["/agents", "/workflows", "/runs/x", "/agents/x/health"] {
        service.get(path).await.error(401);
    }
    for path in ["/", "/health", "/metrics", "/docs", "/redoc", "/openapi.json"] {
        assert_eq!(service.get(path).await.status.as_u16(), 200, "{path}");
    }
    becomes(&service, 200, "ready").await;
}

/// Everything below the pages is open to all.
#[test]
fn a_prefix_does_not_lie_below_a_page_of_the_documentation() {
    for (prefix, is_valid) in [("/docs", false), ("redoc/v1", false), ("/docs2", true), ("/api/docs", true)] {
        let environment = [("API_PREFIX".to_owned(), prefix.to_owned())];
        assert_eq!(load::<Api>(environment.into_iter()).is_ok(), is_valid, "{prefix}");
    }
}

#[test]
fn a_token_lives_as_long_as_the_settings_say() {
    let environment = [("JWT_SECRET", SECRET), ("JWT_EXPIRATION_MINUTES", "60")];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let auth: Auth = load(environment.into_iter()).expect("valid settings");
    let token =
        token::issue(&auth, "user@example.com", Role::Admin, &OrganizationId::default(), Clock::default().now())
            .expect("there is a secret");
    let claims = token.split('.').nth(1).expect("claims");
    let claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).expect("base64")).expect("JSON");
    assert_eq!(claims["exp"].as_i64().zip(claims["iat"].as_i64()).map(|(exp, iat)| exp - iat), Some(3600));
    assert_eq!(claims["sub"], "user@example.com");
}

/// The rules of `promtool check metrics` that apply here, and the catalogue: a text for each metric, units that are basic,
/// `_total` on counters and on nothing else.
#[sqlx::test]
async fn metrics_follow_the_rules_of_prometheus_and_are_there_from_the_start(pool: PgPool) {
    use workflow_api::telemetry::{
        Component,
        catalogue::{API, EXECUTOR, Kind, OLD_NAMES, PROCESS, REPLICA, SHARED, TRACES, WEBHOOKS},
        count,
    };

    count(Component::Executor);
    let text = Service::start(&pool).get("/metrics").await.text;
    let samples: Vec<&str> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let described: std::collections::HashSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()).collect();
    let documented = include_str!("../../docs/metrics.md");
    let old = OLD_NAMES.iter().map(|(metric, _)| metric);
    let mut known: std::collections::HashSet<&str> = TRACES.iter().chain(REPLICA).map(|metric| metric.name).collect();
    for metric in [API, EXECUTOR, PROCESS, SHARED, WEBHOOKS].into_iter().flatten().chain(old.clone()) {
        let name = metric.name;
        known.insert(name);
        assert!(documented.contains(&format!("| `{name}`")), "docs/metrics.md does not have {name}");
        let is_old = old.clone().any(|old| old.name == name);
        assert!(is_old || (metric.kind == Kind::Counter) == name.ends_with("_total"), "{name}");
        for unit in ["_milliseconds", "_minutes", "_ms", "_kilobytes", "_megabytes", "_percent"] {
            assert!(!name.contains(unit), "{name}");
        }
        if metric.kind != Kind::Gauge && metric.label.is_none_or(|(_, values)| !values.is_empty()) {
            let is_there = |line: &&str| line.starts_with(name);
            assert!(samples.iter().any(is_there), "{name} is not there from the start:\n{text}");
        }
    }
    for sample in samples {
        let name = sample.split(['{', ' ']).next().expect("a name");
        let bare = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        assert!(known.contains(name) || known.contains(bare), "{name} is not in the catalogue");
        assert!(described.contains(name) || described.contains(bare), "{name} has no text");
    }
    let listed = documented.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let unknown: Vec<&str> = listed.filter(|name| !known.contains(name)).collect();
    assert_eq!(unknown, [""; 0], "docs/metrics.md has names that are no metrics");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_documentation_can_be_switched_off(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("ENABLE_DOCS", "false")]));
    for path in ["/docs", "/docs/start.js", "/redoc", "/redoc/redoc.standalone.js", "/openapi.json"] {
        service.get(path).await.error(404);
    }
    let root = service.get("/").await.expect(200);
    assert_eq!((&root["documentation"], &root["endpoints"]["health"]), (&json!({}), &json!("/health")));
    service.get("/api/v1/agents").await.expect(200);
}

/// Asserts that a path needs `runs:read` in the default organisation, on all workflows.
async fn assert_is_for_the_default_organisation(admin: &Admin, path: &str) {
    admin.post("/api/v1/organizations", &json!({"id": "acme", "name": "Acme"})).await.expect(201);
    for (status, body) in [
        (200, json!({"role": "viewer"})),
        (403, json!({"role": "viewer", "scopes": ["agents:read"]})),
        (403, json!({"role": "viewer", "workflows": ["w"]})),
        (403, json!({"role": "admin", "organization_id": "acme"})),
    ] {
        let mut body = body;
        body["name"] = json!(body.to_string());
        let (key, _) = admin.key(&body).await;
        let answer = admin.service.send("GET", path, &[("x-api-key", &key)], "").await;
        assert_eq!(answer.status.as_u16(), status, "{body}: {}", answer.text);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn metrics_can_need_credentials_of_the_default_organisation(pool: PgPool) {
    let admin = Admin::start(&pool, &[("METRICS_ACCESS", "credentials")]);
    let answer = admin.service.get("/metrics").await;
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    answer.error(401);
    assert_is_for_the_default_organisation(&admin, "/metrics").await;
    assert!(admin.get("/metrics").await.text.contains("api_info"));
    admin.service.get("/health").await.expect(200);
}

/// What a load balancer needs is for everyone; figures are for those who may see metrics of all organisations.
#[sqlx::test(migrator = "MIGRATOR")]
async fn details_of_the_health_need_credentials_of_the_default_organisation(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let path = "/health/detailed";
    for headers in [&[][..], &[("x-api-key", "nobody's")], &[("authorization", "Bearer x.y.z")]] {
        let answer = admin.service.send("GET", path, headers, "").await;
        assert!(answer.header("www-authenticate").is_some(), "{}", answer.text);
        assert!(!answer.text.contains("components"), "{}", answer.text);
        answer.error(401);
    }
    assert_is_for_the_default_organisation(&admin, path).await;
    // The others need none, whatever is sent, and have nothing to hide.
    for open in ["/health", "/health/live", "/health/ready"] {
        let answer = admin.service.send("GET", open, &[("authorization", "Bearer x.y.z")], "").await;
        assert_ne!(answer.status, 401, "{open}");
        assert!(!answer.text.contains("pool") && !answer.text.contains("response_ms"), "{}", answer.text);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn details_of_the_health_are_states_and_figures(pool: PgPool) {
    let service = Service::start(&pool);
    becomes(&service, 200, "ready").await;
    assert_eq!(service.get("/health/live").await.expect(200)["status"], "healthy");
    let answer = service.get("/health/detailed").await;
    // No address, name or user of what it is connected to.
    let options = pool.connect_options();
    for secret in [options.get_host(), options.get_username(), options.get_database().expect("a name")] {
        assert!(!answer.text.contains(secret), "{}", answer.text);
    }
    let body = answer.expect(200);
    assert_eq!((&body["status"], &body["version"]), (&json!("ready"), &json!(env!("CARGO_PKG_VERSION"))));
    assert!(body["uptime_seconds"].is_f64() && body["timestamp"].is_string(), "{body}");
    let states: Vec<String> = body["components"]
        .as_object()
        .expect("an object")
        .iter()
        .map(|(name, component)| format!("{name} {}", component["status"].as_str().expect("a state")))
        .collect();
    let expected = ["database connected", "kafka connected", "outbox current", "process running", "schema current"];
    assert_eq!(states, expected);
    let database = &body["components"]["database"];
    assert!(database["response_ms"].is_f64() && database["pool"]["max"].as_u64() >= Some(1), "{body}");
    let outbox = &body["components"]["outbox"];
    assert_eq!((&outbox["pending"], &outbox["lag_seconds"]), (&json!(0), &json!(0.0)));

    let cut_off = Service::start_with(without_database(config(&pool, &[NO_KAFKA])));
    let body = cut_off.get("/health/detailed").await.expect(200);
    let state = |name: &str| body["components"][name]["status"].clone();
    assert_eq!(body["status"], "not_ready");
    assert_eq!([state("database"), state("kafka"), state("schema")], ["disconnected", "disconnected", "unknown"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn metrics_can_be_at_the_management_port_alone(pool: PgPool) {
    let settings = config(&pool, &[("METRICS_ACCESS", "management"), ("MANAGEMENT_PORT", "9464")]);
    let (lifecycle, drained) = (Lifecycle::new(), CancellationToken::new());
    let app = App::start(settings.clone(), db::pool(&settings.database), &lifecycle, &drained, Clock::default())
        .expect("it starts");
    let gate = Gate::start(app.clone(), &lifecycle).expect("it starts");
    let [at_api, at_management] =
        [api::router(&gate), api::resources::system::management(&app)].map(|router| Service {
            router,
            config: settings.clone(),
            lifecycle: lifecycle.clone(),
            drained: drained.clone(),
            clock: app.clock.clone(),
        });
    at_api.get("/metrics").await.error(404);
    at_management.get("/metrics").await; // installs the recorder
    let metrics = at_management.get("/metrics").await;
    assert!(metrics.status == 200 && metrics.text.contains("api_uptime_seconds"), "{}", metrics.text);
    at_management.get("/health").await.expect(200);
    at_management.get("/health/live").await.expect(200);
    assert!(at_management.get("/health/ready").await.json()["checks"].is_object());
    assert!(at_management.get("/health/detailed").await.expect(200)["components"]["database"]["pool"].is_object());
    assert_eq!(at_management.get("/api/v1/agents").await.status.as_u16(), 404);
}

/// The processes as `/system/processes` shows them, once there are so many.
async fn processes(service: &Service, count: usize) -> Value {
    eventually(&format!("{count} processes are there"), || async {
        let shown = service.get("/api/v1/system/processes").await.expect(200);
        (shown["items"].as_array().is_some_and(|items| items.len() == count)).then_some(shown)
    })
    .await
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn processes_are_listed_with_version_host_and_what_executors_do(pool: PgPool) {
    let service = Service::start(&pool);
    let alone = processes(&service, 1).await;
    let own = &alone["items"][0];
    assert_eq!(
        (&own["role"], &own["version"], &own["is_alive"], &own["has_answered"], &own["active_runs"]),
        (&json!("serve"), &json!(env!("CARGO_PKG_VERSION")), &json!(true), &json!(true), &Value::Null)
    );
    assert!(own["host"].as_str().is_some_and(|host| !host.is_empty()), "{own}");
    // Another one, and one of a release that tells nothing of itself.
    let lifecycle = Lifecycle::new();
    let executor = Registration::start(own_pool(&pool), "executor", false, &lifecycle);
    let sql = "INSERT INTO processes (id, role, heartbeat_at)
               VALUES (gen_random_uuid(), 'executor', now() + interval '1 hour')";
    sqlx::query(sql).execute(&pool).await.expect("an old executor");
    executor.note(3, Some(7));
    let told = eventually("the executor tells what it does", || async {
        let shown = processes(&service, 3).await;
        let items = shown["items"].as_array().expect("a list").clone();
        items.iter().any(|one| one["active_runs"] == 3).then_some(items)
    })
    .await;
    let mine = executor.current().expect("it is registered").to_string();
    let busy = told.iter().find(|one| one["id"] == mine).expect("the executor");
    assert_eq!(
        (&busy["role"], &busy["consumer_lag"], &busy["has_answered"]),
        (&json!("executor"), &json!(7), &json!(false))
    );
    let old = told.iter().find(|one| one["version"].is_null()).expect("the old one");
    assert_eq!((&old["host"], &old["active_runs"], &old["is_alive"]), (&Value::Null, &Value::Null, &json!(true)));
    lifecycle.hard_stop().cancel();
    // A real one tells it by itself.
    let _working = Executor::start(&service);
    eventually("an executor without runs", || async {
        let shown = service.get("/api/v1/system/processes").await.expect(200);
        shown["items"].as_array().expect("a list").iter().any(|one| one["active_runs"] == 0).then_some(())
    })
    .await;

    let latest = MIGRATOR.iter().map(|migration| migration.version).max();
    let schema = &alone["schema"];
    assert_eq!((schema["version"].as_i64(), &schema["pending"], &schema["unknown"]), (latest, &json!(0), &json!(0)));
    assert!(schema["changed_at"].is_string(), "{schema}");
    // A newer program has added one.
    let sql = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
               VALUES (99991231000000, 'later', true, '', 0)";
    sqlx::query(sql).execute(&pool).await.expect("a later migration");
    let schema = service.get("/api/v1/system/processes").await.expect(200)["schema"].clone();
    assert_eq!((&schema["version"], &schema["unknown"]), (&json!(99_991_231_000_000_i64), &json!(1)));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_silent_process_is_shown_as_dead_until_it_is_removed(pool: PgPool) {
    let sql =
        "INSERT INTO processes (id, role, heartbeat_at) VALUES ($1, 'executor', now() - make_interval(secs => $2))";
    let (dead, alive) = (uuid::Uuid::from_u128(1), uuid::Uuid::from_u128(2));
    for (id, silent) in [(dead, 60.0), (alive, 1.0)] {
        sqlx::query(sql).bind(id).bind(silent).execute(&pool).await.expect("a process");
    }
    let shown = async || {
        let rows = db::processes::list(&pool).await.expect("the processes");
        rows.into_iter().map(|row| (row.id, row.is_alive)).collect::<std::collections::BTreeMap<_, _>>()
    };
    assert_eq!(shown().await, [(dead, false), (alive, true)].into());
    db::processes::bury(&own_pool(&pool)).await.expect("buried");
    assert_eq!(shown().await, [(alive, true)].into());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_processes_are_for_administrators_of_the_default_organisation(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let path = "/api/v1/system/processes";
    admin.get(path).await.expect(200);
    admin.post("/api/v1/organizations", &json!({"id": "acme", "name": "Acme"})).await.expect(201);
    for body in [
        json!({"name": "theirs", "role": "admin", "organization_id": "acme"}),
        json!({"name": "editor", "role": "editor"}),
        json!({"name": "executor", "role": "executor"}),
    ] {
        let (key, _) = admin.key(&body).await;
        admin.service.send("GET", path, &[("x-api-key", &key)], "").await.error(403);
    }
    admin.service.get(path).await.error(401);
}

/// The limit of that group and name.
fn limit<'a>(limits: &'a Value, group: &str, name: &str) -> &'a Value {
    let mut items = limits["items"].as_array().expect("a list").iter();
    items.find(|one| one["group"] == group && one["name"] == name).unwrap_or_else(|| panic!("{group} {name}"))
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_limits_are_those_of_the_settings_and_of_the_callers_organisation(pool: PgPool) {
    let settings = [("RATE_LIMIT_PER_PRINCIPAL", "6000"), ("MAX_PAGE_SIZE", "50"), ("QUOTA_AGENTS", "7")];
    let admin = Admin::start(&pool, &settings);
    let path = "/api/v1/system/limits";
    let limits = admin.get(path).await.expect(200);
    for (group, name, value, unit, setting) in [
        ("requests", "body", json!(1 << 20), "bytes", Value::Null),
        ("requests", "time", json!(9500), "milliseconds", Value::Null),
        ("rates", "principal", json!(6000), "per_minute", json!("RATE_LIMIT_PER_PRINCIPAL")),
        ("rates", "address", Value::Null, "per_minute", json!("RATE_LIMIT_PER_ADDRESS")),
        ("rates", "burst", json!(6000), "count", json!("RATE_LIMIT_BURST")),
        ("lists", "max_page_size", json!(50), "count", json!("MAX_PAGE_SIZE")),
        ("organization", "agents", json!(7), "count", json!("QUOTA_AGENTS")),
        ("organization", "queued_runs", Value::Null, "count", json!("QUOTA_QUEUED_RUNS")),
        ("runs", "steps", json!(100_000), "count", json!("MAX_RUN_STEPS")),
    ] {
        let found = limit(&limits, group, name);
        let shown = (&found["value"], found["unit"].as_str(), &found["setting"]);
        assert_eq!(shown, (&value, Some(unit), &setting), "{group} {name}");
    }
    // What they say holds.
    assert_eq!(admin.get("/api/v1/agents?page_size=1000").await.expect(200)["page_size"], 50);
    let (documented, mut names) = (include_str!("../../docs/limits.md"), std::collections::HashSet::new());
    for found in limits["items"].as_array().expect("a list") {
        assert!(names.insert((found["group"].clone(), found["name"].clone())), "{found} is there twice");
        let Some(setting) = found["setting"].as_str() else { continue };
        assert!(NAMES.contains(&setting.to_ascii_lowercase().as_str()), "{setting} is no setting");
    }
    assert!(documented.contains("`GET /system/limits`"));

    let acme = json!({"id": "acme", "name": "Acme", "quotas": {"agents": 3}});
    admin.post("/api/v1/organizations", &acme).await.expect(201);
    let (key, _) = admin.key(&json!({"name": "theirs", "role": "viewer", "organization_id": "acme"})).await;
    let theirs = admin.service.send("GET", path, &[("x-api-key", &key)], "").await.expect(200);
    let agents = limit(&theirs, "organization", "agents");
    assert_eq!((&agents["value"], &agents["setting"]), (&json!(3), &Value::Null));
    admin.service.get(path).await.error(401);
}
