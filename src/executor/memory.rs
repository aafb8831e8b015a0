//! Memory limit for the values of all runs: inputs, answers and outputs. Permits are counted in bytes.
//!
//! A step waits for memory before it resolves its input and before it reads a large answer. It fails if nothing is
//! released meanwhile, since the waiting steps may hold all of the memory. Outputs that a run keeps for later steps are
//! counted and never wait, so a run that has its values makes progress. Values below [`COUNTED_BYTES`] are neither
//! counted nor wait.

use std::time::Duration;

use crate::{
    access::OrganizationId,
    permits::{Owner, Owners, Permit, Permits, Scope},
};

/// Size from which on values are counted.
pub(super) const COUNTED_BYTES: usize = 64 << 10;
/// Maximum wait for memory while none is released.
const PATIENCE: Duration = Duration::from_secs(30);

/// Error of a step for which there is no memory.
pub(super) const OUT_OF_MEMORY: &str =
    "the executor has no memory left for this step: other inputs and outputs use all of it (MAX_EXECUTOR_MEMORY_BYTES)";

/// Memory of an executor. Cheap to clone.
#[derive(Clone)]
pub(super) struct Memory {
    permits: Permits,
    patience: Duration,
}

impl Memory {
    /// A limit of `bytes` in all, of which one organisation may have three quarters.
    pub(super) fn new(bytes: u64) -> Self {
        Self { permits: Permits::new(bytes, [(Scope::Organization, bytes / 4 * 3)]), patience: PATIENCE }
    }

    /// Share of an organisation.
    pub(super) fn of(&self, organization: &OrganizationId) -> Share {
        let owner = Owner::new(Scope::Organization, organization.as_str());
        Share { memory: self.clone(), owners: Owners::new(owner, None) }
    }

    /// Number of bytes held.
    pub(super) fn held(&self) -> u64 {
        self.permits.held_by_all()
    }
}

/// Memory of one organisation.
#[derive(Clone)]
pub(super) struct Share {
    memory: Memory,
    owners: Owners,
}

impl Share {
    /// Permit for a value that is already in memory.
    pub(super) fn hold(&self, bytes: usize) -> Permit {
        self.memory.permits.take(self.owners, counted(bytes))
    }

    /// Maximum wait for memory while none is released.
    pub(super) fn patience(&self) -> Duration {
        self.memory.patience
    }

    /// Permit for a value, as soon as there is memory for it.
    pub(super) async fn room(&self, bytes: usize) -> Result<Permit, String> {
        let mut permit = self.hold(0);
        match counted(bytes) {
            0 => Ok(permit),
            bytes => permit
                .grow_patiently(bytes, self.patience())
                .await
                .map(|()| permit)
                .map_err(|_| OUT_OF_MEMORY.to_owned()),
        }
    }
}

/// Permit amount for a value of that number of bytes.
pub(super) fn counted(bytes: usize) -> u64 {
    if bytes < COUNTED_BYTES { 0 } else { u64::try_from(bytes).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const MIB: usize = 1 << 20;

    fn share(memory: &Memory, organization: &str) -> Share {
        memory.of(&OrganizationId::parse(organization).expect("an id"))
    }

    #[tokio::test]
    async fn no_organisation_holds_all_and_released_memory_goes_to_a_waiter() {
        let memory = Memory::new(40 << 20);
        let (a, b) = (share(&memory, "a"), share(&memory, "b"));
        let first = a.room(20 * MIB).now_or_never().expect("room").expect("room");
        let mut second = Box::pin(a.room(11 * MIB));
        assert!((&mut second).now_or_never().is_none(), "more than three quarters");
        assert_eq!(a.room(COUNTED_BYTES - 1).await.expect("no large value").amount(), 0);
        let other = b.room(10 * MIB).now_or_never().expect("room").expect("room");
        assert_eq!(memory.held(), 30 << 20);
        drop(first);
        assert_eq!(second.await.expect("room").amount(), 11 << 20);
        drop(other);
        assert_eq!(memory.held(), 0);
    }

    #[tokio::test]
    async fn a_waiter_fails_when_no_memory_is_released() {
        let memory = Memory { patience: Duration::ZERO, ..Memory::new(40 << 20) };
        let (a, b) = (share(&memory, "a"), share(&memory, "b"));
        // Values that are already in memory are counted, whatever their size.
        let held = (a.hold(30 * MIB), b.hold(20 * MIB));
        for share in [&a, &share(&memory, "c")] {
            assert!(share.room(MIB).await.is_err_and(|refusal| refusal.contains("MAX_EXECUTOR_MEMORY_BYTES")));
            assert!(share.room(COUNTED_BYTES - 1).await.is_ok());
        }
        drop(held);
        assert!(a.room(MIB).await.is_ok());
    }
}
