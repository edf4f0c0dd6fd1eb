//! The master key: given by flag, environment or config file, or made on the first start of an embedded database and
//! kept in its home, readable by its owner alone.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use secrecy::{ExposeSecret, SecretString};

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
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => {
            let origin = format!("read from {}", path.display());
            return Ok(MasterKey { key: text.trim().to_owned().into(), origin });
        }
        Ok(_) => bail!("{} is empty: put the master key into it, or remove it for a new one", path.display()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
    let key = generate();
    // Written whole under another name first, so that a crash never leaves half a key.
    let draft = home.join(format!("{FILE}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    writeln!(file, "{key}")?;
    file.sync_all()?;
    std::fs::rename(&draft, &path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(MasterKey { key: key.into(), origin: format!("made on this first start: {}", path.display()) })
}

/// `sk-` and 256 random bits.
pub fn generate() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().fold("sk-".to_owned(), |key, byte| format!("{key}{byte:02x}"))
}
