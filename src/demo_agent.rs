//! The demo agent.
/// Options.
#[derive(clap::Args)]
pub struct Options {}
/// Starts.
pub async fn start(_options: Options, _lifecycle: &crate::lifecycle::Lifecycle) -> anyhow::Result<()> {
    Ok(())
}
