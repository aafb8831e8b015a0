//! Agents: the object, the look-up that executors depend on, changes, deletion. Their health is in `agent_health`.

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{clock::Clock, db::migrations::MIGRATOR};

use crate::service::{Service, config};

const AGENTS: &str = "/api/v1/agents";
const UNKNOWN: &str = "/api/v1/agents/00000000-0000-0000-0000-000000000000";

fn path(agent: &Value) -> String {
    format!("{AGENTS}/{}", agent["id"].as_str().expect("an id"))
}

fn names(page: &Value) -> Vec<&str> {
    page["items"].as_array().expect("items").iter().map(|item| item["name"].as_str().expect("a name")).collect()
}

/// `total`, `page`, `page_size` and `total_pages`.
fn counts(page: &Value) -> Value {
    json!([page["total"], page["page"], page["page_size"], page["total_pages"]])
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_minimal_agent_has_every_member(pool: PgPool) {
    let service = Service::start(&pool);
    let mut agent = service.agent("worker", "HTTP://Agent.Example:80").await;
    assert_eq!(service.get(&path(&agent)).await.expect(200), agent);
    let members = agent.as_object_mut().expect("an object");
    let mut take = |name: &str| members.remove(name).unwrap_or_else(|| panic!("{name} is there"));
    let (id, created_at, updated_at) = (take("id"), take("created_at"), take("updated_at"));
    assert!(id.as_str().is_some_and(|id| uuid::Uuid::try_parse(id).is_ok_and(|uuid| uuid.to_string() == id)));
    assert_eq!(created_at, updated_at);
    let created_at = created_at.as_str().expect("text");
    let instant = chrono::NaiveDateTime::parse_from_str(created_at, "%Y-%m-%dT%H:%M:%S%.fZ").expect(created_at);
    assert!((Clock::default().now().naive_utc() - instant).num_seconds().abs() < 60, "{created_at} is not UTC");
    let expected = json!({
        "name": "worker", "url": "http://agent.example/", "description": null, "auth_type": "none",
        "auth_config": null, "timeout_ms": 30000, "circuit_breaker_config": null, "kind": "a2a", "config": null,
        "circuit_breaker": {"state": "closed", "opened_at": null, "retry_at": null, "failures": 0, "calls": 0},
        "status": "active",
        "retry_config": {"max_retries": 3, "initial_delay_ms": 1000, "max_delay_ms": 30000, "backoff_multiplier": 2.0},
        "created_by": "system", "updated_by": "system", "protocol_seen": null, "card": null, "fallbacks": [],
    });
    assert_eq!(agent, expected);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_operator_sets_what_an_agent_has_that_is_registered_without_it(pool: PgPool) {
    let service = Service::start_with(config(
        &pool,
        &[
            ("DEFAULT_AGENT_TIMEOUT_MS", "9000"),
            ("DEFAULT_AGENT_MAX_RETRIES", "1"),
            ("DEFAULT_AGENT_INITIAL_DELAY_MS", "200"),
            ("DEFAULT_AGENT_MAX_DELAY_MS", "4000"),
            ("DEFAULT_AGENT_BACKOFF_MULTIPLIER", "1.5"),
        ],
    ));
    let retries = |max: u32| json!({"max_retries": max, "initial_delay_ms": 200, "max_delay_ms": 4000, "backoff_multiplier": 1.5});
    let agent = service.agent("worker", "http://a").await;
    assert_eq!((&agent["timeout_ms"], &agent["retry_config"]), (&json!(9000), &retries(1)));
    // What is given counts, and only that.
    let given = json!({"name": "own", "url": "http://a", "timeout_ms": 1000, "retry_config": {"max_retries": 7}});
    let own = service.post(AGENTS, &given).await.expect(201);
    assert_eq!((&own["timeout_ms"], &own["retry_config"]), (&json!(1000), &retries(7)));
    let changed = service.put(&path(&own), &json!({"retry_config": {"max_retries": 2}})).await.expect(200);
    assert_eq!((&changed["timeout_ms"], &changed["retry_config"]), (&json!(1000), &retries(2)));
    let document = json!({"format": "workflow-api/definitions", "version": 1,
        "agents": [{"name": "imported", "url": "http://a", "retry_config": {"max_retries": 5}}]});
    service.post("/api/v1/import", &document).await.expect(200);
    let found = service.get(&format!("{AGENTS}?name=imported")).await.expect(200);
    let imported = &found["items"][0];
    assert_eq!((&imported["timeout_ms"], &imported["retry_config"]), (&json!(9000), &retries(5)));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_url_is_normalised(pool: PgPool) {
    let service = Service::start(&pool);
    for (index, (given, stored)) in [
        ("http://a:8080", "http://a:8080/"),
        ("HTTPS://A.Example:443/Path", "https://a.example/Path"),
        ("http://bücher.example", "http://xn--bcher-kva.example/"),
        ("http://a/x?y=z#w", "http://a/x?y=z#w"),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(service.agent(&format!("a{index}"), given).await["url"], stored);
    }
}

/// The reference bridge reads `type` and `header`, and its decoder takes nothing but strings.
#[sqlx::test(migrator = "MIGRATOR")]
async fn credentials_are_rendered_for_the_bridge_and_taken_back_as_rendered(pool: PgPool) {
    let service = Service::start(&pool);
    for (index, (auth_type, given, shown)) in [
        ("Bearer", json!({"token": "t"}), json!({"type": "bearer", "token": "t"})),
        (
            "bearer",
            json!({"token": "t", "rank": 7, "on": true}),
            json!({"type": "bearer", "token": "t", "rank": "7", "on": "true"}),
        ),
        (
            "APIKEY",
            json!({"key": "k", "header_name": "X-Key"}),
            json!({"type": "apikey", "key": "k", "header_name": "X-Key", "header": "X-Key"}),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let body =
            json!({"name": format!("a{index}"), "url": "http://a", "auth_type": auth_type, "auth_config": given});
        let agent = service.post(AGENTS, &body).await.expect(201);
        assert_eq!((&agent["auth_config"], agent["auth_type"].as_str()), (&shown, shown["type"].as_str()));
        let stored: Value = sqlx::query_scalar("SELECT auth_config FROM agents WHERE name = $1")
            .bind(format!("a{index}"))
            .fetch_one(&pool)
            .await
            .expect("the row");
        assert!(stored.get("type").is_none() && stored.get("header").is_none(), "derived members are stored: {stored}");
        // The whole object, as a client that edits sends it back.
        assert_eq!(service.put(&path(&agent), &agent).await.expect(200)["auth_config"], shown);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_look_up_by_name_has_one_item_or_none(pool: PgPool) {
    let service = Service::start(&pool);
    let worker = service.agent("worker", "http://a").await;
    let two_words = service.agent("two words", "http://a").await;
    service.delete(&path(&two_words)).await.expect(200);
    for (query, expected) in [
        ("name=worker", Some("worker")),
        ("name=worker&page=7&page_size=3&status=inactive", Some("worker")),
        ("name=two+words", Some("two words")),
        ("name=two%20words&status=active", Some("two words")),
        ("name=missing&name=worker", Some("worker")),
        ("name=Worker", None),
        ("name=None", None),
        ("name=work", None),
        ("name=%25", None),
    ] {
        let page = service.get(&format!("{AGENTS}?{query}")).await.expect(200);
        assert_eq!(names(&page), Vec::from_iter(expected), "{query}");
        let expected = if expected.is_some() { json!([1, 1, 1, 1]) } else { json!([0, 1, 20, 0]) };
        assert_eq!(counts(&page), expected, "{query}");
    }
    let miss = service.get(&format!("{AGENTS}?name=missing&page=7&page_size=3")).await.expect(200);
    assert_eq!(counts(&miss), json!([0, 1, 3, 0]));
    let hit = service.get(&format!("{AGENTS}?name=worker")).await.expect(200);
    assert_eq!(hit["items"][0], worker);
    let all = service.get(&format!("{AGENTS}?name=")).await.expect(200);
    assert_eq!(names(&all), ["worker", "two words"]);
    service.get(&format!("{AGENTS}?name=worker&page=0")).await.error(422);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_list_has_pages_and_true_totals(pool: PgPool) {
    let service = Service::start(&pool);
    let expected: Vec<String> = (0..25).map(|index| format!("agent-{index}")).collect();
    for (index, name) in expected.iter().enumerate() {
        let agent = service.agent(name, "http://a").await;
        match index {
            0..3 => drop(service.put(&path(&agent), &json!({"status": "INACTIVE"})).await.expect(200)),
            3 => drop(service.delete(&path(&agent)).await.expect(200)),
            _ => {}
        }
    }
    let all: Vec<&str> = expected.iter().map(String::as_str).collect();
    for (query, items, expected) in [
        ("", &all[..20], json!([25, 1, 20, 2])),
        ("?page=2", &all[20..], json!([25, 2, 20, 2])),
        ("?page=9", &[], json!([25, 9, 20, 2])),
        ("?page=3&page_size=10&page_size=5", &all[10..15], json!([25, 3, 5, 5])),
        ("?page_size=1000", &all, json!([25, 1, 100, 1])),
        ("?status=inactive", &all[..3], json!([3, 1, 20, 1])),
        ("?status=deleted", &all[3..4], json!([1, 1, 20, 1])),
        ("?status=active&page_size=100", &all[4..], json!([21, 1, 100, 1])),
        ("?status=Active", &[], json!([0, 1, 20, 0])),
        ("?unknown=1&name=", &all[..20], json!([25, 1, 20, 2])),
    ] {
        let page = service.get(&format!("{AGENTS}{query}")).await.expect(200);
        assert_eq!((names(&page), counts(&page)), (items.to_vec(), expected), "{query}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn each_member_has_its_limits(pool: PgPool) {
    let service = Service::start(&pool);
    let auth = "body.auth_config value_error";
    let long_url = format!("http://a/{}", "x".repeat(504));
    for (members, expected) in [
        (json!({"name": null, "url": null}), &["body.name string_type", "body.url url_type"][..]),
        (json!({"name": ""}), &["body.name string_too_short"]),
        (json!({"name": "é".repeat(256)}), &["body.name string_too_long"]),
        (json!({"url": "ftp://a"}), &["body.url url_scheme"]),
        (json!({"url": "agent"}), &["body.url url_parsing"]),
        (json!({"url": long_url}), &["body.url url_too_long"]),
        (json!({"description": 1}), &["body.description string_type"]),
        (json!({"timeout_ms": 999}), &["body.timeout_ms greater_than_equal"]),
        (json!({"timeout_ms": 300_001}), &["body.timeout_ms less_than_equal"]),
        (json!({"timeout_ms": 2000.5}), &["body.timeout_ms int_from_float"]),
        (json!({"timeout_ms": "abc"}), &["body.timeout_ms int_parsing"]),
        (json!({"timeout_ms": []}), &["body.timeout_ms int_type"]),
        (json!({"retry_config": {"max_retries": 11}}), &["body.retry_config.max_retries less_than_equal"]),
        (json!({"retry_config": {"max_retries": -1}}), &["body.retry_config.max_retries greater_than_equal"]),
        (json!({"retry_config": {"initial_delay_ms": 99}}), &["body.retry_config.initial_delay_ms greater_than_equal"]),
        (json!({"retry_config": {"max_delay_ms": 999}}), &["body.retry_config.max_delay_ms greater_than_equal"]),
        (
            json!({"retry_config": {"max_delay_ms": 1000, "initial_delay_ms": 1001}}),
            &["body.retry_config.max_delay_ms value_error"],
        ),
        (
            json!({"retry_config": {"backoff_multiplier": 0.99}}),
            &["body.retry_config.backoff_multiplier greater_than_equal"],
        ),
        (json!({"retry_config": {"backoff_multiplier": []}}), &["body.retry_config.backoff_multiplier float_type"]),
        (json!({"auth_type": "digest"}), &["body.auth_type value_error"]),
        (json!({"auth_config": {}}), &[auth]),
        (json!({"auth_type": "bearer"}), &[auth]),
        (json!({"auth_type": "bearer", "auth_config": {}}), &[auth]),
        (json!({"auth_type": "apikey", "auth_config": {"key": "k"}}), &[auth]),
        (json!({"auth_type": "apikey", "auth_config": {"header_name": "H"}}), &[auth]),
    ] {
        let mut body = json!({"name": "limits", "url": "http://a"});
        body.as_object_mut().expect("an object").extend(members.as_object().expect("members").clone());
        let answer = service.post(AGENTS, &body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.field_errors()),
            (422, expected.iter().map(ToString::to_string).collect()),
            "{members}"
        );
        answer.error(422);
    }
    assert_eq!(service.get(AGENTS).await.expect(200)["total"], 0);
    let largest = json!({
        "name": "é".repeat(255), "url": &long_url[..512], "timeout_ms": "300000", "unknown": {"a": 1},
        "retry_config": {"max_retries": 10.0, "initial_delay_ms": 100, "max_delay_ms": 1000, "backoff_multiplier": 1},
        "circuit_breaker_config": {"enabled": true},
    });
    let agent = service.post(AGENTS, &largest).await.expect(201);
    assert_eq!(agent["timeout_ms"], 300_000);
    assert_eq!(agent["circuit_breaker_config"], json!({"enabled": true}));
    assert!(agent.get("unknown").is_none());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_update_changes_what_it_names_and_nothing_else(pool: PgPool) {
    let service = Service::start(&pool);
    let mut agent = service.agent("worker", "http://a/").await;
    let path = path(&agent);
    let defaults =
        json!({"max_retries": 3, "initial_delay_ms": 1000, "max_delay_ms": 30000, "backoff_multiplier": 2.0});
    let with_retries = |max_retries: u32| {
        let mut config = defaults.clone();
        config["max_retries"] = json!(max_retries);
        json!({"retry_config": config})
    };
    for (patch, changed) in [
        (json!({}), json!({})),
        (json!({"name": "renamed", "id": 1, "created_at": null}), json!({})),
        (json!({"description": "d"}), json!({"description": "d"})),
        (json!({"description": "d", "url": "http://A", "status": "Active", "timeout_ms": 30000.0}), json!({})),
        (json!({"description": null}), json!({"description": null})),
        (json!({"url": "http://B"}), json!({"url": "http://b/"})),
        (
            json!({"retry_config": {"initial_delay_ms": 200}}),
            json!({"retry_config": {"max_retries": 3, "initial_delay_ms": 200, "max_delay_ms": 30000, "backoff_multiplier": 2.0}}),
        ),
        (json!({"retry_config": {"max_retries": 5}}), with_retries(5)),
        (json!({"retry_config": {}}), with_retries(3)),
        (
            json!({"auth_type": "bearer", "auth_config": {"token": "one"}}),
            json!({"auth_type": "bearer", "auth_config": {"token": "one", "type": "bearer"}}),
        ),
        (json!({"auth_config": {"token": "two"}}), json!({"auth_config": {"token": "two", "type": "bearer"}})),
        (json!({"auth_config": {"token": "two"}}), json!({})),
        (json!({"auth_type": "none", "auth_config": null}), json!({"auth_type": "none", "auth_config": null})),
        (json!({"circuit_breaker_config": {"enabled": true}}), json!({"circuit_breaker_config": {"enabled": true}})),
        (json!({"circuit_breaker_config": null}), json!({"circuit_breaker_config": null})),
        (json!({"status": "INACTIVE"}), json!({"status": "inactive"})),
    ] {
        let updated = service.put(&path, &patch).await.expect(200);
        let moved = updated["updated_at"].as_str() > agent["updated_at"].as_str();
        assert_eq!(moved, changed != json!({}), "updated_at after {patch}");
        let members = agent.as_object_mut().expect("an object");
        members.extend(changed.as_object().expect("members").clone());
        members.insert("updated_at".to_owned(), updated["updated_at"].clone());
        assert_eq!(updated, agent, "{patch}");
        assert_eq!(service.get(&path).await.expect(200), agent, "{patch}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_update_that_is_not_valid_changes_nothing(pool: PgPool) {
    let service = Service::start(&pool);
    let agent = service.agent("worker", "http://a/").await;
    for (patch, expected) in [
        (json!({"url": null}), "body.url url_type"),
        (json!({"timeout_ms": null}), "body.timeout_ms int_type"),
        (json!({"retry_config": null}), "body.retry_config model_attributes_type"),
        (json!({"auth_type": null}), "body.auth_type string_type"),
        (json!({"status": null}), "body.status string_type"),
        (json!({"status": "deleted"}), "body.status value_error"),
        (json!({"description": "new", "timeout_ms": 1}), "body.timeout_ms greater_than_equal"),
        (json!({"auth_type": "bearer"}), "body.auth_config value_error"),
        (json!({"auth_config": {"token": "t"}}), "body.auth_config value_error"),
        (json!(null), "body missing"),
        (json!([]), "body model_attributes_type"),
    ] {
        let answer = service.put(&path(&agent), &patch).await;
        assert_eq!(answer.field_errors(), [expected], "{patch}");
        answer.error(422);
    }
    assert_eq!(service.get(&path(&agent)).await.expect(200), agent);
    let unknown = service.put(UNKNOWN, &json!({})).await.error(404);
    assert_eq!(unknown["code"], "agent_not_found");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_deleted_agent_can_be_seen_and_keeps_its_name(pool: PgPool) {
    let service = Service::start(&pool);
    let agent = service.agent("worker", "http://a/").await;
    let message = service.delete(&path(&agent)).await.expect(200);
    assert!(message["message"].is_string() && message["timestamp"].is_string(), "{message}");
    assert_eq!(message.get("data"), Some(&Value::Null));
    let deleted = service.get(&path(&agent)).await.expect(200);
    assert_eq!((&deleted["status"], &deleted["updated_by"]), (&json!("deleted"), &json!("system")));
    service.delete(&path(&agent)).await.expect(200);
    assert_eq!(service.get(&path(&agent)).await.expect(200), deleted, "the repeat changed something");

    let taken = service.post(AGENTS, &json!({"name": "worker", "url": "http://b"})).await.error(400);
    assert_eq!(taken["code"], "agent_name_taken");
    service.delete(UNKNOWN).await.error(404);
    service.get(UNKNOWN).await.error(404);
    let audited: Vec<(String, Value)> =
        sqlx::query_as("SELECT action, coalesce(changes, 'null') FROM audit_logs ORDER BY created_at")
            .fetch_all(&pool)
            .await
            .expect("audit rows");
    assert_eq!(audited.iter().map(|(action, _)| action.as_str()).collect::<Vec<_>>(), ["create", "delete"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn of_many_who_register_a_name_at_once_one_succeeds(pool: PgPool) {
    let service = Service::start(&pool);
    let body = json!({"name": "worker", "url": "http://a/"});
    let answers = futures_util::future::join_all((0..8).map(|_| service.post(AGENTS, &body))).await;
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status.as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses[0], 201);
    assert!(statuses[1..].iter().all(|status| [400, 409].contains(status)), "{statuses:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_audit_row_shows_no_credentials(pool: PgPool) {
    let service = Service::start(&pool);
    let body = json!({
        "name": "worker", "url": "http://a/?key=hunter2", "auth_type": "bearer", "auth_config": {"token": "hunter2"},
    });
    let agent = service.post(AGENTS, &body).await.expect(201);
    service.put(&path(&agent), &json!({"auth_config": {"token": "hunter2b"}})).await.expect(200);
    // As the reference deployment let in.
    sqlx::query("UPDATE agents SET url = 'http://user:hunter2c@b/'").execute(&pool).await.expect("a URL");
    service.put(&path(&agent), &json!({"url": "http://user:hunter2c@b/", "description": "d"})).await.expect(200);
    service.put(&path(&agent), &json!({"url": "http://c/"})).await.expect(200);
    let rows: Vec<String> =
        sqlx::query_scalar("SELECT changes::text FROM audit_logs").fetch_all(&pool).await.expect("audit rows");
    assert_eq!(rows.len(), 4);
    assert!(rows.iter().all(|row| !row.contains("hunter2")), "{rows:?}");
}
