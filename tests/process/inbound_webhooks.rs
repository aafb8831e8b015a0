//! Deliveries to webhook triggers over two processes, of which one is killed.

use std::collections::{HashMap, HashSet};

use aws_lc_rs::hmac;
use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::program::{Environment, eventually, free_port};

const SECRET: &str = "a secret of both sides";

/// Delivers as GitHub does. The id of the run and whether it was a repeat; `None` if there was no answer.
async fn deliver(url: &str, id: &str) -> Option<(String, bool)> {
    let body = json!({"text": id}).to_string();
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), body.as_bytes());
    let signature = tag.as_ref().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    let request = reqwest::Client::new()
        .post(format!("{url}/api/v1/hooks/default/n"))
        .header("content-type", "application/json")
        .header("x-hub-signature-256", format!("sha256={signature}"))
        .header("x-github-delivery", id)
        .body(body);
    let answer = request.send().await.ok()?;
    let status = answer.status().as_u16();
    let answer: Value = answer.json().await.ok()?;
    // While one process dies, the database may be busy with its locks.
    if status == 503 {
        return None;
    }
    assert!([200, 202].contains(&status), "{status} {answer}");
    Some((answer["run_id"].as_str().expect("an id").to_owned(), status == 200))
}

/// Number of deliveries with that outcome.
fn counted(metrics: &str, outcome: &str) -> u32 {
    let series = format!("webhook_deliveries_received_total{{outcome=\"{outcome}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&series));
    value.map_or(0, |value| value.parse().expect("a number"))
}

/// C3, test 5, with real processes: each delivery starts one run, although each is sent many times, to two processes of
/// which one is killed in the middle. What was acknowledged is stored, and reaches Kafka.
#[sqlx::test(migrations = false)]
async fn each_delivery_starts_one_run_although_a_process_is_killed(pool: PgPool) {
    let one = Environment::new(&pool);
    let port = free_port();
    let mut other = one.clone().with("API_PORT", &port.to_string());
    other.url = format!("http://127.0.0.1:{port}");
    let _one = one.serve().await;
    let mut killed = other.serve().await;
    one.chain("w", &["http://127.0.0.1:9/".to_owned()]).await;
    let trigger = json!({"name": "n", "kind": "webhook", "workflow_name": "w", "input": {"text": "${trigger.body.text}"},
        "config": {"preset": "github", "secrets": [SECRET]}});
    let created = one.post("/api/v1/triggers", &trigger).await.expect("an answer");
    assert_eq!(created.status(), 201);

    // A process that has too much to do refuses with 503, and the sender repeats the delivery.
    let equal = join_all((0..50).map(async |index| {
        let url = if index % 2 == 0 { &one.url } else { &other.url };
        eventually("the delivery is accepted", || deliver(url, "equal")).await
    }))
    .await;
    // Both processes have counted, and nothing else has been delivered.
    let (mut started, mut repeated) = (0, 0);
    for url in [&one.url, &other.url] {
        let metrics = reqwest::get(format!("{url}/metrics")).await.expect("an answer").text().await.expect("text");
        started += counted(&metrics, "started");
        repeated += counted(&metrics, "repeated");
        assert_eq!(counted(&metrics, "refused"), 0, "{metrics}");
    }
    assert_eq!((started, repeated), (1, 49));
    let guess = reqwest::Client::new().post(format!("{}/api/v1/hooks/default/n", one.url)).body("{}");
    assert_eq!(guess.send().await.expect("an answer").status(), 401);
    let metrics = reqwest::get(format!("{}/metrics", one.url)).await.expect("an answer").text().await.expect("text");
    assert_eq!(counted(&metrics, "refused"), 1, "{metrics}");
    assert_eq!(equal.iter().filter(|(_, is_repeat)| !is_repeat).count(), 1, "{equal:?}");
    assert_eq!(equal.iter().map(|(run_id, _)| run_id).collect::<HashSet<_>>().len(), 1);

    let ids: Vec<String> = (0..100).map(|index| format!("d-{index}")).collect();
    let sent = join_all(ids.iter().map(|id| deliver(&other.url, id)));
    let kill = async {
        eventually("some runs", async || {
            let runs: i64 = sqlx::query_scalar("SELECT count(*) FROM workflow_runs").fetch_one(&pool).await.ok()?;
            (runs > 10).then_some(())
        })
        .await;
        killed.kill().await;
    };
    let (sent, ()) = tokio::join!(sent, kill);
    let mut run_ids: HashMap<&str, String> = HashMap::new();
    for (id, answer) in ids.iter().zip(sent) {
        run_ids.extend(answer.map(|(run_id, _)| (id.as_str(), run_id)));
    }
    // The sender repeats everything, as it does not know what has arrived.
    for id in &ids {
        let (run_id, _) = eventually("the delivery is accepted", || deliver(&one.url, id)).await;
        let before = run_ids.insert(id, run_id.clone());
        assert!(before.is_none_or(|before| before == run_id), "{id}");
    }
    let stored: Vec<String> = sqlx::query_scalar("SELECT input_data ->> 'text' FROM workflow_runs ORDER BY 1")
        .fetch_all(&pool)
        .await
        .expect("runs");
    let mut expected: Vec<_> = ids.iter().map(String::as_str).chain(["equal"]).map(str::to_owned).collect();
    expected.sort_unstable();
    assert_eq!(stored, expected, "one run of each");
    let all = run_ids.into_values().chain([equal[0].0.clone()]).collect();
    one.wait_for_messages(all).await;
}
