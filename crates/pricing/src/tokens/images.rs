//! Counts the tokens of an image in a message, by OpenAI's tiles of 512 pixels.
//!
//! Only images that are part of the message (`data:` URLs) have a known size. Nothing is ever fetched. An image behind
//! a URL costs the base number of tokens, as in LiteLLM. The exception is `detail: high`: LiteLLM fetches such an image
//! and fails if it can't, and this module refuses it.

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;

use crate::PricingError;
use crate::tokens::invalid;

const BASE_TOKENS: u64 = 85;
const TILE_TOKENS: u64 = 170;
const TILE_SIDE: u64 = 512;
const SHORT_SIDE: u64 = 768;
const LONG_SIDE: u64 = 2000;
const LARGEST_PICTURE: usize = 50 * 1024 * 1024;

/// The size that is assumed for data that is not a known image format.
const ASSUMED: (u64, u64) = (300, 300);

static BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// Counts the `image_url` of a content part: a URL, or an object with `url` and `detail`.
pub(crate) fn count_image_url(image: Option<&Value>) -> Result<u64, PricingError> {
    match image {
        Some(Value::String(url)) if !url.trim().is_empty() => Ok(count_inline(url)),
        Some(Value::Object(image)) => {
            let detail = match image.get("detail") {
                None => "auto",
                Some(Value::String(detail)) => detail.as_str(),
                Some(_) => "",
            };
            let url = image.get("url").and_then(Value::as_str).unwrap_or_default();
            if url.is_empty() {
                return Err(invalid("an image_url must have a url"));
            }
            match detail {
                "low" => Ok(BASE_TOKENS),
                "auto" => Ok(count_inline(url)),
                "high" => count_in_detail(url),
                _ => Err(invalid("an image's detail must be low, high or auto")),
            }
        }
        _ => Err(invalid("an image_url must be a URL or an object with a url")),
    }
}

/// Counts the `source` of an Anthropic image or document.
pub(crate) fn count_source(source: Option<&Value>) -> Result<u64, PricingError> {
    let Some(source @ Value::Object(_)) = source else {
        return Err(invalid("a picture must have a source"));
    };
    let text = |field: &str| source.get(field).and_then(Value::as_str).unwrap_or_default();
    match text("type") {
        "" => Err(invalid("a picture's source must have a type")),
        "base64" if !text("data").is_empty() => {
            let media_type = match text("media_type") {
                "" => "image/png",
                media_type => media_type,
            };
            Ok(count_inline(&format!("data:{media_type};base64,{}", text("data"))))
        }
        "url" => Ok(count_inline(text("url"))),
        _ => Ok(BASE_TOKENS),
    }
}

/// Counts an image by its size if the URL contains its data, else at the base number of tokens.
pub(crate) fn count_inline(url: &str) -> u64 {
    inline_size(url).map_or(BASE_TOKENS, tile_tokens)
}

fn inline_size(url: &str) -> Option<(u64, u64)> {
    let rest = url.strip_prefix("data:image/")?;
    let (header, encoded) = rest.split_once(',')?;
    let header_length = header.len() + "data:image/".len();
    if header_length > 128 || !header.ends_with(";base64") || encoded.len() > LARGEST_PICTURE / 3 * 4 {
        return None;
    }
    let data = BASE64.decode(encoded).ok()?;
    let (width, height) = size(&data)??;
    (width > 0 && height > 0).then_some((width, height))
}

fn count_in_detail(url: &str) -> Result<u64, PricingError> {
    let Some((_, encoded)) = url.split_once(',') else {
        return Err(invalid("an image in high detail must be a data URL: it is not fetched"));
    };
    // Python's decoder skips characters that are not base64.
    let alphabet = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/');
    let encoded: Vec<u8> = encoded.bytes().filter(|c| alphabet(c) || *c == b'=').collect();
    let data = BASE64.decode(encoded).map_err(|_| invalid("an image's data must be base64"))?;
    match size(&data) {
        None => Ok(tile_tokens(ASSUMED)),
        Some(Some((width, height))) if width > 0 && height > 0 => Ok(tile_tokens((width, height))),
        Some(_) => Err(invalid("an image's size can't be read")),
    }
}

fn tile_tokens((width, height): (u64, u64)) -> u64 {
    let (width, height) = fitted(width, height);
    let tiles = width.div_ceil(TILE_SIDE) * height.div_ceil(TILE_SIDE);
    BASE_TOKENS + TILE_TOKENS * tiles
}

/// The size to which an image is scaled: its short side to 768 pixels. If the long side would then exceed 2000 pixels,
/// the long side is scaled to 2000 instead. Images of at most 768 by 768 pixels keep their size.
fn fitted(width: u64, height: u64) -> (u64, u64) {
    if width <= SHORT_SIDE && height <= SHORT_SIDE {
        return (width, height);
    }
    let (short, long) = (width.min(height), width.max(height));
    // LiteLLM computes the ratio in floats and truncates. Sides are below 2^32.
    let scale = |side: u64, divide: bool| {
        let ratio = long as f64 / short as f64;
        let side = side as f64;
        (if divide { side / ratio } else { side * ratio }) as u64
    };
    let long_side = scale(SHORT_SIDE, false);
    let (short_side, long_side) =
        if long_side > LONG_SIDE { (scale(LONG_SIDE, true), LONG_SIDE) } else { (SHORT_SIDE, long_side) };
    if width <= height { (short_side, long_side) } else { (long_side, short_side) }
}

/// Width and height of a PNG, GIF, JPEG or WebP file. `None` for other data; `Some(None)` if the file ends before its
/// size.
fn size(data: &[u8]) -> Option<Option<(u64, u64)>> {
    if data.starts_with(b"\x89PNG\r\n\x1a\n") {
        return Some(png_size(data));
    }
    if data.starts_with(b"GIF8") && data.get(5) == Some(&b'a') {
        return Some(pair(data, 6, u16_little));
    }
    if data.starts_with(b"\xff\xd8\xff") {
        return Some(jpeg_size(data));
    }
    if data.starts_with(b"RIFF") && data.get(8..12) == Some(b"WEBP") {
        return Some(webp_size(data));
    }
    None
}

fn png_size(data: &[u8]) -> Option<(u64, u64)> {
    let side = |at: usize| {
        let bytes = data.get(at..)?.first_chunk::<4>()?;
        Some(u64::from(u32::from_be_bytes(*bytes)))
    };
    Some((side(16)?, side(20)?))
}

fn jpeg_size(data: &[u8]) -> Option<(u64, u64)> {
    let mut position = 2usize;
    loop {
        // Any number of 0xff bytes may precede a marker.
        position += 1;
        while *data.get(position)? == 0xff {
            position += 1;
        }
        let marker = *data.get(position)?;
        let length = usize::try_from(u16_big(data, position + 1)?).ok()?;
        let is_frame = (0xc0..=0xcf).contains(&marker) && !matches!(marker, 0xc4 | 0xc8 | 0xcc);
        if is_frame {
            let (height, width) = pair(data, position + 4, u16_big)?;
            return Some((width, height));
        }
        position = position.checked_add(1 + length)?;
    }
}

fn webp_size(data: &[u8]) -> Option<(u64, u64)> {
    let u24 = |at: usize| {
        let [a, b, c] = *data.get(at..)?.first_chunk::<3>()?;
        Some(u64::from(u32::from_le_bytes([a, b, c, 0])) + 1)
    };
    match data.get(12..16)? {
        b"VP8X" => u24(24).zip(u24(27)),
        b"VP8 " => pair(data, 26, u16_little).map(|(w, h)| (w & 0x3fff, h & 0x3fff)),
        b"VP8L" => data.get(21..).and_then(<[u8]>::first_chunk::<4>).map(|bytes| {
            let bits = u64::from(u32::from_le_bytes(*bytes));
            ((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1)
        }),
        _ => Some(ASSUMED),
    }
}

fn pair(data: &[u8], at: usize, read: fn(&[u8], usize) -> Option<u64>) -> Option<(u64, u64)> {
    Some((read(data, at)?, read(data, at + 2)?))
}

fn u16_little(data: &[u8], at: usize) -> Option<u64> {
    let bytes = data.get(at..)?.first_chunk::<2>()?;
    Some(u64::from(u16::from_le_bytes(*bytes)))
}

fn u16_big(data: &[u8], at: usize) -> Option<u64> {
    let bytes = data.get(at..)?.first_chunk::<2>()?;
    Some(u64::from(u16::from_be_bytes(*bytes)))
}

#[cfg(test)]
mod fuzz;
