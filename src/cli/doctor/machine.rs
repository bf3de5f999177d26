//! This machine: the interfaces that discovery speaks on, and the disk of the data directory.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

use super::Finding;
use crate::{
    config::Config,
    discovery::interfaces::{self, Nic, Rules, Unused},
};

/// Syncs that are measured.
const SYNCS: usize = 20;
/// A sync that takes longer makes every write slow.
const SLOW_SYNC: Duration = Duration::from_millis(20);
/// A writer whose record waits for about this long gives its office away.
const BAD_SYNC: Duration = Duration::from_millis(300);

/// Which interfaces mDNS uses, which not, and why.
pub(super) fn interfaces(config: &Config) -> Finding {
    const CHECK: &str = "interfaces";
    if !config.discovery.mdns {
        return Finding::skip(CHECK, "mDNS is switched off (discovery.mdns): peers are found by seeds");
    }
    let rules = Rules {
        bind: config.mesh.listen.ip(),
        allow: config.discovery.allow_interfaces.clone(),
        deny: config.discovery.deny_interfaces.clone(),
    };
    match interfaces::of_this_machine() {
        Ok(there) => judge_interfaces(&interfaces::judge(&there, &rules)),
        Err(error) => Finding::skip(CHECK, format!("cannot list them: {error}")),
    }
}

fn judge_interfaces(judged: &[(&Nic, Option<Unused>)]) -> Finding {
    const CHECK: &str = "interfaces";
    let shown = |nic: &Nic| format!("{} {}", nic.name, nic.address);
    let used: Vec<String> =
        judged.iter().filter(|(_, unused)| unused.is_none()).map(|(nic, _)| shown(nic)).collect();
    let left: Vec<String> = judged
        .iter()
        .filter_map(|(nic, unused)| Some((nic, (*unused)?)))
        .filter(|(_, unused)| *unused != Unused::Loopback)
        .map(|(nic, unused)| format!("{} ({unused})", shown(nic)))
        .collect();
    let left = if left.is_empty() { String::new() } else { format!("; not: {}", left.join(", ")) };
    let beyond = judged.iter().any(|(nic, unused)| unused.is_none() && !nic.address.is_loopback());
    if beyond {
        return Finding::ok(CHECK, format!("mDNS speaks on {}{left}", used.join(", ")));
    }
    Finding::warn(
        CHECK,
        format!("mDNS reaches nobody else from here{left}"),
        "Nodes on the same LAN are not found by themselves.",
        "name the right one in discovery.allow_interfaces, or use --seed HOST:PORT",
    )
}

/// Space and sync times of the data directory, if it is on this machine and may be looked at.
pub(super) async fn disk(config: &Config, elsewhere: bool) -> Vec<Finding> {
    let dir = config.data.dir.clone();
    if elsewhere || !dir.is_dir() {
        let why = if elsewhere {
            "the node is named by --url: run this on its machine, with --data-dir".to_owned()
        } else {
            format!("there is no data directory {} here (--data-dir names another)", dir.display())
        };
        return vec![Finding::skip("disk", why)];
    }
    let segment = config.storage.wal_segment.0;
    let looked = tokio::task::spawn_blocking(move || vec![space(&dir, segment), syncs(&dir)]).await;
    looked.unwrap_or_else(|error| vec![Finding::skip("disk", format!("cannot be looked at: {error}"))])
}

fn space(dir: &Path, segment: u64) -> Finding {
    match rustix::fs::statvfs(dir) {
        Ok(stat) => judge_space(dir, stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize, segment),
        Err(error) => Finding::skip("space", format!("cannot ask how much {} has: {error}", dir.display())),
    }
}

fn judge_space(dir: &Path, free: u64, all: u64, segment: u64) -> Finding {
    const CHECK: &str = "space";
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let percent = free.saturating_mul(100) / all.max(1);
    let says =
        format!("{:.1} GiB of {:.1} GiB free below {} ({percent} %)", gib(free), gib(all), dir.display());
    let todo = "make space, shorten what is kept (storage.wal_keep_bytes), or move the data directory";
    if free < 2 * segment {
        let means = "There is no room for the next segments of the log: this node soon refuses writes.";
        return Finding::fail(CHECK, says, means, todo);
    }
    if percent < 10 {
        let means = "A full disk takes no writes; office moves to a voter that has space, if one is level.";
        return Finding::warn(CHECK, says, means, todo);
    }
    Finding::ok(CHECK, says)
}

fn syncs(dir: &Path) -> Finding {
    match measure(dir) {
        Ok(times) => judge_syncs(times),
        Err(error) => {
            Finding::skip("fsync", format!("cannot write to {}: {error} (not as this user?)", dir.display()))
        }
    }
}

/// Appends a page and syncs it, again and again, in a file of its own that has no name any more.
fn measure(dir: &Path) -> io::Result<Vec<Duration>> {
    let mut file: File = tempfile::tempfile_in(dir)?;
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        file.write_all(&[0x5a; 4096])?;
        let since = Instant::now();
        file.sync_data()?;
        times.push(since.elapsed());
    }
    Ok(times)
}

fn judge_syncs(mut times: Vec<Duration>) -> Finding {
    const CHECK: &str = "fsync";
    times.sort_unstable();
    let (Some(longest), Some(median)) = (times.last().copied(), times.get(times.len() / 2).copied()) else {
        return Finding::skip(CHECK, "nothing was measured");
    };
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let says =
        format!("{:.1} ms in the middle, {:.1} ms at most, of {}", ms(median), ms(longest), times.len());
    let todo = "use a disk with power-loss protection, or one that nothing else writes to";
    if median > BAD_SYNC {
        let means = "A writer on this disk would lose its office again and again.";
        return Finding::fail(CHECK, says, means, todo);
    }
    if median > SLOW_SYNC {
        let means =
            "Every write that is acknowledged waits for a sync here, if this node is in the majority.";
        return Finding::warn(CHECK, says, means, todo);
    }
    Finding::ok(CHECK, says)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Level;

    #[test]
    fn interfaces_that_are_left_alone_are_named_with_the_reason() {
        let nic = |name: &str, address: &str| Nic { name: name.into(), address: address.parse().unwrap() };
        let (eth, docker, lo) =
            (nic("eth0", "192.0.2.2"), nic("docker0", "172.17.0.1"), nic("lo", "127.0.0.1"));
        let seen = judge_interfaces(&[
            (&eth, None),
            (&docker, Some(Unused::Skipped)),
            (&lo, Some(Unused::Loopback)),
        ]);
        assert_eq!(seen.level, Level::Ok);
        assert!(
            seen.says.starts_with("mDNS speaks on eth0 192.0.2.2; not: docker0 172.17.0.1 (interfaces of")
        );
        assert!(!seen.says.contains("127.0.0.1"));
        let alone = judge_interfaces(&[(&docker, Some(Unused::Skipped)), (&lo, None)]);
        assert_eq!(alone.level, Level::Warn);
        assert!(alone.says.contains("docker0"), "{alone:?}");
    }

    #[test]
    fn disks_that_are_full_or_slow() {
        let gib = 1 << 30;
        let of = |free, all| judge_space(Path::new("/d"), free, all, 64 << 20).level;
        assert_eq!(of(50 * gib, 100 * gib), Level::Ok);
        assert_eq!(of(9 * gib, 100 * gib), Level::Warn);
        assert_eq!(of(100 << 20, 100 * gib), Level::Fail);
        let times = |middle: u64| {
            vec![Duration::from_millis(1), Duration::from_millis(middle), Duration::from_secs(9)]
        };
        assert_eq!(judge_syncs(times(20)).level, Level::Ok, "one slow sync is no slow disk");
        assert_eq!(judge_syncs(times(21)).level, Level::Warn);
        assert_eq!(judge_syncs(times(301)).level, Level::Fail);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(measure(dir.path()).unwrap().len(), SYNCS);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
        assert_eq!(syncs(Path::new("/nowhere")).level, Level::Skip);
    }
}
