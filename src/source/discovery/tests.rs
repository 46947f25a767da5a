//! Tests against a DNS server that each test starts.

use std::net::{Ipv4Addr, UdpSocket};

use domain::{
    base::{Message, MessageBuilder, Rtype, iana::Rcode},
    rdata::Srv,
    resolv::stub::conf::{ServerConf, Transport},
};

use super::*;

/// Answers queries with these records (owner, priority, port, target) for as long as the test runs. For the target `.`
/// the server reports a failure.
fn dns(records: &'static [(&'static str, u16, u16, &'static str)]) -> ResolvConf {
    dns_behind_a_network_that_loses(0, records)
}

/// The same, but this many queries are lost.
fn dns_behind_a_network_that_loses(
    questions: usize,
    records: &'static [(&'static str, u16, u16, &'static str)],
) -> ResolvConf {
    let mut lost = 0;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let addr = socket.local_addr().expect("an address");
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            if lost < questions {
                lost += 1;
                continue;
            }
            let asked = Message::from_octets(&buffer[..len]).expect("a message");
            let question = asked.sole_question().expect("a question");
            assert_eq!(question.qtype(), Rtype::SRV);
            let owner = question.qname().to_string();
            let wanted = || records.iter().filter(|record| record.0 == owner);
            let rcode = match wanted().next() {
                None => Rcode::NXDOMAIN,
                Some((.., ".")) => Rcode::SERVFAIL,
                Some(_) => Rcode::NOERROR,
            };
            let mut answer = MessageBuilder::new_vec().start_answer(&asked, rcode).expect("room");
            for (_, priority, port, target) in wanted().filter(|(.., target)| *target != ".") {
                let target: Name<Vec<u8>> = target.parse().expect("a name");
                answer.push((question.qname(), 60, Srv::new(*priority, 0, *port, target))).expect("room");
            }
            socket.send_to(&answer.finish(), from).expect("sent");
        }
    });
    let mut conf = ResolvConf::new();
    conf.servers.push(ServerConf::new(addr, Transport::UdpTcp));
    conf.finalize();
    conf
}

fn found(
    records: &'static [(&'static str, u16, u16, &'static str)],
    service_name: Option<&str>,
    insecure: bool,
) -> Result<(Vec<String>, Vec<String>), String> {
    let discovery = Discovery { domain: "example.org".into(), service_name: service_name.map(str::to_owned), insecure };
    let Discovered { endpoints, left_out } =
        discover_by(dns(records), &discovery).map_err(|error| error.to_string())?;
    let texts = |endpoints: Vec<Endpoint>| endpoints.iter().map(ToString::to_string).collect();
    Ok((texts(endpoints), texts(left_out)))
}

const BOTH: &[(&str, u16, u16, &str)] = &[
    ("_etcd-client._tcp.example.org", 0, 2379, "plain.example.org"),
    ("_etcd-client-ssl._tcp.example.org", 20, 2379, "second.example.org"),
    ("_etcd-client-ssl._tcp.example.org", 10, 12379, "first.example.org"),
    ("_etcd-client-ssl-blue._tcp.example.org", 0, 2379, "blue.example.org"),
];

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn members_come_by_priority_and_those_without_tls_only_where_that_is_asked_for() {
    let secure = ["https://first.example.org:12379", "https://second.example.org:2379"];
    let plain = ["http://plain.example.org:2379"];
    assert_eq!(found(BOTH, None, false), Ok((texts(&secure), texts(&plain))));
    assert_eq!(found(BOTH, None, true), Ok((texts(&[&secure[..], &plain[..]].concat()), texts(&[]))));
}

#[test]
fn clusters_of_one_domain_are_told_apart_by_the_name_of_the_service() {
    assert_eq!(found(BOTH, Some("blue"), false), Ok((texts(&["https://blue.example.org:2379"]), texts(&[]))));
}

#[test]
fn what_finds_no_member_says_why() {
    for (records, service_name, why) in [
        (&[][..], None, "no SRV records _etcd-client-ssl._tcp.example.org or _etcd-client._tcp.example.org"),
        (&BOTH[..1], None, "--insecure-discovery"),
        (BOTH, Some("a..b"), "cannot be part of a DNS name"),
    ] {
        let error = found(records, service_name, false).expect_err(why);
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn a_server_that_says_nothing_is_told_from_one_that_knows_no_records() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let mut conf = dns(BOTH);
    conf.options.timeout = Duration::from_millis(200);
    conf.servers[0].addr = silent.local_addr().expect("an address");
    let discovery = Discovery { domain: "example.org".into(), service_name: None, insecure: false };
    let error = discover_by(conf, &discovery).expect_err("silence").to_string();
    assert!(error.contains("_etcd-client._tcp.example.org") && error.contains("/etc/resolv.conf"), "{error}");
}

#[test]
fn a_question_that_is_lost_is_asked_again() {
    let conf = dns_behind_a_network_that_loses(2, BOTH);
    let discovery = Discovery { domain: "example.org".into(), service_name: None, insecure: false };
    let found = discover_by(conf, &discovery).expect("the third query is answered");
    assert_eq!(found.endpoints.len(), 2, "{found:?}");
}
