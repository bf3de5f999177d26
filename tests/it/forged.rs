//! Ten thousand nodes that are none announce themselves on the LAN, over real multicast, while the true
//! ones look for each other, and while another one joins by what its token says.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use skeinmesh::types::NodeId;

use crate::{
    cluster::{Cluster, within},
    http::send,
    namespaces::Net,
    process::{Process, REQUEST},
};

const FORGED: u64 = 10_000;
/// The forger's own address, in every announcement: what is dialled leaves the node.
const FORGER: Ipv4Addr = Ipv4Addr::new(10, 213, 77, 200);
const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 251), 5353);
/// Announcements come as fast as a busy machine's receive buffers hold them.
const BURST: u64 = 5;
const PAUSE: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(90);
/// Datagrams per second that a node which misses a member may send. It has 32 dials of two seconds at a
/// time, each of about ten datagrams, and questions by mDNS.
const DATAGRAMS: f64 = 400.0;
/// How much more memory it may take: two generations of what mDNS remembers, and what the allocator keeps.
const MORE_MIB: u64 = 64;

#[test]
fn forged_announcements_are_bounded_and_hide_no_member() {
    let Some(net) = Net::make(3, "forged") else { return };
    let mut cluster = Cluster::empty();
    let (first, second, third) = (cluster.add(), cluster.add(), cluster.add());
    net.house(&mut cluster);
    cluster[first].start(&["--new-cluster"]);
    let token = cluster[first].token(1);
    cluster[second].start(&["--join", &token]);
    cluster.settled();
    let of = cluster[first].status().unwrap()["cluster_id"].as_str().unwrap().to_owned();

    // Both move, so that neither is where the other remembers it.
    cluster[first].kill();
    cluster[second].kill();
    net.renumber(41);
    net.attend(&FORGER.to_string());
    cluster[first].mesh = "0.0.0.0:7501".into();
    cluster[second].mesh = "0.0.0.0:7502".into();
    let lines = cluster[first].launch(&[]);
    within(PATIENCE, "it is up and listens", || cluster[first].status().map(drop));
    let before = rss_mib(&cluster[first]);
    let forger = Forger::start(&of);
    within(PATIENCE, "each announcement was made", || (forger.made() >= FORGED).then_some(()));

    // It misses a member and hears of ten thousand.
    let (began, sent) = (Instant::now(), datagrams(&cluster[first]));
    within(PATIENCE, "a quarter was made once more", || (forger.made() >= FORGED * 5 / 4).then_some(()));
    let (took, sent) = (began.elapsed().as_secs_f64(), datagrams(&cluster[first]) - sent);
    assert!(sent as f64 / took < DATAGRAMS, "{sent} datagrams in {took:.1} s");
    assert!(sent > 32, "{sent} datagrams: it dials nobody, so this shows nothing");

    // The true one comes last, and is found all the same, while forging goes on.
    let others = cluster[second].launch(&[]);
    for (node, lines) in [(first, lines), (second, others)] {
        if let Err(ended) = cluster[node].wait_ready(&lines) {
            panic!("node {node} did not come back: {ended:?}");
        }
    }
    cluster.settled();
    // Over its socket: its ports are in another namespace.
    send(&cluster[second].unix(), "POST", "/write?db=it", &[], b"cpu v=1 1", REQUEST).unwrap().expect(204);

    // A joiner knows nobody, and whoever is announced says that he is of its cluster. What the token says is
    // tried first, in each round.
    let seed = "10.213.77.41:7501";
    let token = cluster[first].skein_says(&["token", "create", "--seed", seed]).trim().to_owned();
    cluster[third].mesh = "0.0.0.0:7503".into();
    let began = Instant::now();
    let lines = cluster[third].launch(&["--join", &token]);
    let name = format!("\"{}\"", cluster[third].name);
    within(PATIENCE, "it got in", || cluster[first].status()?.to_string().contains(&name).then_some(()));
    if let Err(ended) = cluster[third].wait_ready(&lines) {
        panic!("it did not get in: {ended:?}");
    }
    let (joined, dialled) = (began.elapsed().as_secs_f64(), datagrams(&cluster[third]));
    // What it takes to get in is sent at once, however soon that is.
    assert!((dialled as f64) < DATAGRAMS * joined.max(1.0), "{dialled} datagrams in {joined:.1} s");
    cluster.settled();
    let more = rss_mib(&cluster[first]).saturating_sub(before);
    println!(
        "{} announcements: {:.0} datagrams per second, {more} MiB more than {before} MiB; joined within {joined:.1} s",
        forger.stop(),
        sent as f64 / took
    );
    assert!(more < MORE_MIB, "{more} MiB more");
}

fn rss_mib(node: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}

/// UDP datagrams sent in the namespace of that node, which has it to itself.
fn datagrams(node: &Process) -> u64 {
    let counts = std::fs::read_to_string(format!("/proc/{}/net/snmp", node.pid())).unwrap();
    let mut lines = counts.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|name| name == "OutDatagrams").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

/// Announces [`FORGED`] nodes over and over, until it is stopped.
struct Forger {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Forger {
    fn start(cluster: &str) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddrV4::new(FORGER, 5353).into()).unwrap();
        socket.set_multicast_if_v4(&FORGER).unwrap();
        let socket: UdpSocket = socket.into();
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counts, cluster) = (stop.clone(), made.clone(), cluster.to_owned());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for _ in 0..BURST {
                    let n = counts.load(Ordering::Relaxed);
                    let announcement = announcement(n % FORGED, &cluster);
                    // A full buffer is a packet lost, as on any network; it is tried again.
                    if socket.send_to(&announcement, GROUP).is_ok() {
                        counts.store(n + 1, Ordering::Relaxed);
                    }
                }
                std::thread::sleep(PAUSE);
            }
        });
        Self { stop, made, thread: Some(thread) }
    }

    fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    fn stop(mut self) -> u64 {
        self.end();
        self.made()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Forger {
    fn drop(&mut self) {
        self.end();
    }
}

/// A response as RFC 6762 has it: PTR, SRV, TXT and A of one node that stays for ever.
fn announcement(n: u64, cluster: &str) -> Vec<u8> {
    let mut id = [0xee; 16];
    id[..8].copy_from_slice(&n.to_be_bytes());
    let node = NodeId(id).to_string();
    let service = name(&["_skein", "_udp", "local"]);
    let instance = [&name(&[&node])[..node.len() + 1], &service].concat();
    let host = name(&[&node, "local"]);
    let port = 10_000 + u16::try_from(n).unwrap();
    let srv = [&[0, 0, 0, 0], &port.to_be_bytes()[..], &host].concat();
    let text: Vec<u8> = ["version=0.1.0".to_owned(), format!("cluster={cluster}")]
        .iter()
        .flat_map(|text| [&[text.len() as u8], text.as_bytes()].concat())
        .collect();
    let mut out = vec![0, 0, 0x84, 0, 0, 0, 0, 4, 0, 0, 0, 0];
    for (owner, kind, class, data) in [
        (&service, 12, 1_u16, instance.clone()),
        (&instance, 33, 0x8001, srv),
        (&instance, 16, 0x8001, text),
        (&host, 1, 0x8001, FORGER.octets().to_vec()),
    ] {
        out.extend_from_slice(owner);
        out.extend_from_slice(&[0, kind]);
        out.extend_from_slice(&class.to_be_bytes());
        out.extend_from_slice(&0x7fff_ffff_u32.to_be_bytes());
        out.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
        out.extend_from_slice(&data);
    }
    out
}

/// A name on the wire.
fn name(labels: &[&str]) -> Vec<u8> {
    let mut out: Vec<u8> = labels.iter().flat_map(|l| [&[l.len() as u8], l.as_bytes()].concat()).collect();
    out.push(0);
    out
}
