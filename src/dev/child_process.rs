//! Child processes of `dev`.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::{
    POLL, Signals,
    folder::{Folder, POSTGRES},
    say,
};
use crate::lifecycle;

/// Number of log lines that are shown when a child process has ended.
const LOG_LINES: usize = 15;
/// Time-out for stopping, longer than the child processes need.
const STOP_TIMEOUT: Duration = lifecycle::EXIT.saturating_add(Duration::from_secs(3));

/// Child process.
struct ChildProcess {
    name: &'static str,
    child: Child,
    pid: Pid,
    log: PathBuf,
}

/// All child processes, in the order of their start.
pub(super) struct ChildProcesses<'a> {
    folder: &'a Folder,
    parts: Vec<ChildProcess>,
}

impl<'a> ChildProcesses<'a> {
    pub(super) fn new(folder: &'a Folder) -> Self {
        Self { folder, parts: Vec::new() }
    }

    /// Starts a process with its output in its log.
    pub(super) fn start(&mut self, name: &'static str, mut command: Command) -> anyhow::Result<()> {
        let log = self.folder.log(name);
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // Ctrl-C in the terminal reaches this process alone, which then stops the child processes in order.
        command.process_group(0);
        command.kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("{name} could not be started"))?;
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let pid = pid.with_context(|| format!("{name} ended at once"))?;
        self.parts.push(ChildProcess { name, child, pid, log });
        self.folder.record(name, pid)
    }

    /// Waits until a child process has ended, and returns its status and last log lines.
    pub(super) async fn first_end(&mut self) -> anyhow::Error {
        loop {
            for part in &mut self.parts {
                match part.child.try_wait() {
                    Ok(None) => {}
                    Ok(Some(status)) => return part.ended(status),
                    Err(error) => return anyhow!(error).context(format!("{} cannot be watched", part.name)),
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Stops all child processes, PostgreSQL last. A further signal or the time-out kills the remaining ones.
    pub(super) async fn stop(&mut self, signals: &mut Signals) {
        let (mut database, mut clients): (Vec<_>, Vec<_>) =
            self.parts.drain(..).partition(|part| part.name == POSTGRES);
        end(&mut clients, Signal::TERM, signals).await;
        // Fast shutdown: open connections are closed, all committed data is on disk.
        end(&mut database, Signal::INT, signals).await;
    }
}

impl ChildProcess {
    fn ended(&self, status: ExitStatus) -> anyhow::Error {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n    ");
        anyhow!(
            "{} ended unexpectedly ({status}). Its log is {}; the last lines:\n    {last}",
            self.name,
            self.log.display()
        )
    }

    /// Signals a process that has not been waited for, so that its pid cannot belong to another.
    fn signal(&mut self, signal: Signal) {
        if let Ok(None) = self.child.try_wait() {
            // This fails only if the process has just ended.
            let _ = kill_process(self.pid, signal);
        }
    }
}

async fn end(parts: &mut [ChildProcess], signal: Signal, signals: &mut Signals) {
    for part in parts.iter_mut() {
        part.signal(signal);
    }
    tokio::select! {
        () = all_ended(parts) => return,
        () = tokio::time::sleep(STOP_TIMEOUT) => {}
        () = signals.again() => {}
    }
    for part in parts.iter_mut() {
        say(format!("{} has not ended and is killed", part.name));
        part.signal(Signal::KILL);
    }
    all_ended(parts).await;
}

async fn all_ended(parts: &mut [ChildProcess]) {
    for part in parts {
        // An error means that the process has ended already.
        let _ = part.child.wait().await;
    }
}
