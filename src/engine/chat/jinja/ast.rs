//! The syntax tree of a template.

use std::sync::Arc;

use super::text::Text;

pub(super) type Body = Vec<Statement>;

#[derive(Debug)]
pub(super) enum Statement {
    Data(String),
    Print(Expression),
    /// Branches in order; `else` has no condition.
    If(Vec<(Option<Expression>, Body)>),
    For(Arc<For>),
    Set(Target, Expression),
    /// `{% set x %}…{% endset %}`, with the filters applied to its text.
    SetBlock(Target, Vec<Suffix>, Body),
    With(Vec<(Target, Expression)>, Body),
    Macro(Arc<Macro>),
    /// A `call` block: the call, and the body behind `caller()`.
    Call(Expression, Arc<Macro>),
    Filter(Vec<Suffix>, Body),
    /// A block that only groups its body (`generation`, `block`, `autoescape`).
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
    /// Whether the body uses `loop`, which needs to know all items up front.
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
    /// A chain such as `a < b < c`: each operator compares its left and right neighbor.
    Compare(Box<Expression>, Vec<(Comparison, Expression)>),
    /// Operators of equal precedence, left-associative.
    Arithmetic(Box<Expression>, Vec<(Operator, Expression)>),
    /// `~`
    Concat(Vec<Expression>),
    /// `(then, condition, else)`
    Choice(Box<(Expression, Expression, Option<Expression>)>),
    /// Members, subscripts, calls, filters and tests, applied in order.
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
    /// Name, arguments, and whether the test is negated (`is not`).
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
