//! Each way of starting a run passes the same flow control: a request, a schedule, a trigger that is fired by hand, a
//! webhook, a record of Kafka, an A2A message, and an MCP tool.

use std::{collections::BTreeSet, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    producer::{FutureProducer, FutureRecord},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;
use workflow_api::{db::migrations::MIGRATOR, kafka, scheduler::Scheduler};

use super::{act, define_with, id, is_consistent, kinds, run, start};
use crate::{
    schedules::{self, at},
    service::{Answer, Service, config, eventually, records},
    workflow_tools,
};

const TRIGGERS: &str = "/api/v1/triggers";

/// A way of starting a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Request,
    Schedule,
    ByHand,
    Webhook,
    Kafka,
    A2a,
    Mcp,
}

impl Way {
    const ALL: [Self; 7] =
        [Self::Request, Self::Schedule, Self::ByHand, Self::Webhook, Self::Kafka, Self::A2a, Self::Mcp];

    fn is_trigger(self) -> bool {
        matches!(self, Self::Schedule | Self::ByHand | Self::Webhook | Self::Kafka)
    }
}

/// A service without an executor: what is admitted stays as it is.
struct World {
    service: Service,
    scheduler: Scheduler,
    pool: PgPool,
}

/// A workflow that is started in one way, with the trigger that starts it.
struct Started<'w> {
    world: &'w World,
    way: Way,
    name: String,
    workflow: String,
    trigger: Option<Value>,
}

impl World {
    async fn start(pool: &PgPool) -> Self {
        let service = Service::start_with(config(pool, &[]));
        service.agent("a", "http://127.0.0.1:9/").await;
        Self { scheduler: schedules::scheduler(&service, pool), service, pool: pool.clone() }
    }

    /// A workflow of that way with these members.
    async fn define(&self, way: Way, name: &str, members: &Value) -> Started<'_> {
        let name = format!("{name}-{way:?}").to_lowercase();
        let mut members = members.clone();
        members["expose"] = json!({"a2a": true, "mcp": {"name": name}});
        let workflow = define_with(&self.service, &name, &members).await;
        let mut started = Started { world: self, way, name, workflow, trigger: None };
        started.trigger = match way {
            Way::Webhook => {
                Some(started.create("webhook", &json!({"preset": "none"}), &json!("${trigger.body}")).await)
            }
            Way::Kafka => {
                let topic = format!("flow-{}", Uuid::now_v7().simple());
                let client = kafka::client_config(&self.service.config.kafka);
                let admin: AdminClient<DefaultClientContext> = client.create().expect("valid settings");
                let new = [NewTopic::new(&topic, 1, TopicReplication::Fixed(1))];
                let made = admin.create_topics(&new, &AdminOptions::new()).await.expect("an answer");
                made[0].as_ref().expect("a topic");
                let config = json!({"topic": topic, "start": "earliest"});
                Some(started.create("kafka", &config, &json!("${trigger.value}")).await)
            }
            Way::ByHand => {
                let config = json!({"cron": ["0 0 1 1 *"], "start_at": "2027-02-01T00:00:00Z"});
                Some(started.create("schedule", &config, &json!("${trigger.input}")).await)
            }
            _ => None,
        };
        started
    }
}

impl Started<'_> {
    async fn create(&self, kind: &str, config: &Value, input: &Value) -> Value {
        // A mapping is an object; these name its members one by one.
        let input = match input.as_str() {
            Some(whole) => {
                let of = |member: &str| whole.replace('}', &format!(".{member}:-}}"));
                json!({"n": of("n"), "of": of("of")})
            }
            None => input.clone(),
        };
        let name = format!("{}-{}", self.name, Uuid::now_v7().simple());
        let body = json!({"name": name, "kind": kind, "workflow_name": self.name, "input": input, "config": config});
        self.world.service.post(TRIGGERS, &body).await.expect(201)
    }

    /// Starts a run with that input; returns its id.
    async fn begin(&mut self, n: i64, of: &str) -> String {
        let service = &self.world.service;
        let input = json!({"n": n, "of": of});
        let answer = match self.way {
            Way::Request => start(service, &self.workflow, &json!({"input_data": input})).await["run_id"].clone(),
            Way::Schedule => {
                self.fire(n, &input).await;
                self.last_firing().await["run_id"].clone()
            }
            Way::Kafka => {
                self.record(&input).await;
                self.last_firing().await["run_id"].clone()
            }
            _ => self.send(&input).await.0,
        };
        answer.as_str().unwrap_or_else(|| panic!("{:?} has started no run", self.way)).to_owned()
    }

    /// Makes a schedule of one firing at the hour `n`, and evaluates it then.
    async fn fire(&mut self, n: i64, input: &Value) {
        let due = format!("2027-01-01T{n:02}:00:00Z");
        let config = json!({"cron": ["@hourly"], "start_at": due, "remaining": 1, "overlap": "allow"});
        self.trigger = Some(self.create("schedule", &config, input).await);
        while self.world.scheduler.turn(Some(at(&due)), Duration::ZERO).await.expect("a turn") {}
    }

    /// Sends a record with that value, and waits until the trigger has fired for it.
    async fn record(&self, value: &Value) {
        let before = self.firings().await.as_array().expect("a list").len();
        let topic = self.trigger.as_ref().expect("a trigger")["config"]["topic"].as_str().expect("a topic");
        let config = kafka::producer_config(&self.world.service.config.kafka);
        let producer: FutureProducer = config.create().expect("valid settings");
        let value = value.to_string();
        let record = FutureRecord::<str, str>::to(topic).partition(0).payload(&value);
        producer.send(record, Duration::from_secs(10)).await.expect("sent");
        eventually("the trigger has fired", async || {
            (self.firings().await.as_array().expect("a list").len() > before).then_some(())
        })
        .await;
    }

    async fn last_firing(&self) -> Value {
        self.firings().await[0].clone()
    }

    async fn firings(&self) -> Value {
        self.shown_trigger().await["firings"].clone()
    }

    async fn shown_trigger(&self) -> Value {
        let id = self.trigger.as_ref().expect("a trigger")["id"].as_str().expect("an id");
        self.world.service.get(&format!("{TRIGGERS}/{id}")).await.expect(200)
    }

    /// Sends what starts a run; returns its id and the answer.
    async fn send(&self, input: &Value) -> (Value, Answer) {
        let service = &self.world.service;
        let trigger = |member: &str| self.trigger.as_ref().expect("a trigger")[member].as_str().expect("text");
        match self.way {
            Way::Request => {
                let path = format!("/api/v1/workflows/{}/execute", self.workflow);
                let answer = service.post(&path, &json!({"input_data": input})).await;
                (answer.json()["run_id"].clone(), answer)
            }
            Way::ByHand => {
                let path = format!("{TRIGGERS}/{}/fire", trigger("id"));
                let answer = service.post(&path, &json!({"trigger": {"input": input}})).await;
                (answer.json()["run_id"].clone(), answer)
            }
            Way::Webhook => {
                let path = format!("/api/v1/hooks/{}", trigger("token"));
                let answer = service.post(&path, input).await;
                (answer.json()["run_id"].clone(), answer)
            }
            Way::A2a => {
                let message = json!({"messageId": Uuid::now_v7(), "role": "ROLE_USER", "parts": [{"data": input}]});
                let params = json!({"message": message, "configuration": {"returnImmediately": true}});
                let body = json!({"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": params});
                let headers = [("content-type", "application/json"), ("a2a-version", "1.0")];
                let path = format!("/a2a/default/{}", self.name);
                let answer = service.send("POST", &path, &headers, body.to_string()).await;
                (answer.json()["result"]["task"]["id"].clone(), answer)
            }
            Way::Mcp => {
                let arguments = json!({"workflow": self.name, "input": input, "wait_seconds": 0});
                let params = json!({"name": "run_start", "arguments": arguments});
                let answer = workflow_tools::Client::default().send(service, "tools/call", &params).await;
                let result = &answer.json()["result"];
                // Of a run that has ended at once it says in words what became of it.
                let said = result["content"][0]["text"].as_str().and_then(|text| text.split(' ').nth(2));
                let said = said.filter(|word| word.starts_with("run-")).map_or(Value::Null, Value::from);
                let run_id = result["structuredContent"]["run_id"].clone();
                (if run_id.is_null() { said } else { run_id }, answer)
            }
            Way::Schedule | Way::Kafka => panic!("nobody answers"),
        }
    }
}

/// The place of a run in flow control: `stage state`, and the code of what has ended it.
async fn place(service: &Service, run_id: &str) -> String {
    let run = run(service, run_id).await;
    let flow = &run["flow_control"];
    let (stage, state) = (flow["stage"].as_str().unwrap_or("-"), flow["state"].as_str().unwrap_or("-"));
    let status = run["status"].as_str().expect("a status");
    format!("{status} {stage} {state} {}", run["error_code"].as_str().unwrap_or("-"))
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_is_decided_alike_in_whatever_way_it_is_started(pool: PgPool) {
    let world = World::start(&pool).await;
    let service = &world.service;
    let key = "${workflow.input.of}";
    let hourly = |policy: &str| json!({"throttle": {"limit": 1, "period_seconds": 3600, "policy": policy}});
    let concurrency = |policy: &str| json!({"concurrency": {"key": key, "limit": 1, "policy": policy}});
    let admitted = "PENDING concurrency admitted -";
    let mut dispatched = BTreeSet::new();
    for (name, members, expected) in [
        ("queue", concurrency("queue"), [admitted, "PENDING concurrency queued -", "PENDING concurrency queued -"]),
        (
            "skip",
            concurrency("skip"),
            [
                admitted,
                "CANCELLED concurrency skipped skipped_by_concurrency",
                "CANCELLED concurrency skipped skipped_by_concurrency",
            ],
        ),
        (
            "replace",
            concurrency("cancel_running"),
            [
                "CANCELLED concurrency replaced replaced_by_concurrency",
                "CANCELLED concurrency replaced replaced_by_concurrency",
                admitted,
            ],
        ),
        (
            "throttle",
            hourly("queue"),
            ["PENDING throttle admitted -", "PENDING throttle queued -", "PENDING throttle queued -"],
        ),
        (
            "drop",
            hourly("drop"),
            [
                "PENDING throttle admitted -",
                "CANCELLED throttle dropped dropped_by_throttle",
                "CANCELLED throttle dropped dropped_by_throttle",
            ],
        ),
        (
            "debounce",
            json!({"debounce": {"key": key, "period_seconds": 3600}}),
            [
                "CANCELLED debounce replaced replaced_by_debounce",
                "CANCELLED debounce replaced replaced_by_debounce",
                "PENDING debounce queued -",
            ],
        ),
    ] {
        for way in Way::ALL {
            let mut started = world.define(way, name, &members).await;
            let mut runs = Vec::new();
            for n in 1..=3 {
                let run_id = started.begin(n, "x").await;
                if way.is_trigger() {
                    // What becomes of the run is no matter of the trigger: it has fired.
                    let trigger = started.shown_trigger().await;
                    let firing = &trigger["firings"][0];
                    assert_eq!(
                        (&firing["outcome"], &firing["run_id"]),
                        (&json!("started"), &json!(run_id)),
                        "{name} {way:?}"
                    );
                    let fired = if way == Way::Schedule { 1 } else { n };
                    assert_eq!(trigger["counters"]["fired"], fired, "{name} {way:?}");
                    assert_eq!(trigger["counters"]["failed_to_start"], 0, "{name} {way:?}");
                }
                runs.push(run_id);
            }
            let mut places = Vec::new();
            for run_id in &runs {
                places.push(place(service, run_id).await);
            }
            assert_eq!(places, expected, "{name} {way:?}");
            if name == "queue" {
                // What was held starts by itself, with its message, once the slot is free.
                let sql = "SELECT count(*) FROM outbox_messages WHERE run_id = $1";
                eventually("the first message is sent", async || {
                    let left: i64 = sqlx::query_scalar(sql).bind(&runs[0]).fetch_one(&pool).await.expect("a count");
                    (left == 0).then_some(())
                })
                .await;
                act(service, &runs[0], "cancel", 200).await;
                eventually("the next one is admitted", async || {
                    (place(service, &runs[1]).await == admitted).then_some(())
                })
                .await;
                assert_eq!(place(service, &runs[2]).await, expected[2], "{way:?}");
                assert_eq!(kinds(&world.pool, &runs[1]).await, ["run.queued", "run.admitted"]);
                dispatched.extend(runs.drain(..2));
            }
        }
        if name == "queue" {
            let topic = &service.config.kafka.execution_topic;
            let sent = records(&service.config, topic, dispatched.len()).await;
            let sent: BTreeSet<String> = sent.into_iter().map(|record| record.key).collect();
            assert_eq!(sent, dispatched);
        }
    }
    is_consistent(&pool).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_key_without_a_value_is_an_error_in_whatever_way_a_run_is_started(pool: PgPool) {
    let world = World::start(&pool).await;
    let members = json!({"concurrency": {"key": "${workflow.input.of.id}", "limit": 1}});
    let text = "concurrency.key is null for this input";
    for way in Way::ALL {
        let mut started = world.define(way, "unreadable", &members).await;
        let input = json!({"n": 1, "of": "x"});
        let (path, name) = (format!("/api/v1/runs?workflow_id={}", started.workflow), started.name.clone());
        if way == Way::Schedule {
            started.fire(1, &input).await;
        } else if way == Way::Kafka {
            started.record(&input).await;
        } else {
            let (run_id, answer) = started.send(&input).await;
            assert_eq!(run_id, Value::Null, "{way:?}: {}", answer.text);
            // The sender of a delivery is not told what the trigger does with it.
            assert_eq!(answer.text.contains(text), way != Way::Webhook, "{way:?}: {}", answer.text);
            match way {
                Way::Request => assert_eq!(answer.field_errors(), ["body.input_data flow_key"]),
                Way::Webhook | Way::ByHand => {
                    let error = answer.json();
                    assert_eq!(error["code"], "input_invalid", "{way:?}: {error}");
                    answer.error(if way == Way::ByHand { 409 } else { 422 });
                }
                Way::A2a => assert_eq!(answer.expect(200)["error"]["code"], -32602),
                _ => assert_eq!(answer.expect(200)["result"]["isError"], true),
            }
        }
        if way.is_trigger() {
            let trigger = started.shown_trigger().await;
            let firing = &trigger["firings"][0];
            assert_eq!(
                (&firing["outcome"], &firing["reason"], &firing["run_id"]),
                (&json!("failed_to_start"), &json!("input_invalid"), &Value::Null),
                "{way:?}"
            );
            assert!(firing["detail"].as_str().is_some_and(|detail| detail.contains(text)), "{way:?}: {firing}");
            assert_eq!(trigger["counters"]["failed_to_start"], 1, "{way:?}");
        }
        assert_eq!(world.service.get(&path).await.expect(200)["total"], 0, "{name}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn runs_of_one_firing_after_another_are_decided_together_in_their_order(pool: PgPool) {
    let world = World::start(&pool).await;
    let members = json!({"concurrency": {"limit": 2, "policy": "queue"}});
    let mut started = world.define(Way::Schedule, "late", &members).await;
    let config =
        json!({"cron": ["@hourly"], "start_at": "2027-01-01T00:00:00Z", "overlap": "allow", "catch_up": "all"});
    let input = json!({"n": 1, "at": "${trigger.scheduled_at}"});
    started.trigger = Some(started.create("schedule", &config, &input).await);
    while world.scheduler.turn(Some(at("2027-01-01T04:00:00Z")), Duration::ZERO).await.expect("a turn") {}
    let trigger = started.trigger.as_ref().expect("a trigger")["id"].clone();
    let path = format!("/api/v1/runs?trigger_id={}&sort_order=asc", trigger.as_str().expect("an id"));
    let runs = world.service.get(&path).await.expect(200)["items"].as_array().expect("a list").clone();
    let mut seen = Vec::new();
    for listed in &runs {
        let run = run(&world.service, id(listed)).await;
        seen.push(format!("{} {}", run["trigger"]["at"].as_str().expect("an instant"), run["flow_control"]["state"]));
    }
    seen.sort();
    let expected = ["admitted", "admitted", "queued", "queued", "queued"];
    let expected: Vec<_> =
        (0..5).zip(expected).map(|(hour, state)| format!("2027-01-01T{hour:02}:00:00Z {state:?}")).collect();
    assert_eq!(seen, expected);
    // A skipped run has ended, so the schedule's own rule about overlaps sees it as that.
    let skipping = json!({"concurrency": {"limit": 1, "policy": "skip"}});
    let mut other = world.define(Way::Schedule, "skipped", &skipping).await;
    let busy = start(&world.service, &other.workflow, &json!({"input_data": {"n": 1}})).await;
    let config = json!({"cron": ["@hourly"], "start_at": "2027-01-01T00:00:00Z", "overlap": "skip"});
    other.trigger = Some(other.create("schedule", &config, &json!({"n": 2})).await);
    for hour in ["2027-01-01T00:00:00Z", "2027-01-01T01:00:00Z"] {
        while world.scheduler.turn(Some(at(hour)), Duration::ZERO).await.expect("a turn") {}
    }
    let shown = other.shown_trigger().await;
    assert_eq!((&shown["counters"]["fired"], &shown["counters"]["overlap_skipped"]), (&json!(2), &json!(0)));
    assert_eq!(place(&world.service, id(&busy)).await, "PENDING concurrency admitted -");
    is_consistent(&pool).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn who_waits_for_a_run_that_is_skipped_is_told_at_once(pool: PgPool) {
    let world = World::start(&pool).await;
    let service = &world.service;
    let members = json!({"concurrency": {"limit": 1, "policy": "skip"}});
    let mut hook = world.define(Way::Webhook, "waiting", &members).await;
    hook.begin(1, "x").await;
    let path = format!("/api/v1/hooks/{}?wait=10", hook.trigger.as_ref().expect("one")["token"].as_str().expect("one"));
    assert_eq!(service.post(&path, &json!({"n": 2})).await.expect(200)["status"], "CANCELLED");
    // A task that is canceled, and a tool that says why.
    let headers = [("content-type", "application/json"), ("a2a-version", "1.0")];
    let message = json!({"messageId": "m-1", "role": "ROLE_USER", "parts": [{"data": {"n": 3}}]});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": message}}).to_string();
    let task = service.send("POST", &format!("/a2a/default/{}", hook.name), &headers, body).await.expect(200);
    assert_eq!(task["result"]["task"]["status"]["state"], "TASK_STATE_CANCELED", "{task}");
    let params = json!({"name": hook.name, "arguments": {"n": 4}});
    let said = workflow_tools::Client::default().send(service, "tools/call", &params).await.expect(200);
    assert_eq!(said["result"]["isError"], true, "{said}");
    assert!(said["result"]["content"][0]["text"].as_str().is_some_and(|text| text.contains("Skipped: ")), "{said}");
}
