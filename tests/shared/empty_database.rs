//! Databases without a schema. A new database may have one: `./deploy-api.sh test` migrates the template once, because that
//! takes most of the time of a short test.

use sqlx::PgPool;

/// The schema is made again as in a new database.
const EMPTY: &str = "
    DROP SCHEMA public CASCADE;
    CREATE SCHEMA public AUTHORIZATION pg_database_owner;
    GRANT USAGE ON SCHEMA public TO PUBLIC";

/// Removes all that migrations have made.
pub async fn empty(pool: &PgPool) {
    sqlx::raw_sql(EMPTY).execute(pool).await.expect("everything is gone");
}
