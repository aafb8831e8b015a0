//! Connections that are held for too long. Each connection has a note of who holds it and since when; a task reads the
//! notes. A loan costs two uncontended locks, and nothing is allocated.

use std::{
    panic::Location,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::time::Instant;

use super::{PooledConnection, Shared};

/// Longest interval of the checks.
const MAX_INTERVAL: Duration = Duration::from_secs(15);

/// Who holds a connection; empty while nobody does, or one that keeps it.
#[derive(Default)]
pub(super) struct Note(Arc<Mutex<Option<Loan>>>);

struct Loan {
    since: Instant,
    holder: &'static Location<'static>,
    is_reported: bool,
}

impl Note {
    pub(super) fn begin(&self, holder: &'static Location<'static>) {
        let loan = Loan { since: Instant::now(), holder, is_reported: false };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(loan);
    }

    pub(super) fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Holder of a connection that was lent for at least that long, once for each loan.
    fn report(&self, limit: Duration) -> Option<(&'static Location<'static>, Duration)> {
        let mut note = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let loan = note.as_mut().filter(|loan| !loan.is_reported && loan.since.elapsed() >= limit)?;
        loan.is_reported = true;
        Some((loan.holder, loan.since.elapsed()))
    }
}

/// Notes of all connections that exist.
#[derive(Default)]
pub(super) struct Notes {
    all: Vec<Weak<Mutex<Option<Loan>>>>,
    is_watched: bool,
}

impl Notes {
    pub(super) fn add(&mut self, note: &Note) {
        self.all.retain(|note| note.strong_count() > 0);
        self.all.push(Arc::downgrade(&note.0));
    }
}

impl PooledConnection {
    /// The connection stays with its holder, which is not reported.
    pub fn keep(&self) {
        if let Some(live) = &self.live {
            live.note.end();
        }
    }

    /// Notes who holds the connection.
    pub(in crate::db) fn held_by(self, holder: &'static Location<'static>) -> Self {
        if let Some(live) = &self.live {
            live.note.begin(holder);
        }
        self
    }
}

impl Shared {
    /// Notes a new connection, and starts the task that reads the notes.
    pub(super) fn watch(self: &Arc<Self>, note: &Note) {
        let Some(limit) = self.times.held_limit else { return };
        let mut state = self.state();
        state.notes.add(note);
        if !std::mem::replace(&mut state.notes.is_watched, true) {
            tokio::spawn(report(Arc::downgrade(self), limit));
        }
    }
}

/// Logs each connection that is held for too long, once.
async fn report(pool: Weak<Shared>, limit: Duration) {
    let interval = (limit / 4).min(MAX_INTERVAL);
    loop {
        tokio::time::sleep(interval).await;
        let Some(shared) = pool.upgrade() else { return };
        let notes: Vec<Note> = shared.state().notes.all.iter().filter_map(Weak::upgrade).map(Note).collect();
        for (holder, time) in notes.iter().filter_map(|note| note.report(limit)) {
            metrics::counter!("db_pool_held_too_long_total").increment(1);
            let (operation, held_secs) = (operation(holder), time.as_secs());
            tracing::warn!(
                operation,
                held_secs,
                "a database connection is held for {held_secs} s by {operation}; the pool has one less meanwhile"
            );
        }
    }
}

/// Place in the program, such as `actions.retry_run:149`.
fn operation(place: &Location<'_>) -> String {
    let file = place.file();
    let module = file.rsplit_once("src/").map_or(file, |(_, module)| module);
    format!("{}:{}", module.trim_end_matches(".rs").replace('/', "."), place.line())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loan_is_reported_once_with_the_place_where_it_began() {
        let note = Note::default();
        assert!(note.report(Duration::ZERO).is_none());
        let here = Location::caller();
        note.begin(here);
        assert!(note.report(Duration::from_hours(1)).is_none());
        let (holder, _) = note.report(Duration::ZERO).expect("it is lent");
        assert_eq!(operation(holder), format!("db.pool.loans:{}", here.line()));
        assert!(note.report(Duration::ZERO).is_none());
        note.begin(here);
        note.end();
        assert!(note.report(Duration::ZERO).is_none());
    }

    #[test]
    fn notes_of_closed_connections_are_dropped() {
        let (mut notes, kept) = (Notes::default(), Note::default());
        notes.add(&Note::default());
        notes.add(&kept);
        assert_eq!(notes.all.len(), 1);
    }
}
