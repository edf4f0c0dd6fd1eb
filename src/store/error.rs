//! Classifies errors of the database.

/// Whether the statement timeout ended the query (57014).
pub fn is_statement_timeout(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(database) if database.code().as_deref() == Some("57014"))
}

/// Whether the database is unreachable, out of resources or read-only, as opposed to an error in a statement.
pub fn is_unavailable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(database) => database.code().is_some_and(|code| {
            // Class 08: connection. Class 53: disk full, out of memory, too many connections. 57P0x: shutdown, crash,
            // starting up, database dropped. 25006: read-only transaction. 3D000: no such database.
            code.starts_with("08")
                || code.starts_with("53")
                || matches!(code.as_ref(), "57P01" | "57P02" | "57P03" | "57P04" | "25006" | "3D000")
        }),
        _ => false,
    }
}

/// Whether a prepared statement no longer fits its tables, because a migration has changed them.
pub fn is_stale_plan(error: &sqlx::Error) -> bool {
    // 0A000: feature not supported. The message is PostgreSQL's own for this case, and servers may translate it.
    let Some(database) = error.as_database_error() else { return false };
    let routine = database.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().and_then(|error| error.routine());
    database.code().as_deref() == Some("0A000") && routine == Some("RevalidateCachedQuery")
}

/// Whether the database role lacks a right (42501).
pub fn is_denied(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(database) if database.code().as_deref() == Some("42501"))
}

/// Whether a table cannot store a value, or an index has no room for it. Class 22: data exception. Class 23: constraint.
/// Class 54: limits of PostgreSQL.
pub fn is_refused_value(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.starts_with(class)))
}

/// Whether temporary tables cannot be created: the role lacks the right (42501), or nothing can be written (25006).
pub fn forbids_tables(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| matches!(code.as_ref(), "42501" | "25006"))
}

/// Whether the transaction conflicted with another one and can be retried: deadlock or serialization failure.
pub fn is_conflict(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| matches!(code.as_ref(), "40P01" | "40001"))
}

/// Whether a table changed between two statements of a transaction: the log was partitioned (42P10: no unique index on the
/// ID alone any more), or a migration ran. The transaction can be retried.
pub fn is_changed_table(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.as_deref() == Some("42P10") || is_stale_plan(error)
}
