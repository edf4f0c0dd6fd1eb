//! Which series `/metrics/spend` lists.

/// A label of the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Label {
    /// SHA-256 of the key in hex.
    HashedApiKey,
    /// Alias of the key, as it is now.
    ApiKeyAlias,
    /// Model name in the log.
    Model,
    /// Team ID.
    Team,
    /// Alias of the team, as it is now.
    TeamAlias,
    /// User ID.
    User,
    /// Email address of the user, as it is now.
    UserEmail,
    /// Customer. Counters do not have it; with it, the budgets of customers are listed.
    EndUser,
}

impl Label {
    /// The labels that are on by default: LiteLLM's, as far as they are known, but for email addresses.
    pub const DEFAULT: &str = "hashed_api_key,api_key_alias,model,team,team_alias,user";

    /// The name of the label.
    pub fn name(self) -> &'static str {
        match self {
            Self::HashedApiKey => "hashed_api_key",
            Self::ApiKeyAlias => "api_key_alias",
            Self::Model => "model",
            Self::Team => "team",
            Self::TeamAlias => "team_alias",
            Self::User => "user",
            Self::UserEmail => "user_email",
            Self::EndUser => "end_user",
        }
    }
}

/// Which series are listed.
#[derive(Clone, Debug)]
pub struct SpendMetricsSettings {
    /// The labels of the counters.
    pub labels: Vec<Label>,
    /// The most series of each metric. Later ones are summed in a series with the value `other` in every label.
    pub series: usize,
}

impl Default for SpendMetricsSettings {
    fn default() -> Self {
        use Label::{ApiKeyAlias, HashedApiKey, Model, Team, TeamAlias, User};
        Self { labels: vec![HashedApiKey, ApiKeyAlias, Model, Team, TeamAlias, User], series: 10_000 }
    }
}

impl SpendMetricsSettings {
    /// Whether a label is wanted.
    pub fn has(&self, label: Label) -> bool {
        self.labels.contains(&label)
    }
}
