//! Secrets that are kept in the home. Each is created once, and only its owner can read it.

use std::path::Path;

use crate::LocalPostgresError;
use crate::account::Custody;

/// Returns the secret in the file `name` of `home`. If there is no such file, stores the secret that `make` returns
/// there, and returns it with `true`. No link is followed, and a file that belongs to another user is refused. White
/// space around the secret is removed.
///
/// # Errors
///
/// [`LocalPostgresError::File`]; [`LocalPostgresError::UnsafeHome`] if root can't keep anything there safely.
pub fn keep_secret(
    home: &Path,
    name: &str,
    make: impl FnOnce() -> String + Send,
) -> Result<(String, bool), LocalPostgresError> {
    let home = std::path::absolute(home).map_err(|error| LocalPostgresError::file("resolve", home, error))?;
    let rights = Custody::of(&home)?.rights;
    let path = home.join(name);
    rights.run(|| rights.keep(&path, make)).map_err(|error| LocalPostgresError::file("store a secret in", &path, error))
}
