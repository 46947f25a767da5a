//! Slopes, and the costs that explain values best.

use crate::growth::fit::*;

fn near(one: f64, other: f64) -> bool {
    (one - other).abs() <= 1e-6 * other.abs().max(1e-6)
}

#[test]
fn the_slope_is_the_exponent() {
    let points: Vec<_> = [1.0_f64, 10.0, 300.0].iter().map(|x| (*x, 7.0 * x.powf(1.5))).collect();
    assert!(near(slope(&points).expect("three places"), 1.5));
    assert_eq!(slope(&[(5.0, 1.0), (5.0, 2.0)]), None, "one place");
    assert_eq!(slope(&[]), None);
}

#[test]
fn a_knee_is_the_steepest_part() {
    let points = [(1.0, 1.0), (10.0, 1.0), (100.0, 10.0), (1000.0, 12.0)];
    let (place, slope) = steepest(&points).expect("four places");
    assert!(place == 10.0 && near(slope, 1.0), "{place} {slope}");
}

#[test]
fn costs_that_made_the_values_are_found() {
    let terms: Vec<Vec<f64>> = (1..=8).map(|n| vec![1.0, f64::from(n), f64::from(n * n) * 1e6, 0.0]).collect();
    let values: Vec<f64> = terms.iter().map(|row| 50.0 + 3.0 * row[1] + 2e-6 * row[2]).collect();
    let found = costs(&terms, &values);
    assert!(near(found[0], 50.0) && near(found[1], 3.0) && near(found[2], 2e-6), "{found:?}");
    assert_eq!(found[3], 0.0, "a term that is nowhere");
}

#[test]
fn no_cost_is_negative() {
    let terms: Vec<Vec<f64>> = (1..=5).map(|n| vec![1.0, f64::from(n)]).collect();
    let values: Vec<f64> = terms.iter().map(|row| 100.0 - 5.0 * row[1]).collect();
    let found = costs(&terms, &values);
    assert!(found[1] == 0.0 && found[0] > 70.0 && found[0] < 100.0, "{found:?}");
}

#[test]
fn terms_that_are_the_same_share_no_cost() {
    let terms: Vec<Vec<f64>> = (1..=5).map(|n| vec![f64::from(n), f64::from(2 * n)]).collect();
    let values: Vec<f64> = terms.iter().map(|row| 4.0 * row[0]).collect();
    let found = costs(&terms, &values);
    assert!(near(found[0] + 2.0 * found[1], 4.0), "{found:?}");
}
