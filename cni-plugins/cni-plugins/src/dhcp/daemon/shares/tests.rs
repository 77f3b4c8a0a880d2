//! Shares of many and of few files.

use super::{OWN_FILES, QUESTION_FILES, RENEWAL_FILES, Shares};

#[test]
fn all_together_fit_the_limit_of_files() {
    let of = |files| {
        let Shares { questions, renewals } = Shares::of(files);
        (questions, renewals)
    };
    assert_eq!(of(u64::MAX), (512, 256));
    assert_eq!(of(1024), (124, 165));
    assert_eq!(of(0), (1, 1));
    for files in [64, 256, 1024, 4096, 1 << 20] {
        let (questions, renewals) = of(files);
        let wanted = OWN_FILES + questions as u64 * QUESTION_FILES + renewals as u64 * RENEWAL_FILES;
        assert!(wanted <= files, "{wanted} of {files}");
    }
}
