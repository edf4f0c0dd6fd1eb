//! Secrets that are kept in the home: made once, and readable by their owner alone.

use std::path::Path;

use crate::LocalPostgresError;
use crate::account::Custody;

/// The secret in the file `name` of `home`, or the one that `make` gives, which is kept there; `true` where it was made.
/// No link is followed, and a file of another user's is refused. Spaces around the secret are none of it.
///
/// # Errors
///
/// [`LocalPostgresError::File`], and [`LocalPostgresError::UnsafeHome`] where root can't keep anything safely.
pub fn keep_secret(
    home: &Path,
    name: &str,
    make: impl FnOnce() -> String + Send,
) -> Result<(String, bool), LocalPostgresError> {
    let home = std::path::absolute(home).map_err(|error| LocalPostgresError::file("resolve", home, error))?;
    let rights = Custody::of(&home)?.rights;
    let path = home.join(name);
    rights.run(|| rights.keep(&path, make)).map_err(|error| LocalPostgresError::file("keep a secret in", &path, error))
}
