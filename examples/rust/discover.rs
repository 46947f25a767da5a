//! Shows who is registered for a service, and keeps showing what changes:
//!
//!     cargo run --example discover -- web
//!
//! See `../README.md` for the rules that this follows, and `follow.rs` for the code that does.

#![expect(clippy::print_stdout, reason = "a program that speaks to its user")]

use std::collections::BTreeMap;

use anyhow::bail;

use crate::{
    etcd::{Etcd, told_to_stop},
    follow::{Change, Handler, Keys, follow},
};

mod etcd;
mod follow;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [service] = &arguments[..] else {
        bail!("usage: discover SERVICE (environment: ETCD_ENDPOINTS)");
    };
    let prefix = format!("/services/{service}/");
    let members = Members { prefix: prefix.clone(), addresses: BTreeMap::new() };
    let keys = Keys { key: prefix, is_prefix: true };
    tokio::select! {
        failed = follow(Etcd::connect().await?, members, keys) => failed.map(|never| match never {}),
        () = told_to_stop() => Ok(()),
    }
}

/// The service as it is known now. A real program would choose from it which member to call.
struct Members {
    prefix: String,
    addresses: BTreeMap<String, String>,
}

impl Handler for Members {
    fn listed(&mut self, revision: i64, count: usize, changes: Vec<Change>) {
        println!("listed at revision {revision}: {count} members");
        self.changed(changes);
    }

    fn changed(&mut self, changes: Vec<Change>) {
        for Change { key, old, new, revision } in changes {
            let key = text(&key);
            let name = key.strip_prefix(&self.prefix).unwrap_or(&key);
            match (old.as_deref().map(text), new.as_deref().map(text)) {
                (None, Some(new)) => println!("+ {name} {new} (revision {revision})"),
                (Some(old), Some(new)) if old != new => println!("~ {name} {new}, was {old} (revision {revision})"),
                (Some(_), None) => println!("- {name} (revision {revision})"),
                _ => {}
            }
            match new {
                Some(new) => self.addresses.insert(name.to_owned(), text(&new)),
                None => self.addresses.remove(name),
            };
        }
    }

    fn cut_off(&mut self, reason: &str) {
        println!("cut off, keeping {} members: {reason}", self.addresses.len());
    }

    fn resumed(&mut self, revision: i64) {
        println!("up to date again at revision {revision}: {} members", self.addresses.len());
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
