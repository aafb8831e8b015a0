//! Permits: how much of something scarce is held at a time, in all and by each holder.
//!
//! Every limit is told of by its scope, so that an answer can say whose it is. An entry exists for as long as its holder
//! holds something, so the table is no larger than what is held.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

/// Hashes holders; the same for all permits, so that a holder is made once for a request.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// What a holder is.
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

/// Somebody who holds permits. Of 64 bits, so that no two share a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    scope: Scope,
    hash: u64,
}

impl Holder {
    /// The holder that `name` tells from others of its scope.
    pub fn new(scope: Scope, name: impl Hash) -> Self {
        Self { scope, hash: HASHER.hash_one((scope, name)) }
    }
}

/// The holders that a permit counts for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Holders([Option<Holder>; 3]);

impl Holders {
    /// These two.
    #[must_use]
    pub fn new(first: Holder, second: Option<Holder>) -> Self {
        Self([Some(first), second, None])
    }

    /// And an agent.
    #[must_use]
    pub fn with_agent(self, agent: impl Hash) -> Self {
        let [first, second, _] = self.0;
        Self([first, second, Some(Holder::new(Scope::Agent, agent))])
    }

    fn iter(&self) -> impl Iterator<Item = Holder> {
        self.0.into_iter().flatten()
    }
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exhausted {
    /// A holder's own.
    Holder(Scope),
    /// That of all together.
    All,
}

/// The limits of one resource. Cheap to clone.
#[derive(Clone)]
pub struct Permits(Arc<Shared>);

struct Shared {
    all: u64,
    most: HashMap<Scope, u64>,
    held: Mutex<Held>,
    released: Notify,
}

#[derive(Default)]
struct Held {
    all: u64,
    by: HashMap<u64, u64>,
}

impl Permits {
    /// So many in all, and so many for one holder of each scope. A scope that is not named has no limit of its own.
    #[must_use]
    pub fn new<const N: usize>(all: u64, most: [(Scope, u64); N]) -> Self {
        let shared = Shared { all, most: most.into(), held: Mutex::default(), released: Notify::new() };
        Self(Arc::new(shared))
    }

    /// A permit for so much, or the limit that is in the way.
    pub fn try_take(&self, holders: Holders, amount: u64) -> Result<Permit, Exhausted> {
        let mut permit = Permit { permits: self.clone(), holders, amount: 0 };
        permit.try_grow(amount)?;
        Ok(permit)
    }

    /// A permit for what is held already, whatever the limits are.
    #[must_use]
    pub fn take(&self, holders: Holders, amount: u64) -> Permit {
        let mut permit = Permit { permits: self.clone(), holders, amount: 0 };
        permit.count(&mut self.held(), amount);
        permit
    }

    /// The limit that a permit for so much would run into.
    pub fn check(&self, holders: Holders, amount: u64) -> Result<(), Exhausted> {
        self.fits(&self.held(), holders, amount)
    }

    /// Returns when there is room for so much, which somebody else may take first.
    pub async fn room(&self, holders: Holders, amount: u64) {
        loop {
            let released = self.0.released.notified();
            tokio::pin!(released);
            // From here on no release is missed.
            released.as_mut().enable();
            if self.check(holders, amount).is_ok() {
                return;
            }
            released.await;
        }
    }

    /// How much is held in all.
    #[must_use]
    pub fn held_by_all(&self) -> u64 {
        self.held().all
    }

    fn fits(&self, held: &Held, holders: Holders, amount: u64) -> Result<(), Exhausted> {
        for Holder { scope, hash } in holders.iter() {
            let of_holder = held.by.get(&hash).copied().unwrap_or_default();
            if self.0.most.get(&scope).is_some_and(|most| of_holder.saturating_add(amount) > *most) {
                return Err(Exhausted::Holder(scope));
            }
        }
        if held.all.saturating_add(amount) > self.0.all { Err(Exhausted::All) } else { Ok(()) }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What somebody holds. Given back when it is dropped.
pub struct Permit {
    permits: Permits,
    holders: Holders,
    amount: u64,
}

impl Permit {
    /// Takes so much more.
    pub fn try_grow(&mut self, amount: u64) -> Result<(), Exhausted> {
        let permits = self.permits.clone();
        let mut held = permits.held();
        permits.fits(&held, self.holders, amount)?;
        self.count(&mut held, amount);
        Ok(())
    }

    /// Takes so much more as soon as there is room for it.
    pub async fn grow(&mut self, amount: u64) {
        while self.try_grow(amount).is_err() {
            let permits = self.permits.clone();
            permits.room(self.holders, amount).await;
        }
    }

    /// The same, or the limit that is in the way when nothing was given back for so long.
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

    /// Makes it a permit for so much, whatever the limits are.
    pub fn resize(&mut self, amount: u64) {
        match amount.checked_sub(self.amount) {
            Some(more) => {
                let permits = self.permits.clone();
                self.count(&mut permits.held(), more);
            }
            None => self.release(self.amount - amount),
        }
    }

    /// For how much it is.
    #[must_use]
    pub fn amount(&self) -> u64 {
        self.amount
    }

    fn count(&mut self, held: &mut Held, amount: u64) {
        self.amount += amount;
        held.all += amount;
        for holder in self.holders.iter() {
            *held.by.entry(holder.hash).or_default() += amount;
        }
    }

    fn release(&mut self, amount: u64) {
        if amount == 0 {
            return;
        }
        self.amount -= amount;
        let mut held = self.permits.held();
        held.all -= amount;
        for holder in self.holders.iter() {
            if let Some(of_holder) = held.by.get_mut(&holder.hash) {
                *of_holder -= amount;
                if *of_holder == 0 {
                    held.by.remove(&holder.hash);
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

    fn of(caller: &str, organization: &str) -> Holders {
        Holders::new(Holder::new(Scope::Caller, caller), Some(Holder::new(Scope::Organization, organization)))
    }

    #[test]
    fn each_limit_is_told_by_its_scope_and_what_is_dropped_is_free_again() {
        let permits = Permits::new(10, [(Scope::Caller, 3), (Scope::Organization, 5)]);
        let first = permits.try_take(of("a", "x"), 3).expect("room");
        assert_eq!(permits.check(of("a", "x"), 1), Err(Exhausted::Holder(Scope::Caller)));
        let second = permits.try_take(of("b", "x"), 2).expect("room");
        assert_eq!(permits.check(of("c", "x"), 1), Err(Exhausted::Holder(Scope::Organization)));
        let third = permits.try_take(of("a", "y"), 1);
        assert_eq!(third.err(), Some(Exhausted::Holder(Scope::Caller)), "a caller is the same wherever it is from");
        let _fourth = permits.try_take(of("d", "y"), 3).expect("room");
        let mut fifth = permits.try_take(Holders::default(), 1).expect("room");
        assert_eq!(fifth.try_grow(2), Err(Exhausted::All));
        drop(first);
        assert_eq!(fifth.try_grow(2), Ok(()));
        drop((second, fifth));
        assert_eq!(permits.held_by_all(), 3);
        assert_eq!(permits.held().by.len(), 2);
    }

    #[tokio::test]
    async fn whoever_waits_for_room_goes_on_when_there_is() {
        let permits = Permits::new(2, []);
        let held = permits.take(Holders::default(), 3);
        let mut more = permits.take(Holders::default(), 0);
        let mut grown = Box::pin(more.grow(1));
        assert!((&mut grown).now_or_never().is_none());
        drop(held);
        grown.await;
    }
}
