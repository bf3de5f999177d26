//! Commands that older versions do not know. Such a member would stop at their entry, so while there is one
//! no entry is made; and once there is one, no such node is let in, and no member goes back to such a version:
//! it would come to the entry, or miss what it did. `Finalise` draws that line without using anything, and a
//! cluster begins with it drawn at what its first node knows.

use std::collections::BTreeMap;

use super::types::Command;
use crate::{
    transport::Mesh,
    types::{ClusterView, Member, NodeId},
};

/// Feature bit of a member: it knows the commands of a CA's rotation and of draining, and that a founding
/// may begin behind the epochs of restored data.
pub const OPERATOR_COMMANDS: u64 = 2;
/// Feature bit of a member: it knows the command that finalises an upgrade.
pub const FINALISE: u64 = 8;

/// Features that a member needs to apply this command.
pub(super) const fn needed(command: &Command) -> u64 {
    match command {
        Command::Drain { .. }
        | Command::RotateCa { .. }
        | Command::AddRoot { .. }
        | Command::ShowsRoot { .. }
        | Command::DropFromRotation { .. }
        | Command::RetireRoot { .. } => OPERATOR_COMMANDS,
        Command::Found { after, level, .. } if *after > 0 => OPERATOR_COMMANDS | *level,
        Command::Found { level, .. } => *level,
        Command::Finalise { features } => FINALISE | *features,
        Command::Admit { .. }
        | Command::Update { .. }
        | Command::Retire { .. }
        | Command::Enlist { .. }
        | Command::Remove { .. }
        | Command::SetWriter(_)
        | Command::CreateToken(_)
        | Command::RevokeToken { .. }
        | Command::SealCa { .. }
        | Command::CreateApiToken(_)
        | Command::RevokeApiToken { .. } => 0,
    }
}

/// The features of `level` that a version which has `known` does not know: what it may not go on without.
pub const fn missing(level: u64, known: u64) -> Option<u64> {
    match level & !known {
        0 => None,
        missing => Some(missing),
    }
}

/// What the processes know that a node is linked to now: a member that was started again in an older version
/// is listed with what it knew before, until it has said otherwise.
pub(super) type Running = BTreeMap<NodeId, u64>;

/// The features of those at the other ends of these links.
pub(super) fn running(mesh: Option<&Mesh>) -> Running {
    let links = mesh.map(|mesh| mesh.links().borrow().clone()).unwrap_or_default();
    links.iter().map(|(peer, link)| (*peer, link.features)).collect()
}

/// Why this must not become an entry while the cluster is as in `view`; `None` if it may.
pub(super) fn barred(view: &ClusterView, running: &Running, command: &Command) -> Option<String> {
    if let Command::Admit { member, .. } = command {
        let known = view.members.contains_key(&member.id) || has(member, view.feature_level);
        return (!known).then(|| {
            format!(
                "skein {} does not know what this cluster has done already, and could not go on from there: start \
                 a newer version (the members run {})",
                member.version,
                versions(view.members.values())
            )
        });
    }
    if let Command::Update { version, features, .. } = command
        && missing(view.feature_level, *features).is_some()
    {
        return Some(format!(
            "skein {version} does not know what this cluster has done already: start the version again that it ran \
             before (the members run {})",
            versions(view.members.values())
        ));
    }
    let needed = needed(command);
    let older = |member: &&Member| running.get(&member.id).is_some_and(|known| known & needed != needed);
    lacking(view.members.values(), needed).or_else(|| {
        let older: Vec<&Member> = view.members.values().filter(older).collect();
        (!older.is_empty()).then(|| not_understood(&older))
    })
}

/// True if whoever knows no more than `known` has no place in a cluster of that level any more. Judged when an
/// entry is applied, too, for `Finalise` may have come in between; only where it has: every member then has
/// this rule.
pub(super) const fn is_behind(level: u64, known: u64) -> bool {
    level & FINALISE != 0 && missing(level, known).is_some()
}

/// Why the members do not all have these, as a command's rejection says it.
pub(super) fn lacking<'a>(members: impl Iterator<Item = &'a Member>, features: u64) -> Option<String> {
    let without: Vec<&Member> = members.filter(|member| !has(member, features)).collect();
    (!without.is_empty()).then(|| not_understood(&without))
}

fn not_understood(by: &[&Member]) -> String {
    let names: Vec<String> =
        by.iter().map(|member| format!("{} (skein {})", member.name, member.version)).collect();
    format!(
        "{} of the members would not understand this and stop: {}. Upgrade every member first, then ask again; nothing \
         was changed",
        by.len(),
        names.join(", ")
    )
}

const fn has(member: &Member, features: u64) -> bool {
    member.features & features == features
}

fn versions<'a>(members: impl Iterator<Item = &'a Member>) -> String {
    let mut versions: Vec<&str> = members.map(|member| member.version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    versions.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Addresses, Role, TokenId};

    fn member(n: u8, features: u64) -> Member {
        Member {
            id: NodeId([n; 16]),
            name: format!("n{n}"),
            role: Role::Reader,
            addresses: Addresses::default(),
            spki: vec![],
            seal_key: vec![],
            seal_key_signature: vec![],
            serial: String::new(),
            not_after: 0,
            version: format!("0.{n}.0"),
            features,
        }
    }

    fn view(features: &[u64], feature_level: u64) -> ClusterView {
        let members = (1..).zip(features).map(|(n, features)| member(n, *features));
        ClusterView {
            members: members.map(|member| (member.id, member)).collect(),
            feature_level,
            ..ClusterView::default()
        }
    }

    #[test]
    fn what_one_member_does_not_know_nobody_is_sent() {
        let node = NodeId([1; 16]);
        let commands = [
            Command::RotateCa { at_ms: 1 },
            Command::Drain { node, drained: true },
            Command::Drain { node, drained: false },
            Command::DropFromRotation { nodes: [node].into() },
            Command::ShowsRoot { node, root: vec![1].into() },
            Command::RetireRoot { root: vec![1].into() },
        ];
        for command in commands {
            let why = barred(&view(&[3, 1, 7], 0), &Running::new(), &command)
                .unwrap_or_else(|| panic!("{command} may go"));
            assert!(why.starts_with("1 of the members") && why.contains("n2 (skein 0.2.0)"), "{why}");
            assert_eq!(barred(&view(&[3, 2, 7], 0), &Running::new(), &command), None, "{command}");
        }
        // An upgrade is finalised when every member has what one has, and knows what finalising is.
        let all = FINALISE | 7;
        let finalise = Command::Finalise { features: all };
        for (second, may) in [(3, false), (7, false), (FINALISE | 3, false), (all, true), (all | 16, true)] {
            assert_eq!(
                barred(&view(&[all, second], 0), &Running::new(), &finalise).is_none(),
                may,
                "{second}"
            );
        }
        // Listed as newer, and running as older: started again in another version a moment ago.
        let back = Running::from([(NodeId([2; 16]), 7)]);
        let why = barred(&view(&[all, all], 0), &back, &finalise).unwrap();
        assert!(why.contains("n2 (skein 0.2.0)"), "{why}");
        assert_eq!(barred(&view(&[all, all], 0), &Running::from([(NodeId([2; 16]), all)]), &finalise), None);
        let known = Command::Remove { node, at_ms: 1 };
        assert_eq!(barred(&view(&[0, 0, 0], 0), &Running::new(), &known), None, "every version knows it");
    }

    #[test]
    fn who_would_not_understand_the_log_is_not_let_in() {
        let admit = |n, features| Command::Admit { member: member(n, features), token: TokenId(1), at_ms: 1 };
        assert_eq!(
            barred(&view(&[3, 3], 0), &Running::new(), &admit(9, 1)),
            None,
            "nothing was done that it does not know"
        );
        let why = barred(&view(&[3, 3], OPERATOR_COMMANDS), &Running::new(), &admit(9, 1)).unwrap();
        assert!(why.starts_with("skein 0.9.0 does not know") && why.contains("0.1.0, 0.2.0"), "{why}");
        assert_eq!(barred(&view(&[3, 3], OPERATOR_COMMANDS), &Running::new(), &admit(9, 3)), None);
        // Nor does a member go back to such a version.
        let update = |features| Command::Update {
            node: NodeId([2; 16]),
            addresses: Addresses::default(),
            certificate: None,
            version: "0.0.9".into(),
            features,
        };
        let why = barred(&view(&[3, 3], OPERATOR_COMMANDS), &Running::new(), &update(1)).unwrap();
        assert!(why.starts_with("skein 0.0.9 does not know"), "{why}");
        assert_eq!(barred(&view(&[3, 3], OPERATOR_COMMANDS), &Running::new(), &update(2)), None);
        assert_eq!(barred(&view(&[3, 3], 0), &Running::new(), &update(1)), None);
        assert_eq!((missing(6, 7), missing(6, 3), missing(0, 0)), (None, Some(4), None));
        // It is a member already and has lost its answer: that changes nothing.
        assert_eq!(barred(&view(&[3, 3], OPERATOR_COMMANDS), &Running::new(), &admit(2, 1)), None);
    }
}
