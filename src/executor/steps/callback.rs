//! Callback step, of type `callback`: waits for an answer at a URL that only those know to whom the run has sent it. An
//! approval requests a decision.

use std::{collections::HashMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::{
    Frame, Run, activity, step_path,
    waits::{WaitEnd, Wakes},
};
use crate::{
    db::waits::{self, Wait, WaitCondition},
    input::{member, members, object_of, shorten, text, to_raw},
    mapping::{self, Callback, Scope},
    workflow::{Step, StepKind, wait_config::Approval},
};

#[derive(Serialize)]
pub(super) struct RequestedCallback<'a> {
    pub(super) role: Option<&'a str>,
}

impl Run {
    /// Executes the step and returns the answer.
    pub(super) async fn callback(&self, step: &Step, path: &str, frame: &Frame<'_>) -> Result<Box<RawValue>, String> {
        let approval = step.callback_config.as_ref().and_then(|config| config.approval.as_ref());
        let attempt_id = if let Some(attempt_id) = self.open_attempt(path) {
            attempt_id
        } else {
            self.gate().await;
            let _leaf = self.leaves.begin();
            let token = self.callback_token(path, &step.id).await;
            let input = self.resolve(step, &frame.scope).await?;
            let row = self.row(step, String::new(), input, path, frame);
            let due_at = step.timeout_seconds.and_then(|secs| u64::try_from(secs).ok());
            let now = self.executor.clock.now();
            let due_at = due_at.map(|secs| activity::later(now, std::time::Duration::from_secs(secs)));
            self.begin_waiting(path, row, WaitCondition::Callback { token }, due_at).await
        };
        let is_there = |wait: &Wait| wait.answered_at.is_some();
        let result = loop {
            match self.wait_for(&attempt_id, is_there).await {
                WaitEnd::Result(wait) => {
                    break output(self.answer_to(&attempt_id).await, wait.answered_by, approval);
                }
                WaitEnd::Time => {
                    if self.expire(&attempt_id).await {
                        let secs = step.timeout_seconds.unwrap_or_default();
                        break Err(format!("no answer within {secs} s"));
                    }
                    self.read_waits(Wakes::Kept).await;
                }
            }
        };
        self.end_waiting(path, &result);
        result
    }

    /// The answer to the callback of an attempt.
    pub(super) async fn answer_to(&self, attempt_id: &str) -> Option<Box<RawValue>> {
        if let Some(simulated) = self.executor.simulated() {
            return simulated.take_result(attempt_id);
        }
        self.database(|pool| {
            let attempt_id = attempt_id.to_owned();
            async move { waits::answer_to(&pool, &attempt_id).await }
        })
        .await
    }

    /// Ends the time for an answer, unless there is one. Returns whether it has ended.
    async fn expire(&self, attempt_id: &str) -> bool {
        if self.executor.simulated().is_some() {
            return true;
        }
        self.database(|pool| {
            let attempt_id = attempt_id.to_owned();
            async move { waits::expire(&pool, &attempt_id).await }
        })
        .await
    }

    /// Input of a step, after the callbacks to which it refers have got their URLs.
    pub(super) async fn resolve(&self, step: &Step, scope: &Scope<'_>) -> Result<Box<RawValue>, String> {
        for step_id in mapping::callbacks_in(step.mapping()) {
            let Some(callback) = scope.callback(&step_id).filter(|callback| callback.url().is_none()) else { continue };
            let token = self.callback_token(&callback.path, &step_id).await;
            callback.set_url(&format!("{}{token}", self.executor.callbacks_url));
        }
        let resolved = self.with_values(scope, || mapping::resolve(step.mapping(), scope)).await;
        resolved.map_err(|error| error.to_string())
    }

    /// Token of the callback at this step path. It is created if there is none that can still be answered.
    async fn callback_token(&self, path: &str, step_id: &str) -> String {
        if let Some(simulated) = self.executor.simulated() {
            return simulated.token(path);
        }
        // The token is as unguessable as a key, since it authorises the answer.
        let token = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let hash = Sha256::digest(&token).to_vec();
        let config = self.plan.steps.get(step_id).and_then(|step| step.callback_config.as_ref());
        let approval = config.and_then(|config| config.approval.as_ref());
        let approval = approval.map(|approval| to_raw(&RequestedCallback { role: approval.role.as_deref() }));
        let token = self
            .database(|pool| {
                let (run_id, lease_token) = (self.run_id.clone(), self.ledger.lease_token());
                let (path, step_id) = (path.to_owned(), step_id.to_owned());
                let (token, hash, approval) = (token.clone(), hash.clone(), approval.clone());
                async move {
                    let (claim, step) = ((run_id.as_str(), lease_token), (path.as_str(), step_id.as_str()));
                    waits::prepare_callback(&pool, claim, step, approval.as_deref(), (&token, &hash)).await
                }
            })
            .await;
        match token {
            Some(token) => token,
            // Another executor has the run now and continues it.
            None => std::future::pending().await,
        }
    }

    /// The callbacks among the steps of parallel branches, each branch with the prefix of its step paths. `None` if
    /// there are none, as in most runs.
    pub(super) fn callbacks<'s>(
        &self,
        lines: impl Iterator<Item = (String, &'s [String])>,
    ) -> Option<Arc<HashMap<String, Callback>>> {
        if !self.has_callbacks {
            return None;
        }
        let mut found = HashMap::new();
        for (prefix, step_ids) in lines {
            for step_id in step_ids {
                if self.plan.steps.get(step_id).is_some_and(|step| step.kind == StepKind::Callback) {
                    let callback = || Callback::new(step_path::step(&prefix, step_id, 0));
                    found.entry(step_id.clone()).or_insert_with(callback);
                }
            }
        }
        (!found.is_empty()).then(|| Arc::new(found))
    }
}

/// Output of the step for an answer.
fn output(
    answer: Option<Box<RawValue>>,
    answered_by: Option<String>,
    approval: Option<&Approval>,
) -> Result<Box<RawValue>, String> {
    let answer = answer.unwrap_or_else(|| object_of([]));
    let Some(approval) = approval else { return Ok(answer) };
    let by = to_raw(&answered_by);
    if member(&answer, "approved").is_none_or(|approved| approved.get() != "true") && approval.on_reject == "fail" {
        let by = answered_by.map(|by| format!(" by {}", shorten(&by))).unwrap_or_default();
        let comment = member(&answer, "comment").and_then(text);
        let comment = comment.map(|comment| format!(": {}", shorten(&comment))).unwrap_or_default();
        return Err(format!("it was rejected{by}{comment}"));
    }
    let given = members(&answer).unwrap_or_default();
    let given = given.iter().map(|(name, value)| (name.as_str(), *value)).filter(|(name, _)| *name != "decided_by");
    Ok(object_of(given.chain([("decided_by", &*by)])))
}
