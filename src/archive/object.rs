//! Object of an archive: its name and its header.

use std::fmt;

use chrono::NaiveDateTime;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Name of the format, in the first line of an object.
const FORMAT: &str = "workflow-api/runs";
/// Version of the format.
const VERSION: i64 = 1;
/// Format of times in names.
const TIME: &str = "%Y%m%dT%H%M%SZ";
/// Suffix of the names of objects.
const SUFFIX: &str = ".ndjson.gz";

/// Name of an object: `YYYY/MM/DD/FIRST_LAST_COUNT_ID.ndjson.gz`, with the ends of its runs. Names sort by the first
/// end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectName(String);

impl ObjectName {
    /// Creates a unique name.
    fn new(header: &Header) -> Self {
        let ends = || header.runs.iter().map(|run| run.ended_at);
        let (first, last) = (ends().min().unwrap_or_default(), ends().max().unwrap_or_default());
        let (day, first, last) = (first.format("%Y/%m/%d"), first.format(TIME), last.format(TIME));
        Self(format!("{day}/{first}_{last}_{}_{}{SUFFIX}", header.runs.len(), Uuid::now_v7().simple()))
    }

    /// Parses the name of an object.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let name = Self(text.to_owned());
        let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/_.".contains(&byte));
        (is_plain && text.split('/').count() == 4 && name.parts().is_some()).then_some(name)
    }

    /// Reads first and last end, and number of runs.
    fn parts(&self) -> Option<(NaiveDateTime, NaiveDateTime, usize)> {
        let mut parts = self.0.rsplit('/').next()?.strip_suffix(SUFFIX)?.split('_');
        let mut time = || NaiveDateTime::parse_from_str(parts.next()?, TIME).ok();
        let (first, last) = (time()?, time()?);
        Some((first, last, parts.next()?.parse().ok()?))
    }

    /// Name in the store.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// First end of a run in it, in whole seconds.
    #[must_use]
    pub fn first(&self) -> NaiveDateTime {
        self.parts().unwrap_or_default().0
    }

    /// Last end of a run in it, in whole seconds.
    #[must_use]
    pub fn last(&self) -> NaiveDateTime {
        self.parts().unwrap_or_default().1
    }

    /// Sort key: an object that was written later has a greater one.
    #[must_use]
    pub fn written_order(&self) -> Option<&str> {
        self.0.rsplit('_').next()
    }

    /// Number of its runs.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.parts().unwrap_or_default().2
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Header, the first line of an object: it lists the runs of the object. It can be read without the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    archive: String,
    version: i64,
    /// The runs.
    pub runs: Vec<ArchivedRun>,
}

/// Entry of a run in the header of its object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "said by the names")]
pub struct ArchivedRun {
    pub run_id: String,
    pub organization_id: String,
    pub workflow_name: String,
    pub status: String,
    /// UTC.
    pub ended_at: NaiveDateTime,
}

impl Header {
    /// The header of an object with these runs.
    #[must_use]
    pub fn new(runs: Vec<ArchivedRun>) -> Self {
        Self { archive: FORMAT.to_owned(), version: VERSION, runs }
    }

    /// Parses a header of this version.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok().filter(|header: &Self| header.archive == FORMAT && header.version == VERSION)
    }

    /// A name for the object.
    pub(super) fn name(&self) -> ObjectName {
        ObjectName::new(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_contains_the_first_and_the_last_end_of_its_runs() {
        let run = |day: i64| ArchivedRun {
            run_id: "r".to_owned(),
            organization_id: "default".to_owned(),
            workflow_name: "w".to_owned(),
            status: "COMPLETED".to_owned(),
            ended_at: chrono::DateTime::from_timestamp(day * 86_400, 5).unwrap_or_default().naive_utc(),
        };
        let name = Header::new(vec![run(3), run(1), run(2)]).name();
        assert!(name.as_str().starts_with("1970/01/02/19700102T000000Z_19700104T000000Z_3_"), "{name}");
        assert_eq!(ObjectName::parse(name.as_str()), Some(name.clone()));
        assert_eq!((name.first().to_string(), name.runs()), ("1970-01-02 00:00:00".to_owned(), 3));
        for other in ["", "a", "1970/01/02/x.ndjson.gz", "../19700102T000000Z_19700104T000000Z_3_a.ndjson.gz"] {
            assert_eq!(ObjectName::parse(other), None, "{other}");
        }
        let header = Header::new(vec![run(1)]);
        let line = serde_json::to_string(&header).expect("JSON");
        assert_eq!(Header::parse(line.as_bytes()), Some(header));
        assert_eq!(Header::parse(line.replace(r#""version":1"#, r#""version":2"#).as_bytes()), None);
    }
}
