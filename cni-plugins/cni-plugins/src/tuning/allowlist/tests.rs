//! What a list allows.

use super::check_with;

fn check(list: &str, names: &[&str]) -> Result<(), cni::ErrorReply> {
    check_with(list, &names.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect())
}

#[test]
fn a_line_allows_whatever_it_is_found_in() {
    let list = "  ^net\\.ipv4\\.conf\\.[a-z0-9]*\\.arp_filter$\n\nsomaxconn\n";
    // Letters of the other case are others.
    assert!(check(list, &["net.ipv4.conf.IFNAME.arp_filter"]).is_err());
    for name in ["net.ipv4.conf.eth0.arp_filter", "net.core.somaxconn"] {
        assert_eq!(check(list, &[name]), Ok(()), "{name}");
    }
    let error = check(list, &["net.core.somaxconn", "net.ipv4.ip_forward"]).expect_err("not on the list");
    assert_eq!(
        error.msg,
        "Sysctl net.ipv4.ip_forward is not allowed. Only the following sysctls are allowed: \
         [^net\\.ipv4\\.conf\\.[a-z0-9]*\\.arp_filter$ somaxconn]"
    );
    assert_eq!(check("", &[]), Ok(()));
    assert!(check("", &["net.core.somaxconn"]).is_err());
}

#[test]
fn a_line_that_is_no_expression_is_named() {
    let error = check("a\n(", &[]).expect_err("no expression");
    assert!(error.msg.contains(r#"allowlist.conf: "(": "#), "{error}");
}
