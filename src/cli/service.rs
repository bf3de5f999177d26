//! `skein service`: this program as a service of systemd.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use clap::{Args, Subcommand};

use super::{Failure, output};

/// The unit, as it lies in `deploy/` too.
const UNIT: &str = include_str!("../../deploy/skein.service");
/// Where the unit says that things are.
const PROGRAM: &str = "usr/local/bin/skein";
const UNIT_FILE: &str = "etc/systemd/system/skein.service";
const SETTINGS: &str = "etc/skein";
const USER: &str = "skein";

/// Commands under `skein service`.
#[derive(Debug, Args)]
pub(super) struct ServiceArgs {
    #[command(subcommand)]
    command: ServiceCommand,
}

#[derive(Debug, Subcommand)]
enum ServiceCommand {
    /// Put the program, a hardened systemd unit and a user of its own in place
    Install(InstallArgs),
    /// Print the unit
    Print,
}

#[derive(Debug, Args)]
struct InstallArgs {
    /// Start it, now and at every boot
    #[arg(long, conflicts_with = "root")]
    now: bool,
    /// Only put the files below this directory, for an image or a package
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Replace a unit that somebody has changed; a drop-in (`systemctl edit skein`) survives without
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(args: ServiceArgs) -> Result<(), Failure> {
    match args.command {
        ServiceCommand::Print => output::print(UNIT),
        ServiceCommand::Install(args) => output::print(&install(&args)?),
    }
}

/// What was done, for people.
fn install(args: &InstallArgs) -> Result<String, Failure> {
    let live = args.root.is_none();
    let root = args.root.clone().unwrap_or_else(|| PathBuf::from("/"));
    if live && !rustix::process::geteuid().is_root() {
        let says = "installing a service needs root: sudo skein service install; or --root DIR to put the files elsewhere";
        return Err(Failure::new(says));
    }
    let mut said = String::new();
    let unit = root.join(UNIT_FILE);
    put_unit(&unit, args.force)?;
    put_program(&root.join(PROGRAM))?;
    let settings = root.join(SETTINGS);
    make_dir(&settings)?;
    for path in [&unit, &root.join(PROGRAM), &settings] {
        said += &format!("{}\n", path.display());
    }
    if !live {
        return Ok(said);
    }
    if !succeeds("getent", &["passwd", USER])? {
        let flags = ["--system", "--home-dir", "/var/lib/skein", "--shell", "/usr/sbin/nologin", USER];
        must("useradd", &flags)?;
        said += "made the system user skein\n";
    }
    // The token is put here by an administrator and read by the service.
    must("chown", &["root:skein", "/etc/skein"])?;
    fs::set_permissions(&settings, fs::Permissions::from_mode(0o750))
        .map_err(|e| failed("set the mode of", &settings, &e))?;
    must("systemctl", &["daemon-reload"])?;
    said += if args.now {
        must("systemctl", &["enable", "--now", "skein"])?;
        "started; see systemctl status skein\n"
    } else {
        "to join a cluster put SKEIN_NODE_JOIN=@/etc/skein/token into /etc/skein/environment and the token beside it;\n\
         then systemctl enable --now skein\n"
    };
    Ok(said)
}

fn put_unit(path: &Path, force: bool) -> Result<(), Failure> {
    match fs::read_to_string(path) {
        Ok(there) if there == UNIT => return Ok(()),
        Ok(_) if !force => {
            let says = "is another unit than this program brings: keep changes in a drop-in (systemctl edit skein) and \
                        replace it with --force";
            return Err(Failure::new(format!("{} {says}", path.display())));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("read", path, &error)),
    }
    replace(path, 0o644, |new| fs::write(new, UNIT))
}

/// A copy of this program; the file it runs from stays as it is.
fn put_program(path: &Path) -> Result<(), Failure> {
    let this = std::env::current_exe().map_err(|e| Failure::new(format!("cannot find this program: {e}")))?;
    let same = |one: &Path, other: &Path| Some(one.canonicalize().ok()? == other.canonicalize().ok()?);
    if same(&this, path) == Some(true) {
        return Ok(());
    }
    replace(path, 0o755, |new| fs::copy(&this, new).map(drop))
}

/// By a rename, so that a program that runs is no hindrance and nobody meets half a file.
fn replace(path: &Path, mode: u32, fill: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Failure> {
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    let new = path.with_extension("new");
    let done = fill(&new)
        .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&new, path));
    done.map_err(|error| failed("write", path, &error))
}

fn make_dir(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path).map_err(|error| failed("make", path, &error))
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot {what} {}: {error}", path.display()))
}

fn succeeds(program: &str, args: &[&str]) -> Result<bool, Failure> {
    let ran = Command::new(program).args(args).output();
    let ran =
        ran.map_err(|e| Failure::new(format!("cannot run {program}: {e}; is this a machine with systemd?")))?;
    Ok(ran.status.success())
}

fn must(program: &str, args: &[&str]) -> Result<(), Failure> {
    if succeeds(program, args)? {
        return Ok(());
    }
    Err(Failure::new(format!(
        "`{program} {}` failed: run it by hand to see why, then this again",
        args.join(" ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(root: &Path, force: bool) -> InstallArgs {
        InstallArgs { now: false, root: Some(root.to_owned()), force }
    }

    #[test]
    fn files_are_put_in_place_and_a_changed_unit_is_not_overwritten() {
        let home = tempfile::tempdir().unwrap();
        let said = install(&args(home.path(), false)).unwrap();
        assert_eq!(said.lines().count(), 3, "{said}");
        let unit = home.path().join(UNIT_FILE);
        assert_eq!(fs::read_to_string(&unit).unwrap(), UNIT);
        let program = home.path().join(PROGRAM);
        assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o777, 0o755);
        install(&args(home.path(), false)).unwrap();

        fs::write(&unit, "[Service]\nExecStart=/bin/true\n").unwrap();
        let refused = install(&args(home.path(), false)).unwrap_err();
        assert!(refused.to_string().contains("--force"), "{refused}");
        install(&args(home.path(), true)).unwrap();
        assert_eq!(fs::read_to_string(&unit).unwrap(), UNIT);
        let strays: Vec<_> = fs::read_dir(unit.parent().unwrap()).unwrap().collect();
        assert_eq!(strays.len(), 1, "{strays:?}");
    }

    #[test]
    fn the_unit_names_the_places_that_are_filled() {
        for line in [
            format!("ExecStart=/{PROGRAM} start"),
            format!("EnvironmentFile=-/{SETTINGS}/environment"),
            format!("User={USER}"),
            "Type=notify".to_owned(),
        ] {
            assert!(UNIT.lines().any(|there| there == line), "{line}");
        }
    }
}
