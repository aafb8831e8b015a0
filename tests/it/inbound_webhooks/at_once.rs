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

/// Nobody waits with the trigger in hand, neither for another delivery nor for what that one has.
#[sqlx::test(migrator = "MIGRATOR")]
async fn deliveries_and_a_firing_by_hand_do_not_wait_for_each_other_before_they_are_counted(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("QUOTA_QUEUED_RUNS", "100")]));
    service.one_step_workflow().await;
    let created = create(&service, "both", json!({"preset": "github", "secrets": [SECRET]})).await;
    let (hook, id) = (path_of(&created), id_of(&created));
    // Somebody else has the lock of the quota.
    let mut other = pool.begin().await.expect("a transaction");
    let sql = "SELECT pg_advisory_xact_lock(hashtextextended('quota/default/queued runs', 0))";
    sqlx::query(sql).execute(&mut *other).await.expect("locked");
    let [one, two] = ["d-1", "d-2"].map(|id| github(b"{}", id, SECRET));
    let deliveries = join(deliver(&service, &hook, &one, "{}"), deliver(&service, &hook, &two, "{}"));
    let (path, nothing) = (format!("/api/v1/triggers/{id}/fire"), json!({}));
    let by_hand = service.post(&path, &nothing);
    let release = async {
        assert_eq!(waiting_for(&pool, 3).await, ["advisory"; 3]);
        other.commit().await.expect("released");
    };
    let ((one, two), (fired, ())) = join(deliveries, join(by_hand, release)).await;
    for answer in [one, two, fired] {
        answer.expect(202);
    }
    assert_eq!(trigger(&service, &created).await["counters"]["fired"], 3);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn old_firings_that_another_delivery_deletes_are_not_waited_for(pool: PgPool) {
    let service = started(&pool).await;
    let created = create(&service, "busy", json!({"preset": "github", "secrets": [SECRET]})).await;
    let path = path_of(&created);
    let send = async |id: &str| deliver(&service, &path, &github(b"{}", id, SECRET), "{}").await.expect(202);
    send("d-0").await;
    let sql = "INSERT INTO trigger_firings (trigger_id, nominal_at, cause, outcome)
               SELECT trigger_id, nominal_at, cause, outcome FROM trigger_firings, generate_series(1, 99)";
    sqlx::query(sql).execute(&pool).await.expect("a hundred");
    let mut other = pool.begin().await.expect("a transaction");
    let sql = "DELETE FROM trigger_firings WHERE id = (SELECT min(id) FROM trigger_firings)";
    sqlx::query(sql).execute(&mut *other).await.expect("deleted");
    send("d-1").await;
    other.rollback().await.expect("over");
    send("d-2").await;
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM trigger_firings").fetch_one(&pool).await.expect("a count");
    assert_eq!(kept, 100);
}

/// A change of the name and a deletion need the row alone, and take it at once.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_trigger_is_renamed_and_deleted_after_the_deliveries_under_way(pool: PgPool) {
    let service = started(&pool).await;
    let created = create(&service, "old", json!({"preset": "github", "secrets": [SECRET]})).await;
    let path = format!("/api/v1/triggers/{}", id_of(&created));
    for is_deletion in [false, true] {
        let mut delivery = pool.begin().await.expect("a transaction");
        let held = "SELECT FROM triggers WHERE id = $1 FOR KEY SHARE";
        sqlx::query(held).bind(id_of(&created)).execute(&mut *delivery).await.expect("held");
        let change = async {
            if is_deletion {
                service.delete(&path).await.expect(200);
            } else {
                service.put(&path, &json!({"name": "new"})).await.expect(200);
            }
        };
        let written = async {
            waiting_for(&pool, 1).await;
            let counted = "UPDATE triggers SET counters = counters WHERE id = $1";
            sqlx::query(counted).bind(id_of(&created)).execute(&mut *delivery).await.expect("no deadlock");
            delivery.commit().await.expect("committed");
        };
        join(change, written).await;
    }
}
