//! Rules against the tool `nft`: what it shows of ours, and that it compiles the same text to the same instructions.

use std::{
    io::Write,
    net::IpAddr,
    process::{Command, Stdio},
    sync::mpsc,
};

use linux::{
    netns,
    nftables::{
        BaseChain, Batch, ChainKind, ConnectionState, Family, Hook, ListedChain, Match, Nftables, Rule,
        Table, Transport,
    },
};

const IP: Table<'_> = Table { family: Family::Ip, name: "t4" };
const IP6: Table<'_> = Table { family: Family::Ip6, name: "t6" };
const INET: Table<'_> = Table { family: Family::Inet, name: "tx" };
const BRIDGE: Table<'_> = Table { family: Family::Bridge, name: "tb" };

fn open() -> Nftables {
    let inside = std::fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim() == "private-host");
    assert!(
        inside,
        "this test changes its host: run it with `cargo xtask test`, which gives it a private one"
    );
    Nftables::open().expect("a socket")
}

/// Feeds `nft`, and returns what it prints.
fn nft(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("nft starts");
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "nft {arguments:?}: {input}");
    String::from_utf8(output.stdout).expect("text")
}

fn network(text: &str) -> ipnetwork::IpNetwork {
    text.parse().expect(text)
}

fn address(text: &str) -> IpAddr {
    text.parse().expect(text)
}

/// Rules, and how `nft` writes and shows them.
fn table() -> Vec<(Table<'static>, Rule, &'static str)> {
    use ConnectionState::{Established, Related};
    use Match::{Is, IsNot};
    let [ip, ip6, inet, bridge] = [IP, IP6, INET, BRIDGE].map(|table| move || Rule::new(table.family));
    vec![
        (INET, inet().destination(Is, network("224.0.0.0/4")).back(), "ip daddr 224.0.0.0/4 return"),
        (INET, inet().destination(Is, network("ff00::/8")).back(), "ip6 daddr ff00::/8 return"),
        (
            INET,
            inet()
                .source(Is, network("192.168.1.1/32"))
                .destination(IsNot, network("192.168.1.0/24"))
                .masquerade(),
            "ip saddr 192.168.1.1 ip daddr != 192.168.1.0/24 masquerade",
        ),
        (
            INET,
            inet()
                .source(Is, network("2001:db8::2/128"))
                .destination(IsNot, network("2001:db8::/52"))
                .masquerade(),
            "ip6 saddr 2001:db8::2 ip6 daddr != 2001:db8::/52 masquerade",
        ),
        (
            INET,
            inet().destination(Is, network("10.0.0.1/32")).connection_state(&[Established, Related]).accept(),
            "ip daddr 10.0.0.1 ct state established,related accept",
        ),
        (INET, inet().destination_translated().accept(), "ct status dnat accept"),
        (INET, inet().go_to("other"), "goto other"),
        (
            INET,
            inet().input_link(Is, "br0").output_link(IsNot, "br0").jump("other"),
            "iifname \"br0\" oifname != \"br0\" jump other",
        ),
        (
            INET,
            inet().mark(Is, 0x2000, 0x2000).masquerade(),
            "meta mark & 0x00002000 == 0x00002000 masquerade",
        ),
        (INET, inet().mark(IsNot, u32::MAX, 7).accept(), "meta mark != 0x00000007 accept"),
        (INET, inet().set_mark_bits(0x2000), "meta mark set meta mark | 0x00002000"),
        (
            INET,
            inet().source_port(Transport::Tcp, IsNot, 22).counter().drop(),
            "tcp sport != 22 counter packets 0 bytes 0 drop",
        ),
        (
            INET,
            inet()
                .destination(Is, network("10.0.0.1/32"))
                .destination_port(Transport::Tcp, Is, 80)
                .dnat(address("10.0.0.2"), 80),
            "ip daddr 10.0.0.1 tcp dport 80 dnat ip to 10.0.0.2:80",
        ),
        (
            IP,
            ip().source(Is, network("0.0.0.0/0")).destination(Is, network("10.0.0.2/32")).masquerade(),
            "ip saddr 0.0.0.0/0 ip daddr 10.0.0.2 masquerade",
        ),
        (
            IP,
            ip().destination(Is, network("192.168.0.2/32"))
                .destination_port(Transport::Tcp, Is, 8083)
                .dnat(address("10.0.0.2"), 83),
            "ip daddr 192.168.0.2 tcp dport 8083 dnat to 10.0.0.2:83",
        ),
        (
            IP,
            ip().destination_port(Transport::Udp, Is, 53).dnat(address("10.0.0.2"), 5353),
            "udp dport 53 dnat to 10.0.0.2:5353",
        ),
        (
            IP,
            ip().destination_port(Transport::Sctp, Is, 5).dnat(address("10.0.0.2"), 6),
            "sctp dport 5 dnat to 10.0.0.2:6",
        ),
        (IP, ip().to_local_address().jump("other"), "fib daddr type local jump other"),
        (
            IP6,
            ip6()
                .destination(Is, network("2001:db8::2/128"))
                .destination_port(Transport::Tcp, Is, 8083)
                .dnat(address("2001:db8::1"), 83),
            "ip6 daddr 2001:db8::2 tcp dport 8083 dnat to [2001:db8::1]:83",
        ),
        (
            IP6,
            ip6().source(Is, network("::/0")).destination(Is, network("2001:db8::2/128")).masquerade(),
            "ip6 saddr ::/0 ip6 daddr 2001:db8::2 masquerade",
        ),
        (BRIDGE, bridge().input_link(Is, "veth1").jump("other"), "iifname \"veth1\" jump other"),
        (
            BRIDGE,
            bridge().ethernet_source(Is, "02:00:00:00:00:01".parse().expect("an address")).back(),
            "ether saddr 02:00:00:00:00:01 return",
        ),
        (BRIDGE, bridge().destination(Is, network("10.1.0.0/16")).drop(), "ip daddr 10.1.0.0/16 drop"),
        (BRIDGE, bridge().carries(Family::Ip6).drop(), "meta protocol ip6 drop"),
        (BRIDGE, bridge().drop(), "drop"),
    ]
}

#[test]
fn rules_are_what_nft_makes_of_their_text() {
    let nftables = open();
    for (index, (table, rule, text)) in table().into_iter().enumerate() {
        let (ours, theirs) = (table.chain("ours"), table.chain("theirs"));
        let mut batch = Batch::new();
        batch.add_table(table, Some("a comment"));
        for chain in [table.chain("other"), ours, theirs] {
            batch.add_chain(chain, None);
        }
        batch.flush_chain(ours);
        batch.add_rule(ours, &rule.comment(format!("rule {index}")).tag(&[9, 0]));
        nftables.commit(&batch).unwrap_or_else(|error| panic!("{text}: {error}"));
        nft(
            &["-f", "-"],
            &format!("flush chain {theirs}\nadd rule {theirs} {text} comment \"rule {index}\"\n"),
        );
        let (ours, theirs) = (nftables.rules(ours).expect("rules"), nftables.rules(theirs).expect("rules"));
        assert_eq!((ours.len(), theirs.len()), (1, 1), "{text}");
        assert_eq!(ours[0].expressions, theirs[0].expressions, "{text}");
        assert_eq!((&ours[0].comment, &ours[0].tag), (&Some(format!("rule {index}")), &Some(vec![9, 0])));
        assert_eq!(theirs[0].tag, None);
        let shown = nft(&["list", "chain", &table.family.to_string(), table.name, "ours"], "");
        let line = shown.lines().nth(2).unwrap_or_default().trim();
        assert_eq!(line, format!("{text} comment \"rule {index}\""));
        // What masquerades or translates may only be called at some hooks, which the whole table has to agree with.
        let mut batch = Batch::new();
        batch.delete_table(table);
        nftables.commit(&batch).expect("the table is deleted");
    }
}

#[test]
fn tables_and_chains_look_like_the_tools() {
    let nftables = open();
    let mut batch = Batch::new();
    batch.add_table(INET, Some("The table"));
    batch.add_chain(INET.chain("checks"), Some("The chain"));
    let nat = BaseChain { kind: ChainKind::Nat, hook: Hook::Postrouting, priority: 100 };
    batch.add_base_chain(INET.chain("postrouting"), nat);
    batch.add_table(BRIDGE, None);
    let early = BaseChain { kind: ChainKind::Filter, hook: Hook::Prerouting, priority: -300 };
    batch.add_base_chain(BRIDGE.chain("PREROUTING"), early);
    // What exists stays as it is.
    for _ in 0..2 {
        nftables.commit(&batch).expect("a transaction");
    }
    let text = nft(&["list", "ruleset"], "");
    nft(&["flush", "ruleset"], "");
    nft(
        &["-f", "-"],
        "table inet tx {
             comment \"The table\"
             chain checks {
                 comment \"The chain\"
             }
             chain postrouting {
                 type nat hook postrouting priority 100; policy accept;
             }
         }
         table bridge tb {
             chain PREROUTING {
                 type filter hook prerouting priority -300; policy accept;
             }
         }\n",
    );
    assert_eq!(text, nft(&["list", "ruleset"], ""));
    for (chain, base) in [("checks", None), ("postrouting", Some(nat))] {
        assert_eq!(nftables.find_chain(INET.chain(chain)).expect("an answer"), Some(ListedChain { base }));
    }
    let found = nftables.find_chain(BRIDGE.chain("PREROUTING")).expect("an answer");
    assert_eq!(found, Some(ListedChain { base: Some(early) }));
    for missing in [INET.chain("nothing"), IP.chain("checks"), IP.chain("nothing")] {
        assert_eq!(nftables.find_chain(missing).expect("an answer"), None, "{missing}");
        assert_eq!(nftables.rules(missing).expect("no rules"), []);
    }
}

#[test]
fn a_transaction_is_done_whole_or_not_at_all() {
    let nftables = open();
    let chain = INET.chain("a");
    let mut batch = Batch::new();
    batch.add_table(INET, None);
    batch.add_chain(chain, None);
    batch.delete_rule(chain, 999);
    batch.add_rule(chain, &Rule::new(INET.family).accept());
    let error = nftables.commit(&batch).expect_err("there is no such rule");
    assert_eq!((error.is_gone(), error.errno()), (true, Some(2)));
    assert_eq!(error.to_string(), "delete rule of inet tx a: No such file or directory (os error 2)");
    assert_eq!(nft(&["list", "ruleset"], ""), "");
    let mut batch = Batch::new();
    batch.flush_chain(chain);
    let error = nftables.commit(&batch).expect_err("there is no such chain");
    assert_eq!(error.to_string(), "flush chain inet tx a: No such file or directory (os error 2)");
    let long = "a".repeat(70_000);
    let mut batch = Batch::new();
    batch.add_table(Table { name: &long, ..INET }, None);
    assert_eq!(nftables.commit(&batch).map_err(|error| error.errno()), Err(Some(34)), "a name too long");
    nftables.commit(&Batch::new()).expect("nothing to do");
}

#[test]
fn a_socket_stays_in_its_namespace() {
    let here = open();
    let netns = netns::create("/run/netns/elsewhere").expect("a namespace");
    let there = Nftables::open_in(&netns).expect("a socket");
    let mut batch = Batch::new();
    batch.add_table(INET, None);
    batch.add_chain(INET.chain("a"), None);
    there.commit(&batch).expect("a transaction");
    assert!(there.find_chain(INET.chain("a")).expect("an answer").is_some());
    assert!(here.find_chain(INET.chain("a")).expect("an answer").is_none());
    netns::remove(netns.path()).expect("its name is removed");
    std::fs::remove_dir("/run/netns").expect("the folder is empty");
}

#[test]
fn a_long_transaction_is_one_too() {
    let nftables = open();
    let chain = IP.chain("many");
    let mut batch = Batch::new();
    batch.add_table(IP, None);
    batch.add_chain(chain, None);
    for port in 1..=3000 {
        let rule = Rule::new(IP.family).destination_port(Transport::Tcp, Match::Is, port);
        batch.add_rule(chain, &rule.dnat(address("10.0.0.2"), port).comment(format!("port {port}")));
    }
    nftables.commit(&batch).expect("a transaction");
    let rules = nftables.rules(chain).expect("the rules");
    assert_eq!(rules.len(), 3000);
    assert_eq!(rules[2999].comment.as_deref(), Some("port 3000"));
    let mut batch = Batch::new();
    for rule in &rules[1..] {
        batch.delete_rule(chain, rule.handle);
    }
    batch.insert_rule(chain, &Rule::new(IP.family).accept().comment("first"));
    nftables.commit(&batch).expect("a transaction");
    let left: Vec<_> =
        nftables.rules(chain).expect("the rules").into_iter().map(|rule| rule.comment).collect();
    assert_eq!(left, [Some("first".to_owned()), Some("port 1".to_owned())]);
}

#[test]
fn a_listing_is_of_one_moment() {
    const RULES: usize = 500;
    const LISTINGS: usize = 50;
    // Of each listing; fewer than its tries, so that it ends on the slowest machine too.
    const CHANGES: usize = 8;
    let nftables = open();
    let chain = IP.chain("busy");
    let generation = |text: &str| {
        let mut batch = Batch::new();
        batch.add_table(IP, None);
        batch.add_chain(chain, None);
        batch.flush_chain(chain);
        for _ in 0..RULES {
            batch.add_rule(chain, &Rule::new(IP.family).accept().comment(text));
        }
        batch
    };
    let generations = [generation("a"), generation("b")];
    nftables.commit(&generations[0]).expect("a transaction");
    let (begin, begun) = mpsc::sync_channel(0);
    let seen: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mine = Nftables::open().expect("a socket");
            let mut changes = generations.iter().cycle();
            for () in begun {
                for batch in changes.by_ref().take(CHANGES) {
                    mine.commit(batch).expect("a transaction");
                }
            }
        });
        let list = |_| {
            begin.send(()).expect("the other thread waits");
            nftables.rules(chain)
        };
        let seen = (0..LISTINGS).map(list).collect();
        drop(begin);
        seen
    });
    for rules in seen {
        let rules = rules.map_err(|error| error.to_string()).expect("the rules");
        assert_eq!(rules.len(), RULES);
        assert!(rules.iter().all(|rule| rule.comment == rules[0].comment), "rules of two moments");
    }
}
