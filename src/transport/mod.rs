//! QUIC streams and lanes: one authenticated connection per peer, on one UDP port.
//!
//! [`Mesh`] is the handle everyone uses, [`MeshDriver`] the future that `node/` runs. Who a peer is
//! and what it may open is decided in `router`, which connection to a peer stays in `pool`. The
//! transport does not know what the streams carry.

mod close;
mod contact;
mod dialer;
mod driver;
mod endpoint;
mod gate;
mod generation;
mod handshakes;
mod lanes;
mod link;
mod mesh;
mod pool;
mod refresh;
mod router;
mod stranger;
mod stream;
#[cfg(test)]
mod tests;
mod traffic;

pub use close::{CloseCode, Closed};
pub use driver::MeshDriver;
pub use endpoint::{MeshError, Socket};
pub use generation::Foreign;
pub use link::{DialError, LinkInfo};
pub use mesh::{CallError, MAX_CANDIDATES, Mesh, MeshConfig, OpenError};
pub use router::{Handler, Peer, PromoteError, Router};
pub use stranger::StrangerLink;
pub use stream::{RecvStream, SendStream, Stream, StreamError};
pub use traffic::{LaneBytes, MeshTraffic};
