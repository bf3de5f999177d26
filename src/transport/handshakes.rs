//! How many handshakes of incoming connections may run at once, in all and of one source.
//!
//! A handshake costs memory and a signature before anything is known of who is there. From
//! [`RETRY_FROM`] on a source must prove that it hears what is sent to its address, which costs this
//! node nothing to remember; so no more than that many can be begun in other people's names. Whoever
//! does prove its address has its own share and not that of others, so that a member at another
//! address still comes in.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Handshakes at once from which on a source must prove its address.
const RETRY_FROM: usize = 32;
/// The most there may be, and the most of one source.
const MOST: usize = 256;
/// More than [`RETRY_FROM`]: whoever sends in another one's name takes from his share, never all of it.
const MOST_OF_ONE: usize = 64;

/// Counts the handshakes that run.
#[derive(Debug, Clone, Default)]
pub(super) struct Handshakes(Arc<Mutex<Running>>);

#[derive(Debug, Default)]
struct Running {
    all: usize,
    of: BTreeMap<IpAddr, usize>,
}

/// What becomes of an incoming connection.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It may begin; it counts until the value is dropped.
    Begin(Handshake),
    /// Not before its source has proved its address.
    Prove,
    /// There are too many.
    Refuse,
}

/// A handshake that runs.
#[derive(Debug)]
pub(super) struct Handshake {
    running: Handshakes,
    source: IpAddr,
}

impl Handshakes {
    /// `proven`: the source has shown that it hears what is sent to this address.
    pub(super) fn judge(&self, source: IpAddr, proven: bool) -> Verdict {
        let source = network_of(source);
        let mut running = self.lock();
        let of_it = running.of.get(&source).copied().unwrap_or(0);
        if running.all >= MOST || of_it >= MOST_OF_ONE {
            return Verdict::Refuse;
        }
        if running.all >= RETRY_FROM && !proven {
            return Verdict::Prove;
        }
        running.all += 1;
        running.of.insert(source, of_it + 1);
        Verdict::Begin(Handshake { running: self.clone(), source })
    }

    /// How many run.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut running = self.running.lock();
        running.all = running.all.saturating_sub(1);
        match running.of.get_mut(&self.source) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                running.of.remove(&self.source);
            }
        }
    }
}

/// One host has as many IPv6 addresses as it likes, all of them within 64 bits.
fn network_of(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    fn begin(handshakes: &Handshakes, source: IpAddr, proven: bool) -> Option<Handshake> {
        match handshakes.judge(source, proven) {
            Verdict::Begin(handshake) => Some(handshake),
            Verdict::Prove | Verdict::Refuse => None,
        }
    }

    #[test]
    fn who_has_not_proved_an_address_cannot_take_the_places_of_who_has() {
        let handshakes = Handshakes::default();
        // All in the name of one member.
        let forged: Vec<_> = (0..1_000).filter_map(|_| begin(&handshakes, at(1), false)).collect();
        assert_eq!((forged.len(), handshakes.count()), (RETRY_FROM, RETRY_FROM));
        assert!(matches!(handshakes.judge(at(1), false), Verdict::Prove));
        assert!(begin(&handshakes, at(1), true).is_some(), "the member itself, after a retry");
        drop(forged);
        assert_eq!((handshakes.count(), handshakes.lock().of.len()), (0, 0));
    }

    #[test]
    fn one_source_has_a_share_and_all_together_have_a_limit() {
        let handshakes = Handshakes::default();
        let mut held: Vec<_> = (0..1_000).filter_map(|_| begin(&handshakes, at(1), true)).collect();
        assert_eq!(held.len(), MOST_OF_ONE);
        assert!(matches!(handshakes.judge(at(1), true), Verdict::Refuse));
        assert!(begin(&handshakes, at(2), true).is_some(), "others still come in");
        for source in 2..=200 {
            held.extend((0..MOST_OF_ONE).filter_map(|_| begin(&handshakes, at(source), true)));
        }
        assert_eq!((held.len(), handshakes.count()), (MOST, MOST));
        assert!(matches!(handshakes.judge(at(250), true), Verdict::Refuse));
        assert!(handshakes.lock().of.len() <= MOST, "nobody is remembered who has none that runs");
        drop(held.pop());
        assert!(begin(&handshakes, at(250), true).is_some());
    }

    #[test]
    fn a_host_with_many_addresses_is_one_source() {
        let handshakes = Handshakes::default();
        let v6 = |network: u16, n: u16| IpAddr::from([0x2001, 0xdb8, 0, network, 0, 0, 0, n]);
        let held: Vec<_> = (0..1_000).filter_map(|n| begin(&handshakes, v6(1, n), true)).collect();
        assert_eq!(held.len(), MOST_OF_ONE);
        assert!(begin(&handshakes, v6(2, 1), true).is_some());
        let mapped = |n: u8| IpAddr::from(std::net::Ipv4Addr::new(10, 0, 0, n).to_ipv6_mapped());
        let held: Vec<_> = (0..1_000).filter_map(|_| begin(&handshakes, mapped(1), true)).collect();
        assert_eq!(held.len(), MOST_OF_ONE, "IPv4 behind a dual-stack socket");
        assert!(matches!(handshakes.judge(at(1), true), Verdict::Refuse));
        assert!(begin(&handshakes, mapped(2), true).is_some());
    }
}
