//! `litespend serve --demo`: a server with made-up usage of this month and the last one, which is closed, in a home of its
//! own. It never touches another database or archive, whatever the environment names, and refuses a home with other data.

use std::path::PathBuf;

use chrono::{Days, Utc};
use secrecy::SecretString;

use crate::cli::args::ServeArgs;
use crate::cli::database::Failure;
use crate::cli::demo_data;
use crate::cli::demo_data::DemoDataArgs;
use crate::cli::output::say;

/// The master key, if none is set. It is publicly known, so it works on the loopback address only.
const MASTER_KEY: &str = "sk-1234";

/// The home, if none is given.
const HOME: &str = "litespend-demo";

/// Reports that are worth a look.
const READS: [&str; 5] = [
    "/global/spend/report?{range}",
    "/global/spend/report?{range}&group_by=customer",
    "/global/spend/tags?{range}",
    "/spend/logs?{range}",
    "/user/daily/activity?{range}",
];

/// Books the usage, closes last month, and points the server at both. A home with data that no demo made stays as it is.
pub fn prepare(args: &mut ServeArgs) -> Result<(), Failure> {
    let given = args.demo.clone().flatten();
    let beside = args.database.data_dir.as_ref().map(|usual| usual.with_file_name(HOME));
    let home = given.or(beside).unwrap_or_else(|| private_postgres::default_home_of(HOME));
    let home = std::path::absolute(&home).unwrap_or(home);
    if demo_data::has_other_data(&home) {
        return Err(Failure::Setting(anyhow::anyhow!(
            "--demo: {} has data that no demo of this version made: name another directory, as in --demo DIR, or remove \
             this one if it is an earlier demo or one whose first start was interrupted",
            home.display()
        )));
    }
    let archive = home.join("archive").to_string_lossy().into_owned();
    let database = &mut args.database;
    (database.database_url, database.direct_url, database.config) = (None, None, None);
    database.data_dir = Some(PathBuf::clone(&home));
    args.database_url_read_replica = None;
    args.upstream = None;
    demo_data::run(&DemoDataArgs::of_demo(&args.database, &home, &archive, args.demo_calls))?;
    args.books.archive.archive = Some(archive.clone());
    let has_key = args.master_key.is_some();
    args.master_key.get_or_insert_with(|| SecretString::from(MASTER_KEY));
    let key = if has_key { "the master key that you have set" } else { MASTER_KEY };
    let host = if args.host.is_unspecified() { "127.0.0.1".to_owned() } else { args.host.to_string() };
    let today = Utc::now().date_naive();
    let first = today.checked_sub_days(Days::new(30)).unwrap_or(today);
    say!("The data is in {} (remove the directory to start anew).", home.display());
    say!("Last month is closed; its rows are in {archive}, too. Once the server listens, try:");
    say!("  export KEY={} URL=http://{host}:{}", if has_key { "$LITELLM_MASTER_KEY" } else { MASTER_KEY }, args.port);
    for read in READS {
        let path = read.replace("{range}", &format!("start_date={first}&end_date={today}"));
        say!("  curl -s \"$URL{path}\" -H \"Authorization: Bearer $KEY\"");
    }
    if args.ui.is_some() {
        say!("LiteLLM's dashboard: http://{host}:{}/ui (user {}, password: {key})", args.port, args.ui_username);
    }
    Ok(())
}
