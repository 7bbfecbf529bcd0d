//! The ratios of a run as a bar chart, in SVG.

use std::fmt::Write as _;

use crate::measure::Ratio;

const ROW: usize = 22;
const TOP: usize = 34;
const LABELS: f64 = 520.0;
const BARS: f64 = 300.0;
const WIDTH: f64 = LABELS + BARS + 60.0;

/// The ratio of a bar of full length. A longer bar is cut off; its number is not.
const LONGEST: f64 = 2.0;

const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#1f2328}.axis{stroke:#59636e;stroke-dasharray:3 3}\
    .faster{fill:#2da44e}.slower{fill:#bf8700}\
    @media (prefers-color-scheme:dark){text{fill:#f0f6fc}.axis{stroke:#9198a1}}";

pub(crate) fn svg(ratios: &[Ratio]) -> String {
    let height = TOP + ROW * ratios.len() + 10;
    let one = LABELS + BARS / LONGEST;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <title>The time of prefork-cache, divided by the time of the peer</title>\n<style>{STYLE}</style>\n\
         <text x=\"{one}\" y=\"18\" text-anchor=\"middle\">the peer's time</text>\n"
    );
    for (row, Ratio { title, peer, ratio }) in ratios.iter().enumerate() {
        let top = TOP + row * ROW;
        let (base, label) = (top + 15, LABELS - 8.0);
        let length = ratio.min(LONGEST) / LONGEST * BARS;
        let class = if *ratio <= 1.0 { "faster" } else { "slower" };
        let text = escaped(&format!("{title} \u{2014} {peer}"));
        // Writing to a string does not fail.
        let _ = writeln!(
            svg,
            "<text x=\"{label}\" y=\"{base}\" text-anchor=\"end\">{text}</text>\
             <rect x=\"{LABELS}\" y=\"{}\" width=\"{length:.1}\" height=\"{}\" class=\"{class}\"/>\
             <text x=\"{:.1}\" y=\"{base}\">{ratio:.2}</text>",
            top + 3,
            ROW - 6,
            LABELS + length + 6.0,
        );
    }
    let _ =
        writeln!(svg, "<line x1=\"{one}\" y1=\"{}\" x2=\"{one}\" y2=\"{height}\" class=\"axis\"/>\n</svg>", TOP - 8);
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
