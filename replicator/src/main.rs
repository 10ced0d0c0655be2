//! The `thirdsite` command: the daemons of both sites and the operator's tools. The only crate that wires the others.
//!
//! Begin with [`args`], the command line; `source.rs` and `site.rs` are the daemons, `commands/` the rest.

mod args;
mod commands;
mod control;
mod failure;
mod identity;
mod output;
mod settings;
mod site;
mod source;
mod supervise;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::args::{
    Cli, Command, IdentityCommand, PairCommand, PointCommand, SeedCommand, SiteCommand, SourceCommand,
    StoreCommand, TapCommand, WanLabCommand,
};
use crate::failure::{Failure, exit};
use crate::settings::SettingsError;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter =
        EnvFilter::try_from_env("THIRDSITE_LOG").unwrap_or_else(|_| EnvFilter::new("info,quinn=warn"));
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_target(false).with_ansi(colours).init();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let failure = describe(&error);
            eprintln!("thirdsite: {}", failure.message);
            if let Some(hint) = failure.hint {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(failure.code)
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Identity(IdentityCommand::New { dir, name, json }) => identity::new(&dir, &name, json),
        Command::Identity(IdentityCommand::Show { dir, json }) => identity::show(&dir, json),
        Command::Source(SourceCommand::Run { config, accept_resize }) => {
            runtime()?.block_on(source::run(&config, &accept_resize))
        }
        Command::Source(SourceCommand::Limit { target, rate, group, agent, json }) => {
            commands::limit(&agent.control, &target, rate.0, group, json)
        }
        Command::Source(SourceCommand::Reload { accept_resize, agent, timeout, json }) => {
            commands::reload(&agent.control, accept_resize, timeout, json)
        }
        Command::Source(SourceCommand::Supervise { config }) => runtime()?.block_on(supervise::run(&config)),
        Command::Site(SiteCommand::Run { config }) => runtime()?.block_on(site::run(&config)),
        Command::Site(SiteCommand::Enroll { config, name, fingerprint, groups, json }) => {
            site::enroll(&config, &name, &fingerprint, groups, json)
        }
        Command::Site(SiteCommand::Expel { config, name }) => site::expel(&config, &name),
        Command::Cut(args) => commands::cut(&args),
        Command::Tap(TapCommand::Insert { device, tap, export }) => commands::insert(&device, &tap, &export),
        Command::Tap(TapCommand::Remove { device }) => commands::remove(&device),
        Command::Pair(PairCommand::Takeover { agent, timeout, json }) => {
            commands::takeover(&agent.control, timeout, json)
        }
        Command::Resync(args) => commands::resync(&args),
        Command::Seed(SeedCommand::Export(args)) => commands::export_seed(&args),
        Command::Seed(SeedCommand::Import(args)) => commands::import_seed(&args),
        Command::Status(args) => commands::status(&args),
        Command::Point(PointCommand::List { group, store, last, json }) => {
            commands::list_points(&group, &store, last, json)
        }
        Command::Export(args) => runtime()?.block_on(commands::export(&args)),
        Command::Restore(args) => commands::restore(&args),
        Command::Boot(args) => commands::boot(&args, &runtime()?),
        Command::Verify(args) => commands::verify(&args),
        Command::LinkTest(args) => commands::link_test(&args, &runtime()?),
        Command::WanLab(WanLabCommand::Run(args)) => commands::run_wan_lab(&args),
        Command::WanLab(WanLabCommand::Profiles { name, json }) => {
            commands::list_profiles(name.as_deref(), json)
        }
        Command::Store(StoreCommand::Check(args)) => commands::check(&args, &runtime()?),
        Command::Store(StoreCommand::Copy(args)) => commands::copy(&args),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("tokio").build()?)
}

/// What to print, and the exit code: that of the first failure in the chain, with everything that was said before it.
fn describe(error: &anyhow::Error) -> Failure {
    let message = format!("{error:#}");
    if let Some(failure) = error.chain().find_map(|cause| cause.downcast_ref::<Failure>()) {
        return Failure { message, ..failure.clone() };
    }
    if error.chain().any(|cause| cause.is::<SettingsError>()) {
        return Failure::new(exit::INVALID, message, "examples/ has commented settings for both sites");
    }
    Failure::new(exit::FAILED, message, "")
}
