//! Sealing the credentials of all agents with the first key, while the service runs.

use sqlx::types::Json;
use uuid::Uuid;

use crate::{
    db::{self, agents::StoredConfig},
    vault::{Sealed, Vault},
};

/// Rows that are read at a time.
const BATCH: i64 = 100;

/// What became of the agents that have credentials.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Sealed anew; without a key: stored in clear again.
    pub changed: usize,
    /// As they should be already.
    pub current: usize,
    /// Not to be opened: which, and why.
    pub failed: Vec<(Uuid, Sealed)>,
}

/// Seals the credentials of each agent with the vault's first key, those in clear too. Agents can be changed meanwhile;
/// a repeat finds nothing left to do.
pub async fn rotate_keys(pool: &db::Pool, vault: &Vault) -> Result<Rotation, db::Error> {
    let mut rotation = Rotation::default();
    let mut last = Uuid::nil();
    loop {
        let batch = db::agents::stored_configs(pool, last, BATCH).await?;
        let Some((newest, _)) = batch.last() else { return Ok(rotation) };
        last = *newest;
        for mut stored in batch {
            // Whoever changes it meanwhile seals it with the key of his own process, which need not be this one.
            while !rotate(pool, vault, &stored, &mut rotation).await? {
                let Some(again) = db::agents::stored_config(pool, stored.0).await? else { break };
                stored = again;
            }
        }
    }
}

/// `false`: it has changed since it was read.
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
    match vault.open(*id, &config.0) {
        Err(sealed) => rotation.failed.push((*id, sealed)),
        Ok(opened) => {
            let sealed = Json(vault.seal(*id, &opened));
            if !db::agents::replace_config(pool, stored, &sealed).await? {
                return Ok(false);
            }
            rotation.changed += 1;
        }
    }
    Ok(true)
}
