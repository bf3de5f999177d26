//! The one way between two nodes: a transparent UDP relay. Its sockets are bound to the nodes' own
//! addresses, so a node sees its peer's address and not the relay's.

use std::{
    io,
    net::{SocketAddr, SocketAddrV4},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{SeedableRng, rngs::StdRng};
use socket2::{Domain, Socket, Type};
use tokio::{net::UdpSocket, time::sleep};

use crate::{
    network,
    weather::{Disturbance, Weather},
};

/// As much as the system lets a socket have: what it drops is loss that nobody ordered.
const BUFFER: usize = 8 << 20;
/// Datagrams that wait for their time at once; beyond it they are lost.
const WAITING: u64 = 20_000;
/// Longest datagram.
const DATAGRAM: usize = 65_536;

/// Runs until the program ends.
#[derive(Debug, Clone)]
pub struct Relay {
    weather: Arc<Mutex<Weather>>,
    counts: Arc<Counts>,
}

/// Datagrams since the start.
#[derive(Debug, Default)]
pub struct Counts {
    pub passed: AtomicU64,
    pub lost: AtomicU64,
    pub doubled: AtomicU64,
    pub delayed: AtomicU64,
    pub flipped: AtomicU64,
    waiting: AtomicU64,
}

impl Counts {
    /// How many datagrams such a disturbance has struck, this one or another.
    pub fn disturbed(&self, by: &Disturbance) -> u64 {
        let count = match by {
            Disturbance::Cut(_) | Disturbance::Loss(_) => &self.lost,
            Disturbance::Delay(..) => &self.delayed,
            Disturbance::Twice(_) => &self.doubled,
            Disturbance::Flip(_) => &self.flipped,
        };
        count.load(Ordering::Relaxed)
    }
}

impl Relay {
    /// Starts it between so many nodes. Call it within a runtime.
    pub fn start(nodes: usize, seed: u64) -> io::Result<Self> {
        let sockets: Vec<Arc<UdpSocket>> =
            (0..nodes).map(|n| transparent(network::mesh(n)).map(Arc::new)).collect::<io::Result<_>>()?;
        let sockets = Arc::new(sockets);
        let relay = Self { weather: Arc::default(), counts: Arc::default() };
        for to in 0..nodes {
            let rng = StdRng::seed_from_u64(seed.wrapping_add(to as u64));
            tokio::spawn(relay.clone().carry(Arc::clone(&sockets), to, rng));
        }
        Ok(relay)
    }

    pub fn weather(&self) -> MutexGuard<'_, Weather> {
        self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Carries what is sent to one node.
    async fn carry(self, sockets: Arc<Vec<Arc<UdpSocket>>>, to: usize, mut rng: StdRng) {
        let Some(socket) = sockets.get(to) else { return };
        let mut buffer = vec![0; DATAGRAM];
        loop {
            // An error here is about a datagram sent earlier, to a node that does not listen.
            let Ok((len, SocketAddr::V4(sender))) = socket.recv_from(&mut buffer).await else { continue };
            let from = network::node_at(*sender.ip()).filter(|_| sender.port() == network::MESH);
            let Some((from, source)) = from.and_then(|from| Some((from, sockets.get(from)?))) else {
                continue;
            };
            let Some(datagram) = buffer.get_mut(..len) else { continue };
            let fate = self.weather().fate(from, to, len, &mut rng);
            if let Some(bit) = fate.flip
                && let Some(byte) = datagram.get_mut(bit / 8)
            {
                *byte ^= 1 << (bit % 8);
                self.counts.flipped.fetch_add(1, Ordering::Relaxed);
            }
            match fate.copies.len() {
                0 => self.counts.lost.fetch_add(1, Ordering::Relaxed),
                1 => self.counts.passed.fetch_add(1, Ordering::Relaxed),
                _ => self.counts.doubled.fetch_add(1, Ordering::Relaxed),
            };
            for after in fate.copies {
                if after.is_zero() {
                    // As on a wire, nobody is told that it did not arrive.
                    let _ = source.send_to(datagram, network::mesh(to)).await;
                } else {
                    self.later(Arc::clone(source), to, datagram.to_vec(), after);
                }
            }
        }
    }

    fn later(&self, source: Arc<UdpSocket>, to: usize, datagram: Vec<u8>, after: Duration) {
        if self.counts.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING {
            self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.counts.delayed.fetch_add(1, Ordering::Relaxed);
        let counts = Arc::clone(&self.counts);
        tokio::spawn(async move {
            sleep(after).await;
            // As above.
            let _ = source.send_to(&datagram, network::mesh(to)).await;
            counts.waiting.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// A socket with an address that is not this machine's.
fn transparent(at: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_ip_transparent_v4(true)?;
    socket.set_recv_buffer_size(BUFFER)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::V4(at).into())?;
    UdpSocket::from_std(socket.into())
}
