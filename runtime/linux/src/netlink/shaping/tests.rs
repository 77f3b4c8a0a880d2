//! The numbers of a token bucket.

use rtnetlink::packet_core::Emitable;

use super::TokenBucket;

#[test]
fn a_bucket_is_what_tc_makes_of_the_same_limits() {
    // tc qdisc add … tbf rate 1000kbit burst 100kb latency 25ms
    let bucket = TokenBucket::new(125_000, 102_400, 25_000).expect("a rate");
    assert_eq!(bucket, TokenBucket { rate: 125_000, limit: 105_525, buffer: 12_800_000 });
    assert_eq!(TokenBucket::new(0, 1, 1), None);
}

#[test]
fn a_bucket_survives_the_message() {
    for rate in [1, 125_000, u64::from(u32::MAX) + 1] {
        let bucket = TokenBucket::new(rate, 1 << 20, 25_000).expect("a rate");
        let options = bucket.options();
        let mut bytes = vec![0; options.as_slice().buffer_len()];
        options.as_slice().emit(&mut bytes);
        assert_eq!(TokenBucket::parse(&bytes), Some(bucket));
        assert_eq!(TokenBucket::parse(&bytes[..20]), None);
    }
    assert_eq!(TokenBucket::parse(&[]), None);
}
