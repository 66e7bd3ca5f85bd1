//! Horizontal bars as inline SVG: one number a run, such as seconds a step.

use std::fmt::Write;

use super::escape;
use super::svg::{COLORS, standalone, text};

const WIDTH: f64 = 720.0;
const TOP: f64 = 36.0;
const ROW: f64 = 26.0;
/// Maximum width of names.
const NAMES: f64 = 260.0;
/// Room for the number beside a bar, on either side.
const NUMBER: f64 = 76.0;

/// Bars under construction; [`Bars::render`] gives the SVG element.
#[derive(Debug, Clone)]
pub struct Bars {
    title: String,
    bars: Vec<(String, f64)>,
}

impl Bars {
    /// Starts bars; the title should name the unit.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), bars: vec![] }
    }

    /// Adds a bar; a value that is not finite is left out.
    pub fn bar(mut self, name: impl Into<String>, value: f64) -> Self {
        if value.is_finite() {
            self.bars.push((name.into(), value));
        }
        self
    }

    /// Returns what the bars show.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Returns whether there is nothing to show.
    pub fn is_empty(&self) -> bool {
        self.bars.is_empty()
    }

    /// Returns the bars as a file of its own, which follows light and dark themes where it is shown as an image.
    pub fn standalone(&self) -> String {
        standalone(self.render())
    }

    /// Returns the `<svg>` element; the bars start at 0, to the left for what is negative.
    pub fn render(&self) -> String {
        let longest = self.bars.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let left = (7.2 * longest as f64 + 8.0).min(NAMES);
        let low = self.bars.iter().fold(0.0, |low: f64, (_, value)| low.min(*value));
        let high = self.bars.iter().fold(0.0, |high: f64, (_, value)| high.max(*value));
        // Halves, so that no pair of doubles is too far apart.
        let span = (high / 2.0 - low / 2.0).max(f64::MIN_POSITIVE);
        let from = left + if low < 0.0 { NUMBER } else { 0.0 };
        let room = WIDTH - NUMBER - from;
        let place = |value: f64| from + (value / 2.0 - low / 2.0) / span * room;
        let height = TOP + ROW * self.bars.len() as f64 + 8.0;
        let title = escape(&self.title);
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\" \
             xmlns=\"http://www.w3.org/2000/svg\" font-family=\"system-ui,sans-serif\" \
             font-size=\"12\" fill=\"currentColor\"><title>{title}</title>\
             <text x=\"0\" y=\"18\" font-size=\"15\" font-weight=\"600\">{title}</text>"
        );
        let zero = place(0.0);
        for (row, (name, value)) in self.bars.iter().enumerate() {
            let at = TOP + ROW * row as f64;
            let end = place(*value);
            let (x, width) = (zero.min(end), (end - zero).abs().max(1.0));
            let color = COLORS[row % COLORS.len()];
            let middle = at + 14.0;
            text(&mut out, 0.0, middle, "start", &shortened(name, left));
            let _ = write!(
                out,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"16\" fill=\"{color}\">\
                 <title>{}</title></rect>",
                at + 2.0,
                escape(name)
            );
            let (edge, anchor) =
                if *value < 0.0 { (x - 6.0, "end") } else { (x + width + 6.0, "start") };
            text(&mut out, edge, middle, anchor, &number(*value));
        }
        let _ = write!(
            out,
            "<path d=\"M{zero:.1} {TOP}V{:.1}\" stroke=\"currentColor\" opacity=\".5\"/></svg>",
            height - 4.0
        );
        out
    }
}

fn shortened(name: &str, room: f64) -> String {
    let most = (room / 7.2) as usize;
    match name.char_indices().nth(most.saturating_sub(1)) {
        Some((at, _)) if name.chars().count() > most => format!("{}…", &name[..at]),
        _ => name.to_owned(),
    }
}

/// Writes a number with three to five digits.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        a if !(1e-3..1e6).contains(&a) => format!("{value:.2e}"),
        a if a >= 1e3 => format!("{value:.0}"),
        a if a >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::check::{HOSTILE, balanced};

    #[test]
    fn render_of_hostile_names_and_extreme_values_is_balanced_and_finite() {
        for name in HOSTILE {
            for value in [0.0, -f64::MAX, f64::MAX, 5e-324, f64::NAN] {
                let svg = Bars::new(name).bar(name, value).bar("b", -1.0).render();
                balanced(&svg);
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            }
        }
    }

    #[test]
    fn bars_of_either_sign_leave_from_zero() {
        let svg = Bars::new("t").bar("a", -100.0).bar("b", 50.0).render();
        let rects: Vec<&str> = svg.split("<rect x=\"").skip(1).collect();
        let numbers = |rect: &str| -> (f64, f64) {
            let mut parts = rect.split('"');
            let x = parts.next().unwrap().parse().unwrap();
            (x, parts.nth(3).unwrap().parse().unwrap())
        };
        let [(x, width), (zero, half)] = [numbers(rects[0]), numbers(rects[1])];
        assert!((x + width - zero).abs() < 0.11 && (width - 2.0 * half).abs() < 0.11, "{svg}");
    }

    #[test]
    fn number_keeps_what_matters() {
        assert_eq!(
            [1234.5, 12.34, 0.1234, 1e-5, 0.0].map(number),
            ["1234", "12.3", "0.123", "1.00e-5", "0"]
        );
    }
}
