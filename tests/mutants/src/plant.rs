//! Writes faults into a file's source, each behind a switch, so that one build has all of them.
//! They are those of cargo-mutants, but an operator keeps its operands: for `a - b * c`
//! cargo-mutants writes `a - b + c`, and this module `a - (b + c)`.

use std::collections::HashMap;
use std::ops::Range;

use serde::Deserialize;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// A fault as cargo-mutants lists it.
#[derive(Debug, Clone, Deserialize)]
pub struct Mutant {
    pub name: String,
    pub file: String,
    genre: String,
    replacement: String,
    span: Place,
}

#[derive(Debug, Clone, Deserialize)]
struct Place {
    start: Position,
}

/// Line and column count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
struct Position {
    line: usize,
    column: usize,
}

impl From<proc_macro2::LineColumn> for Position {
    fn from(at: proc_macro2::LineColumn) -> Self {
        Self { line: at.line, column: at.column + 1 }
    }
}

/// A file's source with its faults.
#[derive(Debug, Default)]
pub struct Planted {
    pub text: String,
    /// The range of each fault's code in the text, with the fault's number.
    pub own: Vec<(Range<usize>, u32)>,
    /// The positions of the faults that disable a match arm by a guard instead of deleting it.
    pub arms: Vec<(usize, u32)>,
    /// Faults without a switch, because the compiler evaluates their code or infers its type; and
    /// those whose place was not found.
    pub apart: Vec<u32>,
    /// Faults that certainly do not compile.
    pub unviable: Vec<u32>,
}

impl Planted {
    /// The faults whose code overlaps this range.
    pub fn at(&self, place: &Range<usize>) -> Vec<u32> {
        let overlap = |own: &Range<usize>| own.start < place.end && place.start < own.end;
        self.own.iter().filter(|(own, _)| overlap(own)).map(|(_, id)| *id).collect()
    }
}

/// Plants the faults of one file. Each comes with the number of its switch.
pub fn plant(source: &str, mutants: &[(u32, &Mutant)]) -> syn::Result<Planted> {
    let mut by_place: HashMap<(&str, Position), Vec<(u32, &Mutant)>> = HashMap::new();
    for (id, mutant) in mutants {
        by_place.entry((mutant.genre.as_str(), mutant.span.start)).or_default().push((*id, mutant));
    }
    let mut visitor = Planter {
        source,
        by_place,
        constants: 0,
        inserts: Vec::new(),
        apart: Vec::new(),
        unviable: Vec::new(),
    };
    visitor.visit_file(&syn::parse_file(source)?);
    let Planter { by_place, mut inserts, mut apart, unviable, .. } = visitor;
    apart.extend(by_place.into_values().flatten().map(|(id, _)| id));

    // The order at one position: close an inner expression, close an outer one, open an outer one,
    // open an inner one.
    inserts.sort_by_key(|insert| {
        (insert.at, insert.opens, if insert.opens { insert.order } else { -insert.order })
    });
    let mut done = Planted { apart, unviable, ..Planted::default() };
    let mut from = 0;
    for insert in &inserts {
        done.text.push_str(&source[from..insert.at]);
        from = insert.at;
        for (id, text) in &insert.parts {
            let start = done.text.len();
            done.text.push_str(text);
            done.own.extend(id.map(|id| (start..done.text.len(), id)));
            done.arms.extend(id.filter(|_| !insert.opens).map(|id| (start, id)));
        }
    }
    done.text.push_str(&source[from..]);
    Ok(done)
}

struct Insert {
    at: usize,
    opens: bool,
    order: isize,
    parts: Vec<(Option<u32>, String)>,
}

struct Planter<'s> {
    source: &'s str,
    by_place: HashMap<(&'s str, Position), Vec<(u32, &'s Mutant)>>,
    /// The number of constants around the current node.
    constants: usize,
    inserts: Vec<Insert>,
    apart: Vec<u32>,
    unviable: Vec<u32>,
}

fn switch(id: u32) -> String {
    format!("crate::mutant::on({id})")
}

fn has_let(expr: &syn::Expr) -> bool {
    match expr {
        syn::Expr::Let(_) => true,
        syn::Expr::Binary(binary) => has_let(&binary.left) || has_let(&binary.right),
        _ => false,
    }
}

impl<'s> Planter<'s> {
    /// The faults at a place. In a constant there are none, because they cannot have a switch.
    fn take(&mut self, genre: &'static str, at: proc_macro2::LineColumn) -> Vec<(u32, &'s Mutant)> {
        let found = self.by_place.remove(&(genre, at.into())).unwrap_or_default();
        if self.constants == 0 {
            return found;
        }
        self.apart.extend(found.iter().map(|(id, _)| *id));
        Vec::new()
    }

    fn text(&self, node: &impl Spanned) -> &'s str {
        &self.source[node.span().byte_range()]
    }

    fn insert(&mut self, at: usize, opens: bool, parts: Vec<(Option<u32>, String)>) {
        let order = isize::try_from(self.inserts.len()).unwrap_or(isize::MAX);
        self.inserts.push(Insert { at, opens, order, parts });
    }

    /// Replaces an expression by a choice of others, each behind its switch.
    fn choose(&mut self, of: &impl Spanned, others: Vec<(u32, String)>) {
        if others.is_empty() {
            return;
        }
        let mut parts = vec![(None, "(".to_owned())];
        for (id, other) in others {
            parts.push((Some(id), format!("if {} {{ {other} }} else ", switch(id))));
        }
        parts.push((None, "{ ".to_owned()));
        let range = of.span().byte_range();
        self.insert(range.start, true, parts);
        self.insert(range.end, false, vec![(None, " })".to_owned())]);
    }

    fn function(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let Some(first) = block.stmts.first() else { return };
        let found = self.take("FnValue", first.span().start());
        if let syn::ReturnType::Type(_, kind) = &signature.output
            && self.text(kind).contains("impl ")
        {
            self.apart.extend(found.iter().map(|(id, _)| *id));
            return;
        }
        if found.is_empty() {
            return;
        }
        let early = |(id, mutant): (u32, &Mutant)| {
            (Some(id), format!("if {} {{ return {}; }} ", switch(id), mutant.replacement))
        };
        let parts = found.into_iter().map(early).collect();
        self.insert(first.span().byte_range().start, true, parts);
    }

    fn within(&mut self, constant: bool, visit: impl FnOnce(&mut Self)) {
        self.constants += usize::from(constant);
        visit(self);
        self.constants -= usize::from(constant);
    }
}

impl<'ast> Visit<'ast> for Planter<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.within(true, |own| visit::visit_item_const(own, item));
    }

    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        self.within(true, |own| visit::visit_item_static(own, item));
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.within(true, |own| visit::visit_impl_item_const(own, item));
    }

    fn visit_trait_item_const(&mut self, item: &'ast syn::TraitItemConst) {
        self.within(true, |own| visit::visit_trait_item_const(own, item));
    }

    fn visit_expr_const(&mut self, item: &'ast syn::ExprConst) {
        self.within(true, |own| visit::visit_expr_const(own, item));
    }

    fn visit_type_array(&mut self, item: &'ast syn::TypeArray) {
        self.within(true, |own| visit::visit_type_array(own, item));
    }

    fn visit_expr_repeat(&mut self, item: &'ast syn::ExprRepeat) {
        self.visit_expr(&item.expr);
        self.within(true, |own| own.visit_expr(&item.len));
    }

    fn visit_expr_binary(&mut self, item: &'ast syn::ExprBinary) {
        let found = self.take("BinaryOperator", item.op.span().start());
        let (left, right) = (self.text(&item.left), self.text(&item.right));
        // `if let` allows `&&` alone.
        let lets = has_let(&item.left) || has_let(&item.right);
        self.unviable.extend(found.iter().filter(|_| lets).map(|(id, _)| *id));
        let found = if lets { Vec::new() } else { found };
        let other = |(id, mutant): (u32, &Mutant)| {
            (id, format!("({left}) {} ({right})", mutant.replacement))
        };
        self.choose(item, found.into_iter().map(other).collect());
        visit::visit_expr_binary(self, item);
    }

    fn visit_expr_unary(&mut self, item: &'ast syn::ExprUnary) {
        let found = self.take("UnaryOperator", item.op.span().start());
        let operand = self.text(&item.expr);
        self.choose(
            item,
            found
                .into_iter()
                .map(|(id, mutant)| (id, format!("{}{operand}", mutant.replacement)))
                .collect(),
        );
        visit::visit_expr_unary(self, item);
    }

    fn visit_expr_struct(&mut self, item: &'ast syn::ExprStruct) {
        let whole = item.span().byte_range();
        let mut others = Vec::new();
        for field in &item.fields {
            let field_at = field.span().byte_range();
            for (id, _) in self.take("StructField", field.span().start()) {
                let behind =
                    self.source[field_at.end..whole.end].trim_start().trim_start_matches(',');
                others.push((id, format!("{}{behind}", &self.source[whole.start..field_at.start])));
            }
        }
        self.choose(item, others);
        visit::visit_expr_struct(self, item);
    }

    /// cargo-mutants does not delete an arm that has a guard.
    fn visit_arm(&mut self, item: &'ast syn::Arm) {
        if let Some((_, guard)) = &item.guard {
            let found = self.take("MatchArmGuard", guard.span().start());
            let behind = ")".repeat(found.len());
            let (yes, no): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|(_, mutant)| mutant.replacement == "true");
            let yes = yes.iter().map(|(id, _)| format!("{} || (", switch(*id)));
            let no = no.iter().map(|(id, _)| format!("!{} && (", switch(*id)));
            let before = yes.chain(no).collect();
            let range = guard.span().byte_range();
            self.insert(range.start, true, vec![(None, before)]);
            self.insert(range.end, false, vec![(None, behind)]);
        } else {
            let at = item.pat.span().byte_range().end;
            for (id, _) in self.take("MatchArm", item.pat.span().start()) {
                self.insert(at, false, vec![(Some(id), format!(" if !{}", switch(id)))]);
            }
        }
        visit::visit_arm(self, item);
    }
}
