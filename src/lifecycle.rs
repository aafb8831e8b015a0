//! Lifecycle of a process: a soft stop (accept nothing new, finish), a hard stop (drop the rest), and the end of loops.

use std::{io, time::Duration};

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Time from a stop signal to the hard stop, the notice included.
const DRAIN: Duration = Duration::from_secs(20);
/// Time-out for dropping what is left at the hard stop.
const DROP: Duration = Duration::from_secs(1);
/// Time-out for closing the database connections, and then for calls that block a thread, after the last task.
pub const CLOSE: Duration = Duration::from_secs(2);
/// Time in which a process ends after a stop signal, whatever happens. Below the 30 s that Kubernetes grants by default.
pub const EXIT: Duration = DRAIN.saturating_add(DROP).saturating_add(CLOSE).saturating_add(CLOSE);
/// A second signal within this time counts as the same: `timeout` and terminals signal a group and its leader.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

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

    /// Waits for a signal that is not a duplicate of the previous one.
    async fn again(&mut self) {
        let since = tokio::time::Instant::now();
        self.stop().await;
        while since.elapsed() < SAME_SIGNAL {
            self.stop().await;
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

    /// Waits for a signal (or the end of a loop), then for the tasks. A second signal, or the end of the time that they
    /// have, causes the hard stop. Between SIGTERM and the soft stop is the `notice`, in which load balancers detect that
    /// the process stops.
    /// Returns `true` if all tasks ended in order.
    pub async fn run_until_stopped(&self, mut signals: Signals, notice: Duration) -> bool {
        let signalled = tokio::select! {
            signalled = signals.stop() => Some(signalled),
            () = self.soft.cancelled() => None,
        };
        let deadline = tokio::time::Instant::now() + DRAIN;
        let draining = async {
            if signalled == Some(Signalled::Terminate) && !notice.is_zero() {
                let secs = notice.as_secs();
                tracing::info!("about to stop: not ready any more, requests are served for another {secs} s");
                self.noticed.cancel();
                tokio::select! {
                    () = tokio::time::sleep(notice) => {}
                    () = self.soft.cancelled() => {}
                }
            }
            tracing::info!("stopping: nothing new is accepted, work under way is finished");
            self.soft.cancel();
            self.ended().await;
        };
        tokio::select! {
            () = draining => return !self.failed.is_cancelled(),
            () = signals.again() => tracing::warn!("a second signal: work under way is dropped"),
            () = tokio::time::sleep_until(deadline) => {
                tracing::warn!("not all tasks ended in time; the remaining ones are dropped");
            }
        }
        self.soft.cancel();
        self.hard.cancel();
        let ended = tokio::time::timeout(DROP, self.ended()).await.is_ok();
        ended && !self.failed.is_cancelled()
    }
}
