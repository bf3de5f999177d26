//! Section `data`: where the node keeps what must survive.

use std::path::PathBuf;

use super::section::section;

section! {
    /// Where the node keeps what must survive.
    Data in "data" {
        /// The data directory. Default: `/var/lib/skein` as root, else `$XDG_DATA_HOME/skein`.
        dir: PathBuf = PathBuf::new(),
    }
}

/// What to do when there is no default.
pub(super) const NO_DEFAULT_DIR: &str =
    "no data directory: neither HOME nor XDG_DATA_HOME is set; name one with --data-dir or SKEIN_DATA_DIR";

/// The directory used when nobody names one.
pub(super) fn default_dir(root: bool, env: &impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    if root {
        return Some(PathBuf::from("/var/lib/skein"));
    }
    // A relative XDG_DATA_HOME is to be ignored, says the specification.
    let named = |name: &str| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
    named("XDG_DATA_HOME")
        .or_else(|| named("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("skein"))
}

impl Data {
    /// The unix socket of the node's HTTP edge; its file permissions are the authentication.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("skein.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_directory_follows_user_and_xdg() {
        let env = |set: &'static [(&str, &str)]| {
            move |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
        };
        assert_eq!(default_dir(true, &env(&[("HOME", "/h")])), Some("/var/lib/skein".into()));
        assert_eq!(default_dir(false, &env(&[("HOME", "/h")])), Some("/h/.local/share/skein".into()));
        let both = env(&[("HOME", "/h"), ("XDG_DATA_HOME", "/x")]);
        assert_eq!(default_dir(false, &both), Some("/x/skein".into()));
        let relative = env(&[("HOME", "/h"), ("XDG_DATA_HOME", "x")]);
        assert_eq!(default_dir(false, &relative), Some("/h/.local/share/skein".into()));
        assert_eq!(default_dir(false, &env(&[])), None);
    }
}
