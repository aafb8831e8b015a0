//! Account of a simulated run: the same limits as those of an executed one, in memory.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use serde_json::value::RawValue;
use tokio::sync::Notify;

use super::AgentSettings;
use crate::{
    db::usage::Excess,
    usage::{Admission, Cost, LimitKind, Limits, Price, Totals, Usage, Want},
};

/// Account of a simulated run.
#[derive(Default)]
pub(in crate::executor) struct SimulatedAccount {
    limits: Limits,
    parent: Option<Arc<SimulatedAccount>>,
    state: Mutex<State>,
    exceeded: OnceLock<LimitKind>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    totals: Totals,
    time: Duration,
    /// Reserved tokens and costs, by attempt.
    reserved: BTreeMap<String, (i64, Cost)>,
}

impl SimulatedAccount {
    pub(in crate::executor) fn new(limits: Option<Limits>, parent: Option<Arc<Self>>) -> Self {
        Self { limits: limits.unwrap_or_default(), parent, ..Self::default() }
    }

    /// This account and those of the runs above it.
    fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |account| account.parent.as_deref())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, kind: LimitKind) -> Excess {
        // The first one stays.
        self.exceeded.set(kind).ok();
        Excess::new(kind, &self.limits, "")
    }

    /// Limit of this run that was exceeded.
    pub(in crate::executor) fn excess(&self) -> Option<Excess> {
        self.exceeded.get().map(|kind| self.note(*kind))
    }

    fn check(&self) -> Option<Excess> {
        self.chain().find_map(|account| {
            let kind = account.limits.exceeded_by(&account.state().totals)?;
            Some(account.note(kind))
        })
    }

    /// Counts the begin of an attempt.
    pub(in crate::executor) fn begin_step(&self) -> Result<(), Excess> {
        self.chain().for_each(|account| account.state().totals.steps += 1);
        self.check().map_or(Ok(()), Err)
    }

    /// Counts time of execution. Returns the limit that is exceeded.
    pub(in crate::executor) fn pass(&self, time: Duration) -> Option<Excess> {
        for account in self.chain() {
            let mut state = account.state();
            state.time += time;
            state.totals.millis = i64::try_from(state.time.as_millis()).unwrap_or(i64::MAX);
        }
        self.check()
    }

    /// Time of execution that is left.
    pub(in crate::executor) fn time_left(&self) -> Option<Duration> {
        let left = self.chain().filter_map(|account| {
            let most = Duration::from_secs(u64::try_from(account.limits.seconds?).unwrap_or_default());
            Some(most.saturating_sub(account.state().time))
        });
        left.min()
    }

    /// Sum of what its calls, and those of its sub-runs, have used.
    pub(in crate::executor) fn totals(&self) -> Totals {
        self.state().totals
    }

    /// Reserves what a call may use, when there is room for it; `Err`: a limit is used up.
    pub(in crate::executor) async fn reserve(
        self: &Arc<Self>,
        attempt_id: &str,
        settings: &AgentSettings,
        input: usize,
    ) -> Result<Reserved, Excess> {
        let expected = settings.expected.unwrap_or_default();
        let tokens = if settings.expected.is_some() { input / 4 } else { 0 };
        let expected = Usage { input_tokens: expected.input_tokens + tokens as u64, ..expected };
        let price = settings.price.unwrap_or_default();
        let want = Want {
            is_new: true,
            tokens: i64::try_from(expected.tokens()).unwrap_or(i64::MAX),
            call_cost: price.call,
            token_cost: price.cost_of_tokens(expected),
        };
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            match self.admit(&want)? {
                Some(granted) => {
                    for (account, granted) in self.chain().zip(granted) {
                        let mut state = account.state();
                        state.reserved.insert(attempt_id.to_owned(), granted);
                        state.totals.calls += 1;
                        state.totals.cost = state.totals.cost + price.call;
                    }
                    return Ok(Reserved { account: Arc::clone(self), attempt_id: attempt_id.to_owned(), price });
                }
                None => changed.await,
            }
        }
    }

    /// What to reserve of each account; `None`: calls under way have reserved what is left.
    fn admit(&self, want: &Want) -> Result<Option<Vec<(i64, Cost)>>, Excess> {
        let mut granted = Some(Vec::new());
        for account in self.chain() {
            let admission = {
                let state = account.state();
                let held = state.reserved.values();
                let held = held.fold(Totals::default(), |sum, (tokens, cost)| Totals {
                    tokens: sum.tokens + tokens,
                    cost: sum.cost + *cost,
                    ..sum
                });
                account.limits.admit(&state.totals, &held, want)
            };
            match admission {
                Admission::Full(kind) => return Err(account.note(kind)),
                Admission::Busy => granted = None,
                Admission::Granted { tokens, cost } => {
                    if let Some(granted) = &mut granted {
                        granted.push((tokens, cost));
                    }
                }
            }
        }
        Ok(granted)
    }
}

/// Reservation of a call, until it is settled or abandoned.
pub(in crate::executor) struct Reserved {
    account: Arc<SimulatedAccount>,
    attempt_id: String,
    price: Price,
}

impl Reserved {
    /// Counts what the answer says it took. Returns the limit that this exceeds.
    pub(in crate::executor) fn settle(self, output: Option<&RawValue>) -> Option<Excess> {
        let used = output.and_then(|output| Usage::of_answer(output).or_else(|| Usage::of_a2a(output)));
        let used = used.unwrap_or_default();
        for account in self.account.chain() {
            let mut state = account.state();
            state.totals.tokens += i64::try_from(used.tokens()).unwrap_or(i64::MAX);
            state.totals.cost = state.totals.cost + self.price.cost_of_tokens(used);
        }
        self.account.check()
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        for account in self.account.chain() {
            account.state().reserved.remove(&self.attempt_id);
            account.changed.notify_waiters();
        }
    }
}
