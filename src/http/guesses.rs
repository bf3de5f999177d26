//! Wrong credentials by address: how many are answered before the answer is to stop.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Wrong credentials in a row that an address may show.
const BURST: u32 = 20;
/// One more is let pass after so long.
const REFILL: Duration = Duration::from_secs(1);
/// Addresses that are remembered. Those beyond share one account.
const ADDRESSES: usize = 4_096;

/// An account per address. An IPv6 address counts as its /64: whoever has one has all of them.
#[derive(Debug, Default)]
pub(super) struct Guesses {
    accounts: Mutex<HashMap<Option<IpAddr>, Account>>,
}

/// When the account will be back at nothing; each wrong token moves that by [`REFILL`].
#[derive(Debug)]
struct Account {
    settled: Instant,
    told: bool,
}

impl Guesses {
    /// Notes wrong credentials from an address: an error once there are too many.
    pub(super) fn note(&self, address: IpAddr) -> Result<(), ()> {
        let now = Instant::now();
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut who = Some(network(address));
        if accounts.len() >= ADDRESSES && !accounts.contains_key(&who) {
            accounts.retain(|_, account| account.settled > now);
            if accounts.len() >= ADDRESSES {
                who = None;
            }
        }
        let account = accounts.entry(who).or_insert(Account { settled: now, told: false });
        let settled = account.settled.max(now) + REFILL;
        if settled - now > REFILL * BURST {
            if !account.told {
                account.told = true;
                tracing::warn!(%address, "too many requests with wrong API tokens from this address");
            }
            return Err(());
        }
        account.told &= account.settled > now;
        account.settled = settled;
        Ok(())
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn let_pass(guesses: &Guesses, address: &str) -> usize {
        (0..1_000).filter(|_| guesses.note(address.parse().unwrap()).is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_and_then_one_a_second() {
        let guesses = Guesses::default();
        assert_eq!(let_pass(&guesses, "192.0.2.1"), 20);
        assert_eq!(let_pass(&guesses, "192.0.2.2"), 20, "another address has its own account");
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(let_pass(&guesses, "192.0.2.1"), 3);
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert_eq!(let_pass(&guesses, "::ffff:192.0.2.1"), 20, "the same, written otherwise");
        assert_eq!(let_pass(&guesses, "2001:db8::1"), 20);
        assert_eq!(let_pass(&guesses, "2001:db8::ffff:2"), 0, "of the same network");
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_those_beyond_share() {
        let guesses = Guesses::default();
        let address = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        let passed = (0..10_000).filter(|n| guesses.note(address(*n)).is_ok()).count();
        assert_eq!(passed, ADDRESSES + BURST as usize);
        assert_eq!(guesses.accounts.lock().unwrap().len(), ADDRESSES + 1);
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert!(guesses.note(address(20_000)).is_ok());
        assert_eq!(guesses.accounts.lock().unwrap().len(), 1);
    }
}
