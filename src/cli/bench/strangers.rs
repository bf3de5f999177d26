//! Strangers that flood a node with handshakes: beginnings of them from many addresses that hear no
//! answer, and whole ones by keys that no cluster lists, with certificates of their own or of another
//! CA.
//!
//! Beginnings are made once and sent again and again, which costs the machine that both share next to
//! nothing; whole handshakes cost their maker as much as the node, and are few for that.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{
    cli::Failure,
    identity::{ClusterCa, Identity, NodeKey},
    transport::{Mesh, MeshConfig, MeshDriver, Router, Socket, StrangerLink},
    types::{Addresses, BootId, ClusterId, ClusterView, TimingProfile},
};

/// Addresses that beginnings are sent from.
const SOURCES: u8 = 64;
/// Different beginnings, sent again and again: more than a node works on until it gives one up.
const BEGINNINGS: usize = 1024;
/// Whole handshakes that are not let go until so many others have come.
const HELD: usize = 128;
/// Whole handshakes that run at once.
const AT_ONCE: usize = 16;
const TICK: Duration = Duration::from_millis(10);
/// A first packet is never shorter.
const SHORTEST: usize = 1200;
/// For the first packet of a dial to arrive, on this machine.
const CAUGHT: Duration = Duration::from_secs(5);

/// What they did, and what was answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    /// First packets that were sent from addresses that never went on.
    pub(super) begun: u64,
    /// Of these, answered with: prove your address.
    pub(super) retries: u64,
    /// Answered otherwise: with the next step of a handshake, or a refusal.
    pub(super) other_answers: u64,
    /// Whole handshakes of keys with a certificate of their own, and of another CA.
    pub(super) strangers: u64,
    pub(super) other_ca: u64,
    /// Attempts at whole handshakes that failed.
    pub(super) failed: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.begun += other.begun;
        self.retries += other.retries;
        self.other_answers += other.other_answers;
        self.strangers += other.strangers;
        self.other_ca += other.other_ca;
        self.failed += other.failed;
    }
}

/// How fast.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    /// Beginnings per second.
    pub(super) begun: u32,
    /// Whole handshakes per second.
    pub(super) whole: u32,
}

/// Who floods, with all they need for it.
pub(super) struct Strangers {
    stranger: Stranger,
    other_ca: Stranger,
    beginnings: Vec<Vec<u8>>,
    sources: Vec<UdpSocket>,
}

impl Strangers {
    pub(super) async fn gather() -> Result<Self, Failure> {
        let (stranger, other_ca) = (Stranger::new(None)?, Stranger::new(Some(ClusterId(rand::random())))?);
        let beginnings = stranger.beginnings().await?;
        Ok(Self { stranger, other_ca, beginnings, sources: sources()? })
    }
}

/// A flood that runs.
pub(super) struct Flood {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Counts>,
}

impl Flood {
    /// Begins.
    pub(super) fn start(strangers: &Arc<Strangers>, at: SocketAddr, rate: Rate) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (strangers, stopped) = (strangers.clone(), stop.clone());
        Self { stop, task: tokio::spawn(async move { flood(&strangers, at, rate, &stopped).await }) }
    }

    /// Ends; what was done.
    pub(super) async fn stop(mut self) -> Result<Counts, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.task).await.map_err(|e| Failure::new(format!("the flood ended early: {e}")))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn flood(strangers: &Strangers, at: SocketAddr, rate: Rate, stop: &AtomicBool) -> Counts {
    let Strangers { stranger, other_ca, beginnings, sources } = strangers;
    let mut counts = Counts::default();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut dialling = JoinSet::new();
    let mut held = VecDeque::new();
    let (mut next, mut is_stranger, mut last) = (0_usize, false, Instant::now());
    let (mut due, mut whole_due) = (0.0, 0.0);
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let passed = last.elapsed().as_secs_f64();
        last = Instant::now();
        // On a busy machine a tick comes late: what was due is made up for, for a moment.
        due = (due + f64::from(rate.begun) * passed).min(f64::from(rate.begun));
        while due >= 1.0 {
            due -= 1.0;
            if let (Some(source), Some(bytes)) =
                (sources.get(next % sources.len()), beginnings.get(next % beginnings.len()))
            {
                // A full buffer is a packet lost, as on any network.
                counts.begun += u64::from(source.send_to(bytes, at).is_ok());
            }
            next += 1;
        }
        for source in sources {
            hear(source, &mut counts);
        }
        whole_due = (whole_due + f64::from(rate.whole) * passed).min(f64::from(rate.whole));
        while whole_due >= 1.0 && dialling.len() < AT_ONCE {
            whole_due -= 1.0;
            is_stranger = !is_stranger;
            let mesh = if is_stranger { &stranger.mesh } else { &other_ca.mesh }.clone();
            dialling.spawn(async move { (is_stranger, mesh.dial_stranger(at).await) });
        }
        while let Some(Ok((is_stranger, dialled))) = dialling.try_join_next() {
            match dialled {
                Ok(link) => {
                    *(if is_stranger { &mut counts.strangers } else { &mut counts.other_ca }) += 1;
                    hold(&mut held, link);
                }
                Err(_) => counts.failed += 1,
            }
        }
    }
    counts
}

/// Keeps a connection, which takes a place at the node, until others have come.
fn hold(held: &mut VecDeque<StrangerLink>, link: StrangerLink) {
    held.push_back(link);
    if held.len() > HELD {
        held.pop_front();
    }
}

/// Counts what came back, and answers nothing.
fn hear(source: &UdpSocket, counts: &mut Counts) {
    let mut bytes = [0; 2048];
    while let Ok(len) = source.recv(&mut bytes) {
        // Long header of QUIC version 1, packet type 3.
        match bytes.first() {
            Some(first) if len > 0 && first & 0xf0 == 0xf0 => counts.retries += 1,
            _ => counts.other_answers += 1,
        }
    }
}

fn sources() -> io::Result<Vec<UdpSocket>> {
    let open = |n| {
        let at = Ipv4Addr::new(127, 77, 0, n + 1);
        let socket = UdpSocket::bind((at, 0)).map_err(|e| {
            let what = format!("cannot send from {at}, which Linux lets everybody: {e}");
            io::Error::new(e.kind(), what)
        })?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    (0..SOURCES).map(open).collect()
}

/// An end of a mesh of no cluster.
struct Stranger {
    mesh: Mesh,
    /// Nobody is let in, but the endpoint lives as long as this.
    _driver: MeshDriver,
    _addresses: watch::Sender<Addresses>,
    _view: watch::Sender<Arc<ClusterView>>,
}

impl Stranger {
    /// With a certificate of its own, or of a CA that nobody knows.
    fn new(of: Option<ClusterId>) -> io::Result<Self> {
        let other = io::Error::other::<Box<dyn std::error::Error + Send + Sync>>;
        let now = now();
        let key = NodeKey::from_seed(&rand::random()).map_err(|e| other(e.into()))?;
        let identity = Identity::stranger(key, now).map_err(|e| other(e.into()))?;
        if let Some(cluster) = of {
            let ca = ClusterCa::create(cluster, &rand::random(), now).map_err(|e| other(e.into()))?;
            let request = identity.csr().map_err(|e| other(e.into()))?;
            let issued = ca.issue(&request, cluster, rand::random(), now).map_err(|e| other(e.into()))?;
            identity
                .set_certificate(&issued.certificate, &[ca.certificate()])
                .map_err(|e| other(e.into()))?;
        }
        let (addresses, announced) = watch::channel(Addresses::default());
        let (view, seen) = watch::channel(Arc::new(ClusterView::default()));
        let config = MeshConfig {
            socket: Socket::Bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
            timing: TimingProfile::Lan.timing(),
            addresses: announced,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features: 0,
            boot: BootId(rand::random()),
            clock: Arc::new(self::now),
        };
        let (mesh, driver) =
            Mesh::bind(config, Arc::new(identity), seen, Router::new()).map_err(|e| other(e.into()))?;
        Ok(Self { mesh, _driver: driver, _addresses: addresses, _view: view })
    }

    /// First packets of handshakes, each of another one, as they would go to a node.
    async fn beginnings(&self) -> io::Result<Vec<Vec<u8>>> {
        let trap = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let at = trap.local_addr()?;
        let mut caught = BTreeMap::new();
        let mut bytes = [0; 2048];
        while caught.len() < BEGINNINGS {
            let dial = self.mesh.dial_stranger(at);
            let catch = async {
                loop {
                    let (len, _) = trap.recv_from(&mut bytes).await?;
                    let packet = bytes.get(..len).unwrap_or_default();
                    // The first that comes of each connection is its beginning; what follows is that it
                    // was given up.
                    if let Some(connection) = connection_of(packet)
                        && !caught.contains_key(connection)
                    {
                        return Ok::<_, io::Error>((connection.to_vec(), packet.to_vec()));
                    }
                }
            };
            let (connection, packet) = tokio::select! {
                caught = timeout(CAUGHT, catch) => caught.map_err(|_| io::ErrorKind::TimedOut)??,
                _ = dial => continue,
            };
            caught.insert(connection, packet);
        }
        Ok(caught.into_values().collect())
    }
}

/// The id that the sender of a first packet (QUIC version 1) gave the other end; `None` if it is none.
fn connection_of(packet: &[u8]) -> Option<&[u8]> {
    let (first, rest) = packet.split_first()?;
    let (version, rest) = rest.split_first_chunk::<4>()?;
    let (len, rest) = rest.split_first()?;
    let is_first = first & 0xf0 == 0xc0 && *version == [0, 0, 0, 1] && packet.len() >= SHORTEST;
    is_first.then(|| rest.get(..usize::from(*len))).flatten()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_first_packets_have_a_connection_to_begin() {
        let mut packet = vec![0xc3, 0, 0, 0, 1, 3, 7, 8, 9];
        packet.resize(SHORTEST, 0);
        assert_eq!(connection_of(&packet), Some(&[7, 8, 9][..]));
        assert_eq!(connection_of(&packet[..SHORTEST - 1]), None, "too short");
        for (at, byte) in [(0, 0xf3), (0, 0x43), (4, 2)] {
            let mut other = packet.clone();
            other[at] = byte;
            assert_eq!(connection_of(&other), None, "byte {at} as {byte:#x}");
        }
        assert_eq!(connection_of(&[]), None);
    }

    #[tokio::test]
    async fn each_beginning_is_another_one() {
        let stranger = Stranger::new(None).unwrap();
        let beginnings = stranger.beginnings().await.unwrap();
        assert_eq!(beginnings.len(), BEGINNINGS);
        let connections: std::collections::BTreeSet<_> =
            beginnings.iter().map(|packet| connection_of(packet).unwrap()).collect();
        assert_eq!(connections.len(), BEGINNINGS);
    }
}
