//! How large a statement becomes when it is planned, judged before it is: planning cannot be
//! stopped, and a short text can double itself at every step.

use std::{collections::HashMap, ops::ControlFlow};

use datafusion::sql::sqlparser::ast::{Expr, ObjectName, Query, Statement, Visit, Visitor};

use super::error::QueryError;

/// Most tables that are read, each use of a named subquery counted with all that it reads.
const MAX_RELATIONS: u64 = 128;
/// Most expressions, counted as often as rewriting may copy them.
const MAX_EXPRESSIONS: u64 = 200_000;
/// Most ways to group, of all grouping sets together: each is computed for every row.
const MAX_GROUPINGS: u64 = 64;
/// Functions that are rewritten with an argument copied.
const COPYING_FUNCTIONS: [&str; 7] = ["coalesce", "nvl", "nvl2", "ifnull", "nullif", "greatest", "least"];

/// Refuses a statement that would grow past what is sensible.
pub(super) fn check_expansion(statement: &Statement) -> Result<(), QueryError> {
    let mut size = Size::default();
    let expressions = statement.visit(&mut size).is_continue();
    if size.groupings > MAX_GROUPINGS {
        return Err(QueryError::TooLarge(format!(
            "the statement has more than {MAX_GROUPINGS} grouping sets"
        )));
    }
    if expressions && size.relations().is_some_and(|relations| relations <= MAX_RELATIONS) {
        return Ok(());
    }
    let what = if expressions { "reads too many tables" } else { "has too deeply nested expressions" };
    Err(QueryError::TooLarge(format!("the statement {what}, named subqueries counted at each use")))
}

/// What a walk over a statement finds.
#[derive(Default)]
struct Size {
    /// Every table that is named without database, once per mention.
    mentions: Vec<String>,
    /// Other tables.
    others: u64,
    /// Named subqueries: name, and the tables that they mention.
    named: Vec<(String, Self)>,
    expressions: u64,
    /// Ways to group, as if all sets were of one clause; 0 if there are none.
    groupings: u64,
    /// How often each expression around the current one is copied.
    copies: Vec<u64>,
}

impl Size {
    /// Tables read once all named subqueries are put in; `None` if there is no end to it.
    /// Scopes are not told apart: of several subqueries with one name the largest counts.
    fn relations(&self) -> Option<u64> {
        let mut sizes: HashMap<&str, u64> = self.named.iter().map(|(name, _)| (name.as_str(), 1)).collect();
        for _ in 0..=self.named.len() {
            let before = sizes.clone();
            for (name, body) in &self.named {
                let size = body.read(&before);
                if size > MAX_RELATIONS {
                    return None;
                }
                let largest = sizes.entry(name).or_insert(1);
                *largest = size.max(*largest);
            }
            if sizes == before {
                return Some(self.read(&sizes));
            }
        }
        None
    }

    fn read(&self, sizes: &HashMap<&str, u64>) -> u64 {
        let mentions = self.mentions.iter().map(|name| sizes.get(name.as_str()).copied().unwrap_or(1));
        mentions.fold(self.others, u64::saturating_add)
    }
}

impl Visitor for Size {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        for named in query.with.iter().flat_map(|with| &with.cte_tables) {
            let mut body = Self::default();
            // Its expressions are counted by the walk that is under way.
            let mut relations = Relations(&mut body);
            let _ = named.query.visit(&mut relations);
            self.named.push((named.alias.name.value.clone(), body));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        self.mention(relation);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        let groupings = match expr {
            Expr::Cube(columns) => 1u64.checked_shl(columns.len() as u32).unwrap_or(u64::MAX),
            Expr::Rollup(columns) => columns.len() as u64 + 1,
            Expr::GroupingSets(sets) => sets.len() as u64,
            _ => 1,
        };
        if groupings > 1 {
            self.groupings = self.groupings.max(1).saturating_mul(groupings);
        }
        let copied = match expr {
            Expr::Between { .. } => 2,
            Expr::Case { operand: Some(_), .. } => 2,
            Expr::InList { .. } => 3,
            Expr::Function(function) => {
                let name = function.name.to_string().to_ascii_lowercase();
                if COPYING_FUNCTIONS.contains(&name.trim_matches('"')) { 2 } else { 1 }
            }
            _ => 1,
        };
        let copies = self.copies.last().copied().unwrap_or(1);
        self.copies.push(copies.saturating_mul(copied));
        self.expressions = self.expressions.saturating_add(copies);
        if self.expressions > MAX_EXPRESSIONS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn post_visit_expr(&mut self, _expr: &Expr) -> ControlFlow<()> {
        self.copies.pop();
        ControlFlow::Continue(())
    }
}

impl Size {
    fn mention(&mut self, relation: &ObjectName) {
        match relation.0.as_slice() {
            [name] => self.mentions.extend(name.as_ident().map(|name| name.value.clone())),
            _ => self.others += 1,
        }
    }
}

/// Finds the tables that a named subquery mentions.
struct Relations<'a>(&'a mut Size);

impl Visitor for Relations<'_> {
    type Break = ();

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        self.0.mention(relation);
        ControlFlow::Continue(())
    }
}
