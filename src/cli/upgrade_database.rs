//! `litespend upgrade-database`: moves the embedded database to a newer PostgreSQL.

use std::path::PathBuf;

use clap::Args;
use private_postgres::{LocalPostgresOptions, UpgradeError, UpgradeOptions};

use crate::cli::database::Failure;
use crate::cli::output::say;
use crate::store::embedded_roles::local_postgres_options;

/// The arguments of `upgrade-database`.
#[derive(Clone, Debug, Args)]
pub struct UpgradeDatabaseArgs {
    /// Directory of the private PostgreSQL.
    #[arg(long, env = "LITESPEND_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Directory of the programs of the PostgreSQL that wrote the data. Default: where packages install them.
    #[arg(long, value_name = "DIR")]
    pub old_programs: Option<PathBuf>,

    /// Directory of the programs of the newer PostgreSQL. Default: PG_BIN_DIR, or the newest that is installed.
    #[arg(long, value_name = "DIR")]
    pub programs: Option<PathBuf>,
}

/// Runs `litespend upgrade-database`.
pub fn run(args: UpgradeDatabaseArgs) -> Result<(), Failure> {
    let options = UpgradeOptions {
        cluster: LocalPostgresOptions { home: args.data_dir, ..local_postgres_options() },
        old_programs: args.old_programs,
        programs: args.programs,
    };
    let upgraded = private_postgres::upgrade(&options, &mut |step| say!("{step}")).map_err(failure)?;
    let (home, version) = (upgraded.home.display(), upgraded.version);
    if upgraded.from.is_some() {
        say!("the database in {home} belongs to PostgreSQL {version} now");
    } else {
        say!("the database in {home} belongs to the newest PostgreSQL that was found, {version}: nothing to upgrade");
    }
    for kept in upgraded.kept {
        say!(
            "the data of PostgreSQL {} is kept in {} ({} MiB): remove it when you no longer need it",
            kept.version,
            kept.path.display(),
            kept.bytes.div_ceil(1024 * 1024)
        );
    }
    Ok(())
}

/// A wrong option is a wrong setting.
fn failure(error: UpgradeError) -> Failure {
    match error {
        UpgradeError::Unusable { .. } | UpgradeError::Unfit { .. } => Failure::Setting(error.into()),
        _ => Failure::Runtime(error.into()),
    }
}
