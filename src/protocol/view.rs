//! The cluster view on its way to members that are not in raft.
//!
//! The opener sends one [`ViewRequest`]; the other end sends a [`ViewFrame`] at once, at each change and
//! at each heartbeat, for as long as the stream lives. What is in it is [`ClusterView`] and nothing else:
//! no join token, no API token, nothing sealed.

use serde::{Deserialize, Serialize};

use crate::types::ClusterView;

/// Longest frame: some ten thousand members.
pub const MAX_VIEW: usize = 4 * 1024 * 1024;

/// Asks for the view from now on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewRequest {}

/// A sign of life, and the view if it has changed since the last frame.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewFrame {
    /// All of it; always in the first frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<Box<ClusterView>>,
    /// Whether the node that sends it is ready itself: one that is cut off from the majority has a view
    /// that has stopped.
    pub ready: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::{decode, encode};

    #[test]
    fn a_heartbeat_is_short_and_a_view_comes_whole() {
        let beat = ViewFrame { view: None, ready: true };
        assert_eq!(&encode(&beat)[..], b"\x81\xa5ready\xc3");
        assert_eq!(decode::<ViewFrame>(&encode(&beat), MAX_VIEW), Ok(beat));
        let view = ClusterView { name: "home".into(), term: 7, ..ClusterView::default() };
        let whole = ViewFrame { view: Some(Box::new(view)), ready: false };
        assert_eq!(decode::<ViewFrame>(&encode(&whole), MAX_VIEW), Ok(whole));
        assert_eq!(&encode(&ViewRequest::default())[..], b"\x80");
        assert!(decode::<ViewRequest>(b"\x81\xa4soon\x01", MAX_VIEW).is_ok(), "a later version's");
    }
}
