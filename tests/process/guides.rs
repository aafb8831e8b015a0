//! The examples of the guides, as a reader copies them: they work on what `workflow-api dev` starts.

use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::Value;
use sqlx::PgPool;
use tokio::process::Command;
use uuid::Uuid;
use workflow_api::kafka;

use crate::{
    kafka_triggers,
    program::{Environment, Program, eventually},
};

/// What `dev` has started.
struct Quickstart {
    environment: Environment,
    /// Address of the demo agent.
    agent: String,
    folder: std::path::PathBuf,
    program: Program,
}

impl Quickstart {
    async fn start(pool: &PgPool) -> Self {
        let folder = std::env::temp_dir().join(format!("workflow-api-test-{}", Uuid::new_v4()));
        let environment = Environment::new(pool);
        let program = environment.start(&["dev", "--data-dir", folder.to_str().expect("a path of text")]);
        let agent = eventually("the demo agent has an address", async || {
            let log = program.log();
            let line = log.lines().find_map(|line| line.strip_prefix("Demo agent    "))?;
            Some(line.to_owned())
        })
        .await;
        eventually("the first run has ended", async || {
            let runs = reqwest::get(format!("{}/api/v1/runs?status=COMPLETED", environment.url)).await.ok()?;
            let runs: Value = runs.json().await.ok()?;
            (runs["total"] == 1).then_some(())
        })
        .await;
        Self { environment, agent, folder, program }
    }

    /// Runs the shell blocks of a guide that a reader can copy as they are, and returns what they print. `before` is
    /// run first, and each of `other` is another text here.
    async fn follow(&self, guide: &str, before: &str, other: &[(&str, &str)]) -> String {
        let text = std::fs::read_to_string(format!("docs/{guide}.md")).expect("a guide");
        let blocks = text.split("```sh\n").skip(1).filter_map(|rest| Some(rest.split_once("\n```")?.0));
        // Those with a placeholder are for later.
        let blocks: Vec<&str> = blocks.filter(|block| !block.contains("/ID/")).collect();
        let mut script = blocks.join("\n");
        assert!(script.contains("http://localhost:8000"), "{guide}: {script}");
        script = script.replace("http://localhost:8000", &self.environment.url);
        for (theirs, ours) in other {
            assert!(script.contains(theirs), "{guide} has no {theirs}: {script}");
            script = script.replace(theirs, ours);
        }
        let script = format!("set -euo pipefail\n{before}\n{script}");
        let output = Command::new("bash").args(["-c", &script]).output().await.expect("bash runs");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{guide}: {printed}\n{}", String::from_utf8_lossy(&output.stderr));
        printed
    }

    async fn stop(mut self) {
        self.program.terminate().await;
        assert_eq!(self.program.exit_code().await, 0);
        std::fs::remove_dir_all(&self.folder).expect("its folder");
    }
}

/// The only item of a list.
async fn only(environment: &Environment, path: &str) -> Option<Value> {
    let list = environment.get(path).await;
    let items = list["items"].as_array().cloned().unwrap_or_else(|| panic!("{path}: {list}"));
    assert!(items.len() < 2, "{path}: {list}");
    items.into_iter().next()
}

#[sqlx::test(migrations = false)]
async fn the_examples_of_the_guides_work_on_the_quickstart(pool: PgPool) {
    let quickstart = Quickstart::start(&pool).await;
    let environment = &quickstart.environment;

    let printed = quickstart.follow("webhooks", "", &[("http://127.0.0.1:9010", &quickstart.agent)]).await;
    assert!(printed.contains("whsec_") && printed.contains("\"COMPLETED\""), "{printed}");
    eventually("both events are shown", async || {
        let shown = reqwest::get(format!("{}/hooks", quickstart.agent)).await.ok()?.text().await.ok()?;
        ["run.started", "run.completed"].iter().all(|event| shown.contains(event)).then_some(())
    })
    .await;

    quickstart.follow("schedules", "", &[]).await;
    eventually("the schedule has fired", async || {
        let trigger = only(environment, "/api/v1/triggers?name=every-ten-seconds").await?;
        (trigger["counters"]["fired"].as_i64() > Some(0)).then_some(())
    })
    .await;

    let printed = quickstart.follow("inbound-webhooks", "", &[]).await;
    let answer = printed.rfind("{\"run_id\"").map(|start| &printed[start..]).expect("the answer of the last command");
    let answer: Value = serde_json::from_str(answer).expect("JSON");
    assert_eq!(answer["status"], "COMPLETED", "{printed}");

    let printed = quickstart.follow("flow-control", "", &[]).await;
    assert_eq!(printed.matches("\"run_id\"").count(), 3, "{printed}");
    assert_eq!(printed.matches("\"queued\"").count(), 1, "{printed}");
    eventually("two are under way, and one is held", async || {
        let of = async |status: &str| {
            let path = format!("/api/v1/runs?name_prefix=report&status={status}");
            environment.get(&path).await["total"].as_i64()
        };
        (of("RUNNING").await == Some(2) && of("PENDING").await == Some(1)).then_some(())
    })
    .await;

    // `kcat` keeps what it is to send, and a producer sends it.
    // The broker of `dev` makes topics by itself; this one does not.
    let (records, topic) = (quickstart.folder.join("records"), kafka_triggers::topic(environment, 1).await);
    let kcat = format!("kcat() {{ cat >'{}'; }}", records.display());
    let other = [("\"orders\"", format!("\"{topic}\"")), ("-t orders", format!("-t {topic}"))];
    let other: Vec<(&str, &str)> = other.iter().map(|(theirs, ours)| (*theirs, ours.as_str())).collect();
    quickstart.follow("kafka-triggers", &kcat, &other).await;
    let producer: FutureProducer = kafka::client_config(&environment.kafka()).create().expect("valid settings");
    for record in std::fs::read_to_string(&records).expect("records").lines() {
        let record = FutureRecord::<str, str>::to(&topic).payload(record);
        producer.send(record, std::time::Duration::from_secs(30)).await.expect("the broker takes it");
    }
    eventually("one of two records has started a run", async || {
        let run = only(environment, "/api/v1/runs?triggered_by=trigger:large-orders").await?;
        (run["status"] == "COMPLETED").then_some(())
    })
    .await;
    quickstart.stop().await;
}
