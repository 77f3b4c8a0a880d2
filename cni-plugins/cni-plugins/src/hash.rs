//! Names made from a hash, as the reference plugins make them, so that either finds what the other made. Pure.

use sha2::{Digest, Sha512};

/// `length` characters: the prefix, then hexadecimal digits of the text's SHA-512.
pub(crate) fn name(length: usize, prefix: &str, text: &str) -> String {
    let digits = Sha512::digest(text).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{prefix}{digits}").chars().take(length).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_name_begins_with_its_prefix_and_has_the_length() {
        // printf netabc | sha512sum
        assert_eq!(super::name(15, "bwp", "netabc"), "bwp3ce8a0924fde");
    }
}
