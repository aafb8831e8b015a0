//! sqlx executor of the pool: single statements, each on a connection of its own and with a time-out.

use std::{io, pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use sqlx::{
    Describe, Either, Execute, Executor, Postgres, SqlStr,
    postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};
use tokio::time::timeout;

use super::Pool;
use crate::db::READ_ONLY;

/// Time-out of a statement. The server cancels it earlier, so no answer can come afterwards.
const STATEMENT_LIMIT: Duration = Duration::from_secs(6);

impl Pool {
    /// Bounds a statement. When the time-out drops it, its connection is closed too.
    async fn bounded<T>(&self, statement: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
        match timeout(STATEMENT_LIMIT, self.unless_silent(statement)).await {
            Ok(Err(sqlx::Error::Database(error))) if error.code().as_deref() == Some(READ_ONLY) => {
                self.note_read_only();
                Err(sqlx::Error::Database(error))
            }
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 6 s").into()),
        }
    }
}

type BoxFuture<'e, T> = Pin<Box<dyn Future<Output = Result<T, sqlx::Error>> + Send + 'e>>;
type BoxStream<'e, T> = Pin<Box<dyn Stream<Item = Result<T, sqlx::Error>> + Send + 'e>>;

impl<'p> Executor<'p> for &'p Pool {
    type Database = Postgres;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, PgQueryResult>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let mut connection = self.acquire_briefly().await?;
            self.bounded(connection.execute(query)).await
        })
    }

    /// Collects all rows first. Callers that need a stream acquire a connection.
    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Either<PgQueryResult, PgRow>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let gathered = async move {
            let mut connection = self.acquire_briefly().await?;
            self.bounded(connection.fetch_many(query).try_collect::<Vec<_>>()).await
        };
        stream::once(gathered).map_ok(|all| stream::iter(all.into_iter().map(Ok))).try_flatten().boxed()
    }

    fn fetch_all<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Vec<PgRow>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let mut connection = self.acquire_briefly().await?;
            self.bounded(connection.fetch_all(query)).await
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Option<PgRow>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let mut connection = self.acquire_briefly().await?;
            self.bounded(connection.fetch_optional(query)).await
        })
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, PgStatement>
    where
        'p: 'e,
    {
        Box::pin(async move {
            let mut connection = self.acquire_briefly().await?;
            self.bounded(connection.prepare_with(sql, parameters)).await
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Describe<Postgres>>
    where
        'p: 'e,
    {
        Box::pin(async move {
            let mut connection = self.acquire_briefly().await?;
            self.bounded(connection.describe(sql)).await
        })
    }
}
