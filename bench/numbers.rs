//! Arithmetic of figures.

/// Smallest first.
pub fn sorted(numbers: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = numbers.collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The one in the middle; 0 if there is none.
pub fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Numbers here are far below 2^52.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub fn precise(number: u64) -> f64 {
    number as f64
}
