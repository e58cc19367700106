//! An attention pattern is a value, not a mask (paper §B.1): which keys may query `i` see?
//!
//! The kernels' plans are derived from [`Pattern::sees`], and nothing else knows the layout.

use serde::{Deserialize, Serialize};
use tessera_kernels::AttentionPlan;

use super::PriorConfig;

/// Which image states an image state may look at. Text is causal, and every image state sees all text, in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// All earlier image states, and itself.
    Causal,
    /// Itself and the `grid` states before it in raster order: back to the same column of the previous row.
    Row,
    /// Itself and the states above it.
    Column,
    /// The causal half of a `kernel` × `kernel` neighbourhood.
    Conv {
        /// Side of the neighbourhood, odd.
        kernel: usize,
        /// What lies beyond the end of a row.
        wrap: Wrap,
    },
}

/// Two readings of "wrap-around" at the end of a row (paper §B.1, figure 11 and its caption), which the text does not decide.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wrap {
    /// Flat raster offsets: beyond the end of a row comes the next row, as in the row pattern, whose extent the paper draws so.
    /// The default, because one rule then serves both patterns and a mask is the same for all queries but for its place.
    #[default]
    Flat,
    /// Columns count modulo the grid's side: beyond the end of a row comes its own beginning.
    Columns,
}

impl Pattern {
    /// The paper's layout: the last layer convolutional, every fourth from the second a column, the rest rows.
    ///
    /// `layer` counts from 1. At 64 layers: 47 row, 16 column, 1 convolutional.
    pub fn of_layer(layer: usize, config: &PriorConfig) -> Pattern {
        match layer {
            _ if layer == config.n_layers => {
                Pattern::Conv { kernel: config.conv_kernel, wrap: config.conv_wrap }
            }
            _ if layer % 4 == 2 => Pattern::Column,
            _ => Pattern::Row,
        }
    }

    /// Whether image state `query` may look at image state `key` on a grid `grid` wide.
    pub fn sees_image(self, query: usize, key: usize, grid: usize) -> bool {
        if key > query {
            return false;
        }
        let offset = query - key;
        match self {
            Pattern::Causal => true,
            Pattern::Row => offset <= grid,
            Pattern::Column => offset.is_multiple_of(grid),
            Pattern::Conv { kernel, wrap: Wrap::Flat } => {
                let half = kernel / 2;
                (0..=half).any(|rows| offset.abs_diff(rows * grid) <= half)
            }
            Pattern::Conv { kernel, wrap: Wrap::Columns } => {
                let (half, columns) = (kernel / 2, (query % grid).abs_diff(key % grid));
                query / grid - key / grid <= half && columns.min(grid - columns) <= half
            }
        }
    }

    /// How many image states a decoder must keep: those that a later query may still see.
    pub fn cache_rows(self, grid: usize) -> usize {
        let cells = grid * grid;
        let reach = match self {
            Pattern::Causal | Pattern::Column => cells,
            Pattern::Row => grid,
            Pattern::Conv { kernel, wrap: Wrap::Flat } => kernel / 2 * (grid + 1),
            Pattern::Conv { kernel, wrap: Wrap::Columns } => kernel / 2 * grid + grid - 1,
        };
        cells.min(reach + 1)
    }

    /// Where image state `index` is kept among [`Pattern::cache_rows`]: a column's states side by side, others in turn.
    pub fn cache_row(self, index: usize, grid: usize) -> usize {
        match self {
            Pattern::Column => index % grid * grid + index / grid,
            _ => index % self.cache_rows(grid),
        }
    }

    /// Whether stream position `query` may look at position `key`: `text_len` text states, then image states.
    pub fn sees(self, query: usize, key: usize, text_len: usize, grid: usize) -> bool {
        match (query < text_len, key < text_len) {
            (true, true) => key <= query,
            (true, false) => false,
            (false, true) => true,
            (false, false) => self.sees_image(query - text_len, key - text_len, grid),
        }
    }

    /// What the attention kernel needs to know of it, over the first `t` stream positions.
    pub fn plan(self, config: &PriorConfig, t: usize) -> AttentionPlan {
        let (text, grid) = (config.text_len, config.grid);
        // Down the columns, or along the rows.
        let cell = |place: usize| match self {
            Pattern::Column => place % grid * grid + place / grid,
            _ => place,
        };
        let image = (0..grid * grid).map(|place| text + cell(place));
        let order = (0..text).chain(image).filter(|&position| position < t).collect();
        AttentionPlan::new(order, |query, key| self.sees(query, key, text, grid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prior::Logits;

    #[test]
    fn what_a_query_sees_is_still_kept_in_slots_of_its_own() {
        let grid = 6;
        let conv = [Wrap::Flat, Wrap::Columns].map(|wrap| Pattern::Conv { kernel: 5, wrap });
        for pattern in [Pattern::Causal, Pattern::Row, Pattern::Column].into_iter().chain(conv) {
            let mut kept = vec![usize::MAX; pattern.cache_rows(grid)];
            for query in 0..grid * grid {
                kept[pattern.cache_row(query, grid)] = query;
                for key in (0..=query).filter(|&key| pattern.sees_image(query, key, grid)) {
                    assert_eq!(
                        kept[pattern.cache_row(key, grid)],
                        key,
                        "{pattern:?}: {query} looks at {key}"
                    );
                }
            }
        }
        assert_eq!(Pattern::Row.cache_rows(32), 33);
    }

    /// The image part of a mask on a 4×4 grid: one line a query, `#` where it sees.
    fn drawing(pattern: Pattern) -> String {
        let row =
            |q| (0..16).map(|k| if pattern.sees_image(q, k, 4) { '#' } else { '.' }).collect::<String>();
        (0..16).map(row).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn row_sees_back_to_the_same_column_of_the_previous_row() {
        let drawn = "\
#...............
##..............
###.............
####............
#####...........
.#####..........
..#####.........
...#####........
....#####.......
.....#####......
......#####.....
.......#####....
........#####...
.........#####..
..........#####.
...........#####";
        assert_eq!(drawing(Pattern::Row), drawn);
    }

    #[test]
    fn column_sees_straight_up() {
        let drawn = "\
#...............
.#..............
..#.............
...#............
#...#...........
.#...#..........
..#...#.........
...#...#........
#...#...#.......
.#...#...#......
..#...#...#.....
...#...#...#....
#...#...#...#...
.#...#...#...#..
..#...#...#...#.
...#...#...#...#";
        assert_eq!(drawing(Pattern::Column), drawn);
    }

    #[test]
    fn conv_3_sees_offsets_0_1_3_4_5() {
        let drawn = "\
#...............
##..............
.##.............
#.##............
##.##...........
###.##..........
.###.##.........
..###.##........
...###.##.......
....###.##......
.....###.##.....
......###.##....
.......###.##...
........###.##..
.........###.##.
..........###.##";
        assert_eq!(drawing(Pattern::Conv { kernel: 3, wrap: Wrap::Flat }), drawn);
    }

    #[test]
    fn conv_3_over_columns_reaches_around_the_ends_of_its_rows() {
        let pattern = Pattern::Conv { kernel: 3, wrap: Wrap::Columns };
        let keys = |query| (0..16).filter(|&key| pattern.sees_image(query, key, 4)).collect::<Vec<_>>();
        assert_eq!(keys(5), [0, 1, 2, 4, 5]); // in the middle as flat offsets
        assert_eq!(keys(8), [4, 5, 7, 8]); // the first of a row: the last of the row above
        assert_eq!(keys(11), [4, 6, 7, 8, 10, 11]); // the last: the first of its own row and of the row above
    }

    #[test]
    fn text_is_causal_and_every_image_state_sees_all_text() {
        let row =
            |q| (0..6).map(|k| if Pattern::Column.sees(q, k, 3, 2) { '#' } else { '.' }).collect::<String>();
        let drawn: Vec<String> = (0..6).map(row).collect();
        assert_eq!(drawn, ["#.....", "##....", "###...", "####..", "###.#.", "####.#"]);
    }

    #[test]
    fn sixty_four_layers_hold_47_rows_16_columns_1_conv() {
        let config = PriorConfig {
            text_len: 256,
            text_vocab: 16_384,
            grid: 32,
            image_vocab: 8192,
            d_model: 3968,
            n_layers: 64,
            n_heads: 62,
            conv_kernel: 11,
            conv_wrap: Wrap::Flat,
            logits: Logits::Auto,
        };
        let layers: Vec<Pattern> = (1..=64).map(|i| Pattern::of_layer(i, &config)).collect();
        let count = |p| layers.iter().filter(|&&layer| layer == p).count();
        assert_eq!(layers[..4], [Pattern::Row, Pattern::Column, Pattern::Row, Pattern::Row]);
        let conv = Pattern::Conv { kernel: 11, wrap: Wrap::Flat };
        assert_eq!([count(Pattern::Row), count(Pattern::Column), count(conv)], [47, 16, 1]);
        let keys = (0..1024).filter(|&k| layers[63].sees_image(1000, k, 32)).count();
        assert_eq!(keys, 61);
    }
}
