//! Draws a figure of horizontal bars with their spread.

use std::fmt::Write as _;

use crate::stats::{Spread, number};

/// A figure whose bars have the same unit.
pub(crate) struct Figure {
    /// The name of the file.
    pub(crate) name: &'static str,
    title: String,
    unit: &'static str,
    bars: Vec<(String, Spread, bool)>,
}

const ROW: f64 = 26.0;
const LABELS: f64 = 300.0;
const BARS: f64 = 420.0;

impl Figure {
    pub(crate) fn new(name: &'static str, title: impl Into<String>, unit: &'static str) -> Self {
        Self { name, title: title.into(), unit, bars: Vec::new() }
    }

    /// Adds a bar of this project, in a different colour.
    pub(crate) fn ours(self, label: impl Into<String>, values: &[f64]) -> Self {
        self.bar(label, values, true)
    }

    pub(crate) fn theirs(self, label: impl Into<String>, values: &[f64]) -> Self {
        self.bar(label, values, false)
    }

    fn bar(mut self, label: impl Into<String>, values: &[f64], ours: bool) -> Self {
        self.bars.push((label.into(), Spread::of(values), ours));
        self
    }

    pub(crate) fn svg(&self) -> String {
        let most = self.bars.iter().map(|(_, spread, _)| spread.high).fold(f64::MIN_POSITIVE, f64::max);
        let (width, height) = (LABELS + BARS + 130.0, 44.0 + ROW * self.bars.len() as f64);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
             font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"12\" y=\"22\" font-weight=\"bold\">{}</text>\n",
            escaped(&self.title)
        );
        for (row, (label, spread, ours)) in self.bars.iter().enumerate() {
            let top = 36.0 + ROW * row as f64;
            let at = |value: f64| LABELS + BARS * value / most;
            let (middle, color) = (top + 10.0, if *ours { "#2a6fbb" } else { "#b0b7bf" });
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n\
                 <rect x=\"{LABELS}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"20\" fill=\"{color}\"/>\n\
                 <path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"black\" stroke-width=\"2\"/>\n\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}{}</text>",
                LABELS - 8.0,
                top + 15.0,
                escaped(label),
                at(spread.median) - LABELS,
                at(spread.low),
                at(spread.high),
                at(spread.high) + 8.0,
                top + 15.0,
                number(spread.median),
                self.unit,
            );
        }
        svg + "</svg>\n"
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
