//! List of an organisation's callbacks: those that can be answered, and those that were.

use serde_json::value::RawValue;
use sqlx::{PgConnection, types::Json};

use super::{
    Error,
    list::{self, Conditions, ListRow, Order, Page, PageRequest, Plan, Range, Table},
};
use crate::{access::OrganizationId, timestamp::Timestamp};

/// Row of a callback.
#[derive(Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct CallbackRow {
    pub run_id: String,
    pub workflow_name: String,
    pub step_id: String,
    pub attempt_id: Option<String>,
    /// `None` if the run comes from the archive.
    pub token: Option<String>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub approval: Option<Json<Box<RawValue>>>,
    /// Question of an agent, and its number.
    pub question: Option<Json<Box<RawValue>>>,
    pub round: Option<i16>,
    /// Input of the step.
    pub input_data: Option<Json<Box<RawValue>>>,
    pub answered_at: Option<Timestamp>,
    pub answered_by: Option<String>,
    pub answer: Option<Json<Box<RawValue>>>,
}

const INPUT: &str = "(SELECT s.input_data FROM step_executions s WHERE s.id = attempt_id)";

impl ListRow for CallbackRow {
    const TABLE: Table = Table {
        name: "step_waits",
        columns:
            "run_id, (SELECT r.workflow_name FROM workflow_runs r WHERE r.run_id = step_waits.run_id) AS workflow_name,
            step_id, attempt_id, token, created_at AT TIME ZONE 'UTC' AS created_at,
            due_at AT TIME ZONE 'UTC' AS expires_at, approval, question, round,
            (SELECT s.input_data FROM step_executions s WHERE s.id = attempt_id) AS input_data,
            answered_at AT TIME ZONE 'UTC' AS answered_at, answered_by, answer",
        id: "id",
        is_found_by_value: false,
        large: &["question", "answer", INPUT],
    };
}

/// State of callbacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// They can be answered.
    Open,
    /// They were answered.
    Answered,
}

impl State {
    /// All states.
    pub const ALL: [Self; 2] = [Self::Open, Self::Answered];

    /// Name in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Answered => "answered",
        }
    }
}

/// Filter of a list of callbacks.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Organisation of the runs.
    pub organization: OrganizationId,
    /// State of the callbacks.
    pub state: State,
    /// Accepted roles that answers require; all if empty.
    pub roles: Vec<String>,
    /// Roles of a caller: only answers that require one of them, or none; `None`: all answers.
    pub held: Option<Vec<String>>,
    /// Exact name of the workflow.
    pub workflow_name: Option<String>,
}

/// Sort order: the time since which it can be answered, or of the answer.
#[must_use]
pub fn order(state: State, ascending: bool) -> Order {
    let column = match state {
        State::Open => "created_at",
        State::Answered => "answered_at",
    };
    Order { column, ascending }
}

/// Page of the organisation's callbacks.
pub async fn list(
    conn: &mut PgConnection,
    filter: &Filter,
    order: Order,
    page: &PageRequest,
) -> Result<Page<CallbackRow>, Error> {
    let found = Conditions::organization(&filter.organization);
    let found = match filter.state {
        State::Open => found.holds("token IS NOT NULL AND answered_at IS NULL"),
        State::Answered => found.holds("answered_at IS NOT NULL"),
    };
    let mut checked = Conditions::default().one_of("(coalesce(approval, question) ->> 'role')", &filter.roles).equal(
        "(SELECT r.workflow_name FROM workflow_runs r WHERE r.run_id = step_waits.run_id)",
        filter.workflow_name.as_deref(),
    );
    if let Some(held) = &filter.held {
        let held: Vec<String> = held.iter().cloned().chain([String::new()]).collect();
        checked = checked.one_of("coalesce(coalesce(approval, question) ->> 'role', '')", &held);
    }
    if filter.state == State::Open {
        checked = checked.holds(
            "coalesce(due_at > now(), true)
             AND (SELECT r.status FROM workflow_runs r WHERE r.run_id = step_waits.run_id) IN ('PENDING', 'RUNNING')
             AND (attempt_id IS NULL OR (SELECT s.status FROM step_executions s WHERE s.id = attempt_id) = 'PENDING')",
        );
    }
    let plan = Plan::merged(vec![Range { found, checked, ..Range::default() }], order);
    list::fetch(conn, &plan, page, None).await
}
