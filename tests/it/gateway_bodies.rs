//! Bodies of any length through a gateway: as long as a node with data takes them, and no longer.

use std::fs;

use serde_json::json;

use crate::{
    cluster::{Cluster, eventually},
    gateway::{follows, with},
    http::{Answer, send},
    process::{Process, REQUEST},
};

fn gauge(node: &Process, name: &str) -> f64 {
    let answer = send(&node.unix(), "GET", "/metrics", &[], b"", REQUEST).unwrap();
    let line = answer.body.lines().find_map(|line| line.strip_prefix(&format!("{name} ")).map(str::to_owned));
    line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
}

#[test]
fn a_restore_and_every_long_body_pass_as_at_a_node_with_data() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("b.tar");
    let mut cluster = Cluster::empty();
    let first = cluster.add();
    cluster[first].env = vec![("SKEIN_HTTP_MAX_BODY".to_owned(), "8MiB".to_owned())];
    cluster[first].start(&["--new-cluster"]);
    cluster.settled();
    let gateway = with(&mut cluster, "gateway", "127.0.0.1:0");
    follows(&cluster[gateway]);
    let admin = fs::read_to_string(cluster[0].dir.join("admin.token")).unwrap();
    let (node, edge) = (&cluster[0], &cluster[gateway]);

    // Rows of 60 KB that do not compress, so that what comes back is several bodies of up to 4 MiB.
    let mut state = 7_u64;
    let mut text = || -> String {
        let letter = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'a' + u8::try_from((state >> 33) % 26).unwrap())
        };
        (0..60_000).map(letter).collect()
    };
    let lines: Vec<String> = (0..150).map(|n| format!("long,n={n} s=\"{}\",v={n}u {n}", text())).collect();
    // The way in is the same as any write's: parsed at the gateway.
    for lines in lines.chunks(50) {
        edge.write(&lines.join("\n"));
    }
    node.skein_says(&["backup", "--output", file.to_str().unwrap()]);
    let restored = edge
        .command(&["restore", file.to_str().unwrap(), "-d", "it", "--as", "again"])
        .env("SKEIN_API_TOKEN", admin.trim())
        .output()
        .unwrap();
    assert!(restored.status.success(), "{restored:?}");
    let all = "SELECT v, s FROM again.long ORDER BY v";
    let want =
        node.ask("SELECT v, s FROM it.long ORDER BY v", &[("consistency", "linearizable")]).expect(200);
    assert_eq!(want.json().as_array().unwrap().len(), 150);
    assert_eq!(node.ask(all, &[("consistency", "linearizable")]).expect(200).json(), want.json());
    assert_eq!(edge.ask(all, &[("consistency", "linearizable")]).expect(200).json(), want.json());

    // What is too long, or no good, is so at both, and for the same reason.
    let ask = |node: &Process, headers: &[(&str, &str)], body: &[u8]| -> Answer {
        // A node that is too busy to say so within 2 s is given up by the gateway: not now.
        eventually("an answer", || {
            let answer = send(&node.tcp(), "POST", "/api/v1/query", headers, body, REQUEST).unwrap();
            (answer.status != 503).then_some(answer)
        })
    };
    let plain = [("content-type", "application/json"), ("x-arc-database", "it")];
    let zstd = [plain[0], plain[1], ("content-encoding", "zstd")];
    let sql = |padding: usize| {
        let text = format!("SELECT count(*) AS n FROM long -- {}", " ".repeat(padding));
        json!({ "sql": text }).to_string().into_bytes()
    };
    let bomb = zstd::encode_all(&vec![b' '; 65 << 20][..], 3).unwrap();
    let unpacked = zstd::encode_all(&sql(10)[..], 3).unwrap();
    for (what, headers, body, good) in [
        ("short", &plain[..], sql(10), true),
        ("compressed", &zstd[..], unpacked, true),
        ("2 MiB of SQL", &plain, sql(2 << 20), false),
        ("a bomb", &zstd, bomb, false),
    ] {
        let (here, there) = (ask(edge, headers, &body), ask(node, headers, &body));
        assert_eq!(here.status, there.status, "{what}: {here:?} {there:?}");
        assert!(
            if good { here.status == 200 } else { (400..500).contains(&here.status) },
            "{what}: {here:?}"
        );
        if !good {
            assert_eq!(here.json(), there.json(), "{what}");
        }
    }
    // The gateway takes it, the node with data stops it on the way and says why.
    let long = ask(edge, &plain, &vec![b' '; 20 << 20]).expect(413);
    assert!(long.body.contains("longer than 1MiB") && long.header("x-skein-forwarded").is_some(), "{long:?}");
    for node in [node, edge] {
        eventually("the memory of bodies is given back", || {
            (gauge(node, "skein_http_body_bytes") == 0.0).then_some(())
        });
    }
}
