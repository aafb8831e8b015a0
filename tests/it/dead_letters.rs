//! Records that no executor can use: nothing of them is lost, and nothing waits for them.

use rdkafka::{
    consumer::{BaseConsumer, Consumer as _},
    message::{Header, Headers as _, Message as _, OwnedHeaders, OwnedMessage},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{
    config::Config,
    db::{
        dead_letters::{self, Expired},
        migrations::MIGRATOR,
    },
    kafka,
};

use crate::{
    access::Admin,
    path::{Agent, Executor, ended, shouting},
    service::{Service, config, eventually, raw_records, send},
};

/// Settings with a dead-letter topic of the test's own, and one partition, so that all records stand in one line.
fn own_topics(pool: &PgPool) -> Config {
    let topic = format!("dead-{}", uuid::Uuid::new_v4().simple());
    config(pool, &[("KAFKA_DEAD_LETTER_TOPIC", &topic), ("KAFKA_TOPIC_PARTITIONS", "1")])
}

fn plan() -> Value {
    json!({"workflow_id": "wf-x-1", "name": "x", "version": "1", "start_step": "a", "steps": {
        "a": {"id": "a", "agent_name": "worker", "next_step": null, "input_mapping": {"text": "${workflow.input.t}"}}}})
}

fn request(run_id: &str) -> Value {
    json!({"run_id": run_id, "workflow_plan": plan(), "input_data": {"t": "hi"}})
}

/// The letters, as soon as there are so many.
async fn letters(service: &Service, query: &str, count: usize) -> Vec<Value> {
    eventually("the letters are listed", || async {
        let page = service.get(&format!("/api/v1/dead-letters?sort_order=asc&{query}")).await.expect(200);
        let items = page["items"].as_array().expect("items").clone();
        (items.len() >= count).then_some(items)
    })
    .await
}

/// The offset from which the executors' group goes on in partition 0.
fn committed(config: &Config, topic: &str) -> Option<i64> {
    let client: BaseConsumer =
        kafka::client_config(&config.kafka).set("group.id", &config.kafka.group_id).create().expect("valid settings");
    let mut asked = rdkafka::TopicPartitionList::new();
    asked.add_partition(topic, 0);
    let offsets = client.committed_offsets(asked, std::time::Duration::from_secs(5)).ok()?;
    offsets.elements()[0].offset().to_raw()
}

fn header<'a>(record: &'a OwnedMessage, name: &str) -> &'a str {
    let headers = record.headers().expect("headers");
    let found = headers.iter().find(|header| header.key == name).unwrap_or_else(|| panic!("a header {name}"));
    std::str::from_utf8(found.value.expect("a value")).expect("text")
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_cannot_be_used_is_kept_byte_for_byte_and_what_is_behind_it_goes_on(pool: PgPool) {
    let service = Service::start_with(own_topics(&pool));
    let (_, url) = Agent::start(shouting).await;
    service.agent("worker", &url).await;
    let kafka = &service.config.kafka;
    let mut endless = request("ext-2");
    endless["workflow_plan"]["steps"]["a"]["next_step"] = json!("a");
    let mut nul = request("ext-3");
    nul["input_data"]["t"] = json!("a\0b");
    let cases: Vec<(&str, Option<Vec<u8>>)> = vec![
        ("empty", None),
        ("empty", Some(Vec::new())),
        ("invalid_json", Some(b"no JSON \xff\xfe\x00".to_vec())),
        ("invalid_json", Some(br#"{"run_id": "r", "workflow_plan": {"#.to_vec())),
        ("invalid_message", Some(b"17".to_vec())),
        ("invalid_message", Some(json!({"workflow_plan": plan()}).to_string().into_bytes())),
        ("invalid_message", Some(json!({"message_type": "cancellation_request"}).to_string().into_bytes())),
        ("unknown_kind", Some(json!({"run_id": "r"}).to_string().into_bytes())),
        ("invalid_plan", Some(endless.to_string().into_bytes())),
        ("invalid_content", Some(nul.to_string().into_bytes())),
        ("invalid_content", Some(request(&"r".repeat(300)).to_string().into_bytes())),
    ];
    for (number, (_, value)) in cases.iter().enumerate() {
        let headers = OwnedHeaders::new()
            .insert(Header { key: "trace", value: Some(&[u8::try_from(number).expect("few"), 0xff][..]) });
        // Whatever topic they come by: the content decides.
        let topic = if number % 3 == 2 { &kafka.cancellation_topic } else { &kafka.execution_topic };
        send(&service.config, topic, Some(format!("key-{number}").as_bytes()), value.as_deref(), headers).await;
    }
    send(
        &service.config,
        &kafka.execution_topic,
        None,
        Some(request("ext-1").to_string().as_bytes()),
        OwnedHeaders::new(),
    )
    .await;
    let executor = Executor::start(&service);
    eventually("the record behind them is executed", || async {
        (service.get("/api/v1/runs/ext-1").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(ended(&service, "ext-1").await["status"], "COMPLETED");

    let listed = letters(&service, "page_size=100", cases.len()).await;
    assert_eq!(listed.len(), cases.len(), "each once");
    let copies = raw_records(&service.config, &kafka.dead_letter_topic, cases.len(), |_| true).await;
    for (number, (reason, value)) in cases.iter().enumerate() {
        let key = format!("key-{number}");
        let copy = copies.iter().find(|copy| copy.key() == Some(key.as_bytes())).expect("a copy");
        assert_eq!(copy.payload().unwrap_or_default(), value.as_deref().unwrap_or_default());
        assert_eq!(header(copy, "dead-letter-reason"), *reason);
        let id = header(copy, "dead-letter-id");
        let letter = listed.iter().find(|letter| letter["id"] == id).expect("its letter");
        assert_eq!((&letter["reason"], &letter["status"]), (&json!(reason), &json!("open")));
        assert_eq!(header(copy, "dead-letter-topic"), letter["topic"]);
        assert_eq!(header(copy, "dead-letter-partition"), letter["partition"].to_string());
        assert_eq!(header(copy, "dead-letter-offset"), letter["offset"].to_string());
        assert_eq!(header(copy, "dead-letter-timestamp"), letter["sent_at"]);
        assert_eq!(header(copy, "dead-letter-time"), letter["created_at"]);
        let trace = copy.headers().expect("headers").iter().find(|header| header.key == "trace").expect("as it was");
        assert_eq!(trace.value, Some(&[u8::try_from(number).expect("few"), 0xff][..]));
        let shown = service.get(&format!("/api/v1/dead-letters/{id}")).await.expect(200);
        assert_eq!((&shown["key"]["content"], &shown["headers"][0]["name"]), (&json!(key), &json!("trace")));
        assert_eq!(shown["headers"][0]["value"]["encoding"], "base64");
        match value {
            None => assert_eq!(shown["value"], Value::Null),
            Some(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => assert_eq!(shown["value"], json!({"encoding": "text", "content": text})),
                Err(_) => assert_eq!(shown["value"]["encoding"], "base64"),
            },
        }
    }
    executor.stop().await;
    // Nothing comes again.
    let last = listed.iter().filter(|letter| letter["topic"] == kafka.execution_topic.as_str());
    assert!(last.count() > 3);
    let executed = 1 + i64::try_from((0..cases.len()).filter(|number| number % 3 != 2).count()).expect("few");
    let settings = service.config.clone();
    let offset = tokio::task::spawn_blocking(move || committed(&settings, &settings.kafka.execution_topic)).await;
    assert_eq!(offset.expect("no panic"), Some(executed));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_run_of_a_request_that_cannot_be_used_fails_and_says_why(pool: PgPool) {
    let service = Service::start_with(own_topics(&pool));
    let workflow_id = service.one_step_workflow().await;
    let run_id = service.execute(&workflow_id).await;
    // As if the message that is on its way had been lost.
    let mut broken = request(&run_id);
    broken["workflow_plan"] = json!({"start_step": "nowhere", "steps": {}});
    send(
        &service.config,
        &service.config.kafka.cancellation_topic,
        None,
        Some(broken.to_string().as_bytes()),
        OwnedHeaders::new(),
    )
    .await;
    sqlx::query("UPDATE workflow_runs SET execution_event_id = gen_random_uuid()").execute(&pool).await.expect("done");
    let _executor = Executor::start(&service);
    let run = ended(&service, &run_id).await;
    let message = run["error_message"].as_str().expect("a message");
    assert!(message.contains("the workflow plan cannot be executed"), "{message}");
    let [letter] = &letters(&service, &format!("run_id={run_id}"), 1).await[..] else { panic!("one letter") };
    assert_eq!((&letter["reason"], &letter["run_id"]), (&json!("invalid_plan"), &json!(run_id)));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_request_of_an_earlier_start_that_cannot_be_used_does_not_end_the_run(pool: PgPool) {
    let service = Service::start_with(own_topics(&pool));
    let workflow_id = service.one_step_workflow().await;
    let run_id = service.execute(&workflow_id).await;
    // As if the message that is on its way had been lost, and its run started again.
    let event_id = uuid::Uuid::new_v4();
    let start_again = "UPDATE workflow_runs SET execution_event_id = $1";
    sqlx::query(start_again).bind(event_id).execute(&pool).await.expect("done");
    let broken = |event_id: uuid::Uuid| {
        let mut broken = request(&run_id);
        broken["workflow_plan"] = json!({"start_step": "nowhere", "steps": {}});
        broken["event_id"] = json!(event_id);
        broken.to_string()
    };
    let topic = &service.config.kafka.execution_topic;
    let _executor = Executor::start(&service);
    let nobodys = request("").to_string();
    send(&service.config, topic, Some(run_id.as_bytes()), Some(nobodys.as_bytes()), OwnedHeaders::new()).await;
    for (event_id, status) in [(uuid::Uuid::new_v4(), "PENDING"), (event_id, "FAILED")] {
        send(&service.config, topic, None, Some(broken(event_id).as_bytes()), OwnedHeaders::new()).await;
        let count = if status == "PENDING" { 2 } else { 3 };
        letters(&service, &format!("run_id={run_id}"), count).await;
        eventually("the letter's run is left alone, or ended", || async {
            (service.get(&format!("/api/v1/runs/{run_id}")).await.expect(200)["status"] == status).then_some(())
        })
        .await;
    }
}

/// What passes every check of ours and is refused all the same is read again, and kept as it was sent.
#[sqlx::test(migrator = "MIGRATOR")]
async fn what_the_database_refuses_is_kept_as_it_was_sent(pool: PgPool) {
    let service = Service::start_with(own_topics(&pool));
    let (_, url) = Agent::start(shouting).await;
    service.agent("worker", &url).await;
    let mut refused = request("ext-refused");
    refused["workflow_plan"]["name"] = json!("n".repeat(300));
    let text = format!("{refused}  ");
    for (key, value) in
        [("a", request("ext-before").to_string()), ("b", text.clone()), ("c", request("ext-after").to_string())]
    {
        let topic = &service.config.kafka.execution_topic;
        send(&service.config, topic, Some(key.as_bytes()), Some(value.as_bytes()), OwnedHeaders::new()).await;
    }
    let _executor = Executor::start(&service);
    let [letter] = &letters(&service, "", 1).await[..] else { panic!("one letter") };
    assert_eq!((&letter["reason"], &letter["run_id"]), (&json!("refused_by_database"), &json!("ext-refused")));
    let shown =
        service.get(&format!("/api/v1/dead-letters/{}", letter["id"].as_str().expect("an id"))).await.expect(200);
    assert_eq!(shown["value"]["content"], text);
    for run_id in ["ext-before", "ext-after"] {
        eventually("the run is there", || async {
            (service.get(&format!("/api/v1/runs/{run_id}")).await.status == 200).then_some(())
        })
        .await;
        assert_eq!(ended(&service, run_id).await["status"], "COMPLETED");
    }
    let attempts: i64 = sqlx::query_scalar("SELECT count(*) FROM step_executions").fetch_one(&pool).await.expect("it");
    assert_eq!(attempts, 2, "neither neighbour was executed twice");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_letter_is_sent_again_once_with_a_corrected_value_or_discarded(pool: PgPool) {
    let service = Service::start_with(own_topics(&pool));
    let (agent, url) = Agent::start(shouting).await;
    service.agent("worker", &url).await;
    let topic = service.config.kafka.execution_topic.clone();
    for value in [&b"{nonsense"[..], b"more nonsense"] {
        send(&service.config, &topic, Some(b"ext-7"), Some(value), OwnedHeaders::new()).await;
    }
    let _executor = Executor::start(&service);
    let both = letters(&service, "reason=invalid_json,empty&status=open", 2).await;
    assert!(letters(&service, "reason=empty", 0).await.is_empty());
    assert_eq!(both[0]["run_id"], "ext-7");
    let path = |letter: &Value| format!("/api/v1/dead-letters/{}", letter["id"].as_str().expect("an id"));
    let again = format!("{}/redrive", path(&both[0]));

    // Other programs stop at what is no message: it is not sent as it is.
    assert_eq!(service.post(&again, &json!({})).await.field_errors(), ["body.value value_error"]);
    assert_eq!(service.post(&again, &json!({"value": {"run_id": 1}})).await.field_errors(), ["body.value value_error"]);
    assert_eq!(service.post(&again, &json!({"value": 7})).await.status, 422);
    assert_eq!(service.post(&again, &json!({"velue": {}})).await.field_errors(), ["body.velue extra_forbidden"]);
    let corrected = json!({"value": request("ext-7")});
    assert_eq!(service.post(&again, &corrected).await.expect(202)["status"], "redriving");
    for _ in 0..3 {
        service.post(&again, &corrected).await.expect(202);
    }
    let other = json!({"value": request("ext-8")});
    assert_eq!(service.post(&again, &other).await.error(409)["code"], "dead_letter_resolved");
    eventually("it is executed", || async { (service.get("/api/v1/runs/ext-7").await.status == 200).then_some(()) })
        .await;
    assert_eq!(ended(&service, "ext-7").await["status"], "COMPLETED");
    let done = eventually("the letter is done", || async {
        let letter = service.get(&path(&both[0])).await.expect(200);
        (letter["status"] == "redriven").then_some(letter)
    })
    .await;
    assert_eq!((&done["resolved_by"], &done["corrected"]["encoding"]), (&json!("system"), &json!("text")));
    assert_eq!(agent.calls().len(), 1);
    assert_eq!(raw_records(&service.config, &topic, 3, |_| true).await.len(), 3, "sent again once");

    service.delete(&path(&both[0])).await.expect(200);
    let forgotten = service.get(&path(&both[0])).await.expect(200);
    assert_eq!((&forgotten["corrected"], &forgotten["detail"]), (&Value::Null, &json!("")));
    let discarded = service.delete(&path(&both[1])).await.expect(200);
    assert_eq!(discarded["status"], "discarded");
    service.delete(&path(&both[1])).await.expect(200);
    assert_eq!(service.get(&path(&both[1])).await.expect(200)["value"], Value::Null);
    service.post(&format!("{}/redrive", path(&both[1])), &corrected).await.error(409);
    let trail = service.get("/api/v1/audit-logs?entity_type=dead_letter&sort_order=asc").await.expect(200);
    let actions: Vec<&Value> = trail["items"].as_array().expect("items").iter().map(|entry| &entry["action"]).collect();
    assert_eq!(actions, ["redrive", "discard", "discard"]);
    assert_eq!(trail["items"][0]["after"]["run_id"], "ext-7");
    for method in ["GET", "DELETE"] {
        let nothing = "/api/v1/dead-letters/00000000-0000-0000-0000-000000000000";
        assert_eq!(service.send(method, nothing, &[], "").await.error(404)["code"], "dead_letter_not_found");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_letter_belongs_to_the_organisation_of_its_run(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    admin.post("/api/v1/organizations", &json!({"id": "acme", "name": "Acme"})).await.expect(201);
    for (number, organization) in ["acme", "default", "acme"].into_iter().enumerate() {
        let sql =
            "INSERT INTO dead_letters (id, organization_id, topic, partition, record_offset, value, digest, bytes,
                       reason, detail, copy_at)
                   VALUES (gen_random_uuid(), $1, 't', 0, $2, 'x', 'd', 1, 'invalid_json', 'why', NULL)";
        let insert = sqlx::query(sql).bind(organization).bind(i64::try_from(number).expect("small"));
        insert.execute(&pool).await.expect("done");
    }
    let own = admin.get("/api/v1/dead-letters").await.expect(200);
    assert_eq!(own["total"], 1);
    // Executors believe what is sent again: it may not be about a run of others.
    let (_, key) = {
        let body = json!({"name": "acme", "role": "admin", "organization_id": "acme"});
        let made = admin.post("/api/v1/api-keys", &body).await.expect(201);
        (made["id"].clone(), made["key"].as_str().expect("a key").to_owned())
    };
    for (run_id, organization) in [("run-of-acme", "acme"), ("run-of-default", "default")] {
        let sql = "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, organization_id)
                   VALUES ($1, 'w', 'w', 'PENDING', $2)";
        sqlx::query(sql).bind(run_id).bind(organization).execute(&pool).await.expect("done");
    }
    let id_of = async |organization: &str| -> uuid::Uuid {
        let sql = "SELECT id FROM dead_letters WHERE organization_id = $1 ORDER BY record_offset LIMIT 1";
        sqlx::query_scalar(sql).bind(organization).fetch_one(&pool).await.expect("an id")
    };
    for (organization, credentials, run_id, is_let) in [
        ("acme", ("x-api-key", key.as_str()), "run-of-default", false),
        ("acme", ("x-api-key", key.as_str()), "nobody-knows", false),
        ("acme", ("x-api-key", key.as_str()), "run-of-acme", true),
        ("default", ("authorization", admin.bearer.as_str()), "run-of-acme", false),
        ("default", ("authorization", admin.bearer.as_str()), "nobody-knows", true),
    ] {
        let path = format!("/api/v1/dead-letters/{}/redrive", id_of(organization).await);
        let headers = [credentials, ("content-type", "application/json")];
        for value in
            [request(run_id), json!({"run_id": run_id, "message_type": "cancellation_request", "cancelled_by": "me"})]
        {
            let answer = admin.service.send("POST", &path, &headers, json!({"value": value}).to_string()).await;
            if is_let {
                answer.expect(202);
                break;
            }
            assert_eq!(answer.field_errors(), ["body.value.run_id value_error"], "{organization} {run_id}");
        }
    }
    let foreign: uuid::Uuid = sqlx::query_scalar("SELECT id FROM dead_letters WHERE organization_id = 'acme' LIMIT 1")
        .fetch_one(&pool)
        .await
        .expect("an id");
    for (method, end) in [("GET", ""), ("DELETE", ""), ("POST", "/redrive")] {
        let path = format!("/api/v1/dead-letters/{foreign}{end}");
        assert_eq!(
            admin.service.send(method, &path, &[("authorization", &admin.bearer)], "").await.error(404)["code"],
            "dead_letter_not_found",
            "{method}"
        );
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn letters_go_when_they_are_too_old_or_too_many_and_open_ones_last(pool: PgPool) {
    let sql = "INSERT INTO dead_letters (id, topic, partition, record_offset, digest, bytes, reason, detail, status, copy_at, created_at)
               SELECT gen_random_uuid(), 't', 0, n, 'd', 1, 'empty', 'why', CASE n WHEN 1 THEN 'discarded' ELSE 'open' END,
                   NULL, now() - n * interval '1 day'
               FROM generate_series(0, 9) AS n";
    sqlx::query(sql).execute(&pool).await.expect("done");
    let left = async || {
        let sql = "SELECT record_offset FROM dead_letters ORDER BY 1";
        sqlx::query_scalar::<_, i64>(sql).fetch_all(&pool).await.expect("offsets")
    };
    let expire = async |most: i64| dead_letters::expire(&pool, 6, most).await.expect("done");
    let gone =
        |is_open, is_surplus, count| Expired { organization_id: "default".to_owned(), is_open, is_surplus, count };
    assert_eq!(expire(100).await, [gone(true, false, 4)]);
    assert_eq!(left().await, [0, 1, 2, 3, 4, 5]);
    assert_eq!(expire(5).await, [gone(false, true, 1)]);
    assert_eq!(left().await, [0, 2, 3, 4, 5], "what somebody has decided on goes first, however young");
    assert_eq!(expire(3).await, [gone(true, true, 2)]);
    assert_eq!(left().await, [0, 2, 3]);
    assert!(expire(3).await.is_empty());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn open_letters_that_were_deleted_are_told_in_the_audit_trail(pool: PgPool) {
    let sql = "INSERT INTO dead_letters (id, topic, partition, record_offset, digest, bytes, reason, detail, copy_at)
               SELECT gen_random_uuid(), 't', 0, n, 'd', 1, 'empty', 'why', NULL FROM generate_series(1, 5) AS n";
    sqlx::query(sql).execute(&pool).await.expect("done");
    let service = Service::start_with(config(&pool, &[("MAX_DEAD_LETTERS", "2")]));
    let entry = eventually("it is told", || async {
        let trail = service.get("/api/v1/audit-logs?entity_type=dead_letter&action=expire").await.expect(200);
        trail["items"].as_array().expect("items").first().cloned()
    })
    .await;
    assert_eq!(entry["after"], json!({"count": 3, "reason": "MAX_DEAD_LETTERS"}));
    assert_eq!(entry["user_id"], "system");
}
