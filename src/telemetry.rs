//! Telemetry: logs, metrics and traces of the process.

pub mod catalogue;
pub mod log;
pub mod memory;
pub mod spans;

use std::{sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

/// Upper bounds of the latency histograms' buckets in seconds: fine in the expected range, up to the hardest limit.
const LATENCY_BUCKETS_SECS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Buckets of the reference.
const REFERENCE_BUCKETS_SECS: [f64; 4] = [0.1, 0.5, 1.0, 5.0];
/// Buckets of run durations, up to a day.
const RUN_BUCKETS_SECS: [f64; 13] =
    [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 10_800.0, 86_400.0];
/// Buckets of requests or writes per statement.
const BATCH_BUCKETS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Version of the program.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Revision of the source that the program was built from; `unknown` if the build had no `REVISION`.
const REVISION: &str = match option_env!("REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// Interval of moving observations into their buckets.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Component of the service, for the metrics of its process.
#[derive(Clone, Copy, Debug)]
pub enum Component {
    /// `serve`.
    Api,
    /// `executor`.
    Executor,
}

/// Recorder of metrics, installed at the first call.
fn recorder() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let buckets: [(&str, &[f64]); 4] = [
            ("api_request_duration_seconds", &REFERENCE_BUCKETS_SECS),
            ("run_writer_batch_size", &BATCH_BUCKETS),
            ("run_reader_batch_size", &BATCH_BUCKETS),
            ("executor_journal_batch_size", &BATCH_BUCKETS),
        ];
        let mut builder = PrometheusBuilder::new().set_buckets(&LATENCY_BUCKETS_SECS).expect("not empty");
        for (name, buckets) in buckets.into_iter().chain([("workflow_duration_seconds", &RUN_BUCKETS_SECS[..])]) {
            builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets).expect("not empty");
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        // This fails only if another recorder is installed, which our code never does.
        drop(metrics::set_global_recorder(recorder));
        catalogue::register(catalogue::PROCESS);
        catalogue::register(catalogue::SHARED);
        handle
    })
}

/// Starts recording metrics; those of this component start at 0.
pub fn count(part: Component) {
    recorder();
    match part {
        Component::Api => {
            catalogue::register(catalogue::API);
            catalogue::register_transitions(catalogue::API_TRANSITIONS);
            catalogue::register_old_names();
        }
        Component::Executor => {
            catalogue::register(catalogue::EXECUTOR);
            catalogue::register_transitions(catalogue::EXECUTOR_TRANSITIONS);
        }
    }
}

/// Loop of a process that moves histogram observations into buckets. Without it, they would be kept one by one if the
/// metrics are never read.
pub async fn keep_histograms_small(stop: CancellationToken) {
    while !stop.is_cancelled() {
        recorder().run_upkeep();
        tokio::select! {
            () = tokio::time::sleep(UPKEEP_EVERY) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Readiness of the process, and the result of each of its checks.
pub fn ready(is_ready: bool, checks: &[(&'static str, bool)]) {
    metrics::gauge!("service_ready").set(f64::from(u8::from(is_ready)));
    for (check, is_ok) in checks {
        metrics::gauge!("service_check", "check" => *check).set(f64::from(u8::from(*is_ok)));
    }
}

/// Sets the metrics of the asynchronous runtime to its present state.
pub fn report_runtime(runtime: &tokio::runtime::Handle) {
    let found = runtime.metrics();
    metrics::gauge!("runtime_workers").set(found.num_workers() as f64);
    metrics::gauge!("runtime_tasks").set(found.num_alive_tasks() as f64);
    metrics::gauge!("runtime_queued_tasks").set(found.global_queue_depth() as f64);
}

/// All metrics in the text format of Prometheus, version 0.0.4.
#[must_use]
pub fn render() -> String {
    let recorder = recorder();
    metrics_process::Collector::default().collect();
    metrics::gauge!("build_info", "version" => VERSION, "revision" => REVISION).set(1.0);
    let mut text = recorder.render();
    text.push_str(&catalogue::old_names(&text));
    text
}
