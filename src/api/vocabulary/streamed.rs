//! Answers that are read while they are sent: lists, whose entries may be large, and exports.
//!
//! What a client has not taken yet is not read: a piece is held at a time, and counted ([`super::memory`]). Between two
//! pieces nothing is held, no connection to the database either. An answer ends early, which its client sees by the
//! broken transfer, if the database goes away or the caller's credentials end meanwhile.

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

/// Entries of an endless list that are looked at at a time.
pub const CHUNK: i64 = 500;
/// The type of most answers.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Reads the entries behind a position.
type ReadBehind<T> = Box<dyn Fn(Position) -> BoxFuture<'static, Result<list::Entries<T>, db::Error>> + Send>;

/// The entries of an answer.
pub struct Entries<T> {
    app: App,
    caller: Caller,
    rows: Vec<T>,
    rest: VecDeque<Vec<EntryId>>,
    /// What comes behind `rest`, if anything does.
    behind: Option<(Position, ReadBehind<T>)>,
}

/// Why an answer ends early.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Db(#[from] Arc<db::Error>),
    #[error("the caller's credentials have ended")]
    CredentialsEnded,
}

impl<T> Entries<T>
where
    T: ListRow + for<'r> FromRow<'r, PgRow> + Send + Unpin + 'static,
{
    /// Those of a page.
    #[must_use]
    pub fn of_page(app: App, caller: Caller, page: list::Entries<T>) -> Self {
        Self { app, caller, rows: page.rows, rest: page.rest, behind: None }
    }

    /// Those of a whole list: first these, and behind them what `read` finds.
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

    /// The answer, whose text `write` makes of some entries at a time; it is told which are the last, of which there may
    /// be none. What is small is answered as a whole.
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
                    tracing::warn!(error = cause, table, "an answer is not sent to its end: {error}");
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
        self.app.memory.piece(self.caller.holders(), text)
    }

    /// The next entries, when what others have read before was taken.
    async fn read(&mut self) -> Result<Vec<T>, Broken> {
        let (memory, holders) = (&self.app.memory, self.caller.holders());
        memory.room_for_piece(holders).await;
        if !self.caller.is_still_valid(&self.app).await? {
            return Err(Broken::CredentialsEnded);
        }
        // What hangs up shall not tear a statement apart, so each is in a task of its own.
        if let Some(ids) = self.rest.pop_front() {
            // One that comes alone is large.
            let _permit = if ids.len() == 1 { Some(memory.large_read(holders).await) } else { None };
            memory.room_for_piece(holders).await;
            let pool = self.app.pool.clone();
            let read = async move { list::read(&mut *pool.acquire().await?, &ids).await };
            self.rows = db::bounded(read).await.map_err(Arc::new)?;
        } else if let Some((end, read)) = self.behind.take() {
            let page = db::bounded(read(end)).await.map_err(Arc::new)?;
            self.behind = end_of(&page).map(|end| (end, read));
            (self.rows, self.rest) = (page.rows, page.rest);
        }
        Ok(std::mem::take(&mut self.rows))
    }
}

/// Where a page ends that is not the last.
fn end_of<T>(page: &list::Entries<T>) -> Option<Position> {
    page.positions.last().filter(|_| page.has_next).cloned()
}

/// Writes entries of a JSON array, with the commas between all that come through it.
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
