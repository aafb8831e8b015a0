//! The documentation pages, and signing in to the console, in a real browser.

use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

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
    let view = json!({"screen": "runs", "name": "kept", "query": ""});
    let view = post(&environment, "/api/v1/views", view).await;
    let to_forget = json!({"screen": "runs", "name": "deleted", "query": ""});
    let to_forget = post(&environment, "/api/v1/views", to_forget).await;
    let webhook = async |name: &str| {
        let body = json!({"name": name, "url": "http://127.0.0.1:9/", "event_types": ["run.*"]});
        post(&environment, "/api/v1/webhooks", body).await["id"].take()
    };
    let (webhook_id, to_unhook, to_disable) =
        (webhook("kept").await, webhook("deleted").await, webhook("disabled").await);
    let path = format!("/api/v1/webhooks/{}", webhook_id.as_str().expect("an id"));
    post(&environment, &format!("{path}/test"), json!({})).await;
    let deliveries = environment.get(&format!("{path}/deliveries")).await;
    let trigger = async |name: &str, kind: &str, config: Value| {
        let body = json!({"name": name, "kind": kind, "workflow_name": "w", "config": config});
        post(&environment, "/api/v1/triggers", body).await
    };
    let yearly = json!({"cron": ["0 0 1 1 *"]});
    let schedule = trigger("yearly", "schedule", yearly.clone()).await;
    let to_stop = trigger("deleted", "schedule", yearly).await;
    let hook = trigger("hook", "webhook", json!({"preset": "none"})).await;
    let to_rotate = trigger("rotated", "webhook", json!({"preset": "none"})).await;
    trigger("signed", "webhook", json!({"preset": "github", "secrets": ["a secret of both sides"]})).await;
    let path = format!("/api/v1/triggers/{}/backfills", schedule["id"].as_str().expect("an id"));
    let span = json!({"from": "2020-01-01T00:00:00Z", "to": "2024-01-02T00:00:00Z", "dry_run": false});
    let backfill = post(&environment, &path, span).await;
    let key = async |name: &str| {
        post(&environment, "/api/v1/api-keys", json!({"name": name, "role": "viewer"})).await["id"].take()
    };
    // What only an executor makes: a callback that is open, and records that it could not use.
    let open = environment.execute(&workflow_id).await.expect("a run");
    let sql = "INSERT INTO step_waits (run_id, place, step_id, token, token_hash)
               VALUES ($1, 'c', 'c', 'a-token', sha256('a-token'))";
    sqlx::query(sql).bind(&open).execute(&pool).await.expect("a callback");
    // And the address that an executor gives an agent.
    let sql = "INSERT INTO agent_pushes (id, token_hash, attempt_id, waiter, expires_at)
               VALUES (gen_random_uuid(), sha256('a-token'), 'a', gen_random_uuid(), now() + interval '1 hour') RETURNING id";
    let push_id: uuid::Uuid = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("an address");
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
        "view_id": view["id"], "delete_view view_id": to_forget["id"],
        "webhook_id": webhook_id, "delete_webhook webhook_id": to_unhook, "disable_webhook webhook_id": to_disable,
        "delivery_id": deliveries["items"][0]["id"],
        "trigger_id": schedule["id"], "delete_trigger trigger_id": to_stop["id"], "backfill_id": backfill["id"],
        "rotate_token trigger_id": to_rotate["id"], "hook_token": hook["token"], "trigger_name": "signed",
        "push_id": push_id, "receive_push X-A2A-Notification-Token": "a-token",
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
                // Authentication is off.
                Some("create_session") => answer["status"] == "409",
                Some("delete_session" | "receive_push") => answer["status"] == "204",
                // A page cannot sign.
                Some("deliver_by_name") => answer["status"] == "401",
                _ => matches!(answer["status"].as_str(), Some("200" | "201" | "202")),
            };
            if !is_fine {
                failed.push(format!("{method} {path}: {answer}"));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    // The browser's log repeats that there is no token without an API key, no session without authentication, and no
    // signature.
    let refused = ["/api/v1/auth/token", "/console/session", "/api/v1/hooks/default/signed"];
    let refused = refused.map(|path| format!("{}{path}", environment.url));
    let is_unexpected = |complaint: &&String| !refused.iter().any(|path| complaint.contains(path));
    let complaints: Vec<_> = browser.complaints().iter().filter(is_unexpected).collect();
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

/// What the page of the console may do, and what pages elsewhere may not.
#[sqlx::test(migrations = false)]
async fn a_browser_signs_in_to_the_console_and_only_its_pages_use_the_session(pool: PgPool) {
    // A page on another port: the same site, to which the browser sends the cookies of localhost too. The service lets it
    // read answers.
    let page = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let other = format!("http://localhost:{}", page.local_addr().expect("an address").port());
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = page.accept().await {
            let mut request = [0; 4096];
            if stream.read(&mut request).await.is_ok() {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 9\r\nconnection: close";
                // The browser may have gone.
                let _ = stream.write_all(format!("{head}\r\n\r\n<p>x</p>\n").as_bytes()).await;
            }
        }
    });
    let secret = "5b8719f27917be74b8d2acf60e4f759b0d0e5b0c10073abdff49a2f01aefc5cd";
    let environment = Environment::new(&pool).with("JWT_SECRET", secret).with("CORS_ORIGINS", &other);
    let token = environment.run(&["token", "--sub", "ann", "--role", "editor"]).await;
    let token = String::from_utf8(token.stdout).expect("text");
    let token = token.trim();
    let _api = environment.serve().await;
    let sql =
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status) VALUES ('r', 'w', 'w', 'PENDING')";
    sqlx::query(sql).execute(&pool).await.expect("a run");
    let mut browser = Chromium::start().await;
    let console = environment.url.replace("127.0.0.1", "localhost");
    browser.call("Page.navigate", json!({"url": format!("{console}/console/runs/x")})).await;
    let shown = browser
        .evaluate(
            "(async () => {
                for (let tries = 0; tries < 600 && document.readyState !== 'complete'; tries++)
                    await new Promise((resume) => setTimeout(resume, 50));
                const loaded = performance.getEntriesByType('resource').map((entry) => entry.name);
                let blocked = '';
                try { document.body.innerHTML = '<b>x</b>'; } catch (error) { blocked = error.name; }
                return { loaded, blocked };
            })()",
        )
        .await;
    assert_eq!(shown["blocked"], "TypeError", "no text becomes HTML: {shown}");
    for address in shown["loaded"].as_array().expect("a list").iter().filter_map(Value::as_str) {
        assert!(address.starts_with(&console), "{address}");
    }
    let session = "async (headers, method = 'POST') => {
        const answer = await fetch('/console/session', { method, headers });
        const runs = await fetch('/api/v1/runs');
        return [answer.status, runs.status, document.cookie];
    }";
    assert_eq!(browser.evaluate(&format!("({session})({{}})")).await, json!([401, 401, ""]));
    let signed_in = browser.evaluate(&format!("({session})({{ authorization: 'Bearer {token}' }})")).await;
    assert_eq!(signed_in, json!([201, 200, ""]), "scripts do not see the cookie");
    // It stays when the page is loaded again, and an event stream needs no ticket.
    browser.call("Page.navigate", json!({"url": format!("{console}/console")})).await;
    let stream = "new Promise((done) => {
        const stream = new EventSource('/api/v1/runs/r/events');
        stream.onopen = () => { stream.close(); done('open'); };
        stream.onerror = () => { stream.close(); done('refused'); };
    })";
    assert_eq!(browser.evaluate(stream).await, "open");
    let who = "fetch('/console/session').then((answer) => answer.json()).then((who) => [who.subject, who.role])";
    assert_eq!(browser.evaluate(who).await, json!(["ann", "editor"]));
    // Pages of other origins cannot use it, although the browser sends the cookie along, and may show them the answers.
    browser.call("Page.navigate", json!({"url": other})).await;
    let from_elsewhere = format!(
        "(async () => {{
            const send = async (path, more) => {{
                const answer = await fetch('{console}' + path, {{ credentials: 'include', ...more }});
                return answer.status;
            }};
            const body = JSON.stringify({{ name: 'forged', url: 'http://127.0.0.1:9' }});
            const who = await fetch('{console}/console/session', {{ credentials: 'include' }});
            await send('/api/v1/agents', {{ method: 'POST', body, mode: 'no-cors' }});
            return [
                await send('/api/v1/runs'),
                await send('/api/v1/agents', {{ method: 'POST', body }}),
                await send('/console/session', {{ method: 'POST', headers: {{ authorization: 'Bearer {token}' }} }}),
                await send('/console/session', {{ method: 'DELETE' }}),
                (await who.json()).signed_in,
            ];
        }})()"
    );
    assert_eq!(browser.evaluate(&from_elsewhere).await, json!([401, 401, 403, 403, false]));
    serving.abort();
    browser.call("Page.navigate", json!({"url": format!("{console}/console")})).await;
    assert_eq!(browser.evaluate(who).await, json!(["ann", "editor"]));
    let agents =
        browser.evaluate("fetch('/api/v1/agents').then((answer) => answer.json()).then((page) => page.total)").await;
    assert_eq!(agents, json!(0), "nothing was changed from elsewhere");
    let signed_out = browser.evaluate(&format!("({session})({{}}, 'DELETE')")).await;
    assert_eq!(signed_out, json!([204, 401, ""]));
}
