//! List of the callbacks of all runs: an inbox of what waits for answers, and its history.

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use workflow_api::db::migrations::MIGRATOR;

use crate::{
    access::{Admin, claims, secret, signed},
    service::Service,
    steps::World,
    waits::{callbacks, path_of},
};

fn asking(role: Option<&str>) -> Value {
    let config = role.map_or_else(|| json!({}), |role| json!({"approval": {"role": role}}));
    json!({"ask": {"id": "ask", "type": "callback", "callback_config": config, "input_mapping": {"about": "${workflow.input.about}"}}})
}

async fn list(service: &Service, query: &str) -> Vec<Value> {
    let page = service.get(&format!("/api/v1/callbacks?{query}")).await.expect(200);
    page["items"].as_array().expect("items").clone()
}

fn members<'a>(items: &'a [Value], name: &str) -> Vec<&'a str> {
    items.iter().map(|item| item[name].as_str().expect("a text")).collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_callbacks_of_all_runs_are_listed_until_they_are_answered_and_then_as_history(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let service = &world.service;
    let mut runs = Vec::new();
    for (about, role) in [("first", None), ("second", Some("manager")), ("third", None)] {
        let run_id = world.begin("ask", &asking(role), &json!({"about": about})).await;
        callbacks(service, &run_id, 1).await;
        runs.push(run_id);
    }
    // A wait for a time is no callback.
    let wait = json!({"nap": {"id": "nap", "type": "wait", "wait_config": {"duration_seconds": 3600}}});
    world.begin("nap", &wait, &json!({})).await;

    let open = list(service, "").await;
    assert_eq!(members(&open, "run_id"), [&runs[2], &runs[1], &runs[0]]);
    assert_eq!(members(&list(service, "sort_order=asc").await, "run_id"), [&runs[0], &runs[1], &runs[2]]);
    let own = callbacks(service, &runs[1], 1).await.remove(0);
    for member in
        ["step_id", "step_execution_id", "url", "created_at", "expires_at", "is_approval", "role", "input_data"]
    {
        assert_eq!(open[1][member], own[member], "{member} is that of the list of the run");
    }
    assert_eq!((&open[1]["role"], &open[1]["input_data"]), (&json!("manager"), &json!({"about": "second"})));
    assert_eq!([&open[1]["answered_at"], &open[1]["answered_by"], &open[1]["answer"]], [&Value::Null; 3]);
    assert_eq!(members(&list(service, "role=manager,clerk").await, "run_id"), [&runs[1]]);
    let name = open[2]["workflow_name"].as_str().expect("a name");
    assert_eq!(members(&list(service, &format!("workflow_name={name}")).await, "run_id"), [&runs[0]]);
    assert_eq!(list(service, "state=answered").await, Vec::<Value>::new());

    // By pages.
    let page = service.get("/api/v1/callbacks?page_size=2").await.expect(200);
    assert_eq!((&page["total"], &page["total_pages"]), (&json!(3), &json!(2)));
    let next = page["next_cursor"].as_str().expect("a cursor");
    assert_eq!(members(&list(service, &format!("page_size=2&cursor={next}")).await, "run_id"), [&runs[0]]);
    assert_eq!(
        service.get(&format!("/api/v1/callbacks?state=answered&cursor={next}")).await.error(400)["code"],
        "invalid_cursor"
    );
    assert_eq!(service.get("/api/v1/callbacks?state=over").await.field_errors(), ["query.state enum"]);

    let answers = [json!({"approved": true, "comment": "fine"}), json!([1, 2])];
    for (run_id, answer) in runs.iter().take(3).step_by(2).zip(&answers) {
        service.post(&path_of(&callbacks(service, run_id, 1).await[0]["url"]), answer).await.expect(200);
    }
    service.post(&format!("/api/v1/runs/{}/cancel", runs[1]), &json!({})).await.expect(200);
    assert_eq!(list(service, "").await, Vec::<Value>::new(), "what cannot be answered any more is not listed");
    let answered = list(service, "state=answered").await;
    assert_eq!(members(&answered, "run_id"), [&runs[2], &runs[0]], "the latest answer first");
    assert_eq!([&answered[1]["answer"], &answered[0]["answer"]], [&answers[0], &answers[1]]);
    assert!(answered.iter().all(|item| item["answered_at"].is_string()));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_list_has_only_callbacks_of_the_own_organisation_and_reads_no_others(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let run_id = world.begin("ask", &asking(None), &json!({"about": "it"})).await;
    callbacks(&world.service, &run_id, 1).await;
    // As another release inserts them: without the organisation.
    for sql in [
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, organization_id)
         VALUES ('run-of-acme', 'w', 'w', 'RUNNING', 'acme')",
        "INSERT INTO step_waits (run_id, place, step_id, token, token_hash)
         SELECT 'run-of-acme', 'ask', 'ask', 'token-' || n, sha256(n::text::bytea) FROM generate_series(1, 5000) n",
        "ANALYZE step_waits",
    ] {
        sqlx::query(sql).execute(&pool).await.expect("done");
    }
    assert_eq!(members(&list(&world.service, "").await, "run_id"), [&run_id]);
    let of_acme: i64 = sqlx::query_scalar("SELECT count(*) FROM step_waits WHERE organization_id = 'acme'")
        .fetch_one(&pool)
        .await
        .expect("a count");
    assert_eq!(of_acme, 5000);
    for (index, condition, order) in [
        ("step_waits_open", "token IS NOT NULL AND answered_at IS NULL", "created_at"),
        ("step_waits_answered", "answered_at IS NOT NULL", "answered_at"),
    ] {
        let sql = format!(
            "EXPLAIN SELECT id FROM step_waits WHERE organization_id = 'acme' AND {condition}
             ORDER BY {order} DESC, id DESC LIMIT 21"
        );
        let plan: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&pool).await.expect("a plan");
        assert!(plan.join("\n").contains(&format!("{index} on step_waits")), "{plan:?}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_inbox_of_ones_own_has_what_ones_roles_may_answer(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    for sql in [
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status) VALUES ('run', 'w', 'w', 'RUNNING')",
        r#"INSERT INTO step_waits (run_id, place, step_id, token, token_hash, approval, question)
           SELECT 'run', step, step, step, sha256(step::bytea), approval::jsonb, question::jsonb FROM (VALUES
               ('anybody', NULL, NULL), ('approved', '{}', NULL), ('manager', '{"role": "manager"}', NULL),
               ('operator', '{"role": "operator"}', NULL), ('asked', NULL, '{"agent": "a", "role": "clerk"}')
           ) AS asked (step, approval, question)"#,
    ] {
        sqlx::query(sql).execute(&pool).await.expect("done");
    }
    let all = ["anybody", "approved", "asked", "manager", "operator"];
    for (role, roles, query, expected) in [
        ("operator", json!(["manager"]), "mine=true", &["anybody", "approved", "manager", "operator"][..]),
        ("operator", json!(["clerk", "x"]), "mine=1", &["anybody", "approved", "asked", "operator"]),
        ("operator", json!(null), "mine=true", &["anybody", "approved", "operator"]),
        ("operator", json!(["manager"]), "mine=true&role=manager,clerk", &["manager"]),
        ("operator", json!([]), "mine=false", &all),
        ("executor", json!([]), "mine=true", &["anybody", "approved"]),
        ("admin", json!([]), "mine=true", &all),
    ] {
        let claims = claims(&json!({"role": role, "roles": roles}));
        let bearer = format!("Bearer {}", signed(&json!({"alg": "HS256"}), &claims, &secret(), Algorithm::HS256));
        let path = format!("/api/v1/callbacks?{query}");
        let page = admin.service.send("GET", &path, &[("authorization", &bearer)], "").await.expect(200);
        let items = page["items"].as_array().expect("items");
        let mut steps = members(items, "step_id");
        steps.sort_unstable();
        assert_eq!(steps, expected, "{role} {roles} {query}");
        assert_eq!(page["total"], json!(expected.len()));
    }
    assert_eq!(admin.get("/api/v1/callbacks?mine=yes").await.field_errors(), ["query.mine bool_parsing"]);
}
