//! Active runs: the runs that this process drives, their concurrency permits (slots) and their signals.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    access::OrganizationId,
    db::executions::{ClaimState, Limits},
};

/// Active claim of a run.
struct Entry {
    lease_token: Uuid,
    owner: Uuid,
    organization: OrganizationId,
    stop: CancellationToken,
    paused: watch::Sender<bool>,
    woken: Arc<Notify>,
    /// Slot that the run takes.
    _slot: Slots,
}

/// Signals to the driver of a run.
#[derive(Clone)]
pub(super) struct RunSignals {
    /// The driver must stop and release the run.
    pub(super) stop: CancellationToken,
    /// No further step may begin.
    pub(super) paused: watch::Receiver<bool>,
    /// An event for the run has arrived.
    pub(super) woken: Arc<Notify>,
}

/// Concurrency permits (slots). They are taken before the claim, so that concurrent claims cannot exceed the limit.
pub(super) struct Slots(OwnedSemaphorePermit);

impl Slots {
    pub(super) fn count(&self) -> usize {
        self.0.num_permits()
    }

    /// Splits off one slot, if one is left.
    pub(super) fn take_one(&mut self) -> Option<Self> {
        self.0.split(1).map(Self)
    }
}

/// Registry of active runs.
pub(super) struct ActiveRuns {
    runs: Mutex<HashMap<String, Entry>>,
    slots: Arc<Semaphore>,
    /// Whether more than one organisation uses the installation.
    is_shared: AtomicBool,
    /// Notified whenever a run has ended.
    ended: watch::Sender<()>,
}

impl ActiveRuns {
    pub(super) fn new(limit: usize) -> Self {
        let (ended, _) = watch::channel(());
        Self { runs: Mutex::default(), slots: Arc::new(Semaphore::new(limit)), is_shared: AtomicBool::new(true), ended }
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether more than one organisation uses the installation.
    pub(super) fn set_shared(&self, is_shared: bool) {
        self.is_shared.store(is_shared, Ordering::Relaxed);
    }

    /// Subscribes to the ends of runs.
    pub(super) fn ends(&self) -> watch::Receiver<()> {
        self.ended.subscribe()
    }

    /// Shares of each organisation in the free slots, which include the slots in hand.
    pub(super) fn shares(&self, in_hand: &Slots) -> SlotShares {
        let mut held = HashMap::new();
        for entry in self.runs().values() {
            *held.entry(entry.organization.clone()).or_default() += 1;
        }
        let free = self.slots.available_permits() + in_hand.count();
        SlotShares { free, held, is_shared: self.is_shared.load(Ordering::Relaxed) }
    }

    /// Takes free slots, at most `at_most`; `None` if there is none. Slots reserved by [`Self::next_free`] are not
    /// free.
    pub(super) fn free(&self, at_most: usize) -> Option<Slots> {
        loop {
            let count = self.slots.available_permits().min(at_most);
            let wanted = u32::try_from(count).ok().filter(|count| *count > 0)?;
            // Another task may have been faster.
            if let Ok(permit) = Arc::clone(&self.slots).try_acquire_many_owned(wanted) {
                return Some(Slots(permit));
            }
        }
    }

    /// Waits for the next free slot, and takes with it the other free ones, at most `at_most`. Waiters get one each in
    /// turn.
    pub(super) async fn next_free(&self, at_most: usize) -> Slots {
        let permit = Arc::clone(&self.slots).acquire_owned().await;
        let mut slots = Slots(permit.expect("the semaphore is never closed"));
        if let Some(Slots(more)) = self.free(at_most - 1) {
            slots.0.merge(more);
        }
        slots
    }

    /// Adds a claim of the process `owner`. An earlier claim of the same run is void.
    pub(super) fn add(
        &self,
        run_id: &str,
        lease_token: Uuid,
        owner: Uuid,
        organization: OrganizationId,
        slot: Slots,
    ) -> RunSignals {
        let (paused, is_paused) = watch::channel(false);
        let signals = RunSignals { stop: CancellationToken::new(), paused: is_paused, woken: Arc::default() };
        let (stop, woken) = (signals.stop.clone(), Arc::clone(&signals.woken));
        let entry = Entry { lease_token, owner, organization, stop, paused, woken, _slot: slot };
        match self.runs().insert(run_id.to_owned(), entry) {
            Some(earlier) => earlier.stop.cancel(),
            None => metrics::gauge!("executor_active_runs").increment(1),
        }
        signals
    }

    /// Removes a claim whose driver has ended.
    pub(super) fn remove(&self, run_id: &str, lease_token: Uuid) {
        let mut runs = self.runs();
        if runs.get(run_id).is_some_and(|entry| entry.lease_token == lease_token) {
            runs.remove(run_id);
            metrics::gauge!("executor_active_runs").decrement(1);
        }
        drop(runs);
        self.ended.send_replace(());
    }

    /// Ids and leases of all runs, or of those among `wanted`.
    pub(super) fn leases(&self, wanted: Option<&[String]>) -> (Vec<String>, Vec<Uuid>) {
        let runs = self.runs();
        let pair = |(run_id, entry): (&String, &Entry)| (run_id.clone(), entry.lease_token);
        match wanted {
            None => runs.iter().map(pair).unzip(),
            Some(wanted) => wanted.iter().filter_map(|run_id| runs.get_key_value(run_id).map(pair)).unzip(),
        }
    }

    /// Notifies the drivers of these claims. `noticed` has the complete state of the claims.
    pub(super) fn notify(&self, noticed: &[ClaimState], run_ids: &[String], lease_tokens: &[Uuid]) {
        let noticed: HashMap<&str, &ClaimState> = noticed.iter().map(|one| (one.run_id.as_str(), one)).collect();
        let runs = self.runs();
        for (run_id, lease_token) in run_ids.iter().zip(lease_tokens) {
            let Some(entry) = runs.get(run_id).filter(|entry| entry.lease_token == *lease_token) else { continue };
            let noticed = noticed.get(run_id.as_str());
            let is_paused = noticed.is_some_and(|noticed| noticed.is_paused);
            entry.paused.send_if_modified(|paused| std::mem::replace(paused, is_paused) != is_paused);
            if noticed.is_some_and(|noticed| noticed.is_lost) {
                entry.stop.cancel();
            }
            if noticed.is_some_and(|noticed| noticed.is_woken) {
                entry.woken.notify_one();
            }
        }
    }

    /// Stops all runs that were claimed under another process id.
    pub(super) fn stop_all_but_of(&self, owner: Option<Uuid>) {
        for entry in self.runs().values().filter(|entry| Some(entry.owner) != owner) {
            entry.stop.cancel();
        }
    }
}

/// Maximum ratio of one organisation's slots to the slots left free: one organisation alone gets seven of eight, two
/// get seven of fifteen each. So a new organisation finds a free slot, however long the runs of the others take.
const SHARE: usize = 7;

/// Shares of organisations in the free slots; see [`ActiveRuns::shares`].
pub(super) struct SlotShares {
    free: usize,
    held: HashMap<OrganizationId, usize>,
    is_shared: bool,
}

impl SlotShares {
    /// Takes a slot for the organisation, if its share allows one more.
    pub(super) fn take(&mut self, organization: &OrganizationId) -> bool {
        let held = self.held.get(organization).copied().unwrap_or_default();
        if self.more(held) == 0 {
            return false;
        }
        self.give(organization);
        true
    }

    /// Counts a slot that the organisation has already got.
    pub(super) fn give(&mut self, organization: &OrganizationId) {
        self.free = self.free.saturating_sub(1);
        *self.held.entry(organization.clone()).or_default() += 1;
    }

    /// Number of further slots for an organisation that holds `held`.
    fn more(&self, held: usize) -> usize {
        if !self.is_shared {
            return self.free;
        }
        let within = (SHARE * self.free).saturating_sub(held) / (SHARE + 1);
        // An organisation without any slot may take the last one.
        within.max(usize::from(held == 0)).min(self.free)
    }

    /// The same limits as parameters of a statement.
    pub(super) fn limits(&self) -> Limits {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let (organization_id, most) =
            self.held.iter().map(|(organization, held)| (organization.to_string(), number(self.more(*held)))).unzip();
        Limits { organization_id, most, of_others: number(self.more(0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn organization(id: &str) -> OrganizationId {
        OrganizationId::parse(id).expect("an id")
    }

    /// Number of slots that each organisation gets, in this order, out of `limit`.
    fn taken(limit: usize, is_shared: bool, order: &[&str]) -> Vec<usize> {
        let mut shares = SlotShares { free: limit, held: HashMap::new(), is_shared };
        order
            .iter()
            .map(|id| {
                let organization = organization(id);
                std::iter::from_fn(|| shares.take(&organization).then_some(())).count()
            })
            .collect()
    }

    #[test]
    fn a_busy_organisation_leaves_slots_to_others_and_alone_takes_all() {
        assert_eq!(taken(256, false, &["a", "b"]), [256, 0]);
        assert_eq!(taken(256, true, &["a", "b", "c"]), [224, 28, 3]);
        assert_eq!(taken(16, true, &["a", "b", "c"]), [14, 1, 1]);
        assert_eq!(taken(4, true, &["a", "b", "c"]), [3, 1, 0]);
        assert_eq!(taken(1, true, &["a", "b"]), [1, 0]);
    }

    #[test]
    fn a_statement_gets_the_same_limits() {
        let mut shares = SlotShares { free: 16, held: HashMap::new(), is_shared: true };
        let a = organization("a");
        (0..8).for_each(|_| shares.give(&a));
        let Limits { organization_id, most, of_others } = shares.limits();
        assert_eq!((organization_id, most, of_others), (vec!["a".to_owned()], vec![6], 7));
        assert_eq!(std::iter::from_fn(|| shares.take(&a).then_some(())).count(), 6);
    }

    #[test]
    fn a_new_claim_voids_the_old_one_and_is_not_removed_by_its_end() {
        let active = ActiveRuns::new(2);
        let slot = || active.free(1).expect("a free slot");
        let (first, second, owner) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
        let old = active.add("r", first, owner, organization("a"), slot()).stop;
        let RunSignals { stop: new, paused, .. } = active.add("r", second, owner, organization("a"), slot());
        assert!(old.is_cancelled() && !new.is_cancelled());
        active.remove("r", first);
        assert_eq!(active.free(9).map(|slots| slots.count()), Some(1));
        let noticed = |is_lost| ClaimState { run_id: "r".to_owned(), is_lost, is_paused: true, is_woken: true };
        active.notify(&[noticed(true)], &["r".to_owned()], &[first]);
        assert!(!*paused.borrow());
        active.notify(&[noticed(false)], &["r".to_owned()], &[second]);
        assert!(*paused.borrow());
        active.notify(&[], &["r".to_owned()], &[second]);
        assert!(!*paused.borrow());
        active.stop_all_but_of(Some(owner));
        assert!(!new.is_cancelled());
        active.stop_all_but_of(None);
        assert!(new.is_cancelled());
        active.remove("r", second);
        assert_eq!(active.free(9).map(|slots| slots.count()), Some(2));
    }

    #[tokio::test]
    async fn a_waiter_gets_a_free_slot_before_a_caller_that_only_checks() {
        let active = ActiveRuns::new(1);
        let slots = active.free(9).expect("a free slot");
        let mut waiting = std::pin::pin!(active.next_free(9));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(slots);
        assert!(active.free(9).is_none());
        assert_eq!(waiting.await.count(), 1);
    }
}
