//! Resets the spend counters of all keys and teams.

use sqlx::{Connection, PgConnection};

/// Sets the spend of every key and team to 0 in one transaction. Does not touch rows whose spend is 0 already. Returns
/// the number of changed keys and of changed teams.
pub async fn reset(connection: &mut PgConnection) -> Result<(u64, u64), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let keys = sqlx::query(
        r#"UPDATE "LiteLLM_VerificationToken" SET spend = 0, updated_at = now() AT TIME ZONE 'UTC' WHERE spend <> 0"#,
    )
    .execute(&mut *transaction)
    .await?
    .rows_affected();
    let teams = sqlx::query(
        r#"UPDATE "LiteLLM_TeamTable" SET spend = 0, updated_at = now() AT TIME ZONE 'UTC' WHERE spend <> 0"#,
    )
    .execute(&mut *transaction)
    .await?
    .rows_affected();
    transaction.commit().await?;
    Ok((keys, teams))
}
