//! Giving a webhook trigger another token.

use uuid::Uuid;

use super::{Change, Context, Entity, receive_webhook};
use crate::{db, trigger::TriggerKind};

/// Reason why a token was not rotated.
#[derive(Debug, thiserror::Error)]
pub enum RotateTokenError {
    /// There is no such trigger.
    #[error("trigger not found")]
    NotFound,
    /// The trigger is of a kind without tokens.
    #[error("the trigger has no token")]
    NoToken,
    /// The database failed.
    #[error(transparent)]
    Db(#[from] db::Error),
}

/// Gives the trigger another token, and returns it. The one before is not valid any more.
pub async fn rotate(pool: &db::Pool, context: Context<'_>, id: Uuid) -> Result<String, RotateTokenError> {
    db::in_transaction(pool, async |transaction| {
        let row = db::triggers::lock(transaction, context.organization(), id).await?;
        let row = row.ok_or(RotateTokenError::NotFound)?;
        if TriggerKind::parse(&row.kind) != Some(TriggerKind::Webhook) {
            return Err(RotateTokenError::NoToken);
        }
        let (token, hash) = receive_webhook::new_token();
        let now = db::triggers::now(&mut *transaction).await?;
        db::inbound::set_token(transaction, id, &hash, now).await?;
        let entity = Entity("trigger", id, &row.name);
        context.record(transaction, entity, "rotate_token", Change::default(), now.into()).await?;
        Ok(token)
    })
    .await
}
