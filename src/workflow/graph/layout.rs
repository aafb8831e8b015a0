//! Layout of a graph: one row per node in the order of the walk, indented by depth, with edges at the left of the boxes.

use super::{Edge, Graph};

const ROW: usize = 64;
const INDENT: usize = 56;
/// Number of lanes at the right for edges that lead back or over other boxes.
const LANES: usize = 12;
const LANE: usize = 10;
/// Width for the labels of edges.
const LABEL: usize = 150;
const MARGIN: usize = 24;

/// Height of each box.
pub const BOX_HEIGHT: usize = 44;
/// Width of each box.
pub const BOX_WIDTH: usize = 340;

/// Place in a picture, from its upper left corner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// To the right.
    pub x: usize,
    /// Downwards.
    pub y: usize,
}

/// Way of an edge.
#[derive(Clone, Debug)]
pub struct Route {
    /// Ends of its lines, from the edge's begin to its end.
    pub points: Vec<Point>,
    /// Begin of its label's base line.
    pub label: Point,
}

/// Places of all nodes and edges, in their order in the graph.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Width of the picture.
    pub width: usize,
    /// Height of the picture.
    pub height: usize,
    /// Upper left corner of each node's box.
    pub nodes: Vec<Point>,
    /// Way of each edge.
    pub edges: Vec<Route>,
}

impl Graph {
    /// Places the graph.
    #[must_use]
    pub fn layout(&self) -> Layout {
        let place =
            |(row, node): (usize, &super::Node)| Point { x: MARGIN + node.depth * INDENT, y: MARGIN + row * ROW };
        let nodes: Vec<Point> = self.nodes.iter().enumerate().map(place).collect();
        let right = nodes.iter().map(|node| node.x).max().unwrap_or(MARGIN) + BOX_WIDTH;
        let route = |(index, edge)| self.route(&nodes, edge, right + (index % LANES + 1) * LANE);
        Layout {
            width: right + LANES * LANE + LABEL + MARGIN,
            height: 2 * MARGIN + nodes.len() * ROW,
            edges: self.edges.iter().enumerate().map(route).collect(),
            nodes,
        }
    }

    /// Edges to the next step of a chain and into a container are drawn at the left, where they form a tree. An edge to
    /// a step that was drawn for another container is routed at the right.
    fn route(&self, places: &[Point], edge: &Edge, lane: usize) -> Route {
        let (from, to) = (places[edge.from], places[edge.to]);
        let (bottom, middle) = (from.y + BOX_HEIGHT, to.y + BOX_HEIGHT / 2);
        let is_next_depth = self.nodes[edge.to].depth == self.nodes[edge.from].depth + usize::from(edge.nested);
        if edge.from < edge.to && is_next_depth {
            let x = from.x + INDENT / 2;
            let points = if edge.nested {
                vec![Point { x, y: bottom }, Point { x, y: middle }, Point { x: to.x, y: middle }]
            } else {
                // A straight line along the boxes in between, which are indented.
                let x = x - INDENT / 4;
                vec![Point { x, y: bottom }, Point { x, y: to.y }]
            };
            return Route { points, label: Point { x: to.x + BOX_WIDTH + 6, y: middle + 4 } };
        }
        let (start, end) = (from.y + BOX_HEIGHT / 2, middle + 8);
        let points = vec![
            Point { x: from.x + BOX_WIDTH, y: start },
            Point { x: lane, y: start },
            Point { x: lane, y: end },
            Point { x: to.x + BOX_WIDTH, y: end },
        ];
        Route { points, label: Point { x: lane + 4, y: usize::midpoint(start, end) } }
    }
}
