//! The functions that a query may call. A list of what is allowed: an update of DataFusion adds
//! functions that nobody here has judged.

use datafusion::{
    common::tree_node::{TreeNode, TreeNodeRecursion},
    execution::SessionStateBuilder,
    logical_expr::{Expr, LogicalPlan},
};

use super::{error::QueryError, text::CONCATENATION};

/// Takes out every function that is not listed here.
pub(super) fn keep_known(session: &mut SessionStateBuilder) {
    if let Some(functions) = session.scalar_functions() {
        functions.retain(|function| FUNCTIONS.contains(&function.name()));
    }
    if let Some(functions) = session.aggregate_functions() {
        functions.retain(|function| AGGREGATES.contains(&function.name()));
    }
    if let Some(functions) = session.window_functions() {
        functions.retain(|function| WINDOWS.contains(&function.name()));
    }
    if let Some(functions) = session.higher_order_functions() {
        functions.clear();
    }
}

/// Refuses a plan that calls another function: some have a syntax of their own, and are found
/// without being registered.
pub(super) fn check(plan: &LogicalPlan) -> Result<(), QueryError> {
    let mut unknown = None;
    plan.apply_with_subqueries(|step| {
        step.apply_expressions(|expr| {
            expr.apply(|expr| {
                let name = match expr {
                    Expr::ScalarFunction(call) => Some(call.name()).filter(|name| !is_scalar(name)),
                    Expr::AggregateFunction(call) => {
                        Some(call.func.name()).filter(|name| !AGGREGATES.contains(name))
                    }
                    Expr::HigherOrderFunction(call) => Some(call.name()),
                    _ => None,
                };
                if let Some(name) = name {
                    unknown = Some(name.to_owned());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    unknown.map_or(Ok(()), |name| Err(QueryError::NotAllowed(format!("function {name}"))))
}

fn is_scalar(name: &str) -> bool {
    FUNCTIONS.contains(&name) || name == CONCATENATION
}

/// The scalar functions that a query may call. What is not here was left out for a reason: results
/// far larger than the arguments (`repeat`, `lpad`, `rpad`), types as deep as a statement is long
/// (`struct`, `named_struct`), work that grows with the product of lengths (`levenshtein`), types
/// that others do not expect (`arrow_cast`), or because nobody has judged it yet.
#[rustfmt::skip]
const FUNCTIONS: &[&str] = &[
    "abs", "acos", "acosh", "arrow_typeof", "ascii", "asin", "asinh", "atan", "atan2", "atanh",
    "bit_length", "btrim", "cbrt", "ceil", "character_length", "chr", "coalesce", "concat", "concat_ws",
    "contains", "cos", "cosh", "cot", "current_date", "current_time", "date_bin", "date_part", "date_trunc",
    "degrees", "ends_with", "exp", "factorial", "find_in_set", "floor", "from_unixtime", "gcd", "greatest",
    "initcap", "isnan", "iszero", "lcm", "least", "left", "ln", "log", "log10", "log2", "lower", "ltrim",
    "make_date", "make_time", "nanvl", "now", "nullif", "nvl", "nvl2", "octet_length", "overlay", "pi",
    "power", "radians", "random", "regexp_count", "regexp_instr", "regexp_like", "regexp_match",
    "regexp_replace", "replace", "reverse", "right", "round", "rtrim", "signum", "sin", "sinh",
    "split_part", "sqrt", "starts_with", "strpos", "substr", "substr_index", "tan", "tanh", "to_char",
    "to_date", "to_hex", "to_local_time", "to_time", "to_timestamp", "to_timestamp_micros",
    "to_timestamp_millis", "to_timestamp_nanos", "to_timestamp_seconds", "to_unixtime", "translate",
    "trunc", "upper", "uuid", "version",
];
/// The aggregate functions that a query may call.
#[rustfmt::skip]
const AGGREGATES: &[&str] = &[
    "any_value", "approx_distinct", "approx_median", "approx_percentile_cont",
    "approx_percentile_cont_with_weight", "array_agg", "avg", "bit_and", "bit_or", "bit_xor", "bool_and",
    "bool_or", "corr", "count", "covar_pop", "covar_samp", "first_value", "grouping", "last_value", "max",
    "median", "min", "nth_value", "percentile_cont", "regr_avgx", "regr_avgy", "regr_count",
    "regr_intercept", "regr_r2", "regr_slope", "regr_sxx", "regr_sxy", "regr_syy", "stddev", "stddev_pop",
    "string_agg", "sum", "var", "var_pop",
];
/// The window functions that a query may call.
#[rustfmt::skip]
const WINDOWS: &[&str] = &[
    "cume_dist", "dense_rank", "first_value", "lag", "last_value", "lead", "nth_value", "ntile",
    "percent_rank", "rank", "row_number",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_is_judged() {
        let mut all = SessionStateBuilder::new().with_default_features();
        let mut scalars: Vec<String> =
            all.scalar_functions().iter().flatten().map(|function| function.name().to_owned()).collect();
        scalars.sort();
        let unknown: Vec<_> =
            FUNCTIONS.iter().filter(|name| !scalars.iter().any(|have| have == *name)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        // What an update adds shows here, to be judged.
        scalars.retain(|name| !FUNCTIONS.contains(&name.as_str()));
        assert_eq!(scalars, LEFT_OUT);
        let mut aggregates: Vec<String> =
            all.aggregate_functions().iter().flatten().map(|function| function.name().to_owned()).collect();
        aggregates.sort();
        assert_eq!(aggregates, AGGREGATES);
        let mut windows: Vec<String> =
            all.window_functions().iter().flatten().map(|function| function.name().to_owned()).collect();
        windows.sort();
        assert_eq!(windows, WINDOWS);
    }

    const LEFT_OUT: [&str; 20] = [
        "arrow_cast",
        "arrow_field",
        "arrow_metadata",
        "arrow_try_cast",
        "cast_to_type",
        "decode",
        "encode",
        "file_row_index",
        "get_field",
        "input_file_name",
        "levenshtein",
        "lpad",
        "named_struct",
        "repeat",
        "rpad",
        "struct",
        "try_cast_to_type",
        "union_extract",
        "union_tag",
        "with_metadata",
    ];
}
