//! What a plan may become, judged on the plan: the optimizer puts an expression in the place of a
//! column that stands for it, so steps that each use the one before twice double at each step, and
//! planning cannot be stopped. And how much constant text its rows can carry, which is copied for
//! every row of a batch.

use datafusion::{
    common::{
        Column, DFSchema, ScalarValue,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    logical_expr::{Expr, LogicalPlan, Subquery},
};

use super::error::QueryError;

type Result<T> = std::result::Result<T, QueryError>;

/// Most parts of one expression with all it stands for put in.
const MAX_EXPRESSION: u64 = 20_000;
/// Most parts of all expressions of one step, likewise.
const MAX_STEP: u64 = 200_000;
/// Most bytes of constant text in one row.
const MAX_CONSTANT_TEXT: u64 = 1 << 20;
/// Constants up to this length are not counted as text: what they take in a row is a column's.
const SHORT: usize = 256;
/// Bytes of constant text in one batch. Each partition may have two or three at a time.
const BATCH_TEXT: u64 = 8 << 20;
/// Functions that are rewritten with an argument copied.
const COPYING: [&str; 7] = ["coalesce", "nvl", "nvl2", "ifnull", "nullif", "greatest", "least"];

/// Refuses a plan whose expressions grow past what is sensible when they are put into each other.
pub(super) fn check_weight(plan: &LogicalPlan) -> Result<()> {
    weigh(plan).map(drop)
}

/// Rows of a batch, at most `rows`, such that its constant text stays within bounds.
pub(super) fn batch_rows(plan: &LogicalPlan, rows: usize) -> Result<usize> {
    let text = weigh(plan)?.text.max(1);
    Ok(usize::try_from(BATCH_TEXT / text).unwrap_or(rows).clamp(1, rows))
}

/// An expression with all it stands for put in.
#[derive(Debug, Clone, Copy, Default)]
struct Weight {
    /// Its parts.
    parts: u64,
    /// Bytes of its constants that are long.
    text: u64,
}

impl Weight {
    const ONE: Self = Self { parts: 1, text: 0 };

    fn add(&mut self, other: Self) {
        self.parts = self.parts.saturating_add(other.parts);
        self.text = self.text.saturating_add(other.text);
    }

    fn times(self, n: u64) -> Self {
        Self { parts: self.parts.saturating_mul(n), text: self.text }
    }

    fn or(self, other: Self) -> Self {
        Self { parts: self.parts.max(other.parts), text: self.text.max(other.text) }
    }
}

/// The columns of a step.
struct Weights {
    columns: Vec<Weight>,
    /// The most constant text in a row of this step or one below.
    text: u64,
}

fn weigh(plan: &LogicalPlan) -> Result<Weights> {
    let inputs = plan.inputs().into_iter().map(weigh).collect::<Result<Vec<_>>>()?;
    let mut below = inputs.iter().map(|input| input.text).max().unwrap_or(0);
    let scope: Vec<(&DFSchema, &[Weight])> = plan
        .inputs()
        .into_iter()
        .zip(&inputs)
        .map(|(input, weights)| (input.schema().as_ref(), weights.columns.as_slice()))
        .collect();
    let mut step = Weight::default();
    let mut own = Vec::new();
    let mut refused = None;
    plan.apply_expressions(|expr| {
        Ok(match weigh_expr(expr, &scope, &mut below) {
            Ok(weight) => {
                step.add(weight);
                own.push(weight);
                TreeNodeRecursion::Continue
            }
            Err(error) => {
                refused = Some(error);
                TreeNodeRecursion::Stop
            }
        })
    })?;
    refused.map_or(Ok(()), Err)?;
    let heaviest = own.iter().map(|weight| weight.parts).max().unwrap_or(0);
    if heaviest > MAX_EXPRESSION || step.parts > MAX_STEP {
        return Err(QueryError::TooLarge(
            "the statement's expressions grow too large when those of its subqueries are put in".into(),
        ));
    }
    if step.text > MAX_CONSTANT_TEXT {
        return Err(QueryError::TooLarge(format!(
            "the statement puts more than {MAX_CONSTANT_TEXT} bytes of constant text into a row"
        )));
    }
    let fields = plan.schema().fields().len();
    let mut columns: Vec<Weight> = match plan {
        LogicalPlan::Projection(_) => own,
        // What it computes stays a column for the steps above.
        LogicalPlan::Aggregate(aggregate) => {
            let groups = own.iter().take(aggregate.group_expr.len()).copied();
            groups.chain(std::iter::repeat(Weight { text: step.text, ..Weight::ONE })).take(fields).collect()
        }
        LogicalPlan::Union(_) => {
            let each = |at: usize| inputs.iter().filter_map(move |input| input.columns.get(at).copied());
            (0..fields).map(|at| each(at).fold(Weight::ONE, Weight::or)).collect()
        }
        LogicalPlan::Values(_) => vec![Weight { text: step.text, ..Weight::ONE }; fields],
        // Those of the inputs in their order; some steps add one of their own, or leave some out.
        _ => inputs.iter().flat_map(|input| input.columns.iter().copied()).collect(),
    };
    columns.resize(fields, Weight::ONE);
    let row = columns.iter().map(|column| column.text).fold(0, u64::saturating_add);
    Ok(Weights { columns, text: below.max(step.text).max(row) })
}

fn weigh_expr(expr: &Expr, scope: &[(&DFSchema, &[Weight])], below: &mut u64) -> Result<Weight> {
    let copies = match expr {
        Expr::Between(_) => 2,
        Expr::Case(case) if case.expr.is_some() => 2,
        Expr::InList(_) => 3,
        Expr::ScalarFunction(call) if COPYING.contains(&call.name()) => 2,
        _ => 1,
    };
    let mut weight = match expr {
        Expr::Column(column) => return Ok(find(column, scope)),
        Expr::Literal(value, _) => Weight { text: text_of(value), ..Weight::ONE },
        Expr::ScalarSubquery(subquery) => weigh_subquery(subquery, below)?,
        Expr::Exists(exists) => weigh_subquery(&exists.subquery, below)?,
        Expr::InSubquery(within) => weigh_subquery(&within.subquery, below)?,
        Expr::SetComparison(compared) => weigh_subquery(&compared.subquery, below)?,
        _ => Weight::ONE,
    };
    let mut refused = None;
    expr.apply_children(|child| {
        match weigh_expr(child, scope, below) {
            Ok(child) => weight.add(child.times(copies)),
            Err(error) => refused = Some(error),
        }
        Ok(if refused.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    refused.map_or(Ok(weight), Err)
}

fn weigh_subquery(subquery: &Subquery, below: &mut u64) -> Result<Weight> {
    let weights = weigh(&subquery.subquery)?;
    *below = weights.text.max(*below);
    Ok(weights.columns.iter().copied().fold(Weight::ONE, Weight::or))
}

/// What a column stands for; one of an outer query stands for itself.
fn find(column: &Column, scope: &[(&DFSchema, &[Weight])]) -> Weight {
    let found = scope.iter().find_map(|(schema, weights)| {
        let at = schema.maybe_index_of_column(column)?;
        weights.get(at).copied()
    });
    found.unwrap_or(Weight::ONE)
}

fn text_of(value: &ScalarValue) -> u64 {
    let len = match value {
        ScalarValue::Utf8(Some(text))
        | ScalarValue::LargeUtf8(Some(text))
        | ScalarValue::Utf8View(Some(text)) => text.len(),
        ScalarValue::Binary(Some(bytes))
        | ScalarValue::LargeBinary(Some(bytes))
        | ScalarValue::BinaryView(Some(bytes)) => bytes.len(),
        _ => 0,
    };
    if len > SHORT { len as u64 } else { 0 }
}
