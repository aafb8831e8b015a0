//! The credentials of agents where they are stored.

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{
    actions::rotate_keys::{Rotation, rotate_keys},
    db::migrations::MIGRATOR,
    vault::{DecryptError, Vault},
};

use crate::{
    access::{Admin, SECRET, claims, secret, signed},
    inbound_webhooks::{self, deliver, github, path_of},
    path::{Agent, Executor, shouting},
    service::{Service, config, eventually, own_pool},
    webhooks::{self, Receiver},
};

const OLD: &str = "0101010101010101010101010101010101010101010101010101010101010101";
const NEW: &str = "0202020202020202020202020202020202020202020202020202020202020202";
const TOKEN: &str = "hunter2-the-token";

fn with_keys(pool: &PgPool, keys: &str) -> Service {
    Service::start_with(config(pool, &[("ENCRYPTION_KEY", keys)]))
}

fn bearer(name: &str, url: &str) -> Value {
    json!({"name": name, "url": url, "auth_type": "bearer", "auth_config": {"token": TOKEN}})
}

/// What the tables have, as text.
async fn stored(pool: &PgPool, name: &str) -> Value {
    let sql = "SELECT auth_config FROM agents WHERE name = $1";
    sqlx::query_scalar(sql).bind(name).fetch_one(pool).await.expect("a row")
}

async fn shown(service: &Service, name: &str) -> Value {
    service.get(&format!("/api/v1/agents?name={name}")).await.expect(200)["items"][0].take()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn credentials_are_stored_encrypted_and_used_in_clear(pool: PgPool) {
    let service = with_keys(&pool, NEW);
    let (agent, url) = Agent::start(shouting).await;
    let created = service.post("/api/v1/agents", &bearer("worker", &url)).await.expect(201);
    let expected = json!({"token": TOKEN, "type": "bearer"});
    assert_eq!(created["auth_config"], expected);
    let key_id = Vault::parse(NEW).expect("a key").key_ids().remove(0);
    let first = stored(&pool, "worker").await;
    assert_eq!(first["encrypted"]["key_id"], key_id.as_str());
    assert!(!first.to_string().contains("hunter2") && !first.to_string().contains("token"), "{first}");
    assert_eq!(shown(&service, "worker").await["auth_config"], expected);
    // What stays the same is not a change, and the rest of a change leaves it alone.
    let path = format!("/api/v1/agents/{}", created["id"].as_str().expect("an id"));
    let same = service.put(&path, &json!({"auth_config": {"token": TOKEN}})).await.expect(200);
    assert_eq!(same["updated_at"], created["updated_at"]);
    let changed = service.put(&path, &json!({"description": "d"})).await.expect(200);
    assert_eq!(changed["auth_config"], expected);
    let changed = service.put(&path, &json!({"auth_config": {"token": "another"}})).await.expect(200);
    assert_eq!(changed["auth_config"]["token"], "another");
    assert!(!stored(&pool, "worker").await.to_string().contains("another"));
    service.put(&path, &json!({"auth_config": {"token": TOKEN}})).await.expect(200);

    // A run, an export with secrets, and the import of it elsewhere.
    let workflow = service.chain("w", &["worker"]).await;
    let executor = Executor::start(&service);
    let run = service.execute(workflow["id"].as_str().expect("an id")).await;
    eventually("the run completes", || async {
        let run = service.get(&format!("/api/v1/runs/{run}")).await.expect(200);
        (run["status"] == "COMPLETED").then_some(())
    })
    .await;
    assert_eq!(agent.calls()[0].headers["authorization"], format!("Bearer {TOKEN}"));
    executor.stop().await;
    let export = service.get("/api/v1/export?include_secrets=true").await.expect(200);
    assert_eq!(export["agents"][0]["auth_config"]["token"], TOKEN);
    let report = service.post("/api/v1/import", &export).await.expect(200);
    assert_eq!(report["unchanged"]["agents"], json!(["worker"]));
    sqlx::query("UPDATE agents SET name = 'moved'").execute(&pool).await.expect("done");
    service.post("/api/v1/import", &export).await.expect(200);
    assert_eq!(stored(&pool, "worker").await["encrypted"]["key_id"], key_id.as_str());
    // None is none.
    service.agent("open", "http://a").await;
    assert_eq!(stored(&pool, "open").await, Value::Null);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_cannot_be_opened_is_masked_kept_and_not_used(pool: PgPool) {
    let before = with_keys(&pool, OLD);
    let (agent, url) = Agent::start(shouting).await;
    let id = before.post("/api/v1/agents", &bearer("worker", &url)).await.expect(201)["id"].take();
    before.post("/api/v1/agents", &bearer("other", &url)).await.expect(201);
    let workflow = before.chain("w", &["worker"]).await;
    let path = format!("/api/v1/agents/{}", id.as_str().expect("an id"));
    let sealed = stored(&pool, "worker").await;
    let masked = json!({"encrypted": "********", "type": "bearer"});
    for service in [with_keys(&pool, NEW), Service::start(&pool)] {
        assert_eq!(shown(&service, "worker").await["auth_config"], masked);
        let export = service.get("/api/v1/export?include_secrets=true").await.expect(200);
        assert_eq!(export["agents"][0].get("auth_config"), None);
        let health = service.get(&format!("{path}/health")).await.expect(200);
        assert_eq!(health["status"], "unhealthy");
        assert!(health["message"].as_str().is_some_and(|text| text.contains("key")), "{health}");
        // Other members can be changed; and what is shown is not taken for the secret.
        assert_eq!(service.put(&path, &json!({"timeout_ms": 5000})).await.expect(200)["auth_config"], masked);
        service.put(&path, &json!({"auth_config": masked})).await.error(422);
        service.put(&path, &json!({"auth_config": sealed})).await.error(422);
        assert_eq!(stored(&pool, "worker").await, sealed);
        let executor = Executor::start(&service);
        let run = service.execute(workflow["id"].as_str().expect("an id")).await;
        let message = eventually("the run fails", || async {
            let run = service.get(&format!("/api/v1/runs/{run}")).await.expect(200);
            (run["status"] == "FAILED").then(|| run["error_message"].as_str().expect("text").to_owned())
        })
        .await;
        let key_id = sealed["encrypted"]["key_id"].as_str().expect("a name");
        assert!(message.contains(key_id) && message.contains("ENCRYPTION_KEY"), "{message}");
        executor.stop().await;
    }
    assert_eq!(agent.calls().len(), 0, "an agent was called without its credentials");
    // Another row's secret is no secret of this one.
    let sql = "UPDATE agents SET auth_config = (SELECT auth_config FROM agents WHERE name = 'other')
        WHERE name = 'worker'";
    sqlx::query(sql).execute(&pool).await.expect("done");
    assert_eq!(shown(&before, "worker").await["auth_config"], masked);
    // It can be given anew.
    let given = before.put(&path, &json!({"auth_config": {"token": "new"}})).await.expect(200);
    assert_eq!(given["auth_config"]["token"], "new");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn rotation_seals_everything_with_the_first_key_and_finds_nothing_the_second_time(pool: PgPool) {
    let (plain, old) = (Service::start(&pool), with_keys(&pool, OLD));
    for index in 0..150 {
        let service = if index % 2 == 0 { &plain } else { &old };
        service.post("/api/v1/agents", &bearer(&format!("a{index}"), "http://a")).await.expect(201);
    }
    plain.agent("open", "http://a").await;
    let before = shown(&old, "a0").await;
    let vault = |keys: &str| Vault::parse(keys).expect("keys");
    let both = vault(&format!("{NEW},{OLD}"));
    // With one key alone the other half cannot be opened, and is left as it is.
    let half = rotate_keys(&own_pool(&pool), &vault(NEW)).await.expect("no error");
    let old_id = vault(OLD).key_ids().remove(0);
    assert_eq!((half.changed, half.current, half.failed.len()), (75, 0, 75));
    assert!(half.failed.iter().all(|(_, why)| *why == DecryptError::KeyMissing(old_id.clone())));
    let rotation = rotate_keys(&own_pool(&pool), &both).await.expect("no error");
    assert_eq!(rotation, Rotation { changed: 75, current: 75, ..Rotation::default() });
    let again = rotate_keys(&own_pool(&pool), &both).await.expect("no error");
    assert_eq!(again, Rotation { changed: 0, current: 150, ..Rotation::default() });
    let new = with_keys(&pool, NEW);
    assert_eq!(shown(&new, "a0").await, before, "nothing else has changed");
    assert_eq!(shown(&new, "a1").await["auth_config"]["token"], TOKEN);
    let in_clear: i64 = sqlx::query_scalar("SELECT count(*) FROM agents WHERE auth_config::text LIKE '%hunter2%'")
        .fetch_one(&pool)
        .await
        .expect("a number");
    assert_eq!(in_clear, 0);
}

/// Changes meanwhile are neither lost nor left under the old key.
#[sqlx::test(migrator = "MIGRATOR")]
async fn agents_can_be_changed_while_keys_are_rotated(pool: PgPool) {
    let old = with_keys(&pool, OLD);
    let mut ids = Vec::new();
    for index in 0..20 {
        let agent = old.post("/api/v1/agents", &bearer(&format!("a{index}"), "http://a")).await.expect(201);
        ids.push(agent["id"].as_str().expect("an id").to_owned());
    }
    let both = Vault::parse(&format!("{NEW},{OLD}")).expect("keys");
    let changes = async {
        for round in 0..5 {
            for id in &ids {
                let body = json!({"auth_config": {"token": format!("{round}")}});
                old.put(&format!("/api/v1/agents/{id}"), &body).await.expect(200);
            }
        }
    };
    let rotations = async {
        for _ in 0..5 {
            rotate_keys(&own_pool(&pool), &both).await.expect("no error");
        }
    };
    // The service has the old key alone, so that it seals with it, and cannot open what is under the new one; it
    // replaces it all the same.
    futures_util::future::join(changes, rotations).await;
    assert_eq!(rotate_keys(&own_pool(&pool), &both).await.expect("no error").failed, []);
    let new = with_keys(&pool, NEW);
    for index in 0..20 {
        assert_eq!(shown(&new, &format!("a{index}")).await["auth_config"]["token"], "4");
    }
}

/// Who does not see secrets sees what he saw before there was a key.
#[sqlx::test(migrator = "MIGRATOR")]
async fn masks_are_the_same_over_what_is_encrypted(pool: PgPool) {
    let admin = Admin::start(&pool, &[("ENCRYPTION_KEY", NEW), ("JWT_SECRET", SECRET)]);
    let created = admin.post("/api/v1/agents", &bearer("worker", "http://a")).await.expect(201);
    let editor = claims(&json!({"role": "editor"}));
    let editor = signed(&json!({"alg": "HS256"}), &editor, &secret(), jsonwebtoken::Algorithm::HS256);
    let editor = format!("Bearer {editor}");
    let headers = [("authorization", editor.as_str()), ("content-type", "application/json")];
    let path = format!("/api/v1/agents/{}", created["id"].as_str().expect("an id"));
    let seen = admin.service.send("GET", &path, &headers, "").await.expect(200);
    assert_eq!(seen["auth_config"], json!({"token": "********", "type": "bearer"}));
    let body = json!({"auth_config": seen["auth_config"], "description": "sent back"}).to_string();
    admin.service.send("PUT", &path, &headers, body).await.expect(200);
    assert_eq!(admin.get(&path).await.expect(200)["auth_config"]["token"], TOKEN);
}

/// The secrets of webhooks in both directions, and the headers of outgoing ones.
#[sqlx::test(migrator = "MIGRATOR")]
async fn rotation_includes_the_secrets_of_webhooks_in_both_directions(pool: PgPool) {
    let old = with_keys(&pool, OLD);
    old.one_step_workflow().await;
    let receiver = Receiver::content().await;
    let hook = webhooks::create(&old, &receiver.url("/"), json!({"headers": {"x-token": TOKEN}})).await;
    let config = json!({"preset": "github", "secrets": [TOKEN]});
    let trigger = inbound_webhooks::create(&old, "in", config).await;
    old.stop().await;
    let sealed = async || -> Vec<String> {
        let sql = "SELECT sealed::text FROM webhooks UNION ALL SELECT secrets::text FROM triggers";
        sqlx::query_scalar(sql).fetch_all(&pool).await.expect("rows")
    };
    let key_of = |keys: &str| Vault::parse(keys).expect("keys").key_ids().remove(0);
    assert!(sealed().await.iter().all(|text| text.contains(&key_of(OLD)) && !text.contains(TOKEN)));
    // Without the old key nothing is changed, and each is named.
    let id = |of: &Value| of["id"].as_str().expect("an id").parse().expect("a UUID");
    let missing = |of: &Value| vec![(id(of), DecryptError::KeyMissing(key_of(OLD)))];
    let alone = rotate_keys(&own_pool(&pool), &Vault::parse(NEW).expect("a key")).await.expect("no error");
    let failed =
        Rotation { failed_webhooks: missing(&hook), failed_triggers: missing(&trigger), ..Rotation::default() };
    assert_eq!(alone, failed);
    let both = Vault::parse(&format!("{NEW},{OLD}")).expect("keys");
    let rotation = rotate_keys(&own_pool(&pool), &both).await.expect("no error");
    assert_eq!(rotation, Rotation { changed: 2, ..Rotation::default() });
    assert!(sealed().await.iter().all(|text| text.contains(&key_of(NEW)) && !text.contains(&key_of(OLD))));
    // The new key alone opens them: what is sent is signed, and what is received is verified, with the same secrets.
    let new = with_keys(&pool, NEW);
    webhooks::record(&pool, "run.failed", 1).await;
    let sent = receiver.got("/", 1).await.remove(0);
    assert!(sent.is_verified_with(webhooks::secret(&hook)));
    assert_eq!(sent.header("x-token"), TOKEN);
    deliver(&new, &path_of(&trigger), &github(b"{}", "d-1", TOKEN), "{}").await.expect(202);
    deliver(&new, &path_of(&trigger), &github(b"{}", "d-2", "another secret"), "{}").await.error(401);
}
