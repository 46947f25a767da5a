//! [`Users`]: the users of clients while authentication is on, and a guest whose permissions change.
//!
//! Each user's password is its name. `client` and the relays' own user may do everything with keys that begin with a
//! slash; `guest` may read what [`Users::grant`] allows. Always holds: no user is used before it exists.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use etcd_relay::pb::{
    authpb::{Permission, permission},
    etcdserverpb::{
        AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest,
        AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest, AuthenticateRequest, RangeRequest,
        auth_client::AuthClient,
    },
};
use tempfile::NamedTempFile;
use tonic::transport::Channel;

use crate::{
    link::Token,
    scene::{RELAYS, Scene},
    support::{
        client::{self, WatchStream},
        eventually_within,
        kv::{self, Kv, bytes, prefix_end},
    },
    writers::key,
};

/// The keys that the guest may sometimes read, and the one that it reads.
const GUEST_KEYS: &str = "/chaos/k1";
const GUEST_KEY: usize = 10;
/// The relay promises ten seconds (docs/trust.md); the rest is for a busy machine.
const REVOKED: Duration = Duration::from_secs(25);

/// Timeout of one create.
const CREATE: Duration = Duration::from_secs(5);

/// The users.
#[derive(Debug)]
pub struct Users {
    member: String,
    password: NamedTempFile,
    root: Token,
}

impl Users {
    /// Creates the users at this member. Authentication stays off.
    pub async fn make(member: &str) -> Self {
        let mut password = NamedTempFile::new().expect("a temporary file");
        password.write_all(b"relay\n").expect("write");
        let users = Self { member: member.to_owned(), password, root: Token::default() };
        let mut auth = users.auth().await;
        for (role, prefix, perm) in [
            ("root", "", permission::Type::Read),
            ("client", "/", permission::Type::Readwrite),
            ("guest", GUEST_KEYS, permission::Type::Read),
        ] {
            auth.role_add(AuthRoleAddRequest { name: role.into() }).await.expect("role add");
            if !prefix.is_empty() {
                let perm = Permission { perm_type: perm.into(), key: bytes(prefix), range_end: prefix_end(prefix) };
                let grant = AuthRoleGrantPermissionRequest { name: role.into(), perm: Some(perm) };
                auth.role_grant_permission(grant).await.expect("grant permission");
            }
        }
        for (user, role) in [("root", "root"), ("client", "client"), ("relay", "client"), ("guest", "")] {
            let add = AuthUserAddRequest { name: user.into(), password: user.into(), ..Default::default() };
            auth.user_add(add).await.expect("user add");
            if !role.is_empty() {
                let grant = AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
                auth.user_grant_role(grant).await.expect("grant role");
            }
        }
        users
    }

    /// The file with the relays' password.
    pub fn password_file(&self) -> String {
        self.password.path().display().to_string()
    }

    /// The credentials of the user that may do everything.
    pub fn root(&self) -> Token {
        self.root.clone()
    }

    /// Turns authentication on. All clients then use `client`.
    pub async fn enable(&self, scene: &Scene) {
        self.auth().await.auth_enable(AuthEnableRequest {}).await.expect("enable");
        self.root.set(self.token("root").await);
        scene.token.set(self.token("client").await);
    }

    /// Turns it off.
    pub async fn disable(&self) {
        self.auth().await.auth_disable(self.root.on(AuthDisableRequest {})).await.expect("disable");
    }

    /// Grants the guest its permission and revokes it; each relay must follow. Returns how long it took until no relay
    /// showed the guest anything.
    pub async fn guest_comes_and_goes(&self, scene: &Scene) -> Duration {
        let grant = AuthUserGrantRoleRequest { user: "guest".into(), role: "guest".into() };
        self.auth().await.user_grant_role(self.root.on(grant)).await.expect("grant role");
        let guest = Token::default();
        guest.set(self.token("guest").await);
        let mut streams = Vec::new();
        for (relay, name) in scene.relays.iter().zip(RELAYS) {
            eventually_within(REVOKED, &format!("{name} lets the guest read"), async || {
                read(relay, &guest).await.then_some(())
            })
            .await;
            let watched = async || watch(relay, &guest).await;
            streams.push(eventually_within(REVOKED, &format!("{name} lets the guest watch"), watched).await);
        }
        let revoke = AuthUserRevokeRoleRequest { name: "guest".into(), role: "guest".into() };
        self.auth().await.user_revoke_role(self.root.on(revoke)).await.expect("revoke role");
        let revoked = Instant::now();
        for (relay, (stream, name)) in scene.relays.iter().zip(streams.iter_mut().zip(RELAYS)) {
            eventually_within(REVOKED, &format!("{name} shows the guest nothing"), async || {
                (!read(relay, &guest).await && ended(stream).await).then_some(())
            })
            .await;
            eventually_within(REVOKED, &format!("{name} shows nobody anything"), async || {
                (!read(relay, &Token::default()).await).then_some(())
            })
            .await;
            scene.findings.judged("revocations", 1);
        }
        revoked.elapsed()
    }

    /// A new token.
    async fn token(&self, user: &str) -> String {
        let request = AuthenticateRequest { name: user.into(), password: user.into() };
        self.auth().await.authenticate(request).await.expect("authenticate").into_inner().token
    }

    async fn auth(&self) -> AuthClient<Channel> {
        AuthClient::new(kv::channel(&self.member).await)
    }
}

/// Whether the relay shows the key.
async fn read(relay: &str, token: &Token) -> bool {
    let request = RangeRequest { key: key(GUEST_KEY).into(), ..RangeRequest::default() };
    let mut kv = Kv::connect(relay).await.raw;
    kv.range(token.on(request)).await.is_ok()
}

/// A watch of the guest, if the relay creates one now. Members turn authentication on one after the other, and until
/// the relay has a token for each, it asks its clients to retry.
async fn watch(relay: &str, token: &Token) -> Option<WatchStream> {
    let mut stream = token.stream(kv::channel(relay).await);
    stream.create(client::prefix(GUEST_KEYS));
    let answer = stream.take_within(CREATE).await?.response;
    (answer.created && !answer.canceled).then_some(stream)
}

/// Whether the watch has ended.
async fn ended(stream: &mut WatchStream) -> bool {
    while let Some(recorded) = stream.take_within(Duration::from_millis(20)).await {
        if recorded.response.canceled {
            return true;
        }
    }
    stream.has_ended()
}
