//! The data directory: private to its owner, and held by one process at a time.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::store::SECRET_FILES;

const LOCK: &str = "lock";
/// How long a lock that another has is waited for. A process that is being started holds copies of
/// all open files of the one that starts it until it runs its own program, so a lock may outlive
/// its holder by some milliseconds; a skein process that runs has it for as long as it runs.
const PATIENCE: Duration = Duration::from_millis(500);

/// A data directory that must not be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error("{} is in use by another skein process{}; stop it or choose another --data-dir", .path.display(), .holder)]
    InUse {
        /// The directory.
        path: PathBuf,
        /// ` (pid N)` if known.
        holder: String,
    },
    /// Others may read or write what is in it.
    #[error("{} has mode {mode:o}: others can get at its keys; run `chmod {want:o} {}`", .path.display(), .path.display())]
    TooOpen {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they should be.
        want: u32,
    },
    /// The operating system refused.
    #[error("cannot use {}: {source}", .path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A locked data directory. The lock goes with the value (and with the process).
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory (mode 0700) if it is not there, checks that it and the keys in it are
    /// private, and locks it. Blocking, for half a second if another process has it; for process start.
    /// Touches nothing but the lock file
    /// and, where it may, the directory's mode.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let at = |path: &Path| {
            let path = path.to_path_buf();
            move |source| DataDirError::Io { path, source }
        };
        let missing: Vec<&Path> = path.ancestors().take_while(|dir| is_missing(dir)).collect();
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))?;
        // Its name is as durable as what comes into it, also where a process before this one made it and
        // came no further. A directory above that was there, and may not be read or knows no sync, is the
        // owner's affair.
        for dir in missing.iter().copied().chain([path]) {
            match sync_name(dir) {
                Err(error) if is_not_ours(&error) && !missing.contains(&dir) => {}
                synced => synced.map_err(at(dir))?,
            }
        }
        let mode = fs::metadata(path).map_err(at(path))?.permissions().mode() & 0o777;
        // mkdir without -m leaves 0755; the owner may close it, and nobody else can.
        if mode & 0o077 != 0 && fs::set_permissions(path, fs::Permissions::from_mode(0o700)).is_err() {
            return Err(DataDirError::TooOpen { path: path.to_path_buf(), mode, want: 0o700 });
        }
        let lock = Self::lock(path)?;
        for name in SECRET_FILES {
            let file = path.join(name);
            match fs::symlink_metadata(&file) {
                Ok(meta) if meta.permissions().mode() & 0o077 != 0 => {
                    let mode = meta.permissions().mode() & 0o777;
                    return Err(DataDirError::TooOpen { path: file, mode, want: 0o600 });
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&file)(error)),
                _ => {}
            }
        }
        Ok(Self { path: path.to_path_buf(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn lock(dir: &Path) -> Result<File, DataDirError> {
        let path = dir.join(LOCK);
        let io = |source| DataDirError::Io { path: path.clone(), source };
        let mut open = OpenOptions::new();
        let mut file =
            open.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(io)?;
        match lock_soon(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let read = (&file).take(20).read_to_string(&mut pid).is_ok();
                let known = read && !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit());
                let holder = if known { format!(" (pid {pid})") } else { String::new() };
                return Err(DataDirError::InUse { path: dir.to_path_buf(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        // The number is for the message above only; the lock is what counts.
        file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
        write!(file, "{}", std::process::id()).map_err(io)?;
        Ok(file)
    }
}

fn is_not_ours(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput)
}

fn is_missing(dir: &Path) -> bool {
    !dir.as_os_str().is_empty() && !dir.exists()
}

/// Makes the name of a directory durable.
fn sync_name(dir: &Path) -> io::Result<()> {
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// As [`File::try_lock`], after up to [`PATIENCE`].
fn lock_soon(file: &File) -> Result<(), TryLockError> {
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if since.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        process::Command,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    #[test]
    fn one_holder_at_a_time_and_private() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let dir = DataDir::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let error = DataDir::open(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(dir);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn a_process_that_is_being_started_does_not_keep_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let program = std::env::current_exe().unwrap();
                    Command::new(program).args(["--exact", "no test"]).output().unwrap();
                }
            });
            let opened: Vec<_> = (0..3_000).map(|_| DataDir::open(dir.path()).map(drop)).collect();
            done.store(true, Ordering::Relaxed);
            opened.into_iter().for_each(|opened| opened.unwrap());
        });
    }

    #[test]
    fn an_open_directory_is_closed_and_an_open_key_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("d");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        drop(DataDir::open(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let key = path.join("node.key");
        fs::write(&key, b"x").unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        let error = DataDir::open(&path).unwrap_err();
        assert!(matches!(error, DataDirError::TooOpen { mode: 0o640, want: 0o600, .. }), "{error}");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        DataDir::open(&path).unwrap();
    }
}
