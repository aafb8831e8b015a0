//! The processes that `dev` has started.

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

/// Lines of a log that are shown when its part has ended.
const LOG_LINES: usize = 15;
/// Over the time that the parts take at most to finish what they have.
const STOP_TIMEOUT: Duration = lifecycle::DRAIN.saturating_add(Duration::from_secs(3));

/// A process.
struct ChildProcess {
    name: &'static str,
    child: Child,
    pid: Pid,
    log: PathBuf,
}

/// All of them, in the order of their start.
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
        // Ctrl-C in the terminal reaches this process alone, which then stops the parts in their order.
        command.process_group(0);
        command.kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("{name} could not be started"))?;
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let pid = pid.with_context(|| format!("{name} ended at once"))?;
        self.parts.push(ChildProcess { name, child, pid, log });
        self.folder.record(name, pid)
    }

    /// Waits until a part has ended, and says what is known about it.
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

    /// Stops all parts, PostgreSQL last. A further signal, or too long a wait, kills what is left.
    pub(super) async fn stop(&mut self, signals: &mut Signals) {
        let (mut database, mut clients): (Vec<_>, Vec<_>) =
            self.parts.drain(..).partition(|part| part.name == POSTGRES);
        end(&mut clients, Signal::TERM, signals).await;
        // Fast shutdown: open connections are closed, everything committed is on disk.
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
            "{} ended unasked ({status}). Its log is {}; the last lines:\n    {last}",
            self.name,
            self.log.display()
        )
    }

    /// Only to a process that has not been waited for: its number cannot be another's.
    fn signal(&mut self, signal: Signal) {
        if let Ok(None) = self.child.try_wait() {
            // Fails only if the process has just ended.
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
        // An error means that there is nothing to wait for.
        let _ = part.child.wait().await;
    }
}
