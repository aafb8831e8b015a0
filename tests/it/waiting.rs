//! `Prefer: wait=N` and the output of a run.

use std::{pin::pin, time::Duration};

use axum::body::Body;
use futures_util::future::join_all;
use serde_json::json;
use sqlx::PgPool;
use workflow_api::{api::vocabulary::prefer::Waited, db::migrations::MIGRATOR};

use crate::service::{Answer, Service, eventually, passing};

async fn execute(service: &Service, workflow_id: &str, headers: &[(&str, &str)]) -> Answer {
    let path = format!("/api/v1/workflows/{workflow_id}/execute");
    service.send("POST", &path, headers, r#"{"input_data":{}}"#).await
}

/// Ends the runs that there are, as an executor does.
async fn end_all(pool: &PgPool, status: &str) {
    sqlx::query(
        "INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, output_data,
             started_at, completed_at)
         SELECT gen_random_uuid()::text, run_id, step, step, 'worker', 'COMPLETED', '{}', jsonb_build_object('of', step),
             now(), now() + make_interval(secs => secs)
         FROM workflow_runs, (VALUES ('last', 2), ('first', 1)) AS steps (step, secs) WHERE status = 'PENDING'",
    )
    .execute(pool)
    .await
    .expect("steps");
    let sql = "UPDATE workflow_runs SET status = $1, completed_at = now() WHERE status = 'PENDING'";
    sqlx::query(sql).bind(status).execute(pool).await.expect("the end");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_that_ends_in_time_is_200_with_its_output(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    let headers = [("prefer", "respond-async, wait=30"), ("idempotency-key", "k")];
    let ending = async {
        eventually("two runs are there", || async {
            let count: i64 =
                sqlx::query_scalar("SELECT count(*) FROM workflow_runs").fetch_one(&pool).await.expect("a count");
            (count == 21).then_some(())
        })
        .await;
        end_all(&pool, "COMPLETED").await;
    };
    let keyed = execute(&service, &workflow_id, &headers);
    let others = join_all((0..20).map(|_| execute(&service, &workflow_id, &headers[..1])));
    let (first, others, ()) = futures_util::join!(keyed, others, ending);
    assert_eq!(first.header("preference-applied"), Some("wait=30"));
    assert_eq!(first.header("retry-after"), None);
    let location = first.header("location").expect("a Location").to_owned();
    let run = first.expect(200);
    assert_eq!((&run["status"], &run["output_data"]), (&json!("COMPLETED"), &json!({"of": "last"})));
    assert_eq!(service.get(&location).await.expect(200), run);
    for other in others {
        assert_eq!(other.expect(200)["status"], "COMPLETED");
    }
    let again = execute(&service, &workflow_id, &headers).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(again.expect(200), run);
    let list = service.get("/api/v1/runs").await.expect(200);
    assert!(list["items"][0].get("output_data").is_none(), "{list}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_that_takes_longer_is_202_and_says_where_to_look(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    let path = format!("/api/v1/workflows/{workflow_id}/execute");
    let mut waiting = pin!(service.open("POST", &path, &[("prefer", "wait=40")], Body::from(r#"{"input_data":{}}"#)));
    // Until then the time limit of requests applies.
    let run = || async { service.get("/api/v1/runs").await.expect(200)["items"].get(0).map(drop) };
    tokio::select! {
        _ = &mut waiting => panic!("it did not wait"),
        () = eventually("the run is there", run) => {}
    }
    let (answer, waited) = passing(&service.clock, Duration::from_secs(2), waiting).await;
    assert!(waited >= Duration::from_secs(40), "{waited:?}");
    // The latency in the metrics is without this time.
    let Waited(subtracted) = *answer.extensions().get().expect("the time of the wait");
    assert!(subtracted >= Duration::from_secs(40), "{subtracted:?}");
    let answer = Answer::read(answer).await;
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.header("preference-applied"), Some("wait=40"));
    let location = answer.header("location").expect("a Location").to_owned();
    let run = answer.expect(202);
    assert_eq!((&run["status"], &run["output_data"]), (&json!("PENDING"), &json!(null)));
    end_all(&pool, "FAILED").await;
    assert_eq!(service.get(&location).await.expect(200)["output_data"], json!(null));
    // What is no wait is none.
    let answer = execute(&service, &workflow_id, &[("prefer", "wait=soon")]).await;
    assert_eq!((answer.status.as_u16(), answer.header("preference-applied")), (202, None));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_stop_and_the_time_limit_of_requests_do_not_cut_a_wait_short_with_an_error(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    // Beyond the ten seconds that requests have otherwise.
    let waiting = execute(&service, &workflow_id, &[("prefer", "wait=60")]);
    let stopping = async {
        let run = || async { service.get("/api/v1/runs").await.expect(200)["items"].get(0).map(drop) };
        eventually("the run is there", run).await;
        service.clock.advance(Duration::from_secs(50));
        // While this is answered, the other one would be, too.
        service.get("/api/v1/runs").await.expect(200);
        service.lifecycle.soft_stop().cancel();
    };
    let (answer, ()) = futures_util::join!(waiting, stopping);
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.expect(202)["status"], "PENDING");
}
