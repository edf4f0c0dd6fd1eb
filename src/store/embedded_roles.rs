//! The roles of the private PostgreSQL cluster. The sessions of the server use an ordinary role. It owns the database
//! and everything in it, and nothing else. So a session of the pool cannot reach the file system, other roles, or
//! settings of the cluster. A superuser remains for manual maintenance.
//!
//! Clusters of earlier versions have one role only. It created the cluster, so it stays a superuser for ever. This
//! module renames it and creates a new, ordinary role with its old name. The new role becomes the owner of everything
//! that the first role owned in the database.

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};

use private_postgres::{Cluster, Durability, LocalPostgresOptions};

/// Temporary superuser that renames the first role of the cluster, because a role cannot rename itself.
const RENAMER: &str = "litespend_renamer";

/// Options of the private cluster, including the step that sets up its roles.
pub fn local_postgres_options() -> LocalPostgresOptions {
    LocalPostgresOptions { prepare: Some(separate_in), ..LocalPostgresOptions::default() }
}

/// Makes the application's role an ordinary role, also in clusters of earlier versions. Blocks the thread.
fn separate_in(cluster: &Cluster<'_>) -> Result<(), String> {
    let roles = Roles {
        superuser: cluster.superuser,
        application: cluster.application_role,
        database: cluster.database,
        for_tests: cluster.durability == Durability::Throwaway,
    };
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { separate(&cluster.url.parse()?, roles).await })
    };
    // Runs on a new thread, because the current one may belong to an async runtime.
    std::thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        .map_err(|error: sqlx::Error| error.to_string())
}

/// Names of roles and the database. All are plain identifiers that need no quotes.
#[derive(Clone, Copy, Debug)]
struct Roles<'a> {
    /// Name of the superuser.
    superuser: &'a str,
    /// Name of the role that the server's sessions use.
    application: &'a str,
    /// Name of the database that this role owns.
    database: &'a str,
    /// Whether the role may also create databases and roles and run checkpoints, as tests do.
    for_tests: bool,
}

/// Sets up `roles` in the cluster to which `options` connect. Does nothing on a standby, because a standby has the
/// roles of its primary.
///
/// # Errors
///
/// Errors of the database. The next call completes what this call started.
async fn separate(options: &PgConnectOptions, roles: Roles<'_>) -> Result<(), sqlx::Error> {
    let options = options.clone().database(roles.database).disable_statement_logging();
    let as_superuser = options.clone().username(roles.superuser);
    let mut connection = match as_superuser.connect().await {
        Ok(connection) => connection,
        Err(error) if is_unknown_role(&error) => {
            if !rename_first_role(&options, roles).await? {
                return Ok(());
            }
            as_superuser.connect().await?
        }
        Err(error) => return Err(error),
    };
    if !is_standby(&mut connection).await? {
        restrict(&mut connection, roles).await?;
    }
    connection.close().await
}

/// Whether the role does not exist (28000, `invalid_authorization_specification`).
fn is_unknown_role(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "28000")
}

async fn is_standby(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(connection).await
}

/// Renames the first role, and creates an ordinary role with its old name; returns `false` on a standby.
async fn rename_first_role(options: &PgConnectOptions, roles: Roles<'_>) -> Result<bool, sqlx::Error> {
    let Roles { superuser, application, database, .. } = roles;
    let mut first = options.clone().username(application).connect().await?;
    if is_standby(&mut first).await? {
        first.close().await?;
        return Ok(false);
    }
    tracing::info!("giving the database an owner without superuser rights");
    first
        .execute(AssertSqlSafe(format!(
            "DO $$ BEGIN
                 IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{RENAMER}') THEN
                     CREATE ROLE {RENAMER} SUPERUSER LOGIN;
                 END IF;
             END $$"
        )))
        .await?;
    first.close().await?;
    let mut renamer = options.clone().username(RENAMER).connect().await?;
    let mut transaction = renamer.begin().await?;
    transaction
        .execute(AssertSqlSafe(format!(
            "SET LOCAL lock_timeout = '30s';
             ALTER ROLE {application} RENAME TO {superuser};
             CREATE ROLE {application} LOGIN;
             ALTER DATABASE {database} OWNER TO {application}"
        )))
        .await?;
    transaction.execute(AssertSqlSafe(GIVE_ALL.replace("application_role", application))).await?;
    transaction.commit().await?;
    renamer.close().await?;
    Ok(true)
}

/// SQL that makes another role the owner of everything that the first role owns in this database, except objects of the
/// system and of extensions. The OID of the first role is always 10. `REASSIGN OWNED` refuses to work for this role.
const GIVE_ALL: &str = r"
DO $$
DECLARE
    statement text;
BEGIN
    FOR statement IN
        WITH spaces AS (
            SELECT oid, nspname, nspowner FROM pg_namespace
            WHERE nspname <> 'information_schema' AND nspname NOT LIKE 'pg\_%'
        ), of_extensions AS (
            SELECT classid, objid FROM pg_depend WHERE deptype = 'e'
        )
        SELECT format('ALTER SCHEMA %I OWNER TO application_role', nspname)
        FROM spaces WHERE nspowner = 10
        UNION ALL
        -- A sequence of a column goes with its table.
        SELECT format('ALTER %s %s OWNER TO application_role',
                      CASE relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
                                   WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END,
                      c.oid::regclass)
        FROM pg_class c JOIN spaces ON spaces.oid = relnamespace
        WHERE relowner = 10 AND relkind IN ('r', 'p', 'S', 'v', 'm', 'f')
          AND NOT EXISTS (SELECT FROM of_extensions WHERE classid = 'pg_class'::regclass AND objid = c.oid)
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                                                    AND relkind = 'S' AND d.deptype IN ('a', 'i'))
        UNION ALL
        SELECT format('ALTER ROUTINE %s OWNER TO application_role', p.oid::regprocedure)
        FROM pg_proc p JOIN spaces ON spaces.oid = pronamespace
        WHERE proowner = 10
          AND NOT EXISTS (SELECT FROM of_extensions WHERE classid = 'pg_proc'::regclass AND objid = p.oid)
        UNION ALL
        -- Types of tables and arrays go with what they belong to.
        SELECT format('ALTER TYPE %s OWNER TO application_role', t.oid::regtype)
        FROM pg_type t JOIN spaces ON spaces.oid = typnamespace LEFT JOIN pg_class c ON c.oid = typrelid
        WHERE typowner = 10 AND (typtype IN ('d', 'e', 'r') OR (typtype = 'c' AND c.relkind = 'c'))
          AND NOT EXISTS (SELECT FROM of_extensions WHERE classid = 'pg_type'::regclass AND objid = t.oid)
        UNION ALL
        SELECT format('ALTER STATISTICS %I.%I OWNER TO application_role', nspname, stxname)
        FROM pg_statistic_ext JOIN spaces ON spaces.oid = stxnamespace WHERE stxowner = 10
        UNION ALL
        SELECT format('ALTER LARGE OBJECT %s OWNER TO application_role', oid)
        FROM pg_largeobject_metadata WHERE lomowner = 10
    LOOP
        EXECUTE statement;
    END LOOP;
END $$";

/// Revokes every right that the application's role should not have, and drops the temporary superuser.
async fn restrict(connection: &mut PgConnection, roles: Roles<'_>) -> Result<(), sqlx::Error> {
    let Roles { application, for_tests, .. } = roles;
    let restricted: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_roles
                        WHERE rolname = $1 AND rolcanlogin AND NOT (rolsuper OR rolreplication OR rolbypassrls)
                          AND rolcreatedb = $2 AND rolcreaterole = $2)
            AND NOT EXISTS (SELECT FROM pg_roles WHERE rolname = $3)",
    )
    .bind(application)
    .bind(for_tests)
    .bind(RENAMER)
    .fetch_one(&mut *connection)
    .await?;
    if restricted {
        return Ok(());
    }
    let more = if for_tests { "CREATEDB CREATEROLE" } else { "NOCREATEDB NOCREATEROLE" };
    let checkpoints = if for_tests { format!("GRANT pg_checkpoint TO {application}") } else { "SELECT 1".to_owned() };
    connection
        .execute(AssertSqlSafe(format!(
            "DROP ROLE IF EXISTS {RENAMER};
             ALTER ROLE {application} LOGIN NOSUPERUSER NOREPLICATION NOBYPASSRLS {more};
             {checkpoints}"
        )))
        .await?;
    Ok(())
}
