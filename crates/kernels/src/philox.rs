//! Philox4x32-10, a counter-based random number generator (Salmon et al. 2011). The random bits are
//! a function of a counter and a key, so any thread can compute them where they are used.

use burn::tensor::{DType, Device, Int, Tensor};

/// The number of counters that are processed together, so that loops over them become vector code.
pub(crate) const LANES: usize = 16;

/// One of the four words of each of these counters.
type Word = [u32; LANES];

const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
const ROUNDS: usize = 10;

/// Returns the four words of random bits of each counter.
#[inline(always)]
pub(crate) fn philox(mut counter: [Word; 4], mut key: [u32; 2]) -> [Word; 4] {
    for _ in 0..ROUNDS {
        let [a, b, c, d] = counter;
        let [high_a, low_a] = product(&a, MULTIPLIERS[0]);
        let [high_c, low_c] = product(&c, MULTIPLIERS[1]);
        counter = [
            std::array::from_fn(|lane| high_c[lane] ^ b[lane] ^ key[0]),
            low_c,
            std::array::from_fn(|lane| high_a[lane] ^ d[lane] ^ key[1]),
            low_a,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// Returns the high and the low half of `word · multiplier`.
#[inline(always)]
fn product(word: &Word, multiplier: u32) -> [Word; 2] {
    let wide = |lane: usize| u64::from(word[lane]) * u64::from(multiplier);
    [std::array::from_fn(|lane| (wide(lane) >> 32) as u32), std::array::from_fn(|lane| wide(lane) as u32)]
}

/// Computes [`philox`] with Burn's operations, for other devices. Many of them have no integers of
/// 64 bits, so words are of the dtype U32.
pub(crate) fn philox_composed(mut counter: [Words; 4], mut key: [u32; 2]) -> [Words; 4] {
    for _ in 0..ROUNDS {
        let [a, b, c, d] = counter;
        let [high_a, low_a] = product_composed(a, MULTIPLIERS[0]);
        let [high_c, low_c] = product_composed(c, MULTIPLIERS[1]);
        let mix = |high: Words, word: Words, key: u32| high.bitwise_xor(word).bitwise_xor_scalar(key);
        counter = [mix(high_c, b, key[0]), low_c, mix(high_a, d, key[1]), low_a];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// Words, of the dtype U32.
pub(crate) type Words = Tensor<1, Int>;

/// Computes [`product`] with the products of 16-bit halves, so that nothing exceeds 32 bits.
fn product_composed(word: Words, multiplier: u32) -> [Words; 2] {
    let halves =
        |word: Words| [word.clone().bitwise_right_shift_scalar(16_u32), word.bitwise_and_scalar(0xffff_u32)];
    let [high_factor, low_factor] = [multiplier >> 16, multiplier & 0xffff];
    let [high, low] = halves(word);
    let [carry, low_word] = halves(low.clone() * low_factor);
    let [middle, rest] = halves(high.clone() * low_factor + carry);
    let [carry, middle_word] = halves(low * high_factor + rest);
    [high * high_factor + middle + carry, middle_word.bitwise_left_shift_scalar(16_u32).bitwise_or(low_word)]
}

/// Returns the low and the high words of the `n` counters from `first` on, for [`philox_composed`].
pub(crate) fn counters(first: u64, n: u64, device: &Device) -> [Words; 2] {
    // The low words are consecutive, except where they start again at 0.
    let before_carry = n.min((1 << 32) - (first & u64::from(u32::MAX)));
    let part = |first: u64, n: u64| {
        // A range that is fused with other operations is of I32, whatever dtype is asked for.
        let ordinals = Tensor::<1, Int>::arange(0..n as i64, device).cast(DType::U32);
        let high = ordinals.full_like((first >> 32) as u32);
        [ordinals + first as u32, high]
    };
    let [low, high] = part(first, before_carry);
    if before_carry == n {
        return [low, high];
    }
    let [next_low, next_high] = part(first.wrapping_add(before_carry), n - before_carry);
    [Tensor::cat(vec![low, next_low], 0), Tensor::cat(vec![high, next_high], 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of Random123 (`kat_vectors`, philox4x32 10).
    #[test]
    fn philox_bits_equal_known_answers() {
        let ones = u32::MAX;
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            let bits = philox(counter.map(|word| [word; LANES]), key);
            assert_eq!(bits, expected.map(|word: u32| [word; LANES]));
            let options = (&Device::flex(), DType::U32);
            let words = counter.map(|word| Tensor::<1, Int>::full([3], word, options));
            for (word, expected) in philox_composed(words, key).into_iter().zip(expected) {
                assert!(word.into_data().iter::<u32>().all(|bits| bits == expected));
            }
        }
    }

    #[test]
    fn counters_carry_from_the_low_to_the_high_word() {
        let first = (7 << 32) - 3;
        let [low, high] = counters(first, 5, &Device::flex())
            .map(|words| words.into_data().iter::<u32>().map(u64::from).collect::<Vec<u64>>());
        let numbers: Vec<u64> = low.iter().zip(high).map(|(low, high)| high << 32 | low).collect();
        assert_eq!(numbers, (first..first + 5).collect::<Vec<_>>());
    }
}
