//! placeholder
use crate::config::ConfigFile;
pub struct Pricer;
impl Pricer {
    pub fn from_config(_c: &ConfigFile) -> anyhow::Result<Self> {
        Ok(Self)
    }
}
