//! Agents that ask back: the run waits for the answer, which goes to the task of the agent.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    response::{IntoResponse as _, Response},
};
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{clock::Clock, db::migrations::MIGRATOR};

use crate::{
    agent_protocols::{card, method, methods, rpc, rpc_error, with_card},
    path::{Agent, Call, Executor},
    service::{Service, eventually},
    steps::{World, agent_step},
    waits::{a_minute_passes, callbacks, parked, path_of},
};

/// A task of the agent.
#[derive(Default)]
struct Task {
    /// What the client has said, in order.
    said: Vec<Value>,
    messages: Vec<String>,
    is_cancelled: bool,
}

/// What the agent knows.
#[derive(Default)]
pub struct Tasks(Mutex<HashMap<String, Task>>);

impl Tasks {
    /// What the client has said in each task.
    pub fn said(&self) -> Vec<Vec<Value>> {
        let tasks = self.0.lock().expect("no panic");
        let mut said: Vec<_> = tasks.iter().map(|(id, task)| (id.clone(), task.said.clone())).collect();
        said.sort_by(|a, b| a.0.cmp(&b.0));
        said.into_iter().map(|(_, said)| said).collect()
    }

    fn cancelled(&self) -> usize {
        self.0.lock().expect("no panic").values().filter(|task| task.is_cancelled).count()
    }

    fn answer(&self, questions: &[Value], call: &Call) -> Response {
        let is_new = method(call).starts_with(char::is_uppercase);
        let message = &call.body["params"]["message"];
        let mut tasks = self.0.lock().expect("no panic");
        let given = message["taskId"].as_str().or(call.body["params"]["id"].as_str());
        let id = given.map_or_else(|| format!("t-{}", tasks.len()), str::to_owned);
        let task = match method(call) {
            "message/send" | "SendMessage" if given.is_none() => tasks.entry(id.clone()).or_default(),
            _ => match tasks.get_mut(&id) {
                Some(task) => task,
                None => return rpc_error(call, -32001),
            },
        };
        match method(call) {
            "message/send" | "SendMessage" => {
                let message_id = message["messageId"].as_str().expect("an id").to_owned();
                // The rule by which agents find a repeat.
                if !task.messages.contains(&message_id) {
                    task.messages.push(message_id);
                    let part = &message["parts"][0];
                    task.said.push(part.get("data").unwrap_or(&part["text"]).clone());
                }
            }
            "tasks/cancel" | "CancelTask" => task.is_cancelled = true,
            _ => {}
        }
        let shown = shown(&id, task, questions, is_new);
        if method(call) == "SendMessage" { rpc(call, &json!({"task": shown})) } else { rpc(call, &shown) }
    }
}

/// The task in a form of either version.
fn shown(id: &str, task: &Task, questions: &[Value], is_new: bool) -> Value {
    let part = |kind: &str, value: &Value| {
        let mut part = json!({});
        part[kind] = value.clone();
        if !is_new {
            part["kind"] = kind.into();
        }
        part
    };
    let state = |name: &str| {
        if is_new { format!("TASK_STATE_{}", name.to_uppercase().replace('-', "_")) } else { name.to_owned() }
    };
    let mut shown = json!({"id": id, "contextId": format!("c-of-{id}")});
    match questions.get(task.said.len() - 1) {
        _ if task.is_cancelled => shown["status"] = json!({"state": state("canceled")}),
        Some(asked) => {
            let mut parts = vec![part("text", &asked["text"])];
            parts.extend(asked.get("schema").map(|schema| part("data", schema)));
            let role = if is_new { "ROLE_AGENT" } else { "agent" };
            let message = json!({"messageId": format!("q-{}", task.said.len()), "role": role, "parts": parts});
            let name = if asked["auth"] == true { "auth-required" } else { "input-required" };
            shown["status"] = json!({"state": state(name), "message": message});
        }
        None => {
            let said: Vec<_> =
                task.said.iter().map(|said| said.as_str().map_or_else(|| said.to_string(), str::to_owned)).collect();
            shown["status"] = json!({"state": state("completed")});
            shown["artifacts"] = json!([{"artifactId": "a", "parts": [part("text", &said.join(" ").into())]}]);
        }
    }
    if !is_new {
        shown["kind"] = "task".into();
    }
    shown
}

/// An agent that asks these questions in each task, and then repeats what was said. It speaks both versions.
pub async fn asking(questions: Value, is_new: bool) -> (Arc<Tasks>, Agent, String) {
    let tasks = Arc::new(Tasks::default());
    let (known, questions) = (Arc::clone(&tasks), questions.as_array().expect("a list").clone());
    let routes = move |url: &str| {
        let more = json!({"defaultInputModes": ["text/plain", "application/json"]});
        if is_new { with_card(card(url, &[("", "JSONRPC", "1.0")], &more)) } else { Router::new() }
    };
    let (agent, url) = Agent::start_with(routes, move |_, call| known.answer(&questions, call)).await;
    (tasks, agent, url)
}

pub fn asking_step(id: &str, more: &Value) -> Value {
    let mut step = agent_step(id, &json!({"text": "begin"}));
    step["on_question"] = json!("ask");
    step.as_object_mut().expect("an object").extend(more.as_object().expect("members").clone());
    step
}

pub async fn answer(service: &Service, callback: &Value, body: &Value) -> Value {
    service.post(&path_of(&callback["url"]), body).await.expect(200)
}

/// The open callback of the run's question of that number.
pub async fn question(world: &World, run_id: &str, round: i64) -> Value {
    eventually("the agent has asked", async || {
        let open = callbacks(&world.service, run_id, 1).await.pop()?;
        (open["question"]["round"] == round).then_some(open)
    })
    .await
}

async fn kinds(world: &World, run_id: &str) -> Vec<Value> {
    let log = world.service.get(&format!("/api/v1/runs/{run_id}/logs?page_size=100")).await.expect(200);
    log["items"].as_array().expect("a list").clone()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_question_parks_the_run_and_the_answers_go_to_the_same_task(pool: PgPool) {
    let schema = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
    let questions = json!([{"text": "Which colour?"}, {"text": "How many?", "schema": schema}]);
    let world = World::start(&pool, &[]).await;
    for is_new in [false, true] {
        let (tasks, agent, url) = asking(questions.clone(), is_new).await;
        let name = format!("clerk-{is_new}");
        world.service.post("/api/v1/agents", &json!({"name": name, "url": url})).await.expect(201);
        let steps = json!({"ask": asking_step("ask", &json!({"agent_name": name, "next_step": "after"})),
            "after": {"id": "after", "type": "wait", "wait_config": {"duration_seconds": 0}}});
        let run_id = world.begin("ask", &steps, &json!({})).await;
        parked(&pool, &run_id).await;
        let first = question(&world, &run_id, 1).await;
        let asked = json!({"agent_name": name, "state": "input-required", "round": 1, "text": "Which colour?",
            "data": null, "answer_schema": null, "task_id": "t-0", "context_id": "c-of-t-0"});
        assert_eq!((&first["question"], &first["role"], &first["is_approval"]), (&asked, &json!(null), &json!(false)));
        answer(&world.service, &first, &json!("blue")).await;
        let second = question(&world, &run_id, 2).await;
        assert_eq!((&second["question"]["answer_schema"], &second["question"]["data"]), (&schema, &schema));
        assert_ne!(second["url"], first["url"]);
        let wrong = world.service.post(&path_of(&second["url"]), &json!({"n": "two"})).await.error(422);
        assert_eq!(wrong["errors"][0]["field"], "body.n", "{wrong}");
        let repeated = answer(&world.service, &first, &json!("red")).await;
        assert_eq!(repeated["step_id"], "ask");
        answer(&world.service, &second, &json!({"n": 2})).await;
        let ended = world.end(run_id.clone()).await;
        ended.output();
        assert_eq!(ended.row("ask")["output_data"]["text"], r#"begin blue {"n":2}"#);
        assert_eq!(ended.attempts(), ["ask COMPLETED", "after COMPLETED"]);
        assert_eq!(tasks.said(), [[json!("begin"), json!("blue"), json!({"n": 2})]], "there was one task");
        let sends: Vec<Call> =
            agent.calls().into_iter().filter(|call| method(call).to_lowercase().contains("send")).collect();
        let ids: Vec<_> = sends.iter().map(|call| call.body["params"]["message"]["messageId"].clone()).collect();
        let attempt = ended.row("ask")["id"].as_str().expect("an id");
        let expected: Vec<_> = ["", ".1", ".2"].map(|round| json!(format!("msg-task-{attempt}{round}"))).into();
        assert_eq!(ids, expected);
        for call in &sends[1..] {
            let message = &call.body["params"]["message"];
            assert_eq!((&message["taskId"], &message["contextId"]), (&json!("t-0"), &json!("c-of-t-0")));
        }
        let log = kinds(&world, &run_id).await;
        let of = |kind: &str| log.iter().filter(|entry| entry["kind"] == kind).cloned().collect::<Vec<_>>();
        // One is of the other step.
        assert_eq!((of("attempt.waiting").len(), of("callback.answered").len()), (3, 2), "{log:?}");
        assert!(log.iter().any(|entry| entry.to_string().contains("Which colour?")), "{log:?}");
        assert_eq!(of("agent.answered").len(), 3);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_question_fails_a_step_that_says_nothing_and_is_the_output_of_one_that_wants_it(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    for is_new in [false, true] {
        let (tasks, agent, url) = asking(json!([{"text": "Which colour?"}]), is_new).await;
        let name = format!("clerk-{is_new}");
        world.service.post("/api/v1/agents", &json!({"name": name, "url": url})).await.expect(201);
        let fails = asking_step("ask", &json!({"agent_name": name, "on_question": null}));
        let failed = world.run("ask", &json!({"ask": fails}), &json!({})).await;
        let cause =
            "Task state: input-required (the agent asks for more input, which a step cannot give): Which colour?";
        assert!(failed.cause().ends_with(cause), "{}", failed.cause());
        let steps = json!({
            "ask": asking_step("ask", &json!({"agent_name": name, "on_question": "output", "next_step": "go"})),
            "go": {"id": "go", "agent_name": name, "input_mapping": {"text": "blue"},
                "context_id": "${ask.output.context_id}", "task_id": "${ask.output.task_id}"}});
        let ended = world.run("ask", &steps, &json!({})).await;
        assert_eq!(ended.output()["text"], "begin blue");
        assert_eq!(
            ended.row("ask")["output_data"],
            json!({"state": "input-required", "context_id": "c-of-t-1", "task_id": "t-1", "question": "Which colour?",
                "data": null, "answer_schema": null})
        );
        assert_eq!(tasks.said(), [vec![json!("begin")], vec![json!("begin"), json!("blue")]]);
        assert!(!methods(&agent).iter().any(|method| method.to_lowercase().contains("cancel")));
        let unknown =
            json!({"ask": asking_step("ask", &json!({"agent_name": name, "task_id": "${workflow.input.n}"}))});
        let failed = world.run("ask", &unknown, &json!({"n": 7})).await;
        assert_eq!(failed.cause(), "Step 'ask' failed: task_id: it must be a text");
    }
}

/// A new task in the same conversation.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_step_with_only_the_context_of_another_begins_a_task_in_its_conversation(pool: PgPool) {
    for is_new in [false, true] {
        let (tasks, agent, url) = asking(json!([]), is_new).await;
        let world = World::start(&pool, &[]).await;
        let name = format!("talker-{is_new}");
        world.service.post("/api/v1/agents", &json!({"name": name, "url": url})).await.expect(201);
        let mut first = agent_step("first", &json!({"text": "begin"}));
        let mut then = agent_step("then", &json!({"text": "go on"}));
        first["next_step"] = "then".into();
        then["context_id"] = "${first.output.context_id}".into();
        for step in [&mut first, &mut then] {
            step["agent_name"] = name.clone().into();
        }
        let steps = json!({"first": first, "then": then});
        let workflow = json!({"name": name, "start_step": "first", "steps": steps});
        let workflow = world.service.post("/api/v1/workflows", &workflow).await.expect(201);
        let path = format!("/api/v1/workflows/{}/execute", workflow["id"].as_str().expect("an id"));
        let run = world.service.post(&path, &json!({"input_data": {}})).await.expect(202);
        let ended = world.end(run["run_id"].as_str().expect("an id").to_owned()).await;
        assert_eq!(ended.row("then")["output_data"]["task_id"], "t-1");
        assert_eq!(tasks.said(), [[json!("begin")], [json!("go on")]], "there are two tasks");
        let message = agent.calls().last().expect("a call").body["params"]["message"].clone();
        assert_eq!((&message["contextId"], &message["taskId"]), (&json!("c-of-t-0"), &Value::Null));
        world.service.stop().await;
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_authorisation_is_only_that_somebody_has_given_it(pool: PgPool) {
    let (tasks, _agent, url) = asking(json!([{"text": "Let me read your mail", "auth": true}]), true).await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let step = asking_step("ask", &json!({}));
    let run_id = world.begin("ask", &json!({"ask": step}), &json!({})).await;
    let open = question(&world, &run_id, 1).await;
    assert_eq!((&open["question"]["state"], &open["is_approval"]), (&json!("auth-required"), &json!(true)));
    for secret in [json!({"approved": true, "password": "x"}), json!({"approved": true, "comment": "x"}), json!("x")] {
        world.service.post(&path_of(&open["url"]), &secret).await.error(422);
    }
    answer(&world.service, &open, &json!({"approved": true})).await;
    assert_eq!(world.end(run_id).await.output()["text"], "begin The authorisation was given.");
    let run_id = world.begin("ask", &json!({"ask": asking_step("ask", &json!({}))}), &json!({})).await;
    let open = question(&world, &run_id, 1).await;
    answer(&world.service, &open, &json!({"approved": false})).await;
    let failed = world.end(run_id).await;
    assert_eq!(failed.cause(), "Step 'ask' failed: agent 'a': the authorisation was refused by system");
    eventually("the task is cancelled", async || (tasks.cancelled() == 1).then_some(())).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn questions_inside_of_blocks_and_sub_workflows_wait_and_nothing_is_repeated(pool: PgPool) {
    let (tasks, _agent, url) = asking(json!([{"text": "Which?"}]), true).await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let inner = json!({"name": "inner", "start_step": "ask", "steps": {"ask": asking_step("ask", &json!({}))}});
    world.service.post("/api/v1/workflows", &inner).await.expect(201);
    let steps = json!({
        "all": {"id": "all", "type": "parallel", "parallel_steps": ["each", "sub", "race"], "next_step": "end"},
        "each": {"id": "each", "type": "loop", "loop_config": {"collection": "${workflow.input.items}",
            "loop_body": ["before", "ask"], "execution_mode": "parallel"}},
        "before": {"id": "before", "type": "wait", "wait_config": {"duration_seconds": 0}},
        "ask": asking_step("ask", &json!({"input_mapping": {"text": "${loop.item}"}})),
        "sub": {"id": "sub", "type": "sub_workflow", "sub_workflow_config": {"workflow_name": "inner"}},
        "race": {"id": "race", "type": "fork_join", "fork_join_config": {"join_policy": "any", "branches": {
            "slow": {"steps": ["lost"]}, "fast": {"steps": ["hold"]}}}},
        "lost": asking_step("lost", &json!({"input_mapping": {"text": "lost"}})),
        "hold": {"id": "hold", "type": "callback"},
        "end": {"id": "end", "type": "wait", "wait_config": {"duration_seconds": 0}}});
    let run_id = world.begin("all", &steps, &json!({"items": ["p", "q"]})).await;
    let open = callbacks(&world.service, &run_id, 4).await;
    parked(&pool, &run_id).await;
    let runs = world.service.get("/api/v1/runs?workflow_name=inner").await.expect(200);
    let sub_run = runs["items"][0]["run_id"].as_str().expect("a run").to_owned();
    let of = |step: &str| open.iter().filter(|open| open["step_id"] == step).cloned().collect::<Vec<_>>();
    answer(&world.service, &of("hold")[0], &json!({})).await;
    eventually("the task of the branch that lost is cancelled", async || (tasks.cancelled() == 1).then_some(())).await;
    for open in of("ask") {
        answer(&world.service, &open, &json!("this")).await;
    }
    let inside = callbacks(&world.service, &sub_run, 1).await;
    answer(&world.service, &inside[0], &json!("that")).await;
    let ended = world.end(run_id).await;
    ended.output();
    let mut said: Vec<_> = tasks.said().iter().map(|said| json!(said).to_string()).collect();
    said.sort();
    assert_eq!(said, [r#"["begin","that"]"#, r#"["lost"]"#, r#"["p","this"]"#, r#"["q","this"]"#]);
    assert_eq!(ended.row("sub")["output_data"]["text"], "begin that");
    let states = |step: &str| {
        let rows = ended.rows.iter().filter(|row| row["step_id"] == step);
        rows.map(|row| row["status"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((states("ask"), states("lost")), (vec!["COMPLETED".to_owned(); 2], vec!["SKIPPED".to_owned()]));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_time_limit_and_a_cancellation_end_the_wait_and_the_task_of_the_agent(pool: PgPool) {
    let (tasks, agent, url) = asking(json!([{"text": "Which?"}, {"text": "Really?"}]), true).await;
    let world = World::start_by(&pool, &[("a", &url)], &[], Clock::stopped()).await;
    let limited = json!({"ask": asking_step("ask", &json!({"timeout_seconds": 60}))});
    let run_id = world.begin("ask", &limited, &json!({})).await;
    let open = question(&world, &run_id, 1).await;
    assert!(open["expires_at"].is_string(), "{open}");
    answer(&world.service, &open, &json!("x")).await;
    question(&world, &run_id, 2).await;
    parked(&pool, &run_id).await;
    a_minute_passes(&world, &pool).await;
    assert_eq!(world.end(run_id).await.cause(), "Step 'ask' failed: it took longer than 60 s");
    eventually("the task is cancelled", async || (tasks.cancelled() == 1).then_some(())).await;

    let steps = json!({"ask": asking_step("ask", &json!({}))});
    let cancel = async |run_id: &str| {
        world.service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    };
    let run_id = world.begin("ask", &steps, &json!({})).await;
    let open = question(&world, &run_id, 1).await;
    parked(&pool, &run_id).await;
    cancel(&run_id).await;
    eventually("the task of a parked run is cancelled", async || (tasks.cancelled() == 2).then_some(())).await;
    assert_eq!(world.service.post(&path_of(&open["url"]), &json!("x")).await.error(410)["code"], "callback_expired");
    // While the agent works on the answer.
    let run_id = world.begin("ask", &steps, &json!({})).await;
    let open = question(&world, &run_id, 1).await;
    let before = agent.calls().len();
    agent.hold();
    answer(&world.service, &open, &json!("x")).await;
    eventually("the answer is sent", async || (agent.calls().len() > before).then_some(())).await;
    cancel(&run_id).await;
    agent.0.gate.add_permits(1000);
    eventually("the task under way is cancelled", async || (tasks.cancelled() == 3).then_some(())).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_agent_that_asks_for_ever_is_stopped(pool: PgPool) {
    let questions: Vec<_> = (0..50).map(|number| json!({"text": format!("And {number}?")})).collect();
    let (tasks, _agent, url) = asking(json!(questions), true).await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let steps = json!({"ask": asking_step("ask", &json!({"question_config": {"max_rounds": 2}}))});
    let run_id = world.begin("ask", &steps, &json!({})).await;
    for round in 1..=2 {
        let open = question(&world, &run_id, round).await;
        answer(&world.service, &open, &json!("x")).await;
    }
    assert_eq!(world.end(run_id).await.cause(), "Step 'ask' failed: agent 'a': it asked more than 2 questions");
    eventually("the task is cancelled", async || (tasks.cancelled() == 1).then_some(())).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_answer_that_may_have_arrived_is_sent_again_only_if_the_agent_still_asks(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    for has_arrived in [true, false] {
        let tasks = Arc::new(Tasks::default());
        let (known, refused) = (Arc::clone(&tasks), AtomicBool::default());
        let (agent, url) = Agent::start(move |_, call| {
            let is_answer = !call.body["params"]["message"]["taskId"].is_null();
            if is_answer && !refused.swap(true, Ordering::Relaxed) {
                if has_arrived {
                    known.answer(&[json!({"text": "Which?"})], call);
                }
                return StatusCode::SERVICE_UNAVAILABLE.into_response();
            }
            known.answer(&[json!({"text": "Which?"})], call)
        })
        .await;
        let name = format!("clerk-{has_arrived}");
        let clerk = json!({"name": name, "url": url, "retry_config": {"max_retries": 3, "initial_delay_ms": 100}});
        world.service.post("/api/v1/agents", &clerk).await.expect(201);
        let steps = json!({"ask": asking_step("ask", &json!({"agent_name": name}))});
        let run_id = world.begin("ask", &steps, &json!({})).await;
        let open = question(&world, &run_id, 1).await;
        answer(&world.service, &open, &json!("this")).await;
        let ended = world.end(run_id).await;
        assert_eq!(
            (&ended.output()["text"], ended.attempts()),
            (&json!("begin this"), vec!["ask COMPLETED".to_owned()])
        );
        assert_eq!(tasks.said(), [[json!("begin"), json!("this")]]);
        let calls = agent.calls();
        let sent: Vec<_> = calls
            .iter()
            .filter(|call| method(call) == "message/send")
            .map(|call| call.body["params"]["message"]["messageId"].clone())
            .collect();
        assert_eq!(sent.len(), if has_arrived { 2 } else { 3 }, "{:?}", methods(&agent));
        assert!(has_arrived || sent[1] == sent[2], "a repeat can be recognised: {sent:?}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_answer_finds_the_conversation_after_the_executor_has_died(pool: PgPool) {
    let (tasks, _agent, url) = asking(json!([{"text": "Which?"}]), false).await;
    let mut world = World::start(&pool, &[("a", &url)]).await;
    // One run is parked; the other also waits for an agent that does not answer.
    let (silent, silent_url) = Agent::start(|_, call| rpc_error(call, -32000)).await;
    silent.hold();
    world.service.post("/api/v1/agents", &json!({"name": "silent", "url": silent_url})).await.expect(201);
    let parked_run = world.begin("ask", &json!({"ask": asking_step("ask", &json!({}))}), &json!({})).await;
    let steps = json!({
        "race": {"id": "race", "type": "fork_join", "fork_join_config": {"join_policy": "any",
            "branches": {"x": {"steps": ["ask"]}, "y": {"steps": ["never"]}}}},
        "ask": asking_step("ask", &json!({})),
        "never": {"id": "never", "agent_name": "silent", "input_mapping": {}}});
    let busy_run = world.begin("race", &steps, &json!({})).await;
    let open = [question(&world, &parked_run, 1).await, question(&world, &busy_run, 1).await];
    world.kill_executor().await;
    for open in &open {
        answer(&world.service, open, &json!("this")).await;
    }
    sqlx::query("DELETE FROM processes WHERE role = 'executor'").execute(&pool).await.expect("the dead is buried");
    world.executor = Some(Executor::start(&world.service));
    for run_id in [parked_run, busy_run] {
        let ended = world.end(run_id).await;
        ended.output();
        assert_eq!(ended.row("ask")["output_data"]["text"], "begin this");
        assert_eq!(ended.rows.iter().filter(|row| row["step_id"] == "ask").count(), 1, "the attempt goes on");
    }
    assert_eq!(tasks.said(), [["begin", "this"], ["begin", "this"]].map(|said| said.map(Value::from).to_vec()));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn only_the_role_that_the_step_asks_for_may_answer(pool: PgPool) {
    let secret = "a-secret-of-the-tests-that-is-long-enough";
    let (_tasks, _agent, url) = asking(json!([{"text": "Which?"}]), true).await;
    let settings = [("JWT_SECRET", secret), ("AUTH_ENABLED", "false")];
    let world = World::start_with(&pool, &[("a", &url)], &settings).await;
    let mut config = world.service.config.clone();
    config.auth.enabled = true;
    let guarded = Service::start_with(config);
    let token = |role: &str| {
        let claims = json!({"sub": "ada", "role": "viewer", "roles": [role],
            "exp": Clock::default().now().timestamp() + 600});
        let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
        let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("a token");
        format!("Bearer {token}")
    };
    let step = asking_step("ask", &json!({"question_config": {"role": "clerk"}}));
    let run_id = world.begin("ask", &json!({"ask": step}), &json!({})).await;
    let open = question(&world, &run_id, 1).await;
    assert_eq!(open["role"], "clerk");
    let path = path_of(&open["url"]);
    let answer =
        async |authorization: &str| guarded.send("POST", &path, &[("authorization", authorization)], r#""blue""#).await;
    assert_eq!(answer("").await.error(401)["code"], "unauthorized");
    assert_eq!(answer(&token("boss")).await.error(403)["code"], "role_required");
    answer(&token("clerk")).await.expect(200);
    assert_eq!(world.end(run_id).await.output()["text"], "begin blue");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_test_of_a_workflow_asks_as_its_mocks_say(pool: PgPool) {
    let world = World::start(&pool, &[("a", "http://127.0.0.1:9/")]).await;
    let test = async |step: Value, mock: Value| {
        let definition = json!({"name": "w", "start_step": "ask", "steps": {"ask": step}});
        let body = json!({"definition": definition, "input_data": {}, "mocks": {"ask": mock}});
        world.service.post("/api/v1/workflows/test", &body).await.expect(200)
    };
    let questions = json!([{"question": "Which?", "answer": "blue", "delay_seconds": 3600},
        {"question": "Sure?", "auth": true, "answer": {"approved": true}}]);
    let mock = json!({"questions": questions, "template": {"said": "${step.input.text}"}});
    let asked = test(asking_step("ask", &json!({})), mock.clone()).await;
    assert_eq!(
        (&asked["status"], &asked["output_data"]["said"]),
        (&json!("COMPLETED"), &json!("The authorisation was given.")),
        "{asked}"
    );
    assert_eq!(asked["duration_ms"], 3_600_000, "{asked}");
    let nobody = json!({"questions": [{"question": "Which?"}], "output": 1});
    assert_eq!(test(asking_step("ask", &json!({})), nobody.clone()).await["status"], "WAITING");
    let late = test(asking_step("ask", &json!({"timeout_seconds": 60})), mock.clone()).await;
    assert_eq!(late["status"], "FAILED", "{late}");
    let fails = test(asking_step("ask", &json!({"on_question": "fail"})), nobody.clone()).await;
    assert!(fails["error_message"].as_str().is_some_and(|cause| cause.contains("input-required")), "{fails}");
    let output = test(asking_step("ask", &json!({"on_question": "output"})), nobody).await;
    assert_eq!(output["output_data"]["question"], "Which?", "{output}");
    let few = test(asking_step("ask", &json!({"question_config": {"max_rounds": 1}})), mock).await;
    assert!(few["error_message"].as_str().is_some_and(|cause| cause.ends_with("more than 1 question")), "{few}");
}
