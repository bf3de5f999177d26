//! Discovery speaks on each interface of that interface's addresses, on those that may be used, and says
//! what it sees; also where there are link-local addresses only. Seeds by name are followed where they move.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{
    cluster::{Cluster, eventually},
    http::send,
    namespaces::{Net, skipped},
    process::{Process, REQUEST, bare, program},
};

const ALLOW: (&str, &str) = ("SKEIN_DISCOVERY_ALLOW_INTERFACES", "veth*");
const DENY: (&str, &str) = ("SKEIN_DISCOVERY_DENY_INTERFACES", "veth1");

/// What `skein discover` finds in that namespace.
fn discover(net: &Net, place: usize, env: &[(&str, &str)]) -> Value {
    let before = net.inside(place);
    let mut command = Command::new(&before[0]);
    command.args(&before[1..]).arg(program()).args(["discover", "--json", "--seconds", "2"]);
    bare(&mut command).envs(env.iter().copied()).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Addresses of announcements that can be used, and who answers there.
fn heard(net: &Net, place: usize) -> Vec<(String, String)> {
    let report = discover(net, place, &[ALLOW]);
    let all = report["heard"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.map(|heard| (text(&heard["address"]), text(&heard["answer"]))).collect()
}

#[test]
fn each_lan_hears_of_its_own_addresses_and_of_none_that_is_denied() {
    let Some(net) = Net::make(3, "interfaces") else { return };
    let (both, near, far) = (0, 1, 2);
    net.second_lan(both, far);
    let mut cluster = Cluster::empty();
    let node = cluster.add();
    net.house(&mut cluster);
    cluster[node].start(&["--new-cluster"]);
    for (place, address) in [(near, "10.213.77.1:7400"), (far, "10.213.78.1:7400")] {
        eventually("it is heard", || {
            let heard = heard(&net, place);
            assert!(heard.iter().all(|(at, _)| at == address), "on another interface: {heard:?}");
            heard.iter().any(|(_, answer)| answer.starts_with("a member")).then_some(())
        });
    }

    cluster[node].stop();
    cluster[node].env.push((DENY.0.into(), DENY.1.into()));
    cluster[node].start(&[]);
    eventually("it is heard where it may be", || (!heard(&net, near).is_empty()).then_some(()));
    // What was heard before it was denied was said by a process that is no more.
    assert_eq!(heard(&net, far), []);
    let own = discover(&net, both, &[ALLOW, DENY]);
    let shown = |name: &str| {
        let interfaces = own["interfaces"].as_array().unwrap();
        interfaces.iter().find(|nic| nic["name"] == name && nic["address"].as_str().unwrap().contains('.'))
    };
    let (used, denied) = (shown("veth0").unwrap(), shown("veth1").unwrap());
    assert_eq!((&used["used"], &denied["used"]), (&true.into(), &false.into()), "{own:#}");
    assert!(denied["why_not"].as_str().unwrap().contains("deny_interfaces"), "{own:#}");
}

#[test]
fn link_local_addresses_with_their_interface_are_enough() {
    let Some(net) = Net::make(3, "interfaces::link_local") else { return };
    if !net.only_link_local() {
        return skipped("interfaces::link_local", "there is no IPv6 here");
    }
    let mut cluster = Cluster::empty();
    let nodes: Vec<usize> = (0..3).map(|_| cluster.add()).collect();
    net.house(&mut cluster);
    cluster.processes().iter_mut().for_each(|node| node.mesh = "[::]:7400".into());
    cluster[0].start(&["--new-cluster"]);
    let token = cluster[0].token(2);
    for node in &nodes[1..] {
        cluster[*node].start(&["--join", &token]);
    }
    cluster.settled();
    write(&cluster[1], 1);
    // And again after all of them were away: nothing is remembered that is of use elsewhere.
    nodes.iter().for_each(|node| cluster[*node].kill());
    let started: Vec<_> = nodes.iter().map(|node| cluster[*node].launch(&[])).collect();
    for (node, lines) in nodes.iter().zip(started) {
        cluster[*node].wait_ready(&lines).unwrap();
    }
    cluster.settled();
    write(&cluster[2], 2);
}

#[test]
fn a_node_on_which_mdns_does_not_work_says_so_and_goes_by_its_seeds() {
    let Some(net) = Net::make(2, "interfaces::no_mdns") else { return };
    let mut cluster = Cluster::empty();
    let (first, second) = (cluster.add(), cluster.add());
    net.house(&mut cluster);
    cluster[first].start(&["--new-cluster"]);
    let token = cluster[first].token(1);
    // Whoever has the port and does not share it.
    let mut other = Process::new(cluster[first].dir.parent().unwrap(), "other");
    (other.before, other.mesh) = (net.inside(1), "0.0.0.0:5353".into());
    other.start(&["--new-cluster"]);
    cluster[second].start(&["--join", &token, "--seed", "10.213.77.1:7400"]);
    cluster.settled();
    let said = cluster[second].said();
    assert!(said.contains("mDNS does not work over IPv4 here") && said.contains("--seed"), "{said}");
    assert!(!cluster[first].said().contains("mDNS does not work"), "there it does");
}

#[test]
fn a_seed_is_asked_for_again_and_followed_when_its_name_moves() {
    let Some(net) = Net::make(2, "interfaces::seed_name") else { return };
    let mut cluster = Cluster::empty();
    let (first, second) = (cluster.add(), cluster.add());
    net.house(&mut cluster);
    cluster.processes().iter_mut().for_each(|node| node.mdns = false);
    cluster[first].start(&["--new-cluster"]);
    let token = cluster[first].token(1);
    // Nobody is there.
    net.name(1, "db.skein.test", "10.213.77.99");
    let ready = cluster[second].launch(&["--join", &token, "--seed", "db.skein.test:7400"]);
    eventually("it says whom it waits for", || {
        cluster[second].said().contains("10.213.77.99:7400").then_some(())
    });
    assert!(cluster[second].try_ended(Duration::from_secs(3)).is_none(), "it gave up");
    assert!(ready.try_recv().is_err(), "it is ready without anybody");
    net.name(1, "db.skein.test", "10.213.77.1");
    cluster[second].wait_ready(&ready).unwrap();
    cluster.settled();
}

/// Over its socket: its ports are in another namespace.
#[track_caller]
fn write(node: &Process, n: u64) {
    let line = format!("interfaces n={n}i {n}");
    send(&node.unix(), "POST", "/write?db=it", &[], line.as_bytes(), REQUEST).unwrap().expect(204);
}
