//! What a running cluster holds: every row of every table, as counts and sums of hashes that do not depend on the order
//! of the rows. `psql` asks for them, with the rights of PostgreSQL's account.

use std::collections::BTreeMap;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use crate::account::Account;
use crate::home::telling_line;
use crate::upgrade::UpgradeError;
use crate::{LocalPostgresError, PORT, SUPERUSER};

/// Settings that make every version print a value in the same way, and that keep the user's own away.
const SETTINGS: &str = "
SET search_path = pg_catalog;
SET timezone = 'UTC';
SET datestyle = 'ISO, MDY';
SET intervalstyle = 'postgres';
SET extra_float_digits = 1;
SET bytea_output = 'hex';
SET statement_timeout = 0;
SET default_transaction_read_only = on;
";

const DATABASES: &str = "SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname";

/// Each row of the result is a kind, a name, and what should be the same after the upgrade. The catalogues of a newer
/// version have some rows more, so only what users made is counted.
const OBJECTS: &str = r"
SELECT 'role', rolname, rolsuper::text || rolcanlogin FROM pg_roles WHERE rolname !~ '^pg_';
SELECT 'extension', extname, '' FROM pg_extension;
SELECT 'objects', nspname || ' ' || relkind::text, count(*)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' GROUP BY nspname, relkind;
SELECT 'functions of', nspname, count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' GROUP BY nspname;
SELECT 'triggers of', n.nspname || '.' || c.relname, count(*)
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT t.tgisinternal GROUP BY n.nspname, c.relname;
SELECT 'large objects', '', count(*) || ' pages, checksum ' || coalesce(sum(hashtextextended(ROW(o.*)::text, 0)::numeric), 0)
FROM pg_largeobject AS o;
SELECT format('SELECT %L, %L, last_value || %L || is_called FROM %I.%I', 'sequence', nspname || '.' || relname, ' ', nspname, relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE relkind = 'S' AND nspname !~ '^pg_' AND nspname <> 'information_schema'
\gexec
";

/// Partitions are counted one by one.
const ROWS: &str = r"
SELECT format('SELECT %L, %L, count(*) || %L || coalesce(sum(hashtextextended(ROW(t.*)::text, 0)::numeric), 0) FROM ONLY %I.%I AS t',
              'table', nspname || '.' || relname, ' rows, checksum ', nspname, relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE relkind IN ('r', 'm') AND relispopulated AND relpersistence <> 't'
  AND nspname !~ '^pg_' AND nspname <> 'information_schema'
\gexec
";

/// Asks a running cluster with `psql`.
#[derive(Debug)]
pub(crate) struct Client<'a> {
    pub(crate) psql: PathBuf,
    pub(crate) account: Account,
    pub(crate) socket_directory: &'a Path,
}

impl Client<'_> {
    /// Runs statements as superuser. Returns the rows of all results, with their columns.
    pub(crate) fn ask(&self, database: &str, statements: &str) -> Result<Vec<Vec<String>>, UpgradeError> {
        let input = tempfile::tempfile()
            .and_then(|mut file| {
                file.write_all(statements.as_bytes())?;
                file.rewind()?;
                Ok(file)
            })
            .map_err(|error| LocalPostgresError::file("use", &std::env::temp_dir(), error))?;
        let mut command = self.account.command(&self.psql);
        command
            // Neither a file with settings nor a prompt; columns end with a unit separator, rows with a zero byte.
            .args(["-X", "-w", "-q", "-A", "-t", "-0", "-F", "\u{1f}", "-v", "ON_ERROR_STOP=1", "-f", "-"])
            .args(["-U", SUPERUSER, "-p", &PORT.to_string(), "-h"])
            .arg(self.socket_directory)
            // As an argument, a name could be taken for a connection string.
            .env("PGDATABASE", database)
            .stdin(input);
        let output =
            command.output().map_err(|source| LocalPostgresError::Run { program: self.psql.clone(), source })?;
        if !output.status.success() {
            let reason = telling_line(&String::from_utf8_lossy(&output.stderr));
            return Err(UpgradeError::Failed { program: "psql", reason, log: None });
        }
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let rows = said.split('\0').filter(|row| !row.trim().is_empty());
        Ok(rows.map(|row| row.split('\u{1f}').map(str::to_owned).collect()).collect())
    }

    /// Everything in the cluster.
    pub(crate) fn contents(&self) -> Result<Contents, UpgradeError> {
        let mut contents = Contents::default();
        for row in self.ask("postgres", DATABASES)? {
            let database = row.first().cloned().unwrap_or_default();
            for row in self.ask(&database, &format!("{SETTINGS}{OBJECTS}{ROWS}"))? {
                contents.add(&database, &row);
            }
        }
        Ok(contents)
    }
}

/// What a cluster holds: a value for every kind and name in every database.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    of: BTreeMap<(String, String, String), String>,
}

impl Contents {
    fn add(&mut self, database: &str, row: &[String]) {
        if let [kind, name, value] = row {
            self.of.insert((database.to_owned(), kind.clone(), name.clone()), value.clone());
        }
    }

    /// The number of tables, and of rows in them.
    pub(crate) fn size(&self) -> (usize, u64) {
        let tables = || self.of.iter().filter(|((_, kind, _), _)| kind == "table");
        let rows = tables().filter_map(|(_, value)| value.split(' ').next()?.parse::<u64>().ok()).sum();
        (tables().count(), rows)
    }

    /// The first difference from the contents of another cluster.
    pub(crate) fn difference(&self, after: &Self) -> Option<String> {
        let absent = "nothing";
        let names = self.of.keys().chain(after.of.keys());
        let differs = |name: &&(String, String, String)| self.of.get(*name) != after.of.get(*name);
        names.filter(differs).min().map(|name| {
            let value = |contents: &Self| contents.of.get(name).map_or(absent, String::as_str).to_owned();
            let (database, kind, of) = name;
            format!("{kind} {of} of the database {database} was {} and became {}", value(self), value(after))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(rows: &[[&str; 3]]) -> Contents {
        let mut contents = Contents::default();
        for row in rows {
            contents.add("litespend", &row.map(str::to_owned));
        }
        contents
    }

    #[test]
    fn a_row_more_less_or_other_is_a_difference() {
        let before = contents(&[
            ["table", "public.a", "2 rows, checksum 77"],
            ["table", "public.b", "3 rows, checksum -1"],
            ["sequence", "public.s", "4 t"],
        ]);
        assert_eq!(before.size(), (2, 5));
        assert_eq!(before.difference(&before), None);
        for (after, said) in [
            (
                contents(&[
                    ["table", "public.a", "2 rows, checksum 78"],
                    ["table", "public.b", "3 rows, checksum -1"],
                    ["sequence", "public.s", "4 t"],
                ]),
                "table public.a of the database litespend was 2 rows, checksum 77 and became 2 rows, checksum 78",
            ),
            (
                contents(&[["table", "public.a", "2 rows, checksum 77"], ["sequence", "public.s", "4 t"]]),
                "table public.b of the database litespend was 3 rows, checksum -1 and became nothing",
            ),
        ] {
            assert_eq!(before.difference(&after).as_deref(), Some(said));
            assert!(after.difference(&before).is_some());
        }
    }
}
