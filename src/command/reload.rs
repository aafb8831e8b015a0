//! Reload of secrets: files of secrets and values in Vault are read again while a service runs, and what has changed is used
//! from then on.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use workflow_api::{
    config::{self, Config, Problems, SecretFiles},
    db,
    lifecycle::Lifecycle,
};

/// Interval at which files are read.
const READ_EVERY: Duration = Duration::from_secs(5);

/// Names of settings, each with the SHA-256 of its value, or `None` if that cannot be read.
type Digests = Vec<(&'static str, Option<[u8; 32]>)>;

/// Reads the secrets again, and passes changed ones to the parts that use them. With an error in any setting nothing
/// changes, and the error is logged.
pub async fn keep_current(config: Config, pool: db::Pool, reads: Option<db::Reads>, lifecycle: Lifecycle) {
    let files = SecretFiles::of(config::environment());
    if files.iter().next().is_none() && config.vault_refresh.is_none() {
        return lifecycle.soft_stop().cancelled().await;
    }
    let mut sources =
        Sources { files: Arc::new(files), vault_refresh: config.vault_refresh, vault: Vec::new(), due: None };
    // The digests of the values in use. Those of the last read may be of values with an error.
    let mut used = sources.read().await;
    let mut read = used.clone();
    loop {
        tokio::select! {
            () = tokio::time::sleep(sources.interval()) => {}
            () = lifecycle.soft_stop().cancelled() => return,
        }
        let now = sources.read().await;
        if now == read {
            continue;
        }
        read.clone_from(&now);
        match tokio::task::spawn_blocking(|| Config::load(config::environment())).await {
            Ok(Ok(fresh)) => {
                let changed: Vec<&str> =
                    now.iter().filter(|digest| !used.contains(digest)).map(|(name, _)| *name).collect();
                for name in &changed {
                    let setting = name.to_ascii_uppercase();
                    if sources.files.iter().any(|(of_file, _)| of_file == *name) {
                        tracing::info!("{setting} was read again from its file");
                    } else {
                        tracing::info!("{setting} was read again from Vault");
                    }
                }
                if changed.contains(&"database_url") {
                    pool.adopt(&fresh.database.connect, fresh.database.echo);
                }
                if changed.contains(&"database_replica_url")
                    && let Some(reads) = &reads
                {
                    reads.adopt(&fresh.database);
                }
                config.adopt(&fresh, &changed);
                used = now;
            }
            Ok(Err(Problems(problems))) => {
                for problem in problems {
                    tracing::error!("a changed secret is not used: {}", problem.trim());
                }
            }
            // The panic itself was logged by the panic hook.
            Err(_) => {}
        }
    }
}

/// Where secrets are read again.
struct Sources {
    files: Arc<SecretFiles>,
    /// Interval at which values in Vault are read; `None`: there are none.
    vault_refresh: Option<Duration>,
    /// Digests of the last read of Vault, and the time of the next one.
    vault: Digests,
    due: Option<Instant>,
}

impl Sources {
    /// Pause before the next read.
    fn interval(&self) -> Duration {
        self.vault_refresh.map_or(READ_EVERY, |refresh| refresh.min(READ_EVERY))
    }

    /// Reads the files, and the values in Vault if they are due. A disk or a server that does not answer delays only the
    /// next read.
    async fn read(&mut self) -> Digests {
        let files = Arc::clone(&self.files);
        let of_files = tokio::task::spawn_blocking(move || {
            files.iter().map(|(name, _)| name).zip(files.digests()).collect::<Digests>()
        });
        let mut digests = of_files.await.unwrap_or_default();
        if let Some(refresh) = self.vault_refresh
            && self.due.is_none_or(|due| due <= Instant::now())
        {
            let read = tokio::task::spawn_blocking(|| config::vault_digests(config::environment()));
            self.vault = read.await.unwrap_or_default();
            self.due = Some(Instant::now() + refresh);
        }
        digests.extend_from_slice(&self.vault);
        digests
    }
}
