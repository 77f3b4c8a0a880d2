use super::*;

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn links_of_default_routes_are_found_once() {
    let listed = "default via 192.168.1.1 dev wlan0 proto dhcp src 192.168.1.7 metric 600 \n\
                  default dev ppp0 scope link\ndefault via 192.168.1.2 dev wlan0 metric 700\n";
    assert_eq!(default_links(listed), set(&["ppp0", "wlan0"]));
    assert_eq!(default_links(""), set(&[]));
}

#[test]
fn what_was_switched_is_read_from_the_table() {
    let listed = "table ip orlop {\n\tcomment \"forwarding was off: eth0 wlan0\"\n\tchain leave {\n\t}\n}";
    assert_eq!(switched(listed), set(&["eth0", "wlan0"]));
    assert_eq!(switched("table ip orlop {\n\tcomment \"forwarding was off: \"\n}"), set(&[]));
    // A table that somebody made by hand.
    assert_eq!(switched("table ip orlop {\n}"), set(&[]));
}

#[test]
fn the_script_says_what_it_switches_and_refuses_what_it_cannot_remember() {
    let script = script(&set(&["eth0", "wlan0"])).expect("a script");
    assert_eq!(switched(&script), set(&["eth0", "wlan0"]));
    assert!(script.contains("ip saddr 10.85.0.0/24 ip daddr != 10.85.0.0/24 masquerade"), "{script}");
    let many: BTreeSet<String> = (0..20).map(|number| format!("uplink{number}")).collect();
    assert!(super::script(&many).is_err());
}
