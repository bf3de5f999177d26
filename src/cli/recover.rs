//! `skein recover`: a majority of the voters is gone for good, and one survivor carries on alone.
//!
//! It shows where everybody who can be reached stands, says what may be lost, refuses where another
//! choice is better, and changes nothing before somebody has agreed to it.

use std::{
    io::{self, BufRead, IsTerminal},
    path::PathBuf,
};

use clap::Args;
use serde_json::{Value, json};

use super::{
    Failure, output,
    start::failure,
    table::{number, or_dash, render, text},
};
use crate::{
    config,
    discovery::Seed,
    engine::columnar::survey::survey,
    identity::{DataDir, DataDirError},
    node::{
        Surroundings,
        recover::{Survey, Surveyed, Survivor},
    },
    types::{Lsn, Recovery, Role},
};

/// Flags of `skein recover`.
#[derive(Debug, Args)]
pub(super) struct RecoverArgs {
    /// Directory of the node that is to carry on, which must not run
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Look for members at this address too; may be given several times
    #[arg(long, value_name = "HOST:PORT")]
    seed: Vec<Seed>,
    /// Do it: what only the missing voters hold is given up
    #[arg(long)]
    accept_loss: bool,
    /// Carry on from this node although another one that answers holds more
    #[arg(long, requires = "accept_loss")]
    from_here: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: RecoverArgs) -> Result<(), Failure> {
    let (dir, surroundings) = (open(&args)?, Surroundings::real());
    let engine = survey(&*surroundings.disk, &dir.path().join("engine"), false).await;
    let checkpoint = engine.map_err(|e| Failure::disk(format!("{e}; nothing was changed")))?;
    let checkpoint = checkpoint.map_or(Lsn::ZERO, |manifest| manifest.position);
    let survivor = Survivor::open(dir, surroundings, checkpoint).await.map_err(failure)?;
    let name = survivor.cluster_name().to_owned();
    if survivor.is_half_done() {
        let recovery = survivor.carry_on().await.map_err(failure)?;
        return if args.json {
            output::json(&json!({ "finished": true, "recovered": recovered(&recovery) }))
        } else {
            let said = done(&recovery);
            output::print(&format!("An earlier recovery was cut short here, and is finished now.\n\n{said}"))
        };
    }
    if !args.json {
        output::print(&format!("Asking the members of {name} where they stand ...\n\n"))?;
    }
    let survey = survivor.survey(&args.seed).await.map_err(failure)?;
    if !args.json {
        output::print(&show(&survey))?;
    }
    let agreed = match refusal(&survey, args.from_here) {
        Some(reason) => Err(Failure::new(reason)),
        None => agree(&args, &name),
    };
    if let Err(failure) = agreed {
        if args.json {
            output::json(&as_json(&survey, None))?;
        }
        return Err(failure);
    }
    let recovery = survivor.carry_on().await.map_err(failure)?;
    if args.json { output::json(&as_json(&survey, Some(&recovery))) } else { output::print(&done(&recovery)) }
}

/// The lock of a directory that holds a member. Nothing is made where nothing is.
fn open(args: &RecoverArgs) -> Result<DataDir, Failure> {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let named = args.data_dir.clone().or_else(|| env("SKEIN_DATA_DIR").map(PathBuf::from));
    let root = rustix::process::geteuid().is_root();
    let dir = named
        .or_else(|| config::default_data_dir(root, env))
        .ok_or_else(|| Failure::usage("name the node's directory with --data-dir"))?;
    if !dir.join("cluster.json").exists() {
        let what =
            format!("{} holds no member of a cluster; name the right one with --data-dir", dir.display());
        return Err(Failure::usage(what));
    }
    DataDir::open(&dir).map_err(|error| match error {
        DataDirError::InUse { .. } => {
            Failure::new(format!("{error}. The node that is to carry on must not run: stop it first"))
        }
        error => Failure::disk(error.to_string()),
    })
}

/// Why going on from here is wrong, whatever anybody agrees to.
fn refusal(survey: &Survey, from_here: bool) -> Option<String> {
    if let Some(newer) = survey.newer() {
        return Some(format!(
            "{} has come through a recovery that this node was left out of. Start this node: it comes back as a \
             learner by itself. Nothing was changed",
            label(newer)
        ));
    }
    if survey.majority {
        return Some(
            "a majority of the voters is there, so there is nothing to recover: start this node. Nothing was changed"
                .into(),
        );
    }
    let ahead = survey.ahead();
    let best = ahead.first().filter(|_| !from_here)?;
    let advice = if best.role == Role::Voter {
        "stop it and run `skein recover` there"
    } else {
        "it is a reader, which cannot carry on alone; no voter that answers has more than this node"
    };
    let more = best.stands.map_or_else(String::new, |stands| against(survey.durable(), stands.durable));
    Some(format!(
        "{} holds more than this node ({more}): {advice}. To give that up too, say --from-here --accept-loss. \
         Nothing was changed",
        label(best)
    ))
}

/// By flag, or by the cluster's name typed at a terminal.
fn agree(args: &RecoverArgs, name: &str) -> Result<(), Failure> {
    if args.accept_loss {
        return Ok(());
    }
    let nobody = "nothing was changed. To do it, say --accept-loss";
    if args.json || !io::stdin().is_terminal() || !output::is_terminal() {
        return Err(Failure::new(nobody));
    }
    output::print(&format!("Type the cluster's name ({name}) to carry on with this node alone: "))?;
    let mut typed = String::new();
    io::stdin().lock().read_line(&mut typed)?;
    if typed.trim() == name { Ok(()) } else { Err(Failure::new("that is not its name; nothing was changed")) }
}

/// The table, and what it means.
fn show(survey: &Survey) -> String {
    let columns = [
        text("NODE"),
        text("ID"),
        text("ROLE"),
        text("STATE"),
        number("DURABLE"),
        number("COMMIT"),
        number("APPLIED"),
        text("RECORDS"),
    ];
    let row = |member: &Surveyed| {
        let stands = member.stands;
        let own = member.id == survey.node;
        vec![
            member.name.clone(),
            member.id.short(),
            member.role.to_string(),
            state(survey, member),
            or_dash(stands.map(|s| s.durable)),
            or_dash(stands.map(|s| s.commit)),
            or_dash(stands.and_then(|s| s.applied)),
            or_dash(stands.filter(|_| !own).map(|s| against(survey.durable(), s.durable))),
        ]
    };
    let mut out = render(&columns, &survey.members.iter().map(row).collect::<Vec<_>>());
    let own = survey.own().map_or_else(String::new, label);
    match survey.ahead().first() {
        None => out.push_str(&format!("\n{own}, this node, has the highest log of those that answer.\n")),
        Some(best) => out.push_str(&format!("\n{} has a higher log than this node, {own}.\n", label(best))),
    }
    out.push_str("\nIf this node carries on alone:\n");
    for line in consequences(survey) {
        out.push_str(&format!("  - {line}\n"));
    }
    out.push('\n');
    out
}

fn state(survey: &Survey, member: &Surveyed) -> String {
    match (member.foreign, member.stands) {
        _ if member.id == survey.node => "this node".into(),
        (Some(generation), _) => format!("generation {generation}"),
        (None, Some(_)) => "answers".into(),
        (None, None) => "no answer".into(),
    }
}

/// What is lost, what is kept, what becomes of the others.
fn consequences(survey: &Survey) -> Vec<String> {
    let names =
        |members: &[&Surveyed]| members.iter().map(|member| label(member)).collect::<Vec<_>>().join(", ");
    let (durable, missing, ahead) = (survey.durable(), survey.missing(), survey.ahead());
    let mut lines = Vec::new();
    if !missing.is_empty() {
        let who = names(&missing);
        lines.push(format!(
            "Lost: every write that only {who} acknowledged, which is anything behind {durable}, this node's last \
             record. How much that is nobody here can know."
        ));
        lines.push(format!("Lost: changes of members and tokens that only {who} agreed on."));
        lines.push(format!(
            "If any of {who} still runs and only the network is broken, do NOT go on: what it acknowledges is put \
             aside as soon as it meets this node again."
        ));
    }
    if !ahead.is_empty() {
        lines.push(format!("Lost: what {} has behind {durable}.", names(&ahead)));
    }
    let commit = survey.commit();
    let unsure = durable.seq.saturating_sub(commit.seq);
    lines.push(format!(
        "Kept: every record up to {durable}, also the {unsure} behind {commit}, the last one known to be committed: \
         they may have been acknowledged."
    ));
    lines.push(
        "All other members are kept out. Each comes back by itself, as a learner, when it is started and meets this \
         node; what it has now is put aside in its own data directory."
            .into(),
    );
    lines
}

fn done(recovery: &Recovery) -> String {
    format!(
        "Recovered: generation {} of the cluster begins with this node, at {}.\n\n\
         Start it now (skein start); it takes writes at once, and losing it stops everything. Start the others when \
         you can:\neach ends once, saying why, and comes back as a learner when it is started again. For one that \
         is gone for\ngood: skein node remove NAME, and a new one with a token of skein token create.\n",
        recovery.generation, recovery.kept
    )
}

/// Where a log stands, seen from another one.
fn against(own: Lsn, other: Lsn) -> String {
    match (other.cmp(&own), other.seq.abs_diff(own.seq)) {
        (std::cmp::Ordering::Equal, _) => "level".into(),
        (std::cmp::Ordering::Greater, records) if other.seq > own.seq => format!("{records} ahead"),
        (std::cmp::Ordering::Greater, _) => "of a later epoch".into(),
        (std::cmp::Ordering::Less, records) if other.seq < own.seq => format!("{records} behind"),
        (std::cmp::Ordering::Less, _) => "of an older epoch".into(),
    }
}

fn label(member: &Surveyed) -> String {
    let name: String = member.name.chars().filter(|c| !c.is_control()).collect();
    if name.is_empty() { member.id.short() } else { format!("{name} ({})", member.id.short()) }
}

fn as_json(survey: &Survey, recovery: Option<&Recovery>) -> Value {
    let members: Vec<Value> = survey
        .members
        .iter()
        .map(|member| {
            let stands = member.stands;
            json!({
                "id": member.id.to_string(),
                "name": member.name,
                "role": member.role,
                "reachable": stands.is_some(),
                "durable": stands.map(|s| s.durable.to_string()),
                "commit": stands.map(|s| s.commit.to_string()),
                "applied": stands.and_then(|s| s.applied).map(|at| at.to_string()),
                "boot": stands.and_then(|s| s.boot).map(|boot| boot.to_string()),
                "other_generation": member.foreign,
            })
        })
        .collect();
    json!({
        "cluster_name": survey.cluster_name,
        "node_id": survey.node.to_string(),
        "generation": survey.generation,
        "members": members,
        "majority": survey.majority,
        "highest": survey.ahead().first().map_or(survey.node, |best| best.id).to_string(),
        "consequences": consequences(survey),
        "recovered": recovery.map(recovered),
    })
}

fn recovered(recovery: &Recovery) -> Value {
    json!({
        "generation": recovery.generation,
        "by": recovery.by.to_string(),
        "kept": recovery.kept.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        node::recover::Standing,
        types::{BootId, NodeId},
    };

    fn member(n: u8, role: Role, durable: Option<(u64, u64)>) -> Surveyed {
        let stands = durable.map(|(epoch, seq)| Standing {
            durable: Lsn::new(epoch, seq),
            commit: Lsn::new(1, 40),
            applied: (n > 1).then_some(Lsn::new(1, 40)),
            boot: (n > 1).then_some(BootId(n.into())),
        });
        Surveyed { id: NodeId([n; 16]), name: format!("n{n}"), role, stands, foreign: None }
    }

    fn survey(members: Vec<Surveyed>) -> Survey {
        Survey { cluster_name: "home".into(), node: NodeId([1; 16]), generation: 0, members, majority: false }
    }

    #[test]
    fn the_survey_says_who_is_where_and_what_is_lost() {
        let reader = member(4, Role::Reader, Some((1, 42)));
        let lost = survey(vec![
            member(1, Role::Voter, Some((1, 42))),
            member(2, Role::Voter, None),
            member(3, Role::Voter, None),
            reader,
        ]);
        assert_eq!(refusal(&lost, false), None);
        let shown = show(&lost);
        let line = |word: &str| shown.lines().find(|line| line.contains(word)).unwrap_or_default();
        assert!(line("this node  ").contains("1.42"), "{shown}");
        assert!(line("no answer").starts_with("n2"), "{shown}");
        assert!(line("answers").contains("level"), "{shown}");
        assert!(shown.contains("has the highest log of those that answer"), "{shown}");
        assert!(shown.contains("only n2 (") && shown.contains("also the 2 behind 1.40"), "{shown}");
        let json = as_json(&lost, None);
        assert_eq!((&json["members"][1]["reachable"], &json["recovered"]), (&json!(false), &Value::Null));
        assert_eq!(json["highest"], NodeId([1; 16]).to_string());
    }

    #[test]
    fn a_better_choice_is_named() {
        let five = |second: Surveyed| {
            let gone = |n| member(n, Role::Voter, None);
            survey(vec![member(1, Role::Voter, Some((1, 42))), second, gone(3), gone(4), gone(5)])
        };
        let ahead = five(member(2, Role::Voter, Some((1, 56))));
        let why = refusal(&ahead, false).unwrap();
        assert!(why.contains("14 ahead") && why.contains("run `skein recover` there"), "{why}");
        assert_eq!(refusal(&ahead, true), None);
        let why = refusal(&five(member(2, Role::Reader, Some((2, 7)))), false).unwrap();
        assert!(why.contains("later epoch") && why.contains("cannot carry on"), "{why}");
        assert!(consequences(&ahead).iter().any(|line| line.starts_with("Lost: what n2 (")));

        let there = Survey { majority: true, ..ahead.clone() };
        assert!(refusal(&there, true).unwrap().contains("start this node"));
        let newer = Surveyed { foreign: Some(1), ..member(2, Role::Voter, None) };
        assert!(refusal(&five(newer), true).unwrap().contains("comes back as a learner"));
        let older =
            Survey { generation: 2, ..five(Surveyed { foreign: Some(1), ..member(2, Role::Voter, None) }) };
        assert_eq!(refusal(&older, false), None);
        assert!(show(&older).contains("generation 1"));
    }
}
