//! Streamed answers, which are read from the database while they are sent: lists, whose entries may be large, and
//! exports.
//!
//! Reading follows the client: one piece is in memory at a time, and counted ([`super::memory`]). Between two pieces
//! no memory and no database connection is held. If the database becomes unavailable or the caller's credentials end
//! meanwhile, the answer ends early, and the client sees an incomplete transfer.

use std::{collections::VecDeque, sync::Arc};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, future::BoxFuture, stream};
use http::{HeaderValue, header};
use serde::Serialize;
use sqlx::{FromRow, postgres::PgRow};

use super::{app::App, caller::Caller};
use crate::{
    db::{
        self,
        list::{self, EntryId, ListRow, Position},
    },
    input,
};

/// Number of entries of an endless list that are read at a time.
pub const CHUNK: i64 = 500;
/// Content type of most answers.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Reads the entries behind a position.
type ReadBehind<T> = Box<dyn Fn(Position) -> BoxFuture<'static, Result<list::Entries<T>, db::Error>> + Send>;

/// Entries of an answer.
pub struct Entries<T> {
    app: App,
    caller: Caller,
    rows: Vec<T>,
    rest: VecDeque<Vec<EntryId>>,
    /// Position and reader of the entries behind `rest`, if there may be any.
    behind: Option<(Position, ReadBehind<T>)>,
}

/// Reason why an answer ends early.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Db(#[from] Arc<db::Error>),
    #[error("the caller's credentials are no longer valid")]
    CredentialsEnded,
}

impl<T> Entries<T>
where
    T: ListRow + for<'r> FromRow<'r, PgRow> + Send + Unpin + 'static,
{
    /// Entries of one page.
    #[must_use]
    pub fn of_page(app: App, caller: Caller, page: list::Entries<T>) -> Self {
        Self { app, caller, rows: page.rows, rest: page.rest, behind: None }
    }

    /// Entries of a whole list: first `first`, then those that `read` returns.
    pub fn of_list<F>(
        app: App,
        caller: Caller,
        first: list::Entries<T>,
        read: impl Fn(Position) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Result<list::Entries<T>, db::Error>> + Send + 'static,
    {
        let behind: ReadBehind<T> = Box::new(move |position| Box::pin(read(position)));
        let behind = end_of(&first).map(|end| (end, behind));
        Self { behind, ..Self::of_page(app, caller, first) }
    }

    /// Builds the answer. `write` converts some entries at a time to text, and gets a flag for the last ones, which
    /// may be none. A small answer is sent as a whole.
    pub fn answer(
        mut self,
        content_type: HeaderValue,
        mut write: impl FnMut(Vec<T>, bool) -> Vec<u8> + Send + 'static,
    ) -> Response {
        let is_last = self.is_last();
        let text = write(std::mem::take(&mut self.rows), is_last);
        if is_last {
            return ([(header::CONTENT_TYPE, content_type)], text).into_response();
        }
        let head = self.piece(text);
        let pieces = stream::unfold(Some((self, write)), |state| async move {
            let (mut entries, mut write) = state?;
            match entries.read().await {
                Ok(rows) => {
                    let is_last = entries.is_last();
                    let piece = entries.piece(write(rows, is_last));
                    Some((Ok(piece), (!is_last).then_some((entries, write))))
                }
                Err(error) => {
                    let (table, cause) = (T::TABLE.name, &error as &dyn std::error::Error);
                    tracing::warn!(error = cause, table, "an answer was cut off: {error}");
                    Some((Err(error), None))
                }
            }
        });
        let body = Body::from_stream(stream::iter([Ok(head)]).chain(pieces).fuse());
        ([(header::CONTENT_TYPE, content_type)], body).into_response()
    }

    fn is_last(&self) -> bool {
        self.rest.is_empty() && self.behind.is_none()
    }

    fn piece(&self, text: Vec<u8>) -> Bytes {
        self.app.memory.piece(self.caller.owners(), text)
    }

    /// Reads the next entries, once the client has taken the previous ones.
    async fn read(&mut self) -> Result<Vec<T>, Broken> {
        let (memory, owners) = (&self.app.memory, self.caller.owners());
        memory.room_for_piece(owners).await;
        if !self.caller.is_still_valid(&self.app).await? {
            return Err(Broken::CredentialsEnded);
        }
        // Each statement runs in a task of its own, so that a client that disconnects does not interrupt it.
        if let Some(ids) = self.rest.pop_front() {
            // A single id means a large entry.
            let _permit = if ids.len() == 1 { Some(memory.large_read(owners).await) } else { None };
            memory.room_for_piece(owners).await;
            let reads = self.app.reads.clone();
            let read = async move {
                let ids = &ids;
                reads.read(|mut conn| async move { list::read(&mut conn, ids).await }).await
            };
            self.rows = db::bounded(read).await.map_err(Arc::new)?;
        } else if let Some((end, read)) = self.behind.take() {
            let page = db::bounded(read(end)).await.map_err(Arc::new)?;
            self.behind = end_of(&page).map(|end| (end, read));
            (self.rows, self.rest) = (page.rows, page.rest);
        }
        Ok(std::mem::take(&mut self.rows))
    }
}

/// Position of the end of a page, unless it is the last page.
fn end_of<T>(page: &list::Entries<T>) -> Option<Position> {
    page.next.clone()
}

/// Writer of a JSON array, with the commas between its entries.
#[derive(Default)]
pub struct Array {
    has_entries: bool,
}

impl Array {
    /// Appends an entry.
    pub fn push(&mut self, text: &mut Vec<u8>, entry: &impl Serialize) {
        if std::mem::replace(&mut self.has_entries, true) {
            text.push(b',');
        }
        text.extend_from_slice(input::to_raw(entry).get().as_bytes());
    }
}
