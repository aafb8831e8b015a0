//! Retention of ended runs: retention periods, and the range of runs to check next. Pure: the deletion itself is in
//! [`purge`](crate::purge).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{NaiveDateTime, TimeDelta};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    input::{FieldError, Node, Read},
    run::RunStatus,
};

/// Maximum retention in days: a hundred years. 0 keeps runs for ever.
pub const MAX_DAYS: i32 = 36_500;

/// Interval at which all ended runs are checked again, so that no run is missed for good: one whose end was written
/// with a wrong clock, or one that was locked by another transaction.
const WALK_EVERY: TimeDelta = TimeDelta::days(1);

/// Reads a number of days.
pub fn read_days(node: &Node<'_>) -> Read<i32> {
    let days = node.int(0..=i64::from(MAX_DAYS))?;
    i32::try_from(days).map_err(|_| vec![FieldError::rule(node.path(), "is too large")])
}

/// Retention policies: the value of the workflow, else that of its organisation, else that of the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// `RUN_RETENTION_DAYS`.
    pub default_days: i32,
    /// Values of organisations.
    pub organizations: HashMap<String, i32>,
    /// Values of workflows, by organisation and name.
    pub workflows: HashMap<(String, String), i32>,
}

impl Policies {
    /// Days for which ended runs of the workflow are kept; `None`: for ever.
    #[must_use]
    pub fn days(&self, organization: &str, workflow: &str) -> Option<i32> {
        let own = self.workflows.get(&(organization.to_owned(), workflow.to_owned()));
        let days = own.or_else(|| self.organizations.get(organization)).copied().unwrap_or(self.default_days);
        (days > 0).then_some(days)
    }

    /// Whether the retention of a run of the workflow that ended at `ended_at` is over.
    #[must_use]
    pub fn is_over(&self, organization: &str, workflow: &str, ended_at: NaiveDateTime, now: NaiveDateTime) -> bool {
        self.days(organization, workflow).is_some_and(|days| ended_at <= cutoff(now, days))
    }

    /// The distinct retentions, without 0.
    fn limits(&self) -> BTreeSet<i32> {
        let overrides = self.organizations.values().chain(self.workflows.values());
        overrides.chain([&self.default_days]).copied().filter(|days| *days > 0).collect()
    }

    /// The shortest retention; `None` if all runs are kept for ever.
    #[must_use]
    pub fn shortest(&self) -> Option<i32> {
        self.limits().first().copied()
    }

    /// Fingerprint, which differs for other policies.
    fn fingerprint(&self) -> String {
        let workflows: BTreeMap<_, _> = self.workflows.iter().collect();
        let organizations: BTreeMap<_, _> = self.organizations.iter().collect();
        let text = format!("{} {organizations:?} {workflows:?}", self.default_days);
        Sha256::digest(text)[..8].iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }
}

/// Latest end of a run whose retention, of this many days, is over.
fn cutoff(now: NaiveDateTime, days: i32) -> NaiveDateTime {
    now.checked_sub_signed(TimeDelta::days(days.into())).unwrap_or(NaiveDateTime::MIN)
}

/// Range of end times of runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Exclusive lower bound; `None`: from the first run.
    pub after: Option<NaiveDateTime>,
    /// Inclusive upper bound.
    pub until: NaiveDateTime,
}

/// Scan positions: the end time up to which ended runs were checked, for each retention. The next range holds only runs
/// that have become too old since. So runs with a longer retention are not checked again and again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scan {
    #[serde(default)]
    policies: String,
    #[serde(default)]
    begun_at: Option<NaiveDateTime>,
    /// Positions by days; `None`: no run was checked yet.
    #[serde(default)]
    positions: BTreeMap<i32, Option<NaiveDateTime>>,
}

impl Scan {
    /// Range of end times to check next; `None`: there is nothing to do now.
    #[must_use]
    pub fn next(&mut self, policies: &Policies, now: NaiveDateTime) -> Option<Range> {
        if let Some(range) = self.ahead(policies, now) {
            return Some(range);
        }
        if self.begun_at.is_none_or(|begun_at| now - begun_at >= WALK_EVERY) {
            *self = Self::walk(policies, policies.fingerprint(), now);
        }
        self.range(now)
    }

    /// The same at another time. It starts again at the first run only if the policies have changed.
    #[must_use]
    pub fn ahead(&mut self, policies: &Policies, at: NaiveDateTime) -> Option<Range> {
        let fingerprint = policies.fingerprint();
        if self.policies != fingerprint {
            *self = Self::walk(policies, fingerprint, at);
        }
        self.range(at)
    }

    /// Scan that starts at the first run.
    fn walk(policies: &Policies, fingerprint: String, now: NaiveDateTime) -> Self {
        let positions = policies.limits().into_iter().map(|days| (days, None)).collect();
        Self { policies: fingerprint, begun_at: Some(now), positions }
    }

    fn range(&self, now: NaiveDateTime) -> Option<Range> {
        let behind = || self.positions.iter().filter(|(days, at)| at.is_none_or(|at| at < cutoff(now, **days)));
        let after = behind().map(|(_, at)| *at).min()?;
        let until = behind().filter(|(_, at)| **at == after).map(|(days, _)| cutoff(now, *days)).max()?;
        Some(Range { after, until })
    }

    /// Records that all runs of the range up to this end time were checked.
    pub fn advance(&mut self, range: Range, reached: NaiveDateTime, now: NaiveDateTime) {
        for (days, at) in &mut self.positions {
            // Otherwise the runs between its own position and the start of the range were not checked for it.
            if *at >= range.after {
                *at = (*at).max(Some(reached.min(cutoff(now, *days))));
            }
        }
    }

    /// Delay of the deletion.
    #[must_use]
    pub fn lag(&self, now: NaiveDateTime) -> Option<TimeDelta> {
        let behind = self.positions.iter().filter_map(|(days, at)| Some(cutoff(now, *days) - (*at)?));
        behind.max().filter(|lag| *lag > TimeDelta::zero())
    }
}

/// Run with the properties that its retention depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "said by the names")]
pub struct Member {
    pub run_id: String,
    /// Id of the outermost run that contains it, or its own id.
    pub root_run_id: String,
    pub organization: String,
    pub workflow: String,
    pub ended_at: NaiveDateTime,
    pub status: String,
    /// Time until which it is kept, regardless of its retention.
    pub kept_until: Option<NaiveDateTime>,
    pub steps: i64,
    /// Transaction that wrote the row (`xmin`), which differs after any change.
    pub stamp: String,
}

impl Member {
    /// Whether its status is terminal.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        RunStatus::parse(&self.status).is_some_and(RunStatus::is_terminal)
    }
}

/// Filters the runs that can be deleted. `members` holds whole families. A run is deleted together with its sub-runs,
/// when all of them have ended and the retention of each is over.
#[must_use]
pub fn deletable(members: Vec<Member>, policies: &Policies, now: NaiveDateTime) -> Vec<Member> {
    let is_kept = |member: &Member| {
        !member.has_ended()
            || member.kept_until.is_some_and(|until| until > now)
            || !policies.is_over(&member.organization, &member.workflow, member.ended_at, now)
    };
    let kept: BTreeSet<String> =
        members.iter().filter(|member| is_kept(member)).map(|member| member.root_run_id.clone()).collect();
    members.into_iter().filter(|member| !kept.contains(&member.root_run_id)).collect()
}

/// Splits runs into batches of at most `max_runs` runs and `max_steps` steps. A run with more steps is a batch by
/// itself.
#[must_use]
pub fn batches(members: Vec<Member>, max_runs: usize, max_steps: i64) -> Vec<Vec<Member>> {
    let mut batches: Vec<Vec<Member>> = Vec::new();
    let mut steps = 0;
    for member in members {
        let is_full = batches.last().is_none_or(|batch| batch.len() >= max_runs || steps + member.steps > max_steps);
        if is_full {
            batches.push(Vec::new());
            steps = 0;
        }
        steps += member.steps;
        if let Some(batch) = batches.last_mut() {
            batch.push(member);
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(number: i64) -> NaiveDateTime {
        chrono::DateTime::UNIX_EPOCH.naive_utc() + TimeDelta::days(number)
    }

    fn policies(default_days: i32, workflows: &[(&str, i32)]) -> Policies {
        let own = |(name, days): &(&str, i32)| (("acme".to_owned(), (*name).to_owned()), *days);
        Policies { default_days, organizations: HashMap::new(), workflows: workflows.iter().map(own).collect() }
    }

    fn member(run_id: &str, root: &str, ended: i64) -> Member {
        Member {
            run_id: run_id.to_owned(),
            root_run_id: root.to_owned(),
            organization: "acme".to_owned(),
            workflow: "flow".to_owned(),
            ended_at: day(ended),
            status: "COMPLETED".to_owned(),
            kept_until: None,
            steps: 1,
            stamp: String::new(),
        }
    }

    #[test]
    fn the_workflow_comes_before_the_organisation_and_that_before_the_setting() {
        let mut policies = policies(90, &[("short", 7), ("kept", 0)]);
        assert_eq!(policies.days("acme", "flow"), Some(90));
        policies.organizations.insert("acme".to_owned(), 30);
        assert_eq!(policies.days("acme", "flow"), Some(30));
        assert_eq!(policies.days("acme", "short"), Some(7));
        assert_eq!(policies.days("acme", "kept"), None);
        assert_eq!(policies.days("other", "short"), Some(90));
        policies.organizations.insert("acme".to_owned(), 0);
        assert_eq!(policies.days("acme", "flow"), None);
        assert!(policies.is_over("acme", "short", day(93), day(100)));
        assert!(!policies.is_over("acme", "short", day(94), day(100)));
    }

    #[test]
    fn every_run_is_checked_once_and_then_only_those_that_have_become_too_old() {
        let policies = policies(90, &[("short", 10)]);
        let mut scan = Scan::default();
        let whole = Range { after: None, until: day(990) };
        assert_eq!(scan.next(&policies, day(1000)), Some(whole));
        // A page ends in the middle: both retentions continue from there.
        scan.advance(whole, day(500), day(1000));
        let rest = Range { after: Some(day(500)), until: day(990) };
        assert_eq!(scan.next(&policies, day(1000)), Some(rest));
        scan.advance(rest, day(990), day(1000));
        assert_eq!(scan.next(&policies, day(1000)), None);
        assert_eq!(scan.lag(day(1000)), None);
        // Half a day later, each retention has a range of half a day.
        let later = day(1000) + TimeDelta::hours(12);
        assert_eq!(scan.lag(later), Some(TimeDelta::hours(12)));
        let first = scan.next(&policies, later).expect("the longer retention");
        assert_eq!(first, Range { after: Some(day(910)), until: day(910) + TimeDelta::hours(12) });
        scan.advance(first, first.until, later);
        let second = scan.next(&policies, later).expect("the shorter retention");
        assert_eq!(second, Range { after: Some(day(990)), until: day(990) + TimeDelta::hours(12) });
        scan.advance(second, second.until, later);
        assert_eq!(scan.next(&policies, later), None);
        // A day after the full scan all runs are checked again.
        assert_eq!(scan.next(&policies, day(1001)).expect("a range").after, Some(day(910) + TimeDelta::hours(12)));
        while let Some(range) = scan.next(&policies, day(1001)).filter(|range| range.after.is_some()) {
            scan.advance(range, range.until, day(1001));
        }
        assert_eq!(scan.next(&policies, day(1001)), Some(Range { after: None, until: day(991) }));
    }

    #[test]
    fn changed_policies_start_again_at_the_first_run() {
        let mut scan = Scan::default();
        let range = scan.next(&policies(90, &[]), day(1000)).expect("all");
        scan.advance(range, range.until, day(1000));
        assert_eq!(scan.next(&policies(90, &[]), day(1000)), None);
        let stored: Scan = serde_json::from_str(&serde_json::to_string(&scan).expect("JSON")).expect("the same");
        assert_eq!(stored, scan);
        assert_eq!(scan.next(&policies(90, &[("a", 5)]), day(1000)), Some(Range { after: None, until: day(995) }));
        assert_eq!(scan.next(&policies(0, &[]), day(1000)), None);
    }

    #[test]
    fn a_run_is_deleted_with_its_sub_runs_or_not_at_all() {
        let policies = policies(90, &[]);
        let ids = |members: Vec<Member>| {
            deletable(members, &policies, day(100)).into_iter().map(|member| member.run_id).collect::<Vec<_>>()
        };
        let family = || vec![member("child", "parent", 5), member("parent", "parent", 6), member("alone", "alone", 10)];
        assert_eq!(ids(family()), ["child", "parent", "alone"]);
        let changed = |change: fn(&mut Member)| {
            let mut members = family();
            change(&mut members[0]);
            ids(members)
        };
        assert_eq!(changed(|child| child.status = "RUNNING".to_owned()), ["alone"]);
        assert_eq!(changed(|child| child.ended_at = day(11)), ["alone"]);
        assert_eq!(changed(|child| child.kept_until = Some(day(101))), ["alone"]);
        assert_eq!(changed(|child| child.kept_until = Some(day(99))), ["child", "parent", "alone"]);
    }

    #[test]
    fn batches_are_bounded_by_runs_and_by_steps() {
        let sizes = |steps: &[i64]| {
            let run = |steps: &i64| Member { steps: *steps, ..member("r", "r", 0) };
            batches(steps.iter().map(run).collect(), 3, 100).iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&[1; 7]), [3, 3, 1]);
        assert_eq!(sizes(&[60, 60, 30, 5000, 1]), [1, 2, 1, 1]);
        assert_eq!(sizes(&[]), [0; 0]);
    }
}
