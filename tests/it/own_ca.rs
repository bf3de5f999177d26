//! A cluster that is made with a CA the operator brings.

use std::{fs, process::Command};

use serde_json::Value;

use crate::cluster::Cluster;

#[test]
fn a_cluster_is_made_with_a_ca_of_ones_own_and_needs_the_key_never_again() {
    if Command::new("openssl").arg("version").output().is_err() {
        println!("SKIPPED: a CA of one's own: openssl is not installed");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let made = home.path().join("ca");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/certs/own-ca.sh");
    let output = Command::new(script).arg(&made).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let fingerprint =
        said.trim().strip_prefix("fingerprint ").unwrap_or_else(|| panic!("{said:?}")).to_owned();
    let (certificate, key) = (made.join("ca.crt"), made.join("ca.key"));
    let flags = ["--ca-cert", certificate.to_str().unwrap(), "--ca-key", key.to_str().unwrap()];

    let mut cluster = Cluster::empty();
    let first = cluster.add();
    // A key that others can read is refused, before there is a cluster.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(&key, open).unwrap();
    let found = [&["--new-cluster"], &flags[..]].concat();
    let ended = cluster[first].try_start(&found).unwrap_err();
    assert!(ended.code == Some(2) && ended.said.contains("chmod 600"), "{ended:?}");
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&key, closed).unwrap();
    cluster[first].start(&found);

    fs::remove_file(&key).unwrap();
    // The others get certificates of it, and so does whoever comes when the first node is gone.
    cluster.join(2);
    cluster[first].stop();
    // A member ignores the flags: the file they name may be gone.
    cluster[first].start(&flags);
    cluster.settled();
    for node in 0..3 {
        let ca: Value = serde_json::from_str(&cluster[node].skein_says(&["ca", "status", "--json"])).unwrap();
        assert_eq!(ca["roots"][0]["fingerprint"], fingerprint.as_str(), "{ca:#}");
    }
    let given = fs::read_to_string(&certificate).unwrap();
    let kept = fs::read_to_string(cluster[1].dir.join("ca.pem")).unwrap();
    assert_eq!(given.replace('\n', ""), kept.replace('\n', ""));
    cluster[2].write("feed,client=c n=1u 1");
}
