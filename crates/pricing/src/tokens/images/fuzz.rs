//! Generates images of every size, truncated images and random data: the result is the true size, or none.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::randomness::check;

/// The start of an image file, up to and including its size, and that size.
fn picture() -> impl Strategy<Value = (Vec<u8>, (u64, u64))> {
    let segments =
        vec((select(vec![0xe0_u8, 0xdb, 0xc4, 0xfe, 0xcc, 0xc8]), vec(any::<u8>(), 0..40), 0..3_usize), 0..5);
    (0..6_u8, any::<u32>(), any::<u32>(), segments).prop_map(|(kind, width, height, segments)| {
        let (w, h) = (width as u16, height as u16);
        let small = (u64::from(w), u64::from(h));
        match kind {
            0 => {
                let mut data = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
                data.extend(width.to_be_bytes().into_iter().chain(height.to_be_bytes()));
                (data, (u64::from(width), u64::from(height)))
            }
            1 => {
                let mut data = b"GIF89a".to_vec();
                data.extend(w.to_le_bytes().into_iter().chain(h.to_le_bytes()));
                (data, small)
            }
            2 => {
                let mut data = b"\xff\xd8".to_vec();
                for (marker, content, fill) in segments {
                    data.extend(std::iter::repeat_n(0xff, 1 + fill));
                    data.push(marker);
                    data.extend((content.len() as u16 + 2).to_be_bytes());
                    data.extend(content);
                }
                data.extend([0xff, 0xc0, 0, 17, 8]);
                data.extend(h.to_be_bytes().into_iter().chain(w.to_be_bytes()));
                (data, small)
            }
            3 => {
                let mut data = b"RIFF\0\0\0\0WEBPVP8X\0\0\0\0\0\0\0\0".to_vec();
                data.extend(&width.to_le_bytes()[..3]);
                data.extend(&height.to_le_bytes()[..3]);
                (data, (u64::from(width & 0xff_ffff) + 1, u64::from(height & 0xff_ffff) + 1))
            }
            4 => {
                let mut data = b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0\0\0\0\x9d\x01\x2a".to_vec();
                data.extend(w.to_le_bytes().into_iter().chain(h.to_le_bytes()));
                (data, (u64::from(w & 0x3fff), u64::from(h & 0x3fff)))
            }
            _ => {
                let mut data = b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f".to_vec();
                data.extend((u32::from(w & 0x3fff) | u32::from(h & 0x3fff) << 14).to_le_bytes());
                (data, (u64::from(w & 0x3fff) + 1, u64::from(h & 0x3fff) + 1))
            }
        }
    })
}

/// The largest number of tokens of an image: 2,000 by 768 pixels in tiles of 512.
const MAX: u64 = BASE_TOKENS + 8 * TILE_TOKENS;

fn url(data: &[u8]) -> String {
    format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(data))
}

#[test]
fn a_picture_has_its_size_and_one_cut_off_before_it_has_none() {
    check(1_500, (picture(), vec(any::<u8>(), 0..20)), |((data, expected), rest)| {
        let whole = [data.as_slice(), &rest].concat();
        prop_assert_eq!(size(&whole), Some(Some(expected)));
        prop_assert_eq!(size(&data), Some(Some(expected)));
        for length in 0..data.len() {
            let found = size(&data[..length]);
            let is_known = found.is_none() || found == Some(None) || (length >= 12 && found == Some(Some(ASSUMED)));
            prop_assert!(is_known, "{length} of {} bytes: {found:?}", data.len());
        }
        let tokens = count_inline(&url(&whole));
        prop_assert!((BASE_TOKENS..=MAX).contains(&tokens), "{tokens}");
        Ok(())
    });
}

#[test]
fn any_data_costs_something_bounded_or_is_refused() {
    let magic = select(vec![
        &b""[..],
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBP",
        b"RIFF\0\0\0\0WEBPVP8L",
    ]);
    let changed = (picture(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|((mut data, _), at, byte)| {
        let at = at.index(data.len());
        data[at] = byte;
        data
    });
    let made_up =
        (magic, vec(prop_oneof![any::<u8>(), Just(0xff)], 0..80)).prop_map(|(magic, rest)| [magic, &rest].concat());
    check(2_000, prop_oneof![changed, made_up], |data| {
        let url = url(&data);
        prop_assert!((BASE_TOKENS..=MAX).contains(&count_inline(&url)));
        if let Ok(tokens) = count_in_detail(&url) {
            prop_assert!((BASE_TOKENS..=MAX).contains(&tokens));
        }
        Ok(())
    });
}

#[test]
fn any_url_and_any_source_is_counted_or_refused() {
    let text = prop_oneof![any::<String>(), "data:image/(png|gif)?;?(base64)?,?[A-Za-z0-9+/=]{0,30}"];
    check(1_500, (text, select(vec!["low", "high", "auto", "", "x"])), |(text, detail)| {
        for image in
            [serde_json::json!(text), serde_json::json!({"url": text, "detail": detail}), serde_json::json!([text])]
        {
            prop_assert!(
                count_image_url(Some(&image)).is_ok_and(|tokens| tokens <= MAX)
                    || count_image_url(Some(&image)).is_err()
            );
        }
        for kind in ["base64", "url", "file", ""] {
            let source = serde_json::json!({"type": kind, "media_type": detail, "data": text, "url": text});
            prop_assert!(count_source(Some(&source)).map_or(true, |tokens| tokens <= MAX));
        }
        Ok(())
    });
}
