//! The parts of LiteLLM's `config.yaml` that litespend uses.

use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::settings::network::parse_network;

/// The values that litespend reads from LiteLLM's `config.yaml`. References `os.environ/NAME` are resolved; an unset
/// variable counts as null, and null as a missing setting.
#[derive(Clone, Debug, Default)]
pub struct ConfigFile {
    /// `general_settings`.
    pub general: GeneralSettings,
    /// `model_list`.
    pub model_list: Vec<Value>,
    /// `router_settings.model_group_alias`.
    pub model_group_alias: Value,
    /// Names of settings that litespend does not use.
    pub ignored: Vec<String>,
}

/// The settings of `general_settings`, by LiteLLM's names.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct GeneralSettings {
    /// The master key.
    pub master_key: Option<SecretString>,
    /// The database's URL.
    pub database_url: Option<String>,
    /// Addresses and CIDR ranges that may send requests.
    pub allowed_ips: Option<Vec<String>>,
    /// Whether `X-Forwarded-For` of a trusted proxy counts.
    pub use_x_forwarded_for: Option<bool>,
    /// Whether a master key that is easy to guess is accepted.
    pub dangerously_permit_weak_or_unset_master_key: Option<bool>,
}

/// The settings of `router_settings` that litespend uses.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RouterSettings {
    model_group_alias: Value,
}

/// The sections of the file.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Sections {
    general_settings: Option<GeneralSettings>,
    model_list: Option<Vec<Value>>,
    router_settings: Option<RouterSettings>,
}

impl ConfigFile {
    /// Reads a config file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read the config file {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("config file {}", path.display()))
    }

    /// Parses the text of a config file.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let document: Value = serde_norway::from_str(text).context("is not YAML")?;
        let document = match document {
            Value::Null => Value::Object(Map::new()),
            Value::Object(_) => resolve(document),
            _ => bail!("must be a mapping"),
        };
        let (mut ignored, mut track) = (Vec::new(), serde_path_to_error::Track::new());
        let tracked = serde_path_to_error::Deserializer::new(document, &mut track);
        let sections: Result<Sections, _> =
            serde_ignored::deserialize(tracked, |path| ignored.push(path.to_string().replace("?.", "")));
        // The parser's message repeats the value, which may be a secret.
        let sections = sections.map_err(|_| anyhow!("{} has the wrong type", track.path()))?;
        let general = sections.general_settings.unwrap_or_default();
        for entry in general.allowed_ips.iter().flatten() {
            let message = "general_settings.allowed_ips";
            ensure!(parse_network(entry).is_some(), "{message}: {entry:?} is not an address or CIDR range");
        }
        Ok(Self {
            general,
            model_list: sections.model_list.unwrap_or_default(),
            model_group_alias: sections.router_settings.unwrap_or_default().model_group_alias,
            ignored,
        })
    }
}

/// Replaces `os.environ/NAME` with the value of the variable, at any depth. An unset variable becomes null.
fn resolve(value: Value) -> Value {
    match value {
        Value::String(text) => match text.strip_prefix("os.environ/") {
            Some(name) => std::env::var(name).map_or(Value::Null, Value::String),
            None => Value::String(text),
        },
        Value::Array(items) => items.into_iter().map(resolve).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, resolve(value))).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn litellms_config_is_read_and_the_rest_is_named() {
        let config = ConfigFile::parse(
            "general_settings:\n  allowed_ips: ['10.0.0.0/8']\n  use_x_forwarded_for: true\n  alerting: [slack]\n  \
             database_url: null\nlitellm_settings: {drop_params: true}\nmodel_list:\n  - model_name: a\n\
             router_settings: {timeout: 5, model_group_alias: {b: a}}\n",
        )
        .expect("valid");
        assert_eq!(config.general.allowed_ips.as_deref(), Some(&["10.0.0.0/8".to_owned()][..]));
        assert_eq!(config.general.use_x_forwarded_for, Some(true));
        assert_eq!(config.ignored, ["general_settings.alerting", "litellm_settings", "router_settings.timeout"]);
        assert_eq!(config.model_list.len(), 1);
        assert_eq!(config.model_group_alias["b"], "a");
        for empty in ["", "# nothing\n", "general_settings:\nrouter_settings:\nmodel_list:\n"] {
            assert!(ConfigFile::parse(empty).is_ok_and(|config| config.ignored.is_empty()), "{empty:?}");
        }
    }

    #[test]
    fn a_wrong_value_names_its_setting() {
        for (text, expected) in [
            ("general_settings: [1]", "general_settings"),
            ("general_settings: {allowed_ips: ['nonsense']}", "general_settings.allowed_ips"),
            ("general_settings: {use_x_forwarded_for: 'yes'}", "general_settings.use_x_forwarded_for"),
            ("model_list: {a: 1}", "model_list"),
            ("[1]", "must be a mapping"),
            ("a: [", "is not YAML"),
        ] {
            let error = format!("{:#}", ConfigFile::parse(text).expect_err("refused"));
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_secret_is_not_repeated_in_an_error() {
        let error = format!(
            "{:#}",
            ConfigFile::parse("general_settings: {use_x_forwarded_for: sk-secret}").expect_err("refused")
        );
        assert!(!error.contains("sk-secret"), "{error}");
    }
}
