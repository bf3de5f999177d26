//! Why a member needs a new certificate: by its own clock and roots, and by what others say of it.

use tokio::time::{Duration, Instant};

use crate::identity::PeerCertificate;

/// After an attempt: with a certificate that still holds, and with one that does not, or soon will not.
const RETRY: Duration = Duration::from_secs(30);
pub(super) const RETRY_URGENT: Duration = Duration::from_secs(3);
/// Longest silence after certificates that the others did not take.
const QUIET: Duration = Duration::from_secs(1_800);

/// Why a new certificate is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// By this node's clock it is over.
    Expired,
    /// Others have not taken it, or show certificates of a root that is unknown here.
    Refused,
    /// Another root signs by now.
    OldRoot,
    /// Half of its life is over.
    Due,
}

impl Cause {
    /// Until the next attempt.
    pub(super) const fn pause(self) -> Duration {
        match self {
            Self::Expired | Self::OldRoot => RETRY_URGENT,
            Self::Refused | Self::Due => RETRY,
        }
    }
}

/// Whether a new certificate is needed now, and why. That it is not valid yet is no cause: by which of
/// two clocks that is so, this node cannot know, and if the others think so too they refuse it.
pub(super) fn cause(
    certificate: &PeerCertificate,
    newest: Option<&[u8]>,
    now: u64,
    jitter: f64,
    refused: bool,
) -> Option<Cause> {
    if now >= certificate.not_after {
        Some(Cause::Expired)
    } else if refused {
        Some(Cause::Refused)
    } else if newest.is_some_and(|root| certificate.signer(&[root]).is_none()) {
        Some(Cause::OldRoot)
    } else {
        (now >= due(certificate, jitter)).then_some(Cause::Due)
    }
}

/// What others say of this node's certificate. One word may be of a node that lags behind by an entry;
/// it counts when it is still said after a while.
#[derive(Debug, Default)]
pub(super) struct Lapse {
    heard: u64,
    first: Option<Instant>,
    last: Option<Instant>,
    /// After an answer that did not help: longer and longer.
    quiet_until: Option<Instant>,
    renewals: u32,
}

impl Lapse {
    /// Between the first word and the one that makes it count.
    const STANDS: Duration = Duration::from_secs(3);
    /// A word that is so old is forgotten.
    const FORGET: Duration = Duration::from_secs(60);

    pub(super) fn note(&mut self, heard: u64, now: Instant) {
        if self.quiet_until.is_some_and(|until| now < until) {
            self.heard = heard;
            return;
        }
        if self.last.is_some_and(|last| now - last > Self::FORGET) {
            (self.first, self.last) = (None, None);
        }
        if heard != self.heard {
            self.heard = heard;
            self.first.get_or_insert(now);
            self.last = Some(now);
        }
    }

    pub(super) fn counts(&self) -> bool {
        matches!((self.first, self.last), (Some(first), Some(last)) if last - first >= Self::STANDS)
    }

    pub(super) fn is_open(&self) -> bool {
        self.first.is_some()
    }

    /// A new certificate is there. If the others do not take that one either, somebody's clock is wrong,
    /// and asking more often would only make more entries.
    pub(super) fn answered(&mut self, now: Instant) {
        if self.counts() {
            self.renewals += 1;
            self.quiet_until = Some(now + (RETRY * (1 << self.renewals.min(6))).min(QUIET));
        }
        (self.first, self.last) = (None, None);
    }
}

/// When to renew: at half life, up to a tenth of it earlier. Seconds since 1970.
pub(super) fn due(certificate: &PeerCertificate, jitter: f64) -> u64 {
    let life = certificate.not_after.saturating_sub(certificate.not_before);
    let early = (life as f64 / 10.0 * jitter.clamp(0.0, 1.0)) as u64;
    (certificate.not_before + life / 2).saturating_sub(early)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::{ClusterCa, Identity, NodeKey},
        types::ClusterId,
    };

    const NOW: u64 = 1_800_000_000;
    const DAY: u64 = 86_400;

    #[test]
    fn each_cause_by_clock_root_and_word() {
        let ca = |n: u8| ClusterCa::create(ClusterId([1; 16]), &[n; 32], NOW).unwrap();
        let (old, new) = (ca(1), ca(2));
        let me = Identity::stranger(NodeKey::from_seed(&[3; 32]).unwrap(), NOW).unwrap();
        let issued = old.issue(&me.csr().unwrap(), ClusterId([1; 16]), [1; 16], NOW).unwrap();
        let certificate = PeerCertificate::parse(&issued.certificate).unwrap();
        let cause =
            |root: &ClusterCa, now, refused| cause(&certificate, Some(root.certificate()), now, 0.0, refused);
        assert_eq!(cause(&old, NOW, false), None);
        assert_eq!(cause(&old, NOW + 16 * DAY, false), Some(Cause::Due));
        assert_eq!(cause(&old, NOW + 14 * DAY, false), None, "not before half life");
        // Thirty days of it, of which the jitter is up to three.
        let [late, early] = [0.0, 1.0].map(|jitter| due(&certificate, jitter));
        assert_eq!(late - early, (certificate.not_after - certificate.not_before) / 10);
        assert_eq!(cause(&old, NOW + 30 * DAY, false), Some(Cause::Expired));
        assert_eq!(cause(&old, NOW + 400 * DAY, true), Some(Cause::Expired), "its own signature comes first");
        assert_eq!(cause(&new, NOW, false), Some(Cause::OldRoot));
        assert_eq!(cause(&old, NOW, true), Some(Cause::Refused));
        // Not valid yet by this node's clock: only the others' word counts.
        assert_eq!(cause(&old, NOW - 5 * 3_600, false), None);
        assert_eq!(cause(&old, NOW - 5 * 3_600, true), Some(Cause::Refused));
        assert_eq!(super::cause(&certificate, None, NOW, 0.0, false), None, "before a view is known");
    }

    #[tokio::test(start_paused = true)]
    async fn one_word_is_not_enough_and_answers_that_do_not_help_make_it_quiet() {
        let mut lapse = Lapse::default();
        let step = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        let mut heard = 0;
        lapse.note(heard, Instant::now());
        assert!(!lapse.counts() && !lapse.is_open());
        // Once, of a node that lagged behind.
        heard += 1;
        lapse.note(heard, Instant::now());
        step(30).await;
        lapse.note(heard, Instant::now());
        assert!(!lapse.counts());
        step(61).await;
        heard += 1;
        lapse.note(heard, Instant::now());
        assert!(!lapse.counts(), "the first word is forgotten by then");
        // Again and again.
        let mut renewals = Vec::new();
        for second in 0..7_200 {
            step(1).await;
            heard += 1;
            lapse.note(heard, Instant::now());
            if lapse.counts() {
                renewals.push(second);
                lapse.answered(Instant::now());
            }
        }
        assert!(renewals[0] <= 5, "{renewals:?}");
        let pauses: Vec<_> = renewals.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses[0] >= 30 && pauses.is_sorted() && renewals.len() < 12, "{renewals:?}");
    }
}
