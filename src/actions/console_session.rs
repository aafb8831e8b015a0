//! Signing in to the console, and signing out.

use super::{Change, Context, Entity};
use crate::{
    db::{self, console_sessions::SessionRow},
    input,
    timestamp::Timestamp,
};

/// Stores a session.
pub async fn begin(
    pool: &db::Pool,
    context: Context<'_>,
    row: &SessionRow,
    secret_hash: &[u8; 32],
) -> Result<(), db::Error> {
    let mut transaction = db::begin(pool).await?;
    db::console_sessions::insert(&mut transaction, row, secret_hash).await?;
    let after = input::to_raw(&serde_json::json!({"expires_at": row.expires_at}));
    let entity = Entity("session", row.id, &row.subject);
    context.record(&mut transaction, entity, "sign_in", Change::to(&after), row.created_at).await?;
    db::commit(transaction).await
}

/// Ends a session. One that has ended already is left as it is.
pub async fn end(pool: &db::Pool, context: Context<'_>, row: &SessionRow) -> Result<(), db::Error> {
    let mut transaction = db::begin(pool).await?;
    if db::console_sessions::delete(&mut transaction, row.id).await? {
        let entity = Entity("session", row.id, &row.subject);
        context.record(&mut transaction, entity, "sign_out", Change::default(), Timestamp::now()).await?;
    }
    db::commit(transaction).await
}
