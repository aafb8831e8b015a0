//! Back-test of a version: the inputs of earlier runs, replayed with the answers that those runs got.

mod compare;

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{extract::State, response::Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use self::compare::{Comparison, RecordedRun, StepChange};
use super::{
    definitions::{PathValues, version_of},
    workflow_tests::{
        self, json,
        load::{self, Loaded},
        parse_plan,
        wire::MockBody,
    },
};
use crate::{
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        extract::JsonBody,
        sets,
    },
    db::{
        self,
        list::{EntryId, PageRequest, PageStart},
        runs::{Filter, RecordedStep, Sort},
    },
    executor::{Limits, MissingMock, Mocks, RecordedAttempt, Recording, Simulation, simulate, step_path},
    input::{Object, object_of, request_object, to_raw},
    run::RunStatus,
    workflow::Plan,
};

/// Maximum number of runs, and the default.
const MAX_RUNS: i64 = 50;
const DEFAULT_RUNS: i64 = 10;
/// Maximum number of attempts of one run, and bytes of their inputs and outputs.
const MAX_ROWS: i64 = 2000;
const MAX_BYTES: i64 = 4 << 20;
/// Time after which no further run is replayed.
const MAX_TIME: Duration = Duration::from_secs(4);
/// Limits of one replay. Values are compared, so that the limit for them is that of the recorded ones.
const LIMITS: Limits = Limits {
    attempts: 5000,
    cpu: Duration::from_secs(1),
    time: Duration::from_hours(100 * 365 * 24),
    memory: 64 << 20,
    value_bytes: 4 << 20,
    shown_bytes: 16 << 20,
};

request_object! {
    /// Body of a request to back-test a version.
    #[schema(as = BacktestRequest, example = json!({"last": 20}))]
    pub struct BacktestBody: deny_unknown_fields {
        /// Number of runs to replay: those of the workflow that ended last. The default is 10.
        #[schema(minimum = 1, maximum = 50)]
        last: Option<i64> = nullable(|node| node.int(1..=MAX_RUNS)),
        /// Mocks for steps without a recorded answer, by step id.
        #[schema(value_type = Option<HashMap<String, MockBody>>)]
        mocks: Option<Mocks> = nullable(Mocks::read),
    }
}

/// Result of a back-test.
#[derive(Serialize, ToSchema)]
pub struct Backtest {
    /// Version that replayed the runs.
    version: i32,
    /// Numbers of runs.
    summary: BacktestSummary,
    /// Replayed runs, the one that ended last first.
    runs: Vec<ReplayedRun>,
}

/// Numbers of replayed runs.
#[derive(Default, Serialize, ToSchema)]
pub struct BacktestSummary {
    /// Runs that were found.
    found: usize,
    /// Runs without a change.
    same: usize,
    /// Runs with a change of any kind.
    changed: usize,
    /// Runs that took another path.
    path_changed: usize,
    /// Runs with another output.
    output_changed: usize,
    /// Runs that ended with another state.
    status_changed: usize,
    /// Runs with steps without a recorded answer.
    with_missing_recordings: usize,
    /// Runs that were not replayed, because they are too large or the time was over.
    skipped: usize,
}

/// Replayed run.
#[derive(Serialize, ToSchema)]
pub struct ReplayedRun {
    /// Id of the run.
    run_id: String,
    /// How the replay compares to the run.
    #[schema(value_type = sets::ReplayResult)]
    result: &'static str,
    /// State of the run.
    #[schema(value_type = sets::RunStatus)]
    recorded_status: String,
    /// How the replay ended; null if the run was not replayed.
    #[schema(value_type = Option<sets::TestStatus>)]
    replayed_status: Option<&'static str>,
    /// Reason of the replay's failure.
    error_message: Option<String>,
    /// Whether other steps were executed.
    path_changed: bool,
    /// Whether the output is another one.
    output_changed: bool,
    /// Changed steps, at most 50.
    changes: Vec<StepChange>,
    /// Whether there are more changes.
    has_more_changes: bool,
    /// Ids of executed steps without a recorded answer.
    steps_without_recording: Vec<String>,
    /// Reason why the run was not replayed.
    #[schema(value_type = Option<sets::SkippedReplay>)]
    skipped: Option<&'static str>,
}

/// Back-test a version of a workflow
///
/// Replays the inputs of the workflow's last ended runs, of any version, by this version, with the answers that agents,
/// callbacks and sub-workflows gave to those runs. Reports what would have been different. Nothing is stored or sent, and
/// no agent is called.
#[utoipa::path(
    post, path = "/workflows/{workflow_id}/versions/{version}/backtest", tag = "workflows",
    params(("workflow_id" = uuid::Uuid, Path), ("version" = i32, Path, minimum = 1)),
    request_body = BacktestBody,
    responses(
        (status = 200, body = Backtest),
        (status = 404, description = "No such workflow or version", body = ErrorBody),
        (status = 422, body = ErrorBody),
        (status = 503, description = "The database is unavailable, or too many tests are waiting", body = ErrorBody),
    ),
)]
pub async fn backtest_workflow(
    State(app): State<App>,
    caller: Caller,
    path: PathValues,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let (id, version) = (path.workflow_id()?, path.version("version")?);
    let BacktestBody { last, mocks } =
        body.read(&app, &caller, |body| BacktestBody::read(&Object::body(body)?)).await??;
    let row = version_of(&app, &caller, id, version).await?;
    let plan = parse_plan(&app, &caller, row.workflow_data.0)
        .await?
        .map_err(|cause| ApiError::bad_request("invalid_plan", format!("The version cannot be executed: {cause}")))?;
    let replay =
        Replay { app: &app, caller: &caller, plan: Arc::new(plan), mocks: Arc::new(mocks.unwrap_or_default()) };
    let runs = replay.all(&row.name, last.unwrap_or(DEFAULT_RUNS)).await?;
    let backtest = Backtest { version, summary: BacktestSummary::of(&runs), runs };
    Ok(json(to_raw(&backtest).get().to_owned()))
}

impl BacktestSummary {
    fn of(runs: &[ReplayedRun]) -> Self {
        let count = |is: fn(&ReplayedRun) -> bool| runs.iter().filter(|run| is(run)).count();
        Self {
            found: runs.len(),
            same: count(|run| run.result == "same"),
            changed: count(|run| run.result == "changed"),
            path_changed: count(|run| run.path_changed),
            output_changed: count(|run| run.output_changed),
            status_changed: count(|run| run.replayed_status.is_some_and(|status| status != run.recorded_status)),
            with_missing_recordings: count(|run| !run.steps_without_recording.is_empty()),
            skipped: count(|run| run.skipped.is_some()),
        }
    }
}

impl ReplayedRun {
    fn skipped(run_id: String, recorded_status: String, why: &'static str) -> Self {
        Self {
            run_id,
            result: "skipped",
            recorded_status,
            replayed_status: None,
            error_message: None,
            path_changed: false,
            output_changed: false,
            changes: Vec::new(),
            has_more_changes: false,
            steps_without_recording: Vec::new(),
            skipped: Some(why),
        }
    }
}

/// Replay of runs by a version.
struct Replay<'a> {
    app: &'a App,
    caller: &'a Caller,
    plan: Arc<Plan>,
    mocks: Arc<Mocks>,
}

impl Replay<'_> {
    /// Replays the last ended runs of the workflow.
    async fn all(&self, name: &str, last: i64) -> Result<Vec<ReplayedRun>, ApiError> {
        let started = self.app.clock.instant();
        let filter = Filter {
            organization: self.caller.organization().clone(),
            statuses: [RunStatus::Completed, RunStatus::Failed].map(|status| status.as_str().to_owned()).into(),
            workflow_id: None,
            workflow_definition_id: None,
            name: Some(name.to_owned()),
            name_prefix: None,
            trigger_id: None,
            parent_run_id: None,
            triggered_by: None,
            context: None,
            is_waiting: None,
            is_paused: None,
            created: (None, None),
            updated: (None, None),
            sort: Sort::CompletedAt,
            ascending: false,
        };
        let page = PageRequest { start: PageStart::Offset(0), size: last };
        let found = db::runs::list(&mut *self.app.pool.acquire().await?, &filter, &page).await?;
        let listed = found.entries.positions.iter().take(usize::try_from(last).unwrap_or_default());
        let ids: Vec<String> = listed
            .filter_map(|position| match &position.id {
                EntryId::Text(id) => Some(id.clone()),
                EntryId::Uuid(_) => None,
            })
            .collect();
        let Loaded { definitions, agents, .. } = load::load(self.app, self.caller, &self.plan).await?;
        let mut runs = Vec::with_capacity(ids.len());
        for run_id in ids {
            // A run may have been deleted meanwhile.
            let Some(run) = self.app.runs.find(self.caller.organization(), &run_id).await? else { continue };
            let status = run.run.status.clone();
            if self.app.clock.since(started) > MAX_TIME {
                runs.push(ReplayedRun::skipped(run_id, status, "time"));
                continue;
            }
            let rows = db::runs::recorded_steps(&self.app.pool, &run_id, MAX_ROWS, MAX_BYTES).await?;
            let total = rows.first().map_or(0, |row| usize::try_from(row.total).unwrap_or(usize::MAX));
            if rows.len() < total || total == 0 {
                // Of a run whose first attempt is too large, no row is read.
                let has_none = total == 0 && db::runs::step_states(&self.app.pool, &run_id).await?.is_empty();
                runs.push(ReplayedRun::skipped(run_id, status, if has_none { "no_recording" } else { "too_large" }));
                continue;
            }
            let input = run.run.input_data.map(|input| input.0).filter(|input| input.get() != "null");
            let input = input.unwrap_or_else(|| object_of([]));
            let simulation = Simulation {
                organization: self.caller.organization().clone(),
                plan: Arc::clone(&self.plan),
                input,
                mocks: Arc::clone(&self.mocks),
                recording: Some(recording(&rows)),
                missing: MissingMock::Echo,
                start_time: began(&rows).unwrap_or_else(|| self.app.clock.now()),
                agents: agents.clone(),
                definitions: definitions.clone(),
                settings: workflow_tests::settings(self.app),
                limits: LIMITS,
            };
            let callbacks_url = self.app.config.api.callbacks_url();
            let recorded = RecordedRun { status, output: run.output.map(|output| output.0), rows };
            let work = move || compare(run_id, recorded, simulation, &callbacks_url);
            runs.push(self.app.simulations.run_soon(self.caller.organization(), work).await?);
        }
        Ok(runs)
    }
}

/// Executes the simulation and compares it with the run.
fn compare(run_id: String, recorded: RecordedRun, simulation: Simulation, callbacks_url: &str) -> ReplayedRun {
    let report = simulate(simulation);
    let Comparison { path_changed, output_changed, changes, has_more, without_recording } =
        Comparison::of(&recorded, &report, callbacks_url);
    let status = report.end.as_str();
    let is_same = !path_changed && !output_changed && changes.is_empty() && status == recorded.status;
    ReplayedRun {
        run_id,
        result: if is_same { "same" } else { "changed" },
        recorded_status: recorded.status,
        replayed_status: Some(status),
        error_message: report.error_message,
        path_changed,
        output_changed,
        changes,
        has_more_changes: has_more,
        steps_without_recording: without_recording,
        skipped: None,
    }
}

/// Time of the begin of the first attempt.
fn began(rows: &[RecordedStep]) -> Option<DateTime<Utc>> {
    rows.first().map(|row| row.started_at.as_naive_utc().and_utc())
}

/// Step path of an attempt.
fn path_of(row: &RecordedStep) -> String {
    row.place.clone().unwrap_or_else(|| step_path(&row.step_id))
}

/// Recording of these attempts, without those that say nothing about the answer.
fn recording(rows: &[RecordedStep]) -> Recording {
    let mut next_begin: HashMap<String, DateTime<Utc>> = HashMap::new();
    let mut attempts = Vec::new();
    for row in rows.iter().rev() {
        let result = match row.status.as_str() {
            "COMPLETED" => Ok(row.output_data.as_ref().map_or_else(|| to_raw(&()), |output| output.0.clone())),
            "FAILED" if !row.was_interrupted => Err(row.error_message.clone().unwrap_or_default()),
            _ => continue,
        };
        let path = path_of(row);
        let begin = row.started_at.as_naive_utc().and_utc();
        let end = row.completed_at.map_or(begin, |end| end.as_naive_utc().and_utc());
        let until = |from: DateTime<Utc>, to: DateTime<Utc>| (to - from).to_std().unwrap_or_default();
        let pause = next_begin.get(&path).map(|next| until(end, *next)).unwrap_or_default();
        next_begin.insert(path.clone(), begin);
        let step_id = row.step_id.clone();
        attempts.push(RecordedAttempt { path, step_id, result, duration: until(begin, end), pause });
    }
    attempts.reverse();
    Recording::new(attempts)
}
