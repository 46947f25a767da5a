//! Fits: the slope of a curve, and the costs of a linear model.
//!
//! Pure calculation, without any measurement. Always holds: no cost of a model is negative.

/// The exponent of the power that fits best: the slope of the line through the points on logarithmic axes. `None` of
/// fewer than two different places.
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let logs: Vec<_> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    let count = logs.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / count;
    let (x_mean, y_mean) = (mean(|log| log.0), mean(|log| log.1));
    let spread: f64 = logs.iter().map(|(x, _)| (x - x_mean).powi(2)).sum();
    let joint: f64 = logs.iter().map(|(x, y)| (x - x_mean) * (y - y_mean)).sum();
    (spread > 1e-12).then(|| joint / spread)
}

/// The largest slope between two neighbouring points, with the place where it begins: where a knee would be.
pub fn steepest(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let between = |pair: &[(f64, f64)]| slope(pair).map(|slope| (pair[0].0, slope));
    points.windows(2).filter_map(between).max_by(|(_, one), (_, other)| one.total_cmp(other))
}

/// The costs, none of them negative, for which `costs · terms` comes nearest to the values. Differences count relative
/// to the value, so that a point of a microsecond counts as much as one of a second.
///
/// A cost that would be negative is zero, and the others are fitted without it. A term that is zero everywhere, or that
/// the others explain already, has the cost zero.
pub fn costs(terms: &[Vec<f64>], values: &[f64]) -> Vec<f64> {
    let width = terms.first().map_or(0, Vec::len);
    let rows: Vec<Vec<f64>> =
        terms.iter().zip(values).map(|(row, value)| row.iter().map(|term| term / value).collect()).collect();
    let mut used: Vec<usize> = (0..width).collect();
    loop {
        let fitted = least_squares(&rows, &used);
        let least = fitted.iter().enumerate().min_by(|(_, one), (_, other)| one.total_cmp(other));
        match least {
            Some((place, cost)) if *cost < 0.0 => {
                used.remove(place);
            }
            _ => {
                let mut costs = vec![0.0; width];
                for (term, cost) in used.iter().zip(fitted) {
                    costs[*term] = cost;
                }
                return costs;
            }
        }
    }
}

/// The costs of these terms for which every row comes nearest to 1, by the normal equations.
fn least_squares(rows: &[Vec<f64>], used: &[usize]) -> Vec<f64> {
    let width = used.len();
    // Each term is scaled to its own size, because they differ by many orders of magnitude.
    let size = |term: usize| rows.iter().map(|row| row[term] * row[term]).sum::<f64>().sqrt();
    let sizes: Vec<f64> = used.iter().map(|term| size(*term)).collect();
    let scaled = |row: &[f64], place: usize| if sizes[place] > 0.0 { row[used[place]] / sizes[place] } else { 0.0 };
    let mut matrix = vec![vec![0.0; width + 1]; width];
    for row in rows {
        let scaled: Vec<f64> = (0..width).map(|place| scaled(row, place)).collect();
        for (line, one) in matrix.iter_mut().zip(&scaled) {
            line.iter_mut().zip(scaled.iter().chain([&1.0])).for_each(|(sum, other)| *sum += one * other);
        }
    }
    let solved = eliminate(matrix);
    solved.iter().zip(&sizes).map(|(cost, size)| if *size > 0.0 { cost / size } else { 0.0 }).collect()
}

/// Solves the equations, each a row with its right side last, by Gauss' elimination. The matrix is a product of another
/// one with itself, so the diagonal has the pivots. An unknown that the equations do not determine is zero.
fn eliminate(mut matrix: Vec<Vec<f64>>) -> Vec<f64> {
    let width = matrix.len();
    let is_determined = |matrix: &[Vec<f64>], place: usize| matrix[place][place] > 1e-10;
    for column in 0..width {
        if !is_determined(&matrix, column) {
            continue;
        }
        let pivot = matrix[column].clone();
        for (_, row) in matrix.iter_mut().enumerate().filter(|(number, _)| *number != column) {
            let factor = row[column] / pivot[column];
            row.iter_mut().zip(&pivot).for_each(|(value, pivot)| *value -= factor * pivot);
        }
    }
    let solution = |place: usize| matrix[place][width] / matrix[place][place];
    (0..width).map(|place| if is_determined(&matrix, place) { solution(place) } else { 0.0 }).collect()
}
