//! Load generator: requests over HTTP/1.1 from one thread of its own, whose CPU time is counted.
//!
//! A closed loop measures capacity: each client sends its next request when it has its answer. An open loop measures
//! latency: requests are due at a fixed rate, whatever the answers do, and their latency counts from the time at which
//! they were due (corrected for coordinated omission).

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use http::header::{LOCATION, RETRY_AFTER};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::LocalSet,
};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::{
    http::{Answer, Call, Connection},
    process,
    statistics::Latencies,
};

/// Builds the request with that number.
pub type Requests = Arc<dyn Fn(usize) -> Call + Send + Sync>;

/// Requests that fail without an answer are counted; this many of their errors are kept.
const ERRORS_KEPT: usize = 5;
/// Time limit of a request, after which it counts as failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// The service closes a connection that is idle for 10 s; one that was idle for longer than this is not used again.
const MAX_IDLE: Duration = Duration::from_secs(5);
/// Shortest pause of the open loop's clock: above 4000 requests a second several are sent together.
const TICK: Duration = Duration::from_micros(250);

/// What a load has brought about.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Latencies of the requests that succeeded.
    pub latencies: Latencies,
    /// Latencies of the requests that were refused.
    pub refusals: Latencies,
    /// Answers by status.
    pub statuses: BTreeMap<u16, usize>,
    /// Refusals (503 and 429) without `Retry-After`.
    pub without_retry_after: usize,
    /// Requests without an answer, and the first of their errors.
    pub failed: usize,
    /// See `failed`.
    pub errors: Vec<String>,
    /// Ids of the runs that were acknowledged.
    pub run_ids: Vec<Uuid>,
    /// Requests that succeeded before the end of the load.
    pub in_time: usize,
    /// Requests that an open loop has sent before its end; fewer than were due if the generator was too slow.
    pub sent_in_time: usize,
    /// Length of the load in seconds.
    pub seconds: f64,
    /// CPU seconds of the load generator.
    pub cpu: f64,
}

impl Outcome {
    /// Requests that succeeded, per second.
    pub fn rate(&self) -> f64 {
        self.in_time as f64 / self.seconds
    }

    /// Number of requests with an answer of that kind.
    pub fn answers(&self, mut is_wanted: impl FnMut(u16) -> bool) -> usize {
        self.statuses.iter().filter(|(status, _)| is_wanted(**status)).map(|(_, count)| count).sum()
    }

    /// Number of requests.
    pub fn requests(&self) -> usize {
        self.answers(|_| true) + self.failed
    }

    /// Problem of a load that must not meet refusals.
    pub fn fault(&self) -> Option<String> {
        let others = self.answers(|status| !(200..300).contains(&status));
        (others + self.failed > 0).then(|| {
            format!("statuses {:?}, {} without an answer: {}", self.statuses, self.failed, self.errors.join("; "))
        })
    }

    /// Adds another outcome, but for its times.
    pub fn merge(&mut self, other: Self) {
        self.latencies.extend(&other.latencies);
        self.refusals.extend(&other.refusals);
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.without_retry_after += other.without_retry_after;
        self.failed += other.failed;
        self.errors.extend(other.errors.into_iter().take(ERRORS_KEPT - self.errors.len().min(ERRORS_KEPT)));
        self.run_ids.extend(other.run_ids);
        self.in_time += other.in_time;
        self.sent_in_time += other.sent_in_time;
    }

    fn record(&mut self, result: Result<Answer>, latency: Duration, is_in_time: bool) {
        let answer = match result {
            Ok(answer) => answer,
            Err(error) => {
                self.failed += 1;
                if self.errors.len() < ERRORS_KEPT {
                    self.errors.push(format!("{error:#}"));
                }
                return;
            }
        };
        *self.statuses.entry(answer.status.as_u16()).or_default() += 1;
        if answer.status.is_success() {
            self.latencies.add(latency);
            self.in_time += usize::from(is_in_time);
            self.run_ids.extend(run_id(&answer));
        } else {
            self.refusals.add(latency);
            self.without_retry_after += usize::from(!answer.headers.contains_key(RETRY_AFTER));
        }
    }
}

/// Id of the run that an answer announces: the end of `Location`, behind `run-`.
pub fn run_id(answer: &Answer) -> Option<Uuid> {
    let location = answer.headers.get(LOCATION)?.to_str().ok()?;
    Uuid::try_parse(location.rsplit_once("run-")?.1).ok()
}

/// Sends a request within the time limit.
async fn send(connection: &mut Connection, call: Call) -> Result<Answer> {
    tokio::time::timeout(REQUEST_TIMEOUT, connection.send(call)).await.context("no answer within 20 s")?
}

/// Closed loop of so many clients.
pub async fn closed(address: SocketAddr, clients: usize, length: Duration, requests: &Requests) -> Result<Outcome> {
    let requests = Arc::clone(requests);
    on_own_thread(move || async move {
        let mut connections = Vec::new();
        for _ in 0..clients {
            connections.push(Connection::open(address).await?);
        }
        let started = Instant::now();
        let deadline = started + length;
        let tasks: Vec<_> = connections
            .into_iter()
            .enumerate()
            .map(|(client, mut connection)| {
                let requests = Arc::clone(&requests);
                tokio::task::spawn_local(async move {
                    let mut outcome = Outcome::default();
                    // Numbers are different for all requests, and near each other for requests at the same time.
                    for number in (client..).step_by(clients) {
                        let sent = Instant::now();
                        if sent >= deadline {
                            break;
                        }
                        let result = send(&mut connection, requests(number)).await;
                        if result.is_err() {
                            connection = Connection::open(address).await?;
                        }
                        outcome.record(result, sent.elapsed(), Instant::now() <= deadline);
                    }
                    anyhow::Ok(outcome)
                })
            })
            .collect();
        let mut outcome = Outcome { seconds: length.as_secs_f64(), ..Outcome::default() };
        for task in tasks {
            outcome.merge(task.await??);
        }
        Ok(outcome)
    })
    .await
}

/// Rate of an open loop.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Requests per second.
    pub rate: f64,
    /// Length of the load.
    pub length: Duration,
    /// Maximum number of connections; above it requests wait, and their latency counts on.
    pub connections: usize,
}

impl Pace {
    /// Time after the start at which a request is due.
    fn due(self, number: usize) -> Duration {
        Duration::from_secs_f64(number as f64 / self.rate)
    }
}

/// Connections of an open loop, and what it has brought about so far.
struct Open {
    address: SocketAddr,
    requests: Requests,
    /// With the times since when they are idle.
    idle: RefCell<Vec<(Connection, Instant)>>,
    permits: Semaphore,
    started: Instant,
    length: Duration,
    outcome: RefCell<Outcome>,
}

impl Open {
    async fn request(&self, number: usize) -> Result<Answer> {
        let _permit = self.permits.acquire().await?;
        let is_usable =
            |(connection, since): &(Connection, Instant)| connection.is_open() && since.elapsed() < MAX_IDLE;
        let mut connection = match std::iter::from_fn(|| self.idle.borrow_mut().pop()).find(is_usable) {
            Some((connection, _)) => connection,
            None => Connection::open(self.address).await?,
        };
        if self.started.elapsed() <= self.length {
            self.outcome.borrow_mut().sent_in_time += 1;
        }
        let answer = send(&mut connection, (self.requests)(number)).await?;
        self.idle.borrow_mut().push((connection, Instant::now()));
        Ok(answer)
    }
}

/// Open loop at a fixed rate.
pub async fn open(address: SocketAddr, pace: Pace, requests: &Requests) -> Result<Outcome> {
    let requests = Arc::clone(requests);
    on_own_thread(move || async move {
        // A few connections beforehand, so that the first requests are like the others.
        let mut idle = Vec::new();
        for _ in 0..pace.connections.min(16) {
            idle.push((Connection::open(address).await?, Instant::now()));
        }
        let started = Instant::now();
        let open = Rc::new(Open {
            address,
            requests,
            idle: RefCell::new(idle),
            permits: Semaphore::new(pace.connections),
            started,
            length: pace.length,
            outcome: RefCell::default(),
        });
        let (clock, mut due) = mpsc::unbounded_channel();
        let clock = thread::spawn(move || keep_time(pace, started, &clock));
        let tracker = TaskTracker::new();
        let mut next = 0;
        while let Some(end) = due.recv().await {
            for number in next..end {
                let open = Rc::clone(&open);
                tracker.spawn_local(async move {
                    let intended = started + pace.due(number);
                    let result = open.request(number).await;
                    let is_in_time = started.elapsed() <= pace.length;
                    open.outcome.borrow_mut().record(result, intended.elapsed(), is_in_time);
                });
            }
            next = end;
        }
        tracker.close();
        tracker.wait().await;
        let mut outcome = open.outcome.take();
        outcome.seconds = pace.length.as_secs_f64();
        outcome.cpu = clock.join().unwrap_or_default();
        Ok(outcome)
    })
    .await
}

/// Sends the number of the requests that are due, in a thread of its own, since timers of tokio have a resolution of
/// one millisecond. Returns the thread's CPU seconds.
fn keep_time(pace: Pace, started: Instant, due: &mpsc::UnboundedSender<usize>) -> f64 {
    let mut next = 0;
    while pace.due(next) < pace.length {
        let wait = pace.due(next).saturating_sub(started.elapsed());
        thread::sleep(wait.max(TICK));
        let elapsed = started.elapsed().min(pace.length);
        while pace.due(next) <= elapsed && pace.due(next) < pace.length {
            next += 1;
        }
        if due.send(next).is_err() {
            break;
        }
    }
    process::cpu_of_thread()
}

/// Runs a load in a thread with a runtime of its own, and adds the thread's CPU time.
async fn on_own_thread<F, T>(work: F) -> Result<Outcome>
where
    F: FnOnce() -> T + Send + 'static,
    T: Future<Output = Result<Outcome>>,
{
    let (result, received) = oneshot::channel();
    thread::Builder::new().name("load".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let outcome = runtime.map_err(Into::into).and_then(|runtime| {
            let mut outcome = LocalSet::new().block_on(&runtime, work())?;
            outcome.cpu += process::cpu_of_thread();
            Ok(outcome)
        });
        // The receiver is gone only if the suite is ending.
        drop(result.send(outcome));
    })?;
    received.await.context("the load generator has died")?
}
