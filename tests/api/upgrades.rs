//! Databases that earlier versions created: after the upgrade they give the recorded answers, and their rollups agree
//! with the log. Also: released migrations are not edited.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use litespend::rollups::folding;
use litespend::store::database::PoolLimits;
use litespend::store::rollups;
use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection};

use crate::conformance::replay;
use crate::support::cluster::{TestDatabase, create_database, fingerprint};
use crate::support::{TestApp, settings};

fn in_project(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn migrations_that_have_landed_are_not_edited() {
    let list = std::fs::read_to_string(in_project("migrations/frozen.sha256")).unwrap();
    let frozen: BTreeMap<String, String> = list
        .lines()
        .map(|line| line.split_once("  ").map(|(hash, name)| (name.to_owned(), hash.to_owned())).unwrap())
        .collect();
    let mut found = BTreeMap::new();
    for directory in ["litellm", "litespend"] {
        for entry in std::fs::read_dir(in_project("migrations").join(directory)).unwrap() {
            let path = entry.unwrap().path();
            let hash: String =
                Sha256::digest(std::fs::read(&path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
            found.insert(format!("{directory}/{}", path.file_name().unwrap().to_str().unwrap()), hash);
        }
    }
    assert_eq!(found, frozen, "a new migration is a new line in migrations/frozen.sha256; no line ever changes");
}

/// A database as a commit's migrations created it (`tests/fixtures/make-earlier-database.sh`).
async fn earlier(commit: &str) -> TestDatabase {
    let bytes = std::fs::read(in_project(&format!("tests/fixtures/database-{commit}.sql.gz"))).unwrap();
    let mut dump = String::new();
    flate2::read::GzDecoder::new(bytes.as_slice()).read_to_string(&mut dump).unwrap();
    create_database(&fingerprint([bytes]), async |url| {
        let mut connection = PgConnection::connect(url).await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(dump)).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    })
    .await
}

/// Upgrades such a database, as every start and `litespend migrate` do.
async fn upgraded(commit: &str) -> TestApp {
    let database = earlier(commit).await;
    let limits = PoolLimits { connections: 2, wait: Duration::from_secs(30) };
    for _ in 0..2 {
        litespend::store::database::connect(database.url(), limits).await.unwrap().close().await;
    }
    let app = TestApp::on(database, settings()).await;
    assert!(app.state.has_rollups());
    app
}

async fn verify(connection: &mut PgConnection) {
    let span = rollups::log_span(&mut *connection).await.unwrap().unwrap();
    for day in span.start.iter_days().take_while(|day| *day <= span.end) {
        let found = rollups::verify_day(&mut *connection, day).await.unwrap();
        assert!(found.is_none(), "{found:?}");
    }
}

async fn the_recorded_answers_match(commit: &str) {
    let app = upgraded(commit).await;
    replay(&app, "http_answers.json.gz").await;
    verify(&mut app.pool.acquire().await.unwrap()).await;

    // Uses another copy, because the requests have changed this one. Its days are folded, counted and packed.
    let app = upgraded(commit).await;
    let mut connection = app.pool.acquire().await.unwrap();
    verify(&mut connection).await;
    folding::settle(&mut connection).await.unwrap();
    let status = rollups::status(&mut connection).await.unwrap();
    assert_eq!((status.pending, status.dirty_days), (0, 0));
    verify(&mut connection).await;
    let (unpacked, unsummed): (i64, i64) = sqlx::query_as(
        r#"SELECT (SELECT count(*) FROM (SELECT DISTINCT day FROM litespend.day_usage
                                         EXCEPT SELECT day FROM litespend.packed_days WHERE rollup = 'usage') AS days),
                  (SELECT count(*) FROM (SELECT DISTINCT date FROM "LiteLLM_DailyUserSpend"
                                         EXCEPT SELECT date FROM litespend.activity_days) AS dates)"#,
    )
    .fetch_one(&mut *connection)
    .await
    .unwrap();
    assert_eq!((unpacked, unsummed), (0, 0), "the queues begin with all days that were not packed and summed");
    drop(connection);
    replay(&app, "http_answers.json.gz").await;
}

#[tokio::test]
async fn migrations_that_had_other_texts_and_numbers_for_a_while_are_adopted() {
    const WITH_OPEN_DAYS: &str =
        "a70c3b013cd48c134d2c39551cab8c2f7f8b9ab5e76b002e746dc38bddac7d28ef730605c4686561065f925ef0d2447c";
    let app = TestApp::new().await;
    let ledger =
        "SELECT string_agg(version || ' ' || description || ' ' || encode(checksum, 'hex'), ', ' ORDER BY version)
                  FROM litespend.migrations";
    let today = app.scalar(ledger).await;
    // The last migration of such a database is one of these.
    for last in 15..=18 {
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
            "UPDATE litespend.migrations SET checksum = '\\x{WITH_OPEN_DAYS}' WHERE version = 15;
             DELETE FROM litespend.migrations WHERE version = 16;
             UPDATE litespend.migrations SET version = 16 WHERE version = 17;
             UPDATE litespend.migrations SET version = 17 WHERE version = 18;
             UPDATE litespend.migrations SET version = 18 WHERE version = 19;
             DELETE FROM litespend.migrations WHERE version > {last};"
        )))
        .execute(&app.pool)
        .await
        .unwrap();
        app.execute(crate::spend_metrics::UNDO_DIVIDING).await;
        for (number, statement) in [
            (18, "DROP FUNCTION litespend.is_counted(date, text, integer)"),
            (17, "DROP TABLE litespend.moved_ids; ALTER TABLE litespend.late_ids DROP COLUMN is_lost"),
            (
                16,
                "DROP TABLE litespend.lifetime_usage, litespend.expected_usage; ALTER TABLE litespend.deltas DROP COLUMN is_update;
                 DROP FUNCTION litespend.finite(double precision), litespend.raise_most(),
                     litespend.add_words(text, tid[], date), litespend.add_lifetime(text, tid[], date),
                     litespend.add_expected(text, tid[], date)",
            ),
        ] {
            if number > last {
                sqlx::raw_sql(statement).execute(&app.pool).await.unwrap();
            }
        }
        assert_ne!(app.scalar(ledger).await, today);
        litespend::store::database::migrate(&mut app.pool.acquire().await.unwrap()).await.unwrap();
        assert_eq!(app.scalar(ledger).await, today, "up to {last}");
    }
}

#[tokio::test]
async fn the_recorded_answers_match_on_a_database_of_a93d767() {
    the_recorded_answers_match("a93d767").await;
}

#[tokio::test]
async fn the_recorded_answers_match_on_a_database_of_099c889() {
    the_recorded_answers_match("099c889").await;
}

#[tokio::test]
async fn the_recorded_answers_match_on_a_database_of_the_first_closed_days() {
    the_recorded_answers_match("4d43905").await;
}

// Migrations were still edited after these commits.

#[tokio::test]
async fn the_recorded_answers_match_on_a_database_of_the_first_log_by_month() {
    the_recorded_answers_match("ffdd985").await;
}

#[tokio::test]
async fn the_recorded_answers_match_on_a_database_of_the_first_rollups() {
    the_recorded_answers_match("063c22b").await;
}

#[tokio::test]
async fn the_recorded_answers_match_on_a_database_of_the_first_packed_days() {
    the_recorded_answers_match("243fd00").await;
}

#[tokio::test]
async fn the_recorded_answers_match_on_a_database_with_migrations_that_are_numbered_otherwise_today() {
    the_recorded_answers_match("0153c38").await;
}
