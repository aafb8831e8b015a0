//! Key rotation: encrypts the credentials of all agents with the first key while the service runs.

use sqlx::types::Json;
use uuid::Uuid;

use crate::{
    db::{self, agents::StoredConfig},
    vault::{DecryptError, Vault},
};

/// Number of rows that are read at a time.
const BATCH: i64 = 100;

/// Result for the agents that have credentials.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Number of re-encrypted agents; without a key, of those that are stored in clear again.
    pub changed: usize,
    /// Number of agents that needed no change.
    pub current: usize,
    /// Agents whose credentials could not be decrypted, with the reason.
    pub failed: Vec<(Uuid, DecryptError)>,
}

/// Encrypts the credentials of each agent with the vault's first key, including those in clear. Agents can be changed
/// meanwhile; a repeat finds nothing left to do.
pub async fn rotate_keys(pool: &db::Pool, vault: &Vault) -> Result<Rotation, db::Error> {
    let mut rotation = Rotation::default();
    let mut last = Uuid::nil();
    loop {
        let batch = db::agents::stored_configs(pool, last, BATCH).await?;
        let Some((newest, _)) = batch.last() else { return Ok(rotation) };
        last = *newest;
        for mut stored in batch {
            // A concurrent change encrypts with the key of its own process, which may be another one.
            while !rotate(pool, vault, &stored, &mut rotation).await? {
                let Some(again) = db::agents::stored_config(pool, stored.0).await? else { break };
                stored = again;
            }
        }
    }
}

/// Returns `false` if the credentials have changed since they were read.
async fn rotate(
    pool: &db::Pool,
    vault: &Vault,
    stored: &StoredConfig,
    rotation: &mut Rotation,
) -> Result<bool, db::Error> {
    let (id, config) = stored;
    if vault.is_current(&config.0) {
        rotation.current += 1;
        return Ok(true);
    }
    match vault.decrypt(*id, &config.0) {
        Err(sealed) => rotation.failed.push((*id, sealed)),
        Ok(opened) => {
            let sealed = Json(vault.encrypt(*id, &opened));
            if !db::agents::replace_config(pool, stored, &sealed).await? {
                return Ok(false);
            }
            rotation.changed += 1;
        }
    }
    Ok(true)
}
