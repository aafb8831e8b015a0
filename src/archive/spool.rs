//! Temporary file of an object that is being written.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    ArchiveError,
    object::{Header, ObjectName},
    read::END,
};

/// Object in a temporary file, which is removed on drop.
pub struct Spooled {
    name: ObjectName,
    path: PathBuf,
    bytes: u64,
    digest: [u8; 32],
}

impl Spooled {
    /// Future name of the object.
    #[must_use]
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// Size of the object.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Path of the temporary file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the content has this digest.
    pub(super) fn is_same(&self, digest: [u8; 32]) -> bool {
        digest == self.digest
    }

    /// Renames the file to its final name in the folder, after its content was read back and compared.
    pub(super) fn keep(self, folder: &Path) -> Result<(), ArchiveError> {
        if !self.is_same(digest_of(&self.path).map_err(ArchiveError::file("read", &self.path))?) {
            return Err(ArchiveError::NotTheSame);
        }
        let target = folder.join(self.name.as_str());
        let failed = ArchiveError::file("write", &target);
        let parent = target.parent().unwrap_or(folder);
        fs::create_dir_all(parent).map_err(&failed)?;
        fs::rename(&self.path, &target).map_err(&failed)?;
        // The entries of the folders must also survive a loss of power.
        let above = parent.ancestors().take_while(|ancestor| ancestor.starts_with(folder));
        above.into_iter().try_for_each(|ancestor| File::open(ancestor)?.sync_all()).map_err(&failed)
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        // The file does not exist any more if it was renamed.
        let _ = fs::remove_file(&self.path);
    }
}

fn digest_of(path: &Path) -> io::Result<[u8; 32]> {
    let (mut file, mut hash, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 64 << 10]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            length => hash.update(&buffer[..length]),
        }
    }
}

/// File with the number of written bytes and their digest.
struct Counted {
    file: File,
    bytes: u64,
    hash: Sha256,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes an object with the header and the lines. The header is a gzip member of its own, so that it can be read
/// alone.
pub(super) fn write(
    folder: &Path,
    header: &Header,
    mut lines: mpsc::Receiver<String>,
) -> Result<Spooled, ArchiveError> {
    let path = folder.join(format!(".workflow-api-{}.tmp", Uuid::new_v4().simple()));
    let failed = ArchiveError::file("write", &path);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(&failed)?;
    // From here on the file is removed on drop.
    let mut spooled = Spooled { name: header.name(), path: path.clone(), bytes: 0, digest: [0; 32] };
    let written = || {
        let counted = Counted { file, bytes: 0, hash: Sha256::new() };
        let mut encoder = GzEncoder::new(counted, Compression::default());
        serde_json::to_writer(&mut encoder, header)?;
        encoder.write_all(b"\n")?;
        let mut encoder = GzEncoder::new(encoder.finish()?, Compression::default());
        let mut count: u64 = 0;
        while let Some(line) = lines.blocking_recv() {
            encoder.write_all(line.as_bytes())?;
            encoder.write_all(b"\n")?;
            count += 1;
        }
        writeln!(encoder, "{{\"{END}\":{count}}}")?;
        let counted = encoder.finish()?;
        counted.file.sync_all()?;
        Ok::<_, io::Error>(counted)
    };
    let counted = written().map_err(&failed)?;
    (spooled.bytes, spooled.digest) = (counted.bytes, counted.hash.finalize().into());
    Ok(spooled)
}
