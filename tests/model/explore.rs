//! Going through worlds: all of them within bounds, breadth first, or along random walks.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasherDefault, Hasher},
};

use super::{
    fingerprint::fingerprint,
    protocol::{Model, Successors},
    state::{Broken, State},
    step::{Step, letter, letters},
};

/// The hasher of what is a hash already.
#[derive(Default)]
pub struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What else to look for in a world.
pub type Look = fn(&Model, &State) -> Option<Broken>;

type Seen = HashMap<u64, u64, BuildHasherDefault<AsItIs>>;

/// What a search found.
#[derive(Debug)]
pub struct Found {
    pub states: usize,
    /// Steps of the longest shortest way.
    pub depth: usize,
    /// False if `cap` ended the search.
    pub exhausted: bool,
    pub trace: Option<Trace>,
}

/// The way to a violation.
#[derive(Debug, Clone)]
pub struct Trace {
    pub model: Model,
    pub steps: Vec<Step>,
    pub broken: Broken,
}

/// Every world that can be reached after `prefix`, until one is broken or more than `cap` are known.
/// Worlds are told apart by 64 bits: among 40 million the chance that two are mixed up is 1 in 20,000.
pub fn search(model: Model, prefix: &[Step], cap: usize, look: Look) -> Found {
    let start = replay(model, prefix).unwrap_or_else(|at| panic!("step {at} of the prefix cannot be taken"));
    let key = |state: &State| fingerprint(state, model.bounds.nodes);
    let mut seen = Seen::default();
    seen.insert(key(&start), key(&start));
    let (mut level, mut next_level, mut next) = (vec![start], Vec::new(), Successors::default());
    let mut depth = 0;
    loop {
        for state in &level {
            let from = key(state);
            model.successors(state, &mut next);
            for (_, after) in &next.0 {
                let to = key(after);
                if seen.contains_key(&to) {
                    continue;
                }
                seen.insert(to, from);
                if let Some(broken) = after.broken.or_else(|| look(&model, after)) {
                    let mut steps = prefix.to_vec();
                    steps.extend(way(model, &start, &seen, to));
                    let trace = Some(Trace { model, steps, broken });
                    return Found { states: seen.len(), depth: depth + 1, exhausted: false, trace };
                }
                next_level.push(*after);
            }
            if seen.len() > cap {
                return Found { states: seen.len(), depth, exhausted: false, trace: None };
            }
        }
        if next_level.is_empty() {
            return Found { states: seen.len(), depth, exhausted: true, trace: None };
        }
        depth += 1;
        std::mem::swap(&mut level, &mut next_level);
        next_level.clear();
    }
}

/// Nothing more to look for than what steps notice.
pub fn nothing(_: &Model, _: &State) -> Option<Broken> {
    None
}

/// The steps from `start` to the world with that fingerprint.
fn way(model: Model, start: &State, seen: &Seen, to: u64) -> Vec<Step> {
    let mut prints = vec![to];
    let mut at = to;
    while seen[&at] != at {
        at = seen[&at];
        prints.push(at);
    }
    prints.pop();
    let (mut state, mut steps, mut next) = (*start, Vec::new(), Successors::default());
    while let Some(print) = prints.pop() {
        model.successors(&state, &mut next);
        let found = next.0.iter().find(|(_, after)| fingerprint(after, model.bounds.nodes) == print);
        let (step, after) = found.expect("a world that was reached is reached again");
        steps.push(*step);
        state = *after;
    }
    steps
}

/// The world after `steps`, or the number of the first that is not allowed.
pub fn replay(model: Model, steps: &[Step]) -> Result<State, usize> {
    let mut state = State::initial(&model.bounds);
    for (at, step) in steps.iter().enumerate() {
        state = model.take(&state, *step).ok_or(at + 1)?;
    }
    Ok(state)
}

/// A generator of numbers that look random: splitmix64.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.throw() % bound
    }
}

/// One walk of at most `longest` steps. Each seed draws its own likings, so that among many walks
/// some crash all the time and some never (a swarm). `sees` is shown every step taken.
pub fn walk(
    model: Model,
    seed: u64,
    longest: usize,
    sees: &mut impl FnMut(&State, Step, &State),
) -> Option<Trace> {
    let mut dice = Dice::new(seed);
    let mut liking = [0; Step::KINDS];
    for weight in &mut liking {
        *weight = [1, 1, 3, 8, 24][dice.below(5) as usize];
    }
    let (mut state, mut steps, mut next) = (State::initial(&model.bounds), Vec::new(), Successors::default());
    while steps.len() < longest {
        model.successors(&state, &mut next);
        let total: u64 = next.0.iter().map(|(step, _)| liking[step.kind()]).sum();
        if total == 0 {
            return None;
        }
        let mut left = dice.below(total);
        let chosen = next.0.iter().find(|(step, _)| {
            let weight = liking[step.kind()];
            let found = left < weight;
            left = left.saturating_sub(weight);
            found
        });
        let (step, after) = chosen?;
        sees(&state, *step, after);
        steps.push(*step);
        state = *after;
        if let Some(broken) = state.broken {
            return Some(Trace { model, steps, broken });
        }
    }
    None
}

impl Trace {
    /// Drops every step that the violation can do without.
    pub fn shrunk(mut self) -> Self {
        let fails =
            |steps: &[Step]| replay(self.model, steps).is_ok_and(|state| state.broken == Some(self.broken));
        loop {
            let before = self.steps.len();
            for width in [4, 3, 2, 1] {
                let mut at = 0;
                while at + width <= self.steps.len() {
                    let mut fewer = self.steps.clone();
                    fewer.drain(at..at + width);
                    if fails(&fewer) {
                        self.steps = fewer;
                    } else {
                        at += 1;
                    }
                }
            }
            if self.steps.len() == before {
                return self;
            }
        }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut state = State::initial(&self.model.bounds);
        for (at, step) in self.steps.iter().enumerate() {
            let what = step.to_string();
            let Some(after) = self.model.take(&state, *step) else {
                return writeln!(f, "{:4}. {what}: not possible", at + 1);
            };
            state = after;
            match step.node() {
                Some(node) => writeln!(f, "{:4}. {what:<52} {}", at + 1, Line(&state, node))?,
                None => writeln!(f, "{:4}. {what}", at + 1)?,
            }
        }
        writeln!(f, "      => {}", self.broken.says())?;
        for node in 0..self.model.bounds.nodes {
            writeln!(f, "      {}", Line(&state, node))?;
        }
        for (at, stream) in state.streams().iter().enumerate() {
            writeln!(
                f,
                "      stream {at}: epoch {} of {} sent [{}] commit {} acks {:?}",
                stream.epoch,
                letter(stream.owner),
                stream.log,
                stream.commit,
                &stream.acks[..self.model.bounds.nodes]
            )?;
        }
        let (register, membership) = (state.newest_register(), state.newest_membership());
        write!(
            f,
            "      committed [{}]; register: epoch {} of {}; voters {}",
            state.committed,
            register.epoch,
            letter(register.node as u64),
            letters(membership.all())
        )
    }
}

/// A node in one line: what is on disk, then what is not.
struct Line<'a>(&'a State, usize);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = &self.0.nodes[self.1];
        write!(f, "{}: [", letter(self.1 as u64))?;
        for (at, record) in node.log.records().iter().enumerate() {
            let border = if at == node.durable as usize { "| " } else { "" };
            write!(f, "{}{border}{record}", if at == 0 { "" } else { " " })?;
        }
        write!(f, "] promise {}", node.promise)?;
        if node.applied > 0 {
            write!(f, ", applied {}", node.applied)?;
        }
        match (self.0.office(self.1), self.0.session(self.1)) {
            (Some(office), _) => write!(f, ", writes stream {office}"),
            (None, Some(session)) => write!(f, ", follows stream {session}"),
            (None, None) => Ok(()),
        }
    }
}
