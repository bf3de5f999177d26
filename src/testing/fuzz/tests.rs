//! The targets over mutations of everything that is read, and whether a campaign finds what is wrong.
//!
//! `SKEIN_FUZZ_SEED` draws other mutations than those of every day, `SKEIN_FUZZ_MUTATIONS` says how many.

use super::*;
use crate::protocol::StreamKind;

fn from_environment(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(usual)
}

/// So many in a second or so.
#[track_caller]
fn survives(name: &str, usual: u64) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let samples = samples(name);
    assert!(samples.len() > 4 && samples.iter().all(|sample| !sample.is_empty()), "{name}");
    let (seed, mutations) =
        (from_environment("SKEIN_FUZZ_SEED", 1), from_environment("SKEIN_FUZZ_MUTATIONS", usual));
    let began = std::time::Instant::now();
    let found = campaign(target.run, &samples, seed, mutations);
    println!("{name}: {mutations} mutations of seed {seed} in {:.1?}", began.elapsed());
    if let Some(Found { after, input }) = found {
        panic!("{name}, seed {seed}, after {after}: {}", data_encoding::HEXLOWER.encode(&input));
    }
}

#[test]
fn headers_and_lengths_are_judged_before_they_mean_anything() {
    survives("frame", 20_000);
}

#[test]
fn whatever_a_stranger_says_is_understood_or_refused() {
    survives("join", 5_000);
}

#[test]
fn whatever_a_member_says_is_understood_or_refused() {
    survives("wire", 20_000);
}

#[test]
fn records_are_whole_or_refused() {
    survives("record", 20_000);
}

#[cfg(feature = "columnar")]
#[test]
fn whatever_a_client_writes_is_taken_or_refused() {
    survives("lines", 5_000);
    survives("packed", 5_000);
}

#[cfg(feature = "columnar")]
#[test]
fn payloads_are_whole_or_refused() {
    survives("payload", 5_000);
}

#[cfg(feature = "sql")]
#[test]
fn whatever_a_client_asks_has_words_or_none() {
    survives("statement", 10_000);
}

/// Every sample is what it should be: a campaign over rubbish finds nothing.
#[test]
fn the_samples_are_whole() {
    let joins = samples("join");
    for (at, request) in joins[..JOINS - 1].iter().enumerate() {
        assert!(frame::decode::<JoinRequest>(request, MAX_JOIN).is_ok(), "request {at}");
    }
    let token = joins.last().unwrap();
    assert!(String::from_utf8_lossy(token).parse::<JoinToken>().is_ok());
    assert!(PeerCertificate::parse(&joins[joins.len() - 2]).is_ok());
    let cluster = ClusterId([7; 16]);
    let ca = ClusterCa::create(cluster, &[1; 32], 1_800_000_000).unwrap();
    assert!(ca.issue(&joins[joins.len() - 3], cluster, [1; 16], 1_800_000_000).is_ok());
    let kinds: std::collections::BTreeSet<u8> = samples("wire").iter().map(|sample| sample[0]).collect();
    assert_eq!(kinds, (0..samples::KINDS as u8).collect(), "one of each kind");
    let read = |kind: u8| samples("wire").into_iter().find(|sample| sample[0] == kind).unwrap()[1..].to_vec();
    assert!(frame::decode::<ViewFrame>(&read(18), MAX_VIEW).is_ok_and(|frame| frame.view.is_some()));
    assert!(frame::decode::<NodeStatus>(&read(20), MAX_MESSAGE).is_ok());
    for sample in samples("record") {
        assert!(Record::decode_replicated(sample.into()).is_ok());
    }
}

/// Bugs of the usual kinds, planted in decoders of our own: each is found within what runs every day.
#[test]
fn a_campaign_finds_a_decoder_that_trusts_its_input() {
    type Planted = (&'static str, &'static str, fn(&[u8]));
    let planted: [Planted; 3] = [
        ("record", "a length that is longer than what is there", |data| {
            let Some((len, rest)) = data.split_first_chunk::<4>() else { return };
            let len = u32::from_le_bytes(*len) as usize;
            if rest.len() >= 68 && len < 1 << 20 {
                drop(rest[68..68 + len].to_vec());
            }
        }),
        ("frame", "a kind that is looked up without a look", |data| {
            if data.len() > 8 {
                assert!(StreamKind::ALL.len() >= usize::from(data[0]));
            }
        }),
        ("join", "a signature that is believed to have its length", |data| {
            if let Ok(JoinRequest::Admit(request)) = frame::decode(data, MAX_JOIN) {
                let _: [u8; 64] = request.proof.try_into().expect("64 bytes");
            }
        }),
    ];
    for (name, what, target) in planted {
        let found = campaign(target, &samples(name), 1, 5_000);
        assert!(found.as_ref().is_some_and(|found| found.after < 5_000), "{name}: {what}: not found");
        let again = campaign(target, &samples(name), 1, 5_000);
        assert_eq!(found, again, "{name}: the same seed finds the same");
    }
}
