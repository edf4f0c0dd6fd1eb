//! The columns of the sums, and the labels that they give.

use std::collections::HashMap;

use rustc_hash::FxHashMap;

use crate::settings::spend_metrics::{Label, SpendMetricsSettings};
use crate::spend_metrics::directory::Directory;
use crate::spend_metrics::push_label;
use crate::store::spend_metrics::{COLUMNS, Sums};

/// The value of a label that is not known, as LiteLLM has it.
const UNKNOWN: &str = "None";

/// The sums that have the labels of these settings.
pub fn sums_for(settings: &SpendMetricsSettings) -> Sums {
    let is_in_usage = |label: &Label| column_of(*label) < USAGE_COLUMNS;
    if settings.labels().iter().all(is_in_usage) { Sums::Usage } else { Sums::Detail }
}

/// The columns of [`Sums::Usage`] are the first ones.
const USAGE_COLUMNS: usize = 4;

/// The column that gives a label.
pub(super) fn column_of(label: Label) -> usize {
    match label {
        Label::Team | Label::TeamAlias => 0,
        Label::User | Label::UserEmail => 1,
        Label::HashedApiKey | Label::ApiKeyAlias => 2,
        Label::Model => 3,
        Label::EndUser => 4,
        Label::ApiProvider => 5,
        Label::OrgId | Label::OrgAlias => 6,
        Label::RequestedModel => 7,
        Label::ModelId => 8,
    }
}

/// The number of values that no listed series has.
pub(super) const NOT_LISTED: u32 = u32::MAX;

/// A series by the numbers of its values: two series have the same numbers if all their labels are equal.
pub(super) type Series = [u32; COLUMNS];

/// A column of the series. Its values are texts of the labels that it gives, and have numbers.
#[derive(Debug, Default)]
pub(super) struct Column {
    pub(super) labels: Vec<Label>,
    /// Numbers of values by the IDs of words.
    pub(super) by_id: FxHashMap<i32, u32>,
    /// Numbers of values by their texts.
    by_text: HashMap<String, u32>,
    /// The text of each label (`team="a"`) by the number of the value.
    pub(super) texts: Vec<Vec<String>>,
}

impl Column {
    /// The number of a word's value. A new value gets one if `is_room`.
    pub(super) fn number(&mut self, word: Option<&str>, names: &Directory, is_room: bool) -> u32 {
        let word = word.filter(|word| !word.is_empty());
        let named = |names: &'_ HashMap<String, String>| word.and_then(|word| names.get(word)).cloned();
        let texts: Vec<String> = self
            .labels
            .iter()
            .map(|label| {
                let value = match label {
                    Label::ApiKeyAlias => named(&names.keys),
                    Label::TeamAlias => named(&names.teams),
                    Label::UserEmail => named(&names.users),
                    Label::OrgAlias => named(&names.organizations),
                    Label::HashedApiKey
                    | Label::Model
                    | Label::Team
                    | Label::User
                    | Label::EndUser
                    | Label::ApiProvider
                    | Label::OrgId
                    | Label::RequestedModel
                    | Label::ModelId => word.map(str::to_owned),
                };
                let mut text = String::new();
                push_label(&mut text, label.name(), value.as_deref().unwrap_or(UNKNOWN));
                text
            })
            .collect();
        let all = texts.join(",");
        if let Some(number) = self.by_text.get(&all) {
            return *number;
        }
        if !is_room {
            return NOT_LISTED;
        }
        let number = u32::try_from(self.texts.len()).unwrap_or(NOT_LISTED);
        self.texts.push(texts);
        self.by_text.insert(all, number);
        number
    }
}
