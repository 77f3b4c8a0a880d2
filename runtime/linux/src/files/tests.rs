use std::path::PathBuf;

use super::*;

#[test]
fn the_last_whole_line_counts() {
    let path = std::env::temp_dir().join(format!("orlop-lines-{}", std::process::id()));
    let last = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        lines_from_last(&bytes).find(|line| line.ends_with(b"}")).map(<[u8]>::to_vec)
    };
    append_line(&path, b"{1}").unwrap();
    append_line(&path, b"{2}").unwrap();
    assert_eq!(last(&path).unwrap(), b"{2}");

    // What a power cut left of a line, if only zeros, is no line, and spoils neither the one before nor the next.
    let whole = fs::read(&path).unwrap().len() as u64;
    append_line(&path, b"{3}").unwrap();
    let set_length = |length| File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
    for cut in (whole..whole + 4).rev() {
        set_length(cut);
        assert_eq!(last(&path).unwrap(), b"{2}", "cut to {cut}");
    }
    set_length(whole + 3);
    assert_eq!(last(&path).unwrap(), b"{2}", "zeros");
    append_line(&path, b"{4}").unwrap();
    assert_eq!(last(&path).unwrap(), b"{4}");
    fs::remove_file(&path).unwrap();
}

#[test]
fn a_directory_is_spread_where_the_file_system_can_do_that() {
    const EXT4: i64 = 0xef53;
    for place in [PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/tmp"), "/dev/shm".into()] {
        let path = place.join(format!("orlop-spread-{}/pods", std::process::id()));
        make_spread_directory(&path).unwrap();
        make_spread_directory(&path).unwrap();
        if rustix::fs::statfs(&path).unwrap().f_type == EXT4 {
            assert!(ioctl_getflags(File::open(&path).unwrap()).unwrap().contains(IFlags::TOPDIR));
        }
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
}
