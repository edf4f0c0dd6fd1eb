//! Unpacks request bodies. What comes out is bounded and charged to the memory budget like bytes that arrive, so a
//! small body that unpacks to a large one is nothing but a large body. The work runs where it may take its time: a body
//! can be long to read and still unpack to nothing.

use std::io::{self, Read};

use axum::http::StatusCode;
use bytes::buf::Reader;
use bytes::{Buf, Bytes, BytesMut};
use flate2::bufread::GzDecoder;

use crate::http::body_budget::Charge;
use crate::http::error::{ApiError, ErrorType};

/// Bytes that are unpacked and charged in one step.
const STEP: usize = 256 * 1024;

/// The largest number of gzip members in one body. Writers make one, or one for each flush.
const MAX_MEMBERS: usize = 1000;

/// Unpacks a body in gzip. Answers 413 if it unpacks to more than `limit` bytes, and 400 if it is not gzip, or has more
/// than 1,000 members.
pub async fn unpack_gzip(packed: Bytes, limit: usize, charge: Option<&Charge>) -> Result<Bytes, ApiError> {
    let mut members = Members::of(packed);
    let mut whole = BytesMut::new();
    loop {
        let step = tokio::task::spawn_blocking(move || members.read().map(|bytes| (members, bytes)));
        let (rest, bytes) = step.await.map_err(|error| ApiError::Internal(error.to_string()))?.map_err(unreadable)?;
        if bytes.is_empty() {
            return Ok(whole.freeze());
        }
        members = rest;
        if whole.len() + bytes.len() > limit {
            return Err(ApiError::TooLarge { limit });
        }
        if let Some(charge) = charge
            && !charge.add(bytes.len()).await
        {
            // The layer that holds the charge replaces this answer with its own.
            return Err(ApiError::Unavailable(None));
        }
        whole.extend_from_slice(&bytes);
    }
}

/// The members of a body in gzip, one after the other.
struct Members {
    /// `None` behind the last member.
    current: Option<GzDecoder<Reader<Bytes>>>,
    count: usize,
}

/// The reason why a body cannot be unpacked.
enum Unreadable {
    NotGzip,
    TooManyMembers,
}

impl From<io::Error> for Unreadable {
    fn from(_: io::Error) -> Self {
        Self::NotGzip
    }
}

impl Members {
    fn of(packed: Bytes) -> Self {
        Self { current: Some(GzDecoder::new(packed.reader())), count: 1 }
    }

    /// The next bytes, at most [`STEP`]. None at the end.
    fn read(&mut self) -> Result<Vec<u8>, Unreadable> {
        let mut bytes = Vec::new();
        while let Some(decoder) = &mut self.current {
            let room = STEP.saturating_sub(bytes.len());
            if room == 0 {
                break;
            }
            if decoder.take(room as u64).read_to_end(&mut bytes)? < room {
                self.next_member()?;
            }
        }
        Ok(bytes)
    }

    fn next_member(&mut self) -> Result<(), Unreadable> {
        let rest = self.current.take().map(GzDecoder::into_inner).filter(|rest| rest.get_ref().has_remaining());
        if let Some(rest) = rest {
            self.count += 1;
            if self.count > MAX_MEMBERS {
                return Err(Unreadable::TooManyMembers);
            }
            self.current = Some(GzDecoder::new(rest));
        }
        Ok(())
    }
}

fn unreadable(reason: Unreadable) -> ApiError {
    let message = match reason {
        Unreadable::NotGzip => "The request body is not gzip, although Content-Encoding says so.".to_owned(),
        Unreadable::TooManyMembers => format!("The request body has more than {MAX_MEMBERS} gzip members."),
    };
    ApiError::Refused {
        status: StatusCode::BAD_REQUEST,
        kind: ErrorType::InvalidRequest,
        message,
        param: Some("request_body".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn packed(bytes: &[u8]) -> Bytes {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).expect("a vector takes everything");
        encoder.finish().expect("a vector takes everything").into()
    }

    #[tokio::test]
    async fn what_was_packed_comes_out_within_the_limit() {
        let bytes = vec![7; 200_000];
        let unpacked = unpack_gzip(packed(&bytes), bytes.len(), None).await.expect("the bytes");
        assert_eq!(unpacked, bytes);
        let bomb = unpack_gzip(packed(&bytes), bytes.len() - 1, None).await;
        assert!(matches!(bomb, Err(ApiError::TooLarge { limit: 199_999 })));
        let twice: Bytes = [packed(b"one "), packed(b"two")].concat().into();
        assert_eq!(unpack_gzip(twice, 100, None).await.expect("both members"), "one two");
        let whole = packed(&bytes);
        for broken in [Bytes::from_static(b"{}"), whole.slice(..whole.len() - 4), whole.slice(..5)] {
            let refused = unpack_gzip(broken, 1_000_000, None).await.expect_err("refused");
            assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        }
    }

    #[tokio::test]
    async fn members_are_counted() {
        let members = |count: usize| Bytes::from([packed(b"x").to_vec(), packed(b"").repeat(count - 1)].concat());
        assert_eq!(unpack_gzip(members(MAX_MEMBERS), 10, None).await.expect("the bytes"), "x");
        let refused = unpack_gzip(members(MAX_MEMBERS + 1), 10, None).await.expect_err("refused");
        assert_eq!((refused.status(), refused.to_string().contains("1000")), (StatusCode::BAD_REQUEST, true));
    }

    #[tokio::test]
    async fn a_body_that_unpacks_to_nothing_holds_up_nobody() {
        let empty = packed(b"");
        let (header, rest) = empty.split_at(10);
        // A million blocks without a byte, within one member.
        let block = [0_u8, 0, 0, 0xff, 0xff];
        let body: Bytes = [header, &block.repeat(1_000_000), rest].concat().into();
        let others = tokio::spawn(async { tokio::task::yield_now().await });
        assert_eq!(unpack_gzip(body, 10, None).await.expect("no bytes"), "");
        assert!(others.is_finished(), "nothing else ran meanwhile");
    }
}
