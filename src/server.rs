//! Accept loop: connections, their limits, and their shutdown.
//!
//! `axum::serve` has no time-out for headers, no limit on connections and no deadline. This loop uses hyper directly.

mod connections;
mod descriptors;
mod probes;
mod timer;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body, response::IntoResponse as _};
use http::{HeaderValue, Request, Response, Version, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::TokioIo,
    server::graceful::{GracefulShutdown, Watcher},
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tower::Service as _;

use self::connections::{Connections, Entry, Watched};
use self::timer::ClockTimer;
pub use self::{
    descriptors::{Bounds, KEEP_ALIVE, raise_limit},
    probes::on_own_thread,
};
use crate::{
    api::{
        gate::{headers, request::note, rules},
        vocabulary::{client::Peer, error::ApiError, headers::CORRELATION_ID},
    },
    clock::Clock,
    id,
    lifecycle::Lifecycle,
};

/// Time-out for the headers on a spare connection. It is short, so that idle connections make room for health checks.
const SPARE_HEADER_TIMEOUT: Duration = Duration::from_secs(1);
/// Time-out for the headers of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum length of request line and headers together.
const MAX_HEADER_BYTES: usize = 32 << 10;
/// Maximum number of headers of a request.
const MAX_HEADERS: usize = 64;
/// Time-out for a client that accepts no bytes of its answer. The kernel enforces it; the process sees no other sign.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of connections that the kernel queues for `accept`.
const LISTEN_QUEUE: u32 = 1024;
/// At the soft stop: how long a connection without a request may still send its first one.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(500);
/// Interval at which connections without a request are polled.
const FIRST_REQUEST_POLL: Duration = Duration::from_millis(10);
/// Interval at which connections are polled for an idle one while all permits are taken.
const PERMIT_POLL: Duration = Duration::from_millis(50);
/// Value of the `Connection` header that closes a connection after an answer.
const CLOSE: HeaderValue = HeaderValue::from_static("close");
/// Pause after a failed accept. The likely cause is a lack of file descriptors, which ending connections release.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens the listening socket.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(LISTEN_QUEUE)?;
    // Accepted connections inherit this option.
    #[cfg(target_os = "linux")]
    rustix::net::sockopt::set_tcp_user_timeout(
        &listener,
        u32::try_from(WRITE_TIMEOUT.as_millis()).unwrap_or(u32::MAX),
    )?;
    Ok(listener)
}

/// Serves connections until the soft stop, then finishes the running requests, at most until the hard stop.
///
/// While all permits are taken, the connection that has been idle longest is closed. Once the process is about to
/// stop, each connection is closed with its next answer. At the soft stop, connections that the kernel has already
/// accepted and connections without a request still get their first answer.
///
/// Requests are answered by the current runtime, or except for probes by `requests` (see [`on_own_thread`]).
pub async fn serve(
    listener: TcpListener,
    router: Router,
    lifecycle: Lifecycle,
    bounds: Bounds,
    clock: Clock,
    requests: Option<Handle>,
) {
    let server = Server {
        router,
        lifecycle,
        connections: Arc::new(Connections::new(clock)),
        regular: Arc::new(Semaphore::new(bounds.regular)),
        spare: Arc::new(Semaphore::new(bounds.spare)),
        keep_alive: bounds.keep_alive,
        graceful: GracefulShutdown::new(),
        requests,
        is_ending: CancellationToken::new(),
    };
    let soft_stop = server.lifecycle.soft_stop().clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = soft_stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let permit = tokio::select! {
                    biased;
                    permit = server.permit() => Some(permit),
                    () = soft_stop.cancelled() => None,
                };
                server.start(stream, peer.ip(), permit);
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "no connection could be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    server.accept_queued(listener);
    let hard_stop = server.lifecycle.hard_stop().clone();
    tokio::select! {
        () = server.finish() => {}
        () = hard_stop.cancelled() => {}
    }
}

struct Server {
    router: Router,
    lifecycle: Lifecycle,
    connections: Arc<Connections>,
    regular: Arc<Semaphore>,
    spare: Arc<Semaphore>,
    keep_alive: Duration,
    graceful: GracefulShutdown,
    /// Runtime of all requests but probes; `None`: the current one.
    requests: Option<Handle>,
    /// Cancelled when connections without a request get no answer any more.
    is_ending: CancellationToken,
}

impl Server {
    /// Waits for a permit for a connection.
    async fn permit(&self) -> (OwnedSemaphorePermit, Kind) {
        loop {
            if let Ok(permit) = Arc::clone(&self.regular).try_acquire_owned() {
                return (permit, Kind::Regular);
            }
            let is_closing = self.connections.close_idlest(self.connections.now_ms());
            if !is_closing && let Ok(permit) = Arc::clone(&self.spare).try_acquire_owned() {
                return (permit, Kind::Spare);
            }
            let (regular, spare) = (Arc::clone(&self.regular), Arc::clone(&self.spare));
            let (permit, kind) = tokio::select! {
                biased;
                permit = regular.acquire_owned() => (permit, Kind::Regular),
                permit = spare.acquire_owned(), if !is_closing => (permit, Kind::Spare),
                // Another connection may have become idle.
                () = tokio::time::sleep(PERMIT_POLL) => continue,
            };
            return (permit.expect("the semaphores are never closed"), kind);
        }
    }

    /// Serves a connection in a task of its own.
    fn start(&self, stream: TcpStream, peer: IpAddr, permit: Option<(OwnedSemaphorePermit, Kind)>) {
        let (permit, kind) = permit.map_or((None, Kind::Regular), |(permit, kind)| (Some(permit), kind));
        let entry = Arc::new(self.connections.enter());
        let close = entry.connection.close.clone();
        let hard_stop = self.lifecycle.hard_stop().clone();
        let clock = entry.clock().clone();
        let (router, lifecycle, requests) = (self.router.clone(), self.lifecycle.clone(), self.requests.clone());
        let keep_alive = self.keep_alive;
        let connection = Accepted { peer, kind, keep_alive, router, lifecycle, entry, requests };
        let (watcher, is_ending) = (self.graceful.watcher(), self.is_ending.clone());
        tokio::spawn(async move {
            let served = async {
                let Some(requests) = connection.requests.clone() else {
                    return connection.serve(stream, watcher).await;
                };
                let begins_with_probe = tokio::select! {
                    begins_with_probe = probes::begins_with_probe(&stream) => begins_with_probe,
                    () = is_ending.cancelled() => return,
                    () = clock.sleep(header_timeout(kind)) => return,
                };
                match begins_with_probe {
                    Ok(true) => connection.serve(stream, watcher).await,
                    Ok(false) => {
                        let Ok(stream) = stream.into_std() else { return };
                        let moved = Accepted { requests: None, ..connection };
                        let served = requests.spawn(async move {
                            // Fails only without a runtime.
                            if let Ok(stream) = TcpStream::from_std(stream) {
                                moved.serve(stream, watcher).await;
                            }
                        });
                        // A panic of a handler has been answered; one of the connection ends it.
                        drop(AbortOnDropHandle::new(served).await);
                    }
                    // The client has closed the connection.
                    Err(_) => {}
                }
            };
            tokio::select! {
                () = served => {}
                () = close.cancelled() => {}
                () = hard_stop.cancelled() => {}
            }
            drop(permit);
        });
    }

    /// Serves the connections that the kernel has already accepted: their clients expect an answer.
    fn accept_queued(&self, listener: TcpListener) {
        let Ok(listener) = listener.into_std() else { return };
        // Ends when the queue is empty. An error ends it too: there is no remedy.
        while let Ok((stream, peer)) = listener.accept() {
            if stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = TcpStream::from_std(stream)
            {
                self.start(stream, peer.ip(), None);
            }
        }
    }

    /// Waits a short time for first requests, and for the running answers.
    async fn finish(self) {
        let deadline = tokio::time::Instant::now() + FIRST_REQUEST_GRACE;
        while self.connections.is_any_fresh() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(FIRST_REQUEST_POLL).await;
        }
        self.is_ending.cancel();
        self.graceful.shutdown().await;
    }
}

/// Kind of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Regular,
    /// Spare connection, see [`Bounds::spare`].
    Spare,
}

/// Time-out for the headers of a request.
fn header_timeout(kind: Kind) -> Duration {
    if kind == Kind::Regular { HEADER_TIMEOUT } else { SPARE_HEADER_TIMEOUT }
}

/// Accepted connection.
struct Accepted {
    peer: IpAddr,
    kind: Kind,
    /// See [`Bounds::keep_alive`].
    keep_alive: Duration,
    router: Router,
    lifecycle: Lifecycle,
    entry: Arc<Entry>,
    /// Runtime of requests that are no probes; `None`: the current one.
    requests: Option<Handle>,
}

impl Accepted {
    /// Serves the connection to its end.
    async fn serve(self, stream: TcpStream, watcher: Watcher) {
        // The result does not matter: on an error the client closed the connection, or sent something other than HTTP.
        let _ = watcher.watch(self.http1(stream)).await;
    }

    fn http1(
        self,
        stream: TcpStream,
    ) -> http1::Connection<
        TokioIo<Watched>,
        impl hyper::service::Service<
            Request<Incoming>,
            Response = Response<Body>,
            Error = std::convert::Infallible,
            Future: Send,
        >,
    > {
        let Self { peer, kind, keep_alive, router, lifecycle, entry, requests } = self;
        // Disables Nagle's algorithm: an answer must not wait for the acknowledgement of the previous one. Fails only on
        // a closed connection.
        let _ = stream.set_nodelay(true);
        let clock = entry.clock().clone();
        let head_timeout = header_timeout(kind);
        let stream = Watched::new(stream, Arc::clone(&entry.connection), head_timeout, clock.clone());
        let lifecycle = Arc::new(lifecycle);
        let service = service_fn(move |mut request: Request<Incoming>| {
            let (mut router, lifecycle) = (router.clone(), Arc::clone(&lifecycle));
            let requests = requests.clone().filter(|_| !probes::is_probe(&request));
            let under_way = entry.begin();
            let connection = Arc::clone(&entry.connection);
            async move {
                let mut response = if let Some(detail) = framing_fault(&request) {
                    refuse(&request, peer, ApiError::bad_request("bad_request", detail))
                } else if kind == Kind::Spare && !rules::is_on_spare_connections(request.uri().path()) {
                    let refusal = ApiError::unavailable("too_many_connections", "Too many connections are open");
                    refuse(&request, peer, refusal)
                } else {
                    request.extensions_mut().insert(Peer(peer));
                    let answer = router.call(request.map(|body| connection.body(body)));
                    match requests {
                        None => answer.await?,
                        // A panic of a handler has been answered; this is one of the layers around it.
                        Some(requests) => AbortOnDropHandle::new(requests.spawn(answer))
                            .await
                            .unwrap_or_else(|_| Ok(ApiError::internal().into_response()))?,
                    }
                };
                if lifecycle.is_stopping() || connection.has_unread() {
                    response.headers_mut().insert(header::CONNECTION, CLOSE);
                }
                Ok(response.map(|body| under_way.answered_by(body)))
            }
        });
        http1::Builder::new()
            .timer(ClockTimer::new(clock))
            .keep_alive(kind == Kind::Regular)
            // It includes the time for which the connection is idle.
            .header_read_timeout(if kind == Kind::Regular { head_timeout.max(keep_alive) } else { head_timeout })
            .max_buf_size(MAX_HEADER_BYTES)
            .max_header_size(MAX_HEADER_BYTES)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), service)
    }
}

/// Refuses a request and logs it: it does not reach the request log otherwise. Further bytes on the connection are
/// not read, since they may belong to this request.
fn refuse<B>(request: &Request<B>, peer: IpAddr, refusal: ApiError) -> Response<Body> {
    let correlation_id = id::correlation_id(None);
    let mut response = refusal.render(request.uri().path(), &correlation_id);
    if let Ok(value) = HeaderValue::from_str(&correlation_id) {
        response.headers_mut().insert(CORRELATION_ID, value);
    }
    headers::harden(response.headers_mut());
    response.headers_mut().insert(header::CONNECTION, CLOSE);
    let span = tracing::info_span!("http.request", correlation_id, client_ip = %peer.to_canonical());
    span.in_scope(|| note(request.method(), "(none)", &response, Duration::ZERO));
    response
}

/// Returns the error of a request that a proxy in front might parse differently, and so pass on wrongly. (With both
/// `Content-Length` and `Transfer-Encoding`, hyper uses the latter only and closes the connection, as RFC 9112, 6.1
/// demands.)
fn framing_fault<B>(request: &Request<B>) -> Option<&'static str> {
    let headers = request.headers();
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() || (request.version() == Version::HTTP_11 && host.is_none()) {
        return Some("Exactly one Host header is expected");
    }
    if host.is_some_and(|host| !host.as_bytes().iter().all(|byte| is_of_a_host(*byte))) {
        return Some("The Host header is not the name of a host");
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_chunked = codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    (!is_chunked || codings.next().is_some()).then_some("No other Transfer-Encoding than chunked is understood")
}

/// Whether the byte may occur in a host with port: RFC 3986, 3.2.2 and 3.2.3.
fn is_of_a_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(&byte)
}
