//! Pooled connection, and the transaction on it.
//!
//! A connection returns to the pool only when it is idle: every statement was answered, and no transaction is open. It
//! is closed if this takes more than a second, or if its transaction was about to begin or to be committed. So dropping
//! a future never leaves a transaction to the next user.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use sqlx::{Connection as _, Executor, PgConnection};
use tokio::time::timeout;

use super::{Live, Shared};

/// Time-out for pending answers and for the rollback of an open transaction.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Transaction state of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// There is no transaction.
    None,
    /// BEGIN or COMMIT is in flight, so the state is unknown.
    Torn,
    /// A transaction is open. It is rolled back unless it is committed.
    Open,
}

/// Pooled connection. It is released when it is dropped, if it is idle.
pub struct PooledConnection {
    /// Present until it is dropped.
    pub(super) live: Option<Live>,
    pub(super) pool: Arc<Shared>,
    phase: Phase,
    /// See [`super::Pool::acquire_own`].
    pub(super) is_own: bool,
}

impl PooledConnection {
    pub(super) fn new(pool: Arc<Shared>, live: Live) -> Self {
        Self { live: Some(live), pool, phase: Phase::None, is_own: false }
    }

    /// Begins a transaction. Neither a savepoint nor sqlx's own transaction may be used on these connections: if it is
    /// dropped while BEGIN is in flight, the transaction stays open.
    pub async fn begin(&mut self) -> Result<(), sqlx::Error> {
        self.phase = Phase::Torn;
        (**self).execute("BEGIN").await?;
        self.phase = Phase::Open;
        Ok(())
    }

    /// Begins a transaction that keeps the connection until it ends.
    pub async fn into_transaction(mut self) -> Result<Transaction, sqlx::Error> {
        self.begin().await?;
        Ok(Transaction(self))
    }

    /// Commits the transaction.
    pub async fn commit(&mut self) -> Result<(), sqlx::Error> {
        self.end("COMMIT").await
    }

    /// Rolls the transaction back.
    pub async fn rollback(&mut self) -> Result<(), sqlx::Error> {
        self.end("ROLLBACK").await
    }

    async fn end(&mut self, statement: &'static str) -> Result<(), sqlx::Error> {
        self.phase = Phase::Torn;
        let ended = (**self).execute(statement).await;
        // Whatever the server answers to these statements, the transaction has ended.
        if matches!(ended, Ok(_) | Err(sqlx::Error::Database(_))) {
            self.phase = Phase::None;
        }
        ended.map(|_| ())
    }

    /// Closes the connection at once and frees its slot.
    pub fn discard(mut self) {
        if let Some(live) = self.live.take() {
            drop(live);
            self.pool.lost();
        }
    }
}

impl Deref for PooledConnection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.live.as_ref().expect("taken only when it is dropped").connection
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.live.as_mut().expect("taken only when it is dropped").connection
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        let Some(mut live) = self.live.take() else { return };
        live.note.end();
        // Returns at once if nothing is pending. Otherwise an answer is still to come, such as the rest of one that was
        // an error, or the end of the connection.
        let rest = live.connection.flush().now_or_never();
        let is_lost = self.phase == Phase::Torn || matches!(rest, Some(Err(_)));
        match tokio::runtime::Handle::try_current() {
            Ok(_) if rest.is_some() && !is_lost && self.phase == Phase::None => {
                if self.is_own {
                    self.pool.close_gracefully(live);
                } else {
                    self.pool.release(live);
                }
            }
            Ok(runtime) if !is_lost => {
                // The state is torn until it is settled: a runtime that ends drops the task at once.
                let (pool, is_own) = (Arc::clone(&self.pool), self.is_own);
                let unsettled = Self { live: Some(live), pool, phase: Phase::Torn, is_own };
                runtime.spawn(settle(unsettled, self.phase == Phase::Open));
            }
            _ => {
                drop(live);
                self.pool.lost();
            }
        }
    }
}

/// Waits until the connection is idle, within the time-out, and releases it.
async fn settle(mut connection: PooledConnection, is_in_transaction: bool) {
    let settled = timeout(SETTLE_TIMEOUT, async {
        connection.flush().await?;
        if is_in_transaction { connection.rollback().await } else { Ok(()) }
    })
    .await;
    if matches!(settled, Ok(Ok(()))) {
        connection.phase = Phase::None;
    }
}

/// Transaction, which is rolled back when it is dropped.
pub struct Transaction(pub(super) PooledConnection);

impl Transaction {
    /// Commits the transaction.
    pub async fn commit(mut self) -> Result<(), sqlx::Error> {
        self.0.commit().await
    }

    /// Rolls the transaction back. Unlike a drop, it returns after the rows are unlocked.
    pub async fn rollback(mut self) -> Result<(), sqlx::Error> {
        self.0.rollback().await
    }
}

impl Deref for Transaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}
