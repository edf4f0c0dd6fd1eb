//! Manifests: which objects make up a day, and what their bytes are.

use std::collections::HashSet;

use chrono::{DateTime, NaiveDate, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::blocks::BLOCK;
use crate::columns::SCHEMA_VERSION;
use crate::error::{Error, Result};
use crate::listing::{IDS, day_directory, part_numbers};
use crate::sums::Sums;
use crate::write::microseconds_of;

/// The state of a day in one revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the files' schema.
    pub schema_version: u32,
    /// The day, UTC.
    pub day: NaiveDate,
    /// The revision, from 1. Numbers may be missing.
    pub revision: u32,
    /// When the revision was written.
    pub created_at: DateTime<Utc>,
    /// Whether `messages`, `response` and `proxy_server_request` were archived.
    pub bodies: bool,
    /// The Parquet files that make up the day.
    pub parts: Vec<Part>,
    /// The digests of the day's ids.
    pub ids: StoredObject,
    /// The sums over all parts.
    pub sums: Sums,
    /// What the caller stored with the day.
    pub extra: Value,
}

/// A Parquet file of a day.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The file.
    #[serde(flatten)]
    pub object: StoredObject,
    /// Number of rows.
    pub rows: u64,
    /// Smallest `startTime`, in microseconds since 1970-01-01 UTC.
    pub first_start: i64,
    /// Largest `startTime`, in microseconds since 1970-01-01 UTC.
    pub last_start: i64,
    /// A hash over the values of all rows, in hexadecimal digits: what the decoded file must have.
    pub content: String,
}

/// An object and what its bytes are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredObject {
    /// The object, relative to the root of the archive.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of the object, in hexadecimal digits.
    pub sha256: String,
    /// A hash (XXH3-64) of each block of 64 KiB, in order. In JSON, each is a string of 16 hexadecimal digits.
    #[serde(serialize_with = "write_hashes", deserialize_with = "read_hashes")]
    pub blocks: Vec<u64>,
}

impl Manifest {
    /// Refuses a manifest that contradicts itself. Its seal only says that nobody changed it since it was written, and what
    /// it says decides how much is read and where.
    pub(crate) fn check(&self) -> Result<(), String> {
        let directory = day_directory(self.day);
        let times = microseconds_of(self.day);
        let (mut rows, mut paths) = (0u64, HashSet::new());
        for part in &self.parts {
            let path = &part.object.path;
            let name = path.strip_prefix(&directory).and_then(|rest| rest.strip_prefix('/')).unwrap_or_default();
            if name.contains('/') || part_numbers(name).is_none() || !paths.insert(path) {
                return Err(format!("{path:?} is not the name of a file of the day, or is there twice"));
            }
            part.object.check()?;
            rows = rows.saturating_add(part.rows);
            if part.rows == 0
                || !times.contains(&part.first_start)
                || !(part.first_start..times.end).contains(&part.last_start)
            {
                return Err(format!("the times or the number of rows of {path} cannot be right"));
            }
        }
        let name = self.ids.path.strip_prefix(IDS).and_then(|rest| rest.strip_prefix('/')).unwrap_or_default();
        if name.contains('/') || !name.starts_with(&format!("{}-", self.day)) || !name.ends_with(".ids") {
            return Err(format!("{:?} is not the name of the day's digests", self.ids.path));
        }
        self.ids.check()?;
        if self.sums.rows != rows || !self.sums.are_possible() {
            return Err("its sums cannot be right".to_owned());
        }
        Ok(())
    }
}

impl StoredObject {
    /// The object's name without its directory.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Refuses an object whose size is not that of its blocks.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.bytes.div_ceil(BLOCK) == self.blocks.len() as u64 {
            return Ok(());
        }
        Err(format!("{} cannot have {} bytes in {} blocks", self.path, self.bytes, self.blocks.len()))
    }
}

fn write_hashes<S: Serializer>(hashes: &[u64], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(hashes.iter().map(|hash| format!("{hash:016x}")))
}

fn read_hashes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    let texts = Vec::<std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    texts.iter().map(|text| u64::from_str_radix(text, 16).map_err(serde::de::Error::custom)).collect()
}

/// The form in which a manifest is stored: with the hash of its own text.
#[derive(Serialize, Deserialize)]
struct Sealed<'a> {
    sha256: String,
    #[serde(borrow)]
    manifest: &'a RawValue,
}

/// A manifest as text, sealed with its SHA-256.
pub(crate) fn seal(manifest: &impl Serialize) -> Result<Vec<u8>> {
    let text = serde_json::value::to_raw_value(manifest).map_err(Error::local)?;
    let sealed = Sealed { sha256: hexadecimal(&Sha256::digest(text.get())), manifest: &text };
    let mut bytes = serde_json::to_vec(&sealed).map_err(Error::local)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The manifest in a sealed text. `None` if the text is not what was written.
pub(crate) fn unseal(bytes: &[u8]) -> Option<&str> {
    let sealed: Sealed<'_> = serde_json::from_slice(bytes).ok()?;
    (hexadecimal(&Sha256::digest(sealed.manifest.get())) == sealed.sha256).then(|| sealed.manifest.get())
}

/// Reads the text of a manifest, of this version or an earlier one.
pub(crate) fn parse<T: DeserializeOwned>(path: &str, text: &str) -> Result<T> {
    #[derive(Deserialize)]
    struct Version {
        schema_version: u32,
    }
    let version: Version = serde_json::from_str(text).map_err(|error| Error::schema(path, error))?;
    if version.schema_version > SCHEMA_VERSION {
        let reason = format!("schema version {} is newer than this program", version.schema_version);
        return Err(Error::schema(path, reason));
    }
    serde_json::from_str(text).map_err(|error| Error::schema(path, error))
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
