//! Plot of lines as SVG: a linear x axis and a logarithmic y axis.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
/// Space around the plot for the labels: left, right, top, bottom.
const MARGINS: (f64, f64, f64, f64) = (70.0, 90.0, 40.0, 50.0);
const COLOURS: [&str; 4] = ["#1f77b4", "#ff7f0e", "#d62728", "#2ca02c"];

/// Line with its name.
#[derive(Debug)]
pub struct Line {
    /// Name in the legend.
    pub name: &'static str,
    /// Points in the order of x.
    pub points: Vec<(f64, f64)>,
}

/// Plot with its texts.
#[derive(Debug)]
pub struct Plot {
    /// Title.
    pub title: String,
    /// Label of the x axis.
    pub x: &'static str,
    /// Label of the y axis.
    pub y: &'static str,
    /// Lines.
    pub lines: Vec<Line>,
}

impl Plot {
    /// The document.
    pub fn svg(&self) -> String {
        let (left, right, top, bottom) = MARGINS;
        let points = || self.lines.iter().flat_map(|line| &line.points).filter(|(_, y)| *y > 0.0);
        let most_x = points().map(|point| point.0).fold(1.0, f64::max);
        // Whole powers of ten around all values.
        let low = points().map(|point| point.1).fold(f64::INFINITY, f64::min).log10().floor();
        let high = points().map(|point| point.1).fold(0.0, f64::max).log10().ceil();
        let (low, high) = if low < high { (low, high) } else { (-1.0, 1.0) };
        let at_x = |x: f64| left + x / most_x * (WIDTH - left - right);
        let at_y = |y: f64| top + (high - y.log10()) / (high - low) * (HEIGHT - top - bottom);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{}\" y=\"22\" text-anchor=\"middle\" font-size=\"15\">{}</text>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
             <text transform=\"translate(18 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
            WIDTH / 2.0,
            self.title,
            f64::midpoint(left, WIDTH - right),
            HEIGHT - 12.0,
            self.x,
            f64::midpoint(top, HEIGHT - bottom),
            self.y,
        );
        let mut power = low;
        while power <= high {
            let (value, y) = (10f64.powf(power), at_y(10f64.powf(power)));
            let _ = writeln!(
                svg,
                "<line x1=\"{left}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
                WIDTH - right,
                left - 6.0,
                y + 4.0,
            );
            power += 1.0;
        }
        for part in 0..=5 {
            let value = most_x * f64::from(part) / 5.0;
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{value:.0}</text>",
                at_x(value),
                HEIGHT - bottom + 18.0,
            );
        }
        for (index, (line, colour)) in self.lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
            let mut path = String::new();
            for (x, y) in line.points.iter().filter(|(_, y)| *y > 0.0) {
                let _ = write!(path, "{:.1},{:.1} ", at_x(*x), at_y(*y));
                let _ =
                    writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>", at_x(*x), at_y(*y));
            }
            let y = top + 16.0 * (index as f64 + 1.0);
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
                 <text x=\"{}\" y=\"{y}\" fill=\"{colour}\">{}</text>",
                path.trim_end(),
                WIDTH - right + 10.0,
                line.name,
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}
