//! `RUN_RETENTION_DAYS` and `RUN_ARCHIVE*`: retention of ended runs, and their archive.

use std::path::PathBuf;

use secrecy::SecretString;
use url::Url;

use super::{Reader, Section};
use crate::retention::MAX_DAYS;

/// Retention of ended runs, and their archive.
#[derive(Clone, Debug)]
pub struct Retention {
    /// `RUN_RETENTION_DAYS`: default of workflows and organisations without an own value; 0: for ever.
    pub days: i32,
    /// `RUN_ARCHIVE`: archive of deleted runs; `None`: runs are not archived.
    pub archive: Option<Archive>,
}

/// Archive of deleted runs.
#[derive(Clone, Debug)]
pub enum Archive {
    /// Absolute path of a directory.
    Directory(PathBuf),
    /// Bucket of S3, or of a compatible server.
    S3(S3),
}

impl Archive {
    /// Value of `RUN_ARCHIVE`.
    #[must_use]
    pub fn location(&self) -> String {
        match self {
            Self::Directory(path) => path.display().to_string(),
            Self::S3(s3) => format!("s3://{}/{}", s3.bucket, s3.prefix).trim_end_matches('/').to_owned(),
        }
    }
}

/// Settings of a bucket.
#[derive(Clone, Debug)]
pub struct S3 {
    /// Name of the bucket.
    pub bucket: String,
    /// Prefix of the names of objects: empty, or with a `/` at the end.
    pub prefix: String,
    /// `RUN_ARCHIVE_ENDPOINT`; `None`: Amazon's endpoint of the region.
    pub endpoint: Option<Url>,
    /// `RUN_ARCHIVE_REGION`.
    pub region: String,
    /// `RUN_ARCHIVE_ACCESS_KEY`.
    pub access_key: String,
    /// `RUN_ARCHIVE_SECRET_KEY`.
    pub secret_key: SecretString,
}

impl Section for Retention {
    fn read(reader: &mut Reader) -> Option<Self> {
        let days = reader.number("run_retention_days", 90, 0..=MAX_DAYS);
        let target = reader.get("run_archive").map(str::to_owned);
        let bucket = target.as_deref().and_then(|target| target.strip_prefix("s3://"));
        let archive = if let Some(bucket) = bucket {
            S3::read(reader, bucket).map(|s3| Some(Archive::S3(s3)))
        } else {
            only_for_s3(reader);
            let path = target.as_deref().and_then(|target| directory(reader, target)).map(Archive::Directory);
            // The problem of an invalid path was reported.
            if target.is_some() && path.is_none() { None } else { Some(path) }
        };
        Some(Self { days: days?, archive: archive? })
    }
}

fn directory(reader: &mut Reader, target: &str) -> Option<PathBuf> {
    let path = PathBuf::from(target);
    if path.is_absolute() && !target.contains("://") {
        return Some(path);
    }
    reader.problem("run_archive", "must be the absolute path of a directory, or s3://BUCKET or s3://BUCKET/PREFIX")
}

/// Rejects settings of a bucket without a bucket: this mistake would be found only when the runs are deleted.
fn only_for_s3(reader: &mut Reader) {
    for name in ["run_archive_endpoint", "run_archive_access_key", "run_archive_secret_key"] {
        if reader.has(name) {
            reader.problem::<()>(name, "is set, but RUN_ARCHIVE is not an s3:// address");
        }
    }
}

impl S3 {
    fn read(reader: &mut Reader, target: &str) -> Option<Self> {
        let (bucket, prefix) = target.split_once('/').unwrap_or((target, ""));
        let is_name = (3..=63).contains(&bucket.len())
            && bucket.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'));
        if !is_name {
            let problem =
                "has an invalid name of a bucket; valid are 3 to 63 lower-case letters, digits, hyphens and dots";
            reader.problem::<()>("run_archive", problem);
        }
        let prefix = prefix.trim_matches('/');
        let is_prefix =
            prefix.split('/').all(|part| !matches!(part, "." | "..") && (prefix.is_empty() || !part.is_empty()))
                && prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./=".contains(&byte));
        if !is_prefix {
            let problem = "has a prefix with other characters than letters, digits and -_.=, or with empty parts";
            reader.problem::<()>("run_archive", problem);
        }
        let endpoint = reader.parsed("run_archive_endpoint", None, |text| {
            let url = Url::parse(text).ok().filter(|url| {
                matches!(url.scheme(), "http" | "https")
                    && url.host().is_some()
                    && url.username().is_empty()
                    && url.password().is_none()
                    && url.query().is_none()
            });
            // The value is not shown: it can contain credentials.
            url.map(Some).ok_or_else(|| "must be an http or https address without user and query".to_owned())
        });
        let region = reader.parsed("run_archive_region", "us-east-1".to_owned(), |text| {
            let is_region = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            if is_region {
                Ok(text.to_owned())
            } else {
                Err("must be the name of a region, such as us-east-1".to_owned())
            }
        });
        let access_key = reader.required("run_archive_access_key");
        let secret_key = reader.required("run_archive_secret_key");
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Some(Self {
            bucket: Some(bucket.to_owned()).filter(|_| is_name && is_prefix)?,
            prefix,
            endpoint: endpoint?,
            region: region?,
            access_key: access_key?,
            secret_key: secret_key?.into(),
        })
    }
}
