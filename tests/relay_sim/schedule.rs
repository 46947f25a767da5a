//! A schedule: a relay, its cluster and its clients, and what happens to them.
//!
//! Schedules of clients that interfere with each other, over a healthy cluster, are in `crowd`, `queue`, `slow` and
//! `busy`. Always holds: all random decisions come from the seed. A schedule ends with a healthy cluster and with
//! everything delivered.

pub(crate) mod busy;
pub(crate) mod crowd;
pub(crate) mod queue;
pub(crate) mod slow;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_relay::{pb::etcdserverpb::RangeRequest, types::KeyRange};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::{
    task::JoinSet,
    time::{Instant, advance, sleep},
};

use crate::{
    check::{Counts, Spec, StreamCheck},
    client::{Client, Windows},
    cluster::{Changes, Cluster, Faults, Harm, Place},
    hostile::{self, Hostile},
    reads::{self, PAGE},
    relay::{Host, Relay, Terms},
    trace::Trace,
    watcher::{Order, Reading, Watcher},
};

const KEYS: [&str; 9] = ["a/", "a/0", "a/1", "a/1/x", "a/2", "b/0", "b/1", "c", "d"];
/// Pause between two checks at the end of a schedule.
const LOOK: Duration = Duration::from_millis(100);
/// The shortest time between two changes that answers are compared with.
const TICK: Duration = Duration::from_micros(1);
/// How long missing deliveries may take once everything is healthy: the delays after failures, timeouts of lost
/// questions, slow reading.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a schedule. Returns what was seen, or what was wrong.
pub(crate) fn run(seed: u64) -> Result<(Counts, Trace), Failure> {
    simulate(seed, Schedule::new, async |schedule| schedule.go().await)
}

/// Runs the schedule from `make` as in `act` on a simulated clock.
fn simulate(
    seed: u64,
    make: impl FnOnce(u64) -> Schedule,
    act: impl AsyncFnOnce(&mut Schedule) -> Result<Counts, String>,
) -> Result<(Counts, Trace), Failure> {
    // The relay's jitter on this thread.
    fastrand::seed(seed);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true);
    // Without it, the order in which tokio wakes tasks that wait for the same value does not depend on the seed.
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    let runtime = builder.build().expect("a runtime");
    runtime.block_on(async {
        let mut schedule = make(seed);
        let result = act(&mut schedule).await;
        schedule.note("the end".into());
        let trace = schedule.trace.clone();
        result.map(|counts| (counts, trace.clone())).map_err(|error| Failure { seed, error, trace })
    })
}

/// What was wrong, with the events before it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) seed: u64,
    pub(crate) error: String,
    pub(crate) trace: Trace,
}

struct Schedule {
    rng: StdRng,
    cluster: Arc<Cluster>,
    relay: Arc<Relay>,
    watchers: Vec<Watcher>,
    readers: Vec<Option<Client>>,
    /// Reads under way, and hostile clients.
    tasks: JoinSet<Result<(), String>>,
    with_rights: bool,
    /// Hostile clients come more often.
    pressed: bool,
    trace: Trace,
}

/// The clients: anonymous, and users with permission for a part of the keys.
const TOKENS: [Option<&str>; 3] = [None, Some("alice"), Some("bob")];

impl Schedule {
    fn new(seed: u64) -> Self {
        let mut schedule = Self::with(seed, Terms::random, seed.is_multiple_of(2));
        for _ in 0..schedule.rng.random_range(1..5) {
            schedule.join();
        }
        schedule
    }

    /// With some writes and without clients.
    fn with(seed: u64, terms: impl FnOnce(&mut StdRng) -> Terms, with_rights: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let cluster = Cluster::new(rng.random());
        let terms = terms(&mut rng);
        let relay = Arc::new(Relay::new(&cluster, &terms));
        let pressed = rng.random_bool(0.3);
        let trace = Trace::new(&cluster);
        let mut schedule = Self {
            rng,
            cluster,
            relay,
            watchers: Vec::new(),
            readers: TOKENS.map(|_| None).into(),
            tasks: JoinSet::new(),
            with_rights,
            pressed,
            trace,
        };
        schedule.note(format!(
            "seed {seed}: {terms:?}, trusted {}, rights {with_rights}, pressed {pressed}",
            schedule.cluster.trusted()
        ));
        if with_rights {
            schedule.grant_all();
        }
        for _ in 0..schedule.rng.random_range(1..4) {
            schedule.write();
        }
        if schedule.rng.random_bool(0.15) {
            schedule.write_a_page();
        }
        schedule
    }

    fn note(&self, line: String) {
        self.trace.note(line);
    }

    async fn go(&mut self) -> Result<Counts, String> {
        for _ in 0..self.rng.random_range(60..250) {
            self.step().await?;
            self.failure()?;
        }
        self.settle().await?;
        self.relay.stop();
        Ok(self.counts())
    }

    fn counts(&self) -> Counts {
        self.watchers.iter().fold(Counts::default(), |sum, watcher| sum.and(watcher.check.lock().counts))
    }

    fn failure(&mut self) -> Result<(), String> {
        while let Some(done) = self.tasks.try_join_next() {
            done.map_err(|error| error.to_string())??;
        }
        self.watchers.iter().for_each(|watcher| watcher.check.lock().look_for_delays());
        self.watchers.iter().find_map(Watcher::failure).map_or(Ok(()), Err)
    }

    async fn step(&mut self) -> Result<(), String> {
        match self.rng.random_range(0..100) {
            0..26 => self.write(),
            26..38 => self.create(),
            38..43 => self.order(),
            43..58 => self.read().await,
            58..66 => {
                for _ in 0..self.rng.random_range(0..20) {
                    tokio::task::yield_now().await;
                }
            }
            66..80 => sleep(Duration::from_millis(self.rng.random_range(0..200))).await,
            80..82 => sleep(Duration::from_millis(self.rng.random_range(0..6_000))).await,
            82..85 => {
                let how = *[Harm::Break, Harm::Break, Harm::Stall, Harm::Cancel].choose(&mut self.rng).expect("some");
                self.note(format!("{how:?}"));
                self.cluster.harm(how);
            }
            85..88 => {
                if self.rng.random_bool(0.5) {
                    self.read_what_goes().await;
                }
                let share = self.rng.random_range(0.0..=1.0);
                let to = self.cluster.compact(share);
                self.note(format!("compact to {to}"));
            }
            88..93 => self.trouble(),
            93..94 if self.rng.random_bool(0.3) => self.list_across_a_replacement().await,
            93..94 if self.rng.random_bool(0.5) => {
                self.note("replace".into());
                let place = self.cluster.replace();
                self.note(format!("replaced: {place:?} of {}", self.cluster.id_of(place.epoch)));
                self.write();
            }
            94..97 if self.with_rights && self.rng.random_bool(0.2) => self.revoke_unheard().await?,
            94..97 if self.with_rights => self.change_rights().await,
            97..98 => self.hostile(),
            98..99 if self.watchers.len() < 6 => self.join(),
            _ if self.pressed => self.hostile(),
            _ => {}
        }
        Ok(())
    }

    fn write(&mut self) {
        for _ in 0..self.rng.random_range(1..4) {
            let keys = self.rng.random_range(1..4);
            let mut keys: Vec<&str> = KEYS.choose_multiple(&mut self.rng, keys).copied().collect();
            keys.sort_unstable();
            let changes: Changes = keys
                .into_iter()
                .map(|key| {
                    let value = self.rng.random_bool(0.7).then(|| {
                        let len = if self.rng.random_bool(0.05) { 2_000 } else { self.rng.random_range(0..30) };
                        Bytes::from(vec![b'v'; len])
                    });
                    (Bytes::from_static(key.as_bytes()), value)
                })
                .collect();
            self.cluster.write(&changes);
        }
    }

    /// More keys than the first page of a list in pages.
    fn write_a_page(&mut self) {
        let changes = (0..PAGE + 30).map(|number| (format!("c/{number:03}").into(), Some(Bytes::from_static(b"v"))));
        self.cluster.write(&changes.collect());
    }

    fn join(&mut self) {
        let token = *TOKENS.choose(&mut self.rng).expect("some");
        let reading = if self.rng.random_bool(0.7) { Reading::Prompt } else { Reading::Slow };
        self.join_as(token, reading);
        self.create();
    }

    fn join_as(&mut self, token: Option<&'static str>, reading: Reading) {
        self.note(format!("a watcher joins: {token:?}, {reading:?}"));
        let seed = self.rng.random();
        let check = StreamCheck::new(self.cluster.clone(), self.trace.clone(), token, reading == Reading::Prompt);
        // Few hosts, so that clients share them, but prompt and slow ones never share one.
        let host = Host(self.rng.random_range(1..4) + if reading == Reading::Prompt { 0 } else { 10 });
        self.watchers.push(Watcher::start(self.relay.clone(), host, check, token, reading, seed));
    }

    fn create(&mut self) {
        let (oldest, revision) = (self.cluster.oldest(), self.cluster.now().revision);
        let start = match self.rng.random_range(0..10) {
            0..5 => None,
            5..8 => Some(self.rng.random_range(oldest.max(revision - 6)..=revision + 1)),
            8 => Some(self.rng.random_range(oldest..=revision)),
            _ => Some(revision + self.rng.random_range(1..4)),
        };
        self.create_from(start);
    }

    fn create_from(&mut self, start: Option<i64>) {
        let wire = self.wire();
        let Ok(range) = KeyRange::from_wire(wire.0.clone(), wire.1.clone()) else { return };
        let epoch = self.cluster.now().epoch;
        let rng = &mut self.rng;
        let spec = Spec {
            wire,
            range,
            no_put: rng.random_bool(0.1),
            no_delete: rng.random_bool(0.1),
            prev_kv: rng.random_bool(0.4),
            progress_notify: rng.random_bool(0.3),
            fragment: rng.random_bool(0.2),
            start: start.filter(|start| *start > 0).map(|revision| Place { epoch, revision }),
        };
        if let Some(watcher) = self.watchers.choose(rng) {
            let line = format!("create {} from {start:?} by {:?}", spec.range, watcher.token);
            watcher.order(Order::Create(spec));
            self.note(line);
        }
    }

    fn order(&mut self) {
        let order = match self.rng.random_range(0..10) {
            0..5 => Order::Cancel(self.rng.random_range(0..100)),
            5..8 => Order::Progress,
            8 => Order::Reset,
            _ => Order::Break,
        };
        if let Some(watcher) = self.watchers.choose(&mut self.rng) {
            watcher.order(order);
        }
    }

    async fn reader(&mut self) -> Option<Client> {
        let index = self.rng.random_range(0..self.readers.len());
        if self.readers[index].is_none() {
            let client = Client::connect(&self.relay, Host(20), TOKENS[index], Windows::WIDE).await;
            self.readers[index] = client.ok();
        }
        self.readers[index].clone()
    }

    async fn read(&mut self) {
        let Some(client) = self.reader().await else { return };
        let (cluster, trace) = (self.cluster.clone(), self.trace.clone());
        if self.rng.random_bool(0.05) {
            let pause = Duration::from_millis(self.rng.random_range(0..40_000));
            self.tasks.spawn(async move { reads::list_in_pages(&cluster, &client, &trace, pause).await });
            return;
        }
        let wire = self.wire();
        let request = reads::random(&mut self.rng, &self.cluster, wire);
        self.tasks.spawn(async move { reads::read(&cluster, &client, &trace, request).await.map(|_| ()) });
    }

    /// Reads a revision that the next compaction will probably remove, a moment before it, while more is written.
    async fn read_what_goes(&mut self) {
        let Some(client) = self.reader().await else { return };
        let (key, range_end) = self.wire();
        // So new that feeds do not have it yet, and the read waits for them.
        self.write();
        let revision = self.cluster.oldest().max(self.cluster.now().revision - 3);
        let request = RangeRequest { key, range_end, revision, ..RangeRequest::default() };
        let (cluster, trace) = (self.cluster.clone(), self.trace.clone());
        self.tasks.spawn(async move { reads::read(&cluster, &client, &trace, request).await.map(|_| ()) });
        for _ in 0..self.rng.random_range(0..60) {
            tokio::task::yield_now().await;
        }
        let to = self.cluster.compact(1.0);
        self.note(format!("compact to {to}, which is read"));
        self.write();
    }

    /// A list in pages, during which another cluster replaces the one of the first page.
    async fn list_across_a_replacement(&mut self) {
        self.write_a_page();
        sleep(Duration::from_millis(self.rng.random_range(0..100))).await;
        let Some(client) = self.reader().await else { return };
        let (cluster, trace) = (self.cluster.clone(), self.trace.clone());
        let pause = Duration::from_millis(self.rng.random_range(500..20_000));
        self.tasks.spawn(async move { reads::list_in_pages(&cluster, &client, &trace, pause).await });
        sleep(Duration::from_millis(self.rng.random_range(5..500))).await;
        let place = self.cluster.replace_by_longer();
        self.note(format!("replaced by a longer one: {place:?}"));
        self.write();
    }

    fn trouble(&mut self) {
        let ms = |rng: &mut StdRng, most: u64| Duration::from_millis(rng.random_range(0..most));
        let rng = &mut self.rng;
        let mut faults = self.cluster.faults();
        match rng.random_range(0..12) {
            0..4 => faults = Faults::NONE,
            4 => faults.down = !faults.down,
            5 => faults.leaderless = !faults.leaderless,
            6 => faults.frozen = !faults.frozen,
            7 => faults.lag = ms(rng, 3_000),
            8 => faults.latency = ms(rng, 1_500),
            9 => (faults.lag, faults.latency) = (ms(rng, 60), ms(rng, 60)),
            10 => faults.deaf = !faults.deaf,
            _ => faults.rough = !faults.rough,
        }
        self.note(format!("{faults:?}"));
        self.cluster.set_faults(faults);
    }

    fn grant_all(&mut self) {
        self.cluster.set_rights(|rights| {
            rights.granted.insert("alice", vec![KeyRange::prefix(Bytes::from_static(b"a/"))]);
            rights.granted.insert("bob", vec![KeyRange::prefix(Bytes::new())]);
        });
    }

    async fn change_rights(&mut self) {
        // An answer is never at the same time as a change, as with a real clock.
        advance(TICK).await;
        let rng = &mut self.rng;
        let user = *["alice", "bob"].choose(rng).expect("some");
        let what = rng.random_range(0..5);
        self.cluster.set_rights(|rights| match what {
            0 | 1 => rights.on = !rights.on,
            2 => drop(rights.granted.remove(user)),
            3 => drop(rights.granted.insert(user, vec![KeyRange::prefix(Bytes::from_static(b"b/"))])),
            _ => {}
        });
        if what == 4 {
            self.grant_all();
        }
        self.note(format!("{:?}", self.cluster.rights()));
        advance(TICK).await;
    }

    /// All users lose their permissions while the relay cannot ask about them, for longer than the limit on what is
    /// shown after that: because the cluster does not answer such questions, or because it is away.
    async fn revoke_unheard(&mut self) -> Result<(), String> {
        let down = self.rng.random_bool(0.5);
        let faults = Faults { down, deaf: !down, ..Faults::NONE };
        self.note(format!("revoked unheard: {faults:?}"));
        self.cluster.set_faults(faults);
        advance(TICK).await;
        self.cluster.set_rights(|rights| {
            rights.on = true;
            rights.granted.clear();
        });
        let until = Instant::now() + Duration::from_secs(13);
        while Instant::now() < until {
            self.write();
            self.read().await;
            self.create();
            if self.rng.random_bool(0.2) {
                self.order();
            }
            sleep(Duration::from_millis(self.rng.random_range(100..800))).await;
            self.failure()?;
        }
        // A member that is back may not have a leader yet.
        self.cluster.set_faults(Faults { leaderless: self.rng.random_bool(0.3), ..Faults::NONE });
        for _ in 0..8 {
            self.write();
            self.read().await;
            self.create();
            sleep(Duration::from_millis(self.rng.random_range(0..250))).await;
            self.failure()?;
        }
        self.cluster.set_faults(Faults::NONE);
        self.grant_all();
        advance(TICK).await;
        Ok(())
    }

    /// A client that wants more than its share or gives nothing back.
    fn hostile(&mut self) {
        let hostile = Hostile::random(&mut self.rng);
        self.attack(hostile);
    }

    fn attack(&mut self, hostile: Hostile) {
        let life = Duration::from_millis(self.rng.random_range(0..8_000));
        self.attack_from(hostile::HOST, hostile, life);
    }

    fn attack_from(&mut self, host: Host, hostile: Hostile, life: Duration) {
        let (relay, wire) = (self.relay.clone(), self.wire());
        let from = self.cluster.oldest();
        self.note(format!("{hostile:?} for {life:?}"));
        self.tasks.spawn(async move {
            hostile.run(relay, host, wire, from, life).await;
            Ok(())
        });
    }

    /// A range in the form that clients send.
    fn wire(&mut self) -> (Bytes, Bytes) {
        let (key, end): (&'static str, &'static [u8]) = *[
            ("a/", &b"a0"[..]),
            ("a/", b"a0"),
            ("a/1", b""),
            ("a/", b""),
            ("a/1", b"a/2"),
            ("b/", b"b0"),
            ("b/0", b""),
            ("c", b""),
            ("\0", b"\0"),
            ("a", b"c"),
        ]
        .choose(&mut self.rng)
        .expect("some");
        (Bytes::from_static(key.as_bytes()), Bytes::from_static(end))
    }

    /// Ends all faults; everything that is missing must come.
    async fn settle(&mut self) -> Result<(), String> {
        self.note("settle".into());
        self.cluster.settle();
        advance(TICK).await;
        self.cluster.set_rights(|rights| rights.on = false);
        advance(TICK).await;
        self.write();
        let patience = Instant::now() + PATIENCE;
        loop {
            self.failure()?;
            let owed = self.watchers.iter().find_map(|watcher| watcher.check.lock().overdue());
            let Some(owed) = owed else { break };
            ensure_patience(patience, &owed)?;
            sleep(LOOK).await;
        }
        while let Some(done) = self.tasks.join_next().await {
            done.map_err(|error| error.to_string())??;
        }
        Ok(())
    }
}

fn ensure_patience(patience: Instant, owed: &str) -> Result<(), String> {
    crate::ensure(Instant::now() < patience, || format!("reliable, in the end: {owed}"))
}

impl Counts {
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            events: self.events + other.events,
            progress: self.progress + other.progress,
            created: self.created + other.created,
            refused: self.refused + other.refused,
            compacted: self.compacted + other.compacted,
            revoked: self.revoked + other.revoked,
            told: self.told + other.told,
            resumed: self.resumed + other.resumed,
            slowest: (self.slowest.0.max(other.slowest.0), self.slowest.1.max(other.slowest.1)),
            quiet: self.quiet.max(other.quiet),
            overtaken: self.overtaken.max(other.overtaken),
        }
    }
}
