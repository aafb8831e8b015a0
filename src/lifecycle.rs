//! Stopping: a soft stop (take nothing new, finish) and a hard one (drop what is left), and what a loop's end means.

use std::{io, time::Duration};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// From a stop signal to the hard stop, the notice included. Under the 30 s that Kubernetes grants by default.
pub const DRAIN: Duration = Duration::from_secs(25);

/// What asks a process to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signalled {
    /// SIGTERM, by whoever supervises the process.
    Terminate,
    /// SIGINT, by a person at a terminal.
    Interrupt,
}

/// SIGTERM and SIGINT, from the moment on in which this is made; before, they end the process at once.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Starts to listen. To be made before there is anything that would have to end in good order.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub async fn stop(&mut self) -> Signalled {
        tokio::select! {
            _ = self.terminate.recv() => Signalled::Terminate,
            _ = self.interrupt.recv() => Signalled::Interrupt,
        }
    }
}

/// Handed to every loop: what stops it, and the list that it is waited for in.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    noticed: CancellationToken,
    soft: CancellationToken,
    hard: CancellationToken,
    failed: CancellationToken,
    tasks: TaskTracker,
}

impl Lifecycle {
    /// A lifecycle that nothing stops yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the process is about to stop, or stopping: whoever asks is told to go elsewhere.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.noticed.is_cancelled() || self.soft.is_cancelled()
    }

    /// Cancelled when the process shall take nothing new and finish what it has.
    #[must_use]
    pub fn soft_stop(&self) -> &CancellationToken {
        &self.soft
    }

    /// Cancelled when the time to finish is over: drop everything, leases run out.
    #[must_use]
    pub fn hard_stop(&self) -> &CancellationToken {
        &self.hard
    }

    /// Starts a loop. A loop that ends before the soft stop, or panics, ends the process with a failing code: a
    /// process that half lives is worse than one that its supervisor starts again.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let this = self.clone();
        self.tasks.spawn(async move {
            let ended = tokio::spawn(task).await;
            if ended.is_err() || !this.soft.is_cancelled() {
                tracing::error!(task = name, "the task {name} ended unasked; the process stops");
                this.failed.cancel();
                this.soft.cancel();
            }
        });
    }

    /// Waits until all tasks have ended, after the soft stop.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Waits for a signal (or the end of a loop), then for the tasks; another signal or [`DRAIN`] is the hard stop.
    /// Between SIGTERM and the soft stop lies the `notice`, in which load balancers learn that the process goes; another
    /// signal ends it. `true`: everything ended as asked.
    pub async fn run_until_stopped(&self, mut signals: Signals, notice: Duration) -> bool {
        let signalled = tokio::select! {
            signalled = signals.stop() => Some(signalled),
            () = self.soft.cancelled() => None,
        };
        let deadline = tokio::time::Instant::now() + DRAIN;
        if signalled == Some(Signalled::Terminate) && !notice.is_zero() {
            tracing::info!("about to stop: not ready any more, and serving for another {} s", notice.as_secs());
            self.noticed.cancel();
            tokio::select! {
                () = tokio::time::sleep(notice) => {}
                _ = signals.stop() => {}
                () = self.soft.cancelled() => {}
            }
        }
        tracing::info!("stopping: nothing new is taken, what is under way is finished");
        self.soft.cancel();
        tokio::select! {
            () = self.ended() => return !self.failed.is_cancelled(),
            _ = signals.stop() => {}
            () = tokio::time::sleep_until(deadline) => {}
        }
        tracing::warn!("not everything ended in time; what is left is dropped");
        self.hard.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(2), self.ended()).await.is_ok();
        ended && !self.failed.is_cancelled()
    }
}
