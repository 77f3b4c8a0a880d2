//! The daemon against a server of the test's own: answers that a real one does not give at will.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    path::PathBuf,
    sync::mpsc::channel,
    thread,
};

use dhcproto::{
    Decodable, Encodable,
    v4::{DhcpOption, Message, MessageType, Opcode, OptionCode},
};
use linux::clock;
use serde_json::{Value, json};

use super::{LIMIT, Process, SERVER_PORT, config, kept, lan};
use crate::host::{
    dhcp::trouble::{attach, times_told, told, wait_until_told},
    node::{Call, Container, Node},
};

const CLIENT_PORT: u16 = 68;
const NETWORK_BROADCAST: Ipv4Addr = Ipv4Addr::new(10, 55, 0, 255);
/// The bridge's address, where it is reached.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 55, 0, 1);
/// One that nobody has a lease of.
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 55, 0, 2);
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

/// Whether it asks for more time.
fn is_extension(question: &Message) -> bool {
    question.opts().has_msg_type(MessageType::Request) && question.ciaddr() == ADDRESS
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

#[test]
fn a_dhcp_address_that_comes_after_its_plugin_is_given_back() {
    let node = Node::new();
    let (tell, told_of) = channel();
    let (allow, allowed) = channel();
    serve(move |question| {
        if question.opts().has_msg_type(MessageType::Request) {
            tell.send(MessageType::Request).expect("the test listens");
            allowed.recv().expect("the test says when");
        }
        if question.opts().has_msg_type(MessageType::Release) && question.ciaddr() == ADDRESS {
            tell.send(MessageType::Release).expect("the test listens");
        }
        give(question)
    });
    let _daemon = told(&node, &[]);
    let a = Container::new("a");
    let config = config(&node);
    attach(&a);
    let plugin = Process(Call::new("ADD", &config, &a).start("dhcp"));
    assert_eq!(told_of.recv_timeout(LIMIT), Ok(MessageType::Request));
    plugin.kill();
    wait_until_told(&node, "the plugin ended before its answer");
    allow.send(()).expect("the server waits");
    assert_eq!(told_of.recv_timeout(LIMIT), Ok(MessageType::Release));
    assert_eq!(Call::new("DEL", &config, &a).run("dhcp"), Ok(Value::Null));
    assert_eq!(kept(&node), 0);
}

/// An attachment whose daemon was killed; the next one finds its lease to be renewed, rebound and over at these seconds since the boot.
fn attach_and_kill(node: &Node, container: &Container, times: [u64; 3]) {
    let daemon = told(node, &[]);
    Call::new("ADD", &config(node), container).run("bridge").expect("an attachment");
    daemon.kill();
    let mut held = held(node);
    for (name, time) in ["renew_at", "rebind_at", "expire_at"].into_iter().zip(times) {
        held["lease"][name] = time.into();
    }
    fs::write(file(node), held.to_string()).expect("the file");
}

/// The only lease, whose file is replaced by a rename.
fn file(node: &Node) -> PathBuf {
    let files = fs::read_dir(node.path("dhcp")).expect("the leases");
    let mut paths = files.map(|file| file.expect("a file").path());
    paths.find(|path| path.extension().is_some_and(|end| end == "json")).expect("one")
}

fn held(node: &Node) -> Value {
    serde_json::from_slice(&fs::read(file(node)).expect("the file")).expect("a lease")
}

/// The lease is one of now, and its link was never told down.
fn wait_until_extended(node: &Node, container: &Container) {
    harness::wait::until("the lease lasts", LIMIT, || {
        let told = fs::read_to_string(node.path("told")).expect("the daemon's words");
        if held(node)["lease"]["renew_at"] != 1 { Ok(()) } else { Err(told) }
    });
    assert!(container.link("eth0").expect("the link").up);
    assert_eq!(times_told(node, "was refused"), 0);
}

/// Of a lease that is due, has to be extended by anybody, or is over.
fn stages() -> [[u64; 3]; 3] {
    let later = clock::since_boot() + 1000;
    [[1, later, 2 * later], [1, 1, later], [1, 1, 1]]
}

#[test]
fn a_dhcp_refusal_of_a_stranger_does_not_end_a_lease() {
    let node = Node::new();
    serve(|question| {
        let mut answers = give(question);
        if is_extension(question) {
            answers.insert(0, answer(question, MessageType::Nak, STRANGER));
        }
        answers
    });
    let [renewing, rebinding, _] = stages();
    for times in [renewing, rebinding] {
        let a = Container::new("a");
        attach_and_kill(&node, &a, times);
        let _daemon = told(&node, &[]);
        wait_until_extended(&node, &a);
        assert_eq!(Call::new("DEL", &config(&node), &a).run("bridge"), Ok(Value::Null));
    }
}

#[test]
fn a_dhcp_refusal_that_nobody_overrules_ends_a_lease() {
    let node = Node::new();
    serve(|question| match is_extension(question) {
        true => vec![answer(question, MessageType::Nak, SERVER)],
        false => give(question),
    });
    let [renewing, rebinding, _] = stages();
    for times in [renewing, rebinding] {
        let a = Container::new("a");
        attach_and_kill(&node, &a, times);
        let _daemon = told(&node, &[]);
        wait_until_told(&node, "was refused");
        harness::wait::until("the link goes down", LIMIT, || match a.link("eth0").expect("the link").up {
            true => Err("it is up".to_owned()),
            false => Ok(()),
        });
        assert_eq!(Call::new("DEL", &config(&node), &a).run("bridge"), Ok(Value::Null));
    }
}

#[test]
fn a_dhcp_lease_that_expired_is_asked_for_anew_after_a_refusal() {
    let node = Node::new();
    let (send, asked) = channel();
    serve(move |question| {
        if is_extension(question) {
            return vec![answer(question, MessageType::Nak, SERVER)];
        }
        if let Some(DhcpOption::RequestedIpAddress(address)) =
            question.opts().get(OptionCode::RequestedIpAddress)
            && question.opts().has_msg_type(MessageType::Discover)
        {
            send.send(*address).expect("the test listens");
        }
        give(question)
    });
    let a = Container::new("a");
    let [.., over] = stages();
    attach_and_kill(&node, &a, over);
    let _daemon = told(&node, &[]);
    wait_until_extended(&node, &a);
    assert_eq!(asked.recv_timeout(LIMIT), Ok(ADDRESS));
    assert_eq!(Call::new("DEL", &config(&node), &a).run("bridge"), Ok(Value::Null));
}

#[test]
fn a_dhcp_route_without_a_router_leads_to_the_link() {
    let node = Node::new();
    serve(|question| {
        let mut answers = give(question);
        for answer in &mut answers {
            let network = "192.168.7.0/24".parse().expect("a network");
            let routes = vec![(network, Ipv4Addr::UNSPECIFIED)];
            answer.opts_mut().insert(DhcpOption::Router(vec![SERVER]));
            answer.opts_mut().insert(DhcpOption::ClasslessStaticRoute(routes));
        }
        answers
    });
    let _daemon = told(&node, &[]);
    let a = Container::new("a");
    let config = config(&node);
    let result = Call::new("ADD", &config, &a).run("bridge").expect("an attachment");
    let route = json!({"dst": "192.168.7.0/24", "gw": "0.0.0.0", "priority": 50, "scope": 253});
    assert_eq!(result["routes"], json!([route]));
    let state = a.state();
    assert!(state.contains(&"route 192.168.7.0/24 via None on eth0 table 254".to_owned()), "{state:?}");
    let mut checked = config.clone();
    checked["prevResult"] = result;
    assert_eq!(Call::new("CHECK", &checked, &a).run("bridge"), Ok(Value::Null));
    assert_eq!(Call::new("DEL", &config, &a).run("bridge"), Ok(Value::Null));
}
