use super::*;

#[test]
fn ticks_are_round_and_inside() {
    assert_eq!(ticks(0.0, 10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
    assert_eq!(ticks(0.3, 1.1).iter().map(|tick| short(*tick)).collect::<Vec<_>>(), ["0.4", "0.6", "0.8", "1"]);
    assert_eq!(ticks(1.0, 1.0), [1.0]);
    assert_eq!(ticks(f64::NAN, 1.0).len(), 1);
    assert!(ticks(-1e300, 1e300).len() <= 20);
    assert_eq!(ticks(5e-324, 1e-323), [5e-324]);
    assert_eq!(ticks(1e300, 1e300f64.next_up()), [1e300]);
    assert_eq!([0.0, 12_345.0, 2e-4, 0.5, 1500.0, 2e6].map(short), ["0", "12.3k", "2.0e-4", "0.5", "1500", "2M"]);
}

#[test]
fn a_chart_has_axes_units_a_legend_and_words_and_no_markup_of_a_name() {
    let series = [Series {
        name: "</svg><script>alert(1)</script>\u{202e}".to_owned(),
        class: "one".to_owned(),
        points: (0..2000).map(|x| (f64::from(x), 3.0 - f64::from(x) / 1000.0)).chain([(2000.0, f64::NAN)]).collect(),
        dots: false,
    }];
    let marks = [(100.0, "<b>".to_owned())];
    let svg = Chart { title: "Loss", x: "step", y: "nats", series: &series, marks: &marks }.svg();
    assert!(!svg.contains("<script") && !svg.contains("<b>") && !svg.contains('\u{202e}'), "{svg}");
    for part in ["role=\"img\"", "aria-label=\"Loss: ", "<title>Loss</title>", ">step</text>", ">nats</text>", "legend"]
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
    let series = [curve("<training> & more", "one"), curve("validation", "two"), series("none", "two", vec![], false)];
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
