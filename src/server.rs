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
    api::{CORRELATION_ID, client::Peer, error::ApiError, headers, request::note},
    id,
    lifecycle::Lifecycle,
};

/// Connections at a time; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 10_000;
/// A request's headers have to be complete after this, and an idle connection is closed after it.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest request line and headers together.
const MAX_HEADER_BYTES: usize = 32 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// Connections that the kernel may keep ready.
const LISTEN_QUEUE: u32 = 1024;
/// After a failed accept, which is most likely a lack of file descriptors that connections will give back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens the listening socket.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_QUEUE)
}

/// Serves until the soft stop, then finishes the requests under way, at most until the hard stop.
pub async fn serve(listener: TcpListener, router: Router, lifecycle: Lifecycle) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            // The semaphore is never closed.
            Ok(slot) = Arc::clone(&slots).acquire_owned() => {
                tokio::select! {
                    accepted = listener.accept() => accepted.map(|(stream, peer)| (stream, peer.ip(), slot)),
                    () = lifecycle.soft_stop().cancelled() => break,
                }
            }
            () = lifecycle.soft_stop().cancelled() => break,
        };
        let (stream, peer, slot) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "no connection could be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection = graceful.watch(connection(stream, peer, router.clone()));
        let hard_stop = lifecycle.hard_stop().clone();
        tokio::spawn(async move {
            tokio::select! {
                // A connection that ends in an error has ended: the client hung up, or sent what is not HTTP.
                _ = connection => {}
                () = hard_stop.cancelled() => {}
            }
            drop(slot);
        });
    }
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => {}
        () = lifecycle.hard_stop().cancelled() => {}
    }
}

fn connection(
    stream: TcpStream,
    peer: IpAddr,
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
                return Ok(refuse(&request, peer, detail));
            }
            request.extensions_mut().insert(Peer(peer));
            router.oneshot(request.map(Body::new)).await
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .max_header_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
}

/// 400 with its line in the log: nobody else sees this request.
fn refuse<B>(request: &Request<B>, peer: IpAddr, detail: &str) -> Response<Body> {
    let correlation_id = id::correlation_id(None);
    let mut response = ApiError::bad_request("bad_request", detail).render(request.uri().path(), &correlation_id);
    if let Ok(value) = HeaderValue::from_str(&correlation_id) {
        response.headers_mut().insert(CORRELATION_ID, value);
    }
    headers::harden(response.headers_mut());
    let span = tracing::info_span!("http.request", correlation_id, client_ip = %peer.to_canonical());
    span.in_scope(|| note(request.method().as_str(), "(none)", &response, Duration::ZERO));
    response
}

/// What a proxy in front might understand differently, and so let pass what it should not. (Of `Content-Length` and
/// `Transfer-Encoding` together hyper takes the latter alone.)
fn framing_fault<B>(request: &Request<B>) -> Option<&'static str> {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    (request.version() == Version::HTTP_11 && hosts != 1).then_some("Exactly one Host header is expected")
}
