//! The log of a run, in pages and as a stream, whoever writes the rows.

use std::time::Duration;

use axum::body::Body;
use futures_util::future::join_all;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use workflow_api::{
    db, db::migrations::MIGRATOR, lifecycle::Lifecycle, run_poller::MAX_WATCHERS_OF_ORGANIZATION, server,
};

use crate::service::{Service, eventually, in_turn, seed};

const RUN: &str = "/api/v1/runs/ext-1";

/// Writes as the reference executor does: one statement, one commit, by its own columns.
async fn write(pool: &PgPool, sql: &str) {
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(pool).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn insert_run(pool: &PgPool) {
    write(
        pool,
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, triggered_by, created_at, updated_at)
         VALUES ('ext-1', 'w', 'w', 'PENDING', 'system', '2026-02-03 09:00', '2026-02-03 09:00')",
    )
    .await;
}

async fn set_run(pool: &PgPool, status: &str, error: Option<&str>) {
    let sql = "UPDATE workflow_runs SET status = $1, error_message = $2, updated_at = now() WHERE run_id = 'ext-1'";
    sqlx::query(sql).bind(status).bind(error).execute(pool).await.expect("the run");
}

async fn begin_step(pool: &PgPool, id: &str, step: &str) {
    let sql = "INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, started_at)
               VALUES ($1, 'ext-1', $2, 'worker', 'worker', 'RUNNING', '{\"secret\": 1}', '2026-02-03 09:01')";
    sqlx::query(sql).bind(id).bind(step).execute(pool).await.expect("a step");
}

async fn end_step(pool: &PgPool, id: &str, status: &str, error: Option<&str>) {
    let sql = "UPDATE step_executions SET status = $2, completed_at = '2026-02-03 09:01:01.5', error_message = $3,
                   output_data = '{\"secret\": 2}' WHERE id = $1";
    sqlx::query(sql).bind(id).bind(status).bind(error).execute(pool).await.expect("a step");
}

/// A run of two steps, the second of which fails, as the reference executor writes it.
async fn failed_run(pool: &PgPool) {
    insert_run(pool).await;
    set_run(pool, "RUNNING", None).await;
    begin_step(pool, "ext-1-a-1", "a").await;
    end_step(pool, "ext-1-a-1", "COMPLETED", None).await;
    begin_step(pool, "ext-1-b-1", "b").await;
    end_step(pool, "ext-1-b-1", "FAILED", Some("no\nluck")).await;
    set_run(pool, "FAILED", Some("Step 'b' failed")).await;
}

const FAILED_RUN: [&str; 7] = [
    "run.created",
    "run.started",
    "attempt.started",
    "attempt.completed",
    "attempt.started",
    "attempt.failed",
    "run.failed",
];

fn kinds(page: &Value) -> Vec<&str> {
    page["items"].as_array().expect("items").iter().map(|item| item["kind"].as_str().expect("a kind")).collect()
}

/// An event as a browser reads it.
#[derive(Clone, Debug, PartialEq)]
struct Received {
    id: String,
    name: String,
    data: Value,
}

impl Received {
    fn kind(&self) -> &str {
        self.data["kind"].as_str().unwrap_or(&self.name)
    }
}

/// A stream that is being read.
struct Events {
    status: StatusCode,
    headers: HeaderMap,
    body: Body,
    text: String,
}

impl Events {
    async fn open(service: &Service, last: &str) -> Self {
        let headers = [("origin", "http://localhost:3000"), ("last-event-id", last)];
        let given = if last.is_empty() { &headers[..1] } else { &headers };
        let response = service.open("GET", &format!("{RUN}/events"), given, Body::empty()).await;
        let (parts, body) = response.into_parts();
        Self { status: parts.status, headers: parts.headers, body, text: String::new() }
    }

    /// The next block of lines; `None` at the end of the stream.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let block = block.to_owned();
                self.text = rest.to_owned();
                return Some(block);
            }
            let frame = tokio::time::timeout(Duration::from_mins(1), self.body.frame()).await.expect("something comes");
            let data = frame?.expect("a body that is not cut off").into_data().expect("no trailers");
            self.text += std::str::from_utf8(&data).expect("text");
        }
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Received> {
        loop {
            let block = self.block().await?;
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            let Some(data) = field("data: ") else { continue };
            let data = serde_json::from_str(&data).expect("JSON");
            return Some(Received { id: field("id: ")?, name: field("event: ").unwrap_or_default(), data });
        }
    }

    async fn expect(&mut self, kind: &str) -> Received {
        let event = self.next().await.unwrap_or_else(|| panic!("the stream ended before {kind}"));
        assert_eq!(event.kind(), kind, "{event:?}");
        event
    }

    async fn rest(&mut self) -> Vec<Received> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            all.push(event);
        }
        all
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_log_of_a_run_is_filled_by_whoever_writes_its_rows(pool: PgPool) {
    let service = Service::start(&pool);
    failed_run(&pool).await;
    let page = service.get(&format!("{RUN}/logs")).await.expect(200);
    assert_eq!(kinds(&page), FAILED_RUN);
    assert_eq!((&page["total"], &page["next_cursor"]), (&json!(7), &Value::Null));
    let items = page["items"].as_array().expect("items");
    assert!(
        items.iter().enumerate().all(|(position, item)| item["seq"] == position && item["run_id"] == "ext-1"),
        "{page}"
    );
    assert_eq!(
        items[0],
        json!({"run_id": "ext-1", "seq": 0, "timestamp": "2026-02-03T09:00:00Z", "kind": "run.created", "level": "info",
            "message": "Run created by system", "step_id": null, "attempt_id": null, "agent_name": null,
            "http_status": null, "duration_ms": null, "detail": "system"})
    );
    let mut failed = items[5].clone();
    assert!(failed["timestamp"].take().is_string());
    assert_eq!(
        failed,
        json!({"run_id": "ext-1", "seq": 5, "timestamp": null, "kind": "attempt.failed", "level": "warning",
            "message": "Step 'b': attempt failed in 1500.0 ms: no\nluck", "step_id": "b", "attempt_id": "ext-1-b-1",
            "agent_name": "worker", "http_status": null, "duration_ms": 1500.0, "detail": "no\nluck"})
    );
    assert!(!page.to_string().contains("secret"), "{page}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_log_is_filtered_sorted_and_paged(pool: PgPool) {
    let service = Service::start(&pool);
    failed_run(&pool).await;
    for (query, expected) in [
        ("level=info", &FAILED_RUN[..]),
        ("level=WARNING", &["attempt.failed", "run.failed"]),
        ("level=error", &["run.failed"]),
        ("step_id=a", &["attempt.started", "attempt.completed"]),
        ("step_id=a,b&level=warning", &["attempt.failed"]),
        ("step_id=c", &[]),
        ("page_size=2&page=2", &["attempt.started", "attempt.completed"]),
        ("sort_order=desc&page_size=2", &["run.failed", "attempt.failed"]),
    ] {
        let page = service.get(&format!("{RUN}/logs?{query}")).await.expect(200);
        assert_eq!(kinds(&page), expected, "{query}");
    }
    let path = format!("{RUN}/logs?page_size=3");
    let first = service.get(&path).await.expect(200);
    // What is written meanwhile comes behind all that was seen.
    set_run(&pool, "PENDING", None).await;
    let cursor = first["next_cursor"].as_str().expect("a cursor");
    let second = service.get(&format!("{path}&cursor={cursor}")).await.expect(200);
    let cursor = second["next_cursor"].as_str().expect("a cursor");
    let third = service.get(&format!("{path}&cursor={cursor}")).await.expect(200);
    let mut expected = FAILED_RUN.to_vec();
    expected.push("run.retried");
    assert_eq!([kinds(&first), kinds(&second), kinds(&third)].concat(), expected);

    let foreign = service.get(&format!("{path}&level=error&cursor={cursor}")).await;
    assert_eq!(foreign.error(400)["code"], "invalid_cursor");
    let unknown = service.get(&format!("{RUN}/logs?level=loud")).await;
    assert_eq!(unknown.field_errors(), ["query.level value_error"]);
    assert_eq!(service.get("/api/v1/runs/missing/logs").await.error(404)["code"], "run_not_found");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_log_can_be_read_as_text(pool: PgPool) {
    let service = Service::start(&pool);
    failed_run(&pool).await;
    let path = format!("{RUN}/logs?page_size=6");
    let first = service.send("GET", &path, &[("accept", "text/plain")], "").await;
    assert_eq!(first.header("content-type"), Some("text/plain; charset=utf-8"));
    assert!(first.header("vary").is_some_and(|vary| vary.contains("accept")));
    let lines: Vec<&str> = first.text.lines().collect();
    assert_eq!(lines[0], "2026-02-03T09:00:00Z        INFO    Run created by system");
    assert!(lines[5].ends_with("Z WARNING Step 'b': attempt failed in 1500.0 ms: no luck"), "{}", lines[5]);
    let link = first.header("link").expect("a next page").to_owned();
    let next = link.strip_prefix("<?").and_then(|link| link.strip_suffix(">; rel=\"next\"")).expect("a relative link");
    let second = service.send("GET", &format!("{RUN}/logs?{next}"), &[("accept", "text/plain;q=0.9")], "").await;
    assert!(second.text.ends_with("ERROR   Run failed: Step 'b' failed\n"), "{}", second.text);
    assert_eq!((second.text.lines().count(), second.header("link")), (1, None));
    for accept in ["application/json, text/plain", "text/html, */*", "*/*"] {
        let page = service.send("GET", &path, &[("accept", accept)], "").await;
        assert_eq!(page.header("content-type"), Some("application/json"), "{accept}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_stream_follows_a_run_to_its_end_and_over_a_retry(pool: PgPool) {
    let service = Service::start(&pool);
    insert_run(&pool).await;
    let mut events = Events::open(&service, "").await;
    assert_eq!(events.status, 200);
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-cache"),
        ("x-accel-buffering", "no"),
        ("access-control-allow-origin", "http://localhost:3000"),
    ] {
        assert_eq!(events.headers.get(name).and_then(|value| value.to_str().ok()), Some(value), "{name}");
    }
    assert_eq!(events.block().await.as_deref(), Some("retry: 1000"));
    assert_eq!(events.expect("run.created").await.id, "0");
    set_run(&pool, "RUNNING", None).await;
    assert_eq!(events.expect("run.started").await.id, "1");
    begin_step(&pool, "ext-1-a-1", "a").await;
    events.expect("attempt.started").await;
    end_step(&pool, "ext-1-a-1", "FAILED", Some("no luck")).await;
    let failed = events.expect("attempt.failed").await;
    let page = service.get(&format!("{RUN}/logs?level=warning")).await.expect(200);
    assert_eq!((&failed.data, failed.id.as_str()), (&page["items"][0], "3"));
    set_run(&pool, "FAILED", None).await;
    events.expect("run.failed").await;
    let end = events.expect("end").await;
    let data = json!({"run_id": "ext-1", "status": "FAILED"});
    assert_eq!(end, Received { id: "4-end".to_owned(), name: "end".to_owned(), data });
    assert_eq!(events.next().await, None);

    // Who has seen the end need not come back; who has not gets what is missing.
    for (last, status, expected) in
        [("4-end", 204, &[][..]), ("4", 200, &["end"]), ("2", 200, &["attempt.failed", "run.failed", "end"])]
    {
        let mut again = Events::open(&service, last).await;
        assert_eq!(again.status.as_u16(), status, "{last}");
        let rest = again.rest().await;
        assert_eq!(rest.iter().map(Received::kind).collect::<Vec<_>>(), expected, "{last}");
    }
    // The parameter is for the first time; the header is what a browser says when it comes back.
    for (headers, expected) in [(&[][..], 200), (&[("last-event-id", "4-end")], 204)] {
        let path = format!("{RUN}/events?last_event_id=4");
        let response = service.open("GET", &path, headers, Body::empty()).await;
        assert_eq!(response.status().as_u16(), expected);
    }

    set_run(&pool, "PENDING", None).await;
    let mut events = Events::open(&service, "4-end").await;
    assert_eq!(events.expect("run.retried").await.id, "5");
    set_run(&pool, "CANCELLED", Some("Cancelled: enough")).await;
    let cancelled = events.expect("run.cancelled").await;
    assert_eq!(cancelled.data["message"], "Run cancelled: enough");
    assert_eq!(events.rest().await.last().expect("an end").id, "6-end");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_id_that_the_stream_never_gave_is_refused(pool: PgPool) {
    let service = Service::start(&pool);
    insert_run(&pool).await;
    for last in ["x", "-1", "+0", "0x1", "1.0", "-end", "0-END", "99999999999999999999", "1", "\u{e9}", " "] {
        let path = format!("{RUN}/events");
        let answer = service.send("GET", &path, &[("last-event-id", last)], "").await;
        assert_eq!(answer.error(400)["code"], "invalid_last_event_id", "{last}");
    }
    for headers in [&[][..], &[("last-event-id", "0")]] {
        let answer = service.send("GET", &format!("{RUN}/events?last_event_id=x"), headers, "").await;
        assert_eq!(answer.error(400)["code"], "invalid_last_event_id");
    }
    assert_eq!(service.get("/api/v1/runs/missing/events").await.error(404)["code"], "run_not_found");
    let post = service.send("POST", &format!("{RUN}/events"), &[], "").await;
    assert_eq!(post.header("allow"), Some("GET,HEAD"));
    post.error(405);
    let head = service.send("HEAD", &format!("{RUN}/events"), &[], "").await;
    assert_eq!(
        (head.status.as_u16(), head.header("content-type"), head.text.as_str()),
        (200, Some("text/event-stream"), "")
    );
}

/// Transactions that overlap in every way: what commits late comes behind what was seen, and all readers see the same.
#[sqlx::test(migrator = "MIGRATOR")]
async fn readers_of_many_writers_see_every_entry_once_and_in_one_order(pool: PgPool) {
    const WRITERS: usize = 6;
    const ROUNDS: usize = 12;
    let services = [Service::start(&pool), Service::start(&pool)];
    insert_run(&pool).await;
    // With a connection for every transaction that is open.
    let connections = db::pool(&services[0].config.database);
    let seed = seed();
    let writers = (0..WRITERS).map(|writer| {
        let pool = connections.clone();
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(writer as u64));
        async move {
            for round in 0..ROUNDS {
                let mut open = Vec::new();
                for part in 0..random.random_range(1..4) {
                    let mut transaction = pool.begin().await.expect("a transaction");
                    let sql = "INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data)
                               SELECT $1 || '-' || n, 'ext-1', $2, 's', 's', 'RUNNING', '{}' FROM generate_series(1, $3) n";
                    let id = format!("{writer}-{round}-{part}");
                    let count: i32 = random.random_range(1..5);
                    let insert = sqlx::query(sql).bind(&id).bind(format!("w{writer}")).bind(count);
                    insert.execute(&mut *transaction).await.expect("steps");
                    open.push(transaction);
                }
                open.shuffle(&mut random);
                for transaction in open {
                    transaction.commit().await.expect("a commit");
                }
            }
        }
    });
    let reading = async |service: &Service| {
        let (mut all, mut last) = (Vec::new(), String::new());
        // Again and again from where it was, so that new readers come between the writers.
        while all.last().is_none_or(|event: &Received| event.name != "end") {
            let mut events = Events::open(service, &last).await;
            for _ in 0..40 {
                let Some(event) = events.next().await else { break };
                last = event.id.clone();
                all.push(event);
            }
        }
        all
    };
    let writing = async {
        join_all(writers).await;
        set_run(&pool, "COMPLETED", None).await;
    };
    let (first, second, ()) = futures_util::join!(reading(&services[0]), reading(&services[1]), writing);
    assert_eq!(first, second, "seed {seed}");
    let (end, entries) = first.split_last().expect("entries");
    assert_eq!(end.id, format!("{}-end", entries.len() - 1));
    for (position, event) in entries.iter().enumerate() {
        assert_eq!(event.id, position.to_string(), "seed {seed}");
    }
    let mut found: Vec<&str> = entries.iter().filter_map(|event| event.data["attempt_id"].as_str()).collect();
    found.sort_unstable();
    let mut expected: Vec<String> =
        sqlx::query_scalar("SELECT id FROM step_executions").fetch_all(&pool).await.expect("steps");
    expected.sort_unstable();
    assert_eq!(found, expected, "seed {seed}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_long_log_is_streamed_whole(pool: PgPool) {
    let service = Service::start(&pool);
    insert_run(&pool).await;
    write(
        &pool,
        "INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data)
         SELECT n::text, 'ext-1', 's', 's', 's', 'COMPLETED', '{}' FROM generate_series(1, 398) n",
    )
    .await;
    set_run(&pool, "COMPLETED", None).await;
    // With the creation four chunks and none.
    let all = Events::open(&service, "").await.rest().await;
    assert_eq!(all.len(), 401);
    assert!(all[..400].iter().enumerate().all(|(position, event)| event.id == position.to_string()));
    assert_eq!(all[400].id, "399-end");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_hang_up_frees_the_place_of_a_stream(pool: PgPool) {
    let service = Service::start(&pool);
    insert_run(&pool).await;
    let open = || service.open_from("127.0.0.1", "GET", "/api/v1/runs/ext-1/events", &[], Body::empty());
    let held = in_turn((1..MAX_WATCHERS_OF_ORGANIZATION).map(|_| open())).await;
    assert!(held.iter().all(|response| response.status() == 200));
    // The last one comes over the wire.
    let listener = server::bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let address = listener.local_addr().expect("an address");
    let lifecycle = Lifecycle::new();
    tokio::spawn(server::serve(
        listener,
        service.router.clone(),
        lifecycle.clone(),
        server::Bounds { regular: 10, spare: 16, keep_alive: server::KEEP_ALIVE },
        service.clock.clone(),
        None,
    ));
    let mut client = TcpStream::connect(address).await.expect("a connection");
    let request = format!("GET {RUN}/events HTTP/1.1\r\nhost: x\r\n\r\n");
    client.write_all(request.as_bytes()).await.expect("sent");
    let mut text = String::new();
    while !text.contains("run.created") {
        let mut bytes = [0; 4096];
        let count = client.read(&mut bytes).await.expect("an answer");
        assert!(count > 0, "{text}");
        text += std::str::from_utf8(&bytes[..count]).expect("text");
    }
    let refused = service.send_from("127.0.0.1", "GET", &format!("{RUN}/events"), &[]).await;
    assert_eq!(refused.header("retry-after"), Some("2"));
    assert_eq!(refused.error(429)["code"], "too_many_streams");
    // Nobody else is refused.
    assert_eq!(Events::open(&service, "").await.status, 200);
    // Nothing happens to the run, so only the hang-up itself can tell.
    drop(client);
    eventually("the permit is free", || async { (open().await.status() == StatusCode::OK).then_some(()) }).await;
    drop(held);
    let again = in_turn((0..MAX_WATCHERS_OF_ORGANIZATION).map(|_| open())).await;
    assert!(again.iter().all(|response| response.status() == 200));
    lifecycle.hard_stop().cancel();
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_stream_is_kept_alive_beyond_the_time_of_requests_and_ends_when_the_process_stops(pool: PgPool) {
    let service = Service::start(&pool);
    insert_run(&pool).await;
    let mut events = Events::open(&service, "").await;
    events.expect("run.created").await;
    // Comes after more seconds of silence than other requests may take in all.
    assert_eq!(events.block().await.as_deref(), Some(":"));
    set_run(&pool, "RUNNING", None).await;
    events.expect("run.started").await;
    service.stop().await;
    assert_eq!(events.next().await, None);
    // Nothing is lost: another process goes on.
    set_run(&pool, "COMPLETED", None).await;
    let mut events = Events::open(&Service::start(&pool), "1").await;
    events.expect("run.completed").await;
    events.expect("end").await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_log_goes_with_its_run(pool: PgPool) {
    let service = Service::start(&pool);
    failed_run(&pool).await;
    write(&pool, "UPDATE workflow_runs SET status = 'PENDING'").await;
    let mut events = Events::open(&service, "7").await;
    write(&pool, "DELETE FROM step_executions").await;
    write(&pool, "DELETE FROM workflow_runs").await;
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM run_events").fetch_one(&pool).await.expect("a count");
    assert_eq!(left, 0);
    let data = json!({"run_id": "ext-1", "status": "PENDING", "deleted": true});
    assert_eq!(events.expect("end").await.data, data);
    assert_eq!(events.next().await, None);
    assert_eq!(Events::open(&service, "").await.status, 404);
}

/// The triggers must never be the reason why somebody's write fails.
#[sqlx::test(migrator = "MIGRATOR")]
async fn odd_rows_are_recorded_as_far_as_they_can_be(pool: PgPool) {
    let service = Service::start(&pool);
    write(
        &pool,
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status) VALUES ('ext-1', 'w', 'w', 'RUNNING')",
    )
    .await;
    write(
        &pool,
        "INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, started_at)
         VALUES (repeat('ü', 255), 'ext-1', repeat('s', 255), '', '', 'PENDING', 'null', '-infinity')",
    )
    .await;
    write(&pool, "UPDATE step_executions SET status = 'SKIPPED', completed_at = 'infinity'").await;
    write(&pool, "UPDATE step_executions SET status = ''").await;
    write(&pool, "UPDATE workflow_runs SET status = repeat('P', 50)").await;
    let page = service.get(&format!("{RUN}/logs")).await.expect(200);
    let expected =
        ["run.created", "run.started", "attempt.changed", "attempt.skipped", "attempt.changed", "run.changed"];
    assert_eq!(kinds(&page), expected);
    assert_eq!(page["items"][5]["message"], format!("Run changed: {}", "P".repeat(50)));
}
