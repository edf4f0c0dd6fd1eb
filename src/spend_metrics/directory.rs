//! Names of what the labels are about, for the labels that are aliases and email addresses.

use std::collections::HashMap;

use crate::store::spend_metrics::Names;

/// Names of keys, teams, users and organisations, of deleted ones as well. Of several names of one ID, the last counts.
#[derive(Debug, Default)]
pub struct Directory {
    pub(super) keys: HashMap<String, String>,
    pub(super) teams: HashMap<String, String>,
    pub(super) users: HashMap<String, String>,
    pub(super) organizations: HashMap<String, String>,
}

impl Directory {
    /// Adds aliases of keys.
    pub fn name_keys(&mut self, names: Names) {
        self.keys.extend(known(names));
    }

    /// Adds aliases of teams.
    pub fn name_teams(&mut self, names: Names) {
        self.teams.extend(known(names));
    }

    /// Adds email addresses of users.
    pub fn name_users(&mut self, names: Names) {
        self.users.extend(known(names));
    }

    /// Adds aliases of organisations.
    pub fn name_organizations(&mut self, names: Names) {
        self.organizations.extend(known(names));
    }
}

/// The names that are there.
fn known(names: Names) -> impl Iterator<Item = (String, String)> {
    names.into_iter().filter_map(|(id, name)| Some((id, name?)))
}
