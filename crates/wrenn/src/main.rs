//! `wrenn`: the long-lived roles and the client commands. `main` reads the command line,
//! dispatches, and prints errors in one place.

mod cli;
mod client;
mod client_file;
mod commands;
mod images;
mod memory;
mod output;
mod platform;
mod settings;
mod sys;

use clap::Parser;
use cli::{Cli, Command};
use output::Form;
use std::process::ExitCode;

fn main() -> ExitCode {
    // The conversion child locks itself in, which needs a process with one thread.
    if std::env::args_os().nth(1).is_some_and(|word| word == host_agent::images::COMMAND) {
        return host_agent::images::run_conversion_child();
    }
    let form = |json| if json { Form::Json } else { Form::Human };
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Arguments after `--` belong to another command, so a `--json` there is not ours.
            let mut ours = std::env::args_os().take_while(|word| word != "--");
            return output::unreadable(&error, form(ours.any(|word| word == "--json")));
        }
    };
    let form = form(cli.json);
    match run(cli, form) {
        Ok(code) => code,
        Err(error) => {
            output::error(&error, form);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli, form: Form) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(dispatch(cli, form));
    // A thread that reads a terminal cannot be stopped, so the runtime does not wait for it.
    runtime.shutdown_background();
    code
}

/// Prepares the process for a long-lived role with many clients: limits of open files and memory.
fn begin_role() {
    daemon::raise_open_files();
    memory::map_large_blocks();
}

async fn dispatch(cli: Cli, form: Form) -> anyhow::Result<ExitCode> {
    let var = |name: &str| std::env::var(name).ok();
    let client_file = client_file::path(var);
    let client = || client::Client::new(&cli.api, &client_file);
    match cli.command {
        Command::Capsule(command) => return commands::capsule(command, &client()?, form).await,
        Command::Top(top) => commands::top(top, &client()?, form).await?,
        Command::Code(code) => return commands::code(code, &client()?, form).await,
        Command::Template(command) => return commands::template(command, &client()?, form).await,
        Command::Registry(command) => commands::registry(command, &client()?, form).await?,
        Command::Snapshot(command) => commands::snapshots(command, &client()?, form).await?,
        Command::Host(command) => commands::host(command, &client()?, form).await?,
        Command::Account(command) => {
            commands::account(command, &client()?, &client_file, form).await?;
        }
        Command::Team(command) => commands::team(command, &client()?, &client_file, form).await?,
        Command::Key(command) => commands::key(command, &client()?, form).await?,
        Command::Audit(audit) => commands::audit(audit, &client()?, form).await?,
        Command::Events(wanted) => commands::events(wanted, &client()?, form).await?,
        Command::User(command) => commands::user(command, &client()?, form).await?,
        Command::Doctor(doctor) => {
            let path = var("PATH").unwrap_or_default();
            let config = doctor.agent.config(&doctor.folder.dir)?;
            return commands::doctor(&config, &path, client().ok(), (doctor.probe, form)).await;
        }
        Command::Up(up) => {
            let up = *up;
            begin_role();
            let _logs = up.log.begin("wrenn")?;
            let up = platform::Up {
                dir: up.folder.dir,
                envd: up.envd.find(),
                agent: up.agent,
                control_plane: up.control_plane,
                plaintext: up.plaintext,
                client_file,
            };
            platform::up(up).await?;
        }
        Command::Stop(folder) => {
            tokio::task::spawn_blocking(move || platform::stop(&folder.dir)).await??;
        }
        Command::Clean(clean) => {
            platform::clean(&clean.folder.dir, &clean.agent, &client_file).await?;
        }
        Command::ClientFile => output::line(&client_file.display().to_string()),
        Command::ControlPlane(role) => {
            begin_role();
            let _logs = role.log.begin("wrenn-control-plane")?;
            platform::control_plane(&role.control_plane, role.plaintext, &client_file).await?;
        }
        Command::Agent(role) => {
            begin_role();
            let _logs = role.log.begin("wrenn-agent")?;
            let (address, control_plane) = (role.address, role.control_plane);
            let register = role.register.filter(|token| !token.is_empty());
            let register =
                register.map(|token| platform::Register { token, address, control_plane });
            platform::agent(&role.folder.dir, &role.agent, register, role.plaintext).await?;
        }
        Command::Pki(cli::Pki::Init(folder)) => {
            let made = platform::pki::init(&folder.dir)?;
            let (cert, key) = platform::pki::paths(&folder.dir);
            output::line(&format!("WRENN_CA_CERT={}", cert.display()));
            output::line(&format!("WRENN_CA_KEY={}", key.display()));
            if !made {
                output::note("the authority already exists");
            }
        }
        Command::Pki(cli::Pki::Wildcard(wildcard)) => {
            let (cert, key) = platform::pki::wildcard(&wildcard.folder.dir, &wildcard.domain)?;
            output::line(&format!("WRENN_TLS_CERT={}", cert.display()));
            output::line(&format!("WRENN_TLS_KEY={}", key.display()));
        }
        Command::Image(command) => image(command).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn image(command: cli::Image) -> anyhow::Result<()> {
    match command {
        cli::Image::Build(build) => {
            let envd = build.envd.find();
            let envd = envd.ok_or_else(|| anyhow::anyhow!("set the path of envd with --envd"))?;
            let dir = build.folder.dir;
            tokio::task::spawn_blocking(move || images::build(&dir, &envd, build.refresh))
                .await??;
        }
        cli::Image::Import(import) => {
            let digest = images::import(&import).await?;
            output::line(&digest);
        }
    }
    Ok(())
}
