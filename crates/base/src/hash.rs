//! A hash that is the same in every version of the program.

/// Returns the 64-bit FNV-1a hash of a name. It is the same in every version of the program.
pub fn fnv1a(name: &[u8]) -> u64 {
    name.iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv1a_has_its_published_values() {
        let expected = [0xcbf2_9ce4_8422_2325, 0xaf63_dc4c_8601_ec8c, 0x8594_4171_f739_67e8];
        assert_eq!([&b""[..], b"a", b"foobar"].map(fnv1a), expected);
    }
}
