//! Queries that ask only what each series was last, or which series there are: they need no more of a
//! part of a table than its digest (`columnar/latest.rs`).
//!
//! Recognized after optimization, when `SELECT DISTINCT` and `DISTINCT ON` are aggregates: groups by
//! nothing but tags, and of each group what its last row has. Conditions on tags leave series out;
//! a least time leaves rows out that are older than one that stays. Any other condition may leave the
//! last row out and ask for one that is in no digest.

use std::sync::Arc;

use datafusion::{
    catalog::TableProvider,
    common::{
        Column,
        tree_node::{Transformed, TreeNode},
    },
    datasource::{provider_as_source, source_as_provider},
    error::Result,
    logical_expr::{
        Aggregate, BinaryExpr, Expr, LogicalPlan, Operator, TableScan, expr::Sort, utils::split_conjunction,
    },
};

use super::table_provider::SqlTable;
use crate::engine::columnar::{merge::tags, schema::TIME};

/// The plan with scans of digests wherever those say enough.
pub(super) fn use_digests(plan: LogicalPlan) -> Result<LogicalPlan> {
    let changed = plan.transform_up_with_subqueries(|step| {
        let LogicalPlan::Aggregate(aggregate) = &step else { return Ok(Transformed::no(step)) };
        if !asks_for_the_last(aggregate) {
            return Ok(Transformed::no(step));
        }
        let input = aggregate.input.as_ref().clone().transform_down(of_digests)?.data;
        let exprs = step.expressions();
        Ok(Transformed::yes(step.with_new_exprs(exprs, vec![input])?))
    });
    Ok(changed?.data)
}

/// Scans the digests of a table instead of all of it.
fn of_digests(step: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let LogicalPlan::TableScan(scan) = &step else { return Ok(Transformed::no(step)) };
    let provider = source_as_provider(&scan.source)?;
    let Some(table) = provider.downcast_ref::<SqlTable>() else { return Ok(Transformed::no(step)) };
    let source = provider_as_source(Arc::new(table.of_digests()) as Arc<dyn TableProvider>);
    Ok(Transformed::yes(LogicalPlan::TableScan(TableScan { source, ..scan.clone() })))
}

/// What a column is in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Is {
    Time,
    Tag,
    Field,
}

fn asks_for_the_last(aggregate: &Aggregate) -> bool {
    let input = aggregate.input.as_ref();
    let groups = &aggregate.group_expr;
    let grouped = groups.iter().all(|group| is_of_tags(group, input));
    let asked = aggregate.aggr_expr.iter().all(|asked| is_of_the_last_row(asked, groups, input));
    // The last time of all is known of every part without its digest.
    let one_by_one = !groups.is_empty() || aggregate.aggr_expr.iter().any(|asked| !is_max(asked));
    grouped && asked && one_by_one && keeps_the_last(input)
}

fn is_max(asked: &Expr) -> bool {
    matches!(asked.clone().unalias(), Expr::AggregateFunction(call) if call.func.name() == "max")
}

/// `max(time)`, `last_value(.. ORDER BY time)` and `first_value(.. ORDER BY time DESC)`.
fn is_of_the_last_row(asked: &Expr, groups: &[Expr], input: &LogicalPlan) -> bool {
    let Expr::AggregateFunction(call) = asked.clone().unalias() else { return false };
    let of = &call.params;
    let ([argument], None) = (of.args.as_slice(), &of.filter) else { return false };
    let ascending = match call.func.name() {
        "max" => return is(argument, input) == Some(Is::Time),
        "last_value" => true,
        "first_value" => false,
        _ => return false,
    };
    // Within a group what it is grouped by orders nothing; DISTINCT ON names it first.
    let mut order = of.order_by.iter().skip_while(|key| groups.contains(&key.expr));
    let by_time = match (order.next(), order.next()) {
        (Some(Sort { expr, asc, .. }), None) => *asc == ascending && is(expr, input) == Some(Is::Time),
        _ => false,
    };
    // For each column the digest has the last row that has a value of it, and for no expression. It may
    // also have rows that are no rows of the table any more, on which an expression might fail.
    by_time && is(argument, input).is_some() && !of.distinct
}

/// True if rows come as they are in one table, less some that are not the last of a series, or all of
/// a series.
fn keeps_the_last(input: &LogicalPlan) -> bool {
    match input {
        LogicalPlan::TableScan(scan) => {
            let ours = source_as_provider(&scan.source).is_ok_and(|table| table.is::<SqlTable>());
            ours && scan.fetch.is_none() && scan.filters.iter().all(|filter| is_harmless(filter, input))
        }
        LogicalPlan::Filter(filter) => {
            is_harmless(&filter.predicate, &filter.input) && keeps_the_last(&filter.input)
        }
        LogicalPlan::SubqueryAlias(alias) => keeps_the_last(&alias.input),
        LogicalPlan::Projection(projection) => {
            let below = projection.input.as_ref();
            let is_plain = |expr: &Expr| {
                let constant = matches!(expr.clone().unalias(), Expr::Literal(..));
                constant || is(expr, below).is_some() || is_of_tags(expr, below)
            };
            projection.expr.iter().all(is_plain) && keeps_the_last(below)
        }
        _ => false,
    }
}

/// True for conditions on tags alone, and those that ask for a least time.
fn is_harmless(predicate: &Expr, input: &LogicalPlan) -> bool {
    split_conjunction(predicate).into_iter().all(|condition| match condition {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if matches!(**right, Expr::Literal(..)) => {
            let least = matches!(op, Operator::Gt | Operator::GtEq);
            least && is(left, input) == Some(Is::Time) || is_of_tags(condition, input)
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if matches!(**left, Expr::Literal(..)) => {
            let least = matches!(op, Operator::Lt | Operator::LtEq);
            least && is(right, input) == Some(Is::Time) || is_of_tags(condition, input)
        }
        condition => is_of_tags(condition, input),
    })
}

/// True for what tags alone decide.
fn is_of_tags(expr: &Expr, input: &LogicalPlan) -> bool {
    let columns = expr.column_refs();
    let tags = columns.iter().all(|column| find(column, input) == Some(Is::Tag));
    !columns.is_empty() && tags && !expr.is_volatile() && !matches!(expr, Expr::GroupingSet(_))
}

/// What a column is that is named as it is, perhaps otherwise.
fn is(expr: &Expr, input: &LogicalPlan) -> Option<Is> {
    match expr.clone().unalias() {
        Expr::Column(column) => find(&column, input),
        _ => None,
    }
}

/// What a column is, if all steps down to its table only pass it on.
pub(super) fn find(column: &Column, input: &LogicalPlan) -> Option<Is> {
    let at = input.schema().maybe_index_of_column(column)?;
    match input {
        LogicalPlan::TableScan(scan) => {
            let name = input.schema().field(at).name();
            let schema = scan.source.schema();
            let index = schema.index_of(name).ok()?;
            let kind = if tags(&schema).any(|tag| tag == index) { Is::Tag } else { Is::Field };
            Some(if name == TIME { Is::Time } else { kind })
        }
        LogicalPlan::Projection(projection) => is(projection.expr.get(at)?, &projection.input),
        LogicalPlan::SubqueryAlias(alias) => {
            let column = Column::from(alias.input.schema().qualified_field(at));
            find(&column, &alias.input)
        }
        LogicalPlan::Filter(filter) => find(column, &filter.input),
        _ => None,
    }
}
