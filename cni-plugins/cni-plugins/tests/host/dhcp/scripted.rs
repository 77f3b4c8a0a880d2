//! The daemon against a server of the test's own: answers that a real one does not give at will.

use std::{
    net::{Ipv4Addr, UdpSocket},
    thread,
};

use dhcproto::{
    Decodable, Encodable,
    v4::{DhcpOption, Message, MessageType, Opcode},
};
use serde_json::Value;

use super::{SERVER_PORT, config, lan};
use crate::host::{
    dhcp::trouble::told,
    node::{Call, Container, Node},
};

const CLIENT_PORT: u16 = 68;
const NETWORK_BROADCAST: Ipv4Addr = Ipv4Addr::new(10, 55, 0, 255);
/// The bridge's address, where it is reached.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 55, 0, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 55, 0, 20);

/// A bridge with a server that gives these answers. The thread ends with the test's process.
fn serve(mut answers: impl FnMut(&Message) -> Vec<Message> + Send + 'static) {
    lan();
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SERVER_PORT)).expect("a socket");
    socket.set_broadcast(true).expect("its option");
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok(length) = socket.recv(&mut buffer) {
            let question = Message::from_bytes(&buffer[..length]).expect("a message");
            for answer in answers(&question) {
                let bytes = answer.to_vec().expect("bytes");
                socket.send_to(&bytes, (NETWORK_BROADCAST, CLIENT_PORT)).expect("it is sent");
            }
        }
    });
}

fn answer(question: &Message, kind: MessageType, server: Ipv4Addr) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut answer = Message::new_with_id(question.xid(), none, ADDRESS, none, none, question.chaddr());
    answer.set_opcode(Opcode::BootReply);
    for option in [
        DhcpOption::MessageType(kind),
        DhcpOption::ServerIdentifier(server),
        DhcpOption::SubnetMask([255, 255, 255, 0].into()),
        DhcpOption::AddressLeaseTime(3600),
    ] {
        answer.opts_mut().insert(option);
    }
    answer
}

/// What a server does for a client without a lease.
fn give(question: &Message) -> Vec<Message> {
    let kind = match question.opts().msg_type() {
        Some(MessageType::Discover) => MessageType::Offer,
        Some(MessageType::Request) => MessageType::Ack,
        _ => return Vec::new(),
    };
    vec![answer(question, kind, SERVER)]
}

#[test]
fn a_dhcp_request_has_the_number_of_the_offer() {
    let node = Node::new();
    let mut offered = None;
    serve(move |question| {
        if question.opts().has_msg_type(MessageType::Discover) {
            offered = Some(question.xid());
        }
        if offered == Some(question.xid()) { give(question) } else { Vec::new() }
    });
    let _daemon = told(&node, &["-resendtimeout=3s"]);
    let a = Container::new("a");
    let config = config(&node);
    Call::new("ADD", &config, &a).run("bridge").expect("an attachment");
    assert_eq!(Call::new("DEL", &config, &a).run("bridge"), Ok(Value::Null));
}
