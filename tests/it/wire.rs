//! What comes over the wire: requests that no client library would send, and clients that are slow on purpose.

use std::{net::SocketAddr, time::Duration};

use rustix::net::sockopt;
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::{Builder, Handle},
};
use tokio_util::sync::CancellationToken;
use workflow_api::{db::migrations::MIGRATOR, lifecycle::Lifecycle, server};

use crate::service::{Service, config, eventually, passing};

/// A service behind a real port.
struct Listening {
    service: Service,
    lifecycle: Lifecycle,
    address: SocketAddr,
}

impl Listening {
    fn start(pool: &PgPool, max_connections: usize) -> Self {
        let listener = server::bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        Self::start_at(listener, pool, max_connections)
    }

    fn start_at(listener: TcpListener, pool: &PgPool, max_connections: usize) -> Self {
        Self::start_with(listener, pool, max_connections, Handle::current())
    }

    /// `requests` is the runtime of all requests but probes.
    fn start_with(listener: TcpListener, pool: &PgPool, max_connections: usize, requests: Handle) -> Self {
        let service = Service::start_with(config(pool, &[]));
        let address = listener.local_addr().expect("an address");
        let lifecycle = Lifecycle::new();
        let keep_alive = Duration::from_secs(75);
        let bounds = server::Bounds { regular: max_connections, spare: 256, keep_alive };
        tokio::spawn(server::serve(
            listener,
            service.router.clone(),
            lifecycle.clone(),
            bounds,
            service.clock.clone(),
            Some(requests),
        ));
        Self { service, lifecycle, address }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("a connection")
    }

    /// Everything that comes back until the service closes the connection.
    async fn exchange(&self, request: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request).await.expect("it is taken");
        rest(&mut stream).await
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.lifecycle.hard_stop().cancel();
        self.service.lifecycle.hard_stop().cancel();
    }
}

/// What comes until the end; a reset is one.
async fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let mut bytes = vec![0; 16 << 10];
    loop {
        match stream.read(&mut bytes).await {
            Ok(0) | Err(_) => return String::from_utf8_lossy(&all).into_owned(),
            Ok(count) => all.extend_from_slice(&bytes[..count]),
        }
    }
}

/// The statuses of the answers, and the codes in them.
fn summary(answers: &str) -> String {
    let statuses =
        answers.match_indices("HTTP/1.").filter_map(|(position, _)| answers.get(position + 9..position + 12));
    let codes =
        answers.match_indices("\"code\":\"").filter_map(|(position, _)| answers[position + 8..].split('"').next());
    statuses.chain(codes).collect::<Vec<_>>().join(" ")
}

/// A request to close after, with these further header lines and this body.
fn post(headers: &str, body: &str) -> Vec<u8> {
    format!("POST /api/v1/agents HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n{body}").into_bytes()
}

fn get(headers: &str) -> Vec<u8> {
    format!("GET /health HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").into_bytes()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn probes_are_answered_while_the_threads_of_requests_are_busy(pool: PgPool) {
    let listener = server::bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    // It does nothing yet, like a thread with much to do.
    let requests = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let listening = Listening::start_with(listener, &pool, 100, requests.handle().clone());
    let request = b"GET /api/v1/agents HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let mut other = listening.connect().await;
    other.write_all(request).await.expect("it is taken");
    // The second request on a connection that begins with a probe is no probe.
    let mut both = listening.connect().await;
    both.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("it is taken");
    let mut answer = [0; 16];
    both.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200 OK\r");
    both.write_all(request).await.expect("it is taken");
    assert_eq!(summary(&listening.exchange(&get("Host: x\r\n")).await), "200");

    let end = CancellationToken::new();
    let ended = end.clone();
    let busy = tokio::task::spawn_blocking(move || requests.block_on(ended.cancelled()));
    assert_eq!(summary(&rest(&mut other).await), "200");
    assert_eq!(summary(&rest(&mut both).await), "200");
    end.cancel();
    busy.await.expect("no panic");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_message_whose_end_is_in_doubt_is_refused_and_nothing_behind_it_is_read(pool: PgPool) {
    let listening = Listening::start(&pool, 100);
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let ended = format!("0\r\n\r\n{smuggled}");
    for (headers, body, expected) in [
        // Of both the length by chunks counts (RFC 9112, 6.1), and the connection ends.
        ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", ended.as_str(), "422 validation_error"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", &ended, "422 validation_error"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", &ended, "400"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", &ended, "400 bad_request"),
        ("Transfer-Encoding: chunked, chunked\r\n", &ended, "400 bad_request"),
        ("Transfer-Encoding: gzip, chunked\r\n", &ended, "400 bad_request"),
        ("Transfer-Encoding: chunked, gzip\r\n", &ended, "400"),
        ("Transfer-Encoding: xchunked\r\n", &ended, "400"),
        ("Transfer-Encoding: \x0bchunked\r\n", &ended, "400"),
        ("Transfer-Encoding : chunked\r\n", &ended, "400"),
        ("Transfer-Encoding:\r\n chunked\r\n", &ended, "400"),
        ("Content-Length: 2\r\nContent-Length: 3\r\n", "{}a", "400"),
        ("Content-Length: 2, 2\r\n", "{}", "400"),
        ("Content-Length: 2, 3\r\n", "{}", "400"),
        ("Content-Length: +2\r\n", "{}", "400"),
        ("Content-Length: -1\r\n", "{}", "400"),
        ("Content-Length: 0x2\r\n", "{}", "400"),
        ("Content-Length: 2.0\r\n", "{}", "400"),
        ("Content-Length: \r\n", "{}", "400"),
        ("Content-Length: 99999999999999999999999\r\n", "{}", "400"),
        ("Content-Length: 2\r\nContent-Length: 2\r\n", "{}", "422 validation_error"),
        ("Content-Length: 2000000\r\nExpect: 100-continue\r\n", "", "413 payload_too_large"),
        ("Transfer-Encoding: chunked\r\n", "2;name=value\r\n{}\r\n0\r\n\r\n", "422 validation_error"),
        ("Transfer-Encoding: chunked\r\n", "2\r\n{}\r\n0\r\nContent-Length: 9\r\n\r\n", "422 validation_error"),
        ("Transfer-Encoding: chunked\r\n", "zz\r\n{}\r\n0\r\n\r\n", "400 incomplete_body"),
        ("Transfer-Encoding: chunked\r\n", "-2\r\n{}\r\n0\r\n\r\n", "400 incomplete_body"),
        ("Transfer-Encoding: chunked\r\n", "0x2\r\n{}\r\n0\r\n\r\n", "400 incomplete_body"),
        ("Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\n{}\r\n0\r\n\r\n", "400 incomplete_body"),
        ("Transfer-Encoding: chunked\r\n", "2\n{}\n0\n\n", "400 incomplete_body"),
        ("Transfer-Encoding: chunked\r\n", "2\r\n{}0\r\n\r\n", "400 incomplete_body"),
        (
            "Transfer-Encoding: chunked\r\n",
            &format!("2;{}\r\n{{}}\r\n0\r\n\r\n", "x".repeat(40_000)),
            "400 incomplete_body",
        ),
        (
            "Transfer-Encoding: chunked\r\n",
            &format!("2\r\n{{}}\r\n0\r\n{}\r\n", "A: b\r\n".repeat(5000)),
            "400 incomplete_body",
        ),
    ] {
        let answers = listening.exchange(&post(headers, body)).await;
        assert_eq!(summary(&answers), expected, "{headers:?} {body:.60}");
        assert!(!answers.contains("smuggled"), "{headers:?}");
    }
    // A body that nobody asked for is no request.
    let head = get(&format!("Host: x\r\nContent-Length: {}\r\n", smuggled.len()));
    let answers = listening.exchange(&[&head[..], smuggled.as_bytes()].concat()).await;
    assert_eq!(summary(&answers), "400 unexpected_body");
    assert!(!answers.contains("smuggled"), "{answers}");
}

/// As above, over connections that nobody asked to close.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_connection_is_closed_after_a_message_whose_end_is_in_doubt(pool: PgPool) {
    let listening = Listening::start(&pool, 100);
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let ended = format!("0\r\n\r\n{smuggled}");
    for (head, body) in [
        ("Host: x\r\nTransfer-Encoding: chunked, chunked\r\n", ended.as_str()),
        ("Host: x\r\nTransfer-Encoding: gzip, chunked\r\n", &ended),
        ("Host: x\r\nTransfer-Encoding: ,chunked\r\n", &ended),
        ("Host: x\r\nTransfer-Encoding: chunked,\r\n", &ended),
        ("Host: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", &ended),
        ("Host: x\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", &ended),
        ("Host: x\r\nTransfer-Encoding: chunked;q=1\r\n", &ended),
        ("Host: x\r\nTransfer-Encoding: \"chunked\"\r\n", &ended),
        ("Host: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n", &ended),
        ("Host: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n", &ended),
        ("Host: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n", smuggled),
        ("Host: x\r\nTransfer-Encoding:\r\n chunked\r\n", &ended),
        ("Host: x\r\nHost: y\r\n", smuggled),
        ("", smuggled),
        ("Host: a b\r\n", smuggled),
        ("Host: x\r\nTransfer-Encoding: chunked\r\n", &format!("2\n{{}}\n0\n\n{smuggled}")),
        ("Host: x\r\nTransfer-Encoding: chunked\r\n", &format!("2\r\n{{}}0\r\n\r\n{smuggled}")),
        ("Host: x\r\nTransfer-Encoding: chunked\r\n", &format!("2;a\n\r\n{{}}\r\n0\r\n\r\n{smuggled}")),
    ] {
        let answers = listening.exchange(format!("POST /api/v1/agents HTTP/1.1\r\n{head}\r\n{body}").as_bytes()).await;
        assert!(["4", "400"].iter().any(|status| summary(&answers).starts_with(status)), "{head:?}: {answers}");
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{head:?}: {answers}");
        assert!(!answers.contains("smuggled"), "{head:?}: {answers}");
        assert!(answers.to_ascii_lowercase().contains("\r\nconnection: close\r\n"), "{head:?}: {answers}");
    }
}

/// A reset would take the answer from a client that reads only when it has sent all.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_client_that_sends_all_before_it_reads_gets_the_answer(pool: PgPool) {
    let listening = Listening::start(&pool, 100);
    let post = |headers: &str| format!("POST /api/v1/agents HTTP/1.1\r\n{headers}\r\n");
    for (head, mib, expected) in [
        (post("Host: x\r\nHost: y\r\nContent-Length: 8388608\r\n"), 8, "400 bad_request"),
        (post("Host: x\r\nTransfer-Encoding: gzip, chunked\r\n"), 8, "400 bad_request"),
        (post("Host: x\r\nContent-Length: x\r\n"), 8, "400"),
        (post("Host: x\r\nContent-Length: 50331648\r\n"), 48, "413 payload_too_large"),
        (post("Host: x\r\nTransfer-Encoding: chunked\r\n"), 8, "400 incomplete_body"),
        ("GET / HTTP/1.1\r\nHost: x\r\nX-Long: ".to_owned(), 8, "431"),
        ("NONSENSE\r\n\r\n".to_owned(), 8, "400"),
    ] {
        let request = [head.as_bytes(), &vec![b'x'; mib << 20]].concat();
        let answer = listening.exchange(&request).await;
        assert_eq!(summary(&answer), expected, "{head}");
        assert!(answer.to_ascii_lowercase().contains("\r\nconnection: close\r\n"), "{head}: {answer}");
    }
    // What is refused at once, from a client that takes longer than its body is waited for.
    let mut slow = listening.connect().await;
    let half = vec![b'x'; 1 << 20];
    let head = "GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 2097152\r\n\r\n";
    slow.write_all(&[head.as_bytes(), &half].concat()).await.expect("it is taken");
    passing(&listening.service.clock, Duration::from_secs(2), slow.readable()).await.0.expect("an answer");
    slow.write_all(&half).await.expect("it is taken");
    assert_eq!(summary(&rest(&mut slow).await), "400 unexpected_body");
    // And what is refused for want of a place.
    let full = Listening::start(&pool, 0);
    let request = [post("Host: x\r\nContent-Length: 8388608\r\n").as_bytes(), &vec![b'x'; 8 << 20]].concat();
    assert_eq!(summary(&full.exchange(&request).await), "503 too_many_connections");
}

/// A crowd of idle connections keeps nobody out.
#[sqlx::test(migrator = "MIGRATOR")]
async fn the_connection_that_was_idle_longest_makes_room(pool: PgPool) {
    let listening = Listening::start(&pool, 3);
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(listening.connect().await);
    }
    let request = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    eventually("there is a permit", || async {
        (summary(&listening.exchange(request).await) == "404 not_found").then_some(())
    })
    .await;
    drop(idle);
}

/// As a load balancer sees a restart: what is connected is answered, and told to connect elsewhere.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_server_that_stops_answers_whoever_is_connected(pool: PgPool) {
    let listening = Listening::start(&pool, 100);
    let mut connections = Vec::new();
    for _ in 0..30 {
        connections.push(listening.connect().await);
    }
    // Some of them have not been accepted yet.
    listening.lifecycle.soft_stop().cancel();
    for connection in &mut connections {
        connection.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("it is taken");
    }
    for connection in &mut connections {
        let answer = rest(connection).await;
        assert_eq!(summary(&answer), "200");
        assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_malformed_head_is_refused(pool: PgPool) {
    let listening = Listening::start(&pool, 100);
    let long = |bytes: usize| format!("Host: x\r\nA: {}\r\n", "b".repeat(bytes));
    let many = |count: usize| format!("Host: x\r\nConnection: close\r\n{}", "A: b\r\n".repeat(count - 3));
    for (headers, expected) in [
        ("Host: x\r\nX-A: b\r\n c\r\n", "400"),
        ("Host: x\r\nX-A: b\0c\r\n", "400"),
        ("Host: x\r\nX\0A: b\r\n", "400"),
        ("Host: x\r\nX-A: b\rc\r\n", "400"),
        ("Host: x\r\nno colon\r\n", "400"),
        ("Host: x\r\n: no name\r\n", "400"),
        ("Host: x\r\nX A: b\r\n", "400"),
        ("Host: x\r\nX-A: \u{e9}\r\n", "200"),
        ("", "400 bad_request"),
        ("Host: x\r\nHost: x\r\n", "400 bad_request"),
        ("Host: x\r\nHost: y\r\n", "400 bad_request"),
        ("Host: a b\r\n", "400 bad_request"),
        ("Host: user@x\r\n", "400 bad_request"),
        ("Host: x/y\r\n", "400 bad_request"),
        ("Host: \u{e9}\r\n", "400 bad_request"),
        ("Host:\r\n", "200"),
        ("Host: [2001:db8::1]:8000\r\n", "200"),
        ("Host: xn--bcher-kva.example.:80\r\n", "200"),
        ("Host: x\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n", "200"),
        (&long(31_000), "200"),
        (&long(33_000), "431"),
        (&long(500_000), "431"),
        (&many(64), "200"),
        (&many(65), "431"),
    ] {
        let answers = listening.exchange(&get(headers)).await;
        assert_eq!(summary(&answers), expected, "{headers:.60}");
    }
    for (line, expected) in [
        ("GET /health", "400"),
        ("GET /health HTTP/2.0", "400"),
        ("GET /health HTTP/1.2", "400"),
        ("GET /hea lth HTTP/1.1", "400"),
        ("GET /\0 HTTP/1.1", "400"),
        ("GET  /health HTTP/1.1", "400"),
        ("G\tT /health HTTP/1.1", "400"),
        ("get /health HTTP/1.1", "405 method_not_allowed"),
        ("GET http://elsewhere.test/health HTTP/1.1", "200"),
        ("CONNECT elsewhere.test:443 HTTP/1.1", "404 not_found"),
        ("OPTIONS * HTTP/1.1", "404 not_found"),
        ("GET /health HTTP/1.0", "200"),
        ("\x16\x03\x01\x02 HTTP/1.1", "400"),
    ] {
        let request = format!("{line}\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert_eq!(summary(&listening.exchange(request.as_bytes()).await), expected, "{line:?}");
    }
    let line = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(70_000));
    assert_eq!(summary(&listening.exchange(line.as_bytes()).await), "431");
}

/// The answer to what the routes never see is one of ours all the same.
#[sqlx::test(migrator = "MIGRATOR")]
async fn what_the_server_itself_refuses_is_an_error_object_with_headers(pool: PgPool) {
    let listening = Listening::start(&pool, 100);
    let answer = listening.exchange(&get("")).await.to_lowercase();
    for line in
        ["x-correlation-id: req-", "x-content-type-options: nosniff", "cache-control: no-store", "\"request_id\":"]
    {
        assert!(answer.contains(line), "{line}: {answer}");
    }
    assert!(!answer.contains("\r\nserver:"), "{answer}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn requests_that_come_together_are_answered_in_their_order(pool: PgPool) {
    let listening = Listening::start(&pool, 100);
    let one = |path: &str, end: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{end}\r\n");
    let pipeline: String = (0..50).map(|index| one(&format!("/api/v1/runs/r{index}"), "")).collect();
    let answers = listening.exchange((pipeline + &one("/health", "Connection: close\r\n")).as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1 404 ").count(), 50);
    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 1);
    let places: Vec<_> = (0..50).map(|index| answers.find(&format!("/runs/r{index}\"")).expect("its path")).collect();
    assert!(places.is_sorted());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_client_that_is_slow_with_its_request_is_sent_away(pool: PgPool) {
    let listening = Listening::start(&pool, 100);
    let slow = async |head: &str, expected: &str, at_least: u64| {
        let (mut from, mut to) = listening.connect().await.into_split();
        to.write_all(head.as_bytes()).await.expect("it is taken");
        // A byte now and then, for as long as somebody listens.
        let drip = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(50));
            while to.write_all(b"a").await.is_ok() {
                ticks.tick().await;
            }
        });
        let mut answer = Vec::new();
        let read = from.read_to_end(&mut answer);
        // A reset also ends the connection.
        let (_, waited) = passing(&listening.service.clock, Duration::from_secs(1), read).await;
        drip.abort();
        assert_eq!(summary(&String::from_utf8_lossy(&answer)), expected, "{head}");
        assert!(waited >= Duration::from_secs(at_least), "{head} took {waited:?}");
    };
    let body = "POST /api/v1/agents HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n";
    let chunks =
        "POST /api/v1/agents HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n";
    let nowhere = body.replace("/api/v1/agents", "/nowhere");
    slow("GET /health HTTP/1.1\r\nHost: x\r\nX-A: ", "", 10).await;
    slow("G", "", 10).await;
    slow(body, "408 body_timeout", 15).await;
    slow(chunks, "408 body_timeout", 15).await;
    // A route that reads no body does not wait for one.
    slow(&nowhere, "404 not_found", 2).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_idle_connection_is_kept_longer_than_one_without_a_complete_head(pool: PgPool) {
    let listening = Listening::start(&pool, 100);
    let clock = &listening.service.clock;
    let request = &b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"[..];
    let body =
        &b"POST /api/v1/agents HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"[..];
    let answered = async |request: &[u8]| {
        let mut stream = listening.connect().await;
        stream.write_all(request).await.expect("it is taken");
        let mut answer = [0; 16];
        stream.read_exact(&mut answer).await.expect("an answer");
        stream
    };
    for (request, next, at_least, below) in [
        (None, "", 9, 74),
        // The next head has begun.
        (Some(request), "GET /health HTTP/1.1\r\n", 9, 74),
        (Some(request), "", 74, 150),
        (Some(body), "", 74, 150),
    ] {
        let mut stream = match request {
            Some(request) => answered(request).await,
            None => listening.connect().await,
        };
        stream.write_all(next.as_bytes()).await.expect("it is taken");
        let (_, waited) = passing(clock, Duration::from_secs(1), rest(&mut stream)).await;
        let expected = Duration::from_secs(at_least)..Duration::from_secs(below);
        assert!(expected.contains(&waited), "{next:?}: {waited:?} instead of {expected:?}");
    }
    // As a balancer does: again after a minute.
    let mut reused = answered(request).await;
    clock.advance(Duration::from_mins(1));
    reused.write_all(&get("Host: x\r\n")).await.expect("it is taken");
    assert!(rest(&mut reused).await.contains("HTTP/1.1 200 OK"));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_client_that_does_not_take_its_answer_is_let_go(pool: PgPool) {
    let listener = server::bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    // Tests cannot advance the kernel's clock, so the option is shortened.
    assert_eq!(sockopt::tcp_user_timeout(&listener).expect("an option"), 30_000);
    sockopt::set_tcp_user_timeout(&listener, 500).expect("an option");
    let listening = Listening::start_at(listener, &pool, 1);
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let mut greedy = socket.connect(listening.address).await.expect("a connection");
    let requests = "GET /redoc/redoc.standalone.js HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    greedy.write_all(requests.as_bytes()).await.expect("it is taken");
    // The only place is taken until the kernel gives the client up.
    let request = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let others = async || summary(&listening.exchange(request).await);
    assert_eq!(others().await, "503 too_many_connections");
    eventually("the connection is closed", async || (others().await == "404 not_found").then_some(())).await;
    drop(greedy);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn with_all_connections_taken_health_answers_and_all_else_is_refused(pool: PgPool) {
    let listening = Listening::start(&pool, 2);
    let mut held = [listening.connect().await, listening.connect().await];
    for connection in &mut held {
        // Its body is waited for.
        let head = "POST /api/v1/agents HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n";
        connection.write_all(head.as_bytes()).await.expect("it is taken");
    }
    let ask = async |path: &str| {
        let answer = listening.exchange(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
        // Without being asked to close.
        assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
        answer
    };
    for path in ["/health", "/metrics", "/"] {
        assert_eq!(summary(&ask(path).await), "200", "{path}");
    }
    for path in ["/api/v1/agents", "/docs", "/nowhere"] {
        let answer = ask(path).await;
        assert_eq!(summary(&answer), "503 too_many_connections", "{path}");
        assert!(answer.to_lowercase().contains("retry-after: 2"), "{answer}");
    }
    // Who says nothing on a spare one makes room in a second.
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(listening.connect().await);
    }
    let (answer, _) = passing(&listening.service.clock, Duration::from_secs(1), ask("/health")).await;
    assert_eq!(summary(&answer), "200");
    drop((held, silent));
    eventually("there is room again", || async {
        let answer = listening.exchange(b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        (summary(&answer) == "404 not_found").then_some(())
    })
    .await;
}
