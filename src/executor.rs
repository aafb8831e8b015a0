//! The executor.
/// Starts.
pub fn start(
    _config: &crate::config::Config,
    _pool: sqlx::PgPool,
    _lifecycle: &crate::lifecycle::Lifecycle,
) -> anyhow::Result<()> {
    Ok(())
}
