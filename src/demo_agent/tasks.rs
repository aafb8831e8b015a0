//! Tasks with a duration: the answer of `message/send` if the URL has `task_ms`, and the object of `tasks/get` and
//! `tasks/cancel`.

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
}

impl Task {
    fn is_done(&self) -> bool {
        Instant::now() >= self.due
    }

    /// Task in its current state.
    fn shown(&self) -> Value {
        if self.is_cancelled {
            return in_state(&self.completed, "canceled");
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
        let id = completed["id"].as_str().unwrap_or_default().to_owned();
        let mut kept = self.kept();
        if kept.order.len() >= MAX_TASKS
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.tasks.remove(&oldest);
        }
        kept.order.push_back(id.clone());
        kept.tasks.insert(id, Task { completed, due: Instant::now() + time, is_cancelled: false });
        submitted
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
