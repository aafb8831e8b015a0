//! Organisations: nothing of one is seen or reached from another, and none has more than it may.

use futures_util::future::join_all;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use super::{Admin, claims, roles::operations, secret, signed};
use crate::service::{Answer, Service, eventually};

const NOWHERE: &str = "00000000-0000-0000-0000-000000000000";

/// Somebody with an API key, of some organisation.
pub struct Member<'a> {
    pub service: &'a Service,
    pub key: String,
}

impl Member<'_> {
    pub async fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        let headers = [("x-api-key", self.key.as_str()), ("content-type", "application/json")];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.service.send(method, &format!("/api/v1{path}"), &headers, body).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &json!(null)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, body).await
    }

    /// An agent and a one-step workflow; the workflow's id.
    pub async fn workflow(&self, name: &str) -> String {
        self.post("/agents", &json!({"name": "worker", "url": "http://127.0.0.1:9/"})).await.expect(201);
        let steps = json!({"a": {"id": "a", "agent_name": "worker", "input_mapping": {}}});
        let created = self.post("/workflows", &json!({"name": name, "start_step": "a", "steps": steps})).await;
        created.expect(201)["id"].as_str().expect("an id").to_owned()
    }
}

impl Admin {
    /// An administrator of a new organisation.
    pub async fn organization(&self, id: &str, quotas: &Value) -> Member<'_> {
        self.post("/api/v1/organizations", &json!({"id": id, "name": id, "quotas": quotas})).await.expect(201);
        let body = json!({"name": format!("admin of {id}"), "role": "admin", "organization_id": id});
        Member { service: &self.service, key: self.key(&body).await.0 }
    }
}

/// What an answer tells, without what is different each time.
fn told(answer: &Answer) -> (u16, Value, Value, Value) {
    let body = answer.json();
    (answer.status.as_u16(), body["code"].clone(), body["detail"].clone(), body["errors"].clone())
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_another_organisation_has_cannot_be_told_from_what_does_not_exist(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let own = Member { service: &admin.service, key: admin.key(&json!({"name": "own", "role": "admin"})).await.0 };
    let workflow = own.workflow("theirs").await;
    let agent = own.get("/agents").await.expect(200)["items"][0]["id"].as_str().expect("an id").to_owned();
    let run = own.post(&format!("/workflows/{workflow}/execute"), &json!({"input_data": {}})).await.expect(202);
    let run = run["run_id"].as_str().expect("an id").to_owned();
    let (_, key) = admin.key(&json!({"name": "another", "role": "viewer"})).await;
    let other = admin.organization("acme", &json!(null)).await;

    for (method, path, _) in operations(&admin.service).await {
        let filled = |pairs: [(&str, &str); 8]| {
            pairs.iter().fold(path.clone(), |path, (name, value)| path.replace(&format!("{{{name}}}"), value))
        };
        let theirs = filled([
            ("agent_id", &agent),
            ("workflow_id", &workflow),
            ("run_id", &run),
            ("key_id", &key),
            ("name", "theirs"),
            ("version", "1"),
            ("other", "1"),
            ("organization_id", "default"),
        ]);
        if theirs == path {
            continue;
        }
        let nobodys = filled([
            ("agent_id", NOWHERE),
            ("workflow_id", NOWHERE),
            ("run_id", "run-x"),
            ("key_id", NOWHERE),
            ("name", "nothing"),
            ("version", "1"),
            ("other", "1"),
            ("organization_id", "nothing"),
        ]);
        for body in [json!({}), json!({"input_data": {}, "version": 1, "reason": "x"})] {
            let (seen, unseen) =
                (other.send(&method, &theirs, &body).await, other.send(&method, &nobodys, &body).await);
            assert_eq!(told(&seen), told(&unseen), "{method} {path} {body}");
            let status = seen.status.as_u16();
            // A name that is free can be put to.
            let is_put = method == "PUT" && path.contains("workflow-names");
            // A route that takes no body is told so before anything is looked for.
            let is_refused = status == 400 && seen.text.contains("unexpected_body");
            assert!(is_put || is_refused || [404, 422].contains(&status), "{method} {path} {body}: {}", seen.text);
        }
    }
    // None of it has changed anything.
    let after = own.get(&format!("/workflows/{workflow}")).await.expect(200);
    assert_eq!((&after["status"], &after["version"]), (&json!("active"), &json!(1)));
    assert_eq!(own.get(&format!("/runs/{run}")).await.expect(200)["status"], "PENDING");
    assert_eq!(own.get(&format!("/agents/{agent}")).await.expect(200)["status"], "active");
    assert_eq!(own.get(&format!("/api-keys/{key}")).await.expect(200)["revoked_at"], json!(null));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn lists_totals_and_names_are_those_of_one_organisation(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let first = admin.organization("first", &json!(null)).await;
    let second = admin.organization("second", &json!(null)).await;
    // The same names in both, from version 1 in each.
    let (one, two) = (first.workflow("shared").await, second.workflow("shared").await);
    assert_ne!(one, two);
    for (member, id) in [(&first, &one), (&second, &two)] {
        let found = member.get("/workflow-names/shared").await.expect(200);
        assert_eq!((found["id"].as_str(), &found["version"]), (Some(id.as_str()), &json!(1)));
        for list in
            ["/agents", "/workflows", "/api-keys", "/agents?name=worker", "/workflows?name=shared", "/organizations"]
        {
            assert_eq!(member.get(list).await.expect(200)["total"], 1, "{list}");
        }
        assert_eq!(member.get("/runs").await.expect(200)["total"], 0);
        let exported = member.get("/export").await.expect(200);
        assert_eq!(
            (exported["agents"].as_array().map(Vec::len), exported["workflows"].as_array().map(Vec::len)),
            (Some(1), Some(1))
        );
        assert_eq!(member.get(&format!("/workflows/{id}/versions")).await.expect(200)["total"], 1);
    }
    first.post("/workflow-names/shared/execute", &json!({"input_data": {}})).await.expect(202);
    assert_eq!(first.get("/runs").await.expect(200)["total"], 1);
    assert_eq!(second.get("/runs").await.expect(200)["total"], 0);
    // The workflow of one names the agent of the same one.
    let agent =
        first.get("/agents?name=worker").await.expect(200)["items"][0]["id"].as_str().expect("an id").to_owned();
    first.send("DELETE", &format!("/agents/{agent}"), &json!(null)).await.expect(200);
    let definition = json!({"name": "more", "start_step": "a",
        "steps": {"a": {"id": "a", "agent_name": "worker", "input_mapping": {}}}});
    assert_eq!(first.post("/workflows", &definition).await.error(400)["code"], "agent_not_active");
    second.post("/workflows", &definition).await.expect(201);
    assert_eq!(admin.get("/api/v1/workflows").await.expect(200)["total"], 0);
    assert_eq!(admin.get("/api/v1/organizations").await.expect(200)["total"], 3);
    // The same key of two organisations is two keys.
    let body = json!({"input_data": {}});
    let mut runs = Vec::new();
    for (member, id) in [(&second, &two), (&first, &one)] {
        let headers = [("x-api-key", member.key.as_str()), ("idempotency-key", "same")];
        let path = format!("/api/v1/workflows/{id}/execute");
        runs.push(member.service.send("POST", &path, &headers, body.to_string()).await.expect(202)["run_id"].clone());
    }
    assert_ne!(runs[0], runs[1]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_token_names_its_organisation(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let acme = admin.organization("acme", &json!(null)).await;
    acme.workflow("theirs").await;
    let look = async |more: Value| {
        let token = signed(&json!({"alg": "HS256"}), &claims(&more), &secret(), Algorithm::HS256);
        super::look(&admin.service, &token).await
    };
    assert_eq!(look(json!({"organization_id": "acme"})).await.expect(200)["total"], 1);
    assert_eq!(look(json!({"organization_id": "default"})).await.expect(200)["total"], 0);
    assert_eq!(look(json!({})).await.expect(200)["total"], 0);
    for wrong in [json!("nobody"), json!("ACME"), json!(""), json!(null), json!(1), json!(["acme"]), json!("acme\0")] {
        look(json!({"organization_id": wrong})).await.error(401);
    }
    // A token of an API key is the key's organisation's.
    let issued = acme.post("/auth/token", &json!(null)).await.expect(200);
    let token = issued["access_token"].as_str().expect("a token");
    assert_eq!(super::look(&admin.service, token).await.expect(200)["total"], 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn only_the_default_organisation_manages_organisations(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let acme = admin.organization("acme", &json!({"agents": 5})).await;
    assert_eq!(acme.get("/organizations/acme").await.expect(200)["usage"]["api_keys"], 1);
    acme.post("/organizations", &json!({"id": "more", "name": "More"})).await.error(403);
    acme.send("PUT", "/organizations/acme", &json!({"quotas": {"agents": null}})).await.error(403);
    let foreign = json!({"name": "x", "role": "admin", "organization_id": "default"});
    assert_eq!(acme.post("/api-keys", &foreign).await.error(404)["code"], "organization_not_found");
    acme.post("/api-keys", &json!({"name": "x", "role": "viewer", "organization_id": "acme"})).await.expect(201);
    let nobodys = json!({"name": "x", "role": "admin", "organization_id": "nothing"});
    admin.post("/api/v1/api-keys", &nobodys).await.error(404);

    for (body, field) in [
        (json!({"name": "x"}), "body.id missing"),
        (json!({"id": "A", "name": "x"}), "body.id value_error"),
        (json!({"id": "a"}), "body.name missing"),
        (json!({"id": "a", "name": " "}), "body.name value_error"),
        (json!({"id": "a", "name": "x", "quota": {}}), "body.quota extra_forbidden"),
        (json!({"id": "a", "name": "x", "quotas": {"agent": 1}}), "body.quotas.agent extra_forbidden"),
        (json!({"id": "a", "name": "x", "quotas": {"agents": -1}}), "body.quotas.agents greater_than_equal"),
    ] {
        let answer = admin.post("/api/v1/organizations", &body).await;
        assert_eq!(answer.field_errors(), [field], "{body}");
    }
    let taken = json!({"id": "acme", "name": "Acme again"});
    assert_eq!(admin.post("/api/v1/organizations", &taken).await.error(409)["code"], "organization_id_taken");
    let put = async |id: &str, body: Value| {
        let headers = [("authorization", admin.bearer.as_str()), ("content-type", "application/json")];
        admin.service.send("PUT", &format!("/api/v1/organizations/{id}"), &headers, body.to_string()).await
    };
    let changed = put("acme", json!({"name": "Acme Ltd", "quotas": {"runs": 1}})).await;
    assert_eq!(changed.field_errors(), ["body.quotas.runs extra_forbidden"]);
    let changed = put("acme", json!({"name": "Acme Ltd", "quotas": {"queued_runs": 7}})).await.expect(200);
    assert_eq!(
        (&changed["name"], &changed["quotas"]["agents"], &changed["quotas"]["queued_runs"]),
        (&json!("Acme Ltd"), &json!(5), &json!(7))
    );
    assert_eq!(put("default", json!({"status": "suspended"})).await.error(409)["code"], "default_organization");
    put("nothing", json!({})).await.error(404);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_suspended_organisation_lets_nobody_in_until_it_is_active_again(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let acme = admin.organization("acme", &json!(null)).await;
    let token = claims(&json!({"organization_id": "acme"}));
    let token = signed(&json!({"alg": "HS256"}), &token, &secret(), Algorithm::HS256);
    acme.get("/agents").await.expect(200);
    super::look(&admin.service, &token).await.expect(200);
    for (status, expected) in [("suspended", 401), ("active", 200)] {
        let headers = [("authorization", admin.bearer.as_str()), ("content-type", "application/json")];
        let body = json!({"status": status}).to_string();
        admin.service.send("PUT", "/api/v1/organizations/acme", &headers, body).await.expect(200);
        for by_key in [true, false] {
            eventually("the change counts", async || {
                let answer = if by_key { acme.get("/agents").await } else { super::look(&admin.service, &token).await };
                (answer.status.as_u16() == expected).then_some(())
            })
            .await;
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn of_many_at_once_a_quota_lets_in_as_many_as_it_says(pool: PgPool) {
    let admin = Admin::start(&pool, &[("QUOTA_API_KEYS", "3"), ("QUOTA_WORKFLOWS", "100")]);
    let acme = admin.organization("acme", &json!({"agents": 3, "workflows": 2, "queued_runs": 5})).await;
    let granted = |answers: &[Answer], refused: u16| {
        for answer in answers.iter().filter(|answer| !answer.status.is_success()) {
            assert_eq!(
                (answer.status.as_u16(), &answer.json()["code"]),
                (refused, &json!("quota_exceeded")),
                "{}",
                answer.text
            );
        }
        answers.iter().filter(|answer| answer.status.is_success()).count()
    };
    let agents = join_all((0..10).map(|number| {
        let body = json!({"name": format!("agent-{number}"), "url": "http://127.0.0.1:9/"});
        let acme = &acme;
        async move { acme.post("/agents", &body).await }
    }));
    assert_eq!(granted(&agents.await, 403), 3);
    let agents = acme.get("/agents").await.expect(200);
    let (name, id) = (agents["items"][0]["name"].clone(), agents["items"][0]["id"].as_str().expect("an id").to_owned());
    let definition = |workflow: String| json!({"name": workflow, "start_step": "a", "steps": {"a": {"id": "a", "agent_name": name, "input_mapping": {}}}});
    let workflows = join_all((0..6).map(|number| {
        let (acme, body) = (&acme, definition(format!("workflow-{number}")));
        async move { acme.post("/workflows", &body).await }
    }));
    let workflows = workflows.await;
    assert_eq!(granted(&workflows, 403), 2);
    let made = workflows.into_iter().find(|answer| answer.status.is_success()).expect("one").json();
    // A further version is not a further workflow.
    acme.post("/workflows", &definition(made["name"].as_str().expect("a name").to_owned())).await.expect(201);
    let keys = join_all((0..6).map(|number| {
        let (acme, body) = (&acme, json!({"name": format!("key-{number}"), "role": "viewer"}));
        async move { acme.post("/api-keys", &body).await }
    }));
    assert_eq!(granted(&keys.await, 403), 2, "there was one already");

    let path = format!("/workflows/{}/execute", made["id"].as_str().expect("an id"));
    let input = json!({"input_data": {}});
    let runs = join_all((0..20).map(|_| acme.post(&path, &input))).await;
    assert_eq!(granted(&runs, 429), 5);
    let refused = runs.iter().find(|answer| !answer.status.is_success()).expect("one");
    assert!(refused.header("retry-after").is_some());
    let usage = acme.get("/organizations/acme").await.expect(200)["usage"].clone();
    assert_eq!(usage, json!({"agents": 3, "workflows": 2, "api_keys": 3, "queued_runs": 5}));
    // What goes makes room.
    let run = acme.get("/runs").await.expect(200)["items"][0]["run_id"].as_str().expect("an id").to_owned();
    acme.post(&format!("/runs/{run}/cancel"), &json!(null)).await.expect(200);
    acme.post(&path, &json!({"input_data": {}})).await.expect(202);
    acme.send("DELETE", &format!("/agents/{id}"), &json!(null)).await.expect(200);
    acme.post("/agents", &json!({"name": "more", "url": "http://127.0.0.1:9/"})).await.expect(201);
    // What comes back needs room as what is new does.
    let undelete = json!({"status": "active"});
    let refused = acme.send("PUT", &format!("/agents/{id}"), &undelete).await.error(403);
    assert_eq!(refused["code"], "quota_exceeded");
    let document = json!({"format": "workflow-api/definitions", "version": 1, "agents": [{"name": name}]});
    let refused = acme.post("/import?dry_run=true", &document).await.expect(200);
    assert!(refused["errors"][0]["message"].as_str().expect("a text").contains("3 agents"), "{refused}");
    let retry = format!("/runs/{run}/retry");
    assert_eq!(acme.post(&retry, &json!(null)).await.error(429)["code"], "quota_exceeded");
    let queued = acme.get("/runs?status=PENDING").await.expect(200)["items"][0]["run_id"].clone();
    acme.post(&format!("/runs/{}/cancel", queued.as_str().expect("an id")), &json!(null)).await.expect(200);
    acme.post(&retry, &json!(null)).await.expect(202);
    let workflow = format!("/workflows/{}", made["id"].as_str().expect("an id"));
    let versions = acme.get(&format!("/workflows?name={}", made["name"].as_str().expect("a name"))).await.expect(200);
    for version in versions["items"].as_array().expect("versions") {
        let path = format!("/workflows/{}", version["id"].as_str().expect("an id"));
        acme.send("DELETE", &path, &json!(null)).await.expect(200);
    }
    let mut another = definition("another".to_owned());
    another["steps"]["a"]["agent_name"] = json!("more");
    acme.post("/workflows", &another).await.expect(201);
    assert_eq!(acme.send("PUT", &workflow, &undelete).await.error(403)["code"], "quota_exceeded");
    // Others are not held to it.
    let other = admin.organization("other", &json!(null)).await;
    let id = other.workflow("w").await;
    for _ in 0..7 {
        other.post(&format!("/workflows/{id}/execute"), &json!({"input_data": {}})).await.expect(202);
    }
}
