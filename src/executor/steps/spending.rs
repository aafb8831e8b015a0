//! Spending of a run: calls are admitted within its limits and those of the runs above it, and what they have used is
//! noted. A run without limits asks nobody, and notes only what its agents tell or have a price for.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::Run;
use crate::{
    db::usage::{self, Account as Limited, Admitted, CountedCall, Excess, NewCall, Progress},
    executor::{
        agent_call::{CallErrorKind, CallOutcome},
        agents::Agent,
        error_code,
        simulation::{Reserved, SimulatedAccount, SimulatedRun},
    },
    telemetry::catalogue::AGENTS,
    usage::{Cost, LimitKind, Usage, Want},
};

/// Pause after which a call that finds no room asks again, if no call of its own run has ended before.
const BUSY_PAUSE: Duration = Duration::from_millis(200);
/// Maximum number of abandoned calls that are remembered. More than run side by side are seldom abandoned at a time.
const MAX_ABANDONED: usize = 256;
/// Bytes of an input for which a token is reserved.
const BYTES_PER_TOKEN: usize = 4;

/// Account of a run: the limits that hold for it.
pub(in crate::executor) enum Account {
    /// There are none.
    Unlimited,
    /// They are in the database.
    Stored(Box<StoredAccount>),
    /// Those of a simulated run.
    Simulated(Arc<SimulatedAccount>),
}

/// Account in the database.
pub(in crate::executor) struct StoredAccount {
    began: Instant,
    /// Execution time before.
    elapsed: Duration,
    /// Attempts that were interrupted, which count when they are repeated.
    interrupted: u64,
    /// Calls whose steps were abandoned, the last ones: nothing is reserved for them any more.
    abandoned: Mutex<VecDeque<String>>,
    /// Notified when a call has ended.
    changed: Arc<Notify>,
    /// Calls whose answers are noted, until their steps have ended.
    settling: Arc<AtomicUsize>,
    /// The limit that ends the execution first, and when.
    deadline: Option<(Instant, Excess)>,
}

impl StoredAccount {
    /// Account of a run that began or continued at `began`, for these limits that hold for it.
    pub(in crate::executor) fn new(accounts: &[Limited], began: Instant, elapsed: Duration, interrupted: u64) -> Self {
        let deadlines = accounts.iter().filter_map(|account| {
            let millis = account.limits.seconds?.saturating_mul(1000).saturating_sub(account.totals.millis);
            let left = Duration::from_millis(u64::try_from(millis).unwrap_or_default());
            let excess = Excess::new(LimitKind::Seconds, &account.limits, &account.run_id);
            Some((began + left, excess))
        });
        let deadline = deadlines.min_by_key(|(at, _)| *at);
        Self {
            began,
            elapsed,
            interrupted,
            abandoned: Mutex::default(),
            changed: Arc::default(),
            settling: Arc::default(),
            deadline,
        }
    }

    /// End of the execution.
    pub(in crate::executor) fn deadline(&self) -> Option<Instant> {
        self.deadline.as_ref().map(|(at, _)| *at)
    }

    fn abandoned(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.abandoned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Call that was admitted, until it is settled or abandoned.
pub(super) struct Held<'a> {
    account: &'a StoredAccount,
    call: NewCall,
    is_new: bool,
    is_settled: bool,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            let mut abandoned = self.account.abandoned();
            if abandoned.len() == MAX_ABANDONED {
                abandoned.pop_front();
            }
            abandoned.push_back(self.call.attempt_id.clone());
        }
        self.account.changed.notify_waiters();
    }
}

/// Call whose answer is noted. Until this is dropped, the run does not fail because other calls find the limit exceeded: the
/// step that it belongs to ends first, so that its output is kept.
pub(super) struct Settling {
    changed: Arc<Notify>,
    settling: Arc<AtomicUsize>,
}

impl Settling {
    fn begin(account: &StoredAccount) -> Self {
        account.settling.fetch_add(1, Ordering::Relaxed);
        Self { changed: Arc::clone(&account.changed), settling: Arc::clone(&account.settling) }
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.settling.fetch_sub(1, Ordering::Relaxed);
        self.changed.notify_waiters();
    }
}

impl Run {
    /// Counts the begin of an attempt with an input of that many bytes. Does not return if a limit is exceeded.
    pub(super) async fn begin_step(&self, input: usize) {
        self.budget.step(input).await;
        match &self.account {
            Account::Unlimited => {}
            Account::Stored(account) => {
                // The future of a block would be too large with it.
                Box::pin(self.admit(account, None)).await;
            }
            Account::Simulated(account) => {
                if let Err(excess) = account.begin_step() {
                    self.exceed::<()>(&excess).await;
                }
            }
        }
    }

    /// Reserves what a call may use. Waits while other calls have reserved what is left. Does not return if a limit is
    /// used up. `None`: there is no limit.
    pub(super) async fn reserve(
        &self,
        agent: &Agent,
        attempt_id: &str,
        (step_id, row_id): (&str, &str),
        input: usize,
    ) -> Option<Held<'_>> {
        let Account::Stored(account) = &self.account else { return None };
        let call = new_call(agent, attempt_id, (step_id, row_id), input);
        let mut held = Held { account, call, is_new: false, is_settled: false };
        held.is_new = self.admit(account, Some(&held.call)).await;
        Some(held)
    }

    /// The same for a call of a simulated run.
    pub(super) async fn reserve_simulated(
        &self,
        simulated: &SimulatedRun,
        agent_name: &str,
        attempt_id: &str,
        input: usize,
    ) -> Reserved {
        let settings = simulated.settings_of(agent_name);
        match simulated.account().reserve(attempt_id, &settings, input).await {
            Ok(reserved) => reserved,
            Err(excess) => self.exceed(&excess).await,
        }
    }

    /// Returns whether the call, if there is one, was not known before.
    async fn admit(&self, account: &StoredAccount, call: Option<&NewCall>) -> bool {
        loop {
            let changed = account.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // From here on no end of a call is missed.
            changed.as_mut().enable();
            // It is sent again with each call, since a statement of an abandoned call may still be under way.
            let abandoned: Vec<String> = account.abandoned().iter().cloned().collect();
            let admitted = self
                .database(|pool| {
                    let (run_id, lease_token) = (self.run_id.clone(), self.ledger.lease_token());
                    let (progress, call, abandoned) = (self.progress(account), call.cloned(), abandoned.clone());
                    async move { usage::admit(&pool, (&run_id, lease_token), progress, call.as_ref(), &abandoned).await }
                })
                .await;
            match admitted {
                Admitted::Yes { is_new } => return is_new,
                Admitted::Busy => {
                    tokio::select! {
                        () = changed => {}
                        () = self.executor.clock.sleep(BUSY_PAUSE) => {}
                    }
                }
                Admitted::No(excess) => {
                    while account.settling.load(Ordering::Relaxed) > 0 {
                        changed.as_mut().await;
                        changed.set(account.changed.notified());
                        changed.as_mut().enable();
                    }
                    return self.exceed(&excess).await;
                }
                // Another executor has the run now.
                Admitted::Lost => std::future::pending().await,
            }
        }
    }

    /// What the run has done so far.
    fn progress(&self, account: &StoredAccount) -> Progress {
        let steps = self.budget.steps().saturating_sub(account.interrupted);
        let millis = (account.elapsed + self.executor.clock.since(account.began)).as_millis();
        Progress { steps: i64::try_from(steps).unwrap_or(i64::MAX), millis: i64::try_from(millis).unwrap_or(i64::MAX) }
    }

    /// Notes what a call has used, before its step ends. Returns the limit that this exceeds, and what to keep until the step
    /// has ended.
    pub(super) async fn settle(
        &self,
        mut held: Option<Held<'_>>,
        agent: &Agent,
        attempt_id: &str,
        row: (&str, &str),
        outcome: &CallOutcome,
    ) -> (Option<Excess>, Option<Settling>) {
        let fault = outcome.result.as_ref().err().map(|failure| failure.fault);
        if matches!(fault, Some(CallErrorKind::NotAllowed | CallErrorKind::Unusable)) {
            self.release(held).await;
            return (None, None);
        }
        let settling = held.as_ref().map(|held| Settling::begin(held.account));
        let price = agent.price.unwrap_or_default();
        let used = outcome.usage;
        if held.is_none() && used.is_none() && price.call == Cost::ZERO {
            return (None, None);
        }
        let call = held.as_ref().map_or_else(|| new_call(agent, attempt_id, row, 0), |held| held.call.clone());
        let used = used.unwrap_or_default();
        let cost = price.cost(used);
        self.count_spending(agent, used, cost);
        let excess = self
            .database(|pool| {
                let (run_id, lease_token, call) = (self.run_id.clone(), self.ledger.lease_token(), call.clone());
                async move {
                    let (input_tokens, output_tokens) = (whole(used.input_tokens), whole(used.output_tokens));
                    let counted = CountedCall { call: &call, input_tokens, output_tokens, cost };
                    usage::settle(&pool, (&run_id, lease_token), &counted).await
                }
            })
            .await;
        if let Some(held) = &mut held {
            held.is_settled = true;
        }
        (excess, settling)
    }

    /// Takes a call back that was not made.
    pub(super) async fn release(&self, held: Option<Held<'_>>) {
        let Some(mut held) = held else { return };
        self.database(|pool| {
            let (run_id, lease_token) = (self.run_id.clone(), self.ledger.lease_token());
            let (attempt_id, is_new) = (held.call.attempt_id.clone(), held.is_new);
            async move {
                usage::release(&mut *pool.acquire().await?, (&run_id, lease_token), &attempt_id, is_new).await
            }
        })
        .await;
        held.is_settled = true;
    }

    fn count_spending(&self, agent: &Agent, used: Usage, cost: Cost) {
        for (kind, tokens) in [("input", used.input_tokens), ("output", used.output_tokens)] {
            let workflow_id = self.workflow_label.clone();
            metrics::counter!("workflow_tokens_total", "kind" => kind, "workflow_id" => workflow_id).increment(tokens);
        }
        if cost > Cost::ZERO {
            let (agent, workflow_id) = (AGENTS.of(&agent.name), self.workflow_label.clone());
            metrics::counter!("executor_agent_cost_billionths_total", "agent" => agent).increment(cost.billionths());
            metrics::counter!("workflow_cost_billionths_total", "workflow_id" => workflow_id)
                .increment(cost.billionths());
        }
    }

    /// Makes the run fail because of this limit. Does not return.
    pub(super) async fn exceed<T>(&self, excess: &Excess) -> T {
        self.fail_by(excess);
        std::future::pending().await
    }

    /// Makes the run fail if a limit was exceeded; then it does not return.
    pub(super) async fn end_if_exceeded(&self, excess: Option<Excess>) {
        if let Some(excess) = excess {
            self.exceed::<()>(&excess).await;
        }
    }

    fn fail_by(&self, excess: &Excess) {
        let mut reason = excess.reason.clone();
        if self.executor.simulated().is_none() {
            metrics::counter!("executor_budget_exceeded_total", "limit" => excess.kind.as_str()).increment(1);
            if excess.account_id != self.run_id {
                reason = format!("{reason} of run {}", excess.account_id);
            }
        }
        self.budget.fail(error_code::BUDGET_EXCEEDED, reason);
    }

    /// Makes the run fail if a sub-run has used up a limit of it. Otherwise the failure of the sub-run is one like others.
    pub(super) async fn check_account(&self) {
        let excess = match &self.account {
            Account::Unlimited => None,
            Account::Simulated(account) => account.excess(),
            Account::Stored(_) => {
                self.database(|pool| {
                    let run_id = self.run_id.clone();
                    async move { usage::exceeded(&mut *pool.acquire().await?, &run_id).await }
                })
                .await
            }
        };
        if let Some(excess) = excess {
            self.exceed::<()>(&excess).await;
        }
    }

    /// Whether the run has limits, its own or of a run above it.
    pub(super) fn is_limited(&self) -> bool {
        matches!(self.account, Account::Stored(_))
    }

    /// Waits for the end of the execution time that the limits allow, and makes the run fail. Returns only then.
    pub(in crate::executor) async fn out_of_time(&self) {
        let deadline = if let Account::Stored(account) = &self.account { account.deadline.as_ref() } else { None };
        let Some((at, excess)) = deadline else { return std::future::pending().await };
        self.executor.clock.sleep_until(*at).await;
        self.database(|pool| {
            let (run_id, excess) = (self.run_id.clone(), excess.clone());
            async move { usage::note_excess(&mut *pool.acquire().await?, &run_id, &excess).await }
        })
        .await;
        self.fail_by(excess);
    }
}

fn new_call(agent: &Agent, attempt_id: &str, (step_id, row_id): (&str, &str), input: usize) -> NewCall {
    let want = want(agent, input);
    let [attempt_id, row_id, step_id] = [attempt_id, row_id, step_id].map(str::to_owned);
    NewCall { attempt_id, row_id, step_id, agent_name: agent.name.clone(), want }
}

/// What a call with an input of that many bytes may use.
fn want(agent: &Agent, input: usize) -> Want {
    let price = agent.price.unwrap_or_default();
    let expected = agent.expected.map(|expected| Usage {
        input_tokens: expected.input_tokens + (input / BYTES_PER_TOKEN) as u64,
        output_tokens: expected.output_tokens,
    });
    let expected = expected.unwrap_or_default();
    Want {
        is_new: true,
        tokens: whole(expected.tokens()),
        call_cost: price.call,
        token_cost: price.cost_of_tokens(expected),
    }
}

fn whole(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}
