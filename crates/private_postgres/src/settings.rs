//! The settings that the cluster runs with. Every start writes them to a file that `postgresql.conf` includes, so that
//! a newer litespend uses its own settings. Settings that a user adds below the include line take precedence. The
//! addresses that PostgreSQL listens on are not among these settings: they are fixed on the command line.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use crate::rights::Rights;
use crate::{Durability, LocalPostgresError, LocalPostgresOptions};

const FILE: &str = "litespend.conf";

/// Settings for a store of spend on a small machine that also does other work.
const COMMON: &[(&str, &str)] = &[
    ("cluster_name", "litespend"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("jit", "off"),
    // Flash storage is the norm today, and this value costs little on other storage.
    ("random_page_cost", "1.1"),
    ("log_line_prefix", "%m [%p] "),
    // Statements and the values in them may contain keys or prompts, which must not be logged.
    ("log_min_error_statement", "panic"),
    ("log_error_verbosity", "terse"),
    ("log_checkpoints", "off"),
    ("log_autovacuum_min_duration", "-1"),
    ("log_parameter_max_length", "0"),
];

const DURABLE: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("full_page_writes", "on"),
    ("shared_buffers", "192MB"),
    ("effective_cache_size", "512MB"),
    ("work_mem", "8MB"),
    ("maintenance_work_mem", "64MB"),
    ("wal_compression", "on"),
    ("max_wal_size", "1GB"),
    ("checkpoint_timeout", "15min"),
    // Spend logs only grow. Without this setting, PostgreSQL would freeze their pages late and all at once.
    ("autovacuum_vacuum_insert_scale_factor", "0.1"),
];

const THROWAWAY: &[(&str, &str)] = &[
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
    ("autovacuum", "off"),
    ("shared_buffers", "64MB"),
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    ("max_wal_size", "4GB"),
    ("checkpoint_timeout", "1h"),
];

/// Writes the settings to the data directory, with the rights of the account that owns it. Replaces whatever is in the
/// place of the file.
pub(crate) fn write(data: &Path, account: Rights, options: &LocalPostgresOptions) -> Result<(), LocalPostgresError> {
    let path = data.join(FILE);
    account
        .run(|| Rights::replace(&path, &content(options)))
        .map_err(|error| LocalPostgresError::file("write", &path, error))
}

/// Makes the `postgresql.conf` of a new cluster include the settings.
pub(crate) fn include(data: &Path, account: Rights) -> Result<(), LocalPostgresError> {
    let path = data.join("postgresql.conf");
    let append = || {
        let mut file = account.open_own(File::options().append(true), &path)?;
        write!(
            file,
            "\n# litespend's own settings, written anew whenever it starts.\n\
             include_if_exists = '{FILE}'\n\
             # Settings of your own go below this line, and win.\n"
        )
    };
    account.run(append).map_err(|error| LocalPostgresError::file("write", &path, error))
}

fn content(options: &LocalPostgresOptions) -> String {
    let of_durability = match options.durability {
        Durability::Durable => DURABLE,
        Durability::Throwaway => THROWAWAY,
    };
    let mut content =
        String::from("# Written by litespend at every start; change postgresql.conf instead, at its end.\n");
    for (name, value) in COMMON.iter().chain(of_durability) {
        // Writing to a string never fails.
        let _ = writeln!(content, "{name} = '{value}'");
    }
    let _ = writeln!(content, "max_connections = {}", options.max_connections);
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_reach_the_disk_unless_the_cluster_is_thrown_away() {
        let mut options = LocalPostgresOptions::default();
        assert!(content(&options).contains("\nfsync = 'on'\n"));
        assert!(content(&options).contains("\nmax_connections = 50\n"));
        options.durability = Durability::Throwaway;
        assert!(content(&options).contains("\nfsync = 'off'\n"));
    }
}
