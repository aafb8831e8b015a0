//! CPU time and memory of processes, from `/proc`.

use std::{fs, net::SocketAddr, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, Result, bail};

/// Ticks of `/proc/PID/stat` per second, which Linux fixes for all programs.
const TICKS_PER_SEC: f64 = 100.0;

/// Times of one process.
struct Stat {
    parent: u32,
    /// Seconds in user and system mode.
    own: f64,
    /// The same of its children that have ended and were waited for.
    reaped: f64,
}

/// Reads the file `stat` of a process or thread; `None` if it has ended.
fn stat(path: impl AsRef<Path>) -> Option<Stat> {
    let text = fs::read_to_string(path).ok()?;
    // The name of the program can contain blanks and brackets; the state follows its last bracket.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let seconds = |first: usize| {
        let ticks: Option<f64> = fields.get(first..first + 2)?.iter().map(|ticks| ticks.parse::<f64>().ok()).sum();
        Some(ticks? / TICKS_PER_SEC)
    };
    Some(Stat { parent: fields.get(1)?.parse().ok()?, own: seconds(11)?, reaped: seconds(13)? })
}

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// CPU seconds of the calling thread.
pub fn cpu_of_thread() -> f64 {
    stat("/proc/thread-self/stat").map_or(0.0, |stat| stat.own)
}

/// CPU seconds of this process's children that have ended.
pub fn cpu_of_ended_children() -> f64 {
    stat("/proc/self/stat").map_or(0.0, |stat| stat.reaped)
}

/// Kind of a watched process.
#[derive(Clone, Copy, Debug)]
pub enum Watched {
    /// One process.
    Process(u32),
    /// PostgreSQL: the postmaster with all its children, those that have ended included.
    Postmaster(u32),
}

impl Watched {
    /// CPU seconds since its start.
    pub fn cpu(self) -> f64 {
        match self {
            Self::Process(pid) => stat(format!("/proc/{pid}/stat")).map_or(0.0, |stat| stat.own),
            Self::Postmaster(pid) => {
                let of = |stat: Stat| stat.own + stat.reaped;
                let children = pids().into_iter().filter_map(|child| stat(format!("/proc/{child}/stat")));
                let children: f64 = children.filter(|stat| stat.parent == pid).map(of).sum();
                children + stat(format!("/proc/{pid}/stat")).map_or(0.0, of)
            }
        }
    }

    /// Resident memory in MiB. Of PostgreSQL the proportional share of all its processes.
    pub fn resident_mib(self) -> f64 {
        match self {
            Self::Process(pid) => field_kib(&format!("/proc/{pid}/status"), "VmRSS:") / 1024.0,
            Self::Postmaster(pid) => {
                let is_own = |child: &u32| {
                    *child == pid || stat(format!("/proc/{child}/stat")).is_some_and(|stat| stat.parent == pid)
                };
                let shares = pids().into_iter().filter(is_own);
                shares.map(|child| field_kib(&format!("/proc/{child}/smaps_rollup"), "Pss:")).sum::<f64>() / 1024.0
            }
        }
    }
}

/// Resident memory of a process in MiB: its own, and pages of files such as its binary, which the kernel can drop.
pub fn memory_parts(pid: u32) -> [(&'static str, f64); 2] {
    let part = |name| field_kib(&format!("/proc/{pid}/status"), name) / 1024.0;
    [("own", part("RssAnon:")), ("files", part("RssFile:"))]
}

fn field_kib(path: &str, name: &str) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

/// Finds the process that listens on a port of this host.
pub fn listener(port: u16) -> Result<u32> {
    let sockets = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let suffix = format!(":{port:04X}");
    let inode = sockets.iter().flat_map(|table| table.lines()).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // State 0A is LISTEN.
        (fields.get(3) == Some(&"0A") && fields.get(1)?.ends_with(&suffix)).then(|| fields.get(9).copied())?
    });
    let Some(inode) = inode else { bail!("no process listens on port {port} of this host") };
    let socket = format!("socket:[{inode}]");
    let mut pids = pids();
    pids.sort_unstable();
    let holds = |pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|link| link.as_os_str() == socket.as_str())
    };
    pids.into_iter().find(holds).with_context(|| format!("the process on port {port} belongs to another user"))
}

/// Reserves a free port for a moment.
pub fn free_address() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

/// Size of a file in MiB, as it is on the disk's directory.
pub fn file_mib(path: &Path) -> Result<f64> {
    Ok(fs::metadata(path).with_context(|| path.display().to_string())?.size() as f64 / 1_048_576.0)
}

/// Processors of this host.
pub fn cores() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64)
}
