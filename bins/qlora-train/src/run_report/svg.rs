//! Charts as SVG inside a page: axes with units, a legend, a text for people who cannot see them, colors by classes of
//! the page, so that they follow light and dark.

use std::fmt::Write as _;

/// A curve.
pub struct Series {
    pub name: String,
    /// Class that gives it its color
    pub class: String,
    pub points: Vec<(f64, f64)>,
    /// Dots joined by a line; otherwise a line alone.
    pub dots: bool,
}

pub fn series(name: &str, class: &str, points: Vec<(f64, f64)>, dots: bool) -> Series {
    Series { name: name.to_owned(), class: class.to_owned(), points, dots }
}

pub struct Chart<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
    pub series: &'a [Series],
    /// Values of x that are marked, with a word
    pub marks: &'a [(f64, String)],
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 44.0;
/// Height of the line with the names of the curves, in a file
const LEGEND: f64 = 28.0;
/// Colors where no page has them
const FILE_STYLE: &str = ".chart text{font:12px system-ui,sans-serif;fill:#625f58}.chart .label{fill:#1c1b19}\
    .grid{stroke:#dedad2}.axis{stroke:#625f58}.line{fill:none;stroke:currentColor;stroke-width:2;\
    stroke-linejoin:round}.dot{fill:currentColor}.one{color:#1f5fa8}.two{color:#b4541a}\
    .line.faint{opacity:.35;stroke-width:1}";
/// Maximum number of points in a curve; more are averaged.
const MOST_POINTS: usize = 600;

/// Text in HTML and in attributes: no character of it is markup, and none moves the cursor or changes the direction of
/// writing.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in crate::report::printable_lines(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Round numbers from `low` to `high`, some five of them.
pub fn ticks(low: f64, high: f64) -> Vec<f64> {
    let span = high - low;
    if !(span.is_finite() && span > 0.0) {
        return vec![low];
    }
    let raw = span / 5.0;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= raw).unwrap_or(10.0 * power);
    let first = (low / step).ceil();
    // Numbers that are so close, or so small, have no round ones between them.
    if first.is_nan() || first.abs() > 1e15 {
        return vec![low];
    }
    let first = first as i64;
    (first..).map(|at| at as f64 * step).take_while(|tick| *tick <= high + 1e-9 * span).take(20).collect()
}

/// A number as short as it may be.
pub fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 1e6 => format!("{:.3}M", value / 1e6).replace(".000M", "M"),
        size if size >= 1e4 => format!("{:.1}k", value / 1e3).replace(".0k", "k"),
        size if size < 1e-3 => format!("{value:.1e}"),
        size if size >= 100.0 => format!("{value:.0}"),
        _ => {
            let text = format!("{value:.4}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

/// Means of neighbors, where there are more points than a chart shows.
pub fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let each = points.len().div_ceil(MOST_POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (part.iter().map(|p| p.0).sum::<f64>() / n, part.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(each).map(mean).collect()
}

/// Values smoothed against noise, each with a share of those before it.
pub fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let weight = (2.0 / (1.0 + points.len() as f64 / 15.0)).clamp(0.02, 1.0);
    let mut mean = points.first().map_or(0.0, |point| point.1);
    points
        .iter()
        .map(|&(x, y)| {
            mean += weight * (y - mean);
            (x, mean)
        })
        .collect()
}

impl Chart<'_> {
    /// Empty where there is nothing to draw.
    pub fn svg(&self) -> String {
        let Some((svg, drawn)) = self.drawing() else { return String::new() };
        let mut legend = String::from("<p class=\"legend\">");
        for series in drawn {
            let (class, name) = (escape(&series.class), escape(&series.name));
            let _ = write!(legend, "<span><i class=\"swatch {class}\"></i>{name}</span> ");
        }
        format!("{svg}</svg>{legend}</p>")
    }

    /// The chart as a file of its own, for a page that is light or dark. None: there is nothing to draw.
    pub fn file(&self) -> Option<String> {
        let (mut svg, drawn) = self.drawing()?;
        let whole = HEIGHT + LEGEND;
        let begin = format!("<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\"");
        let named = "xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\"";
        let sized = format!("<svg {named} width=\"{WIDTH}\" height=\"{whole}\" viewBox=\"0 0 {WIDTH} {whole}\"");
        svg = svg.replacen(&begin, &sized, 1);
        let ground = format!("<rect width=\"{WIDTH}\" height=\"{whole}\" fill=\"#fff\"/>");
        svg = svg.replacen("</title>", &format!("</title><style>{FILE_STYLE}</style>{ground}"), 1);
        let mut x = LEFT;
        for series in drawn {
            let (class, name) = (escape(&series.class), escape(&series.name));
            let (y, from, at) = (HEIGHT + LEGEND / 2.0, x, x + 24.0);
            let _ = write!(
                svg,
                "<line class=\"line {class}\" x1=\"{from}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\"/><text class=\"tick\" \
                 x=\"{at}\" y=\"{}\">{name}</text>",
                from + 16.0,
                y + 4.0
            );
            x = at + 8.0 * series.name.chars().count() as f64 + 16.0;
        }
        Some(svg + "</svg>\n")
    }

    /// The picture without its end, and the curves that it has.
    fn drawing(&self) -> Option<(String, Vec<&Series>)> {
        let finite = |point: &(f64, f64)| point.0.is_finite() && point.1.is_finite();
        let drawn: Vec<(&Series, Vec<(f64, f64)>)> = self
            .series
            .iter()
            .map(|series| (series, thinned(&series.points.iter().copied().filter(finite).collect::<Vec<_>>())))
            .filter(|(_, points)| !points.is_empty())
            .collect();
        let all = || drawn.iter().flat_map(|(_, points)| points.iter().copied());
        if drawn.is_empty() {
            return None;
        }
        let bounds = |of: &dyn Fn((f64, f64)) -> f64| {
            let values = all().map(of);
            let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
            let room = if high > low { 0.0 } else { 0.5 * high.abs().max(1.0) };
            (low - room, high + room)
        };
        let ((x0, x1), (y0, y1)) = (bounds(&|p| p.0), bounds(&|p| p.1));
        let pad = 0.05 * (y1 - y0);
        let (y0, y1) = (if y0 >= 0.0 { (y0 - pad).max(0.0) } else { y0 - pad }, y1 + pad);
        let at_x = |x: f64| LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
        let at_y = |y: f64| HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);

        let mut svg = format!(
            "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\"><title>{}</title>",
            escape(&format!("{}: {}", self.title, self.in_words())),
            escape(self.title)
        );
        for tick in ticks(y0, y1) {
            let y = at_y(tick);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text class=\"tick\" \
                 x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                y + 4.0,
                short(tick)
            );
        }
        let base = HEIGHT - BOTTOM;
        // Steps are whole.
        for tick in ticks(x0, x1).into_iter().filter(|tick| (tick - tick.round()).abs() < 1e-6) {
            let x = at_x(tick);
            let _ = write!(
                svg,
                "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{base}\" y2=\"{}\"/><text class=\"tick\" \
                 x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                base + 5.0,
                base + 18.0,
                short(tick)
            );
        }
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{0}\" y1=\"{base}\" y2=\"{base}\"/><line class=\"axis\" \
             x1=\"{LEFT}\" x2=\"{LEFT}\" y1=\"{TOP}\" y2=\"{base}\"/><text class=\"label\" x=\"{0}\" y=\"{1}\" \
             text-anchor=\"end\">{2}</text><text class=\"label\" transform=\"translate(14 {TOP}) rotate(-90)\" \
             text-anchor=\"end\">{3}</text>",
            WIDTH - RIGHT,
            HEIGHT - 8.0,
            escape(self.x),
            escape(self.y)
        );
        for (x, word) in self.marks.iter().filter(|(x, _)| (x0..=x1).contains(x)) {
            let x = at_x(*x);
            let (anchor, shift) = if x > WIDTH - 160.0 { ("end", -4.0) } else { ("start", 4.0) };
            let _ = write!(
                svg,
                "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{base}\"/><text class=\"tick\" \
                 x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
                x + shift,
                TOP + 10.0,
                escape(word)
            );
        }
        for (series, points) in &drawn {
            let path: Vec<String> = points.iter().map(|&(x, y)| format!("{:.1},{:.1}", at_x(x), at_y(y))).collect();
            let _ = write!(svg, "<polyline class=\"line {}\" points=\"{}\"/>", escape(&series.class), path.join(" "));
            // A single point has no line.
            for &(x, y) in points.iter().filter(|_| series.dots || points.len() == 1) {
                let (cx, cy) = (at_x(x), at_y(y));
                let _ = write!(svg, "<circle class=\"dot {}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3.5\"/>", series.class);
            }
        }
        Some((svg, drawn.into_iter().map(|(series, _)| series).collect()))
    }

    /// Ends of each curve.
    fn in_words(&self) -> String {
        let of = |series: &Series| {
            let points: Vec<&(f64, f64)> = series.points.iter().filter(|point| point.1.is_finite()).collect();
            let (first, last) = (points.first()?, points.last()?);
            let lowest = points.iter().min_by(|one, other| one.1.total_cmp(&other.1))?;
            Some(format!(
                "{} from {} at {} to {} at {}, lowest {} at {}",
                series.name,
                short(first.1),
                short(first.0),
                short(last.1),
                short(last.0),
                short(lowest.1),
                short(lowest.0)
            ))
        };
        self.series.iter().filter_map(of).collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests;
