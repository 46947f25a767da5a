//! Runs the samples of `examples/` as real processes through real relays, while etcd and the relays are killed, stopped
//! and frozen.
//!
//! Not here: how the samples are built and their output is read, see `samples::kit`, and the servers around them, see
//! `samples::scene`. Each scene runs all languages that this machine has tools for, and reports the others as skipped.
//! Always holds at the end of a test: each discovery shows exactly what etcd has.

mod kit;
mod scene;

use std::time::{Duration, Instant};

use crate::support::{etcd::Etcd, eventually};

use kit::Line;
use scene::Scene;

/// TTL of a lease that a busy machine can keep alive while a server of the scene restarts.
const LONG: u64 = 20;
/// TTL of a lease that ends while a test waits for it.
const SHORT: u64 = 4;

const GOOD: &str = r#"{"greeting": "hello", "workers": 4}"#;
const BETTER: &str = r#"{"workers": 8, "greeting": "good morning"}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_and_a_configuration_reloads() {
    let mut scene = Scene::start(Etcd::start().await, 1, SHORT).await;
    scene.everything().await;
    let good = scene.configure(GOOD).await;
    scene.until_configured(good, Instant::now()).await;
    // Some parsers name the setting with the wrong type, and others its place.
    for (value, names) in [
        (r#"{"greeting": "hello", "workers": 900}"#, "workers"),
        (r#"{"greeting": "hello", "wokers": 5, "workers": 5}"#, "wokers"),
        (r#"{"greeting": "", "workers": 5}"#, "greeting"),
        (r#"{"greeting": "hello", "workers": "many"}"#, ""),
        ("not JSON", ""),
    ] {
        let bad = scene.configure(value).await;
        for config in &scene.configs {
            let refused = config.until("the value is refused", |line| line.refused() == Some(bad)).await;
            for said in [names, &*format!("revision {good} stays in use")] {
                assert!(refused.text.contains(said), "{}: {said:?} is not in {}", config.name, refused.text);
            }
        }
    }
    let put = Instant::now();
    let better = scene.configure(BETTER).await;
    let seen = scene.until_configured(better, put).await;
    for config in &scene.configs {
        let line = config.until("the change", |line| line.configured() == Some(better)).await;
        assert!(line.text.contains("workers 4 -> 8"), "{}: {}", config.name, line.text);
        assert!(line.text.contains(r#"greeting "hello" -> "good morning""#), "{}: {}", config.name, line.text);
    }
    let gone = scene.etcd_kv().await.delete("/config/web").await;
    for config in &scene.configs {
        let line =
            config.until("the deletion", |line| line.text.starts_with(&format!("deleted in revision {gone}"))).await;
        assert!(line.text.ends_with(&format!("revision {better} stays in use")), "{}: {}", config.name, line.text);
    }
    // From before the put until the line was read. The output is read every 20 ms.
    println!("a change of configuration was seen within {seen:?}");

    // One is asked to stop, and deletes its key. The others are killed, and their keys go with their leases.
    scene.registers[0].stop().await;
    let first = scene.registers.remove(0);
    assert!(!scene.members().await.contains_key(&first.member), "the key of {} stayed", first.name);
    assert!(first.log().contains("\nleft web/"), "{}", first.log());
    for mut register in std::mem::take(&mut scene.registers) {
        let killed = Instant::now();
        register.process.kill();
        let member = register.member.clone();
        // A renewal is due after a third of the TTL, so more than half of it is left.
        let is_there = scene.members().await.contains_key(&member);
        assert!(
            is_there || killed.elapsed() > Duration::from_secs(SHORT / 2),
            "{} did not wait for its lease",
            register.name
        );
        eventually("the lease of one that was killed ends", async || {
            (!scene.members().await.contains_key(&member)).then_some(())
        })
        .await;
        println!(
            "{} was gone {:?} after its process was killed; its TTL is {SHORT} s",
            register.name,
            killed.elapsed()
        );
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samples_outlive_a_restart_of_etcd() {
    let mut scene = Scene::start(Etcd::start().await, 1, LONG).await;
    scene.everything().await;
    let good = scene.configure(GOOD).await;
    scene.until_configured(good, Instant::now()).await;
    let leases = scene.leases().await;
    for _ in 0..2 {
        scene.etcd.kill();
        scene.etcd.restart().await;
        scene.a_member_comes_and_goes().await;
        let revision = scene.configure(BETTER).await;
        scene.until_configured(revision, Instant::now()).await;
    }
    assert_eq!(scene.leases().await, leases, "etcd was away for less than a TTL, and all kept their leases");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samples_outlive_the_death_of_each_member_of_etcd() {
    let mut scene = Scene::start(Etcd::cluster_of_three().await, 2, LONG).await;
    scene.everything().await;
    let leases = scene.leases().await;
    for member in 0..3 {
        scene.etcd.kill_member(member);
        // Once a write succeeds, the others have a leader again.
        scene.reads_from((member + 1) % 3);
        scene.a_member_comes_and_goes().await;
        let revision = scene.configure(if member == 1 { BETTER } else { GOOD }).await;
        scene.until_configured(revision, Instant::now()).await;
        scene.etcd.restart().await;
    }
    assert_eq!(scene.leases().await, leases, "two of three members were there all the time");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samples_outlive_relays_that_die_and_that_drain() {
    let mut scene = Scene::start(Etcd::start().await, 2, LONG).await;
    scene.everything().await;
    let leases = scene.leases().await;
    for (relay, dies) in [(0, true), (1, true), (0, false), (1, false)] {
        if dies {
            scene.kill_relay(relay);
        } else {
            scene.drain_relay(relay).await;
        }
        // Another one is there.
        scene.a_member_comes_and_goes().await;
        let revision = scene.configure(if dies { GOOD } else { BETTER }).await;
        scene.until_configured(revision, Instant::now()).await;
        scene.start_relay(relay).await;
    }
    // None is there for a moment.
    scene.kill_relay(0);
    scene.kill_relay(1);
    let revision = scene.configure(GOOD).await;
    scene.start_relay(0).await;
    scene.start_relay(1).await;
    scene.until_configured(revision, Instant::now()).await;
    assert_eq!(scene.leases().await, leases, "a relay was there within each TTL, and all kept their leases");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_frozen_relay_of_two_costs_no_registration() {
    let mut scene = Scene::start(Etcd::start().await, 2, LONG).await;
    scene.everything().await;
    let leases = scene.leases().await;
    for relay in 0..2 {
        scene.freeze_relay(relay);
        // A registration that used the frozen relay has moved on once its lease was renewed after that.
        scene.until_all_renewed().await;
        scene.thaw_relay(relay);
    }
    assert_eq!(scene.leases().await, leases, "the other relay was there all the time");
    scene.a_member_comes_and_goes().await;
    scene.end().await;
}

/// Nobody can renew a lease for longer than its TTL. All registrations are lost, and all come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samples_outlive_a_freeze_that_is_longer_than_the_ttl() {
    let mut scene = Scene::start(Etcd::start().await, 2, SHORT).await;
    scene.everything().await;
    let before = scene.leases().await;
    scene.freeze_relay(0);
    scene.freeze_relay(1);
    eventually("all leases have ended", async || scene.members().await.is_empty().then_some(())).await;
    let revision = scene.configure(GOOD).await;
    scene.thaw_relay(0);
    scene.thaw_relay(1);
    scene.until_configured(revision, Instant::now()).await;
    scene.until_all_registered().await;
    for (name, lease) in &scene.leases().await {
        assert_ne!(Some(lease), before.get(name), "{name} has a lease that had ended");
    }
    for register in &scene.registers {
        register.until("a word about it", |line| line.text.contains("the lease is gone: registering again")).await;
    }
    scene.until_discovered().await;

    // etcd is frozen. Its leases may or may not end when it continues. In the end all are registered.
    scene.etcd.pause();
    let paused = Instant::now();
    eventually("etcd stood still for a TTL", async || (paused.elapsed() > Duration::from_secs(SHORT)).then_some(()))
        .await;
    scene.etcd.resume();
    scene.until_all_registered().await;
    let revision = scene.configure(BETTER).await;
    scene.until_configured(revision, Instant::now()).await;
    scene.end().await;
}

/// The missed changes are no longer available. A list shows who is gone, who has come, and which configuration is
/// valid.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_compacted_while_cut_off_is_made_up_by_a_list() {
    let mut scene = Scene::start(Etcd::start().await, 1, LONG).await;
    scene.everything().await;
    let kv = scene.etcd_kv().await;
    for name in ["goes", "stays", "changes"] {
        kv.put(format!("/services/web/{name}"), "http://old").await;
    }
    scene.until_discovered().await;
    scene.kill_relay(0);
    kv.delete("/services/web/goes").await;
    for (name, value) in [("changes", "http://new"), ("comes", "http://new"), ("flickers", "http://never")] {
        kv.put(format!("/services/web/{name}"), value).await;
    }
    kv.delete("/services/web/flickers").await;
    scene.configure(GOOD).await;
    let revision = scene.configure(BETTER).await;
    kv.compact(revision).await;
    scene.history_is_lost = true;
    scene.start_relay(0).await;
    scene.until_configured(revision, Instant::now()).await;
    scene.until_discovered().await;
    for discover in &scene.discovers {
        let log = discover.log();
        for shown in ["\n- goes (", "\n~ changes http://new, was http://old (", "\n+ comes http://new ("] {
            assert_eq!(log.matches(shown).count(), 1, "{}: {shown:?}\n{log}", discover.name);
        }
        assert!(!log.contains("flickers"), "{}: nobody can know of it\n{log}", discover.name);
        assert_eq!(log.matches("listed at revision").count(), 2, "{}\n{log}", discover.name);
    }
    scene.end().await;
}

/// An operator's restore from backup: another cluster, at a lower revision, with the leases and keys of the backup.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samples_follow_a_cluster_that_was_restored_from_a_backup() {
    let mut scene = Scene::start(Etcd::cluster_of_three_that_can_be_cut().await, 1, LONG).await;
    let kv = scene.etcd_kv().await;
    kv.put("/services/web/of-the-backup", "http://old").await;
    let good = scene.configure(GOOD).await;
    let backup = scene.etcd.save_snapshot();
    // Everything from here on is not in the backup: leases, members and a configuration.
    scene.everything().await;
    kv.delete("/services/web/of-the-backup").await;
    let better = scene.configure(BETTER).await;
    scene.until_configured(better, Instant::now()).await;
    scene.until_discovered().await;
    scene.etcd.kill();
    scene.etcd.restart_from(&backup).await;
    scene.history_is_lost = true;
    scene.until_all_registered().await;
    scene.until_discovered().await;
    for config in &scene.configs {
        let is_back = |line: &Line| line.configured() == Some(good) && line.text.contains("workers 8 -> 4");
        config.until("the configuration of the backup", is_back).await;
    }
    scene.a_member_comes_and_goes().await;
    scene.end().await;
}

/// A key that was deleted by hand is put again, with the same lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_whose_key_was_deleted_comes_back() {
    let mut scene = Scene::start(Etcd::start().await, 1, LONG).await;
    scene.everything().await;
    let leases = scene.leases().await;
    let kv = scene.etcd_kv().await;
    for register in &scene.registers {
        kv.delete(format!("/services/web/{}", register.member)).await;
    }
    scene.until_all_registered().await;
    assert_eq!(scene.leases().await, leases);
    scene.end().await;
}
