//! Benchmarks of the service, interleaved with controls that do the same work without it.
//!
//! `./deploy-api.sh bench` starts PostgreSQL and Kafka, builds the service and runs this program;
//! `docs/performance.md` says what each number means. By hand: `DATABASE_URL` and `KAFKA_BROKERS` name servers on this
//! host that may be loaded, `PROGRAM` the service's binary, `BENCH_SETTINGS` further settings of the service
//! (`"API_WORKERS=1 LOG_LEVEL=INFO"`). Databases and topics are new ones, and are removed at the end.
//!
//! An aim that is missed is shown. A failed check, such as a run that is missing in the topic, makes the exit code 1.

mod checks;
mod controls;
mod events;
mod execute;
mod fill;
mod http;
mod kafka;
mod latency;
mod load;
mod meter;
mod overload;
mod plot;
mod process;
mod reads;
mod report;
mod runs;
mod scale;
mod soak;
mod stack;
mod start;
mod statistics;
mod webhooks;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use rustix::process::{Resource, getrlimit, setrlimit};

use self::{report::Report, stack::Bench};

/// Benchmarks of workflow-api.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    benchmark: Option<Benchmark>,
    /// Added by cargo.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Benchmark {
    /// Starting runs, against the same inserts by pgbench
    Execute {
        /// Length of each measurement
        #[arg(default_value_t = 8)]
        seconds: u64,
        /// Interleaved rounds
        #[arg(default_value_t = 5)]
        rounds: usize,
    },
    /// Reading a run and a page of runs, against a bare server
    Reads {
        /// Length of each measurement
        #[arg(default_value_t = 3)]
        seconds: u64,
        /// Interleaved rounds
        #[arg(default_value_t = 5)]
        rounds: usize,
    },
    /// Whole runs: throughput, latency, loops, parked runs
    Runs {
        /// Length of each measurement
        #[arg(default_value_t = 6)]
        seconds: u64,
        /// Interleaved rounds
        #[arg(default_value_t = 5)]
        rounds: usize,
    },
    /// Latency of executes against load
    Latency {
        /// Length of each measurement
        #[arg(default_value_t = 8)]
        seconds: u64,
    },
    /// Three times the capacity, organisations beside each other, a backlog
    Overload {
        /// Length of each measurement
        #[arg(default_value_t = 8)]
        seconds: u64,
        /// Messages of the backlog; from 100 000 on, new requests are refused
        #[arg(default_value_t = 90_000)]
        backlog: i64,
    },
    /// Every list at many runs against ten thousand
    Scale {
        /// Runs of the large database
        #[arg(default_value_t = 10_000_000)]
        runs: i64,
    },
    /// Constant load of whole runs: memory, latency, dead tuples
    Soak {
        /// Length
        minutes: u64,
    },
    /// Deliveries of webhooks, and an endpoint beside one that does not answer
    Webhooks {
        /// Events of a round
        #[arg(default_value_t = 10_000)]
        events: usize,
        /// Rounds
        #[arg(default_value_t = 3)]
        rounds: usize,
    },
    /// Whole runs with and without the triggers that record events
    Events {
        /// Length of each measurement
        #[arg(default_value_t = 6)]
        seconds: u64,
        /// Interleaved rounds
        #[arg(default_value_t = 6)]
        rounds: usize,
    },
    /// Start, memory, size of the binary
    Start {
        /// Starts
        #[arg(default_value_t = 10)]
        rounds: usize,
    },
    /// The control server (internal)
    #[command(name = controls::BARE_SERVER, hide = true)]
    BareServer {
        /// Port
        port: u16,
        /// Threads
        workers: usize,
    },
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    if let Some(Benchmark::BareServer { port, workers }) = cli.benchmark {
        controls::serve_bare(port, workers)?;
        return Ok(ExitCode::SUCCESS);
    }
    raise_descriptor_limit()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(run(cli.benchmark))
}

async fn run(benchmark: Option<Benchmark>) -> Result<ExitCode> {
    let bench = Bench::open().await?;
    let is_sound = measure_all(&bench, benchmark).await;
    bench.close().await?;
    Ok(if is_sound? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs and publishes the benchmarks; whether all checks have succeeded.
async fn measure_all(bench: &Bench, benchmark: Option<Benchmark>) -> Result<bool> {
    let environment = bench.describe().await?;
    println!("{environment:#}");
    let benchmarks = match benchmark {
        Some(benchmark) => vec![benchmark],
        None => vec![
            Benchmark::Execute { seconds: 6, rounds: 5 },
            Benchmark::Reads { seconds: 2, rounds: 3 },
            Benchmark::Runs { seconds: 5, rounds: 3 },
            Benchmark::Latency { seconds: 5 },
            Benchmark::Overload { seconds: 5, backlog: 90_000 },
            Benchmark::Start { rounds: 10 },
        ],
    };
    let mut is_sound = true;
    for benchmark in benchmarks {
        let report = measure(bench, benchmark).await?;
        report.publish(&environment)?;
        is_sound &= report.is_sound();
    }
    Ok(is_sound)
}

async fn measure(bench: &Bench, benchmark: Benchmark) -> Result<Report> {
    match benchmark {
        Benchmark::Execute { seconds, rounds } => execute::run(bench, seconds, rounds).await,
        Benchmark::Reads { seconds, rounds } => reads::run(bench, seconds, rounds).await,
        Benchmark::Runs { seconds, rounds } => runs::run(bench, seconds, rounds).await,
        Benchmark::Latency { seconds } => latency::run(bench, seconds).await,
        Benchmark::Overload { seconds, backlog } => overload::run(bench, seconds, backlog).await,
        Benchmark::Scale { runs } => scale::run(bench, runs).await,
        Benchmark::Soak { minutes } => soak::run(bench, minutes).await,
        Benchmark::Webhooks { events, rounds } => webhooks::run(bench, events, rounds).await,
        Benchmark::Events { seconds, rounds } => events::run(bench, seconds, rounds).await,
        Benchmark::Start { rounds } => start::run(bench, rounds).await,
        Benchmark::BareServer { .. } => unreachable!("main serves it"),
    }
}

/// Raises the soft limit of file descriptors to the hard limit: an open loop can need thousands of connections.
fn raise_descriptor_limit() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}
