//! `litespend key`: virtual keys without LiteLLM. A server on the same database notices a change within seconds
//! ([`crate::http::auth::lookup::LIFETIME`]).

use chrono::Utc;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::accounts;
use crate::accounts::Fields;
use crate::cli::args::DatabaseArgs;
use crate::cli::database::Failure;
use crate::cli::database::{check_owner, with_pool};
use crate::cli::output::say;
use crate::cli::table::{print_table, short_time};
use crate::identity::key_filter;
use crate::store::Connection;
use crate::store::accounts as store;
use crate::store::accounts::{Conflict, DeletedBy, Row, text};

/// The largest number of keys in a list.
const MAX: i64 = 1000;

/// The subcommands of `key`.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Create a key and print it. It is shown only once, because only its hash is stored.
    Create(Box<CreateArgs>),
    /// List keys, newest first.
    List(DatabaseArgs),
    /// Block a key.
    Block(KeyArgs),
    /// Unblock a key.
    Unblock(KeyArgs),
    /// Delete a key. Its booked records stay.
    Delete(KeyArgs),
}

/// Whether tables that LiteLLM owns may be changed.
#[derive(Clone, Copy, Debug, Args)]
pub struct OwnerArgs {
    /// Allow changes of keys, teams and users in a database that LiteLLM owns.
    #[arg(long, env = "MANAGE_LITELLM_KEYS", value_parser = clap::builder::FalseyValueParser::new())]
    pub manage_litellm_keys: bool,
}

/// The arguments of `key create`.
#[derive(Clone, Debug, Args)]
pub struct CreateArgs {
    /// Alias of the key.
    #[arg(long)]
    alias: Option<String>,
    /// User that the key belongs to.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Team that the key belongs to.
    #[arg(long, value_name = "TEAM")]
    team: Option<String>,
    /// Validity of the key: 12h, 30d, 1mo. Default: unlimited.
    #[arg(long)]
    duration: Option<String>,
    /// Allow the key to read the reports of everyone's spend.
    #[arg(long)]
    read_global_spend: bool,
    /// Allow the key to state costs, and to book for other keys, users and teams. For LiteLLM's callback and other
    /// trusted sources.
    #[arg(long)]
    book_usage: bool,
    #[command(flatten)]
    owner: OwnerArgs,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// The arguments that name an existing key.
#[derive(Clone, Debug, Args)]
pub struct KeyArgs {
    /// The key, its hash or its alias.
    key: String,
    #[command(flatten)]
    owner: OwnerArgs,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// Runs a subcommand of `key`.
pub fn run(command: KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::Create(args) => create(&args),
        KeyCommand::List(args) => list(&args),
        KeyCommand::Block(args) => change(&args, Change::Block),
        KeyCommand::Unblock(args) => change(&args, Change::Unblock),
        KeyCommand::Delete(args) => change(&args, Change::Delete),
    }
}

/// The fields of a key, team or user, as a request would send them.
pub fn fields<const N: usize>(body: [(&str, Value); N]) -> Fields {
    Fields::new(body.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Lists the wrong fields in one line.
pub fn wrong(errors: &[crate::field_error::FieldError]) -> Failure {
    let part = |part: &Value| part.as_str().map_or_else(|| part.to_string(), str::to_owned);
    let field = |error: &crate::field_error::FieldError| {
        format!("{}: {}", error.loc.iter().skip(1).map(part).collect::<Vec<_>>().join("."), error.msg)
    };
    Failure::Setting(anyhow::anyhow!(errors.iter().map(field).collect::<Vec<_>>().join("; ")))
}

fn create(args: &CreateArgs) -> Result<(), Failure> {
    let mut body = Map::new();
    for (name, value) in
        [("key_alias", &args.alias), ("user_id", &args.user), ("team_id", &args.team), ("duration", &args.duration)]
    {
        body.insert(name.into(), json!(value));
    }
    let permissions = [("get_spend_routes", args.read_global_spend), ("book_usage", args.book_usage)];
    let given: Map<String, Value> =
        permissions.into_iter().filter(|(_, given)| *given).map(|(name, _)| (name.to_owned(), json!(true))).collect();
    if !given.is_empty() {
        body.insert("permissions".into(), Value::Object(given));
    }
    let mut fields = Fields::new(body);
    let (key, raw) = accounts::new_key(&mut fields, "command line", Utc::now());
    let key = fields.finish(key).map_err(|errors| wrong(&errors))?;
    with_pool(&args.database, async |pool, kind| {
        check_owner(kind, args.owner.manage_litellm_keys)?;
        let mut connection = pool.acquire().await.map_err(anyhow::Error::from)?;
        if let Some(user) = &key.user_id
            && store::find_user(&mut connection, user).await.map_err(anyhow::Error::from)?.is_none()
        {
            return Err(Failure::Runtime(anyhow::anyhow!(
                "the user {user} does not exist: create it with `litespend user create --id {user}`"
            )));
        }
        let created = store::create_key(&mut connection, &key).await.map_err(anyhow::Error::from)?;
        created.map_err(|conflict| {
            Failure::Runtime(anyhow::anyhow!(match conflict {
                Conflict::Alias => "another key has this alias",
                Conflict::NoTeam => "the team does not exist: create it with `litespend team create`",
                _ => "the key already exists",
            }))
        })?;
        say!("{raw}");
        Ok(())
    })
}

fn list(args: &DatabaseArgs) -> Result<(), Failure> {
    with_pool(args, async |pool, _| {
        let mut connection = pool.acquire().await.map_err(anyhow::Error::from)?;
        let keys = store::list_keys(&mut connection, MAX).await.map_err(anyhow::Error::from)?;
        let row = |key: &Row| {
            let spend = key.get("spend").and_then(Value::as_f64).unwrap_or(0.0);
            let blocked = key.get("blocked").and_then(Value::as_bool).unwrap_or(false);
            vec![
                text(key, "key_name").to_owned(),
                text(key, "key_alias").to_owned(),
                text(key, "user_id").to_owned(),
                text(key, "team_id").to_owned(),
                format!("{spend:.4}"),
                if blocked { "blocked" } else { "active" }.to_owned(),
                short_time(text(key, "expires")),
                text(key, "token").to_owned(),
            ]
        };
        let rows: Vec<_> = keys.iter().map(row).collect();
        print_table(&["KEY", "ALIAS", "USER", "TEAM", "SPEND (USD)", "STATE", "EXPIRES", "HASH"], &rows);
        Ok(())
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Change {
    Block,
    Unblock,
    Delete,
}

/// The hash of the named key. A raw key or a hash takes precedence over the alias of another key.
async fn token(connection: &mut Connection, named: &str) -> Result<String, crate::store::Error> {
    let token = key_filter(named);
    if store::exists_key(connection, &token).await? {
        return Ok(token);
    }
    let by_alias = store::tokens_of_aliases(connection, &[named.to_owned()]).await?;
    Ok(by_alias.into_iter().next().unwrap_or(token))
}

fn change(args: &KeyArgs, change: Change) -> Result<(), Failure> {
    with_pool(&args.database, async |pool, kind| {
        check_owner(kind, args.owner.manage_litellm_keys)?;
        let mut connection = pool.acquire().await.map_err(anyhow::Error::from)?;
        let token = token(&mut connection, &args.key).await.map_err(anyhow::Error::from)?;
        let done = match change {
            Change::Delete => {
                let by = DeletedBy { user: "command line", key: None };
                store::delete_keys(&mut connection, &[token], by).await.map_err(anyhow::Error::from)?
            }
            _ => store::set_blocked(&mut connection, &token, change == Change::Block)
                .await
                .map_err(anyhow::Error::from)?
                .is_some(),
        };
        if !done {
            return Err(Failure::Runtime(anyhow::anyhow!("the key does not exist")));
        }
        say!(
            "{}",
            match change {
                Change::Block => "blocked",
                Change::Unblock => "unblocked",
                Change::Delete => "deleted",
            }
        );
        Ok(())
    })
}
