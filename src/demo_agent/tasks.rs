//! Tasks that are not done at once: the answer of `message/send` if the URL has `task_ms` or `asks`, and the object of
//! `tasks/get` and `tasks/cancel`.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::rpc::RpcError;
use crate::timestamp::Timestamp;

/// Maximum number of stored tasks; the oldest is dropped for a new one.
const MAX_TASKS: usize = 10_000;

/// Tasks of this process.
#[derive(Default)]
pub(super) struct Tasks(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    tasks: HashMap<String, Task>,
    order: VecDeque<String>,
}

struct Task {
    /// Task in its final state.
    completed: Value,
    due: Instant,
    is_cancelled: bool,
    /// What the agent asks, until it has all answers.
    asking: Option<Asking>,
    /// Id of the message that has given the last answer.
    last_message: Option<String>,
}

/// Questions of a task.
pub(super) struct Asking {
    /// Number of all questions.
    pub(super) most: u32,
    /// Whether they are for an authorisation.
    pub(super) is_auth: bool,
    /// Time that the task takes after the last answer.
    pub(super) time: Duration,
    /// Text of the message and of the answers so far.
    pub(super) text: String,
    /// Ids of the messages so far.
    pub(super) messages: Vec<String>,
}

impl Asking {
    /// State of the task with the current question.
    fn shown(&self, task: &Value, at: &str) -> Value {
        let (number, most) = (self.messages.len(), self.most);
        let mut parts = vec![json!({"kind": "text", "text": if self.is_auth {
            format!("May I go on? Question {number} of {most}")
        } else {
            format!("What else? Question {number} of {most}")
        }})];
        if !self.is_auth {
            let text = json!({"type": "string", "title": "Text", "minLength": 1});
            let schema = json!({"type": "object", "required": ["text"], "properties": {"text": text}});
            parts.push(json!({"kind": "data", "data": schema}));
        }
        let id = task["id"].as_str().unwrap_or_default();
        let message = json!({"role": "agent", "messageId": format!("{id}-{number}"), "kind": "message",
            "taskId": task["id"], "contextId": task["contextId"], "parts": parts});
        let state = if self.is_auth { "auth-required" } else { "input-required" };
        let mut shown = in_state(task, state);
        shown["status"]["timestamp"] = at.into();
        shown["status"]["message"] = message;
        shown
    }
}

impl Task {
    fn is_done(&self) -> bool {
        self.asking.is_none() && Instant::now() >= self.due
    }

    /// Task in its current state.
    fn shown(&self) -> Value {
        if self.is_cancelled {
            return in_state(&self.completed, "canceled");
        }
        if let Some(asking) = &self.asking {
            return asking.shown(&self.completed, self.completed["status"]["timestamp"].as_str().unwrap_or_default());
        }
        if self.is_done() { self.completed.clone() } else { in_state(&self.completed, "working") }
    }
}

impl Tasks {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a task that is completed after that time. Returns its first state.
    pub(super) fn begin(&self, completed: Value, time: Duration) -> Value {
        let submitted = in_state(&completed, "submitted");
        self.keep(Task {
            completed,
            due: Instant::now() + time,
            is_cancelled: false,
            asking: None,
            last_message: None,
        });
        submitted
    }

    /// Begins a task that asks. Returns its first state.
    pub(super) fn begin_asking(&self, completed: Value, asking: Asking) -> Value {
        let task =
            Task { completed, due: Instant::now(), is_cancelled: false, asking: Some(asking), last_message: None };
        let shown = task.shown();
        self.keep(task);
        shown
    }

    /// Takes the answer to the current question of a task. `complete` makes the completed task of all texts. A repeated
    /// message changes nothing.
    pub(super) fn answer(
        &self,
        id: &str,
        (message_id, text): (&str, &str),
        complete: impl FnOnce(&str) -> Value,
    ) -> Result<Value, RpcError> {
        let mut kept = self.kept();
        let task = kept.tasks.get_mut(id).ok_or(RpcError::TASK_NOT_FOUND)?;
        let Some(asking) = task.asking.as_mut().filter(|_| !task.is_cancelled) else {
            let is_repeat = task.last_message.as_deref() == Some(message_id);
            return if is_repeat {
                Ok(task.shown())
            } else {
                Err(RpcError::UNSUPPORTED_OPERATION.with("no question is open"))
            };
        };
        if asking.messages.iter().any(|known| known == message_id) {
            return Ok(task.shown());
        }
        task.last_message = Some(message_id.to_owned());
        asking.text = format!("{}\n{text}", asking.text);
        if asking.messages.len() < asking.most as usize {
            asking.messages.push(message_id.to_owned());
            task.completed["status"]["timestamp"] = Timestamp::now().to_string().into();
            return Ok(task.shown());
        }
        let (ids, time) = ([task.completed["id"].clone(), task.completed["contextId"].clone()], asking.time);
        task.completed = complete(&asking.text);
        let [id, context_id] = ids;
        task.completed["id"] = id;
        task.completed["contextId"] = context_id;
        task.asking = None;
        task.due = Instant::now() + time;
        Ok(task.shown())
    }

    fn keep(&self, task: Task) {
        let id = task.completed["id"].as_str().unwrap_or_default().to_owned();
        let mut kept = self.kept();
        if kept.order.len() >= MAX_TASKS
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.tasks.remove(&oldest);
        }
        kept.order.push_back(id.clone());
        kept.tasks.insert(id, task);
    }

    /// `tasks/get`.
    pub(super) fn get(&self, id: &str) -> Result<Value, RpcError> {
        self.kept().tasks.get(id).map(Task::shown).ok_or(RpcError::TASK_NOT_FOUND)
    }

    /// `tasks/cancel`.
    pub(super) fn cancel(&self, id: &str) -> Result<Value, RpcError> {
        let mut kept = self.kept();
        let task = kept.tasks.get_mut(id).ok_or(RpcError::TASK_NOT_FOUND)?;
        if task.is_done() && !task.is_cancelled {
            return Err(RpcError::TASK_NOT_CANCELABLE);
        }
        task.is_cancelled = true;
        Ok(task.shown())
    }
}

fn in_state(completed: &Value, state: &str) -> Value {
    json!({
        "id": completed["id"],
        "contextId": completed["contextId"],
        "kind": "task",
        "status": {"state": state, "timestamp": Timestamp::now().to_string()},
    })
}
