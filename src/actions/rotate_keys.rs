//! Key rotation: encrypts the credentials of all agents, and the secrets of all webhooks, triggers and push notifications,
//! with the first key while the service runs.

use sqlx::types::Json;
use uuid::Uuid;

use crate::{
    db::{
        self,
        sealed::{Column, Stored},
    },
    vault::{DecryptError, Vault},
};

/// Number of rows that are read at a time.
const BATCH: i64 = 100;

/// Result for the rows that have secrets.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Number of re-encrypted rows; without a key, of those that are stored in clear again.
    pub changed: usize,
    /// Number of rows that needed no change.
    pub current: usize,
    /// Agents whose credentials could not be decrypted, with the reason.
    pub failed: Vec<(Uuid, DecryptError)>,
    /// Webhooks whose secrets could not be decrypted, with the reason.
    pub failed_webhooks: Vec<(Uuid, DecryptError)>,
    /// Triggers whose secrets could not be decrypted, with the reason.
    pub failed_triggers: Vec<(Uuid, DecryptError)>,
    /// Configurations of push notifications whose secrets could not be decrypted, with the reason.
    pub failed_pushes: Vec<(Uuid, DecryptError)>,
}

impl Rotation {
    fn failures_of(&mut self, column: Column) -> &mut Vec<(Uuid, DecryptError)> {
        match column {
            Column::Agents => &mut self.failed,
            Column::Webhooks => &mut self.failed_webhooks,
            Column::Triggers => &mut self.failed_triggers,
            Column::Pushes => &mut self.failed_pushes,
        }
    }
}

/// Encrypts the secrets of each row with the vault's first key, including those in clear. They can be changed meanwhile; a
/// repeat finds nothing left to do.
pub async fn rotate_keys(pool: &db::Pool, vault: &Vault) -> Result<Rotation, db::Error> {
    let mut rotation = Rotation::default();
    for column in Column::ALL {
        let mut last = Uuid::nil();
        loop {
            let batch = column.page(pool, last, BATCH).await?;
            let Some((newest, _)) = batch.last() else { break };
            last = *newest;
            for mut stored in batch {
                // A concurrent change encrypts with the key of its own process, which may be another one.
                while !rotate(pool, vault, column, &stored, &mut rotation).await? {
                    let Some(again) = column.find(pool, stored.0).await? else { break };
                    stored = again;
                }
            }
        }
    }
    Ok(rotation)
}

/// Returns `false` if the secrets have changed since they were read.
async fn rotate(
    pool: &db::Pool,
    vault: &Vault,
    column: Column,
    stored: &Stored,
    rotation: &mut Rotation,
) -> Result<bool, db::Error> {
    let (id, config) = stored;
    if vault.is_current(&config.0) {
        rotation.current += 1;
        return Ok(true);
    }
    match vault.decrypt(*id, &config.0) {
        Err(sealed) => rotation.failures_of(column).push((*id, sealed)),
        Ok(opened) => {
            let sealed = Json(vault.encrypt(*id, &opened));
            if !column.replace(pool, stored, &sealed).await? {
                return Ok(false);
            }
            rotation.changed += 1;
        }
    }
    Ok(true)
}
