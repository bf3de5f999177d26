//! Renewing links: while the CA is rotated, a link that was made under certificates of the old root is
//! replaced by one under the new, and ends when its streams have. Otherwise it would be cut, with
//! everything on it, when the old root is retired.
//!
//! Only the smaller of two ids does so, and once both have renewed: two renewals of one link would
//! compete.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use tracing::debug;

use super::{
    close::{CloseCode, Closed},
    contact::Contact,
    link::{DialError, Greeting, HELLO_TIMEOUT, Link},
    mesh::Inner,
};

/// Between two looks at the links.
const LOOK: Duration = Duration::from_secs(1);

/// Renews links until dropped.
pub(super) async fn run(inner: Arc<Inner>) {
    loop {
        for link in outdated(&inner) {
            let peer = link.contact.node();
            match renew(&inner, &link).await {
                // The driver holds the other end for as long as it runs this.
                Ok(renewed) => drop(inner.adopt.send(renewed)),
                Err(error) => debug!(%peer, %error, "the link is not renewed yet"),
            }
        }
        sleep(LOOK).await;
    }
}

/// Links that could be under the newest root and are not.
fn outdated(inner: &Inner) -> Vec<Arc<Link>> {
    let (view, now, own) = (inner.view(), (inner.clock)(), inner.identity.node());
    let Some(rotation) = view.rotation.as_ref().filter(|rotation| rotation.renewed.contains(&own)) else {
        return Vec::new();
    };
    let links: Vec<Arc<Link>> = inner.pool().iter().map(|(_, link)| link.clone()).collect();
    let outdated = |link: &Arc<Link>| {
        let peer = link.contact.node();
        own < peer && rotation.renewed.contains(&peer) && !link.contact.is_of_newest_root(&view, now)
    };
    links.into_iter().filter(outdated).collect()
}

/// Where its packets come from first, then where it says it can be reached.
async fn dial(inner: &Inner, link: &Link) -> Result<Arc<Contact>, DialError> {
    let mut failed = DialError::Hello("no address is known".to_owned());
    for address in std::iter::once(link.contact.remote()).chain(link.hello.addresses.mesh.iter().copied()) {
        match inner.dial(address).await {
            Ok(contact) if contact.node() == link.contact.node() => return Ok(contact),
            Ok(contact) => {
                contact.close(CloseCode::Done);
                failed = DialError::OtherNode(contact.node());
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

async fn renew(inner: &Arc<Inner>, link: &Link) -> Result<Arc<Link>, DialError> {
    let peer = link.contact.node();
    if !inner.pool().start_renewal(peer) {
        return Err(DialError::AlreadyLinked(peer));
    }
    let _greeting = Greeting::new(inner.clone(), peer);
    let contact = dial(inner, link).await?;
    let class = contact.class(&inner.view(), (inner.clock)());
    if !class.is_member() {
        contact.turn_away(class, &inner.view());
        return Err(DialError::NotMember(class));
    }
    let reply = match timeout(HELLO_TIMEOUT, inner.exchange_hello(&contact, true)).await {
        Ok(Ok(reply)) => reply,
        _ => {
            let closed = contact.conn.close_reason().map(Closed::from);
            contact.close(CloseCode::Protocol);
            return Err(closed.map_or_else(|| DialError::Hello("no answer".to_owned()), DialError::from));
        }
    };
    let own = inner.identity.node();
    inner.register(contact, reply, own, true, None).map_err(|code| DialError::Hello(code.to_string()))
}
