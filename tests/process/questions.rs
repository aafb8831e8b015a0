//! Questions of agents, while the processes are killed.

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::program::{Environment, eventually, free_port};

async fn store(environment: &Environment, path: &str, body: &Value) -> Value {
    let answer = environment.post(path, body).await.expect("an answer");
    assert_eq!(answer.status(), 201);
    answer.json().await.expect("JSON")
}

/// The open question of that number.
async fn question(environment: &Environment, run_id: &str, round: i64) -> Value {
    eventually("the agent has asked", async || {
        let open = environment.get(&format!("/api/v1/runs/{run_id}/callbacks")).await;
        Some(open[0].clone()).filter(|open| open["question"]["round"] == round)
    })
    .await
}

async fn answer(environment: &Environment, open: &Value, text: &str) {
    let path = open["url"].as_str().expect("a URL").split_once("/api/").expect("a path").1.to_owned();
    let answer = environment.post(&format!("/api/{path}"), &json!({"text": text})).await.expect("an answer");
    assert_eq!(answer.status(), 200);
}

#[sqlx::test(migrations = false)]
async fn a_kill_loses_neither_a_question_nor_an_answer_and_the_task_of_the_agent_goes_on(pool: PgPool) {
    let environment = Environment::new(&pool);
    let mut api = environment.serve().await;
    let port = free_port();
    let agent = environment.start(&["demo-agent", "--port", &port.to_string()]);
    // After the last answer it works for some seconds, in which the executor is killed.
    let url = format!("http://127.0.0.1:{port}/upper?asks=2&task_ms=3000");
    store(&environment, "/api/v1/agents", &json!({"name": "asks", "url": url})).await;
    let workflow = json!({"name": "ask", "start_step": "say", "steps": {"say": {"id": "say", "agent_name": "asks",
        "input_mapping": {"text": "one"}, "on_question": "ask"}}});
    let workflow = store(&environment, "/api/v1/workflows", &workflow).await;
    let mut executor = environment.start(&["executor"]);
    let run_id = environment.execute(workflow["id"].as_str().expect("an id")).await.expect("accepted");
    let first = question(&environment, &run_id, 1).await;
    // Between the question and its answer.
    executor.kill().await;
    api.kill().await;
    let _api = environment.serve().await;
    answer(&environment, &first, "two").await;
    let mut executor = environment.start(&["executor"]);
    let second = question(&environment, &run_id, 2).await;
    assert_eq!(second["question"]["task_id"], first["question"]["task_id"]);
    // Between the answer and the end of the task.
    answer(&environment, &second, "three").await;
    eventually("the agent has the answer", async || {
        let log = agent.log();
        let count = |outcome: &str| log.matches(&format!("a call of upper ended: {outcome}")).count();
        (count("conversed") + count("streamed") == 3).then_some(())
    })
    .await;
    executor.kill().await;
    let _executor = environment.start(&["executor"]);
    let run = eventually("the run ends", async || {
        let run = environment.get(&format!("/api/v1/runs/{run_id}")).await;
        (run["status"] != "RUNNING").then_some(run)
    })
    .await;
    assert_eq!(run["status"], "COMPLETED", "{run}");
    let output = &run["output_data"];
    assert_eq!((&output["text"], &output["task_id"]), (&json!("ONE\nTWO\nTHREE"), &first["question"]["task_id"]));
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM step_executions").fetch_one(&pool).await.expect("a count");
    assert_eq!(rows, 1, "the attempt goes on");
}
