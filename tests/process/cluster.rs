//! PostgreSQL servers of a test's own, for what cannot be tried with the server of all tests: certificates and standbys.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output},
};

use uuid::Uuid;

use crate::program::free_port;

/// Server of a test. It is stopped and deleted when it goes out of scope.
pub struct Cluster {
    home: PathBuf,
    pub port: u16,
}

impl Cluster {
    /// A directory and a port, and no server yet.
    pub fn new() -> Self {
        let home = std::env::temp_dir().join(format!("workflow-api-test-{}", Uuid::new_v4().simple()));
        std::fs::create_dir(&home).expect("a directory");
        // The server has another user if the test runs as root.
        std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o777)).expect("rights");
        Self { home, port: free_port() }
    }

    /// Creates a server that trusts every connection; it is not started.
    pub fn create(&self) {
        self.run("initdb", &["-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]);
    }

    /// Creates and starts a standby that streams from the other server.
    pub fn follow(&self, primary: &Self) {
        let source = format!("host=127.0.0.1 port={} user=postgres", primary.port);
        self.run("pg_basebackup", &["-d", &source, "-R", "-X", "stream", "-c", "fast", "--no-sync"]);
        self.start(&[]);
    }

    /// Starts the server with these settings, and waits until it accepts connections.
    pub fn start(&self, settings: &[&str]) {
        let port = format!("port={}", self.port);
        let own = [&port, "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"];
        let options: Vec<String> = own.iter().chain(settings).map(|setting| format!("-c {setting}")).collect();
        let options = options.join(" ");
        self.run("pg_ctl", &["start", "-w", "-t", "60", "-l", &self.path("log"), "-o", &options]);
    }

    /// Stops the server as a crash does.
    pub fn crash(&self) {
        self.run("pg_ctl", &["stop", "-m", "immediate", "-w"]);
    }

    /// Makes a standby the primary.
    pub fn promote(&self) {
        self.run("pg_ctl", &["promote", "-w"]);
    }

    /// Path of a file that belongs to the server.
    pub fn path(&self, name: &str) -> String {
        self.home.join(name).into_os_string().into_string().expect("UTF-8")
    }

    /// Runs one of PostgreSQL's programs on the server's data.
    fn run(&self, program: &str, arguments: &[&str]) {
        let data = self.path("data");
        let program = programs().join(program);
        self.as_owner(program.to_str().expect("UTF-8"), &[&["-D", &data], arguments].concat());
    }

    /// Runs a program as the user of the server, in its directory.
    pub fn as_owner(&self, program: &str, arguments: &[&str]) {
        let output = self.output(program, arguments);
        let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {printed}");
    }

    fn output(&self, program: &str, arguments: &[&str]) -> Output {
        // PostgreSQL refuses to run as root.
        let user: &[&str] =
            if rustix::process::geteuid().is_root() { &["runuser", "-u", "postgres", "--"] } else { &[] };
        let words = [user, &[program], arguments].concat();
        Command::new(words[0]).args(&words[1..]).current_dir(&self.home).output().expect("the program starts")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let program = programs().join("pg_ctl");
        // It may be stopped already.
        let _ =
            self.output(program.to_str().expect("UTF-8"), &["-D", &self.path("data"), "stop", "-m", "immediate", "-w"]);
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

/// Directory of PostgreSQL's programs.
pub fn programs() -> PathBuf {
    let named = Command::new("pg_config").arg("--bindir").output().ok();
    let named = named.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found = installed.map(|version| version.path().join("bin")).chain(named);
    found.find(|path| path.join("initdb").exists()).expect("PostgreSQL's server programs are installed")
}
