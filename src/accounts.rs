//! Creates keys, teams and users without LiteLLM. Checks the fields that a request or a command line states, and
//! converts them to rows. Keys are random; they are shown once and stored as their SHA-256. In a database that LiteLLM
//! owns, nothing is changed without `--manage-litellm-keys`.

use std::collections::HashSet;

use chrono::{DateTime, Months, TimeDelta, Utc};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::field_error::FieldError;
use crate::identity::SESSION_LINK;
use crate::identity::SESSION_TEAM;
use crate::identity::{MASTER_KEY_ALIAS, allowed_routes, hash_key};
use crate::store::accounts::{NewKey, NewMember, NewTeam, NewUser};

/// The names of LiteLLM's roles.
pub const ROLES: [&str; 4] = ["proxy_admin", "proxy_admin_viewer", "internal_user", "internal_user_viewer"];

/// The types of keys, each with the group of routes to which it limits a key.
const KEY_TYPES: [(&str, Option<&str>); 4] = [
    ("default", None),
    ("llm_api", Some("llm_api_routes")),
    ("management", Some("management_routes")),
    ("read_only", Some("info_routes")),
];

/// The largest number of bytes in an id or a name.
const NAME_BYTES: usize = 256;

/// The message for changes to a database that LiteLLM owns.
pub const LITELLM_OWNS: &str = "LiteLLM owns this database and manages its keys, teams and users. \
                                Start with --manage-litellm-keys to change them here as well.";

/// Generates a key: `sk-` followed by 132 random bits.
pub fn generate_key() -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bytes: [u8; 22] = rand::random();
    let character = |byte: &u8| ALPHABET.get(usize::from(byte & 63)).copied().map_or('A', char::from);
    format!("sk-{}", bytes.iter().map(character).collect::<String>())
}

/// The form in which a key is displayed later: `sk-...1234`.
pub fn shortened(key: &str) -> String {
    let characters: Vec<char> = key.chars().collect();
    let end: String = characters.iter().skip(characters.len().saturating_sub(4)).collect();
    format!("sk-...{end}")
}

/// The end of a validity period that begins at `now`. The duration is a number and `s`, `m`, `h`, `d`, `w` or `mo`
/// (calendar months), as in LiteLLM. It may be 0.
pub fn expiry(duration: &str, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let duration = duration.trim();
    let digits = duration.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = duration.split_at_checked(digits)?;
    let number: i64 = number.parse().ok()?;
    let seconds = match unit {
        "mo" => return now.checked_add_months(Months::new(u32::try_from(number).ok()?)),
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return None,
    };
    now.checked_add_signed(TimeDelta::try_seconds(number.checked_mul(seconds)?)?)
}

/// The fields of a body, and the errors found in them. Fields that no method asks for are ignored, and null counts as
/// missing, as in LiteLLM.
#[derive(Debug)]
pub struct Fields {
    body: Map<String, Value>,
    errors: Vec<FieldError>,
}

impl Fields {
    /// Starts reading the fields of a body.
    pub fn new(body: Map<String, Value>) -> Self {
        Self { body, errors: Vec::new() }
    }

    /// Returns `value`, or the errors if any field is wrong.
    pub fn finish<T>(self, value: T) -> Result<T, Vec<FieldError>> {
        if self.errors.is_empty() { Ok(value) } else { Err(self.errors) }
    }

    /// Records that a field is wrong.
    pub fn reject(&mut self, name: &str, kind: &'static str, message: impl Into<String>) {
        self.errors.push(FieldError::body(name, kind, message));
    }

    /// Records that the body as a whole is wrong, unless a field of it is.
    pub fn reject_whole(&mut self, message: impl Into<String>) {
        if self.errors.is_empty() {
            self.errors.push(FieldError::body_part([], "value_error", message));
        }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.body.remove(name).filter(|value| !value.is_null())
    }

    /// A short string. An empty one counts as missing.
    pub fn text(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) if text.is_empty() => None,
            Value::String(text) if !fits(&text) => {
                self.reject(
                    name,
                    "string_too_long",
                    format!("String should have at most {NAME_BYTES} bytes and no NUL"),
                );
                None
            }
            Value::String(text) => Some(text),
            _ => {
                self.reject(name, "string_type", "Input should be a valid string");
                None
            }
        }
    }

    /// A short string that must be given.
    pub fn required_text(&mut self, name: &str) -> String {
        let before = self.errors.len();
        let text = self.text(name);
        if text.is_none() && self.errors.len() == before {
            self.reject(name, "missing", "Field required");
        }
        text.unwrap_or_default()
    }

    /// A list of at most 1000 short strings.
    pub fn texts(&mut self, name: &str) -> Vec<String> {
        let mut texts = Vec::new();
        for (index, item) in self.items(name).into_iter().enumerate() {
            match item {
                Value::String(text) if fits(&text) => texts.push(text),
                _ => {
                    let message = format!("Input should be a valid string of at most {NAME_BYTES} bytes, without NUL");
                    self.errors.push(FieldError::body_part(
                        [Value::from(name), Value::from(index)],
                        "string_type",
                        message,
                    ));
                }
            }
        }
        texts
    }

    /// A list of at most 1000 values.
    fn items(&mut self, name: &str) -> Vec<Value> {
        match self.take(name) {
            None => Vec::new(),
            Some(Value::Array(items)) if items.len() <= 1000 => items,
            Some(_) => {
                self.reject(name, "list_type", "Input should be a valid list of at most 1000 items");
                Vec::new()
            }
        }
    }

    /// A JSON object without NUL characters.
    pub fn object(&mut self, name: &str) -> Map<String, Value> {
        match self.take(name) {
            None => Map::new(),
            Some(value @ Value::Object(_)) if crate::json_bounds::has_nul(&value) => {
                self.reject(name, "dict_type", "Input should not contain a NUL character");
                Map::new()
            }
            Some(Value::Object(fields)) => fields,
            Some(_) => {
                self.reject(name, "dict_type", "Input should be a valid dictionary");
                Map::new()
            }
        }
    }

    /// An amount in USD, 0 or more.
    pub fn amount(&mut self, name: &str) -> Option<f64> {
        let amount = self.take(name)?.as_f64().filter(|amount| *amount >= 0.0);
        if amount.is_none() {
            self.reject(name, "float_type", "Input should be a valid number, 0 or more");
        }
        amount
    }

    /// A boolean.
    pub fn boolean(&mut self, name: &str) -> Option<bool> {
        let value = self.take(name)?.as_bool();
        if value.is_none() {
            self.reject(name, "bool_type", "Input should be a valid boolean");
        }
        value
    }
}

/// Whether a string is short, and can be stored.
fn fits(text: &str) -> bool {
    text.len() <= NAME_BYTES && !text.contains('\0')
}

/// The type of a key, and the group of routes to which it limits the key. A type of null stands for no type.
fn key_type(fields: &mut Fields) -> (Option<String>, Option<&'static str>) {
    if !fields.body.contains_key("key_type") {
        return (Some("default".into()), None);
    }
    let Some(given) = fields.text("key_type") else { return (None, None) };
    let found = KEY_TYPES.iter().find(|(name, _)| *name == given);
    if found.is_none() {
        let names = KEY_TYPES.map(|(name, _)| name).join(", ");
        fields.reject("key_type", "enum", format!("Input should be one of {names}"));
    }
    (Some(given), found.and_then(|(_, group)| *group))
}

/// The patterns of `allowed_routes`. A pattern that matches nothing is a mistake, and some readers would treat it as no
/// limit.
fn route_patterns(fields: &mut Fields) -> Vec<String> {
    let patterns = fields.texts("allowed_routes");
    if !patterns.iter().all(|pattern| allowed_routes::is_pattern(pattern)) {
        let message = "Input should be a path (/spend/logs), a prefix (/spend/*) or a group of routes, without spaces";
        fields.reject("allowed_routes", "value_error", message);
    }
    patterns
}

/// The alias of a key. An alias that looks like a raw key or the hash of a key is refused, because it could be mistaken
/// for that key.
fn alias(fields: &mut Fields) -> Option<String> {
    let alias = fields.text("key_alias")?;
    let is_hash = alias.len() == 64 && alias.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hash || alias.starts_with("sk-") || alias == MASTER_KEY_ALIAS {
        fields.reject("key_alias", "value_error", "An alias must not look like a key or the hash of one");
    }
    Some(alias)
}

/// The metadata of a key. The field that binds a session is reserved.
fn metadata(fields: &mut Fields) -> Map<String, Value> {
    let metadata = fields.object("metadata");
    if metadata.contains_key(SESSION_LINK) {
        fields.reject("metadata", "value_error", format!("The field {} is reserved", SESSION_LINK));
    }
    metadata
}

/// The id of a team. The id of the team of sessions is reserved.
fn team_id(fields: &mut Fields) -> Option<String> {
    let team_id = fields.text("team_id")?;
    if team_id == SESSION_TEAM {
        fields.reject("team_id", "value_error", format!("The team {} is reserved", SESSION_TEAM));
    }
    Some(team_id)
}

/// Reads a key to be created. Returns it with the raw key, which is not stored anywhere.
pub fn new_key(fields: &mut Fields, by: &str, now: DateTime<Utc>) -> (NewKey, String) {
    let given = fields.text("key");
    if given.as_ref().is_some_and(|key| !key.starts_with("sk-") || key.len() < 16) {
        fields.reject("key", "value_error", "A key must start with 'sk-' and have at least 16 characters");
    }
    let raw = given.unwrap_or_else(generate_key);
    let duration = fields.text("duration");
    let expires = duration.as_ref().and_then(|duration| expiry(duration, now));
    if duration.is_some() && expires.is_none() {
        fields.reject(
            "duration",
            "value_error",
            "Input should be a number followed by s, m, h, d, w or mo, for example 30d",
        );
    }
    let (key_type, group) = key_type(fields);
    let patterns = route_patterns(fields);
    let key = NewKey {
        token: hash_key(&raw),
        key_name: shortened(&raw),
        key_alias: alias(fields),
        user_id: fields.text("user_id"),
        team_id: team_id(fields),
        organization_id: fields.text("organization_id"),
        expires: expires.map(|expires| expires.naive_utc()),
        models: fields.texts("models"),
        allowed_routes: group.map_or(patterns, |group| vec![group.to_owned()]),
        key_type,
        max_budget: fields.amount("max_budget"),
        metadata: metadata(fields),
        permissions: fields.object("permissions"),
        blocked: fields.boolean("blocked"),
        created_by: by.to_owned(),
    };
    (key, raw)
}

/// The members of a new team. Who is named twice is a member once.
fn members(fields: &mut Fields) -> Vec<NewMember> {
    let (mut members, mut known) = (Vec::new(), HashSet::new());
    for (index, item) in fields.items("members_with_roles").iter().enumerate() {
        match member(item) {
            Ok(member) if !known.insert(member.user_id.clone()) => {}
            Ok(member) => members.push(member),
            Err((part, kind, message)) => {
                let place = [Value::from("members_with_roles"), Value::from(index)];
                let path = place.into_iter().chain(part.map(Value::from));
                fields.errors.push(FieldError::body_part(path, kind, message));
            }
        }
    }
    members
}

/// What is wrong with a member: the field, if it is one field, the kind of error, and the message.
type WrongMember = (Option<&'static str>, &'static str, &'static str);

fn member(item: &Value) -> Result<NewMember, WrongMember> {
    let wrong = |message: &'static str| -> WrongMember { (None, "value_error", message) };
    let parts = item.as_object().ok_or(wrong("Input should be a valid dictionary"))?;
    let given = |name: &str| parts.get(name).filter(|value| !value.is_null());
    let text = |name: &'static str| match given(name) {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() && fits(text) => Ok(Some(text.clone())),
        Some(_) => Err((Some(name), "string_type", "Input should be a valid, short string")),
    };
    let user_id = text("user_id")?.ok_or(wrong("A member must have a user_id"))?;
    let user_email = text("user_email")?;
    match given("role").map(Value::as_str) {
        Some(Some(role @ ("admin" | "user"))) => Ok(NewMember { user_id, user_email, role: role.to_owned() }),
        Some(_) => Err((Some("role"), "literal_error", "Input should be 'admin' or 'user'")),
        None => Err((Some("role"), "missing", "Field required")),
    }
}

/// Makes the creator of a team an admin of it, unless the team lists the creator already.
pub fn add_creator(team: &mut NewTeam, creator: Option<&str>) {
    if let Some(user_id) = creator.filter(|creator| team.members.iter().all(|member| member.user_id != *creator)) {
        team.members.push(NewMember { user_id: user_id.to_owned(), user_email: None, role: "admin".into() });
    }
}

/// Reads a team to be created.
pub fn new_team(fields: &mut Fields) -> NewTeam {
    NewTeam {
        team_id: team_id(fields).unwrap_or_else(|| Uuid::new_v4().to_string()),
        team_alias: fields.text("team_alias"),
        organization_id: fields.text("organization_id"),
        members: members(fields),
        models: fields.texts("models"),
        max_budget: fields.amount("max_budget"),
        metadata: fields.object("metadata"),
        blocked: fields.boolean("blocked").unwrap_or(false),
    }
}

/// Reads a user to be created.
pub fn new_user(fields: &mut Fields) -> NewUser {
    let user_role = fields.text("user_role");
    if user_role.as_ref().is_some_and(|role| !ROLES.contains(&role.as_str())) {
        fields.reject("user_role", "literal_error", format!("Input should be one of {}", ROLES.join(", ")));
    }
    let teams = fields.texts("teams");
    if teams.iter().any(|team| team == SESSION_TEAM) {
        fields.reject("teams", "value_error", format!("The team {} is reserved", SESSION_TEAM));
    }
    NewUser {
        user_id: fields.text("user_id").unwrap_or_else(|| Uuid::new_v4().to_string()),
        user_email: fields.text("user_email"),
        user_alias: fields.text("user_alias"),
        user_role,
        teams,
        models: fields.texts("models"),
        max_budget: fields.amount("max_budget"),
        metadata: fields.object("metadata"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_keys_are_random_and_shown_shortened() {
        let (one, other) = (generate_key(), generate_key());
        assert_ne!(one, other);
        assert_eq!(one.len(), 25);
        assert_eq!(shortened("sk-abcdefgh1234"), "sk-...1234");
    }

    #[test]
    fn validities_are_read_as_litellm_writes_them() {
        let now: DateTime<Utc> = "2026-03-01T00:00:00Z".parse().expect("a timestamp");
        for (text, expected) in
            [("30s", 30), ("2h", 7200), ("0d", 0), ("30d", 2_592_000), ("1mo", 31 * 86_400), ("3mo", 92 * 86_400)]
        {
            assert_eq!(expiry(text, now).map(|end| (end - now).num_seconds()), Some(expected));
        }
        for text in ["", "d", "-1d", "1y", "99999999999999999999d", "9999999999999d", "9999999999mo", "4000000000mo"] {
            assert_eq!(expiry(text, now), None, "{text}");
        }
    }
}
