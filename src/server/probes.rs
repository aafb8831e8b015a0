//! Probe thread: accepts connections, and serves those whose first request is a probe (`/health`, `/metrics`).
//!
//! Under overload thousands of requests are ready at a time on the threads of the API, and a probe among them would be
//! answered after all of these. All other connections move to the threads of the API with their first byte.

use std::{io, thread, time::Duration};

use anyhow::Context as _;
use http::Request;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, Handle},
    sync::oneshot,
};

use crate::api::gate::rules;

/// Bytes at the beginning of a connection that show whether its first request is a probe: method and path.
const HEAD_BYTES: usize = 64;
/// Time limit of blocking calls after the end of the thread's work.
const BLOCKING_CALLS_LIMIT: Duration = Duration::from_secs(1);

/// Runs the accept loop on a thread of its own. `serve` gets the listener and the runtime of other requests.
pub async fn on_own_thread<F, S>(listener: TcpListener, serve: F) -> anyhow::Result<()>
where
    F: FnOnce(TcpListener, Handle) -> S + Send + 'static,
    S: Future<Output = ()>,
{
    let requests = Handle::current();
    let listener = listener.into_std()?;
    let (end, ended) = oneshot::channel();
    thread::Builder::new().name("probes".to_owned()).spawn(move || {
        let served = Builder::new_current_thread().enable_all().build().and_then(|runtime| {
            let served = runtime.block_on(async {
                serve(TcpListener::from_std(listener)?, requests).await;
                Ok(())
            });
            runtime.shutdown_timeout(BLOCKING_CALLS_LIMIT);
            served
        });
        // The receiver is dropped only at the end of the process.
        drop(end.send(served));
    })?;
    Ok(ended.await.context("the thread of probes has ended unexpectedly")??)
}

/// Waits for the first bytes. Returns whether they begin a probe.
pub(super) async fn begins_with_probe(stream: &TcpStream) -> io::Result<bool> {
    let mut head = [0; HEAD_BYTES];
    let length = stream.peek(&mut head).await?;
    Ok(head.get(..length).and_then(path_of).is_some_and(rules::is_on_spare_connections))
}

/// Whether a request is a probe.
pub(super) fn is_probe<B>(request: &Request<B>) -> bool {
    rules::is_on_spare_connections(request.uri().path())
}

/// Path of a GET or HEAD request that begins like this; `None` if it is of another kind, or not complete.
fn path_of(head: &[u8]) -> Option<&str> {
    let target = head.strip_prefix(b"GET ").or_else(|| head.strip_prefix(b"HEAD "))?;
    let end = target.iter().position(|byte| matches!(byte, b' ' | b'?'))?;
    std::str::from_utf8(target.get(..end)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_recognised_by_its_first_bytes() {
        for (head, is_probe) in [
            ("GET /health HTTP/1.1\r\nHost: a\r\n", true),
            ("HEAD /health/ready?a=b HTTP/1.1\r\n", true),
            ("GET /metrics HTTP/1.0\r\n", true),
            ("GET /healthy HTTP/1.1\r\n", false),
            ("GET /health", false),
            ("POST /health HTTP/1.1\r\n", false),
            ("GET /api/v1/runs HTTP/1.1\r\n", false),
            ("\u{16}\u{3}\u{1}", false),
        ] {
            assert_eq!(path_of(head.as_bytes()).is_some_and(rules::is_on_spare_connections), is_probe, "{head}");
        }
    }
}
