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
    /// Customer. With it, the budgets of customers are listed.
    EndUser,
    /// Provider that answered.
    ApiProvider,
    /// Organisation ID.
    OrgId,
    /// Alias of the organisation, as it is now.
    OrgAlias,
    /// Model that was asked for: the model group in the log.
    RequestedModel,
    /// ID of the deployment that answered.
    ModelId,
}

impl Label {
    /// The labels that are on by default: LiteLLM's that name who called and which model, but for email addresses.
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
            Self::ApiProvider => "api_provider",
            Self::OrgId => "org_id",
            Self::OrgAlias => "org_alias",
            Self::RequestedModel => "requested_model",
            Self::ModelId => "model_id",
        }
    }

    /// The label with the ID of what this label names.
    fn id(self) -> Option<Self> {
        match self {
            Self::ApiKeyAlias => Some(Self::HashedApiKey),
            Self::TeamAlias => Some(Self::Team),
            Self::UserEmail => Some(Self::User),
            Self::OrgAlias => Some(Self::OrgId),
            Self::HashedApiKey
            | Self::Model
            | Self::Team
            | Self::User
            | Self::EndUser
            | Self::ApiProvider
            | Self::OrgId
            | Self::RequestedModel
            | Self::ModelId => None,
        }
    }
}

/// Which series are listed.
#[derive(Clone, Debug)]
pub struct SpendMetricsSettings {
    labels: Vec<Label>,
    series: usize,
}

impl Default for SpendMetricsSettings {
    fn default() -> Self {
        use Label::{ApiKeyAlias, HashedApiKey, Model, Team, TeamAlias, User};
        Self::new(&[HashedApiKey, ApiKeyAlias, Model, Team, TeamAlias, User], 10_000)
    }
}

impl SpendMetricsSettings {
    /// Counters with these labels, each of them once, and at most this number of series of each metric.
    ///
    /// An alias or an email address brings its ID along, in front of it if the ID is not among the labels. Several things may
    /// have the same name, and names change. Without the ID, a changed name would move all that was ever spent under it from
    /// one series to another.
    pub fn new(labels: &[Label], series: usize) -> Self {
        let mut chosen = Vec::new();
        for label in labels {
            let id = label.id().filter(|id| !labels.contains(id));
            for label in id.into_iter().chain([*label]) {
                if !chosen.contains(&label) {
                    chosen.push(label);
                }
            }
        }
        Self { labels: chosen, series }
    }

    /// The labels of the counters.
    pub fn labels(&self) -> &[Label] {
        &self.labels
    }

    /// The most series of each metric. Later ones are summed in a series with the value `other` in every label.
    pub fn series(&self) -> usize {
        self.series
    }

    /// Whether a label is wanted.
    pub fn has(&self, label: Label) -> bool {
        self.labels.contains(&label)
    }
}

#[cfg(test)]
mod tests {
    use super::Label::{ApiKeyAlias, EndUser, HashedApiKey, Model, OrgAlias, OrgId, Team, TeamAlias, User, UserEmail};
    use super::*;

    #[test]
    fn each_label_is_there_once_and_names_have_their_ids() {
        let chosen = |labels: &[Label]| SpendMetricsSettings::new(labels, 1).labels;
        assert_eq!(chosen(&[Team, Model, Team]), [Team, Model]);
        assert_eq!(chosen(&[ApiKeyAlias, Model, Team]), [HashedApiKey, ApiKeyAlias, Model, Team]);
        assert_eq!(chosen(&[TeamAlias, UserEmail, TeamAlias]), [Team, TeamAlias, User, UserEmail]);
        assert_eq!(chosen(&[TeamAlias, Model, Team]), [TeamAlias, Model, Team]);
        assert_eq!(chosen(&[EndUser, OrgAlias]), [EndUser, OrgId, OrgAlias]);
        assert_eq!(chosen(&[]), []);
    }
}
