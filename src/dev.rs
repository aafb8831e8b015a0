//! The newcomer's first minute. (being written)
/// Options.
#[derive(clap::Args)]
pub struct Options {}
/// Runs.
pub async fn run(_options: Options) -> anyhow::Result<bool> {
    Ok(true)
}
