//! Connection pool of a process: `DATABASE_POOL_SIZE` connections are kept, up to `DATABASE_MAX_OVERFLOW` more are
//! opened under load and closed when idle. [ADR 16](../../docs/adr/0016-own-connection-pool.md) explains why this is
//! not sqlx's pool.
//!
//! Separate tasks open and ping connections and hand them to waiters. The newest waiter is served first, since the
//! longest waiting one is about to time out. While the server cannot be reached, callers are rejected at once and one
//! task keeps trying to connect.

mod connection;
mod loans;
mod statements;
mod statistics;

use std::{
    fmt, io,
    panic::Location,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use sqlx::{Connection as _, PgConnection};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout},
};

pub use self::connection::{PooledConnection, Transaction};
use self::loans::{Note, Notes};
use super::hosts::Hosts;
use crate::config::{self, UsableHosts};

/// While the server is unreachable, another attempt begins when the last one has taken this long: its packets may be
/// lost, and TCP repeats them with growing delays.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// Pause between two attempts to open a connection after a failure.
const CONNECT_PAUSE: Duration = Duration::from_millis(250);
/// Maximum number of connections that are opened at the same time.
const MAX_OPENING: usize = 4;
/// Time-out of a ping. Afterwards the connection is dead.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// Minimum wait of a caller before a connection above `DATABASE_POOL_SIZE` is opened. This ignores loops that run at
/// the same moment by chance.
const SURPLUS_DELAY: Duration = Duration::from_millis(10);
/// Interval of checks whether connections above `DATABASE_POOL_SIZE` are needed, while there are any.
const SURPLUS_CHECK: Duration = Duration::from_secs(1);
/// Number of consecutive checks without need after which they are closed.
const SURPLUS_CHECKS: u32 = 10;
/// Number of uses between two checks that shows a need.
const SURPLUS_USES: u32 = 20;
/// Time-out for closing a connection gracefully.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Minimum interval between log lines about refused connections for the same reason.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Connection pool. Cheap to clone. Its tasks end when the last handle is dropped.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    hosts: Mutex<Hosts>,
    size: usize,
    max: usize,
    times: config::PoolTimes,
    state: Mutex<State>,
    all_closed: Notify,
    /// Notifies when the database does not answer.
    silenced: Notify,
}

#[derive(Default)]
struct State {
    /// Idle connections. The one released last is last, and taken first.
    idle: Vec<Idle>,
    /// Waiters by ascending number. The newest is served first.
    waiting: Vec<Waiter>,
    last_waiter: u64,
    /// Number of all connections: idle, lent, being checked, opened or closed.
    open: usize,
    /// Of these, the number being opened.
    opening: usize,
    /// Of these, attempts that took too long and no longer delay the next one while the server is unreachable; see
    /// [`PROBE_EVERY`].
    overdue: usize,
    /// Of these, the number being pinged.
    checking: usize,
    /// Reason why the server cannot be reached. Callers are rejected meanwhile.
    down: Option<Failure>,
    /// Earliest time for opening a connection.
    pause_until: Option<Instant>,
    /// Connections idle since before this time are pinged before use.
    distrusted_at: Option<Instant>,
    /// Connections opened before this time are closed, because their host may accept no writes.
    replaced_at: Option<Instant>,
    /// Time of the last release of an idle connection.
    last_answer: Option<Instant>,
    last_refusal: Option<(Instant, String)>,
    is_shrinking: bool,
    /// Number of acquisitions.
    acquired: u64,
    /// Number of acquisitions while the kept connections were all in use.
    surplus_uses: u32,
    is_closed: bool,
    /// Who holds which connection.
    notes: Notes,
}

struct Idle {
    live: Live,
    since: Instant,
}

struct Live {
    connection: PgConnection,
    opened_at: Instant,
    note: Note,
}

struct Waiter {
    number: u64,
    answer: oneshot::Sender<Result<PooledConnection, sqlx::Error>>,
}

/// Reason why no connection could be opened, with the text of the server or system.
#[derive(Clone)]
struct Failure {
    kind: io::ErrorKind,
    text: String,
    /// The address does not answer, or answers only that the server starts or stops.
    is_unreachable: bool,
}

impl Failure {
    fn of(error: &sqlx::Error) -> Self {
        let (kind, text, is_unreachable) = match error {
            sqlx::Error::Io(error) => (error.kind(), error.to_string(), true),
            sqlx::Error::Database(error) => {
                let is_passing = error.code().is_some_and(|code| code.starts_with("57P"));
                (io::ErrorKind::ConnectionRefused, error.message().to_owned(), is_passing)
            }
            error => (io::ErrorKind::Other, error.to_string(), true),
        };
        Self { kind, text, is_unreachable }
    }

    fn error(&self) -> sqlx::Error {
        sqlx::Error::Io(io::Error::new(self.kind, self.text.clone()))
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("max", &self.0.max).finish_non_exhaustive()
    }
}

impl Pool {
    /// Pool that opens no connection before it is used. `size` connections are kept, up to `max` are opened.
    pub(super) fn new(hosts: Hosts, size: usize, max: usize, times: config::PoolTimes) -> Self {
        Self(Arc::new(Shared {
            hosts: Mutex::new(hosts),
            size,
            max,
            times,
            state: Mutex::default(),
            all_closed: Notify::new(),
            silenced: Notify::new(),
        }))
    }

    /// Uses these settings for connections that are opened from now on, such as those with a new password.
    pub fn adopt(&self, connect: &config::ConnectOptions, echo: bool) {
        *self.0.hosts.lock().unwrap_or_else(PoisonError::into_inner) = super::hosts(connect, echo);
    }

    /// Maximum number of connections.
    #[must_use]
    pub fn max(&self) -> usize {
        self.0.max
    }

    /// Acquires a connection, which is released when it is dropped. The caller is logged if it holds it for too long.
    #[track_caller]
    pub fn acquire(&self) -> impl Future<Output = Result<PooledConnection, sqlx::Error>> + Send {
        self.acquire_for(Location::caller())
    }

    /// As [`Self::acquire`], for this caller.
    pub(super) async fn acquire_for(
        &self,
        holder: &'static Location<'static>,
    ) -> Result<PooledConnection, sqlx::Error> {
        Ok(self.acquire_briefly().await?.held_by(holder))
    }

    /// Acquires a connection for a single statement, which has a time-out.
    async fn acquire_briefly(&self) -> Result<PooledConnection, sqlx::Error> {
        let mut unchecked = None;
        let (number, answer) = {
            let mut state = self.0.state();
            if state.is_closed {
                return Err(sqlx::Error::PoolClosed);
            }
            if let Some(down) = &state.down {
                return Err(down.error());
            }
            if let Some(idle) = state.idle.pop() {
                if state.open - state.opening - state.idle.len() > self.0.size {
                    state.surplus_uses += 1;
                }
                let is_distrusted = state.distrusted_at.is_some_and(|at| idle.since <= at);
                if !is_distrusted && idle.since.elapsed() < self.0.times.trusted_idle {
                    state.acquired += 1;
                    drop(state);
                    return Ok(PooledConnection::new(Arc::clone(&self.0), idle.live));
                }
                state.checking += 1;
                unchecked = Some(idle.live);
            }
            let (sender, answer) = oneshot::channel();
            state.last_waiter += 1;
            let number = state.last_waiter;
            state.waiting.push(Waiter { number, answer: sender });
            self.0.open_for_waiters(&mut state);
            (number, answer)
        };
        // This is not under the lock: a runtime that ends drops the task, and with it the connection, at once.
        if let Some(live) = unchecked {
            tokio::spawn(check(PooledConnection::new(Arc::clone(&self.0), live)));
        }
        // This leaves the queue also when the future is dropped.
        let _waiter = WaiterGuard { shared: &self.0, number };
        let started = Instant::now();
        let result = match timeout(self.0.times.acquire_timeout, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(sqlx::Error::PoolClosed),
            Err(_) => Err(sqlx::Error::PoolTimedOut),
        };
        self.0.count_wait(started.elapsed(), &result);
        result
    }

    /// Acquires a connection that is closed when it is dropped, for callers that change its session and keep it.
    pub async fn acquire_own(&self) -> Result<PooledConnection, sqlx::Error> {
        let mut connection = self.acquire_briefly().await?;
        connection.is_own = true;
        Ok(connection)
    }

    /// Opens a connection outside of the pool, for work that must not wait behind others.
    pub(super) async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        self.0.hosts().connect().await
    }

    /// Reports that the host accepts no writes. If another one may accept them, all connections are replaced.
    pub(super) fn note_read_only(&self) {
        if self.0.hosts().usable() == UsableHosts::Primary && self.replace_connections() {
            tracing::warn!("the host of the database accepts no writes any more; its connections are closed");
        }
    }

    /// Reports that the host is no standby any more. All connections are replaced.
    pub(super) fn note_promoted(&self) {
        if self.replace_connections() {
            tracing::warn!("the host of the replica is no standby any more; its connections are closed");
        }
    }

    /// Uses another one of several hosts.
    pub(super) fn use_next_host(&self) {
        if self.0.hosts().prefer_next() {
            self.replace_connections();
        }
    }

    /// Closes all connections, those in use when they are released. Returns whether it should be logged.
    fn replace_connections(&self) -> bool {
        let (idle, last) = {
            let mut state = self.0.state();
            (std::mem::take(&mut state.idle), state.replaced_at.replace(Instant::now()))
        };
        for Idle { live, .. } in idle {
            self.0.close_gracefully(live);
        }
        last.is_none_or(|at| at.elapsed() >= LOG_EVERY)
    }

    /// Begins a transaction on a connection of its own. It is rolled back when it is dropped.
    #[track_caller]
    pub fn begin(&self) -> impl Future<Output = Result<Transaction, sqlx::Error>> + Send {
        self.begin_for(Location::caller())
    }

    /// As [`Self::begin`], for this caller.
    async fn begin_for(&self, holder: &'static Location<'static>) -> Result<Transaction, sqlx::Error> {
        self.acquire_for(holder).await?.into_transaction().await
    }

    /// Reports that the database has not answered a request since then. Unless it has answered another one, it is
    /// treated as down: callers are rejected until a new connection can be opened or an old one answers.
    #[must_use]
    pub fn note_silence(&self, since: Instant) -> bool {
        let (idle, waiting) = {
            let mut state = self.0.state();
            if state.last_answer.is_some_and(|at| at >= since) {
                return false;
            }
            let text = "the database does not answer".to_owned();
            state.down = Some(Failure { kind: io::ErrorKind::TimedOut, text, is_unreachable: true });
            let idle = std::mem::take(&mut state.idle);
            state.open -= idle.len();
            let waiting = std::mem::take(&mut state.waiting);
            self.0.open_for_waiters(&mut state);
            (idle, waiting)
        };
        // Their state is unknown, and pinging each of them would take too long.
        drop(idle);
        self.0.refuse(waiting);
        self.0.silenced.notify_waiters();
        true
    }

    /// Returns when the database is next found not to answer.
    pub async fn silence(&self) {
        self.0.silenced.notified().await;
    }

    /// Runs statements and abandons them when the database is found not to answer.
    pub async fn unless_silent<T, E: From<sqlx::Error>>(
        &self,
        statements: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        tokio::select! {
            biased;
            result = statements => result,
            () = self.silence() => {
                let silent = io::Error::new(io::ErrorKind::TimedOut, "the database does not answer");
                Err(E::from(silent.into()))
            }
        }
    }

    /// Closes all connections, and waits for those in use.
    pub async fn close(&self) {
        let (idle, waiting) = {
            let mut state = self.0.state();
            state.is_closed = true;
            (std::mem::take(&mut state.idle), std::mem::take(&mut state.waiting))
        };
        drop(waiting);
        for Idle { live, .. } in idle {
            self.0.close_gracefully(live);
        }
        loop {
            let closed = self.0.all_closed.notified();
            if self.0.state().open == 0 {
                return;
            }
            closed.await;
        }
    }
}

/// Pings a connection, and releases it if it answers.
async fn check(mut connection: PooledConnection) {
    let is_alive = matches!(timeout(PING_TIMEOUT, connection.ping()).await, Ok(Ok(())));
    connection.pool.state().checking -= 1;
    if !is_alive {
        connection.discard();
    }
}

/// Opens a connection; its slot is reserved already.
async fn open(pool: Weak<Shared>, hosts: Hosts, limit: Duration, is_surplus: bool) {
    if is_surplus {
        tokio::time::sleep(SURPLUS_DELAY).await;
        let Some(shared) = pool.upgrade() else { return };
        let mut state = shared.state();
        if state.waiting.is_empty() && state.down.is_none() {
            state.opening -= 1;
            state.open -= 1;
            drop(state);
            return shared.note_closed();
        }
    }
    let started = Instant::now();
    let mut connecting = std::pin::pin!(timeout(limit, hosts.connect()));
    let in_time = timeout(PROBE_EVERY, &mut connecting).await;
    let is_overdue = in_time.is_err();
    let opened = if let Ok(opened) = in_time {
        opened
    } else {
        if let Some(shared) = pool.upgrade() {
            let mut state = shared.state();
            state.overdue += 1;
            shared.open_for_waiters(&mut state);
        }
        connecting.await
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(_) => Err(super::not_connected_within(limit)),
    };
    let Some(shared) = pool.upgrade() else { return };
    match opened {
        Ok(connection) => {
            {
                let mut state = shared.state();
                state.opening -= 1;
                state.overdue -= usize::from(is_overdue);
                state.down = None;
                state.pause_until = None;
                shared.open_for_waiters(&mut state);
            }
            let live = Live { connection, opened_at: Instant::now(), note: Note::default() };
            shared.watch(&live.note);
            drop(PooledConnection::new(shared, live));
        }
        Err(error) => {
            let failure = Failure::of(&error);
            let refused = {
                let mut state = shared.state();
                state.opening -= 1;
                state.overdue -= usize::from(is_overdue);
                state.open -= 1;
                state.pause_until = Some(Instant::now() + CONNECT_PAUSE);
                let is_alone = state.open == state.opening;
                let has_answered = state.last_answer.is_some_and(|at| at >= started);
                if state.down.is_some() || is_alone || (failure.is_unreachable && !has_answered) {
                    state.down = Some(failure);
                    std::mem::take(&mut state.waiting)
                } else {
                    state.log_refusal(&failure, shared.max);
                    Vec::new()
                }
            };
            shared.refuse(refused);
            shared.note_closed();
            drop(shared);
            tokio::time::sleep(CONNECT_PAUSE).await;
            if let Some(shared) = pool.upgrade() {
                shared.open_for_waiters(&mut shared.state());
            }
        }
    }
}

/// Closes the connections above the size when they are no longer needed.
async fn shrink(pool: Weak<Shared>) {
    let mut quiet = 0;
    loop {
        tokio::time::sleep(SURPLUS_CHECK).await;
        let Some(shared) = pool.upgrade() else { return };
        let mut surplus = Vec::new();
        let is_done = {
            let mut state = shared.state();
            quiet = if std::mem::take(&mut state.surplus_uses) < SURPLUS_USES { quiet + 1 } else { 0 };
            if quiet >= SURPLUS_CHECKS {
                let count = state.open.saturating_sub(shared.size).min(state.idle.len());
                surplus.extend(state.idle.drain(..count));
            }
            state.is_shrinking = state.open - surplus.len() > shared.size;
            !state.is_shrinking
        };
        for Idle { live, .. } in surplus {
            shared.close_gracefully(live);
        }
        if is_done {
            return;
        }
    }
}

impl State {
    /// Logs why no more connections can be opened, while others exist.
    fn log_refusal(&mut self, failure: &Failure, max: usize) {
        let is_known =
            self.last_refusal.as_ref().is_some_and(|(at, text)| *text == failure.text && at.elapsed() < LOG_EVERY);
        if !is_known {
            self.last_refusal = Some((Instant::now(), failure.text.clone()));
            let open = self.open;
            tracing::warn!(open, max, "no further database connection can be opened: {}", failure.text);
        }
    }
}

impl Shared {
    fn hosts(&self) -> Hosts {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens connections for waiters that cannot get another one, or one to detect that the server is back.
    fn open_for_waiters(self: &Arc<Self>, state: &mut State) {
        if state.is_closed || state.pause_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let wanted = if state.down.is_some() {
            1_usize.saturating_sub(state.opening - state.overdue)
        } else {
            let missing = state.waiting.len().saturating_sub(state.opening + state.checking);
            // The first one may need another one beside it.
            let limit = if self.hosts().has_sessions() { MAX_OPENING } else { MAX_OPENING.min(1 + state.overdue) };
            missing.min(limit.saturating_sub(state.opening))
        };
        let count = wanted.min(self.max - state.open);
        for _ in 0..count {
            let is_surplus = state.open >= self.size && state.down.is_none();
            state.open += 1;
            state.opening += 1;
            tokio::spawn(open(Arc::downgrade(self), self.hosts(), self.times.connect_timeout, is_surplus));
        }
    }

    /// Releases an idle connection to the newest waiter, or into the pool.
    fn release(self: &Arc<Self>, live: Live) {
        let mut live = live;
        loop {
            let waiter = {
                let mut state = self.state();
                let is_replaced = state.replaced_at.is_some_and(|at| live.opened_at <= at);
                if state.is_closed || is_replaced || live.opened_at.elapsed() >= self.times.max_age {
                    drop(state);
                    return self.close_gracefully(live);
                }
                let now = Instant::now();
                state.last_answer = Some(now);
                state.down = None;
                let Some(waiter) = state.waiting.pop() else {
                    state.idle.push(Idle { live, since: now });
                    if state.open > self.size && !state.is_shrinking {
                        state.is_shrinking = true;
                        tokio::spawn(shrink(Arc::downgrade(self)));
                    }
                    return;
                };
                waiter
            };
            let lent = PooledConnection::new(Arc::clone(self), live);
            match waiter.answer.send(Ok(lent)) {
                // The waiter has just timed out.
                Err(Ok(mut lent)) => match lent.live.take() {
                    Some(back) => live = back,
                    None => return,
                },
                Ok(()) | Err(Err(_)) => return,
            }
        }
    }

    /// Reacts to an unusable connection that was closed: the others are pinged before use.
    fn lost(self: &Arc<Self>) {
        let mut state = self.state();
        state.distrusted_at = Some(Instant::now());
        state.open -= 1;
        self.open_for_waiters(&mut state);
        drop(state);
        self.note_closed();
    }

    /// Closes a connection gracefully, as the protocol requires, in a task of its own.
    fn close_gracefully(self: &Arc<Self>, live: Live) {
        let shared = Arc::clone(self);
        let farewell = async move {
            // An error needs no handling: dropping the connection closes it as well.
            let _ = timeout(CLOSE_TIMEOUT, live.connection.close()).await;
            let mut state = shared.state();
            state.open -= 1;
            shared.open_for_waiters(&mut state);
            drop(state);
            shared.note_closed();
        };
        // Without a runtime the program is ending.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(farewell);
        }
    }

    fn note_closed(&self) {
        if self.state().open == 0 {
            self.all_closed.notify_waiters();
        }
    }

    fn refuse(&self, waiting: Vec<Waiter>) {
        let failure = self.state().down.clone();
        for waiter in waiting {
            let error = failure.as_ref().map_or(sqlx::Error::PoolTimedOut, Failure::error);
            // A waiter that has timed out needs no answer.
            let _ = waiter.answer.send(Err(error));
        }
    }
}

/// Removes a waiter from the queue when it is dropped.
struct WaiterGuard<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if let Ok(index) = state.waiting.binary_search_by_key(&self.number, |waiter| waiter.number) {
            let waiter = state.waiting.remove(index);
            drop(state);
            drop(waiter);
        }
    }
}
