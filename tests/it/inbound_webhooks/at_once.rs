//! What happens to a trigger while a delivery to it is under way.

use futures_util::future::join;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;
use workflow_api::db::migrations::MIGRATOR;

use super::{SECRET, create, deliver, github, path_of, runs, started, trigger};
use crate::service::{Service, config, eventually};

/// What the sessions of the database wait for, as soon as there are so many that wait.
async fn waiting_for(pool: &PgPool, count: usize) -> Vec<String> {
    let sql = "SELECT l.locktype FROM pg_locks l JOIN pg_stat_activity a USING (pid)
               WHERE NOT l.granted AND a.datname = current_database() ORDER BY 1";
    eventually(&format!("{count} sessions wait"), async || {
        let types: Vec<String> = sqlx::query_scalar(sql).fetch_all(pool).await.expect("locks");
        (types.len() == count).then_some(types)
    })
    .await
}

fn id_of(created: &Value) -> Uuid {
    created["id"].as_str().expect("an id").parse().expect("a UUID")
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_trigger_that_is_deleted_or_paused_meanwhile_starts_nothing(pool: PgPool) {
    let service = started(&pool).await;
    let pause = "UPDATE triggers SET enabled = false WHERE id = $1";
    let delete = "DELETE FROM triggers WHERE id = $1";
    for (name, is_by_name, sql, status, code) in [
        ("one", false, pause, 503, "trigger_paused"),
        ("two", true, pause, 503, "trigger_paused"),
        ("three", false, delete, 404, "hook_not_found"),
        ("four", true, delete, 401, "delivery_refused"),
    ] {
        let created = create(&service, name, json!({"preset": "github", "secrets": [SECRET]})).await;
        let path = if is_by_name { format!("/api/v1/hooks/default/{name}") } else { path_of(&created) };
        // The delivery has found the trigger, and waits for a change that is committed before it starts a run.
        let mut change = pool.begin().await.expect("a transaction");
        sqlx::query(sql).bind(id_of(&created)).execute(&mut *change).await.expect("changed");
        let headers = github(b"{}", "d-1", SECRET);
        let delivery = deliver(&service, &path, &headers, "{}");
        let commit = async {
            waiting_for(&pool, 1).await;
            change.commit().await.expect("committed");
        };
        let (answer, ()) = join(delivery, commit).await;
        assert_eq!(answer.error(status)["code"], code, "{name}");
    }
    assert!(runs(&service).await.is_empty());
}

/// C3, test 8: an answer that waited for a row of the trigger would tell that there is one.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_refusal_is_answered_without_a_write(pool: PgPool) {
    let service = started(&pool).await;
    let created = create(&service, "known", json!({"preset": "github", "secrets": [SECRET]})).await;
    let mut change = pool.begin().await.expect("a transaction");
    let sql = "SELECT FROM webhook_triggers WHERE trigger_id = $1 FOR UPDATE";
    sqlx::query(sql).bind(id_of(&created)).execute(&mut *change).await.expect("locked");
    let headers = github(b"{}", "d-1", "another secret");
    for path in ["/api/v1/hooks/default/known", "/api/v1/hooks/default/unknown"] {
        let answer = deliver(&service, path, &headers, "{}").await;
        assert_eq!(answer.error(401)["code"], "delivery_refused", "{path}");
    }
    // The reason is recorded as soon as it can be.
    assert_eq!(waiting_for(&pool, 1).await.len(), 1);
    change.commit().await.expect("committed");
    eventually("the owner sees the reason", async || {
        let shown = trigger(&service, &created).await;
        shown["webhook"]["refused_for"].as_str().map(drop)
    })
    .await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_delivery_and_a_firing_by_hand_take_their_locks_in_one_order(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("QUOTA_QUEUED_RUNS", "100")]));
    service.one_step_workflow().await;
    let created = create(&service, "both", json!({"preset": "github", "secrets": [SECRET]})).await;
    let (hook, id) = (path_of(&created), id_of(&created));
    // Somebody else has the lock of the quota.
    let mut other = pool.begin().await.expect("a transaction");
    let sql = "SELECT pg_advisory_xact_lock(hashtextextended('quota/default/queued runs', 0))";
    sqlx::query(sql).execute(&mut *other).await.expect("locked");
    let headers = github(b"{}", "d-1", SECRET);
    let delivery = deliver(&service, &hook, &headers, "{}");
    let by_hand = async {
        assert_eq!(waiting_for(&pool, 1).await, ["advisory"]);
        service.post(&format!("/api/v1/triggers/{id}/fire"), &json!({})).await
    };
    let release = async {
        // Who fires by hand waits for the trigger, and not behind the delivery for the quota with the trigger in hand.
        let waiting = waiting_for(&pool, 2).await;
        other.commit().await.expect("released");
        waiting
    };
    let (delivered, (fired, waiting)) = join(delivery, join(by_hand, release)).await;
    assert!(waiting.iter().filter(|kind| *kind == "advisory").count() == 1, "{waiting:?}");
    delivered.expect(202);
    fired.expect(202);
    assert_eq!(trigger(&service, &created).await["counters"]["fired"], 2);
}
