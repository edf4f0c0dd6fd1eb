//! The parts of LiteLLM's `config.yaml` that litespend uses.

use std::path::Path;

use anyhow::{Context, bail};
use secrecy::SecretString;
use serde_json::Value;

use crate::settings::network::parse_network;

/// The values that litespend reads from LiteLLM's `config.yaml`.
#[derive(Clone, Debug, Default)]
pub struct ConfigFile {
    /// `general_settings.master_key`.
    pub master_key: Option<SecretString>,
    /// `general_settings.database_url`.
    pub database_url: Option<String>,
    /// `general_settings.allowed_ips`.
    pub allowed_ips: Option<Vec<String>>,
    /// `general_settings.use_x_forwarded_for`.
    pub use_x_forwarded_for: bool,
    /// `general_settings.dangerously_permit_weak_or_unset_master_key`.
    pub permit_weak_master_key: bool,
    /// `model_list`, with references resolved.
    pub model_list: Vec<Value>,
    /// `router_settings.model_group_alias`, with references resolved.
    pub model_group_alias: Value,
    /// Names of settings that litespend does not use.
    pub ignored: Vec<String>,
}

/// The fields of `general_settings` that litespend uses.
const KNOWN_GENERAL: [&str; 5] =
    ["master_key", "database_url", "allowed_ips", "use_x_forwarded_for", "dangerously_permit_weak_or_unset_master_key"];

impl ConfigFile {
    /// Reads a config file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("config file {} cannot be read", path.display()))?;
        Self::parse(&text).with_context(|| format!("config file {}", path.display()))
    }

    /// Parses the text of a config file.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let document: Value = serde_norway::from_str(text).context("is not YAML")?;
        let mut config = Self::default();
        let sections = match document {
            Value::Null => return Ok(config),
            Value::Object(sections) => sections,
            _ => bail!("must be a mapping"),
        };
        for (section, content) in sections {
            match (section.as_str(), content) {
                ("general_settings", Value::Object(settings)) => config.read_general(settings)?,
                ("model_list", Value::Array(models)) => {
                    config.model_list = models.into_iter().map(resolve).collect::<anyhow::Result<_>>()?;
                }
                ("router_settings", Value::Object(mut settings)) => {
                    config.model_group_alias = resolve(settings.remove("model_group_alias").unwrap_or_default())?;
                    config.ignored.extend(settings.keys().map(|name| format!("router_settings.{name}")));
                }
                (_, Value::Null) => {}
                ("general_settings" | "router_settings", _) => bail!("{section} must be a mapping"),
                ("model_list", _) => bail!("model_list must be a list"),
                (_, _) => config.ignored.push(section),
            }
        }
        Ok(config)
    }

    fn read_general(&mut self, settings: serde_json::Map<String, Value>) -> anyhow::Result<()> {
        for (name, value) in settings {
            if !KNOWN_GENERAL.contains(&name.as_str()) {
                self.ignored.push(format!("general_settings.{name}"));
                continue;
            }
            match (name.as_str(), resolve(value)?) {
                (_, Value::Null) => {}
                ("master_key", Value::String(key)) => self.master_key = Some(key.into()),
                ("database_url", Value::String(url)) => self.database_url = Some(url),
                ("allowed_ips", Value::Array(items)) => {
                    let entries: Option<Vec<_>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
                    let entries = entries.context("general_settings.allowed_ips must be a list of texts")?;
                    if let Some(bad) = entries.iter().find(|entry| parse_network(entry).is_none()) {
                        bail!("general_settings.allowed_ips: {bad:?} is not an address or CIDR range");
                    }
                    self.allowed_ips = Some(entries);
                }
                ("use_x_forwarded_for", Value::Bool(on)) => self.use_x_forwarded_for = on,
                ("dangerously_permit_weak_or_unset_master_key", Value::Bool(on)) => self.permit_weak_master_key = on,
                (name, _) => bail!("general_settings.{name} has the wrong type"),
            }
        }
        Ok(())
    }
}

/// Replaces `os.environ/NAME` with the value of the variable, at any depth. An unset variable becomes null.
fn resolve(value: Value) -> anyhow::Result<Value> {
    Ok(match value {
        Value::String(text) => match text.strip_prefix("os.environ/") {
            Some(name) => match std::env::var(name) {
                Ok(found) => Value::String(found),
                Err(_) => Value::Null,
            },
            None => Value::String(text),
        },
        Value::Array(items) => Value::Array(items.into_iter().map(resolve).collect::<anyhow::Result<_>>()?),
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .map(|(name, value)| Ok((name, resolve(value)?)))
                .collect::<anyhow::Result<serde_json::Map<_, _>>>()?,
        ),
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn litellms_config_is_read_and_the_rest_is_named() {
        let config = ConfigFile::parse(
            "general_settings:\n  allowed_ips: ['10.0.0.0/8']\n  use_x_forwarded_for: true\n  alerting: [slack]\n\
             litellm_settings: {drop_params: true}\nmodel_list:\n  - model_name: a\n",
        )
        .expect("valid");
        assert_eq!(config.allowed_ips.as_deref(), Some(&["10.0.0.0/8".to_owned()][..]));
        assert!(config.use_x_forwarded_for);
        assert_eq!(config.ignored, ["general_settings.alerting", "litellm_settings"]);
        assert_eq!(config.model_list.len(), 1);
        assert!(ConfigFile::parse("general_settings: [1]").is_err());
        assert!(ConfigFile::parse("general_settings: {allowed_ips: ['nonsense']}").is_err());
        assert!(ConfigFile::parse("").is_ok());
    }
}
