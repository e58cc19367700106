//! Sparse attention patterns: which earlier positions each position attends to (§B.1). They take
//! the place of a stored attention mask.
//!
//! [`Pattern::attends`] is the only definition of the keys that a query attends to. The kernels'
//! block plans ([`Pattern::plan`]) are derived from it, and the layout of the KV cache
//! ([`Pattern::cache_row`]) is tested against it. [`Layout`] assigns a pattern to each layer.
//!
//! Terms: the *stream* is `text_len` text positions followed by `grid²` image positions. Image
//! positions are numbered in raster order. A *query* is the position that attends, a *key* the
//! position that is attended to.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use tessera_kernels::AttentionPlan;

use super::PriorConfig;

/// Which image positions an image position attends to. It always attends to itself and never to
/// later positions.
///
/// In every pattern text is causal, and every image position attends to all of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// Attends to all earlier image positions.
    Causal,
    /// Attends to the previous `grid` positions in raster order, back to the same column of the row
    /// above.
    Row,
    /// Attends to the positions in the same column of all rows above.
    Column,
    /// Attends to the causal half of the `kernel` × `kernel` neighbourhood around the position.
    Conv {
        /// The side of the neighbourhood; it must be odd.
        kernel: usize,
        /// What the neighbourhood contains beyond the left and right edge of the grid.
        wrap: Wrap,
    },
}

/// How a convolutional neighbourhood wraps at the edge of a row.
///
/// The paper says "wrap-around" (§B.1, figure 11) without defining it; these are two readings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wrap {
    /// The neighbourhood consists of offsets in raster order: past the end of a row it continues in
    /// the next row. This is the default, because the paper draws the row pattern in the same way.
    /// The mask then depends only on `query - key`.
    #[default]
    Flat,
    /// Columns are counted modulo the grid's side: past the end of a row the neighbourhood
    /// continues at the beginning of the same row.
    Columns,
}

/// The name of a pattern in a [`Layout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PatternName {
    /// The name of [`Pattern::Causal`].
    Causal,
    /// The name of [`Pattern::Row`].
    Row,
    /// The name of [`Pattern::Column`].
    Column,
    /// The name of [`Pattern::Conv`] with the config's `conv_kernel` and `conv_wrap`.
    Conv,
}

/// Which pattern each layer uses: `cycle` is repeated from the first layer on, and the last layer
/// uses `last`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// The patterns of the first layers. They are repeated for the layers after these, except for
    /// the last layer.
    pub cycle: Vec<PatternName>,
    /// The pattern of the last layer.
    pub last: PatternName,
}

impl Default for Layout {
    /// The paper's layout (§B.1): every fourth layer from the second attends along columns, the
    /// last is convolutional, all others attend along rows. 64 layers have 47 row, 16 column and
    /// 1 convolutional pattern.
    fn default() -> Layout {
        let [row, column] = [PatternName::Row, PatternName::Column];
        Layout { cycle: vec![row, column, row, row], last: PatternName::Conv }
    }
}

impl Layout {
    /// The maximum number of patterns in a cycle.
    const MAX_CYCLE: usize = 1 << 16;

    /// Checks that the cycle is neither empty nor longer than `MAX_CYCLE` patterns.
    pub fn check(&self) -> Result<()> {
        let n = self.cycle.len();
        let most = Self::MAX_CYCLE;
        ensure!((1..=most).contains(&n), "prior.layout.cycle has {n} patterns: wanted 1 to {most}");
        Ok(())
    }

    /// Returns the pattern of layer `layer`, counted from 1, of a prior with this config.
    pub fn pattern(&self, layer: usize, config: &PriorConfig) -> Pattern {
        let name = match layer == config.n_layers {
            true => self.last,
            false => self.cycle[(layer - 1) % self.cycle.len()],
        };
        match name {
            PatternName::Causal => Pattern::Causal,
            PatternName::Row => Pattern::Row,
            PatternName::Column => Pattern::Column,
            PatternName::Conv => Pattern::Conv { kernel: config.conv_kernel, wrap: config.conv_wrap },
        }
    }
}

impl Pattern {
    /// Returns whether stream position `query` attends to stream position `key`: the attention mask
    /// at (`query`, `key`).
    pub fn attends(self, query: usize, key: usize, text_len: usize, grid: usize) -> bool {
        match (query < text_len, key < text_len) {
            (true, true) => key <= query,
            (true, false) => false,
            (false, true) => true,
            (false, false) => self.attends_in_image(query - text_len, key - text_len, grid),
        }
    }

    /// Returns whether image position `query` attends to image position `key` in a grid of
    /// `grid` × `grid` positions.
    pub fn attends_in_image(self, query: usize, key: usize, grid: usize) -> bool {
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

    /// Returns the number of image positions that the KV cache of a layer must hold during
    /// sampling. Older positions can be overwritten, because no later query attends to them.
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

    /// Returns the row of the KV cache that holds image position `index`. The column pattern stores
    /// the grid column by column, so that the keys of a query are contiguous. The other patterns
    /// use the cache as a ring buffer.
    pub fn cache_row(self, index: usize, grid: usize) -> usize {
        match self {
            Pattern::Column => index % grid * grid + index / grid,
            Pattern::Causal | Pattern::Row | Pattern::Conv { .. } => index % self.cache_rows(grid),
        }
    }

    /// Returns the block plan of the attention kernel for the first `t` stream positions. The
    /// kernel processes positions in an order in which the keys of a block of queries are
    /// contiguous: column by column for the column pattern, in stream order for the others.
    pub fn plan(self, config: &PriorConfig, t: usize) -> AttentionPlan {
        let (text, grid) = (config.text_len, config.grid);
        // Maps an index in kernel order to an image position.
        let cell = |index: usize| match self {
            Pattern::Column => index % grid * grid + index / grid,
            Pattern::Causal | Pattern::Row | Pattern::Conv { .. } => index,
        };
        let image = (0..grid * grid).map(|index| text + cell(index));
        let order = (0..text).chain(image).filter(|&position| position < t).collect();
        AttentionPlan::new(order, |query, key| self.attends(query, key, text, grid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_query_have_distinct_cache_rows() {
        let grid = 6;
        let conv = [Wrap::Flat, Wrap::Columns].map(|wrap| Pattern::Conv { kernel: 5, wrap });
        for pattern in [Pattern::Causal, Pattern::Row, Pattern::Column].into_iter().chain(conv) {
            let mut kept = vec![usize::MAX; pattern.cache_rows(grid)];
            for query in 0..grid * grid {
                kept[pattern.cache_row(query, grid)] = query;
                for key in (0..=query).filter(|&key| pattern.attends_in_image(query, key, grid)) {
                    assert_eq!(
                        kept[pattern.cache_row(key, grid)],
                        key,
                        "{pattern:?}: {query} attends to {key}"
                    );
                }
            }
        }
        assert_eq!(Pattern::Row.cache_rows(32), 33);
    }

    /// Draws the image part of the mask on a 4×4 grid: one line per query, with `#` at the keys
    /// that it attends to.
    fn drawing(pattern: Pattern) -> String {
        let row = |q| {
            (0..16).map(|k| if pattern.attends_in_image(q, k, 4) { '#' } else { '.' }).collect::<String>()
        };
        (0..16).map(row).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn row_attends_back_to_the_same_column_of_the_row_above() {
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
    fn column_attends_straight_up() {
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
    fn conv_3_attends_to_offsets_0_1_3_4_5() {
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
        let keys = |query| (0..16).filter(|&key| pattern.attends_in_image(query, key, 4)).collect::<Vec<_>>();
        // Position 5 is not at an edge: its keys are those of `Wrap::Flat`.
        assert_eq!(keys(5), [0, 1, 2, 4, 5]);
        // Position 8 begins a row: it also attends to 7, the end of the row above.
        assert_eq!(keys(8), [4, 5, 7, 8]);
        // Position 11 ends a row: it also attends to 8 and 4, the beginnings of its row and of the
        // row above.
        assert_eq!(keys(11), [4, 6, 7, 8, 10, 11]);
    }

    #[test]
    fn text_is_causal_and_image_positions_attend_to_all_text() {
        let row = |q| {
            (0..6).map(|k| if Pattern::Column.attends(q, k, 3, 2) { '#' } else { '.' }).collect::<String>()
        };
        let drawn: Vec<String> = (0..6).map(row).collect();
        assert_eq!(drawn, ["#.....", "##....", "###...", "####..", "###.#.", "####.#"]);
    }

    #[test]
    fn sixty_four_layers_hold_47_rows_16_columns_1_conv() {
        let config = PriorConfig::paper();
        let layers: Vec<Pattern> = (1..=64).map(|i| config.layout.pattern(i, &config)).collect();
        let count = |p| layers.iter().filter(|&&layer| layer == p).count();
        assert_eq!(layers[..4], [Pattern::Row, Pattern::Column, Pattern::Row, Pattern::Row]);
        let conv = Pattern::Conv { kernel: 11, wrap: Wrap::Flat };
        assert_eq!([count(Pattern::Row), count(Pattern::Column), count(conv)], [47, 16, 1]);
        let keys = (0..1024).filter(|&k| layers[63].attends_in_image(1000, k, 32)).count();
        assert_eq!(keys, 61);
    }

    #[test]
    fn a_layout_repeats_its_cycle_up_to_the_last_layer() {
        let layout: Layout =
            serde_json::from_str::<Layout>(r#"{ "cycle": ["column", "causal"], "last": "row" }"#).unwrap();
        let config = PriorConfig { n_layers: 5, layout, ..crate::prior::tests::config() };
        let layers: Vec<Pattern> = (1..=5).map(|layer| config.layout.pattern(layer, &config)).collect();
        let [column, causal] = [Pattern::Column, Pattern::Causal];
        assert_eq!(layers, [column, causal, column, causal, Pattern::Row]);
        assert!(serde_json::from_str::<Layout>(r#"{ "cycle": ["diagonal"], "last": "row" }"#).is_err());
        let empty = Layout { cycle: Vec::new(), ..Layout::default() };
        let error = PriorConfig { layout: empty, ..config }.check().unwrap_err().to_string();
        assert!(error.contains("prior.layout.cycle has 0 patterns"), "{error}");
    }
}
