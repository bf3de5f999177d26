//! What must hold whatever happens, one file each. Each is judged by what was observed from outside,
//! not by what a node says of its own correctness, and has a test that it sees a violation.

pub(crate) mod i1;
pub(crate) mod i10;
pub(crate) mod i14;
pub(crate) mod i15;
pub(crate) mod i2;
pub(crate) mod i3;
pub(crate) mod i4;
pub(crate) mod i5;
pub(crate) mod i6;
pub(crate) mod i7;
pub(crate) mod i8;
pub(crate) mod i9;

#[cfg(test)]
pub(crate) mod sample {
    //! Short forms for the tests of the checks.

    use bytes::Bytes;
    use skeinmesh::{
        node::AckLevel,
        protocol::status::NodeStatus,
        types::{Addresses, BootId, Lsn, Member, MembershipId, NodeId, Role},
    };

    use crate::ledger::{Attempt, Contents, Outcome, Written};

    pub(crate) fn contents(records: &[(u64, u64, &'static str)]) -> Contents {
        let record = |(epoch, seq, text): &(u64, u64, &'static str)| {
            (Lsn::new(*epoch, *seq), Bytes::from_static(text.as_bytes()))
        };
        records.iter().map(record).collect()
    }

    pub(crate) fn write(text: &'static str, outcomes: &[Outcome]) -> Written {
        let attempt =
            |outcome: &Outcome| Attempt { host: "a", outcome: outcome.clone(), answered: Default::default() };
        Written {
            payload: Bytes::from_static(text.as_bytes()),
            ack: None,
            key: None,
            attempts: outcomes.iter().map(attempt).collect(),
        }
    }

    pub(crate) fn member(n: u8) -> (NodeId, Member) {
        let id = NodeId([n; 16]);
        let member = Member {
            id,
            name: String::new(),
            role: Role::Voter,
            addresses: Addresses::default(),
            spki: Vec::new(),
            seal_key: Vec::new(),
            seal_key_signature: Vec::new(),
            serial: String::new(),
            not_after: 0,
            version: String::new(),
            features: 0,
        };
        (id, member)
    }

    /// Of a node that holds nothing.
    pub(crate) fn status() -> NodeStatus {
        NodeStatus {
            node: NodeId([1; 16]),
            boot: BootId(1),
            promise: 0,
            office: None,
            durable: Lsn::ZERO,
            commit: Lsn::ZERO,
            applied: Lsn::ZERO,
            flushed: Lsn::ZERO,
            disk_troubled: false,
            marked: MembershipId::default(),
            linked: Vec::new(),
            linked_at: Vec::new(),
            addresses: Addresses::default(),
            version: String::new(),
            cert_days_left: 0,
            draining: false,
            repairing: None,
            quarantined: 0,
            fetching: None,
            damaged: None,
            damaged_files: 0,
            scrubbed: None,
            follows: None,
            successor: None,
            rtt_us: Vec::new(),
            sent: Vec::new(),
            stale_ms: None,
            unix_ms: 0,
            points: 0,
            queries: 0,
        }
    }

    pub(crate) fn acked(epoch: u64, seq: u64, level: AckLevel) -> Outcome {
        Outcome::Acked(Lsn::new(epoch, seq), level)
    }
}
