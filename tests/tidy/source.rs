//! Rust source as the checks see it: text, text without comments and strings, text without tests,
//! and the paths it names.
//!
//! No parser: tokens are enough for the questions asked, and an answer that is too strict is
//! corrected by writing the source more plainly. Blanking keeps every line where it was.

/// One file of the package.
#[derive(Debug, Clone)]
pub struct Source {
    /// From the package root, with `/`.
    pub path: String,
    /// As it stands.
    pub text: String,
    /// Comments, and what stands inside string and character literals, made spaces.
    pub code: String,
    /// As `code`, and every item under `#[cfg(test)]` made spaces too.
    pub production: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let code = without_comments(text);
        let production = without_tests(&code);
        Self { path: path.to_owned(), text: text.to_owned(), code, production }
    }

    /// The path below `src/`, if it lies there.
    pub fn in_src(&self) -> Option<&str> {
        self.path.strip_prefix("src/")
    }

    /// True for the root of a program: nothing declares it, and its modules lie beside it.
    pub fn is_program(&self) -> bool {
        self.in_src().is_some_and(|below| below == "main.rs" || below.ends_with("/main.rs"))
    }

    /// `wal::record` for `src/wal/record.rs`; nothing for the crate root.
    pub fn module(&self) -> Vec<String> {
        let path = self.in_src().unwrap_or(&self.path).trim_end_matches(".rs");
        let mut parts: Vec<String> = path.split('/').map(str::to_owned).collect();
        let program = self.is_program() && parts.len() > 1;
        if program || parts.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib")) {
            parts.pop();
        }
        parts
    }

    /// Lines before the inline test module.
    pub fn lines_before_tests(&self) -> usize {
        let tokens = tokens(&self.code);
        let opens = |at: usize| {
            let item = &tokens[end_of_attributes(&tokens, at)..];
            matches!(item, [name, _, open, ..] if name.text == "mod" && open.text == "{")
        };
        let first = (0..tokens.len()).find(|at| is_test_gate(&tokens[*at..]) && opens(*at));
        first.map_or(self.code.lines().count(), |at| tokens[at].line - 1)
    }

    /// Every path that begins at `crate`, `super`, `self` or this crate's own name, made absolute,
    /// with its line: from `use` trees and from the middle of expressions alike.
    pub fn paths(&self) -> Vec<(usize, Vec<String>)> {
        Paths::of(self)
    }
}

/// The modules a file declares only for tests (`#[cfg(test)] mod tests;`).
pub fn test_modules(code: &str) -> Vec<String> {
    let tokens = tokens(code);
    let gates = (0..tokens.len()).filter(|at| is_test_gate(&tokens[*at..]));
    let declared = gates.filter_map(|at| match &tokens[end_of_attributes(&tokens, at)..] {
        [name, module, end, ..] if name.text == "mod" && end.text == ";" => Some(module.text.to_owned()),
        _ => None,
    });
    declared.collect()
}

/// A token: an identifier, `::`, or one other character.
#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    pub text: &'a str,
    pub line: usize,
    at: usize,
}

impl Token<'_> {
    pub fn is_word(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

/// The tokens of text that has been through [`without_comments`]. Lines count from 1.
pub fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut line = 1;
    let mut chars = code.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let mut end = at + c.len_utf8();
        if c == '\n' {
            line += 1;
        }
        if c.is_whitespace() {
            continue;
        }
        if c.is_alphanumeric() || c == '_' {
            while let Some((next, _)) = chars.next_if(|(_, c)| c.is_alphanumeric() || *c == '_') {
                end = next + code[next..].chars().next().map_or(1, char::len_utf8);
            }
        } else if c == ':' && chars.next_if(|(_, c)| *c == ':').is_some() {
            end += 1;
        }
        found.push(Token { text: &code[at..end], line, at });
    }
    found
}

/// Comments and the insides of literals made spaces; line breaks stay.
pub fn without_comments(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let blank = |out: &mut String, part: &[char]| {
        out.extend(part.iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
    };
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let glued = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
        if rest.starts_with(&['/', '/']) {
            let len = rest.iter().position(|c| *c == '\n').unwrap_or(rest.len());
            blank(&mut out, &rest[..len]);
            at += len;
        } else if rest.starts_with(&['/', '*']) {
            let len = block_comment(rest);
            blank(&mut out, &rest[..len]);
            at += len;
        } else if let Some((open, end)) = raw_string(rest).filter(|_| !glued) {
            let hashes = rest[..open].iter().filter(|c| **c == '#').count();
            out.extend(&rest[..open]);
            blank(&mut out, &rest[open..end]);
            out.extend(&rest[end..rest.len().min(end + 1 + hashes)]);
            at += end + 1 + hashes;
        } else if rest[0] == '"' {
            let len = quoted(rest, '"');
            out.push('"');
            if len > 1 {
                blank(&mut out, &rest[1..len - 1]);
                out.push('"');
            }
            at += len;
        } else if let Some(len) = character(rest) {
            out.push('\'');
            blank(&mut out, &rest[1..len - 1]);
            out.push('\'');
            at += len;
        } else {
            out.push(rest[0]);
            at += 1;
        }
    }
    out
}

fn block_comment(rest: &[char]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with(&['/', '*']) {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(&['*', '/']) {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// Length up to and with the closing quote, backslashes honoured.
fn quoted(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            '\\' => at += 2,
            c if c == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// `r"…"`, `r#"…"#`, `br"…"`, `cr"…"`: where the inside begins and where it ends.
fn raw_string(rest: &[char]) -> Option<(usize, usize)> {
    let prefix = usize::from(matches!(rest[0], 'b' | 'c'));
    if rest.get(prefix) != Some(&'r') {
        return None;
    }
    let hashes = rest[prefix + 1..].iter().take_while(|c| **c == '#').count();
    if rest.get(prefix + 1 + hashes) != Some(&'"') {
        return None;
    }
    let open = prefix + 2 + hashes;
    let closes =
        |at: usize| rest[at] == '"' && rest[at + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
    Some((open, (open..rest.len()).find(|at| closes(*at)).unwrap_or(rest.len())))
}

/// A character literal; `None` for a lifetime.
fn character(rest: &[char]) -> Option<usize> {
    match rest {
        ['\'', '\\', ..] => Some(quoted(rest, '\'')),
        ['\'', _, '\'', ..] => Some(3),
        _ => None,
    }
}

/// `#[cfg(test)]` and `#[cfg(all(test, ..))]`.
fn is_test_gate(tokens: &[Token<'_>]) -> bool {
    let is =
        |words: &[&str]| tokens.len() >= words.len() && tokens.iter().zip(words).all(|(t, w)| t.text == *w);
    is(&["#", "[", "cfg", "(", "test", ")"]) || is(&["#", "[", "cfg", "(", "all", "(", "test"])
}

/// The first token behind the attributes that begin at `from`.
fn end_of_attributes(tokens: &[Token<'_>], from: usize) -> usize {
    let mut at = from;
    while tokens.get(at).is_some_and(|token| token.text == "#") {
        at = end_of_group(tokens, at + 1);
    }
    at
}

/// Items under `#[cfg(test)]` made spaces.
fn without_tests(code: &str) -> String {
    let mut out = code.as_bytes().to_vec();
    let tokens = tokens(code);
    let mut at = 0;
    while at < tokens.len() {
        if !is_test_gate(&tokens[at..]) {
            at += 1;
            continue;
        }
        let end = end_of_item(&tokens, at);
        let until = tokens.get(end).map_or(code.len(), |token| token.at);
        for byte in &mut out[tokens[at].at..until] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8(out).unwrap_or_default()
}

/// The first token behind the item that starts at `from` with an attribute.
fn end_of_item(tokens: &[Token<'_>], from: usize) -> usize {
    let mut at = end_of_attributes(tokens, from);
    while let Some(token) = tokens.get(at) {
        match token.text {
            "{" => return end_of_group(tokens, at),
            "(" | "[" => at = end_of_group(tokens, at),
            ";" => return at + 1,
            "}" => return at,
            _ => at += 1,
        }
    }
    tokens.len()
}

/// The first token behind the group opened at `open`.
fn end_of_group(tokens: &[Token<'_>], open: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

/// Walks the tokens of a file with the module it is in at each place.
struct Paths<'a> {
    tokens: Vec<Token<'a>>,
    file: Vec<String>,
    /// Inline modules around this place, each with the brace depth of its body.
    inline: Vec<(String, usize)>,
    depth: usize,
    found: Vec<(usize, Vec<String>)>,
}

impl<'a> Paths<'a> {
    fn of(source: &'a Source) -> Vec<(usize, Vec<String>)> {
        let mut walk = Self {
            tokens: tokens(&source.production),
            file: source.module(),
            inline: Vec::new(),
            depth: 0,
            found: Vec::new(),
        };
        let mut at = 0;
        while at < walk.tokens.len() {
            at = walk.step(at);
        }
        walk.found
    }

    fn word(&self, at: usize) -> &'a str {
        self.tokens.get(at).map_or("", |token| token.text)
    }

    fn step(&mut self, at: usize) -> usize {
        match self.word(at) {
            "{" => self.depth += 1,
            "}" => {
                self.depth = self.depth.saturating_sub(1);
                self.inline.retain(|(_, depth)| *depth <= self.depth);
            }
            "mod" if self.word(at + 2) == "{" => {
                self.depth += 1;
                self.inline.push((self.word(at + 1).to_owned(), self.depth));
                return at + 3;
            }
            // `use<'a>` captures lifetimes and names no path.
            "use" if self.word(at + 1) != "<" => {
                let start = at + 1 + usize::from(self.word(at + 1) == "::");
                return self.tree(start, &[]) + 1;
            }
            "crate" | "super" | "self" | "skeinmesh" if self.word(at + 1) == "::" => {
                let line = self.tokens[at].line;
                let mut path = vec![self.word(at).to_owned()];
                let mut next = at + 1;
                while self.word(next) == "::" && self.tokens.get(next + 1).is_some_and(Token::is_word) {
                    path.push(self.word(next + 1).to_owned());
                    next += 2;
                }
                self.keep(line, &path);
                return next;
            }
            _ => {}
        }
        at + 1
    }

    /// One branch of a `use` tree; answers where it ends (`,`, `}` or `;`).
    fn tree(&mut self, mut at: usize, before: &[String]) -> usize {
        let mut path = before.to_vec();
        let line = self.tokens.get(at).map_or(0, |token| token.line);
        loop {
            match self.word(at) {
                "{" => {
                    at += 1;
                    while !matches!(self.word(at), "}" | "") {
                        at = self.tree(at, &path);
                        at += usize::from(self.word(at) == ",");
                    }
                    return at + 1;
                }
                "::" => at += 1,
                "as" => at += 2,
                "," | "}" | ";" | "" => {
                    self.keep(line, &path);
                    return at;
                }
                word => {
                    path.push(word.to_owned());
                    at += 1;
                }
            }
        }
    }

    /// Makes a path absolute; one that begins elsewhere (another crate, a child) is left out.
    fn keep(&mut self, line: usize, path: &[String]) {
        let mut here = self.file.clone();
        here.extend(self.inline.iter().map(|(name, _)| name.clone()));
        let mut rest = path;
        match path.first().map(String::as_str) {
            Some("crate" | "skeinmesh") => {
                here.clear();
                rest = &path[1..];
            }
            Some("self") => rest = &path[1..],
            Some("super") => {}
            _ => return,
        }
        while rest.first().is_some_and(|word| word == "super") {
            here.pop();
            rest = &rest[1..];
        }
        // `{self}` at the end of a tree names the module itself.
        here.extend(rest.iter().filter(|word| *word != "self").cloned());
        self.found.push((line, here));
    }
}

#[test]
fn comments_strings_and_characters_are_blanked_in_place() {
    let text =
        "a /* crate::x /* nested */ */ b // crate::y\n\"crate::z \\\" \" r#\"crate::q \" \"# '\"' 'a 'x' c";
    let code = without_comments(text);
    assert_eq!(code.chars().count(), text.chars().count(), "{code}");
    assert!(!code.contains("crate"), "{code}");
    let words: Vec<_> = tokens(&code).into_iter().filter(Token::is_word).map(|t| (t.text, t.line)).collect();
    assert_eq!(words, [("a", 1), ("b", 1), ("r", 2), ("a", 2), ("c", 2)]);
    assert_eq!(without_comments("r\"\" br##\"x\"# y\"## z\nw").split_whitespace().last(), Some("w"));
    assert!(without_comments("br##\"x\"# y\"## z").ends_with(" z"));
}

#[test]
fn test_items_are_blanked_and_nothing_else() {
    let text = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { x[0] } }\nfn c() {}\n#[cfg(test)] mod more;\n\
                #[cfg(test)]\n#[allow(dead_code)]\nfn d() -> [u8; 2] { [1, 2] }\n#[cfg(all(test, unix))] use q::r;\nfn e() {}";
    let source = Source::new("src/a.rs", text);
    let words: Vec<_> = tokens(&source.production)
        .into_iter()
        .filter(|t| t.text.len() == 1 && t.is_word())
        .map(|t| t.text)
        .collect();
    assert_eq!(words, ["a", "c", "e"], "{}", source.production);
    assert_eq!(source.lines_before_tests(), 1);
    assert_eq!(test_modules(&source.code), ["more"]);
}

#[test]
fn paths_are_resolved_from_every_form() {
    let text = "use crate::{a::{self, b::c}, d as e};\nuse super::super::f;\nuse self::g::*;\nuse std::h;\n\
                fn i() -> crate::j::K { $crate::l!(); super::m(); self.n }\nmod o { use super::p; }\nuse skeinmesh::q;\n\
                fn r() -> impl Sized + use<'_> { self::s::<crate::t::U>() }";
    let found: Vec<_> = Source::new("src/wal/record.rs", text)
        .paths()
        .into_iter()
        .map(|(line, path)| (line, path.join("::")))
        .collect();
    let want = [
        (1, "a"),
        (1, "a::b::c"),
        (1, "d"),
        (2, "f"),
        (3, "wal::record::g::*"),
        (5, "j::K"),
        (5, "l"),
        (5, "wal::m"),
        (6, "wal::record::p"),
        (7, "q"),
        (8, "wal::record::s"),
        (8, "t::U"),
    ];
    assert_eq!(found, want.map(|(line, path)| (line, path.to_owned())));
}
