//! What a change of a packet changes in its CRC-32C (RFC 9260, appendix A): pure. A CRC is linear, so that the rest of the packet need not be
//! looked at: the difference is that of the changed bytes, as far from the end as they are.

/// The polynomial without its first term, bits in reverse.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The polynomial 1, bits in reverse.
const ONE: u32 = 1 << 31;

/// The difference of the CRCs of two packets of `length` bytes that differ in their first four, by `difference`: read, as the CRC is stored, in little-endian
/// order. Without a table, which would be a map of its own for each load of the programs.
#[inline(always)]
pub const fn change(difference: u32, length: u16) -> u32 {
    // By what a register changes when a byte of zero follows: x^8, then the powers of two of that.
    let (mut register, mut power) = (difference, ONE >> 8);
    let mut bit = 0;
    while bit < u16::BITS {
        register = multiply(register, if (length >> bit) & 1 == 1 { power } else { ONE });
        power = multiply(power, power);
        bit += 1;
    }
    register
}

/// Of polynomials over one bit, modulo the CRC's. Without branches, for the verifier.
#[inline(always)]
const fn multiply(one: u32, other: u32) -> u32 {
    let (mut product, mut shifted) = (0, other);
    let mut bit = 0;
    while bit < u32::BITS {
        product ^= shifted & mask(one << bit >> 31);
        shifted = (shifted >> 1) ^ (POLYNOMIAL & mask(shifted & 1));
        bit += 1;
    }
    product
}

/// All bits for 1, none for 0.
#[inline(always)]
const fn mask(bit: u32) -> u32 {
    0_u32.wrapping_sub(bit)
}
