//! Sub-workflow step, of type `sub_workflow`: starts a run of another workflow, which is an ordinary run.

use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Frame, Run, waits::WaitEnd};
use crate::{
    access::OrganizationId,
    db::{
        self,
        waits::{self, ChildRun, Family, MAX_NESTING, Wait, WaitCondition},
        workflows::PinnedDefinition,
    },
    id,
    input::{FieldError, shorten},
    telemetry::catalogue,
    workflow::{FlowKeys, FlowStage, InputSchema, Step, WorkflowStatus, wait_config::SubWorkflowConfig},
};

impl Run {
    /// Executes the step and returns the output of the other run.
    pub(super) async fn sub_workflow(
        &self,
        step: &Step,
        path: &str,
        frame: &Frame<'_>,
    ) -> Result<Box<RawValue>, String> {
        let attempt_id = if let Some(attempt_id) = self.open_attempt(path) {
            attempt_id
        } else {
            self.gate().await;
            let _leaf = self.leaves.begin();
            let input = self.resolve(step, &frame.scope).await?;
            let child = self.child(step, input.clone()).await?;
            let row = self.row(step, String::new(), input, path, frame);
            let attempt_id = self.begin_waiting(path, row, WaitCondition::Run(Box::new(child)), None).await;
            catalogue::count_transition("NONE", "PENDING", 1);
            attempt_id
        };
        let has_ended = |wait: &Wait| waits::has_ended(wait.child_status.as_deref());
        let WaitEnd::Result(wait) = self.wait_for(&attempt_id, has_ended).await else {
            return Err("its run took too long".to_owned());
        };
        let Wait { child_run_id, child_status, child_error, .. } = *wait;
        let result = if child_status.as_deref() == Some("COMPLETED") {
            let output = self.child_output(&attempt_id, child_run_id.as_deref()).await;
            Ok(output.unwrap_or_else(|| RawValue::NULL.to_owned()))
        } else {
            let status = child_status.unwrap_or_default();
            let why = child_error.map(|error| format!(": {error}")).unwrap_or_default();
            Err(format!("its run {} ended {status}{why}", child_run_id.unwrap_or_default()))
        };
        self.end_waiting(path, &result);
        if result.is_err() {
            self.check_account().await;
        }
        result
    }

    /// The output of the run that an attempt has started.
    async fn child_output(&self, attempt_id: &str, child_run_id: Option<&str>) -> Option<Box<RawValue>> {
        if let Some(simulated) = self.executor.simulated() {
            return simulated.take_result(attempt_id);
        }
        let output = self.database(|pool| {
            let child = child_run_id.unwrap_or_default().to_owned();
            async move { db::runs::output(&pool, &child).await }
        });
        output.await.map(|output| output.0)
    }

    /// The run to start.
    async fn child(&self, step: &Step, input: Box<RawValue>) -> Result<ChildRun, String> {
        let Some(config) = &step.sub_workflow_config else { return Err("it has no sub_workflow_config".to_owned()) };
        let found = match self.executor.simulated() {
            Some(simulated) => simulated.definition(step, config),
            None => {
                self.database(|pool| {
                    let (organization, config) = (self.organization.clone(), config.clone());
                    async move { find(&pool, &organization, &config).await }
                })
                .await
            }
        };
        let called = config.workflow_name.as_deref().or(config.workflow_id.as_deref()).unwrap_or_default();
        let definition = found.ok_or_else(|| format!("workflow '{}' does not exist", shorten(called)))?;
        if definition.status != WorkflowStatus::Active.as_str() {
            return Err(format!("workflow '{}' is {}, not active", shorten(called), shorten(&definition.status)));
        }
        if let Some(schema) = &definition.input_schema {
            let refused = |text: String| format!("the input of workflow '{}': {text}", shorten(called));
            let (schema, checked) = (schema.0.clone(), input.clone());
            let check = move || InputSchema::compile(&schema).map(|schema| schema.check(&checked));
            let checked = self.executor.long_work(&self.organization, check).await;
            if let Err(errors) = checked.map_err(|text| refused(format!("its input_schema {text}")))? {
                let texts: Vec<String> =
                    errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect();
                return Err(refused(super::joined(&texts)));
            }
        }
        let flow = self.flow(&definition, &input, called).await?;
        // The last check, since the start counts towards the limits.
        self.check_family().await?;
        Ok(ChildRun {
            run_id: id::new_run_id(),
            definition_id: definition.id,
            workflow_name: definition.name,
            version: definition.version,
            input,
            traceparent: self.trace.context().map(|context| context.to_string()),
            is_limited: self.is_limited(),
            flow,
        })
    }

    /// Keys of flow control of the other run. It needs no slot inside of a run that has one of the same key, which would
    /// wait for itself, and nothing takes the place of a run that a step waits for. A simulation has no flow control.
    async fn flow(
        &self,
        definition: &PinnedDefinition,
        input: &RawValue,
        called: &str,
    ) -> Result<Option<FlowKeys>, String> {
        let Some(flow) = definition.flow_control.as_ref().filter(|_| self.executor.simulated().is_none()) else {
            return Ok(None);
        };
        let refused = |error: FieldError| format!("the input of workflow '{}': {}", shorten(called), error.message);
        let keys = flow.0.keys(input).map_err(refused)?.and_then(|keys| keys.without(FlowStage::Debounce));
        let Some(keys) = keys else { return Ok(None) };
        let slot = keys.iter().find(|(stage, _)| *stage == FlowStage::Concurrency).map(|(_, key)| key.to_owned());
        let Some(key) = slot else { return Ok(Some(keys)) };
        let is_inside = self
            .database(|pool| {
                let (run_id, name, key) = (self.run_id.clone(), definition.name.clone(), key.clone());
                async move { db::flow::is_held_by_family(&pool, &run_id, &name, &key).await }
            })
            .await;
        Ok(if is_inside { keys.without(FlowStage::Concurrency) } else { Some(keys) })
    }
}

impl Run {
    /// Whether the run may start another one.
    async fn check_family(&self) -> Result<(), String> {
        let family = match self.executor.simulated() {
            Some(simulated) => Some(simulated.count_sub_run()),
            None => {
                self.database(|pool| {
                    let run_id = self.run_id.clone();
                    async move { waits::count_sub_run(&pool, &run_id).await }
                })
                .await
            }
        };
        let Some(Family { nesting, sub_runs }) = family else {
            return Err("the run of this step does not exist any more".to_owned());
        };
        if nesting >= MAX_NESTING {
            return Err(format!("workflows may be nested at most {MAX_NESTING} deep"));
        }
        let most = self.executor.run_budget.sub_runs;
        if sub_runs > most {
            return Err(format!(
                "a run may start at most {most} sub-workflow runs, nested ones included (MAX_SUB_RUNS)"
            ));
        }
        Ok(())
    }
}

/// The definition of the organisation: the one of that id, or the newest of that name if it is active.
async fn find(
    pool: &db::Pool,
    organization: &OrganizationId,
    config: &SubWorkflowConfig,
) -> Result<Option<PinnedDefinition>, db::Error> {
    let id = match (&config.workflow_id, &config.workflow_name) {
        (Some(id), _) => Uuid::try_parse(id).ok(),
        (None, Some(name)) => db::workflows::find_active(pool, organization, name).await?.map(|row| row.id),
        (None, None) => None,
    };
    match id {
        Some(id) => db::workflows::startable(pool, organization, id).await,
        None => Ok(None),
    }
}
