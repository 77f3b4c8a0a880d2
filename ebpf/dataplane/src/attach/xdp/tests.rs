use super::*;

#[test]
fn links_whose_packets_may_lack_checksums_are_refused() {
    const WITH_HEADER: Option<u32> = Some(0x5002);
    const WITHOUT: Option<u32> = Some(0x1002);
    let judged = |driver, flags: Option<u32>| match judge(driver, || flags, Acceleration::Native) {
        Ok(Place::Driver) => "asked",
        Ok(Place::Tunnel) => "left out",
        Err(Refusal::PartialChecksums { .. }) => "partial",
        Err(Refusal::Bond) => "bond",
        Err(other) => panic!("{other}"),
    };
    let links = [
        ("veth", None, "partial"),
        ("vif", None, "partial"),
        ("tun", WITH_HEADER, "partial"),
        ("tun", None, "partial"),
        ("tun", WITHOUT, "asked"),
        ("virtio_net", None, "asked"),
        ("ena", None, "asked"),
        ("bridge", None, "asked"),
        ("bonding", None, "bond"),
        ("vxlan", None, "left out"),
    ];
    for (driver, flags, wanted) in links {
        assert_eq!(judged(driver, flags), wanted, "{driver} {flags:?}");
    }
    let even = |driver| judge(driver, || WITH_HEADER, Acceleration::EvenVeth);
    assert_eq!(even("veth").unwrap(), Place::Driver);
    assert!(even("tun").is_err() && even("vif").is_err());
}
