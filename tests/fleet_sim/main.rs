//! A fleet of relays and all of its clients on a simulated clock: a rolling restart, a lost rack, and a herd that comes
//! back after etcd was away. All decisions are made by the relays' own code (`etcd_relay::fleet`): the rate at which a
//! stopping relay asks its clients to leave, the numbers that it publishes, shedding, and the age of connections. The
//! rest is a model (`world`) with constants.
//!
//! What a relay serves is simulated in `relay_sim`; sockets are used in `tests/it`. The checks are the bounds in
//! `docs/fleets.md`, and the printed lines are the measurements there. There are 10,000 clients unless
//! `ETCD_RELAY_FLEET_CLIENTS` is set; `ETCD_RELAY_SIM_SEED` changes the random decisions.

#![expect(clippy::print_stdout, reason = "a simulation prints its results")]

mod clients;
mod world;

use std::{env, time::Duration};

use crate::world::{Terms, World};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The number of clients and of relays: one relay per 10,000 clients.
fn size() -> (usize, usize) {
    let clients = number("ETCD_RELAY_FLEET_CLIENTS").unwrap_or(10_000);
    (clients, clients.div_ceil(10_000).max(5))
}

fn number(name: &str) -> Option<usize> {
    env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn world(clients: usize, relays: usize) -> World {
    let seed = number("ETCD_RELAY_SIM_SEED").unwrap_or(7) as u64;
    World::new(Terms { clients, relays, ..Terms::default() }, seed)
}

/// Checks that no relay's share differs from the mean by more than this fraction.
fn assert_even(world: &World, within: f64) {
    let mean = world.clients() as f64 / world.relays() as f64;
    for (relay, connections) in world.shares().into_iter().enumerate() {
        let off = (connections as f64 - mean).abs() / mean;
        assert!(
            off <= within,
            "relay {relay} has {connections} connections, but its share is {mean}: {:?}",
            world.shares()
        );
    }
}

#[test]
fn a_rolling_restart_of_two_relays_moves_a_tenth_of_the_clients_a_second_at_most() {
    for clients in [2_000, 10_000] {
        let mut world = world(clients, 2);
        world.settle();
        for relay in 0..2 {
            world.restart(relay);
            world.run(Terms::DRAIN + Terms::START + seconds(120));
            assert_even(&world, 0.2);
        }
        let report = world.report("rolling restart, one after the other every 2 min");
        println!("{report}");
        assert!(report.worst_at_a_relay <= clients / 10, "{report}");
        assert!(report.longest_away <= seconds(2), "{report}");
    }
}

#[test]
fn a_rolling_restart_without_a_pause_keeps_to_the_bound_too() {
    let mut world = world(2_000, 2);
    world.settle();
    for relay in 0..2 {
        world.restart(relay);
        world.run(Terms::DRAIN + Terms::START);
    }
    let at_once = world.shares();
    world.run(seconds(120));
    assert_even(&world, 0.2);
    let report = world.report("rolling restart, without a pause");
    println!("{report}  right after it {at_once:?}");
    assert!(report.worst_at_a_relay <= 200, "{report}");
}

#[test]
fn a_rolling_restart_of_a_fleet() {
    let (clients, relays) = size();
    let mut world = world(clients, relays);
    world.settle();
    for relay in 0..relays {
        world.restart(relay);
        world.run(Terms::DRAIN + Terms::START + seconds(120));
        let mean = clients / relays;
        let most = world.shares().into_iter().max().unwrap_or(0);
        assert!(most * 10 <= mean * 12, "{most} connections, but the share is {mean}");
    }
    let report = world.report("rolling restart of all, one every 2 min");
    println!("{report}");
    assert!(report.worst_at_a_relay <= clients / relays / 10, "{report}");
    assert!(report.worst_in_all <= clients / 20, "{report}");
}

#[test]
fn a_lost_rack_is_taken_over_at_once_and_gets_its_share_back() {
    let (clients, relays) = size();
    let mut world = world(clients, relays);
    world.settle();
    let lost = relays.div_ceil(10);
    (0..lost).for_each(|relay| world.kill(relay));
    world.run(seconds(180));
    let away = world.report("a rack is lost");
    println!("{away}");
    assert!(away.longest_away <= seconds(5), "{away}");
    let asked = world.asked();
    (0..lost).for_each(|relay| world.start(relay));
    world.run(Terms::START + seconds(120));
    let back = world.report("it comes back");
    println!("{back}  asked to leave meanwhile: {}", world.asked() - asked);
    let mean = clients / relays;
    assert!(world.shares().into_iter().all(|share| share * 10 <= mean * 12), "{:?}", world.shares());
    assert!(back.worst_in_all <= clients / 40, "{back}");
}

#[test]
fn a_herd_after_an_outage_of_etcd_costs_etcd_what_the_relays_are_and_not_the_clients() {
    let (clients, relays) = size();
    let mut costs = Vec::new();
    for clients in [clients / 10, clients] {
        let mut world = world(clients, relays);
        world.settle();
        world.etcd_goes();
        (0..relays).for_each(|relay| world.kill(relay));
        (0..relays).for_each(|relay| world.start(relay));
        world.run(seconds(60));
        assert_eq!(world.caught_up(), 0, "without etcd a relay that has just started has nothing");
        let before = world.etcd();
        world.etcd_comes();
        let took = world.run_until_caught_up(seconds(120));
        let report = world.report("all relays start while etcd is away for a minute");
        let etcd = world.etcd() - before;
        println!("{report}  all caught up {took:.1?} after etcd was back; etcd: {etcd:?}");
        assert!(took <= seconds(60), "{took:?}");
        costs.push(etcd);
    }
    assert_eq!((costs[0].watches, costs[0].pages), (costs[1].watches, costs[1].pages));
    assert!(costs[1].asks <= 60 * 200 * relays, "{costs:?}");
}

#[test]
fn clients_that_came_together_grow_old_apart() {
    let (clients, relays) = size();
    let mut world = World::new(Terms { clients, relays, max_age: Some(seconds(1_200)), ..Terms::default() }, 7);
    world.settle();
    // All of them come back within seconds.
    (0..relays).for_each(|relay| world.kill(relay));
    (0..relays).for_each(|relay| world.start(relay));
    world.run(seconds(120));
    let _herd = world.report("all come at once");
    world.run(seconds(1_600));
    let report = world.report("a greatest age of 20 min, over 27 min");
    println!("{report}");
    assert!(world.asked() >= clients, "all were asked: {}", world.asked());
    assert!(report.worst_in_all <= clients / 100, "{report}");
}

#[test]
fn relays_whose_clients_always_come_back_leave_them_alone() {
    let mut world = World::new(Terms { clients: 2_000, relays: 2, sticky: true, ..Terms::default() }, 7);
    world.settle();
    // All are at one relay and know no other.
    world.run(seconds(3_600));
    let report = world.report("clients that know one relay alone, for an hour");
    println!("{report}  asked to leave: {}", world.asked());
    assert!(world.asked() <= 4 * 2_000, "{}", world.asked());
}
