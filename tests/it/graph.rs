//! Workflows and runs as drawings.

use serde_json::json;
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::service::Service;

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_workflow_is_drawn_in_the_form_that_is_asked_for(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let workflow = service.chain("w", &["worker", "worker"]).await;
    let path = format!("/api/v1/workflows/{}/graph", workflow["id"].as_str().expect("an id"));
    let mermaid = service.get(&path).await;
    assert_eq!((mermaid.status.as_u16(), mermaid.header("content-type")), (200, Some("text/plain; charset=utf-8")));
    let lines: Vec<_> = mermaid.text.lines().map(str::trim).collect();
    assert_eq!(lines, ["flowchart TD", r#"n0["s0<br/>worker"]"#, r#"n1["s1<br/>worker"]"#, "n0 --> n1"]);
    for (accept, format, expected) in [
        ("image/svg+xml", "", "image/svg+xml; charset=utf-8"),
        ("text/plain;q=0.1, image/svg+xml;q=0.9", "", "image/svg+xml; charset=utf-8"),
        ("text/vnd.mermaid", "", "text/vnd.mermaid; charset=utf-8"),
        ("text/html,*/*;q=0.8", "", "text/plain; charset=utf-8"),
        ("image/svg+xml", "?format=mermaid", "text/plain; charset=utf-8"),
        ("text/plain", "?format=svg", "image/svg+xml; charset=utf-8"),
    ] {
        let answer = service.send("GET", &format!("{path}{format}"), &[("accept", accept)], "").await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some(expected)), "{accept} {format}");
        assert_eq!(answer.text.starts_with("<svg"), expected.starts_with("image/"));
    }
    assert_eq!(service.get(&format!("{path}?format=png")).await.field_errors(), ["query.format enum"]);
    service.get("/api/v1/workflows/00000000-0000-0000-0000-000000000000/graph").await.error(404);
    service.get("/api/v1/runs/nothing/graph").await.error(404);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_is_drawn_with_the_content_and_the_states_that_it_has(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let workflow = service.chain("w", &["worker", "worker"]).await;
    let id = workflow["id"].as_str().expect("an id");
    let run_id = service.execute(id).await;
    let steps = json!({"only": {"id": "only", "agent_name": "worker", "input_mapping": {}}});
    service.put(&format!("/api/v1/workflows/{id}"), &json!({"start_step": "only", "steps": steps})).await.expect(200);
    for (status, second) in [("FAILED", 1), ("COMPLETED", 2)] {
        sqlx::query(
            "INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, started_at)
             VALUES ($1, $2, 's0', 's0', 'worker', $1, '{}', now() + make_interval(secs => $3))",
        )
        .bind(status)
        .bind(&run_id)
        .bind(f64::from(second))
        .execute(&pool)
        .await
        .expect("a step row");
    }
    let path = format!("/api/v1/runs/{run_id}/graph");
    let text = service.get(&path).await.text;
    assert!(text.contains(r#"n0["s0<br/>worker<br/>COMPLETED"]"#) && text.contains("class n0 completed"), "{text}");
    assert!(text.contains("n0 --> n1") && !text.contains("only"), "{text}");
    let svg = service.get(&format!("{path}?format=svg")).await.text;
    assert!(svg.contains("#c8e6c9") && svg.contains("COMPLETED"), "{svg}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_graph_comes_as_json_with_the_places_of_the_drawing(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let steps = json!({
        "fork": {"id": "fork", "type": "parallel", "parallel_steps": ["a", "b"], "next_step": "end"},
        "a": {"id": "a", "agent_name": "worker", "input_mapping": {}},
        "b": {"id": "b", "agent_name": "worker", "input_mapping": {}},
        "end": {"id": "end", "agent_name": "worker", "input_mapping": {}},
    });
    let body = json!({"name": "w", "start_step": "fork", "steps": steps});
    let workflow = service.post("/api/v1/workflows", &body).await.expect(201);
    let id = workflow["id"].as_str().expect("an id");
    let path = format!("/api/v1/workflows/{id}/graph");
    // Only who asks for it by name gets it: many clients accept JSON with any request.
    let by_header = service.send("GET", &path, &[("accept", "application/json")], "").await;
    assert_eq!(by_header.header("content-type"), Some("text/plain; charset=utf-8"));
    let graph = service.get(&format!("{path}?format=json")).await.expect(200);
    assert_eq!(graph, service.post("/api/v1/workflows/graph", &body).await.expect(200), "as what is not stored");
    let nodes = graph["nodes"].as_array().expect("nodes");
    let ids: Vec<_> = nodes.iter().map(|node| node["id"].as_str().expect("an id")).collect();
    assert_eq!(ids, ["fork", "a", "b", "end"]);
    assert_eq!(
        (&nodes[0]["type"], &nodes[1]["type"], &nodes[1]["label"]),
        (&json!("parallel"), &json!("agent"), &json!("worker"))
    );
    let depths: Vec<_> = nodes.iter().map(|node| node["depth"].as_i64().expect("a number")).collect();
    assert_eq!(depths, [0, 1, 1, 0]);
    let number = |value: &serde_json::Value| value.as_i64().expect("a number");
    for (index, node) in nodes.iter().enumerate() {
        assert_eq!((&node["status"], &node["attempts"], &node["started_at"]), (&json!(null), &json!(0), &json!(null)));
        assert!(number(&node["x"]) + number(&node["width"]) <= number(&graph["width"]), "{node}");
        assert!(number(&node["y"]) + number(&node["height"]) <= number(&graph["height"]), "{node}");
        let above = index.checked_sub(1).map(|index| &nodes[index]);
        assert!(
            above.is_none_or(|above| number(&above["y"]) + number(&above["height"]) < number(&node["y"])),
            "{node}"
        );
    }
    let edges: Vec<_> = graph["edges"].as_array().expect("edges").iter().collect();
    let ends: Vec<_> =
        edges.iter().map(|edge| (edge["from"].clone(), edge["to"].clone(), edge["nested"].clone())).collect();
    let edge = |from: &str, to: &str, nested: bool| (json!(from), json!(to), json!(nested));
    assert_eq!(ends, [edge("fork", "a", true), edge("fork", "b", true), edge("fork", "end", false)]);
    for edge in edges {
        let points = edge["points"].as_array().expect("points");
        assert!(points.len() >= 2, "{edge}");
        for point in points.iter().chain([&edge["label_at"]]) {
            assert!((0..=number(&graph["width"])).contains(&number(&point["x"])), "{edge}");
            assert!((0..=number(&graph["height"])).contains(&number(&point["y"])), "{edge}");
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_graph_of_a_run_sums_up_the_attempts_of_each_step(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let workflow = service.chain("w", &["worker", "worker", "worker"]).await;
    let run_id = service.execute(workflow["id"].as_str().expect("an id")).await;
    for (id, step, status, begin, end) in [
        ("1", "s0", "FAILED", "09:00:00", Some("09:00:02")),
        ("2", "s0", "COMPLETED", "09:00:03", Some("09:00:07")),
        ("3", "s1", "FAILED", "09:00:08", Some("09:00:09")),
        ("4", "s1", "RUNNING", "09:00:10", None),
    ] {
        sqlx::query(
            "INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, started_at, completed_at)
             VALUES ($1, $2, $3, $3, 'worker', $4, '{}', ('2026-01-01 ' || $5)::timestamp, ('2026-01-01 ' || $6)::timestamp)",
        )
        .bind(id)
        .bind(&run_id)
        .bind(step)
        .bind(status)
        .bind(begin)
        .bind(end)
        .execute(&pool)
        .await
        .expect("a step row");
    }
    let graph = service.get(&format!("/api/v1/runs/{run_id}/graph?format=json")).await.expect(200);
    let nodes = graph["nodes"].as_array().expect("nodes");
    let about = |index: usize| {
        let node = &nodes[index];
        json!([node["status"], node["attempts"], node["failed_attempts"], node["started_at"], node["completed_at"]])
    };
    assert_eq!(about(0), json!(["COMPLETED", 2, 1, "2026-01-01T09:00:00Z", "2026-01-01T09:00:07Z"]));
    assert_eq!(about(1), json!(["RUNNING", 2, 1, "2026-01-01T09:00:08Z", null]));
    assert_eq!(about(2), json!([null, 0, 0, null, null]));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_being_written_is_drawn_if_its_members_are_valid(pool: PgPool) {
    let service = Service::start(&pool);
    let step = |id: &str, next: &str| json!({"id": id, "agent_name": "none", "input_mapping": {}, "next_step": next});
    // The agent and the last step are missing, and the chain has no end: rules between the steps do not count yet.
    let steps = json!({"a": step("a", "b"), "b": step("b", "a"), "c": step("c", "d")});
    let body = json!({"name": "w", "start_step": "a", "steps": steps});
    let graph = service.post("/api/v1/workflows/graph", &body).await.expect(200);
    let ids: Vec<_> = graph["nodes"].as_array().expect("nodes").iter().map(|node| node["id"].clone()).collect();
    assert_eq!(ids, ["a", "b"]);
    assert_eq!(graph["edges"].as_array().map(Vec::len), Some(2));
    let wrong = json!({"name": "w", "start_step": "a", "steps": {"a": {"agent_name": 1}}});
    let answer = service.post("/api/v1/workflows/graph", &wrong).await;
    assert!(answer.field_errors().iter().any(|error| error.starts_with("body.steps.a.agent_name")), "{}", answer.text);
    answer.error(422);
    let steps: serde_json::Map<_, _> =
        (0..5000).map(|n| (format!("s{n}"), step(&format!("s{n}"), &format!("s{}", n + 1)))).collect();
    let long = json!({"name": "w", "start_step": "s0", "steps": steps});
    let graph = service.post("/api/v1/workflows/graph", &long).await.expect(200);
    assert_eq!(graph["nodes"].as_array().map(Vec::len), Some(5000));
}
