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
    let run = environment.execute(&workflow_id).await.expect("a run");
    let to_cancel = environment.execute(&workflow_id).await.expect("a run");
    let to_retry = environment.execute(&workflow_id).await.expect("a run");
    for ended in [&run, &to_retry] {
        post(&environment, &format!("/api/v1/runs/{ended}/cancel"), json!({})).await;
    }
    let key = async |name: &str| {
        post(&environment, "/api/v1/api-keys", json!({"name": name, "role": "viewer"})).await["id"].take()
    };
    let values = json!({
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
    assert_eq!(browser.complaints(), [""; 0]);
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
