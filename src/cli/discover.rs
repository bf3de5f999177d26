//! `skein discover`: what mDNS shows on each interface, who answers there, and why an address is not
//! used. Needs no node and changes nothing.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde::Serialize;

use super::{
    Failure,
    flags::this_host,
    output,
    stranger::{self, Answers},
    table::{render, text},
};
use crate::{
    config::Config,
    discovery::{
        interfaces::Rules,
        survey::{Heard, Survey, survey},
    },
};

/// Flags of `skein discover`.
#[derive(Debug, Args)]
pub(super) struct DiscoverArgs {
    /// How long to listen
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Configuration file (TOML): mesh.listen and the interfaces in it count
    #[arg(long, value_name = "FILE", env = "SKEIN_CONFIG")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: DiscoverArgs) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref(), |name| std::env::var(name).ok(), &[], &this_host())?;
    let rules = Rules {
        bind: config.mesh.listen.ip(),
        allow: config.discovery.allow_interfaces.clone(),
        deny: config.discovery.deny_interfaces.clone(),
    };
    let seen =
        survey(&rules, Duration::from_secs(args.seconds)).await.map_err(|e| Failure::new(e.to_string()))?;
    let answers = ask_all(&seen.heard).await?;
    let report = Report::new(&seen, &answers);
    if args.json { output::json(&report) } else { output::print(&report.show()) }
}

/// What each address that can be dialled answers.
async fn ask_all(heard: &[Heard]) -> Result<Vec<Option<String>>, Failure> {
    let dialled: Vec<&Heard> = heard.iter().filter(|heard| heard.dial.is_ok()).collect();
    let addresses: Vec<_> = dialled.iter().filter_map(|heard| heard.dial.clone().ok()).collect();
    let answers = stranger::dial_all(&addresses).await?;
    let mut said = dialled.iter().zip(answers).map(|(heard, answer)| answered(heard, answer));
    Ok(heard.iter().map(|heard| if heard.dial.is_ok() { said.next() } else { None }).collect())
}

fn answered(heard: &Heard, answer: Result<Answers, String>) -> String {
    match answer {
        Ok(there) if Some(there.node) != heard.node => format!("another node: {}", there.node.short()),
        Ok(there) => {
            let is = if there.member { "a member" } else { "of no cluster yet" };
            format!("{is}, {} ms", there.took.as_millis())
        }
        Err(error) => format!("{error}; does every firewall between let UDP through?"),
    }
}

#[derive(Serialize)]
struct Report {
    interfaces: Vec<Interface>,
    heard: Vec<Announced>,
}

#[derive(Serialize)]
struct Interface {
    name: String,
    address: String,
    used: bool,
    why_not: Option<String>,
}

#[derive(Serialize)]
struct Announced {
    node: String,
    cluster: Option<String>,
    version: String,
    address: String,
    interfaces: Vec<String>,
    used: bool,
    why_not: Option<String>,
    answer: Option<String>,
}

impl Report {
    fn new(seen: &Survey, answers: &[Option<String>]) -> Self {
        let interfaces = seen.interfaces.iter().map(|(nic, unused)| Interface {
            name: nic.name.clone(),
            address: nic.address.to_string(),
            used: unused.is_none(),
            why_not: unused.map(|why| why.to_string()),
        });
        let heard = seen.heard.iter().zip(answers).map(|(heard, answer)| Announced {
            node: heard.node.map_or_else(|| heard.instance.clone(), |node| node.to_string()),
            cluster: heard.cluster.map(|cluster| cluster.to_string()),
            version: heard.version.clone(),
            address: heard.address.clone(),
            interfaces: heard.interfaces.clone(),
            used: heard.dial.is_ok(),
            why_not: heard.dial.as_ref().err().cloned(),
            answer: answer.clone(),
        });
        Self { interfaces: interfaces.collect(), heard: heard.collect() }
    }

    fn show(&self) -> String {
        let yes = |used: bool| if used { "yes" } else { "no" }.to_owned();
        let rows: Vec<Vec<String>> = self
            .interfaces
            .iter()
            .map(|nic| {
                let why = nic.why_not.clone().unwrap_or_default();
                vec![nic.name.clone(), nic.address.clone(), yes(nic.used), why]
            })
            .collect();
        let mut out = render(&[text("INTERFACE"), text("ADDRESS"), text("USED"), text("WHY NOT")], &rows);
        out.push('\n');
        if self.heard.is_empty() {
            out.push_str(
                "Nobody announces itself by mDNS. Where multicast does not pass (clouds, containers, other \
                 subnets) nodes are found by --seed HOST:PORT.\n",
            );
            return out;
        }
        let short = |id: &str| id.chars().take(6).collect::<String>();
        let rows: Vec<Vec<String>> = self
            .heard
            .iter()
            .map(|heard| {
                let answer = heard.why_not.as_ref().map(|why| format!("not used: {why}"));
                vec![
                    short(&heard.node),
                    heard.address.clone(),
                    heard.interfaces.join(","),
                    heard.cluster.as_deref().map(short).unwrap_or_default(),
                    heard.version.clone(),
                    answer.or_else(|| heard.answer.clone()).unwrap_or_default(),
                ]
            })
            .collect();
        let columns = [
            text("NODE"),
            text("ADDRESS"),
            text("HEARD ON"),
            text("CLUSTER"),
            text("VERSION"),
            text("ANSWERS"),
        ];
        out.push_str(&render(&columns, &rows));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        discovery::interfaces::{Nic, Unused},
        types::{ClusterId, NodeId},
    };

    #[test]
    fn a_report_says_what_is_used_and_why_not() {
        let nic = |name: &str, address: &str, unused| {
            (Nic { name: name.into(), address: address.parse().unwrap() }, unused)
        };
        let heard = |address: &str, dial: Result<_, String>| Heard {
            node: Some(NodeId([1; 16])),
            instance: NodeId([1; 16]).to_string(),
            cluster: Some(ClusterId([2; 16])),
            version: "0.1.0".into(),
            address: address.into(),
            interfaces: vec!["eth0".into()],
            dial,
        };
        let mut seen = Survey {
            interfaces: vec![
                nic("eth0", "192.0.2.2", None),
                nic("docker0", "172.17.0.1", Some(Unused::Skipped)),
            ],
            heard: vec![],
        };
        let nobody = Report::new(&seen, &[]).show();
        assert!(
            nobody.contains("docker0    172.17.0.1  no    interfaces of this name are skipped"),
            "{nobody}"
        );
        assert!(nobody.contains("Nobody announces itself"), "{nobody}");
        seen.heard = vec![
            heard("192.0.2.9:7400", Ok("192.0.2.9:7400".parse().unwrap())),
            heard("127.0.0.1:7400", Err("loopback".into())),
        ];
        let shown = Report::new(&seen, &[Some("a member, 3 ms".into()), None]).show();
        assert!(
            shown.contains("aeaqca  192.0.2.9:7400  eth0      aibaea   0.1.0    a member, 3 ms"),
            "{shown}"
        );
        assert!(shown.contains("0.1.0    not used: loopback"), "{shown}");
    }
}
