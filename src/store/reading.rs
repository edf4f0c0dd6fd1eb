//! Connections lent to reads. A read that ends early, because its client went away or its time is over, has its query
//! cancelled, and the connection goes back to the pool: nobody waits for a new one, and no transaction stays open.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection, PgPool, Postgres, SqlSafeStr, Transaction};
use tokio::sync::OwnedSemaphorePermit;

use super::database;

/// How long a connection may still be busy before its query is cancelled: one that was read to its end answers at once.
const BUSY: Duration = Duration::from_millis(20);

/// How long a cancelled query may take to end. Past it, the connection is closed.
const CANCELLED: Duration = Duration::from_secs(5);

/// Connections beyond the pool's own over which queries are cancelled, at most.
const CANCELLERS: u32 = 2;

/// What a read holds of limited places, until its connection is free again.
pub type Turn = Vec<OwnedSemaphorePermit>;

/// The pool of a database's connections, for reads.
#[derive(Clone, Debug)]
pub struct ReadPool {
    pool: PgPool,
    cancellers: PgPool,
}

impl ReadPool {
    /// Lends the connections of `pool`.
    pub fn new(pool: PgPool) -> Self {
        let cancellers = PgPoolOptions::new()
            .max_connections(CANCELLERS)
            .min_connections(0)
            .acquire_timeout(Duration::from_secs(2))
            .idle_timeout(Duration::from_secs(30))
            .connect_lazy_with((*pool.connect_options()).clone());
        Self { pool, cancellers }
    }

    /// Takes a connection.
    pub async fn start(&self, turn: Turn) -> Result<Reading, sqlx::Error> {
        self.lend(database::acquire(&self.pool).await?, turn).await
    }

    /// Takes a connection that nobody uses, if there is one.
    pub async fn try_start(&self, turn: Turn) -> Result<Option<Reading>, sqlx::Error> {
        match self.pool.try_acquire() {
            Some(connection) => self.lend(connection, turn).await.map(Some),
            None => Ok(None),
        }
    }

    async fn lend(&self, mut connection: PoolConnection<Postgres>, turn: Turn) -> Result<Reading, sqlx::Error> {
        let backend = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *connection).await?;
        Ok(Reading { held: Some(Held::Plain(connection)), backend, turn, pool: self.clone() })
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.pool.close().await;
        self.cancellers.close().await;
    }

    /// Ends the statement that a backend is running. Whether the database was told.
    async fn cancel(&self, backend: i32) -> bool {
        let told = sqlx::query("SELECT pg_cancel_backend($1)").bind(backend).execute(&self.cancellers).await;
        told.is_ok()
    }
}

/// A connection lent to one read, with or without a snapshot.
#[derive(Debug)]
pub struct Reading {
    held: Option<Held>,
    /// Process of the database that serves the connection.
    backend: i32,
    turn: Turn,
    pool: ReadPool,
}

#[derive(Debug)]
enum Held {
    Plain(PoolConnection<Postgres>),
    Snapshot(Transaction<'static, Postgres>),
}

impl Held {
    fn connection(&mut self) -> &mut PgConnection {
        match self {
            Self::Plain(connection) => connection,
            Self::Snapshot(transaction) => transaction,
        }
    }
}

impl Reading {
    /// The connection.
    #[expect(clippy::expect_used, reason = "the connection leaves where the reading is consumed, and nowhere else")]
    pub fn connection(&mut self) -> &mut PgConnection {
        self.held.as_mut().map(Held::connection).expect("a reading has its connection to its end")
    }

    /// Starts a snapshot: everything that is read from now on is of one moment.
    pub async fn snapshot(mut self) -> Result<Self, sqlx::Error> {
        if let Some(Held::Plain(connection)) = self.held.take() {
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
            self.held = Some(Held::Snapshot(Transaction::begin(connection, Some(begin.into_sql_str())).await?));
        }
        Ok(self)
    }

    /// Ends a snapshot in which a statement has failed. What is read from now on is of its own moment each.
    pub async fn without_snapshot(mut self) -> Result<Self, sqlx::Error> {
        if let Some(Held::Snapshot(transaction)) = self.held.take() {
            transaction.rollback().await?;
        } else {
            drop(self.held.take());
        }
        self.pool.clone().start(std::mem::take(&mut self.turn)).await
    }

    /// Says that everything was read.
    pub async fn finish(mut self) -> Result<(), sqlx::Error> {
        match self.held.take() {
            Some(Held::Snapshot(transaction)) => transaction.commit().await,
            _ => Ok(()),
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        let (pool, backend, turn) = (self.pool.clone(), self.backend, std::mem::take(&mut self.turn));
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(release(pool, held, backend, turn))),
            // Without a runtime nobody can end the query: the pool closes the connection.
            Err(_) => drop(held),
        }
    }
}

/// Gives a connection back that may be in the middle of a query, after the query has ended.
async fn release(pool: ReadPool, mut held: Held, backend: i32, turn: Turn) {
    let free = match is_free(&mut held, BUSY).await {
        Some(free) => free,
        None => {
            pool.cancel(backend).await
                && is_free(&mut held, CANCELLED).await == Some(true)
                // Whatever the cancellation still meets now, it meets nobody else's statement.
                && held.connection().ping().await.is_ok()
        }
    };
    if free {
        if let Held::Snapshot(transaction) = held {
            let _ = transaction.rollback().await;
        }
    } else {
        tracing::debug!("a query did not end when it was cancelled: its connection was closed");
        close(held);
    }
    drop(turn);
}

/// Whether the connection is ready for a query within `limit`; nothing where it is still busy then.
async fn is_free(held: &mut Held, limit: Duration) -> Option<bool> {
    let answer = async {
        loop {
            match held.connection().flush().await {
                Ok(()) => return true,
                // What the ended query says to its reader, who has gone.
                Err(sqlx::Error::Database(_)) => {}
                Err(_) => return false,
            }
        }
    };
    tokio::time::timeout(limit, answer).await.ok()
}

/// Closes the connection instead of giving it back.
fn close(held: Held) {
    match held {
        Held::Plain(mut connection) => connection.close_on_drop(),
        // Its rollback waits in line behind the query; the pool sees that the connection doesn't answer, and closes it.
        Held::Snapshot(transaction) => drop(transaction),
    }
}
