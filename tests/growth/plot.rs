//! Drawings: what is in them, and where.

use crate::growth::{data::Spread, plot::*};
fn plot(points: Vec<(f64, Spread)>) -> Plot<'static> {
    let line = |label, look, is_model| Line { label, look, is_model, points: points.clone() };
    Plot {
        title: "a < b".to_owned(),
        across: "connections",
        lines: vec![line("relay", 0, false), line("model", 0, true)],
    }
}

fn spread(median: f64) -> Spread {
    Spread { median, least: median / 2.0, most: median * 2.0 }
}

#[test]
fn a_drawing_has_its_marks_its_names_and_both_colour_schemes() {
    let svg = plot(vec![(100.0, spread(5.0)), (10_000.0, spread(8.0))]).svg().expect("a drawing");
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
    assert!(svg.contains("a &lt; b") && !svg.contains("a < b"), "{svg}");
    for part in ["prefers-color-scheme:dark", ">relay<", ">model<", ">connections<", ">10,000<"] {
        assert!(svg.contains(part), "{part}: {svg}");
    }
    // Two points and the name's; the model has none.
    assert_eq!(svg.matches(r#"class="mark""#).count(), 3);
    assert_eq!(svg.matches(r#"class="spread""#).count(), 2);
}

#[test]
fn nothing_is_no_drawing() {
    assert_eq!(plot(Vec::new()).svg(), None);
}

#[test]
fn places_are_logarithmic_and_ticks_are_round() {
    let svg =
        plot(vec![(100.0, spread(5.0)), (1000.0, spread(5.0)), (10_000.0, spread(5.0))]).svg().expect("a drawing");
    let path = svg.split(r#"class="line" d="M"#).nth(1).and_then(|rest| rest.split('"').next()).expect("a line");
    let places: Vec<f64> =
        path.split('L').map(|place| place.split(' ').next().expect("x").parse().expect("x")).collect();
    assert!((places[0] + places[2] - 2.0 * places[1]).abs() < 0.2, "{path}");
    for tick in ["100", "200", "500", "1,000", "2,000", "5,000", "10,000"] {
        assert!(svg.contains(&format!(">{tick}</text>")), "{tick}: {svg}");
    }
}

#[test]
fn a_small_difference_looks_small() {
    let flat = |median| Spread { median, least: median, most: median };
    let svg = plot(vec![(1.0, flat(10.0)), (100.0, flat(10.5))]).svg().expect("a drawing");
    let path = svg.split(r#"class="line" d="M"#).nth(1).and_then(|rest| rest.split('"').next()).expect("a line");
    let heights: Vec<f64> =
        path.split('L').map(|place| place.split(' ').nth(1).expect("y").parse().expect("y")).collect();
    assert!((heights[0] - heights[1]).abs() < 15.0, "{path}");
}
