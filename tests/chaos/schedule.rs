//! The run: clients at work and faults in random order until the time is over, with the cost of each fault and a check
//! of the recovery.
//!
//! Faults are in `faults`, the final table is in `figures`. Always holds: after each fault every reading watcher has
//! received everything, or the run has failed.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use fastrand::Rng;
use tokio::task::{JoinHandle, JoinSet};

use crate::{
    closing,
    faults::{Fault, Kind},
    figures::{Cost, Figures},
    gaps::What,
    leases, probes, readers,
    scene::{ANY, TIER},
    support::http,
    watchers,
    world::{self, World},
    writers,
};

/// One faulty member of three must not cause an outage of this length, however busy the machine is. The goals are
/// printed beside the measurements.
const UNAVAILABLE: Duration = Duration::from_secs(20);
/// Pause between two checks of a relay's metrics.
const LOOK: Duration = Duration::from_millis(100);
/// How often a fault starts during another one.
const TWO_AT_ONCE: u8 = 5;

/// The parameters of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Determines all random decisions.
    pub seed: u64,
    /// Total duration of the faults.
    pub length: Duration,
    /// The faults to choose from.
    pub kinds: Vec<Kind>,
    /// Whether a long duration is an error.
    pub judges_time: bool,
}

/// Carries out the plan. `done` receives each fault as it begins.
pub async fn run(plan: &Plan, world: &mut World, figures: &mut Figures) {
    let mut dice = Rng::with_seed(plan.seed);
    let scene = Arc::clone(&world.scene);
    let mut clients = JoinSet::new();
    let truth = Arc::clone(&scene.truth);
    clients.spawn(truth.follow(scene.members.clone(), world.users.root(), Arc::clone(&scene.findings)));
    probes::spawn(&scene, &mut clients);
    writers::spawn(&scene, &mut dice, &mut clients);
    readers::spawn(&scene, &mut dice, &mut clients);
    watchers::spawn(&scene, &mut dice, &mut clients);
    leases::spawn(&scene, &mut dice, &mut clients);
    world.barrier().await;
    let (begun, mut bag) = (Instant::now(), Vec::new());
    while begun.elapsed() < plan.length && scene.findings.wrong() == 0 {
        if bag.is_empty() {
            bag.clone_from(&plan.kinds);
            dice.shuffle(&mut bag);
        }
        let kind = bag.pop().expect("at least one kind");
        let fault = Fault::draw(kind, &mut dice, world).await;
        let more = plan.kinds.iter().filter(|more| **more != kind && more.comes_on_top()).copied().collect::<Vec<_>>();
        let both = fault.kind.hurts_a_member() && dice.u8(..TWO_AT_ONCE) == 0;
        let on_top = if both { dice.choice(more) } else { None };
        match on_top {
            Some(more) => two_at_once(fault, more, &mut dice, world, figures).await,
            None => one(fault, &mut dice, world, figures).await,
        }
        // A client that panicked has found an unexpected error.
        while let Some(ended) = clients.try_join_next() {
            ended.expect("a client goes on to the end");
        }
    }
    scene.all_leases_are_kept().await;
    scene.hold_writes().await;
    closing::all_have_the_same(world).await;
    clients.shutdown().await;
    world.no_panic();
}

async fn one(fault: Fault, dice: &mut Rng, world: &mut World, figures: &mut Figures) {
    let scene = Arc::clone(&world.scene);
    let leads = fault.kind.hurts_a_member() && world.etcd.leader().await == fault.member;
    let name = match (fault.kind.hurts_a_member(), leads) {
        (true, true) => format!("{} (leader)", fault.kind.name()),
        _ => fault.kind.name().to_owned(),
    };
    figures.begins(scene.findings.clock(), &name, fault);
    let lasts = fault.lasts(dice, scene.judges_time);
    scene.gaps.open();
    scene.ended.store(0, Ordering::Relaxed);
    let told = told_of(fault, world, false);
    let (begun, unready) = (Instant::now(), unready(world, lasts));
    fault.begin(world).await;
    tokio::time::sleep(lasts.saturating_sub(begun.elapsed())).await;
    let told = all(told).await;
    fault.end(world).await;
    let ended = Instant::now();
    let back = told_of(fault, world, true);
    if fault.kind == Kind::KillRelay {
        world.ready(fault.relay).await;
    }
    world.barrier().await;
    let caught_up = ended.elapsed();
    let counted = fault.counted();
    let gap = |what| scene.gaps.longest(what, &counted);
    let cost = Cost {
        direct: scene.gaps.longest(What::Direct, &[ANY]),
        put: gap(What::Put),
        read: gap(What::Read),
        forward: gap(What::Forward),
        watch: gap(What::Watch),
        event: scene.gaps.longest(What::Event, &[ANY]),
        told,
        back: all(back).await,
        unready: unready.await.expect("the task ends"),
        ended: scene.ended.load(Ordering::Relaxed),
        caught_up,
    };
    if fault.kind.hurts_a_member() {
        let worst = [cost.put, cost.read, cost.forward, cost.watch, cost.event].into_iter().max().unwrap_or_default();
        if worst > UNAVAILABLE && scene.judges_time {
            scene.findings.add(&format!("{name}: unavailable for {worst:?}, with two members of three: {cost:?}"));
        }
    }
    figures.add(&name, cost);
}

async fn two_at_once(fault: Fault, more: Kind, dice: &mut Rng, world: &mut World, figures: &mut Figures) {
    let more = Fault::draw(more, dice, world).await;
    let clock = world.scene.findings.clock();
    figures.begins(clock, &format!("{} and {}", fault.kind.name(), more.kind.name()), fault);
    fault.begin(world).await;
    tokio::time::sleep(Duration::from_millis(dice.u64(200..2_000))).await;
    more.begin(world).await;
    tokio::time::sleep(fault.lasts(dice, world.scene.judges_time)).await;
    if dice.bool() {
        fault.end(world).await;
        more.end(world).await;
    } else {
        more.end(world).await;
        fault.end(world).await;
    }
    for place in 0..=TIER {
        world.ready(place).await;
    }
    world.barrier().await;
}

/// How long each relay over etcd takes to report that the member is unusable, or that it has recovered; nothing for
/// faults that affect no member.
fn told_of(fault: Fault, world: &World, healthy: bool) -> Vec<JoinHandle<Option<Duration>>> {
    if !fault.kind.hurts_a_member() || !world.scene.judges_time {
        return Vec::new();
    }
    let addrs = world.http_addrs();
    let labels = format!("member=\"{}\"", fault.member + 1);
    let look = |addr: String| {
        let labels = labels.clone();
        tokio::spawn(async move {
            let begun = Instant::now();
            while begun.elapsed() < UNAVAILABLE {
                let value = world::metric(&addr, "etcd_relay_member_healthy", &labels).await;
                if value == Some(if healthy { 1.0 } else { 0.0 }) {
                    return Some(begun.elapsed());
                }
                tokio::time::sleep(LOOK).await;
            }
            None
        })
    };
    addrs.into_iter().take(TIER).map(look).collect()
}

/// The longest of them; `None` if there is none, or if one never reported it.
async fn all(told: Vec<JoinHandle<Option<Duration>>>) -> Option<Duration> {
    let mut longest = None;
    for one in told {
        longest = longest.max(Some(one.await.expect("the task ends")?));
    }
    longest
}

/// How long a relay reports that it is not ready, within the next `lasts`.
fn unready(world: &World, lasts: Duration) -> JoinHandle<Duration> {
    let addrs = world.http_addrs();
    tokio::spawn(async move {
        let (begun, mut unready) = (Instant::now(), Duration::ZERO);
        while begun.elapsed() < lasts {
            let mut ready = true;
            for addr in &addrs {
                ready &= http::get(addr, "/ready").await.is_ok_and(|answer| answer.status == 200);
            }
            tokio::time::sleep(LOOK).await;
            unready += if ready { Duration::ZERO } else { LOOK };
        }
        unready
    })
}
