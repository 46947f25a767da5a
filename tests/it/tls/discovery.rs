//! `--discovery-srv` of the real program, with a DNS server that it finds in `/etc/resolv.conf`.
//!
//! The file is replaced in a mount namespace of the relay, and the server has port 53 of a loopback address. Both need
//! root: without it the test is skipped with a message. The look-up itself is tested beside `source::discovery`.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use domain::{
    base::{Message, MessageBuilder, Name, Rtype, iana::Rcode},
    rdata::{A, Srv},
};

use crate::support::{
    etcd::Etcd,
    eventually, http,
    kv::Kv,
    relay::{Relay, RelayCommand},
    tls::{Authority, Leaf, flag},
};

const SERVICE: &str = "_etcd-client-ssl._tcp.example.org";

/// Announces `ports` as members of `example.org`, `m0.example.org` and so on, all on this machine. `None` if port 53 is
/// not available.
fn dns(ports: Vec<u16>) -> Option<Ipv4Addr> {
    let [a, b, c] = rand::random::<[u8; 3]>();
    let addr = Ipv4Addr::new(127, a, b, c.clamp(2, 254));
    let socket = UdpSocket::bind((addr, 53)).ok()?;
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let asked = Message::from_octets(&buffer[..len]).expect("a message");
            let question = asked.sole_question().expect("a question");
            let owner = question.qname().to_string();
            let is_member = (0..ports.len()).any(|member| owner == format!("m{member}.example.org"));
            let known = is_member || owner == SERVICE;
            let rcode = if known { Rcode::NOERROR } else { Rcode::NXDOMAIN };
            let mut answer = MessageBuilder::new_vec().start_answer(&asked, rcode).expect("room");
            match question.qtype() {
                Rtype::SRV if owner == SERVICE => {
                    // In this order.
                    for (member, port) in ports.iter().enumerate() {
                        let target: Name<Vec<u8>> = format!("m{member}.example.org").parse().expect("a name");
                        answer.push((question.qname(), 60, Srv::new(member as u16, 0, *port, target))).expect("room");
                    }
                }
                Rtype::A if is_member => {
                    answer.push((question.qname(), 60, A::new(Ipv4Addr::LOCALHOST))).expect("room");
                }
                _ => {}
            }
            socket.send_to(&answer.finish(), from).expect("sent");
        }
    });
    Some(addr)
}

/// The relay with another `/etc/resolv.conf`. `None` if such a namespace is not available.
fn resolving_at(server: Ipv4Addr, folder: &Path) -> Option<PathBuf> {
    let (conf, script) = (folder.join("resolv.conf"), folder.join("relay"));
    fs::write(&conf, format!("nameserver {server}\n")).expect("written");
    let program = env!("CARGO_BIN_EXE_etcd-relay");
    let text = format!(
        "#!/bin/sh\nexec unshare --mount --propagation private \
         sh -c 'mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"' {} {program} \"$@\"\n",
        conf.display()
    );
    fs::write(&script, text).expect("written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it can be run");
    let tried = std::process::Command::new(&script).arg("--version").output();
    tried.is_ok_and(|output| output.status.success()).then_some(script)
}

fn port_of(relay: &Relay) -> u16 {
    relay.grpc_addr().rsplit_once(':').expect("a port").1.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_finds_three_members_with_tls_by_dns_and_believes_certificates_of_the_domain_alone() {
    let (ca, etcd) = (Authority::new("the authority"), Etcd::start().await);
    // Members with TLS. They are relays that accept every client.
    let mut members = Vec::new();
    for (number, host) in ["example.org", "example.org", "m2.example.org"].into_iter().enumerate() {
        let pair = ca.issue(&format!("member{number}"), &Leaf { hosts: &[host], ..Leaf::default() });
        members.push(RelayCommand::serve(&[etcd.endpoint()]).prefix("").secure(&pair).start().await);
    }
    let folder = ca.file().parent().expect("a folder").to_owned();
    let script = dns(members.iter().map(port_of).collect()).and_then(|server| resolving_at(server, &folder));
    let Some(script) = script else {
        println!("SKIPPED: port 53 and a mount namespace need root");
        return;
    };
    let relay = RelayCommand::discovering("example.org").prefix("").program(&script).arg(&flag("--cacert", &ca.file()));
    let relay = relay.start().await;
    relay.follows().await;
    Kv::connect(&relay.endpoint()).await.put("k", "1").await;
    // The third has a certificate for its own name. That name came from DNS, so the certificate proves nothing.
    for (number, healthy) in [(1, 1.0), (2, 1.0), (3, 0.0)] {
        eventually(&format!("member {number} was asked"), async || {
            let text = relay.metrics().await;
            let labels = format!("member=\"{number}\"");
            let mut found = http::series(&text, "etcd_relay_member_healthy");
            found.any(|(found, value)| found == labels && value == healthy).then_some(())
        })
        .await;
    }
    relay.assert_no_panic();
}
