//! Which flows are meant, from attributes as the kernel writes them.

use super::{FILTER, Family, Flows, ID, ORIGINAL, Transport, ZONE, filter, is_of, key};

fn attribute(number: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).expect("a short attribute");
    let mut bytes = [length.to_ne_bytes(), number.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn flow(protocol: u8, port: u16) -> Vec<u8> {
    let ports = [attribute(1, &[protocol]), attribute(2, &[0x12, 0x34]), attribute(3, &port.to_be_bytes())];
    let tuple = [attribute(0x8001, &attribute(1, &[10, 0, 0, 1])), attribute(0x8002, &ports.concat())];
    attribute(0x8000 | ORIGINAL, &tuple.concat())
}

#[test]
fn only_flows_to_the_port_are_meant() {
    let flows = Flows { family: Family::Ip, transport: Transport::Udp, destination_ports: &[9, 53] };
    assert!(is_of(&flow(17, 53), flows));
    for other in [flow(17, 54), flow(6, 53), Vec::new(), vec![9, 0, 1]] {
        assert!(!is_of(&other, flows), "{other:?}");
    }
}

#[test]
fn an_entry_is_named_by_its_flow_zone_and_number() {
    let (named, rest) =
        ([flow(17, 53), attribute(ID, &[1; 4]), attribute(ZONE, &[0, 7])], attribute(3, &[8; 4]));
    let all = [named[0].clone(), rest, named[1].clone(), named[2].clone()].concat();
    assert_eq!(key(&all), named.concat());
}

#[test]
fn flows_are_chosen_by_protocol_and_port() {
    let ports = [attribute(1, &[17]), attribute(3, &53_u16.to_be_bytes())].concat();
    let chosen = [
        attribute(0x8000 | ORIGINAL, &attribute(0x8002, &ports)),
        attribute(0x8000 | FILTER, &attribute(1, &40_u32.to_ne_bytes())),
    ];
    assert_eq!(filter(Transport::Udp, 53), chosen.concat());
}
