//! Files of secrets: `NAME_FILE` names the file that contains `NAME`.

use std::{
    fs::File,
    io::{ErrorKind, Read as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

/// Variables that can be read from a file.
pub(super) const SECRETS: [&str; 19] = [
    "database_url",
    "database_replica_url",
    "jwt_secret",
    "jwt_secret_previous",
    "jwt_public_key",
    "bootstrap_api_key",
    "encryption_key",
    "run_archive_secret_key",
    "kafka_ssl_ca",
    "kafka_ssl_certificate",
    "kafka_ssl_key",
    "kafka_ssl_key_password",
    "kafka_sasl_username",
    "kafka_sasl_password",
    "kafka_oauth_client_secret",
    "kafka_properties",
    "otel_exporter_otlp_headers",
    "vault_token",
    "vault_secret_id",
];

/// Whether the variable can name a value in Vault: a secret, but not the credentials of Vault.
pub(super) fn can_be_in_vault(name: &str) -> bool {
    SECRETS.contains(&name) && !name.starts_with("vault_")
}

/// Maximum size of a file. A list of certificates can have some hundred kilobytes.
const MAX_BYTES: u64 = 1 << 20;

/// Files of secrets in an environment.
pub struct SecretFiles(Vec<(&'static str, PathBuf)>);

impl SecretFiles {
    /// The files that the environment names.
    pub fn of(environment: impl Iterator<Item = (String, String)>) -> Self {
        let files = environment.filter_map(|(name, path)| {
            let name = name.to_ascii_lowercase();
            let name = SECRETS.iter().find(|secret| name.strip_suffix("_file") == Some(**secret))?;
            (!path.trim().is_empty()).then(|| (*name, PathBuf::from(path.trim())))
        });
        Self(files.collect())
    }

    /// Names of the settings with their files.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.0.iter().map(|(name, path)| (*name, path.as_path()))
    }

    /// The file of the setting.
    pub(super) fn get(&self, name: &str) -> Option<&Path> {
        self.iter().find(|(other, _)| *other == name).map(|(_, path)| path)
    }

    /// SHA-256 of each file's text, in their order; `None` for one that cannot be read.
    #[must_use]
    pub fn digests(&self) -> Vec<Option<[u8; 32]>> {
        self.iter().map(|(_, path)| read(path).ok().map(|text| Sha256::digest(text).into())).collect()
    }
}

/// Text of a secret's file, without blanks and line breaks around it. The error is a reason without the path.
pub(super) fn read(path: &Path) -> Result<String, String> {
    let why = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => "there is no such file".to_owned(),
        ErrorKind::PermissionDenied => "this user may not read the file".to_owned(),
        ErrorKind::IsADirectory => "this is a directory, not a file".to_owned(),
        ErrorKind::InvalidData => "the file is not UTF-8 text".to_owned(),
        other => format!("the file cannot be read ({other})"),
    };
    let mut text = String::new();
    let file = File::open(path).map_err(why)?;
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(why)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(format!("the file is larger than {MAX_BYTES} bytes"));
    }
    match text.trim() {
        "" => Err("the file is empty".to_owned()),
        text => Ok(text.to_owned()),
    }
}
