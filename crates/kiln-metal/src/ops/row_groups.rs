//! Geometry of kernels that work on rows in groups of four values.

use crate::caps::SIMD_WIDTH;
use crate::view::View;

/// Values that a thread loads as one vector.
pub(super) const GROUP: usize = 4;

/// Threads of a threadgroup of an elementwise kernel.
const ELEMENTWISE_THREADS: usize = 256;

/// Whether every row of every view is whole groups, each at a multiple of its size.
pub(super) fn aligned<'a>(dim: usize, views: impl IntoIterator<Item = &'a View>) -> bool {
    dim.is_multiple_of(GROUP) && views.into_iter().all(|view| view.is_aligned(GROUP))
}

/// Threadgroups and threads that cover `columns` by `rows` threads, one for each.
pub(super) fn cover(columns: usize, rows: usize) -> ([usize; 3], [usize; 3]) {
    let x = columns.next_power_of_two().clamp(1, ELEMENTWISE_THREADS);
    let y = rows.next_power_of_two().clamp(1, ELEMENTWISE_THREADS / x);
    ([columns.div_ceil(x), rows.div_ceil(y), 1], [x, y, 1])
}

/// Groups of a row that a thread keeps in registers between the passes over it.
pub(super) const KEPT_GROUPS: usize = 4;

/// Simdgroups of the largest threadgroup.
pub(super) const MAX_SIMDGROUPS: usize = 1024 / SIMD_WIDTH;

/// Least and most threads that a long row is divided among.
const TEAM: (usize, usize) = (256, 512);

/// Threads of a threadgroup that works on one row: a whole number of simdgroups, enough to keep the
/// row in registers up to 8192 values. Only the length of the row decides.
pub(super) fn team(dim: usize) -> usize {
    let groups = dim.div_ceil(GROUP);
    let enough = groups.div_ceil(KEPT_GROUPS).clamp(TEAM.0, TEAM.1);
    groups.min(enough).next_multiple_of(SIMD_WIDTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_team_is_whole_simdgroups_of_at_most_512_threads() {
        assert_eq!(team(1), 32);
        assert_eq!(team(128), 32);
        assert_eq!(team(132), 64);
        assert_eq!(team(1024), 256);
        assert_eq!(team(4096), 256);
        assert_eq!(team(5376), 352);
        assert_eq!(team(8192), 512);
        assert_eq!(team(1 << 20), 512);
    }

    #[test]
    fn threads_cover_every_column_and_row() {
        for (columns, rows) in [(1, 1), (3, 5), (64, 7), (1000, 2), (1, 100_000)] {
            let (groups, threads) = cover(columns, rows);
            assert!(groups[0] * threads[0] >= columns && groups[1] * threads[1] >= rows);
            assert!(threads.iter().product::<usize>() <= ELEMENTWISE_THREADS);
        }
    }
}
