//! Connection of a task that writes batches: prepared for its statements, and kept from the first one on.

use std::time::Duration;

use crate::db;

/// Connection of one task.
pub(super) struct OwnConnection {
    pool: db::Pool,
    statement_timeout: Duration,
    kept: Option<db::PooledConnection>,
}

impl OwnConnection {
    pub(super) fn new(pool: db::Pool, statement_timeout: Duration) -> Self {
        Self { pool, statement_timeout, kept: None }
    }

    /// Takes the connection for a statement, and opens it if there is none.
    pub(super) async fn take(&mut self) -> Result<db::PooledConnection, db::Error> {
        if let Some(connection) = self.kept.take() {
            return Ok(connection);
        }
        let (pool, timeout) = (self.pool.clone(), self.statement_timeout);
        db::bounded(async move {
            let mut connection = pool.acquire_own().await?;
            db::executions::prepare_session(&mut connection, timeout).await?;
            Ok(connection)
        })
        .await
    }

    /// Keeps the connection after a statement with this result. After some errors its state is unknown; then it is
    /// closed, and the next statement uses another one.
    pub(super) fn keep<T>(&mut self, connection: db::PooledConnection, result: &Result<T, db::Error>) {
        let is_known = !matches!(result, Err(db::Error::Unavailable(_) | db::Error::Bug(_)));
        self.kept = Some(connection).filter(|_| is_known);
    }

    /// Closes the connection.
    pub(super) fn close(&mut self) {
        self.kept = None;
    }
}
