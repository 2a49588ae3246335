//! What a template is made of.

use std::sync::Arc;

use super::text::Text;

/// Statements in order.
pub(super) type Body = Vec<Statement>;

#[derive(Debug)]
pub(super) enum Statement {
    Data(String),
    Print(Expression),
    /// Branches in order; one without a condition is `else`.
    If(Vec<(Option<Expression>, Body)>),
    For(Arc<For>),
    Set(Target, Expression),
    /// `{% set x %}…{% endset %}`, with the filters that the text goes through.
    SetBlock(Target, Vec<Suffix>, Body),
    With(Vec<(Target, Expression)>, Body),
    Macro(Arc<Macro>),
    /// A call, and what its `caller()` gives.
    Call(Expression, Arc<Macro>),
    Filter(Vec<Suffix>, Body),
    /// A block that means nothing more than its body (`generation`, `block`, `autoescape`).
    Scope(Body),
    Break,
    Continue,
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) items: Expression,
    pub(super) condition: Option<Expression>,
    pub(super) is_recursive: bool,
    /// Whether its body names `loop`, which has to know all items beforehand.
    pub(super) uses_loop: bool,
    pub(super) body: Body,
    pub(super) otherwise: Body,
}

#[derive(Debug)]
pub(super) struct Macro {
    pub(super) name: String,
    pub(super) parameters: Vec<(String, Option<Expression>)>,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Target {
    Name(String),
    /// `namespace.member`
    Member(String, String),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(super) struct Expression {
    pub(super) line: usize,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Arc<Text>),
    Name(String),
    List(Vec<Expression>),
    Tuple(Vec<Expression>),
    Dict(Vec<(Expression, Expression)>),
    Not(Box<Expression>),
    Negative(Box<Expression>),
    Positive(Box<Expression>),
    And(Vec<Expression>),
    Or(Vec<Expression>),
    /// Each stands between its left and its right neighbour: `a < b < c`.
    Compare(Box<Expression>, Vec<(Comparison, Expression)>),
    /// Operators of one rank, from the left.
    Arithmetic(Box<Expression>, Vec<(Operator, Expression)>),
    /// `~`
    Concat(Vec<Expression>),
    /// Then, condition, else.
    Choice(Box<(Expression, Expression, Option<Expression>)>),
    /// Members, subscripts, calls, filters and tests, one after another.
    Suffixed(Box<Expression>, Vec<Suffix>),
}

#[derive(Debug)]
pub(super) struct Suffix {
    pub(super) line: usize,
    pub(super) kind: SuffixKind,
}

#[derive(Debug)]
pub(super) enum SuffixKind {
    Member(String),
    Subscript(Expression),
    Slice(Box<[Option<Expression>; 3]>),
    Call(Call),
    Filter(String, Call),
    /// A test, and whether `not` stands before it.
    Test(String, Call, bool),
}

#[derive(Debug, Default)]
pub(super) struct Call {
    pub(super) arguments: Vec<Argument>,
}

#[derive(Debug)]
pub(super) enum Argument {
    Positional(Expression),
    Named(String, Expression),
    /// `*list`
    Spread(Expression),
    /// `**dict`
    SpreadNamed(Expression),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Remainder,
    Power,
}
