//! Tests of simulations: each type of step, each kind of mock, and each limit.

use serde_json::{Value, json};

use super::*;
use crate::{
    db::workflows::PinnedDefinition,
    executor::simulation::RecordedAttempt,
    input::{Node, to_raw},
};

const LIMITS: Limits = Limits {
    attempts: 2000,
    cpu: Duration::from_mins(1),
    time: Duration::from_hours(20 * 365 * 24),
    memory: 64 << 20,
    value_bytes: 64 << 10,
    shown_bytes: 4 << 20,
};

fn plan(start: &str, steps: &Value) -> Arc<Plan> {
    Arc::new(Plan::parse(&to_raw(&json!({"start_step": start, "steps": steps}))).expect("a plan"))
}

fn mocks(mocks: &Value) -> Arc<Mocks> {
    Arc::new(Mocks::read(&Node::new("body.mocks", &to_raw(mocks))).expect("mocks"))
}

fn simulation(start: &str, steps: &Value, input: &Value, of: &Value) -> Simulation {
    Simulation {
        organization: OrganizationId::default(),
        plan: plan(start, steps),
        input: to_raw(input),
        mocks: mocks(of),
        recording: None,
        missing: MissingMock::Echo,
        start_time: DateTime::parse_from_rfc3339("2026-02-03T09:00:00Z").expect("a time").to_utc(),
        agents: HashMap::new(),
        definitions: Definitions::default(),
        settings: Settings {
            callbacks_url: "http://h/callbacks/".to_owned(),
            max_run_duration: Duration::from_hours(24),
            run_budget: RunBudget {
                steps: 100_000,
                branches: 100_000,
                bytes: 2 << 30,
                memory_bytes: 256 << 20,
                takeovers: 5,
                sub_runs: 100,
            },
        },
        limits: LIMITS,
    }
}

fn test(start: &str, steps: &Value, input: &Value, of: &Value) -> Report {
    simulate(simulation(start, steps, input, of))
}

/// `path status begin-end` of each attempt, with the times in milliseconds.
fn shown(report: &Report) -> Vec<String> {
    let end = |attempt: &Attempt| attempt.ended.map_or("?".to_owned(), |ended| ended.as_millis().to_string());
    let attempts = report.attempts.iter();
    attempts.map(|one| format!("{} {} {}-{}", one.path, one.status, one.begun.as_millis(), end(one))).collect()
}

fn value(shown: &Shown) -> Value {
    shown.value.as_ref().map_or(Value::Null, |value| serde_json::from_str(value.get()).expect("JSON"))
}

#[track_caller]
fn output(report: &Report) -> Value {
    assert_eq!(report.end, End::Completed, "{:?}", report.error_message);
    value(&report.output)
}

#[track_caller]
fn cause(report: &Report) -> &str {
    assert_ne!(report.end, End::Completed, "{:?}", report.output);
    report.error_message.as_deref().unwrap_or_default()
}

fn warnings(report: &Report) -> Vec<String> {
    report.warnings.iter().map(|warning| format!("{} {}", warning.field, warning.kind)).collect()
}

fn agent(id: &str, mapping: &Value, next: Option<&str>) -> Value {
    json!({"id": id, "agent_name": "x", "input_mapping": mapping, "next_step": next})
}

#[test]
fn a_mock_answers_with_a_value_a_template_or_an_expression() {
    let steps = json!({
        "a": agent("a", &json!({"n": "${workflow.input.n}"}), Some("b")),
        "b": agent("b", &json!({"said": "${a.output.said}"}), Some("c")),
        "c": agent("c", &json!({"n": "${b.output.n}"}), None),
    });
    let of = json!({
        "a": {"output": {"said": "${not a reference}"}},
        "b": {"template": {"n": "${workflow.input.n}", "echo": "<${step.input.said}>"}},
        "c": {"expression": "{'double': ${step.input.n} * 2, 'is': ${workflow.input.n} > 1}", "delay_seconds": 0.25},
    });
    let report = test("a", &steps, &json!({"n": 21}), &of);
    assert_eq!(output(&report), json!({"double": 42, "is": true}));
    assert_eq!(value(&report.attempts[1].output), json!({"n": 21, "echo": "<${not a reference}>"}));
    assert_eq!(value(&report.attempts[2].input), json!({"n": 21}));
    assert_eq!(shown(&report), ["a COMPLETED 0-0", "b COMPLETED 0-0", "c COMPLETED 0-250"]);
    let from: Vec<_> = report.attempts.iter().filter_map(|attempt| attempt.answered_from).collect();
    assert_eq!(from, ["output", "template", "expression"]);
    assert!(report.warnings.is_empty() && report.not_reached.is_empty(), "{:?}", report.warnings);
    let none = test("a", &steps, &json!({"n": 21}), &json!({"a": {"template": "${step.input.none}"}}));
    assert!(cause(&none).contains("the mock has no value: reference 'step.input.none'"), "{}", cause(&none));
    assert_eq!(warnings(&none), ["steps.a mock_failed"]);
}

#[test]
fn a_mock_fails_a_number_of_times_and_is_tried_again_as_the_agent_says() {
    let steps = json!({"a": agent("a", &json!({}), None)});
    let failing = |fail: Value| test("a", &steps, &json!({}), &json!({"a": {"output": 1, "fail": fail}}));
    let mended = failing(json!({"times": 2}));
    assert_eq!(output(&mended), json!(1));
    assert_eq!(shown(&mended), ["a FAILED 0-0", "a FAILED 1000-1000", "a COMPLETED 3000-3000"]);
    assert_eq!(mended.attempts[2].attempt, 3);
    let never = failing(json!({}));
    assert_eq!(never.attempts.len(), 3);
    assert_eq!(cause(&never), "Step 'a' failed: agent 'x': HTTP 503: Service Unavailable");
    assert_eq!((never.error_code, never.failed_step_id.as_deref()), (Some("http_5xx"), Some("a")));
    let refused = failing(json!({"times": 2, "code": "refused", "message": "no such term"}));
    assert_eq!(refused.attempts.len(), 1, "not tried again");
    assert_eq!(cause(&refused), "Step 'a' failed: agent 'x': no such term");
}

#[test]
fn an_answer_after_the_agents_time_out_is_too_late() {
    let steps = json!({"a": agent("a", &json!({}), None)});
    let of = json!({"a": {"output": 1, "delay_seconds": 30}});
    let mut late = simulation("a", &steps, &json!({}), &of);
    let retry = crate::agent::RetryConfig { max_retries: 1, ..crate::agent::RetryConfig::default() };
    late.agents.insert("x".to_owned(), AgentSettings { retry, ..AgentSettings::default() });
    let late = simulate(late);
    assert_eq!(cause(&late), "Step 'a' failed: agent 'x': no complete answer within 30000 ms");
    assert_eq!((late.error_code, shown(&late)), (Some("timeout"), vec!["a FAILED 0-30000".to_owned()]));
    let mut limited = steps.clone();
    limited["a"]["timeout_seconds"] = json!(5);
    let limited = test("a", &limited, &json!({}), &of);
    assert_eq!(cause(&limited), "Step 'a' failed: it took longer than 5 s");
    assert_eq!(shown(&limited), ["a FAILED 0-5000"]);
}

#[test]
fn steps_without_a_mock_are_answered_as_the_request_says() {
    let steps = json!({"a": agent("a", &json!({"n": 1}), None)});
    for (missing, expected) in [(MissingMock::Echo, Some(json!({"n": 1}))), (MissingMock::Null, Some(json!(null)))] {
        let report = simulate(Simulation { missing, ..simulation("a", &steps, &json!({}), &json!({})) });
        assert_eq!(Some(output(&report)), expected);
        assert_eq!(warnings(&report), ["steps.a mock_missing"]);
        assert_eq!(report.attempts[0].answered_from, Some(missing.as_str()));
    }
    let missing = MissingMock::Fail;
    let report = simulate(Simulation { missing, ..simulation("a", &steps, &json!({}), &json!({})) });
    assert_eq!(cause(&report), "Step 'a' failed: agent 'x': the test has no mock for this step");
}

#[test]
fn parallel_steps_take_the_time_of_the_longest() {
    let steps = json!({
        "fan": {"id": "fan", "type": "parallel", "parallel_steps": ["a", "b", "c"], "max_parallelism": 2, "next_step": "d"},
        "a": agent("a", &json!({}), None), "b": agent("b", &json!({}), None), "c": agent("c", &json!({}), None),
        "d": agent("d", &json!({"b": "${b.output}", "fan": "${fan.output}"}), None),
    });
    let answer = |n: i32, secs: i32| json!({"output": n, "delay_seconds": secs});
    let of = json!({"a": answer(1, 3), "b": answer(2, 1), "c": answer(3, 4)});
    let report = test("fan", &steps, &json!({}), &of);
    let expected = [
        "fan COMPLETED 0-5000",
        "fan/a/a COMPLETED 0-3000",
        "fan/b/b COMPLETED 0-1000",
        "fan/c/c COMPLETED 1000-5000",
        "d COMPLETED 5000-5000",
    ];
    assert_eq!(shown(&report), expected);
    assert_eq!(output(&report), json!({"b": 2, "fan": {"a": 1, "b": 2, "c": 3}}));
    assert_eq!(report.duration, Duration::from_secs(5));
}

#[test]
fn a_loop_shows_its_iterations_and_a_failed_reference_its_step() {
    let steps = json!({
        "each": {"id": "each", "type": "loop", "loop_config": {
            "collection": "${workflow.input.items}", "loop_body": ["a"], "on_error": "continue"}},
        "a": agent("a", &json!({"v": "${loop.item.v}"}), None),
    });
    let report = test(
        "each",
        &steps,
        &json!({"items": [{"v": 1}, {}, {"v": 3}]}),
        &json!({"a": {"template": "${step.input.v}"}}),
    );
    assert_eq!(output(&report), json!({"iterations": [1, null, 3], "total_count": 3, "failed_count": 1}));
    let expected = ["each COMPLETED 0-0", "each/0/a COMPLETED 0-0", "each/1/a FAILED 0-0", "each/2/a COMPLETED 0-0"];
    assert_eq!(shown(&report), expected);
    let failed = &report.attempts[2];
    assert_eq!((failed.attempt, failed.input.value.is_none()), (0, true));
    assert!(failed.error_message.as_deref().is_some_and(|cause| cause.contains("there is no member 'v'")));
    assert_eq!(report.attempts[1].branch_name.as_deref(), Some("0"));
    assert_eq!(warnings(&report), ["steps.a.input_mapping.v reference_without_value"]);
}

#[test]
fn a_condition_shows_the_branch_and_what_was_not_reached() {
    let steps = json!({
        "if": {"id": "if", "type": "conditional", "condition": {"expression": "${workflow.input.n} > 1"},
            "if_true_step": "yes", "if_false_step": "no"},
        "yes": agent("yes", &json!({}), None), "no": agent("no", &json!({}), None),
    });
    let of = json!({"yes": {"output": "y"}, "no": {"output": "n"}, "if": {"output": 1}, "gone": {"output": 1}});
    let report = test("if", &steps, &json!({"n": 2}), &of);
    assert_eq!(output(&report)["branch_output"], json!("y"));
    assert_eq!(shown(&report), ["if COMPLETED 0-0", "if/then/yes COMPLETED 0-0"]);
    assert_eq!(report.not_reached, ["no"]);
    let expected = ["mocks.gone mock_of_unknown_step", "mocks.if mock_not_applicable", "mocks.no mock_unused"];
    assert_eq!(warnings(&report), expected);
    let null = test("if", &steps, &json!({"m": 2}), &json!({}));
    assert_eq!(null.end, End::Failed, "null has no order");
    assert_eq!(warnings(&null), ["steps.if.condition.expression reference_without_value"]);
}

#[test]
fn a_fork_abandons_the_branches_that_it_does_not_need() {
    let steps = json!({
        "race": {"id": "race", "type": "fork_join", "fork_join_config": {"join_policy": "any",
            "branches": {"slow": {"steps": ["a"]}, "fast": {"steps": ["b"]}, "asks": {"steps": ["c"]}}}},
        "a": agent("a", &json!({}), None), "b": agent("b", &json!({}), None), "c": {"id": "c", "type": "callback"},
    });
    let of = json!({"a": {"output": 1, "delay_seconds": 9}, "b": {"output": 2, "delay_seconds": 1}});
    let report = test("race", &steps, &json!({}), &of);
    assert_eq!(output(&report), json!({"slow": null, "fast": 2, "asks": null}));
    let expected = [
        "race COMPLETED 0-1000",
        "race/asks/c SKIPPED 0-1000",
        "race/fast/b COMPLETED 0-1000",
        "race/slow/a SKIPPED 0-1000",
    ];
    assert_eq!(shown(&report), expected);
    assert_eq!(report.duration, Duration::from_secs(1));
}

#[test]
fn waits_take_virtual_time_that_is_not_the_runs_own() {
    let steps = json!({
        "w": {"id": "w", "type": "wait", "wait_config": {"duration": "P3D"}, "next_step": "a"},
        "a": agent("a", &json!({"at": "${w.output.until}"}), None),
    });
    let report = test("w", &steps, &json!({}), &json!({"a": {"template": "${step.input.at}", "delay_seconds": 1}}));
    assert_eq!(output(&report), json!("2026-02-06T09:00:00Z"), "a run may take a day without its waits");
    assert_eq!(report.duration, Duration::from_secs(3 * 86_400 + 1));
    let slow = json!({"each": {"id": "each", "type": "loop", "loop_config": {
        "collection": "${workflow.input.items}", "loop_body": ["a"]}}, "a": agent("a", &json!({}), None)});
    let items: Vec<i32> = (0..4000).collect();
    let of = json!({"a": {"output": 1, "delay_seconds": 29}});
    let mut slow = simulation("each", &slow, &json!({"items": items}), &of);
    slow.limits.attempts = 10_000;
    let slow = simulate(slow);
    assert_eq!(cause(&slow), "the run took longer than 86400000 ms (MAX_WORKFLOW_DURATION_MS)");
    assert_eq!(
        (slow.end, slow.error_code, slow.duration),
        (End::Failed, Some("run_timeout"), Duration::from_hours(24))
    );
}

#[test]
fn callbacks_are_answered_rejected_or_wait() {
    let steps = |config: Value, timeout: Value| {
        json!({
            "tell": agent("tell", &json!({"url": "${ask.callback_url}"}), Some("ask")),
            "ask": {"id": "ask", "type": "callback", "callback_config": config, "timeout_seconds": timeout},
        })
    };
    let approval = json!({"approval": {"role": "boss"}});
    let of = |ask: Value| json!({"tell": {"output": {}}, "ask": ask});
    let yes = json!({"output": {"approved": true, "comment": "ok"}, "delay_seconds": 60, "answered_by": "ann"});
    let report = test("tell", &steps(approval.clone(), json!(null)), &json!({}), &of(yes));
    assert_eq!(output(&report), json!({"approved": true, "comment": "ok", "decided_by": "ann"}));
    assert_eq!(shown(&report), ["tell COMPLETED 0-0", "ask COMPLETED 0-60000"]);
    assert_eq!(value(&report.attempts[0].input), json!({"url": "http://h/callbacks/test-ask"}));
    let no = json!({"output": {"approved": false}, "answered_by": "ann"});
    let report = test("tell", &steps(approval, json!(null)), &json!({}), &of(no));
    assert_eq!(cause(&report), "Step 'ask' failed: it was rejected by ann");
    let late = json!({"output": {}, "delay_seconds": 10});
    let report = test("tell", &steps(json!({}), json!(5)), &json!({}), &of(late));
    assert_eq!(cause(&report), "Step 'ask' failed: no answer within 5 s");
    let report = test("tell", &steps(json!({}), json!(null)), &json!({}), &json!({"tell": {"output": {}}}));
    assert_eq!((report.end, shown(&report)[1].as_str()), (End::Waiting, "ask PENDING 0-?"));
    assert_eq!(warnings(&report), ["steps.ask mock_missing"]);
}

#[test]
fn an_answer_that_a_run_refuses_answers_nothing() {
    let approval = json!({"ask": {"id": "ask", "type": "callback", "callback_config": {"approval": {}}}});
    for (answer, why) in [
        (json!({"approved": "x"}), "approved: "),
        (json!({}), "approved: Field required"),
        (json!("yes"), ""),
        (json!({"approved": true, "comment": 1}), "comment: "),
    ] {
        let report = test("ask", &approval, &json!({}), &json!({"ask": {"output": answer}}));
        assert_eq!((report.end, warnings(&report)), (End::Waiting, vec!["steps.ask mock_refused".to_owned()]));
        let told = format!("A run refuses the answer of the mock, so nothing answers it: {why}");
        assert!(report.warnings[0].message.starts_with(&told), "{:?}", report.warnings);
    }
    let steps = json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": {}, "on_question": "ask"}});
    let schema = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
    for (question, why) in [
        (
            json!({"question": "How many?", "answer_schema": schema, "answer": {"text": "y"}}),
            Some("\"n\" is a required property"),
        ),
        (json!({"question": "How many?", "answer_schema": schema, "answer": {"n": "1"}}), Some("n: ")),
        (json!({"question": "How many?", "answer_schema": schema, "answer": {"n": 1}}), None),
        (json!({"question": "How many?", "answer_schema": {"type": "nothing"}, "answer": {"text": "y"}}), None),
        (
            json!({"question": "May I?", "auth": true, "answer": {"approved": true, "password": "x"}}),
            Some("password: "),
        ),
        (json!({"question": "May I?", "auth": true, "answer": {"approved": true}}), None),
    ] {
        let mock = json!({"ask": {"output": {"text": "done"}, "questions": [question]}});
        let report = test("ask", &steps, &json!({}), &mock);
        let Some(why) = why else {
            assert_eq!(output(&report), json!({"text": "done"}), "{question}");
            continue;
        };
        assert_eq!((report.end, warnings(&report)), (End::Waiting, vec!["steps.ask mock_refused".to_owned()]));
        let told = format!("A run refuses the answer of the mock, so nothing answers it: {why}");
        assert!(report.warnings[0].message.starts_with(&told), "{:?}", report.warnings);
    }
}

/// A simulation whose sub-workflow `inner` has these steps.
fn with_inner(mut outer: Simulation, start: &str, steps: &Value) -> Simulation {
    let id = Uuid::from_u128(1);
    let definition = PinnedDefinition { id, ..PinnedDefinition::without_plan("inner".to_owned()) };
    outer.definitions.by_id.insert(id, (definition, Ok(plan(start, steps))));
    outer.definitions.by_name.insert("inner".to_owned(), id);
    outer
}

#[test]
fn a_sub_workflow_runs_or_is_mocked() {
    let outer = json!({
        "sub": {"id": "sub", "type": "sub_workflow", "sub_workflow_config": {"workflow_name": "inner"},
            "input_mapping": {"n": "${workflow.input.n}"}, "next_step": "end"},
        "end": agent("end", &json!({"got": "${sub.output}"}), None),
    });
    let inner = json!({"a": agent("a", &json!({"n": "${workflow.input.n}"}), None)});
    let run = |of: Value| simulate(with_inner(simulation("sub", &outer, &json!({"n": 7}), &of), "a", &inner));
    let report = run(json!({"sub": {"mocks": {"a": {"expression": "${step.input.n} + 1", "delay_seconds": 2}}}}));
    assert_eq!(output(&report), json!({"got": 8}));
    let expected = ["sub COMPLETED 0-2000", "sub>a COMPLETED 0-2000", "end COMPLETED 2000-2000"];
    assert_eq!(shown(&report), expected);
    assert_eq!(warnings(&report), ["steps.end mock_missing"]);
    let report = run(json!({"sub": {"mocks": {"a": {"fail": {"code": "refused"}}}}, "end": {"output": 1}}));
    let expected = "Step 'sub' failed: its run of the test ended FAILED: Step 'a' failed: agent 'x': the agent refused";
    assert_eq!(cause(&report), expected);
    let report = run(json!({"sub": {"output": "mocked", "delay_seconds": 5}}));
    assert_eq!((output(&report), report.attempts.len()), (json!({"got": "mocked"}), 2));
    let report = run(json!({"sub": {"fail": {"message": "no"}}}));
    assert_eq!(cause(&report), "Step 'sub' failed: its run of the test ended FAILED: no");
    let unknown = test("sub", &outer, &json!({"n": 1}), &json!({}));
    assert_eq!(cause(&unknown), "Step 'sub' failed: workflow 'inner' does not exist");
    let mocked = test("sub", &outer, &json!({"n": 1}), &json!({"sub": {"output": 2}}));
    assert_eq!(output(&mocked), json!({"got": 2}), "a mocked workflow need not exist");
}

#[test]
fn a_workflow_that_starts_itself_ends_at_the_maximum_nesting() {
    let steps = json!({"sub": {"id": "sub", "type": "sub_workflow", "input_mapping": {},
        "sub_workflow_config": {"workflow_name": "inner"}}});
    let report = simulate(with_inner(simulation("sub", &steps, &json!({}), &json!({})), "sub", &steps));
    assert!(cause(&report).ends_with("workflows may be nested at most 16 deep"), "{}", cause(&report));
    let twice = json!({
        "both": {"id": "both", "type": "parallel", "parallel_steps": ["sub", "again"]},
        "sub": {"id": "sub", "type": "sub_workflow", "sub_workflow_config": {"workflow_name": "inner"}},
        "again": {"id": "again", "type": "sub_workflow", "sub_workflow_config": {"workflow_name": "inner"}},
    });
    let report = simulate(with_inner(simulation("both", &twice, &json!({}), &json!({})), "both", &twice));
    assert!(cause(&report).contains("MAX_SUB_RUNS"), "{}", cause(&report));
}

#[test]
fn an_abandoned_sub_workflow_ends_with_its_step() {
    let steps = json!({"sub": {"id": "sub", "type": "sub_workflow", "timeout_seconds": 5,
        "sub_workflow_config": {"workflow_name": "inner"}}});
    let inner = json!({"w": {"id": "w", "type": "wait", "wait_config": {"duration": "P1D"}}});
    let report = simulate(with_inner(simulation("sub", &steps, &json!({}), &json!({})), "w", &inner));
    assert_eq!(cause(&report), "Step 'sub' failed: it took longer than 5 s");
    assert_eq!(shown(&report), ["sub FAILED 0-5000", "sub>w SKIPPED 0-5000"]);
}

#[test]
fn the_same_simulation_has_the_same_report() {
    let steps = json!({
        "fan": {"id": "fan", "type": "parallel", "parallel_steps": ["l", "m", "ask", "w"], "next_step": "sub"},
        "l": {"id": "l", "type": "loop", "loop_config": {"collection": "${workflow.input.items}",
            "loop_body": ["a", "b"], "execution_mode": "parallel"}},
        "m": {"id": "m", "type": "loop", "loop_config": {"collection": "${workflow.input.items}", "loop_body": ["b"]}},
        "ask": {"id": "ask", "type": "callback"},
        "w": {"id": "w", "type": "wait", "wait_config": {"duration_seconds": 1}},
        "a": agent("a", &json!({"i": "${loop.index}"}), None), "b": agent("b", &json!({"i": "${loop.index}"}), None),
        "sub": {"id": "sub", "type": "sub_workflow", "sub_workflow_config": {"workflow_name": "inner"}},
    });
    let inner = json!({"a": agent("a", &json!({}), None)});
    let items: Vec<i32> = (0..200).collect();
    let of = json!({"a": {"output": 1, "fail": {"times": 1}, "delay_seconds": 0.1}, "b": {"output": 2},
        "ask": {"output": {}, "delay_seconds": 1}, "sub": {"mocks": {"a": {"output": 3, "delay_seconds": 1}}}});
    let make = || {
        let outer = simulation("fan", &steps, &json!({"items": items}), &of);
        format!("{:?}", simulate(with_inner(outer, "a", &inner)))
    };
    let first = make();
    assert!(first.contains("Completed"));
    for _ in 0..5 {
        assert!(first == make(), "another report");
    }
}

#[test]
fn a_recording_answers_before_the_mocks() {
    let steps = json!({
        "a": agent("a", &json!({}), Some("ask")), "ask": {"id": "ask", "type": "callback",
            "callback_config": {"approval": {}}, "next_step": "sub"},
        "sub": {"id": "sub", "type": "sub_workflow", "sub_workflow_config": {"workflow_name": "gone"}, "next_step": "b"},
        "b": agent("b", &json!({"all": ["${a.output}", "${ask.output.decided_by}", "${sub.output}"]}), None),
    });
    let attempt = |step_id: &str, result: Result<Value, &str>| RecordedAttempt {
        path: step_id.to_owned(),
        step_id: step_id.to_owned(),
        result: result.map(|output| to_raw(&output)).map_err(str::to_owned),
        duration: Duration::from_millis(100),
        pause: Duration::from_millis(50),
    };
    let attempts = [
        attempt("a", Err("agent 'x': HTTP 503: Service Unavailable")),
        attempt("a", Ok(json!(1))),
        attempt("ask", Ok(json!({"approved": true, "decided_by": "ann"}))),
        attempt("sub", Ok(json!("s"))),
    ];
    let recording = Some(Recording::new(attempts));
    let of = json!({"a": {"output": "mock"}, "b": {"template": "${step.input.all}"}});
    let report = simulate(Simulation { recording, ..simulation("a", &steps, &json!({}), &of) });
    assert_eq!(output(&report), json!([1, "ann", "s"]));
    let expected = [
        "a FAILED 0-100",
        "a COMPLETED 150-250",
        "ask COMPLETED 250-350",
        "sub COMPLETED 350-450",
        "b COMPLETED 450-450",
    ];
    assert_eq!(shown(&report), expected);
    assert_eq!(warnings(&report), ["mocks.a mock_unused"]);
}

#[test]
fn a_simulation_ends_at_its_limits() {
    let each = json!({
        "each": {"id": "each", "type": "loop", "loop_config": {"collection": "${workflow.input.items}",
            "loop_body": ["a"], "execution_mode": "parallel"}},
        "a": agent("a", &json!({"i": "${loop.item}"}), None),
    });
    let items: Vec<i32> = (0..5000).collect();
    let report = test("each", &each, &json!({"items": items}), &json!({}));
    assert_eq!(
        (report.end, cause(&report)),
        (End::Stopped, "the test has reached a limit: the run made more than 2000 attempts")
    );
    assert!(report.attempts.len() < 2500, "{}", report.attempts.len());
    let mut quick = simulation("each", &each, &json!({"items": [1]}), &json!({}));
    quick.limits.cpu = Duration::ZERO;
    let quick = simulate(quick);
    assert!(cause(&quick).ends_with("it took more than 0 ms of processor time"), "{}", cause(&quick));
    let waits = json!({
        "each": {"id": "each", "type": "loop", "loop_config": {"collection": "${workflow.input.items}", "loop_body": ["w"]}},
        "w": {"id": "w", "type": "wait", "wait_config": {"duration": "P3650D"}},
    });
    let long = test("each", &waits, &json!({"items": [1, 2, 3, 4]}), &json!({}));
    assert!(cause(&long).ends_with("more than 7300 days of virtual time passed"), "{}", cause(&long));
    let big = "x".repeat(200 << 10);
    let large = json!({
        "each": {"id": "each", "type": "loop", "loop_config": {"collection": "${workflow.input.items}",
            "loop_body": ["a"], "execution_mode": "parallel"}},
        "a": agent("a", &json!({"all": vec!["${workflow.input.big}"; 15]}), None),
    });
    let large = test("each", &large, &json!({"items": items, "big": big}), &json!({}));
    assert!(cause(&large).ends_with("bytes at a time"), "{}", cause(&large));
    let mut budget = simulation("each", &each, &json!({"items": [1, 2, 3]}), &json!({}));
    budget.settings.run_budget.steps = 3;
    let budget = simulate(budget);
    assert_eq!((budget.end, budget.error_code), (End::Failed, Some("run_budget")));
}

#[test]
fn large_values_are_used_and_not_shown() {
    let steps = json!({
        "a": agent("a", &json!({}), Some("b")),
        "b": agent("b", &json!({"size": "${a.output}"}), None),
    });
    let big = "x".repeat(100 << 10);
    let report = test("a", &steps, &json!({}), &json!({"a": {"output": big}, "b": {"template": "${step.input.size}"}}));
    assert_eq!(report.end, End::Completed);
    assert!(report.output.is_omitted && report.output.value.is_none());
    assert!(report.attempts.iter().all(|attempt| attempt.output.is_omitted));
}
