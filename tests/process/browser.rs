//! The documentation pages in a real browser.

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{chromium::Chromium, program::Environment};

/// Posts what has to succeed.
async fn post(environment: &Environment, path: &str, body: Value) -> Value {
    let answer = environment.post(path, &body).await.expect("an answer");
    assert!(answer.status().is_success(), "{path}: {}", answer.status());
    answer.json().await.expect("JSON")
}

#[sqlx::test(migrations = false)]
async fn try_it_out_works_for_every_route(pool: PgPool) {
    let environment = Environment::new(&pool);
    let _api = environment.serve().await;
    // What the examples in the document name, and what there is to change, cancel and delete. The example of a new
    // agent is the one that makes "summariser".
    post(&environment, "/api/v1/agents", json!({"name": "translator", "url": "http://127.0.0.1:9"})).await;
    let agent = post(&environment, "/api/v1/agents", json!({"name": "other", "url": "http://127.0.0.1:9"})).await;
    let workflow_id = environment.chain("w", &["http://127.0.0.1:9".to_owned()]).await;
    let to_delete = environment.chain("v", &["http://127.0.0.1:9".to_owned()]).await;
    let exposed = json!({"name": "exposed", "start_step": "s", "expose": {"a2a": true},
        "steps": {"s": {"id": "s", "agent_name": "other", "input_mapping": {}}}});
    post(&environment, "/api/v1/workflows", exposed).await;
    let run = environment.execute(&workflow_id).await.expect("a run");
    let to_cancel = environment.execute(&workflow_id).await.expect("a run");
    let to_retry = environment.execute(&workflow_id).await.expect("a run");
    for ended in [&run, &to_retry] {
        post(&environment, &format!("/api/v1/runs/{ended}/cancel"), json!({})).await;
    }
    let key = async |name: &str| {
        post(&environment, "/api/v1/api-keys", json!({"name": name, "role": "viewer"})).await["id"].take()
    };
    // What only an executor makes: a callback that is open, and records that it could not use.
    let open = environment.execute(&workflow_id).await.expect("a run");
    let sql = "INSERT INTO step_waits (run_id, place, step_id, token, token_hash)
               VALUES ($1, 'c', 'c', 'a-token', sha256('a-token'))";
    sqlx::query(sql).bind(&open).execute(&pool).await.expect("a callback");
    let letter = async |offset: i64| {
        let sql = "INSERT INTO dead_letters (id, topic, partition, record_offset, value, digest, bytes, reason, detail)
                   VALUES (gen_random_uuid(), $2, 0, $1, '{}', sha256('{}'), 2, 'invalid_content', 'x')
                   RETURNING id";
        let query =
            sqlx::query_scalar::<_, uuid::Uuid>(sql).bind(offset).bind(&environment.variables["KAFKA_EXECUTION_TOPIC"]);
        query.fetch_one(&pool).await.expect("a letter")
    };
    let values = json!({
        "pause_run run_id": open, "resume_run run_id": open, "token": "a-token",
        "dead_letter_id": letter(1).await, "discard_dead_letter dead_letter_id": letter(2).await,
        "redrive_dead_letter dead_letter_id": letter(3).await, "organization_id": "default",
        "organization": "default", "workflow": "exposed",
        "key_id": key("kept").await, "revoke_api_key key_id": key("revoked").await,
        "agent_id": agent["id"], "workflow_id": workflow_id, "run_id": run, "name": "w", "version": "1", "other": "1",
        "cancel_run run_id": to_cancel, "retry_run run_id": to_retry,
        "delete_workflow workflow_id": to_delete, "put_workflow_by_name name": "by-name",
    });
    let mut browser = Chromium::start().await;
    browser.watch_log().await;
    browser.call("Page.navigate", json!({"url": format!("{}/docs", environment.url)})).await;
    let answers = browser.evaluate(&format!("({})({values})", include_str!("browser.js"))).await;
    let document = environment.get("/openapi.json").await;
    let mut failed = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, about) in item.as_object().expect("operations") {
            let answer = &answers[about["operationId"].as_str().expect("an operationId")];
            // Whoever has no API key gets no token for it.
            let is_fine = match about["operationId"].as_str() {
                Some("issue_token") => answer["status"] == "403",
                _ => matches!(answer["status"].as_str(), Some("200" | "201" | "202")),
            };
            if !is_fine {
                failed.push(format!("{method} {path}: {answer}"));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    // The console repeats that there is no token without an API key.
    let expected = format!("{}/api/v1/auth/token", environment.url);
    let complaints: Vec<_> = browser.complaints().iter().filter(|complaint| !complaint.contains(&expected)).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[sqlx::test(migrations = false)]
async fn the_pages_load_nothing_from_elsewhere_and_report_no_error(pool: PgPool) {
    let environment = Environment::new(&pool);
    let _api = environment.serve().await;
    let mut browser = Chromium::start().await;
    browser.watch_log().await;
    for (page, shown) in [("docs", ".opblock"), ("redoc", "[data-section-id^='tag/']")] {
        let url = format!("{}/{page}", environment.url);
        browser.call("Page.navigate", json!({ "url": url })).await;
        // Errors of the page and of its content policy come with the entries of the time line or as events.
        let seen = browser
            .evaluate(&format!(
                "(async () => {{
                    const errors = [];
                    addEventListener('error', (event) => errors.push(String(event.message)), true);
                    addEventListener('securitypolicyviolation', (event) => errors.push(event.blockedURI));
                    for (let tries = 0; tries < 600 && !document.querySelector(\"{shown}\"); tries++)
                        await new Promise((resume) => setTimeout(resume, 50));
                    return {{ errors, isThere: !!document.querySelector(\"{shown}\"),
                        loaded: performance.getEntriesByType('resource').map((entry) => entry.name) }};
                }})()"
            ))
            .await;
        assert_eq!((&seen["isThere"], &seen["errors"]), (&json!(true), &json!([])), "{page}: {seen}");
        assert_eq!(browser.complaints(), [""; 0], "{page}");
        let loaded = seen["loaded"].as_array().expect("a list");
        assert!(!loaded.is_empty(), "{page} loaded nothing");
        for address in loaded.iter().filter_map(Value::as_str) {
            let is_ours = [environment.url.as_str(), "data:", "blob:"].iter().any(|start| address.starts_with(start));
            assert!(is_ours, "{page} loaded {address}");
        }
    }
}
