//! The files of the console, and options of the linker that make the released program smaller.

use std::{
    env,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// Where the files of the console are.
const CONSOLE: &str = "src/console/assets";
/// Files that are served; `src/console.rs` knows their media types.
const SERVED: [&str; 11] = ["html", "js", "mjs", "css", "svg", "png", "ico", "woff2", "json", "txt", "webmanifest"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Err(error) = list_console_files() {
        println!("cargo::error={CONSOLE}: {error}");
    }
    let variable = |name| env::var(name).unwrap_or_default();
    // There, rustc brings its own linker. Elsewhere it is that of the system, which may not know the options.
    let is_lld = variable("CARGO_CFG_TARGET_ARCH") == "x86_64" && variable("CARGO_CFG_TARGET_ENV") == "gnu";
    if !is_lld || variable("PROFILE") != "release" {
        return;
    }
    // Keeps equal functions once.
    println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    if glibc().is_some_and(|version| version >= (2, 36)) {
        // Relocations take a hundredth of the space. Older C libraries do not know this form.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Writes a list of the console's files, which the program includes.
fn list_console_files() -> io::Result<()> {
    println!("cargo::rerun-if-changed={CONSOLE}");
    let root = Path::new(&env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join(CONSOLE);
    let mut files = Vec::new();
    find_files(&root, &mut files)?;
    let mut list = String::from("/// Path and content of each file.\npub const FILES: &[(&str, &[u8])] = &[\n");
    let mut names: Vec<(String, &PathBuf)> = Vec::new();
    for file in &files {
        let below = file.strip_prefix(&root).map_err(io::Error::other)?;
        let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
        names.push((parts.join("/"), file));
    }
    names.sort();
    for (name, file) in names {
        let is_for_tools = name.contains(".test.") || name.ends_with(".d.ts") || name.contains("tsconfig");
        if is_for_tools || name.split('/').any(|part| part.starts_with('.')) {
            continue;
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
        let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if !SERVED.contains(&extension) || !name.chars().all(is_plain) {
            return Err(io::Error::other(format!("{name} is not a file that is served, see SERVED in build.rs")));
        }
        let _ = writeln!(list, "    ({name:?}, include_bytes!({:?})),", file.to_string_lossy());
    }
    list.push_str("];\n");
    fs::write(Path::new(&env::var_os("OUT_DIR").unwrap_or_default()).join("console_files.rs"), list)
}

fn find_files(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find_files(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

/// Version of this host's glibc. Programs do not run with an older one than that of the host that built them.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
