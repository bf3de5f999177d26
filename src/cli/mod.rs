//! The command line: parses, runs one command, tells the shell how it went.

mod archive;
mod auth;
mod backup;
mod bench;
mod ca;
mod client;
mod db;
pub mod demo;
#[cfg(feature = "mdns")]
mod discover;
mod doctor;
#[cfg(all(test, feature = "mdns"))]
mod documented;
mod failure;
mod finalise;
mod flags;
mod inspect;
mod logs;
mod node;
mod output;
mod processes;
mod progress;
mod query;
mod recover;
mod restore;
mod service;
pub mod start;
mod status;
mod stranger;
mod table;
mod target;
mod token;
mod trust;
mod watch;
mod write;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub use client::{Answer, Client, ClientError};
pub use failure::Failure;
pub use flags::{DemoArgs, StartArgs};
pub use logs::install as install_logs;
pub use target::{Target, TargetArgs};

/// A clustered time-series store.
#[derive(Debug, Parser)]
#[command(name = "skein", version, disable_help_subcommand = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node: make a cluster, join one, or come back to it
    Start(Box<StartArgs>),
    /// Run three nodes on this machine, feed them, kill the writer and count
    Demo(DemoArgs),
    /// Show the cluster as a node sees it
    Status(status::StatusArgs),
    /// Look for what is wrong, or soon will be, and say what to do; exit code 1 if something is
    Doctor(doctor::DoctorArgs),
    /// Make, list and take back join tokens
    Token(token::TokenArgs),
    /// Make, list and take back API tokens
    Auth(auth::AuthArgs),
    /// Show and rotate the cluster's certificate authority
    Ca(ca::CaArgs),
    /// Show whom mDNS finds on each interface, and why an address is not used
    #[cfg(feature = "mdns")]
    Discover(discover::DiscoverArgs),
    /// List, drain, promote, demote and remove nodes
    Node(node::NodeArgs),
    /// End an upgrade: from now on no member goes back to an older version, and none joins
    #[command(visible_alias = "finalize")]
    Finalise(finalise::FinaliseArgs),
    /// Let another voter write and lead, before the one that does is stopped or moved
    Transfer(node::TransferArgs),
    /// List and drop databases, and say how long they keep their points
    Db(db::DbArgs),
    /// Carry on with one surviving voter when a majority is gone for good
    Recover(recover::RecoverArgs),
    /// Put everything, as it is at one position, into a file; or say whether such a file is whole
    Backup(backup::BackupArgs),
    /// Make a new cluster of a backup, or databases of a running one
    Restore(restore::RestoreArgs),
    /// Write line protocol from a file or standard input
    Write(write::WriteArgs),
    /// Ask in SQL
    Query(query::QueryArgs),
    /// Put this program in place as a service of systemd
    Service(service::ServiceArgs),
    /// Measure a cluster: one of its own on this machine, or one that runs
    Bench(bench::BenchArgs),
    /// Print what makes a shell complete this command line
    Completions(CompletionsArgs),
    /// Write the manual: a page for each command, for man(1)
    Man(ManArgs),
    /// Look into a data directory while no node runs on it; mend a damaged log
    Inspect(inspect::InspectArgs),
}

/// Flags of `skein completions`.
#[derive(Debug, clap::Args)]
struct CompletionsArgs {
    /// bash, elvish, fish, powershell or zsh
    shell: clap_complete::Shell,
}

/// `skein completions`: for the shell's startup file or its directory of completions.
fn completions(args: CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "skein", &mut script);
    output::bytes(&script)
}

/// Flags of `skein man`.
#[derive(Debug, clap::Args)]
struct ManArgs {
    /// Directory for the pages, such as /usr/local/share/man/man1; made if it is not there
    dir: std::path::PathBuf,
}

/// `skein man`: skein.1, skein-start.1 and so on.
fn manual(args: &ManArgs) -> Result<(), Failure> {
    let failed = |e| Failure::new(format!("cannot write the manual to {}: {e}", args.dir.display()));
    std::fs::create_dir_all(&args.dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), &args.dir).map_err(failed)
}

/// The program: what `main` returns to the shell. 0 done, 1 failed, 2 wrong usage, 74 disk.
pub fn main() -> ExitCode {
    // Prints help, version and wrong usage itself, the latter with exit code 2.
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::new(format!("cannot start the async runtime: {error}")).report(),
    };
    let done = runtime.block_on(run(cli.command));
    // A blocking read of standard input must not hold the process.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Start(args) => start::run(*args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Service(args) => service::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Token(args) => token::run(args).await,
        Command::Auth(args) => auth::run(args).await,
        Command::Ca(args) => ca::run(args).await,
        #[cfg(feature = "mdns")]
        Command::Discover(args) => discover::run(args).await,
        Command::Node(args) => node::run(args).await,
        Command::Finalise(args) => finalise::run(args).await,
        Command::Transfer(args) => node::transfer(args).await,
        Command::Db(args) => db::run(args).await,
        Command::Recover(args) => recover::run(args).await,
        Command::Backup(args) => backup::run(args).await,
        Command::Restore(args) => restore::run(args).await,
        Command::Write(args) => write::run(args).await,
        Command::Query(args) => query::run(args).await,
        Command::Bench(args) => bench::run(args).await,
        Command::Completions(args) => completions(args),
        Command::Man(args) => manual(&args),
        Command::Inspect(args) => inspect::run(args).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commands whose output is for nobody but the one it is made for.
    const OWN_OUTPUT: [&str; 6] = [
        "skein start",
        "skein query",
        "skein completions",
        "skein service install",
        "skein service print",
        "skein man",
    ];

    #[test]
    fn the_manual_has_a_page_for_each_command() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("man1");
        manual(&ManArgs { dir: below.clone() }).unwrap();
        let page = |name: &str| std::fs::read_to_string(below.join(name)).unwrap();
        assert!(
            page("skein.1").contains("skein\\-start(1)")
                && page("skein-node-drain.1").contains("\\-\\-data\\-dir")
        );
        for name in ["skein-start.1", "skein-token-create.1", "skein-backup-verify.1"] {
            assert!(page(name).starts_with(".ie") || page(name).contains(".TH "), "{name}");
        }
    }

    #[test]
    fn every_command_has_json_for_machines() {
        let mut left = vec![("skein".to_owned(), Cli::command())];
        let mut seen = 0;
        while let Some((path, command)) = left.pop() {
            let below = command
                .get_subcommands()
                .map(|below| (format!("{path} {}", below.get_name()), below.clone()));
            left.extend(below);
            if command.get_subcommands().next().is_some() || OWN_OUTPUT.contains(&path.as_str()) {
                continue;
            }
            seen += 1;
            assert!(command.get_arguments().any(|flag| flag.get_id() == "json"), "{path} has no --json");
        }
        assert!(seen > 30, "{seen} commands");
    }

    #[test]
    fn the_commands_hold_together() {
        Cli::command().debug_assert();
        for line in [
            "skein start",
            "skein start --data-dir /d --name a --mesh [::]:7400 --http 0.0.0.0:8086 --join t --seed a:1 --seed b:2 \
             --role reader --no-mdns --profile wan --http-open --http-tls node --http-cert c --http-key k --log-format json --config /c --check",
            "skein demo --nodes 3 --seconds 20 --no-failover --json",
            "skein status --json --watch --url http://x:1",
            "skein status --url https://x:1 --ca ca.pem",
            "skein doctor",
            "skein doctor --json --data-dir /d",
            "skein token create --role reader --ttl 2h --uses 3",
            "skein token generate --role reader --seed a:1 --seed b:2 --ttl 7d --uses 3",
            "skein token list --json",
            "skein token revoke 0000000000000007",
            "skein auth create --scope read",
            "skein auth create --name t --scope read,write --scope write --database a -d b --ttl 90d --json",
            "skein auth list --json",
            "skein auth revoke 0000000000000007",
            "skein ca rotate",
            "skein ca rotate --drop b --drop aaaa --data-dir /d",
            "skein ca status --json",
            "skein backup",
            "skein backup --output /b -d home --database away --local --json --data-dir /d",
            "skein backup verify FILE --json",
            "skein restore FILE --data-dir /new",
            "skein restore FILE -d home --as again --merge --json --url http://x:1",
            "skein recover",
            "skein recover --data-dir /d --seed a:1 --seed b:2 --accept-loss --from-here --json",
            "skein node list",
            "skein db list --json",
            "skein db drop home",
            "skein db retention home",
            "skein db retention home 30d --json",
            "skein node remove aaaa --data-dir /d",
            "skein node demote b",
            "skein node promote b --url http://x:1",
            "skein finalise",
            "skein finalize --json --data-dir /d",
            "skein transfer",
            "skein transfer b --data-dir /d",
            "skein node drain b",
            "skein node undrain b --url http://x:1",
            "skein write -d home --precision s FILE",
            "skein write -d home --ack all -",
            "skein query -d home --format csv --consistency linearizable SELECT",
            "skein bench write --connections 12 --rows 1000 --seconds 10 --ack local --json",
            "skein bench write --url http://a:1 http://b:2 -d home",
            "skein bench forward --nodes 5 --rounds 3",
            "skein bench latency --writes 500 --ack memory --url http://a:1",
            "skein bench failover --kills 20 --profile fast --json",
            "skein bench flood --seconds 30 --rate 5000 --handshakes 50 --json",
            "skein bench start --starts 3 --idle 5 --requests 100 --json",
            "skein bench growth --tables 1,10 --no-series --voters 1,2,3 --seconds 2 --plot /tmp/growth.svg",
            "skein bench join --joins 5 --at-once 0 --role voter --no-lan --json",
            "skein inspect wal --data-dir /d --json",
            "skein inspect wal --repair --accept-loss",
            "skein completions bash",
            "skein man /tmp/man1",
            "skein inspect raft --json",
            "skein inspect manifest",
            "skein inspect snapshot --data-dir /d",
        ] {
            Cli::try_parse_from(line.split_whitespace()).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        for line in [
            "skein",
            "skein fly",
            "skein query",
            "skein token revoke",
            "skein ca",
            "skein auth create",
            "skein auth create --scope king",
            "skein auth revoke",
            "skein db",
            "skein db drop",
            "skein backup verify",
            "skein backup --json verify FILE",
            "skein restore",
            "skein recover --from-here",
            "skein query --format xml q",
            "skein bench",
            "skein bench write --ack most",
            "skein write --ack most",
            "skein bench write --rows 0",
            "skein bench write --nodes 3 --url http://a:1",
            "skein bench failover --url http://a:1",
            "skein bench failover --nodes 2",
            "skein bench flood --nodes 1",
            "skein bench join --role gateway",
            "skein bench growth --voters 4",
            "skein bench growth --no-tables --tables 1",
            "skein inspect",
            "skein completions",
            "skein completions cmd",
            "skein doctor --watch",
            "skein inspect wal --accept-loss",
            "skein inspect raft --repair",
        ] {
            let error = Cli::try_parse_from(line.split_whitespace()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
