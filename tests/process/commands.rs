//! The commands, and how the program refuses to start.

use std::{process::Stdio, time::Duration};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde_json::Value;
use sqlx::PgPool;
use tokio::io::AsyncWriteExt as _;
use workflow_api::{config, db, kafka};

use crate::{
    cluster,
    empty_database::empty,
    program::{Environment, eventually, free_port},
};

/// Time-out of a request to the test broker.
const METADATA_TIMEOUT: Duration = Duration::from_secs(30);

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[sqlx::test(migrations = false)]
async fn a_bad_configuration_is_refused_with_every_problem_and_no_secret(pool: PgPool) {
    let environment = Environment::new(&pool)
        .with("DATABASE_URL", "mysql://user:hunter2hunter2@host/db")
        .with("DATABASE_POOL_SIZE", "abc")
        .with("API_WORKERS", "0")
        .with("JWT_SECRET", "tooshort-hunter2")
        .with("LOG_LEVEL", "LOUD")
        .with("ENABLE_METRICS", "perhaps");
    for arguments in [&[][..], &["serve"], &["executor"], &["check", "config"]] {
        let output = environment.run(arguments).await;
        let printed = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {printed}");
        for name in ["DATABASE_URL", "DATABASE_POOL_SIZE", "API_WORKERS", "JWT_SECRET", "LOG_LEVEL", "ENABLE_METRICS"] {
            assert!(printed.contains(name), "{arguments:?} does not name {name}: {printed}");
        }
        assert!(!printed.contains("hunter2"), "{printed}");
    }
}

#[sqlx::test(migrations = false)]
async fn a_port_that_is_taken_ends_the_start_with_one_line(pool: PgPool) {
    let environment = Environment::new(&pool);
    let _first = environment.serve().await;
    let output = environment.run(&["serve"]).await;
    let printed = text(&output.stdout);
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(1), ""));
    assert!(printed.contains("API_PORT") && printed.trim_end().lines().count() == 1, "{printed}");
    let line: Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!(line["level"], "ERROR");
}

#[sqlx::test(migrations = false)]
async fn the_check_of_the_invariants_tells_by_its_exit_code_and_a_file_of_metrics(pool: PgPool) {
    empty(&pool).await;
    let environment = Environment::new(&pool);
    let file = std::env::temp_dir().join(format!("workflow-api-{}.prom", uuid::Uuid::new_v4()));
    let path = file.to_str().expect("UTF-8");
    let check = async |environment: &Environment| {
        let output = environment.run(&["check", "invariants", "--json", "--textfile", path]).await;
        let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (output.status.code(), json, std::fs::read_to_string(&file).expect("the metrics"))
    };
    // Nothing is known: without settings, without a database, without a schema.
    for (name, value) in
        [("DATABASE_URL", "mysql://host/db"), ("DATABASE_URL", "postgresql://x@127.0.0.1:1/x"), ("LOG_LEVEL", "INFO")]
    {
        let (code, json, metrics) = check(&environment.clone().with(name, value)).await;
        assert_eq!((code, &json["complete"]), (Some(2), &Value::Bool(false)), "{json}");
        assert!(metrics.contains("\nworkflow_api_invariants_check_success 0\n"), "{metrics}");
    }
    assert!(environment.run(&["migrate", "up"]).await.status.success());
    let (code, json, metrics) = check(&environment).await;
    assert_eq!((code, &json["complete"]), (Some(0), &Value::Bool(true)), "{json}");
    assert!(metrics.contains("workflow_api_invariant_violations{invariant=\"wakes_have_a_run\"} 0\n"), "{metrics}");
    assert!(metrics.contains("\nworkflow_api_invariants_check_success 1\n"), "{metrics}");

    sqlx::query("INSERT INTO run_wakes (run_id) VALUES ('run-none')").execute(&pool).await.expect("a row");
    let (code, json, metrics) = check(&environment).await;
    let violated: Vec<_> =
        json["invariants"].as_array().expect("a list").iter().filter(|one| one["violations"] != 0).collect();
    assert_eq!((code, violated.len(), &violated[0]["ids"][0]), (Some(1), 1, &"run-none".into()), "{json}");
    assert!(metrics.contains("workflow_api_invariant_violations{invariant=\"wakes_have_a_run\"} 1\n"), "{metrics}");
    let printed = environment.run(&["check", "invariants"]).await;
    assert!(text(&printed.stdout).contains("violated wakes_have_a_run"), "{}", text(&printed.stdout));
    // A folder that does not exist.
    let output = environment.run(&["check", "invariants", "--textfile", "/nowhere/x.prom"]).await;
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    std::fs::remove_file(&file).expect("removed");
}

#[sqlx::test(migrations = false)]
async fn the_operators_commands_do_what_they_say(pool: PgPool) {
    empty(&pool).await;
    let secret = "a-secret-of-the-tests-that-is-long-enough";
    let environment = Environment::new(&pool).with("JWT_SECRET", secret);
    let succeeds = async |arguments: &[&str]| {
        let output = environment.run(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    };
    succeeds(&["check", "config"]).await;
    assert!(succeeds(&["check", "db"]).await.contains("PostgreSQL"));
    assert!(succeeds(&["check", "kafka"]).await.contains("Kafka"));
    assert_eq!(environment.run(&["migrate", "status"]).await.status.code(), Some(1));
    assert!(succeeds(&["migrate", "up"]).await.contains("were run"));
    assert!(succeeds(&["migrate", "up"]).await.contains("current"));
    assert!(!succeeds(&["migrate", "status"]).await.contains("missing"));
    for (count, says) in [("2", "--yes"), ("99", "fewer than 99")] {
        let refused = environment.run(&["migrate", "down", count]).await;
        assert!(!refused.status.success() && text(&refused.stderr).contains(says), "{}", text(&refused.stderr));
    }
    assert!(!succeeds(&["migrate", "status"]).await.contains("missing"));
    assert!(succeeds(&["migrate", "down", "1"]).await.contains('1'));
    assert!(succeeds(&["migrate", "down", "2", "--yes"]).await.contains('2'));
    let document: Value = serde_json::from_str(&succeeds(&["openapi"]).await).expect("JSON");
    assert!(document["paths"]["/api/v1/workflows/{workflow_id}/execute"]["post"].is_object());

    assert_eq!(environment.run(&["healthcheck"]).await.status.code(), Some(1));
    // No argument means serve.
    let _api = environment.start(&[]);
    eventually("the API is ready", || environment.is_ready()).await;
    succeeds(&["healthcheck"]).await;
    let client = reqwest::Client::new();
    let agents = format!("{}/api/v1/agents", environment.url);
    assert_eq!(client.get(&agents).send().await.expect("an answer").status(), 401);
    let token = succeeds(&["token", "someone@example.com"]).await;
    assert_eq!(client.get(&agents).bearer_auth(token.trim()).send().await.expect("an answer").status(), 200);
    for (role, status) in [("viewer", 200), ("root", 401)] {
        let token = text(&environment.run(&["token", "--sub", "someone", "--role", role]).await.stdout);
        let answer = client.get(&agents).bearer_auth(token.trim()).send().await.expect("an answer");
        assert_eq!(answer.status(), status, "{role}");
    }
    let short = environment.clone().with("JWT_SECRET", "another-secret-of-the-tests-long-enough");
    let foreign = text(&short.run(&["token"]).await.stdout);
    assert_eq!(client.get(&agents).bearer_auth(foreign.trim()).send().await.expect("an answer").status(), 401);
}

#[sqlx::test(migrations = false)]
async fn partitions_are_added_by_a_command_while_runs_go_on(pool: PgPool) {
    let environment = Environment::new(&pool).with("KAFKA_TOPIC_REPLICATION", "1");
    let wider = environment.clone().with("KAFKA_TOPIC_PARTITIONS", "5");
    // Nothing is there yet.
    let output = wider.run(&["add-partitions"]).await;
    let printed = text(&output.stdout);
    assert!(output.status.code() == Some(1) && printed.contains("does not exist"), "{printed}");
    let _api = environment.serve().await;
    let _executor = environment.start(&["executor"]);
    let workflow_id = environment.chain("wider", &["http://127.0.0.1:9/".to_owned()]).await;
    let ends = async |run_id: &str| {
        eventually("the run ends", async || {
            let run = environment.get(&format!("/api/v1/runs/{run_id}")).await;
            (run["status"] == "FAILED").then_some(())
        })
        .await;
    };
    let run_id = eventually("a run is accepted", || environment.execute(&workflow_id)).await;
    ends(&run_id).await;
    let partitions = {
        let kafka = environment.kafka();
        async move || {
            let kafka = kafka.clone();
            let read = move || {
                let consumer: BaseConsumer = kafka::client_config(&kafka).create().expect("valid settings");
                [kafka.execution_topic, kafka.cancellation_topic].map(|topic| {
                    let metadata = consumer.fetch_metadata(Some(&topic), METADATA_TIMEOUT).expect("an answer");
                    metadata.topics()[0].partitions().len()
                })
            };
            tokio::task::spawn_blocking(read).await.expect("no panic")
        }
    };
    assert_eq!(partitions().await, [2, 2]);
    let checked = text(&wider.run(&["check", "kafka"]).await.stdout);
    assert!(checked.contains("below KAFKA_TOPIC_PARTITIONS=5") && checked.contains("add-partitions"), "{checked}");

    for line in ["5 partitions, 2 before", "5 partitions, as before"] {
        let output = wider.run(&["add-partitions"]).await;
        let printed = text(&output.stdout);
        assert!(output.status.success() && printed.matches(line).count() >= 2, "{printed}{}", text(&output.stderr));
        assert_eq!(partitions().await, [5, 5]);
    }
    // A smaller number removes nothing.
    assert!(environment.run(&["add-partitions"]).await.status.success());
    assert_eq!(partitions().await, [5, 5]);

    // A producer that is new knows of all partitions: of 20 keys, some are in those that were added.
    let port = free_port();
    let second = Environment { url: format!("http://127.0.0.1:{port}"), ..wider }.with("API_PORT", &port.to_string());
    let _second = second.serve().await;
    let mut accepted = Vec::new();
    for _ in 0..20 {
        accepted.push(eventually("a run is accepted", || second.execute(&workflow_id)).await);
    }
    for run_id in &accepted {
        ends(run_id).await;
    }
}

/// Another process holds the lock under which migrations run.
#[sqlx::test(migrations = false)]
async fn a_command_waits_for_another_migration_as_long_as_it_may_and_an_api_as_long_as_it_takes(pool: PgPool) {
    empty(&pool).await;
    let environment = Environment::new(&pool);
    let settings = config::load::<config::Database>(environment.variables.clone().into_iter()).expect("valid settings");
    let mut other = db::pool(&settings).acquire_own().await.expect("a connection");
    let lock = "SELECT pg_backend_pid(), pg_advisory_lock(x'77662d617069'::bigint)::text";
    let (pid, _): (i32, String) = sqlx::query_as(lock).fetch_one(&mut *other).await.expect("the lock");
    let told = format!("another process migrates the schema: session {pid} ");
    let output = environment.run(&["migrate", "up", "--wait", "1"]).await;
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{errors}");
    assert!(errors.contains("gave up after 1 s") && errors.contains(&told), "{errors}");
    assert!(text(&output.stdout).contains(&told), "{}", text(&output.stdout));
    let api = environment.start(&["serve"]);
    eventually("the API says what it waits for", || async { api.log().contains(&told).then_some(()) }).await;
    assert_eq!(environment.get("/health").await["status"], "healthy");
    assert!(environment.is_ready().await.is_none());
    drop(other);
    eventually("the API is ready", || environment.is_ready()).await;
}

/// Those who change a schema by psql alone get the same one.
#[sqlx::test(migrations = false)]
async fn the_migrations_are_printed_as_a_script_that_records_what_it_has_run(pool: PgPool) {
    empty(&pool).await;
    let environment = Environment::new(&pool);
    let script = environment.run(&["migrate", "sql"]).await;
    assert!(script.status.success(), "{}", text(&script.stderr));
    // Without the parameters that only sqlx knows.
    let url = environment.variables["DATABASE_URL"].split('?').next().expect("a URL");
    let mut psql = tokio::process::Command::new(cluster::programs().join("psql"));
    let mut psql = psql.args([url, "-X", "-q", "-f", "-"]).stdin(Stdio::piped()).spawn().expect("psql starts");
    psql.stdin.take().expect("a pipe").write_all(&script.stdout).await.expect("it is taken");
    assert!(psql.wait().await.expect("it ends").success());
    let status = environment.run(&["migrate", "validate"]).await;
    assert!(status.status.success(), "{}", text(&status.stdout));
    assert!(text(&environment.run(&["migrate", "up"]).await.stdout).contains("current"));
    let none = text(&environment.run(&["migrate", "sql", "--after", "99999999999999"]).await.stdout);
    assert!(!none.contains("INSERT"), "{none}");
}

/// A statement that takes long is logged with its text, but that of a migration has hundreds of lines.
#[sqlx::test(migrations = false)]
async fn a_migration_that_takes_long_is_logged_by_its_name(pool: PgPool) {
    empty(&pool).await;
    sqlx::raw_sql(include_str!("../it/reference_schema.sql")).execute(&pool).await.expect("its schema");
    let environment = Environment::new(&pool);
    let settings = config::load::<config::Database>(environment.variables.clone().into_iter()).expect("valid settings");
    let mut writer = db::pool(&settings).acquire_own().await.expect("a connection");
    let lock = "SET idle_in_transaction_session_timeout = 0; BEGIN; LOCK TABLE workflow_runs";
    sqlx::raw_sql(lock).execute(&mut *writer).await.expect("a lock");
    let printed = text(&environment.run(&["migrate", "up", "--wait", "1"]).await.stdout);
    assert!(printed.contains("a lock that is held by session"), "{printed}");
    drop(writer);
    let printed = printed + &text(&environment.run(&["migrate", "up"]).await.stdout);
    assert!(!printed.contains("slow statement") && !printed.contains("CREATE TABLE"), "{printed}");
    let ran = printed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ran: Vec<Value> = ran.filter(|line| line["message"].to_string().contains("was run")).collect();
    assert!(!ran.is_empty() && ran.iter().all(|line| line["duration_ms"].is_f64()), "{printed}");
}

/// The text of the server is in two errors of sqlx.
#[sqlx::test(migrations = false)]
async fn an_error_of_the_server_is_printed_once(pool: PgPool) {
    let environment = Environment::new(&pool);
    let mut url = url::Url::parse(&environment.variables["DATABASE_URL"]).expect("a URL");
    url.set_path("/none");
    let environment = environment.with("DATABASE_URL", url.as_str());
    let errors = text(&environment.run(&["check", "db"]).await.stderr);
    assert_eq!(errors.matches("does not exist").count(), 1, "{errors}");
    let api = environment.start(&["serve"]);
    eventually("the log has it", async || api.log().contains("database connection failed").then_some(())).await;
    let lines = api.log_lines();
    let line = lines.iter().find(|line| line["message"] == "database connection failed").expect("the line");
    assert_eq!(line["error"].to_string().matches("does not exist").count(), 1, "{line}");
}

#[sqlx::test(migrations = false)]
async fn refused_settings_are_lines_of_the_log(pool: PgPool) {
    let environment = Environment::new(&pool).with("API_WORKERS", "0").with("MAX_PAGE_SIZE", "0");
    for command in ["serve", "executor"] {
        let output = environment.run(&[command]).await;
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(1), ""));
        let printed = text(&output.stdout);
        let lines: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let messages: Vec<&str> = lines.iter().filter_map(|line| line["message"].as_str()).collect();
        assert!(lines.iter().all(|line| line["level"] == "ERROR"), "{printed}");
        assert!(messages.len() == 2 && messages[0].starts_with("API_WORKERS: must be"), "{printed}");
        assert!(messages[1].starts_with("MAX_PAGE_SIZE: must be"), "{printed}");
        let output = environment.clone().with("LOG_FORMAT", "text").run(&[command]).await;
        assert!(text(&output.stdout).lines().all(|line| line.contains(" ERROR   ")), "{}", text(&output.stdout));
    }
}

#[sqlx::test(migrations = false)]
async fn the_first_admins_key_is_made_on_request_and_never_in_the_log(pool: PgPool) {
    empty(&pool).await;
    let environment = Environment::new(&pool).with("AUTH_ENABLED", "true").with("LOG_LEVEL", "DEBUG");
    let client = reqwest::Client::new();
    let keys = format!("{}/api/v1/api-keys", environment.url);
    let look = async |key: &str| {
        let answer = client.get(&keys).header("x-api-key", key).send().await.expect("an answer");
        (answer.status().as_u16(), answer.json::<Value>().await.expect("JSON"))
    };
    let unmade = environment.run(&["api-key", "--name", "too early"]).await;
    assert!(!unmade.status.success() && unmade.stdout.is_empty(), "there is no table yet");
    let mut api = environment.serve().await;
    eventually("the log says how to make one", || async {
        api.log().contains("workflow-api api-key --name admin").then_some(())
    })
    .await;
    let make = async |arguments: &[&str]| {
        let output = environment.run(&[&["api-key", "--name"], arguments].concat()).await;
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout).trim_end().to_owned()
    };
    let first = make(&["admin"]).await;
    let (status, found) = look(&first).await;
    assert_eq!((status, &found["total"], look("").await.0), (200, &1.into(), 401));
    assert_eq!((&found["items"][0]["role"], &found["items"][0]["expires_at"]), (&"admin".into(), &Value::Null));
    assert_eq!(look(&make(&["reader", "--role", "viewer", "--days", "7"]).await).await.0, 403);
    let found = look(&first).await.1;
    assert!(found["items"][1]["expires_at"].is_string() && found["items"][1]["parent_key_id"].is_null(), "{found}");
    for wrong in [&["admin"][..], &["é"], &["x", "--role", "root"], &["x", "--organization", "nowhere"]] {
        let output = environment.run(&[&["api-key", "--name"], wrong].concat()).await;
        assert!(!output.status.success() && output.stdout.is_empty(), "{wrong:?}");
    }
    api.terminate().await;
    assert_eq!(api.exit_code().await, 0);
    assert!(!api.log().contains("wf_live_"), "{}", api.log());

    // A key of the settings is stored all the same, and printed by nobody.
    let given = text(&environment.run(&["api-key"]).await.stdout).trim().to_owned();
    let file = std::env::temp_dir().join(format!("bootstrap-{}", uuid::Uuid::new_v4()));
    std::fs::write(&file, format!("{given}\n")).expect("a file");
    let environment = environment.with("BOOTSTRAP_API_KEY_FILE", file.to_str().expect("UTF-8"));
    let mut api = environment.serve().await;
    eventually("the key is stored", || async { (look(&given).await.0 == 200).then_some(()) }).await;
    assert_eq!(look(&first).await.0, 200);
    api.terminate().await;
    assert_eq!(api.exit_code().await, 0);
    assert!(!api.log().contains("wf_live_"), "{}", api.log());
    std::fs::remove_file(&file).expect("it is there");
}

#[sqlx::test(migrations = false)]
async fn the_log_is_json_carries_correlation_ids_and_shows_no_secret(pool: PgPool) {
    let secret = "a-secret-of-the-tests-that-is-long-enough";
    let environment = Environment::new(&pool)
        .with("JWT_SECRET", secret)
        .with("AUTH_ENABLED", "false")
        .with("TRUSTED_PROXIES", "127.0.0.0/8")
        .with("LOG_LEVEL", "DEBUG")
        .with("DATABASE_ECHO", "true");
    let mut api = environment.serve().await;
    let agent = serde_json::json!({"name": "a", "url": "http://127.0.0.1:9/", "auth_type": "bearer",
        "auth_config": {"token": "very-secret-token"}});
    let client = reqwest::Client::new();
    let url = format!("{}/api/v1/agents", environment.url);
    let answer =
        client.post(&url).header("x-correlation-id", "req-abc123").header("x-forwarded-for", "192.0.2.7").json(&agent);
    let answer = answer.send().await.expect("an answer");
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["x-correlation-id"]),
        (201, &"req-abc123".parse().expect("it"))
    );
    api.terminate().await;
    assert_eq!(api.exit_code().await, 0);
    let lines = api.log_lines();
    let created = lines.iter().find(|line| line["message"] == "Agent created").expect("the line");
    assert_eq!((&created["correlation_id"], &created["logger"]), (&"req-abc123".into(), &"api.routes.agents".into()));
    let requests: Vec<_> = lines.iter().filter(|line| line["logger"] == "api.request").collect();
    assert!(requests.iter().any(|line| {
        line["correlation_id"] == "req-abc123"
            && line["status"] == 201
            && line["client_ip"] == "192.0.2.7"
            && line["organization_id"] == "default"
    }));
    assert!(requests.iter().any(|line| line["route"] == "/health/ready" && line["client_ip"] == "127.0.0.1"));
    for line in &lines {
        for member in ["timestamp", "level", "logger", "message"] {
            assert!(line[member].is_string(), "{line}");
        }
        assert_ne!(line["level"], "ERROR", "{line}");
    }
    for kept_back in [secret, "very-secret-token"] {
        assert!(!api.log().contains(kept_back), "the log shows {kept_back}");
    }
}

#[sqlx::test(migrations = false)]
async fn a_start_warns_of_settings_that_are_risky_or_unknown_and_has_the_threads_that_were_asked_for(pool: PgPool) {
    let environment = Environment::new(&pool)
        .with("API_WORKERS", "4")
        .with("KAFKA_BROKER", "nowhere:9092")
        .with("BOOTSTRAP_API_KEY", "wf_live_mYHA8R8wktQSNhtZv0nEwRGcbmq0sv1rC3Xc")
        .with("JWT_PUBLIC_KEY", include_str!("../it/access/keys/ed.pub.pem"));
    let api = environment.serve().await;
    let lines = api.log_lines();
    let warnings: Vec<&str> =
        lines.iter().filter(|line| line["level"] == "WARNING").filter_map(|line| line["message"].as_str()).collect();
    for expected in ["KAFKA_BROKER is not a setting", "PUBLIC_URL is not set", "JWT_ISSUER and JWT_AUDIENCE"] {
        assert!(warnings.iter().any(|warning| warning.starts_with(expected)), "{expected}: {warnings:?}");
    }
    // Not counted in /proc: threads for blocking work have the same name.
    let metrics = reqwest::get(format!("{}/metrics", environment.url)).await.expect("an answer").text().await;
    let metrics = metrics.expect("text");
    assert!(metrics.contains("\nruntime_workers 4\n"), "{metrics}");
}

/// A client that is still sending when the connection is closed would see a reset instead of the answer.
#[sqlx::test(migrations = false)]
async fn a_client_that_sends_too_much_gets_its_answer(pool: PgPool) {
    use tokio::io::AsyncReadExt;

    let environment = Environment::new(&pool);
    let _api = environment.serve().await;
    let address = environment.url.trim_start_matches("http://").to_owned();
    for (path, status) in
        [("/api/v1/agents".to_owned(), "413"), (format!("/api/v1/agents?x={}", "y".repeat(9000)), "414")]
    {
        let mut stream = tokio::net::TcpStream::connect(&address).await.expect("it listens");
        let size = 5 << 20;
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("the head is taken");
        stream.write_all(&vec![b' '; size]).await.expect("the body is taken");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer that is complete");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}
