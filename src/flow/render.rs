//! Renders a template's texts into flows.

use std::sync::Arc;

use crate::error::Result;

use super::fixture::Fixture;
use super::scope::{FlowScope, LiteralPlace, Scope};
use super::split::{Literal, Piece, closing_brace};
use super::template::Template;
use super::text::Text;
use super::unroll::Instance;
use super::{Flow, Part, Step, Work};

/// Builds the flows of a template. Each literal is compiled once, and rendered once if it depends on neither
/// the row nor the flow's number.
pub(super) struct Renderer<'t> {
    template: &'t Template,
    scope: Scope<'t>,
    system: Option<Message<'t>>,
    /// The rendered system message, if it is known to be the same in every flow.
    fixed_system: Option<Arc<str>>,
    /// The texts of each step of the template.
    texts: Vec<Vec<Message<'t>>>,
}

/// A text of the template with compiled literals.
struct Message<'t> {
    text: &'t Text,
    pieces: Vec<Compiled<'t>>,
}

enum Compiled<'t> {
    Fixed(Part),
    /// A literal, and its name in the scope.
    Literal(String, &'t Literal),
}

impl<'t> Renderer<'t> {
    /// Compiles the texts. Syntax errors are reported with their position.
    pub(super) fn new(template: &'t Template, fixture: &'t Fixture) -> Result<Self> {
        let mut scope = Scope::new(template, fixture)?;
        let system = match &template.system {
            Some(system) => Some(Message::new(&mut scope, system, "system")?),
            None => None,
        };
        let mut texts = Vec::with_capacity(template.steps.len());
        for step in &template.steps {
            let of_step = step.texts.iter().enumerate();
            let of_step = of_step.map(|(number, text)| {
                Message::new(&mut scope, text, &format!("step/{}/{number}", step.id))
            });
            texts.push(of_step.collect::<Result<_>>()?);
        }
        Ok(Self {
            template,
            scope,
            system,
            fixed_system: None,
            texts,
        })
    }

    /// The flow with this number, from 1.
    pub(super) fn flow(&mut self, number: usize) -> Result<Flow> {
        let flow = self.scope.flow(number);
        let system = self.system(&flow)?;
        let mut works = Vec::with_capacity(self.template.steps.len());
        for (step, texts) in self.template.steps.iter().zip(&mut self.texts) {
            let mut rendered = Vec::with_capacity(texts.len());
            for text in texts {
                let parts = text.render(&self.scope, &flow)?;
                // A prompt may consist of nothing but expressions, which are blank until run time.
                let is_blank =
                    |part: &Part| part.as_text().is_some_and(|text| text.trim().is_empty());
                if parts.iter().all(is_blank) {
                    return Err(self.scope.nothing_left(text.text, &flow));
                }
                rendered.push(parts);
            }
            works.push(step.work.clone().with_texts(rendered));
        }
        let instances = self.template.instances.iter();
        let steps = instances.map(|instance| Step {
            id: instance.id.clone(),
            needs: instance.needs.clone(),
            generation: instance.generation.clone(),
            work: works[instance.source].clone().renamed(|id| {
                let of = instance.of.get(id);
                of.map_or_else(|| id.to_owned(), Clone::clone)
            }),
        });
        let steps = steps.collect();
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

    /// The bytes that are the same in every flow, wherever they are: of the system message, and of the prompt
    /// of each generating step.
    ///
    /// A literal that depends on the row is split at each `{{ … }}`, unless tags or white space control
    /// prevent that. If so, all of it counts as differing.
    pub(super) fn constant_bytes(&mut self) -> Result<(usize, Vec<usize>)> {
        // Render everything once, which determines the fixed parts.
        self.flow(1)?;
        let flow = self.scope.flow(1);
        let constant = |message: &Message| message.constant_bytes(&self.scope, &flow);
        let system = self.system.as_ref().map_or(0, constant);
        let generates = |instance: &&Instance| {
            let work = &self.template.steps[instance.source].work;
            matches!(work, Work::Generate(_))
        };
        let instances = self.template.instances.iter().filter(generates);
        let prompts =
            instances.map(|instance| self.texts[instance.source].iter().map(constant).sum());
        Ok((system, prompts.collect()))
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
                    // An absolute path, which cannot be the name of an included file.
                    let name = format!("/{of}/{index}");
                    scope.compile(&name, LiteralPlace { text, literal })?;
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
                    let rendered = scope.render(name, LiteralPlace { text, literal }, flow)?;
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
        // Skip the closing `}}`.
        let end = (open + 2 + length + 2).min(rest.len());
        match scope.render_piece(&rest[open..end], flow) {
            Some(rendered) if !rendered.varies => bytes += rendered.text.len(),
            _ => {}
        }
        rest = &rest[end..];
    }
    bytes + rest.len()
}
