//! Who may do what, on every route that the OpenAPI document names.

use std::collections::BTreeSet;

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{
    access::{Permission, Role},
    api::gate::{access, rules},
    db::migrations::MIGRATOR,
};

use super::{Admin, claims, now, secret, signed};
use crate::{
    documentation::filled,
    service::{Answer, Service},
};

/// The operations under the prefix: method, path below it, and what the document says.
pub async fn operations(service: &Service) -> Vec<(String, String, Value)> {
    let document = service.get("/openapi.json").await.expect(200);
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        let Some(below) = path.strip_prefix("/api/v1") else { continue };
        for (method, about) in item.as_object().expect("operations") {
            found.push((method.to_uppercase(), below.to_owned(), about.clone()));
        }
    }
    assert!(found.len() >= 43, "{} operations", found.len());
    found
}

/// Where everybody is let in who knows the address.
const CALLBACK: &str = "/callbacks/{token}";
/// Where every agent is let in that has the token.
const AGENT_PUSH: &str = "/agent-pushes/{push_id}";

/// Where everybody is let in who knows the address or can sign; credentials of this service mean nothing there.
const HOOKS: &str = "/hooks/";

/// What is meant, in other words than the table's.
fn may(role: Role, method: &str, path: &str) -> bool {
    let is_trigger = path.starts_with("/triggers") && method != "GET" && !path.ends_with("/preview");
    let is_run = is_trigger
        || ["/execute", "/retry", "/cancel", "/pause", "/resume", "/callbacks", "/bulk"]
            .iter()
            .any(|end| path.ends_with(end));
    let is_look = (method == "GET" && !is_run)
        || [
            "/workflows/validate",
            "/workflows/graph",
            "/workflows/test",
            "/runs/{run_id}/events/ticket",
            "/triggers/{trigger_id}/preview",
        ]
        .contains(&path)
        || ["/{workflow_id}/test", "/backtest"].iter().any(|end| path.ends_with(end));
    // Views of one's own.
    let is_look = is_look || path.starts_with("/views");
    let for_admins = ["/api-keys", "/organizations", "/audit-logs", "/dead-letters", "/system"];
    let is_key = for_admins.iter().any(|start| path.starts_with(start)) && path != "/system/limits";
    match role {
        _ if ["/auth/token", CALLBACK, AGENT_PUSH].contains(&path) => true,
        Role::Admin => true,
        _ if is_key => false,
        Role::Viewer => is_look,
        Role::Operator | Role::Executor => is_look || is_run,
        Role::Editor => is_look || !is_run,
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_route_lets_in_whom_it_should_and_nobody_else(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let service = &admin.service;
    let mut keys = Vec::new();
    for role in Role::ALL {
        keys.push((role, admin.key(&json!({"name": role.as_str(), "role": role})).await.0));
    }
    let (revoked, id) = admin.key(&json!({"name": "revoked", "role": "admin"})).await;
    admin.delete(&format!("/api/v1/api-keys/{id}")).await.expect(200);
    let (expired, _) = admin.key(&json!({"name": "expired", "role": "admin"})).await;
    let sql = "UPDATE api_keys SET expires_at = now() - interval '1 second' WHERE name = 'expired'";
    sqlx::query(sql).execute(&pool).await.expect("done");
    let token = |more: Value| {
        format!("Bearer {}", signed(&json!({"alg": "HS256"}), &claims(&more), &secret(), Algorithm::HS256))
    };
    let late = token(json!({"exp": now() - 3600}));
    let nobody = [None, Some(("x-api-key", &revoked)), Some(("x-api-key", &expired)), Some(("authorization", &late))];

    for (method, path, about) in operations(service).await {
        let at = format!("/api/v1{}", filled(&path));
        let send = async |credentials: Option<(&str, &String)>| {
            let credentials = credentials.map(|(name, value)| (name, value.as_str()));
            let headers: Vec<_> = [("content-type", "application/json")].into_iter().chain(credentials).collect();
            service.send(&method, &at, &headers, "{}").await
        };
        if path.starts_with(HOOKS) {
            for credentials in nobody.into_iter().chain(keys.iter().map(|(_, key)| Some(("x-api-key", key)))) {
                let answer = send(credentials).await;
                let code = answer.json()["code"].clone();
                let expected = if path.ends_with("{hook_token}") { "hook_not_found" } else { "delivery_refused" };
                assert_eq!(code, expected, "{method} {path}: {}", answer.text);
            }
            continue;
        }
        for credentials in nobody {
            let answer = send(credentials).await;
            if path == CALLBACK {
                assert_eq!(answer.error(404)["code"], "callback_not_found", "its address is the permission");
                continue;
            }
            if path == AGENT_PUSH {
                assert_eq!(answer.error(404)["code"], "agent_push_not_found", "its token is the permission");
                continue;
            }
            assert!(answer.header("www-authenticate").is_some(), "{method} {path}: {}", answer.text);
            assert_eq!(answer.error(401)["code"], "unauthorized", "{method} {path}");
        }
        let mut said: BTreeSet<String> = BTreeSet::new();
        for (role, key) in &keys {
            let bearer = token(json!({"role": role}));
            for credentials in [("x-api-key", key), ("authorization", &bearer)] {
                let answer = send(Some(credentials)).await;
                let status = answer.status.as_u16();
                let documented = about["responses"].get(status.to_string());
                assert!(documented.is_some(), "{method} {path}: {status} is not documented");
                let is_forbidden = status == 403 && answer.json()["code"] == "forbidden";
                let expected = may(*role, &method, &path);
                assert_eq!(!is_forbidden, expected, "{role} {method} {path}: {}", answer.text);
                assert_ne!(status, 401, "{role} {method} {path}: {}", answer.text);
                if is_forbidden {
                    answer.error(403);
                } else {
                    said.insert(role.to_string());
                }
            }
        }
        // The document says the same.
        let roles: BTreeSet<String> =
            serde_json::from_value(about["x-required-roles"].clone()).unwrap_or_else(|_| panic!("{method} {path}"));
        assert_eq!(roles, said, "{method} {path}");
        for status in ["401", "403"] {
            assert!(about["responses"].get(status).is_some(), "{method} {path}: {status} is not documented");
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_route_is_in_the_table_and_the_documentation_is_what_the_table_says(pool: PgPool) {
    let service = Service::start(&pool);
    let table = access::markdown();
    let mut routes = 0;
    for (method, path, about) in operations(&service).await {
        let of = http::Method::from_bytes(method.as_bytes()).expect("a method");
        let needs = rules::needs(&of, &format!("/api/v1{path}"), "/api/v1");
        let needs = needs.unwrap_or_else(|| panic!("{method} {path} is not in the table of api::gate::rules"));
        let names: Vec<&str> = needs.iter().map(|permission| permission.as_str()).collect();
        assert_eq!(about["x-required-permissions"], json!(names), "{method} {path}");
        assert!(names.iter().all(|name| about["description"].to_string().contains(name)), "{method} {path}");
        assert!(table.contains(&format!("| {method} `{path}` |")), "{method} {path}");
        routes += 1;
    }
    // The tests of workflows as agents and as tools are about the routes at the root.
    let is_below = |line: &&str| {
        line.starts_with("| ") && line.contains(" `/") && !line.contains("`/a2a/") && !line.contains("`/mcp`")
    };
    let in_table = table.lines().filter(is_below).count();
    assert_eq!(in_table, routes, "the table has routes that do not exist");
    let written = include_str!("../../../docs/access.md");
    assert!(written == table, "docs/access.md is not what `workflow-api access` prints");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_refused_changes_nothing(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let (key, _) = admin.key(&json!({"name": "viewer", "role": "viewer"})).await;
    let headers = [("x-api-key", key.as_str()), ("content-type", "application/json")];
    let agent = json!({"name": "a", "url": "http://a"}).to_string();
    admin.service.send("POST", "/api/v1/agents", &headers, agent).await.error(403);
    assert_eq!(admin.get("/api/v1/agents").await.expect(200)["total"], 0);
    // Another method and another path answer as they do to everybody.
    admin.service.send("PATCH", "/api/v1/agents", &headers, "").await.error(405);
    admin.service.send("GET", "/api/v1/nothing", &headers, "").await.error(404);
    let head = admin.service.send("HEAD", "/api/v1/api-keys", &headers, "").await;
    assert_eq!(head.status.as_u16(), 403);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn scopes_narrow_a_role(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let body = json!({"name": "keys", "role": "admin", "scopes": ["keys:manage", "runs:read"]});
    let (key, _) = admin.key(&body).await;
    let send = async |method: &str, path: &str, body: Value| {
        let headers = [("x-api-key", key.as_str()), ("content-type", "application/json")];
        admin.service.send(method, &format!("/api/v1{path}"), &headers, body.to_string()).await
    };
    send("GET", "/runs", json!(null)).await.expect(200);
    send("GET", "/agents", json!(null)).await.error(403);
    // It makes keys, though none that may do more than itself.
    let code = |answer: Answer| answer.error(403)["code"].clone();
    for (name, body) in [
        ("the whole role", json!({"name": "a", "role": "admin"})),
        ("a smaller role that sees agents", json!({"name": "a", "role": "viewer"})),
        ("another scope", json!({"name": "a", "role": "admin", "scopes": ["agents:secrets"]})),
    ] {
        assert_eq!(code(send("POST", "/api-keys", body).await), "exceeds_own_rights", "{name}");
    }
    send("POST", "/api-keys", json!({"name": "a", "role": "viewer", "scopes": ["runs:read"]})).await.expect(201);
    // A token of the key is narrowed as the key is.
    let issued = send("POST", "/auth/token", json!(null)).await.expect(200);
    let bearer = format!("Bearer {}", issued["access_token"].as_str().expect("a token"));
    let headers = [("authorization", bearer.as_str())];
    admin.service.send("GET", "/api/v1/agents", &headers, "").await.error(403);
    admin.service.send("GET", "/api/v1/runs", &headers, "").await.expect(200);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn who_may_not_read_runs_gets_none_by_a_webhook(pool: PgPool) {
    let admin = Admin::start(&pool, &[("EGRESS_ALLOW", "127.0.0.0/8")]);
    let body = json!({"name": "hooks", "role": "admin", "scopes": ["webhooks:read", "webhooks:write"]});
    let (key, _) = admin.key(&body).await;
    let send = async |method: &str, path: &str, body: Value| {
        let headers = [("x-api-key", key.as_str()), ("content-type", "application/json")];
        admin.service.send(method, &format!("/api/v1{path}"), &headers, body.to_string()).await
    };
    let hook =
        |payload: &str| json!({"name": "h", "url": "http://127.0.0.1:9/", "event_types": ["*"], "payload": payload});
    send("POST", "/webhooks", hook("full")).await.error(403);
    let own = send("POST", "/webhooks", hook("thin")).await.expect(201);
    let own = format!("/webhooks/{}", own["id"].as_str().expect("an id"));
    send("PATCH", &own, json!({"payload": "full"})).await.error(403);
    send("PUT", &own, hook("full")).await.error(403);
    let full = admin.post("/api/v1/webhooks", &hook("full")).await.expect(201);
    let full = format!("/webhooks/{}", full["id"].as_str().expect("an id"));
    send("PATCH", &full, json!({"url": "http://127.0.0.1:7/"})).await.error(403);
    send("PATCH", &full, json!({"payload": "thin"})).await.expect(200);
    // Of what others send, it sees the values as asterisks.
    let sql = "INSERT INTO webhook_deliveries (id, created_at, webhook_id, organization_id, event_id, event_type,
                   event_at, body, state)
               SELECT gen_random_uuid(), now(), id, 'default', gen_random_uuid(), 'run.completed', now(), $1, 'failed'
               FROM webhooks LIMIT 1 RETURNING id::text";
    let body = r#"{"type":"run.completed","data":{"run_id":"r","input":{"pin":1234},"output":[5]}}"#;
    let id: String = sqlx::query_scalar(sql).bind(body).fetch_one(&pool).await.expect("a delivery");
    let delivery = format!("/webhook-deliveries/{id}");
    let data = |answer: Answer| answer.expect(200)["body"]["data"].clone();
    let hidden = json!({"run_id": "r", "input": "********", "output": "********"});
    assert_eq!(data(send("GET", &delivery, json!(null)).await), hidden);
    let shown = json!({"run_id": "r", "input": {"pin": 1234}, "output": [5]});
    assert_eq!(data(admin.get(&format!("/api/v1{delivery}")).await), shown);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_bound_key_knows_its_workflows_and_no_others(pool: PgPool) {
    let open = Service::start(&pool);
    open.agent("worker", "http://127.0.0.1:9/").await;
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let own = text(&open.chain("own", &["worker"]).await["id"]);
    let foreign = text(&open.chain("foreign", &["worker"]).await["id"]);
    let (own_run, foreign_run) = (open.execute(&own).await, open.execute(&foreign).await);

    let admin = Admin::start(&pool, &[]);
    let (key, _) = admin.key(&json!({"name": "ci", "role": "admin", "workflows": ["own", "later one"]})).await;
    let send = async |method: &str, path: &str| {
        let headers = [("x-api-key", key.as_str()), ("content-type", "application/json")];
        admin.service.send(method, &format!("/api/v1{path}"), &headers, "{}").await
    };
    for path in [
        format!("/workflows/{own}"),
        format!("/workflows/{own}/versions"),
        "/workflow-names/own".to_owned(),
        "/workflow-names/%6Fwn".to_owned(),
        format!("/runs/{own_run}"),
        format!("/runs/{own_run}/logs"),
    ] {
        assert_eq!(send("GET", &path).await.status.as_u16(), 200, "{path}");
    }
    send("POST", &format!("/workflows/{own}/execute")).await.error(422);
    send("POST", &format!("/runs/{own_run}/cancel")).await.expect(200);

    // What is another's looks as if it were not there.
    let nowhere = "00000000-0000-0000-0000-000000000000";
    for (method, path, id, missing) in [
        ("GET", "/workflows/{}", foreign.as_str(), nowhere),
        ("PUT", "/workflows/{}", &foreign, nowhere),
        ("DELETE", "/workflows/{}", &foreign, nowhere),
        ("GET", "/workflows/{}/graph", &foreign, nowhere),
        ("POST", "/workflows/{}/execute", &foreign, nowhere),
        ("POST", "/workflows/{}/test", &foreign, nowhere),
        ("POST", "/workflows/{}/versions/1/backtest", &foreign, nowhere),
        ("GET", "/workflow-names/{}", "foreign", "missing"),
        ("PUT", "/workflow-names/{}", "foreign", "missing"),
        ("POST", "/workflow-names/{}/execute", "foreign", "later%20one%20that%20is%20not"),
        ("GET", "/runs/{}", &foreign_run, "run-x"),
        ("GET", "/runs/{}/events", &foreign_run, "run-x"),
        ("POST", "/runs/{}/cancel", &foreign_run, "run-x"),
        ("POST", "/runs/{}/retry", &foreign_run, "run-x"),
    ] {
        let seen = async |id: &str| {
            let error = send(method, &path.replace("{}", id)).await.error(404);
            (error["code"].clone(), error["detail"].clone())
        };
        assert_eq!(seen(id).await, seen(missing).await, "{method} {path}");
    }
    for (method, path) in [
        ("GET", "/workflows"),
        ("GET", "/runs"),
        ("GET", "/agents"),
        ("GET", "/export"),
        ("POST", "/import"),
        ("POST", "/workflows"),
        ("POST", "/api-keys"),
        ("POST", "/workflows/validate"),
        ("POST", "/workflows/test"),
    ] {
        assert_eq!(send(method, path).await.error(403)["code"], "key_is_bound", "{method} {path}");
    }
    send("GET", "/workflows/no-id").await.error(422);
    send("POST", "/auth/token").await.expect(200);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_bound_key_uses_the_triggers_of_its_workflows_and_no_others(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let create = async |name: &str, kind: &str, config: Value| {
        let body = json!({"name": name, "kind": kind, "workflow_name": name, "config": config});
        admin.post("/api/v1/triggers", &body).await.expect(201)["id"].as_str().expect("an id").to_owned()
    };
    let yearly = || json!({"cron": ["0 0 1 1 *"]});
    let (own, foreign) = (create("own", "schedule", yearly()).await, create("foreign", "schedule", yearly()).await);
    let hook = create("later one", "webhook", json!({"preset": "none"})).await;
    let (key, _) = admin.key(&json!({"name": "ci", "role": "admin", "workflows": ["own", "later one"]})).await;
    let send = async |method: &str, path: &str, body: &Value| {
        let headers = [("x-api-key", key.as_str()), ("content-type", "application/json")];
        let body = if method == "GET" { String::new() } else { body.to_string() };
        admin.service.send(method, &format!("/api/v1{path}"), &headers, body).await
    };
    let span = json!({"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"});
    let nowhere = "00000000-0000-0000-0000-000000000000";
    for (method, path, body, expected) in [
        ("GET", "/triggers/{}", json!({}), 200),
        ("PUT", "/triggers/{}", json!({"note": "mine"}), 200),
        ("POST", "/triggers/{}/pause", json!({}), 200),
        ("POST", "/triggers/{}/resume", json!({}), 200),
        ("POST", "/triggers/{}/preview", json!({}), 200),
        // There is no such workflow yet.
        ("POST", "/triggers/{}/fire", json!({}), 409),
        ("GET", "/triggers/{}/backfills", json!({}), 200),
        ("POST", "/triggers/{}/backfills", span, 200),
        ("GET", "/triggers/{}/backfills/00000000-0000-0000-0000-000000000000", json!({}), 404),
        ("POST", "/triggers/{}/backfills/00000000-0000-0000-0000-000000000000/stop", json!({}), 404),
        ("DELETE", "/triggers/{}", json!({}), 200),
    ] {
        let seen = async |id: &str| {
            let error = send(method, &path.replace("{}", id), &body).await.error(404);
            (error["code"].clone(), error["detail"].clone())
        };
        // What is another's looks as if it were not there.
        assert_eq!(seen(&foreign).await, seen(nowhere).await, "{method} {path}");
        let answer = send(method, &path.replace("{}", &own), &body).await;
        assert_eq!(answer.status.as_u16(), expected, "{method} {path}: {}", answer.text);
    }
    send("POST", &format!("/triggers/{hook}/token"), &json!({})).await.expect(200);
    send("POST", &format!("/triggers/{foreign}/token"), &json!({})).await.error(404);
    // No trigger of it starts another workflow, and no route that names none lets it in.
    let elsewhere = json!({"workflow_name": "foreign"});
    let refused = send("PUT", &format!("/triggers/{hook}"), &elsewhere).await;
    assert_eq!(refused.field_errors(), ["body.workflow_name value_error"]);
    let new = json!({"name": "n", "kind": "schedule", "workflow_name": "own", "config": yearly()});
    for (method, path) in [("GET", "/triggers"), ("POST", "/triggers"), ("GET", "/triggers/preview?cron=@daily")] {
        assert_eq!(send(method, path, &new).await.error(403)["code"], "key_is_bound", "{method} {path}");
    }
    send("GET", "/triggers/no-id", &json!({})).await.error(422);
    // A role that starts no runs reads triggers, and changes none.
    let (viewer, _) = admin.key(&json!({"name": "v", "role": "viewer", "workflows": ["later one"]})).await;
    let headers = [("x-api-key", viewer.as_str()), ("content-type", "application/json")];
    let path = format!("/api/v1/triggers/{hook}");
    admin.service.send("GET", &path, &headers, "").await.expect(200);
    assert_eq!(admin.service.send("DELETE", &path, &headers, "").await.error(403)["code"], "forbidden");
}

/// The reference deployment let user and password into URLs.
async fn let_in_with_a_password(pool: &PgPool) {
    let sql = "UPDATE agents SET url = 'http://user:pass@agent.example/rpc?key=qu3ry-secret'";
    sqlx::query(sql).execute(pool).await.expect("a URL");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn credentials_of_agents_are_shown_to_executors_and_admins_alone(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let agent = json!({"name": "a", "url": "http://agent.example/rpc", "auth_type": "apikey",
        "auth_config": {"key": "hunter2hunter2", "header_name": "X-Key"}});
    let created = admin.post("/api/v1/agents", &agent).await.expect(201);
    let_in_with_a_password(&pool).await;
    let id = created["id"].as_str().expect("an id").to_owned();
    let path = format!("/api/v1/agents/{id}");
    for role in Role::ALL {
        let (key, _) = admin.key(&json!({"name": role.as_str(), "role": role})).await;
        let headers = [("x-api-key", key.as_str())];
        let sees = matches!(role, Role::Admin | Role::Executor);
        for look in [path.as_str(), "/api/v1/agents", "/api/v1/agents?name=a"] {
            let answer = admin.service.send("GET", look, &headers, "").await;
            assert_eq!(answer.status.as_u16(), 200, "{role} {look}");
            for hidden in ["hunter2", "user:pass", "qu3ry-secret"] {
                assert_eq!(answer.text.contains(hidden), sees, "{role} {look}: {}", answer.text);
            }
            assert!(answer.text.contains("X-Key") && answer.text.contains("agent.example/rpc"), "{}", answer.text);
        }
        let export = admin.service.send("GET", "/api/v1/export?include_secrets=true", &headers, "").await;
        assert_eq!(export.status.as_u16(), if sees { 200 } else { 403 }, "{role}");
        let export = admin.service.send("GET", "/api/v1/export", &headers, "").await;
        assert!(export.text.contains("http://agent.example/rpc?key=********\""), "{}", export.text);
        export.expect(200);
    }
    // Nor in the trail, where a change of the secret alone is an entry, too.
    let url = json!({"url": "http://agent.example/rpc?key=n3w-secret"});
    admin.put(&path, &url).await.expect(200);
    let trail = admin.get(&format!("/api/v1/audit-logs?entity_id={id}")).await;
    assert!(!trail.text.contains("secret\""), "{}", trail.text);
    let masked = json!({"url": "http://agent.example/rpc?key=********"});
    assert_eq!(trail.expect(200)["items"][0]["after"], masked);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn who_sees_no_credentials_can_send_back_what_he_sees(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let agent = json!({"name": "a", "url": "http://agent.example/rpc", "auth_type": "bearer",
        "auth_config": {"token": "hunter2hunter2"}});
    let created = admin.post("/api/v1/agents", &agent).await.expect(201);
    let_in_with_a_password(&pool).await;
    let path = format!("/api/v1/agents/{}", created["id"].as_str().expect("an id"));
    let (key, _) = admin.key(&json!({"name": "editor", "role": "editor"})).await;
    let headers = [("x-api-key", key.as_str()), ("content-type", "application/json")];
    let send = async |method: &str, path: &str, body: &Value| {
        admin.service.send(method, path, &headers, body.to_string()).await
    };
    let stored = async || {
        let agent = admin.get(&path).await.expect(200);
        (agent["url"].clone(), agent["auth_config"]["token"].clone())
    };
    let before = stored().await;
    assert_eq!(before, (json!("http://user:pass@agent.example/rpc?key=qu3ry-secret"), json!("hunter2hunter2")));

    let mut seen = admin.service.send("GET", &path, &headers, "").await.expect(200);
    assert_eq!(seen["auth_config"], json!({"token": "********", "type": "bearer"}));
    assert_eq!(seen["url"], "http://agent.example/rpc?key=********");
    seen["description"] = json!("changed");
    let answer = send("PUT", &path, &seen).await;
    assert!(!answer.text.contains("hunter2"), "{}", answer.text);
    assert_eq!(answer.expect(200)["description"], "changed");
    assert_eq!(stored().await, before);

    // The stored credentials do not go where he could read them.
    for url in [
        "http://evil.example/rpc",
        "http://agent.example:81/rpc",
        "https://agent.example/rpc",
        "http://agent.example/echo",
        "http://agent.example/rpc?key=********&debug=1",
        "http://agent.example/rpc?key=his",
    ] {
        for body in [json!({"url": url}), json!({"url": url, "auth_config": {"token": "********"}})] {
            let answer = send("PUT", &path, &body).await;
            assert_eq!(answer.status.as_u16(), 422, "{body}: {}", answer.text);
            assert_eq!(answer.field_errors(), ["body.url value_error"], "{body}");
        }
    }
    assert_eq!(stored().await, before);
    let document = json!({"format": "workflow-api/definitions", "version": 1,
        "agents": [{"name": "a", "url": "http://agent.example/echo"}]});
    send("POST", "/api/v1/import", &document).await.error(422);
    assert_eq!(stored().await, before);
    // Nor does the secret of the URL, with credentials of his own.
    let own = json!({"url": "http://agent.example/echo?key=********", "auth_config": {"token": "his own"}});
    assert_eq!(send("PUT", &path, &own).await.field_errors(), ["body.url value_error"]);
    // What he was given as a document keeps what it does not show.
    let mut document = admin.service.send("GET", "/api/v1/export", &headers, "").await.expect(200);
    document["agents"][0]["description"] = json!("imported");
    send("POST", "/api/v1/import", &document).await.expect(200);
    admin.post("/api/v1/import", &document).await.expect(200);
    assert_eq!(stored().await, before);
    let own = json!({"url": "http://other.example/", "auth_config": {"token": "his own"}});
    send("PUT", &path, &own).await.expect(200);
    assert_eq!(stored().await, (json!("http://other.example/"), json!("his own")));

    // A mask that stands for nothing is no credential.
    let copy = json!({"name": "b", "url": "http://b", "auth_type": "bearer", "auth_config": {"token": "********"}});
    assert_eq!(send("POST", "/api/v1/agents", &copy).await.field_errors(), ["body.auth_config.token value_error"]);
    let copy = json!({"name": "b", "url": "http://b/?key=********"});
    for answer in [send("POST", "/api/v1/agents", &copy).await, admin.post("/api/v1/agents", &copy).await] {
        assert_eq!(answer.field_errors(), ["body.url value_error"]);
    }

    // A key does not go where servers repeat what they are sent.
    let keyed = json!({"auth_type": "apikey", "auth_config": {"key": "hunter3hunter3", "header_name": "X-Key"}});
    admin.put(&path, &keyed).await.expect(200);
    let other = json!({"auth_config": {"key": "********", "header_name": "X-Request-ID"}});
    assert_eq!(send("PUT", &path, &other).await.field_errors(), ["body.auth_config.header_name value_error"]);
    let seen = admin.service.send("GET", &path, &headers, "").await.expect(200);
    assert_eq!(send("PUT", &path, &seen).await.expect(200)["auth_config"], seen["auth_config"]);
}

#[test]
fn an_admin_may_do_everything_and_nobody_else_does() {
    assert_eq!(Role::Admin.permissions(), Permission::ALL);
    for role in Role::ALL.into_iter().filter(|role| *role != Role::Admin) {
        assert!(role.permissions().len() < Permission::ALL.len() && !role.permissions().is_empty(), "{role}");
    }
    for permission in Permission::ALL {
        assert_eq!(Permission::parse(permission.as_str()), Some(permission));
    }
}
