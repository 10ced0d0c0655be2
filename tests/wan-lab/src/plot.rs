//! Line charts as SVG: panels above each other with one axis of time. No fonts, scripts or other files are needed.

use std::fmt::Write;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 76.0;
const BOTTOM: f64 = 52.0;
const PANEL: f64 = 128.0;
/// Between two panels; the title and the legend of the lower one are in it.
const GAP: f64 = 40.0;
const COLOURS: [&str; 4] = ["#1763b8", "#c2410c", "#15803d", "#7e22ce"];

const STYLE: &str = "text{font-family:system-ui,'Segoe UI',Roboto,Helvetica,Arial,'DejaVu Sans',sans-serif;font-size:12px;fill:#374151}\
.title{font-size:17px;font-weight:600;fill:#111827}.panel{font-size:13px;font-weight:600;fill:#111827}\
.grid{stroke:#e5e7eb;stroke-width:1}.frame{stroke:#9ca3af;stroke-width:1;fill:none}\
.band{fill:#fca5a5;fill-opacity:.35}.out{fill:#b91c1c;font-size:11px}\
polyline{fill:none;stroke-width:1.6;stroke-linejoin:round}";

/// A chart.
#[derive(Clone, Debug)]
pub struct Plot {
    /// In large letters.
    pub title: String,
    /// Below it.
    pub subtitle: String,
    /// What the horizontal axis shows, with its unit.
    pub x_title: String,
    /// Its end; it begins at 0.
    pub x_max: f64,
    /// From top to bottom.
    pub panels: Vec<Panel>,
    /// Times that are shaded in all panels.
    pub bands: Vec<Band>,
}

/// One of a chart's panels. Its vertical axis begins at 0.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What the vertical axis shows, with its unit.
    pub title: String,
    /// What is drawn.
    pub lines: Vec<Line>,
}

/// A line.
#[derive(Clone, Debug)]
pub struct Line {
    name: String,
    points: Vec<(f64, f64)>,
    dashed: bool,
}

impl Line {
    /// A line through points, from left to right; its name is in the legend.
    pub fn new(name: &str, points: Vec<(f64, f64)>) -> Line {
        Line { name: name.to_owned(), points, dashed: false }
    }

    /// Draws it dashed, as a line to compare with.
    #[must_use]
    pub fn dashed(self) -> Line {
        Line { dashed: true, ..self }
    }

    fn dashes(&self) -> &'static str {
        if self.dashed { " stroke-dasharray=\"6 4\"" } else { "" }
    }
}

/// A shaded time.
#[derive(Clone, Debug)]
pub struct Band {
    /// Its beginning.
    pub from: f64,
    /// Its end.
    pub until: f64,
    /// Written into it.
    pub label: String,
}

impl Plot {
    /// Draws it.
    pub fn to_svg(&self) -> String {
        let height = TOP + self.panels.len() as f64 * (PANEL + GAP) - GAP + BOTTOM;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             <text class=\"title\" x=\"{LEFT}\" y=\"24\">{title}</text>\n\
             <text x=\"{LEFT}\" y=\"43\">{subtitle}</text>\n",
            title = escaped(&self.title),
            subtitle = escaped(&self.subtitle),
        );
        for (index, panel) in self.panels.iter().enumerate() {
            self.draw_panel(&mut svg, panel, TOP + index as f64 * (PANEL + GAP), index == 0);
        }
        self.draw_x_axis(&mut svg, height - BOTTOM);
        svg.push_str("</svg>\n");
        svg
    }

    fn x(&self, value: f64) -> f64 {
        let share = if self.x_max > 0.0 { (value / self.x_max).clamp(0.0, 1.0) } else { 0.0 };
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn draw_panel(&self, svg: &mut String, panel: &Panel, top: f64, is_first: bool) {
        let bottom = top + PANEL;
        let end = WIDTH - RIGHT;
        let highest =
            panel.lines.iter().flat_map(|line| &line.points).map(|point| point.1).fold(0.0, f64::max);
        let step = nice_step(highest, 4.0);
        let y_max = (highest / step).ceil().max(1.0) * step;
        let y = |value: f64| bottom - (value / y_max).clamp(0.0, 1.0) * PANEL;
        for band in &self.bands {
            let (from, until) = (self.x(band.from), self.x(band.until));
            let width = (until - from).max(1.0);
            let _ = writeln!(
                svg,
                "<rect class=\"band\" x=\"{from:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{PANEL}\"/>"
            );
            if is_first && width > 34.0 {
                let (middle, line) = (from + width / 2.0, top + 16.0);
                let label = escaped(&band.label);
                let _ = writeln!(
                    svg,
                    "<text class=\"out\" x=\"{middle:.1}\" y=\"{line}\" text-anchor=\"middle\">{label}</text>"
                );
            }
        }
        for tick in ticks(step, y_max) {
            let at = y(tick);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{end}\" y2=\"{at:.1}\"/>"
            );
            let (x, at) = (LEFT - 8.0, at + 4.0);
            let label = number(tick, step);
            let _ = writeln!(svg, "<text x=\"{x}\" y=\"{at:.1}\" text-anchor=\"end\">{label}</text>");
        }
        for (index, line) in panel.lines.iter().enumerate() {
            let colour = colour(index);
            let points = thinned(&line.points).into_iter().fold(String::new(), |mut text, (at, value)| {
                let _ = write!(text, "{:.1},{:.1} ", self.x(at), y(value));
                text
            });
            let (points, dashes) = (points.trim_end(), line.dashes());
            let _ = writeln!(svg, "<polyline points=\"{points}\" stroke=\"{colour}\"{dashes}/>");
        }
        let width = end - LEFT;
        let _ = writeln!(
            svg,
            "<rect class=\"frame\" x=\"{LEFT}\" y=\"{top}\" width=\"{width}\" height=\"{PANEL}\"/>"
        );
        let line = top - 9.0;
        let title = escaped(&panel.title);
        let _ = writeln!(svg, "<text class=\"panel\" x=\"{LEFT}\" y=\"{line}\">{title}</text>");
        draw_legend(svg, panel, line);
    }

    fn draw_x_axis(&self, svg: &mut String, bottom: f64) {
        let step = nice_step(self.x_max, 10.0);
        for tick in ticks(step, self.x_max) {
            let x = self.x(tick);
            let _ = writeln!(
                svg,
                "<line class=\"frame\" x1=\"{x:.1}\" y1=\"{bottom}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>",
                bottom + 5.0
            );
            let (label, line) = (number(tick, step), bottom + 19.0);
            let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{line}\" text-anchor=\"middle\">{label}</text>");
        }
        let (middle, line) = ((LEFT + WIDTH - RIGHT) / 2.0, bottom + 40.0);
        let title = escaped(&self.x_title);
        let _ = writeln!(svg, "<text x=\"{middle}\" y=\"{line}\" text-anchor=\"middle\">{title}</text>");
    }
}

fn colour(line: usize) -> &'static str {
    COLOURS[line % COLOURS.len()]
}

/// To the right above the panel, from right to left.
fn draw_legend(svg: &mut String, panel: &Panel, y: f64) {
    /// About what a letter of 12 px is wide.
    const LETTER: f64 = 6.4;
    let mut right = WIDTH - RIGHT;
    for (index, line) in panel.lines.iter().enumerate().rev() {
        let colour = colour(index);
        let name = escaped(&line.name);
        let _ = writeln!(svg, "<text x=\"{right:.1}\" y=\"{y}\" text-anchor=\"end\">{name}</text>");
        let until = right - line.name.chars().count() as f64 * LETTER - 6.0;
        let (from, middle, dashes) = (until - 22.0, y - 4.0, line.dashes());
        let _ = writeln!(
            svg,
            "<line x1=\"{from:.1}\" y1=\"{middle}\" x2=\"{until:.1}\" y2=\"{middle}\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/>"
        );
        right = from - 18.0;
    }
}

/// At most two thousand points, the highest of each group: a peak is what matters, and the picture has fewer columns.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(2000).max(1);
    let highest = |group: &[(f64, f64)]| group.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
    points.chunks(group).filter_map(highest).collect()
}

/// 1, 2 or 5 times a power of ten, so that about `count` steps make up `range`.
fn nice_step(range: f64, count: f64) -> f64 {
    if range <= 0.0 || !range.is_finite() {
        return 1.0;
    }
    let rough = range / count;
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough).unwrap_or(10.0);
    factor * power
}

fn ticks(step: f64, end: f64) -> impl Iterator<Item = f64> {
    (0..=100).map(move |number| f64::from(number) * step).take_while(move |tick| *tick <= end * 1.000_001)
}

/// With as many digits behind the point as the step has.
fn number(value: f64, step: f64) -> String {
    let digits = (-step.log10().floor()).max(0.0) as usize;
    format!("{value:.digits$}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_numbers() {
        for (range, step) in [(100.0, 50.0), (90.0, 50.0), (40.0, 10.0), (0.37, 0.1), (0.0, 1.0), (7.0, 2.0)]
        {
            assert!((nice_step(range, 4.0) - step).abs() < 1e-9, "{range} {}", nice_step(range, 4.0));
        }
        assert_eq!(number(0.30000000000000004, 0.1), "0.3");
        assert_eq!(number(50.0, 50.0), "50");
    }

    #[test]
    fn thinning_keeps_peaks() {
        let points: Vec<(f64, f64)> = (0..10_000).map(|number| (f64::from(number), 1.0)).collect();
        let mut peaked = points.clone();
        peaked[5003].1 = 9.0;
        let thin = thinned(&peaked);
        assert!(thin.len() <= 2000 && thin.contains(&(5003.0, 9.0)));
        assert_eq!(thinned(&points[..10]), points[..10]);
    }
}
