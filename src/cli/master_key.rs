//! The master key. A flag, the environment or the config file may state it. Otherwise the first start of an embedded
//! database generates it and stores it in the home, where only its owner can read it.

use std::path::Path;

use anyhow::bail;
use secrecy::{ExposeSecret, SecretString};

use crate::cli::args::ServeArgs;
use crate::settings::ConfigFile;
use private_postgres::keep_secret;

/// The name of the file in the home directory.
const FILE: &str = "master_key";

/// A master key and its origin.
pub struct MasterKey {
    /// The key.
    pub key: SecretString,
    /// The origin, as text for people.
    pub origin: String,
}

/// The master key that the flag, the environment or the config file states. An empty key counts as none.
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

/// Secrets that are publicly known: LiteLLM's own example, which LiteLLM refuses too, and others that an attacker tries
/// first.
const PUBLICLY_KNOWN: [&str; 17] = [
    "1234",
    "admin",
    "changeme",
    "change-me",
    "default",
    "key",
    "litellm",
    "litespend",
    "master",
    "master-key",
    "masterkey",
    "password",
    "proxy",
    "secret",
    "test",
    "your-master-key",
    "xxxx",
];

/// The smallest number of characters, without `sk-`, of a secret that others may try to guess.
const LEAST_CHARACTERS: usize = 8;

/// Refuses a master key or a `UI_PASSWORD` that is easy to guess if the server can be reached from other machines. The
/// settings with LiteLLM's names can override this. If it is not refused, returns a warning about it. LiteLLM's rule is
/// in its `proxy/auth/master_key_boot_check.py` (1.110.2).
pub fn check_strength(
    key: Option<&SecretString>,
    args: &ServeArgs,
    config: &ConfigFile,
) -> anyhow::Result<Vec<String>> {
    let mut warnings = Vec::new();
    let password =
        args.ui_password.as_ref().filter(|password| args.ui.is_some() && !password.expose_secret().is_empty());
    let insists = args.authority.dangerously_permit_weak_or_unset_master_key
        || config.general.dangerously_permit_weak_or_unset_master_key == Some(true);
    let is_local = args.host.to_canonical().is_loopback();
    for (name, secret) in [("the master key", key), ("UI_PASSWORD", password)] {
        let Some(reason) = secret.and_then(|secret| weakness(secret.expose_secret())) else { continue };
        if !is_local && !insists {
            bail!(
                "{name} {reason}, and other machines can reach {}: choose another (sk-$(openssl rand -hex 32)), listen on \
                 127.0.0.1, or set LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY=true",
                args.host
            );
        }
        warnings.push(format!("{name} {reason}: never use it where other machines can reach the server"));
    }
    Ok(warnings)
}

/// The reason why a secret is easy to guess, if it is.
fn weakness(secret: &str) -> Option<&'static str> {
    let lower = secret.trim().to_lowercase();
    let bare = lower.strip_prefix("sk-").unwrap_or(&lower);
    if PUBLICLY_KNOWN.contains(&lower.as_str()) || PUBLICLY_KNOWN.contains(&bare) {
        return Some("is publicly known");
    }
    if bare.chars().count() < LEAST_CHARACTERS {
        return Some("is too short");
    }
    let characters: Vec<char> = bare.chars().collect();
    let step = |pair: &[char]| match pair {
        [one, other] => i64::from(u32::from(*other)) - i64::from(u32::from(*one)),
        _ => 0,
    };
    let mut steps = characters.windows(2).map(step);
    let first = steps.next()?;
    // Matches `aaaaaaaa`, `12345678` and `87654321`.
    (first.abs() <= 1 && steps.all(|step| step == first)).then_some("is a simple sequence of characters")
}

/// Reads the master key from the home directory. Generates it if there is none.
pub fn of_home(home: &Path) -> anyhow::Result<MasterKey> {
    let path = home.join(FILE);
    let (key, is_new) = keep_secret(home, FILE, generate)?;
    if key.is_empty() {
        bail!("{} is empty: write the master key into it, or remove it to get a new key", path.display());
    }
    let origin = if is_new { "created on this first start:" } else { "read from" };
    Ok(MasterKey { key: key.into(), origin: format!("{origin} {}", path.display()) })
}

/// Generates a master key: `sk-` followed by 256 random bits in hex.
pub fn generate() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().fold("sk-".to_owned(), |key, byte| format!("{key}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_that_anybody_tries_are_known() {
        for weak in [
            "sk-1234",
            " sk-1234 ",
            "SK-1234",
            "sk-",
            "sk-password",
            "admin",
            "sk-short",
            "sk-aaaaaaaaaaaa",
            "sk-12345678",
            "87654321",
            "",
        ] {
            assert!(weakness(weak).is_some(), "{weak}");
        }
        for strong in ["sk-master-1234", "correct horse battery", &generate()] {
            assert_eq!(weakness(strong), None, "{strong}");
        }
    }
}
