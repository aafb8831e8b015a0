//! A way to the test broker that changes what the broker says.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// Requests that are changed, by their keys in the protocol.
const PRODUCE: i16 = 0;
const METADATA: i16 = 3;
const FIND_COORDINATOR: i16 = 10;
const API_VERSIONS: i16 = 18;
const INIT_PRODUCER_ID: i16 = 22;

/// Clients that connect to it are told that it is the broker, or that there is none.
#[derive(Clone)]
pub struct Detour {
    pub address: SocketAddr,
    is_fenced: Arc<AtomicBool>,
    is_silent: Arc<AtomicBool>,
    told: Arc<AtomicUsize>,
    producers: Arc<AtomicUsize>,
    withheld: Arc<AtomicUsize>,
}

/// Keys and versions of the requests of a connection that are not answered yet, by correlation id.
type Asked = Arc<Mutex<HashMap<[u8; 4], (i16, i16)>>>;

impl Detour {
    pub async fn start() -> Self {
        let brokers = std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS names the test broker");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let detour = Self {
            address,
            is_fenced: Arc::default(),
            is_silent: Arc::default(),
            told: Arc::default(),
            producers: Arc::default(),
            withheld: Arc::default(),
        };
        let accepting = detour.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(&brokers).await.expect("the broker accepts");
                let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                let asked = Asked::default();
                tokio::spawn(requests(near_read, far_write, Arc::clone(&asked)));
                tokio::spawn(accepting.clone().answers(far_read, near_write, asked));
            }
        });
        detour
    }

    /// From now on the broker names topics and no broker, as one does that is fenced; or itself again.
    pub fn fence(&self, is_fenced: bool) {
        self.is_fenced.store(is_fenced, Ordering::Relaxed);
    }

    /// From now on the broker acknowledges nothing that is produced, but answers everything else; or acknowledges again.
    pub fn acknowledge(&self, acknowledges: bool) {
        self.is_silent.store(!acknowledges, Ordering::Relaxed);
    }

    /// Number of idempotent producers that have begun.
    pub fn producers(&self) -> usize {
        self.producers.load(Ordering::Relaxed)
    }

    /// Number of acknowledgements that were withheld.
    pub fn withheld(&self) -> usize {
        self.withheld.load(Ordering::Relaxed)
    }

    /// How often it was said that there is no broker.
    pub fn told(&self) -> usize {
        self.told.load(Ordering::Relaxed)
    }

    async fn answers(self, mut far: OwnedReadHalf, mut near: OwnedWriteHalf, asked: Asked) {
        while let Some(mut answer) = frame(&mut far).await {
            let id: [u8; 4] = answer[..4].try_into().expect("four bytes");
            let (head, body) = answer.split_at(4);
            match asked.lock().expect("no panic").remove(&id) {
                Some((API_VERSIONS, 3..)) => answer = [head, &only_old(body)].concat(),
                Some((PRODUCE, _)) if self.is_silent.load(Ordering::Relaxed) => {
                    self.withheld.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                Some((INIT_PRODUCER_ID, _)) => {
                    self.producers.fetch_add(1, Ordering::Relaxed);
                }
                Some((METADATA, 4)) => answer = [head, &self.renamed(body)].concat(),
                Some((FIND_COORDINATOR, 2)) if body[4..6] == [0, 0] => {
                    let port = answer.len() - 4;
                    answer[port..].copy_from_slice(&u32::from(self.address.port()).to_be_bytes());
                }
                _ => {}
            }
            if send(&mut near, &answer).await.is_none() {
                return;
            }
        }
    }

    /// Metadata in which each broker has the port of this way, or is left out.
    fn renamed(&self, body: &[u8]) -> Vec<u8> {
        let length = |at: usize| usize::from(u16::from_be_bytes([body[at], body[at + 1]]));
        let count = u32::from_be_bytes(body[4..8].try_into().expect("four bytes"));
        let (mut at, mut brokers) = (8, Vec::new());
        for _ in 0..count {
            let host_end = at + 6 + length(at + 4);
            brokers.extend(&body[at..host_end]);
            brokers.extend(u32::from(self.address.port()).to_be_bytes());
            // No rack has the length -1.
            let rack = i16::from_be_bytes([body[host_end + 4], body[host_end + 5]]);
            at = host_end + 6 + usize::try_from(rack).unwrap_or(0);
            brokers.extend(&body[host_end + 4..at]);
        }
        if self.is_fenced.load(Ordering::Relaxed) {
            self.told.fetch_add(1, Ordering::Relaxed);
            return [&body[..4], &[0; 4], &body[at..]].concat();
        }
        [&body[..8], &brokers, &body[at..]].concat()
    }
}

/// Supported versions, with none of those requests in a version that is not read here.
fn only_old(body: &[u8]) -> Vec<u8> {
    let (count, mut answer) = (usize::from(body[2]) - 1, body.to_vec());
    for entry in answer[3..].chunks_exact_mut(7).take(count) {
        let highest: u8 = match i16::from_be_bytes([entry[0], entry[1]]) {
            METADATA => 4,
            FIND_COORDINATOR => 2,
            _ => continue,
        };
        entry[4..6].copy_from_slice(&[0, highest]);
    }
    answer
}

async fn requests(mut near: OwnedReadHalf, mut far: OwnedWriteHalf, asked: Asked) {
    while let Some(request) = frame(&mut near).await {
        let number = |at: usize| i16::from_be_bytes([request[at], request[at + 1]]);
        let id: [u8; 4] = request[4..8].try_into().expect("four bytes");
        asked.lock().expect("no panic").insert(id, (number(0), number(2)));
        if send(&mut far, &request).await.is_none() {
            return;
        }
    }
}

/// The next message; `None` at the end of the connection.
async fn frame(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let mut message = vec![0; usize::try_from(from.read_u32().await.ok()?).ok()?];
    from.read_exact(&mut message).await.ok()?;
    Some(message)
}

async fn send(to: &mut OwnedWriteHalf, message: &[u8]) -> Option<()> {
    to.write_u32(u32::try_from(message.len()).ok()?).await.ok()?;
    to.write_all(message).await.ok()
}
