//! Correlations of predictions with true values, and the share of their variance that predictions explain.

/// Pearson's correlation; 0 where either side does not vary.
pub fn pearson(x: &[f64], y: &[f64]) -> f64 {
    let n = x.len() as f64;
    let (mx, my) = (x.iter().sum::<f64>() / n, y.iter().sum::<f64>() / n);
    let covariance: f64 = x.iter().zip(y).map(|(a, b)| (a - mx) * (b - my)).sum();
    let (vx, vy) = (x.iter().map(|a| (a - mx).powi(2)).sum::<f64>(), y.iter().map(|b| (b - my).powi(2)).sum::<f64>());
    if vx == 0.0 || vy == 0.0 { 0.0 } else { covariance / (vx * vy).sqrt() }
}

/// Ranks from 1, ties sharing their mean: Spearman's correlation is Pearson's of the ranks.
pub fn ranks(x: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|a, b| x[*a].total_cmp(&x[*b]));
    let mut ranks = vec![0.0; x.len()];
    let mut start = 0;
    while start < order.len() {
        let mut end = start + 1;
        while end < order.len() && x[order[end]] == x[order[start]] {
            end += 1;
        }
        for i in &order[start..end] {
            ranks[*i] = (start + end + 1) as f64 / 2.0;
        }
        start = end;
    }
    ranks
}

/// 1 - residual / total sum of squares. Where the true values do not vary, 1 for perfect predictions and 0 for others, as
/// in scikit-learn.
pub fn r_squared(truth: &[f64], found: &[f64]) -> f64 {
    let mean = truth.iter().sum::<f64>() / truth.len() as f64;
    let total: f64 = truth.iter().map(|t| (t - mean).powi(2)).sum();
    let residual: f64 = truth.iter().zip(found).map(|(t, f)| (t - f).powi(2)).sum();
    match (total == 0.0, residual == 0.0) {
        (false, _) => 1.0 - residual / total,
        (true, true) => 1.0,
        (true, false) => 0.0,
    }
}
