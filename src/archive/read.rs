//! Reader of an object, line by line.

use std::{
    collections::VecDeque,
    fs::File,
    io::{Read as _, Write as _},
};

use flate2::write::MultiGzDecoder;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    ArchiveError,
    object::{Header, ObjectName},
};

/// Member of the last line: the number of lines between it and the header.
pub(super) const END: &str = "lines";

/// Source of the bytes of an object.
pub(super) enum Source {
    File(File),
    Response(reqwest::Response),
}

impl Source {
    /// Reads the next bytes; empty at the end.
    async fn next(&mut self) -> Result<Vec<u8>, String> {
        match self {
            // Only commands read archives, so that nothing else waits for the disk.
            Self::File(file) => {
                let mut bytes = vec![0; 64 << 10];
                let length = file.read(&mut bytes).map_err(|error| error.to_string())?;
                bytes.truncate(length);
                Ok(bytes)
            }
            Self::Response(response) => match response.chunk().await {
                Ok(chunk) => Ok(chunk.map(|chunk| chunk.to_vec()).unwrap_or_default()),
                Err(error) => Err(error.without_url().to_string()),
            },
        }
    }
}

/// Row of a table.
#[derive(Deserialize)]
pub struct Line {
    /// Name of the table.
    pub table: String,
    /// Id of its run.
    pub run_id: String,
    /// Columns as a JSON object.
    pub row: Box<RawValue>,
}

#[derive(Deserialize)]
struct End {
    lines: u64,
}

/// Lines of an object. Not more than about one line is in memory.
pub struct Lines {
    name: ObjectName,
    header: Header,
    source: Source,
    decoder: MultiGzDecoder<Vec<u8>>,
    lines: VecDeque<Vec<u8>>,
    /// Number of decoded bytes that contain no line end.
    searched: usize,
    count: u64,
}

impl Lines {
    /// Reads the header.
    pub(super) async fn open(name: &ObjectName, source: Source) -> Result<Self, ArchiveError> {
        let decoder = MultiGzDecoder::new(Vec::new());
        let (name, header) = (name.clone(), Header::new(Vec::new()));
        let mut this = Self { name, header, source, decoder, lines: VecDeque::new(), searched: 0, count: 0 };
        let line = this.line().await?;
        this.header = line.as_deref().and_then(Header::parse).ok_or_else(|| this.damaged())?;
        Ok(this)
    }

    /// Name of the object.
    #[must_use]
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// Header of the object.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads the next row; `None` at the end of a complete object.
    pub async fn next(&mut self) -> Result<Option<Line>, ArchiveError> {
        let line = self.line().await?.ok_or_else(|| self.damaged())?;
        if let Ok(row) = serde_json::from_slice(&line) {
            self.count += 1;
            return Ok(Some(row));
        }
        match serde_json::from_slice::<End>(&line) {
            Ok(end) if end.lines == self.count => self.finish().await.map(|()| None),
            _ => Err(self.damaged()),
        }
    }

    /// Verifies that the object ends here, and its checksum: a changed byte can leave every line readable.
    async fn finish(&mut self) -> Result<(), ArchiveError> {
        if self.line().await?.is_some() || !self.decoder.get_ref().is_empty() {
            return Err(self.damaged());
        }
        self.decoder.try_finish().map_err(|_| self.damaged())
    }

    async fn line(&mut self) -> Result<Option<Vec<u8>>, ArchiveError> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            let bytes = self
                .source
                .next()
                .await
                .map_err(|error| ArchiveError::Server(format!("cannot read {}: {error}", self.name)))?;
            if bytes.is_empty() {
                return Ok(None);
            }
            self.decoder.write_all(&bytes).map_err(|_| self.damaged())?;
            // A flush writes everything that is decoded so far.
            self.decoder.flush().map_err(|_| self.damaged())?;
            let decoded = self.decoder.get_mut();
            while let Some(end) = decoded[self.searched..].iter().position(|byte| *byte == b'\n') {
                let rest = decoded.split_off(self.searched + end + 1);
                self.lines.push_back(std::mem::replace(decoded, rest));
                self.searched = 0;
            }
            self.searched = decoded.len();
        }
    }

    fn damaged(&self) -> ArchiveError {
        ArchiveError::Damaged(self.name.to_string())
    }
}
