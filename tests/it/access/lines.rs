//! What a key or a token makes: never more than its maker, never longer, and gone with it.

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{access::api_key::ApiKey, actions::api_keys::store_given, db::migrations::MIGRATOR};

use super::{Admin, RSA, RSA_PUBLIC, SECRET, claims, look, look_with_key, now, rsa, secret, signed};
use crate::service::{Answer, Service, config, eventually, own_pool};

const KEYS: &str = "/api/v1/api-keys";

/// What may be sent: a header and its value.
type Credentials = (&'static str, String);

async fn send(service: &Service, method: &str, path: &str, by: &Credentials, body: &Value) -> Answer {
    let headers = [(by.0, by.1.as_str()), ("content-type", "application/json")];
    service.send(method, path, &headers, body.to_string()).await
}

/// A key of that body, made by those credentials: how it is used, and its id.
async fn key(service: &Service, by: &Credentials, body: &Value) -> (Credentials, String) {
    let made = send(service, "POST", KEYS, by, body).await.expect(201);
    let text = |name: &str| made[name].as_str().expect("text").to_owned();
    (("x-api-key", text("key")), text("id"))
}

fn bearer(more: &Value) -> Credentials {
    let token = signed(&json!({"alg": "HS256"}), &claims(more), &secret(), Algorithm::HS256);
    ("authorization", format!("Bearer {token}"))
}

/// The answer of `GET /api-keys`.
async fn status(service: &Service, by: &Credentials) -> u16 {
    send(service, "GET", KEYS, by, &json!(null)).await.status.as_u16()
}

/// A time so many seconds from now, as the API writes it.
fn at(secs: i64) -> String {
    let at = chrono::DateTime::from_timestamp(now() + secs, 0).expect("a time");
    at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// A service, and the key of its settings.
async fn with_first_key(pool: &PgPool, more: &[(&str, &str)]) -> (Service, Credentials) {
    let first = ApiKey::generate("live");
    assert!(store_given(&own_pool(pool), &first, true).await.expect("stored"));
    let pairs: Vec<_> = [("AUTH_ENABLED", "true")].iter().chain(more).copied().collect();
    (Service::start_with(config(pool, &pairs)), ("x-api-key", first.expose().to_owned()))
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn nothing_lives_longer_than_what_it_is_made_with(pool: PgPool) {
    let (service, first) = with_first_key(&pool, &[("JWT_SECRET", SECRET), ("JWT_PUBLIC_KEY", RSA_PUBLIC)]).await;
    let theirs = claims(&json!({"exp": now() + 20}));
    let theirs = signed(&json!({"alg": "RS256"}), &theirs, &rsa(RSA), Algorithm::RS256);
    let minute = json!({"name": "a minute", "role": "admin", "expires_at": at(60)});
    let (short, _) = key(&service, &first, &minute).await;
    let exchanged = send(&service, "POST", "/api/v1/auth/token", &short, &json!(null)).await.expect(200);
    assert!(exchanged["expires_in"].as_u64().is_some_and(|secs| secs <= 60), "{exchanged}");
    let of_key = ("authorization", format!("Bearer {}", exchanged["access_token"].as_str().expect("a token")));
    for (name, maker, end) in [
        ("a token of 20 s", bearer(&json!({"exp": now() + 20})), at(20)),
        ("one of an identity provider", ("authorization", format!("Bearer {theirs}")), at(20)),
        ("a key that ends", short.clone(), minute["expires_at"].as_str().expect("text").to_owned()),
        ("a token of that key", of_key, minute["expires_at"].as_str().expect("text").to_owned()),
    ] {
        let body = |more: Value| {
            let mut body = json!({"name": format!("{name} {more}"), "role": "admin"});
            body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            body
        };
        for longer in [at(3600), at(61), "9999-01-01T00:00:00Z".to_owned()] {
            let answer = send(&service, "POST", KEYS, &maker, &body(json!({"expires_at": longer}))).await;
            assert_eq!(answer.error(403)["code"], "exceeds_own_rights", "{name}: {longer}");
        }
        let made = send(&service, "POST", KEYS, &maker, &body(json!({}))).await.expect(201);
        // To the second in which the times were taken.
        let at_most = chrono::DateTime::parse_from_rfc3339(&end).expect("a time");
        let found = chrono::DateTime::parse_from_rfc3339(made["expires_at"].as_str().expect("an end")).expect("a time");
        assert!((found - at_most).num_seconds().abs() <= 2, "{name}: {made}");
        send(&service, "POST", KEYS, &maker, &body(json!({"expires_at": at(5)}))).await.expect(201);
    }
    let (_, forever) = key(&service, &first, &json!({"name": "for ever", "role": "admin"})).await;
    let shown = send(&service, "GET", &format!("{KEYS}/{forever}"), &first, &json!(null)).await.expect(200);
    assert_eq!(shown["expires_at"], json!(null));
    // Clocks may be apart: such a token counts, and makes nothing.
    let late = bearer(&json!({"exp": now() - 10}));
    assert_eq!(status(&service, &late).await, 200);
    send(&service, "POST", KEYS, &late, &json!({"name": "late", "role": "viewer"})).await.error(403);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_line_falls_with_the_key_that_it_comes_from(pool: PgPool) {
    let (service, first) = with_first_key(&pool, &[("JWT_SECRET", SECRET)]).await;
    let replica = Service::start_with(config(&pool, &[("JWT_SECRET", SECRET)]));
    send(&service, "POST", "/api/v1/organizations", &first, &json!({"id": "acme", "name": "Acme"})).await.expect(201);
    let (child, child_id) = key(&service, &first, &json!({"name": "child", "role": "admin"})).await;
    let exchanged = send(&service, "POST", "/api/v1/auth/token", &child, &json!(null)).await.expect(200);
    let token = exchanged["access_token"].as_str().expect("a token").to_owned();
    let of_token = ("authorization", format!("Bearer {token}"));
    let (grandchild, grandchild_id) = key(&service, &of_token, &json!({"name": "grandchild", "role": "admin"})).await;
    let abroad = json!({"name": "abroad", "role": "admin", "organization_id": "acme"});
    let (abroad, abroad_id) = key(&service, &grandchild, &abroad).await;
    let (leaf, leaf_id) = key(&service, &abroad, &json!({"name": "leaf", "role": "admin"})).await;
    let (sibling, _) = key(&service, &first, &json!({"name": "sibling", "role": "admin"})).await;
    for used in [&child, &grandchild, &abroad, &leaf] {
        assert_eq!((status(&service, used).await, status(&replica, used).await), (200, 200));
    }
    let audited = async |sql: &str| -> Vec<(String, Value)> {
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(&pool).await.expect(sql)
    };
    let sql = "SELECT entity_name, changes -> 'parent_key_ids' FROM audit_logs
        WHERE entity_type = 'api_key' AND action = 'create' AND entity_name IN ('child', 'leaf') ORDER BY created_at";
    let lines = audited(sql).await;
    let first_id = lines[0].1[0].as_str().expect("an id").to_owned();
    assert_eq!(lines[1].1, json!([abroad_id, grandchild_id, child_id, first_id]));
    let shown = send(&service, "GET", &format!("{KEYS}/{grandchild_id}"), &first, &json!(null)).await.expect(200);
    assert_eq!(shown["parent_key_id"], child_id.as_str());

    send(&service, "DELETE", &format!("{KEYS}/{child_id}"), &first, &json!(null)).await.expect(200);
    for fallen in [&child, &grandchild, &abroad, &leaf, &of_token] {
        assert_eq!(status(&service, fallen).await, 401, "at once where it was revoked");
        eventually("the replica refuses it", || async { (status(&replica, fallen).await == 401).then_some(()) }).await;
    }
    look(&service, &token).await.error(401);
    assert_eq!((status(&service, &first).await, status(&service, &sibling).await), (200, 200));
    let sql =
        "SELECT organization_id || ' ' || entity_name, changes FROM audit_logs WHERE action = 'revoke' ORDER BY 1";
    let fallen = |parent: &str| json!({"parent_key_id": parent, "revoked_with_key_id": child_id});
    let expected = [
        ("acme abroad", fallen(&grandchild_id)),
        ("acme leaf", fallen(&abroad_id)),
        ("default child", json!(null)),
        ("default grandchild", fallen(&child_id)),
    ];
    assert_eq!(audited(sql).await, expected.map(|(name, change)| (name.to_owned(), change)));
    // A repeat changes nothing.
    send(&service, "DELETE", &format!("{KEYS}/{leaf_id}"), &first, &json!(null)).await.error(404);
    send(&service, "DELETE", &format!("{KEYS}/{child_id}"), &first, &json!(null)).await.expect(200);
    assert_eq!(audited(sql).await.len(), 4);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn keys_that_are_being_made_fall_with_a_key_that_is_being_revoked(pool: PgPool) {
    let (service, first) = with_first_key(&pool, &[]).await;
    let (maker, maker_id) = key(&service, &first, &json!({"name": "maker", "role": "admin"})).await;
    let bodies: Vec<Value> = (0..10).map(|number| json!({"name": format!("k{number}"), "role": "viewer"})).collect();
    let make = |body| send(&service, "POST", KEYS, &maker, body);
    let path = format!("{KEYS}/{maker_id}");
    let nothing = json!(null);
    let revoke = send(&service, "DELETE", &path, &first, &nothing);
    let (made, revoked) = tokio::join!(futures_util::future::join_all(bodies.iter().map(make)), revoke);
    revoked.expect(200);
    assert!(made.iter().all(|answer| matches!(answer.status.as_u16(), 201 | 401)));
    let sql = "SELECT count(*) FROM api_keys WHERE name LIKE 'k%' AND revoked_at IS NULL";
    let left: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a number");
    assert_eq!(left, 0);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_line_of_keys_is_not_endless(pool: PgPool) {
    let (service, first) = with_first_key(&pool, &[]).await;
    let mut last = first;
    for number in 1..16 {
        last = key(&service, &last, &json!({"name": format!("k{number}"), "role": "admin"})).await.0;
    }
    let answer = send(&service, "POST", KEYS, &last, &json!({"name": "one more", "role": "viewer"})).await;
    assert_eq!(answer.error(409)["code"], "key_line_too_long");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_last_key_that_lets_an_administrator_in_stays(pool: PgPool) {
    let (service, first) = with_first_key(&pool, &[]).await;
    let keys = send(&service, "GET", KEYS, &first, &json!(null)).await.expect(200);
    let first_path = format!("{KEYS}/{}", keys["items"][0]["id"].as_str().expect("an id"));
    let revoke = async |path: &str, by: &Credentials| send(&service, "DELETE", path, by, &json!(null)).await;
    send(&service, "POST", "/api/v1/organizations", &first, &json!({"id": "acme", "name": "Acme"})).await.expect(201);
    // None of these lets an administrator in, or not for long, or not without the first one.
    for body in [
        json!({"name": "viewer", "role": "viewer"}),
        json!({"name": "scoped", "role": "admin", "scopes": ["keys:manage"]}),
        json!({"name": "bound", "role": "admin", "workflows": ["w"]}),
        json!({"name": "short", "role": "admin", "expires_at": at(60)}),
        json!({"name": "abroad", "role": "admin", "organization_id": "acme"}),
        json!({"name": "child", "role": "admin"}),
    ] {
        key(&service, &first, &body).await;
        assert_eq!(revoke(&first_path, &first).await.error(409)["code"], "last_admin_key", "{body}");
    }
    let other = ApiKey::generate("live");
    assert!(store_given(&own_pool(&pool), &other, true).await.expect("stored"));
    let other = ("x-api-key", other.expose().to_owned());
    let keys = send(&service, "GET", KEYS, &first, &json!(null)).await.expect(200);
    let items = keys["items"].as_array().expect("items");
    let made = items.iter().find(|key| {
        key["name"] != "bootstrap"
            && key["parent_key_id"].is_null()
            && !first_path.ends_with(key["id"].as_str().expect("an id"))
    });
    let other_path = format!("{KEYS}/{}", made.expect("the other key")["id"].as_str().expect("an id"));
    // Each revokes the other at the same time: one of them stays.
    let (one, two) = tokio::join!(revoke(&other_path, &first), revoke(&first_path, &other));
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort_unstable();
    assert!(statuses == [200, 409] || statuses == [200, 401], "{statuses:?}");

    // Where tokens let administrators in, no key has to.
    let tokens = Service::start_with(config(&pool, &[("JWT_SECRET", SECRET)]));
    let admin = bearer(&json!({}));
    for key in send(&tokens, "GET", KEYS, &admin, &json!(null)).await.expect(200)["items"].as_array().expect("items") {
        let path = format!("{KEYS}/{}", key["id"].as_str().expect("an id"));
        send(&tokens, "DELETE", &path, &admin, &json!(null)).await.expect(200);
    }
    look_with_key(&tokens, &first.1).await.error(401);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_bound_key_has_its_workflow_call_only_what_is_called_already(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    for name in ["own agent", "other agent"] {
        admin.post("/api/v1/agents", &json!({"name": name, "url": "http://127.0.0.1:9/"})).await.expect(201);
    }
    let agent = |name: &str| json!({"id": "s", "agent_name": name, "input_mapping": {}});
    let run_of = |config: Value| json!({"id": "s", "type": "sub_workflow", "sub_workflow_config": config});
    let body = |name: &str, step: Value| json!({"name": name, "start_step": "s", "steps": {"s": step}});
    let create = async |name: &str, step: Value| {
        let made = admin.post("/api/v1/workflows", &body(name, step)).await.expect(201);
        made["id"].as_str().expect("an id").to_owned()
    };
    let secret = create("secret", agent("other agent")).await;
    let second = create("second", agent("own agent")).await;
    let own = create("own", agent("other agent")).await;
    // The first version called it, and does no more.
    let headers = [("authorization", admin.bearer.as_str()), ("content-type", "application/json")];
    let path = format!("/api/v1/workflows/{own}");
    let update = json!({"steps": {"s": agent("own agent")}}).to_string();
    admin.service.send("PUT", &path, &headers, update).await.expect(200);
    let sql = "UPDATE workflow_definitions SET status = 'inactive' WHERE name = 'own' AND version = 1";
    sqlx::query(sql).execute(&pool).await.expect("done");

    let bound = json!({"name": "ci", "role": "editor", "workflows": ["own", "second", "later"]});
    let by = ("x-api-key", admin.key(&bound).await.0);
    let put = async |step: Value| send(&admin.service, "PUT", &path, &by, &json!({"steps": {"s": step}})).await;
    let put_by_name = async |name: &str, step: Value| {
        let path = format!("/api/v1/workflow-names/{name}");
        send(&admin.service, "PUT", &path, &by, &body(name, step)).await
    };
    let refused = |answer: Answer| assert_eq!(answer.error(403)["code"], "key_is_bound");
    for step in [
        run_of(json!({"workflow_name": "secret"})),
        run_of(json!({"workflow_id": secret})),
        run_of(json!({"workflow_name": "nowhere"})),
        run_of(json!({"workflow_id": "00000000-0000-0000-0000-000000000000"})),
        agent("other agent"),
        agent("nobody"),
        // Of another kind, and kept for when the kind changes.
        json!({"id": "s", "type": "sub_workflow", "agent_name": "other agent",
            "sub_workflow_config": {"workflow_name": "second"}}),
    ] {
        refused(put(step.clone()).await);
        refused(put_by_name("own", step.clone()).await);
        refused(put_by_name("later", step).await);
    }
    let rollback = format!("{path}/rollback");
    refused(send(&admin.service, "POST", &rollback, &by, &json!({"version": 1})).await);
    let sql = "SELECT id::text FROM workflow_definitions WHERE name = 'own' AND version = 1";
    let first: String = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("an id");
    let path_of_first = format!("/api/v1/workflows/{first}");
    refused(send(&admin.service, "PUT", &path_of_first, &by, &json!({"status": "active"})).await);

    put(run_of(json!({"workflow_name": "second"}))).await.expect(200);
    put(run_of(json!({"workflow_id": second}))).await.expect(200);
    put(agent("own agent")).await.expect(200);
    put_by_name("later", agent("own agent")).await.expect(201);
    // What an unbound caller has put there stays.
    let update = json!({"steps": {"s": run_of(json!({"workflow_name": "secret"}))}}).to_string();
    admin.service.send("PUT", &path, &headers, update).await.expect(200);
    let mut kept = run_of(json!({"workflow_name": "secret"}));
    kept["timeout_seconds"] = json!(60);
    put(kept).await.expect(200);
}
