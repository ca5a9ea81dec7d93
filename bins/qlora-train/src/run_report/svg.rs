//! Charts as SVG inside a page: axes with units, a legend, a text for who does not see them, colors by classes of the
//! page, so that they follow light and dark.

use std::fmt::Write as _;

/// A curve.
pub struct Series {
    pub name: String,
    /// Class that gives it its color
    pub class: String,
    pub points: Vec<(f64, f64)>,
    /// Dots joined by a line, else a line alone.
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
/// Points of a curve at most; more are averaged.
const MOST_POINTS: usize = 600;

/// Text in HTML and in attributes: no character of it is markup, none moves the cursor or turns the direction.
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
    let first = (low / step).ceil() as i64;
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

/// Each value with a share of those before it, by which noise goes.
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
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(0.3, 1.1).iter().map(|tick| short(*tick)).collect::<Vec<_>>(), ["0.4", "0.6", "0.8", "1"]);
        assert_eq!(ticks(1.0, 1.0), [1.0]);
        assert_eq!(ticks(f64::NAN, 1.0).len(), 1);
        assert!(ticks(-1e300, 1e300).len() <= 20);
        assert_eq!([0.0, 12_345.0, 2e-4, 0.5, 1500.0, 2e6].map(short), ["0", "12.3k", "2.0e-4", "0.5", "1500", "2M"]);
    }

    #[test]
    fn a_chart_has_axes_units_a_legend_and_words_and_no_markup_of_a_name() {
        let series = [Series {
            name: "</svg><script>alert(1)</script>\u{202e}".to_owned(),
            class: "one".to_owned(),
            points: (0..2000)
                .map(|x| (f64::from(x), 3.0 - f64::from(x) / 1000.0))
                .chain([(2000.0, f64::NAN)])
                .collect(),
            dots: false,
        }];
        let marks = [(100.0, "<b>".to_owned())];
        let svg = Chart { title: "Loss", x: "step", y: "nats", series: &series, marks: &marks }.svg();
        assert!(!svg.contains("<script") && !svg.contains("<b>") && !svg.contains('\u{202e}'), "{svg}");
        for part in
            ["role=\"img\"", "aria-label=\"Loss: ", "<title>Loss</title>", ">step</text>", ">nats</text>", "legend"]
        {
            assert!(svg.contains(part), "{part}");
        }
        assert!(!svg.contains("NaN"));
        let points = svg.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(points.split(' ').count(), 500);
        assert_eq!(Chart { title: "", x: "", y: "", series: &[], marks: &[] }.svg(), "");
    }

    #[test]
    fn a_file_stands_alone_and_is_xml() {
        let curve = |name: &str, class: &str| series(name, class, vec![(1.0, 2.0), (2.0, 1.0)], false);
        let series =
            [curve("<training> & more", "one"), curve("validation", "two"), series("none", "two", vec![], false)];
        let file = Chart { title: "Loss", x: "step", y: "nats", series: &series, marks: &[] }.file().unwrap();
        let begin = "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" width=\"720\" height=\"308\" \
                     viewBox=\"0 0 720 308\" role=\"img\"";
        assert!(file.starts_with(begin) && file.ends_with("</svg>\n"), "{file}");
        assert!(file.contains("&lt;training&gt; &amp; more</text>") && file.contains("validation</text>"), "{file}");
        assert!(!file.contains("none</text>") && !file.contains("<p>") && !file.contains("NaN"), "{file}");
        assert_eq!(file.matches("text-anchor=\"middle\"").count(), 2, "there is no step 1.2: {file}");
        // Every element is closed.
        let closed = 2 * file.matches("</").count() + file.matches("/>").count();
        assert_eq!(file.matches('<').count(), closed, "{file}");
        assert_eq!(Chart { title: "", x: "", y: "", series: &[], marks: &[] }.file(), None);
    }

    #[test]
    fn constant_curves_and_single_points_are_drawn() {
        for points in [vec![(1.0, 2.0)], vec![(1.0, 2.0), (2.0, 2.0)], vec![(0.0, 0.0)]] {
            let series = [Series { name: "a".into(), class: "one".into(), points, dots: false }];
            let svg = Chart { title: "t", x: "x", y: "y", series: &series, marks: &[] }.svg();
            assert!(svg.contains("polyline") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn smoothing_keeps_a_constant_and_quiets_noise() {
        let constant: Vec<(f64, f64)> = (0..50).map(|x| (f64::from(x), 2.0)).collect();
        assert_eq!(smoothed(&constant), constant);
        let noisy: Vec<(f64, f64)> = (0..500).map(|x| (f64::from(x), f64::from(x % 2))).collect();
        assert!(smoothed(&noisy)[400..].iter().all(|(_, y)| (0.35..0.65).contains(y)));
        assert!(smoothed(&[]).is_empty());
    }
}
