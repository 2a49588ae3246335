//! Half-precision numbers as bits, one at a time: for the portable lanes and the repacking.

/// The value of an IEEE 754 binary16.
pub(super) fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let rest = u32::from(bits & 0x7fff);
    let magnitude = match rest {
        // Infinities and NaNs keep their payload.
        0x7c00.. => 0x7f80_0000 | ((rest & 0x3ff) << 13),
        0x0400.. => (rest << 13) + (112 << 23),
        // Subnormal: a multiple of 2^-24, exact in f32.
        _ => (rest as f32 * 2f32.powi(-24)).to_bits(),
    };
    f32::from_bits(sign | magnitude)
}

/// The nearest IEEE 754 binary16, ties to even; too large values become infinite.
#[cfg(test)]
pub(super) fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let rest = bits & 0x7fff_ffff;
    let magnitude = match rest {
        0x7f80_0001.. => 0x7e00 | ((rest >> 13) & 0x3ff) as u16,
        // 65520 and above round to infinity.
        0x477f_f000.. => 0x7c00,
        0x3880_0000.. => {
            let odd = (rest >> 13) & 1;
            ((rest - (112 << 23) + 0x0fff + odd) >> 13) as u16
        }
        // Subnormal: adding 0.5, whose last place is 2^-24, does the rounding.
        _ => ((f32::from_bits(rest) + 0.5).to_bits() - 0.5f32.to_bits()) as u16,
    };
    sign | magnitude
}

/// The value of a bfloat16: the upper half of an `f32`.
pub(super) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_comes_back() {
        for bits in 0..=u16::MAX {
            let x = f16_to_f32(bits);
            if x.is_nan() {
                assert!(f16_to_f32(f32_to_f16(x)).is_nan());
            } else {
                assert_eq!(f32_to_f16(x), bits);
            }
        }
    }

    #[test]
    fn rounds_halves_to_even() {
        assert_eq!(f32_to_f16(2049.0), f32_to_f16(2048.0));
        assert_eq!(f32_to_f16(2051.0), f32_to_f16(2052.0));
        assert_eq!(f32_to_f16(65519.0), 0x7bff);
        assert_eq!(f32_to_f16(65520.0), 0x7c00);
        assert_eq!(f32_to_f16(2f32.powi(-25)), 0);
        assert_eq!(f32_to_f16(2f32.powi(-25) * 1.01), 1);
    }
}
