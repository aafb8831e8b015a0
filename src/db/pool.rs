//! The connections of a process: `DATABASE_POOL_SIZE` are kept, `DATABASE_MAX_OVERFLOW` more are opened under load and
//! closed when they are idle. [ADR 16](../../docs/adr/0016-own-connection-pool.md) says why this is not sqlx's pool.
//!
//! Connections are opened and asked for a sign of life by tasks of their own, and go to whoever waits when they are
//! there. The newest waiter is served first: who has waited long is about to give up. While the server cannot be
//! reached, callers are refused at once and one task goes on trying.
//!
//! A connection comes back to the pool only at rest: every statement was answered, and no transaction is open. One that
//! does not come to rest within a second is closed, and so is one whose transaction was about to begin or to be committed:
//! dropping a future never leaves a transaction to the next user.

use std::{
    fmt, io,
    ops::{Deref, DerefMut},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt, stream};
use sqlx::{
    ConnectOptions as _, Connection as _, Describe, Either, Execute, Executor, PgConnection, Postgres,
    postgres::{PgConnectOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout},
};

/// A caller that gets no connection for this long is answered 503.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// A statement of its own that is not answered after this never will be: the server ends it before.
const STATEMENT_LIMIT: Duration = Duration::from_secs(6);
/// A connection that is not made after this is not made.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Between two attempts to open a connection after one that failed.
const CONNECT_PAUSE: Duration = Duration::from_millis(250);
/// Connections that are opened at the same time.
const MAX_OPENING: usize = 4;
/// A connection that was idle for longer is asked for a sign of life before it is used: the server may be another.
const TRUSTED_IDLE: Duration = Duration::from_millis(500);
/// A connection that does not give a sign of life for so long is dead.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection above `DATABASE_POOL_SIZE` is opened when somebody has waited for so long: not when loops happen to turn
/// at the same moment.
const SURPLUS_DELAY: Duration = Duration::from_millis(10);
/// How often it is looked whether connections above `DATABASE_POOL_SIZE` are needed, while there are any.
const SURPLUS_CHECK: Duration = Duration::from_secs(1);
/// After so many looks, one after the other, at which they were not needed, they are closed.
const SURPLUS_CHECKS: u32 = 10;
/// They are needed if they were used so often since the last look.
const SURPLUS_USES: u32 = 20;
/// Older connections are replaced: their server process has gathered memory.
const MAX_AGE: Duration = Duration::from_mins(30);
/// A connection that was left with an answer to come, or a transaction to roll back, has so long for it.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);
/// Saying goodbye to the server takes no longer.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the log says that the server refuses more connections, while it refuses them for the same reason.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// The connections. Cheap to clone. The tasks of a pool that nobody has any more end by themselves.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    options: PgConnectOptions,
    size: usize,
    max: usize,
    state: Mutex<State>,
    all_closed: Notify,
}

#[derive(Default)]
struct State {
    /// The one that came back last is last, and taken first.
    idle: Vec<Idle>,
    /// By rising number; the newest is served first.
    waiting: Vec<Waiter>,
    last_waiter: u64,
    /// All connections: idle, lent, being checked, opened or closed.
    open: usize,
    /// Of these, not yet there.
    opening: usize,
    /// Of these, being asked for a sign of life.
    checking: usize,
    /// Why the server cannot be reached; everybody is refused meanwhile.
    away: Option<Failure>,
    /// No connection is opened before.
    pause_until: Option<Instant>,
    /// What was idle before is asked for a sign of life before it is used.
    distrusted_at: Option<Instant>,
    /// When a connection came back at rest.
    last_answer: Option<Instant>,
    told: Option<(Instant, String)>,
    is_shrinking: bool,
    /// How often a connection was taken while as many as are kept were in use.
    surplus_uses: u32,
    is_closed: bool,
}

struct Idle {
    live: Live,
    since: Instant,
}

struct Live {
    connection: PgConnection,
    opened_at: Instant,
}

struct Waiter {
    number: u64,
    answer: oneshot::Sender<Result<PooledConnection, sqlx::Error>>,
}

/// Why no connection could be opened, in the words of whoever refused.
#[derive(Clone)]
struct Failure {
    kind: io::ErrorKind,
    text: String,
    /// Nobody answers at the address, or only to say that the server starts or stops.
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
    /// A pool that opens nothing before it is used. `size` connections are kept, up to `max` are opened.
    pub(super) fn new(options: PgConnectOptions, size: usize, max: usize) -> Self {
        Self(Arc::new(Shared { options, size, max, state: Mutex::default(), all_closed: Notify::new() }))
    }

    /// Connections at most.
    #[must_use]
    pub fn max(&self) -> usize {
        self.0.max
    }

    /// Connections, and how many of them nobody uses.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        let state = self.0.state();
        (state.open - state.opening, state.idle.len())
    }

    /// A connection, given back when it is dropped.
    pub async fn acquire(&self) -> Result<PooledConnection, sqlx::Error> {
        let mut unsure = None;
        let (number, answer) = {
            let mut state = self.0.state();
            if state.is_closed {
                return Err(sqlx::Error::PoolClosed);
            }
            if let Some(away) = &state.away {
                return Err(away.error());
            }
            if let Some(idle) = state.idle.pop() {
                if state.open - state.opening - state.idle.len() > self.0.size {
                    state.surplus_uses += 1;
                }
                let is_distrusted = state.distrusted_at.is_some_and(|at| idle.since <= at);
                if !is_distrusted && idle.since.elapsed() < TRUSTED_IDLE {
                    drop(state);
                    return Ok(PooledConnection::new(Arc::clone(&self.0), idle.live));
                }
                state.checking += 1;
                unsure = Some(idle.live);
            }
            let (sender, answer) = oneshot::channel();
            state.last_waiter += 1;
            let number = state.last_waiter;
            state.waiting.push(Waiter { number, answer: sender });
            self.0.open_for_waiters(&mut state);
            (number, answer)
        };
        // Not under the lock: a runtime that ends drops the task, and with it the connection, at once.
        if let Some(live) = unsure {
            tokio::spawn(check(PooledConnection::new(Arc::clone(&self.0), live)));
        }
        // Leaves the queue also when this future is dropped.
        let _place = WaiterPlace { shared: &self.0, number };
        match timeout(ACQUIRE_TIMEOUT, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(sqlx::Error::PoolClosed),
            Err(_) => Err(sqlx::Error::PoolTimedOut),
        }
    }

    /// A connection that is closed when it is dropped, for whoever changes its session.
    pub async fn acquire_own(&self) -> Result<PooledConnection, sqlx::Error> {
        let mut connection = self.acquire().await?;
        connection.is_own = true;
        Ok(connection)
    }

    /// A transaction on a connection of its own. Rolled back when it is dropped.
    pub async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        let mut connection = self.acquire().await?;
        connection.begin().await?;
        Ok(Transaction(connection))
    }

    /// Says that the database has not answered a question since then. Unless it has answered another one, it is away:
    /// callers are refused until a new connection can be opened or an old one answers after all.
    #[must_use]
    pub fn note_silence(&self, since: Instant) -> bool {
        let (idle, waiting) = {
            let mut state = self.0.state();
            if state.last_answer.is_some_and(|at| at >= since) {
                return false;
            }
            let text = "the database does not answer".to_owned();
            state.away = Some(Failure { kind: io::ErrorKind::TimedOut, text, is_unreachable: true });
            let idle = std::mem::take(&mut state.idle);
            state.open -= idle.len();
            let waiting = std::mem::take(&mut state.waiting);
            self.0.open_for_waiters(&mut state);
            (idle, waiting)
        };
        // Nobody knows whether they live, and asking each would take its time.
        drop(idle);
        self.0.refuse(waiting);
        true
    }

    /// Closes everything, and waits for what is lent.
    pub async fn close(&self) {
        let (idle, waiting) = {
            let mut state = self.0.state();
            state.is_closed = true;
            (std::mem::take(&mut state.idle), std::mem::take(&mut state.waiting))
        };
        drop(waiting);
        for Idle { live, .. } in idle {
            self.0.say_goodbye(live);
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

/// Asks a connection for a sign of life, and gives it back if it has one.
async fn check(mut connection: PooledConnection) {
    let is_alive = matches!(timeout(PING_TIMEOUT, connection.ping()).await, Ok(Ok(())));
    connection.pool.state().checking -= 1;
    if !is_alive {
        connection.discard();
    }
}

/// Opens a connection; the place of it is taken already.
async fn open(pool: Weak<Shared>, options: PgConnectOptions, is_surplus: bool) {
    if is_surplus {
        tokio::time::sleep(SURPLUS_DELAY).await;
        let Some(shared) = pool.upgrade() else { return };
        let mut state = shared.state();
        if state.waiting.is_empty() && state.away.is_none() {
            state.opening -= 1;
            state.open -= 1;
            drop(state);
            return shared.note_closed();
        }
    }
    let started = Instant::now();
    let opened = match timeout(CONNECT_TIMEOUT, options.connect()).await {
        Ok(opened) => opened,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no connection within 4 s").into()),
    };
    let Some(shared) = pool.upgrade() else { return };
    match opened {
        Ok(connection) => {
            {
                let mut state = shared.state();
                state.opening -= 1;
                state.away = None;
                state.pause_until = None;
                shared.open_for_waiters(&mut state);
            }
            drop(PooledConnection::new(shared, Live { connection, opened_at: Instant::now() }));
        }
        Err(error) => {
            let failure = Failure::of(&error);
            let refused = {
                let mut state = shared.state();
                state.opening -= 1;
                state.open -= 1;
                state.pause_until = Some(Instant::now() + CONNECT_PAUSE);
                let is_alone = state.open == state.opening;
                let has_answered = state.last_answer.is_some_and(|at| at >= started);
                if state.away.is_some() || is_alone || (failure.is_unreachable && !has_answered) {
                    state.away = Some(failure);
                    std::mem::take(&mut state.waiting)
                } else {
                    state.tell(&failure, shared.max);
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

/// Closes the connections above the size when they are not needed any more.
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
            shared.say_goodbye(live);
        }
        if is_done {
            return;
        }
    }
}

impl State {
    /// Says why no more connections can be opened, while there are others.
    fn tell(&mut self, failure: &Failure, max: usize) {
        let is_known = self.told.as_ref().is_some_and(|(at, text)| *text == failure.text && at.elapsed() < TELL_EVERY);
        if !is_known {
            self.told = Some((Instant::now(), failure.text.clone()));
            let open = self.open;
            tracing::warn!(open, max, "no further database connection can be opened: {}", failure.text);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to open connections for those who wait and are not going to get another one, or one to find out that the
    /// server is there again.
    fn open_for_waiters(self: &Arc<Self>, state: &mut State) {
        if state.is_closed || state.pause_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let wanted = match state.away {
            Some(_) => 1_usize.saturating_sub(state.opening),
            None => state.waiting.len().saturating_sub(state.opening + state.checking),
        };
        let count = wanted.min(self.max - state.open).min(MAX_OPENING.saturating_sub(state.opening));
        for _ in 0..count {
            let is_surplus = state.open >= self.size && state.away.is_none();
            state.open += 1;
            state.opening += 1;
            tokio::spawn(open(Arc::downgrade(self), self.options.clone(), is_surplus));
        }
    }

    /// Takes a connection that is at rest: for the newest waiter, or for later.
    fn take_back(self: &Arc<Self>, live: Live) {
        let mut live = live;
        loop {
            let waiter = {
                let mut state = self.state();
                if state.is_closed || live.opened_at.elapsed() >= MAX_AGE {
                    drop(state);
                    return self.say_goodbye(live);
                }
                let now = Instant::now();
                state.last_answer = Some(now);
                state.away = None;
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
                // The waiter has just given up.
                Err(Ok(mut lent)) => match lent.live.take() {
                    Some(back) => live = back,
                    None => return,
                },
                Ok(()) | Err(Err(_)) => return,
            }
        }
    }

    /// A connection was closed because it is not usable: the others are looked at before they are used.
    fn lost(self: &Arc<Self>) {
        let mut state = self.state();
        state.distrusted_at = Some(Instant::now());
        state.open -= 1;
        self.open_for_waiters(&mut state);
        drop(state);
        self.note_closed();
    }

    /// Closes a connection as the protocol wants it, in a task of its own.
    fn say_goodbye(self: &Arc<Self>, live: Live) {
        let shared = Arc::clone(self);
        let farewell = async move {
            // Nothing can be done for a connection that cannot be closed well; dropped, it is closed all the same.
            let _ = timeout(FAREWELL_TIMEOUT, live.connection.close()).await;
            let mut state = shared.state();
            state.open -= 1;
            shared.open_for_waiters(&mut state);
            drop(state);
            shared.note_closed();
        };
        // Without a runtime the program ends.
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
        let failure = self.state().away.clone();
        for waiter in waiting {
            let error = failure.as_ref().map_or(sqlx::Error::PoolTimedOut, Failure::error);
            // Who has given up needs no answer.
            let _ = waiter.answer.send(Err(error));
        }
    }
}

/// Takes a waiter out of the queue.
struct WaiterPlace<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for WaiterPlace<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if let Ok(index) = state.waiting.binary_search_by_key(&self.number, |waiter| waiter.number) {
            let waiter = state.waiting.remove(index);
            drop(state);
            drop(waiter);
        }
    }
}

/// Where a connection stands with its transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// There is none.
    None,
    /// BEGIN or COMMIT is on its way: nobody knows.
    Torn,
    /// To be rolled back, unless it is committed.
    Open,
}

/// A connection out of the pool. Goes back when it is dropped, if it is at rest.
pub struct PooledConnection {
    /// Always there until it is dropped.
    live: Option<Live>,
    pool: Arc<Shared>,
    phase: Phase,
    /// See [`Pool::acquire_own`].
    is_own: bool,
}

impl PooledConnection {
    fn new(pool: Arc<Shared>, live: Live) -> Self {
        Self { live: Some(live), pool, phase: Phase::None, is_own: false }
    }

    /// Begins a transaction. Neither a savepoint nor sqlx's own transaction is used on these connections: dropped while
    /// BEGIN is on its way, that one leaves the transaction open.
    pub async fn begin(&mut self) -> Result<(), sqlx::Error> {
        self.phase = Phase::Torn;
        (**self).execute("BEGIN").await?;
        self.phase = Phase::Open;
        Ok(())
    }

    /// Commits it.
    pub async fn commit(&mut self) -> Result<(), sqlx::Error> {
        self.end("COMMIT").await
    }

    /// Rolls it back.
    pub async fn rollback(&mut self) -> Result<(), sqlx::Error> {
        self.end("ROLLBACK").await
    }

    async fn end(&mut self, statement: &'static str) -> Result<(), sqlx::Error> {
        self.phase = Phase::Torn;
        let ended = (**self).execute(statement).await;
        // What the server answers to these, it answers outside of a transaction.
        if matches!(ended, Ok(_) | Err(sqlx::Error::Database(_))) {
            self.phase = Phase::None;
        }
        ended.map(|_| ())
    }

    /// Closes the connection hard and frees its place.
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
        // Has nothing to do, and so is done at once, unless something was left behind: an answer that is still to come,
        // such as the end of one that was an error, or the end of the connection.
        let rest = live.connection.flush().now_or_never();
        let is_lost = self.phase == Phase::Torn || matches!(rest, Some(Err(_)));
        match tokio::runtime::Handle::try_current() {
            Ok(_) if rest.is_some() && !is_lost && self.phase == Phase::None => {
                if self.is_own {
                    self.pool.say_goodbye(live);
                } else {
                    self.pool.take_back(live);
                }
            }
            Ok(runtime) if !is_lost => {
                // Torn until it is settled: a runtime that ends drops the task at once.
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

/// Brings a connection to rest, if that takes no longer than it may, and gives it back.
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

/// A transaction. Rolled back when it is dropped.
pub struct Transaction(PooledConnection);

impl Transaction {
    /// Commits it.
    pub async fn commit(mut self) -> Result<(), sqlx::Error> {
        self.0.commit().await
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

/// Bounds a statement. Dropped at the end of its time, it takes its connection along.
async fn bounded<T>(statement: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    match timeout(STATEMENT_LIMIT, statement).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 6 s").into()),
    }
}

type BoxFuture<'e, T> = Pin<Box<dyn Future<Output = Result<T, sqlx::Error>> + Send + 'e>>;
type BoxStream<'e, T> = Pin<Box<dyn Stream<Item = Result<T, sqlx::Error>> + Send + 'e>>;

/// Single statements, each on a connection of its own.
impl<'p> Executor<'p> for &'p Pool {
    type Database = Postgres;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, PgQueryResult>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let mut connection = self.acquire().await?;
            bounded(connection.execute(query)).await
        })
    }

    /// Gathers everything first: whoever wants a stream takes a connection.
    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Either<PgQueryResult, PgRow>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let gathered = async move {
            let mut connection = self.acquire().await?;
            bounded(connection.fetch_many(query).try_collect::<Vec<_>>()).await
        };
        stream::once(gathered).map_ok(|all| stream::iter(all.into_iter().map(Ok))).try_flatten().boxed()
    }

    fn fetch_all<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Vec<PgRow>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let mut connection = self.acquire().await?;
            bounded(connection.fetch_all(query)).await
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Option<PgRow>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let mut connection = self.acquire().await?;
            bounded(connection.fetch_optional(query)).await
        })
    }

    fn prepare_with<'e, 'q: 'e>(self, sql: &'q str, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, PgStatement<'q>>
    where
        'p: 'e,
    {
        Box::pin(async move {
            let mut connection = self.acquire().await?;
            bounded(connection.prepare_with(sql, parameters)).await
        })
    }

    fn describe<'e, 'q: 'e>(self, sql: &'q str) -> BoxFuture<'e, Describe<Postgres>>
    where
        'p: 'e,
    {
        Box::pin(async move {
            let mut connection = self.acquire().await?;
            bounded(connection.describe(sql)).await
        })
    }
}
