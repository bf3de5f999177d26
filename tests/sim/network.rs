//! quinn over turmoil's UDP: socket and timers for a node, loss and duplication, and the trace.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Instant,
};

use quinn::{
    AsyncTimer, AsyncUdpSocket, Runtime, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Between all hosts of one schedule.
#[derive(Debug)]
pub(crate) struct Network(Mutex<State>);

#[derive(Debug)]
struct State {
    random: StdRng,
    weather: Weather,
    trace: Trace,
}

/// What happens to a datagram by chance.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Weather {
    /// Probability that it is lost.
    pub(crate) loss: f64,
    /// Probability that it arrives twice.
    pub(crate) twice: f64,
}

/// Everything that was sent, in one number: time, source, destination and length of each datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) hash: u64,
    pub(crate) datagrams: u64,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        let trace = Trace { hash: 0xcbf2_9ce4_8422_2325, datagrams: 0 };
        let random = StdRng::seed_from_u64(seed);
        Arc::new(Self(Mutex::new(State { random, weather: Weather::default(), trace })))
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.0.lock().unwrap().weather = weather;
    }

    pub(crate) fn trace(&self) -> Trace {
        self.0.lock().unwrap().trace
    }

    /// How often the datagram is to be handed on.
    fn pass(&self, from: SocketAddr, to: SocketAddr, len: usize) -> usize {
        let now = turmoil::sim_elapsed().unwrap_or_default().as_micros() as u64;
        let mut state = self.0.lock().unwrap();
        state.trace.note([now, number(from), number(to), len as u64]);
        let Weather { loss, twice } = state.weather;
        // Drawn whatever the weather is, so that a change of it moves nothing else.
        let (lost, doubled) = (state.random.random::<f64>(), state.random.random::<f64>());
        if lost < loss { 0 } else { 1 + usize::from(doubled < twice) }
    }
}

impl Trace {
    fn note(&mut self, values: [u64; 4]) {
        self.datagrams += 1;
        for byte in values.into_iter().flat_map(u64::to_le_bytes) {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

fn number(address: SocketAddr) -> u64 {
    match address.ip() {
        IpAddr::V4(ip) => u64::from(ip.to_bits()) << 16 | u64::from(address.port()),
        IpAddr::V6(ip) => ip.to_bits() as u64 ^ u64::from(address.port()),
    }
}

/// The socket of one host.
pub(crate) struct SimSocket {
    socket: Mutex<Option<Arc<turmoil::net::UdpSocket>>>,
    local: SocketAddr,
    arrived: Arc<Mutex<Arrived>>,
    network: Arc<Network>,
}

#[derive(Default)]
struct Arrived {
    datagrams: VecDeque<(Vec<u8>, SocketAddr)>,
    waiting: Option<Waker>,
}

impl SimSocket {
    /// Binds on the current host, which is reached at `local`.
    pub(crate) async fn bind(local: SocketAddr, network: Arc<Network>) -> io::Result<Arc<Self>> {
        let socket = Arc::new(turmoil::net::UdpSocket::bind(("0.0.0.0", local.port())).await?);
        let arrived = Arc::new(Mutex::new(Arrived::default()));
        let (from_network, queue) = (socket.clone(), arrived.clone());
        tokio::spawn(async move {
            let mut buffer = vec![0; 2048];
            while let Ok((len, from)) = from_network.recv_from(&mut buffer).await {
                let mut queue = queue.lock().unwrap();
                queue.datagrams.push_back((buffer[..len].to_vec(), from));
                if let Some(waker) = queue.waiting.take() {
                    waker.wake();
                }
            }
        });
        Ok(Arc::new(Self { socket: Mutex::new(Some(socket)), local, arrived, network }))
    }
}

/// Frees the port when the process that held it is gone, as a system does, whoever may still hold
/// the socket.
pub(crate) struct Bound(pub(crate) Arc<SimSocket>);

impl Drop for Bound {
    fn drop(&mut self) {
        self.0.socket.lock().unwrap().take();
    }
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimSocket({})", self.local)
    }
}

impl AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let copies = self.network.pass(self.local, transmit.destination, transmit.contents.len());
        for _ in 0..copies {
            // A host that nobody knows: the datagram goes nowhere, as on a real network.
            if let Some(socket) = &*self.socket.lock().unwrap() {
                let _ = socket.try_send_to(transmit.contents, transmit.destination);
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut arrived = self.arrived.lock().unwrap();
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let Some((bytes, from)) = arrived.datagrams.pop_front() else { break };
            let len = bytes.len().min(buffer.len());
            buffer[..len].copy_from_slice(&bytes[..len]);
            *meta = RecvMeta { addr: from, len, stride: len, ecn: None, dst_ip: None };
            count += 1;
        }
        if count > 0 {
            return Poll::Ready(Ok(count));
        }
        arrived.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Timers and clock of the host that asks.
#[derive(Debug)]
pub(crate) struct SimRuntime;

impl Runtime for SimRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(Timer(Box::pin(tokio::time::sleep_until(at.into()))))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(future);
    }

    fn wrap_udp_socket(&self, _: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Err(io::Error::other("a simulated host has no sockets of the machine"))
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

#[derive(Debug)]
struct Timer(Pin<Box<tokio::time::Sleep>>);

impl AsyncTimer for Timer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        tokio::time::Sleep::reset(self.0.as_mut(), at.into());
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Future::poll(self.0.as_mut(), cx)
    }
}
