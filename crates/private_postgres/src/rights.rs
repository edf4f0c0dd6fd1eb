//! Accesses files with the rights of a given user.
//!
//! An account with fewer rights must not be able to misdirect root. Root uses the account's own rights for everything
//! that the account can replace (with a link to one of root's files, a device or a pipe). The files that root accesses
//! as root are in a directory that only root can write.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use nix::unistd::geteuid;

/// The largest number of bytes that are read from a file that should hold a few lines.
const SMALL: u64 = 64 * 1024;

/// The rights of this process or of another user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    /// User and group. `None` means this process's own rights.
    of: Option<(u32, u32)>,
}

impl Rights {
    /// The rights of this process.
    pub(crate) const OWN: Self = Self { of: None };

    /// The rights of a user and a group.
    pub(crate) fn of(user: u32, group: u32) -> Self {
        Self { of: Some((user, group)) }
    }

    /// The user that owns the files that are created with these rights.
    pub(crate) fn user(self) -> u32 {
        self.of.map_or_else(|| geteuid().as_raw(), |(user, _)| user)
    }

    /// Runs `work` with these rights.
    ///
    /// # Errors
    ///
    /// Returns the errors of `work`, and an error if the rights could not be assumed.
    pub(crate) fn run<T: Send>(self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let Some((user, group)) = self.of else {
            return work();
        };
        // Rights belong to a thread. A dedicated thread ends together with them, so they need not be restored.
        std::thread::scope(|scope| {
            let result = scope.spawn(move || {
                take_on(user, group)?;
                work()
            });
            result.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Reads a small file that is not a link. Call this and the functions below inside [`Rights::run`].
    pub(crate) fn read(path: &Path) -> io::Result<String> {
        let file = open(OpenOptions::new().read(true), path)?;
        let mut content = String::new();
        file.take(SMALL).read_to_string(&mut content)?;
        Ok(content)
    }

    /// Opens a file that is not a link, has no other hard link, and belongs to the user of these rights.
    pub(crate) fn open_own(self, options: &mut OpenOptions, path: &Path) -> io::Result<File> {
        let file = open(options, path)?;
        let metadata = file.metadata()?;
        if metadata.uid() != self.user() {
            return Err(refused("it belongs to another user"));
        }
        if metadata.nlink() > 1 {
            return Err(refused("it has another hard link"));
        }
        Ok(file)
    }

    /// Replaces whatever is at `path` with a new file that only its owner can read.
    pub(crate) fn replace(path: &Path, content: &str) -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        // The file is created under an unpredictable name, with mode 0600.
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(directory)?;
        file.write_all(content.as_bytes())?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    /// Returns the secret in the file `path`. If there is no such file, stores the secret that `make` returns in a file
    /// that only its owner can read, and returns it with `true`.
    pub(crate) fn keep(self, path: &Path, make: impl FnOnce() -> String) -> io::Result<(String, bool)> {
        match open(OpenOptions::new().read(true), path) {
            Ok(file) => return Ok((self.read_secret(file, path)?, false)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let directory = path.parent().unwrap_or(Path::new("."));
        let text = make();
        // The secret is first written completely under another name, so that a crash never leaves a part of it.
        let mut draft = tempfile::Builder::new().prefix(".new-").tempfile_in(directory)?;
        writeln!(draft, "{text}")?;
        draft.as_file().sync_all()?;
        draft.persist_noclobber(path).map_err(|error| error.error)?;
        File::open(directory)?.sync_all()?;
        Ok((text, true))
    }

    fn read_secret(self, file: File, path: &Path) -> io::Result<String> {
        let metadata = file.metadata()?;
        // The file may also belong to root, which may provide a secret for all users.
        if metadata.uid() != self.user() && metadata.uid() != 0 {
            return Err(refused("it belongs to another user"));
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 && metadata.uid() == self.user() {
            tracing::warn!(path = %path.display(), mode = format!("{mode:o}"), "other users could read this secret; now only its owner can");
            file.set_permissions(std::fs::Permissions::from_mode(mode & 0o700))?;
        }
        let mut content = String::new();
        file.take(SMALL).read_to_string(&mut content)?;
        Ok(content.trim().to_owned())
    }
}

/// Opens a regular file. Follows no link at the end of the path, and does not wait for the other end of a pipe.
fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(refused("it is not a regular file"));
    }
    Ok(file)
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// Gives this thread a user's rights on files, and no other rights on files.
#[cfg(target_os = "linux")]
fn take_on(user: u32, group: u32) -> io::Result<()> {
    use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
    rustix::thread::set_thread_groups(&[])?;
    setfsgid(Gid::from_raw(group));
    setfsuid(Uid::from_raw(user));
    // The two calls don't report success. Requesting an impossible id changes nothing and returns the id in effect.
    let holds = (setfsuid(Uid::from_raw(u32::MAX)), setfsgid(Gid::from_raw(u32::MAX)));
    if holds != (Uid::from_raw(user), Gid::from_raw(group)) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "cannot switch to the rights of the account"));
    }
    Ok(())
}

/// Outside Linux, a thread has no rights of its own. The only protection there is that links and additional names of
/// files are refused.
#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "on Linux it may fail")]
fn take_on(_user: u32, _group: u32) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_pipes_and_second_names_are_not_opened_and_a_replacement_leaves_their_targets_alone() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("victim"), "whole").unwrap();
        std::os::unix::fs::symlink(at("victim"), at("link")).unwrap();
        std::fs::hard_link(at("victim"), at("second")).unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        for name in ["link", "second", "pipe"] {
            let mut append = OpenOptions::new();
            assert!(Rights::OWN.open_own(append.append(true).create(true), &at(name)).is_err(), "{name}");
            if name != "second" {
                assert!(Rights::read(&at(name)).is_err(), "{name}");
            }
            Rights::replace(&at(name), "new").unwrap();
            assert_eq!(Rights::read(&at(name)).unwrap(), "new", "{name}");
        }
        assert_eq!(std::fs::read_to_string(at("victim")).unwrap(), "whole");
    }

    #[test]
    fn a_kept_secret_is_made_once_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        assert_eq!(Rights::OWN.keep(&path, || "one".to_owned()).unwrap(), ("one".to_owned(), true));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(Rights::OWN.keep(&path, || "two".to_owned()).unwrap(), ("one".to_owned(), false));
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);

        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path().join("nothing"), &link).unwrap();
        Rights::OWN.keep(&link, || "three".to_owned()).unwrap_err();
        assert!(!directory.path().join("nothing").exists());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn another_users_rights_reach_no_file_of_roots_and_end_with_the_work() {
        if !geteuid().is_root() {
            eprintln!("skipped: only root can take on the rights of others");
            return;
        }
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = directory.path().join("of-root");
        std::fs::write(&path, "secret").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let rights = Rights::of(65_534, 65_534);
        let error = rights.run(|| Rights::read(&path)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        rights.run(|| std::fs::remove_file(&path)).unwrap_err();
        assert_eq!(Rights::read(&path).unwrap(), "secret");
    }
}
