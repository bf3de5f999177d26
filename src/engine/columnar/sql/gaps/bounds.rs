//! Between which times the rows are that reach an aggregate, as far as conditions say.

use arrow_schema::{DataType, TimeUnit};
use datafusion::{
    common::{
        Column, ScalarValue,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator, cast, utils::split_conjunction},
};

/// Times that all rows are at or behind, and before: none, one or several of each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd)]
pub(super) struct Bounds {
    pub(super) least: Vec<Bound>,
    pub(super) below: Vec<Bound>,
}

/// A time that is known when the query runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd)]
pub(super) struct Bound {
    pub(super) at: Expr,
    /// The nanosecond behind it.
    pub(super) next: bool,
}

impl Bounds {
    /// What is said of `source`, which is a column of `input` or nothing is said of it.
    pub(super) fn of(source: &Expr, mut input: &LogicalPlan) -> Self {
        let mut found = Self::default();
        let Expr::Column(source) = source else { return found };
        let mut time = source.clone();
        loop {
            let Some(at) = input.schema().maybe_index_of_column(&time) else { return found };
            match input {
                LogicalPlan::Filter(filter) => {
                    for condition in split_conjunction(&filter.predicate) {
                        found.note(condition, input, at);
                    }
                    input = &filter.input;
                }
                LogicalPlan::SubqueryAlias(alias) => {
                    input = &alias.input;
                    time = Column::from(input.schema().qualified_field(at));
                }
                LogicalPlan::Projection(projection) => {
                    match projection.expr.get(at).map(|expr| expr.clone().unalias()) {
                        Some(Expr::Column(column)) => time = column,
                        _ => return found,
                    }
                    input = &projection.input;
                }
                LogicalPlan::Sort(sort) if sort.fetch.is_none() => input = &sort.input,
                _ => return found,
            }
        }
    }

    /// Notes what a condition says of column `at`.
    fn note(&mut self, condition: &Expr, input: &LogicalPlan, at: usize) {
        let is_time = |expr: &Expr| match expr {
            Expr::Column(column) => input.schema().maybe_index_of_column(column) == Some(at),
            _ => false,
        };
        match condition {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_time(left) => self.compare(*op, right),
            Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_time(right) => {
                if let Some(op) = op.swap() {
                    self.compare(op, left);
                }
            }
            Expr::Between(between) if is_time(&between.expr) && !between.negated => {
                self.compare(Operator::GtEq, &between.low);
                self.compare(Operator::LtEq, &between.high);
            }
            _ => {}
        }
    }

    fn compare(&mut self, op: Operator, with: &Expr) {
        if !is_constant(with) {
            return;
        }
        let bound = |next| Bound { at: as_time(with.clone()), next };
        if matches!(op, Operator::GtEq | Operator::Gt | Operator::Eq) {
            self.least.push(bound(op == Operator::Gt));
        }
        if matches!(op, Operator::Lt | Operator::LtEq | Operator::Eq) {
            self.below.push(bound(op != Operator::Lt));
        }
    }

    /// The times, for whoever walks through the expressions of a plan.
    pub(super) fn exprs(&self) -> impl Iterator<Item = &Expr> {
        self.least.iter().chain(&self.below).map(|bound| &bound.at)
    }

    /// The same with other times, in the order of [`Bounds::exprs`].
    pub(super) fn with(&self, exprs: &mut impl Iterator<Item = Expr>) -> Self {
        let mut with = |bounds: &[Bound]| -> Vec<Bound> {
            let each = bounds.iter().zip(exprs.by_ref());
            each.map(|(bound, at)| Bound { at, next: bound.next }).collect()
        };
        Self { least: with(&self.least), below: with(&self.below) }
    }
}

/// True for what has one value for the whole query, and that before anything is read.
fn is_constant(expr: &Expr) -> bool {
    let mut reads = expr.is_volatile();
    let walked = expr.apply(|part| {
        reads |= matches!(
            part,
            Expr::Column(_)
                | Expr::OuterReferenceColumn(..)
                | Expr::ScalarSubquery(_)
                | Expr::Exists(_)
                | Expr::InSubquery(_)
                | Expr::SetComparison(_)
                | Expr::AggregateFunction(_)
                | Expr::WindowFunction(_)
        );
        Ok(TreeNodeRecursion::Continue)
    });
    walked.is_ok() && !reads
}

pub(super) fn nanos(at: i64) -> Expr {
    Expr::Literal(ScalarValue::TimestampNanosecond(Some(at), None), None)
}

pub(super) fn as_time(expr: Expr) -> Expr {
    cast(expr, DataType::Timestamp(TimeUnit::Nanosecond, None))
}
