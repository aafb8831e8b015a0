//! Memory for the values of all runs: inputs, answers and outputs. Permits are counted in bytes.
//!
//! A step waits for room before it makes its input and before it reads a large answer, and fails when nothing is given
//! back meanwhile: those who wait may hold it all. What a run keeps for its later steps is counted and never waits, so a
//! run that has its values gets on. Values below [`COUNTED_BYTES`] are neither counted nor wait for anything.

use std::time::Duration;

use crate::{
    access::OrganizationId,
    permits::{Holder, Holders, Permit, Permits, Scope},
};

/// Values of fewer bytes do not count.
pub(super) const COUNTED_BYTES: usize = 64 << 10;
/// Whoever waits for room gives up when nothing was given back for so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a step is told that finds no room.
pub(super) const OUT_OF_MEMORY: &str =
    "the executor is out of memory for it: other inputs and outputs hold what there is (MAX_EXECUTOR_MEMORY_BYTES)";

/// The memory of an executor. Cheap to clone.
#[derive(Clone)]
pub(super) struct Memory {
    permits: Permits,
    patience: Duration,
}

impl Memory {
    /// So many bytes in all, of which one organisation has three quarters at most.
    pub(super) fn new(bytes: u64) -> Self {
        Self { permits: Permits::new(bytes, [(Scope::Organization, bytes / 4 * 3)]), patience: PATIENCE }
    }

    /// What an organisation has of it.
    pub(super) fn of(&self, organization: &OrganizationId) -> Share {
        let holder = Holder::new(Scope::Organization, organization.as_str());
        Share { memory: self.clone(), holders: Holders::new(holder, None) }
    }

    /// Bytes that are held.
    pub(super) fn held(&self) -> u64 {
        self.permits.held_by_all()
    }
}

/// The memory of an organisation.
#[derive(Clone)]
pub(super) struct Share {
    memory: Memory,
    holders: Holders,
}

impl Share {
    /// A permit for a value that is held already.
    pub(super) fn hold(&self, bytes: usize) -> Permit {
        self.memory.permits.take(self.holders, counted(bytes))
    }

    /// How long to wait for room while nothing is given back.
    pub(super) fn patience(&self) -> Duration {
        self.memory.patience
    }

    /// A permit for a value as soon as there is room for it.
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

/// As a permit for a value of so many bytes.
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
    async fn no_organisation_holds_all_and_what_is_given_back_goes_to_who_waits() {
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
    async fn who_waits_for_what_is_not_given_back_is_told_so() {
        let memory = Memory { patience: Duration::ZERO, ..Memory::new(40 << 20) };
        let (a, b) = (share(&memory, "a"), share(&memory, "b"));
        // What is held already is counted, however much it is.
        let held = (a.hold(30 * MIB), b.hold(20 * MIB));
        for share in [&a, &share(&memory, "c")] {
            assert!(share.room(MIB).await.is_err_and(|refusal| refusal.contains("MAX_EXECUTOR_MEMORY_BYTES")));
            assert!(share.room(COUNTED_BYTES - 1).await.is_ok());
        }
        drop(held);
        assert!(a.room(MIB).await.is_ok());
    }
}
