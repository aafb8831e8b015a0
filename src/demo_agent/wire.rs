//! Forms of tasks in the versions of A2A. Tasks are kept in the form of 0.3.

use serde_json::{Value, json};

use crate::a2a::Version;

/// The task in the form of that version.
pub(super) fn task(mut task: Value, version: Version) -> Value {
    if version == Version::V03 {
        return task;
    }
    if let Some(members) = task.as_object_mut() {
        members.remove("kind");
        // It is in the artifact, too.
        members.remove("data");
    }
    if let Some(status) = task.get_mut("status") {
        status_in_1(status);
    }
    for list in ["artifacts", "history"] {
        for holder in task.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            holder_in_1(holder);
        }
    }
    task
}

/// Result of a message.
pub(super) fn sent(sent: Value, version: Version) -> Value {
    match version {
        Version::V03 => sent,
        Version::V1 => json!({"task": task(sent, version)}),
    }
}

/// Event: the state of the task has changed.
pub(super) fn status_update(task: &Value, version: Version) -> Value {
    let update = json!({"taskId": task["id"], "contextId": task["contextId"], "status": task["status"]});
    match version {
        Version::V03 => {
            let mut update = update;
            update["kind"] = "status-update".into();
            update["final"] = true.into();
            update
        }
        Version::V1 => {
            let mut update = update;
            status_in_1(&mut update["status"]);
            json!({"statusUpdate": update})
        }
    }
}

/// Event: the artifact of the task has grown by this part.
pub(super) fn artifact_update(task: &Value, part: &Value, append: bool, version: Version) -> Value {
    let artifact = &task["artifacts"][0];
    let mut grown = json!({"artifactId": artifact["artifactId"], "name": artifact["name"], "parts": [part]});
    let mut update = json!({"taskId": task["id"], "contextId": task["contextId"], "append": append});
    match version {
        Version::V03 => {
            update["artifact"] = grown;
            update["kind"] = "artifact-update".into();
            update
        }
        Version::V1 => {
            holder_in_1(&mut grown);
            update["artifact"] = grown;
            json!({"artifactUpdate": update})
        }
    }
}

fn status_in_1(status: &mut Value) {
    let state = status["state"].as_str().unwrap_or_default().to_uppercase().replace('-', "_");
    status["state"] = format!("TASK_STATE_{state}").into();
    if let Some(message) = status.get_mut("message") {
        holder_in_1(message);
    }
}

/// Brings the role and the parts of a message or an artifact into the form of 1.0.
fn holder_in_1(holder: &mut Value) {
    let Some(members) = holder.as_object_mut() else { return };
    members.remove("kind");
    match members.get("role").and_then(Value::as_str) {
        Some("user") => drop(members.insert("role".to_owned(), "ROLE_USER".into())),
        Some("agent") => drop(members.insert("role".to_owned(), "ROLE_AGENT".into())),
        _ => {}
    }
    for part in members.get_mut("parts").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(part) = part.as_object_mut() {
            part.remove("kind");
        }
    }
}
