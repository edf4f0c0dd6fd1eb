//! The settings that the cluster runs with. Every start writes them to a file that `postgresql.conf` includes, so that
//! a newer litespend uses its own settings. Settings that a user adds below the include line take precedence. The
//! addresses that PostgreSQL listens on are not among these settings: they are fixed on the command line.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::rights::Rights;
use crate::{Durability, LocalPostgresError, LocalPostgresOptions};

const FILE: &str = "litespend.conf";

/// Settings for a store of spend on a machine that also does other work.
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
    ("wal_compression", "on"),
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

/// One mebibyte.
const MIB: u64 = 1024 * 1024;

/// The memory that PostgreSQL is sized for if this machine does not say how much it has.
const UNKNOWN: u64 = 512 * MIB;

/// The settings that follow from the memory that PostgreSQL may use and from the number of processors.
///
/// Half of the memory is `shared_buffers`. The rest is for sorting, for maintenance, and for its processes. A read sorts in
/// 1/256 of the memory, and an index is built in 1/16. PostgreSQL is told that the operating system caches twice the memory.
/// Between two checkpoints, the log of changes may grow to half of the memory, but to one gibibyte in any case. The larger
/// values that a load of many rows would profit from are bounded, because they lengthen recovery after a crash.
fn sized(memory: u64, processors: usize) -> Vec<(&'static str, String)> {
    let mebibytes = |bytes: u64, least: u64, most: u64| format!("{}MB", (bytes / MIB).clamp(least, most));
    let workers = processors.clamp(1, 16);
    vec![
        ("shared_buffers", mebibytes(memory / 2, 64, 16 * 1024)),
        ("effective_cache_size", mebibytes(memory * 2, 256, 256 * 1024)),
        ("work_mem", mebibytes(memory / 256, 4, 64)),
        ("maintenance_work_mem", mebibytes(memory / 16, 32, 1024)),
        ("max_wal_size", mebibytes(memory / 2, 1024, 8 * 1024)),
        ("max_worker_processes", (workers + 8).to_string()),
        ("max_parallel_workers", workers.to_string()),
        ("max_parallel_workers_per_gather", (workers / 2).clamp(1, 4).to_string()),
    ]
}

/// A quarter of the memory that this process may use: that of the machine, or of its control group.
fn quarter_of_this_machine() -> u64 {
    let refresh = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let Ok(system) = System::new_with_specifics(refresh) else { return UNKNOWN };
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
    match system.total_memory().min(limit) {
        0 => UNKNOWN,
        memory => memory / 4,
    }
}

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
    if options.durability == Durability::Durable {
        let memory = options.memory.unwrap_or_else(quarter_of_this_machine);
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        for (name, value) in sized(memory, processors) {
            let _ = writeln!(content, "{name} = '{value}'");
        }
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

    #[test]
    fn memory_and_processors_decide_the_sizes() {
        let of = |memory: u64, processors| {
            let settings = sized(memory * MIB, processors);
            ["shared_buffers", "work_mem", "maintenance_work_mem", "max_wal_size", "max_parallel_workers_per_gather"]
                .map(|name| settings.iter().find(|(found, _)| *found == name).map(|(_, value)| value.clone()).unwrap())
        };
        assert_eq!(of(1, 1), ["64MB", "4MB", "32MB", "1024MB", "1"]);
        assert_eq!(of(256, 2), ["128MB", "4MB", "32MB", "1024MB", "1"]);
        assert_eq!(of(6 * 1024, 4), ["3072MB", "24MB", "384MB", "3072MB", "2"]);
        assert_eq!(of(1024 * 1024, 64), ["16384MB", "64MB", "1024MB", "8192MB", "4"]);
        // The memory of this machine is known.
        assert!(quarter_of_this_machine() >= 64 * MIB);
        let asked = LocalPostgresOptions { memory: Some(1024 * MIB), ..LocalPostgresOptions::default() };
        assert!(content(&asked).contains("\nshared_buffers = '512MB'\n"), "{}", content(&asked));
    }
}
