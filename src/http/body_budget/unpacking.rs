//! Unpacks request bodies. What comes out is bounded and charged to the memory budget like bytes that arrive, so a
//! small body that unpacks to a large one is nothing but a large body.

use std::io::Read;

use axum::http::StatusCode;
use bytes::{Bytes, BytesMut};
use flate2::bufread::MultiGzDecoder;

use crate::http::body_budget::Charge;
use crate::http::error::{ApiError, ErrorType};

/// Bytes that are unpacked and charged in one step. Other requests run between the steps.
const STEP: usize = 64 * 1024;

/// Unpacks a body in gzip. Answers 413 if it unpacks to more than `limit` bytes, and 400 if it is not gzip.
pub async fn unpack_gzip(packed: Bytes, limit: usize, charge: Option<&Charge>) -> Result<Bytes, ApiError> {
    let mut decoder = MultiGzDecoder::new(packed.as_ref());
    let mut step = vec![0; STEP];
    let mut whole = BytesMut::new();
    loop {
        let count = decoder.read(&mut step).map_err(|_| not_gzip())?;
        let bytes = step.get(..count).filter(|bytes| !bytes.is_empty());
        let Some(bytes) = bytes else { return Ok(whole.freeze()) };
        if whole.len() + bytes.len() > limit {
            return Err(ApiError::TooLarge { limit });
        }
        if let Some(charge) = charge
            && !charge.add(bytes.len()).await
        {
            // The layer that holds the charge replaces this answer with its own.
            return Err(ApiError::Unavailable(None));
        }
        whole.extend_from_slice(bytes);
        tokio::task::yield_now().await;
    }
}

fn not_gzip() -> ApiError {
    ApiError::Refused {
        status: StatusCode::BAD_REQUEST,
        kind: ErrorType::InvalidRequest,
        message: "The request body is not gzip, although Content-Encoding says so.".into(),
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
}
