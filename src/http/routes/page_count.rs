//! The number of pages of a list.

/// The number of pages of `size` rows that `total` rows fill. `size` is at least 1.
pub fn page_count(total: i64, size: i64) -> i64 {
    total.div_euclid(size) + i64::from(total % size > 0)
}
