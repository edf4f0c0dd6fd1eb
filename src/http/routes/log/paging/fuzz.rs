//! Property tests of cursors: a cursor decodes to its position, and any other text is refused.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::randomness::check;

#[test]
fn every_position_that_postgresql_can_hold_comes_back() {
    // 4711 BC to the year 261,000, in microseconds since 1970.
    let micros = -210_800_000_000_000_000..8_200_000_000_000_000_000_i64;
    check(2_000, (micros, any::<String>()), |(micros, request_id)| {
        let start_time = DateTime::from_timestamp_micros(micros).unwrap().naive_utc();
        let request_id = request_id.replace('\0', "");
        let position = LogPosition { start_time, request_id };
        let text = encode(&position);
        prop_assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        let far = chrono::Datelike::year(&start_time) > 250_000;
        prop_assert_eq!(decode(&text), (!far).then_some(position));
        Ok(())
    });
}

#[test]
fn any_text_is_a_position_that_can_be_asked_for_or_none() {
    let text = prop_oneof![
        any::<String>(),
        "[A-Za-z0-9_=+/-]{0,40}",
        vec(any::<u8>(), 0..30).prop_map(|bytes| URL_SAFE_NO_PAD.encode(bytes)),
        (any::<i64>(), "\\PC{0,9}").prop_map(|(micros, id)| URL_SAFE_NO_PAD.encode(format!("{micros}.{id}"))),
        "[0-9.+-]{0,24}\\.\\PC{0,3}".prop_map(|text| URL_SAFE_NO_PAD.encode(text)),
    ];
    check(2_000, text, |text| {
        if let Some(position) = decode(&text) {
            prop_assert!(!position.request_id.contains('\0'));
            prop_assert!((-4_711..=250_000).contains(&chrono::Datelike::year(&position.start_time)));
            prop_assert_eq!(decode(&encode(&position)), Some(position));
        }
        Ok(())
    });
}
