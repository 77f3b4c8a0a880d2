//! Tables for quantities.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{thousandths, units};

#[test]
fn quantities_read_as_upstream_reads_them() {
    for (text, expected_units, expected_thousandths) in [
        ("1", Some(1), Some(1000)),
        ("250m", Some(1), Some(250)),
        ("1500m", Some(2), Some(1500)),
        ("0.5", Some(1), Some(500)),
        (".5", Some(1), Some(500)),
        ("1.", Some(1), Some(1000)),
        ("100u", Some(1), Some(1)),
        ("1Ki", Some(1024), Some(1_024_000)),
        ("1.5Gi", Some(1_610_612_736), Some(1_610_612_736_000)),
        ("2k", Some(2000), Some(2_000_000)),
        ("1e3", Some(1000), Some(1_000_000)),
        ("1E3", Some(1000), Some(1_000_000)),
        ("12e-1", Some(2), Some(1200)),
        ("1E", Some(1_000_000_000_000_000_000), Some(i64::MAX)),
        ("-1", Some(-1), Some(-1000)),
        ("0", Some(0), Some(0)),
        ("", None, None),
        ("abc", None, None),
        ("1Xi", None, None),
        ("1.2.3", None, None),
        ("1-2", None, None),
    ] {
        let quantity = Quantity(text.to_owned());
        assert_eq!(units(&quantity), expected_units, "{text}");
        assert_eq!(thousandths(&quantity), expected_thousandths, "{text}");
    }
}
