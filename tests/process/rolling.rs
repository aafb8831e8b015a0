//! Rolling restarts: what clients behind a balancer see while the replicas are replaced one after the other.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use reqwest::Client;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::MissedTickBehavior,
};

use crate::program::{Environment, eventually, free_port};

/// Requests per second, if the machine manages that with so many clients.
const RATE: u32 = 300;
/// Clients that each send one request at a time: so a slow machine gets fewer requests instead of a longer queue.
const CLIENTS: usize = 16;
/// How often the balancer asks the replicas whether they are ready.
const POLL: Duration = Duration::from_millis(100);

/// A balancer of connections, like a Service of Kubernetes: a new connection goes to one of the replicas that are
/// ready, in turn, and stays there. It knows nothing of HTTP.
struct Balancer {
    replicas: Vec<Replica>,
    turn: AtomicUsize,
    /// Connections that a replica has refused although it was taken for ready. They go to the other one.
    refused: AtomicUsize,
}

struct Replica {
    address: SocketAddr,
    is_ready: AtomicBool,
}

impl Balancer {
    /// Starts it; with its URL.
    async fn start(addresses: &[SocketAddr]) -> (Arc<Self>, String) {
        let replicas = addresses.iter().map(|address| Replica { address: *address, is_ready: AtomicBool::new(false) });
        let balancer =
            Arc::new(Self { replicas: replicas.collect(), turn: AtomicUsize::new(0), refused: AtomicUsize::new(0) });
        for index in 0..addresses.len() {
            tokio::spawn(Arc::clone(&balancer).watch(index));
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let carrying = Arc::clone(&balancer);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let balancer = Arc::clone(&carrying);
                tokio::spawn(async move { balancer.carry(near).await });
            }
        });
        (balancer, url)
    }

    async fn watch(self: Arc<Self>, index: usize) {
        // A connection of its own each time, as a probe has.
        let client = Client::builder().pool_max_idle_per_host(0).build().expect("a client");
        let replica = &self.replicas[index];
        let mut polls = tokio::time::interval(POLL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            polls.tick().await;
            let answer = client.get(format!("http://{}/health/ready", replica.address)).send().await;
            let is_ready = answer.is_ok_and(|answer| answer.status() == StatusCode::OK);
            replica.is_ready.store(is_ready, Ordering::Relaxed);
        }
    }

    async fn carry(&self, mut near: TcpStream) {
        let mut far = eventually("a replica accepts", async || {
            let ready: Vec<_> =
                self.replicas.iter().filter(|replica| replica.is_ready.load(Ordering::Relaxed)).collect();
            let replica = ready.get(self.turn.fetch_add(1, Ordering::Relaxed) % ready.len().max(1))?;
            let far = TcpStream::connect(replica.address).await;
            if far.is_err() {
                self.refused.fetch_add(1, Ordering::Relaxed);
            }
            far.ok()
        })
        .await;
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        // The ends of both sides are what it carries.
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    }
}

/// What the clients have seen.
#[derive(Default)]
struct Seen {
    acknowledged: HashSet<String>,
    failures: Vec<String>,
    /// Number of requests.
    requests: usize,
}

/// Sends one request: every third starts a run, the others read.
async fn request(client: &Client, url: &str, workflow_id: &str, number: usize, seen: &Mutex<Seen>) {
    let is_start = number.is_multiple_of(3);
    let request = match number % 3 {
        0 => {
            let body = json!({"input_data": {"text": "hello"}});
            client.post(format!("{url}/api/v1/workflows/{workflow_id}/execute")).json(&body)
        }
        1 => client.get(format!("{url}/api/v1/workflows/{workflow_id}")),
        _ => client.get(format!("{url}/api/v1/runs?page_size=5")),
    };
    let outcome = async {
        let answer = request.send().await.map_err(|error| format!("{error:?}"))?;
        let status = answer.status();
        let body: Value = answer.json().await.map_err(|error| format!("{status} {error:?}"))?;
        if status.is_success() { Ok(body) } else { Err(format!("{status} {body}")) }
    };
    let outcome = outcome.await;
    let mut seen = seen.lock().expect("no panic");
    seen.requests += 1;
    match outcome {
        Ok(body) if is_start => drop(seen.acknowledged.insert(body["run_id"].as_str().expect("an id").to_owned())),
        Ok(_) => {}
        Err(failure) => seen.failures.push(format!("request {number}: {failure}")),
    }
}

/// A number from the environment: the whole test takes minutes, and is run by hand.
fn number(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// `ROLLING_RESTARTS=20 ROLLING_NOTICE_SECS=5`, with an optimised build named by `PROGRAM`, is what production has.
#[sqlx::test(migrations = false)]
async fn no_request_fails_while_the_replicas_are_restarted_one_after_the_other(pool: PgPool) {
    let restarts = number("ROLLING_RESTARTS", 4);
    let notice = number("ROLLING_NOTICE_SECS", 1).to_string();
    let first = Environment::new(&pool).with("SHUTDOWN_NOTICE_SECS", &notice).with("LOG_LEVEL", "WARNING");
    let port = free_port();
    let second = Environment { url: format!("http://127.0.0.1:{port}"), ..first.clone() };
    let second = second.with("API_PORT", &port.to_string());
    let environments = [first, second];
    let mut replicas = Vec::new();
    for environment in &environments {
        replicas.push(environment.serve().await);
    }
    let workflow_id = environments[0].chain("load", &["http://127.0.0.1:9/".to_owned()]).await;
    let addresses: Vec<SocketAddr> = environments
        .iter()
        .map(|environment| environment.url.trim_start_matches("http://").parse().expect("an address"))
        .collect();
    let (balancer, url) = Balancer::start(&addresses).await;
    let client = Client::builder().timeout(Duration::from_secs(30)).build().expect("a client");
    eventually("the balancer has a replica", async || client.get(format!("{url}/health")).send().await.ok()).await;

    let seen = Arc::new(Mutex::new(Seen::default()));
    let is_over = Arc::new(AtomicBool::new(false));
    let mut turns = tokio::time::interval(Duration::from_secs(1) / RATE);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let turns = Arc::new(tokio::sync::Mutex::new((turns, 0)));
    let mut load = JoinSet::new();
    for _ in 0..CLIENTS {
        let (client, url, workflow_id) = (client.clone(), url.clone(), workflow_id.clone());
        let (seen, is_over, turns) = (Arc::clone(&seen), Arc::clone(&is_over), Arc::clone(&turns));
        load.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let number = {
                    let mut turns = turns.lock().await;
                    turns.0.tick().await;
                    turns.1 += 1;
                    turns.1
                };
                request(&client, &url, &workflow_id, number, &seen).await;
            }
        });
    }
    for turn in 0..restarts as usize {
        let index = turn % environments.len();
        replicas[index].terminate().await;
        assert_eq!(replicas[index].exit_code().await, 0, "{}", replicas[index].log());
        replicas[index] = environments[index].serve().await;
        eventually("the balancer has both", async || {
            balancer.replicas.iter().all(|replica| replica.is_ready.load(Ordering::Relaxed)).then_some(())
        })
        .await;
    }
    is_over.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.expect("the load does not panic");
    }

    let seen = std::mem::take(&mut *seen.lock().expect("no panic"));
    let refused = balancer.refused.load(Ordering::Relaxed);
    eprintln!("{restarts} restarts, {} requests, {refused} connections refused", seen.requests);
    assert_eq!(seen.failures, [""; 0]);
    let stored: Vec<String> =
        sqlx::query_scalar("SELECT run_id FROM workflow_runs").fetch_all(&pool).await.expect("runs");
    let stored: HashSet<String> = stored.into_iter().collect();
    assert!(!stored.is_empty());
    assert_eq!(seen.acknowledged, stored, "what was acknowledged, and nothing else, is there");
}
