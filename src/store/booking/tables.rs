//! The columns that the tables of an older LiteLLM lack. A booking leaves out what they cannot hold.

use std::collections::BTreeSet;

use sqlx::{FromRow, PgConnection};

/// What the tables of a database can hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Missing columns as `table.column`.
    missing: BTreeSet<String>,
}

#[derive(FromRow)]
struct Missing {
    relation: String,
    name: String,
}

impl Tables {
    /// Looks up which of the columns that a booking writes are missing.
    pub async fn find(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let missing: Vec<Missing> = sqlx::query_as(
            r#"
            SELECT needed.relation, needed.name
            FROM (VALUES ('LiteLLM_SpendLogs', 'request_duration_ms'), ('LiteLLM_SpendLogs', 'organization_id'),
                         ('LiteLLM_SpendLogs', 'litellm_call_id'), ('LiteLLM_SpendLogs', 'agent_id'),
                         ('LiteLLM_SpendLogs', 'mcp_namespaced_tool_name'),
                         ('LiteLLM_SpendLogs', 'proxy_server_request'), ('LiteLLM_SpendLogs', 'session_id'),
                         ('LiteLLM_SpendLogs', 'status'),
                         ('LiteLLM_VerificationToken', 'total_spend'), ('LiteLLM_VerificationToken', 'last_active'),
                         ('LiteLLM_DeletedVerificationToken', 'token'), ('LiteLLM_TeamMembership', 'total_spend'),
                         ('LiteLLM_DailyTagSpend', 'request_id')
                  UNION ALL
                  SELECT relation, name
                  FROM unnest(ARRAY['LiteLLM_DailyUserSpend', 'LiteLLM_DailyTeamSpend', 'LiteLLM_DailyTagSpend']) AS relation,
                       unnest(ARRAY['mcp_namespaced_tool_name', 'endpoint', 'total_response_time_ms', 'timed_requests'])
                           AS name
                 ) AS needed (relation, name)
            WHERE NOT EXISTS (
                SELECT FROM pg_attribute AS a
                WHERE a.attrelid = to_regclass('"' || needed.relation || '"') AND a.attname = needed.name
                  AND NOT a.attisdropped
            )
            "#,
        )
        .fetch_all(connection)
        .await?;
        Ok(Self { missing: missing.into_iter().map(|row| format!("{}.{}", row.relation, row.name)).collect() })
    }

    /// The missing columns, as `table.column`.
    pub fn missing(&self) -> impl Iterator<Item = &str> {
        self.missing.iter().map(String::as_str)
    }

    /// Whether the table has the column.
    pub(super) fn has(&self, table: &str, column: &str) -> bool {
        !self.missing.contains(&format!("{table}.{column}"))
    }

    /// A statement without what the table lacks. In `template`, `«column:text»` stands for `text` if the table has the
    /// column.
    pub(super) fn fit(&self, table: &str, template: &str) -> String {
        let mut parts = template.split('«');
        let mut statement = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (optional, rest) = part.split_once('»').unwrap_or((part, ""));
            let (column, text) = optional.split_once(':').unwrap_or((optional, ""));
            if self.has(table, column) {
                statement.push_str(text);
            }
            statement.push_str(rest);
        }
        statement
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_leaves_out_what_its_table_lacks() {
        let template = "INSERT INTO a (id«new:, new»«old:, old») VALUES (1«new:, $1::text[]»«old:, 3»)";
        let tables = Tables { missing: BTreeSet::from(["a.new".to_owned(), "b.old".to_owned()]) };
        assert_eq!(tables.fit("a", template), "INSERT INTO a (id, old) VALUES (1, 3)");
        assert_eq!(tables.fit("b", template), "INSERT INTO a (id, new) VALUES (1, $1::text[])");
        assert_eq!(Tables::default().fit("a", template), "INSERT INTO a (id, new, old) VALUES (1, $1::text[], 3)");
    }
}
