//! Questions of agents: an agent step whose agent asks back waits for the answer, like a callback, and sends it to the
//! agent's task.
//!
//! The attempt is PENDING from the first question to the end of the task. So whatever happens to this process, the run
//! continues with the task and does not begin another one. An answer is sent at least once, always with the same ids.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::{Frame, Run, attempt::Attempt, callback::RequestedCallback, waits::WaitEnd};
use crate::{
    db::{
        executions::AgentCall,
        questions::{self, NewQuestion},
        waits::Wait,
    },
    executor::{
        agent_call::{CallErrorKind, Conversation, Interrupted},
        agent_question::AgentQuestion,
        agents::Seen,
        error_code,
        retry::AttemptNumber,
    },
    input::{member, shorten, shorten_to, text, to_raw},
    mapping,
    workflow::{InputSchema, OnQuestion, QuestionConfig, Step},
};

/// Maximum characters of a question in the run's log.
const MAX_LOGGED_CHARS: usize = 500;

/// Attempt whose agent has asked.
pub(super) struct Asked {
    /// Id of its row.
    pub(super) attempt_id: String,
    pub(super) agent_name: String,
    pub(super) question: Box<Interrupted>,
    /// The call that was answered with the question.
    pub(super) call: Option<AgentCall>,
}

/// Question that is recorded.
struct Recorded {
    attempt_id: String,
    agent_name: String,
    question: AgentQuestion,
    round: i16,
}

/// Ids of the conversation that a step continues.
pub(super) struct Continued {
    task_id: Option<String>,
    context_id: Option<String>,
}

impl Continued {
    /// The conversation that the step continues, if it names one.
    pub(super) fn of(step: &Step, frame: &Frame<'_>) -> Result<Self, String> {
        let resolve = |member: &str, template: Option<&String>| {
            let Some(template) = template else { return Ok(None) };
            let resolved =
                mapping::resolve_text(template, &frame.scope).map_err(|cause| format!("{member}, {cause}"))?;
            match text(&resolved) {
                Some(id) => Ok(Some(id).filter(|id| !id.is_empty())),
                None if resolved.get() == "null" => Ok(None),
                None => Err(format!("{member}: it must be a text")),
            }
        };
        let task_id = resolve("task_id", step.task_id.as_ref())?;
        Ok(Self { task_id, context_id: resolve("context_id", step.context_id.as_ref())? })
    }

    /// The conversation of the first message of the step.
    pub(super) fn conversation(&self, step: &Step) -> Conversation<'_> {
        Conversation {
            on_question: step.on_question.unwrap_or_default(),
            task_id: self.task_id.as_deref(),
            context_id: self.context_id.as_deref(),
            ..Conversation::default()
        }
    }
}

impl Run {
    /// End of a step whose agent has asked in an earlier execution; `None`: it has not.
    pub(super) fn asked_until(&self, path: &str) -> Option<DateTime<Utc>> {
        self.question_at(path)?.due_at
    }

    /// The question that the open attempt at this step path waits for.
    fn question_at(&self, path: &str) -> Option<Wait> {
        self.wait_of(&self.earlier.open_id(path)?).filter(|wait| wait.round.is_some())
    }

    /// Continues an attempt whose agent has asked in an earlier execution; `None`: there is none.
    pub(super) async fn resume_question(
        &self,
        step: &Step,
        path: &str,
        due: Option<DateTime<Utc>>,
    ) -> Option<Result<Box<RawValue>, String>> {
        let round = self.question_at(path)?.round?;
        let attempt_id = self.earlier.open_id(path)?;
        // First of all, so that its time limit can end it.
        self.earlier.take_open(path);
        let agent_name = step.agent_name.as_deref().unwrap_or_default();
        self.ledger.adopt_agent(path, &attempt_id, (&step.id, agent_name));
        let stored = self
            .database(|pool| {
                let attempt_id = attempt_id.clone();
                async move { questions::of_attempt(&pool, &attempt_id).await }
            })
            .await;
        let Some((agent_name, question)) = stored.as_deref().and_then(AgentQuestion::from_stored) else {
            let cause = Err("its question is lost".to_owned());
            self.end_waiting(path, &cause);
            return Some(cause);
        };
        let recorded = Recorded { attempt_id, agent_name, question, round };
        Some(self.converse(step, path, recorded, (true, due)).await)
    }

    /// Waits for the answer to a question, and continues until the task of the agent has ended.
    pub(super) async fn ask(
        &self,
        step: &Step,
        path: &str,
        asked: Asked,
        due: Option<DateTime<Utc>>,
    ) -> Result<Box<RawValue>, String> {
        let recorded = self.record_question(step, path, asked, 1, due).await;
        self.converse(step, path, recorded, (false, due)).await
    }

    async fn converse(
        &self,
        step: &Step,
        path: &str,
        mut asked: Recorded,
        (mut is_in_doubt, due): (bool, Option<DateTime<Utc>>),
    ) -> Result<Box<RawValue>, String> {
        let most = QuestionConfig::rounds(step.question_config.as_ref());
        let mut exceeded = (None, None);
        let (result, call) = loop {
            let is_there = |wait: &Wait| wait.round == Some(asked.round) && wait.answered_at.is_some();
            let wait = match self.wait_for(&asked.attempt_id, is_there).await {
                WaitEnd::Result(wait) => wait,
                // The time limit of the step ends it.
                WaitEnd::Time => std::future::pending().await,
            };
            let answer = self.answer_to(&asked.attempt_id).await;
            let is_approved = || answer.as_deref().and_then(|answer| member(answer, "approved")).map(RawValue::get);
            if asked.question.is_auth && is_approved() != Some("true") {
                let by = wait.answered_by.map(|by| format!(" by {}", shorten(&by))).unwrap_or_default();
                break (Err(format!("agent '{}': the authorisation was refused{by}", asked.agent_name)), None);
            }
            let input = asked.question.reply(answer);
            // An agent that needs an authorisation may see by itself that it was given.
            let is_in_doubt_now = std::mem::take(&mut is_in_doubt) || asked.question.is_auth;
            let Attempt { result, call, question, memory, fault, settled, .. } =
                self.send_answer(step, path, &asked, &input, is_in_doubt_now).await;
            let Some(question) = question.filter(|_| settled.0.is_none()) else {
                drop(memory);
                exceeded = settled;
                if result.is_err() {
                    self.set_last_fault(fault);
                }
                break (result, call);
            };
            let round = asked.round + 1;
            if round > most {
                // The task is cancelled with the attempt.
                question.leave();
                let questions = if most == 1 { "question" } else { "questions" };
                let cause = format!("agent '{}': it asked more than {most} {questions}", asked.agent_name);
                break (Err(cause), call);
            }
            let Recorded { attempt_id, agent_name, .. } = asked;
            let next = Asked { attempt_id, agent_name, question, call };
            asked = self.record_question(step, path, next, round, due).await;
        };
        let (step_id, error, status) =
            (&step.id, result.as_ref().err(), if result.is_ok() { "COMPLETED" } else { "FAILED" });
        tracing::info!(
            step_id,
            path,
            agent = asked.agent_name,
            rounds = asked.round,
            error,
            "step {step_id} of run {} ended {status} after {} questions of its agent",
            self.run_id,
            asked.round
        );
        self.end(path, result.as_deref().map_err(Clone::clone), call);
        let (excess, settling) = exceeded;
        drop(settling);
        self.end_if_exceeded(excess).await;
        result
    }

    /// Sends an answer, in as many attempts as the agent's settings allow, all with the same ids.
    async fn send_answer(
        &self,
        step: &Step,
        path: &str,
        asked: &Recorded,
        input: &RawValue,
        mut is_in_doubt: bool,
    ) -> Attempt {
        self.gate().await;
        let _leaf = self.leaves.begin();
        let clock = &self.executor.clock;
        let mut number = AttemptNumber { at_step: 1, of_agent: 1 };
        let message_id = format!("{}.{}", asked.attempt_id, asked.round);
        loop {
            self.gate_of_process().await;
            let under_way = self.calls.begin();
            let conversation = Conversation {
                on_question: OnQuestion::Ask,
                task_id: Some(&asked.question.task_id),
                context_id: asked.question.context_id.as_deref(),
                answered: Some(&asked.question),
                is_in_doubt,
            };
            let seen = Seen { since: clock.instant(), version: None };
            let mut span = self.trace.step(|| format!("step {}", step.id));
            span.set("workflow_api.step.id", &step.id);
            span.set("workflow_api.step.path", path);
            span.set("workflow_api.agent.name", &asked.agent_name);
            span.set_number("workflow_api.attempt", number.at_step);
            let row = (step.id.as_str(), asked.attempt_id.as_str());
            let message = (message_id.as_str(), number);
            let ended = self.attempt(&asked.agent_name, seen, message, row, (input, conversation), &span).await;
            if ended.result.is_err() && ended.question.is_none() {
                span.fail(ended.fault.map_or(error_code::STEP_FAILED, CallErrorKind::as_str));
            }
            drop((span, under_way));
            let Some(pause) = ended.pause.filter(|_| ended.result.is_err()) else { return ended };
            let (error, attempt) = (ended.result.as_ref().err(), number.at_step);
            tracing::info!(path, agent = asked.agent_name, attempt, error, "an answer to an agent is sent again");
            clock.sleep(pause).await;
            // The agent may have got it.
            is_in_doubt = true;
            number = AttemptNumber { at_step: number.at_step + 1, of_agent: number.of_agent + 1 };
        }
    }

    /// Records a question, which can be answered from then on.
    async fn record_question(
        &self,
        step: &Step,
        path: &str,
        asked: Asked,
        round: i16,
        due_at: Option<DateTime<Utc>>,
    ) -> Recorded {
        let Asked { attempt_id, agent_name, question: interrupted, call } = asked;
        let wait = Wait { attempt_id: attempt_id.clone(), due_at, round: Some(round), ..Wait::default() };
        if let Some(simulated) = self.executor.simulated() {
            self.set_wait(wait);
            simulated.begin_question(&attempt_id, &step.id, round);
            return Recorded { attempt_id, agent_name, question: interrupted.leave(), round };
        }
        let answer_schema = self.usable_schema(interrupted.question.answer_schema.clone()).await;
        let question = interrupted.question.clone().with_schema(answer_schema);
        let role = step.question_config.as_ref().and_then(|config| config.role.as_deref());
        // The token is as unguessable as a key, since it authorises the answer.
        let token = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let new = NewQuestion {
            path: path.to_owned(),
            step_id: step.id.clone(),
            attempt_id: attempt_id.clone(),
            round,
            question: question.stored(&agent_name, role),
            approval: question.is_auth.then(|| to_raw(&RequestedCallback { role })),
            token_hash: Sha256::digest(&token).to_vec(),
            token,
            due_at,
            text: question.text.as_deref().map(|text| shorten_to(text, MAX_LOGGED_CHARS).into_owned()),
            agent_name: agent_name.clone(),
            call,
        };
        self.ledger.written().await;
        let new = Arc::new(new);
        let begun = self
            .database(|pool| {
                let (run_id, lease_token) = (self.run_id.clone(), self.ledger.lease_token());
                let (new, under_way) = (Arc::clone(&new), self.begins.token());
                async move {
                    let _under_way = under_way;
                    questions::ask(&pool, (&run_id, lease_token), &new).await
                }
            })
            .await;
        if begun != Some(true) {
            // Another executor has the run now, or the run has ended. The task is cancelled, unless the run goes on.
            drop(interrupted);
            return std::future::pending().await;
        }
        // From here on what is recorded decides about the task.
        interrupted.leave();
        self.set_wait(wait);
        tracing::info!(path, agent = agent_name, round, "agent {agent_name} asks");
        Recorded { attempt_id, agent_name, question, round }
    }

    /// The schema, if answers can be checked by it.
    async fn usable_schema(&self, schema: Option<Box<RawValue>>) -> Option<Box<RawValue>> {
        let schema = schema?;
        let checked = schema.clone();
        let compiled = self.executor.long_work(&self.organization, move || InputSchema::compile(&checked).map(drop));
        match compiled.await {
            Ok(()) => Some(schema),
            Err(why) => {
                tracing::info!(
                    run_id = self.run_id,
                    "the schema that an agent wants of an answer is not used: it {why}"
                );
                None
            }
        }
    }
}
