//! The user that PostgreSQL runs as, and the rights with which the files in its home are accessed.
//!
//! PostgreSQL refuses to run as root. Root therefore runs it as the owner of the data, or as the home's owner if there
//! are no data yet. If root owns those, it runs PostgreSQL as `litespend`, `postgres` or `nobody`. Every other user
//! runs PostgreSQL as itself.

use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Uid, User, geteuid};

use crate::LocalPostgresError;
use crate::home::DATA;
use crate::rights::Rights;

/// The users as which root runs PostgreSQL, in order of preference: a dedicated user first, then the users that systems
/// have.
const ACCOUNTS: [&str; 3] = ["litespend", "postgres", "nobody"];
/// Write permission for the group and for others.
const WRITE_OF_OTHERS: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// How a home is divided between users.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Custody {
    /// The user that runs PostgreSQL and owns the data and the socket.
    pub(crate) account: Account,
    /// The rights with which the home's own files are accessed: the lock, the log, the master key.
    pub(crate) rights: Rights,
    /// The home's owner, if it is another user and root must take over the home before it works there.
    take_over: Option<u32>,
}

impl Custody {
    /// Decides by the owners of the home and of its data. The home need not exist yet. Changes nothing.
    ///
    /// # Errors
    ///
    /// If this process runs as root: [`LocalPostgresError::UnsafeHome`] if another user could replace the home with
    /// another directory, and [`LocalPostgresError::NoAccount`] if no account can run PostgreSQL.
    pub(crate) fn of(home: &Path) -> Result<Self, LocalPostgresError> {
        if !geteuid().is_root() {
            return Ok(Self { account: Account::SELF, rights: Rights::OWN, take_over: None });
        }
        let foreign = foreign_way(home)?;
        let owner = match home.metadata() {
            Ok(metadata) => metadata.uid(),
            Err(error) if error.kind() == ErrorKind::NotFound => 0,
            Err(error) => return Err(LocalPostgresError::file("read", home, error)),
        };
        if let Some(user) = foreign.filter(|user| *user != owner) {
            let reason = format!("user {user} can replace a directory on the way to it");
            return Err(LocalPostgresError::UnsafeHome { home: home.to_owned(), reason });
        }
        let data = home.join(DATA).symlink_metadata().ok().filter(std::fs::Metadata::is_dir);
        let data = data.map(|metadata| (metadata.uid(), metadata.gid())).filter(|(user, _)| *user != 0);
        let known = || User::from_uid(Uid::from_raw(owner)).ok().flatten();
        let all_of_owner = match data {
            Some((user, group)) => (user == owner).then_some((user, group)),
            None if owner == 0 => None,
            // PostgreSQL runs only as a user that has a name.
            None => known().map(|user| (owner, user.gid.as_raw())),
        };
        if let Some((user, group)) = all_of_owner {
            let account = Account { switch_to: Some((user, group)) };
            return Ok(Self { account, rights: Rights::of(user, group), take_over: None });
        }
        if owner != 0 && foreign.is_some() {
            let reason = format!("it belongs to user {owner}, but its data does not");
            return Err(LocalPostgresError::UnsafeHome { home: home.to_owned(), reason });
        }
        let account = match data {
            Some(owner) => Account { switch_to: Some(owner) },
            None => Account::of_the_system()?,
        };
        Ok(Self { account, rights: Rights::OWN, take_over: Some(owner).filter(|owner| *owner != 0) })
    }

    /// Makes an existing home safe for root: root owns it, only root can write to it, and PostgreSQL's account can
    /// enter it.
    pub(crate) fn secure(self, home: &Path) -> Result<(), LocalPostgresError> {
        let failed = |error| LocalPostgresError::file("secure", home, error);
        let directory = File::open(home).map_err(failed)?;
        let metadata = directory.metadata().map_err(failed)?;
        let mode = metadata.mode() & 0o7777;
        if self.rights != Rights::OWN || !self.account.is_another() {
            if mode & 0o002 != 0 {
                tracing::warn!(home = %home.display(), mode = format!("{mode:o}"), "every user of this machine can replace files of the private PostgreSQL");
            }
            return Ok(());
        }
        if mode & STICKY != 0 {
            let reason = "it is a shared directory".to_owned();
            return Err(LocalPostgresError::UnsafeHome { home: home.to_owned(), reason });
        }
        if let Some(user) = self.take_over {
            tracing::warn!(home = %home.display(), user, "making root the owner of the home, because another account owns the data in it");
            std::os::unix::fs::fchown(&directory, Some(0), Some(0)).map_err(failed)?;
            take_over_files(home, user);
        }
        let wanted = (mode & !WRITE_OF_OTHERS) | 0o011;
        if wanted != mode {
            directory.set_permissions(Permissions::from_mode(wanted)).map_err(failed)?;
        }
        Ok(())
    }
}

/// A user other than root who can replace a directory on the way to `home`. Checks the path as written and the path
/// with all links resolved.
fn foreign_way(home: &Path) -> Result<Option<u32>, LocalPostgresError> {
    let existing = home.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let leads_to = existing.canonicalize().map_err(|error| LocalPostgresError::file("resolve", home, error))?;
    // If the home does not exist yet, its closest existing ancestor counts too.
    let above = |path: &Path| path.ancestors().skip(usize::from(existing == home)).map(Path::to_owned).collect();
    let ways: [Vec<_>; 2] = [home.ancestors().skip(1).map(Path::to_owned).collect(), above(&leads_to)];
    let mut foreign = None;
    for directory in ways.iter().flatten() {
        let metadata = match directory.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(LocalPostgresError::file("read", directory, error)),
        };
        if metadata.uid() != 0 {
            foreign = Some(metadata.uid());
        }
        let group = metadata.mode() & 0o020 != 0 && metadata.gid() != 0;
        if (group || metadata.mode() & 0o002 != 0) && metadata.mode() & STICKY == 0 {
            let reason = format!("users other than root can write to {}", directory.display());
            return Err(LocalPostgresError::UnsafeHome { home: home.to_owned(), reason });
        }
    }
    Ok(foreign)
}

/// Makes root the owner of the files that the home's owner left. A path that is not a plain file of that owner stays
/// unchanged; opening it later is refused.
fn take_over_files(home: &Path, user: u32) {
    for name in ["lock", "postgres.log", "postgres.log.1", "master_key"] {
        let opened = Rights::of(user, 0).open_own(File::options().read(true), &home.join(name));
        let Ok(file) = opened else { continue };
        if let Err(error) = std::os::unix::fs::fchown(&file, Some(0), Some(0)) {
            tracing::warn!(%error, name, "cannot make root the owner of a file");
        }
    }
}

/// The user that owns PostgreSQL's processes and files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    /// The user and group to switch to. `None` means this process's own.
    switch_to: Option<(u32, u32)>,
}

impl Account {
    /// This process's own user.
    pub(crate) const SELF: Self = Self { switch_to: None };

    fn of_the_system() -> Result<Self, LocalPostgresError> {
        ACCOUNTS
            .into_iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .map(|user| Self { switch_to: Some((user.uid.as_raw(), user.gid.as_raw())) })
            .ok_or(LocalPostgresError::NoAccount)
    }

    /// Whether PostgreSQL runs as another user than this process.
    pub(crate) fn is_another(self) -> bool {
        self.switch_to.is_some()
    }

    /// The account's rights for accessing files.
    pub(crate) fn rights(self) -> Rights {
        self.switch_to.map_or(Rights::OWN, |(user, group)| Rights::of(user, group))
    }

    /// Gives `path` to the account. The account must not have been able to replace `path`.
    pub(crate) fn take_over(self, path: &Path) -> std::io::Result<()> {
        match self.switch_to {
            Some((user, group)) => std::os::unix::fs::lchown(path, Some(user), Some(group)),
            None => Ok(()),
        }
    }

    /// A command that the account runs. Its environment contains no settings of the user. On Linux it is interrupted
    /// when the thread that started it ends.
    pub(crate) fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("LC_ALL", "C").env("TZ", "UTC").current_dir("/");
        if let Some((user, group)) = self.switch_to {
            command.uid(user).gid(group);
        }
        end_with_this_thread(&mut command);
        command
    }
}

/// Asks the system to send SIGINT, which ends PostgreSQL's programs cleanly, when this thread ends.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no safe interface runs code between fork and exec")]
fn end_with_this_thread(command: &mut Command) {
    let parent = std::os::unix::process::parent_id;
    let expected = std::process::id();
    // SAFETY: between fork and exec, the closure makes only calls that are safe in a signal handler: two system calls.
    // Neither allocates or locks, and an error is made from a number.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGINT)?;
            if parent() == expected {
                Ok(())
            } else {
                // The parent ended before the signal was requested.
                Err(nix::errno::Errno::ESRCH.into())
            }
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn end_with_this_thread(_command: &mut Command) {}
