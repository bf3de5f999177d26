//! The page's stream of events, and the history of writers in it.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::Value;

use crate::{
    cluster::{Cluster, eventually},
    http::Target,
    process::Process,
};

/// An open stream and what has come on it.
struct Events {
    stream: TcpStream,
    text: String,
}

impl Events {
    fn open(node: &Process) -> Self {
        let Target::Tcp(address) = node.tcp() else { panic!("tcp") };
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(stream, "GET /api/v1/cluster/events HTTP/1.1\r\nhost: {address}\r\n\r\n").unwrap();
        Self { stream, text: String::new() }
    }

    /// Reads on until the text is there.
    fn until(&mut self, fits: impl Fn(&str) -> bool) {
        let mut piece = [0; 64 * 1024];
        while !fits(&self.text) {
            let read = self.stream.read(&mut piece).unwrap();
            assert!(read > 0, "the stream has ended: {}", self.text);
            self.text += &String::from_utf8_lossy(&piece[..read]);
        }
    }

    /// The data of every whole event of that name.
    fn of(&self, name: &str) -> Vec<Value> {
        // Each event is in one chunk, so nothing stands between its lines.
        let head = format!("{name}\ndata: ");
        let data = |event: &str| Some(event.strip_prefix(head.as_str())?.split_once("\n\n")?.0.to_owned());
        self.text.split("event: ").filter_map(data).map(|data| serde_json::from_str(&data).unwrap()).collect()
    }
}

#[test]
fn events_come_with_rates_and_end_whole_when_the_node_stops() {
    let mut cluster = Cluster::empty();
    let node = cluster.add();
    cluster[node].start(&["--new-cluster"]);
    cluster.settled();
    let mut events = Events::open(&cluster[node]);
    events.until(|text| text.contains("event: cluster"));
    assert!(events.text.contains("content-type: text/event-stream"), "{}", events.text);
    cluster[node].write("cpu v=1 1\ncpu v=2 2");
    cluster[node].numbers("SELECT count(*) FROM cpu");
    let counted = |text: &str| text.contains("\"points\":2") && text.contains("\"queries\":1");
    events.until(counted);
    // Whoever comes later gets the rates that were seen, and the same event within the second.
    let mut second = Events::open(&cluster[node]);
    second.until(|text| text.contains("event: cluster") && text.ends_with("\n\n\r\n"));
    let recent = second.of("recent").remove(0);
    assert!(recent.as_array().unwrap().iter().any(|rate| rate["points"].as_f64() > Some(0.0)), "{recent}");
    let event = second.of("cluster").remove(0);
    assert_eq!(event["status"]["nodes"][0]["id"], cluster[node].id.as_str());
    assert_eq!(event["status"]["terms"][0]["why"], "first");
    // SIGTERM ends the streams, instead of waiting for them and cutting them off.
    cluster[node].stop();
    for mut events in [events, second] {
        events.stream.read_to_string(&mut events.text).unwrap();
        assert!(
            events.text.ends_with("\r\n0\r\n\r\n"),
            "cut off: {:?}",
            &events.text[events.text.len() - 60..]
        );
    }
}

#[test]
fn streams_are_few_and_their_places_come_back() {
    let mut cluster = Cluster::empty();
    let node = cluster.add();
    cluster[node].start(&["--new-cluster"]);
    cluster.settled();
    let open = |_| {
        let mut events = Events::open(&cluster[node]);
        events.until(|text| text.contains("event: cluster"));
        events
    };
    let mut held: Vec<Events> = (0..64).map(open).collect();
    let mut refused = Events::open(&cluster[node]);
    refused.until(|text| text.contains("64 streams of events"));
    assert!(refused.text.starts_with("HTTP/1.1 429"), "{}", refused.text);
    held.pop();
    // The node notices at the next event that nobody reads it.
    eventually("a place", || {
        let mut again = Events::open(&cluster[node]);
        again.until(|text| text.contains("\r\n\r\n"));
        again.text.starts_with("HTTP/1.1 200").then_some(())
    });
}

#[test]
fn writers_of_the_past_are_remembered_over_restarts() {
    let mut cluster = Cluster::empty();
    let node = cluster.add();
    cluster[node].start(&["--new-cluster"]);
    cluster.settled();
    let terms = |cluster: &Cluster| cluster[node].status().unwrap()["terms"].as_array().unwrap().clone();
    let first = terms(&cluster);
    assert_eq!(first.len(), 1);
    cluster[node].stop();
    cluster[node].start(&[]);
    // What it knows at first is the register of before.
    let now = eventually("another term", || Some(terms(&cluster)).filter(|terms| terms.len() == 2));
    assert_eq!(now[0], first[0], "as it was noted then");
    assert_eq!((&now[1]["why"], &now[1]["node"]), (&"restarted".into(), &cluster[node].id.as_str().into()));
    assert_eq!(now[1]["epoch"].as_u64(), first[0]["epoch"].as_u64().map(|epoch| epoch + 1));
    assert!(now[1]["at_ms"].as_u64() >= first[0]["at_ms"].as_u64() && first[0]["at_ms"].as_u64() > Some(0));
}
