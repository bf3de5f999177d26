//! The file system of one node: small enough to be filled, and one that can lose its power.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};
use skeinmesh::cli::Failure;

use crate::commands::run;

/// Room for the log's reserve, and little more.
pub const BYTES: u64 = 256 << 20;
/// `EXT4_IOC_SHUTDOWN` without writing anything back: what was not synced is gone, and everything
/// fails until it is mounted again. Perl, because the call would need `unsafe` here, and because it
/// is on every Debian.
const PULL_THE_PLUG: &str = r#"my $how = pack("L", 2); open(my $d, "<", $ARGV[0]) or die "open: $!\n"; ioctl($d, 0x8004587D, $how) or die "ioctl: $!\n";"#;
/// What fills it.
const BALLAST: &str = "ballast";
/// Written and never synced, to see that a power loss loses something.
const CANARY: &str = "canary";

/// See the module.
#[derive(Debug)]
pub struct Disk {
    kind: Kind,
    image: PathBuf,
    at: PathBuf,
}

/// What it is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ext4 in a file: forgets what was not synced when its power goes.
    Ext4,
    /// Memory, where loop devices cannot be had: cannot lose its power.
    Memory,
}

impl Disk {
    /// Makes it in `home`, and mounts it.
    pub fn make(home: &Path, name: &str, kind: Kind) -> Result<Self, Failure> {
        let disk = Self { kind, image: home.join(format!("{name}.img")), at: home.join(name) };
        fs::create_dir_all(&disk.at)?;
        if kind == Kind::Ext4 {
            format(&disk.image)?;
        }
        disk.mount()?;
        Ok(disk)
    }

    /// Mounts at `at` what lies in `image` already.
    pub fn on(image: PathBuf, at: &Path) -> Result<Self, Failure> {
        let disk = Self { kind: Kind::Ext4, image, at: at.to_owned() };
        fs::create_dir_all(&disk.at)?;
        disk.mount()?;
        Ok(disk)
    }

    /// The bytes of an empty one.
    pub fn formatted(home: &Path) -> Result<Vec<u8>, Failure> {
        let image = home.join("empty.img");
        format(&image)?;
        let bytes = fs::read(&image)?;
        fs::remove_file(&image)?;
        Ok(bytes)
    }

    /// Whether ext4 on a loop device works here; the reason if not.
    pub fn try_ext4(home: &Path) -> Result<(), String> {
        let tried = (|| {
            let disk = Self::make(home, "trial", Kind::Ext4)?;
            disk.lose_power()?;
            disk.unmount()?;
            disk.mount()?;
            disk.unmount()?;
            fs::remove_file(&disk.image)?;
            fs::remove_dir(&disk.at)?;
            Ok(())
        })();
        tried.map_err(|error: Failure| error.to_string())
    }

    /// The node's data directory.
    pub fn data(&self) -> PathBuf {
        self.at.join("data")
    }

    fn mount(&self) -> Result<(), Failure> {
        match self.kind {
            Kind::Ext4 => run("mount", &["-o", "loop", path(&self.image)?, path(&self.at)?]),
            Kind::Memory => {
                run("mount", &["-t", "tmpfs", "-o", &format!("size={BYTES}"), "node", path(&self.at)?])
            }
        }
    }

    /// Nobody may have a file open.
    pub fn unmount(&self) -> Result<(), Failure> {
        run("umount", &[path(&self.at)?])
    }

    /// From now on nothing can be read or written, and what was not synced is lost.
    pub fn lose_power(&self) -> Result<(), Failure> {
        run("perl", &["-e", PULL_THE_PLUG, path(&self.at)?])
    }

    /// The power is back. Nobody may have a file open.
    pub fn power_up(&self) -> Result<(), Failure> {
        self.unmount()?;
        self.mount()
    }

    /// Takes all space.
    pub fn fill(&self) -> io::Result<()> {
        let ballast = File::create(self.at.join(BALLAST))?;
        let (mut len, mut step) = (0, BYTES / 4);
        while step >= 4096 {
            match fallocate(&ballast, FallocateFlags::empty(), len, step) {
                Ok(()) => len += step,
                Err(Errno::NOSPC) => step /= 2,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Gives it back.
    pub fn free(&self) -> io::Result<()> {
        fs::remove_file(self.at.join(BALLAST))
    }

    /// Empties it. The node must not run.
    pub fn wipe(&self) -> io::Result<()> {
        fs::remove_dir_all(self.data())
    }

    /// Writes a file without syncing it.
    pub fn set_canary(&self) -> io::Result<()> {
        fs::write(self.at.join(CANARY), "not synced")
    }

    /// Whether the file is still there; it is removed.
    pub fn take_canary(&self) -> bool {
        let path = self.at.join(CANARY);
        // A file without its bytes is gone too.
        let whole = fs::read(&path).is_ok_and(|bytes| !bytes.is_empty());
        let _ = fs::remove_file(path);
        whole
    }
}

impl Drop for Disk {
    /// Also under a node that still runs: a directory with a mount on it could not be removed.
    fn drop(&mut self) {
        // It may be unmounted already, and at the latest the namespace ends it.
        let _ = path(&self.at).and_then(|at| run("umount", &["-l", at]));
    }
}

fn format(image: &Path) -> Result<(), Failure> {
    File::create(image)?.set_len(BYTES)?;
    run("mkfs.ext4", &["-q", "-F", "-m", "0", path(image)?])
}

fn path(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| Failure::usage("the directory for temporary files is not named in UTF-8"))
}
