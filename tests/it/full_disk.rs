//! A node whose disk is full refuses writes and nothing else: it votes, names a writer and takes
//! tokens, also after a kill, and takes writes again when there is space. On a small file system of its
//! own, which needs root.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cluster::{Cluster, eventually},
    process::Process,
};

/// Bytes of the file system.
const SIZE: &str = "48m";

/// A small file system, until it is dropped.
struct Small(PathBuf);

impl Small {
    /// `None` where that is not allowed.
    fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={SIZE},mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Takes every byte that is left.
    fn fill(&self) {
        let mut filler = File::options().create(true).append(true).open(self.filler()).unwrap();
        for block in [64 * 1024, 4096, 1] {
            while filler.write_all(&vec![1; block]).is_ok() {}
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Best effort: what is left of it goes with the machine.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn refused(node: &Process) -> Option<()> {
    let body = format!("t text=\"{}\" 1", "x".repeat(60_000));
    let answer = node.post("/api/v3/write_lp?db=it&precision=nanosecond", &body);
    assert!([204, 507].contains(&answer.status), "{answer:?}");
    (answer.status == 507).then_some(())
}

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    let mut cluster = Cluster::empty();
    let at = cluster.add();
    let Some(small) = Small::mount(&cluster[at].dir) else {
        println!("SKIPPED: a full disk needs a file system of its own, and so root");
        return;
    };
    let node = &mut cluster[at];
    node.env.push(("SKEIN_STORAGE_WAL_SEGMENT".into(), "1MiB".into()));
    node.start(&["--new-cluster"]);
    node.write("t before=1 1");
    small.fill();
    eventually("507", || refused(node));
    small.fill();
    // An entry of raft, and another one.
    node.token(1);
    node.token(1);
    for _ in 0..3 {
        // Each life votes, and names itself writer of a new epoch.
        node.kill();
        node.start(&[]);
        small.fill();
        eventually("507 in another life", || refused(node));
        assert_eq!(node.numbers("SELECT count(before) FROM t"), [1], "reads go on");
        node.token(1);
    }
    std::fs::remove_file(small.filler()).unwrap();
    let body = "t after=1 2";
    eventually("space again, without a restart", || {
        let answer = node.post("/api/v3/write_lp?db=it&precision=nanosecond", body);
        (answer.status == 204).then_some(())
    });
    assert_eq!(node.numbers("SELECT count(after) FROM t"), [1]);
    node.stop();
}
