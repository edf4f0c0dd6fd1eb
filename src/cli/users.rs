//! `litespend user`: users without LiteLLM.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::accounts;
use crate::accounts::ROLES;
use crate::cli::args::DatabaseArgs;
use crate::cli::database::Failure;
use crate::cli::database::{check_owner, with_pool};
use crate::cli::keys::{OwnerArgs, fields, wrong};
use crate::cli::output::say;
use crate::cli::table::{print_table, short_time};
use crate::store::accounts as store;
use crate::store::accounts::{Conflict, Row, text};

/// The largest number of users in a list.
const MAX: i64 = 1000;

/// The subcommands of `user`.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Create a user and print the user's id.
    Create(Box<CreateArgs>),
    /// List users, newest first.
    List(DatabaseArgs),
}

/// The arguments of `user create`.
#[derive(Clone, Debug, Args)]
pub struct CreateArgs {
    /// Id of the user. Default: a random id.
    #[arg(long)]
    id: Option<String>,
    /// E-mail address of the user.
    #[arg(long)]
    email: Option<String>,
    /// Name of the user.
    #[arg(long)]
    alias: Option<String>,
    /// Role of the user, which determines the user's rights.
    #[arg(long, value_parser = ROLES, default_value = "internal_user")]
    role: String,
    /// Teams that the user joins.
    #[arg(long, value_delimiter = ',', value_name = "TEAM,...")]
    teams: Vec<String>,
    #[command(flatten)]
    owner: OwnerArgs,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// Runs a subcommand of `user`.
pub fn run(command: UserCommand) -> Result<(), Failure> {
    match command {
        UserCommand::Create(args) => create(&args),
        UserCommand::List(args) => list(&args),
    }
}

fn create(args: &CreateArgs) -> Result<(), Failure> {
    let mut fields = fields([
        ("user_id", json!(args.id)),
        ("user_email", json!(args.email)),
        ("user_alias", json!(args.alias)),
        ("user_role", json!(args.role)),
        ("teams", json!(args.teams)),
    ]);
    let user = accounts::new_user(&mut fields);
    let user = fields.finish(user).map_err(|errors| wrong(&errors))?;
    with_pool(&args.database, async |pool, kind| {
        check_owner(kind, args.owner.manage_litellm_keys)?;
        let mut connection = pool.acquire().await.map_err(anyhow::Error::from)?;
        let created = store::create_user(&mut connection, &user).await.map_err(anyhow::Error::from)?;
        created.map_err(|conflict| {
            Failure::Runtime(anyhow::anyhow!(match conflict {
                Conflict::Email => "another user has this e-mail address",
                Conflict::NoTeam => "the team does not exist: create it with `litespend team create`",
                _ => "the user already exists",
            }))
        })?;
        say!("{}", user.user_id);
        Ok(())
    })
}

fn list(args: &DatabaseArgs) -> Result<(), Failure> {
    with_pool(args, async |pool, _| {
        let mut connection = pool.acquire().await.map_err(anyhow::Error::from)?;
        let users = store::list_users(&mut connection, MAX).await.map_err(anyhow::Error::from)?;
        let row = |user: &Row| {
            let teams = user.get("teams").and_then(Value::as_array).cloned().unwrap_or_default();
            vec![
                text(user, "user_id").to_owned(),
                text(user, "user_email").to_owned(),
                text(user, "user_role").to_owned(),
                teams.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
                format!("{:.4}", user.get("spend").and_then(Value::as_f64).unwrap_or(0.0)),
                short_time(text(user, "created_at")),
            ]
        };
        let rows: Vec<_> = users.iter().map(row).collect();
        print_table(&["USER", "E-MAIL", "ROLE", "TEAMS", "SPEND (USD)", "CREATED"], &rows);
        Ok(())
    })
}
