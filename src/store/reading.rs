//! Connections for reads. If a read ends early, because its client disconnected or its deadline passed, its query is
//! cancelled and the connection returns to the pool. So no other request waits for a new connection, and no transaction
//! stays open.

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection, PgPool, Postgres};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;

use crate::store::database;

/// Grace period of an abandoned connection before its query is cancelled. A connection whose result was read to the end
/// becomes ready at once.
const BUSY: Duration = Duration::from_millis(20);

/// Time limit for a cancelled query to end. After it, the connection is closed.
const CANCELLED: Duration = Duration::from_secs(5);

/// Maximum number of extra connections, outside the pool, for sending cancellations.
const CANCELLERS: u32 = 2;

/// Permits of a read. It holds them until its connection is free again.
pub type ReadPermits = Vec<OwnedSemaphorePermit>;

/// A connection pool for reads.
#[derive(Clone, Debug)]
pub struct ReadPool {
    pool: PgPool,
    cancellers: PgPool,
}

impl ReadPool {
    /// Creates a read pool that uses the connections of `pool`.
    pub fn new(pool: PgPool) -> Self {
        let cancellers = PgPoolOptions::new()
            .max_connections(CANCELLERS)
            .min_connections(0)
            .acquire_timeout(Duration::from_secs(2))
            .idle_timeout(Duration::from_secs(30))
            .connect_lazy_with((*pool.connect_options()).clone());
        Self { pool, cancellers }
    }

    /// Acquires a connection. Waits as long as the pool's acquire timeout allows.
    pub async fn start(&self, permits: ReadPermits) -> Result<Reading, sqlx::Error> {
        self.lend(database::acquire(&self.pool).await?, permits).await
    }

    /// Acquires an idle connection. Returns `None` at once if there is none.
    pub async fn try_start(&self, permits: ReadPermits) -> Result<Option<Reading>, sqlx::Error> {
        match self.pool.try_acquire() {
            Some(connection) => self.lend(connection, permits).await.map(Some),
            None => Ok(None),
        }
    }

    async fn lend(
        &self,
        mut connection: PoolConnection<Postgres>,
        permits: ReadPermits,
    ) -> Result<Reading, sqlx::Error> {
        let backend = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *connection).await?;
        let connection = Some(connection);
        Ok(Reading {
            connection,
            backend,
            permits,
            pool: self.clone(),
            snapshot: false,
            scratch: false,
            copies: CopyMark::default(),
        })
    }

    /// Closes all connections, including those for cancellations.
    pub async fn close(&self) {
        self.pool.close().await;
        self.cancellers.close().await;
    }

    /// Cancels the statement that a backend is running. Returns whether the request reached the database.
    async fn cancel(&self, backend: i32) -> bool {
        let sent = sqlx::query("SELECT pg_cancel_backend($1)").bind(backend).execute(&self.cancellers).await;
        sent.is_ok()
    }
}

/// Marks a connection while the rows of a COPY are arriving. The driver does not track how much of them is unread, so a
/// connection cannot be reused if a COPY on it was abandoned.
#[derive(Clone, Debug, Default)]
pub struct CopyMark(Arc<AtomicBool>);

impl CopyMark {
    /// Starts a COPY TO STDOUT, and marks the connection until the last message is read.
    pub async fn copy_out<'c>(
        &self,
        connection: &'c mut PgConnection,
        statement: &str,
    ) -> Result<BoxStream<'c, Result<Bytes, sqlx::Error>>, sqlx::Error> {
        self.0.store(true, Ordering::Relaxed);
        let messages = connection.copy_out_raw(statement).await?;
        let mark = self.clone();
        let end = stream::once(async move {
            mark.0.store(false, Ordering::Relaxed);
            Ok(None)
        });
        Ok(messages.map_ok(Some).chain(end).try_filter_map(|message| ready(Ok(message))).boxed())
    }
}

/// A connection that one read uses, with or without a snapshot.
#[derive(Debug)]
pub struct Reading {
    connection: Option<PoolConnection<Postgres>>,
    /// Process ID of the PostgreSQL backend.
    backend: i32,
    permits: ReadPermits,
    pool: ReadPool,
    snapshot: bool,
    /// Whether the transaction has temporary tables, and is rolled back at its end.
    scratch: bool,
    copies: CopyMark,
}

impl Reading {
    /// The connection of the read.
    pub fn connection(&mut self) -> &mut PgConnection {
        self.copying().0
    }

    /// The connection, and its mark for COPY.
    #[expect(clippy::expect_used, reason = "the connection leaves where the reading is consumed, and nowhere else")]
    pub fn copying(&mut self) -> (&mut PgConnection, &CopyMark) {
        (self.connection.as_mut().expect("a reading has its connection to its end"), &self.copies)
    }

    /// Starts a snapshot. All later statements of the read see the same state of the database.
    pub async fn snapshot(mut self) -> Result<Self, sqlx::Error> {
        if !self.snapshot {
            self.snapshot = true;
            let begin = sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
            begin.execute(self.connection()).await?;
        }
        Ok(self)
    }

    /// Whether the statements of the read see one state of the database.
    pub fn has_snapshot(&self) -> bool {
        self.snapshot
    }

    /// Starts a snapshot in which temporary tables and views can be created. They disappear at its end. Not possible on a
    /// replica.
    pub async fn scratch(mut self) -> Result<Self, sqlx::Error> {
        self = self.without_snapshot().await?;
        self.snapshot = true;
        self.scratch = true;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL idle_in_transaction_session_timeout = 0";
        sqlx::raw_sql(begin).execute(self.connection()).await?;
        Ok(self)
    }

    /// Lets the transaction of a snapshot wait for something else than the database, without a limit of time.
    pub async fn may_be_idle(&mut self) -> Result<(), sqlx::Error> {
        sqlx::raw_sql("SET LOCAL idle_in_transaction_session_timeout = 0").execute(self.connection()).await.map(drop)
    }

    /// Ends a snapshot in which a statement failed. Each later statement sees the state of the database at its own
    /// start.
    pub async fn without_snapshot(mut self) -> Result<Self, sqlx::Error> {
        if self.snapshot {
            sqlx::raw_sql("ROLLBACK").execute(self.connection()).await?;
            self.snapshot = false;
        }
        Ok(self)
    }

    /// Ends the read normally, and commits its snapshot.
    pub async fn finish(mut self) -> Result<(), sqlx::Error> {
        if self.snapshot {
            let end = if self.scratch { "ROLLBACK" } else { "COMMIT" };
            sqlx::raw_sql(end).execute(self.connection()).await?;
            self.snapshot = false;
        }
        Ok(())
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let Ok(runtime) = Handle::try_current() else {
            connection.close_on_drop();
            return;
        };
        let given_up = GivenUp {
            backend: self.backend,
            pool: self.pool.clone(),
            snapshot: self.snapshot,
            copying: self.copies.0.load(Ordering::Relaxed),
        };
        let permits = std::mem::take(&mut self.permits);
        runtime.spawn(async move {
            if !given_up.is_usable(&mut connection).await {
                connection.close_on_drop();
            }
            drop((connection, permits));
        });
    }
}

/// A read that ended, perhaps in the middle of a query.
struct GivenUp {
    backend: i32,
    pool: ReadPool,
    snapshot: bool,
    copying: bool,
}

impl GivenUp {
    /// Cancels the running query, if there is one. Returns whether the connection can be used again.
    async fn is_usable(&self, connection: &mut PgConnection) -> bool {
        if self.copying {
            self.pool.cancel(self.backend).await;
            return false;
        }
        let free = match is_free(connection, BUSY).await {
            Some(free) => free,
            None => {
                self.pool.cancel(self.backend).await
                    && is_free(connection, CANCELLED).await == Some(true)
                    // A cancellation that arrives late hits this ping, and not a statement of the next user.
                    && connection.ping().await.is_ok()
            }
        };
        free && (!self.snapshot || sqlx::raw_sql("ROLLBACK").execute(connection).await.is_ok())
    }
}

/// Whether the connection became ready for a query within `limit`. `None` if it is still busy then.
async fn is_free(connection: &mut PgConnection, limit: Duration) -> Option<bool> {
    let answer = async {
        loop {
            match connection.flush().await {
                Ok(()) => return true,
                // The error of the cancelled query; its reader no longer exists.
                Err(sqlx::Error::Database(_)) => {}
                Err(_) => return false,
            }
        }
    };
    tokio::time::timeout(limit, answer).await.ok()
}
