//! The runs that this process drives now, up to a limit, and how each is told what happens to it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::db::executions::Noticed;

/// One claim of a run.
struct Entry {
    lease_token: Uuid,
    owner: Uuid,
    stop: CancellationToken,
    paused: watch::Sender<bool>,
    woken: Arc<Notify>,
    /// The place that it takes.
    _slot: Slots,
}

/// How a driver is told what happens to its run.
#[derive(Clone)]
pub(super) struct Signals {
    /// The run is to be left alone.
    pub(super) stop: CancellationToken,
    /// No further step is to begin.
    pub(super) paused: watch::Receiver<bool>,
    /// Something has come for the run.
    pub(super) woken: Arc<Notify>,
}

/// Places for runs, which whoever claims has before the claim: so the limit holds, whoever else claims meanwhile.
pub(super) struct Slots(OwnedSemaphorePermit);

impl Slots {
    pub(super) fn count(&self) -> usize {
        self.0.num_permits()
    }

    /// One of them, if there is one left.
    pub(super) fn take_one(&mut self) -> Option<Self> {
        self.0.split(1).map(Self)
    }
}

/// The runs under way.
pub(super) struct Active {
    runs: Mutex<HashMap<String, Entry>>,
    slots: Arc<Semaphore>,
}

impl Active {
    pub(super) fn new(limit: usize) -> Self {
        Self { runs: Mutex::default(), slots: Arc::new(Semaphore::new(limit)) }
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Free places, so many at most; `None` if there is none. Those that [`Self::next_free`] waits for are not free.
    pub(super) fn free(&self, at_most: usize) -> Option<Slots> {
        loop {
            let count = self.slots.available_permits().min(at_most);
            let wanted = u32::try_from(count).ok().filter(|count| *count > 0)?;
            // Somebody may have been faster.
            if let Ok(permit) = Arc::clone(&self.slots).try_acquire_many_owned(wanted) {
                return Some(Slots(permit));
            }
        }
    }

    /// Waits for the next place that gets free, and takes with it what is free, so many at most. Of those who wait, each
    /// gets one in turn.
    pub(super) async fn next_free(&self, at_most: usize) -> Slots {
        let permit = Arc::clone(&self.slots).acquire_owned().await;
        let mut slots = Slots(permit.expect("the semaphore is never closed"));
        if let Some(Slots(more)) = self.free(at_most - 1) {
            slots.0.merge(more);
        }
        slots
    }

    /// Adds a claim that `owner` made. An earlier claim of the same run is void.
    pub(super) fn add(&self, run_id: &str, lease_token: Uuid, owner: Uuid, slot: Slots) -> Signals {
        let (paused, is_paused) = watch::channel(false);
        let signals = Signals { stop: CancellationToken::new(), paused: is_paused, woken: Arc::default() };
        let (stop, woken) = (signals.stop.clone(), Arc::clone(&signals.woken));
        let entry = Entry { lease_token, owner, stop, paused, woken, _slot: slot };
        match self.runs().insert(run_id.to_owned(), entry) {
            Some(earlier) => earlier.stop.cancel(),
            None => metrics::gauge!("executor_active_runs").increment(1),
        }
        signals
    }

    /// Takes a claim out whose driving has ended.
    pub(super) fn remove(&self, run_id: &str, lease_token: Uuid) {
        let mut runs = self.runs();
        if runs.get(run_id).is_some_and(|entry| entry.lease_token == lease_token) {
            runs.remove(run_id);
            metrics::gauge!("executor_active_runs").decrement(1);
        }
    }

    /// The ids and leases of all runs, or of those among `wanted`.
    pub(super) fn leases(&self, wanted: Option<&[String]>) -> (Vec<String>, Vec<Uuid>) {
        let runs = self.runs();
        let pair = |(run_id, entry): (&String, &Entry)| (run_id.clone(), entry.lease_token);
        match wanted {
            None => runs.iter().map(pair).unzip(),
            Some(wanted) => wanted.iter().filter_map(|run_id| runs.get_key_value(run_id).map(pair)).unzip(),
        }
    }

    /// Tells the drivers of these claims, of which all that has happened is given, what has happened to them.
    pub(super) fn tell(&self, noticed: &[Noticed], run_ids: &[String], lease_tokens: &[Uuid]) {
        let noticed: HashMap<&str, &Noticed> = noticed.iter().map(|one| (one.run_id.as_str(), one)).collect();
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

    /// Stops all runs that another id than this one claimed.
    pub(super) fn stop_all_but_of(&self, owner: Option<Uuid>) {
        for entry in self.runs().values().filter(|entry| Some(entry.owner) != owner) {
            entry.stop.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_claim_voids_the_old_one_and_is_not_removed_by_its_end() {
        let active = Active::new(2);
        let slot = || active.free(1).expect("a free place");
        let (first, second, owner) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
        let old = active.add("r", first, owner, slot()).stop;
        let Signals { stop: new, paused, .. } = active.add("r", second, owner, slot());
        assert!(old.is_cancelled() && !new.is_cancelled());
        active.remove("r", first);
        assert_eq!(active.free(9).map(|slots| slots.count()), Some(1));
        let noticed = |is_lost| Noticed { run_id: "r".to_owned(), is_lost, is_paused: true, is_woken: true };
        active.tell(&[noticed(true)], &["r".to_owned()], &[first]);
        assert!(!*paused.borrow());
        active.tell(&[noticed(false)], &["r".to_owned()], &[second]);
        assert!(*paused.borrow());
        active.tell(&[], &["r".to_owned()], &[second]);
        assert!(!*paused.borrow());
        active.stop_all_but_of(Some(owner));
        assert!(!new.is_cancelled());
        active.stop_all_but_of(None);
        assert!(new.is_cancelled());
        active.remove("r", second);
        assert_eq!(active.free(9).map(|slots| slots.count()), Some(2));
    }

    #[tokio::test]
    async fn whoever_waits_for_a_place_gets_it_before_those_who_look_whether_there_is_one() {
        let active = Active::new(1);
        let slots = active.free(9).expect("a free place");
        let mut waiting = std::pin::pin!(active.next_free(9));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(slots);
        assert!(active.free(9).is_none());
        assert_eq!(waiting.await.count(), 1);
    }
}
