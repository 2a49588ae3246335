//! Renders a template's texts into flows.

use std::sync::Arc;

use crate::error::Result;

use super::fixture::Fixture;
use super::scope::{FlowScope, Place, Scope};
use super::split::{Literal, Piece, closing_brace};
use super::template::{Template, Text};
use super::{Flow, Part, Step};

/// Makes the flows of a template: each literal is compiled once, and one that does not depend on
/// the row or on the flow's number is rendered once.
pub(super) struct Renderer<'t> {
    template: &'t Template,
    scope: Scope<'t>,
    system: Option<Message<'t>>,
    /// The rendered system message, once it is known to be the same in every flow.
    fixed_system: Option<Arc<str>>,
    /// One a step, in the order of the template's steps.
    prompts: Vec<Message<'t>>,
}

/// A text of the template whose literals are compiled.
struct Message<'t> {
    text: &'t Text,
    pieces: Vec<Compiled<'t>>,
}

enum Compiled<'t> {
    /// The same in every flow.
    Fixed(Part),
    /// A literal, and the name that the scope has it under.
    Literal(String, &'t Literal),
}

impl<'t> Renderer<'t> {
    /// Compiles the texts; what is wrong with their syntax is an error with its place.
    pub(super) fn new(template: &'t Template, fixture: &'t Fixture) -> Result<Self> {
        let mut scope = Scope::new(template, fixture)?;
        let system = match &template.system {
            Some(system) => Some(Message::new(&mut scope, system, "system")?),
            None => None,
        };
        let mut prompts = Vec::with_capacity(template.steps.len());
        for step in &template.steps {
            prompts.push(Message::new(
                &mut scope,
                &step.prompt,
                &format!("step/{}", step.id),
            )?);
        }
        Ok(Self {
            template,
            scope,
            system,
            fixed_system: None,
            prompts,
        })
    }

    /// The flow with this number, from 1.
    pub(super) fn flow(&mut self, number: usize) -> Result<Flow> {
        let flow = self.scope.flow(number);
        let system = self.system(&flow)?;
        let mut steps = Vec::with_capacity(self.template.steps.len());
        for (step, prompt) in self.template.steps.iter().zip(&mut self.prompts) {
            let parts = prompt.render(&self.scope, &flow)?;
            // What is left for the run may well be all of a prompt.
            let is_blank = |part: &Part| part.as_text().is_some_and(|text| text.trim().is_empty());
            if parts.iter().all(is_blank) {
                return Err(self.scope.nothing_left(prompt.text, &flow));
            }
            steps.push(Step {
                id: step.id.clone(),
                needs: step.needs.clone(),
                context: step.context,
                prompt: parts,
                max_tokens: step.max_tokens,
                temperature: step.temperature,
                top_p: step.top_p,
                top_k: step.top_k,
            });
        }
        Ok(Flow {
            template: self.template.name.clone(),
            flow: number,
            row: flow.row.id.clone(),
            system,
            steps,
        })
    }

    fn system(&mut self, flow: &FlowScope) -> Result<Option<Arc<str>>> {
        let Some(system) = &mut self.system else {
            return Ok(None);
        };
        if self.fixed_system.is_some() {
            return Ok(self.fixed_system.clone());
        }
        let parts = system.render(&self.scope, flow)?;
        let text: String = parts.iter().filter_map(Part::as_text).collect();
        let text: Arc<str> = text.into();
        if system.is_fixed() {
            self.fixed_system = Some(Arc::clone(&text));
        }
        Ok(Some(text))
    }

    /// Bytes that are the same in every flow, wherever they stand: of the system message, and of
    /// each step's prompt.
    ///
    /// A literal that depends on the row is taken apart at its `{{ … }}`, unless tags or white
    /// space control tie it together: then all of it counts as differing.
    pub(super) fn constant_bytes(&mut self) -> Result<(usize, Vec<usize>)> {
        // Renders everything once, so that what is fixed is known to be.
        self.flow(1)?;
        let flow = self.scope.flow(1);
        let constant = |message: &Message| message.constant_bytes(&self.scope, &flow);
        let system = self.system.as_ref().map_or(0, constant);
        Ok((system, self.prompts.iter().map(constant).collect()))
    }
}

impl<'t> Message<'t> {
    fn new(scope: &mut Scope<'t>, text: &'t Text, of: &str) -> Result<Self> {
        let mut pieces = Vec::with_capacity(text.pieces.len());
        for (index, piece) in text.pieces.iter().enumerate() {
            pieces.push(match piece {
                Piece::Expr { source, .. } => Compiled::Fixed(Part::Expr(source.clone())),
                Piece::Literal(literal) if literal.is_plain() => {
                    Compiled::Fixed(Part::Text(literal.text.clone()))
                }
                Piece::Literal(literal) => {
                    // An absolute path, which no included file can have.
                    let name = format!("/{of}/{index}");
                    scope.compile(&name, Place { text, literal })?;
                    Compiled::Literal(name, literal)
                }
            });
        }
        Ok(Self { text, pieces })
    }

    fn render(&mut self, scope: &Scope, flow: &FlowScope) -> Result<Vec<Part>> {
        let mut parts = Vec::with_capacity(self.pieces.len());
        for piece in &mut self.pieces {
            let part = match piece {
                Compiled::Fixed(part) => part.clone(),
                Compiled::Literal(name, literal) => {
                    let text = self.text;
                    let rendered = scope.render(name, Place { text, literal }, flow)?;
                    let part = Part::Text(rendered.text);
                    if !rendered.varies {
                        *piece = Compiled::Fixed(part.clone());
                    }
                    part
                }
            };
            if part.as_text() != Some("") {
                parts.push(part);
            }
        }
        Ok(parts)
    }

    fn is_fixed(&self) -> bool {
        let fixed = |piece: &Compiled| matches!(piece, Compiled::Fixed(_));
        self.pieces.iter().all(fixed)
    }

    fn constant_bytes(&self, scope: &Scope, flow: &FlowScope) -> usize {
        let bytes = |piece: &Compiled| match piece {
            Compiled::Fixed(part) => part.as_text().map_or(0, str::len),
            Compiled::Literal(_, literal) => constant_bytes_in(&literal.text, scope, flow),
        };
        self.pieces.iter().map(bytes).sum()
    }
}

fn constant_bytes_in(literal: &str, scope: &Scope, flow: &FlowScope) -> usize {
    let tied = ["{%", "{#", "{{-", "{{+", "-}}", "+}}"];
    if tied.iter().any(|tag| literal.contains(tag)) {
        return 0;
    }
    let mut bytes = 0;
    let mut rest = literal;
    while let Some(open) = rest.find("{{") {
        bytes += open;
        let Some(length) = closing_brace(&rest[open + 2..]) else {
            return bytes;
        };
        // Past the closing `}}`, each of which is one byte.
        let end = (open + 2 + length + 2).min(rest.len());
        match scope.render_piece(&rest[open..end], flow) {
            Some(rendered) if !rendered.varies => bytes += rendered.text.len(),
            _ => {}
        }
        rest = &rest[end..];
    }
    bytes + rest.len()
}
