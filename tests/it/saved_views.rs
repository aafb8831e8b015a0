//! Saved views: one's own, and those of the organisation.

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::{
    access::{Admin, claims, secret, signed},
    service::{Answer, Service},
};

const VIEWS: &str = "/api/v1/views";

/// `Authorization` of somebody.
fn bearer(more: &Value) -> String {
    format!("Bearer {}", signed(&json!({"alg": "HS256"}), &claims(more), &secret(), Algorithm::HS256))
}

async fn send(service: &Service, method: &str, path: &str, bearer: &str, body: &Value) -> Answer {
    let headers = [("authorization", bearer), ("content-type", "application/json")];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    service.send(method, path, &headers, body).await
}

/// Names of the views that somebody sees.
async fn names(service: &Service, query: &str, bearer: &str) -> Vec<String> {
    let list = send(service, "GET", &format!("{VIEWS}{query}"), bearer, &json!(null)).await.expect(200);
    let items = list["items"].as_array().expect("views");
    items.iter().map(|view| view["name"].as_str().expect("a name").to_owned()).collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_view_is_seen_by_its_owner_or_by_the_organization_and_by_nobody_else(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let service = &admin.service;
    admin.post("/api/v1/organizations", &json!({"id": "acme", "name": "Acme"})).await.expect(201);
    let ann = bearer(&json!({"sub": "ann", "role": "viewer"}));
    let bob = bearer(&json!({"sub": "bob", "role": "editor"}));
    // The same name elsewhere.
    let other = bearer(&json!({"sub": "ann", "role": "admin", "organization_id": "acme"}));
    let view = json!({"screen": "runs", "name": "Failed", "query": "status=FAILED&columns=input.x"});
    let own = send(service, "POST", VIEWS, &ann, &view).await;
    let path = own.header("location").expect("its path").to_owned();
    let own = own.expect(201);
    assert_eq!((&own["shared"], &own["query"], &own["created_by"]), (&json!(false), &view["query"], &json!("ann")));
    assert_eq!(path, format!("{VIEWS}/{}", own["id"].as_str().expect("an id")));
    assert_eq!(send(service, "GET", &path, &ann, &json!(null)).await.expect(200), own);
    let with = |more: Value| {
        let mut view = view.clone();
        view.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        view
    };
    let shared = with(json!({"name": "Everybody's", "shared": true}));
    assert_eq!(send(service, "POST", VIEWS, &ann, &shared).await.error(403)["code"], "forbidden");
    let shared = send(service, "POST", VIEWS, &bob, &shared).await.expect(201);
    let shared_path = format!("{VIEWS}/{}", shared["id"].as_str().expect("an id"));
    send(service, "POST", VIEWS, &bob, &with(json!({"screen": "agents", "name": "Bob's"}))).await.expect(201);
    assert_eq!(names(service, "", &ann).await, ["Everybody's", "Failed"]);
    assert_eq!(names(service, "", &bob).await, ["Bob's", "Everybody's"]);
    assert_eq!(names(service, "?screen=agents", &bob).await, ["Bob's"]);
    assert_eq!(names(service, "", &other).await, [""; 0]);
    for (method, body) in [("GET", json!(null)), ("PUT", json!({"name": "x"})), ("DELETE", json!(null))] {
        for (path, by) in [(&path, &bob), (&path, &other), (&path, &admin.bearer), (&shared_path, &other)] {
            assert_eq!(send(service, method, path, by, &body).await.error(404)["code"], "view_not_found", "{method}");
        }
    }
    for (method, body) in [("PUT", json!({"name": "x"})), ("DELETE", json!(null))] {
        assert_eq!(send(service, method, &shared_path, &ann, &body).await.error(403)["code"], "forbidden", "{method}");
    }
    let changed = send(service, "PUT", &path, &ann, &json!({"query": "status=COMPLETED"})).await.expect(200);
    assert_eq!((&changed["name"], &changed["query"]), (&json!("Failed"), &json!("status=COMPLETED")));
    let changed = send(service, "PUT", &shared_path, &admin.bearer, &json!({"name": "Ours"})).await.expect(200);
    assert_eq!(
        (&changed["name"], &changed["updated_by"], &changed["created_by"]),
        (&json!("Ours"), &json!("admin"), &json!("bob"))
    );
    send(service, "DELETE", &path, &ann, &json!(null)).await.expect(200);
    send(service, "DELETE", &shared_path, &bob, &json!(null)).await.expect(200);
    assert_eq!(names(service, "", &ann).await, [""; 0]);
    let entries = admin.get("/api/v1/audit-logs?entity_type=saved_view").await.expect(200);
    assert_eq!(entries["items"].as_array().map(Vec::len), Some(7), "{entries}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_name_is_taken_once_for_each_list_and_owner_and_nobody_has_too_many_views(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let service = &admin.service;
    let view =
        |screen: &str, name: &str, shared: bool| json!({"screen": screen, "name": name, "query": "", "shared": shared});
    admin.post(VIEWS, &view("runs", "a", false)).await.expect(201);
    assert_eq!(admin.post(VIEWS, &view("runs", "a", false)).await.error(409)["code"], "view_name_taken");
    admin.post(VIEWS, &view("agents", "a", false)).await.expect(201);
    admin.post(VIEWS, &view("runs", "a", true)).await.expect(201);
    let ann = bearer(&json!({"sub": "ann"}));
    send(service, "POST", VIEWS, &ann, &view("runs", "a", false)).await.expect(201);
    let second = admin.post(VIEWS, &view("runs", "b", false)).await.expect(201);
    let path = format!("{VIEWS}/{}", second["id"].as_str().expect("an id"));
    assert_eq!(admin.put(&path, &json!({"name": "a"})).await.error(409)["code"], "view_name_taken");
    for number in 3..100 {
        admin.post(VIEWS, &view("runs", &format!("view {number}"), false)).await.expect(201);
    }
    assert_eq!(admin.post(VIEWS, &view("runs", "one more", false)).await.error(409)["code"], "too_many_views");
    admin.post(VIEWS, &view("runs", "one more", true)).await.expect(201);
    for (body, expected) in [
        (json!({"name": "x", "query": ""}), "body.screen missing"),
        (json!({"screen": "runs", "name": " ", "query": ""}), "body.name value_error"),
        (json!({"screen": "runs", "name": "x", "query": "x".repeat(4097)}), "body.query string_too_long"),
        (json!({"screen": "runs", "name": "x", "query": "", "owner": "bob"}), "body.owner extra_forbidden"),
        (json!({"screen": "runs", "name": "x", "query": "", "shared": 2}), "body.shared bool_type"),
    ] {
        assert_eq!(admin.post(VIEWS, &body).await.field_errors(), [expected], "{body}");
    }
}
