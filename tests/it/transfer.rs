//! Export and import of agents and workflows as one document.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{
    access::Actor,
    actions::{
        Context,
        import::{self, Import, ImportError},
    },
    agent::Defaults,
    api::resources::webhooks::wire::read_definition,
    clock::Clock,
    db::migrations::MIGRATOR,
    input::to_raw,
};

use crate::{
    access::Admin,
    service::{Service, config, own_pool},
    webhooks,
};

const EXPORT: &str = "/api/v1/export";
const IMPORT: &str = "/api/v1/import";

async fn filled(service: &Service) {
    service.agent("plain", "http://plain").await;
    let secret = json!({"name": "secret", "url": "http://secret", "auth_type": "bearer",
        "auth_config": {"token": "hush"}});
    service.post("/api/v1/agents", &secret).await.expect(201);
    let model = json!({"name": "model", "url": "http://llm/v1", "kind": "openai", "config": {"model": "m"}});
    service.post("/api/v1/agents", &model).await.expect(201);
    service.chain("one", &["plain"]).await;
    service.chain("one", &["plain", "secret"]).await;
    service.chain("two", &["secret"]).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_exported_is_unchanged_when_it_is_imported(pool: PgPool) {
    let service = Service::start(&pool);
    filled(&service).await;
    for (name, config) in [("mcp", json!({"tool": "t"})), ("responses", json!({"model": "m", "background": true}))] {
        let agent = json!({"name": name, "url": "http://more/", "kind": name, "config": config});
        service.post("/api/v1/agents", &agent).await.expect(201);
    }
    let answer = service.get(EXPORT).await;
    assert!(!answer.text.contains("hush") && !answer.text.contains("pass"), "{}", answer.text);
    let document = answer.expect(200);
    assert_eq!((&document["format"], &document["version"]), (&json!("workflow-api/definitions"), &json!(1)));
    assert_eq!(document["workflows"][0]["steps"].as_object().map(serde_json::Map::len), Some(2));
    let before = service.get("/api/v1/agents").await.expect(200);
    let report = service.post(IMPORT, &document).await.expect(200);
    let nothing = json!({"agents": [], "workflows": []});
    let all = json!({"agents": ["mcp", "model", "plain", "responses", "secret"], "workflows": ["one", "two"]});
    let expected = json!({"dry_run": false, "created": nothing, "updated": nothing, "unchanged": all, "errors": []});
    assert_eq!(report, expected);
    assert_eq!(service.get("/api/v1/agents").await.expect(200), before);
    assert_eq!(service.get(EXPORT).await.expect(200), document);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_document_with_secrets_fills_an_empty_database(pool: PgPool) {
    let service = Service::start(&pool);
    filled(&service).await;
    let secret = service.get("/api/v1/agents?name=plain").await.expect(200)["items"][0]["id"].clone();
    let path = format!("/api/v1/agents/{}", secret.as_str().expect("an id"));
    service.put(&path, &json!({"status": "inactive"})).await.expect(200);
    let document = service.get(&format!("{EXPORT}?include_secrets=true")).await.expect(200);
    assert_eq!(document["agents"][2]["auth_config"]["token"], "hush");
    sqlx::query("TRUNCATE agents, workflow_definitions CASCADE").execute(&pool).await.expect("emptied");
    let all = json!({"agents": ["model", "plain", "secret"], "workflows": ["one", "two"]});
    let dry = service.post(&format!("{IMPORT}?dry_run=true"), &document).await.expect(200);
    assert_eq!((&dry["created"], &dry["dry_run"]), (&all, &json!(true)));
    assert_eq!(service.get("/api/v1/agents").await.expect(200)["total"], 0);
    assert_eq!(service.post(IMPORT, &document).await.expect(200)["created"], all);
    assert_eq!(service.get(&format!("{EXPORT}?include_secrets=1")).await.expect(200), document);
    assert_eq!(service.post(IMPORT, &document).await.expect(200)["unchanged"], all);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn all_or_nothing(pool: PgPool) {
    let service = Service::start(&pool);
    filled(&service).await;
    let document = service.get(EXPORT).await.expect(200);
    let mut bad = document.clone();
    bad["agents"][1]["timeout_ms"] = json!(2000);
    bad["agents"][2]["name"] = json!("new");
    bad["workflows"][0]["steps"]["s0"]["agent_name"] = json!("gone");
    bad["workflows"][1]["description"] = json!("changed");
    let expected = ["body.agents.2.auth_config value_error", "body.workflows.0 value_error"];
    assert_eq!(service.post(IMPORT, &bad).await.field_errors(), expected);
    assert_eq!(service.get(EXPORT).await.expect(200), document);
    let dry = service.post(&format!("{IMPORT}?dry_run=1"), &bad).await.expect(200);
    assert_eq!(dry["errors"].as_array().map(Vec::len), Some(2));
    assert_eq!((&dry["updated"]["agents"], &dry["updated"]["workflows"]), (&json!(["plain"]), &json!(["two"])));
    let mut good = document.clone();
    good["agents"][1]["timeout_ms"] = json!(2000);
    good["workflows"][1]["steps"]["s0"]["input_mapping"] = json!({});
    let report = service.post(IMPORT, &good).await.expect(200);
    assert_eq!(report["updated"], json!({"agents": ["plain"], "workflows": ["two"]}));
    assert_eq!(service.get("/api/v1/workflow-names/two").await.expect(200)["version"], 2);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_document_that_is_none_is_refused(pool: PgPool) {
    let service = Service::start(&pool);
    let with = |agents: Value| json!({"format": "workflow-api/definitions", "version": 1, "agents": agents});
    let agent = json!({"name": "a", "url": "http://a"});
    for (body, errors) in [
        (json!({}), vec!["body.format missing", "body.version missing"]),
        (json!({"format": "other", "version": 2}), vec!["body.format value_error", "body.version less_than_equal"]),
        (with(json!({})), vec!["body.agents list_type"]),
        (with(json!([agent, agent])), vec!["body.agents.1.name value_error"]),
        (with(json!([{"url": 7, "x": 1}])), vec!["body.agents.0.url url_type"]),
        (with(json!([{"url": "http://a"}])), vec!["body.agents.0.name missing"]),
    ] {
        assert_eq!(service.post(IMPORT, &body).await.field_errors(), errors, "{body}");
    }
    assert_eq!(
        service.post(&format!("{IMPORT}?dry_run=perhaps"), &with(json!([]))).await.field_errors(),
        ["query.dry_run bool_parsing"]
    );
    assert_eq!(service.get("/api/v1/agents").await.expect(200)["total"], 0);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_import_is_not_repeated(pool: PgPool) {
    let service = Service::start(&pool);
    let body = |url: &str| {
        let agents = json!([{"name": "a", "url": url}]);
        json!({"format": "workflow-api/definitions", "version": 1, "agents": agents}).to_string()
    };
    let headers = [("idempotency-key", "k"), ("content-type", "application/json")];
    let dry = service.send("POST", &format!("{IMPORT}?dry_run=true"), &headers, body("http://a")).await;
    assert_eq!(dry.expect(200)["created"]["agents"], json!(["a"]));
    let first = service.send("POST", IMPORT, &headers, body("http://a")).await.expect(200);
    assert_eq!((&first["created"]["agents"], &first["dry_run"]), (&json!(["a"]), &json!(false)));
    let agent = service.get("/api/v1/agents?name=a").await.expect(200)["items"][0]["id"].clone();
    let path = format!("/api/v1/agents/{}", agent.as_str().expect("an id"));
    service.put(&path, &json!({"url": "http://b"})).await.expect(200);
    let repeat = service.send("POST", IMPORT, &headers, body("http://a")).await;
    assert_eq!(repeat.header("idempotency-replayed"), Some("true"));
    assert_eq!(repeat.expect(200), first);
    assert_eq!(service.get(&path).await.expect(200)["url"], "http://b/");
    let other = service.send("POST", IMPORT, &headers, body("http://c")).await.error(422);
    assert_eq!(other["code"], "idempotency_key_reused");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_large_export_can_be_imported_again_and_taken_in_parts(pool: PgPool) {
    // How long it takes is not what this is about.
    let service = Service::start_by(config(&pool, &[]), Clock::stopped());
    filled(&service).await;
    let sql = "UPDATE workflow_definitions SET description = repeat('x', $2) WHERE name = $1";
    for (name, length) in [("one", 3 << 20), ("two", 12 << 20)] {
        sqlx::query(sql).bind(name).bind(length).execute(&pool).await.expect("a long description");
    }
    let document = service.get(EXPORT).await.expect(200);
    let report = service.post(IMPORT, &document).await.expect(200);
    assert_eq!(report["unchanged"]["workflows"], json!(["one", "two"]));
    sqlx::query(sql).bind("two").bind(14 << 20).execute(&pool).await.expect("a longer one");
    let refused = service.get(EXPORT).await.error(413);
    assert_eq!(refused["code"], "export_too_large");
    let part = service.get(&format!("{EXPORT}?name_prefix=on")).await.expect(200);
    assert_eq!((part["agents"].clone(), part["workflows"][0]["name"].clone()), (json!([]), json!("one")));
    assert_eq!(service.post(IMPORT, &part).await.expect(200)["unchanged"]["workflows"], json!(["one"]));
    // Other routes take what they always took.
    service.post("/api/v1/agents", &json!({"name": "a", "description": "x".repeat(2 << 20)})).await.error(413);
    let other = json!({"description": "x".repeat(2 << 20)});
    service.put("/api/v1/workflow-names/import", &other).await.error(413);
    let mut larger = document;
    larger["workflows"][0]["description"] = json!("x".repeat(17 << 20));
    service.post(IMPORT, &larger).await.error(413);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_import_whose_time_is_over_changes_nothing(pool: PgPool) {
    let settings = config(&pool, &[]);
    let actor = Actor::system();
    let context = Context {
        actor: &actor,
        quotas: &settings.quotas,
        audit: true,
        vault: &settings.vault,
        egress: &settings.egress,
        kafka_triggers: &settings.kafka.triggers,
        max_run_steps: u64::MAX,
        sees_secrets: true,
        workflows: None,
        key: None,
        if_match: None,
    };
    let document =
        json!({"format": "workflow-api/definitions", "version": 1, "agents": [{"name": "a", "url": "http://a"}]});
    let document = || {
        Import::parse(&to_raw(&document), &Defaults::default(), read_definition)
            .unwrap_or_else(|_| panic!("a document"))
    };
    let clock = Clock::stopped();
    let over = import::import(&own_pool(&pool), context, document(), false, (&clock, clock.instant())).await;
    assert!(matches!(over, Err(ImportError::OutOfTime)));
    let agents = "SELECT count(*) FROM agents";
    assert_eq!(sqlx::query_scalar::<_, i64>(agents).fetch_one(&pool).await.expect("a count"), 0);
    let in_time = (&clock, clock.instant() + Duration::from_nanos(1));
    let report = import::import(&own_pool(&pool), context, document(), false, in_time).await.expect("an import");
    assert_eq!(report.created.agents, ["a"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn webhooks_are_exported_without_secrets_and_put_by_their_names(pool: PgPool) {
    let service = Service::start(&pool);
    let more = json!({"name": "orders", "headers": {"x-token": "hush"}, "workflow_names": ["one"], "ordering": "per_run",
        "filter": "${event.data.workflow.version} > 2", "rate_per_second": 5});
    let hook = webhooks::create(&service, "https://example.com/in?key=hush", more).await;
    let secret = webhooks::secret(&hook);
    let answer = service.get(EXPORT).await;
    assert!(!answer.text.contains(secret), "{}", answer.text);
    let document = answer.expect(200);
    let exported = json!({"name": "orders", "url": "https://example.com/in?key=hush", "event_types": ["*"],
        "workflow_names": ["one"], "filter": "${event.data.workflow.version} > 2", "payload": "thin",
        "ordering": "per_run", "headers": {"x-token": "********"}, "max_in_flight": 8, "rate_per_second": 5,
        "signature": "hmac", "secret": null, "enabled": true});
    assert_eq!(document["webhooks"], json!([exported]));
    // The same content changes nothing, other content the webhook of that name; its secret stays.
    let before = webhooks::get(&service, &hook).await;
    let report = service.post(IMPORT, &document).await.expect(200);
    assert_eq!(report["unchanged"]["webhooks"], json!(["orders"]));
    assert_eq!(webhooks::get(&service, &hook).await, before);
    let mut other = document.clone();
    other["webhooks"][0]["payload"] = json!("full");
    other["webhooks"][0].as_object_mut().expect("an object").remove("workflow_names");
    let mut second = exported.clone();
    (second["name"], second["headers"]) = (json!("second"), json!({}));
    other["webhooks"].as_array_mut().expect("a list").push(second);
    let dry = service.post(&format!("{IMPORT}?dry_run=true"), &other).await.expect(200);
    let report = service.post(IMPORT, &other).await.expect(200);
    assert_eq!(
        (&report["updated"]["webhooks"], &report["created"]["webhooks"]),
        (&json!(["orders"]), &json!(["second"]))
    );
    assert_eq!((&dry["updated"], &dry["created"]), (&report["updated"], &report["created"]));
    let changed = webhooks::get(&service, &hook).await;
    assert_eq!((&changed["payload"], &changed["workflow_names"]), (&json!("full"), &Value::Null));
    assert_eq!(changed["secret_hint"], before["secret_hint"]);
    // The secret may be given, but not changed.
    let mut same = service.get(EXPORT).await.expect(200);
    same["webhooks"][0]["secret"] = json!(secret);
    let report = service.post(IMPORT, &same).await.expect(200);
    assert_eq!(report["unchanged"]["webhooks"], json!(["orders", "second"]));
    // What cannot be told apart or kept is refused.
    let errors = async |change: &dyn Fn(&mut Value)| {
        let mut wrong = document.clone();
        change(&mut wrong["webhooks"][0]);
        service.post(IMPORT, &wrong).await.field_errors()
    };
    assert_eq!(errors(&|hook| hook["signature"] = json!("ed25519")).await, ["body.webhooks.0.signature value_error"]);
    let another = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    assert_eq!(errors(&|hook| hook["secret"] = json!(another)).await, ["body.webhooks.0.secret value_error"]);
    assert_eq!(errors(&|hook| hook["url"] = json!("http://10.0.0.1/")).await, ["body.webhooks.0.url value_error"]);
    assert_eq!(errors(&|hook| hook["event_types"] = json!([])).await, ["body.webhooks.0.event_types value_error"]);
    let new = errors(&|hook| hook["name"] = json!("third")).await;
    assert_eq!(new, ["body.webhooks.0.headers.x-token value_error"], "the mask of no value");
    webhooks::create(&service, "https://example.com/", json!({"name": "orders"})).await;
    assert_eq!(errors(&|_| {}).await, ["body.webhooks.0.name value_error"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn webhooks_of_a_document_need_their_own_permissions(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let hook = json!({"name": "h", "url": "https://example.com/?key=hush", "event_types": ["*"]});
    admin.post("/api/v1/webhooks", &hook).await.expect(201);
    let exported = async |body: Value| {
        let (key, _) = admin.key(&body).await;
        let headers = [("x-api-key", key.as_str())];
        (admin.service.send("GET", EXPORT, &headers, "").await.expect(200), key)
    };
    // Who sees no webhooks gets the document that he always got.
    let scopes = json!(["agents:read", "workflows:read", "agents:write", "workflows:write"]);
    let (document, key) = exported(json!({"name": "k", "role": "admin", "scopes": scopes})).await;
    assert_eq!(document.get("webhooks"), None);
    let (seen, _) = exported(json!({"name": "v", "role": "viewer"})).await;
    assert_eq!(seen["webhooks"][0]["url"], "https://example.com/?key=********");
    let headers = [("x-api-key", key.as_str()), ("content-type", "application/json")];
    let refused = admin.service.send("POST", IMPORT, &headers, seen.to_string()).await.error(403);
    assert_eq!(refused["code"], "forbidden");
    // The masked URL stands for the stored one.
    let report = admin.post(IMPORT, &seen).await.expect(200);
    assert_eq!(report["unchanged"]["webhooks"], json!(["h"]));
}
