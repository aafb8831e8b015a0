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
