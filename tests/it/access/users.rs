//! [`Users`]: an etcd with users that have different permissions.
//!
//! `root` may do everything; `alice` reads `/a/` and `/shared/`, `bob` `/b/` and `/shared/`, the relay's own user
//! everything that begins with a slash. Each user's password is its name.

use std::io::Write as _;

use etcd_relay::pb::{
    authpb::{Permission, permission},
    etcdserverpb::{
        AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest,
        AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest,
        AuthenticateRequest, RangeRequest, RangeResponse, auth_client::AuthClient,
    },
};
use tempfile::NamedTempFile;
use tonic::{Request, Status, transport::Channel};

use crate::support::{
    etcd::Etcd,
    kv::{self, Kv, bytes, prefix_end},
    relay::{Relay, RelayCommand},
};

/// The users of an etcd, at a given endpoint.
pub struct Users {
    auth: AuthClient<Channel>,
    kv: Kv,
    password: NamedTempFile,
}

impl Users {
    /// Uses an etcd that already has them.
    pub(crate) async fn at(endpoint: &str) -> Self {
        let channel = kv::channel(endpoint).await;
        let mut password = NamedTempFile::new().expect("a temporary file");
        password.write_all(b"relay\n").expect("write");
        Self { auth: AuthClient::new(channel.clone()), kv: Kv::over(channel), password }
    }

    /// Creates the users, and a key for each. Authentication stays off.
    pub(crate) async fn ready(etcd: &Etcd) -> Self {
        let users = Self::at(&etcd.endpoint()).await;
        let mut auth = users.auth.clone();
        for (role, prefix) in [("a", "/a/"), ("b", "/b/"), ("shared", "/shared/"), ("relay", "/")] {
            auth.role_add(AuthRoleAddRequest { name: role.into() }).await.expect("role add");
            let perm = Permission {
                perm_type: permission::Type::Read.into(),
                key: bytes(prefix),
                range_end: prefix_end(prefix),
            };
            auth.role_grant_permission(AuthRoleGrantPermissionRequest { name: role.into(), perm: Some(perm) })
                .await
                .expect("grant permission");
        }
        auth.role_add(AuthRoleAddRequest { name: "root".into() }).await.expect("role add");
        let granted: [(&str, &[&str]); 4] =
            [("root", &["root"]), ("alice", &["a", "shared"]), ("bob", &["b", "shared"]), ("relay", &["relay"])];
        for (user, roles) in granted {
            let add = AuthUserAddRequest { name: user.into(), password: user.into(), ..Default::default() };
            auth.user_add(add).await.expect("user add");
            for role in roles {
                let grant = AuthUserGrantRoleRequest { user: user.into(), role: (*role).into() };
                auth.user_grant_role(grant).await.expect("grant role");
            }
        }
        for key in ["/a/one", "/b/one", "/shared/one"] {
            users.kv.put(key, "1").await;
        }
        users
    }

    /// Creates the users and turns authentication on.
    pub async fn on(etcd: &Etcd) -> Self {
        let users = Self::ready(etcd).await;
        users.enable().await;
        users
    }

    /// A relay with its own user and a feed over all their keys.
    pub async fn relay(&self, etcd: &Etcd) -> Relay {
        self.relay_command(etcd).start().await
    }

    /// The command that starts it.
    pub(crate) fn relay_command(&self, etcd: &Etcd) -> RelayCommand {
        self.relay_over(&etcd.endpoint())
    }

    /// The same over another relay.
    pub(crate) fn relay_over(&self, endpoint: &str) -> RelayCommand {
        RelayCommand::serve(&[endpoint.to_owned()])
            .prefix("/")
            .arg("--upstream-user=relay")
            .arg(&format!("--upstream-password-file={}", self.password.path().display()))
    }

    /// Creates a user, whose password is its name, and lets it read and write everything that begins with `prefix`.
    /// Call it before authentication is on.
    pub(crate) async fn writer(&self, user: &str, prefix: &str) {
        let mut auth = self.auth.clone();
        let add = AuthUserAddRequest { name: user.into(), password: user.into(), ..Default::default() };
        // The relay's own user exists already.
        let _ = auth.user_add(add).await;
        auth.role_add(AuthRoleAddRequest { name: format!("writer of {prefix}") }).await.expect("role add");
        let perm = Permission {
            perm_type: permission::Type::Readwrite.into(),
            key: bytes(prefix),
            range_end: prefix_end(prefix),
        };
        let name = format!("writer of {prefix}");
        let grant = AuthRoleGrantPermissionRequest { name: name.clone(), perm: Some(perm) };
        auth.role_grant_permission(grant).await.expect("grant permission");
        let grant = AuthUserGrantRoleRequest { user: user.into(), role: name };
        auth.user_grant_role(grant).await.expect("grant role");
    }

    /// The same as etcd's proxy, which has no flag for it.
    pub(crate) fn proxy_command(&self, etcd: &Etcd) -> RelayCommand {
        RelayCommand::grpc_proxy(&[etcd.endpoint()])
            .env("ETCD_RELAY_UPSTREAM_USER", "relay")
            .env("ETCD_RELAY_UPSTREAM_PASSWORD_FILE", &self.password.path().display().to_string())
    }

    pub(crate) async fn enable(&self) {
        self.auth.clone().auth_enable(AuthEnableRequest {}).await.expect("enable");
    }

    pub(crate) async fn disable(&self, root: &str) {
        self.auth.clone().auth_disable(with_token(Some(root), AuthDisableRequest {})).await.expect("disable");
    }

    /// A new token.
    pub async fn token(&self, user: &str) -> String {
        let request = AuthenticateRequest { name: user.into(), password: user.into() };
        self.auth.clone().authenticate(request).await.expect("authenticate").into_inner().token
    }

    pub(crate) async fn revoke(&self, user: &str, role: &str, root: &str) {
        let request = AuthUserRevokeRoleRequest { name: user.into(), role: role.into() };
        self.auth.clone().user_revoke_role(with_token(Some(root), request)).await.expect("revoke role");
    }

    /// Deletes a user and all its tokens.
    pub(crate) async fn delete(&self, user: &str, root: &str) {
        let request = AuthUserDeleteRequest { name: user.into() };
        self.auth.clone().user_delete(with_token(Some(root), request)).await.expect("delete user");
    }

    /// Lets a user read each of these keys, while authentication is off.
    pub(crate) async fn grant_keys(&self, user: &str, keys: &[String]) {
        let mut auth = self.auth.clone();
        auth.role_add(AuthRoleAddRequest { name: "keys".into() }).await.expect("role add");
        for key in keys {
            let perm = Permission { perm_type: permission::Type::Read.into(), key: bytes(key), ..Default::default() };
            auth.role_grant_permission(AuthRoleGrantPermissionRequest { name: "keys".into(), perm: Some(perm) })
                .await
                .expect("grant permission");
        }
        let grant = AuthUserGrantRoleRequest { user: user.into(), role: "keys".into() };
        auth.user_grant_role(grant).await.expect("grant role");
    }

    /// Sets a password to its old value.
    pub(crate) async fn change_password(&self, user: &str, root: &str) {
        let request = AuthUserChangePasswordRequest { name: user.into(), password: user.into(), ..Default::default() };
        self.auth.clone().user_change_password(with_token(Some(root), request)).await.expect("change password");
    }

    /// Writes as root. Returns the revision.
    pub(crate) async fn put(&self, key: &str, root: &str) -> i64 {
        let reply = self.kv.raw.clone().put(with_token(Some(root), kv::put(key, "2"))).await.expect("put").into_inner();
        reply.header.expect("a header").revision
    }
}

/// Reads with a token.
pub(crate) async fn range(endpoint: &str, token: Option<&str>, request: RangeRequest) -> Result<RangeResponse, Status> {
    let mut kv = Kv::connect(endpoint).await.raw;
    kv.range(with_token(token, request)).await.map(tonic::Response::into_inner)
}

/// A message with a token.
pub(crate) fn with_token<T>(token: Option<&str>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("token", token.parse().expect("a token is ASCII"));
    }
    request
}
