//! Tables for versions.

use super::Version;

#[test]
fn every_version_reads_back() {
    for version in Version::ALL {
        assert_eq!(version.as_str().parse(), Ok(version));
    }
    assert!(Version::ALL.is_sorted());
    assert_eq!(Version::ALL.last(), Some(&Version::NEWEST));
    assert_eq!("".parse(), Ok(Version::V0_1_0));
}

#[test]
fn unknown_versions_are_named() {
    for text in ["1.2.0", "0.3", "v1.0.0", "1.0.0 "] {
        let error = text.parse::<Version>().expect_err(text);
        assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
    }
}

#[test]
fn verbs_appear_with_their_versions() {
    let allowed = |test: fn(Version) -> bool| -> Vec<&str> {
        Version::ALL.into_iter().filter(|version| test(*version)).map(Version::as_str).collect()
    };
    assert_eq!(allowed(Version::has_interfaces), ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    assert_eq!(allowed(Version::has_check), ["0.4.0", "1.0.0", "1.1.0"]);
    assert_eq!(allowed(Version::has_gc_and_status), ["1.1.0"]);
}
