//! Bounds on what callers can make the service hold: bodies, answers, streams, checks of agents.

use std::convert::Infallible;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt as _, future::join_all, poll, stream};
use http_body_util::BodyExt as _;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{
    db::migrations::MIGRATOR,
    run_poller::{MAX_WATCHERS_OF_CALLER, MAX_WATCHERS_OF_ORGANIZATION},
};

use crate::{
    access::Admin,
    service::{Answer, Service, config, in_turn},
};

const AGENTS: &str = "/api/v1/agents";
const MIB: usize = 1 << 20;
const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// Refused as more than the share of the holder.
#[track_caller]
fn refused(answer: Answer, code: &str) {
    assert_eq!(answer.header("retry-after"), Some("2"));
    assert_eq!(answer.error(429)["code"], code);
}

/// A body of so many bytes that never ends.
fn stalled(bytes: usize) -> Body {
    let chunks = (0..bytes / 1024).map(|_| Ok::<_, Infallible>(Bytes::from(vec![b' '; 1024])));
    Body::from_stream(stream::iter(chunks).chain(stream::pending()))
}

/// A body that must not be read.
fn unread() -> Body {
    Body::from_stream(stream::poll_fn(|_| -> std::task::Poll<Option<Result<Bytes, Infallible>>> {
        panic!("the body is read");
    }))
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn bodies_of_one_address_leave_room_for_those_of_others(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("MAX_REQUEST_MEMORY_MB", "16")]));
    let open = |address: &'static str, body: Body| service.open_from(address, "POST", AGENTS, &JSON, body);
    let agent = |name: &str| {
        let text = json!({"name": name, "url": "http://a", "description": "x".repeat(MIB - 200)}).to_string();
        Body::from(text)
    };
    // Half of all is the share of an address.
    let mut held: Vec<_> = (0..8).map(|_| Box::pin(open("192.0.2.1", stalled(MIB)))).collect();
    for request in &mut held {
        assert!(poll!(request).is_pending());
    }
    let parts = open("192.0.2.1", agent("one")).await.into_parts();
    let text = String::from_utf8(parts.1.collect().await.expect("a body").to_bytes().to_vec()).expect("text");
    refused(Answer { status: parts.0.status, headers: parts.0.headers, text }, "too_many_request_bytes");
    assert_eq!(open("192.0.2.2", agent("two")).await.status(), 201);
    // What is dropped is free again.
    held.pop();
    assert_eq!(open("192.0.2.1", agent("one")).await.status(), 201);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_body_that_finds_no_room_waits_for_others_to_end(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("MAX_REQUEST_MEMORY_MB", "16")]));
    let open = |body: Body| Box::pin(service.open("POST", AGENTS, &JSON, body));
    let mut held: Vec<_> = (0..8).map(|_| open(stalled(MIB))).collect();
    for request in &mut held {
        assert!(poll!(request).is_pending());
    }
    let mut waits = open(Body::from(json!({"name": "a", "url": "http://a"}).to_string()));
    assert!(poll!(&mut waits).is_pending());
    drop(held);
    assert_eq!(waits.await.status(), 201);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_route_without_a_body_takes_none_but_an_empty_one(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow = service.one_step_workflow().await;
    let run = service.execute(&workflow).await;
    let run = format!("/api/v1/runs/{run}");
    for (method, path) in [
        ("GET", "/health"),
        ("GET", "/health/ready"),
        ("GET", "/metrics"),
        ("GET", AGENTS),
        ("GET", &run),
        ("DELETE", "/api/v1/agents/0a0a0a0a-0a0a-4a0a-8a0a-0a0a0a0a0a0a"),
        ("POST", &format!("{run}/pause")),
        ("POST", &format!("{run}/resume")),
    ] {
        for body in ["{\"a\": 1}".to_owned(), "[]".to_owned(), "x".repeat(MIB)] {
            let answer = service.send(method, path, &JSON, body).await;
            assert_eq!(answer.error(400)["code"], "unexpected_body", "{method} {path}");
        }
        let large = MIB.to_string();
        let headers = [("content-length", large.as_str()), ("expect", "100-continue")];
        let answer = service.send(method, path, &headers, unread()).await;
        assert_eq!(answer.error(400)["code"], "unexpected_body", "{method} {path}");
        for body in ["", "{}", " {\n}\n", "null"] {
            let answer = service.send(method, path, &JSON, body).await;
            assert_ne!(answer.status, 400, "{method} {path} {body}: {}", answer.text);
        }
    }
    // What there is not is told as such.
    service.send("POST", "/api/v1/nothing", &JSON, "[]").await.error(404);
    service.send("PATCH", AGENTS, &JSON, "[]").await.error(405);
    // The contract's clients send nothing, an empty object, or null.
    for body in ["", "{}", "null"] {
        service
            .send("POST", &format!("{run}/cancel"), &[("content-length", &body.len().to_string())], body)
            .await
            .expect(200);
        service.send("POST", &format!("{run}/retry"), &JSON, body).await.expect(202);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_body_is_read_of_nobody_who_is_not_let_in(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let headers = [("content-length", "1000000"), ("expect", "100-continue")];
    let send = |path: &'static str| admin.service.send("POST", path, &headers, unread());
    assert_eq!(send("/api/v1/callbacks/x").await.error(404)["code"], "callback_not_found");
    assert_eq!(send(AGENTS).await.error(401)["code"], "unauthorized");
    assert_eq!(send("/api/v1/import").await.error(401)["code"], "unauthorized");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_body_with_a_coding_is_415(pool: PgPool) {
    let service = Service::start(&pool);
    let agent = json!({"name": "a", "url": "http://a"}).to_string();
    for coding in ["br", "gzip", "identity, gzip", "x-unknown", "aws-chunked"] {
        let answer = service.send("POST", AGENTS, &[("content-encoding", coding)], agent.clone()).await;
        assert_eq!(answer.header("accept-encoding"), Some("identity"));
        assert_eq!(answer.error(415)["code"], "unsupported_content_encoding", "{coding}");
    }
    service.send("POST", AGENTS, &[("content-encoding", "Identity")], agent).await.expect(201);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn who_reads_slowly_holds_no_more_than_a_share(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("MAX_RESPONSE_MEMORY_MB", "16")]));
    sqlx::query(
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, input_data)
         VALUES ('large', 'w', 'w', 'PENDING', jsonb_build_object('text', repeat('x', 1000000)))",
    )
    .execute(&pool)
    .await
    .expect("a run");
    let path = "/api/v1/runs/large";
    let open = |address: &'static str| service.open_from(address, "GET", path, &[], Body::empty());
    let held = join_all((0..9).map(|_| open("192.0.2.1"))).await;
    assert!(held.iter().all(|response| response.status() == 200));
    refused(service.send_from("192.0.2.1", "GET", AGENTS, &[]).await, "too_many_response_bytes");
    service.send_from("192.0.2.2", "GET", path, &[]).await.expect(200);
    // A change is answered whatever waits: it has happened.
    let cancelled = service.open_from("192.0.2.1", "POST", &format!("{path}/cancel"), &[], Body::empty()).await;
    assert_eq!(cancelled.status(), 200);
    drop((held, cancelled));
    service.send_from("192.0.2.1", "GET", path, &[]).await.expect(200);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn streams_of_a_caller_and_an_organization_leave_room_for_others(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    for organization in ["default", "other"] {
        let sql = "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, organization_id)
                   VALUES ($1, 'w', 'w', 'PENDING', $1)";
        sqlx::query(sql).bind(organization).execute(&pool).await.expect("a run");
    }
    admin.post("/api/v1/organizations", &json!({"id": "other", "name": "Other"})).await.expect(201);
    let viewer = |name: &'static str, organization: &'static str| {
        let body = json!({"name": name, "role": "viewer", "organization_id": organization});
        let admin = &admin;
        async move { (admin.key(&body).await.0, organization) }
    };
    let service = &admin.service;
    let open = |(key, run): (String, &'static str)| async move {
        service.open("GET", &format!("/api/v1/runs/{run}/events"), &[("x-api-key", &key)], Body::empty()).await
    };
    let (one, two, three) =
        (viewer("one", "default").await, viewer("two", "default").await, viewer("three", "default").await);
    let other = viewer("other", "other").await;
    let mut held = Vec::new();
    for viewer in [&one, &two] {
        held.extend(in_turn((0..MAX_WATCHERS_OF_CALLER).map(|_| open(viewer.clone()))).await);
        let refusal = open(viewer.clone()).await;
        assert_eq!(refusal.status(), 429);
    }
    assert!(held.iter().all(|response| response.status() == 200));
    assert_eq!(held.len() as u64, MAX_WATCHERS_OF_ORGANIZATION);
    let path = "/api/v1/runs/default/events";
    refused(service.send("GET", path, &[("x-api-key", &three.0)], "").await, "too_many_streams");
    assert_eq!(open(other).await.status(), 200);
    held.truncate(1);
    assert_eq!(open(three).await.status(), 200);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_agent_is_checked_by_few_at_a_time(pool: PgPool) {
    let service = Service::start(&pool);
    // It takes connections and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", silent.local_addr().expect("an address"));
    let health = |agent: Value| format!("{AGENTS}/{}/health", agent["id"].as_str().expect("an id"));
    let slow = health(service.agent("slow", &url).await);
    let mut checks: Vec<_> = (0..4).map(|_| Box::pin(service.get(&slow))).collect();
    for check in &mut checks {
        assert!(poll!(check).is_pending());
    }
    let mut connections = Vec::new();
    while connections.len() < 4 {
        connections.push(silent.accept().await.expect("a check"));
    }
    refused(service.get(&slow).await, "too_many_checks");
    let other = health(service.agent("other", "http://127.0.0.1:9/").await);
    assert_eq!(service.get(&other).await.expect(200)["status"], "unhealthy");
    drop((connections, silent));
    for check in checks {
        assert_eq!(check.await.expect(200)["status"], "unhealthy");
    }
    service.get(&slow).await.expect(200);
}

/// Random letters, which cannot be stored in less.
fn noise(random: &mut StdRng, length: usize) -> String {
    (0..length).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn steps_of_any_size_are_one_array_and_come_piece_by_piece(pool: PgPool) {
    let service = Service::start(&pool);
    let sql =
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status) VALUES ('r', 'w', 'w', 'RUNNING')";
    sqlx::query(sql).execute(&pool).await.expect("a run");
    let mut random = StdRng::seed_from_u64(1);
    let lengths = [10, 300_000, 20, 30, 200_000, 150_000, 5].into_iter().chain([7; 600]).chain([100_000]);
    let mut expected = Vec::new();
    for (index, length) in lengths.enumerate() {
        let text = noise(&mut random, length);
        let sql = "INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data,
                       output_data, started_at)
                   VALUES ($1, 'r', 's', 's', 'a', 'COMPLETED', '{}', jsonb_build_object('text', $2::text),
                       timestamp '2026-01-01' + make_interval(secs => $3 / 2))";
        let index_secs = i32::try_from(index).expect("few");
        sqlx::query(sql).bind(format!("{index:04}")).bind(&text).bind(index_secs).execute(&pool).await.expect("a step");
        expected.push((format!("{index:04}"), text));
    }
    let found = |steps: &Value| -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let steps = steps.as_array().expect("a bare array").iter();
        steps.map(|step| (text(&step["id"]), text(&step["output_data"]["text"]))).collect()
    };
    let path = "/api/v1/runs/r/steps";
    assert_eq!(found(&service.get(path).await.expect(200)), expected);
    // In pages, by `Link`.
    let mut all = Vec::new();
    let mut next = Some("?page_size=90".to_owned());
    while let Some(query) = next {
        let answer = service.get(&format!("{path}{query}")).await;
        next = answer.header("link").map(|link| {
            link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).expect("a link").to_owned()
        });
        let page = found(&answer.expect(200));
        assert!(page.len() == 90 || next.is_none());
        all.extend(page);
    }
    assert_eq!(all, expected);
    assert_eq!(found(&service.get(&format!("{path}?page=2&page_size=3")).await.expect(200)), expected[3..6]);
    // Without the data, and the data of some.
    let bare = service.get(&format!("{path}?data=false&page_size=90")).await;
    let link = bare.header("link").expect("a next page").to_owned();
    let (begin, end) = (bare.expect(200), link.trim_start_matches('<').trim_end_matches(">; rel=\"next\"").to_owned());
    let rest = service.get(&format!("{path}{end}")).await.expect(200);
    let bare: Vec<&Value> = [&begin, &rest].into_iter().filter_map(Value::as_array).flatten().collect();
    assert!(begin.to_string().len() < 90 * 500, "the data are there");
    assert_eq!(bare.iter().filter_map(|step| step["id"].as_str()).collect::<Vec<_>>(), {
        expected.iter().take(bare.len()).map(|(id, _)| id.as_str()).collect::<Vec<_>>()
    });
    for step in bare {
        assert_eq!(json!([step["input_data"], step["output_data"], step["data_omitted"]]), json!([{}, null, true]));
    }
    let one = service.get(&format!("{path}?id={},{}", expected[7].0, expected[2].0)).await.expect(200);
    assert_eq!(found(&one), [expected[2].clone(), expected[7].clone()]);
    assert_eq!(one[0]["data_omitted"], Value::Null);
    assert_eq!(service.get(&format!("{path}?id=none")).await.expect(200), json!([]));
    assert_eq!(service.get(&format!("{path}?data=no")).await.field_errors(), ["query.data bool_parsing"]);
    assert_eq!(service.get(&format!("{path}?cursor=x")).await.error(400)["code"], "invalid_cursor");
    // A piece is not more than one large output: nothing else is held for a client that reads nothing.
    let mut body = service.open("GET", path, &[], Body::empty()).await.into_body();
    let mut largest = 0;
    while let Some(frame) = body.frame().await {
        largest = largest.max(frame.expect("a frame").into_data().expect("data").len());
    }
    assert!((300_000..310_000).contains(&largest), "{largest}");
}

/// A text of 320 kB that cannot be stored in much less, in SQL.
const LARGE: &str = "(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 10000))";

/// Entries of the audit trail and definitions, two of three with such a text.
pub async fn insert_large_entries(pool: &PgPool) {
    for sql in [
        format!(
            "INSERT INTO workflow_definitions (id, name, description, version, workflow_data, status, created_at, updated_at)
             SELECT gen_random_uuid(), 'w' || n, CASE WHEN n % 3 > 0 THEN {LARGE} END, 1, '{{}}', 'active',
                 timestamp '2026-01-01' + n * interval '1 s', now()
             FROM generate_series(1, 10) n"
        ),
        format!(
            "INSERT INTO audit_logs (id, entity_type, entity_id, entity_name, action, changes, created_at, updated_at)
             SELECT gen_random_uuid(), 'agent', gen_random_uuid(), 'a' || n, 'create',
                 jsonb_build_object('text', CASE WHEN n % 3 > 0 THEN {LARGE} END), now() + n * interval '1 s', now()
             FROM generate_series(1, 10) n"
        ),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(pool).await.expect("entries");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn lists_and_exports_with_large_entries_come_piece_by_piece(pool: PgPool) {
    let service = Service::start(&pool);
    insert_large_entries(&pool).await;
    for (list, name) in [("/api/v1/workflows", "name"), ("/api/v1/audit-logs", "entity_name")] {
        let read = async |query: String| service.get(&format!("{list}?{query}")).await.expect(200);
        let names = |page: &Value| -> Vec<String> {
            let items = page["items"].as_array().expect("items").iter();
            items.map(|item| item[name].as_str().expect("a name").to_owned()).collect()
        };
        let whole = read("page_size=100".to_owned()).await;
        let prefix = if name == "name" { "w" } else { "a" };
        let expected: Vec<_> = (1..=10).rev().map(|n| format!("{prefix}{n}")).collect();
        assert_eq!(names(&whole), expected);
        assert_eq!((&whole["total"], &whole["total_pages"]), (&json!(10), &json!(1)));
        // There and back by cursors.
        let mut pages = vec![read("page_size=3".to_owned()).await];
        while let Some(cursor) = pages.last().and_then(|page| page["next_cursor"].as_str()) {
            pages.push(read(format!("page_size=3&cursor={cursor}")).await);
        }
        assert_eq!(pages.iter().flat_map(names).collect::<Vec<_>>(), expected);
        while let Some(cursor) = pages.last().and_then(|page| page["prev_cursor"].as_str()) {
            let before = read(format!("page_size=3&cursor={cursor}")).await;
            pages.pop();
            assert_eq!(before["items"], pages.last().expect("a page")["items"]);
        }
        assert_eq!(pages.len(), 1);
    }
    for path in
        ["/api/v1/workflows", "/api/v1/audit-logs", "/api/v1/audit-logs/export", "/api/v1/audit-logs/export?format=csv"]
    {
        let mut body = service.open("GET", path, &[], Body::empty()).await.into_body();
        let mut pieces = Vec::new();
        while let Some(frame) = body.frame().await {
            pieces.push(frame.expect("a frame").into_data().expect("data").len());
        }
        assert!(pieces.iter().all(|length| *length < 330_000), "{path}: {pieces:?}");
        assert!(pieces.iter().sum::<usize>() > 6 * 320_000, "{path}: {pieces:?}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_list_leaves_out_large_inputs_and_says_so(pool: PgPool) {
    let service = Service::start(&pool);
    let mut random = StdRng::seed_from_u64(1);
    for (run, text) in
        [("large", noise(&mut random, 70_000)), ("dense", "x".repeat(900_000)), ("small", noise(&mut random, 60_000))]
    {
        let sql = "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, input_data)
                   VALUES ($1, 'w', 'w', 'PENDING', jsonb_build_object('text', $2::text))";
        sqlx::query(sql).bind(run).bind(&text).execute(&pool).await.expect("a run");
        let whole = service.get(&format!("/api/v1/runs/{run}")).await.expect(200);
        assert_eq!(whole["input_data"], json!({"text": text}));
        assert!(whole.get("input_data_omitted").is_none());
        let list = service.get("/api/v1/runs").await.expect(200);
        let entry =
            list["items"].as_array().expect("items").iter().find(|item| item["run_id"] == run).expect("it").clone();
        if run == "small" {
            assert_eq!(entry["input_data"], json!({"text": text}));
            assert!(entry.get("input_data_omitted").is_none());
        } else {
            assert_eq!((&entry["input_data"], &entry["input_data_omitted"]), (&Value::Null, &json!(true)));
        }
    }
    assert!(service.get("/api/v1/runs").await.text.len() < 100_000);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_array_of_steps_is_bounded_and_a_link_leads_to_further_attempts(pool: PgPool) {
    let service = Service::start(&pool);
    for sql in [
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status) VALUES ('r', 'w', 'w', 'RUNNING')",
        "SET workflow_api.records = 'itself';
         INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, started_at)
         SELECT 'a' || i, 'r', 's', 's', 'a', 'COMPLETED', '{}', timestamp '2026-01-01' + i * interval '1 s'
         FROM generate_series(1, 100002) AS i",
        "ANALYZE step_executions",
    ] {
        sqlx::raw_sql(sql).execute(&pool).await.expect(sql);
    }
    let path = "/api/v1/runs/r/steps";
    let answer = service.get(path).await;
    let link = answer.header("link").expect("more attempts").to_owned();
    assert_eq!(answer.expect(200).as_array().map(Vec::len), Some(100_000));
    let query = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).expect("a link");
    let rest = service.get(&format!("{path}{query}")).await;
    assert_eq!(rest.header("link"), None);
    let rest = rest.expect(200);
    assert_eq!([&rest[0]["id"], &rest[1]["id"], &rest[2]], [&json!("a100001"), &json!("a100002"), &Value::Null]);
}
