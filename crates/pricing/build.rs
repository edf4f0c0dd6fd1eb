//! Compresses the built-in price table, which is kept readable in the repository.

use std::io::{Error, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::ZlibEncoder;

const TABLE: &str = "data/model_prices.json";

fn main() -> Result<(), Error> {
    println!("cargo::rerun-if-changed={TABLE}");
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&std::fs::read(TABLE)?)?;
    let directory = std::env::var_os("OUT_DIR").ok_or_else(|| Error::other("OUT_DIR is not set"))?;
    std::fs::write(Path::new(&directory).join("model_prices.json.zlib"), encoder.finish()?)
}
