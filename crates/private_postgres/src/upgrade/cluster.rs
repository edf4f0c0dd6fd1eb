//! The new cluster: it is created with the encoding, the locale and the checksums of the earlier one, gets the settings
//! that users made there, and is filled by `pg_upgrade`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use crate::home::{Home, telling_line};
use crate::rights::Rights;
use crate::upgrade::UpgradeError;
use crate::upgrade::contents::Client;
use crate::upgrade::programs::Programs;
use crate::{LocalPostgresError, LocalPostgresOptions, PORT, SUPERUSER, settings};

/// The file in the home with all that `pg_upgrade` said, when it failed.
const LOG: &str = "upgrade.log";
/// The directory in the new cluster that `pg_upgrade` leaves when it fails.
const OUTPUT: &str = "pg_upgrade_output.d";
/// Statements that `pg_upgrade` leaves in its working directory.
const EXTENSIONS: &str = "update_extensions.sql";
/// The log of changes is not copied.
const NOT_COPIED: &str = "pg_wal";
/// What a new cluster takes, and its log of changes while it is filled.
const EMPTY_CLUSTER: u64 = 256 * 1024 * 1024;
/// The option to leave pages without checksums exists since they are the default.
const CHECKSUMS_BY_DEFAULT_SINCE: u32 = 18;
/// The most characters of each part of a reason.
const LONGEST_PART: usize = 400;

const LOCALE: &str = "SELECT pg_encoding_to_char(encoding), datcollate, datctype, datlocprovider::text,
    coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', '')
FROM pg_database AS d WHERE datname = 'template0'";

/// The encoding and the locale of a cluster.
#[derive(Debug, Default)]
pub(crate) struct Locale {
    encoding: String,
    collate: String,
    ctype: String,
    /// PostgreSQL's letter for what provides the locale.
    provider: String,
    /// The locale of a provider other than the system's library.
    name: String,
}

impl Locale {
    pub(crate) fn of_earlier(client: &Client<'_>) -> Result<Self, UpgradeError> {
        let rows = client.ask("postgres", LOCALE)?;
        match rows.into_iter().next().and_then(|row| <[String; 5]>::try_from(row).ok()) {
            Some([encoding, collate, ctype, provider, name]) => Ok(Self { encoding, collate, ctype, provider, name }),
            None => {
                let reason = "the data has no database template0".to_owned();
                Err(UpgradeError::Failed { program: "psql", reason, log: None })
            }
        }
    }

    /// The arguments of `initdb` for a cluster with this locale.
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--encoding={}", self.encoding),
            format!("--lc-collate={}", self.collate),
            format!("--lc-ctype={}", self.ctype),
        ];
        let (provider, option) = match self.provider.as_str() {
            "b" => ("builtin", Some("--builtin-locale")),
            "i" => ("icu", Some("--icu-locale")),
            _ => ("libc", None),
        };
        arguments.push(format!("--locale-provider={provider}"));
        arguments.extend(option.map(|option| format!("{option}={}", self.name)));
        arguments
    }
}

/// What the layout of a cluster's files depends on.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    checksums: bool,
    mebibytes_of_a_segment: u64,
}

impl Layout {
    /// Reads the output of `pg_controldata`.
    fn parse(said: &str) -> Option<Self> {
        let value = |name: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line?.trim().parse::<u64>().ok()
        };
        Some(Self {
            checksums: value("Data page checksum version")? != 0,
            mebibytes_of_a_segment: value("Bytes per WAL segment")? / (1024 * 1024),
        })
    }

    /// The arguments of this version's `initdb` for a cluster with this layout.
    fn arguments(&self, major: u32) -> Vec<String> {
        let mut arguments = vec![format!("--wal-segsize={}", self.mebibytes_of_a_segment)];
        if self.checksums {
            arguments.push("--data-checksums".to_owned());
        } else if major >= CHECKSUMS_BY_DEFAULT_SINCE {
            arguments.push("--no-data-checksums".to_owned());
        }
        arguments
    }
}

/// The cluster of the newer version beside the earlier data.
#[derive(Debug)]
pub(crate) struct NewCluster<'a> {
    pub(crate) home: &'a mut Home,
    pub(crate) programs: &'a Programs,
    pub(crate) data: &'a Path,
    pub(crate) new: &'a Path,
}

impl NewCluster<'_> {
    /// Creates the cluster without databases of users.
    pub(crate) fn create(self, locale: &Locale, options: &LocalPostgresOptions) -> Result<Self, UpgradeError> {
        let (newer, account) = (&self.programs.newer, self.home.account());
        let layout = self.layout()?;
        let arguments: Vec<String> = locale.arguments().into_iter().chain(layout.arguments(newer.major())).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.home.run_initdb(newer, self.new, &arguments, options.durability)?;
        settings::include(self.new, account.rights())?;
        settings::carry_over(self.data, self.new, account.rights())?;
        settings::write(self.new, account.rights(), options)?;
        let program = newer.program("postgres");
        let mut command = account.command(&program);
        command.arg("-D").arg(self.new).args(["-C", "config_file"]).stdin(Stdio::null());
        let output = command.output().map_err(|source| LocalPostgresError::Run { program, source })?;
        if !output.status.success() {
            let reason = refused_setting(&String::from_utf8_lossy(&output.stderr));
            let (version, data) = (newer.version.clone(), self.data.to_owned());
            return Err(UpgradeError::Settings { version, data, reason });
        }
        Ok(self)
    }

    fn layout(&self) -> Result<Layout, UpgradeError> {
        let program = self.programs.earlier.program("pg_controldata");
        let mut command = self.home.account().command(&program);
        command.arg("-D").arg(self.data).stdin(Stdio::null());
        let output = command.output().map_err(|source| LocalPostgresError::Run { program, source })?;
        let said = String::from_utf8_lossy(&output.stdout);
        Layout::parse(&said).ok_or_else(|| {
            let reason = telling_line(&String::from_utf8_lossy(&output.stderr));
            UpgradeError::Failed { program: "pg_controldata", reason, log: None }
        })
    }

    /// Runs `pg_upgrade`. Returns statements that update extensions, if there are any to run.
    pub(crate) fn upgrade(&mut self, only_check: bool) -> Result<Option<String>, UpgradeError> {
        let Programs { earlier, newer } = self.programs;
        // The working directory must belong to the account. Only one socket is there at any time.
        let directory = self.home.prepare_socket_directory()?;
        let account = self.home.account();
        let program = newer.program("pg_upgrade");
        let mut command = account.command(&program);
        command
            .current_dir(&directory)
            .arg("--old-bindir")
            .arg(earlier.directory())
            .arg("--new-bindir")
            .arg(newer.directory())
            .arg("--old-datadir")
            .arg(self.data)
            .arg("--new-datadir")
            .arg(self.new)
            .arg("--socketdir")
            .arg(&directory)
            .args(["--username", SUPERUSER])
            .args(only_check.then_some("--check"))
            .stdin(Stdio::null());
        let output = command.output().map_err(|source| LocalPostgresError::Run { program, source })?;
        if !output.status.success() {
            return Err(self.failure(&output));
        }
        let read = || match Rights::read(&directory.join(EXTENSIONS)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            result => result.map(Some),
        };
        let statements = account.rights().run(read);
        Ok(statements.map_err(|error| LocalPostgresError::file("read", &directory.join(EXTENSIONS), error))?)
    }

    /// Keeps what `pg_upgrade` said, and the files to which it refers.
    fn failure(&self, output: &Output) -> UpgradeError {
        let said = [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
        let mut log = said.clone();
        let mut files = Vec::new();
        // Without these files, the log is shorter.
        let _ = self.home.account().rights().run(|| collect(&self.new.join(OUTPUT), &mut files));
        let mut details = String::new();
        for (path, content) in files {
            if path.extension().is_some_and(|extension| extension == "txt") {
                details.push_str(&content);
            }
            log.push_str(&format!("\n==> {} <==\n{content}", path.display()));
        }
        let path = self.home.path().join(LOG);
        let written = self.home.rights().run(|| Rights::replace(&path, &log));
        let reason = reason(&said, &details);
        UpgradeError::Failed { program: "pg_upgrade", reason, log: written.is_ok().then_some(path) }
    }
}

/// Reads the small files of a directory and of those in it.
fn collect(directory: &Path, files: &mut Vec<(PathBuf, String)>) -> std::io::Result<()> {
    for entry in directory.read_dir()? {
        let path = entry?.path();
        if path.symlink_metadata()?.is_dir() {
            collect(&path, files)?;
        } else if let Ok(content) = Rights::read(&path) {
            files.push((path, content));
        }
    }
    Ok(())
}

/// Why `pg_upgrade` failed, in one line: what it said after its last check, and what the files say to which it refers.
fn reason(said: &str, details: &str) -> String {
    let is_step = |line: &str| {
        line.ends_with(" ok") || line.ends_with("fatal") || line.contains("failed check:") || line.starts_with("---")
    };
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let after_last_step = lines.iter().rposition(|line| is_step(line)).map_or(0, |at| at + 1);
    let words = lines.iter().skip(after_last_step).filter(|line| !line.starts_with("Failure, exiting"));
    let words = words.copied().collect::<Vec<_>>().join(" ");
    let details = details.split_whitespace().collect::<Vec<_>>().join(" ");
    let parts = [words, details].map(shortened);
    let parts: Vec<&str> = parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { telling_line(said) } else { parts.join(" ") }
}

fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(LONGEST_PART) {
        text.truncate(end);
        text.push_str(" ...");
    }
    text
}

/// What PostgreSQL says of the first setting that it refuses. The last line only says that there is one.
fn refused_setting(said: &str) -> String {
    let first = said.lines().find_map(|line| Some(line.split_once("LOG:")?.1.trim()));
    let without_place = |line: &str| line.split(" in file ").next().unwrap_or(line).to_owned();
    first.map_or_else(|| telling_line(said), without_place)
}

/// Gathers the statistics of all databases of a running cluster.
pub(crate) fn analyze(client: &Client<'_>, programs: &Programs) -> Result<(), UpgradeError> {
    let program = programs.newer.program("vacuumdb");
    let mut command = client.account.command(&program);
    command
        .args(["--all", "--analyze-only", "--quiet", "--no-password"])
        .args(["-U", SUPERUSER, "-p", &PORT.to_string(), "-h"])
        .arg(client.socket_directory)
        .stdin(Stdio::null());
    let output = command.output().map_err(|source| LocalPostgresError::Run { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    let reason = telling_line(&String::from_utf8_lossy(&output.stderr));
    Err(UpgradeError::Failed { program: "vacuumdb", reason, log: None })
}

/// Checks that the data can be copied, and that there is room. Returns the size of the data.
pub(crate) fn check_room(home: &Home) -> Result<u64, UpgradeError> {
    let (data, rights) = (home.data(), home.account().rights());
    let spaces = data.join("pg_tblspc");
    let other = rights.run(|| Ok(spaces.read_dir()?.next().is_some()));
    if other.map_err(|error| LocalPostgresError::file("read", &spaces, error))? {
        return Err(UpgradeError::Tablespaces { home: home.path().to_owned() });
    }
    let bytes = size(&data, rights).map_err(|error| LocalPostgresError::file("read", &data, error))?;
    let space = rustix::fs::statvfs(home.path())
        .map_err(|error| LocalPostgresError::file("measure", home.path(), error.into()))?;
    match room(bytes, space.f_bavail.saturating_mul(space.f_frsize)) {
        Ok(()) => Ok(bytes),
        Err((needed, free)) => Err(UpgradeError::NoRoom { home: home.path().to_owned(), needed, free }),
    }
}

/// Whether a copy of this size fits, with some room to spare. Otherwise what it needs and what is free.
fn room(bytes: u64, free: u64) -> Result<(), (u64, u64)> {
    let needed = bytes.saturating_add(bytes / 10).saturating_add(EMPTY_CLUSTER);
    if needed <= free { Ok(()) } else { Err((needed, free)) }
}

/// The size of the files of a data directory, without its log of changes. Follows no links.
pub(crate) fn size(data: &Path, rights: Rights) -> std::io::Result<u64> {
    fn of(directory: &Path) -> std::io::Result<u64> {
        let mut bytes = 0;
        for entry in directory.read_dir()? {
            let entry = entry?;
            let metadata = entry.path().symlink_metadata()?;
            bytes += match metadata.is_dir() {
                true if entry.file_name() == NOT_COPIED => 0,
                true => of(&entry.path())?,
                false => metadata.len(),
            };
        }
        Ok(bytes)
    }
    rights.run(|| of(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_cluster_is_created_like_the_earlier_one() {
        let said = |version: u64| {
            format!(
                "pg_control version number:            1300\nBytes per WAL segment:                33554432\n\
                     Data page checksum version:           {version}\n"
            )
        };
        let (with, without) = (Layout::parse(&said(1)).unwrap(), Layout::parse(&said(0)).unwrap());
        assert_eq!(with.arguments(18), ["--wal-segsize=32", "--data-checksums"]);
        assert_eq!(without.arguments(18), ["--wal-segsize=32", "--no-data-checksums"]);
        assert_eq!(without.arguments(17), ["--wal-segsize=32"]);
        assert_eq!(Layout::parse("pg_controldata: fatal"), None);

        let locale = |provider: &str, name: &str| {
            let (encoding, collate) = ("UTF8".to_owned(), "C.UTF-8".to_owned());
            let (provider, name) = (provider.to_owned(), name.to_owned());
            Locale { encoding, ctype: collate.clone(), collate, provider, name }.arguments()
        };
        let common = ["--encoding=UTF8", "--lc-collate=C.UTF-8", "--lc-ctype=C.UTF-8"];
        assert_eq!(locale("c", ""), [&common[..], &["--locale-provider=libc"]].concat());
        let builtin = [&common[..], &["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]].concat();
        assert_eq!(locale("b", "C.UTF-8"), builtin);
        assert_eq!(locale("i", "de"), [&common[..], &["--locale-provider=icu", "--icu-locale=de"]].concat());
    }

    #[test]
    fn the_reason_is_what_was_said_after_the_last_step() {
        let said = "Checking cluster versions     ok\nChecking for presence of required libraries   fatal\n\n\
                    Your installation references libraries that are missing.  The list is in the file:\n    \
                    /x/loadable_libraries.txt\nFailure, exiting\n";
        assert_eq!(
            reason(said, "could not load library \"$libdir/postgis\"\n"),
            "Your installation references libraries that are missing.  The list is in the file: \
             /x/loadable_libraries.txt could not load library \"$libdir/postgis\""
        );
        assert_eq!(reason("pg_upgrade: error: no such user\n", ""), "pg_upgrade: error: no such user");
        assert_eq!(reason("", ""), "it printed no message");
        let long = reason(
            &format!("Checking a   failed check: b\n{}", "é".repeat(1000)),
            "In database: litespend\n  public.a",
        );
        assert!(long.starts_with("éé") && long.ends_with("é ... In database: litespend public.a"), "{long}");
        assert_eq!(long.chars().filter(|character| *character == 'é').count(), LONGEST_PART);
    }

    #[test]
    fn the_first_refused_setting_is_named() {
        let said = "2026-11-29 14:06:53 UTC [1] LOG:  unrecognized configuration parameter \"a\" in file \"/x/c\" line 7\n\
                    2026-11-29 14:06:53 UTC [1] FATAL:  configuration file \"/x/c\" contains errors\n";
        assert_eq!(refused_setting(said), "unrecognized configuration parameter \"a\"");
        assert_eq!(refused_setting("postgres: FATAL:  no such directory\n"), "no such directory");
    }

    #[test]
    fn a_copy_needs_room_for_itself_and_for_a_cluster() {
        assert_eq!(room(0, EMPTY_CLUSTER), Ok(()));
        assert_eq!(room(1000, EMPTY_CLUSTER + 1099), Err((EMPTY_CLUSTER + 1100, EMPTY_CLUSTER + 1099)));
        assert_eq!(room(u64::MAX, 5), Err((u64::MAX, 5)));

        let directory = tempfile::tempdir().unwrap();
        for name in ["base/1/2", "pg_wal/3"] {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "twelve bytes").unwrap();
        }
        std::os::unix::fs::symlink("/", directory.path().join("link")).unwrap();
        assert_eq!(size(directory.path(), Rights::OWN).unwrap(), 13);
    }
}
