//! The user that PostgreSQL runs as. PostgreSQL refuses root, so root hands it to the owner of the
//! data, else to `postgres`, else to `nobody`; everyone else runs it as themselves.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{User, geteuid};

use super::LocalPostgresError;

/// Whom PostgreSQL's processes and files belong to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    /// User and group to switch to; `None` to stay who we are.
    switch_to: Option<(u32, u32)>,
}

impl Account {
    /// The account for the cluster in `data`, which need not exist yet.
    pub(super) fn choose(data: &Path) -> Result<Self, LocalPostgresError> {
        if !geteuid().is_root() {
            return Ok(Self { switch_to: None });
        }
        if let Ok(metadata) = data.metadata()
            && metadata.uid() != 0
        {
            return Ok(Self { switch_to: Some((metadata.uid(), metadata.gid())) });
        }
        ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .map(|user| Self { switch_to: Some((user.uid.as_raw(), user.gid.as_raw())) })
            .ok_or(LocalPostgresError::NoAccount)
    }

    /// Whether PostgreSQL runs as somebody else than this process.
    pub(super) fn is_another(self) -> bool {
        self.switch_to.is_some()
    }

    /// Gives `path` to the account.
    pub(super) fn take_over(self, path: &Path) -> Result<(), LocalPostgresError> {
        if let Some((user, group)) = self.switch_to {
            std::os::unix::fs::chown(path, Some(user), Some(group))
                .map_err(|error| LocalPostgresError::file("change the owner of", path, error))?;
        }
        Ok(())
    }

    /// A command run by the account, in an environment that no setting of the user's leaks into.
    /// On Linux it is interrupted when the thread that starts it ends.
    pub(super) fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("LC_ALL", "C").env("TZ", "UTC").current_dir("/");
        if let Some((user, group)) = self.switch_to {
            command.uid(user).gid(group);
        }
        end_with_this_thread(&mut command);
        command
    }
}

/// Has the system send the interrupt that ends PostgreSQL's programs cleanly when this
/// thread is gone.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no safe interface runs code between fork and exec")]
fn end_with_this_thread(command: &mut Command) {
    let parent = std::os::unix::process::parent_id;
    let expected = std::process::id();
    // SAFETY: between fork and exec only calls that are safe in a signal handler are made: two
    // system calls. Neither allocates nor locks, and an error is made from a number.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGINT)?;
            if parent() == expected {
                Ok(())
            } else {
                // The parent ended before the signal was asked for.
                Err(nix::errno::Errno::ESRCH.into())
            }
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn end_with_this_thread(_command: &mut Command) {}
