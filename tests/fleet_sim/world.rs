//! [`World`]: relays and clients as events on a simulated clock.
//!
//! A relay decides by `etcd_relay::fleet`. The model around it consists of the constants below: the cost of a
//! connection, how long a relay takes to start and to read its snapshot, and its requests to etcd. A killed relay
//! refuses connections at once. Bytes, events of keys and slow clients are not modelled. Always holds: a seed repeats
//! the run.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    fmt,
    ops::Sub,
    time::Duration,
};

use etcd_relay::{
    fleet::{Drain, Load, Publishing, STEP, Shedding, age_rate, greatest_age, spread},
    rate::Rate,
    relay::DRAIN_TIME,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::clients::Client;

/// A relay's CPU time for a connection with a TLS handshake and its watches.
const CONNECT: Duration = Duration::from_millis(1);
/// The additional CPU time for creates that waited for its snapshot.
const CREATE: Duration = Duration::from_micros(50);
/// The timeout of a handshake, and of a create that waits for a snapshot.
const HANDSHAKE: Duration = Duration::from_secs(10);
const WAIT: Duration = Duration::from_secs(30);
/// How long a starting relay takes to read its snapshots. For each prefix it sends etcd a list in pages, a watch, and a
/// watch of the past.
const SNAPSHOT: Duration = Duration::from_secs(1);
const PREFIXES: usize = 2;
const PAGES: usize = 100;
/// The time for a question about the current revision; all who ask meanwhile share the next one.
const ROUND: Duration = Duration::from_millis(5);
/// How long the registration of a killed relay stays (`--resolver-ttl`).
const TTL: Duration = Duration::from_secs(60);
/// Pause between two searches for connections that are too old.
const AGE_STEP: Duration = Duration::from_millis(500);

/// The parameters of a fleet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) clients: usize,
    pub(crate) relays: usize,
    pub(crate) max_age: Option<Duration>,
    /// Clients know only the first relay.
    pub(crate) sticky: bool,
}

impl Terms {
    pub(crate) const DRAIN: Duration = DRAIN_TIME;
    /// The time from the end of a relay's process until its successor accepts connections.
    pub(crate) const START: Duration = Duration::from_secs(5);
}

/// The requests to etcd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) watches: usize,
    pub(crate) pages: usize,
    pub(crate) asks: usize,
    pub(crate) puts: usize,
}

impl Sub for Asked {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            watches: self.watches - before.watches,
            pages: self.pages - before.pages,
            asks: self.asks - before.asks,
            puts: self.puts - before.puts,
        }
    }
}

/// The next event of a client or a relay. A relay's events name the process that they belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Connect(usize),
    Served(usize, u32),
    Starts(usize),
    HasSnapshot(usize, u32),
    Looks(usize, u32),
    Sheds(usize, u32),
    Drains(usize, u32),
    AsksTheOld(usize, u32),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Life {
    #[default]
    Down,
    Accepting,
    Draining,
}

#[derive(Debug, Default)]
struct Relay {
    life: Life,
    /// Counts its processes.
    process: u32,
    /// Its clients.
    open: Vec<usize>,
    has_snapshot: bool,
    busy_until: Duration,
    round_until: Duration,
    /// Creates that wait for the snapshot.
    waiting: Vec<(usize, u32)>,
    shedding: Shedding,
    publishing: Publishing,
    /// The rate for connections that are too old.
    rate: Option<Rate>,
    drain: Option<Drain>,
    ages: BTreeMap<(Duration, usize), u32>,
    /// The number that it published, and how long that stays without it.
    told: Option<(Load, Duration)>,
    accepted: PerSecond,
}

/// The greatest number in one second.
#[derive(Clone, Copy, Debug, Default)]
struct PerSecond {
    second: u64,
    count: usize,
    worst: usize,
}

impl PerSecond {
    fn add(&mut self, now: Duration) {
        if self.second != now.as_secs() {
            (self.second, self.count) = (now.as_secs(), 0);
        }
        self.count += 1;
        self.worst = self.worst.max(self.count);
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct World {
    terms: Terms,
    now: Duration,
    rng: StdRng,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    last: u64,
    relays: Vec<Relay>,
    clients: Vec<Client>,
    has_etcd: bool,
    etcd: Asked,
    asked: usize,
    /// Number of clients that get events.
    caught_up: usize,
    accepted: PerSecond,
    connects: usize,
    aways: Vec<Duration>,
}

/// The observations since the last report.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) what: &'static str,
    pub(crate) clients: usize,
    pub(crate) relays: usize,
    /// Most connections per second at a relay.
    pub(crate) worst_at_a_relay: usize,
    pub(crate) worst_in_all: usize,
    pub(crate) connects: usize,
    /// How long clients got no events.
    pub(crate) away_99: Duration,
    pub(crate) longest_away: Duration,
    /// The smallest and the largest number of connections of a relay, in percent of the mean.
    pub(crate) shares: (usize, usize),
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, clients, relays, worst_at_a_relay, worst_in_all, connects, away_99, longest_away, shares } =
            self;
        let percent = |count: usize| count as f64 * 100.0 / *clients as f64;
        write!(
            f,
            "| {what} | {clients} | {relays} | {worst_at_a_relay} ({:.1} %) | {worst_in_all} ({:.1} %) | {:.2} | {away_99:.1?} | {longest_away:.1?} | {}–{} % |",
            percent(*worst_at_a_relay),
            percent(*worst_in_all),
            *connects as f64 / *clients as f64,
            shares.0,
            shares.1,
        )
    }
}

impl World {
    pub(crate) fn new(terms: Terms, seed: u64) -> Self {
        Self {
            terms,
            now: Duration::ZERO,
            rng: StdRng::seed_from_u64(seed),
            events: BinaryHeap::new(),
            last: 0,
            relays: (0..terms.relays).map(|_| Relay::default()).collect(),
            clients: vec![Client::new(); terms.clients],
            has_etcd: true,
            etcd: Asked::default(),
            asked: 0,
            caught_up: 0,
            accepted: PerSecond::default(),
            connects: 0,
            aways: Vec::new(),
        }
    }

    /// Starts all relays and connects all clients over some minutes, without reporting it.
    pub(crate) fn settle(&mut self) {
        (0..self.terms.relays).for_each(|relay| self.start(relay));
        self.run(Terms::START + SNAPSHOT);
        let over = Duration::from_secs(60).as_micros() as u64;
        for client in 0..self.clients.len() {
            let at = Duration::from_micros(self.rng.random_range(0..over));
            self.after(at, Event::Connect(client));
        }
        self.run(Duration::from_secs(180));
        let _start = self.report("start");
        self.asked = 0;
    }

    /// Advances the clock by this time.
    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(Reverse((at, _, event))) = self.events.peek().copied().filter(|Reverse((at, ..))| *at <= until) {
            self.events.pop();
            self.now = at;
            self.happens(event);
        }
        self.now = until;
    }

    /// Advances the clock until all clients get events, and returns the time.
    pub(crate) fn run_until_caught_up(&mut self, most: Duration) -> Duration {
        let begun = self.now;
        while self.caught_up < self.clients.len() && self.now - begun < most {
            self.run(Duration::from_millis(100));
        }
        self.now - begun
    }

    /// A relay drains, stops, and starts again.
    pub(crate) fn restart(&mut self, relay: usize) {
        let (now, Relay { life, open, drain, told, process, .. }) = (self.now, &mut self.relays[relay]);
        *life = Life::Draining;
        *drain = Some(Drain::new(open.len(), spread(Terms::DRAIN), now));
        // It removes its registration.
        *told = None;
        let drains = Event::Drains(relay, *process);
        self.after(Duration::ZERO, drains);
    }

    /// A relay is killed.
    pub(crate) fn kill(&mut self, relay: usize) {
        let ended = std::mem::take(&mut self.relays[relay].open);
        self.ends(relay);
        for client in ended {
            self.loses_connection(client);
        }
    }

    /// A relay that has stopped starts again.
    pub(crate) fn start(&mut self, relay: usize) {
        self.after(Terms::START, Event::Starts(relay));
    }

    pub(crate) fn etcd_goes(&mut self) {
        self.has_etcd = false;
    }

    pub(crate) fn etcd_comes(&mut self) {
        self.has_etcd = true;
        for relay in 0..self.relays.len() {
            if self.relays[relay].life == Life::Accepting && !self.relays[relay].has_snapshot {
                self.reads_snapshot(relay);
            }
        }
    }

    pub(crate) fn clients(&self) -> usize {
        self.clients.len()
    }

    pub(crate) fn relays(&self) -> usize {
        self.relays.len()
    }

    /// The number of connections of each relay.
    pub(crate) fn shares(&self) -> Vec<usize> {
        self.relays.iter().map(|relay| relay.open.len()).collect()
    }

    /// The number of connections that running relays asked to leave since the settling.
    pub(crate) fn asked(&self) -> usize {
        self.asked
    }

    pub(crate) fn caught_up(&self) -> usize {
        self.caught_up
    }

    pub(crate) fn etcd(&self) -> Asked {
        self.etcd
    }

    /// The observations since the last report.
    pub(crate) fn report(&mut self, what: &'static str) -> Report {
        let worst_at_a_relay = self.relays.iter().map(|relay| relay.accepted.worst).max().unwrap_or(0);
        let mut aways = std::mem::take(&mut self.aways);
        aways.sort_unstable();
        let mean = (self.clients.len() / self.relays.len()).max(1);
        let shares = self.shares();
        let percent = |share: Option<&usize>| share.map_or(0, |share| share * 100 / mean);
        let report = Report {
            what,
            clients: self.clients.len(),
            relays: self.relays.len(),
            worst_at_a_relay,
            worst_in_all: self.accepted.worst,
            connects: std::mem::take(&mut self.connects),
            away_99: aways.get(aways.len() * 99 / 100).copied().unwrap_or_default(),
            longest_away: aways.last().copied().unwrap_or_default(),
            shares: (percent(shares.iter().min()), percent(shares.iter().max())),
        };
        self.relays.iter_mut().for_each(|relay| relay.accepted = PerSecond::default());
        self.accepted = PerSecond::default();
        report
    }

    fn after(&mut self, time: Duration, event: Event) {
        self.last += 1;
        self.events.push(Reverse((self.now + time, self.last, event)));
    }

    fn happens(&mut self, event: Event) {
        let is_now = |relay: usize, process: u32| self.relays[relay].process == process;
        match event {
            Event::Connect(client) => self.connects(client),
            Event::Served(client, connection) => self.served(client, connection),
            Event::Starts(relay) => self.starts(relay),
            Event::HasSnapshot(relay, process) if is_now(relay, process) => self.has_snapshot(relay),
            Event::Looks(relay, process) if is_now(relay, process) => self.looks(relay),
            Event::Sheds(relay, process) if is_now(relay, process) => self.asks_one(relay, None),
            Event::Drains(relay, process) if is_now(relay, process) => self.drains(relay),
            Event::AsksTheOld(relay, process) if is_now(relay, process) => self.asks_the_old(relay),
            // An event of a process that has ended.
            _ => {}
        }
    }

    fn connects(&mut self, client: usize) {
        let Some(relay) = self.any_that_accepts() else {
            let wait = self.clients[client].backoff(&mut self.rng);
            return self.after(wait, Event::Connect(client));
        };
        let chance = self.rng.random();
        self.accepted.add(self.now);
        self.connects += 1;
        let at = &mut self.relays[relay];
        at.accepted.add(self.now);
        self.clients[client].connects(relay, at.open.len());
        let connection = self.clients[client].connection;
        at.open.push(client);
        if let Some(age) = self.terms.max_age {
            at.ages.insert((self.now + greatest_age(age, chance), client), connection);
        }
        let done = at.busy_until.max(self.now) + CONNECT;
        if done - self.now > HANDSHAKE {
            self.leaves(client);
            let wait = HANDSHAKE + self.clients[client].backoff(&mut self.rng);
            return self.after(wait, Event::Connect(client));
        }
        at.busy_until = done;
        self.after(done - self.now, Event::Served(client, connection));
    }

    /// A random relay that accepts connections.
    fn any_that_accepts(&mut self) -> Option<usize> {
        let accepts = |relay: &usize| self.relays[*relay].life == Life::Accepting;
        let known = if self.terms.sticky { 1 } else { self.relays.len() };
        // Nearly always the first attempt succeeds.
        let thrown = (0..8).map(|_| self.rng.random_range(0..known)).find(accepts);
        thrown.or_else(|| {
            let accepting: Vec<usize> = (0..known).filter(accepts).collect();
            (!accepting.is_empty()).then(|| accepting[self.rng.random_range(0..accepting.len())])
        })
    }

    fn served(&mut self, client: usize, connection: u32) {
        let Some((relay, _)) = self.clients[client].at.filter(|_| self.clients[client].connection == connection) else {
            return;
        };
        self.clients[client].connected();
        let at = &mut self.relays[relay];
        if !at.has_snapshot {
            at.waiting.push((client, connection));
            // It is refused then, and creates its watches again.
            return self.after(WAIT + Duration::from_secs(1), Event::Served(client, connection));
        }
        if self.now >= at.round_until {
            at.round_until = self.now + ROUND;
            self.etcd.asks += 1;
        }
        self.catches_up(client, self.now);
    }

    fn catches_up(&mut self, client: usize, when: Duration) {
        if let Some(since) = self.clients[client].away.take() {
            self.caught_up += 1;
            self.aways.push(when - since);
        }
    }

    /// Removes the client from its relay.
    fn leaves(&mut self, client: usize) {
        let Some((relay, index)) = self.clients[client].at.take() else { return };
        let at = &mut self.relays[relay];
        if at.open.get(index) == Some(&client) {
            at.open.swap_remove(index);
            if let Some(moved) = at.open.get(index) {
                self.clients[*moved].at = Some((relay, index));
            }
        }
        if self.clients[client].away.is_none() {
            self.clients[client].away = Some(self.now);
            self.caught_up -= 1;
        }
    }

    fn loses_connection(&mut self, client: usize) {
        self.leaves(client);
        let reaction = Client::reaction(&mut self.rng);
        self.after(reaction, Event::Connect(client));
    }

    fn starts(&mut self, relay: usize) {
        let process = self.relays[relay].process + 1;
        let accepted = self.relays[relay].accepted;
        self.relays[relay] =
            Relay { life: Life::Accepting, process, accepted, busy_until: self.now, ..Relay::default() };
        if self.has_etcd {
            self.reads_snapshot(relay);
        }
        let offset = Duration::from_micros(self.rng.random_range(0..STEP.as_micros() as u64));
        self.after(offset, Event::Looks(relay, process));
        if self.terms.max_age.is_some() {
            self.after(AGE_STEP, Event::AsksTheOld(relay, process));
        }
    }

    fn reads_snapshot(&mut self, relay: usize) {
        self.etcd.watches += 2 * PREFIXES;
        self.etcd.pages += PAGES * PREFIXES;
        self.after(SNAPSHOT, Event::HasSnapshot(relay, self.relays[relay].process));
    }

    fn has_snapshot(&mut self, relay: usize) {
        let at = &mut self.relays[relay];
        at.has_snapshot = true;
        let waiting = std::mem::take(&mut at.waiting);
        self.etcd.asks += 1;
        let mut when = at.busy_until.max(self.now);
        for (client, connection) in waiting {
            if self.clients[client].at.is_some() && self.clients[client].connection == connection {
                when += CREATE;
                self.after(when - self.now, Event::Served(client, connection));
            }
        }
        self.relays[relay].busy_until = when;
    }

    fn ends(&mut self, relay: usize) {
        let Relay { process, accepted, told, .. } = std::mem::take(&mut self.relays[relay]);
        let told = told.map(|(load, _)| (load, self.now + TTL));
        self.relays[relay] = Relay { process: process + 1, accepted, told, ..Relay::default() };
    }

    /// Runs once per second, like `front::balance`.
    fn looks(&mut self, relay: usize) {
        let (now, process) = (self.now, self.relays[relay].process);
        if self.relays[relay].life != Life::Accepting {
            return;
        }
        let own = Load {
            connections: self.relays[relay].open.len(),
            ready: self.relays[relay].has_snapshot && self.has_etcd,
        };
        let others: Option<Vec<usize>> = (self.has_etcd && own.ready).then(|| {
            let others = self.relays.iter().enumerate().filter(|(other, _)| *other != relay);
            let told = others.filter_map(|(_, other)| other.told.filter(|(load, until)| load.ready && *until > now));
            told.map(|(load, _)| load.connections).collect()
        });
        let at = &mut self.relays[relay];
        let relays = others.as_ref().map_or(0, |others| others.len() + 1);
        if self.has_etcd && at.publishing.is_due(now, own, relays) {
            at.told = Some((own, Duration::MAX));
            self.etcd.puts += 1;
        }
        let count = at.shedding.look(now, own.connections, others.as_deref());
        for asked in 0..count {
            self.after(STEP.mul_f64(asked as f64 / count as f64), Event::Sheds(relay, process));
        }
        self.after(STEP, Event::Looks(relay, process));
    }

    /// Asks one client to leave: this one, or any.
    fn asks_one(&mut self, relay: usize, client: Option<usize>) {
        let open = &self.relays[relay].open;
        if self.relays[relay].life != Life::Accepting || open.is_empty() {
            return;
        }
        let client = client.unwrap_or_else(|| open[self.rng.random_range(0..open.len())]);
        self.asked += 1;
        self.loses_connection(client);
    }

    fn drains(&mut self, relay: usize) {
        let process = self.relays[relay].process;
        loop {
            let at = &mut self.relays[relay];
            let remaining = at.open.len();
            let passed = at.drain.as_mut().map_or(Ok(()), |drain| drain.pass(self.now, remaining));
            if let Err(next) = passed {
                return self.after(next - self.now, Event::Drains(relay, process));
            }
            if at.open.is_empty() {
                self.ends(relay);
                return self.start(relay);
            }
            let client = at.open[self.rng.random_range(0..at.open.len())];
            self.loses_connection(client);
        }
    }

    fn asks_the_old(&mut self, relay: usize) {
        let process = self.relays[relay].process;
        if self.relays[relay].life != Life::Accepting {
            return;
        }
        let at = &mut self.relays[relay];
        let mut rate = at.rate.unwrap_or_else(|| Rate::new(age_rate(0), self.now));
        rate.set(age_rate(at.open.len()));
        let mut next = self.now + AGE_STEP;
        while let Some(((old, client), connection)) = self.relays[relay].ages.pop_first() {
            let is_there = self.clients[client].connection == connection
                && self.clients[client].at.is_some_and(|(there, _)| there == relay);
            if !is_there {
                continue;
            }
            let passed = if old > self.now { Err(next) } else { rate.pass(self.now) };
            if let Err(at) = passed {
                next = at;
                self.relays[relay].ages.insert((old, client), connection);
                break;
            }
            self.asks_one(relay, Some(client));
        }
        self.relays[relay].rate = Some(rate);
        self.after(next - self.now, Event::AsksTheOld(relay, process));
    }
}
