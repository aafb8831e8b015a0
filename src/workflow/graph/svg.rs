//! SVG rendering of a graph: one row per node in the order of the walk, indented by depth, with edges at the left of
//! the boxes.

use std::fmt::Write as _;

use super::{COLOURS, Edge, Graph, Node, cut};
use crate::workflow::StepKind;

const ROW: usize = 64;
const BOX_HEIGHT: usize = 44;
const BOX_WIDTH: usize = 340;
const INDENT: usize = 56;
/// Number of lanes at the right for edges that lead back or over other boxes.
const LANES: usize = 12;
const LANE: usize = 10;
/// Width for the labels of edges.
const LABEL: usize = 150;
const MARGIN: usize = 24;

impl Graph {
    /// Renders an SVG document without scripts and external references.
    #[must_use]
    pub fn svg(&self) -> String {
        let depth = self.nodes.iter().map(|node| node.depth).max().unwrap_or_default();
        let right = MARGIN + depth * INDENT + BOX_WIDTH;
        let (width, height) = (right + LANES * LANE + LABEL + MARGIN, 2 * MARGIN + self.nodes.len() * ROW);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
             <defs><marker id=\"end\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"8\" markerHeight=\"8\" \
             orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"#455a64\"/></marker></defs>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
        );
        for (row, edge) in self.edges.iter().enumerate() {
            self.draw_edge(&mut svg, edge, right + (row % LANES + 1) * LANE);
        }
        for (row, node) in self.nodes.iter().enumerate() {
            draw_node(&mut svg, node, row);
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// Edges to the next step of a chain and into a container are drawn at the left, where they form a tree. An edge to
    /// a step that was drawn for another container is routed at the right.
    fn draw_edge(&self, svg: &mut String, edge: &Edge, lane: usize) {
        let (from, to) = (&self.nodes[edge.from], &self.nodes[edge.to]);
        let style = if edge.nested { " stroke-dasharray=\"5 4\"" } else { "" };
        let middle = top(edge.to) + BOX_HEIGHT / 2;
        let in_tree = edge.from < edge.to && to.depth == from.depth + usize::from(edge.nested);
        let (path, label_x, label_y) = if in_tree {
            let x = left(from) + INDENT / 2;
            let path = if edge.nested {
                format!("M{x} {}V{middle}H{}", top(edge.from) + BOX_HEIGHT, left(to))
            } else {
                // A straight line along the boxes in between, which are indented.
                format!("M{} {}V{}", x - INDENT / 4, top(edge.from) + BOX_HEIGHT, top(edge.to))
            };
            (path, left(to) + BOX_WIDTH + 6, middle + 4)
        } else {
            let (start, end) = (top(edge.from) + BOX_HEIGHT / 2, middle + 8);
            let path = format!("M{} {start}H{lane}V{end}H{}", left(from) + BOX_WIDTH, left(to) + BOX_WIDTH);
            (path, lane + 4, usize::midpoint(start, end))
        };
        let _ = writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"#455a64\"{style} marker-end=\"url(#end)\"/>");
        if !edge.label.is_empty() {
            let _ = writeln!(
                svg,
                "<text x=\"{label_x}\" y=\"{label_y}\" font-size=\"11\" fill=\"#455a64\">{}</text>",
                escaped(&cut(&edge.label))
            );
        }
    }
}

fn left(node: &Node) -> usize {
    MARGIN + node.depth * INDENT
}

fn top(row: usize) -> usize {
    MARGIN + row * ROW
}

fn draw_node(svg: &mut String, node: &Node, row: usize) {
    let (x, y) = (left(node), top(row));
    let state = node.state.as_deref();
    let fill = COLOURS.iter().find(|(name, _)| Some(*name) == state).map_or("#fafafa", |(_, colour)| colour);
    let (round, stroke, line) = match node.kind {
        StepKind::Agent => (4, "#607d8b", 1),
        StepKind::Parallel => (0, "#1565c0", 2),
        StepKind::Conditional => (0, "#ef6c00", 2),
        StepKind::Loop => (22, "#6a1b9a", 2),
        StepKind::ForkJoin => (0, "#2e7d32", 2),
        StepKind::Wait => (22, "#546e7a", 1),
        StepKind::Callback => (22, "#ad1457", 2),
        StepKind::SubWorkflow => (4, "#4527a0", 2),
    };
    let _ = writeln!(
        svg,
        "<g data-type=\"{}\"><title>{}: {}</title>",
        node.kind.as_str(),
        escaped(&node.id),
        escaped(&node.about)
    );
    let shape = match node.kind {
        // Corners of a flowchart's hexagon, used for decisions because a rhombus would not fit.
        StepKind::Conditional | StepKind::ForkJoin => {
            let (end, middle, bottom) = (x + BOX_WIDTH, y + BOX_HEIGHT / 2, y + BOX_HEIGHT);
            format!(
                "<polygon points=\"{x},{middle} {},{y} {},{y} {end},{middle} {},{bottom} {},{bottom}\"",
                x + 14,
                end - 14,
                end - 14,
                x + 14
            )
        }
        _ => format!("<rect x=\"{x}\" y=\"{y}\" width=\"{BOX_WIDTH}\" height=\"{BOX_HEIGHT}\" rx=\"{round}\""),
    };
    let _ = writeln!(svg, "{shape} fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"{line}\"/>");
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" font-weight=\"bold\">{}</text>",
        x + 20,
        y + 18,
        escaped(&cut(&node.id))
    );
    let _ =
        writeln!(svg, "<text x=\"{}\" y=\"{}\" fill=\"#455a64\">{}</text>", x + 20, y + 36, escaped(&cut(&node.about)));
    if let Some(state) = state {
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" font-size=\"11\">{}</text>",
            x + BOX_WIDTH - 20,
            y + 18,
            escaped(&cut(state))
        );
    }
    svg.push_str("</g>\n");
}

/// Escapes text for an element or an attribute. Characters that XML does not allow are omitted.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\t' | '\n' | '\r' => escaped.push(' '),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => escaped.push(c),
        }
    }
    escaped
}
