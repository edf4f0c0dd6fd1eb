//! Sessions of the dashboard: what binds the key of a session to what it was opened with, so that it never outlives or
//! outgrows that. The link stands in the key's `metadata`, so that it works in LiteLLM's tables as well, under a seal
//! that only a server with the installation's secret, this master key and this `UI_PASSWORD` can make. A link can take
//! rights from a key and give none.

use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use tokio::sync::OnceCell;

use crate::identity::{Link, hash_key};
use crate::store;
use crate::store::Connection;
use crate::store::secrets;

/// Name of the installation's secret.
const SECRET_NAME: &str = "sessions";

/// Signs tokens and seals sessions.
pub struct Signer {
    given: Option<SecretString>,
    master_key: SecretString,
    password: Option<SecretString>,
    keys: OnceCell<Keys>,
}

/// The keys made of the secret.
pub struct Keys {
    token: EncodingKey,
    seal: EncodingKey,
}

impl Signer {
    /// Of these settings; `given` is `LITESPEND_SECRET`.
    pub fn new(given: Option<SecretString>, master_key: SecretString, password: Option<SecretString>) -> Self {
        Self { given, master_key, password, keys: OnceCell::new() }
    }

    /// The keys, where they were needed before.
    pub fn ready(&self) -> Option<&Keys> {
        self.keys.get()
    }

    /// The keys: of the secret that was given, else of the one in our own database, else of one of this process, whose
    /// sessions end with it.
    pub async fn keys(&self, connection: &mut Connection) -> Result<&Keys, store::Error> {
        self.keys
            .get_or_try_init(async || {
                let secret = match &self.given {
                    Some(given) => given.expose_secret().as_bytes().to_vec(),
                    None => {
                        let proposed: [u8; 32] = rand::random();
                        let kept = secrets::find_or_keep(connection, SECRET_NAME, &proposed).await?;
                        kept.unwrap_or_else(|| proposed.to_vec())
                    }
                };
                Ok(self.derive(&secret))
            })
            .await
    }

    fn derive(&self, secret: &[u8]) -> Keys {
        let password = self.password.as_ref().unwrap_or(&self.master_key);
        let of_keys =
            format!("session {} {}", hash_key(self.master_key.expose_secret()), hash_key(password.expose_secret()));
        let derived = |purpose: &str| match sign(purpose, &EncodingKey::from_secret(secret)) {
            Some(derived) => EncodingKey::from_secret(derived.as_bytes()),
            // Nobody's key rather than everybody's.
            None => EncodingKey::from_secret(&rand::random::<[u8; 32]>()),
        };
        Keys { token: derived("token"), seal: derived(&of_keys) }
    }
}

impl Keys {
    /// The key that signs tokens.
    pub fn token(&self) -> &EncodingKey {
        &self.token
    }

    /// The seal of a session's key.
    pub fn seal(&self, token: &str, user_id: &str, parent: Option<&str>) -> String {
        // A user's id can hold anything but comes last; hashes hold no spaces.
        sign(&format!("{token} {} {user_id}", parent.unwrap_or("-")), &self.seal).unwrap_or_default()
    }

    /// Whether a link was made for this key, by a server with these secrets.
    pub fn fits(&self, link: &Link, token: &str, user_id: &str) -> bool {
        let expected = self.seal(token, user_id, link.parent.as_deref());
        // An empty seal is what a failure to sign would leave.
        !expected.is_empty() && bool::from(expected.as_bytes().ct_eq(link.seal.as_bytes()))
    }
}

/// HMAC-SHA-256.
fn sign(message: &str, key: &EncodingKey) -> Option<String> {
    crypto::sign(message.as_bytes(), key, Algorithm::HS256).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_fits_one_key_one_parent_and_one_set_of_secrets() {
        let keys = |master: &str, password: Option<&str>, secret: &[u8]| {
            Signer::new(None, master.to_owned().into(), password.map(|text| text.to_owned().into())).derive(secret)
        };
        let ours = keys("sk-master", None, b"secret");
        let link = Link { parent: Some("p".into()), seal: ours.seal("t", "u", Some("p")) };
        assert!(ours.fits(&link, "t", "u"));
        assert!(keys("sk-master", None, b"secret").fits(&link, "t", "u"), "the same on another server");
        assert!(!ours.fits(&link, "other", "u") && !ours.fits(&link, "t", "other"));
        assert!(!ours.fits(&Link { parent: None, ..link.clone() }, "t", "u"));
        assert!(!ours.fits(&Link { parent: Some("other".into()), ..link.clone() }, "t", "u"));
        for others in [
            keys("sk-other", None, b"secret"),
            keys("sk-master", Some("password"), b"secret"),
            keys("sk-master", None, b"other"),
        ] {
            assert!(!others.fits(&link, "t", "u"));
        }
        assert!(!ours.fits(&Link::read(&serde_json::json!({})), "t", "u"));
        assert_eq!(Link::read(&link.write()), link);
    }
}
