//! Shares of many and of few files.

use super::{OWN_FILES, RENEWAL_FILES, Shares};

#[test]
fn all_together_fit_the_limit_of_files() {
    let of = |files| {
        let shares = Shares::of(files);
        (shares.readings, shares.adds, shares.renewals)
    };
    assert_eq!(of(u64::MAX), (8, 512, 256));
    assert_eq!(of(1024), (8, 66, 165));
    assert_eq!(of(0), (1, 1, 1));
    for files in [64, 256, 1024, 4096, 1 << 20] {
        let shares = Shares::of(files);
        let searches = (shares.adds + shares.releases + shares.renewals) as u64;
        let connections = (shares.readings + shares.open_adds + shares.open_others) as u64;
        let wanted = OWN_FILES + searches * RENEWAL_FILES + connections;
        assert!(wanted <= files, "{wanted} of {files}");
    }
}
