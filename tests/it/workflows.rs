//! Workflows: versions, changes, deletion, lists. What a definition has to look like is in `definitions`.

use std::collections::HashSet;

use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::service::Service;

const WORKFLOWS: &str = "/api/v1/workflows";
const UNKNOWN: &str = "/api/v1/workflows/00000000-0000-0000-0000-000000000000";

fn path(workflow: &Value) -> String {
    format!("{WORKFLOWS}/{}", workflow["id"].as_str().expect("an id"))
}

/// The `name version` of each entry.
fn shown(page: &Value) -> Vec<String> {
    let items = page["items"].as_array().expect("items").iter();
    items.map(|item| format!("{} {}", item["name"].as_str().expect("a name"), item["version"])).collect()
}

/// A single step that calls that agent.
fn steps(agent: &str) -> Value {
    json!({"s0": {"id": "s0", "agent_name": agent, "input_mapping": {}}})
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_workflow_has_every_member_and_a_plan_in_normal_form(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let mut workflow = service.chain("w", &["worker"]).await;
    assert_eq!(service.get(&path(&workflow)).await.expect(200), workflow);
    let members = workflow.as_object_mut().expect("an object");
    for name in ["created_at", "updated_at"] {
        let instant = members.remove(name).unwrap_or_else(|| panic!("{name} is there"));
        assert!(instant.as_str().is_some_and(|text| text.ends_with('Z')), "{instant}");
    }
    assert!(members.remove("id").is_some());
    let step = json!({
        "id": "s0", "type": "agent", "agent_name": "worker", "next_step": null,
        "input_mapping": {"text": "${workflow.input.text}"}, "parallel_steps": null, "max_parallelism": null,
        "condition": null, "if_true_step": null, "if_false_step": null, "loop_config": null, "fork_join_config": null,
    });
    let expected = json!({
        "name": "w", "description": null, "version": 1, "status": "active", "created_by": "system",
        "updated_by": "system", "input_schema": null, "retention_days": null, "expose": null, "debounce": null,
        "throttle": null, "concurrency": null, "deadline_seconds": null, "deadline_action": null,
        "silence_hours": null,
        "workflow_data": {"workflow_id": "wf-w-1", "name": "w", "version": "1", "start_step": "s0", "steps": {"s0": step}},
    });
    assert_eq!(workflow, expected);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn creating_a_name_again_makes_its_next_version_in_a_row_of_its_own(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let first = service.chain("w", &["worker"]).await;
    let second = service.chain("w", &["worker", "worker"]).await;
    assert_eq!((&first["version"], &second["version"]), (&json!(1), &json!(2)));
    assert_eq!(second["workflow_data"]["workflow_id"], "wf-w-2");
    assert_eq!(second["workflow_data"]["version"], "2");
    assert_ne!(first["id"], second["id"]);
    assert_eq!(service.get(&path(&first)).await.expect(200), first);
    // A deleted version's number is not given out again.
    service.delete(&path(&second)).await.expect(200);
    assert_eq!(service.chain("w", &["worker"]).await["version"], 3);
    assert_eq!(service.chain("other", &["worker"]).await["version"], 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_agent_of_a_step_has_to_exist_and_to_be_active(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    for (name, change) in [("inactive", json!({"status": "inactive"})), ("deleted", Value::Null)] {
        let agent = service.agent(name, "http://a").await;
        let agent = format!("/api/v1/agents/{}", agent["id"].as_str().expect("an id"));
        let answer = if change.is_null() { service.delete(&agent).await } else { service.put(&agent, &change).await };
        answer.expect(200);
    }
    let workflow = service.chain("w", &["worker"]).await;
    for (agent, on_create, on_update, code) in [
        ("missing", 400, 404, "agent_not_found"),
        ("inactive", 400, 400, "agent_not_active"),
        ("deleted", 400, 400, "agent_not_active"),
    ] {
        let body = json!({"name": "w", "start_step": "s0", "steps": steps(agent)});
        let refused = service.post(WORKFLOWS, &body).await.error(on_create);
        assert_eq!(refused["code"], code, "creating with {agent}");
        assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains(agent)), "{refused}");
        let refused = service.put(&path(&workflow), &json!({"steps": steps(agent)})).await.error(on_update);
        assert_eq!(refused["code"], code, "updating with {agent}");
    }
    // Whatever the type of the step: the agent of a container counts as well.
    let mut container = steps("worker");
    container["p"] = json!({"id": "p", "type": "parallel", "parallel_steps": ["s0", "s1"], "agent_name": "missing"});
    container["s1"] = json!({"id": "s1", "agent_name": "worker", "input_mapping": {}});
    service.post(WORKFLOWS, &json!({"name": "p", "start_step": "p", "steps": container})).await.error(400);
    assert_eq!(service.get(WORKFLOWS).await.expect(200)["total"], 1, "a refused definition was stored");
    assert_eq!(service.get(&path(&workflow)).await.expect(200), workflow);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn new_steps_keep_the_id_and_archive_the_former_content(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    service.agent("other", "http://a").await;
    let first = service.chain("w", &["worker"]).await;
    let update = json!({"steps": steps("other"), "name": "renamed", "version": 9});
    let updated = service.put(&path(&first), &update).await.expect(200);
    assert_eq!((&updated["id"], &updated["name"], &updated["version"]), (&first["id"], &json!("w"), &json!(2)));
    assert_eq!(updated["workflow_data"]["workflow_id"], "wf-w-1", "the plan's id is left as it is");
    assert_eq!(updated["workflow_data"]["version"], "2");
    assert_eq!(updated["workflow_data"]["steps"]["s0"]["agent_name"], "other");
    assert_eq!(updated["workflow_data"]["steps"]["s0"]["type"], "agent", "the normal form is stored");
    assert_eq!(service.get(&path(&first)).await.expect(200), updated);

    let versions = service.get(&format!("{}/versions", path(&first))).await.expect(200);
    assert_eq!(shown(&versions), ["w 2", "w 1"]);
    assert_eq!(versions["items"][0], updated);
    let mut archived = versions["items"][1].clone();
    assert_ne!(archived["id"], first["id"]);
    assert_eq!(service.get(&path(&archived)).await.expect(200), archived);
    archived["id"] = first["id"].clone();
    assert_eq!(archived, first, "the archived row is the former content");

    // The number follows the highest version of the name, not the row's own.
    assert_eq!(service.chain("w", &["worker"]).await["version"], 3);
    let again = service.put(&path(&first), &json!({"start_step": "s0"})).await.expect(200);
    assert_eq!(again["version"], 4);
    assert_eq!(again["workflow_data"]["steps"], updated["workflow_data"]["steps"]);
    let versions = service.get(&format!("{}/versions?page_size=3", path(&first))).await.expect(200);
    assert_eq!(shown(&versions), ["w 4", "w 3", "w 2"]);
    assert_eq!(json!([versions["total"], versions["total_pages"]]), json!([4, 2]));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_steps_that_a_client_was_shown_can_be_sent_back(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let step = |id: &str| json!({"id": id, "agent_name": "worker", "input_mapping": {}});
    let body = json!({"name": "w", "start_step": "c", "steps": {
        "c": {"id": "c", "type": "conditional", "condition": {"expression": "1 == 1"}, "if_true_step": "a", "next_step": "l"},
        "l": {"id": "l", "type": "loop", "loop_config": {"collection": "${workflow.input.x}", "loop_body": ["b"],
            "execution_mode": null, "on_error": null, "max_iterations": null}, "next_step": "f"},
        "f": {"id": "f", "type": "fork_join", "fork_join_config": {"branches": {"x": {"steps": ["d"]},
            "y": {"steps": ["e"], "timeout_seconds": 5}}}},
        "a": step("a"), "b": step("b"), "d": step("d"), "e": step("e"),
    }});
    let workflow = service.post(WORKFLOWS, &body).await.expect(201);
    let steps = &workflow["workflow_data"]["steps"];
    assert_eq!(steps["l"]["loop_config"]["execution_mode"], "sequential");
    assert_eq!(steps["l"]["loop_config"]["on_error"], "stop");
    assert_eq!(steps["f"]["fork_join_config"]["join_policy"], "all");
    let edited = json!({"description": "edited", "start_step": "c", "steps": steps});
    let updated = service.put(&path(&workflow), &edited).await.expect(200);
    assert_eq!(updated["workflow_data"]["steps"], *steps);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_update_without_content_keeps_the_version(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let mut workflow = service.chain("w", &["worker"]).await;
    for (patch, changed) in [
        (json!({}), json!({})),
        (json!({"description": "d"}), json!({"description": "d"})),
        (json!({"description": "d", "steps": null, "start_step": null}), json!({})),
        (json!({"description": null}), json!({"description": null})),
        (json!({"status": "INACTIVE"}), json!({"status": "inactive"})),
        (json!({"status": "active"}), json!({"status": "active"})),
    ] {
        let updated = service.put(&path(&workflow), &patch).await.expect(200);
        let moved = updated["updated_at"].as_str() > workflow["updated_at"].as_str();
        assert_eq!(moved, changed != json!({}), "updated_at after {patch}");
        let members = workflow.as_object_mut().expect("an object");
        members.extend(changed.as_object().expect("members").clone());
        members.insert("updated_at".to_owned(), updated["updated_at"].clone());
        assert_eq!(updated, workflow, "{patch}");
    }
    assert_eq!(service.get(WORKFLOWS).await.expect(200)["total"], 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_update_is_validated_together_with_what_is_stored(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let workflow = service.chain("w", &["worker", "worker"]).await;
    for (patch, expected) in [
        (json!({"start_step": "missing"}), "body value_error"),
        (json!({"start_step": "s1"}), "body value_error"), // s0 cannot be reached any more
        (json!({"steps": {"x": {"id": "x", "agent_name": "worker", "input_mapping": {}}}}), "body value_error"),
        (json!({"start_step": ""}), "body.start_step string_too_short"),
        (json!({"steps": {}}), "body.steps too_short"),
        (json!({"status": "deleted"}), "body.status value_error"),
        (json!({"status": null}), "body.status string_type"),
        (json!({"description": 1}), "body.description string_type"),
    ] {
        let answer = service.put(&path(&workflow), &patch).await;
        assert_eq!(answer.field_errors(), [expected], "{patch}");
        answer.error(422);
    }
    assert_eq!(service.get(&path(&workflow)).await.expect(200), workflow);
    assert_eq!(service.put(UNKNOWN, &json!({})).await.error(404)["code"], "workflow_not_found");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn no_version_is_lost_when_many_write_at_once(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let workflow = service.chain("w", &["worker"]).await;
    let update = json!({"steps": steps("worker")});
    let creation = json!({"name": "w", "start_step": "s0", "steps": steps("worker")});
    let path = path(&workflow);
    let (updates, creations) = futures_util::join!(
        join_all((0..5).map(|_| service.put(&path, &update))),
        join_all((0..5).map(|_| service.post(WORKFLOWS, &creation))),
    );
    let updates = updates.into_iter().map(|answer| answer.expect(200)["version"].as_i64());
    let versions: HashSet<_> =
        updates.chain(creations.into_iter().map(|answer| answer.expect(201)["version"].as_i64())).collect();
    assert_eq!(versions, (2..=11).map(Some).collect());
    let stored = service.get(&format!("{path}/versions")).await.expect(200);
    assert_eq!(shown(&stored), (1..=11).rev().map(|version| format!("w {version}")).collect::<Vec<_>>());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn deleting_marks_this_row_and_no_other(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let first = service.chain("w", &["worker"]).await;
    let second = service.chain("w", &["worker"]).await;
    let message = service.delete(&path(&first)).await.expect(200);
    assert!(message["message"].is_string() && message["data"].is_null(), "{message}");
    let deleted = service.get(&path(&first)).await.expect(200);
    assert_eq!(deleted["status"], "deleted");
    service.delete(&path(&first)).await.expect(200);
    assert_eq!(service.get(&path(&first)).await.expect(200), deleted, "the repeat changed something");
    assert_eq!(service.get(&path(&second)).await.expect(200), second);
    service.delete(UNKNOWN).await.error(404);
    service.get(UNKNOWN).await.error(404);
    service.get(&format!("{UNKNOWN}/versions")).await.error(404);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_list_is_filtered_and_sorted(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let b1 = service.chain("b", &["worker"]).await;
    service.chain("a", &["worker"]).await;
    let c1 = service.chain("c", &["worker"]).await;
    service.chain("b", &["worker"]).await;
    service.put(&path(&b1), &json!({"status": "inactive"})).await.expect(200);
    service.delete(&path(&c1)).await.expect(200);
    for (query, expected) in [
        ("", &["b 2", "c 1", "a 1", "b 1"][..]),
        ("sort_order=asc", &["b 1", "a 1", "c 1", "b 2"]),
        ("sort_order=ASC&sort_by=created_at", &["b 1", "a 1", "c 1", "b 2"]),
        ("sort_order=up", &["b 2", "c 1", "a 1", "b 1"]),
        ("sort_by=name&sort_order=asc&page_size=1", &["a 1"]),
        ("sort_by=name&page_size=1", &["c 1"]),
        ("sort_by=version&page_size=1", &["b 2"]),
        ("sort_by=updated_at&page_size=2", &["c 1", "b 1"]),
        ("sort_by=workflow_data", &["b 2", "c 1", "a 1", "b 1"]),
        ("sort_by=nonsense%3B--", &["b 2", "c 1", "a 1", "b 1"]),
        ("status=active", &["b 2", "a 1"]),
        ("status=inactive", &["b 1"]),
        ("status=deleted", &["c 1"]),
        ("status=ACTIVE", &[]),
        ("name=b", &["b 2", "b 1"]),
        ("name=b&status=active", &["b 2"]),
        ("name=B", &[]),
        ("page=2&page_size=3", &["b 1"]),
        ("page=3&page_size=3", &[]),
    ] {
        let page = service.get(&format!("{WORKFLOWS}?{query}")).await.expect(200);
        assert_eq!(shown(&page), expected, "{query}");
    }
    let page = service.get(&format!("{WORKFLOWS}?page=2&page_size=3")).await.expect(200);
    assert_eq!(json!([page["total"], page["page"], page["page_size"], page["total_pages"]]), json!([4, 2, 3, 2]));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_newest_version_of_each_name_is_one_entry_with_its_own_status(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let b1 = service.chain("b", &["worker"]).await;
    let a1 = service.chain("a", &["worker"]).await;
    let c1 = service.chain("c", &["worker"]).await;
    service.chain("d", &["worker"]).await;
    let d2 = service.chain("d", &["worker"]).await;
    // The content of version 1 is archived as an active row of its own.
    let change =
        json!({"start_step": "s1", "steps": {"s1": {"id": "s1", "agent_name": "worker", "input_mapping": {}}}});
    for first in [&a1, &c1] {
        assert_eq!(service.put(&path(first), &change).await.expect(200)["version"], 2);
    }
    service.delete(&path(&a1)).await.expect(200);
    service.put(&path(&b1), &json!({"status": "inactive"})).await.expect(200);
    service.delete(&path(&d2)).await.expect(200);
    for (query, expected) in [
        ("", &["d 2", "c 2", "a 2", "b 1"][..]),
        ("&sort_by=name&sort_order=asc", &["a 2", "b 1", "c 2", "d 2"]),
        ("&status=active", &["c 2"]),
        ("&status=inactive,deleted", &["d 2", "a 2", "b 1"]),
        ("&name=a", &["a 2"]),
        ("&name_prefix=d&status=active", &[]),
    ] {
        let page = service.get(&format!("{WORKFLOWS}?versions=newest{query}")).await.expect(200);
        assert_eq!(shown(&page), expected, "{query}");
        assert_eq!(page["total"], expected.len(), "{query}");
    }
    let all = service.get(&format!("{WORKFLOWS}?versions=all")).await.expect(200);
    assert_eq!(all["items"], service.get(WORKFLOWS).await.expect(200)["items"]);
    assert_eq!(all["total"], 7);
    assert_eq!(service.get(&format!("{WORKFLOWS}?versions=old")).await.field_errors(), ["query.versions enum"]);
    // A newer version of another organisation is not one of ours.
    let other = "WITH other AS (INSERT INTO organizations (id, name, created_by, updated_by) VALUES ('acme', 'Acme', 'me', 'me'))
        INSERT INTO workflow_definitions (id, name, version, workflow_data, status, created_at, updated_at, organization_id)
        SELECT gen_random_uuid(), 'c', 9, '{}', 'active', now(), now(), 'acme'";
    sqlx::query(other).execute(&pool).await.expect("another organisation");
    let page = service.get(&format!("{WORKFLOWS}?versions=newest&name=c")).await.expect(200);
    assert_eq!(shown(&page), ["c 2"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn pages_of_newest_versions_have_each_name_once_however_many_versions_it_has(pool: PgPool) {
    let service = Service::start(&pool);
    let versions = "INSERT INTO workflow_definitions (id, name, version, workflow_data, status, created_at, updated_at)
        SELECT gen_random_uuid(), 'w' || name, version, '{}', 'active', timestamp '2026-01-01' + version * interval '1 s', now()
        FROM generate_series(1, 5) name, generate_series(1, CASE name WHEN 3 THEN 250 ELSE name END) version";
    sqlx::query(versions).execute(&pool).await.expect("versions");
    for order in ["sort_by=name&sort_order=asc", "sort_by=name", "sort_by=version", ""] {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let page =
                service.get(&format!("{WORKFLOWS}?versions=newest&page_size=2&{order}{cursor}")).await.expect(200);
            assert_eq!(page["total"], 5);
            found.extend(shown(&page));
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        found.sort();
        assert_eq!(found, ["w1 1", "w2 2", "w3 250", "w4 4", "w5 5"], "{order}");
    }
    let page = service.get(&format!("{WORKFLOWS}?versions=newest&page_size=2")).await.expect(200);
    let cursor = page["next_cursor"].as_str().expect("a next page");
    let answer = service.get(&format!("{WORKFLOWS}?page_size=2&cursor={cursor}")).await;
    assert_eq!(answer.error(400)["code"], "invalid_cursor", "the cursor is that of another list");
}
