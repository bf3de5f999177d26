//! The UDP socket and the QUIC endpoint on it: client and server in one.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use quinn::{
    AsyncUdpSocket, ClientConfig, Endpoint, EndpointConfig, MtuDiscoveryConfig, NoneTokenStore, Runtime,
    ServerConfig, TimeSource, TokioRuntime, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use ring::hmac;
use tracing::warn;

use crate::{
    identity::{Identity, TlsError, client_tls, server_tls},
    protocol::frame,
    types::Timing,
};

/// Wanted size of the kernel's socket buffers: the default loses packets on a busy link.
const SOCKET_BUFFER: usize = 4 << 20;
/// Largest UDP payload: fits a 1500-byte Ethernet frame with IPv6 and some tunnel overhead.
const MAX_MTU: u16 = 1452;
/// Receive windows: a stream's, and a connection's before and after the hello.
pub(super) const STREAM_WINDOW: u32 = 8 << 20;
const CONTACT_WINDOW: u32 = 128 * 1024;
const LINK_WINDOW: u32 = 32 << 20;
/// Unacknowledged bytes per connection; more only queues in front of heartbeats.
pub(super) const SEND_WINDOW: u64 = 1 << 20;
/// Streams a linked peer may have open at once.
const LINK_STREAMS: u32 = 1024;

/// Where the mesh sends and receives.
#[derive(Debug, Clone)]
pub enum Socket {
    /// A UDP socket of its own. `[::]` is dual stack, and falls back to `0.0.0.0` on hosts
    /// without IPv6.
    Bind(SocketAddr),
    /// A socket, timers and randomness from outside: the simulated network.
    Abstract {
        /// The datagrams.
        socket: Arc<dyn AsyncUdpSocket>,
        /// Timers and clock.
        runtime: Arc<dyn Runtime>,
        /// Seed of the endpoint's randomness.
        rng_seed: [u8; 32],
    },
}

/// A mesh endpoint that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The address is taken, or not this host's.
    #[error("cannot listen on UDP {address}: {source}")]
    Bind {
        /// Which address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The socket does not work.
    #[error("cannot use the mesh socket: {0}")]
    Socket(#[from] io::Error),
    /// TLS refuses the configuration.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// QUIC refuses the configuration.
    #[error("cannot configure QUIC: {0}")]
    Quic(String),
}

/// Seconds since 1970, for certificates.
pub(super) type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Opens the endpoint; returns it with the configuration to dial with.
pub(super) fn open(
    socket: Socket,
    identity: &Arc<Identity>,
    timing: Timing,
    clock: &Clock,
) -> Result<(Endpoint, ClientConfig), MeshError> {
    let transport = Arc::new(transport(timing)?);
    let quic = |error: quinn::crypto::rustls::NoInitialCipherSuite| MeshError::Quic(error.to_string());
    let tls = server_tls(identity.clone(), frame::ALPN)?;
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).map_err(quic)?));
    server.transport_config(transport.clone()).time_source(Arc::new(TokenClock(clock.clone())));
    // quinn's defaults would buffer up to 100 MB for connections nobody has looked at.
    server.max_incoming(256).incoming_buffer_size(64 * 1024).incoming_buffer_size_total(4 << 20);
    server.validation_token.sent(0);
    let tls = client_tls(identity.clone(), frame::ALPN)?;
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).map_err(quic)?));
    // All peers share one server name, so a token of one would be offered to another.
    client.transport_config(transport).token_store(Arc::new(NoneTokenStore));

    let endpoint = match socket {
        Socket::Bind(address) => {
            let socket = bind(address).map_err(|source| MeshError::Bind { address, source })?;
            Endpoint::new(EndpointConfig::default(), Some(server), socket, Arc::new(TokioRuntime))?
        }
        Socket::Abstract { socket, runtime, rng_seed } => {
            let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &rng_seed)));
            config.rng_seed(Some(rng_seed));
            Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime)?
        }
    };
    Ok((endpoint, client))
}

/// A connection starts with room for a hello or a join, and nothing else.
fn transport(timing: Timing) -> Result<TransportConfig, MeshError> {
    let mut config = TransportConfig::default();
    let idle = timing.idle.try_into().map_err(|_| MeshError::Quic("idle timeout too long".to_owned()))?;
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MAX_MTU);
    config
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(timing.keep_alive))
        // The default of 333 ms makes the first loss on a LAN cost a second.
        .initial_rtt(timing.heartbeat / 3)
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONTACT_WINDOW))
        .send_window(SEND_WINDOW)
        .mtu_discovery_config(Some(mtu));
    Ok(config)
}

/// Gives a connection the room of a link.
pub(super) fn widen(conn: &quinn::Connection) {
    conn.set_receive_window(VarInt::from_u32(LINK_WINDOW));
    conn.set_max_concurrent_bi_streams(VarInt::from_u32(LINK_STREAMS));
}

fn bind(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    match bind_exactly(address) {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && no_ipv6(&error) => {
            warn!(%error, "no IPv6 on this host, listening on IPv4 only");
            bind_exactly((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        other => other,
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let codes = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL, Errno::PROTONOSUPPORT];
    error.raw_os_error().is_some_and(|code| codes.iter().any(|known| known.raw_os_error() == code))
}

fn bind_exactly(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    use socket2::{Domain, Protocol, Type};
    let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // Linux gives less than asked for, silently, where its limit is lower.
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    let got = socket.recv_buffer_size()?.min(socket.send_buffer_size()?);
    if got < SOCKET_BUFFER {
        warn!(
            got,
            wanted = SOCKET_BUFFER,
            "UDP socket buffers are small, bursts may lose packets; \
             raise them with sysctl net.core.rmem_max and net.core.wmem_max"
        );
    }
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// The clock behind address validation tokens.
struct TokenClock(Clock);

impl TimeSource for TokenClock {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs((self.0)())
    }
}
