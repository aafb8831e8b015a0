//! First run, shown in the terminal: agents and a workflow are registered through the public API, or found from an
//! earlier start.

use std::{
    collections::HashSet,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use chrono::DateTime;
use reqwest::{Client, Method};
use serde_json::{Value, json};

use super::{POLL, folder::Folder, say};

/// Time-out that allows for migrations on a slow machine.
const READY_TIMEOUT: Duration = Duration::from_mins(1);
/// Time-out for three steps of milliseconds, after the executor has joined its group.
const RUN_TIMEOUT: Duration = Duration::from_mins(1);
/// Time-out of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum length of a step output that is shown.
const SHOWN_CHARS: usize = 60;

const WORKFLOW: &str = "hello-workflow";
const SKILLS: [&str; 3] = ["upper", "reverse", "count"];

/// First run and its API.
pub(super) struct FirstRun<'a> {
    /// Base URL `http://host:port`.
    pub(super) root: String,
    /// `API_PREFIX`.
    pub(super) prefix: String,
    /// Whether the API serves the console.
    pub(super) console: bool,
    /// Token, if the API requires one.
    pub(super) token: Option<String>,
    pub(super) agent_port: u16,
    /// Path of this program.
    pub(super) program: &'a Path,
    pub(super) folder: &'a Folder,
}

impl FirstRun<'_> {
    /// Waits for the API, runs the workflow to its end and returns what to open and to try next.
    pub(super) async fn show(&self) -> anyhow::Result<String> {
        let client = Client::builder().no_proxy().timeout(REQUEST_TIMEOUT).build()?;
        self.wait_until_ready(&client).await?;
        say(format!("API           {}", self.root));
        for skill in SKILLS {
            self.register_agent(&client, skill).await.with_context(|| format!("agent demo-{skill}"))?;
        }
        let workflow_id = self.workflow(&client).await.with_context(|| format!("workflow {WORKFLOW}"))?;
        let run_id = self.follow_run(&client, &workflow_id).await.context("the first run")?;
        Ok(self.summary(&run_id))
    }

    async fn wait_until_ready(&self, client: &Client) -> anyhow::Result<()> {
        let url = format!("{}/health/ready", self.root);
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let answer = client.get(&url).send().await;
            if answer.as_ref().is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let problem = answer.map_or_else(|error| error.to_string(), |answer| answer.status().to_string());
                bail!("the API is not ready: {url}: {problem}; its log is {}", self.folder.log("serve").display());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Sends a request under the prefix. An error contains the reason that the API returned.
    async fn call(&self, client: &Client, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let mut request = client.request(method, format!("{}{}{path}", self.root, self.prefix));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await?;
        let status = answer.status();
        let body: Value = answer.json().await.unwrap_or_default();
        if !status.is_success() {
            bail!("{path} answered {status}: {}", body["detail"].as_str().unwrap_or("without a reason"));
        }
        Ok(body)
    }

    /// Registers the agent of that skill at the current port of the demo agent.
    async fn register_agent(&self, client: &Client, skill: &str) -> anyhow::Result<()> {
        let name = format!("demo-{skill}");
        let url = format!("http://127.0.0.1:{}/{skill}", self.agent_port);
        let found = self.call(client, Method::GET, &format!("/agents?name={name}"), None).await?;
        let agent = &found["items"][0];
        let Some(id) = agent["id"].as_str() else {
            let body =
                json!({"name": name, "url": url, "description": "A skill of the demo agent", "timeout_ms": 10_000});
            self.call(client, Method::POST, "/agents", Some(body)).await?;
            say(format!("Agent         {name} registered"));
            return Ok(());
        };
        if agent["url"] != url.as_str() || agent["status"] != "active" {
            let body = json!({"url": url, "status": "active"});
            self.call(client, Method::PUT, &format!("/agents/{id}"), Some(body)).await?;
        }
        Ok(())
    }

    /// Id of the workflow's newest active version, which is created if there is none.
    async fn workflow(&self, client: &Client) -> anyhow::Result<String> {
        let newest = format!("/workflows?name={WORKFLOW}&status=active&sort_by=version&page_size=1");
        let found = self.call(client, Method::GET, &newest, None).await?;
        if let Some(id) = found["items"][0]["id"].as_str() {
            return Ok(id.to_owned());
        }
        let step = |id: &str, skill: &str, text: &str, next: Option<&str>| json!({"id": id, "agent_name": format!("demo-{skill}"), "input_mapping": {"text": text}, "next_step": next});
        let body = json!({
            "name": WORKFLOW,
            "description": "Puts a text in capitals, reverses it and counts its words",
            "start_step": "shout",
            "steps": {
                "shout": step("shout", "upper", "${workflow.input.text}", Some("mirror")),
                "mirror": step("mirror", "reverse", "${shout.output.text}", Some("count")),
                "count": step("count", "count", "${mirror.output.text}", None),
            },
        });
        let made = self.call(client, Method::POST, "/workflows", Some(body)).await?;
        say(format!("Workflow      {WORKFLOW} made: shout, mirror, count"));
        Ok(made["id"].as_str().context("the answer has no id")?.to_owned())
    }

    /// Executes the workflow and prints each step as it ends. Returns the run's id.
    async fn follow_run(&self, client: &Client, workflow_id: &str) -> anyhow::Result<String> {
        let input = json!({"input_data": {"text": "hello from your first workflow"}});
        let started = Instant::now();
        let run = self.call(client, Method::POST, &format!("/workflows/{workflow_id}/execute"), Some(input)).await?;
        let run_id = run["run_id"].as_str().context("the answer has no run_id")?.to_owned();
        say(format!("Run           {run_id} of {WORKFLOW}"));
        let mut shown = HashSet::new();
        loop {
            // The run is read first: once it has ended, the steps read afterwards are complete.
            let run = self.call(client, Method::GET, &format!("/runs/{run_id}"), None).await?;
            let steps = self.call(client, Method::GET, &format!("/runs/{run_id}/steps"), None).await?;
            for step in steps.as_array().into_iter().flatten() {
                if !step["completed_at"].is_null() && shown.insert(step["id"].to_string()) {
                    say(step_line(step));
                }
            }
            match run["status"].as_str() {
                Some("COMPLETED") => {
                    say(format!("  COMPLETED   after {} ms", started.elapsed().as_millis()));
                    return Ok(run_id);
                }
                Some(status @ ("FAILED" | "CANCELLED")) => {
                    let cause = run["error_message"].as_str().unwrap_or("no cause was stored");
                    bail!("{run_id} is {status}: {cause}; log: {}", self.folder.log("executor").display());
                }
                status if started.elapsed() > RUN_TIMEOUT => {
                    let status = status.unwrap_or("without a status");
                    bail!("{run_id} is still {status}; log: {}", self.folder.log("executor").display());
                }
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Next things to open and to try, with commands that can be copied.
    fn summary(&self, run_id: &str) -> String {
        let (root, api, program) = (&self.root, format!("{}{}", self.root, self.prefix), self.program.display());
        let (export, header) = if self.token.is_some() {
            let export =
                format!("  # A token, signed with JWT_SECRET\n  export WORKFLOW_API_TOKEN=$({program} token)\n");
            (export, " -H \"Authorization: Bearer $WORKFLOW_API_TOKEN\"")
        } else {
            (String::new(), "")
        };
        let console = if self.console { format!("  {root}/console\n") } else { String::new() };
        format!(
            "Open\n{console}  {root}/docs\n  {root}/redoc\n\nTry next\n{export}  # The same workflow with your own words\n  \
             {program} run --url {root} {WORKFLOW} '{{\"text\": \"my own words\"}}' --wait\n  # The newest runs\n  curl \
             -sS{header} '{api}/runs?page_size=5'\n  # Input and output of each step of the first run\n  curl -sS{header} \
             {api}/runs/{run_id}/steps\n\nLogs are in {}\n",
            self.folder.path("logs").display()
        )
    }
}

/// Line about a step that has ended.
fn step_line(step: &Value) -> String {
    let instant = |name: &str| step[name].as_str().and_then(|text| DateTime::parse_from_rfc3339(text).ok());
    let duration = match (instant("started_at"), instant("completed_at")) {
        (Some(start), Some(end)) => format!("{} ms", (end - start).num_milliseconds()),
        _ => "?".to_owned(),
    };
    let result = step["error_message"].as_str().or_else(|| step["output_data"]["text"].as_str()).unwrap_or_default();
    let result: String = result.chars().take(SHOWN_CHARS).collect();
    let (step_id, status) = (step["step_id"].as_str().unwrap_or("?"), step["status"].as_str().unwrap_or("?"));
    format!("  {step_id:10}  {status}, {duration}: {result}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_step_has_its_duration_and_output() {
        let step = json!({
            "step_id": "shout", "status": "COMPLETED", "output_data": {"text": "HELLO"}, "error_message": null,
            "started_at": "2026-02-03T09:05:00.300000Z", "completed_at": "2026-02-03T09:05:00.312500Z",
        });
        assert_eq!(step_line(&step), "  shout       COMPLETED, 12 ms: HELLO");
    }
}
