//! Counts the tokens of a file and prints the time that it took: `count_tokens FILE ENCODING [RUNS]`.

use std::time::Instant;

use litespend_pricing::{Encoding, PriceTable};

fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    line.unwrap_or("VmRSS unknown").to_owned()
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (file, name) = (arguments.next(), arguments.next());
    let runs: u32 = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(5);
    println!("start: {}", resident());
    let started = Instant::now();
    let table = PriceTable::embedded();
    println!("table: {:?}, {} models, {}", started.elapsed(), table.map_or(0, |t| t.len()), resident());
    let Some(text) = file.and_then(|file| std::fs::read_to_string(file).ok()) else {
        return;
    };
    let encoding = match name.as_deref() {
        Some("o200k_base") => Encoding::O200k,
        Some("anthropic") => Encoding::Anthropic,
        Some("deepseek") => Encoding::DeepSeek,
        _ => Encoding::Cl100k,
    };
    let started = Instant::now();
    let one = encoding.count("x");
    println!("unpack: {:?} ({one} token), {}", started.elapsed(), resident());
    let mut best = f64::MAX;
    let mut count = 0;
    for _ in 0..runs {
        let started = Instant::now();
        count = encoding.count(&text);
        best = best.min(started.elapsed().as_secs_f64());
    }
    println!("{count} tokens, {} bytes, best {best:.4} s", text.len());
}
