//! Lifecycle of a process: a soft stop (accept nothing new, finish), a hard stop (drop the rest), and the end of loops.

use std::{io, time::Duration};

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Time from a stop signal to the hard stop, the notice included. Below the 30 s that Kubernetes grants by default.
pub const DRAIN: Duration = Duration::from_secs(25);

/// Signal that stops a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signalled {
    /// SIGTERM, from the supervisor of the process.
    Terminate,
    /// SIGINT, from a user at a terminal.
    Interrupt,
}

/// Handlers of SIGTERM and SIGINT. Before they exist, these signals end the process at once.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs the handlers. Must be called before there is anything that needs an orderly end.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal.
    pub async fn stop(&mut self) -> Signalled {
        tokio::select! {
            _ = self.terminate.recv() => Signalled::Terminate,
            _ = self.interrupt.recv() => Signalled::Interrupt,
        }
    }
}

/// Lifecycle, passed to every loop: it stops the loops and waits for their end.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    noticed: CancellationToken,
    soft: CancellationToken,
    hard: CancellationToken,
    failed: CancellationToken,
    tasks: TaskTracker,
}

impl Lifecycle {
    /// A lifecycle that is not stopped yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the process is about to stop, or stopping, so that clients should use another one.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.noticed.is_cancelled() || self.soft.is_cancelled()
    }

    /// Cancelled when the process must accept nothing new and finish its work.
    #[must_use]
    pub fn soft_stop(&self) -> &CancellationToken {
        &self.soft
    }

    /// Cancelled when the time to finish is over: all work is dropped, and leases expire.
    #[must_use]
    pub fn hard_stop(&self) -> &CancellationToken {
        &self.hard
    }

    /// Starts a loop. A loop that ends before the soft stop, or panics, ends the process with a failing code: a
    /// half-working process is worse than one that its supervisor restarts.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn_boxed(name, task.boxed());
    }

    /// One type of task for all loops: each type is code of its own.
    fn spawn_boxed(&self, name: &'static str, task: BoxFuture<'static, ()>) {
        let this = self.clone();
        self.tasks.spawn(async move {
            let ended = tokio::spawn(task).await;
            if ended.is_err() || !this.soft.is_cancelled() {
                tracing::error!(task = name, "the task {name} ended unexpectedly; the process stops");
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

    /// Waits for a signal (or the end of a loop), then for the tasks. Another signal or [`DRAIN`] causes the hard stop.
    /// Between SIGTERM and the soft stop is the `notice`, in which load balancers detect that the process stops;
    /// another signal ends it. Returns `true` if all tasks ended in order.
    pub async fn run_until_stopped(&self, mut signals: Signals, notice: Duration) -> bool {
        let signalled = tokio::select! {
            signalled = signals.stop() => Some(signalled),
            () = self.soft.cancelled() => None,
        };
        let deadline = tokio::time::Instant::now() + DRAIN;
        if signalled == Some(Signalled::Terminate) && !notice.is_zero() {
            tracing::info!("about to stop: not ready any more, requests are served for another {} s", notice.as_secs());
            self.noticed.cancel();
            tokio::select! {
                () = tokio::time::sleep(notice) => {}
                _ = signals.stop() => {}
                () = self.soft.cancelled() => {}
            }
        }
        tracing::info!("stopping: nothing new is accepted, work under way is finished");
        self.soft.cancel();
        tokio::select! {
            () = self.ended() => return !self.failed.is_cancelled(),
            _ = signals.stop() => {}
            () = tokio::time::sleep_until(deadline) => {}
        }
        tracing::warn!("not all tasks ended in time; the remaining ones are dropped");
        self.hard.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(2), self.ended()).await.is_ok();
        ended && !self.failed.is_cancelled()
    }
}
