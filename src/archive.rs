//! Archive of ended runs, in a directory or in a bucket. Runs are written to it before retention deletes them.
//!
//! An object holds some runs as lines of JSON, compressed with gzip (docs/retention.md). It exists as a whole or not at
//! all: it is written to a temporary file, and gets its name only after it was read back and compared. Calls of
//! the file system and compression run on threads for blocking calls.

mod object;
mod read;
mod s3;
mod spool;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tokio::{sync::mpsc, task::JoinHandle};

use self::s3::Bucket;
pub use self::{
    object::{ArchivedRun, Header, ObjectName},
    read::{Line, Lines},
    spool::Spooled,
};
use crate::config;

/// Failure to read or write the archive. Its texts contain no credentials.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file system failed.
    #[error("{0}")]
    File(String),
    /// The server of the bucket cannot be reached, or rejects the request.
    #[error("{0}")]
    Server(String),
    /// The stored object differs from the written one.
    #[error("the stored object differs from the one that was written")]
    NotTheSame,
    /// The object is not an archive, has a later version, or is incomplete.
    #[error("{0} is not a complete archive of this version")]
    Damaged(String),
}

impl ArchiveError {
    fn file(what: &str, path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.display().to_string();
        move |error| Self::File(format!("cannot {what} {path}: {error}"))
    }
}

/// Archive. Cheap to clone.
#[derive(Clone)]
pub struct Archive {
    store: Store,
    /// Value of `RUN_ARCHIVE`.
    location: String,
}

#[derive(Clone)]
enum Store {
    Directory(PathBuf),
    Bucket(Bucket),
}

/// Object of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its name.
    pub name: ObjectName,
    /// Its size.
    pub bytes: u64,
}

impl Archive {
    /// The archive of the settings. It is not accessed yet.
    pub fn new(settings: &config::Archive) -> anyhow::Result<Self> {
        let store = match settings {
            config::Archive::Directory(path) => Store::Directory(path.clone()),
            config::Archive::S3(s3) => Store::Bucket(Bucket::new(s3)?),
        };
        Ok(Self { store, location: settings.location() })
    }

    /// Value of `RUN_ARCHIVE`.
    #[must_use]
    pub fn location(&self) -> &str {
        &self.location
    }

    /// Writes header and lines into a temporary file on a thread of its own, until the other side of the channel is
    /// dropped.
    #[must_use]
    pub fn spool(&self, header: Header, lines: mpsc::Receiver<String>) -> JoinHandle<Result<Spooled, ArchiveError>> {
        let folder = match &self.store {
            // Same file system, so that the file can be renamed. A missing folder is not created: its disk may not be
            // mounted.
            Store::Directory(path) => path.clone(),
            Store::Bucket(_) => std::env::temp_dir(),
        };
        tokio::task::spawn_blocking(move || spool::write(&folder, &header, lines))
    }

    /// Stores the object, as a whole or not at all. Returns its size.
    pub async fn store(&self, spooled: Spooled) -> Result<u64, ArchiveError> {
        let bytes = spooled.bytes();
        match &self.store {
            Store::Directory(path) => {
                let path = path.clone();
                blocking(move || spooled.keep(&path)).await?;
            }
            Store::Bucket(bucket) => bucket.put(&spooled).await?,
        }
        Ok(bytes)
    }

    /// Lists the objects in the order of their names, which is the order of their first ends.
    pub async fn list(&self) -> Result<Vec<Object>, ArchiveError> {
        let mut objects = match &self.store {
            Store::Directory(path) => {
                let path = path.clone();
                blocking(move || list_directory(&path)).await?
            }
            Store::Bucket(bucket) => bucket.list().await?,
        };
        objects.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(objects)
    }

    /// Opens an object.
    pub async fn open(&self, name: &ObjectName) -> Result<Lines, ArchiveError> {
        let source = match &self.store {
            Store::Directory(folder) => {
                let path = folder.join(name.as_str());
                read::Source::File(fs::File::open(&path).map_err(ArchiveError::file("open", &path))?)
            }
            Store::Bucket(bucket) => read::Source::Response(bucket.get(name).await?),
        };
        Lines::open(name, source).await
    }
}

/// Runs calls of the file system on a thread for blocking calls.
async fn blocking<T: Send + 'static>(
    calls: impl FnOnce() -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, ArchiveError> {
    // The panic itself was logged by the panic hook.
    let ended = tokio::task::spawn_blocking(calls).await;
    ended.unwrap_or_else(|_| Err(ArchiveError::File("the archive could not be written".to_owned())))
}

fn list_directory(root: &Path) -> Result<Vec<Object>, ArchiveError> {
    let mut objects = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let failed = ArchiveError::file("read", &folder);
        for entry in fs::read_dir(&folder).map_err(&failed)? {
            let entry = entry.map_err(&failed)?;
            let (path, metadata) = (entry.path(), entry.metadata().map_err(&failed)?);
            if metadata.is_dir() {
                folders.push(path);
            } else if let Some(name) = path.strip_prefix(root).ok().and_then(Path::to_str).and_then(ObjectName::parse) {
                objects.push(Object { name, bytes: metadata.len() });
            }
        }
    }
    Ok(objects)
}
