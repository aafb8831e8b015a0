//! API keys: made, used, refused and revoked; and tokens for them.

use std::time::Duration;

use axum::body::Body;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use futures_util::future::join_all;
use http_body_util::BodyExt;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{
    access::api_key::ApiKey,
    actions::api_keys::store_given,
    db::{self, migrations::MIGRATOR},
};

use super::{Admin, RSA, RSA_PUBLIC, SECRET, claims, look, look_with_key, rsa, secret, signed};
use crate::service::{Service, config, eventually, own_pool, without_database};

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_key_is_shown_once_and_stored_as_its_hash(pool: PgPool) {
    let admin = Admin::start(&pool, &[("API_KEY_ENVIRONMENT", "test")]);
    let soon = chrono::DateTime::from_timestamp(super::now() + 200, 0).expect("a time");
    let soon = soon.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let body = json!({"name": "ci", "role": "operator", "scopes": ["runs:read", "runs:write"], "workflows": ["nightly"],
        "expires_at": soon});
    let answer = admin.post("/api/v1/api-keys", &body).await;
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let location = answer.header("location").map(str::to_owned);
    let mut created = answer.expect(201);
    let key = created["key"].take().as_str().expect("the key").to_owned();
    let parsed = ApiKey::parse(&key).expect("the form of a key");
    assert!(key.starts_with("wf_test_"), "{key}");
    let id = created["id"].as_str().expect("an id").to_owned();
    assert_eq!(location, Some(format!("/api/v1/api-keys/{id}")));
    created.as_object_mut().expect("an object").remove("key");
    for (name, value) in [("prefix", "wf_test"), ("last_four", &key[key.len() - 4..]), ("name", "ci")] {
        assert_eq!(created[name], value, "{created}");
    }
    assert_eq!(created["scopes"], json!(["runs:read", "runs:write"]));
    assert_eq!(created["expires_at"], soon);
    assert_eq!(created["created_by"], "admin");

    let shown = admin.get(&format!("/api/v1/api-keys/{id}")).await.expect(200);
    assert_eq!(shown, created);
    let list = admin.get("/api/v1/api-keys").await.expect(200);
    assert_eq!((&list["items"], &list["total"]), (&json!([created]), &json!(1)));

    let hash: Vec<u8> = sqlx::query_scalar("SELECT hash FROM api_keys").fetch_one(&pool).await.expect("one row");
    assert_eq!(hash, parsed.hash());
    let stored = "SELECT row_to_json(k)::text FROM api_keys k UNION ALL SELECT row_to_json(a)::text FROM audit_logs a";
    let stored: Vec<String> = sqlx::query_scalar(stored).fetch_all(&pool).await.expect("rows");
    assert!(stored.len() == 2 && stored.iter().all(|row| !row.contains(&key[8..30])), "{stored:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn lists_of_keys_are_read_by_cursors(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    for name in ["a", "b", "c"] {
        admin.key(&json!({"name": name, "role": "viewer"})).await;
    }
    let mut names = Vec::new();
    let mut path = "/api/v1/api-keys?page_size=1".to_owned();
    loop {
        let page = admin.get(&path).await.expect(200);
        assert_eq!(page["total"], 3);
        names.push(page["items"][0]["name"].as_str().expect("a name").to_owned());
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/api/v1/api-keys?page_size=1&cursor={cursor}");
    }
    assert_eq!(names, ["a", "b", "c"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_wrong_with_a_new_key_is_said(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    for (body, expected) in [
        (json!({}), &["body.name missing", "body.role missing"][..]),
        (json!({"name": " ", "role": "viewer"}), &["body.name value_error"]),
        (json!({"name": "é", "role": "viewer"}), &["body.name value_error"]),
        (json!({"name": "a\nb", "role": "viewer"}), &["body.name value_error"]),
        (json!({"name": "x".repeat(101), "role": "viewer"}), &["body.name string_too_long"]),
        (json!({"name": "a", "role": "root"}), &["body.role value_error"]),
        (json!({"name": "a", "role": "viewer", "scopes": []}), &["body.scopes value_error"]),
        (json!({"name": "a", "role": "viewer", "scopes": ["all"]}), &["body.scopes value_error"]),
        (json!({"name": "a", "role": "viewer", "scopes": ["runs:write"]}), &["body.scopes value_error"]),
        (json!({"name": "a", "role": "viewer", "scopes": "runs:read"}), &["body.scopes list_type"]),
        (json!({"name": "a", "role": "viewer", "workflows": []}), &["body.workflows value_error"]),
        (
            json!({"name": "a", "role": "viewer", "expires_at": "2020-01-01T00:00:00Z"}),
            &["body.expires_at value_error"],
        ),
        (json!({"name": "a", "role": "viewer", "expires_at": "soon"}), &["body.expires_at datetime_parsing"]),
        (json!({"name": "a", "role": "viewer", "hash": "x"}), &["body.hash extra_forbidden"]),
    ] {
        let answer = admin.post("/api/v1/api-keys", &body).await;
        assert_eq!(answer.status.as_u16(), 422, "{body}: {}", answer.text);
        let found: Vec<String> =
            answer.field_errors().into_iter().map(|error| error.replace("body.scopes.0", "body.scopes")).collect();
        assert_eq!(found, expected, "{body}");
    }
    admin.key(&json!({"name": "a", "role": "viewer"})).await;
    let again = admin.post("/api/v1/api-keys", &json!({"name": "a", "role": "viewer"})).await;
    assert_eq!(again.error(409)["code"], "api_key_name_taken");
    for id in ["00000000-0000-0000-0000-000000000000", "x"] {
        let status = if id == "x" { 422 } else { 404 };
        admin.get(&format!("/api/v1/api-keys/{id}")).await.error(status);
        admin.delete(&format!("/api/v1/api-keys/{id}")).await.error(status);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn no_key_of_the_attack_table_is_let_in(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let (key, id) = admin.key(&json!({"name": "a", "role": "admin"})).await;
    let hash: String =
        sqlx::query_scalar("SELECT encode(hash, 'hex') FROM api_keys").fetch_one(&pool).await.expect("it");
    let other = ApiKey::generate("live").expose().to_owned();
    let service = &admin.service;
    for (name, given) in [
        ("nothing", String::new()),
        ("a key that nobody made", other.clone()),
        ("a key of another environment", key.replace("wf_live", "wf_test")),
        ("another key's checksum", format!("{}{}", &key[..key.len() - 6], &other[other.len() - 6..])),
        ("a cut one", key[..key.len() - 1].to_owned()),
        ("a longer one", format!("{key}0")),
        ("in capitals", key.to_uppercase()),
        ("its id", id.clone()),
        ("its hash", hash),
        ("a wildcard", "%".to_owned()),
        ("SQL", "' OR '1'='1".to_owned()),
        ("two in one", format!("{key},{key}")),
        ("with a scheme", format!("Bearer {key}")),
        ("a huge one", "wf_live_".to_owned() + &"a".repeat(20_000)),
    ] {
        let answer = look_with_key(service, &given).await;
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{name}: {}", answer.text);
        assert_eq!(answer.error(401)["code"], "unauthorized", "{name}");
    }
    for headers in [
        [("x-api-key", key.as_str()), ("x-api-key", &key)],
        [("x-api-key", &key), ("x-api-key", &other)],
        // The key is what counts, and it does not.
        [("x-api-key", &other), ("authorization", &admin.bearer)],
    ] {
        service.send("GET", "/api/v1/agents", &headers, "").await.error(401);
    }
    look(service, &key).await.error(401);
    service.send("GET", &format!("/api/v1/agents?x-api-key={key}"), &[], "").await.error(401);
    look_with_key(service, &key).await.expect(200);
}

/// Nobody asks a database that is not there.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_wrong_checksum_costs_no_query(pool: PgPool) {
    let service = Service::start_with(without_database(config(&pool, &[("AUTH_ENABLED", "true")])));
    let key = ApiKey::generate("live").expose().to_owned();
    let wrong = format!("{}{}", &key[..key.len() - 1], if key.ends_with('0') { '1' } else { '0' });
    look_with_key(&service, &wrong).await.error(401);
    look_with_key(&service, &key).await.error(503);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_revoked_key_is_refused_by_every_replica_within_five_seconds(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let replica = Service::start_with(config(&pool, &[("JWT_SECRET", SECRET)]));
    let (key, id) = admin.key(&json!({"name": "a", "role": "admin"})).await;
    // Both know it, and go on using it, which keeps it known.
    look_with_key(&admin.service, &key).await.expect(200);
    look_with_key(&replica, &key).await.expect(200);
    let revoked = admin.delete(&format!("/api/v1/api-keys/{id}")).await.expect(200);
    assert_eq!(revoked["revoked_by"], "admin");
    look_with_key(&admin.service, &key).await.error(401);
    replica.clock.advance(Duration::from_secs(5));
    look_with_key(&replica, &key).await.error(401);
    // A repeat changes nothing, and the name is free again.
    assert_eq!(admin.delete(&format!("/api/v1/api-keys/{id}")).await.expect(200), revoked);
    admin.key(&json!({"name": "a", "role": "viewer"})).await;
    let actions: Vec<String> =
        sqlx::query_scalar("SELECT action FROM audit_logs WHERE entity_type = 'api_key' ORDER BY created_at")
            .fetch_all(&pool)
            .await
            .expect("audit rows");
    assert_eq!(actions, ["create", "revoke", "create"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_key_ends_when_it_expires(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let soon = chrono::DateTime::from_timestamp(super::now() + 200, 0).expect("a time").to_rfc3339();
    let (key, _) = admin.key(&json!({"name": "a", "role": "admin", "expires_at": soon})).await;
    look_with_key(&admin.service, &key).await.expect(200);
    admin.service.clock.advance(Duration::from_secs(200));
    look_with_key(&admin.service, &key).await.error(401);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_use_of_a_key_is_noted_once_a_minute(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let (key, id) = admin.key(&json!({"name": "a", "role": "admin"})).await;
    let path = format!("/api/v1/api-keys/{id}");
    let last_used = || async { admin.get(&path).await.expect(200)["last_used_at"].as_str().map(str::to_owned) };
    assert_eq!(last_used().await, None);
    look_with_key(&admin.service, &key).await.expect(200);
    let first = eventually("the use is noted", last_used).await;
    let id = uuid::Uuid::try_parse(&id).expect("an id");
    db::api_keys::touch(&own_pool(&pool), &[id]).await.expect("done");
    assert_eq!(last_used().await, Some(first.clone()), "noted just now");
    let sql = "UPDATE api_keys SET last_used_at = last_used_at - interval '61 seconds'";
    sqlx::query(sql).execute(&pool).await.expect("done");
    db::api_keys::touch(&own_pool(&pool), &[id]).await.expect("done");
    assert!(last_used().await.is_some_and(|last| last > first));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_key_is_exchanged_for_a_token_that_ends_with_it(pool: PgPool) {
    let admin = Admin::start(&pool, &[("JWT_EXPIRATION_MINUTES", "4"), ("JWT_PUBLIC_KEY", RSA_PUBLIC)]);
    let service = &admin.service;
    // The key ends with the administrator's token, in five minutes: after the token that is made with it.
    let (key, id) = admin.key(&json!({"name": "ci", "role": "viewer"})).await;
    let exchange = |name: &'static str, value: String| async move {
        service.send("POST", "/api/v1/auth/token", &[(name, &value)], "").await
    };
    let answer = exchange("x-api-key", key.clone()).await;
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let issued = answer.expect(200);
    assert_eq!((&issued["token_type"], &issued["expires_in"]), (&json!("Bearer"), &json!(240)));
    let token = issued["access_token"].as_str().expect("a token").to_owned();
    let claims_of = token.split('.').nth(1).expect("claims");
    let said: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims_of).expect("base64")).expect("JSON");
    assert_eq!((&said["sub"], &said["role"]), (&json!("api-key:ci"), &json!("viewer")));
    assert_eq!(said["exp"].as_i64().zip(said["iat"].as_i64()).map(|(exp, iat)| exp - iat), Some(240));
    look(service, &token).await.expect(200);

    // Only a key is exchanged: a token would be for a later one, for ever.
    let bearer = format!("Bearer {token}");
    for value in [bearer, admin.bearer.clone()] {
        assert_eq!(exchange("authorization", value).await.error(403)["code"], "api_key_required");
    }
    // A token of somebody else is nobody's key, whatever it says; and no subject looks like a key's.
    let theirs = |more: Value| signed(&json!({"alg": "RS256"}), &claims(&more), &rsa(RSA), Algorithm::RS256);
    look(service, &theirs(json!({"wf_key": id, "sub": "api-key:ci"}))).await.error(401);
    look(service, &theirs(json!({"wf_key": 7}))).await.error(401);
    let ours = |more: Value| signed(&json!({"alg": "HS256"}), &claims(&more), &secret(), Algorithm::HS256);
    look(service, &ours(json!({"sub": "api-key:ci"}))).await.error(401);
    look(service, &ours(json!({"wf_key": uuid::Uuid::new_v4()}))).await.error(401);

    admin.delete(&format!("/api/v1/api-keys/{id}")).await.expect(200);
    look(service, &token).await.error(401);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn without_a_secret_there_are_keys_and_no_tokens(pool: PgPool) {
    let own = own_pool(&pool);
    let first = ApiKey::generate("live");
    assert!(store_given(&own, &first, true).await.expect("stored"));
    let service = Service::start_with(config(&pool, &[("AUTH_ENABLED", "true")]));
    look_with_key(&service, first.expose()).await.expect(200);
    let answer = service.send("POST", "/api/v1/auth/token", &[("x-api-key", first.expose())], "").await;
    assert_eq!(answer.error(409)["code"], "no_signing_key");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_header_has_the_name_of_the_settings(pool: PgPool) {
    let admin = Admin::start(&pool, &[("API_KEY_HEADER", "X-Custom-API-Key")]);
    let (key, _) = admin.key(&json!({"name": "a", "role": "viewer"})).await;
    look_with_key(&admin.service, &key).await.error(401);
    let headers = [("x-custom-api-key", key.as_str())];
    admin.service.send("GET", "/api/v1/agents", &headers, "").await.expect(200);
    let document = admin.service.get("/openapi.json").await.expect(200);
    assert_eq!(document["components"]["securitySchemes"]["api_key"]["name"], "X-Custom-API-Key");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_key_of_the_settings_is_stored_once_and_stays_revoked(pool: PgPool) {
    let own = own_pool(&pool);
    let given = ApiKey::generate("live");
    let stored = join_all((0..8).map(|_| store_given(&own, &given, true))).await;
    assert_eq!(stored.into_iter().filter(|outcome| matches!(outcome, Ok(true))).count(), 1);
    let sql = "UPDATE api_keys SET revoked_at = now(), revoked_by = 'x'";
    sqlx::query(sql).execute(&pool).await.expect("done");
    assert!(matches!(store_given(&own, &given, true).await, Ok(false)));
    let service = Service::start_with(config(&pool, &[("BOOTSTRAP_API_KEY", given.expose())]));
    look_with_key(&service, given.expose()).await.error(401);
    // Another one lets somebody in again.
    let next = ApiKey::generate("live");
    assert!(matches!(store_given(&own, &next, true).await, Ok(true)));
    look_with_key(&service, next.expose()).await.expect(200);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn while_authentication_is_off_a_key_header_means_nothing(pool: PgPool) {
    let service = Service::start(&pool);
    for value in ["", "anything", ApiKey::generate("live").expose()] {
        look_with_key(&service, value).await.expect(200);
    }
    let body = json!({"name": "later", "role": "admin"});
    let created = service.post("/api/v1/api-keys", &body).await.expect(201);
    assert_eq!(created["created_by"], "system");
    assert_eq!(service.post("/api/v1/auth/token", &json!({})).await.error(403)["code"], "api_key_required");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_event_stream_ends_when_its_key_is_revoked_however_busy_the_run_is(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    admin.post("/api/v1/agents", &json!({"name": "a", "url": "http://127.0.0.1:9/"})).await.expect(201);
    let steps = json!({"a": {"id": "a", "agent_name": "a", "input_mapping": {}}});
    let workflow = admin.post("/api/v1/workflows", &json!({"name": "w", "start_step": "a", "steps": steps})).await;
    let execute = format!("/api/v1/workflows/{}/execute", workflow.expect(201)["id"].as_str().expect("an id"));
    let run = admin.post(&execute, &json!({"input_data": {}})).await.expect(202);
    let run_id = run["run_id"].as_str().expect("an id");
    let events = format!("/api/v1/runs/{run_id}/events");
    for is_busy in [false, true] {
        let (key, id) = admin.key(&json!({"name": format!("watcher {is_busy}"), "role": "viewer"})).await;
        let headers = [("x-api-key", key.as_str())];
        let stream = admin.service.open("GET", &events, &headers, Body::empty()).await;
        assert_eq!(stream.status().as_u16(), 200);
        admin.delete(&format!("/api/v1/api-keys/{id}")).await.expect(200);
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        let busy = async {
            loop {
                ticks.tick().await;
                if is_busy {
                    let sql = "INSERT INTO run_events (run_id, kind) VALUES ($1, 'run.paused')";
                    sqlx::query(sql).bind(run_id).execute(&pool).await.expect("done");
                }
            }
        };
        let text = tokio::select! {
            text = tokio::time::timeout(Duration::from_secs(20), stream.into_body().collect()) => text,
            () = busy => continue,
        };
        let text = text.expect("the stream ends").expect("whole").to_bytes();
        assert!(!text.windows(10).any(|part| part == b"event: end"), "the run has not ended");
        admin.service.send("GET", &events, &headers, "").await.error(401);
    }
}
