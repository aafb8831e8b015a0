//! The OpenAPI document against the readers of requests that are apart from their schemas. The objects that
//! `request_object!` defines have their schema from their reader.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use utoipa::{
    PartialSchema,
    openapi::{RefOr, Schema},
};

use super::resources::{
    agents::bodies::{
        A2aConfigBody, AgentConfigBody, AgentPatchBody, CircuitBreakerConfigBody, HttpConfigBody, McpConfigBody,
        NewAgentBody, PriceBody, ResponsesConfigBody, RetryConfigBody,
    },
    by_name::{self, WantedWorkflowBody},
    definition::{
        AgentStep, ApprovalBody, BranchBody, CallbackConfigBody, CallbackStep, ConditionBody, ConditionalStep,
        ForkJoinConfigBody, ForkJoinStep, LimitsBody, LoopConfigBody, LoopStep, ParallelStep, QuestionConfigBody,
        SubWorkflowConfigBody, SubWorkflowStep, WaitConfigBody, WaitStep,
    },
    transfer::{AgentDefinitionBody, DefinitionsBody},
    webhooks::wire::read_definition,
    workflow_tests::wire::{MockBody, MockFailureBody, MockQuestionBody},
    workflows::flow::{ConcurrencyBody, DebounceBody, ThrottleBody},
    workflows::wire::{ExposeBody, NewWorkflowBody, ToolBody, WorkflowPatchBody},
};
use super::{BUSINESS, ROOT};
use crate::{
    actions::import::Import,
    agent::{AgentPatch, Defaults, NewAgent},
    executor::Mocks,
    input::{
        Node, Read,
        look_ups::{self, Members, Presence},
        to_raw,
    },
    workflow::{NewWorkflow, WorkflowPatch},
};

/// Members that a reader looks up in this body, by the path of their object.
fn read<T>(body: &Value, parse: impl FnOnce(&serde_json::value::RawValue) -> Read<T>) -> BTreeMap<String, Members> {
    look_ups::of(|| drop(parse(&to_raw(body))))
}

/// Members of a schema. Of one that extends another, those that it adds.
fn documented<T: PartialSchema>() -> Members {
    let mut schema = serde_json::to_value(T::schema()).expect("JSON");
    if let Some(own) = schema["allOf"].get_mut(1) {
        schema = own.take();
    }
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let members = schema["properties"].as_object().expect("an object").iter();
    members
        .map(|(name, schema)| {
            let may_be_null = schema["type"].as_array().is_some_and(|types| types.contains(&json!("null")))
                || schema["oneOf"].as_array().is_some_and(|schemas| schemas.contains(&json!({"type": "null"})))
                || ["type", "oneOf", "$ref"].iter().all(|constraint| schema.get(constraint).is_none());
            let presence = match (required.contains(&json!(name)), may_be_null) {
                (true, _) => Presence::Required,
                (false, false) => Presence::Optional,
                (false, true) => Presence::Nullable,
            };
            (name.clone(), presence)
        })
        .collect()
}

#[test]
fn agents_are_documented_as_they_are_read() {
    let new = json!({"kind": "openai", "retry_config": {}, "circuit_breaker_config": {}, "config": {}});
    let new = read(&new, |body| NewAgent::parse(body, &Defaults::default()));
    assert_eq!(new["body"], documented::<NewAgentBody>());
    assert_eq!(new["body.retry_config"], documented::<RetryConfigBody>());
    assert_eq!(new["body.circuit_breaker_config"], documented::<CircuitBreakerConfigBody>());
    assert_eq!(new["body.config"], documented::<AgentConfigBody>());
    let a2a = read(&json!({"kind": "a2a", "config": {}}), |body| NewAgent::parse(body, &Defaults::default()));
    assert_eq!(a2a["body.config"], documented::<A2aConfigBody>());
    let http =
        read(&json!({"kind": "http", "config": {"price": {}}}), |body| NewAgent::parse(body, &Defaults::default()));
    assert_eq!(http["body.config"], documented::<HttpConfigBody>());
    assert_eq!(http["body.config.price"], documented::<PriceBody>());
    let of_kind =
        |kind: &str| read(&json!({"kind": kind, "config": {}}), |body| NewAgent::parse(body, &Defaults::default()));
    assert_eq!(of_kind("responses")["body.config"], documented::<ResponsesConfigBody>());
    assert_eq!(of_kind("mcp")["body.config"], documented::<McpConfigBody>());
    let patch = read(&json!({}), |body| AgentPatch::parse(body, &Defaults::default()));
    assert_eq!(patch["body"], documented::<AgentPatchBody>());
    // An import reads an agent as an update, and a new one also as a new agent.
    let imported: BTreeSet<_> = new["body"].keys().chain(patch["body"].keys()).cloned().collect();
    let own = documented::<AgentDefinitionBody>();
    assert_eq!(imported, documented::<NewAgentBody>().into_keys().chain(own.into_keys()).collect());
}

#[test]
fn workflows_are_documented_as_they_are_read() {
    assert_eq!(read(&json!({}), NewWorkflow::parse)["body"], documented::<NewWorkflowBody>());
    assert_eq!(read(&json!({}), WorkflowPatch::parse)["body"], documented::<WorkflowPatchBody>());
    let mut wanted = read(&json!({}), |body| by_name::read("hello", body)).remove("body").expect("a body");
    // It may repeat the name of the path. The description of the schema says so.
    assert_eq!(wanted.remove("name"), Some(Presence::Nullable));
    assert_eq!(wanted, documented::<WantedWorkflowBody>());
    assert_eq!(
        read(&json!({}), |body| Import::parse(body, &Defaults::default(), read_definition))["body"],
        documented::<DefinitionsBody>()
    );
    let exposed = read(&json!({"expose": {"mcp": {}}}), NewWorkflow::parse);
    assert_eq!(exposed["body.expose"], documented::<ExposeBody>());
    assert_eq!(exposed["body.expose.mcp"], documented::<ToolBody>());
    let flow = read(&json!({"debounce": {}, "throttle": {}, "concurrency": {}}), NewWorkflow::parse);
    assert_eq!(flow["body.debounce"], documented::<DebounceBody>());
    assert_eq!(flow["body.throttle"], documented::<ThrottleBody>());
    assert_eq!(flow["body.concurrency"], documented::<ConcurrencyBody>());
    let limited = read(&json!({"limits": {}}), NewWorkflow::parse);
    assert_eq!(limited["body.limits"], documented::<LimitsBody>());
}

#[test]
fn mocks_are_documented_as_they_are_read() {
    let mocks = json!({"s": {"fail": {}, "mocks": {}, "questions": [{}]}});
    let mocks = look_ups::of(|| drop(Mocks::read(&Node::new("body.mocks", &to_raw(&mocks)))));
    assert_eq!(mocks["body.mocks.s"], documented::<MockBody>());
    assert_eq!(mocks["body.mocks.s.fail"], documented::<MockFailureBody>());
    assert_eq!(mocks["body.mocks.s.questions.0"], documented::<MockQuestionBody>());
}

#[test]
fn steps_are_documented_as_they_are_read() {
    let step = json!({
        "condition": {}, "loop_config": {}, "fork_join_config": {"branches": {"x": {}, "y": {}}}, "wait_config": {},
        "callback_config": {"approval": {}}, "sub_workflow_config": {}, "question_config": {},
    });
    let mut steps = read(&json!({"steps": {"s": step}}), NewWorkflow::parse);
    let mut of_step = |path: &str| steps.remove(&format!("body.steps.s{path}")).expect("an object");
    assert_eq!(of_step(".condition"), documented::<ConditionBody>());
    assert_eq!(of_step(".loop_config"), documented::<LoopConfigBody>());
    assert_eq!(of_step(".fork_join_config"), documented::<ForkJoinConfigBody>());
    assert_eq!(of_step(".fork_join_config.branches.x"), documented::<BranchBody>());
    assert_eq!(of_step(".wait_config"), documented::<WaitConfigBody>());
    assert_eq!(of_step(".question_config"), documented::<QuestionConfigBody>());
    assert_eq!(of_step(".callback_config"), documented::<CallbackConfigBody>());
    assert_eq!(of_step(".callback_config.approval"), documented::<ApprovalBody>());
    assert_eq!(of_step(".sub_workflow_config"), documented::<SubWorkflowConfigBody>());
    // A step is read with the members of all types, and each type documents its own. Some types require members that
    // others ignore.
    let types = [
        documented::<AgentStep>(),
        documented::<ParallelStep>(),
        documented::<ConditionalStep>(),
        documented::<LoopStep>(),
        documented::<ForkJoinStep>(),
        documented::<WaitStep>(),
        documented::<CallbackStep>(),
        documented::<SubWorkflowStep>(),
    ];
    let documented: Members = types.into_iter().flatten().collect();
    assert!(of_step("").keys().eq(documented.keys()), "{documented:?}");
}

/// Names that stand for several schemas. Of those the document would have only one.
fn ambiguous(schemas: Vec<(String, RefOr<Schema>)>) -> BTreeSet<String> {
    let mut known: BTreeMap<String, RefOr<Schema>> = BTreeMap::new();
    let is_ambiguous = |(name, schema): (String, RefOr<Schema>)| {
        let first = known.entry(name.clone()).or_insert_with(|| schema.clone());
        (*first != schema).then_some(name)
    };
    schemas.into_iter().filter_map(is_ambiguous).collect()
}

#[test]
fn no_two_schemas_have_one_name() {
    let schemas: Vec<_> = BUSINESS.iter().chain(ROOT).flat_map(|handlers| handlers().0).collect();
    assert!(schemas.iter().any(|(name, _)| name == "Agent"), "these are the schemas of the document");
    assert_eq!(ambiguous(schemas), BTreeSet::new());
    let schema = |kind| RefOr::T(Schema::Object(utoipa::openapi::ObjectBuilder::new().description(Some(kind)).build()));
    let named = [("A", "1"), ("B", "1"), ("A", "1"), ("B", "2")].map(|(name, kind)| (name.to_owned(), schema(kind)));
    assert_eq!(ambiguous(named.to_vec()), BTreeSet::from(["B".to_owned()]));
}
