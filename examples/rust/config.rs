//! Follows a service's configuration in etcd, and reloads it when it changes:
//!
//!     cargo run --example config -- web
//!     etcdctl put /config/web '{"greeting": "hello", "workers": 4}'
//!
//! An invalid value is rejected, and the last valid one stays in use. See `../README.md` for the rules that this
//! follows.

#![expect(clippy::print_stdout, reason = "a program that speaks to its user")]

use std::sync::Arc;

use anyhow::{bail, ensure};
use arc_swap::ArcSwapOption;
use serde::Deserialize;

use crate::{
    etcd::{Etcd, told_to_stop},
    follow::{Change, Handler, Keys, follow},
};

mod etcd;
mod follow;

/// The configuration in use, for any thread: `CURRENT.load()`. It is replaced as a whole, so nobody sees a mixture of
/// the old and the new. It is `None` until a valid one has been read.
static CURRENT: ArcSwapOption<Config> = ArcSwapOption::const_empty();

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [service] = &arguments[..] else {
        bail!("usage: config SERVICE (environment: ETCD_ENDPOINTS)");
    };
    let key = format!("/config/{service}");
    println!("following {key}");
    let keys = Keys { key, is_prefix: false };
    tokio::select! {
        failed = follow(Etcd::connect().await?, Reloader { revision: None }, keys) => failed.map(|never| match never {}),
        () = told_to_stop() => Ok(()),
    }
}

/// The settings of the service. A misspelt name is an error, not a setting that has no effect.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    greeting: String,
    workers: u32,
}

impl Config {
    /// Rejects what it does not understand, and names it.
    fn parse(value: &[u8]) -> anyhow::Result<Self> {
        let config: Self = serde_json::from_slice(value)?;
        ensure!(!config.greeting.is_empty(), "greeting must not be empty");
        ensure!((1..=64).contains(&config.workers), "workers must be from 1 to 64, not {}", config.workers);
        Ok(config)
    }

    /// What is different from another configuration, or all of it.
    fn differs_from(&self, before: Option<&Self>) -> String {
        let Some(before) = before else {
            return format!("greeting {:?}, workers {}", self.greeting, self.workers);
        };
        let mut changed = Vec::new();
        if self.greeting != before.greeting {
            changed.push(format!("greeting {:?} -> {:?}", before.greeting, self.greeting));
        }
        if self.workers != before.workers {
            changed.push(format!("workers {} -> {}", before.workers, self.workers));
        }
        if changed.is_empty() { "nothing changed".to_owned() } else { changed.join(", ") }
    }
}

struct Reloader {
    /// Of the configuration in use.
    revision: Option<i64>,
}

impl Handler for Reloader {
    fn listed(&mut self, revision: i64, count: usize, changes: Vec<Change>) {
        if count == 0 && changes.is_empty() {
            println!("there is no configuration at revision {revision}");
        }
        self.changed(changes);
    }

    fn changed(&mut self, changes: Vec<Change>) {
        for Change { new, revision, .. } in changes {
            let Some(value) = new else {
                println!("deleted in revision {revision}, {}", self.in_use());
                continue;
            };
            match Config::parse(&value) {
                Ok(next) => {
                    let next = Arc::new(next);
                    let before = CURRENT.swap(Some(Arc::clone(&next)));
                    self.revision = Some(revision);
                    println!("configuration of revision {revision}: {}", next.differs_from(before.as_deref()));
                }
                Err(error) => println!("refused revision {revision}, {}: {error}", self.in_use()),
            }
        }
    }

    fn cut_off(&mut self, reason: &str) {
        println!("cut off, {}: {reason}", self.in_use());
    }

    fn resumed(&mut self, revision: i64) {
        println!("up to date again at revision {revision}");
    }
}

impl Reloader {
    fn in_use(&self) -> String {
        self.revision.map_or("nothing in use yet".to_owned(), |revision| format!("revision {revision} stays in use"))
    }
}
