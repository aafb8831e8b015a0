//! The accept loop: connections, their limits, and their end.
//!
//! `axum::serve` knows no time-out for headers, no bound on connections and no deadline, hence this one on hyper.

mod connections;
mod descriptors;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body};
use http::{HeaderValue, Request, Response, Version, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tower::ServiceExt;

use self::connections::{Connections, Entry, Watched};
pub use self::descriptors::{Bounds, raise_limit};
use crate::{
    api::{
        gate::{headers, request::note},
        resources::system,
        vocabulary::{client::Peer, error::ApiError, headers::CORRELATION_ID},
    },
    id,
    lifecycle::Lifecycle,
};

/// The time for the headers on a spare connection, so that idle ones make room for those who ask for health.
const SPARE_HEADER_TIMEOUT: Duration = Duration::from_secs(1);
/// A request's headers have to be complete after this, and an idle connection is closed after it.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest request line and headers together.
const MAX_HEADER_BYTES: usize = 32 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// A client that takes nothing of its answer for so long is gone. The kernel counts; nothing else notices.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections that the kernel may keep ready.
const LISTEN_QUEUE: u32 = 1024;
/// At the soft stop, a connection that has not asked for anything yet may do so for so long.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(500);
/// How often it is looked whether there are such connections.
const FIRST_REQUEST_POLL: Duration = Duration::from_millis(10);
/// With all places taken, how often it is looked for a connection that has become idle.
const PLACE_PAUSE: Duration = Duration::from_millis(50);
/// Closes a connection after an answer.
const CLOSE: HeaderValue = HeaderValue::from_static("close");
/// After a failed accept, which is most likely a lack of file descriptors that connections will give back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens the listening socket.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(LISTEN_QUEUE)?;
    // Connections inherit it.
    #[cfg(target_os = "linux")]
    rustix::net::sockopt::set_tcp_user_timeout(
        &listener,
        u32::try_from(WRITE_TIMEOUT.as_millis()).unwrap_or(u32::MAX),
    )?;
    Ok(listener)
}

/// Serves connections until the soft stop, then finishes the requests under way, at most until the hard stop.
///
/// With all places taken, the connection that has been idle longest makes room. While the process is about to stop,
/// each connection is closed with its next answer; at the soft stop those that the kernel has accepted, or that have
/// not asked for anything yet, get their first answer.
pub async fn serve(listener: TcpListener, router: Router, lifecycle: Lifecycle, bounds: Bounds) {
    let server = Server {
        router,
        lifecycle,
        connections: Arc::new(Connections::new()),
        regular: Arc::new(Semaphore::new(bounds.regular)),
        spare: Arc::new(Semaphore::new(bounds.spare)),
        graceful: GracefulShutdown::new(),
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
    server.accept_the_rest(listener);
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
    graceful: GracefulShutdown,
}

impl Server {
    /// A place for a connection, as soon as there is one.
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
                // Meanwhile another one has become idle.
                () = tokio::time::sleep(PLACE_PAUSE) => continue,
            };
            return (permit.expect("the semaphores are never closed"), kind);
        }
    }

    /// Serves a connection in a task of its own.
    fn start(&self, stream: TcpStream, peer: IpAddr, permit: Option<(OwnedSemaphorePermit, Kind)>) {
        let (permit, kind) = permit.map_or((None, Kind::Regular), |(permit, kind)| (Some(permit), kind));
        let entry = Arc::new(self.connections.enter());
        let close = entry.connection.close.clone();
        let served = connection(stream, peer, kind, self.router.clone(), self.lifecycle.clone(), Arc::clone(&entry));
        let served = self.graceful.watch(served);
        let hard_stop = self.lifecycle.hard_stop().clone();
        tokio::spawn(async move {
            tokio::select! {
                // A connection that ends in an error has ended: the client hung up, or sent what is not HTTP.
                _ = served => {}
                () = close.cancelled() => {}
                () = hard_stop.cancelled() => {}
            }
            drop((permit, entry));
        });
    }

    /// Serves the connections that the kernel has accepted already: who is connected has been promised an answer.
    fn accept_the_rest(&self, listener: TcpListener) {
        let Ok(listener) = listener.into_std() else { return };
        // Ends when there is none; there is nothing else to be done about an error.
        while let Ok((stream, peer)) = listener.accept() {
            if stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = TcpStream::from_std(stream)
            {
                self.start(stream, peer.ip(), None);
            }
        }
    }

    /// Waits for first requests a little, and for the answers under way.
    async fn finish(self) {
        let deadline = tokio::time::Instant::now() + FIRST_REQUEST_GRACE;
        while self.connections.is_any_fresh() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(FIRST_REQUEST_POLL).await;
        }
        self.graceful.shutdown().await;
    }
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Regular,
    /// See [`Bounds::spare`].
    Spare,
}

fn connection(
    stream: TcpStream,
    peer: IpAddr,
    kind: Kind,
    router: Router,
    lifecycle: Lifecycle,
    entry: Arc<Entry>,
) -> http1::Connection<
    TokioIo<Watched>,
    impl hyper::service::Service<
        Request<Incoming>,
        Response = Response<Body>,
        Error = std::convert::Infallible,
        Future: Send,
    >,
> {
    // An answer shall not wait for the acknowledgement of the one before. Fails only on a closed connection.
    let _ = stream.set_nodelay(true);
    let stream = Watched::new(stream, Arc::clone(&entry.connection));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (router, lifecycle) = (router.clone(), lifecycle.clone());
        let under_way = entry.begin();
        let connection = Arc::clone(&entry.connection);
        async move {
            let mut response = if let Some(detail) = framing_fault(&request) {
                refuse(&request, peer, ApiError::bad_request("bad_request", detail))
            } else if kind == Kind::Spare && !system::serves(request.uri().path()) {
                let refusal = ApiError::unavailable("too_many_connections", "Too many connections are open");
                refuse(&request, peer, refusal)
            } else {
                request.extensions_mut().insert(Peer(peer));
                router.oneshot(request.map(|body| connection.body(body))).await?
            };
            if lifecycle.is_stopping() || connection.has_unread() {
                response.headers_mut().insert(header::CONNECTION, CLOSE);
            }
            Ok(response.map(|body| under_way.answered_by(body)))
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(kind == Kind::Regular)
        .header_read_timeout(if kind == Kind::Regular { HEADER_TIMEOUT } else { SPARE_HEADER_TIMEOUT })
        .max_buf_size(MAX_HEADER_BYTES)
        .max_header_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
}

/// The answer with its line in the log: nobody else sees this request. What follows it on the connection is not read:
/// it may be a part of this request.
fn refuse<B>(request: &Request<B>, peer: IpAddr, refusal: ApiError) -> Response<Body> {
    let correlation_id = id::correlation_id(None);
    let mut response = refusal.render(request.uri().path(), &correlation_id);
    if let Ok(value) = HeaderValue::from_str(&correlation_id) {
        response.headers_mut().insert(CORRELATION_ID, value);
    }
    headers::harden(response.headers_mut());
    response.headers_mut().insert(header::CONNECTION, CLOSE);
    let span = tracing::info_span!("http.request", correlation_id, client_ip = %peer.to_canonical());
    span.in_scope(|| note(request.method().as_str(), "(none)", &response, Duration::ZERO));
    response
}

/// What a proxy in front might understand differently, and so let pass what it should not. (Of `Content-Length` and
/// `Transfer-Encoding` together hyper takes the latter alone, and closes the connection, as RFC 9112, 6.1 has it.)
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

/// RFC 3986, 3.2.2 and 3.2.3.
fn is_of_a_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(&byte)
}
