//! What a statement may be. Three gates: its text (so that it can be parsed and planned at all),
//! the statement, and the plan that DataFusion makes of it. Each lists what is allowed.

use datafusion::{
    common::tree_node::{TreeNode, TreeNodeRecursion},
    datasource::source_as_provider,
    logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator, TableScan},
    sql::{
        parser::{DFParserBuilder, Statement},
        sqlparser::{
            ast::Statement as Sql,
            dialect::GenericDialect,
            keywords::Keyword,
            tokenizer::{Token, TokenWithSpan, Tokenizer},
        },
    },
};

use super::{
    error::QueryError, expansion::check_expansion, gaps::FillGaps, parameters::MAX_PARAMETERS,
    table_provider::SqlTable,
};

/// Longest statement in bytes.
pub(super) const MAX_TEXT: usize = 256 << 10;
/// Most operators and keywords that nest one deeper each. The parser bounds its own recursion but
/// not chains such as `a + b + c`, which become trees as deep as they are long.
const MAX_OPERATORS: usize = 600;
/// Most nodes of a plan.
const MAX_PLAN_NODES: usize = 4_000;
/// Most columns of one step.
const MAX_PLAN_COLUMNS: usize = 10_000;
/// The schema of tables about tables.
pub(super) const INFORMATION_SCHEMA: &str = "information_schema";

/// The one statement in a text, and the names of its parameters.
pub(super) fn parse(sql: &str) -> Result<(Statement, Vec<String>), QueryError> {
    let (tokens, parameters) = tokens(sql)?;
    let mut parser = DFParserBuilder::new(tokens).with_dialect(&GenericDialect {}).build()?;
    let mut statements = parser.parse_statements()?;
    match (statements.pop_front(), statements.is_empty()) {
        (Some(statement), true) => Ok((statement, parameters)),
        (None, _) => Err(QueryError::Invalid("there is no statement".into())),
        (Some(_), false) => Err(QueryError::NotAllowed("more than one statement".into())),
    }
}

/// The words of a text, few enough to be parsed, and the names of its parameters.
pub(super) fn tokens(sql: &str) -> Result<(Vec<TokenWithSpan>, Vec<String>), QueryError> {
    if sql.len() > MAX_TEXT {
        return Err(QueryError::TooLarge(format!("a statement may have {MAX_TEXT} bytes")));
    }
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location();
    let mut tokens = tokens.map_err(|e| QueryError::Invalid(e.to_string()))?;
    check_tokens(&tokens)?;
    let parameters = name_parameters(&mut tokens)?;
    Ok((tokens, parameters))
}

/// The names of the parameters, each once, without `$`. Those that have none, written `?`, are numbered
/// where they stand.
fn name_parameters(tokens: &mut [TokenWithSpan]) -> Result<Vec<String>, QueryError> {
    let (mut names, mut unnamed) = (Vec::<String>::new(), 0);
    for token in tokens {
        let name = match &token.token {
            Token::Placeholder(written) if written == "?" => {
                unnamed += 1;
                let name = unnamed.to_string();
                token.token = Token::Placeholder(format!("${name}"));
                name
            }
            Token::Placeholder(written) => written.strip_prefix('$').unwrap_or_default().to_owned(),
            _ => continue,
        };
        if name.is_empty() || name.contains('$') {
            return Err(QueryError::Invalid("parameters are written $name, $1 or ?".into()));
        }
        if !names.contains(&name) {
            names.push(name);
        }
        if names.len() > MAX_PARAMETERS {
            return Err(QueryError::TooLarge(format!("a statement may have {MAX_PARAMETERS} parameters")));
        }
    }
    if unnamed > 0 && names.len() > unnamed {
        return Err(QueryError::Invalid(
            "parameters are written $name or ?, not both in one statement".into(),
        ));
    }
    Ok(names)
}

/// Lets through what only reads.
pub(super) fn check_statement(statement: &Statement) -> Result<(), QueryError> {
    let sql = match statement {
        Statement::Statement(sql) => sql,
        Statement::Explain(explain) => return check_statement(&explain.statement),
        other => return Err(not_a_query(&other.to_string())),
    };
    match &**sql {
        Sql::Query(_) => {}
        Sql::Explain { statement, .. } if matches!(**statement, Sql::Query(_)) => {}
        other => return Err(not_a_query(&other.to_string())),
    }
    check_expansion(sql)
}

/// Lets through plans made of nothing but the steps listed here, over our tables only.
pub(super) fn check_plan(plan: &LogicalPlan) -> Result<(), QueryError> {
    let mut nodes = 0;
    let mut refused = None;
    plan.apply_with_subqueries(|node| {
        nodes += 1;
        refused = match node {
            _ if nodes > MAX_PLAN_NODES || node.schema().fields().len() > MAX_PLAN_COLUMNS => {
                Some(QueryError::TooLarge("the statement becomes too large a plan".into()))
            }
            LogicalPlan::TableScan(scan) if !is_ours(scan) => {
                Some(QueryError::NotAllowed(format!("{} is no table here", scan.table_name)))
            }
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::Window(_)
            | LogicalPlan::Aggregate(_)
            | LogicalPlan::Sort(_)
            | LogicalPlan::Join(_)
            | LogicalPlan::Repartition(_)
            | LogicalPlan::Union(_)
            | LogicalPlan::TableScan(_)
            | LogicalPlan::EmptyRelation(_)
            | LogicalPlan::Subquery(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Limit(_)
            | LogicalPlan::Values(_)
            | LogicalPlan::Explain(_)
            | LogicalPlan::Analyze(_)
            | LogicalPlan::Distinct(_)
            | LogicalPlan::DescribeTable(_) => None,
            // The one step that is no part of SQL.
            LogicalPlan::Extension(step) if step.node.as_any().is::<FillGaps>() => None,
            LogicalPlan::RecursiveQuery(_) => Some(QueryError::NotAllowed("recursive queries".into())),
            // Copies its other columns for every element of a list; no table here has a list.
            LogicalPlan::Unnest(_) => Some(QueryError::NotAllowed("unnest".into())),
            LogicalPlan::Statement(_)
            | LogicalPlan::Extension(_)
            | LogicalPlan::Dml(_)
            | LogicalPlan::Ddl(_)
            | LogicalPlan::Copy(_) => Some(not_a_query(&node.display().to_string())),
        };
        Ok(if refused.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    refused.map_or(Ok(()), Err)
}

/// Refuses patterns that change from row to row: each has to be compiled, at any cost.
pub(super) fn check_patterns(plan: &LogicalPlan) -> Result<(), QueryError> {
    let changes = |pattern: &Expr| !matches!(pattern, Expr::Literal(..));
    let mut changing = false;
    plan.apply_with_subqueries(|step| {
        step.apply_expressions(|expr| {
            expr.apply(|expr| {
                changing |= match expr {
                    Expr::BinaryExpr(BinaryExpr { op, right, .. }) => is_regex(*op) && changes(right),
                    Expr::SimilarTo(like) => changes(&like.pattern),
                    _ => false,
                };
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    if changing {
        return Err(QueryError::NotAllowed("a regular expression that is not constant".into()));
    }
    Ok(())
}

/// Whether a plan joins rows.
pub(super) fn joins(plan: &LogicalPlan) -> Result<bool, QueryError> {
    let mut joins = false;
    plan.apply_with_subqueries(|step| {
        joins |= matches!(step, LogicalPlan::Join(_) | LogicalPlan::Subquery(_));
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(joins)
}

fn is_regex(op: Operator) -> bool {
    use Operator::{RegexIMatch, RegexMatch, RegexNotIMatch, RegexNotMatch};
    [RegexMatch, RegexIMatch, RegexNotMatch, RegexNotIMatch].contains(&op)
}

fn check_tokens(tokens: &[TokenWithSpan]) -> Result<(), QueryError> {
    let operators = tokens.iter().filter(|token| nests(&token.token)).count();
    if operators > MAX_OPERATORS {
        return Err(QueryError::TooLarge(format!(
            "a statement may have {MAX_OPERATORS} operators; for many values of one column use IN (...)"
        )));
    }
    Ok(())
}

/// True for every token but those known to make a statement longer without making it deeper.
fn nests(token: &Token) -> bool {
    match token {
        Token::Word(word) => matches!(
            word.keyword,
            Keyword::AND
                | Keyword::OR
                | Keyword::XOR
                | Keyword::NOT
                | Keyword::IS
                | Keyword::NOTNULL
                | Keyword::IN
                | Keyword::BETWEEN
                | Keyword::LIKE
                | Keyword::ILIKE
                | Keyword::RLIKE
                | Keyword::REGEXP
                | Keyword::SIMILAR
                | Keyword::MATCH
                | Keyword::DIV
                | Keyword::AT
                | Keyword::COLLATE
                | Keyword::OVERLAPS
                | Keyword::MEMBER
                | Keyword::OPERATOR
                | Keyword::SELECT
                | Keyword::FROM
                | Keyword::JOIN
                | Keyword::APPLY
                | Keyword::UNION
                | Keyword::EXCEPT
                | Keyword::MINUS
                | Keyword::INTERSECT
                | Keyword::PIVOT
                | Keyword::UNPIVOT
                | Keyword::MATCH_RECOGNIZE
                | Keyword::TABLESAMPLE
        ),
        Token::Number(..)
        | Token::Placeholder(_)
        | Token::SingleQuotedString(_)
        | Token::DoubleQuotedString(_)
        | Token::Comma
        | Token::Whitespace(_)
        | Token::Period
        | Token::LParen
        | Token::RParen
        | Token::SemiColon
        | Token::EOF => false,
        _ => true,
    }
}

fn is_ours(scan: &TableScan) -> bool {
    let ours = source_as_provider(&scan.source);
    ours.is_ok_and(|table| table.is::<SqlTable>()) || scan.table_name.schema() == Some(INFORMATION_SCHEMA)
}

fn not_a_query(statement: &str) -> QueryError {
    let start: String = statement.chars().take(40).collect();
    QueryError::NotAllowed(format!("only queries can be run here, not {start:?}"))
}
