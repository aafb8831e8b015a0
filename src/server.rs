//! The accept loop: connections, their limits, and their end.
//!
//! `axum::serve` knows no time-out for headers, no bound on connections and no deadline, hence this one on hyper.

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
    sync::Semaphore,
};
use tower::ServiceExt;

use crate::{
    api::{CORRELATION_ID, client::Peer, error::ApiError, headers, request::note, system},
    id,
    lifecycle::Lifecycle,
};

/// Connections at a time.
pub const MAX_CONNECTIONS: usize = 10_000;
/// Connections above that, for one request each: health and metrics are answered, all else is refused. More wait in the
/// listener's queue.
const SPARE_CONNECTIONS: usize = 256;
/// Of these, so that idle ones make room for those who ask for health.
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

/// Serves up to `max_connections` and some spare ones until the soft stop, then finishes the requests under way, at most
/// until the hard stop.
pub async fn serve(listener: TcpListener, router: Router, lifecycle: Lifecycle, max_connections: usize) {
    let (regular, spare) = (Arc::new(Semaphore::new(max_connections)), Arc::new(Semaphore::new(SPARE_CONNECTIONS)));
    let graceful = GracefulShutdown::new();
    loop {
        let accept = async {
            let (stream, peer) = listener.accept().await?;
            let (place, kind) = match Arc::clone(&regular).try_acquire_owned() {
                Ok(place) => (place, Kind::Regular),
                // The semaphore is never closed.
                Err(_) => (Arc::clone(&spare).acquire_owned().await.map_err(io::Error::other)?, Kind::Spare),
            };
            Ok::<_, io::Error>((stream, peer.ip(), place, kind))
        };
        let accepted = tokio::select! {
            accepted = accept => accepted,
            () = lifecycle.soft_stop().cancelled() => break,
        };
        let (stream, peer, place, kind) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "no connection could be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection = graceful.watch(connection(stream, peer, kind, router.clone()));
        let hard_stop = lifecycle.hard_stop().clone();
        tokio::spawn(async move {
            tokio::select! {
                // A connection that ends in an error has ended: the client hung up, or sent what is not HTTP.
                _ = connection => {}
                () = hard_stop.cancelled() => {}
            }
            drop(place);
        });
    }
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => {}
        () = lifecycle.hard_stop().cancelled() => {}
    }
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Regular,
    /// See [`SPARE_CONNECTIONS`].
    Spare,
}

fn connection(
    stream: TcpStream,
    peer: IpAddr,
    kind: Kind,
    router: Router,
) -> http1::Connection<
    TokioIo<TcpStream>,
    impl hyper::service::Service<
        Request<Incoming>,
        Response = Response<Body>,
        Error = std::convert::Infallible,
        Future: Send,
    >,
> {
    // An answer shall not wait for the acknowledgement of the one before. Fails only on a closed connection.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let router = router.clone();
        async move {
            if let Some(detail) = framing_fault(&request) {
                return Ok(refuse(&request, peer, ApiError::bad_request("bad_request", detail)));
            }
            if kind == Kind::Spare && !system::is_public(request.uri().path()) {
                let refusal = ApiError::unavailable("too_many_connections", "Too many connections are open");
                return Ok(refuse(&request, peer, refusal));
            }
            request.extensions_mut().insert(Peer(peer));
            router.oneshot(request.map(Body::new)).await
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

/// The answer with its line in the log: nobody else sees this request.
fn refuse<B>(request: &Request<B>, peer: IpAddr, refusal: ApiError) -> Response<Body> {
    let correlation_id = id::correlation_id(None);
    let mut response = refusal.render(request.uri().path(), &correlation_id);
    if let Ok(value) = HeaderValue::from_str(&correlation_id) {
        response.headers_mut().insert(CORRELATION_ID, value);
    }
    headers::harden(response.headers_mut());
    let span = tracing::info_span!("http.request", correlation_id, client_ip = %peer.to_canonical());
    span.in_scope(|| note(request.method().as_str(), "(none)", &response, Duration::ZERO));
    response
}

/// What a proxy in front might understand differently, and so let pass what it should not. (Of `Content-Length` and
/// `Transfer-Encoding` together hyper takes the latter alone, and closes the connection.)
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
