//! The role of the server's sessions owns its database and has no other rights.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::geteuid;
use private_postgres::{Durability, LocalPostgres, LocalPostgresOptions, url_of_running};

use super::{PATIENCE, TemporaryHome, as_the_account, options, query, temporary_home};

const IS_SUPERUSER: &str = "SELECT (rolsuper OR rolreplication OR rolbypassrls)::text || rolcreaterole::text || rolcreatedb::text FROM pg_roles
     WHERE rolname = current_user AND rolname = 'litespend'";

fn durable(home: &Path) -> LocalPostgresOptions {
    LocalPostgresOptions { durability: Durability::Durable, ..options(home) }
}

#[test]
fn the_role_owns_its_database_and_nothing_more() {
    let home = temporary_home();
    let server = LocalPostgres::start(durable(home.path())).unwrap();
    let url = server.url().to_owned();
    let beside = url_of_running(home.path(), PATIENCE).unwrap();
    for url in [&url, &beside] {
        assert_eq!(query(url, IS_SUPERUSER).unwrap(), "falsefalsefalse");
    }
    for statement in [
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "COPY (SELECT 1) TO '/tmp/litespend-written'",
        "SELECT pg_read_file('postmaster.pid')",
        "ALTER SYSTEM SET log_statement = 'all'",
        "CREATE ROLE other",
        "CREATE DATABASE other",
        "SET ROLE litespend_superuser",
        "SET session_authorization = litespend_superuser",
        "ALTER ROLE litespend SUPERUSER",
        "CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'x', 'y'",
    ] {
        let error = query(&url, statement).unwrap_err();
        let code = error.as_database_error().and_then(|error| error.code().map(String::from));
        assert_eq!(code.as_deref(), Some("42501"), "{statement}: {error}");
    }
    // Statements that the server needs to run.
    for statement in [
        "CREATE SCHEMA own",
        "CREATE TABLE own.rows (id int)",
        "VACUUM own.rows",
        "SET client_connection_check_interval = '500'",
        "SELECT pg_cancel_backend(pid)::text FROM pg_stat_activity WHERE usename = 'litespend' AND pid <> pg_backend_pid()",
        "CREATE TABLE in_public (id int)",
        "DROP SCHEMA own CASCADE",
    ] {
        query(&url, statement).unwrap();
    }
    assert_eq!(query(server.superuser_url(), "SELECT current_setting('is_superuser')").unwrap(), "on");
    server.stop().unwrap();
    // If somebody grants the role further rights, the next start revokes them.
    let server = LocalPostgres::start(durable(home.path())).unwrap();
    query(server.superuser_url(), "ALTER ROLE litespend SUPERUSER").unwrap();
    server.stop().unwrap();
    let server = LocalPostgres::start(durable(home.path())).unwrap();
    assert_eq!(query(server.url(), IS_SUPERUSER).unwrap(), "falsefalsefalse");
}

/// A cluster as earlier versions created it: its only role is a superuser named `litespend`.
fn earlier_cluster(home: &TemporaryHome) {
    let data = home.path().join("data");
    let programs = programs();
    // The account creates the data directory; the home belongs to root as usual.
    std::fs::create_dir(&data).unwrap();
    if geteuid().is_root() {
        std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        let user =
            nix::unistd::User::from_name("postgres").unwrap().or(nix::unistd::User::from_name("nobody").unwrap());
        let user = user.unwrap();
        std::os::unix::fs::chown(&data, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
    let output = as_the_account(
        Command::new(programs.join("initdb"))
            .args([
                "-U",
                "litespend",
                "-E",
                "UTF8",
                "--locale=C",
                "--auth-local=trust",
                "--auth-host=reject",
                "--no-sync",
            ])
            .arg("-D")
            .arg(&data),
    )
    .output()
    .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let statements = |database: &str, text: &str| {
        let mut command = Command::new(programs.join("postgres"));
        command.args(["--single", "-F", "-D"]).arg(&data).arg(database);
        let mut child = as_the_account(&mut command)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
        let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
        assert!(!said.contains("ERROR"), "{said}");
    };
    statements("postgres", "CREATE DATABASE litespend\n");
    statements(
        "litespend",
        "CREATE SCHEMA litespend\n\
         CREATE TYPE litespend.kind AS ENUM ('a', 'b')\n\
         CREATE DOMAIN litespend.positive AS int CHECK (VALUE > 0)\n\
         CREATE TABLE litespend.\"Odd Name\" (id bigserial PRIMARY KEY, kind litespend.kind, n int GENERATED ALWAYS AS IDENTITY)\n\
         CREATE TABLE kept AS SELECT 'kept' AS value\n\
         CREATE TABLE parts (day date) PARTITION BY RANGE (day)\n\
         CREATE TABLE parts_1 PARTITION OF parts DEFAULT\n\
         CREATE VIEW seen AS SELECT * FROM kept\n\
         CREATE MATERIALIZED VIEW stored AS SELECT * FROM kept\n\
         CREATE SEQUENCE numbers\n\
         CREATE FUNCTION litespend.f(text, int) RETURNS int LANGUAGE sql AS 'SELECT 1'\n\
         CREATE PROCEDURE p() LANGUAGE sql AS 'SELECT 1'\n\
         GRANT SELECT ON kept TO PUBLIC\n",
    );
}

fn programs() -> PathBuf {
    let directory = std::env::var("PG_BIN_DIR").unwrap_or_else(|_| {
        let output = Command::new("pg_config").arg("--bindir").output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    });
    PathBuf::from(directory)
}

#[test]
fn a_cluster_of_an_earlier_version_gets_an_owner_without_a_superusers_rights() {
    let home = temporary_home();
    earlier_cluster(&home);
    for _ in 0..2 {
        let server = LocalPostgres::start(durable(home.path())).unwrap();
        let url = server.url();
        assert_eq!(query(url, IS_SUPERUSER).unwrap(), "falsefalsefalse");
        assert_eq!(
            query(server.superuser_url(), "SELECT string_agg(rolname, ',' ORDER BY oid) FROM pg_roles WHERE rolsuper")
                .unwrap(),
            "litespend_superuser"
        );
        let left = "SELECT coalesce(string_agg(name, ', '), '') FROM (
                SELECT relname::text AS name, relowner AS owner, relnamespace AS space FROM pg_class
                UNION ALL SELECT proname, proowner, pronamespace FROM pg_proc
                UNION ALL SELECT typname, typowner, typnamespace FROM pg_type
                UNION ALL SELECT nspname, nspowner, oid FROM pg_namespace
                UNION ALL SELECT datname, datdba, (SELECT oid FROM pg_namespace WHERE nspname = 'public')
                          FROM pg_database WHERE datname = 'litespend') objects
             WHERE owner = 10 AND space IN (SELECT oid FROM pg_namespace
                                            WHERE nspname <> 'information_schema' AND nspname NOT LIKE 'pg\\_%')";
        assert_eq!(query(url, left).unwrap(), "");
        for statement in [
            "INSERT INTO kept VALUES ('more')",
            "INSERT INTO litespend.\"Odd Name\" (kind) VALUES ('a')",
            "ALTER TABLE kept ADD COLUMN IF NOT EXISTS another int",
            "REFRESH MATERIALIZED VIEW stored",
            "SELECT nextval('numbers')::text",
            "ALTER TYPE litespend.kind ADD VALUE IF NOT EXISTS 'c'",
            "VACUUM kept",
            "CREATE SCHEMA IF NOT EXISTS later",
            "SELECT value FROM seen LIMIT 1",
        ] {
            query(url, statement).unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
        server.stop().unwrap();
    }
}

#[test]
fn a_change_of_roles_that_was_cut_short_is_finished() {
    let home = temporary_home();
    earlier_cluster(&home);
    let server = LocalPostgres::start(options(home.path())).unwrap();
    // The state after a server that ended before its last step.
    query(server.superuser_url(), "CREATE ROLE litespend_renamer SUPERUSER LOGIN").unwrap();
    server.stop().unwrap();
    let server = LocalPostgres::start(durable(home.path())).unwrap();
    assert_eq!(query(server.url(), IS_SUPERUSER).unwrap(), "falsefalsefalse");
    assert_eq!(
        query(server.url(), "SELECT count(*)::text FROM pg_roles WHERE rolname = 'litespend_renamer'").unwrap(),
        "0"
    );
}
