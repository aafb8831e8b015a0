//! Sweep: takes over runs of dead executors, resumes parked runs that are due, and stops driving runs that were
//! cancelled or whose lease is lost.

use std::time::Duration;

use uuid::Uuid;

use super::{
    Executor,
    active::Slots,
    assignment::{Assignment, Origin, Progress, input_or_empty, limits_of, pinned, stored},
};
use crate::access::OrganizationId;
use crate::db::{
    self,
    executions::{self, TakenOver},
    processes,
};
use crate::telemetry::catalogue;

/// Interval of the sweeps for runs of dead executors.
const TAKE_OVER_EVERY: Duration = Duration::from_secs(2);
/// Interval of the sweeps for parked runs that are due. A timer may be late by this.
const WAKE_EVERY: Duration = Duration::from_millis(200);
/// Maximum number of runs resumed in one statement.
const MAX_WOKEN: usize = 25;
/// Interval of the checks of the leases of active runs.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Maximum number of runs taken over in one statement.
const MAX_TAKEN: usize = 20;

impl Executor {
    /// Takes over runs until the soft stop.
    pub(super) async fn take_over_all(self) {
        let mut at_a_time = MAX_TAKEN;
        while !self.soft_stop.is_cancelled() {
            let taken = self.take_over_once(at_a_time).await;
            // Several runs with large inputs may take the database too long; one does not.
            at_a_time = if taken.is_ok() { MAX_TAKEN } else { 1 };
            if let Err(error) = taken {
                tracing::debug!(error = &error as &dyn std::error::Error, "lost runs could not be swept: {error}");
            }
            self.rest(TAKE_OVER_EVERY).await;
        }
    }

    async fn take_over_once(&self, at_a_time: usize) -> Result<(), db::Error> {
        // A dead executor must be declared dead for good before its runs are driven elsewhere.
        let pool = self.pool.clone();
        let cleaned = db::bounded(async move {
            processes::bury(&pool).await?;
            executions::forget_wakes(&pool).await?;
            db::organizations::are_several(&pool).await
        });
        self.active.set_shared(cleaned.await?);
        while self.take_over_batch(at_a_time).await? == at_a_time && !self.soft_stop.is_cancelled() {}
        Ok(())
    }

    /// Takes over runs, as many as there are free slots, but at most `at_most`. Returns their number.
    async fn take_over_batch(&self, at_most: usize) -> Result<usize, db::Error> {
        let Some(owner) = self.registration.current() else { return Ok(0) };
        let Some(slots) = self.active.free(at_most) else { return Ok(0) };
        let (known, _) = self.active.leases(None);
        let limit = i64::try_from(slots.count()).unwrap_or(i64::MAX);
        let (pool, shares) = (self.pool.clone(), self.active.shares(&slots).limits());
        let lost =
            db::bounded(async move { executions::take_over(&pool, owner, &known, limit, &shares).await }).await?;
        for taken in &lost {
            tracing::warn!(run_id = taken.run_id, "run {} is taken over from a lost executor", taken.run_id);
            metrics::counter!("executor_runs_taken_over_total").increment(1);
        }
        Ok(self.start_taken(lost, slots, owner))
    }

    /// Resumes parked runs until the soft stop.
    pub(super) async fn wake_all(self) {
        let mut has_failed = false;
        while !self.soft_stop.is_cancelled() {
            match self.resume_parked_batch(if has_failed { 1 } else { MAX_WOKEN }).await {
                Ok(true) => {
                    has_failed = false;
                    continue;
                }
                Ok(false) => has_failed = false,
                // Logged once, since the sweep runs five times a second.
                Err(error) if !std::mem::replace(&mut has_failed, true) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "parked runs could not be polled: {error}"
                    );
                }
                Err(_) => {}
            }
            self.rest(WAKE_EVERY).await;
        }
    }

    /// Resumes at most `at_most` runs. When all slots are taken, every other slot that becomes free is for parked runs.
    /// Returns whether there may be more.
    async fn resume_parked_batch(&self, at_most: usize) -> Result<bool, db::Error> {
        let pool = self.pool.clone();
        if !db::bounded(async move { executions::is_any_awake(&pool).await }).await? {
            return Ok(false);
        }
        let slots = tokio::select! {
            slots = self.active.next_free(at_most) => slots,
            () = self.soft_stop.cancelled() => return Ok(false),
        };
        let Some(owner) = self.registration.current() else { return Ok(false) };
        let limit = slots.count();
        let (pool, wanted) = (self.pool.clone(), i64::try_from(limit).unwrap_or(i64::MAX));
        let shares = self.active.shares(&slots).limits();
        let woken =
            db::bounded(async move { executions::wake(&mut *pool.acquire().await?, owner, wanted, &shares).await })
                .await?;
        Ok(self.start_taken(woken, slots, owner) == limit)
    }

    /// Drives these runs. Returns their number.
    fn start_taken(&self, taken: Vec<TakenOver>, mut slots: Slots, owner: Uuid) -> usize {
        let count = taken.len();
        let begun = taken.iter().filter(|taken| taken.was_pending).count();
        catalogue::count_transition("PENDING", "RUNNING", begun as u64);
        for (taken, slot) in taken.into_iter().zip(std::iter::from_fn(|| slots.take_one())) {
            let assignment = Assignment {
                run_id: taken.run_id,
                lease_token: taken.lease_token,
                organization: OrganizationId::stored(&taken.organization_id),
                workflow_id: taken.workflow_id,
                workflow_name: taken.workflow_name,
                correlation_id: taken.correlation_id,
                traceparent: taken.traceparent,
                origin: if taken.is_sub_run { Origin::SubRun } else { Origin::Sweep },
                plan: pinned(&self.plans, stored(taken.workflow_plan).as_deref()),
                input: input_or_empty(stored(taken.input_data)),
                before: if taken.is_parked { Progress::Parked } else { Progress::Interrupted },
                first: None,
                takeovers: taken.takeovers,
                elapsed: Duration::try_from_secs_f64(taken.elapsed_secs).unwrap_or_default(),
                limits: limits_of(taken.limits.as_deref()),
            };
            self.start_run(assignment, owner, slot);
        }
        count
    }

    /// Notifies the drivers of changes to their runs, also while the process waits for the last ones. A message reports
    /// a cancellation sooner; this finds those whose message was lost.
    pub(super) async fn check_leases(self) {
        while !self.settled.is_cancelled() {
            let (run_ids, lease_tokens) = self.active.leases(None);
            self.registration.note(run_ids.len(), self.lag.total());
            if !run_ids.is_empty() {
                let (pool, ids, tokens) = (self.pool.clone(), run_ids.clone(), lease_tokens.clone());
                match db::bounded(async move { executions::notice(&pool, &ids, &tokens).await }).await {
                    Ok(noticed) => self.active.notify(&noticed, &run_ids, &lease_tokens),
                    Err(error) => tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "leases could not be checked: {error}"
                    ),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(CHECK_EVERY) => {}
                () = self.settled.cancelled() => {}
            }
        }
    }

    /// Stops all drivers as soon as this process is declared dead, or has to assume it.
    pub(super) async fn follow_registration(self) {
        let mut current = self.registration.subscribe();
        loop {
            let owner = *current.borrow_and_update();
            self.active.stop_all_but_of(owner);
            tokio::select! {
                changed = current.changed() => if changed.is_err() {
                    // The heartbeat has ended, as it does at the hard stop.
                    self.active.stop_all_but_of(None);
                    self.settled.cancelled().await;
                    return;
                },
                () = self.settled.cancelled() => return,
            }
        }
    }

    async fn rest(&self, pause: Duration) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.soft_stop.cancelled() => {}
        }
    }
}
