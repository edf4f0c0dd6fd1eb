//! Keys with users, teams and an organisation, for tests of booking.

use litespend::identity::hash_key;
use serde_json::json;
use sqlx::PgPool;

use super::insert;

/// The raw key with this number.
pub(crate) fn key(number: usize) -> String {
    format!("sk-writer-{number:04}")
}

/// Creates this many keys. Several keys share the same owners, so that they share counters.
pub(crate) async fn create(pool: &PgPool, keys: usize) {
    let organization = json!([{"organization_id": "org-1", "organization_alias": "Org", "budget_id": "b-1", "models": [],
                               "created_by": "test", "updated_by": "test"}]);
    insert(&mut pool.acquire().await.unwrap(), "LiteLLM_OrganizationTable", &organization).await;
    let teams: Vec<_> = (0..3)
        .map(|team| {
            json!({"team_id": format!("team-{team}"), "team_alias": format!("Team {team}"), "organization_id": "org-1",
                   "members_with_roles": [{"user_id": format!("user-{team}"), "role": "user"}]})
        })
        .collect();
    insert(&mut pool.acquire().await.unwrap(), "LiteLLM_TeamTable", &json!(teams)).await;
    let users: Vec<_> = (0..5)
        .map(|user| json!({"user_id": format!("user-{user}"), "user_role": "internal_user", "teams": [format!("team-{}", user % 3)]}))
        .collect();
    insert(&mut pool.acquire().await.unwrap(), "LiteLLM_UserTable", &json!(users)).await;
    let tokens: Vec<_> = (0..keys)
        .map(|number| {
            json!({"token": hash_key(&key(number)), "key_name": "sk-...", "user_id": format!("user-{}", number % 5),
                   "team_id": format!("team-{}", number % 3)})
        })
        .collect();
    insert(&mut pool.acquire().await.unwrap(), "LiteLLM_VerificationToken", &json!(tokens)).await;
}
