//! Database access for handlers that read. [`Reads`] knows which key sent the request and which database answers it,
//! and lends connections within the key's limits.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::response::Response;
use bytes::Bytes;
use futures_util::Stream;

use crate::http::error::ApiError;
use crate::http::read_limits::Length;
use crate::http::replica::ToReplica;
use crate::http::state::AppState;
use crate::http::stream;
use crate::http::stream::read_ahead::LargeAnswer;
use crate::identity::Caller;
use crate::store::reading::{ReadPool, Reading};

/// The reads of one request. Cheap to clone.
#[derive(Clone)]
pub struct Reads {
    state: AppState,
    key: String,
    to_replica: bool,
}

impl FromRequestParts<AppState> for Reads {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Infallible> {
        // All requests without a key share the limits of one key.
        let key = parts.extensions.get::<Caller>().map(|caller| caller.key_hash.clone()).unwrap_or_default();
        let to_replica = parts.extensions.get::<ToReplica>().is_some();
        Ok(Self { state: state.clone(), key, to_replica })
    }
}

impl Reads {
    /// A connection for a read that tolerates lag: to the replica if this request was routed there.
    pub async fn start(&self) -> Result<Reading, ApiError> {
        self.start_for(Length::Short).await
    }

    /// Like [`Self::start`], for an answer of the given length class.
    pub async fn start_for(&self, length: Length) -> Result<Reading, ApiError> {
        let permits = self.state.read_limits.connection(&self.key, length).await?;
        Ok(self.pool().start(permits).await?)
    }

    /// A connection to the database that the server writes to, for a read that may take long.
    pub async fn start_on_primary(&self) -> Result<Reading, ApiError> {
        let permits = self.state.read_limits.connection(&self.key, Length::Long).await?;
        Ok(self.state.read_pool.start(permits).await?)
    }

    /// A second connection, if a connection and a permit are free at once; `None` otherwise.
    pub async fn try_start(&self) -> Result<Option<Reading>, ApiError> {
        let Some(permits) = self.state.read_limits.try_connection(&self.key) else { return Ok(None) };
        Ok(self.pool().try_start(permits).await?)
    }

    /// Sends an answer whose chunks are written while the database is still being read.
    pub async fn send(
        &self,
        chunks: impl Stream<Item = Result<Bytes, ApiError>> + Send + 'static,
        content_type: &'static str,
    ) -> Result<Response, ApiError> {
        stream::respond(chunks, content_type, || self.large_answer()).await
    }

    fn large_answer(&self) -> Result<LargeAnswer, ApiError> {
        let limits = &self.state.read_limits;
        let permits = limits.large_answer(&self.key)?;
        Ok(LargeAnswer { permits, waiting: limits.waiting(), budget: limits.spool().clone() })
    }

    fn pool(&self) -> &ReadPool {
        let replica = self.state.replica().filter(|_| self.to_replica);
        replica.map_or(&self.state.read_pool, |replica| replica.pool())
    }
}
