//! Stands between the program and PostgreSQL, and holds back the answer to a statement: the server has executed it, and
//! the program does not know. Then the test kills the program.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use sqlx::PgPool;
use tokio::{
    io::{self, AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::program::{Environment, eventually};

/// Codes of the first message of a connection: version 3.0, and a request for TLS.
const VERSION: i32 = 196_608;
const TLS: i32 = 80_877_103;

/// What is cut off: the answer to a statement that has a marker, or follows one in its transaction.
struct Rule {
    markers: Vec<String>,
    /// Number of that statement, from 1.
    number: usize,
    seen: usize,
    /// The statement, as soon as it is sent to the server.
    statement: Option<String>,
}

/// Proxy of one PostgreSQL. Cheap to clone.
#[derive(Clone)]
pub struct Cutter(Arc<Shared>);

struct Shared {
    server: String,
    port: u16,
    rule: Mutex<Option<Rule>>,
    /// Whether the server has executed the statement.
    is_cut: AtomicBool,
    connections: AtomicUsize,
}

/// What both directions of a connection know.
#[derive(Default)]
struct Connection {
    /// In a transaction that has had a marker.
    is_marked: AtomicBool,
    /// Nothing more goes to the program.
    is_held: AtomicBool,
}

impl Cutter {
    /// Starts it in front of the server of this pool.
    pub async fn start(pool: &PgPool) -> Self {
        let options = pool.connect_options();
        let server = format!("{}:{}", options.get_host(), options.get_port());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let (rule, is_cut, connections) = (Mutex::default(), AtomicBool::default(), AtomicUsize::default());
        let cutter = Self(Arc::new(Shared { server, port, rule, is_cut, connections }));
        let accepting = cutter.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(accepting.clone().connect(client));
            }
        });
        cutter
    }

    /// The environment, with this in front of its database.
    pub fn before(&self, environment: &Environment) -> Environment {
        let mut url: url::Url = environment.variables["DATABASE_URL"].parse().expect("a URL");
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.set_port(Some(self.0.port)).expect("a port");
        environment.clone().with("DATABASE_URL", url.as_str())
    }

    /// Cuts off the answer to the statement of this number, from 1, of those that have a marker or follow one in their
    /// transaction.
    pub fn arm(&self, markers: &[&str], number: usize) {
        let markers = markers.iter().map(|&marker| marker.to_owned()).collect();
        self.0.is_cut.store(false, Ordering::SeqCst);
        *self.0.rule.lock().expect("no panic") = Some(Rule { markers, number, seen: 0, statement: None });
    }

    /// Whether that statement is on its way to the server, or has been executed.
    pub fn has_reached(&self) -> bool {
        self.0.rule.lock().expect("no panic").as_ref().is_some_and(|rule| rule.statement.is_some())
    }

    /// That statement, as soon as the server has executed it.
    pub fn cut(&self) -> Option<String> {
        let is_cut = self.0.is_cut.load(Ordering::SeqCst);
        let rule = self.0.rule.lock().expect("no panic");
        rule.as_ref().and_then(|rule| rule.statement.clone()).filter(|_| is_cut)
    }

    /// Waits until the server has ended what it did for programs that are gone, and rolled back what was open.
    pub async fn is_idle(&self) {
        let open = || self.0.connections.load(Ordering::SeqCst);
        eventually("all connections are closed", async || (open() == 0).then_some(())).await;
    }

    async fn connect(self, client: TcpStream) {
        self.0.connections.fetch_add(1, Ordering::SeqCst);
        // It ends with an error if a side goes away in the middle of a message.
        drop(self.serve(client).await);
        self.0.connections.fetch_sub(1, Ordering::SeqCst);
    }

    async fn serve(&self, client: TcpStream) -> io::Result<()> {
        let server = TcpStream::connect(&self.0.server).await?;
        server.set_nodelay(true)?;
        client.set_nodelay(true)?;
        let ((mut from_client, mut to_client), (from_server, mut to_server)) =
            (client.into_split(), server.into_split());
        loop {
            let length = from_client.read_i32().await?;
            let code = from_client.read_i32().await?;
            if code == TLS {
                to_client.write_all(b"N").await?;
                continue;
            }
            let mut rest = vec![0; usize::try_from(length).unwrap_or_default().saturating_sub(8)];
            from_client.read_exact(&mut rest).await?;
            let first = [&length.to_be_bytes()[..], &code.to_be_bytes(), &rest].concat();
            to_server.write_all(&first).await?;
            if code == VERSION {
                break;
            }
            // A request to cancel has no answer.
            return Ok(());
        }
        let connection = Arc::new(Connection::default());
        let answers = tokio::spawn(self.clone().answers(from_server, to_client, Arc::clone(&connection)));
        // However it ends: the server is told, and has ended when it closes the connection.
        let ended = self.statements(from_client, &mut to_server, &connection).await;
        to_server.shutdown().await?;
        answers.await.expect("no panic")?;
        ended
    }

    /// From the program to the server.
    async fn statements(
        &self,
        mut from: OwnedReadHalf,
        to: &mut OwnedWriteHalf,
        connection: &Connection,
    ) -> io::Result<()> {
        let (mut known, mut current, mut is_executed) = (HashMap::new(), String::new(), false);
        while let Some((kind, body)) = message(&mut from).await? {
            match kind {
                b'P' => {
                    let mut parts = texts(&body);
                    let name = parts.next().unwrap_or_default();
                    known.insert(name, parts.next().unwrap_or_default());
                }
                b'B' => {
                    let name = texts(&body).nth(1).unwrap_or_default();
                    current = known.get(&name).cloned().unwrap_or_default();
                }
                b'E' => is_executed = true,
                b'Q' => (current, is_executed) = (texts(&body).next().unwrap_or_default(), true),
                _ => {}
            }
            if matches!(kind, b'Q' | b'S') && std::mem::take(&mut is_executed) && self.is_to_cut(&current, connection) {
                connection.is_held.store(true, Ordering::SeqCst);
            }
            send(to, kind, &body).await?;
        }
        Ok(())
    }

    /// Counts a statement.
    fn is_to_cut(&self, sql: &str, connection: &Connection) -> bool {
        let mut rule = self.0.rule.lock().expect("no panic");
        let Some(rule) = rule.as_mut().filter(|rule| rule.statement.is_none()) else { return false };
        if rule.markers.iter().any(|marker| sql.contains(marker)) {
            connection.is_marked.store(true, Ordering::SeqCst);
        }
        rule.seen += usize::from(connection.is_marked.load(Ordering::SeqCst));
        let is_it = rule.seen == rule.number;
        rule.statement = is_it.then(|| sql.to_owned());
        is_it
    }

    /// From the server to the program.
    async fn answers(
        self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        connection: Arc<Connection>,
    ) -> io::Result<()> {
        while let Some((kind, body)) = message(&mut from).await? {
            let is_end = kind == b'Z';
            if is_end && body == b"I" {
                connection.is_marked.store(false, Ordering::SeqCst);
            }
            if !connection.is_held.load(Ordering::SeqCst) {
                // If the program is gone, the server's end is awaited all the same.
                drop(send(&mut to, kind, &body).await);
            } else if is_end {
                self.0.is_cut.store(true, Ordering::SeqCst);
            }
        }
        Ok(())
    }
}

/// The next message: its kind and its body. `None` at the end.
async fn message(from: &mut OwnedReadHalf) -> io::Result<Option<(u8, Vec<u8>)>> {
    let Ok(kind) = from.read_u8().await else { return Ok(None) };
    let length = usize::try_from(from.read_i32().await?).unwrap_or_default();
    let mut body = vec![0; length.saturating_sub(4)];
    from.read_exact(&mut body).await?;
    Ok(Some((kind, body)))
}

async fn send(to: &mut OwnedWriteHalf, kind: u8, body: &[u8]) -> io::Result<()> {
    let length = i32::try_from(body.len() + 4).expect("it came with a length");
    to.write_all(&[&[kind][..], &length.to_be_bytes(), body].concat()).await
}

/// The texts of a message that end with NUL.
fn texts(body: &[u8]) -> impl Iterator<Item = String> {
    body.split(|&byte| byte == 0).map(|text| String::from_utf8_lossy(text).into_owned())
}
