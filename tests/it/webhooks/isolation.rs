//! Isolation: whoever is slow takes no place from others.

use serde_json::json;
use sqlx::PgPool;
use workflow_api::{clock::Clock, db::migrations::MIGRATOR};

use super::{Receiver, WEBHOOKS, record, record_of};
use crate::{access::Admin, service::eventually};

/// The clock stands still, so nothing times out: what hangs keeps its places. All places of a process would be theirs.
#[sqlx::test(migrator = "MIGRATOR")]
async fn eight_endpoints_that_hang_leave_places_to_their_organisation_and_to_others(pool: PgPool) {
    let admin = Admin::start_by(&pool, &[], Clock::stopped());
    let receiver = Receiver::content().await;
    let endpoint = |name: &str, path: &str, event_type: &str, places: u32| json!({"name": name, "url": receiver.url(path), "event_types": [event_type], "max_in_flight": places});
    for number in 0..8 {
        let slow = endpoint(&format!("slow {number}"), "/slow", "run.failed", 64);
        admin.post(WEBHOOKS, &slow).await.expect(201);
    }
    record(&pool, "run.failed", 100).await;
    eventually("they have places", async || (receiver.count("/slow") >= 160).then_some(())).await;
    // Of the same organisation, and of another one.
    admin.post(WEBHOOKS, &endpoint("beside", "/beside", "run.completed", 8)).await.expect(201);
    admin.post("/api/v1/organizations", &json!({"id": "acme", "name": "Acme"})).await.expect(201);
    let other = admin.post(WEBHOOKS, &endpoint("other", "/other", "run.completed", 8)).await.expect(201);
    let sql = "UPDATE webhooks SET organization_id = 'acme' WHERE id::text = $1";
    sqlx::query(sql).bind(other["id"].as_str()).execute(&pool).await.expect("moved");
    record(&pool, "run.completed", 500).await;
    record_of(&pool, "acme", "run.completed", 500).await;
    receiver.got("/beside", 500).await;
    receiver.got("/other", 500).await;
    let slow = receiver.count("/slow");
    assert!(slow <= 256, "{slow} places: an organisation has at most as many as stay free");
}
