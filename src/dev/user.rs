//! User account of PostgreSQL, which refuses to run as root.

use std::{fs, path::Path};

use anyhow::Context;
use tokio::process::Command;

/// Account of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Account to use instead of root, if this process runs as root: `postgres` if it exists, otherwise `nobody`.
pub(super) fn instead_of_root() -> anyhow::Result<Option<User>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let accounts = fs::read_to_string("/etc/passwd").context("/etc/passwd cannot be read")?;
    let user = find(&accounts, "postgres").or_else(|| find(&accounts, "nobody"));
    user.map(Some).context("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
}

fn find(accounts: &str, name: &str) -> Option<User> {
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then_some(())?;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(User { name: name.to_owned(), uid, gid })
    })
}

/// Command that runs as that user, or as the current one.
pub(super) fn command(program: impl AsRef<Path>, user: Option<&User>) -> Command {
    let mut command = Command::new(program.as_ref());
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    command.kill_on_drop(true);
    command
}

/// Whether the user can write there. The system decides this, since the rights of all parent folders matter.
pub(super) async fn can_write(path: &Path, user: Option<&User>) -> bool {
    let mut test = command("test", user);
    test.arg("-w").arg(path).current_dir("/");
    test.status().await.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let accounts =
            "root:x:0:0:root:/root:/bin/bash\npostgres2:x:7:8::/:/bin/sh\npostgres:x:101:104:a,b:/var:/bin/sh";
        assert_eq!(find(accounts, "postgres"), Some(User { name: "postgres".to_owned(), uid: 101, gid: 104 }));
        assert_eq!(find(accounts, "nobody"), None);
    }
}
