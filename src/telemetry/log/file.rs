//! Log file with rotation by size: a full `x.log` becomes `x.log.1`, that becomes `x.log.2`, and so on, up to a maximum
//! number. So the log never needs more than a known space.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::Context as _;

use crate::config;

/// Open log file. One process writes it: the rotation of a second one would lose lines.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    max_bytes: u64,
    count: u32,
    file: File,
    bytes: u64,
    json: bool,
    /// Whether the last write failed, which is reported once.
    is_failing: bool,
}

impl LogFile {
    /// Opens the file to append to it.
    pub(super) fn open(settings: &config::LogFile, json: bool) -> anyhow::Result<Self> {
        let config::LogFile { path, max_bytes, count } = settings.clone();
        let (file, bytes) = open(&path).with_context(|| format!("LOG_FILE: {} cannot be written", path.display()))?;
        Ok(Self { path, max_bytes, count, file, bytes, json, is_failing: false })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.max_bytes {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.count).rev() {
            rename_if_there(&numbered(&self.path, number), &numbered(&self.path, number + 1))?;
        }
        rename_if_there(&self.path, &numbered(&self.path, 1))?;
        (self.file, self.bytes) = open(&self.path)?;
        Ok(())
    }
}

impl Drop for LogFile {
    /// Without this, a child that has not begun its program yet would hold the lock on.
    fn drop(&mut self) {
        // If it fails, the end of the process releases the lock.
        self.file.unlock().ok();
    }
}

/// Writes a line to the file. The log on stdout has it in any case; a failure is reported there.
pub(super) fn write(file: &Mutex<LogFile>, line: &[u8]) {
    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
    let result = file.write(line);
    if let Err(error) = &result
        && !file.is_failing
    {
        let (path, json) = (file.path.display().to_string(), file.json);
        let line = super::own_line(json, &format!("LOG_FILE {path} cannot be written: {error}"));
        // If stdout fails too, there is no other place.
        io::stdout().write_all(line.as_bytes()).ok();
    }
    file.is_failing = result.is_err();
}

/// Opens a file for this process alone, and returns it with its size.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(io::Error::other("another process writes it")),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_are_renamed_and_the_oldest_is_replaced() {
        let folder = std::env::temp_dir().join(format!("workflow-api-log-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).expect("a folder");
        let settings = config::LogFile { path: folder.join("x.log"), max_bytes: 10, count: 2 };
        let mut file = LogFile::open(&settings, true).expect("a file");
        assert!(LogFile::open(&settings, true).expect_err("it is locked").to_string().contains("LOG_FILE"));
        for line in ["one\n", "two\n", "three\n", "a line longer than a file\n", "four\n", "five\n"] {
            file.write(line.as_bytes()).expect("written");
        }
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        assert_eq!(read("x.log"), "four\nfive\n");
        assert_eq!(read("x.log.1"), "a line longer than a file\n");
        assert_eq!(read("x.log.2"), "three\n");
        assert_eq!(std::fs::read_dir(&folder).expect("the folder").count(), 3);
        drop(file);
        let mut again = LogFile::open(&settings, true).expect("a file");
        again.write(b"six\n").expect("written");
        assert_eq!((read("x.log").as_str(), read("x.log.1").as_str()), ("six\n", "four\nfive\n"));
        std::fs::remove_dir_all(folder).expect("removed");
    }
}
