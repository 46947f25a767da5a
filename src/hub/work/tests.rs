//! Tests of the order of turns, of the limits, and that a client that leaves leaves nothing behind.

use std::sync::mpsc;

use super::*;

/// More than any test needs.
const ROOM: usize = 1000;

/// Records each of its steps, and waits before each for permission to continue.
struct Steps {
    name: &'static str,
    left: usize,
    said: mpsc::SyncSender<&'static str>,
    leave: Arc<Mutex<mpsc::Receiver<()>>>,
    reply: usize,
    held: mpsc::SyncSender<Held>,
}

impl Job for Steps {
    fn step(&mut self, share: &Share) -> bool {
        self.leave.lock().recv().expect("leave");
        self.said.send(self.name).expect("heard");
        self.left -= 1;
        if self.left == 0 && self.reply > 0 {
            self.held.send(share.hold(self.reply)).expect("kept");
        }
        self.left == 0
    }
}

/// Workers with one thread, which makes a step when the test allows it.
struct Bench {
    workers: Workers,
    said: (mpsc::SyncSender<&'static str>, mpsc::Receiver<&'static str>),
    leave: (mpsc::SyncSender<()>, Arc<Mutex<mpsc::Receiver<()>>>),
    held: (mpsc::SyncSender<Held>, mpsc::Receiver<Held>),
}

impl Bench {
    fn new(bounds: Bounds) -> Self {
        let (go, leave) = mpsc::sync_channel(ROOM);
        Self {
            workers: Workers::new(bounds, Hands::Threads(1)),
            said: mpsc::sync_channel(ROOM),
            leave: (go, Arc::new(Mutex::new(leave))),
            held: mpsc::sync_channel(ROOM),
        }
    }

    fn enter(&self, name: &'static str, client: u64, connection: u64, steps: usize) -> Result<Place, Busy> {
        self.enter_holding(name, client, connection, steps, 0)
    }

    fn enter_holding(
        &self,
        name: &'static str,
        client: u64,
        connection: u64,
        steps: usize,
        reply: usize,
    ) -> Result<Place, Busy> {
        let (said, leave, held) = (self.said.0.clone(), self.leave.1.clone(), self.held.0.clone());
        let job = Steps { name, left: steps, said, leave, reply, held };
        self.workers.enter(Asker { client: ClientKey::new(client), connection }, 100, Box::new(job))
    }

    /// Allows this many steps, and returns which jobs made them.
    fn step(&self, steps: usize) -> String {
        (0..steps).for_each(|_| self.leave.0.send(()).expect("there is a thread"));
        (0..steps).map(|_| self.said.1.recv().expect("said")).collect::<Vec<_>>().join(" ")
    }

    /// Waits until everything that was begun has ended. Nothing else may be waiting for permission.
    fn settled(&self) {
        while self.workers.shared.queue.lock().under_way > 0 {
            thread::yield_now();
        }
    }
}

#[test]
fn clients_take_turns_and_each_client_takes_them_by_connection() {
    let bench = Bench::new(Bounds::default());
    // The thread is running the first one while the others arrive.
    let places = [
        bench.enter("a1", 1, 1, 3),
        bench.enter("a2", 1, 1, 1),
        bench.enter("a3", 1, 1, 1),
        bench.enter("A1", 1, 2, 1),
        bench.enter("b1", 2, 3, 2),
    ];
    assert!(places.iter().all(Result::is_ok));
    let all = bench.step(8);
    // Client 2 need not wait for client 1's long read, nor client 1's second connection for the whole queue of the
    // first.
    assert!(all == "a1 b1 a1 b1 a1 A1 a2 a3" || all == "a1 a1 b1 a1 b1 A1 a2 a3", "{all}");
}

#[test]
fn beyond_its_bounds_a_client_is_refused_and_others_are_not() {
    let bounds = Bounds { waiting: 3, ..Bounds::default() };
    let bench = Bench::new(bounds);
    let mut places: Vec<Place> = Vec::new();
    while let Ok(place) = bench.enter("a", 1, 1, 1) {
        places.push(place);
    }
    // The thread may be running one.
    assert!((3..=4).contains(&places.len()), "{}", places.len());
    assert!(bench.enter("b", 2, 2, 1).is_ok());
    let bench = Bench::new(Bounds { waiting_bytes: 250, ..Bounds::default() });
    let mut places: Vec<Place> = Vec::new();
    while let Ok(place) = bench.enter("a", 1, 1, 1) {
        places.push(place);
    }
    assert!((2..=3).contains(&places.len()), "{}", places.len());
}

#[test]
fn a_read_whose_client_goes_is_not_gone_on_with() {
    let bench = Bench::new(Bounds::default());
    let begun = bench.enter("a1", 1, 1, 1000).expect("room");
    let waiting = bench.enter("a2", 1, 1, 1000).expect("room");
    let last = bench.enter("a3", 1, 1, 1).expect("room");
    assert_eq!(bench.step(2), "a1 a1");
    drop(waiting);
    assert_eq!(bench.workers.shared.queue.lock().clients[&ClientKey::new(1)].waiting.len(), 1, "forgotten at once");
    drop(begun);
    // The step that was begun may still end.
    let next = bench.step(1);
    assert!(next == "a3" || next == "a1" && bench.step(1) == "a3", "{next}");
    drop(last);
}

#[test]
fn a_client_that_does_not_take_its_replies_begins_no_more_until_it_does() {
    let bench = Bench::new(Bounds { held_bytes: 100, ..Bounds::default() });
    let _first = bench.enter_holding("a1", 1, 1, 1, 60).expect("room");
    let _second = bench.enter_holding("a2", 1, 1, 1, 60).expect("room");
    let _third = bench.enter("a3", 1, 1, 1).expect("room");
    assert_eq!(bench.step(2), "a1 a2");
    bench.settled();
    let _other = bench.enter("b", 2, 2, 1).expect("room");
    assert_eq!(bench.step(1), "b", "other clients are not held up");
    drop(bench.held.1.recv().expect("a reply"));
    assert_eq!(bench.step(1), "a3");
    bench.settled();
    drop(bench.held.1.recv().expect("a reply"));
    bench.settled();
}

#[test]
fn nothing_is_kept_of_a_client_that_has_nothing_here() {
    let bench = Bench::new(Bounds::default());
    let places: Vec<_> = (0..200).map(|client| bench.enter("a", client + 1, client, 1).expect("room")).collect();
    bench.step(200);
    bench.settled();
    drop(places);
    let queue = bench.workers.shared.queue.lock();
    assert_eq!((queue.clients.len(), queue.clients.capacity(), queue.to_begin.capacity()), (0, 0, 0));
}

#[test]
fn a_job_that_panics_ends_alone() {
    struct Panics;
    impl Job for Panics {
        fn step(&mut self, _: &Share) -> bool {
            panic!("made to")
        }
    }
    let bench = Bench::new(Bounds::default());
    let asker = Asker { client: ClientKey::new(1), connection: 1 };
    let _place = bench.workers.enter(asker, 1, Box::new(Panics)).expect("room");
    let _next = bench.enter("a", 1, 1, 1).expect("room");
    assert_eq!(bench.step(1), "a");
}
