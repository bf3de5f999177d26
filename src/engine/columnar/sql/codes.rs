//! Texts of tags as numbers, for queries that group by them: the tables of groups hold numbers then, and a text
//! is made for each group and not for each row.
//!
//! Recognized after optimization, like what needs only digests (`latest.rs`): an aggregate by tags that nothing
//! else in it or below it uses, straight over one table. The scan gives such a tag as numbers ([`Texts`]), and
//! above the aggregate each number becomes its text again.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{Hash, Hasher},
    sync::Arc,
};

use arrow_array::{cast::AsArray, types::UInt32Type};
use arrow_schema::{DataType, FieldRef};
use datafusion::{
    catalog::TableProvider,
    common::{
        Column,
        tree_node::{Transformed, TreeNode},
    },
    datasource::{provider_as_source, source_as_provider},
    error::{DataFusionError, Result},
    execution::memory_pool::MemoryPool,
    logical_expr::{
        Aggregate, ColumnarValue, Expr, LogicalPlan, Projection, ReturnFieldArgs, ScalarFunctionArgs,
        ScalarUDF, ScalarUDFImpl, Signature, TableScan, TableScanBuilder, Volatility,
    },
};

pub(super) use texts::{Coder, Texts};

use super::{
    latest::{Is, find},
    table_provider::SqlTable,
};
use crate::engine::columnar::merge::tags;

mod texts;

/// Name of the function that makes text of numbers.
const TEXT_OF: &str = "tag_text";
/// What numbers are called below it, before the tag's name: DataFusion follows a sort or a filter through steps
/// by the names of columns, and would take the order of numbers for that of texts.
const NUMBER: &str = "number of ";

/// The plan with numbers in the place of tags wherever it only groups by them.
pub(super) fn use_codes(plan: LogicalPlan, pool: &Arc<dyn MemoryPool>) -> Result<LogicalPlan> {
    let changed = plan.transform_up_with_subqueries(|step| {
        let LogicalPlan::Aggregate(aggregate) = &step else { return Ok(Transformed::no(step)) };
        let coded = coded(aggregate, pool);
        if coded.is_empty() {
            return Ok(Transformed::no(step));
        }
        with_codes(aggregate, &coded).map(Transformed::yes)
    });
    Ok(changed?.data)
}

/// A tag that is grouped by: which group it is, which column of the table, and its texts.
struct Coded {
    group: usize,
    column: usize,
    texts: Arc<Texts>,
}

/// The groups of an aggregate that may be numbers.
fn coded(aggregate: &Aggregate, pool: &Arc<dyn MemoryPool>) -> Vec<Coded> {
    let input = aggregate.input.as_ref();
    // Which tags there are is asked with a limit too: DataFusion ends early then, if nothing stands in between.
    let only_groups = aggregate.aggr_expr.is_empty();
    if only_groups || aggregate.group_expr.iter().any(|group| matches!(group, Expr::GroupingSet(_))) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (group, expr) in aggregate.group_expr.iter().enumerate() {
        let Expr::Column(of) = expr.clone().unalias() else { continue };
        let others = aggregate.group_expr.iter().enumerate().filter(|(at, _)| *at != group);
        let used = others.map(|(_, expr)| expr).chain(&aggregate.aggr_expr).any(|expr| uses(expr, &of));
        if let Some(column) = passed_on(&of, input).filter(|_| !used) {
            found.push(Coded { group, column, texts: Arc::new(Texts::new(pool)) });
        }
    }
    // The same one under two names would get two sorts of numbers.
    let mut columns = HashSet::new();
    if found.iter().all(|coded| columns.insert(coded.column)) { found } else { Vec::new() }
}

/// Which tag of a table a column is, if all steps down to it only pass it on.
fn passed_on(column: &Column, input: &LogicalPlan) -> Option<usize> {
    let at = input.schema().maybe_index_of_column(column)?;
    match input {
        LogicalPlan::TableScan(scan) => {
            let provider = source_as_provider(&scan.source).ok()?;
            let table = provider.downcast_ref::<SqlTable>().filter(|table| table.may_code())?;
            let index = table.schema().index_of(input.schema().field(at).name()).ok()?;
            let is_tag = tags(&table.schema()).any(|tag| tag == index);
            let unused = scan.fetch.is_none() && !scan.filters.iter().any(|filter| uses(filter, column));
            (is_tag && unused).then_some(index)
        }
        // Files and their rows are left out by times and tags. What a condition on a field leaves out has its
        // number by then, which takes memory.
        LogicalPlan::Filter(filter) if !uses(&filter.predicate, column) => {
            let columns = filter.predicate.column_refs();
            let mut fields = columns.iter().filter(|of| !matches!(find(of, input), Some(Is::Time | Is::Tag)));
            if fields.next().is_some() { None } else { passed_on(column, &filter.input) }
        }
        LogicalPlan::SubqueryAlias(alias) => {
            passed_on(&Column::from(alias.input.schema().qualified_field(at)), &alias.input)
        }
        LogicalPlan::Projection(projection) => {
            let Expr::Column(below) = projection.expr.get(at)?.clone().unalias() else { return None };
            let mut others = projection.expr.iter().enumerate().filter(|(other, _)| *other != at);
            if others.any(|(_, expr)| uses(expr, &below)) {
                return None;
            }
            passed_on(&below, &projection.input)
        }
        _ => None,
    }
}

/// True for an expression that has this column in it, or a query that asks about columns around it.
fn uses(expr: &Expr, column: &Column) -> bool {
    let asks_about_others = |part: &Expr| {
        let query = match part {
            Expr::ScalarSubquery(query) => query,
            Expr::Exists(exists) => &exists.subquery,
            Expr::InSubquery(within) => &within.subquery,
            Expr::SetComparison(compared) => &compared.subquery,
            _ => return false,
        };
        !query.outer_ref_columns.is_empty()
    };
    let named = expr.column_refs().iter().any(|of| of.name == column.name);
    named || expr.exists(|part| Ok(asks_about_others(part))).unwrap_or(true)
}

/// The aggregate over numbers, and above it what makes text of them.
fn with_codes(aggregate: &Aggregate, coded: &[Coded]) -> Result<LogicalPlan> {
    let of_table: BTreeMap<usize, Arc<Texts>> =
        coded.iter().map(|coded| (coded.column, coded.texts.clone())).collect();
    let input = aggregate.input.as_ref().clone().transform_up(|step| {
        Ok(Transformed::yes(match step {
            LogicalPlan::TableScan(scan) => LogicalPlan::TableScan(of_codes(scan, &of_table)?),
            step => step.recompute_schema()?,
        }))
    });
    let mut groups = aggregate.group_expr.clone();
    for coded in coded {
        let name = aggregate.schema.field(coded.group).name();
        if let Some(group) = groups.get_mut(coded.group) {
            *group = group.clone().unalias().alias(format!("{NUMBER}{name}"));
        }
    }
    let numbers = Aggregate::try_new(Arc::new(input?.data), groups, aggregate.aggr_expr.clone())?;
    let mut exprs = Vec::with_capacity(aggregate.schema.fields().len());
    for (at, (qualifier, field)) in aggregate.schema.iter().enumerate() {
        let column = Expr::Column(Column::from(numbers.schema.qualified_field(at)));
        exprs.push(match coded.iter().find(|coded| coded.group == at) {
            Some(coded) => {
                let text = ScalarUDF::from(TextOf::new(coded.texts.clone())).call(vec![column]);
                text.alias_qualified(qualifier.cloned(), field.name())
            }
            None => column,
        });
    }
    let numbers = Arc::new(LogicalPlan::Aggregate(numbers));
    Ok(LogicalPlan::Projection(Projection::try_new(exprs, numbers)?))
}

fn of_codes(scan: TableScan, coded: &BTreeMap<usize, Arc<Texts>>) -> Result<TableScan> {
    let provider = source_as_provider(&scan.source)?;
    let Some(table) = provider.downcast_ref::<SqlTable>() else {
        return Err(DataFusionError::Internal("a table that is not of this engine".into()));
    };
    let source = provider_as_source(Arc::new(table.in_codes(coded.clone())) as Arc<dyn TableProvider>);
    let with_codes = TableScanBuilder::new(scan.table_name, source).with_projection(scan.projection);
    with_codes.with_filters(scan.filters).with_statistics_requests(scan.statistics_requests).build()
}

/// Makes text of numbers.
#[derive(Debug)]
struct TextOf {
    texts: Arc<Texts>,
    signature: Signature,
}

impl TextOf {
    fn new(texts: Arc<Texts>) -> Self {
        // Not foldable, and another one for each query.
        Self { texts, signature: Signature::exact(vec![DataType::UInt32], Volatility::Volatile) }
    }
}

impl ScalarUDFImpl for TextOf {
    fn name(&self) -> &'static str {
        TEXT_OF
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    /// The tag's own field.
    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let Some(field) = args.arg_fields.first() else {
            return Err(DataFusionError::Internal(format!("{TEXT_OF} of nothing")));
        };
        Ok(Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some(codes) = args.args.first() else {
            return Err(DataFusionError::Internal(format!("{TEXT_OF} of nothing")));
        };
        let codes = codes.to_array(args.number_rows)?;
        Ok(ColumnarValue::Array(Arc::new(self.texts.texts(codes.as_primitive::<UInt32Type>())?)))
    }
}

impl PartialEq for TextOf {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.texts, &other.texts)
    }
}

impl Eq for TextOf {}

impl Hash for TextOf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.texts).hash(state);
    }
}
