//! Upgrades databases from the time when migrations of the schema `litespend` were still edited after release. Today
//! migrations are frozen (`migrations/frozen.sha256`). A migration that was applied in an earlier version of its text
//! is recognised by its checksum. This module changes the database to today's shape, except for what a later migration
//! does anyway, and corrects the entry in the migration ledger.

use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

/// A migration in an earlier version of its text.
struct Earlier {
    /// Its version number in the ledger.
    version: i64,
    /// SHA-384 of its file, as the migrator computes it.
    checksum: &'static str,
    /// Its counterpart today.
    today: Today,
}

/// Counterpart of an earlier migration today.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Today {
    /// The migration with the same number.
    Same,
    /// The migration with this number.
    Number(i64),
    /// None: another migration contains its statements.
    Part,
}

const EARLIER: [Earlier; 11] = [
    Earlier {
        version: 2,
        checksum: "4f0d74fc543563d73a2e21eb127eb57523c52c5345e64136517174559571d24dd2a0079228033f3cc2dc32429da0ced9",
        today: Today::Same,
    },
    Earlier {
        version: 2,
        checksum: "8fbf0b2bbe482786c232364a207b736231faabd654a4411b9bb18edec99e26e84ada41becc96ec903159339c81090753",
        today: Today::Same,
    },
    Earlier {
        version: 3,
        checksum: "236d93dbc6f45406c305cc7c1091301265988d166d7c2ef6b31b471e1aceb9099711ea9c42d77bc4ea8bd4c8686ede72",
        today: Today::Same,
    },
    Earlier {
        version: 4,
        checksum: "b6b9061c1396a73146ebc372923f76534312bbb1405504d724952215344e913d23c5d0fca36c13d971f9b8841c526198",
        today: Today::Part,
    },
    Earlier {
        version: 5,
        checksum: "6e38b0f0e3ec75389021c68184a1baa18243d75de8288e09291da77d6716691d11ac76b0416cc24f756c4565e3779a24",
        today: Today::Part,
    },
    Earlier {
        version: 6,
        checksum: "28b501a287578d7c8f633e044e6b21ceab45e9da745f0c5070c9d0e7c1bf4b5360997adfc772856f2164dae9a179c46d",
        today: Today::Number(4),
    },
    // Its function "add_month" has the parameter that migration 13 adds today.
    Earlier {
        version: 12,
        checksum: "54082002e735eed8a074a01f05522b02198fa46c8ddb8780acc08c9a5cae0bd004c8b8dc244f753be7f5a76db523acbf",
        today: Today::Same,
    },
    // Migration 15 had the function "open_days" for a while, which migration 16 replaces; later ones had other numbers then. The
    // highest number first: each becomes the one that follows.
    Earlier {
        version: 18,
        checksum: "29f00b59ad227c0c92e4e20b5feb28870cb98c7037d1cb2c386363aa652a7851c33f24c058eee477d2d8779ea633a4c8",
        today: Today::Number(19),
    },
    Earlier {
        version: 17,
        checksum: "304a710c0ffbc60d0519319aa2bf12efa4000f8395d43c98a484f61a04f5808c7794e385a5d5eadf5cacbaee4805dede",
        today: Today::Number(18),
    },
    Earlier {
        version: 16,
        checksum: "169b357725eb17ad7123d6d7077f5794cc6f58be97263fd5903317dd4d0b0e699ac8c612727d4b22bd732e3d0b97a356",
        today: Today::Number(17),
    },
    Earlier {
        version: 15,
        checksum: "a70c3b013cd48c134d2c39551cab8c2f7f8b9ab5e76b002e746dc38bddac7d28ef730605c4686561065f925ef0d2447c",
        today: Today::Same,
    },
];

/// Migration 2 as it is today. Earlier versions of it define the function `litespend.absorb` with other parameters.
const ROLLUPS: &str = include_str!("../../migrations/litespend/0002_rollups.sql");

/// Replaces ledger entries of earlier versions with those of their counterparts today, and adapts the schema. Does
/// nothing in other databases.
pub(super) async fn adopt(connection: &mut PgConnection, today: &Migrator) -> Result<(), anyhow::Error> {
    let has_ledger: bool = sqlx::query_scalar("SELECT to_regclass('litespend.migrations') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !has_ledger || found(connection).await?.is_empty() {
        return Ok(());
    }
    let mut transaction = connection.begin().await?;
    transaction.execute("LOCK TABLE litespend.migrations IN SHARE ROW EXCLUSIVE MODE").await?;
    // Another process may have done this meanwhile.
    for earlier in found(&mut transaction).await? {
        match earlier.version {
            2 => {
                transaction.execute(AssertSqlSafe(absorb()?)).await?;
            }
            3 => {
                transaction
                    .execute(
                        "DROP INDEX IF EXISTS litespend.day_customer_end_user;
                         CREATE INDEX IF NOT EXISTS day_customer_pair
                             ON litespend.day_customer (end_user, team_id, day);
                         DELETE FROM litespend.packed_days",
                    )
                    .await?;
            }
            12 => {
                // Migration 13 drops the function with two parameters and creates the other.
                transaction
                    .execute(
                        "DROP FUNCTION litespend.add_month(regclass, date, boolean);
                         CREATE FUNCTION litespend.add_month(log regclass, month date) RETURNS boolean
                         LANGUAGE sql AS 'SELECT false'",
                    )
                    .await?;
            }
            _ => {}
        }
        let number = match earlier.today {
            Today::Same => earlier.version,
            Today::Number(number) => number,
            Today::Part => {
                sqlx::query("DELETE FROM litespend.migrations WHERE version = $1")
                    .bind(earlier.version)
                    .execute(&mut *transaction)
                    .await?;
                continue;
            }
        };
        let now = today.iter().find(|migration| migration.version == number);
        let now = now.ok_or_else(|| anyhow::anyhow!("migration {number} is missing"))?;
        sqlx::query("UPDATE litespend.migrations SET version = $2, description = $3, checksum = $4 WHERE version = $1")
            .bind(earlier.version)
            .bind(number)
            .bind(now.description.as_ref())
            .bind(now.checksum.as_ref())
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// The earlier versions of migrations that the ledger contains, in the order of [`EARLIER`].
async fn found(connection: &mut PgConnection) -> Result<Vec<&'static Earlier>, sqlx::Error> {
    let applied: Vec<(i64, String)> =
        sqlx::query_as("SELECT version, encode(checksum, 'hex') FROM litespend.migrations WHERE success")
            .fetch_all(connection)
            .await?;
    let is_applied = |earlier: &&Earlier| {
        applied.iter().any(|(version, checksum)| *version == earlier.version && checksum == earlier.checksum)
    };
    Ok(EARLIER.iter().filter(is_applied).collect())
}

/// The statement that creates today's `litespend.absorb`, extracted from migration 2.
fn absorb() -> Result<String, anyhow::Error> {
    let start = ROLLUPS.find("FUNCTION litespend.absorb(").and_then(|start| ROLLUPS.get(start..));
    let body = start.and_then(|rest| rest.split("\nEND $$;").next());
    let body = body.ok_or_else(|| anyhow::anyhow!("litespend.absorb is missing"))?;
    let before = "DROP FUNCTION IF EXISTS litespend.absorb(text, tid[], timestamp, timestamp)";
    Ok(format!("{before}; CREATE OR REPLACE {body}\nEND $$;"))
}
