//! Memory of the process: what the operating system counts, and what the allocator holds of it. It tells a leak (bytes in
//! use grow) from fragmentation (free bytes grow).

use axum::{Json, Router, routing::get};
use serde::Serialize;

/// Memory as the kernel counts it, see `/proc/[pid]/status` in proc(5). In bytes.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Process {
    resident: u64,
    resident_peak: u64,
    anonymous: u64,
    file_backed: u64,
    swapped: u64,
    threads: u64,
}

impl Process {
    /// Reads the figures of a status file. A line that the kernel leaves out counts as 0.
    fn parse(status: &str) -> Self {
        let figure = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default()
        };
        let bytes = |name| figure(name) << 10;
        Self {
            resident: bytes("VmRSS"),
            resident_peak: bytes("VmHWM"),
            anonymous: bytes("RssAnon"),
            file_backed: bytes("RssFile") + bytes("RssShmem"),
            swapped: bytes("VmSwap"),
            threads: figure("Threads"),
        }
    }
}

/// Profile of the allocator, see `malloc_info(3)` of glibc. In bytes.
#[derive(Debug, Serialize)]
struct Allocator {
    name: &'static str,
    arenas: usize,
    /// What the arenas have from the system.
    in_arenas: usize,
    /// Part of the arenas that is free: for later requests, or lost to fragmentation.
    free: usize,
    /// Large values, each in a mapping of its own.
    mapped: usize,
    /// What the program uses: arenas and mappings without the free part.
    in_use: usize,
}

impl Allocator {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn read() -> Option<Self> {
        use malloc_info::info::{SystemType, TotalType};
        let info = malloc_info::malloc_info().ok()?;
        let total = |wanted: &[TotalType]| -> usize {
            info.total.iter().filter(|total| wanted.contains(&total.r#type)).map(|total| total.size).sum()
        };
        let in_arenas = info.system.iter().find(|system| system.r#type == SystemType::Current)?.size;
        let (free, mapped) = (total(&[TotalType::Fast, TotalType::Rest]), total(&[TotalType::Mmap]));
        let in_use = in_arenas.saturating_sub(free) + mapped;
        Some(Self { name: "glibc", arenas: info.heaps.len(), in_arenas, free, mapped, in_use })
    }

    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    fn read() -> Option<Self> {
        None
    }
}

/// Answer of the endpoint. A part is `null` where the system or its allocator does not tell.
#[derive(Serialize)]
struct Memory {
    process: Option<Process>,
    allocator: Option<Allocator>,
}

/// Router of `/memory`.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/memory", get(show))
}

async fn show() -> Json<Memory> {
    // A file of the kernel is read from memory.
    let process = std::fs::read_to_string("/proc/self/status").ok().map(|status| Process::parse(&status));
    Json(Memory { process, allocator: Allocator::read() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_status_of_a_process() {
        let status = "Name:\tworkflow-api\nVmHWM:\t   30 kB\nVmRSS:\t   20 kB\nRssAnon:\t   12 kB\nRssFile:\t    7 kB\n\
                      RssShmem:\t    1 kB\nThreads:\t9\n";
        let expected = Process {
            resident: 20 << 10,
            resident_peak: 30 << 10,
            anonymous: 12 << 10,
            file_backed: 8 << 10,
            swapped: 0,
            threads: 9,
        };
        assert_eq!(Process::parse(status), expected);
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn a_value_is_in_use_until_it_is_dropped() {
        const BYTES: usize = 256 << 20;
        let in_use = || Allocator::read().expect("figures of glibc").in_use;
        let value = vec![1_u8; BYTES];
        let with = in_use();
        assert!(with >= BYTES, "{with}");
        drop(std::hint::black_box(value));
        assert!(in_use() < with - BYTES / 2);
    }
}
