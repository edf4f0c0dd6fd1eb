//! The list of allowed client addresses, stored where LiteLLM stores it: in `LiteLLM_Config`, row `general_settings`,
//! key `allowed_ips`.

use serde_json::Value;
use sqlx::types::Json;
use sqlx::{Connection, PgConnection};

/// The stored list; `None` if no list is stored.
pub async fn read(connection: &mut PgConnection) -> Result<Option<Vec<String>>, sqlx::Error> {
    let stored: Option<Option<Json<Value>>> = sqlx::query_scalar(
        r#"SELECT param_value -> 'allowed_ips' FROM "LiteLLM_Config" WHERE param_name = 'general_settings'"#,
    )
    .fetch_optional(connection)
    .await?;
    Ok(stored.flatten().and_then(|Json(value)| texts(&value)))
}

/// Changes the list while it holds a lock on the row. `change` receives the stored list, or `initial` if none is
/// stored, and returns the new list. If it returns an error, nothing changes. Other settings in the row stay as they
/// are.
pub async fn update<E: From<sqlx::Error>>(
    connection: &mut PgConnection,
    initial: Option<Vec<String>>,
    change: impl FnOnce(Option<Vec<String>>) -> Result<Vec<String>, E>,
) -> Result<Vec<String>, E> {
    let mut transaction = connection.begin().await?;
    sqlx::query(
        r#"INSERT INTO "LiteLLM_Config" (param_name, param_value) VALUES ('general_settings', '{}')
           ON CONFLICT (param_name) DO NOTHING"#,
    )
    .execute(&mut *transaction)
    .await?;
    let stored: Option<Json<Value>> = sqlx::query_scalar(
        r#"SELECT param_value -> 'allowed_ips' FROM "LiteLLM_Config" WHERE param_name = 'general_settings' FOR UPDATE"#,
    )
    .fetch_one(&mut *transaction)
    .await?;
    let list = change(stored.and_then(|Json(value)| texts(&value)).or(initial))?;
    sqlx::query(
        r#"UPDATE "LiteLLM_Config"
           SET param_value = CASE WHEN jsonb_typeof(param_value) = 'object' THEN param_value ELSE '{}' END
                             || jsonb_build_object('allowed_ips', $1::jsonb)
           WHERE param_name = 'general_settings'"#,
    )
    .bind(Json(&list))
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(list)
}

fn texts(value: &Value) -> Option<Vec<String>> {
    let items = value.as_array()?;
    Some(items.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned)).collect())
}
