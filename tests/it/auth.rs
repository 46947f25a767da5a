//! Authentication: what is kept in memory is shown to a client only where etcd itself would show it to that client.
//!
//! Each request goes to etcd and to the relay with the same token, and the answers must agree: the permission, and the words of
//! the refusal. Not here: the commands of an administrator; see `etcdctl`.

use std::path::PathBuf;

use etcd_relay::pb::{
    authpb::{Permission, permission::Type},
    etcdserverpb::{
        AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest,
        AuthUserAddRequest, AuthUserGrantRoleRequest, AuthenticateRequest, RangeRequest, WatchCreateRequest,
        auth_client::AuthClient, kv_client::KvClient,
    },
};
use tempfile::TempDir;
use tonic::{Request, transport::Channel};

use crate::support::{
    client::{self, WatchStream, revisions},
    etcd::Etcd,
    eventually,
    kv::{bytes, channel, prefix_end, put},
    relay::{Relay, RelayCommand},
};

const PASSWORD: &str = "secret";

/// An etcd with authentication on, and a relay that reads as root.
struct Scene {
    etcd: Etcd,
    relay: Relay,
    _folder: TempDir,
}

impl Scene {
    /// Root may everything; joe may read what begins with `mine/`.
    async fn new() -> Self {
        let etcd = Etcd::start().await;
        let kv = crate::support::kv::Kv::connect(&etcd.endpoint()).await;
        for key in ["mine/a", "mine/b", "theirs/a", "\0"] {
            kv.put(key, "1").await;
        }
        let mut auth = AuthClient::new(channel(&etcd.endpoint()).await);
        for (name, role) in [("root", "root"), ("joe", "reader")] {
            let user = AuthUserAddRequest { name: name.into(), password: PASSWORD.into(), ..Default::default() };
            auth.user_add(user).await.expect("user add");
            auth.role_add(AuthRoleAddRequest { name: role.into() }).await.expect("role add");
            let grant = AuthUserGrantRoleRequest { user: name.into(), role: role.into() };
            auth.user_grant_role(grant).await.expect("grant role");
        }
        let perm = Permission { perm_type: Type::Read.into(), key: bytes("mine/"), range_end: prefix_end("mine/") };
        let grant = AuthRoleGrantPermissionRequest { name: "reader".into(), perm: Some(perm) };
        auth.role_grant_permission(grant).await.expect("grant permission");
        auth.auth_enable(AuthEnableRequest {}).await.expect("auth enable");
        let folder = tempfile::Builder::new().prefix("etcd-relay-test-").tempdir().expect("a temporary folder");
        let relay = relay(&etcd, &folder).await;
        Self { etcd, relay, _folder: folder }
    }

    async fn token(&self, user: &str) -> String {
        let mut auth = AuthClient::new(channel(&self.etcd.endpoint()).await);
        let request = AuthenticateRequest { name: user.into(), password: PASSWORD.into() };
        auth.authenticate(request).await.expect("authenticate").into_inner().token
    }

    async fn tokens(&self) -> [(&'static str, Option<String>); 4] {
        let wrong = Some("no.such.token".to_owned());
        let (root, joe) = (self.token("root").await, self.token("joe").await);
        [("nobody", None), ("a stranger", wrong), ("joe", Some(joe)), ("root", Some(root))]
    }

    fn sides(&self) -> [String; 2] {
        [self.etcd.endpoint(), self.relay.endpoint()]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_are_allowed_and_refused_as_by_etcd() {
    let scene = Scene::new().await;
    let range = |key: &str, range_end: &str| WatchCreateRequest { range_end: bytes(range_end), ..client::key(key) };
    let requests = [
        client::key("mine/a"),
        client::prefix("mine/"),
        client::prefix("mine/sub/"),
        WatchCreateRequest { start_revision: 2, prev_kv: true, ..client::prefix("mine/") },
        client::key("theirs/a"),
        range("mine/", "mine0\0"),
        range("m", "z"),
        // Every key from here on, which begins within what joe may read.
        range("mine/a", "\0"),
        range("", "\0"),
        range("", ""),
    ];
    for (who, token) in scene.tokens().await {
        for request in &requests {
            let [expected, told] = scene.sides().map(|endpoint| {
                let token = token.clone();
                async move {
                    let mut stream = open(&endpoint, token.as_deref()).await;
                    stream.create(request.clone());
                    let response = stream.next().await;
                    (response.created, response.canceled, response.watch_id, response.cancel_reason)
                }
            });
            let (expected, told) = tokio::join!(expected, told);
            assert_eq!(told, expected, "{who}: {request:?}");
        }
    }
    scene.relay.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_allowed_and_refused_as_by_etcd() {
    let scene = Scene::new().await;
    let mut allowed = 0;
    for (who, token) in scene.tokens().await {
        for (key, range_end) in
            [("mine/a", ""), ("mine/", "mine0"), ("theirs/a", ""), ("m", "z"), ("mine/a", "\0"), ("\0", "\0")]
        {
            for (serializable, revision, count_only) in
                [(false, 0, false), (true, 0, false), (true, 3, false), (true, 0, true)]
            {
                let request = RangeRequest {
                    key: bytes(key),
                    range_end: bytes(range_end),
                    serializable,
                    revision,
                    count_only,
                    ..Default::default()
                };
                let [expected, told] = scene.sides().map(|endpoint| {
                    let (token, request) = (token.clone(), request.clone());
                    async move {
                        let mut client = KvClient::new(channel(&endpoint).await);
                        match client.range(with_token(request, token.as_deref())).await {
                            Ok(response) => Ok(response.into_inner().kvs),
                            Err(status) => Err((status.code(), status.message().to_owned())),
                        }
                    }
                });
                let (expected, told) = tokio::join!(expected, told);
                assert_eq!(told, expected, "{who}: {request:?}");
                allowed += u32::from(expected.is_ok());
            }
        }
    }
    assert!(allowed >= 6 * 4 + 2 * 4, "root may all and joe may some: {allowed}");
}

/// Two users on one connection: what one may is nothing to the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_users_watch_opens_nothing_for_another() {
    let scene = Scene::new().await;
    let (root, joe) = (scene.token("root").await, scene.token("joe").await);
    let connection = channel(&scene.relay.endpoint()).await;
    let mut of_root = WatchStream::over(connection.clone(), &[("token", &root)]);
    of_root.created(client::prefix("")).await;
    let mut of_joe = WatchStream::over(connection.clone(), &[("token", &joe)]);
    of_joe.create(client::prefix(""));
    assert!(of_joe.next().await.canceled);
    of_joe.create(client::prefix("mine/"));
    assert!(!of_joe.next().await.canceled);
    let mut of_nobody = WatchStream::over(connection, &[]);
    of_nobody.create(client::prefix("mine/"));
    assert!(of_nobody.next().await.canceled);
    let theirs = write(&scene.etcd, &root, "theirs/a").await;
    let mine = write(&scene.etcd, &root, "mine/a").await;
    assert_eq!(revisions(&of_root.next().await), [theirs]);
    assert_eq!(revisions(&of_root.next().await), [mine]);
    assert_eq!(revisions(&of_joe.next().await), [mine]);
    of_nobody.expect_silence().await;
}

/// etcd looks at a watch's permission when it is created alone; the relay closes those that are no longer allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_watch_ends_when_its_permission_is_revoked() {
    let scene = Scene::new().await;
    let (root, joe) = (scene.token("root").await, scene.token("joe").await);
    let (mut of_root, mut of_joe) =
        (open(&scene.relay.endpoint(), Some(&root)).await, open(&scene.relay.endpoint(), Some(&joe)).await);
    of_root.created(client::prefix("mine/")).await;
    of_joe.created(client::prefix("mine/")).await;
    let before = write(&scene.etcd, &root, "mine/a").await;
    assert_eq!(revisions(&of_joe.next().await), [before]);
    let mut auth = AuthClient::new(channel(&scene.etcd.endpoint()).await);
    let revoke =
        AuthRoleRevokePermissionRequest { role: "reader".into(), key: bytes("mine/"), range_end: prefix_end("mine/") };
    auth.role_revoke_permission(with_token(revoke, Some(&root))).await.expect("revoke");
    eventually("the watch without permission ends", async || {
        let canceled = of_joe.record().iter().any(|recorded| recorded.response.canceled);
        (canceled || of_joe.has_ended()).then_some(())
    })
    .await;
    let told = of_joe.record().len();
    let after = write(&scene.etcd, &root, "mine/a").await;
    of_root.until_revision(after).await;
    assert_eq!(of_joe.record().len(), told, "nothing more for joe");
    let status = KvClient::new(channel(&scene.relay.endpoint()).await)
        .range(with_token(RangeRequest { key: bytes("mine/a"), serializable: true, ..Default::default() }, Some(&joe)))
        .await
        .expect_err("revoked");
    assert_eq!(status.message(), "etcdserver: permission denied");
}

async fn relay(etcd: &Etcd, folder: &TempDir) -> Relay {
    let file: PathBuf = folder.path().join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).expect("a password file");
    RelayCommand::serve(&[etcd.endpoint()])
        .prefix("")
        .arg("--upstream-user=root")
        .arg(&format!("--upstream-password-file={}", file.display()))
        .start()
        .await
}

async fn open(endpoint: &str, token: Option<&str>) -> WatchStream {
    let metadata: Vec<_> = token.map(|token| ("token", token)).into_iter().collect();
    WatchStream::open_with(endpoint, &metadata).await
}

async fn write(etcd: &Etcd, token: &str, key: &str) -> i64 {
    let mut client: KvClient<Channel> = KvClient::new(channel(&etcd.endpoint()).await);
    let response = client.put(with_token(put(key, "2"), Some(token))).await.expect("put").into_inner();
    response.header.expect("a header").revision
}

fn with_token<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("token", token.parse().expect("a token is ASCII"));
    }
    request
}
