//! Data folder of `dev`: `dev.lock` (locked while it runs), `dev.pid`, `ready` (summary, written after the first run),
//! `processes` (started processes, for cleaning up), `logs/` and `postgres/`.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use super::{POLL, say};

/// Time for processes of a killed supervisor to end in an orderly way. It is short, since an executor waits in vain for
/// the broker, which ended with the supervisor; the next executor resumes its runs.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(2);

/// Name of the process that the others need until they have ended.
pub(super) const POSTGRES: &str = "postgres";

/// Locked data folder.
pub(super) struct Folder {
    root: PathBuf,
    _lock: File,
}

impl Folder {
    /// Creates and locks the folder; `None` while another `dev` has locked it. Ends the processes of a killed one.
    pub(super) fn open(path: &Path) -> anyhow::Result<Option<Self>> {
        fs::create_dir_all(path.join("logs")).with_context(|| format!("cannot create {}", path.display()))?;
        let root = path.canonicalize()?;
        let lock_path = root.join("dev.lock");
        let lock = OpenOptions::new().create(true).append(true).open(&lock_path);
        let lock = lock.with_context(|| format!("cannot open {}", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error).context("cannot lock the folder"),
        }
        let folder = Self { root, _lock: lock };
        folder.end_orphans();
        // The file of an earlier start, or none.
        let _ = fs::remove_file(folder.path("ready"));
        fs::write(folder.path("processes"), "")?;
        fs::write(folder.path("dev.pid"), format!("{}\n", std::process::id()))?;
        Ok(Some(folder))
    }

    /// Path inside of the folder.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Log file of a child process.
    pub(super) fn log(&self, part: &str) -> PathBuf {
        self.root.join("logs").join(format!("{part}.log"))
    }

    /// Records a started process. The time of its start distinguishes it from a later process with the same pid.
    pub(super) fn record(&self, name: &str, pid: Pid) -> anyhow::Result<()> {
        let started = start_time(pid).unwrap_or_default();
        let mut list = OpenOptions::new().append(true).create(true).open(self.path("processes"))?;
        writeln!(list, "{} {started} {name}", pid.as_raw_nonzero())?;
        Ok(())
    }

    /// Records that everything is up, with a summary for a second `dev`.
    pub(super) fn write_ready(&self, summary: &str) -> anyhow::Result<()> {
        let part = self.path("ready.part");
        fs::write(&part, summary)?;
        Ok(fs::rename(part, self.path("ready"))?)
    }

    /// Writes a file that only its owner can read.
    pub(super) fn write_secret(path: &Path, secret: &str) -> anyhow::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(file.write_all(secret.as_bytes())?)
    }

    /// Removes the state files after everything has ended.
    pub(super) fn close(self) {
        for name in ["ready", "dev.pid", "processes"] {
            // The next start would remove them as well.
            let _ = fs::remove_file(self.path(name));
        }
    }

    /// Ends recorded processes that still run because their supervisor was killed.
    fn end_orphans(&self) {
        let list = fs::read_to_string(self.path("processes")).unwrap_or_default();
        let orphans: Vec<Orphan<'_>> = list.lines().filter_map(Orphan::parse).filter(Orphan::is_alive).collect();
        for orphan in &orphans {
            say(format!(
                "Ending {} (pid {}), left behind by an earlier start",
                orphan.name,
                orphan.pid.as_raw_nonzero()
            ));
            // On SIGTERM, PostgreSQL waits for all clients to disconnect; on SIGINT it does not.
            orphan.signal(if orphan.name == POSTGRES { Signal::INT } else { Signal::TERM });
        }
        let deadline = Instant::now() + ORPHAN_TIMEOUT;
        while orphans.iter().any(Orphan::is_alive) {
            if Instant::now() > deadline {
                for orphan in &orphans {
                    orphan.signal(Signal::KILL);
                }
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Line of `processes`.
struct Orphan<'a> {
    pid: Pid,
    started: &'a str,
    name: &'a str,
}

impl<'a> Orphan<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (pid, rest) = line.split_once(' ')?;
        let (started, name) = rest.split_once(' ').filter(|(started, _)| !started.is_empty())?;
        Some(Self { pid: Pid::from_raw(pid.parse().ok()?)?, started, name })
    }

    /// Whether that process runs, and not another one with its pid.
    fn is_alive(&self) -> bool {
        start_time(self.pid).as_deref() == Some(self.started)
    }

    fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // The process may have ended in the meantime.
            let _ = kill_process(self.pid, signal);
        }
    }
}

/// Summary of the running `dev` of that folder.
pub(super) fn summary(path: &Path) -> String {
    fs::read_to_string(path.join("ready")).unwrap_or_else(|_| "It is not ready yet\n".to_owned())
}

/// Start time of a process in ticks since the boot; `None` if it has ended (also for a zombie).
fn start_time(pid: Pid) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name in parentheses may contain anything. The state is the first field after it, the start the twentieth.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18).map(str::to_owned) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_number_and_its_start() {
        let pid = rustix::process::getpid();
        let started = start_time(pid).unwrap();
        assert!(started.parse::<u64>().is_ok(), "{started}");
        let line = format!("{} {started} serve", pid.as_raw_nonzero());
        assert!(Orphan::parse(&line).is_some_and(|process| process.is_alive() && process.name == "serve"));
        let other = format!("{} {started}1 serve", pid.as_raw_nonzero());
        assert!(!Orphan::parse(&other).is_some_and(|process| process.is_alive()));
        assert!(Orphan::parse("").is_none() && Orphan::parse("12  serve").is_none());
    }
}
