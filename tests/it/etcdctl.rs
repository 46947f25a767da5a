//! Runs the real `etcdctl` at etcd and at a relay over another etcd with the same content: each command must print the
//! same.
//!
//! Only ids, addresses, times and sizes are masked; see `mask`. Always holds: the steps of one test run in order on
//! both sides, so both stores go through the same states.

mod mask;
mod run;

use std::path::PathBuf;

use run::{Side, Step};

use crate::support::{
    etcd::Etcd,
    relay::{Relay, RelayCommand},
};

/// Both sides, each with its own etcd.
struct Pair {
    direct: Side,
    relayed: Side,
    relay: Relay,
    etcds: [Etcd; 2],
}

impl Pair {
    async fn new(flags: &[&str]) -> Self {
        // etcdctl gives up a login after 2 s. On a busy machine, etcd's normal hashing of a password can take that
        // long.
        let cheap = &["--bcrypt-cost=4"];
        let etcds = [Etcd::start_with(cheap).await, Etcd::start_with(cheap).await];
        let command = RelayCommand::serve(&[etcds[1].endpoint()]);
        let relay = flags.iter().fold(command, |command, flag| command.arg(flag)).start().await;
        let direct = Side::new(&etcds[0].endpoint());
        let relayed = Side::new(&relay.endpoint());
        Self { direct, relayed, relay, etcds }
    }

    /// Runs each step on both sides and compares the output and the exit code.
    async fn compare(&self, steps: Vec<Step>) {
        for step in steps {
            let (expected, told) = tokio::join!(self.direct.run(&step), self.relayed.run(&step));
            assert!(expected == told, "etcdctl {}\n--- etcd:\n{expected}\n--- relay:\n{told}", step.args.join(" "));
            assert!(step.may_fail == expected.failed(), "etcdctl {} at etcd itself:\n{expected}", step.args.join(" "));
        }
        self.relay.assert_no_panic();
    }
}

fn ok(args: &str) -> Step {
    Step::new(args)
}

fn fails(args: &str) -> Step {
    Step { may_fail: true, ..Step::new(args) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_with_every_flag() {
    let pair = Pair::new(&["--prefix="]).await;
    let mut steps: Vec<_> = ["a 1", "a/1 one", "a/2 two", "a/3 three", "b/1 x", "b/2 a", "a/2 deux"]
        .map(|put| ok(&format!("put {put}")))
        .into();
    steps.push(ok("del a/3"));
    for flags in [
        "a",
        "nothing",
        "a --prefix",
        "a b",
        "a/1 b/2",
        "a --from-key",
        "a --prefix --keys-only",
        "a --prefix --limit=1",
        "a --prefix --limit=2 -w=json",
        "a --prefix --order=DESCEND",
        "a --prefix --sort-by=VALUE",
        "a --prefix --sort-by=MODIFY --order=DESCEND",
        "a --prefix --sort-by=CREATE",
        "a --prefix --sort-by=VERSION --limit=2",
        "a --prefix --rev=4",
        "a --prefix --rev=8 --consistency=s",
        "a --prefix --print-value-only",
        "a --hex",
        "a --consistency=s",
        "a --prefix --consistency=s",
        "a --prefix -w=json",
        "a --prefix -w=fields",
        "a --prefix -w=simple",
        "b --prefix --consistency=s -w=fields",
        "a --prefix --count-only -w=fields",
        "a --keys-only=true --prefix=true",
    ] {
        steps.push(ok(&format!("get {flags}")));
    }
    steps.extend([
        fails("get a --rev=1000"),
        fails("get a --rev=1000 --consistency=s"),
        fails("get a --prefix --from-key"),
    ]);
    pair.compare(steps).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn put_del_and_txn() {
    let pair = Pair::new(&["--prefix="]).await;
    let txn = |stdin: &str| Step { stdin: Some(stdin.to_owned()), ..ok("txn") };
    pair.compare(vec![
        ok("put a 1"),
        ok("put a 2 --prev-kv"),
        ok("put a --ignore-value --prev-kv"),
        fails("put nothing --ignore-value"),
        fails("put a 1 --lease=1234"),
        ok("put b 1 -w=json"),
        ok("del b --prev-kv"),
        ok("del nothing"),
        ok("put c/1 1"),
        ok("put c/2 2"),
        ok("del c --prefix --prev-kv -w=fields"),
        txn("value(\"a\") = \"2\"\n\nput a 3\nget a\n\nput a 4\n\n"),
        txn("version(\"a\") > \"100\"\n\nput a 5\n\nget a\ndel a\n\n"),
        ok("get a -w=json"),
        Step { may_fail: true, ..txn("\nput a 1\nput a 2\n\n\n") },
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_with_every_flag() {
    let pair = Pair::new(&["--prefix="]).await;
    let mut steps: Vec<_> = ["a 1", "a/1 one", "a/2 two", "a 2"].map(|put| ok(&format!("put {put}"))).into();
    steps.extend([ok("del a/1"), ok("put b x"), ok("put a 3")]);
    for (args, lines) in [
        ("watch a --rev=1", 9),
        ("watch a --prefix --rev=1", 18),
        ("watch a --prefix --rev=1 --prev-kv", 20),
        ("watch a/1 b --rev=2", 8),
        ("watch a --rev=3 -w=json", 1),
        ("watch a --rev=8 -w=fields", 10),
        ("watch --rev=8 a -- echo changed", 4),
    ] {
        steps.push(Step { lines: Some(lines), ..ok(args) });
    }
    // Only one watch, because with two, etcd may report either first.
    steps.push(Step { lines: Some(6), stdin: Some("watch a --rev=5\n".into()), ..ok("watch -i") });
    steps.push(Step { lines: Some(1), stdin: Some("watch never\nprogress\n".into()), ..ok("watch -i") });
    steps.extend([ok("compaction 6"), fails("watch a --rev=2"), Step { lines: Some(3), ..ok("watch a --rev=6") }]);
    steps.push(ok("get a --rev=6"));
    steps.push(fails("get a --rev=5"));
    steps.push(fails("compaction 5"));
    steps.push(fails("compaction 500"));
    pair.compare(steps).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases() {
    let pair = Pair::new(&["--prefix="]).await;
    pair.compare(vec![
        ok("lease grant 60 -w=fields"),
        ok("lease list"),
        ok("lease grant 60"),
        // The server chooses the id, so the steps below use the id of this side's own grant.
        ok("put a 1 --lease=$LEASE"),
        ok("lease timetolive $LEASE"),
        ok("lease timetolive $LEASE --keys"),
        ok("lease keep-alive $LEASE --once"),
        Step { lines: Some(1), ..ok("lease keep-alive $LEASE") },
        ok("lease revoke $LEASE"),
        ok("get a"),
        fails("lease revoke $LEASE"),
        ok("lease timetolive $LEASE"),
        fails("lease keep-alive $LEASE --once"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_and_elections() {
    let pair = Pair::new(&["--prefix="]).await;
    pair.compare(vec![
        ok("lock mutex -- echo held"),
        ok("lock mutex --ttl=5 -- echo again"),
        Step { lines: Some(1), ..ok("lock mutex") },
        Step { lines: Some(2), ..ok("elect leader me") },
        Step { lines: Some(2), ..ok("elect other you") },
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_and_maintenance() {
    let pair = Pair::new(&["--prefix="]).await;
    let snapshot = PathBuf::from("$DIR/snapshot.db").display().to_string();
    pair.compare(vec![
        ok("put a 1"),
        ok("member list"),
        ok("member list -w=table"),
        ok("endpoint health"),
        ok("endpoint status"),
        ok("endpoint status -w=fields"),
        ok("endpoint hashkv"),
        ok("alarm list"),
        ok("alarm disarm"),
        ok("put a 2"),
        ok("compaction 3 --physical"),
        ok("defrag"),
        ok(&format!("snapshot save {snapshot}")),
        fails("move-leader 1234"),
        fails("member remove 1234"),
        ok("version"),
        fails("check perf --load=nonsense"),
    ])
    .await;
    for side in [&pair.direct, &pair.relayed] {
        assert_eq!(
            side.snapshot_status("snapshot.db").await["revision"],
            3,
            "the snapshot is whole and says its revision"
        );
    }
    assert_eq!(pair.etcds.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn move_leader() {
    let etcd = Etcd::cluster_of_three().await;
    let relay = RelayCommand::serve(&etcd.endpoints()).prefix("").start().await;
    let leader = etcd.leader().await;
    let follower = (leader + 1) % 3;
    let direct = Side::new(&etcd.member_endpoint(follower));
    let id = direct.member_id().await;
    // move-leader must reach the leader. Through a relay, etcdctl finds it only if the relay has no other endpoint.
    let to_leader = RelayCommand::serve(&[etcd.member_endpoint(leader)]).prefix("").start().await;
    let moved = Side::new(&to_leader.endpoint()).run(&ok(&format!("move-leader {id}"))).await;
    assert!(!moved.failed(), "{moved}");
    assert_eq!(etcd.leader().await, follower);
    let status = Side::new(&relay.endpoint()).run(&ok("endpoint health")).await;
    assert!(!status.failed(), "{status}");
}

/// Users, roles and their permissions, with authentication on. The relay has its own user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_roles_and_auth() {
    // The relay's user is configured before it exists, because the relay needs it as soon as authentication is on.
    let password = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(password.path(), "secret\n").expect("write");
    let password_flag = format!("--upstream-password-file={}", password.path().display());
    let pair = Pair::new(&["--prefix=", "--upstream-user=root", &password_flag]).await;
    pair.compare(vec![
        ok("put mine/a 1"),
        ok("put theirs/a 1"),
        ok("auth status"),
        ok("user add root:secret"),
        ok("user add joe:joe"),
        fails("user add joe:joe"),
        ok("user list"),
        ok("role add reader"),
        ok("role grant-permission reader --prefix=true read mine/"),
        ok("role grant-permission reader readwrite mine/b"),
        ok("role get reader"),
        ok("role list"),
        ok("user grant-role root root"),
        ok("user grant-role joe reader"),
        ok("user get joe --detail"),
        ok("auth enable"),
        fails("get mine/a"),
        fails("get mine/a --consistency=s"),
        fails("get mine/a --user=joe:wrong"),
        ok("get mine/a --user=joe:joe"),
        ok("get mine/ --prefix --user=joe:joe --consistency=s"),
        fails("get theirs/a --user=joe:joe"),
        fails("get theirs/a --user=joe:joe --consistency=s"),
        fails("get m z --user=joe:joe --consistency=s"),
        ok("get mine/ --prefix --rev=2 --user=joe:joe --consistency=s"),
        fails("put mine/a 2 --user=joe:joe"),
        ok("put mine/b 2 --user=joe:joe"),
        Step { lines: Some(3), ..ok("watch mine/a --rev=1 --user=joe:joe") },
        Step { lines: Some(6), ..ok("watch mine/ --prefix --rev=1 --user=joe:joe") },
        fails("watch theirs/a --rev=1 --user=joe:joe"),
        fails("watch mine/a --rev=1"),
        ok("auth status --user=root:secret"),
        ok("role revoke-permission reader --prefix=true mine/ --user=root:secret"),
        fails("get mine/a --user=joe:joe --consistency=s"),
        fails("watch mine/a --rev=1 --user=joe:joe"),
        ok("user passwd joe --interactive=false --user=root:secret").stdin("new\n"),
        fails("get mine/b --user=joe:joe"),
        ok("get mine/b --user=joe:new --consistency=s"),
        ok("user revoke-role joe reader --user=root:secret"),
        fails("get mine/b --user=joe:new --consistency=s"),
        ok("user delete joe --user=root:secret"),
        ok("auth disable --user=root:secret"),
        ok("get mine/a"),
        ok("role delete reader"),
    ])
    .await;
}
