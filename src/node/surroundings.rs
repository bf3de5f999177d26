//! What a node takes from its surroundings: disk, clock and randomness. A simulation hands in its
//! own; everything else is the node itself.

use std::{
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use rand::{CryptoRng, RngCore};

use crate::disk::{Disk, RealDisk};

/// Fills a buffer with random bytes.
pub type Entropy = Arc<dyn Fn(&mut [u8]) + Send + Sync>;
/// Wall clock: nanoseconds since 1970. For certificates, tokens and record timestamps, never for
/// an order or a lease.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Disk, clock, randomness.
#[derive(Clone)]
pub struct Surroundings {
    /// Everything that must survive.
    pub disk: Arc<dyn Disk>,
    /// Wall clock.
    pub clock: Clock,
    /// Randomness for keys and ids.
    pub entropy: Entropy,
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl Surroundings {
    /// Those of this machine.
    pub fn real() -> Self {
        Self {
            disk: Arc::new(RealDisk),
            clock: Arc::new(|| {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
            }),
            entropy: Arc::new(|bytes| rand::rng().fill_bytes(bytes)),
        }
    }

    /// Seconds since 1970.
    pub fn unix_seconds(&self) -> u64 {
        u64::try_from((self.clock)() / 1_000_000_000).unwrap_or(0)
    }

    /// Milliseconds since 1970.
    pub fn unix_ms(&self) -> u64 {
        u64::try_from((self.clock)() / 1_000_000).unwrap_or(0)
    }

    /// Random bytes.
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        (self.entropy)(&mut bytes);
        bytes
    }

    /// The entropy as a generator.
    pub fn rng(&self) -> EntropyRng {
        EntropyRng(self.entropy.clone())
    }
}

/// [`Entropy`] as `rand` wants it.
pub struct EntropyRng(Entropy);

impl fmt::Debug for EntropyRng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EntropyRng")
    }
}

impl RngCore for EntropyRng {
    fn next_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        (self.0)(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        (self.0)(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        (self.0)(bytes);
    }
}

impl CryptoRng for EntropyRng {}
