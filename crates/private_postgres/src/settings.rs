//! The settings that the cluster runs with. Every start writes them to a file that `postgresql.conf` includes, so that
//! a newer litespend uses its own settings. Settings that a user adds below the include line take precedence. The
//! addresses that PostgreSQL listens on are not among these settings: they are fixed on the command line.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use sysinfo::{CGroupLimits, MemoryRefreshKind, Process, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System};

use crate::rights::Rights;
use crate::{Durability, LocalPostgresError, LocalPostgresOptions};

const FILE: &str = "litespend.conf";
/// The last line that [`include`] writes.
const MARK: &str = "# Settings of your own go below this line, and win.";

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
    ("wal_init_zero", "off"),
    ("max_wal_size", "1GB"),
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
    let Ok(mut system) = System::new_with_specifics(refresh) else { return UNKNOWN };
    let limit_of = |limits: Option<CGroupLimits>| limits.map_or(u64::MAX, |limits| limits.total_memory);
    // A container's limit is that of the whole system it sees; a service of systemd has a group of its own.
    let mut limit = limit_of(system.cgroup_limits());
    if let Ok(own) = sysinfo::get_current_pid() {
        let processes = ProcessesToUpdate::Some(&[own]);
        system.refresh_processes_specifics(processes, false, ProcessRefreshKind::nothing());
        limit = limit.min(limit_of(system.process(own).and_then(Process::cgroup_limits)));
    }
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
             {MARK}\n"
        )
    };
    account.run(append).map_err(|error| LocalPostgresError::file("write", &path, error))
}

/// Gives a new cluster the settings that a user made in an earlier one: those below the include line, those of `ALTER
/// SYSTEM`, and who may connect.
pub(crate) fn carry_over(from: &Path, to: &Path, account: Rights) -> Result<(), LocalPostgresError> {
    const CONFIGURATION: &str = "postgresql.conf";
    let append = || {
        let earlier = Rights::read(&from.join(CONFIGURATION))?;
        let own = earlier.split_once(MARK).map_or("", |(_, own)| own).trim_start_matches('\n');
        let mut file = account.open_own(File::options().append(true), &to.join(CONFIGURATION))?;
        file.write_all(own.as_bytes())
    };
    account.run(append).map_err(|error| LocalPostgresError::file("copy", &from.join(CONFIGURATION), error))?;
    for name in ["postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf"] {
        let copy = || match Rights::read(&from.join(name)) {
            Ok(content) => Rights::replace(&to.join(name), &content),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        account.run(copy).map_err(|error| LocalPostgresError::file("copy", &from.join(name), error))?;
    }
    Ok(())
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
    fn a_new_cluster_gets_the_users_own_settings_and_no_others() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        for (data, content) in [(&from, "port = 15\n"), (&to, "port = 18\n")] {
            std::fs::create_dir(data).unwrap();
            std::fs::write(data.join("postgresql.conf"), content).unwrap();
            include(data, Rights::OWN).unwrap();
            std::fs::write(data.join("pg_hba.conf"), content).unwrap();
        }
        let mut conf = File::options().append(true).open(from.join("postgresql.conf")).unwrap();
        conf.write_all(b"work_mem = '3MB'\n").unwrap();
        std::fs::write(from.join("postgresql.auto.conf"), "jit = 'on'\n").unwrap();
        carry_over(&from, &to, Rights::OWN).unwrap();
        let content = std::fs::read_to_string(to.join("postgresql.conf")).unwrap();
        assert!(content.starts_with("port = 18\n") && content.ends_with("win.\nwork_mem = '3MB'\n"), "{content}");
        assert!(!content.contains("port = 15"), "{content}");
        assert_eq!(std::fs::read_to_string(to.join("postgresql.auto.conf")).unwrap(), "jit = 'on'\n");
        assert_eq!(std::fs::read_to_string(to.join("pg_hba.conf")).unwrap(), "port = 15\n");
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
