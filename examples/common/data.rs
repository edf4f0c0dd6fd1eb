//! The measured data, and where it is kept.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use litespend::rollups::folding;
use sqlx::{Executor, PgPool};

/// Loads the rows of `bench/generate.sql`, unless the database has them, and settles the rollups.
pub(crate) async fn load(pool: &PgPool, url: &str, rows: u64) {
    let loaded: i64 = sqlx::query_scalar(r#"SELECT count(*) FROM "LiteLLM_SpendLogs""#).fetch_one(pool).await.unwrap();
    if u64::try_from(loaded).unwrap() != rows {
        eprintln!("loading {rows} rows");
        let started = Instant::now();
        let status = Command::new("psql")
            .args(["-q", "-v", &format!("rows={rows}"), "-f", "bench/generate.sql", url])
            .stdout(Stdio::null())
            .status()
            .expect("psql runs");
        assert!(status.success());
        eprintln!("loaded in {:.0} s", started.elapsed().as_secs_f64());
    }
    let started = Instant::now();
    let mut connection = pool.acquire().await.unwrap();
    connection.execute("SET statement_timeout = 0").await.unwrap();
    let status = litespend::store::rollups::status(&mut connection).await.unwrap();
    if status.pending > 1_000_000 {
        // Counting the days from the log is faster than folding the deltas of a whole load.
        litespend::store::rollups::mark_dirty(&mut connection, None).await.unwrap();
    }
    folding::settle(&mut connection).await.unwrap();
    connection.execute("VACUUM ANALYZE").await.unwrap();
    eprintln!("rollups settled in {:.0} s", started.elapsed().as_secs_f64());
}

/// If this runs as root, PostgreSQL runs as another account, which must be able to reach the directory.
pub(crate) fn home(name: &str) -> PathBuf {
    let base = std::env::var_os("BENCH_DIR").map_or_else(|| Path::new("target").to_path_buf(), PathBuf::from);
    std::path::absolute(base.join(format!("bench-{name}"))).unwrap()
}
