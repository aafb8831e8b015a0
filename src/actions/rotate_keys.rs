//! Key rotation: encrypts the credentials of all agents, and the secrets of all webhooks, triggers and push notifications,
//! with the first key while the service runs.

use serde_json::value::RawValue;
use sqlx::types::Json;
use uuid::Uuid;

use crate::{
    db,
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

/// Stored secrets of a row.
type Stored = (Uuid, Json<Box<RawValue>>);

/// Table with secrets.
#[derive(Clone, Copy)]
enum Table {
    Agents,
    Webhooks,
    Triggers,
    Pushes,
}

impl Table {
    async fn page(self, pool: &db::Pool, behind: Uuid) -> Result<Vec<Stored>, db::Error> {
        match self {
            Self::Agents => db::agents::stored_configs(pool, behind, BATCH).await,
            Self::Webhooks => db::webhooks::stored(pool, behind, BATCH).await,
            Self::Triggers => db::inbound::stored_secrets(pool, behind, BATCH).await,
            Self::Pushes => db::webhooks::pushes::stored(pool, behind, BATCH).await,
        }
    }

    async fn row(self, pool: &db::Pool, id: Uuid) -> Result<Option<Stored>, db::Error> {
        match self {
            Self::Agents => db::agents::stored_config(pool, id).await,
            Self::Webhooks => db::webhooks::stored_of(pool, id).await,
            Self::Triggers => db::inbound::stored_secrets_of(pool, id).await,
            Self::Pushes => db::webhooks::pushes::stored_of(pool, id).await,
        }
    }

    async fn replace(self, pool: &db::Pool, then: &Stored, now: &Json<Box<RawValue>>) -> Result<bool, db::Error> {
        match self {
            Self::Agents => db::agents::replace_config(pool, then, now).await,
            Self::Webhooks => db::webhooks::replace_stored(pool, then, now).await,
            Self::Triggers => db::inbound::replace_secrets(pool, then, now).await,
            Self::Pushes => db::webhooks::pushes::replace_stored(pool, then, now).await,
        }
    }

    fn failures(self, rotation: &mut Rotation) -> &mut Vec<(Uuid, DecryptError)> {
        match self {
            Self::Agents => &mut rotation.failed,
            Self::Webhooks => &mut rotation.failed_webhooks,
            Self::Triggers => &mut rotation.failed_triggers,
            Self::Pushes => &mut rotation.failed_pushes,
        }
    }
}

/// Encrypts the secrets of each row with the vault's first key, including those in clear. They can be changed meanwhile; a
/// repeat finds nothing left to do.
pub async fn rotate_keys(pool: &db::Pool, vault: &Vault) -> Result<Rotation, db::Error> {
    let mut rotation = Rotation::default();
    for table in [Table::Agents, Table::Webhooks, Table::Triggers, Table::Pushes] {
        let mut last = Uuid::nil();
        loop {
            let batch = table.page(pool, last).await?;
            let Some((newest, _)) = batch.last() else { break };
            last = *newest;
            for mut stored in batch {
                // A concurrent change encrypts with the key of its own process, which may be another one.
                while !rotate(pool, vault, table, &stored, &mut rotation).await? {
                    let Some(again) = table.row(pool, stored.0).await? else { break };
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
    table: Table,
    stored: &Stored,
    rotation: &mut Rotation,
) -> Result<bool, db::Error> {
    let (id, config) = stored;
    if vault.is_current(&config.0) {
        rotation.current += 1;
        return Ok(true);
    }
    match vault.decrypt(*id, &config.0) {
        Err(sealed) => table.failures(rotation).push((*id, sealed)),
        Ok(opened) => {
            let sealed = Json(vault.encrypt(*id, &opened));
            if !table.replace(pool, stored, &sealed).await? {
                return Ok(false);
            }
            rotation.changed += 1;
        }
    }
    Ok(true)
}
