//! The audit trail: what is in it, who sees it, and that nobody changes it unseen.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;
use uuid::Uuid;
use workflow_api::{
    config::ConnectOptions,
    db::{
        self,
        audit::{keep_partitions, seal},
        migrations::MIGRATOR,
    },
};

use crate::{
    access::Admin,
    service::{Service, config, eventually},
};

const TRAIL: &str = "/api/v1/audit-logs";

/// The entries of a query, the oldest first.
async fn entries(admin: &Admin, query: &str) -> Vec<Value> {
    let page = admin.get(&format!("{TRAIL}?sort_order=asc&page_size=100&{query}")).await.expect(200);
    page["items"].as_array().expect("items").clone()
}

/// What an entry has of a body that the database renders so.
fn digest(body: &str) -> Value {
    json!({"bytes": body.len(), "sha256": format!("{:x}", Sha256::digest(body))})
}

/// The result of a verification, once everything is sealed.
async fn verified(admin: &Admin) -> Value {
    eventually("everything is sealed", async || {
        let found = admin.get(&format!("{TRAIL}/verify")).await.expect(200);
        (found["unsealed"] == 0).then_some(found)
    })
    .await
}

/// Kind and entry of each problem.
fn problems(found: &Value) -> Vec<(String, Value)> {
    let of = |problem: &Value| (problem["kind"].as_str().expect("a kind").to_owned(), problem["entry_id"].clone());
    found["problems"].as_array().expect("problems").iter().map(of).collect()
}

/// What only somebody can do who may do everything in the database.
async fn past_the_triggers(pool: &PgPool, sql: &str) {
    let mut transaction = pool.begin().await.expect("a transaction");
    sqlx::query("SET LOCAL session_replication_role = replica").execute(&mut *transaction).await.expect("done");
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut *transaction).await.expect(sql);
    transaction.commit().await.expect("done");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_change_is_explained_by_one_entry(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let headers = [
        ("authorization", admin.bearer.as_str()),
        ("content-type", "application/json"),
        ("x-correlation-id", "audited-1"),
    ];
    let send = async |method: &str, path: &str, body: Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = admin.service.send(method, &format!("/api/v1{path}"), &headers, body).await;
        assert!(answer.status.is_success(), "{method} {path}: {}", answer.text);
        answer.json()
    };
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let agent = json!({"name": "worker", "url": "http://127.0.0.1:9/", "auth_type": "bearer",
        "auth_config": {"token": "hunter2hunter2"}});
    let agent = text(&send("POST", "/agents", agent).await["id"]);
    send("PUT", &format!("/agents/{agent}"), json!({"timeout_ms": 5000, "description": "x"})).await;
    send("PUT", &format!("/agents/{agent}"), json!({"timeout_ms": 5000})).await;
    send("PUT", &format!("/agents/{agent}"), json!({"auth_config": {"token": "correct horse"}})).await;
    let steps = json!({"a": {"id": "a", "agent_name": "worker", "input_mapping": {}}});
    let workflow =
        text(&send("POST", "/workflows", json!({"name": "w", "start_step": "a", "steps": steps})).await["id"]);
    send("PUT", &format!("/workflows/{workflow}"), json!({"description": "new"})).await;
    let run =
        text(&send("POST", &format!("/workflows/{workflow}/execute"), json!({"input_data": {"a": 1}})).await["run_id"]);
    send("POST", &format!("/runs/{run}/cancel"), json!({"reason": "enough"})).await;
    send("POST", &format!("/runs/{run}/retry"), json!({})).await;
    let key = text(&send("POST", "/api-keys", json!({"name": "k", "role": "viewer"})).await["id"]);
    send("DELETE", &format!("/api-keys/{key}"), json!(null)).await;
    send("DELETE", &format!("/api-keys/{key}"), json!(null)).await;
    send("POST", "/organizations", json!({"id": "acme", "name": "Acme"})).await;
    send("PUT", "/organizations/acme", json!({"name": "Acme Ltd"})).await;
    send("DELETE", &format!("/workflows/{workflow}"), json!(null)).await;
    send("DELETE", &format!("/agents/{agent}"), json!(null)).await;

    let sql = "SELECT workflow_data::text FROM workflow_definitions";
    let stored_plan: String = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a plan");
    let found = entries(&admin, "correlation_id=audited-1").await;
    let told: Vec<(String, String, String)> = found
        .iter()
        .map(|entry| (text(&entry["action"]), text(&entry["entity_type"]), text(&entry["entity_name"])))
        .collect();
    let told: Vec<(&str, &str, &str)> = told.iter().map(|(a, b, c)| (a.as_str(), b.as_str(), c.as_str())).collect();
    assert_eq!(
        told,
        [
            ("create", "agent", "worker"),
            ("update", "agent", "worker"),
            ("update", "agent", "worker"),
            ("create", "workflow", "w"),
            ("update", "workflow", "w"),
            ("execute", "run", run.as_str()),
            ("cancel", "run", &run),
            ("retry", "run", &run),
            ("create", "api_key", "k"),
            ("revoke", "api_key", "k"),
            ("create", "organization", "acme"),
            ("update", "organization", "acme"),
            ("delete", "workflow", "w"),
            ("delete", "agent", "worker"),
        ]
    );
    for entry in &found {
        assert_eq!((&entry["user_id"], &entry["outcome"]), (&json!("admin"), &json!("success")), "{entry}");
        assert_eq!((&entry["organization_id"], &entry["key_id"]), (&json!("default"), &json!(null)), "{entry}");
    }
    let change = |position: usize| (found[position]["before"].clone(), found[position]["after"].clone());
    assert_eq!(
        change(1),
        (json!({"timeout_ms": 30000, "description": null}), json!({"timeout_ms": 5000, "description": "x"}))
    );
    let hidden = json!({"auth_config": {"token": "[redacted]"}});
    assert_eq!(change(2), (hidden.clone(), hidden));
    assert_eq!(change(4), (json!({"description": null}), json!({"description": "new"})));
    assert_eq!(change(5).1["input_data"], digest(r#"{"a": 1}"#));
    assert_eq!(change(3).1["workflow_data"]["bytes"], stored_plan.len());
    assert_eq!(change(3).1["workflow_data"], digest(&stored_plan));
    assert_eq!(change(6).1, json!({"reason": "enough", "previous_status": "PENDING"}));
    assert_eq!(change(11), (json!({"name": "Acme"}), json!({"name": "Acme Ltd"})));
    assert_eq!((change(13).0["timeout_ms"].clone(), change(13).1), (json!(5000), json!(null)));
    assert!(!format!("{found:?}").contains("hunter2") && !format!("{found:?}").contains("horse"));
    // By the object, whichever of its names is given.
    assert_eq!(entries(&admin, &format!("entity_id={run}")).await.len(), 3);
    assert_eq!(entries(&admin, &format!("entity_id={agent}")).await.len(), 4);
    assert_eq!(entries(&admin, "entity_id=acme").await.len(), 2);
    assert_eq!(verified(&admin).await["valid"], true);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn denied_attempts_are_entries_too(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let (key, id) = admin.key(&json!({"name": "viewer", "role": "viewer"})).await;
    let headers = [("x-api-key", key.as_str()), ("content-type", "application/json")];
    admin.service.send("POST", "/api/v1/workflows/validate", &headers, "{}").await;
    admin.service.send("DELETE", &format!("/api/v1/api-keys/{id}"), &headers, "").await.error(403);
    let wrong = [("authorization", "Bearer not-a-token"), ("x-correlation-id", "intruder")];
    admin.service.send("GET", "/api/v1/runs/run-1", &wrong, "").await.error(401);
    let found = eventually("both are written", async || {
        let found = entries(&admin, "outcome=denied").await;
        (found.len() == 2).then_some(found)
    })
    .await;
    let told = |entry: &Value| {
        json!([
            entry["user_id"],
            entry["key_id"],
            entry["action"],
            entry["entity_type"],
            entry["entity_name"],
            entry["after"]["status"],
            entry["after"]["code"]
        ])
    };
    let route = "/api/v1/api-keys/{key_id}";
    assert_eq!(told(&found[0]), json!(["api-key:viewer", id, "DELETE", "request", route, 403, "forbidden"]));
    let route = "/api/v1/runs/{run_id}";
    assert_eq!(told(&found[1]), json!([null, null, "GET", "request", route, 401, "unauthorized"]));
    assert_eq!(found[1]["correlation_id"], "intruder");
    assert_eq!(admin.get(&format!("/api/v1/api-keys/{id}")).await.expect(200)["revoked_at"], json!(null));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_attempt_during_the_shutdown_is_an_entry_too(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    // Nothing new is accepted, and requests under way are still answered.
    admin.service.lifecycle.soft_stop().cancel();
    let late = admin.service.send("GET", "/api/v1/agents", &[("x-api-key", "nobody's")], "").await;
    assert_eq!(late.status.as_u16(), 401);
    admin.service.drained.cancel();
    admin.service.lifecycle.ended().await;
    let sql = "SELECT count(*) FROM audit_logs WHERE outcome = 'denied'";
    let entries: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a count");
    assert_eq!(entries, 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_flood_of_denied_attempts_is_bounded_and_counted(pool: PgPool) {
    let admin = Admin::start(&pool, &[("RATE_LIMIT_FAILED_AUTH", "0")]);
    for (attempts, headers) in [(400, &[][..]), (200, &[("authorization", "Bearer x")])] {
        for _ in 0..attempts {
            let answer = admin.service.send_from("192.0.2.7", "GET", "/api/v1/runs", headers).await;
            assert_eq!(answer.status.as_u16(), 401);
        }
    }
    // What is counted is written at the end of a minute, or of the process.
    admin.service.stop().await;
    let sql =
        "SELECT action, user_id IS NULL, address, count(*), sum(coalesce((changes ->> 'attempts')::bigint, 1))::bigint
        FROM audit_logs WHERE outcome = 'denied' GROUP BY 1, 2, 3 ORDER BY 1";
    let found: Vec<(String, bool, String, i64, i64)> = sqlx::query_as(sql).fetch_all(&pool).await.expect("numbers");
    let of = |action: &str, entries, attempts| (action.to_owned(), true, "192.0.2.7".to_owned(), entries, attempts);
    assert_eq!(found, [of("GET", 5, 5), of("omitted", 1, 595)]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn no_attempt_keeps_another_one_out(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let long = "X".repeat(60);
    for method in [long.as_str(), "DELETE"] {
        admin.service.send_from("192.0.2.8", method, "/api/v1/agents", &[]).await;
        admin.service.send_from("192.0.2.8", "GET", "/api/v1/runs", &[]).await;
    }
    // The database refuses one, whatever the reason.
    let sql = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'check_violation'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON audit_logs FOR EACH ROW WHEN (NEW.action = 'DELETE')
            EXECUTE FUNCTION refuse()";
    sqlx::raw_sql(sql).execute(&pool).await.expect("a trigger");
    admin.service.stop().await;
    let sql = "SELECT action FROM audit_logs WHERE outcome = 'denied' ORDER BY action";
    let found: Vec<String> = sqlx::query_scalar(sql).fetch_all(&pool).await.expect("actions");
    assert_eq!(found, ["GET", "GET", &"X".repeat(20)]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn bodies_are_in_the_trail_by_their_digests_alone(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let secret = "confidential-3f1a";
    let config = json!({"model": "small", "system_prompt": secret});
    let agent = json!({"name": "a", "url": "http://127.0.0.1:9/", "kind": "openai", "config": config,
        "description": "x".repeat(5000)});
    let agent = admin.post("/api/v1/agents", &agent).await.expect(201);
    let path = format!("/api/v1/agents/{}", agent["id"].as_str().expect("an id"));
    let headers = [("authorization", admin.bearer.as_str()), ("content-type", "application/json")];
    let patch = json!({"config": {"model": "large", "system_prompt": secret}}).to_string();
    admin.service.send("PUT", &path, &headers, patch).await.expect(200);
    let step = json!({"id": "s", "agent_name": "a", "input_mapping": {"text": secret}});
    let workflow = json!({"name": "w", "start_step": "s", "steps": {"s": step},
        "input_schema": {"type": "object", "description": secret}});
    let workflow = admin.post("/api/v1/workflows", &workflow).await.expect(201);
    let path = format!("/api/v1/workflows/{}", workflow["id"].as_str().expect("an id"));
    let step = json!({"id": "s", "agent_name": "a", "input_mapping": {"text": secret, "more": 1}});
    admin.service.send("PUT", &path, &headers, json!({"steps": {"s": step}}).to_string()).await.expect(200);
    let run = admin.post(&format!("{path}/execute"), &json!({"input_data": {"text": secret, "n": 1.50}})).await;
    let run_id = run.expect(202)["run_id"].as_str().expect("an id").to_owned();
    admin.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    let retry = json!({"input_data": {"text": secret, "n": 2}});
    admin.post(&format!("/api/v1/runs/{run_id}/retry"), &retry).await.expect(202);

    let found = entries(&admin, "").await;
    assert_eq!(found.len(), 7);
    assert!(!json!(found).to_string().contains(secret), "{found:?}");
    assert_eq!(found[0]["after"]["description"], digest(&format!("\"{}\"", "x".repeat(5000))));
    assert_eq!((&found[0]["after"]["model"], &found[1]["after"]["model"]), (&json!("small"), &json!("large")));
    // They are those of what the API shows.
    let sql = "SELECT input_data::text FROM workflow_runs";
    let stored: String = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("an input");
    assert_eq!(stored, format!(r#"{{"n": 2, "text": "{secret}"}}"#));
    assert_eq!(found[6]["after"]["input_data"], digest(&stored));
    assert_eq!(found[4]["after"]["input_data"], digest(&format!(r#"{{"n": 1.5, "text": "{secret}"}}"#)));
    let sql = "SELECT workflow_data::text FROM workflow_definitions ORDER BY version";
    let plans: Vec<String> = sqlx::query_scalar(sql).fetch_all(&pool).await.expect("plans");
    assert_eq!(found[2]["after"]["workflow_data"], digest(&plans[0]));
    assert_eq!(found[3]["before"]["workflow_data"], digest(&plans[0]));
    assert_eq!(found[3]["after"]["workflow_data"], digest(&plans[1]));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn nothing_hides_in_the_names_of_an_entry(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let name = "wor\u{200b}ker\u{202e}";
    let agent = json!({"name": name, "url": "http://127.0.0.1:9/", "description": "a\u{2066}b"});
    admin.post("/api/v1/agents", &agent).await.expect(201);
    for path in [TRAIL.to_owned(), format!("{TRAIL}/export"), format!("{TRAIL}/export?format=csv")] {
        let answer = admin.get(&path).await;
        let hidden = |c: char| workflow_api::visible::is_hidden(c) && !matches!(c, '\n' | '\r');
        assert!(!answer.text.contains(hidden), "{}", answer.text);
        assert!(
            answer.text.contains("wor\\\\u{200b}ker") || answer.text.contains("wor\\u{200b}ker"),
            "{}",
            answer.text
        );
    }
    let found = entries(&admin, "").await;
    assert_eq!((&found[0]["after"]["name"], &found[0]["after"]["description"]), (&json!(name), &json!("a\u{2066}b")));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_trail_is_read_by_admins_of_the_organisation_with_filters_and_cursors(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    for number in 0..5 {
        admin
            .post("/api/v1/agents", &json!({"name": format!("a{number}"), "url": "http://127.0.0.1:9/"}))
            .await
            .expect(201);
    }
    admin.post("/api/v1/organizations", &json!({"id": "acme", "name": "Acme"})).await.expect(201);
    let (other, _) = admin.key(&json!({"name": "other", "role": "admin", "organization_id": "acme"})).await;
    let seen = admin.service.send("GET", TRAIL, &[("x-api-key", &other)], "").await.expect(200);
    assert_eq!(seen["total"], 0);
    for role in ["viewer", "operator", "editor", "executor"] {
        let (key, _) = admin.key(&json!({"name": role, "role": role})).await;
        for path in [TRAIL.to_owned(), format!("{TRAIL}/export"), format!("{TRAIL}/verify")] {
            admin.service.send("GET", &path, &[("x-api-key", &key)], "").await.error(403);
        }
    }
    assert_eq!(entries(&admin, "entity_type=agent,organization").await.len(), 6);
    assert_eq!(entries(&admin, "action=create&entity_type=api_key&user_id=admin").await.len(), 5);
    assert_eq!(entries(&admin, "user_id=nobody").await.len(), 0);
    assert_eq!(entries(&admin, "created_after=2999-01-01T00:00:00Z").await.len(), 0);
    assert_eq!(admin.get(&format!("{TRAIL}?created_after=soon")).await.field_errors().len(), 1);

    let mut path = format!("{TRAIL}?page_size=2&entity_type=agent");
    let mut names = Vec::new();
    loop {
        let page = admin.get(&path).await.expect(200);
        assert_eq!(page["total"], 5);
        names.extend(page["items"].as_array().expect("items").iter().map(|entry| entry["entity_name"].clone()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("{TRAIL}?page_size=2&entity_type=agent&cursor={cursor}");
    }
    assert_eq!(names, ["a4", "a3", "a2", "a1", "a0"], "the latest first");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_export_has_all_entries_and_no_formulas(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let sql = "INSERT INTO audit_logs (entity_type, entity_id, entity_name, action, user_id, changes, created_at)
        SELECT 'agent', gen_random_uuid(), format('agent, \"%s\"', n), 'create', '=cmd|''/c calc''!A1',
            jsonb_build_object('n', n), now() AT TIME ZONE 'UTC' - make_interval(secs => 2000 - n)
        FROM generate_series(1, 1234) AS n";
    sqlx::query(sql).execute(&pool).await.expect("entries");
    let answer = admin.get(&format!("{TRAIL}/export?entity_type=agent")).await;
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    let lines: Vec<Value> = answer.text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let numbers: Vec<_> = lines.iter().map(|line| line["after"]["n"].as_i64().expect("a number")).collect();
    assert_eq!(numbers, (1..=1234).collect::<Vec<_>>());

    let answer = admin.get(&format!("{TRAIL}/export?format=csv&entity_type=agent")).await;
    assert!(answer.header("content-disposition").expect("a name").contains("audit-logs.csv"));
    let mut reader = csv::Reader::from_reader(answer.text.as_bytes());
    assert_eq!(reader.headers().expect("a head").len(), 14);
    let records: Vec<csv::StringRecord> = reader.records().map(|record| record.expect("a record")).collect();
    assert_eq!(records.len(), 1234);
    assert_eq!(&records[41][8], "agent, \"42\"");
    assert_eq!(&records[41][11], "{\"n\": 42}");
    assert!(records.iter().all(|record| record[1].starts_with("'=cmd")), "no cell begins like a formula");
    assert_eq!(admin.get(&format!("{TRAIL}/export?format=xml")).await.field_errors(), ["query.format value_error"]);
    let none = admin.get(&format!("{TRAIL}/export?format=csv&entity_type=nothing")).await;
    assert_eq!(none.text.lines().count(), 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn nobody_changes_an_entry_not_even_the_owner_of_the_table(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    admin.key(&json!({"name": "k", "role": "viewer"})).await;
    verified(&admin).await;
    let this_month: String = sqlx::query_scalar("SELECT tableoid::regclass::text FROM audit_logs LIMIT 1")
        .fetch_one(&pool)
        .await
        .expect("it");
    for sql in [
        "UPDATE audit_logs SET user_id = 'somebody else'".to_owned(),
        "DELETE FROM audit_logs".to_owned(),
        "TRUNCATE audit_logs".to_owned(),
        format!("UPDATE {this_month} SET user_id = 'somebody else'"),
        format!("DELETE FROM {this_month}"),
        format!("TRUNCATE {this_month}"),
        "UPDATE audit_seals SET hash = ''".to_owned(),
        "DELETE FROM audit_seals".to_owned(),
        "TRUNCATE audit_seals".to_owned(),
        "INSERT INTO audit_logs SELECT * FROM audit_logs ON CONFLICT (id, created_at) DO UPDATE SET user_id = 'x'"
            .to_owned(),
    ] {
        let error = sqlx::query(sqlx::AssertSqlSafe(sql.as_str())).execute(&pool).await.expect_err(&sql);
        assert_eq!(
            error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref(),
            Some("42501"),
            "{sql}: {error}"
        );
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_changed_past_the_service_is_found(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    for name in ["one", "two", "three"] {
        admin.key(&json!({"name": name, "role": "viewer"})).await;
    }
    let before = verified(&admin).await;
    assert_eq!((&before["valid"], &before["entries"], &before["complete"]), (&json!(true), &json!(3), &json!(true)));
    let (head, number) = (before["head"].as_str().expect("a hash").to_owned(), before["checked_to_seal"].clone());
    let known = format!("{TRAIL}/verify?seal={number}&hash={head}");
    assert_eq!(admin.get(&known).await.expect(200)["valid"], true);
    let ids: Vec<Uuid> =
        sqlx::query_scalar("SELECT id FROM audit_logs ORDER BY created_at, id").fetch_all(&pool).await.expect("ids");

    past_the_triggers(&pool, &format!("UPDATE audit_logs SET user_id = 'somebody' WHERE id = '{}'", ids[0])).await;
    let found = verified(&admin).await;
    assert_eq!(problems(&found), [("entry_changed".to_owned(), json!(ids[0]))]);
    past_the_triggers(&pool, &format!("UPDATE audit_logs SET user_id = 'admin' WHERE id = '{}'", ids[0])).await;
    assert_eq!(verified(&admin).await["valid"], true);

    past_the_triggers(&pool, &format!("UPDATE audit_logs SET organization_id = 'acme' WHERE id = '{}'", ids[0])).await;
    assert_eq!(verified(&admin).await["valid"], false);
    past_the_triggers(&pool, &format!("UPDATE audit_logs SET organization_id = 'default' WHERE id = '{}'", ids[0]))
        .await;

    let added = "INSERT INTO audit_logs (entity_type, entity_id, action) VALUES ('run', gen_random_uuid(), 'execute')";
    past_the_triggers(&pool, added).await;
    let found = verified(&admin).await;
    assert_eq!(problems(&found).iter().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>(), ["entry_added"]);
    past_the_triggers(&pool, "DELETE FROM audit_logs WHERE entity_type = 'run'").await;

    past_the_triggers(&pool, &format!("DELETE FROM audit_logs WHERE id = '{}'", ids[1])).await;
    assert_eq!(problems(&verified(&admin).await), [("entry_missing".to_owned(), json!(ids[1]))]);

    // Whoever removes the seals with their entries, or makes the chain anew, is found by the hash that was kept.
    past_the_triggers(&pool, "UPDATE audit_seals SET previous = decode(repeat('11', 32), 'hex')").await;
    assert!(problems(&verified(&admin).await).iter().any(|(kind, _)| kind == "seal_changed"));
    past_the_triggers(&pool, "DELETE FROM audit_seals").await;
    past_the_triggers(&pool, "DELETE FROM audit_logs").await;
    assert_eq!(verified(&admin).await["valid"], true);
    let found = admin.get(&known).await.expect(200);
    assert_eq!(problems(&found), [("seal_missing".to_owned(), json!(null))]);
    admin.get(&format!("{TRAIL}/verify?seal=1")).await.error(422);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn old_entries_go_by_whole_months_and_the_rest_still_verifies(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let sql = "INSERT INTO audit_logs (entity_type, entity_id, action, created_at)
        SELECT 'agent', gen_random_uuid(), 'create', now() AT TIME ZONE 'UTC' - interval '5 weeks' * n
        FROM generate_series(1, 3) AS n";
    sqlx::query(sql).execute(&pool).await.expect("old entries");
    admin.key(&json!({"name": "young", "role": "viewer"})).await;
    assert_eq!(verified(&admin).await["entries"], 4);
    keep_partitions(&pool, 36_500).await.expect("done");
    assert_eq!(entries(&admin, "").await.len(), 4);
    keep_partitions(&pool, 0).await.expect("done");
    assert_eq!(entries(&admin, "").await.len(), 1);
    let found = verified(&admin).await;
    assert_eq!((&found["valid"], &found["entries"]), (&json!(true), &json!(1)), "{found}");
    // There is always room for what comes.
    let ahead: bool = sqlx::query_scalar(
        "SELECT count(*) FILTER (WHERE inhparent = 'audit_logs'::regclass) >= 4
            AND count(*) FILTER (WHERE inhparent = 'audit_seals'::regclass) >= 4 FROM pg_inherits",
    )
    .fetch_one(&pool)
    .await
    .expect("an answer");
    assert!(ahead);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn without_audit_logging_nothing_is_written(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("ENABLE_AUDIT_LOGGING", "false")]));
    service.agent("a", "http://127.0.0.1:9/").await;
    assert_eq!(service.get(TRAIL).await.expect(200)["total"], 0);
    assert_eq!(service.get(&format!("{TRAIL}/verify")).await.expect(200)["head"], json!(null));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_role_that_may_only_read_and_add_keeps_the_trail(pool: PgPool) {
    // Roles are the server's, not the database's.
    let role: String =
        sqlx::query_scalar("SELECT 'auditing_' || md5(current_database())").fetch_one(&pool).await.expect("a name");
    let grants = [
        format!("CREATE ROLE {role}"),
        format!("GRANT SELECT, INSERT ON audit_logs, audit_seals TO {role}"),
        format!("GRANT SELECT, DELETE ON audit_unsealed_batches TO {role}"),
    ];
    for sql in &grants {
        sqlx::query(sqlx::AssertSqlSafe(sql.as_str())).execute(&pool).await.expect(sql);
    }
    let options = pool.connect_options().as_ref().clone().options([("role", role.as_str())]);
    let mut settings = config(&pool, &[]).database;
    settings.connect = ConnectOptions::from(options);
    let restricted = db::pool(&settings);
    let sql = "INSERT INTO audit_logs (entity_type, entity_id, action) VALUES ('run', gen_random_uuid(), 'execute')";
    sqlx::query(sql).execute(&restricted).await.expect("it may add");
    seal(&restricted, "0").await.expect("it may seal");
    keep_partitions(&restricted, 90).await.expect("it may keep partitions");
    let sql = "SELECT count(*) FROM audit_logs, audit_seals";
    let sealed: i64 = sqlx::query_scalar(sql).fetch_one(&restricted).await.expect("it may read");
    assert_eq!(sealed, 1);
    for sql in ["DELETE FROM audit_logs", "DROP TABLE audit_logs", "ALTER TABLE audit_logs DISABLE TRIGGER ALL"] {
        let error = sqlx::query(sql).execute(&restricted).await.expect_err(sql);
        assert_eq!(
            error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref(),
            Some("42501"),
            "{sql}: {error}"
        );
    }
    restricted.close().await;
    for sql in [format!("DROP OWNED BY {role}"), format!("DROP ROLE {role}")] {
        sqlx::query(sqlx::AssertSqlSafe(sql.as_str())).execute(&pool).await.expect("done");
    }
}
