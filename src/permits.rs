//! Permits: limits on a scarce resource, in all and for each owner.
//!
//! A limit is reported by its scope, so that an answer can name it. An entry exists while its owner holds a permit, so
//! the table is no larger than the number of owners with permits.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

/// Hash of owners; the same for all permits, so that the owner is hashed once for each request.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Scope: the kind of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One API key with its tokens, or one subject of tokens.
    Caller,
    /// All callers of an organisation; while authentication is off, all requests from an address.
    Organization,
    /// Requests without credentials from one address.
    Address,
    /// All requests without credentials.
    Anonymous,
    /// One agent.
    Agent,
}

/// Owner of permits, as a hash of 64 bits, so that no two owners have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    scope: Scope,
    hash: u64,
}

impl Owner {
    /// The owner with this name in its scope.
    pub fn new(scope: Scope, name: impl Hash) -> Self {
        Self { scope, hash: HASHER.hash_one((scope, name)) }
    }
}

/// Owners that a permit counts for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Owners([Option<Owner>; 3]);

impl Owners {
    /// One or two owners.
    #[must_use]
    pub fn new(first: Owner, second: Option<Owner>) -> Self {
        Self([Some(first), second, None])
    }

    /// The same owners and an agent.
    #[must_use]
    pub fn with_agent(self, agent: impl Hash) -> Self {
        let [first, second, _] = self.0;
        Self([first, second, Some(Owner::new(Scope::Agent, agent))])
    }

    fn iter(&self) -> impl Iterator<Item = Owner> {
        self.0.into_iter().flatten()
    }
}

/// Limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exhausted {
    /// The limit of one owner in this scope.
    Owner(Scope),
    /// The limit of all owners together.
    All,
}

/// Limit of one owner in a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// This amount.
    Amount(u64),
    /// So many times the amount that nobody holds, as in the dynamic thresholds of A. K. Choudhury and E. L. Hahne
    /// (IEEE/ACM Transactions on Networking 6, 1998). One owner alone gets `n / (n + 1)` of all, several get equal
    /// parts, and there is always room for another one.
    TimesFree(u64),
}

/// Limits of one resource. Cheap to clone.
#[derive(Clone)]
pub struct Permits(Arc<Shared>);

struct Shared {
    all: u64,
    most: HashMap<Scope, Limit>,
    held: Mutex<Held>,
    released: Notify,
}

#[derive(Default)]
struct Held {
    all: u64,
    by: HashMap<u64, u64>,
}

impl Permits {
    /// Limits: `all` in total, and `most` for one owner of each scope. A scope that is not named has no limit of its
    /// own.
    #[must_use]
    pub fn new<const N: usize>(all: u64, most: [(Scope, u64); N]) -> Self {
        Self::with_limits(all, most.map(|(scope, amount)| (scope, Limit::Amount(amount))))
    }

    /// The same with limits of other kinds.
    #[must_use]
    pub fn with_limits<const N: usize>(all: u64, most: [(Scope, Limit); N]) -> Self {
        let shared = Shared { all, most: most.into(), held: Mutex::default(), released: Notify::new() };
        Self(Arc::new(shared))
    }

    /// A permit for this amount, or the limit that prevents it.
    pub fn try_take(&self, owners: Owners, amount: u64) -> Result<Permit, Exhausted> {
        let mut permit = Permit { permits: self.clone(), owners, amount: 0 };
        permit.try_grow(amount)?;
        Ok(permit)
    }

    /// A permit for what is held already, whatever the limits are.
    #[must_use]
    pub fn take(&self, owners: Owners, amount: u64) -> Permit {
        let mut permit = Permit { permits: self.clone(), owners, amount: 0 };
        permit.count(&mut self.held(), amount);
        permit
    }

    /// Checks whether a permit for this amount is possible. The error is the limit that prevents it.
    pub fn check(&self, owners: Owners, amount: u64) -> Result<(), Exhausted> {
        self.fits(&self.held(), owners, amount)
    }

    /// Waits until there is room for this amount. Another owner may take it first.
    pub async fn room(&self, owners: Owners, amount: u64) {
        loop {
            let released = self.0.released.notified();
            tokio::pin!(released);
            // From here on no release is missed.
            released.as_mut().enable();
            if self.check(owners, amount).is_ok() {
                return;
            }
            released.await;
        }
    }

    /// Total amount held.
    #[must_use]
    pub fn held_by_all(&self) -> u64 {
        self.held().all
    }

    fn fits(&self, held: &Held, owners: Owners, amount: u64) -> Result<(), Exhausted> {
        if held.all.saturating_add(amount) > self.0.all {
            return Err(Exhausted::All);
        }
        for Owner { scope, hash } in owners.iter() {
            let most = match self.0.most.get(&scope) {
                Some(Limit::Amount(most)) => *most,
                Some(Limit::TimesFree(times)) => self.0.all.saturating_sub(held.all).saturating_mul(*times),
                None => continue,
            };
            let of_holder = held.by.get(&hash).copied().unwrap_or_default();
            if of_holder.saturating_add(amount) > most {
                return Err(Exhausted::Owner(scope));
            }
        }
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Permit for an amount. It is released when it is dropped.
pub struct Permit {
    permits: Permits,
    owners: Owners,
    amount: u64,
}

impl Permit {
    /// Takes this additional amount, or returns the limit that prevents it.
    pub fn try_grow(&mut self, amount: u64) -> Result<(), Exhausted> {
        let permits = self.permits.clone();
        let mut held = permits.held();
        permits.fits(&held, self.owners, amount)?;
        self.count(&mut held, amount);
        Ok(())
    }

    /// Takes this additional amount as soon as there is room for it.
    pub async fn grow(&mut self, amount: u64) {
        while self.try_grow(amount).is_err() {
            let permits = self.permits.clone();
            permits.room(self.owners, amount).await;
        }
    }

    /// The same, or the limit that prevents it if nothing was released within `patience`.
    pub async fn grow_patiently(&mut self, amount: u64, patience: Duration) -> Result<(), Exhausted> {
        let permits = self.permits.clone();
        loop {
            let released = permits.0.released.notified();
            tokio::pin!(released);
            // From here on no release is missed.
            released.as_mut().enable();
            let Err(limit) = self.try_grow(amount) else { return Ok(()) };
            if tokio::time::timeout(patience, released).await.is_err() {
                return Err(limit);
            }
        }
    }

    /// Sets the amount, whatever the limits are.
    pub fn resize(&mut self, amount: u64) {
        match amount.checked_sub(self.amount) {
            Some(more) => {
                let permits = self.permits.clone();
                self.count(&mut permits.held(), more);
            }
            None => self.release(self.amount - amount),
        }
    }

    /// Amount of the permit.
    #[must_use]
    pub fn amount(&self) -> u64 {
        self.amount
    }

    fn count(&mut self, held: &mut Held, amount: u64) {
        if amount == 0 {
            // A permit for nothing needs no entry, and would not remove it.
            return;
        }
        self.amount += amount;
        held.all += amount;
        for owner in self.owners.iter() {
            *held.by.entry(owner.hash).or_default() += amount;
        }
    }

    fn release(&mut self, amount: u64) {
        if amount == 0 {
            return;
        }
        self.amount -= amount;
        let mut held = self.permits.held();
        held.all -= amount;
        for owner in self.owners.iter() {
            if let Some(of_holder) = held.by.get_mut(&owner.hash) {
                *of_holder -= amount;
                if *of_holder == 0 {
                    held.by.remove(&owner.hash);
                }
            }
        }
        drop(held);
        self.permits.0.released.notify_waiters();
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("amount", &self.amount).finish_non_exhaustive()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.release(self.amount);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn of(caller: &str, organization: &str) -> Owners {
        Owners::new(Owner::new(Scope::Caller, caller), Some(Owner::new(Scope::Organization, organization)))
    }

    #[test]
    fn each_limit_is_reported_by_its_scope_and_a_dropped_permit_is_free_again() {
        let permits = Permits::new(10, [(Scope::Caller, 3), (Scope::Organization, 5)]);
        let first = permits.try_take(of("a", "x"), 3).expect("room");
        assert_eq!(permits.check(of("a", "x"), 1), Err(Exhausted::Owner(Scope::Caller)));
        let second = permits.try_take(of("b", "x"), 2).expect("room");
        assert_eq!(permits.check(of("c", "x"), 1), Err(Exhausted::Owner(Scope::Organization)));
        let third = permits.try_take(of("a", "y"), 1);
        assert_eq!(third.err(), Some(Exhausted::Owner(Scope::Caller)), "a caller is the same wherever it is from");
        let _fourth = permits.try_take(of("d", "y"), 3).expect("room");
        let mut fifth = permits.try_take(Owners::default(), 1).expect("room");
        assert_eq!(fifth.try_grow(2), Err(Exhausted::All));
        drop(first);
        assert_eq!(fifth.try_grow(2), Ok(()));
        drop((second, fifth));
        assert_eq!(permits.held_by_all(), 3);
        assert_eq!(permits.held().by.len(), 2);
    }

    #[test]
    fn a_multiple_of_what_is_free_leaves_room_for_other_owners() {
        let permits = Permits::with_limits(1000, [(Scope::Organization, Limit::TimesFree(3))]);
        let fill = |name: &str| {
            let mut permit = permits.take(of("a", name), 0);
            while permit.try_grow(1).is_ok() {}
            permit
        };
        let first = fill("x");
        assert_eq!(first.amount(), 750);
        let second = fill("y");
        assert_eq!(second.amount(), 188, "three quarters of the rest");
        assert_eq!(permits.check(of("a", "x"), 1), Err(Exhausted::Owner(Scope::Organization)));
        assert_eq!(permits.check(of("a", "z"), 1), Ok(()));
        drop(first);
        assert_eq!(permits.check(of("b", "x"), 1), Ok(()));
    }

    #[test]
    fn a_permit_for_nothing_leaves_no_entry() {
        let permits = Permits::new(10, []);
        let mut permit = permits.take(of("a", "x"), 0);
        assert!(permits.held().by.is_empty());
        permit.try_grow(1).expect("room");
        drop((permit, permits.take(of("b", "y"), 0)));
        assert!(permits.held().by.is_empty());
    }

    #[tokio::test]
    async fn a_waiter_for_room_continues_when_there_is_room() {
        let permits = Permits::new(2, []);
        let held = permits.take(Owners::default(), 3);
        let mut more = permits.take(Owners::default(), 0);
        let mut grown = Box::pin(more.grow(1));
        assert!((&mut grown).now_or_never().is_none());
        drop(held);
        grown.await;
    }
}
