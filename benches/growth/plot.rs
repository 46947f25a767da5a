//! [`Plot`]: a drawing of curves as SVG, for pages with a light or a dark background.
//!
//! The writer is our own, because a drawing must follow the reader's colour scheme. That takes a style sheet within the
//! SVG, which the plotting crates do not write: they set each element's colour. Always holds: both axes are
//! logarithmic, servers differ by their marks too and not by colour alone, and the same data gives the same bytes.

use std::fmt::Write as _;

use super::data::{Spread, grouped};

/// A drawing.
#[derive(Debug)]
pub struct Plot<'a> {
    pub title: String,
    /// What is along the lower edge.
    pub across: &'a str,
    pub lines: Vec<Line<'a>>,
}

/// A curve.
#[derive(Debug)]
pub struct Line<'a> {
    pub label: &'a str,
    /// Its place among all servers, so that a server looks alike in all drawings.
    pub look: usize,
    /// Whether it is a prediction, which is dashed and has no marks.
    pub is_model: bool,
    pub points: Vec<(f64, Spread)>,
}

/// Light and dark colours of the looks, from Okabe and Ito's palette, which colour-blind readers can tell apart.
const COLOURS: [(&str, &str); 7] = [
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff8c42"),
    ("#666666", "#b0b0b0"),
    ("#009e73", "#2fd6a3"),
    ("#9b4f96", "#dd8fd8"),
    ("#a07800", "#f0c040"),
    ("#8b0000", "#ff7a7a"),
];

const WIDTH: f64 = 720.0;
/// The field of the curves.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 520.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 330.0;
/// Where the names of the curves are.
const NAMES: f64 = 540.0;
const HEIGHT: f64 = 380.0;

/// A logarithmic axis.
#[derive(Clone, Copy, Debug)]
struct Axis {
    least: f64,
    most: f64,
    from: f64,
    to: f64,
}

impl Plot<'_> {
    /// The file's text. `None` if there is nothing to draw.
    pub fn svg(&self) -> Option<String> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let across = Axis::over(points().map(|(x, _)| *x), LEFT, RIGHT)?;
        let up = Axis::over(points().flat_map(|(_, y)| [y.least, y.most]), BOTTOM, TOP)?;
        let mut svg = String::new();
        self.draw(&mut svg, across, up).expect("writing to a string does not fail");
        Some(svg)
    }

    fn draw(&self, svg: &mut String, across: Axis, up: Axis) -> std::fmt::Result {
        let title = escaped(&self.title);
        writeln!(
            svg,
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">"#
        )?;
        writeln!(svg, "<title>{title}</title>\n<style>\n{}</style>", style())?;
        writeln!(svg, r#"<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>"#)?;
        writeln!(svg, r#"<text class="title" x="{LEFT}" y="24">{title}</text>"#)?;
        for tick in across.ticks() {
            let x = across.place(tick);
            writeln!(svg, r#"<path class="grid" d="M{x:.1} {TOP}V{BOTTOM}"/>"#)?;
            writeln!(svg, r#"<text class="middle" x="{x:.1}" y="{:.1}">{}</text>"#, BOTTOM + 18.0, tick_text(tick))?;
        }
        for tick in up.ticks() {
            let y = up.place(tick);
            writeln!(svg, r#"<path class="grid" d="M{LEFT} {y:.1}H{RIGHT}"/>"#)?;
            writeln!(svg, r#"<text class="end" x="{:.1}" y="{:.1}">{}</text>"#, LEFT - 8.0, y + 4.0, tick_text(tick))?;
        }
        let (middle, below) = ((LEFT + RIGHT) / 2.0, BOTTOM + 40.0);
        writeln!(svg, r#"<text class="middle" x="{middle}" y="{below}">{}</text>"#, escaped(self.across))?;
        for (number, line) in self.lines.iter().enumerate() {
            line.draw(svg, across, up, TOP + 12.0 + 22.0 * number as f64)?;
        }
        writeln!(svg, "</svg>")
    }
}

impl Line<'_> {
    fn draw(&self, svg: &mut String, across: Axis, up: Axis, name_at: f64) -> std::fmt::Result {
        let look = self.look % COLOURS.len();
        let places: Vec<_> = self.points.iter().map(|(x, y)| (across.place(*x), up.place(y.median), y)).collect();
        let path: Vec<_> = places.iter().map(|(x, y, _)| format!("{x:.1} {y:.1}")).collect();
        let kind = if self.is_model { " model" } else { "" };
        writeln!(svg, r#"<g class="look{look}{kind}">"#)?;
        writeln!(svg, r#"<path class="line" d="M{}"/>"#, path.join("L"))?;
        if !self.is_model {
            for (x, y, spread) in &places {
                let (least, most) = (up.place(spread.least), up.place(spread.most));
                if least - most > 1.0 {
                    writeln!(svg, r#"<path class="spread" d="M{x:.1} {least:.1}V{most:.1}"/>"#)?;
                }
                writeln!(svg, r#"<path class="mark" d="{}"/>"#, mark(self.look, *x, *y))?;
            }
        }
        writeln!(svg, r#"<path class="line" d="M{NAMES} {name_at:.1}h24"/>"#)?;
        if !self.is_model {
            writeln!(svg, r#"<path class="mark" d="{}"/>"#, mark(self.look, NAMES + 12.0, name_at))?;
        }
        writeln!(svg, r#"</g><text x="{:.1}" y="{:.1}">{}</text>"#, NAMES + 32.0, name_at + 4.0, escaped(self.label))
    }
}

impl Axis {
    /// An axis for these values, with some room at both ends.
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Option<Self> {
        let (least, most) =
            values.filter(|value| value.is_finite() && *value > 0.0).fold(None, |range, value| match range {
                None => Some((value, value)),
                Some((least, most)) => Some((f64::min(least, value), f64::max(most, value))),
            })?;
        // At least a factor of four, so that noise does not look like a slope.
        let widen = f64::max(1.0, 4.0 / (most / least)).sqrt() * 1.15;
        Some(Self { least: least / widen, most: most * widen, from, to })
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value / self.least).ln() / (self.most / self.least).ln();
        self.from + share * (self.to - self.from)
    }

    /// Round numbers: powers of ten, with 2 and 5 between them if there are few.
    fn ticks(&self) -> Vec<f64> {
        let decades = (self.least.log10().floor() as i32)..=(self.most.log10().ceil() as i32);
        let steps: &[f64] = if (self.most / self.least).log10() > 3.2 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        decades
            .flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade)))
            .filter(|tick| (self.least..=self.most).contains(tick))
            .collect()
    }
}

fn tick_text(tick: f64) -> String {
    if tick >= 1.0 {
        return grouped(tick);
    }
    let text = format!("{tick:.6}");
    text.trim_end_matches('0').to_owned()
}

/// A circle, a square, a triangle, a diamond or a cross.
fn mark(look: usize, x: f64, y: f64) -> String {
    match look % 5 {
        0 => format!("M{:.1} {y:.1}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z", x - 4.0),
        1 => format!("M{:.1} {:.1}h7v7h-7z", x - 3.5, y - 3.5),
        2 => format!("M{x:.1} {:.1}l4.5 8h-9z", y - 5.0),
        3 => format!("M{x:.1} {:.1}l5 5l-5 5l-5 -5z", y - 5.0),
        _ => format!("M{:.1} {:.1}l3 -3l3 3l3 -3l3 3l-3 3l3 3l-3 3l-3 -3l-3 3l-3 -3l3 -3z", x - 6.0, y - 3.0),
    }
}

fn style() -> String {
    let mut style = String::from(
        ".back{fill:#fff}\n\
         text{font:13px system-ui,sans-serif;fill:#1f2328}\n\
         .title{font-weight:600;font-size:15px}\n\
         .middle{text-anchor:middle}\n\
         .end{text-anchor:end}\n\
         .grid{stroke:#d8dee4;stroke-width:1}\n\
         .line{fill:none;stroke-width:2}\n\
         .spread{stroke-width:1.5}\n\
         .model .line{stroke-dasharray:5 4;stroke-width:1.5}\n",
    );
    let colours = |light: bool| {
        let rule = |(look, (for_light, for_dark)): (usize, &(&str, &str))| {
            let colour = if light { for_light } else { for_dark };
            format!(".look{look} path{{stroke:{colour}}} .look{look} .mark{{fill:{colour}}}\n")
        };
        COLOURS.iter().enumerate().map(rule).collect::<String>()
    };
    style.push_str(&colours(true));
    style.push_str(
        "@media (prefers-color-scheme:dark){\n.back{fill:#0d1117}\ntext{fill:#e6edf3}\n.grid{stroke:#30363d}\n",
    );
    style.push_str(&colours(false));
    style.push_str("}\n");
    style
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
