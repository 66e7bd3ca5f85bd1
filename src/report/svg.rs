//! Line charts as inline SVG: no script, no external reference, colours from the page.
//!
//! Series differ in colour (Okabe and Ito's palette, told apart with any colour vision) and in dash.
//! Text and axes take the page's `currentColor`, so that a chart follows light and dark themes.

use std::fmt::Write;

use super::escape;

const WIDTH: f64 = 720.0;
const PLOT_HEIGHT: f64 = 250.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 40.0;
const LEGEND_ROW: f64 = 20.0;

/// Readable on white and on near-black alike, therefore without the palette's yellow and black.
pub(super) const COLORS: [&str; 6] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"];
const DASHES: [&str; 6] = ["", "7 3", "2 3", "9 3 2 3", "", "7 3"];

/// A line chart under construction; [`Chart::render`] gives the SVG element.
#[derive(Debug, Clone)]
pub struct Chart {
    title: String,
    x_label: String,
    y_label: String,
    log_y: bool,
    series: Vec<(String, Vec<(f64, f64)>)>,
    vertical: Vec<(f64, String)>,
    horizontal: Vec<(f64, String)>,
    ends: bool,
}

impl Chart {
    /// Starts a chart; the labels should name the units.
    pub fn new(
        title: impl Into<String>,
        x_label: impl Into<String>,
        y_label: impl Into<String>,
    ) -> Self {
        Self {
            title: title.into(),
            x_label: x_label.into(),
            y_label: y_label.into(),
            log_y: false,
            series: vec![],
            vertical: vec![],
            horizontal: vec![],
            ends: false,
        }
    }

    /// Makes the y axis logarithmic; values that are not positive are left out.
    pub fn log_y(mut self) -> Self {
        self.log_y = true;
        self
    }

    /// Adds a line; it breaks at points that are not finite.
    pub fn series(
        mut self,
        name: impl Into<String>,
        points: impl IntoIterator<Item = (f64, f64)>,
    ) -> Self {
        self.series.push((name.into(), points.into_iter().collect()));
        self
    }

    /// Marks an x with a vertical line.
    pub fn mark_x(mut self, x: f64, label: impl Into<String>) -> Self {
        self.vertical.push((x, label.into()));
        self
    }

    /// Marks a y with a horizontal line; the axis is stretched to show it.
    pub fn mark_y(mut self, y: f64, label: impl Into<String>) -> Self {
        self.horizontal.push((y, label.into()));
        self
    }

    /// Puts a dot on the last point of every line: where a path through the plane ends.
    pub fn mark_ends(mut self) -> Self {
        self.ends = true;
        self
    }

    /// Returns what the chart shows.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Returns whether any line has a point to show.
    pub fn has_points(&self) -> bool {
        self.series.iter().any(|(_, points)| points.iter().any(|p| self.shows(*p)))
    }

    /// Returns the chart as a file of its own, which follows light and dark themes where it is shown as an image.
    pub fn standalone(&self) -> String {
        standalone(self.render())
    }

    fn shows(&self, (x, y): (f64, f64)) -> bool {
        x.is_finite() && y.is_finite() && (!self.log_y || y > 0.0)
    }

    /// Returns the `<svg>` element; a chart without any point says so.
    pub fn render(&self) -> String {
        let points = || self.series.iter().flat_map(|(_, p)| p).copied().filter(|p| self.shows(*p));
        let x = Axis::linear(points().map(|p| p.0), LEFT, WIDTH - RIGHT, 8);
        let marks = self.horizontal.iter().map(|m| m.0).filter(|&y| self.shows((0.0, y)));
        let ys = points().map(|p| p.1).chain(marks);
        let (bottom, top) = (TOP + PLOT_HEIGHT, TOP);
        let y =
            if self.log_y { Axis::log(ys, bottom, top) } else { Axis::linear(ys, bottom, top, 6) };
        let legend = self.legend();
        let height = bottom + 46.0 + LEGEND_ROW * legend.len() as f64;
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{0}\" \
             xmlns=\"http://www.w3.org/2000/svg\" font-family=\"system-ui,sans-serif\" \
             font-size=\"12\" fill=\"currentColor\"><title>{0}</title>\
             <text x=\"{LEFT}\" y=\"20\" font-size=\"15\" font-weight=\"600\">{0}</text>",
            escape(&self.title)
        );
        match (x, y) {
            (Some(x), Some(y)) => {
                self.axes(&mut out, &x, &y);
                self.lines(&mut out, &x, &y);
                self.marks(&mut out, &x, &y);
            }
            _ => text(&mut out, WIDTH / 2.0, TOP + PLOT_HEIGHT / 2.0, "middle", "no data"),
        }
        for (row, entries) in legend.iter().enumerate() {
            let at = bottom + 56.0 + LEGEND_ROW * row as f64;
            for &(left, index) in entries {
                let style = stroke(index);
                let _ = write!(out, "<path d=\"M{left:.0} {:.0}h26\" {style}/>", at - 4.0);
                text(&mut out, left + 32.0, at, "start", &self.series[index].0);
            }
        }
        out.push_str("</svg>");
        out
    }

    /// Places the names: rows of (left edge, series).
    fn legend(&self) -> Vec<Vec<(f64, usize)>> {
        let mut rows: Vec<Vec<(f64, usize)>> = vec![];
        let mut left = f64::INFINITY;
        for (index, (name, _)) in self.series.iter().enumerate() {
            let width = 32.0 + 7.2 * name.chars().count() as f64 + 20.0;
            if left + width > WIDTH {
                rows.push(vec![]);
                left = LEFT;
            }
            if let Some(row) = rows.last_mut() {
                row.push((left, index));
            }
            left += width;
        }
        rows
    }

    fn axes(&self, out: &mut String, x: &Axis, y: &Axis) {
        let (right, bottom) = (WIDTH - RIGHT, TOP + PLOT_HEIGHT);
        for tick in &y.ticks {
            let at = y.place(*tick);
            let _ = write!(
                out,
                "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"currentColor\" opacity=\".13\"/>"
            );
            text(out, LEFT - 8.0, at + 4.0, "end", &y.label(*tick));
        }
        for tick in &x.ticks {
            let at = x.place(*tick);
            let _ = write!(
                out,
                "<path d=\"M{at:.1} {bottom}v5\" stroke=\"currentColor\" opacity=\".5\"/>"
            );
            text(out, at, bottom + 19.0, "middle", &x.label(*tick));
        }
        let _ = write!(
            out,
            "<path d=\"M{LEFT} {bottom}H{right}\" stroke=\"currentColor\" opacity=\".5\"/>"
        );
        text(out, (LEFT + right) / 2.0, bottom + 37.0, "middle", &self.x_label);
        let middle = TOP + PLOT_HEIGHT / 2.0;
        let _ = write!(
            out,
            "<text transform=\"rotate(-90)\" x=\"{:.1}\" y=\"14\" text-anchor=\"middle\">{}</text>",
            -middle,
            escape(&self.y_label)
        );
    }

    fn lines(&self, out: &mut String, x: &Axis, y: &Axis) {
        for (index, (name, points)) in self.series.iter().enumerate() {
            let mut path = String::new();
            let mut lone = vec![];
            for run in points.split(|p| !self.shows(*p)).filter(|run| !run.is_empty()) {
                if let [(px, py)] = run {
                    lone.push((x.place(*px), y.place(*py)));
                    continue;
                }
                for (i, &(px, py)) in run.iter().enumerate() {
                    let letter = if i == 0 { 'M' } else { 'L' };
                    let _ = write!(path, "{letter}{:.1} {:.1}", x.place(px), y.place(py));
                }
            }
            let name = escape(name);
            if !path.is_empty() {
                let style = stroke(index);
                let _ = write!(out, "<path d=\"{path}\" {style}><title>{name}</title></path>");
            }
            if self.ends
                && let Some((ex, ey)) = points.iter().rev().find(|p| self.shows(**p))
            {
                lone.push((x.place(*ex), y.place(*ey)));
            }
            for (cx, cy) in lone {
                let fill = COLORS[index % COLORS.len()];
                let _ = write!(
                    out,
                    "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3.5\" fill=\"{fill}\"><title>{name}\
                     </title></circle>"
                );
            }
        }
    }

    fn marks(&self, out: &mut String, x: &Axis, y: &Axis) {
        const STYLE: &str = "stroke=\"currentColor\" stroke-dasharray=\"4 4\" opacity=\".6\"";
        let (right, bottom) = (WIDTH - RIGHT, TOP + PLOT_HEIGHT);
        for (value, label) in &self.horizontal {
            if self.shows((0.0, *value)) {
                let at = y.place(*value);
                let _ = write!(out, "<path d=\"M{LEFT} {at:.1}H{right}\" {STYLE}/>");
                text(out, right - 4.0, at - 5.0, "end", label);
            }
        }
        for (value, label) in &self.vertical {
            if value.is_finite() && (x.low..=x.high).contains(value) {
                let at = x.place(*value);
                let _ = write!(out, "<path d=\"M{at:.1} {TOP}V{bottom}\" {STYLE}/>");
                let (anchor, shift) = if at > WIDTH * 0.7 { ("end", -5.0) } else { ("start", 5.0) };
                text(out, at + shift, TOP + 11.0, anchor, label);
            }
        }
    }
}

/// Makes a file of an inline `<svg>` element: with colours of its own for light and dark.
pub(super) fn standalone(svg: String) -> String {
    const STYLE: &str = "<style>svg{color:#1c1e21}\
        @media(prefers-color-scheme:dark){svg{color:#e4e6e9}}</style>";
    // The style goes behind the first tag; nothing in an attribute can hold a bare `>`.
    match svg.split_once('>') {
        Some((tag, rest)) => format!("{tag}>{STYLE}{rest}\n"),
        None => svg,
    }
}

fn stroke(index: usize) -> String {
    let color = COLORS[index % COLORS.len()];
    let mut style = format!("fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"");
    // Beyond the palette a colour comes back with another dash.
    let dash = DASHES[(index + index / COLORS.len()) % DASHES.len()];
    if !dash.is_empty() {
        let _ = write!(style, " stroke-dasharray=\"{dash}\"");
    }
    style + " stroke-linejoin=\"round\""
}

pub(super) fn text(out: &mut String, x: f64, y: f64, anchor: &str, content: &str) {
    let content = escape(content);
    let _ =
        write!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>");
}

/// Values from `low` to `high` laid out from pixel `from` to pixel `to`.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
    step: f64,
    ticks: Vec<f64>,
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |r, v| Some(r.map_or((v, v), |(l, h): (f64, f64)| (l.min(v), h.max(v)))))
}

impl Axis {
    fn linear(
        values: impl Iterator<Item = f64>,
        from: f64,
        to: f64,
        wanted: usize,
    ) -> Option<Self> {
        let (mut low, mut high) = range(values)?;
        // Also a range too wide or too narrow for doubles must end in a few ticks.
        let (floor, ceiling) = (-f64::MAX / 8.0, f64::MAX / 8.0);
        (low, high) = (low.clamp(floor, ceiling), high.clamp(floor, ceiling));
        let margin = low.abs().max(high.abs()) * 1e-9 + f64::MIN_POSITIVE * 1e16;
        if high - low < margin {
            let around = (low.abs() * 0.05).max(if low == 0.0 { 1.0 } else { margin });
            (low, high) = (low - around, high + around);
        }
        let rough = (high - low) / wanted as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|m| m * power)
            .into_iter()
            .find(|s| *s >= rough * 0.999)
            .unwrap_or(10.0 * power);
        let vertical = from > to;
        if vertical {
            // Rounded outwards, so that lines end at a tick; x keeps the run's own ends.
            (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        }
        let first = (low / step - 1e-6).ceil();
        let ticks = (0..=2 * wanted + 2)
            .map(|i| (first + i as f64) * step)
            .take_while(|t| *t <= high + step * 1e-6)
            .collect();
        Some(Self { low, high, from, to, log: false, step, ticks })
    }

    fn log(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Option<Self> {
        let (low, high) = range(values.map(f64::log10))?;
        let (mut low, mut high) = (low.floor(), high.ceil());
        if low == high {
            (low, high) = (low - 1.0, high + 1.0);
        }
        let every = ((high - low) / 7.0).ceil().max(1.0);
        let ticks = (0..=8)
            .map(|i| low + f64::from(i) * every)
            .take_while(|t| *t <= high)
            .map(|t| 10f64.powf(t))
            // The decades at both ends of the doubles round to infinity and to 0.
            .filter(|t| t.is_finite() && *t > 0.0)
            .collect();
        Some(Self { low, high, from, to, log: true, step: every, ticks })
    }

    fn place(&self, value: f64) -> f64 {
        let value = if self.log { value.log10() } else { value };
        let share = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        self.from + share * (self.to - self.from)
    }

    fn label(&self, tick: f64) -> String {
        if self.log || self.step < 1e-4 || tick.abs() >= 1e7 {
            if tick == 0.0 {
                return "0".into();
            }
            // Just enough digits to tell neighbours apart.
            let digits =
                if self.log { 0.0 } else { tick.abs().log10().floor() - self.step.log10().floor() };
            return format!("{tick:.0$e}", digits.clamp(0.0, 6.0) as usize);
        }
        let decimals = (-self.step.log10() - 1e-9).ceil().clamp(0.0, 4.0) as usize;
        let label = format!("{:.decimals$}", tick + 0.0);
        if label.trim_start_matches('-').chars().all(|c| "0.".contains(c)) {
            return label.trim_start_matches('-').into();
        }
        label
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::check::{HOSTILE, balanced};

    #[test]
    fn render_of_hostile_labels_is_balanced() {
        for text in HOSTILE {
            let chart = Chart::new(text, text, text)
                .series(text, [(0.0, 1.0), (1.0, 2.0)])
                .mark_x(0.5, text)
                .mark_y(3.0, text);
            balanced(&chart.render());
            assert!(!chart.render().contains("<script"));
        }
    }

    #[test]
    fn render_of_extreme_values_has_finite_coordinates() {
        let cases = [
            vec![],
            vec![(0.0, 0.0)],
            vec![(f64::NAN, 1.0), (1.0, f64::INFINITY)],
            vec![(0.0, -f64::MAX), (1.0, f64::MAX)],
            vec![(0.0, 5e-324), (1.0, 1e-320)],
            vec![(1e9, 1.0), (1e9 + 1.0, 1.0 + 1e-15)],
        ];
        for points in cases {
            for log in [false, true] {
                let chart = Chart::new("t", "x", "y").series("s", points.clone());
                let svg = if log { chart.log_y() } else { chart }.render();
                balanced(&svg);
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{points:?} {svg}");
                assert!(svg.len() < 10_000, "{} bytes for {points:?}", svg.len());
            }
        }
    }

    #[test]
    fn linear_ticks_are_round_and_cover_the_values() {
        let axis = Axis::linear([0.13, 4.2].into_iter(), 100.0, 0.0, 6).unwrap();
        assert_eq!(axis.ticks, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(axis.label(2.0), "2");
        let axis = Axis::linear([0.0, 0.31].into_iter(), 100.0, 0.0, 6).unwrap();
        assert_eq!(axis.label(axis.ticks[1]), "0.1");
    }

    #[test]
    fn standalone_carries_its_own_colours_and_ends_are_dots() {
        let points = [(0.0, 1.0), (1.0, 2.0), (2.0, f64::NAN)];
        let chart = Chart::new("a > b", "x", "y").series("s", points).mark_ends();
        balanced(&chart.standalone());
        assert!(chart.standalone().contains("xmlns=\"http://www.w3.org/2000/svg\""));
        assert_eq!(chart.render().matches("<circle").count(), 1);
        assert!(chart.has_points() && !Chart::new("t", "x", "y").has_points());
    }

    #[test]
    fn line_breaks_where_a_value_is_missing() {
        let points =
            [(0.0, 1.0), (1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0), (4.0, 2.0), (5.0, f64::NAN)];
        let svg = Chart::new("t", "x", "y").series("s", points).render();
        let line = svg.split("<path d=\"").find(|p| p.contains("<title>s")).unwrap();
        assert_eq!(line.matches('M').count(), 2);
    }
}
