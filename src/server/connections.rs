//! Registry of the open connections with their activity, so that the one that has been idle longest can be closed.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// Minimum idle time in milliseconds. After a shorter time the next request may already be on its way.
const MIN_IDLE_MS: u64 = 1000;
/// Bodies up to this known length are handed to the kernel practically at once.
const SHORT_BODY: u64 = 64 << 10;
/// Lingering close: after an answer to a request that was not read to its end, the rest of the request may arrive for
/// this long, up to this size. A connection that is closed with unread bytes is reset, and its client may lose the
/// answer.
const LINGER_TIME: Duration = Duration::from_secs(5);
/// Maximum size of the rest, see [`LINGER_TIME`].
const MAX_LINGER_BYTES: usize = 32 << 20;
/// Value of [`Connection::idle_since_ms`] while a request is being answered.
const BUSY: u64 = u64::MAX;

/// All connections of a server.
pub(super) struct Connections {
    clock: Clock,
    started: Instant,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    last_id: AtomicU64,
}

/// State of a connection.
pub(super) struct Connection {
    /// Time on the clock of [`Connections::started`], or [`BUSY`].
    idle_since_ms: AtomicU64,
    /// Number of requests whose head is complete.
    requests: AtomicU64,
    /// Whether the client does not accept what is written. `server::WRITE_TIMEOUT` ends that.
    is_blocked: AtomicBool,
    /// Whether bytes have arrived, or may be on their way, that belong to no completely read request.
    has_unread: AtomicBool,
    /// Cancelled to close the connection.
    pub(super) close: CancellationToken,
}

/// Registration of a connection, until it is dropped.
pub(super) struct Entry {
    id: u64,
    connections: Arc<Connections>,
    pub(super) connection: Arc<Connection>,
}

impl Connections {
    pub(super) fn new(clock: Clock) -> Self {
        Self { started: clock.instant(), clock, open: Mutex::default(), last_id: AtomicU64::new(0) }
    }

    pub(super) fn enter(self: &Arc<Self>) -> Entry {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection {
            idle_since_ms: AtomicU64::new(self.now_ms()),
            requests: AtomicU64::new(0),
            is_blocked: AtomicBool::new(false),
            has_unread: AtomicBool::new(false),
            close: CancellationToken::new(),
        });
        self.open().insert(id, Arc::clone(&connection));
        Entry { id, connections: Arc::clone(self), connection }
    }

    /// Closes the connection that has been idle longest, if any is idle at that time.
    pub(super) fn close_idlest(&self, now_ms: u64) -> bool {
        let Some(latest) = now_ms.checked_sub(MIN_IDLE_MS) else { return false };
        let open = self.open();
        let idle = open
            .values()
            .filter(|connection| !connection.close.is_cancelled() && !connection.is_blocked.load(Ordering::Relaxed));
        let idlest = idle.min_by_key(|connection| connection.idle_since_ms.load(Ordering::Relaxed));
        let found = idlest.filter(|connection| connection.idle_since_ms.load(Ordering::Relaxed) <= latest);
        found.inspect(|connection| connection.close.cancel()).is_some()
    }

    /// Whether there is a connection that has not received a request yet.
    pub(super) fn is_any_fresh(&self) -> bool {
        self.open().values().any(|connection| connection.requests() == 0)
    }

    /// Milliseconds since the start of the server.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.since(self.started).as_millis()).unwrap_or(BUSY - 1)
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Whether the head of a request is expected by now: it has begun, or it would be the first one.
    fn awaits_head(&self) -> bool {
        let is_busy = self.idle_since_ms.load(Ordering::Relaxed) == BUSY;
        !is_busy && (self.has_unread() || self.requests() == 0)
    }

    /// Whether the connection has to be closed after the current answer.
    pub(super) fn has_unread(&self) -> bool {
        self.has_unread.load(Ordering::Relaxed)
    }

    /// Wraps the body of a request, to record when it was read to its end.
    pub(super) fn body(self: &Arc<Self>, body: Incoming) -> Body {
        let is_empty = body.is_end_stream();
        self.has_unread.store(!is_empty, Ordering::Relaxed);
        if is_empty {
            return Body::empty();
        }
        Body::new(Read { body, connection: Arc::clone(self) })
    }
}

/// Body of a request that is being read.
struct Read {
    body: Incoming,
    connection: Arc<Connection>,
}

impl hyper::body::Body for Read {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) {
            self.connection.has_unread.store(false, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Entry {
    /// Clock for the time limits of the connection.
    pub(super) fn clock(&self) -> &Clock {
        &self.connections.clock
    }

    /// Records the arrival of a request.
    pub(super) fn begin(&self) -> Request {
        self.connection.requests.fetch_add(1, Ordering::Relaxed);
        self.connection.idle_since_ms.store(BUSY, Ordering::Relaxed);
        Request { connections: Arc::clone(&self.connections), connection: Arc::clone(&self.connection) }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.open().remove(&self.id);
    }
}

/// Stream of a connection. It records whether the client accepts what is written, ends the wait for the head of a request,
/// and lingers if the connection is closed before everything was read.
pub(super) struct Watched {
    stream: TcpStream,
    connection: Arc<Connection>,
    /// Time-out for the head of a request, from its first byte; for the first head, from the opening of the connection.
    /// The time-out of hyper begins with the end of the previous request, and so includes the idle time.
    head_timeout: Duration,
    head: Option<Head>,
    linger: Option<Linger>,
    clock: Clock,
}

/// Head of a request that is not complete.
struct Head {
    /// Number of requests before it.
    after: u64,
    end: Timer,
}

type Timer = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Remaining time and size for the rest of a closed connection.
struct Linger {
    end: Timer,
    bytes: usize,
}

impl Watched {
    pub(super) fn new(stream: TcpStream, connection: Arc<Connection>, head_timeout: Duration, clock: Clock) -> Self {
        Self { stream, connection, head_timeout, head: None, linger: None, clock }
    }

    /// Whether the time for the head of a request is over. Called when no bytes are there.
    fn is_head_late(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.connection.awaits_head() {
            self.head = None;
            return false;
        }
        let after = self.connection.requests();
        let head = self.head.take().filter(|head| head.after == after).unwrap_or_else(|| {
            let (clock, time) = (self.clock.clone(), self.head_timeout);
            Head { after, end: Box::pin(async move { clock.sleep(time).await }) }
        });
        self.head.insert(head).end.as_mut().poll(cx).is_ready()
    }

    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        self.connection.is_blocked.store(written.is_pending(), Ordering::Relaxed);
        written
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.connection.has_unread.store(true, Ordering::Relaxed);
        }
        if read.is_pending() && self.is_head_late(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, connection, linger, clock, .. } = &mut *self;
        ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
        if !connection.has_unread() {
            return Poll::Ready(Ok(()));
        }
        let linger = linger.get_or_insert_with(|| {
            let clock = clock.clone();
            Linger { end: Box::pin(async move { clock.sleep(LINGER_TIME).await }), bytes: 0 }
        });
        let mut dropped = [0; 8 << 10];
        while linger.end.as_mut().poll(cx).is_pending() && linger.bytes < MAX_LINGER_BYTES {
            let mut buffer = ReadBuf::new(&mut dropped);
            // A client that has closed the connection has its answer, or does not want it.
            if ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)).is_err() || buffer.filled().is_empty() {
                break;
            }
            linger.bytes += buffer.filled().len();
        }
        Poll::Ready(Ok(()))
    }
}

/// Request that is being answered; dropped at the end of the answer.
pub(super) struct Request {
    connections: Arc<Connections>,
    connection: Arc<Connection>,
}

impl Request {
    /// Wraps the body, which is a part of the answer.
    pub(super) fn answered_by(self, body: Body) -> Body {
        if body.size_hint().exact().is_some_and(|length| length <= SHORT_BODY) {
            return body;
        }
        Body::new(Tracked { body, _request: self })
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.connection.idle_since_ms.store(self.connections.now_ms(), Ordering::Relaxed);
    }
}

/// Body that keeps its request active.
struct Tracked {
    body: Body,
    _request: Request,
}

impl hyper::body::Body for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_connection_that_is_idle_longest_is_closed() {
        let connections = Arc::new(Connections::new(Clock::default()));
        let entries: Vec<Entry> = (0..3).map(|_| connections.enter()).collect();
        assert!(!connections.close_idlest(10), "all connections are new");
        for (entry, idle_since_ms) in entries.iter().zip([BUSY, 2000, 1000]) {
            entry.connection.idle_since_ms.store(idle_since_ms, Ordering::Relaxed);
        }
        let blocked = connections.enter();
        blocked.connection.idle_since_ms.store(1, Ordering::Relaxed);
        blocked.connection.is_blocked.store(true, Ordering::Relaxed);
        let closed = || entries.iter().map(|entry| entry.connection.close.is_cancelled()).collect::<Vec<_>>();
        assert!(connections.close_idlest(10_000));
        assert_eq!(closed(), [false, false, true]);
        assert!(connections.close_idlest(10_000));
        assert!(!connections.close_idlest(10_000), "a busy connection stays open");
        assert_eq!(closed(), [false, true, true]);
    }

    #[test]
    fn a_connection_is_busy_until_the_end_of_its_answer() {
        let connections = Arc::new(Connections::new(Clock::default()));
        let entry = connections.enter();
        assert!(connections.is_any_fresh());
        let is_busy = || entry.connection.idle_since_ms.load(Ordering::Relaxed) == BUSY;
        let body =
            entry.begin().answered_by(Body::from_stream(futures_util::stream::pending::<Result<Bytes, axum::Error>>()));
        assert!(is_busy() && !connections.is_any_fresh());
        drop(body);
        assert!(!is_busy());
        let body = entry.begin().answered_by(Body::from("short"));
        assert!(!is_busy());
        drop(body);
    }
}
