//! The network between the machines, quinn's socket and timers upon it, and the trace.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use quinn::{
    AsyncTimer, AsyncUdpSocket, Runtime, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::machine;

/// The port of every mesh endpoint.
const PORT: u16 = 7400;
/// Of a datagram, at least.
const LATENCY: Duration = Duration::from_micros(200);
/// Datagrams that a socket keeps for a process that does not read them.
const KEPT: usize = 3_000;

/// Where the machine at that place is reached.
pub(crate) fn address(place: usize) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 168, 0, 1 + place as u8)), PORT)
}

/// Between all machines of one schedule.
#[derive(Debug)]
pub(crate) struct Network(Mutex<State>);

#[derive(Debug)]
struct State {
    random: StdRng,
    /// At most, in calm weather.
    latency: Duration,
    weather: Weather,
    /// Whoever is at the first place is not heard at the second.
    blocked: BTreeSet<(usize, usize)>,
    /// By destination, then by arrival; the number tells two of one moment apart.
    under_way: Vec<BTreeMap<(Duration, u64), Datagram>>,
    inboxes: Vec<Option<Arc<Mutex<Inbox>>>>,
    trace: Trace,
    struck: Struck,
}

/// How many datagrams met with what.
#[derive(Debug, Clone, Copy, Default)]
struct Struck {
    blocked: u64,
    lost: u64,
    doubled: u64,
    held_up: u64,
}

type Datagram = (Vec<u8>, SocketAddr);

/// What happens to a datagram by chance.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Weather {
    /// Probability that it is lost.
    pub(crate) loss: f64,
    /// Probability that it arrives twice.
    pub(crate) twice: f64,
    /// Probability that it is held up, so that later ones overtake it.
    pub(crate) held_up: f64,
}

/// Everything that was sent, in one number: time, source, destination and length of each datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) hash: u64,
    pub(crate) datagrams: u64,
}

impl Network {
    pub(crate) fn new(seed: u64, places: usize) -> Arc<Self> {
        let mut random = StdRng::seed_from_u64(seed);
        Arc::new(Self(Mutex::new(State {
            latency: Duration::from_millis(random.random_range(1..20)),
            random,
            weather: Weather::default(),
            blocked: BTreeSet::new(),
            under_way: vec![BTreeMap::new(); places],
            inboxes: vec![None; places],
            trace: Trace { hash: 0xcbf2_9ce4_8422_2325, datagrams: 0 },
            struck: Struck::default(),
        })))
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.0.lock().unwrap().weather = weather;
    }

    /// Lets nothing pass from the first to the second of each pair; what is under way arrives.
    pub(crate) fn set_blocked(&self, blocked: BTreeSet<(usize, usize)>) {
        self.0.lock().unwrap().blocked = blocked;
    }

    pub(crate) fn trace(&self) -> Trace {
        self.0.lock().unwrap().trace
    }

    /// How many datagrams were blocked, lost, doubled and held up.
    pub(crate) fn struck(&self) -> [(&'static str, u64); 4] {
        let Struck { blocked, lost, doubled, held_up } = self.0.lock().unwrap().struck;
        [
            ("datagrams-blocked", blocked),
            ("datagrams-lost", lost),
            ("datagrams-doubled", doubled),
            ("datagrams-held-up", held_up),
        ]
    }

    /// Hands over what has arrived at that place by now.
    pub(crate) fn deliver(&self, place: usize) {
        let mut state = self.0.lock().unwrap();
        let later = state.under_way[place].split_off(&(machine::now(), u64::MAX));
        let due = std::mem::replace(&mut state.under_way[place], later);
        if let Some(inbox) = &state.inboxes[place] {
            inbox.lock().unwrap().take_in(due.into_values());
        }
    }

    fn send(&self, from: usize, to: SocketAddr, bytes: &[u8]) {
        let now = machine::now();
        let mut state = self.0.lock().unwrap();
        let place = (0..state.inboxes.len()).find(|place| address(*place) == to);
        let values = [now.as_micros() as u64, from as u64, place.unwrap_or(99) as u64, bytes.len() as u64];
        state.trace.note(values);
        // Drawn whatever the weather is, so that a change of it moves nothing else.
        let [lost, twice, held_up] = [(); 3].map(|()| state.random.random::<f64>());
        let delays = [(); 2].map(|()| state.random.random::<f64>());
        let hold_up = Duration::from_millis(state.random.random_range(5..120));
        let weather = state.weather;
        let Some(place) = place.filter(|place| !state.blocked.contains(&(from, *place))) else {
            state.struck.blocked += 1;
            return;
        };
        let copies = if lost < weather.loss { 0 } else { 1 + usize::from(twice < weather.twice) };
        match copies {
            0 => state.struck.lost += 1,
            1 => {}
            _ => state.struck.doubled += 1,
        }
        state.struck.held_up += u64::from(copies > 0 && held_up < weather.held_up);
        for (copy, delay) in delays.into_iter().take(copies).enumerate() {
            // Most are fast, few are slow.
            let mut at = now + LATENCY + state.latency.mul_f64(delay * delay * delay);
            if held_up < weather.held_up {
                at += hold_up;
            }
            let number = state.trace.datagrams * 2 + copy as u64;
            state.under_way[place].insert((at, number), (bytes.to_vec(), address(from)));
        }
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

/// The socket of one process.
pub(crate) struct SimSocket {
    place: usize,
    inbox: Arc<Mutex<Inbox>>,
    network: Arc<Network>,
}

#[derive(Debug, Default)]
struct Inbox {
    datagrams: VecDeque<Datagram>,
    waiting: Option<Waker>,
}

impl Inbox {
    fn take_in(&mut self, arrived: impl Iterator<Item = Datagram>) {
        let room = KEPT.saturating_sub(self.datagrams.len());
        self.datagrams.extend(arrived.take(room));
        if !self.datagrams.is_empty()
            && let Some(waker) = self.waiting.take()
        {
            waker.wake();
        }
    }
}

impl SimSocket {
    /// The socket of the process that now runs at that place.
    pub(crate) fn bind(place: usize, network: Arc<Network>) -> Arc<Self> {
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        network.0.lock().unwrap().inboxes[place] = Some(inbox.clone());
        Arc::new(Self { place, inbox, network })
    }
}

/// Closes the socket when the process that held it is gone, as a system does, whoever may still hold
/// a handle.
pub(crate) struct Bound(pub(crate) Arc<SimSocket>);

impl Drop for Bound {
    fn drop(&mut self) {
        let bound = &mut self.0.network.0.lock().unwrap().inboxes[self.0.place];
        if bound.as_ref().is_some_and(|inbox| Arc::ptr_eq(inbox, &self.0.inbox)) {
            *bound = None;
        }
    }
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimSocket({})", address(self.place))
    }
}

impl AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.network.send(self.place, transmit.destination, transmit.contents);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox.lock().unwrap();
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let Some((bytes, from)) = inbox.datagrams.pop_front() else { break };
            let len = bytes.len().min(buffer.len());
            buffer[..len].copy_from_slice(&bytes[..len]);
            *meta = RecvMeta { addr: from, len, stride: len, ecn: None, dst_ip: None };
            count += 1;
        }
        if count > 0 {
            return Poll::Ready(Ok(count));
        }
        inbox.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(address(self.place))
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

/// Timers and clock of the machine that asks.
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
