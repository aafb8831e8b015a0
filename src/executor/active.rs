//! The runs that this process drives now, and how each is told to stop.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// One claim of a run.
struct Entry {
    lease_token: Uuid,
    owner: Uuid,
    stop: CancellationToken,
}

/// The runs under way, up to a limit.
pub(super) struct Active {
    runs: Mutex<HashMap<String, Entry>>,
    limit: usize,
    freed: Notify,
}

impl Active {
    pub(super) fn new(limit: usize) -> Self {
        Self { runs: Mutex::default(), limit, freed: Notify::new() }
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many more may be claimed.
    pub(super) fn free(&self) -> usize {
        self.limit.saturating_sub(self.runs().len())
    }

    /// Waits until a run has ended since the last call.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Adds a claim that `owner` made. What it returns is cancelled when the run is to be left alone. An earlier
    /// claim of the same run is void.
    pub(super) fn add(&self, run_id: &str, lease_token: Uuid, owner: Uuid) -> CancellationToken {
        let stop = CancellationToken::new();
        let entry = Entry { lease_token, owner, stop: stop.clone() };
        match self.runs().insert(run_id.to_owned(), entry) {
            Some(earlier) => earlier.stop.cancel(),
            None => metrics::gauge!("executor_active_runs").increment(1),
        }
        stop
    }

    /// Takes a claim out whose driving has ended.
    pub(super) fn remove(&self, run_id: &str, lease_token: Uuid) {
        let mut runs = self.runs();
        if runs.get(run_id).is_some_and(|entry| entry.lease_token == lease_token) {
            runs.remove(run_id);
            metrics::gauge!("executor_active_runs").decrement(1);
        }
        drop(runs);
        self.freed.notify_one();
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

    /// Stops runs that were found to be no longer held under these leases.
    pub(super) fn stop(&self, lost: &[String], run_ids: &[String], lease_tokens: &[Uuid]) {
        let runs = self.runs();
        for (run_id, lease_token) in run_ids.iter().zip(lease_tokens).filter(|(run_id, _)| lost.contains(run_id)) {
            if let Some(entry) = runs.get(run_id).filter(|entry| entry.lease_token == *lease_token) {
                entry.stop.cancel();
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
        let (first, second, owner) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
        let old = active.add("r", first, owner);
        let new = active.add("r", second, owner);
        assert!(old.is_cancelled() && !new.is_cancelled());
        active.remove("r", first);
        assert_eq!(active.free(), 1);
        active.stop(&["r".to_owned()], &["r".to_owned()], &[first]);
        active.stop_all_but_of(Some(owner));
        assert!(!new.is_cancelled());
        active.stop_all_but_of(None);
        assert!(new.is_cancelled());
        active.remove("r", second);
        assert_eq!(active.free(), 2);
    }
}
