//! How often somebody may do something: an account each, that fills up with every time and empties evenly
//! (the generic cell rate algorithm, ITU-T I.371).

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Those who are remembered. Those beyond share one account.
const MOST: usize = 4_096;

/// An account per `Who`.
#[derive(Debug)]
pub(super) struct Accounts<Who> {
    accounts: Mutex<HashMap<Option<Who>, Account>>,
    /// So many times in a row.
    burst: u32,
    /// One more after so long.
    refill: Duration,
}

/// When the account will be back at nothing; each time moves that by `refill`.
#[derive(Debug)]
struct Account {
    settled: Instant,
    told: bool,
}

/// An account is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full {
    /// It was not when this was asked before.
    pub(super) first: bool,
}

impl<Who: Eq + Hash> Accounts<Who> {
    /// For `burst` times in a row, and one more after each `refill`.
    pub(super) fn new(burst: u32, refill: Duration) -> Self {
        Self { accounts: Mutex::default(), burst, refill }
    }

    /// Notes one time.
    ///
    /// # Errors
    /// That is too often; it does not count.
    pub(super) fn note(&self, who: Who) -> Result<(), Full> {
        let now = Instant::now();
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut who = Some(who);
        if accounts.len() >= MOST && !accounts.contains_key(&who) {
            accounts.retain(|_, account| account.settled > now);
            if accounts.len() >= MOST {
                who = None;
            }
        }
        let account = accounts.entry(who).or_insert(Account { settled: now, told: false });
        let settled = account.settled.max(now) + self.refill;
        if settled - now > self.refill * self.burst {
            let first = !std::mem::replace(&mut account.told, true);
            return Err(Full { first });
        }
        account.told &= account.settled > now;
        account.settled = settled;
        Ok(())
    }
}

/// Whose account an address has: an IPv6 address counts as its /64, for whoever has one has all of them.
pub(super) fn network(address: IpAddr) -> IpAddr {
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

    const BURST: u32 = 20;

    fn accounts() -> Accounts<IpAddr> {
        Accounts::new(BURST, Duration::from_secs(1))
    }

    fn let_pass(accounts: &Accounts<IpAddr>, address: &str) -> usize {
        let who = network(address.parse().unwrap());
        (0..1_000).filter(|_| accounts.note(who).is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_and_then_one_a_second() {
        let accounts = accounts();
        assert_eq!(let_pass(&accounts, "192.0.2.1"), 20);
        assert_eq!(let_pass(&accounts, "192.0.2.2"), 20, "another address has its own account");
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(let_pass(&accounts, "192.0.2.1"), 3);
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert_eq!(let_pass(&accounts, "::ffff:192.0.2.1"), 20, "the same, written otherwise");
        assert_eq!(let_pass(&accounts, "2001:db8::1"), 20);
        assert_eq!(let_pass(&accounts, "2001:db8::ffff:2"), 0, "of the same network");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_told_once_each_time() {
        let accounts = Accounts::new(1, Duration::from_secs(1));
        for _ in 0..2 {
            assert_eq!(accounts.note(1), Ok(()));
            assert_eq!(accounts.note(1), Err(Full { first: true }));
            assert_eq!(accounts.note(1), Err(Full { first: false }));
            tokio::time::advance(Duration::from_secs(2)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_those_beyond_share() {
        let accounts = accounts();
        let address = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        let passed = (0..10_000).filter(|n| accounts.note(address(*n)).is_ok()).count();
        assert_eq!(passed, MOST + BURST as usize);
        assert_eq!(accounts.accounts.lock().unwrap().len(), MOST + 1);
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert!(accounts.note(address(20_000)).is_ok());
        assert_eq!(accounts.accounts.lock().unwrap().len(), 1);
    }
}
