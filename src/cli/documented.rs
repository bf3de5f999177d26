//! What the documentation says to type is what this command line takes, as the program is handed out: without
//! mDNS there is no `skein discover`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Command, CommandFactory};

use super::Cli;

/// A line that begins with `skein`, and where it stands.
struct Said {
    at: String,
    words: Vec<String>,
}

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md"), root.join("certs/README.md"), root.join("SECURITY.md")];
    for dir in ["docs", "deploy", "examples"] {
        let files = fs::read_dir(root.join(dir)).unwrap().map(|entry| entry.unwrap().path());
        pages.extend(files.filter(|path| path.is_file()));
    }
    pages
}

/// Commands of a page: what stands behind a prompt, and between backticks.
fn said(page: &Path) -> Vec<Said> {
    let name = page.file_name().unwrap().to_string_lossy();
    let text = fs::read_to_string(page).unwrap();
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let typed = line.split_once("$ ").filter(|(host, _)| host.len() <= 2).map(|(_, typed)| typed);
        // Texts that are signed hold a zero byte.
        let quoted = line.split('`').skip(1).step_by(2).filter(|text| !text.contains('\\'));
        let whole = typed.into_iter().flat_map(|line| line.split([';', '|']));
        for command in whole.chain(quoted) {
            let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
            // Behind variables and `sudo`.
            let start = words.iter().position(|word| word == "skein");
            let before = &words[..start.unwrap_or(0)];
            if let Some(start) =
                start.filter(|_| before.iter().all(|word| word.contains('=') || word == "sudo"))
            {
                let words =
                    words[start + 1..].iter().take_while(|word| !word.starts_with('#')).cloned().collect();
                found.push(Said { at: format!("{name}:{}", at + 1), words });
            }
        }
    }
    found
}

/// What is wrong with a command: a subcommand or a flag that is not there.
fn wrong(words: &[String]) -> Option<String> {
    let mut command: Command = Cli::command();
    for word in words {
        if let Some(flag) = word.strip_prefix("--") {
            let flag = flag.trim_end_matches([',', '.', ')', '>']).split('=').next().unwrap_or(flag);
            let is_there = |argument: &clap::Arg| argument.get_long() == Some(flag);
            if !["help", "version"].contains(&flag) && !command.get_arguments().any(is_there) {
                return Some(format!("skein {} has no --{flag}", command.get_name()));
            }
        } else if command.has_subcommands() && word.starts_with(|c: char| c.is_ascii_lowercase()) {
            // `token create|list` and `token create, list` name several.
            for name in word.split('|') {
                let name = name.trim_end_matches([',', '.', ')', ':']);
                match command.find_subcommand(name) {
                    Some(_) if word.contains('|') => {}
                    Some(below) => {
                        command = below.clone();
                        break;
                    }
                    None if command.get_positionals().next().is_some() => break,
                    None => return Some(format!("skein {} has no command {name:?}", command.get_name())),
                }
            }
        }
    }
    None
}

#[test]
fn every_command_in_the_documentation_is_there() {
    let all: Vec<Said> = pages().iter().flat_map(|page| said(page)).collect();
    assert!(all.len() > 150, "{} commands found", all.len());
    let wrong: Vec<String> = all
        .iter()
        .filter_map(|said| {
            Some(format!("{}: `skein {}`: {}", said.at, said.words.join(" "), wrong(&said.words)?))
        })
        .collect();
    assert!(wrong.is_empty(), "{} commands that are not there:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_command_that_is_not_there_is_seen() {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for good in [
        "start --new-cluster",
        "token create|list",
        "node drain NAME",
        "--version",
        "backup verify FILE --json",
    ] {
        assert_eq!(wrong(&words(good)), None, "{good}");
    }
    for bad in
        ["strat", "start --new-clutser", "node drian NAME", "token create|lost", "status --watch --jsno"]
    {
        assert!(wrong(&words(bad)).is_some(), "{bad}");
    }
}
