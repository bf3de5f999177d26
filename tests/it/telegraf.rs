//! Telegraf, configured as in `deploy/`, finds what it expects: requests as it sends them.

use std::io::Write;

use serde_json::json;

use crate::{
    cluster::Cluster,
    http::{Answer, send},
    process::{Process, REQUEST},
};

/// Of Telegraf's CPU, memory and disk inputs, as its serializer writes them.
const METRICS: &str = "\
cpu,cpu=cpu0,host=my\\ host usage_idle=98.4,usage_user=1.25 1700000000000000000
mem,host=my\\ host total=18446744073709551615u,available_percent=71.5,used=5i 1700000000000000000
disk,device=sda1,fstype=ext4,host=my\\ host,mode=rw,path=/var/lib\\,x inodes_free=7u,label=\"a \\\"b\\\"\" 1700000000000000000
";

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn post(node: &Process, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let all = [&[("user-agent", "Telegraf/1.37.0 Go/1.25")], headers].concat();
    send(&node.tcp(), "POST", path, &all, body, REQUEST).unwrap()
}

#[test]
fn both_outputs_write_as_deploy_has_them() {
    let conf: toml::Value = toml::from_str(include_str!("../../deploy/telegraf.conf")).unwrap();
    let output = &conf["outputs"]["influxdb_v2"][0];
    let (bucket, org) = (output["bucket"].as_str().unwrap(), output["organization"].as_str().unwrap());
    assert_eq!(output["content_encoding"].as_str(), Some("gzip"));
    assert_eq!(output["influx_uint_support"].as_bool(), Some(true));

    let cluster = Cluster::of(1);
    let node = &cluster[0];
    let text = ("content-type", "text/plain; charset=utf-8");
    let headers = [text, ("content-encoding", "gzip"), ("authorization", "Token unused")];
    let path = format!("/api/v2/write?bucket={bucket}&org={org}");
    post(node, &path, &headers, &gzip(METRICS)).expect(204);

    // outputs.influxdb: on connect, and then.
    let form = ("content-type", "application/x-www-form-urlencoded");
    let made = post(node, "/query", &[form], b"q=CREATE+DATABASE+%22first%22").expect(200);
    assert_eq!(made.json(), json!({ "results": [{ "statement_id": 0 }] }));
    post(node, "/write?consistency=any&db=first", &headers[..2], &gzip(METRICS)).expect(204);

    for database in [bucket, "first"] {
        let ask = |sql: &str| node.ask(sql, &[("consistency", "linearizable")]).expect(200).json();
        let total = ask(&format!("SELECT total, used, host FROM {database}.mem"));
        assert_eq!(total, json!([{ "total": u64::MAX, "used": 5, "host": "my host" }]), "{database}");
        let disk = ask(&format!("SELECT path, label, inodes_free FROM {database}.disk"));
        assert_eq!(disk, json!([{ "path": "/var/lib,x", "label": "a \"b\"", "inodes_free": 7 }]));
    }

    // By these words it knows that sending the batch again is of no use.
    let partly = format!("{METRICS}mem,host=b total=0.5 1\n");
    let answer = post(node, &path, &headers, &gzip(&partly)).expect(400);
    assert!(answer.json()["error"].as_str().unwrap().contains("partial write"), "{answer:?}");
    assert_eq!(answer.bad_lines(), [4]);
}
