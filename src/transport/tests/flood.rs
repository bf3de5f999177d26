//! Handshakes in masses: how many run at once, who must prove an address, and that members come in all
//! the same.

use std::{
    fmt,
    io::{self, IoSliceMut},
    pin::Pin,
    sync::atomic::AtomicUsize,
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use super::*;

/// A socket that hears nothing, or nothing but that it must prove its address: its handshakes begin and
/// never end. Counts what it was asked to prove.
struct Deaf {
    socket: Arc<dyn AsyncUdpSocket>,
    hears_retry: bool,
    retries: Arc<AtomicUsize>,
}

impl fmt::Debug for Deaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Deaf(hears_retry: {})", self.hears_retry)
    }
}

impl AsyncUdpSocket for Deaf {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let count = match self.socket.poll_recv(cx, buffers, meta) {
                Poll::Ready(Ok(count)) => count,
                other => return other,
            };
            for (buffer, meta) in buffers.iter().zip(meta.iter_mut()).take(count) {
                // Long header of QUIC version 1, packet type 3. One packet is one datagram here.
                let is_retry = buffer[0] & 0xf0 == 0xf0;
                self.retries.fetch_add(usize::from(is_retry), Ordering::Relaxed);
                if !(is_retry && self.hears_retry) {
                    // Nothing of it is read.
                    meta.len = 0;
                }
            }
            if meta[..count].iter().any(|meta| meta.len > 0) {
                return Poll::Ready(Ok(count));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

/// A stranger behind such a socket, and how often it was asked to prove its address.
fn deaf(seed: u8, hears_retry: bool) -> (Node, Arc<AtomicUsize>) {
    let retries = Arc::new(AtomicUsize::new(0));
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let socket = TokioRuntime.wrap_udp_socket(udp).unwrap();
    let socket = Arc::new(Deaf { socket, hears_retry, retries: retries.clone() });
    let socket = Socket::Abstract { socket, runtime: Arc::new(TokioRuntime), rng_seed: [seed; 32] };
    (Node::start_on(stranger(seed), u64::from(seed), socket), retries)
}

/// So many handshakes begun at once, which go on trying until they are dropped.
fn begin(by: &Node, at: SocketAddr, count: usize) -> Vec<quinn::Connecting> {
    let inner = &by.mesh.inner;
    let dial = |_| inner.endpoint.connect_with(inner.client.clone(), at, identity::SERVER_NAME).unwrap();
    (0..count).map(dial).collect()
}

/// Waits until that is so, and asks meanwhile that no more than `most` handshakes run at `node`.
async fn watched(node: &Node, most: usize, what: &str, mut until: impl FnMut() -> bool) {
    let seen = timeout(Duration::from_secs(20), async {
        while !until() {
            let running = node.mesh.inner.handshakes.count();
            assert!(running <= most, "{running} handshakes at once");
            sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(seen.await.is_ok(), "still not: {what}");
}

/// The other node as a member whose address is not known: it has to come.
fn expects(node: &Node, other: &Node) {
    node.view
        .send_replace(view_of([listed(&node.identity, Some(node.addr())), listed(&other.identity, None)]));
}

fn goes_to(node: &Node, other: &Node) {
    node.view
        .send_replace(view_of([listed(&node.identity, None), listed(&other.identity, Some(other.addr()))]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_hears_nothing_takes_few_places_and_a_member_comes_in_past_them() {
    let (a, b) = (Node::start(member(1), 1), Node::start(member(2), 2));
    let (crowd, retries) = deaf(3, false);
    expects(&a, &b);
    let flood = begin(&crowd, a.addr(), 500);
    watched(&a, 32, "most are asked to prove their address", || {
        a.mesh.inner.handshakes.count() == 32 && retries.load(Ordering::Relaxed) >= 468
    })
    .await;
    // What it keeps of those it has asked is nothing.
    let open = a.mesh.inner.endpoint.open_connections();
    assert!(open <= 32, "{open} connections of which nothing was heard");
    assert_eq!(a.heard(), []);

    goes_to(&b, &a);
    a.linked(b.id()).await;
    b.linked(a.id()).await;
    assert_eq!(b.ask(a.id(), "hi").await.unwrap(), "1: hi");
    drop(flood);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_host_that_proves_its_address_takes_its_share_and_no_more() {
    let a = Node::start(member(1), 1);
    let elsewhere = Socket::Bind("127.0.0.2:0".parse().unwrap());
    let b = Node::start_on(member(2), 2, elsewhere);
    let (crowd, retries) = deaf(3, true);
    expects(&a, &b);
    let flood = begin(&crowd, a.addr(), 500);
    watched(&a, 64, "its share is full", || {
        let refused = a.mesh.inner.endpoint.stats().refused_handshakes;
        a.mesh.inner.handshakes.count() == 64 && refused >= 100
    })
    .await;
    assert!(retries.load(Ordering::Relaxed) >= 32, "before more than that begin, an address is proved");
    let open = a.mesh.inner.endpoint.open_connections();
    assert!(open <= 64, "{open} connections of which only an address is known");

    goes_to(&b, &a);
    a.linked(b.id()).await;
    b.linked(a.id()).await;
    assert_eq!(b.ask(a.id(), "hi").await.unwrap(), "1: hi");
    drop(flood);
}

/// Dials last for two seconds where nobody is, and no more run at a time than there are addresses in a
/// moment: a member among them must have its turn, however late in their order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_without_end_keep_no_member_waiting() {
    let a = Node::start(member(1), 1);
    let b = Node::start_on(member(2), 2, Socket::Bind("127.9.0.1:0".parse().unwrap()));
    expects(&a, &b);
    expects(&b, &a);
    let mut links = a.mesh.links();
    let linked = async { drop(links.wait_for(|links| links.contains_key(&b.id())).await.unwrap()) };
    let shouts = async {
        // All of them before the member's address.
        for round in 0_u32.. {
            let nobody = (0..60).map(|n| SocketAddr::from(((0x7f01_0000 + round * 60 + n).to_be_bytes(), 9)));
            a.mesh.set_candidates(nobody.chain([b.addr()]).collect());
            sleep(Duration::from_millis(20)).await;
        }
    };
    let found = async {
        tokio::select! {
            () = linked => {}
            () = shouts => {}
        }
    };
    assert!(timeout(Duration::from_secs(20), found).await.is_ok(), "the member was never dialled");
}
