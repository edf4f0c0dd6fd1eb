//! Sessions of the dashboard. A link binds the key of a session to the credentials that opened the session, so that the
//! session key never outlives them and never has more rights. The link is stored in the key's `metadata`, so it works
//! in LiteLLM's tables as well. It carries a seal (an HMAC) that only a server with the installation's secret, this
//! master key and this `UI_PASSWORD` can make. A link can remove rights from a key; it cannot add any.

use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use tokio::sync::OnceCell;

use crate::identity::{Link, hash_key};
use crate::store;
use crate::store::Connection;
use crate::store::secrets;

/// The name under which the database stores the installation's secret.
const SECRET_NAME: &str = "sessions";

/// Signs tokens and seals sessions.
pub struct Signer {
    given: Option<SecretString>,
    master_key: SecretString,
    password: Option<SecretString>,
    keys: OnceCell<Keys>,
}

/// The signing keys that are derived from the secret.
pub struct Keys {
    token: EncodingKey,
    seal: EncodingKey,
}

impl Signer {
    /// Creates a signer. `given` is `LITESPEND_SECRET`.
    pub fn new(given: Option<SecretString>, master_key: SecretString, password: Option<SecretString>) -> Self {
        Self { given, master_key, password, keys: OnceCell::new() }
    }

    /// The signing keys, if they have been derived already.
    pub fn ready(&self) -> Option<&Keys> {
        self.keys.get()
    }

    /// The signing keys. They are derived from the given secret. Without one, they are derived from the secret in
    /// litespend's own tables. Without those, they are derived from a secret of this process, and its sessions end with
    /// the process.
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
            // If signing fails, use a random key, which nobody knows, rather than a guessable one.
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
        // The user's id may contain any characters, but it comes last; the hashes before it contain no spaces.
        sign(&format!("{token} {} {user_id}", parent.unwrap_or("-")), &self.seal).unwrap_or_default()
    }

    /// Whether a server with these secrets made the link for this key and user.
    pub fn fits(&self, link: &Link, token: &str, user_id: &str) -> bool {
        let expected = self.seal(token, user_id, link.parent.as_deref());
        // A failure to sign would produce an empty seal.
        !expected.is_empty() && bool::from(expected.as_bytes().ct_eq(link.seal.as_bytes()))
    }
}

/// The HMAC-SHA-256 of `message`.
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
