//! SVG rendering of a graph.

use std::fmt::Write as _;

use super::{
    COLOURS, Edge, Graph, Node, cut,
    layout::{BOX_HEIGHT, BOX_WIDTH, Layout, Point, Route},
};
use crate::workflow::StepKind;

impl Graph {
    /// Renders an SVG document without scripts and external references.
    #[must_use]
    pub fn svg(&self) -> String {
        let Layout { width, height, nodes, edges } = self.layout();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
             <defs><marker id=\"end\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"8\" markerHeight=\"8\" \
             orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"#455a64\"/></marker></defs>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
        );
        for (edge, route) in self.edges.iter().zip(&edges) {
            draw_edge(&mut svg, edge, route);
        }
        for (node, place) in self.nodes.iter().zip(&nodes) {
            draw_node(&mut svg, node, *place);
        }
        svg.push_str("</svg>\n");
        svg
    }
}

fn draw_edge(svg: &mut String, edge: &Edge, route: &Route) {
    let style = if edge.nested { " stroke-dasharray=\"5 4\"" } else { "" };
    let mut path = String::new();
    for (index, Point { x, y }) in route.points.iter().enumerate() {
        let command = if index == 0 { 'M' } else { 'L' };
        let _ = write!(path, "{command}{x} {y}");
    }
    let _ = writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"#455a64\"{style} marker-end=\"url(#end)\"/>");
    if !edge.label.is_empty() {
        let Point { x, y } = route.label;
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{y}\" font-size=\"11\" fill=\"#455a64\">{}</text>",
            escaped(&cut(&edge.label))
        );
    }
}

fn draw_node(svg: &mut String, node: &Node, Point { x, y }: Point) {
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
