//! Where agents' URLs may lead: what is refused when it is saved, and what when it is called.

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::{
    path::{Agent, Executor, attempts, ended, shouting},
    service::{Service, config},
};

const AGENTS: &str = "/api/v1/agents";

/// A service that may call public addresses and these.
fn service(pool: &PgPool, allow: &str) -> Service {
    Service::start_with(config(pool, &[("EGRESS_ALLOW", allow)]))
}

fn health_path(agent: &Value) -> String {
    format!("{AGENTS}/{}/health", agent["id"].as_str().expect("an id"))
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_url_that_leads_inside_is_refused_wherever_it_is_saved(pool: PgPool) {
    let service = service(&pool, "");
    let known = service.agent("known", "http://agent.example/").await;
    let path = format!("{AGENTS}/{}", known["id"].as_str().expect("an id"));
    for url in [
        "http://127.0.0.1:9010/upper",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://127.0.0.1./",
        "http://１２７.0.0.1/",
        "http://10.1.2.3/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[2002:7f00:1::]/",
        "http://[fd00:ec2::254]/",
        "http://user:secret@agent.example/",
        "http://user@agent.example/",
    ] {
        let agent = json!({"name": "new", "url": url});
        let create = service.post(AGENTS, &agent).await;
        assert_eq!(create.field_errors(), ["body.url value_error"], "{url}");
        let message = create.error(422)["errors"][0]["message"].as_str().expect("a message").to_owned();
        assert!(message.contains("not allowed") && !message.contains("secret"), "{message}");
        assert_eq!(service.put(&path, &json!({"url": url})).await.field_errors(), ["body.url value_error"], "{url}");
        let document = json!({"format": "workflow-api/definitions", "version": 1, "agents": [agent]});
        let import = service.post("/api/v1/import", &document).await;
        assert_eq!(import.field_errors(), ["body.agents.0.url value_error"], "{url}");
    }
    let other = service.post(AGENTS, &json!({"name": "new", "url": "gopher://agent.example/"})).await;
    assert_eq!(other.field_errors(), ["body.url url_scheme"]);
    assert_eq!(service.get(AGENTS).await.expect(200)["total"], 1);
    for (name, url) in
        [("name", "http://localhost:1/"), ("public", "http://93.184.215.14/"), ("six", "http://[2606:4700::1]/")]
    {
        service.agent(name, url).await;
    }
}

/// What was let in before, by the reference deployment say, can be renamed and switched off, and is not called.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_url_is_checked_again_where_it_is_called(pool: PgPool) {
    let service = service(&pool, "10.0.0.0/8");
    let _executor = Executor::start(&service);
    let (agent, url) = Agent::start(shouting).await;
    let port = url.trim_end_matches('/').rsplit(':').next().expect("a port").to_owned();
    let named = service.agent("named", &format!("http://localhost:{port}/")).await;
    let literal = service.agent("literal", "http://agent.example/").await;
    sqlx::query("UPDATE agents SET url = $1 WHERE name = 'literal'").bind(&url).execute(&pool).await.expect("a URL");
    for (name, registered) in [("named", &named), ("literal", &literal)] {
        let health = service.get(&health_path(registered)).await.expect(200);
        assert_eq!((&health["status"], &health["response_time_ms"]), (&json!("unhealthy"), &json!(null)), "{name}");
        assert!(health["message"].as_str().is_some_and(|text| text.contains("not allowed")), "{name}: {health}");
        assert!(!health.to_string().contains("127.0.0.1"), "{health}");
        let workflow = service.chain(name, &[name]).await;
        let run_id = service.execute(workflow["id"].as_str().expect("an id")).await;
        let run = ended(&service, &run_id).await;
        let message = run["error_message"].as_str().expect("a message");
        let expected = format!("Step 's0' failed: agent '{name}': the address of this agent's URL is not allowed");
        assert_eq!((&run["status"], message), (&json!("FAILED"), expected.as_str()));
        assert_eq!(attempts(&service, &run_id).await, ["s0 FAILED"], "it is not tried again");
    }
    assert_eq!(agent.calls().len(), 0);
    let path = format!("{AGENTS}/{}", literal["id"].as_str().expect("an id"));
    let switched_off = json!({"url": url, "status": "inactive"});
    assert_eq!(service.put(&path, &switched_off).await.expect(200)["status"], "inactive");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_listed_host_is_called_wherever_its_name_leads(pool: PgPool) {
    let service = service(&pool, "localhost");
    let _executor = Executor::start(&service);
    let (agent, url) = Agent::start(shouting).await;
    let port = url.trim_end_matches('/').rsplit(':').next().expect("a port").to_owned();
    service.agent("named", &format!("http://localhost:{port}/")).await;
    let refused = service.post(AGENTS, &json!({"name": "literal", "url": url})).await;
    assert_eq!(refused.field_errors(), ["body.url value_error"]);
    let workflow = service.chain("w", &["named"]).await;
    let run_id = service.execute(workflow["id"].as_str().expect("an id")).await;
    assert_eq!(ended(&service, &run_id).await["status"], "COMPLETED");
    assert_eq!(agent.calls().len(), 1);
}
