//! The command line: parses it, starts what it asks for, and turns failures into one line and an exit code.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use litespend::cli;
use litespend::cli::database::Failure;
use litespend::cli::serve;
use litespend::cli::{Cli, Command};

/// The C library's allocator keeps what a burst took for hours. jemalloc gives it back after a second (`.cargo/config.toml`).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Says why it failed. Who does not read it is not waited for.
fn complain(why: &str) {
    let line = format!("litespend: {why}");
    let (said, saying) = mpsc::channel();
    std::thread::spawn(move || {
        eprintln!("{line}");
        let _ = said.send(());
    });
    let _ = saying.recv_timeout(Duration::from_secs(1));
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are no errors; everything else is one line.
        Err(error) if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            error.exit()
        }
        Err(mut error) => {
            // A URL that can't be used may hold a password all the same.
            let is_secret = |text: &str| text.contains("://") && text.contains('@');
            if matches!(error.get(ContextKind::InvalidValue), Some(ContextValue::String(text)) if is_secret(text)) {
                error.insert(ContextKind::InvalidValue, ContextValue::String("***".to_owned()));
            }
            complain(&serve::in_one_line(&error.to_string()));
            return ExitCode::from(2);
        }
    };
    let result = match cli.command {
        Command::Serve(args) => serve::serve(*args),
        Command::Migrate(args) => serve::migrate(&args),
        Command::Key(command) => cli::keys::run(command),
        Command::Team(command) => cli::teams::run(command),
        Command::User(command) => cli::users::run(command),
        Command::Booking(command) => cli::booking::run(command),
        Command::Import(args) => cli::import::run(&args),
        Command::DemoData(args) => cli::demo_data::run(&args),
        Command::Rollups(command) => cli::rollups::run(command),
        Command::Indexes(command) => cli::indexes::run(command),
        Command::Prices(command) => cli::prices::run(&command),
        Command::Cost(args) => cli::cost::run(&args),
        Command::Openapi => serve::print_openapi(),
        Command::Healthcheck(args) => serve::healthcheck(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Setting(error)) => {
            complain(&format!("{error:#}"));
            ExitCode::from(2)
        }
        Err(Failure::Runtime(error)) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
