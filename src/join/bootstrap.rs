//! Found, join or rejoin: what a starting node does, decided from what it was given and sees.
//!
//! Pure rules (no I/O), so that every case stands in a table of tests. The rule behind the rules:
//! two clusters must never come into being where one was meant.

use std::collections::BTreeSet;

use crate::{
    discovery::Candidates,
    identity::JoinToken,
    types::{ClusterId, NodeId, Role},
};

/// Most nodes `--bootstrap-expect` takes: as many as there can be voters.
pub const MAX_EXPECT: u32 = 5;

/// What a starting node was given and sees.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// True when the data directory holds no member's state.
    pub empty: bool,
    /// `--join`, checked whole.
    pub token: Option<&'a JoinToken>,
    /// True when any `--seed` was given.
    pub seeds: bool,
    /// `--new-cluster`.
    pub new_cluster: bool,
    /// `--bootstrap-expect`.
    pub expect: Option<u32>,
    /// What mDNS has seen after two seconds; `None` when it is off or does not work.
    pub sightings: Option<&'a Candidates>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The node is a member already. Flags that only a first start heeds are named, to be logged.
    Rejoin {
        /// Flags that were given and mean nothing any more.
        ignored: Vec<&'static str>,
    },
    /// Make a new cluster, and say so loudly.
    Found,
    /// Ask to be let in with the token.
    Join,
    /// Wait for this many nodes with the same token and make one cluster together, or join the one
    /// that knows the token.
    Expect {
        /// The number of nodes that carry the flag.
        nodes: u32,
    },
    /// Do not start: there is a cluster here already, and nothing says whether to join it.
    RefuseClusterHere {
        /// The clusters in sight.
        clusters: BTreeSet<ClusterId>,
        /// The nodes that say so.
        nodes: BTreeSet<NodeId>,
    },
    /// Do not start: a seed without a token lets nobody in.
    RefuseSeedWithoutToken,
    /// Do not start: these flags contradict each other or themselves.
    RefuseFlags(&'static str),
}

impl Decision {
    /// What a refusal tells the operator, with the lines to choose from; `None` when it is none.
    pub fn refusal(&self) -> Option<String> {
        match self {
            Self::RefuseClusterHere { clusters, nodes } => {
                let clusters = clusters.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                Some(format!(
                    "a cluster is on this network already ({clusters}, {} nodes in sight). Choose:\n  \
                     skein start --join TOKEN      (TOKEN from `skein token create` on one of its nodes)\n  \
                     skein start --new-cluster     (make another cluster beside it)",
                    nodes.len()
                ))
            }
            Self::RefuseSeedWithoutToken => Some(
                "--seed says where a cluster is, but without a token it lets nobody in. Start with\n  \
                 skein start --seed HOST:PORT --join TOKEN      (TOKEN from `skein token create`)"
                    .into(),
            ),
            Self::RefuseFlags(reason) => Some((*reason).into()),
            Self::Rejoin { .. } | Self::Found | Self::Join | Self::Expect { .. } => None,
        }
    }
}

/// True when [`decide`] needs to know what mDNS sees: an empty directory and no word of what to do.
pub fn must_look_around(situation: &Situation<'_>) -> bool {
    decide(&Situation { sightings: None, ..*situation }) == Decision::Found && !situation.new_cluster
}

/// Decides. See DESIGN 4, "Bootstrap".
pub fn decide(situation: &Situation<'_>) -> Decision {
    let Situation { empty, token, seeds, new_cluster, expect, sightings } = *situation;
    if !empty {
        let flags = [
            ("--join", token.is_some()),
            ("--new-cluster", new_cluster),
            ("--bootstrap-expect", expect.is_some()),
        ];
        return Decision::Rejoin { ignored: flags.iter().filter(|f| f.1).map(|f| f.0).collect() };
    }
    if new_cluster && (token.is_some() || seeds || expect.is_some()) {
        return Decision::RefuseFlags(
            "--new-cluster makes a cluster of its own: it does not go with --join, --seed or --bootstrap-expect \
             (to make one with a token chosen up front: --bootstrap-expect 1 --join @FILE)",
        );
    }
    match (token, expect) {
        (None, Some(_)) => Decision::RefuseFlags(
            "--bootstrap-expect needs --join @FILE with the same token on every node (`skein token generate`)",
        ),
        (Some(_), Some(nodes)) if nodes == 0 || nodes > MAX_EXPECT => {
            Decision::RefuseFlags("--bootstrap-expect wants the number of nodes that carry the flag: 1 to 5")
        }
        (Some(token), Some(_)) if token.cluster().is_none() && token.role() != Role::Voter => {
            Decision::RefuseFlags(
                "the nodes that make a cluster are voters: --bootstrap-expect needs a token for voters",
            )
        }
        // The node that makes the cluster spends no use.
        (Some(token), Some(nodes)) if token.uses().is_some_and(|uses| uses < nodes - 1) => {
            Decision::RefuseFlags(
                "this join token admits fewer nodes than --bootstrap-expect says: generate one with more --uses",
            )
        }
        // A token that names its cluster can only be of one that exists.
        (Some(token), Some(nodes)) if token.cluster().is_none() => Decision::Expect { nodes },
        (Some(_), _) => Decision::Join,
        (None, None) if seeds => Decision::RefuseSeedWithoutToken,
        (None, None) if new_cluster => Decision::Found,
        (None, None) => {
            let none = Candidates::new();
            let seen = sightings.unwrap_or(&none);
            let members = || seen.iter().filter_map(|(id, seen)| Some((*id, seen.cluster?)));
            let clusters = members().map(|m| m.1).collect::<BTreeSet<_>>();
            if clusters.is_empty() {
                return Decision::Found;
            }
            Decision::RefuseClusterHere { clusters, nodes: members().map(|m| m.0).collect() }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{discovery::Candidate, types::Role};

    const NOTHING: Situation<'static> = Situation {
        empty: true,
        token: None,
        seeds: false,
        new_cluster: false,
        expect: None,
        sightings: None,
    };

    fn seen(cluster: Option<ClusterId>) -> Candidates {
        [(NodeId([1; 16]), Candidate { cluster, ..Candidate::default() })].into()
    }

    fn tokens() -> (JoinToken, JoinToken) {
        let rng = &mut StdRng::seed_from_u64(1);
        let pinned = JoinToken::for_cluster(Role::Voter, ClusterId([1; 16]), b"root", vec![], rng);
        (pinned.unwrap(), JoinToken::generate(Role::Voter, vec![], rng).unwrap())
    }

    #[test]
    fn an_empty_directory_with_no_word() {
        assert_eq!(decide(&NOTHING), Decision::Found);
        assert!(must_look_around(&NOTHING));
        let (alone, waiting, members) = (Candidates::new(), seen(None), seen(Some(ClusterId([7; 16]))));
        let sees = |sightings| decide(&Situation { sightings: Some(sightings), ..NOTHING });
        assert_eq!(sees(&alone), Decision::Found);
        assert_eq!(sees(&waiting), Decision::Found, "a node without a cluster is no cluster");
        let refused = sees(&members);
        assert!(matches!(&refused, Decision::RefuseClusterHere { nodes, .. } if nodes.len() == 1));
        let text = refused.refusal().unwrap();
        assert!(text.contains("--join") && text.contains("--new-cluster"), "{text}");
        let forced = Situation { new_cluster: true, sightings: Some(&members), ..NOTHING };
        assert_eq!(decide(&forced), Decision::Found);
        assert!(!must_look_around(&forced));
    }

    #[test]
    fn tokens_join_and_never_found() {
        let (pinned, chosen) = tokens();
        let members = seen(Some(ClusterId([7; 16])));
        for token in [&pinned, &chosen] {
            for seeds in [false, true] {
                let join = Situation { token: Some(token), seeds, sightings: Some(&members), ..NOTHING };
                assert_eq!(decide(&join), Decision::Join);
                assert!(!must_look_around(&join));
            }
        }
        assert_eq!(decide(&Situation { seeds: true, ..NOTHING }), Decision::RefuseSeedWithoutToken);
    }

    #[test]
    fn expectations_need_a_chosen_token() {
        let (pinned, chosen) = tokens();
        let expect = |token, nodes| decide(&Situation { token, expect: Some(nodes), ..NOTHING });
        assert_eq!(expect(Some(&chosen), 3), Decision::Expect { nodes: 3 });
        assert_eq!(expect(Some(&pinned), 3), Decision::Join, "its cluster exists");
        let reader = JoinToken::generate(Role::Reader, vec![], &mut StdRng::seed_from_u64(2)).unwrap();
        let two = chosen.clone().limited(None, Some(2));
        assert_eq!(expect(Some(&two), 3), Decision::Expect { nodes: 3 }, "the first is let in by nobody");
        for (token, nodes) in
            [(None, 3), (Some(&chosen), 0), (Some(&chosen), 6), (Some(&reader), 3), (Some(&two), 4)]
        {
            assert!(matches!(expect(token, nodes), Decision::RefuseFlags(_)));
        }
        let both = Situation { token: Some(&chosen), new_cluster: true, ..NOTHING };
        assert!(decide(&both).refusal().is_some());
    }

    #[test]
    fn a_member_comes_back_whatever_the_flags() {
        let (pinned, _) = tokens();
        let members = seen(Some(ClusterId([7; 16])));
        let again = Situation {
            empty: false,
            token: Some(&pinned),
            seeds: true,
            new_cluster: true,
            expect: Some(9),
            sightings: Some(&members),
        };
        let ignored = vec!["--join", "--new-cluster", "--bootstrap-expect"];
        assert_eq!(decide(&again), Decision::Rejoin { ignored });
        let plain = Situation { empty: false, ..NOTHING };
        assert_eq!(decide(&plain), Decision::Rejoin { ignored: vec![] });
        assert!(!must_look_around(&plain));
    }
}
