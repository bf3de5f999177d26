//! Names that clients claim and give up, as a lock that is linearizable.
//!
//! A claim that was acknowledged holds its name at least from its answer to the beginning of its
//! release, and at most from its beginning to the answer of its release (for ever, if there is none).
//! So no two may surely hold a name at one moment; nobody may be refused a name that nobody can have
//! held meanwhile; and in the end every node lists the names that are surely held, and no name that
//! surely is not.

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use crate::history::{Claim, Claimed, Held, Nanos};

/// What a linearizable lock does not do.
pub fn check(claims: &[Claim], finals: &[Held]) -> Vec<Violation> {
    let mut by_name: BTreeMap<u64, Vec<&Claim>> = BTreeMap::new();
    for claim in claims {
        by_name.entry(claim.name).or_default().push(claim);
    }
    let mut found: Vec<String> = by_name.values().flat_map(|claims| one_name(claims)).collect();
    let surely: BTreeSet<u64> = claims.iter().filter(|claim| stays(claim)).map(|claim| claim.name).collect();
    let perhaps: BTreeSet<u64> = claims
        .iter()
        .filter(|claim| may_hold(claim).is_some_and(|(_, end)| end == Nanos::MAX))
        .map(|c| c.name)
        .collect();
    for end in finals {
        let listed: BTreeSet<u64> = end.names.iter().copied().collect();
        for name in surely.difference(&listed) {
            found.push(format!("name {name} is held, and node {} does not list it in the end", end.node + 1));
        }
        for name in listed.difference(&perhaps) {
            found.push(format!(
                "name {name} is held by nobody, and node {} lists it in the end",
                end.node + 1
            ));
        }
    }
    if let Some((first, others)) = finals.split_first() {
        for other in others.iter().filter(|other| other.names != first.names) {
            let (a, b) = (first.node + 1, other.node + 1);
            let [one, two]: [BTreeSet<u64>; 2] =
                [&first.names, &other.names].map(|names| names.iter().copied().collect());
            let (ours, theirs) = (&one - &two, &two - &one);
            found.push(format!(
                "nodes {a} and {b} list other names in the end: {a} alone {ours:?}, {b} alone {theirs:?}"
            ));
        }
    }
    found.into_iter().map(|says| Violation::new("control", says)).collect()
}

fn one_name(claims: &[&Claim]) -> Vec<String> {
    let mut found = Vec::new();
    let mut sure: Vec<_> = claims.iter().filter_map(|claim| surely_holds(claim)).collect();
    sure.sort_unstable();
    for pair in sure.windows(2) {
        if let [(begin, end), (next, _)] = pair
            && next < end
        {
            found.push(format!(
                "a name was held from {begin} to {end}, and by another from {next}: {claims:?}"
            ));
        }
    }
    for refused in claims.iter().filter(|claim| claim.outcome == Claimed::Taken) {
        let returned = refused.returned.unwrap_or(Nanos::MAX);
        let holds = |claim: &&Claim| {
            may_hold(claim).is_some_and(|(begin, end)| begin <= returned && refused.invoked <= end)
        };
        if !claims.iter().any(holds) {
            found.push(format!("a name was refused that nobody can have held: {refused:?}"));
        }
    }
    found
}

/// From when to when it holds its name for certain, if at all.
fn surely_holds(claim: &Claim) -> Option<(Nanos, Nanos)> {
    let begin = claim.returned.filter(|_| claim.outcome == Claimed::Held)?;
    Some((begin, claim.release.map_or(Nanos::MAX, |release| release.invoked)))
}

/// From when to when it may hold its name, if at all.
fn may_hold(claim: &Claim) -> Option<(Nanos, Nanos)> {
    match claim.outcome {
        Claimed::Held | Claimed::Unknown => {
            Some((claim.invoked, claim.release.and_then(|release| release.acked).unwrap_or(Nanos::MAX)))
        }
        Claimed::Taken | Claimed::Refused => None,
    }
}

/// Held in the end for certain: nobody tried to give it up.
fn stays(claim: &Claim) -> bool {
    surely_holds(claim).is_some_and(|(_, end)| end == Nanos::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Release;

    fn claim(outcome: Claimed, invoked: Nanos, returned: Nanos) -> Claim {
        Claim { name: 1, invoked, returned: Some(returned), outcome, release: None }
    }

    fn held(invoked: Nanos, returned: Nanos, released: Nanos, acked: impl Into<Option<Nanos>>) -> Claim {
        let release = Some(Release { invoked: released, acked: acked.into() });
        Claim { release, ..claim(Claimed::Held, invoked, returned) }
    }

    fn end(node: usize, names: &[u64]) -> Held {
        Held { node, names: names.to_vec() }
    }

    #[test]
    fn good_histories_pass() {
        let claims = [
            held(10, 20, 30, 40),
            claim(Claimed::Taken, 12, 15),
            // Its release took effect before it was answered.
            held(31, 38, 50, None),
            claim(Claimed::Taken, 60, 70),
            claim(Claimed::Refused, 60, 70),
        ];
        assert_eq!(check(&claims, &[end(0, &[1]), end(1, &[1])]), []);
        assert_eq!(check(&claims, &[end(0, &[]), end(1, &[])]), []);
        let lost = [claim(Claimed::Unknown, 10, 20), claim(Claimed::Taken, 30, 40)];
        assert_eq!(check(&lost, &[end(0, &[1])]), []);
        assert_eq!(check(&[claim(Claimed::Held, 10, 20)], &[end(0, &[1])]), []);
    }

    #[test]
    fn planted_violations_are_seen() {
        let both = [held(10, 20, 50, 60), held(12, 22, 40, 45)];
        assert_eq!(check(&both, &[]).len(), 1, "two hold one name");
        assert_eq!(check(&[claim(Claimed::Held, 10, 20), held(30, 40, 50, 60)], &[]).len(), 1);
        let free = [held(10, 20, 30, 40), claim(Claimed::Taken, 41, 50)];
        assert_eq!(check(&free, &[]).len(), 1, "a free name is refused, as a claim applied twice would be");
        let early = [claim(Claimed::Taken, 1, 9), held(10, 20, 30, 40)];
        assert_eq!(check(&early, &[]).len(), 1);
        assert_eq!(
            check(&[claim(Claimed::Held, 10, 20)], &[end(0, &[])]).len(),
            1,
            "an acknowledged claim is lost"
        );
        let released = [held(10, 20, 30, 40)];
        assert_eq!(check(&released, &[end(0, &[1])]).len(), 1, "an acknowledged release is lost");
        assert_eq!(
            check(&[claim(Claimed::Refused, 10, 20)], &[end(0, &[1])]).len(),
            1,
            "a refused claim holds"
        );
        let lost = [claim(Claimed::Unknown, 10, 20)];
        assert_eq!(check(&lost, &[end(0, &[1]), end(1, &[])]).len(), 1, "nodes differ");
    }
}
