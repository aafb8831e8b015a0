//! Hostile requests over all routes: none of them makes a 5xx, and each refusal is the error object.

use serde_json::json;
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::service::{Answer, Service};

const JSON: (&str, &str) = ("content-type", "application/json");

/// All routes that read a body, for the ids of an agent, a workflow and a run that exist.
struct Routes {
    agent: String,
    workflow: String,
    run: String,
}

impl Routes {
    async fn of(service: &Service) -> Self {
        let workflow = service.one_step_workflow().await;
        let run = service.execute(&workflow).await;
        let agents = service.get("/api/v1/agents?name=worker").await.expect(200);
        let agent = agents["items"][0]["id"].as_str().expect("an id").to_owned();
        Self { agent, workflow, run }
    }

    /// With the status of a body that is a valid empty object: these need members, or need none.
    fn with_body(&self) -> [(&'static str, String); 7] {
        let Self { agent, workflow, run } = self;
        [
            ("POST", "/api/v1/agents".to_owned()),
            ("PUT", format!("/api/v1/agents/{agent}")),
            ("POST", "/api/v1/workflows".to_owned()),
            ("PUT", format!("/api/v1/workflows/{workflow}")),
            ("POST", format!("/api/v1/workflows/{workflow}/execute")),
            ("POST", format!("/api/v1/runs/{run}/retry")),
            ("POST", format!("/api/v1/runs/{run}/cancel")),
        ]
    }
}

const LISTS: [&str; 3] = ["/api/v1/agents", "/api/v1/workflows", "/api/v1/runs"];

/// The first `type` of a validation error.
fn fault(answer: &Answer) -> String {
    answer.field_errors().into_iter().next().unwrap_or_default()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_body_that_is_not_json_is_refused_on_every_route(pool: PgPool) {
    let service = Service::start(&pool);
    let routes = Routes::of(&service).await;
    let deep = |levels: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(levels - 1), "]".repeat(levels - 1));
    for (name, body, expected) in [
        ("cut off", b"{\"name\":".to_vec(), "json_invalid"),
        ("a word", b"hello".to_vec(), "json_invalid"),
        ("two values", b"{} {}".to_vec(), "json_invalid"),
        ("a comma too many", b"{\"a\":1,}".to_vec(), "json_invalid"),
        ("invalid UTF-8", b"{\"a\":\"\xff\"}".to_vec(), "json_invalid"),
        ("a byte order mark", b"\xef\xbb\xbf{}".to_vec(), "json_invalid"),
        ("a control character", b"{\"a\":\"\x01\"}".to_vec(), "json_invalid"),
        ("NUL", b"{\"a\":\"x\\u0000\"}".to_vec(), "string_nul"),
        ("NUL in a key", b"{\"a\\u0000\":1}".to_vec(), "string_nul"),
        ("a raw NUL", b"\0".to_vec(), "json_invalid"),
        ("a lone surrogate", b"{\"a\":\"\\ud800\"}".to_vec(), "string_surrogate"),
        ("NaN", b"{\"a\":NaN}".to_vec(), "json_invalid"),
        ("65 levels", deep(65).into_bytes(), "json_too_deep"),
        ("100 000 levels", deep(100_000).into_bytes(), "json_too_deep"),
        ("100 000 brackets", "[".repeat(100_000).into_bytes(), "json_invalid"),
        ("a list", b"[]".to_vec(), "body model_attributes_type"),
        ("a number", b"1e400000".to_vec(), "number_out_of_range"),
        ("a string", b"\"{}\"".to_vec(), "body model_attributes_type"),
    ] {
        for (method, path) in routes.with_body() {
            let answer = service.send(method, &path, &[JSON], body.clone()).await;
            assert!(fault(&answer).contains(expected), "{name} on {method} {path}: {}", answer.text);
            answer.error(422);
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_absent_body_is_missing_where_one_is_needed(pool: PgPool) {
    let service = Service::start(&pool);
    let routes = Routes::of(&service).await;
    for (method, path) in &routes.with_body()[..5] {
        for body in ["", "  \n", "null"] {
            let answer = service.send(method, path, &[JSON], body).await;
            assert_eq!(answer.field_errors(), ["body missing"], "{method} {path} {body:?}");
            answer.error(422);
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn only_json_is_read_and_an_absent_content_type_counts_as_json(pool: PgPool) {
    let service = Service::start(&pool);
    let routes = Routes::of(&service).await;
    let put = format!("/api/v1/agents/{}", routes.agent);
    for (content_type, status) in [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/merge-patch+json", 200),
        ("text/plain", 422),
        ("application/x-www-form-urlencoded", 422),
        ("multipart/form-data; boundary=x", 422),
        ("json", 422),
        ("", 422),
    ] {
        let answer = service.send("PUT", &put, &[("content-type", content_type)], "{}").await;
        if status == 422 {
            assert_eq!(answer.field_errors(), ["body model_attributes_type"], "{content_type}");
            answer.error(422);
        } else {
            answer.expect(status);
        }
    }
    service.send("PUT", &put, &[], "{}").await.expect(200);
    for (method, path) in routes.with_body() {
        service.send(method, &path, &[("content-type", "text/plain")], "{}").await.error(422);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_body_of_more_than_a_mebibyte_is_413(pool: PgPool) {
    let service = Service::start(&pool);
    let routes = Routes::of(&service).await;
    let body = |bytes: usize| format!(r#"{{"unknown":"{}"}}"#, "x".repeat(bytes - 14));
    for (method, path) in routes.with_body() {
        let error = service.send(method, &path, &[JSON], body((1 << 20) + 1)).await.error(413);
        assert_eq!(error["code"], "payload_too_large", "{method} {path}");
    }
    let announced = [JSON, ("content-length", "1048577")];
    service.send("POST", "/api/v1/agents", &announced, "{}").await.error(413);
    service.send("PUT", &format!("/api/v1/agents/{}", routes.agent), &[JSON], body(1 << 20)).await.expect(200);
    // Fits a request, and not a Kafka message together with the plan.
    let large = format!(r#"{{"input_data":{{"x":"{}"}}}}"#, "x".repeat((1 << 20) - 100));
    let execute = format!("/api/v1/workflows/{}/execute", routes.workflow);
    service.send("POST", &execute, &[JSON], large).await.error(413);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_odd_and_allowed_goes_through_unchanged(pool: PgPool) {
    let service = Service::start(&pool);
    let routes = Routes::of(&service).await;
    let execute = format!("/api/v1/workflows/{}/execute", routes.workflow);
    let nested = format!("{}{}", "[".repeat(62), "]".repeat(62));
    for (input, shown) in [
        (r#"{"n":123456789012345678901234567890}"#, "123456789012345678901234567890"),
        (r#"{"n":-0.1e-7}"#, "-0.1e-7"),
        (r#"{"s":"\ud83d\ude00 \u202e é"}"#, "\\ud83d\\ude00"),
        (r#"{"":{"":null}}"#, r#"{"":{"":null}}"#),
        (r#"{"d":1,"d":2}"#, "2"),
        (r#"{"__proto__":{"$ref":"x"},"a.b":1}"#, "__proto__"),
        (&format!(r#"{{"deep":{nested}}}"#), nested.as_str()),
    ] {
        let answer = service.send("POST", &execute, &[JSON], format!(r#"{{"input_data":{input}}}"#)).await;
        assert!(answer.text.contains(shown), "{input}: {}", answer.text);
        let run = answer.expect(202);
        let stored = service.get(&format!("/api/v1/runs/{}", run["run_id"].as_str().expect("an id"))).await;
        assert_eq!(stored.expect(200)["input_data"], run["input_data"], "{input}");
    }
    // A number beyond what the database can hold.
    let answer = service.send("POST", &execute, &[JSON], r#"{"input_data":{"n":1e999999}}"#).await;
    answer.error(422);
    // Repeated members on this side of the API: the last one counts, as everywhere.
    let twice = r#"{"name":"first","name":"second","url":"http://a"}"#;
    assert_eq!(service.send("POST", "/api/v1/agents", &[JSON], twice).await.expect(201)["name"], "second");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_number_that_is_too_large_for_its_member_is_out_of_range(pool: PgPool) {
    let service = Service::start(&pool);
    let routes = Routes::of(&service).await;
    let put = format!("/api/v1/agents/{}", routes.agent);
    for number in ["1e30", "99999999999999999999999999", "9223372036854775807", "\"9999999999999999999999\""] {
        for (member, field) in [
            (format!(r#"{{"timeout_ms":{number}}}"#), "body.timeout_ms"),
            (format!(r#"{{"retry_config":{{"max_retries":{number}}}}}"#), "body.retry_config.max_retries"),
            (format!(r#"{{"retry_config":{{"max_delay_ms":{number}}}}}"#), "body.retry_config.max_delay_ms"),
        ] {
            let answer = service.send("PUT", &put, &[JSON], member.clone()).await;
            assert!(fault(&answer).starts_with(field), "{member}: {}", answer.text);
            answer.error(422);
        }
    }
    let multiplier = format!(r#"{{"retry_config":{{"backoff_multiplier":{}}}}}"#, "1e400");
    service.send("PUT", &put, &[JSON], multiplier).await.error(422);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn paging_takes_whole_numbers_from_one_and_cuts_the_size(pool: PgPool) {
    let service = Service::start(&pool);
    let routes = Routes::of(&service).await;
    let versions = format!("/api/v1/workflows/{}/versions", routes.workflow);
    for list in LISTS.into_iter().chain([versions.as_str()]) {
        for (query, expected) in [
            ("page=0", "query.page greater_than_equal"),
            ("page=-1", "query.page greater_than_equal"),
            ("page=1e30", "query.page int_parsing"),
            ("page=", "query.page int_parsing"),
            ("page=1.5", "query.page int_"),
            ("page=%D9%A1", "query.page int_parsing"),
            ("page=9223372036854775807", "query.page less_than_equal"),
            ("page=99999999999999999999", "query.page less_than_equal"),
            ("page=92233720368547758&page_size=100", "query.page less_than_equal"),
            ("page=101&page_size=100", "query.page less_than_equal"),
            ("page_size=0", "query.page_size greater_than_equal"),
            ("page_size=-9223372036854775808", "query.page_size greater_than_equal"),
            ("page_size=abc", "query.page_size int_parsing"),
            ("page=0&page_size=0", "query.page greater_than_equal"),
        ] {
            let answer = service.get(&format!("{list}?{query}")).await;
            assert!(fault(&answer).starts_with(expected), "{list}?{query}: {}", answer.text);
            answer.error(422);
        }
        for (query, page, size) in [
            ("page_size=101", 1, 100),
            ("page_size=9223372036854775807", 1, 100),
            ("page=+2&page_size=1.0", 2, 1),
            ("page=100&page_size=100", 100, 100),
        ] {
            let answer = service.get(&format!("{list}?{query}")).await.expect(200);
            assert_eq!((&answer["page"], &answer["page_size"]), (&json!(page), &json!(size)), "{list}?{query}");
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn odd_text_in_a_query_finds_nothing_and_breaks_nothing(pool: PgPool) {
    let service = Service::start(&pool);
    Routes::of(&service).await;
    for list in LISTS {
        for value in ["%00", "a%00b"] {
            for name in ["status", "name", "workflow_id", "sort_by", "created_after", "page"] {
                let answer = service.get(&format!("{list}?{name}={value}")).await;
                assert!(fault(&answer).starts_with(&format!("query.{name} ")), "{name}={value}: {}", answer.text);
                answer.error(422);
            }
        }
        let long = "x".repeat(7000);
        for value in ["%FF%FE", "%ED%A0%80", "'%20OR%201=1--", "%", "%zz", "%F0%9F%98%80", "\\", long.as_str()] {
            let page = service.get(&format!("{list}?status={value}")).await.expect(200);
            assert_eq!(page["total"], 0, "{list}?status={value}");
            service.get(&format!("{list}?sort_by={value}&sort_order={value}&%00={value}")).await;
        }
        for query in ["?", "&&==&", "?page", "=1", "a=b=c", "%00=1", "page_size[]=1", "page%00=1"] {
            let answer = service.get(&format!("{list}?{query}")).await;
            assert!(answer.status.as_u16() < 500, "{list}?{query}: {}", answer.text);
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_path_with_something_else_than_a_uuid_is_422(pool: PgPool) {
    let service = Service::start(&pool);
    let long = "a".repeat(5000);
    for id in ["abc", "None", "%00", "%FF", "%2F", "..%2F..", "0", "00000000-0000-0000-0000-00000000000g", &long] {
        for (method, path, name) in [
            ("GET", format!("/api/v1/agents/{id}"), "agent_id"),
            ("PUT", format!("/api/v1/agents/{id}"), "agent_id"),
            ("DELETE", format!("/api/v1/agents/{id}"), "agent_id"),
            ("GET", format!("/api/v1/agents/{id}/health"), "agent_id"),
            ("GET", format!("/api/v1/workflows/{id}"), "workflow_id"),
            ("PUT", format!("/api/v1/workflows/{id}"), "workflow_id"),
            ("DELETE", format!("/api/v1/workflows/{id}"), "workflow_id"),
            ("GET", format!("/api/v1/workflows/{id}/versions"), "workflow_id"),
            ("POST", format!("/api/v1/workflows/{id}/execute"), "workflow_id"),
        ] {
            let body = if ["POST", "PUT"].contains(&method) { r#"{"input_data":{}}"# } else { "" };
            let answer = service.send(method, &path, &[JSON], body).await;
            assert_eq!(answer.field_errors(), [format!("path.{name} uuid_parsing")], "{method} {path}");
            answer.error(422);
        }
    }
    let agent = service.agent("worker", "http://a").await;
    let id = agent["id"].as_str().expect("an id");
    for form in [id.to_uppercase(), id.replace('-', ""), format!("urn:uuid:{id}"), format!("%7B{id}%7D")] {
        assert_eq!(service.get(&format!("/api/v1/agents/{form}")).await.expect(200), agent, "{form}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_uri_of_more_than_8_kib_is_414(pool: PgPool) {
    let service = Service::start(&pool);
    let padded = |path: &str, bytes: usize| format!("{path}?x={}", "a".repeat(bytes - path.len() - 3));
    for path in ["/api/v1/agents", "/health", "/nowhere"] {
        assert_eq!(service.get(&padded(path, 8193)).await.error(414)["code"], "uri_too_long");
        assert_ne!(service.get(&padded(path, 8192)).await.status.as_u16(), 414);
    }
    service.get(&format!("/api/v1/runs/{}", "a".repeat(60_000))).await.error(414);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_method_that_a_route_does_not_have_is_405_and_says_which_it_has(pool: PgPool) {
    let service = Service::start(&pool);
    let Routes { agent, workflow, run } = Routes::of(&service).await;
    for (path, allowed) in [
        ("/".to_owned(), &["GET", "HEAD"][..]),
        ("/health".to_owned(), &["GET", "HEAD"]),
        ("/openapi.json".to_owned(), &["GET", "HEAD"]),
        ("/api/v1/agents".to_owned(), &["GET", "HEAD", "POST"]),
        (format!("/api/v1/agents/{agent}"), &["DELETE", "GET", "HEAD", "PUT"]),
        (format!("/api/v1/workflows/{workflow}/execute"), &["POST"]),
        (format!("/api/v1/runs/{run}/cancel"), &["POST"]),
        (format!("/api/v1/runs/{run}"), &["GET", "HEAD"]),
    ] {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "get", "X-1"] {
            if allowed.contains(&method) {
                continue;
            }
            let answer = service.send(method, &path, &[JSON], "{}").await;
            let allow = answer.header("allow").unwrap_or_default().to_owned();
            let mut named: Vec<&str> = allow.split(',').map(str::trim).collect();
            named.sort_unstable();
            assert_eq!(named, allowed, "{method} {path}: {}", answer.text);
            assert_eq!(answer.error(405)["code"], "method_not_allowed");
        }
    }
    for method in ["GET", "POST", "PROPFIND"] {
        let error = service.send(method, "/api/v1/nowhere%00/%FF", &[JSON], "{}").await.error(404);
        assert_eq!((&error["code"], &error["path"]), (&json!("not_found"), &json!("/api/v1/nowhere%00/%FF")));
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_correlation_id_is_echoed_if_it_is_plain_and_else_replaced(pool: PgPool) {
    let service = Service::start(&pool);
    for id in ["req-abc123", "a", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", &"x".repeat(128)] {
        let answer = service.send("GET", "/api/v1/runs/missing", &[("x-correlation-id", id)], "").await;
        assert_eq!(answer.header("x-correlation-id"), Some(id));
        assert_eq!(answer.error(404)["request_id"], id);
    }
    let mut made = std::collections::HashSet::new();
    let long = "x".repeat(129);
    for id in ["", "two words", "a\tb", "\"quoted\"", "{}", "é", "<script>", "a;b", long.as_str()] {
        let answer = service.send("GET", "/health", &[("x-correlation-id", id)], "").await;
        let echoed = answer.header("x-correlation-id").expect("one of the service").to_owned();
        assert!(echoed.starts_with("req-") && made.insert(echoed.clone()), "{id:?} became {echoed}");
    }
    assert!(service.get("/").await.header("x-correlation-id").is_some_and(|id| id.starts_with("req-")));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_idempotency_key_is_1_to_255_visible_characters(pool: PgPool) {
    let service = Service::start(&pool);
    let execute = format!("/api/v1/workflows/{}/execute", service.one_step_workflow().await);
    let (longest, long) = ("k".repeat(255), "k".repeat(256));
    for key in ["k", "two words", longest.as_str()] {
        let headers = [JSON, ("idempotency-key", key)];
        service.send("POST", &execute, &headers, r#"{"input_data":{}}"#).await.expect(202);
    }
    for key in ["", "  ", "é", long.as_str()] {
        let headers = [JSON, ("idempotency-key", key)];
        service.send("POST", &execute, &headers, r#"{"input_data":{}}"#).await.error(422);
    }
}
