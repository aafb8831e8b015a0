//! Reload of secrets: files of secrets are read again while a service runs, and what has changed is used from then on.

use std::{sync::Arc, time::Duration};

use workflow_api::{
    config::{self, Config, Problems, SecretFiles},
    db,
    lifecycle::Lifecycle,
};

/// Interval of the reads.
const READ_EVERY: Duration = Duration::from_secs(5);

/// Reads the files of secrets again, and passes changed secrets to the parts that use them. With an error in any setting
/// nothing changes, and the error is logged.
pub async fn keep_current(config: Config, pool: db::Pool, lifecycle: Lifecycle) {
    let files = SecretFiles::of(config::environment());
    if files.iter().next().is_none() {
        return lifecycle.soft_stop().cancelled().await;
    }
    let files = Arc::new(files);
    // The digests of the values in use. Those of the last read may be of values with an error.
    let mut used = digests(&files).await;
    let mut read = used.clone();
    loop {
        tokio::select! {
            () = tokio::time::sleep(READ_EVERY) => {}
            () = lifecycle.soft_stop().cancelled() => return,
        }
        let now = digests(&files).await;
        if now == read {
            continue;
        }
        read.clone_from(&now);
        match Config::load(config::environment()) {
            Ok(fresh) => {
                let names = files.iter().map(|(name, _)| name).zip(used.iter().zip(&now));
                let changed: Vec<&str> = names.filter(|(_, (used, now))| used != now).map(|(name, _)| name).collect();
                for name in &changed {
                    tracing::info!("{} was read again from its file", name.to_ascii_uppercase());
                }
                if changed.contains(&"database_url") {
                    pool.adopt(&fresh.database);
                }
                config.adopt(&fresh, &changed);
                used = now;
            }
            Err(Problems(problems)) => {
                for problem in problems {
                    tracing::error!("a changed secret is not used: {}", problem.trim());
                }
            }
        }
    }
}

/// Digests of the files. A disk that does not answer delays only the next read.
async fn digests(files: &Arc<SecretFiles>) -> Vec<Option<[u8; 32]>> {
    let files = Arc::clone(files);
    tokio::task::spawn_blocking(move || files.digests()).await.unwrap_or_default()
}
