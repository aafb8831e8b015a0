//! The OpenAPI document and its two browsers.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::service::{Service, config};

/// Everything in the document with its JSON pointer.
fn walk(value: &Value, pointer: &str, found: &mut impl FnMut(&str, &Value)) {
    found(pointer, value);
    let children: Vec<(String, &Value)> = match value {
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(index, item)| (index.to_string(), item)).collect(),
        _ => return,
    };
    for (name, child) in children {
        walk(child, &format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1")), found);
    }
}

/// The operations: method, path, and what the document says.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().expect("paths");
    let of_path = |(path, item): (&String, &Value)| {
        let operations = item.as_object().expect("operations").clone();
        operations.into_iter().map(|(method, about)| (method.to_uppercase(), path.clone(), about)).collect::<Vec<_>>()
    };
    paths.iter().flat_map(of_path).collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_document_names_every_route(pool: PgPool) {
    let service = Service::start(&pool);
    let answer = service.get("/openapi.json").await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let document = answer.expect(200);
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")));
    let named: BTreeSet<String> =
        operations(&document).into_iter().map(|(method, path, _)| format!("{method} {path}")).collect();
    let expected = [
        "GET /",
        "GET /health",
        "GET /health/live",
        "GET /health/ready",
        "GET /health/detailed",
        "GET /metrics",
        "GET /api/v1/agents",
        "POST /api/v1/agents",
        "GET /api/v1/agents/{agent_id}",
        "PUT /api/v1/agents/{agent_id}",
        "DELETE /api/v1/agents/{agent_id}",
        "GET /api/v1/agents/{agent_id}/health",
        "GET /api/v1/workflows",
        "POST /api/v1/workflows",
        "GET /api/v1/workflows/{workflow_id}",
        "PUT /api/v1/workflows/{workflow_id}",
        "DELETE /api/v1/workflows/{workflow_id}",
        "GET /api/v1/workflows/{workflow_id}/versions",
        "POST /api/v1/workflows/{workflow_id}/execute",
        "POST /api/v1/workflows/validate",
        "GET /api/v1/workflows/{workflow_id}/versions/{version}",
        "GET /api/v1/workflows/{workflow_id}/versions/{version}/diff/{other}",
        "POST /api/v1/workflows/{workflow_id}/rollback",
        "GET /api/v1/workflow-names/{name}",
        "PUT /api/v1/workflow-names/{name}",
        "POST /api/v1/workflow-names/{name}/execute",
        "GET /api/v1/export",
        "POST /api/v1/import",
        "GET /api/v1/workflows/{workflow_id}/graph",
        "GET /api/v1/runs/{run_id}/graph",
        "GET /api/v1/runs",
        "GET /api/v1/runs/{run_id}",
        "GET /api/v1/runs/{run_id}/steps",
        "POST /api/v1/runs/{run_id}/retry",
        "POST /api/v1/runs/{run_id}/cancel",
        "GET /api/v1/runs/{run_id}/logs",
        "GET /api/v1/runs/{run_id}/events",
        "GET /api/v1/dead-letters",
        "GET /api/v1/dead-letters/{dead_letter_id}",
        "DELETE /api/v1/dead-letters/{dead_letter_id}",
        "POST /api/v1/dead-letters/{dead_letter_id}/redrive",
        "POST /api/v1/runs/{run_id}/pause",
        "POST /api/v1/runs/{run_id}/resume",
        "GET /api/v1/runs/{run_id}/callbacks",
        "POST /api/v1/callbacks/{token}",
        "GET /api/v1/api-keys",
        "POST /api/v1/api-keys",
        "GET /api/v1/api-keys/{key_id}",
        "DELETE /api/v1/api-keys/{key_id}",
        "POST /api/v1/auth/token",
    ];
    let missing: Vec<_> = expected.iter().filter(|route| !named.contains(**route)).collect();
    assert!(missing.is_empty(), "not documented: {missing:?}");
}

/// A path of that form, of which nothing exists.
pub fn filled(path: &str) -> String {
    let mut filled = path.to_owned();
    for name in [
        "agent_id",
        "workflow_id",
        "key_id",
        "dead_letter_id",
        "trigger_id",
        "backfill_id",
        "push_id",
        "webhook_id",
        "delivery_id",
        "view_id",
    ] {
        filled = filled.replace(&format!("{{{name}}}"), "00000000-0000-0000-0000-000000000000");
    }
    let texts = [
        ("{run_id}", "run-x"),
        ("{name}", "nothing"),
        ("{token}", "nothing"),
        ("{version}", "1"),
        ("{other}", "2"),
        ("{organization_id}", "none"),
        ("{organization}", "default"),
        ("{workflow}", "nothing"),
        ("{hook_token}", "nothing"),
        ("{trigger_name}", "nothing"),
    ];
    for (name, text) in texts {
        filled = filled.replace(name, text);
    }
    assert!(!filled.contains('{'), "an unknown parameter in {path}");
    filled
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_documented_route_answers_as_documented(pool: PgPool) {
    let service = Service::start(&pool);
    let document = service.get("/openapi.json").await.expect(200);
    for (method, path, about) in operations(&document) {
        let filled = filled(&path);
        let answer = service.send(&method, &filled, &[("content-type", "application/json")], "{}").await;
        let status = answer.status.as_u16();
        assert!(about["responses"].get(status.to_string()).is_some(), "{method} {path}: {status} is not documented");
        if status >= 400 && path != "/health/ready" {
            // MCP demands an error of JSON-RPC with the status.
            if answer.json()["jsonrpc"].is_string() {
                continue;
            }
            let code = answer.error(status)["code"].clone();
            assert!(code != "not_found" && code != "method_not_allowed", "{method} {path}: {code}");
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_document_is_complete_in_itself(pool: PgPool) {
    let service = Service::start(&pool);
    let document = service.get("/openapi.json").await.expect(200);
    let mut references = 0;
    walk(&document, "", &mut |pointer, value| {
        let Some(reference) = value.get("$ref").and_then(Value::as_str) else { return };
        references += 1;
        let target = reference.strip_prefix('#').unwrap_or_else(|| panic!("{pointer}: {reference} leads elsewhere"));
        assert!(document.pointer(target).is_some(), "{pointer}: {reference} does not resolve");
    });
    assert!(references > 20, "only {references} references");
    let scheme = &document["components"]["securitySchemes"]["bearer"];
    assert_eq!((&scheme["type"], &scheme["scheme"]), (&json!("http"), &json!("bearer")));

    let mut ids = BTreeSet::new();
    for (method, path, about) in operations(&document) {
        let id = about["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path} has an operationId"));
        assert!(ids.insert(id.to_owned()), "operationId {id} is there twice");
        assert!(about["summary"].is_string() || about["description"].is_string(), "{method} {path} says nothing");
        let declared: BTreeSet<&str> = about["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|parameter| parameter["in"] == "path")
            .map(|parameter| parameter["name"].as_str().expect("a name"))
            .collect();
        let in_path: BTreeSet<&str> =
            path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
        assert_eq!(declared, in_path, "{method} {path}");
        for (status, response) in about["responses"].as_object().expect("responses") {
            let description = response["description"].as_str().unwrap_or_default();
            assert!(!description.is_empty(), "{method} {path}: the answer {status} is not described");
            let schema = &response["content"]["application/json"]["schema"]["$ref"];
            if path.starts_with("/api/") && status.as_str() >= "400" {
                assert_eq!(schema, "#/components/schemas/ErrorBody", "{method} {path} {status}");
            }
        }
    }
    let error = &document["components"]["schemas"]["ErrorBody"]["properties"];
    for name in ["error", "detail", "code", "errors", "status_code", "timestamp", "path", "request_id"] {
        assert!(error.get(name).is_some(), "ErrorBody has no {name}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_operation_has_a_short_summary_and_a_description(pool: PgPool) {
    let document = Service::start(&pool).get("/openapi.json").await.expect(200);
    for (method, path, about) in operations(&document) {
        let summary = about["summary"].as_str().unwrap_or_default();
        assert!((1..=60).contains(&summary.chars().count()), "{method} {path}: {summary:?}");
        assert!(!summary.contains('\n') && !summary.ends_with('.'), "{method} {path}: {summary:?}");
        assert!(about["description"].as_str().is_some_and(|text| !text.is_empty()), "{method} {path} is not described");
    }
    assert!(document["servers"][0]["url"].is_string());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn sets_of_values_are_named_schemas_and_not_prose(pool: PgPool) {
    let document = Service::start(&pool).get("/openapi.json").await.expect(200);
    let mut constants = BTreeSet::new();
    let mut sets = 0;
    walk(&document, "", &mut |pointer, schema| {
        // The schemas of events are whole documents of their own, which the catalogue shows too.
        if pointer.starts_with("/webhooks/") {
            return;
        }
        if let Some(values) = schema.get("enum").and_then(Value::as_array) {
            sets += 1;
            let is_named = pointer.strip_prefix("/components/schemas/").is_some_and(|name| !name.contains('/'));
            assert!(is_named, "{pointer}: a set of values without a name");
            // Generated Go has one name space for all of them.
            let names = schema["x-enum-varnames"].as_array().expect("names of the values");
            assert_eq!(names.len(), values.len(), "{pointer}");
            for name in names {
                assert!(constants.insert(name.to_string()), "{pointer}: {name} is there twice");
            }
        }
        // A string that its description gives values: "`a`, `b` or `c`".
        let description = schema.get("description").and_then(Value::as_str).unwrap_or_default();
        let is_text = schema.get("type").is_some_and(|of| *of == "string" || *of == json!(["string", "null"]))
            || schema.pointer("/schema/type").is_some_and(|of| *of == "string");
        let is_open = ["/components/schemas/AuditEntry/properties/action"].contains(&pointer);
        if is_text && schema.get("enum").is_none() && !is_open {
            let quoted: Vec<&str> = description.split('`').collect();
            let is_list =
                quoted.iter().skip(2).step_by(2).any(|between| [", ", " or ", " (default), "].contains(between));
            assert!(!is_list, "{pointer}: {description:?} lists values that a set should");
        }
    });
    assert!(sets >= 40, "only {sets} sets");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn objects_name_their_members_or_say_that_they_take_any(pool: PgPool) {
    let document = Service::start(&pool).get("/openapi.json").await.expect(200);
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    walk(&document["components"]["schemas"], "", &mut |pointer, schema| {
        let is_object = schema.get("type").is_some_and(|of| *of == "object" || *of == json!(["object", "null"]));
        if is_object && !pointer.ends_with("/example") {
            let says = schema.get("properties").is_some() || schema.get("additionalProperties").is_some();
            assert!(says, "{pointer}: a free object is one of any members for some, and of none for others");
        }
        let inlined = schema.pointer("/items/properties").is_some();
        assert!(!inlined, "{pointer}: the entries of a list have no name");
        // Some engines know no classes of Unicode.
        let pattern = schema.get("pattern").and_then(Value::as_str).unwrap_or_default();
        assert!(!pattern.contains("\\p{"), "{pointer}: {pattern}");
    });
    for name in schemas.keys() {
        // Go has a function `NewX` for each `X`.
        assert!(!schemas.contains_key(&format!("New{name}")), "New{name} stands beside {name}");
        assert!(name.chars().all(char::is_alphanumeric), "{name} is no name in most languages");
    }
    let lists = schemas.iter().filter(|(name, _)| name.ends_with("Page"));
    assert!(lists.clone().count() >= 8);
    for (name, page) in lists {
        let entry = format!("#/components/schemas/{}", name.trim_end_matches("Page"));
        assert_eq!(page["properties"]["items"]["items"]["$ref"], entry, "{name}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn members_of_answers_are_there_although_they_have_no_value(pool: PgPool) {
    let service = Service::start(&pool);
    let document = service.get("/openapi.json").await.expect(200);
    let run = service.execute(&service.one_step_workflow().await).await;
    for (name, path, sometimes) in [
        ("Agent", "/api/v1/agents", &[][..]),
        ("Workflow", "/api/v1/workflows", &["warnings", "silent_since", "last_success_at"]),
        ("Run", "/api/v1/runs", &["input_data_omitted", "deadline_at", "deadline_missed_at", "retrying"]),
        ("RunEvent", &format!("/api/v1/runs/{run}/logs"), &[]),
        ("AuditEntry", "/api/v1/audit-logs", &[]),
    ] {
        let schema = &document["components"]["schemas"][name];
        let members = |members: Option<&serde_json::Map<String, Value>>| {
            let names =
                members.expect("an object").keys().filter(|member| !sometimes.contains(&member.as_str())).cloned();
            names.collect::<std::collections::BTreeSet<_>>()
        };
        let required = schema["required"].as_array().expect("names").iter();
        let required = required.map(|member| member.as_str().expect("a name").to_owned()).collect();
        assert_eq!(members(schema["properties"].as_object()), required, "{name}");
        let answer = service.get(path).await.expect(200);
        assert_eq!(members(answer["items"][0].as_object()), required, "{name}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_step_is_one_of_the_types_that_the_discriminator_names(pool: PgPool) {
    let document = Service::start(&pool).get("/openapi.json").await.expect(200);
    let schemas = &document["components"]["schemas"];
    let step = &schemas["StepDefinition"];
    assert_eq!(step["discriminator"]["propertyName"], "type");
    let mapping = step["discriminator"]["mapping"].as_object().expect("a mapping");
    assert_eq!(mapping.len(), step["oneOf"].as_array().map_or(0, Vec::len));
    for (kind, reference) in mapping {
        let reference = reference.as_str().and_then(|reference| reference.strip_prefix('#')).expect("a reference");
        let schema = document.pointer(reference).unwrap_or_else(|| panic!("{reference} does not resolve"));
        let set = schema["properties"]["type"]["$ref"].as_str().and_then(|set| set.strip_prefix('#')).expect("a set");
        assert_eq!(document.pointer(set).expect("the set")["enum"], json!([kind]));
        // Without a type it is an agent's.
        let needs_type = schema["required"].as_array().expect("members").contains(&json!("type"));
        assert_eq!(needs_type, kind != "agent", "{kind}");
    }
    // Sent, received, exported and imported as the same.
    for (schema, member) in [("WorkflowDefinition", "steps"), ("WorkflowPlan", "steps")] {
        assert_eq!(schemas[schema]["properties"][member]["$ref"], "#/components/schemas/Steps", "{schema}");
    }
    assert_eq!(schemas["Workflow"]["properties"]["workflow_data"]["$ref"], "#/components/schemas/WorkflowPlan");
    let of_export = &document["paths"]["/api/v1/export"]["get"]["responses"]["200"]["content"]["application/json"];
    let of_import = &document["paths"]["/api/v1/import"]["post"]["requestBody"]["content"]["application/json"];
    assert_eq!(of_export["schema"], of_import["schema"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_examples_work_one_after_the_other_on_a_fresh_service(pool: PgPool) {
    let service = Service::start(&pool);
    let document = service.get("/openapi.json").await.expect(200);
    let schema = |name: &str| document["components"]["schemas"][name]["example"].clone();
    service.post("/api/v1/agents", &schema("CreateAgentRequest")).await.expect(201);
    let examples = &document["paths"]["/api/v1/workflows"]["post"]["requestBody"]["content"]["application/json"];
    for (name, example) in examples["examples"].as_object().expect("examples") {
        let created = service.post("/api/v1/workflows", &example["value"]).await;
        assert_eq!(created.status, 201, "{name}: {}", created.text);
    }
    service.post("/api/v1/workflows", &schema("WorkflowDefinition")).await.expect(201);
    let named = &document["paths"]["/api/v1/workflow-names/{name}"]["put"]["parameters"][0]["example"];
    let path = format!("/api/v1/workflow-names/{}", named.as_str().expect("an example"));
    let put = service.put(&path, &schema("PutWorkflowRequest")).await;
    assert!(put.status.is_success(), "{}", put.text);
    service.post(&format!("{path}/execute"), &schema("ExecuteRequest")).await.expect(202);
    service.post("/api/v1/api-keys", &schema("CreateApiKeyRequest")).await.expect(201);
    service.post("/api/v1/organizations", &schema("CreateOrganizationRequest")).await.expect(201);
    service.post("/api/v1/import", &schema("Definitions")).await.expect(200);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_documentation_says_what_the_settings_say(pool: PgPool) {
    let settings =
        [("API_TITLE", "Flows <&> more"), ("API_VERSION", "7.8.9"), ("API_DESCRIPTION", "Ours"), ("API_PREFIX", "v9/")];
    let service = Service::start_with(config(&pool, &settings));
    let document = service.get("/openapi.json").await.expect(200);
    let info = &document["info"];
    assert_eq!(json!([info["title"], info["version"]]), json!(["Flows <&> more", "7.8.9"]));
    let description = info["description"].as_str().unwrap_or_default();
    assert!(description.starts_with("Ours\n\n## First steps"), "{description}");
    for part in ["## Authentication", "## Paging", "## Errors", "`X-API-Key`"] {
        assert!(description.contains(part), "{part} is missing: {description}");
    }
    let paths: Vec<&String> = document["paths"].as_object().expect("paths").keys().collect();
    assert!(paths.iter().all(|path| !path.starts_with("/api/v1")), "{paths:?}");
    assert!(document["paths"]["/v9/runs"].is_object() && document["paths"]["/health"].is_object(), "{paths:?}");
    for page in ["/docs", "/redoc"] {
        let html = service.get(page).await.text;
        assert!(html.contains("<title>Flows &lt;&amp;> more"), "{html}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn both_browsers_are_served_from_here_and_load_nothing_from_elsewhere(pool: PgPool) {
    let service = Service::start(&pool);
    for (page, refers) in [("/docs", "/docs/start.js"), ("/redoc", "/redoc")] {
        let answer = service.get(page).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some("text/html; charset=utf-8")));
        assert!(answer.header("content-security-policy").is_some_and(|policy| policy.contains("default-src 'none'")));
        assert!(!answer.text.contains("//"), "{page} points to another host: {}", answer.text);
        let more = service.get(refers).await.text;
        assert!(answer.text.contains("/openapi.json") || more.contains("/openapi.json"), "{page} shows no document");
        let mut assets = 0;
        for attribute in ["src=\"", "href=\""] {
            for rest in answer.text.split(attribute).skip(1) {
                let asset = rest.split('"').next().unwrap_or_default();
                if asset.starts_with("data:") {
                    continue;
                }
                assets += 1;
                let (status, headers, bytes) = service.bytes(asset).await;
                assert_eq!(status, 200, "{asset}");
                assert!(bytes.len() > 100, "{asset} is empty");
                assert_eq!(headers["x-content-type-options"], "nosniff", "{asset}");
                let expected = match asset.rsplit('.').next() {
                    Some("js") => "text/javascript",
                    Some("css") => "text/css",
                    Some("png") => "image/png",
                    _ => "application/json",
                };
                assert_eq!(headers.get_all("content-type").iter().count(), 1, "{asset} has one type");
                let content_type = headers["content-type"].to_str().expect("ASCII");
                assert!(content_type.starts_with(expected), "{asset} is {content_type}");
            }
        }
        assert!(assets > 0, "{page} loads nothing");
    }
    let old = service.get("/docs/index.html").await;
    assert_eq!((old.status.as_u16(), old.header("location")), (308, Some("/docs")));
    for missing in ["/docs/missing.js", "/docs/..%2F..%2Fetc%2Fpasswd", "/docs/%FF", "/redoc/missing", "/docs/a/b"] {
        service.get(missing).await.error(404);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_document_has_the_address_of_the_operator(pool: PgPool) {
    for (contact, member) in [("workflows@example.com", "email"), ("https://help.example.com/workflows", "url")] {
        let service = Service::start_with(config(&pool, &[("API_CONTACT", contact)]));
        let document = service.get("/openapi.json").await.expect(200);
        assert_eq!(document["info"]["contact"], json!({"name": "The operator of this service", member: contact}));
        service.stop().await;
    }
}
