//! Statistics of the figures.

/// The numbers in ascending order.
pub fn sorted(numbers: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = numbers.collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The median of sorted numbers; 0 without numbers.
pub fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Converts a number below 2^52, which is exact.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub fn to_f64(number: u64) -> f64 {
    number as f64
}
