//! `litespend team`: teams without LiteLLM.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::accounts;
use crate::cli::args::DatabaseArgs;
use crate::cli::database::Failure;
use crate::cli::database::{check_owner, with_pool};
use crate::cli::keys::{OwnerArgs, fields, wrong};
use crate::cli::output::say;
use crate::cli::table::{print_table, short_time};
use crate::store::accounts as store;
use crate::store::accounts::{Row, TeamsOf, text};

/// The largest number of teams in a list.
const MAX: i64 = 1000;

/// The subcommands of `team`.
#[derive(Debug, Subcommand)]
pub enum TeamCommand {
    /// Create a team and print its id.
    Create(Box<CreateArgs>),
    /// List teams, newest first.
    List(DatabaseArgs),
}

/// The arguments of `team create`.
#[derive(Clone, Debug, Args)]
pub struct CreateArgs {
    /// Name of the team.
    alias: String,
    /// Id of the team. Default: a random id.
    #[arg(long)]
    id: Option<String>,
    /// Users that belong to the team. Users that do not exist are created.
    #[arg(long, value_delimiter = ',', value_name = "USER,...")]
    members: Vec<String>,
    /// Users that may read the team's spend.
    #[arg(long, value_delimiter = ',', value_name = "USER,...")]
    admins: Vec<String>,
    #[command(flatten)]
    owner: OwnerArgs,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// Runs a subcommand of `team`.
pub fn run(command: TeamCommand) -> Result<(), Failure> {
    match command {
        TeamCommand::Create(args) => create(&args),
        TeamCommand::List(args) => list(&args),
    }
}

fn create(args: &CreateArgs) -> Result<(), Failure> {
    let member = |role: &'static str| move |user: &String| json!({"user_id": user, "role": role});
    let members: Vec<Value> =
        args.admins.iter().map(member("admin")).chain(args.members.iter().map(member("user"))).collect();
    let mut fields = fields([
        ("team_id", json!(args.id)),
        ("team_alias", json!(args.alias)),
        ("members_with_roles", members.into()),
    ]);
    let team = accounts::new_team(&mut fields);
    let team = fields.finish(team).map_err(|errors| wrong(&errors))?;
    with_pool(&args.database, async |pool, kind| {
        check_owner(kind, args.owner.manage_litellm_keys)?;
        let mut connection = pool.acquire().await.map_err(anyhow::Error::from)?;
        let created = store::create_team(&mut connection, &team).await.map_err(anyhow::Error::from)?;
        created.map_err(|_| Failure::Runtime(anyhow::anyhow!("the team {} already exists", team.team_id)))?;
        say!("{}", team.team_id);
        Ok(())
    })
}

fn list(args: &DatabaseArgs) -> Result<(), Failure> {
    with_pool(args, async |pool, _| {
        let mut connection = pool.acquire().await.map_err(anyhow::Error::from)?;
        let teams = store::list_teams(&mut connection, TeamsOf::Everybody, MAX).await.map_err(anyhow::Error::from)?;
        let count = |team: &Row, name: &str| team.get(name).and_then(Value::as_array).map_or(0, Vec::len).to_string();
        let row = |team: &Row| {
            vec![
                text(team, "team_id").to_owned(),
                text(team, "team_alias").to_owned(),
                count(team, "members_with_roles"),
                count(team, "keys"),
                format!("{:.4}", team.get("spend").and_then(Value::as_f64).unwrap_or(0.0)),
                short_time(text(team, "created_at")),
            ]
        };
        let rows: Vec<_> = teams.iter().map(row).collect();
        print_table(&["TEAM", "ALIAS", "MEMBERS", "KEYS", "SPEND (USD)", "CREATED"], &rows);
        Ok(())
    })
}
