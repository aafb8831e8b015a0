//! First attempt of a run, which begins in the statement that claims the run: one commit instead of two before the agent
//! is called. See docs/adr/0020.

use std::sync::Arc;

use serde_json::value::RawValue;

use super::{
    agent_call,
    memory::COUNTED_BYTES,
    plans::RunOrigin,
    request::PendingRequest,
    steps::{MAX_COLUMN_CHARS, row_id},
};
use crate::{
    db::executions::{Change, ObservedRun, StepBegin},
    mapping::{self, Scope},
    trace,
    workflow::StepKind,
};

/// Bytes up to which an input is resolved here, in the task that claims the runs of all organisations.
const MAX_BYTES: usize = 4 * COUNTED_BYTES;

/// The begin of the first attempt, if it can be determined from the request: the first step calls an agent, its input is
/// small, and runs with this plan were claimed before, so that what observers are told of the run is known.
pub(super) fn of(request: &PendingRequest) -> Option<Change> {
    let RunOrigin { organization, workflow_id, workflow_name } = request.plan.last_origin()?;
    let plan = &request.plan.plan;
    let step = plan.steps.get(&plan.start_step)?;
    let agent_name = step.agent_name.clone().filter(|_| step.kind == StepKind::Agent)?;
    let given = request.input.as_ref().filter(|input| input.get().starts_with('{'))?;
    // A later step's callback may be part of the input.
    let is_plain = !plan.steps.iter().any(|step| step.kind == StepKind::Callback);
    let fits = |text: &str| text.chars().count() <= MAX_COLUMN_CHARS;
    let is_small = given.get().len() < COUNTED_BYTES && max_bytes(step.mapping(), given) < MAX_BYTES;
    if !is_plain || !fits(&step.id) || !fits(&agent_name) || !is_small {
        return None;
    }
    let input = mapping::resolve(step.mapping(), &Scope::new(given)).ok()?;
    if input.get().len() >= COUNTED_BYTES {
        return None;
    }
    // A repeated claim has the same id.
    let id = row_id(&request.run_id, &step.id, request.lease_token);
    let row = StepBegin {
        task_id: Some(agent_call::task_id(&id)),
        id,
        step_id: step.id.clone(),
        step_name: agent_name.clone(),
        agent_name,
        input,
        nested: None,
    };
    let traceparent = trace::of_run(&request.run_id, request.traceparent.as_deref());
    Some(Change {
        run_id: request.run_id.clone(),
        lease_token: request.lease_token,
        of: Arc::new(ObservedRun { workflow_id, workflow_name, organization, traceparent }),
        ended: None,
        begun: Some(row),
        finished: None,
    })
}

/// Bytes of the mapping if each of its references is to the whole input.
fn max_bytes(mapping: &[(String, Box<RawValue>)], input: &RawValue) -> usize {
    let value_bytes = |value: &str| {
        // `$` can be written with an escape.
        let references = value.matches("${").count() + value.matches("\\u").count();
        value.len() + references * input.get().len()
    };
    mapping.iter().map(|(name, value)| name.len() + value_bytes(value.get())).sum()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{access::OrganizationId, executor::plans::Plans, kafka::consumer::Position};

    fn raw(json: String) -> Box<RawValue> {
        RawValue::from_string(json).expect("JSON")
    }

    /// Request for a workflow with these steps, the first of which is `a`. Runs of it were claimed before.
    fn request(steps: &str, input: &str) -> PendingRequest {
        let plan = raw(format!(r#"{{"name":"n","start_step":"a","steps":{steps}}}"#));
        let (plan, _) = Plans::default().read(&plan).expect("a plan");
        plan.set_last_origin(RunOrigin {
            organization: OrganizationId::default(),
            workflow_id: "w".to_owned(),
            workflow_name: "n".to_owned(),
        });
        PendingRequest {
            position: Position::default(),
            sent_at: None,
            bytes: 0,
            lease_token: Uuid::new_v4(),
            run_id: "r".to_owned(),
            plan,
            input: Some(raw(input.to_owned())),
            correlation_id: None,
            traceparent: None,
            event_id: None,
            priority: 5,
            organization: OrganizationId::default(),
        }
    }

    fn calling(mapping: &str) -> String {
        format!(r#"{{"a":{{"agent_name":"x","input_mapping":{mapping}}}}}"#)
    }

    #[test]
    fn a_repeated_claim_begins_the_same_attempt() {
        let request = request(&calling(r#"{"t":"${workflow.input.t}"}"#), r#"{"t":1}"#);
        let begun = || of(&request).and_then(|change| change.begun).expect("an attempt");
        assert_eq!((begun().id, begun().input.get()), (begun().id, r#"{"t":1}"#));
    }

    #[test]
    fn other_first_steps_begin_after_the_claim() {
        let begins = |steps: &str, input: &str| of(&request(steps, input)).is_some();
        assert!(begins(&calling("{}"), "{}"));
        assert!(!begins(&calling("{}"), "[]"), "the input is no object");
        assert!(!begins(&calling(r#"{"t":"${workflow.input.none}"}"#), "{}"), "the mapping cannot be resolved");
        assert!(!begins(r#"{"a":{"type":"wait","wait_config":{"duration_seconds":1}}}"#, "{}"), "no agent");
        let with_callback = r#"{"a":{"agent_name":"x","next_step":"b"},"b":{"type":"callback"}}"#;
        assert!(!begins(with_callback, "{}"), "a callback can be part of the input");
        let large = format!(r#"{{"t":"{}"}}"#, "x".repeat(COUNTED_BYTES / 2));
        assert!(begins(&calling(r#"{"t":"${workflow.input.t}"}"#), &large));
        assert!(!begins(&calling(r#"{"t":"${workflow.input.t}","u":"${workflow.input.t}"}"#), &large));
        let many = r#""${workflow.input.s}","#.repeat(20);
        let many = calling(&format!(r#"{{"t":[{many}0]}}"#));
        assert!(!begins(&many, &large), "it may take long to resolve");
        let unknown = request(&calling("{}"), "{}");
        let other = PendingRequest { plan: Plans::default().read(&unknown.plan.json).expect("a plan").0, ..unknown };
        assert!(of(&other).is_none(), "no run with the plan was claimed before");
    }
}
