//! Two of three members are gone, and with them the quorum. The relay serves what etcd serves from a member without a
//! leader: watches and serializable reads. Calls that need a leader fail with etcd's errors and timing, and everything
//! recovers with the quorum.
//!
//! The loss of one member is in `members`. The relay is compared with the member itself.

use std::time::{Duration, Instant};

use etcd_relay::pb::etcdserverpb::{RangeRequest, WatchCreateRequest};
use tonic::{Code, Status};

use super::{OUTSIDE, PREFIX};
use crate::support::{
    client::{self, WatchStream, header_revision, revisions},
    etcd::Etcd,
    eventually,
    kv::{self, Kv},
    peers::Fault,
    relay::{Relay, RelayCommand},
    replay::Replay,
    validate::{Expected, assert_valid},
};

/// How two of three members fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Killed,
    /// They keep their connections but are silent.
    Frozen,
}

impl Loss {
    fn strikes(self, etcd: &mut Etcd) {
        for member in [1, 2] {
            match self {
                Self::Killed => etcd.kill_member(member),
                Self::Frozen => etcd.pause_member(member),
            }
        }
    }

    async fn ends(self, etcd: &mut Etcd) {
        match self {
            Self::Killed => etcd.restart().await,
            Self::Frozen => etcd.resume(),
        }
    }
}

fn command(etcd: &Etcd) -> RelayCommand {
    RelayCommand::serve(&etcd.endpoints()).prefix(PREFIX).arg("--on-demand=allow")
}

async fn has_lost_the_leader(relay: &Relay) {
    eventually("the relay says that there is no leader", async || {
        (relay.metric("etcd_relay_upstream_leaderless").await == 1.0).then_some(())
    })
    .await;
}

fn range(key: impl AsRef<[u8]>, serializable: bool) -> RangeRequest {
    RangeRequest { key: kv::bytes(key), serializable, ..RangeRequest::default() }
}

/// How a call fails, and after how long.
async fn fails<T: std::fmt::Debug>(call: impl Future<Output = Result<T, Status>>) -> (Code, String, Duration) {
    let began = Instant::now();
    let status = call.await.expect_err("there is no leader");
    (status.code(), status.message().to_owned(), began.elapsed())
}

/// Linearizable reads and writes through the relay fail with the member's error, and not much later.
async fn fail_alike(direct: &Kv, through: &Kv) {
    let read = async |kv: &Kv, key: String| fails(kv.raw.clone().range(range(key, false))).await;
    let write = async |kv: &Kv| fails(kv.raw.clone().put(kv::put("/unseen", "1"))).await;
    let (inside, outside) = (format!("{PREFIX}a"), format!("{OUTSIDE}a"));
    let (told, told_inside, told_outside, refused, refused_through) = tokio::join!(
        read(direct, outside.clone()),
        read(through, inside),
        read(through, outside),
        write(direct),
        write(through)
    );
    println!(
        "reads fail after {:?}, {:?}, {:?}; writes after {:?}, {:?}",
        told.2, told_inside.2, told_outside.2, refused.2, refused_through.2
    );
    let words = |told: (Code, String, Duration)| (told.0, told.1);
    let told = words(told);
    assert_eq!((words(told_inside), words(told_outside)), (told.clone(), told));
    assert_eq!(words(refused_through), words(refused));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_members_were_killed() {
    Box::pin(goes_on_without(Loss::Killed)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_members_are_frozen() {
    Box::pin(goes_on_without(Loss::Frozen)).await;
}

async fn goes_on_without(loss: Loss) {
    let mut etcd = Etcd::cluster_of_three().await;
    let relay = command(&etcd).start().await;
    relay.follows().await;
    let direct = Kv::connect(&etcd.endpoint()).await;
    let first = direct.put(format!("{OUTSIDE}a"), "1").await;
    let last = direct.put(format!("{PREFIX}a"), "1").await;
    let mut live = WatchStream::open(&relay.endpoint()).await;
    live.created(client::prefix(PREFIX)).await;
    loss.strikes(&mut etcd);
    let began = Instant::now();
    // Before the loss is noticed, and afterwards.
    let mut at_once = WatchStream::open(&relay.endpoint()).await;
    at_once.created(client::prefix("/at once/")).await;
    println!("{loss:?}: a watch of a new range is created after {:?}", began.elapsed());
    has_lost_the_leader(&relay).await;
    println!("{loss:?}: the relay says that there is no leader after {:?}", began.elapsed());

    let began = Instant::now();
    let past = WatchCreateRequest { start_revision: first, ..client::prefix(OUTSIDE) };
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    let mut member = WatchStream::open(&etcd.endpoint()).await;
    for request in [&past, &client::prefix("/elsewhere/"), &client::prefix(PREFIX)] {
        let (one, another) = (member.created(request.clone()).await, stream.created(request.clone()).await);
        assert_eq!(header_revision(&another), header_revision(&one), "{request:?}");
        if request.start_revision > 0 {
            assert_eq!(revisions(&member.next().await), [first]);
            assert_eq!(revisions(&stream.next().await), [first]);
        }
    }
    println!("{loss:?}: three watches, one of the past, after {:?}", began.elapsed());
    for stream in [&mut member, &mut stream] {
        stream.progress();
        assert_eq!(header_revision(&stream.until(client::is_progress).await), last);
    }
    let through = Kv::connect(&relay.endpoint()).await;
    for key in [format!("{OUTSIDE}a"), format!("{PREFIX}a")] {
        let (one, another) = (direct.range(range(&key, true)).await, through.range(range(&key, true)).await);
        assert_eq!((another.kvs, another.count), (one.kvs, one.count));
    }
    Box::pin(fail_alike(&direct, &through)).await;

    // A relay that starts now works as well.
    let young = command(&etcd).unready().start().await;
    young.ready().await;
    let mut early = WatchStream::open(&young.endpoint()).await;
    early.created(client::prefix(PREFIX)).await;

    loss.ends(&mut etcd).await;
    let began = Instant::now();
    let next = eventually("a write", async || {
        let put = kv::put(format!("{PREFIX}a"), "2");
        through.raw.clone().put(put).await.ok()?.into_inner().header.map(|header| header.revision)
    })
    .await;
    println!("{loss:?}: a write succeeds {:?} after the members are back", began.elapsed());
    assert_eq!(through.get(format!("{PREFIX}a")).await.expect("it is there").mod_revision, next);
    // A failed write may still have taken effect, and comes before it.
    for stream in [&mut live, &mut early, &mut stream] {
        stream.until_revision(next).await;
    }
    assert!(!at_once.has_ended() && !live.has_ended());
    relay.assert_no_panic();
}

/// Ended as in etcd: open streams, even without any watch, and new streams.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_want_a_leader_end_without_one_also_where_nothing_is_watched() {
    let mut etcd = Etcd::cluster_of_three().await;
    // Without a feed.
    let relay = RelayCommand::serve(&etcd.endpoints()).arg("--on-demand=allow").start().await;
    let metadata = [("hasleader", "true")];
    let mut idle = WatchStream::open_with(&relay.endpoint(), &metadata).await;
    let waits = WatchStream::open(&relay.endpoint()).await;
    etcd.kill_member(1);
    etcd.kill_member(2);
    let began = Instant::now();
    let no_leader = (Code::Unavailable, "etcdserver: no leader");
    let status = idle.ended().await.expect_err("no leader");
    println!("a stream without a watch ends after {:?}", began.elapsed());
    assert_eq!((status.code(), status.message()), no_leader);
    let mut late = WatchStream::open_with(&relay.endpoint(), &metadata).await;
    let status = late.ended().await.expect_err("no leader");
    assert_eq!((status.code(), status.message()), no_leader);
    assert!(!waits.has_ended());
    etcd.restart().await;
    eventually("a stream that wants a leader is served", async || {
        let mut stream = WatchStream::open_with(&relay.endpoint(), &metadata).await;
        stream.create(client::prefix(PREFIX));
        stream.take_within(Duration::from_secs(2)).await
    })
    .await;
}

/// The remaining member is behind what clients have seen before. New watches "from now" begin above that; watches from
/// a revision are complete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_behind_shows_nothing_twice_and_leaves_nothing_out() {
    let mut etcd = Etcd::cluster_of_three_that_can_be_cut().await;
    let relay = command(&etcd).start().await;
    relay.follows().await;
    let left = (etcd.leader().await + 1) % 3;
    let other = Kv::connect(&etcd.member_endpoint((left + 1) % 3)).await;
    let has = other.put(format!("{OUTSIDE}a"), "0").await;
    let behind = Kv::connect(&etcd.member_endpoint(left)).await;
    eventually("the member has it", async || {
        behind.range(range(format!("{OUTSIDE}a"), true)).await.kvs.pop().filter(|kv| kv.mod_revision == has)
    })
    .await;
    etcd.between_peers(Fault::Starved(left));
    let first = other.put(format!("{OUTSIDE}a"), "1").await;
    let known = other.put(format!("{OUTSIDE}a"), "2").await;
    let through = Kv::connect(&relay.endpoint()).await;
    let told = through.range(range(format!("{PREFIX}a"), false)).await.header.expect("a header").revision;
    assert!(told >= known, "the relay confirms its reads");
    let member = behind.range(range(format!("{OUTSIDE}a"), true)).await.header.expect("a header").revision;
    assert!(member < first, "the member is behind");
    for index in (0..3).filter(|index| *index != left) {
        etcd.kill_member(index);
    }
    has_lost_the_leader(&relay).await;

    let mut from_now = WatchStream::open(&relay.endpoint()).await;
    let created = from_now.created(client::prefix(OUTSIDE)).await;
    assert!(header_revision(&created) >= told, "{} was delivered before {created:?}", told);
    let request = WatchCreateRequest { start_revision: first, ..client::prefix(OUTSIDE) };
    let mut whole = WatchStream::open(&relay.endpoint()).await;
    whole.created(request.clone()).await;

    etcd.between_peers(Fault::None);
    etcd.restart().await;
    let other = Kv::connect(&etcd.member_endpoint((left + 1) % 3)).await;
    let next = eventually("a write", async || {
        let put = kv::put(format!("{OUTSIDE}a"), "3");
        other.raw.clone().put(put).await.ok()?.into_inner().header.map(|header| header.revision)
    })
    .await;
    whole.until_revision(next).await;
    let replay = Replay::read(&etcd.endpoint(), next).await;
    assert_valid(&[request], &whole.record(), &replay, Expected { complete_to: Some(next), prev_kv_known: true });
    let events = from_now.until(|response| !response.events.is_empty()).await;
    assert_eq!(revisions(&events), [next]);
    assert_eq!(through.get(format!("{OUTSIDE}a")).await.expect("it is there").value.as_ref(), b"3");
    relay.assert_no_panic();
}
