//! List of runs: its filter, the indexes that serve each filter and order, and its maintained total.
//!
//! A filter by status, workflow or name becomes groups of runs with one workflow and one status. The indexes have the runs
//! of a group next to each other. The maintained counts list the groups and the number of runs in each. So every order is
//! that of an index, and the total is known.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{RunRow, tasks::waiting};
use crate::{
    access::OrganizationId,
    db::{
        Error,
        list::{self, Conditions, Groups, ListRow, Page, PageRequest, Plan, Range, Segment, Table},
        run_counts::{self, Group, GroupFilter},
    },
    run::RunStatus,
    timestamp::Timestamp,
};

/// Maximum number of groups that one page is merged from. With more groups, the runs are checked one by one.
const MAX_GROUPS: usize = 500;

/// The columns for lists, without inputs of more than 64 KiB. The size is computed only if many bytes are stored. What is
/// retried is searched among the latest attempts of runs that run.
const LISTED_COLUMNS: &str = "run_id, workflow_id, workflow_name, workflow_definition_id, workflow_version, status,
     CASE WHEN pg_column_size(input_data) <= 2000 OR octet_length(input_data::text) <= 65536 THEN input_data END AS input_data,
     input_data IS NOT NULL AS has_input, triggered_by, created_at, updated_at, completed_at, cancelled_at, cancelled_by,
     error_message, correlation_id, priority, paused_at AT TIME ZONE 'UTC' AS paused_at, parent_run_id, parent_step_id, traceparent, limits,
     deadline_at AT TIME ZONE 'UTC' AS deadline_at,
     deadline_missed_at AT TIME ZONE 'UTC' AS deadline_missed_at,
     trigger_kind, trigger_id, trigger_at, chain_depth, flow_stage, flow_state, flow_key,
     status = 'FAILED' AND EXISTS (SELECT FROM run_usage u WHERE u.run_id = workflow_runs.run_id AND u.exceeded IS NOT NULL)
         AS is_over_budget,
     CASE WHEN status = 'RUNNING' AND paused_at IS NULL THEN (
         SELECT jsonb_build_object('step_id', step_id, 'agent_name', agent_name, 'attempts', attempts,
             'next_attempt_at', next_attempt_at, 'error_message', error_message)
         FROM (
             SELECT DISTINCT ON (step_id, place) step_id, agent_name, next_attempt_at, left(error_message, 500) AS error_message,
                 count(*) OVER (PARTITION BY step_id, place) AS attempts
             FROM (
                 SELECT id, step_id, place, agent_name, next_attempt_at, error_message, started_at FROM step_executions s
                 WHERE s.run_id = workflow_runs.run_id ORDER BY started_at DESC, id DESC LIMIT 20
             ) AS latest ORDER BY step_id, place, started_at DESC, id DESC
         ) AS last
         -- An older one was given up with the block around it.
         WHERE next_attempt_at > now() AT TIME ZONE 'UTC' - interval '1 minute' ORDER BY next_attempt_at LIMIT 1) END AS retrying";

impl ListRow for RunRow {
    const TABLE: Table = Table {
        name: "workflow_runs",
        columns: LISTED_COLUMNS,
        id: "run_id",
        is_found_by_value: false,
        large: &["input_data", "error_message"],
    };
}

/// Filter and order of a list of runs.
#[derive(Debug)]
pub struct Filter {
    /// Organisation of the runs.
    pub organization: OrganizationId,
    /// Accepted statuses; all if empty.
    pub statuses: Vec<String>,
    /// Exact `workflow_id`.
    pub workflow_id: Option<String>,
    /// Exact `workflow_definition_id`.
    pub workflow_definition_id: Option<String>,
    /// Exact name of the workflow.
    pub name: Option<String>,
    /// Prefix of the workflow's name.
    pub name_prefix: Option<String>,
    /// Exact `parent_run_id`.
    pub parent_run_id: Option<String>,
    /// Trigger that started the runs.
    pub trigger_id: Option<Uuid>,
    /// Exact `triggered_by`.
    pub triggered_by: Option<String>,
    /// Exact conversation: its label, or the id of a run without one.
    pub context: Option<String>,
    /// Whether a step of the run waits for an answer.
    pub is_waiting: Option<bool>,
    /// Whether the run is paused.
    pub is_paused: Option<bool>,
    /// Range of the creation time.
    pub created: (Option<Timestamp>, Option<Timestamp>),
    /// Range of the last change.
    pub updated: (Option<Timestamp>, Option<Timestamp>),
    /// Sort key.
    pub sort: Sort,
    /// Ascending instead of descending.
    pub ascending: bool,
}

/// Sort key of a list. Runs with the same status, and runs without `completed_at`, are in the order of their creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is a column")]
pub enum Sort {
    CreatedAt,
    UpdatedAt,
    /// Nulls come first when descending and last when ascending, as in PostgreSQL.
    CompletedAt,
    Status,
}

impl Sort {
    /// Sort key with the name of this column; anything else is `created_at`.
    #[must_use]
    pub fn named(name: &str) -> Self {
        match name {
            "updated_at" => Self::UpdatedAt,
            "completed_at" => Self::CompletedAt,
            "status" => Self::Status,
            _ => Self::CreatedAt,
        }
    }
}

/// Condition of the indexes of ended runs.
const ENDED: &str = "status IN ('COMPLETED', 'FAILED', 'CANCELLED')";
/// Condition of the index of open runs.
const OPEN: &str = "status NOT IN ('COMPLETED', 'FAILED', 'CANCELLED')";
/// Condition of the index of ended runs without a completion time. Only other programs write such runs.
const WITHOUT_COMPLETION: &str = "completed_at IS NULL AND status IN ('COMPLETED', 'FAILED')";
/// Condition of runs of which a step waits for an answer, and of the others.
const WAITING: [&str; 2] = [concat!("NOT ", waiting!()), waiting!()];
/// Condition of runs that are not paused, and of those that are.
const PAUSED: [&str; 2] = ["paused_at IS NULL", "paused_at IS NOT NULL"];
/// Names of the two segments of the order by `completed_at`.
const COMPLETED: (&str, &str) = ("completed", "not_completed");

/// Page of the organisation's runs. Descending puts null values first, ascending last.
pub async fn list(conn: &mut PgConnection, filter: &Filter, page: &PageRequest) -> Result<Page<RunRow>, Error> {
    let wanted = GroupFilter {
        organization: &filter.organization,
        statuses: &filter.statuses,
        workflow_id: filter.workflow_id.as_deref(),
        name: filter.name.as_deref(),
        name_prefix: filter.name_prefix.as_deref(),
    };
    let of_all = GroupFilter { workflow_id: None, name: None, name_prefix: None, ..wanted };
    let mut are_few = false;
    for few in filter.narrow() {
        are_few = list::are_few::<RunRow>(&mut *conn, &few).await?;
        if !are_few {
            break;
        }
    }
    let found = run_counts::groups(&mut *conn, wanted, MAX_GROUPS).await?;
    let known = filter.is_of_groups().then_some(found.runs);
    let is_of_workflows = wanted.workflow_id.or(wanted.name).or(wanted.name_prefix).is_some();
    let runs = match &filter.workflow_definition_id {
        // Nearly all of these runs also have it as `workflow_id`.
        Some(definition) if filter.workflow_id.is_none() => {
            let mut found = run_counts::groups(&mut *conn, of_all, MAX_GROUPS).await?;
            for group in &mut found.groups {
                definition.clone_into(&mut group.workflow_id);
            }
            Runs { filter, groups: found.groups, is_of_workflows: true, count: found.runs, are_few }
        }
        _ if found.is_whole => Runs { filter, groups: found.groups, is_of_workflows, count: found.runs, are_few },
        _ => {
            let found = run_counts::groups(&mut *conn, of_all, MAX_GROUPS).await?;
            Runs { filter, groups: found.groups, is_of_workflows: false, count: found.runs, are_few }
        }
    };
    list::fetch(conn, &runs.plan(), page, known).await
}

impl Filter {
    /// Whether all runs of a group fulfil the filter, or none.
    fn is_of_groups(&self) -> bool {
        let bounds = [self.created.0, self.created.1, self.updated.0, self.updated.1];
        let texts = [&self.workflow_definition_id, &self.parent_run_id, &self.triggered_by, &self.context];
        let is_of_any = self.trigger_id.is_none() && self.is_waiting.is_none() && self.is_paused.is_none();
        bounds.iter().all(Option::is_none) && texts.iter().all(|text| text.is_none()) && is_of_any
    }

    /// Conditions that only few runs may fulfil, each served by an index.
    fn narrow(&self) -> Vec<Conditions> {
        match self.trigger_id {
            Some(id) => vec![Conditions::organization(&self.organization).uuid("trigger_id", Some(id))],
            None => self.of_context(),
        }
    }

    /// Conditions on the conversation, each served by an index; none without one.
    fn of_context(&self) -> Vec<Conditions> {
        let Some(context) = self.context.as_deref() else { return Vec::new() };
        let of_organization = || Conditions::organization(&self.organization);
        let labelled = of_organization().equal("context_id", Some(context));
        vec![labelled, of_organization().equal("run_id", Some(context)).holds("context_id IS NULL")]
    }

    /// Conditions on times: those on this column, and the others.
    fn times(&self, column: &str) -> (Conditions, Conditions) {
        let times = Conditions::default().between("created_at", self.created).between("updated_at", self.updated);
        times.split(&[column])
    }

    /// Conditions on the workflow's name and its definition, the trigger, the conversation, and why the run does not go on.
    fn names(&self) -> Conditions {
        let mut all = Conditions::default();
        for (condition, holds) in [(WAITING, self.is_waiting), (PAUSED, self.is_paused)] {
            all = match holds {
                Some(holds) => all.holds(condition[usize::from(holds)]),
                None => all,
            };
        }
        all.equal("coalesce(context_id, run_id)", self.context.as_deref())
            .uuid("trigger_id", self.trigger_id)
            .equal("workflow_definition_id", self.workflow_definition_id.as_deref())
            .equal("workflow_name", self.name.as_deref())
            .prefix("workflow_name", self.name_prefix.as_deref())
    }

    /// Conditions on status and workflow.
    fn group(&self) -> Conditions {
        Conditions::default().one_of("status", &self.statuses).equal("workflow_id", self.workflow_id.as_deref())
    }
}

/// Index that finds the runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    /// Index of sub-runs; they are so few that all are read.
    Parent,
    /// Index of the runs of a trigger.
    Trigger,
    /// Index of conversations, if it has so few runs that all are read.
    Context,
    /// Index of ended runs by subject, and index of open runs by status.
    Subject,
    /// Index of all runs.
    All,
    /// Indexes by status and workflow.
    Groups,
}

/// Runs that a list is read from.
struct Runs<'a> {
    filter: &'a Filter,
    /// Groups of the runs.
    groups: Vec<Group>,
    /// Whether each group is of one workflow instead of all.
    is_of_workflows: bool,
    /// Number of runs in the groups.
    count: i64,
    /// Whether the runs of the conversation are few.
    are_few: bool,
}

impl Runs<'_> {
    fn plan(&self) -> Plan {
        if self.groups.is_empty() {
            return Plan::empty();
        }
        let any = Conditions::default;
        let segments =
            match self.filter.sort {
                Sort::CreatedAt => vec![self.segment("", "created_at", &any(), |runs| {
                    vec![runs.of_groups(|_| true, None, "created_at", any())]
                })],
                Sort::UpdatedAt => vec![self.segment("", "updated_at", &any(), |runs| {
                    let open = runs.of_statuses(|status| !is_ended(status), Some(OPEN), "updated_at");
                    vec![runs.of_groups(is_ended, Some(ENDED), "updated_at", any()), open]
                })],
                Sort::CompletedAt => {
                    let (is, is_not) = ("completed_at IS NOT NULL", "completed_at IS NULL");
                    let completed = self.segment(COMPLETED.0, "completed_at", &any().holds(is), |runs| {
                        vec![runs.of_groups(|_| true, Some(is), "completed_at", any())]
                    });
                    let others = self.segment(COMPLETED.1, "created_at", &any().holds(is_not), |runs| {
                        let without = runs.of_statuses(is_completed, Some(WITHOUT_COMPLETION), "created_at");
                        let others = |status: &str| !is_completed(status);
                        vec![runs.of_groups(others, None, "created_at", any().holds(is_not)), without]
                    });
                    vec![completed, others]
                }
                Sort::Status => {
                    let mut statuses: Vec<&str> = self.groups.iter().map(|group| group.status.as_str()).collect();
                    statuses.sort_unstable();
                    statuses.dedup();
                    let of = |status: &str| {
                        self.segment(status, "created_at", &any().equal("status", Some(status)), |runs| {
                            vec![runs.of_groups(|one| one == status, None, "created_at", any())]
                        })
                    };
                    statuses.into_iter().map(of).collect()
                }
            };
        Plan { segments, ascending: self.filter.ascending }
    }

    /// Segment of the runs with that condition in the order of that column. `of_groups` returns its ranges if the runs are
    /// found by groups.
    fn segment(
        &self,
        name: &str,
        column: &'static str,
        condition: &Conditions,
        of_groups: impl FnOnce(&Self) -> Vec<Option<Range>>,
    ) -> Segment {
        let filter = self.filter;
        let (times, checked) = filter.times(column);
        let found = Conditions::organization(&filter.organization).with(&times);
        let subject = Conditions::default().equal("triggered_by", filter.triggered_by.as_deref());
        let ranges = match self.path() {
            Path::Parent => {
                let found =
                    found.equal("parent_run_id", filter.parent_run_id.as_deref()).with(condition).with(&checked);
                vec![Range {
                    found: found.with(&filter.group()).with(&filter.names()).with(&subject),
                    ..Range::default()
                }]
            }
            Path::Context => {
                let found = found.with(condition).with(&checked).with(&filter.group()).with(&filter.names());
                let range = |few| Range { few, found: found.clone().with(&subject), ..Range::default() };
                filter.of_context().into_iter().map(range).collect()
            }
            Path::Trigger => {
                let found = found.uuid("trigger_id", filter.trigger_id);
                let rest = checked.with(condition).with(&filter.group()).with(&filter.names()).with(&subject);
                let range = if self.are_few {
                    Range { few: found, found: rest, ..Range::default() }
                } else {
                    Range { found, checked: rest, ..Range::default() }
                };
                vec![range]
            }
            Path::Subject => {
                let checked = checked.with(condition).with(&filter.group()).with(&filter.names());
                let ended = Range { found: found.with(&subject).holds(ENDED), checked, ..Range::default() };
                let ended = self.groups.iter().any(|group| is_ended(&group.status)).then_some(ended);
                let open = self.of_statuses(|status| !is_ended(status), None, column);
                [ended, open].into_iter().flatten().collect()
            }
            Path::All => {
                let checked = checked.with(condition).with(&filter.group()).with(&filter.names());
                vec![Range { found, checked, ..Range::default() }]
            }
            Path::Groups => {
                let mut ranges: Vec<Range> = of_groups(self).into_iter().flatten().collect();
                if filter.workflow_id.is_none() && filter.workflow_definition_id.is_some() {
                    let found = found
                        .equal("workflow_definition_id", filter.workflow_definition_id.as_deref())
                        .holds("workflow_definition_id <> workflow_id");
                    let checked = checked.with(condition).with(&filter.group()).with(&filter.names()).with(&subject);
                    ranges.push(Range { found, checked, ..Range::default() });
                }
                ranges
            }
        };
        Segment { name: name.to_owned(), column, ranges }
    }

    fn path(&self) -> Path {
        let filter = self.filter;
        let is_by_groups = self.is_of_workflows || !filter.statuses.is_empty();
        // A few runs are checked just as quickly.
        let is_by_subject = filter.triggered_by.is_some() && (!is_by_groups || self.count > list::MAX_SCANNED);
        if filter.parent_run_id.is_some() {
            Path::Parent
        } else if filter.trigger_id.is_some() && (self.are_few || filter.sort == Sort::CreatedAt) {
            Path::Trigger
        } else if self.are_few {
            Path::Context
        } else if filter.sort == Sort::CreatedAt && is_by_subject {
            Path::Subject
        } else if filter.sort == Sort::CreatedAt && !is_by_groups {
            Path::All
        } else {
            Path::Groups
        }
    }

    /// Range of the groups whose status is wanted; `None` if there are none. The index includes the workflow if groups
    /// have one.
    fn of_groups(
        &self,
        is_wanted: impl Fn(&str) -> bool,
        index: Option<&'static str>,
        column: &str,
        checked: Conditions,
    ) -> Option<Range> {
        let groups: Vec<&Group> = self.groups.iter().filter(|group| is_wanted(&group.status)).collect();
        let texts = |of: fn(&Group) -> &String| groups.iter().map(|group| of(group).clone()).collect::<Vec<_>>();
        let (columns, values): (&[&str], _) = if self.is_of_workflows {
            (&["workflow_id", "status"], vec![texts(|group| &group.workflow_id), texts(|group| &group.status)])
        } else {
            (&["status"], vec![texts(|group| &group.status)])
        };
        (!groups.is_empty()).then(|| self.range(Groups { columns, values }, index, column, checked))
    }

    /// Range of the runs of all workflows whose status is wanted, in an index without the workflow; `None` if there are
    /// none.
    fn of_statuses(
        &self,
        is_wanted: impl Fn(&str) -> bool,
        index: Option<&'static str>,
        column: &str,
    ) -> Option<Range> {
        let mut statuses: Vec<String> = self.groups.iter().map(|group| group.status.clone()).collect();
        statuses.retain(|status| is_wanted(status));
        statuses.sort_unstable();
        statuses.dedup();
        // Runs of a definition whose workflow has another id are in a separate range.
        let definition = self.filter.workflow_definition_id.as_deref().filter(|_| self.path() == Path::Groups);
        let checked = Conditions::default().equal("workflow_id", self.filter.workflow_id.as_deref().or(definition));
        let is_any = !statuses.is_empty();
        let groups = Groups { columns: &["status"], values: vec![statuses] };
        is_any.then(|| self.range(groups, index, column, checked))
    }

    fn range(&self, groups: Groups, index: Option<&'static str>, column: &str, checked: Conditions) -> Range {
        let filter = self.filter;
        let (times, others) = filter.times(column);
        let found = Conditions::organization(&filter.organization).with(&times);
        let found = if let Some(index) = index { found.holds(index) } else { found };
        let checked = checked.with(&others).with(&filter.names()).equal("triggered_by", filter.triggered_by.as_deref());
        Range { groups: Some(groups), found, checked, ..Range::default() }
    }
}

fn is_ended(status: &str) -> bool {
    RunStatus::parse(status).is_some_and(RunStatus::is_terminal)
}

/// Whether runs in that status normally have a completion time.
fn is_completed(status: &str) -> bool {
    matches!(RunStatus::parse(status), Some(RunStatus::Completed | RunStatus::Failed))
}
