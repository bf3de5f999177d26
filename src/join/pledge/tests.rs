//! The rules, case by case.

use super::*;

pub(super) fn id(n: u8) -> NodeId {
    NodeId([n; 16])
}

pub(super) fn sighting(at: Instant, expect: u32, pledge: Option<NodeId>) -> Sighting {
    Sighting { name: String::new(), expect, pledge, addresses: vec![], others: vec![], at }
}

/// Node 2 of three, which has met those nodes just now.
fn sees(pledge: Option<u8>, others: &[(u8, u32, Option<u8>)]) -> Gathering {
    let mut gathering = Gathering::new(id(2), "b".into(), 3, pledge.map(id));
    for (other, expect, pledge) in others {
        gathering.note(id(*other), sighting(Instant::now(), *expect, pledge.map(id)));
    }
    gathering
}

fn waits(gathering: &Gathering) -> String {
    match gathering.step(Instant::now()) {
        Step::Wait(why) => why.to_string(),
        step => panic!("does not wait: {step:?}"),
    }
}

#[test]
fn a_pledge_goes_to_the_smallest_of_exactly_so_many() {
    let step = |pledge, others: &[_]| sees(pledge, others).step(Instant::now());
    assert_eq!(step(None, &[(1, 3, None), (3, 3, None)]), Step::Pledge(id(1)));
    assert_eq!(step(None, &[(3, 3, None), (4, 3, None)]), Step::Pledge(id(2)), "to itself");
    assert_eq!(step(None, &[(1, 3, Some(1)), (3, 3, Some(1))]), Step::Pledge(id(1)), "as the others did");

    assert!(
        waits(&sees(None, &[])).starts_with("1 of 3 nodes seen: b (aibaea, this node); the others must run")
    );
    assert!(waits(&sees(None, &[(1, 3, None)])).starts_with("2 of 3 nodes seen: "));
    let many = waits(&sees(None, &[(1, 3, None), (3, 3, None), (4, 3, None)]));
    assert!(many.contains("4 of 3") && many.contains("more than --bootstrap-expect says"), "{many}");
    let number = waits(&sees(None, &[(1, 3, None), (3, 5, None)]));
    assert!(number.contains("--bootstrap-expect 5, this node with 3"), "{number}");
    let lost = waits(&sees(None, &[(1, 3, None), (3, 3, Some(9))]));
    assert!(lost.contains("not in sight") && lost.contains("empty the data directory of each"), "{lost}");
    let late = waits(&sees(None, &[(1, 3, None), (3, 3, Some(2))]));
    assert!(late.contains("is pledged to b (aibaea, this node)"), "{late}");
}

#[test]
fn a_pledge_is_given_once_and_counted() {
    let step = |pledge, others: &[_]| sees(pledge, others).step(Instant::now());
    // Whatever is in sight afterwards.
    for others in [&[][..], &[(1, 3, None), (3, 3, None)], &[(1, 3, Some(1)), (3, 3, Some(1))]] {
        assert!(matches!(step(Some(4), others), Step::Wait(_)), "{others:?}");
        assert!(matches!(step(Some(2), others), Step::Wait(_)), "{others:?}");
    }
    let own = waits(&sees(Some(2), &[(3, 3, Some(2)), (4, 3, None)]));
    assert!(own.contains("pledged to this node: 2 of 3"), "{own}");
    assert_eq!(step(Some(2), &[(3, 3, Some(2)), (4, 3, Some(2))]), Step::Found);
    let there = waits(&sees(Some(1), &[(1, 3, Some(1)), (3, 3, Some(1))]));
    assert!(there.contains(", pledged to aeaqca, which makes the cluster"), "{there}");
    let gone = waits(&sees(Some(1), &[(3, 3, Some(1))]));
    assert!(gone.contains("pledged to aeaqca, which is not in sight and must be started"), "{gone}");

    let alone = Gathering::new(id(2), "b".into(), 1, None);
    assert_eq!(alone.step(Instant::now()), Step::Pledge(id(2)));
    assert_eq!(Gathering::new(id(2), "b".into(), 1, Some(id(2))).step(Instant::now()), Step::Found);
}

#[test]
fn only_who_was_met_just_now_is_in_sight() {
    let start = Instant::now();
    let mut gathering = Gathering::new(id(2), "b".into(), 2, None);
    assert!(gathering.note(id(1), sighting(start, 2, None)));
    assert!(!gathering.note(id(1), sighting(start, 2, None)), "no news");
    assert!(gathering.note(id(1), sighting(start, 2, Some(id(1)))));
    assert!(!gathering.note(id(2), sighting(start, 2, None)), "it never counts itself twice");
    assert_eq!(gathering.step(start), Step::Pledge(id(1)));
    assert!(matches!(gathering.step(start + IN_SIGHT), Step::Wait(_)));
    // An emptied directory: its former self goes out of sight, then the new one counts.
    gathering.note(id(9), sighting(start + IN_SIGHT / 2, 2, None));
    assert!(matches!(gathering.step(start + IN_SIGHT / 2), Step::Wait(_)));
    assert_eq!(gathering.step(start + IN_SIGHT), Step::Pledge(id(2)));
    for n in 10..100 {
        gathering.note(id(n), sighting(start + IN_SIGHT, 2, None));
    }
    assert_eq!(gathering.others(start + IN_SIGHT).count(), MAX_SEEN);
}
