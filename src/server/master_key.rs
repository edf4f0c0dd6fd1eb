//! The master key: given by flag, environment or config file, or made on the first start of an embedded database and
//! kept in its home, readable by its owner alone.

use std::path::Path;

use anyhow::bail;
use secrecy::{ExposeSecret, SecretString};

use crate::local_postgres::keep_secret;

/// Name of the file in the home directory.
const FILE: &str = "master_key";

/// A master key and where it came from.
pub struct MasterKey {
    /// The key.
    pub key: SecretString,
    /// Where it came from, for people.
    pub origin: String,
}

/// The key that was given, if any; an empty one is none.
pub fn given(flag: Option<&SecretString>, config: Option<&SecretString>) -> anyhow::Result<Option<MasterKey>> {
    let some = |key: Option<&SecretString>| key.filter(|key| !key.expose_secret().is_empty()).cloned();
    let (key, origin) = match (some(flag), some(config)) {
        (Some(key), _) => (key, "LITELLM_MASTER_KEY"),
        (None, Some(key)) => (key, "general_settings.master_key of the config file"),
        (None, None) => return Ok(None),
    };
    if key.expose_secret().chars().any(|character| character.is_whitespace() || character.is_control()) {
        bail!("the master key must not contain spaces or control characters ({origin})");
    }
    Ok(Some(MasterKey { key, origin: origin.to_owned() }))
}

/// The key in the home directory, made if there is none.
pub fn of_home(home: &Path) -> anyhow::Result<MasterKey> {
    let path = home.join(FILE);
    let (key, is_new) = keep_secret(home, FILE, generate)?;
    if key.is_empty() {
        bail!("{} is empty: put the master key into it, or remove it for a new one", path.display());
    }
    let origin = if is_new { "made on this first start:" } else { "read from" };
    Ok(MasterKey { key: key.into(), origin: format!("{origin} {}", path.display()) })
}

/// `sk-` and 256 random bits.
pub fn generate() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().fold("sk-".to_owned(), |key, byte| format!("{key}{byte:02x}"))
}
