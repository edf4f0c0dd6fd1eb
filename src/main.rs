//! The entry point: parses the command line, runs the subcommand, and reports a failure in one line with an exit code.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use litespend::cli;
use litespend::cli::database::Failure;
use litespend::cli::output;
use litespend::cli::serve;
use litespend::cli::{Cli, Command};

/// jemalloc returns memory to the system one second after a burst (`.cargo/config.toml`). The C library's allocator
/// would keep it for hours.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Prints why the program failed. Waits at most one second for standard error, in case nobody reads it.
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
        // Help and version are not errors. Every other outcome is one line.
        Err(error) if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            error.exit()
        }
        Err(mut error) => {
            // Even an invalid URL may contain a password.
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
        Command::UpgradeDatabase(args) => cli::upgrade_database::run(args),
        Command::Key(command) => cli::keys::run(command),
        Command::Team(command) => cli::teams::run(command),
        Command::User(command) => cli::users::run(command),
        Command::Booking(command) => cli::booking::run(command),
        Command::Import(args) => cli::import::run(&args),
        Command::DemoData(args) => cli::demo_data::run(&args),
        Command::Rollups(command) => cli::rollups::run(command),
        Command::Indexes(command) => cli::indexes::run(command),
        Command::Log(command) => cli::log::run(command),
        Command::Books(command) => cli::books::run(command),
        Command::Archive(command) => cli::archive::run(command),
        Command::Prices(command) => cli::prices::run(&command),
        Command::Cost(args) => cli::cost::run(&args),
        Command::Openapi => serve::print_openapi(),
        Command::MetricsReference => cli::metrics_reference::run(),
        Command::Healthcheck(args) => serve::healthcheck(&args),
    };
    match result.and_then(|()| output::finish().map_err(Failure::Runtime)) {
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
