//! The state of the cluster in v2's API: machines, statistics, version, health.
//!
//! The machines are the addresses of the v2 API itself: clients use what their first sync returns. Members are in
//! `members`. Always holds: ids are the cluster's.

use std::time::{Duration, Instant, SystemTime};

use http::{Method, Response};

use super::{
    reply::{V2Body, json, message, plain_error, text, wrong_method},
    store::V3,
};
use crate::{front::gojson::put_string, hub::Hub, types::MemberVersion};

/// Timeout of etcd's answer about its health.
const HEALTH_PATIENCE: Duration = Duration::from_secs(1);

/// `/v2/machines`.
pub(super) fn machines(method: &Method, advertised: &[String]) -> Response<V2Body> {
    match *method {
        Method::GET | Method::HEAD => text(200, advertised.join(", ")),
        _ => wrong_method("GET,HEAD"),
    }
}

/// `/v2/stats/…`. Calls that the relay does not count are shown as zero.
pub(super) async fn stats(v3: &V3, method: &Method, which: &str, started: (SystemTime, Instant)) -> Response<V2Body> {
    if *method != Method::GET {
        return wrong_method("GET");
    }
    let answer = match which {
        "self" => own(v3, started).await,
        "leader" => v3.status().await.map(|status| format!(r#"{{"leader":"{:x}","followers":{{}}}}"#, status.leader)),
        "store" => Ok(store()),
        _ => return plain_error(404, "404 page not found\n"),
    };
    match answer {
        Ok(text) => json(200, V2Body::whole(text)),
        Err(status) => message(503, status.message()),
    }
}

async fn own(v3: &V3, (started, since): (SystemTime, Instant)) -> Result<String, tonic::Status> {
    let status = v3.status().await?;
    let id = status.header.as_ref().map_or(0, |header| header.member_id);
    let members = v3.members().await?.members;
    let name = members.iter().find(|member| member.id == id).map_or("", |member| &*member.name);
    let state = if status.leader == id { "StateLeader" } else { "StateFollower" };
    let started = humantime::format_rfc3339_nanos(started);
    let mut quoted = Vec::new();
    put_string(&mut quoted, name.as_bytes());
    let name = String::from_utf8(quoted).unwrap_or_default();
    Ok(format!(
        r#"{{"name":{name},"id":"{id:x}","state":"{state}","startTime":"{started}","leaderInfo":{{"leader":"{:x}","uptime":"{:?}","startTime":"{started}"}},"recvAppendRequestCnt":0,"sendAppendRequestCnt":0}}"#,
        status.leader,
        since.elapsed()
    ))
}

fn store() -> String {
    let names = [
        "getsSuccess",
        "getsFail",
        "setsSuccess",
        "setsFail",
        "deleteSuccess",
        "deleteFail",
        "updateSuccess",
        "updateFail",
        "createSuccess",
        "createFail",
        "compareAndSwapSuccess",
        "compareAndSwapFail",
        "compareAndDeleteSuccess",
        "compareAndDeleteFail",
        "expireCount",
        "watchers",
    ];
    let counts: Vec<String> = names.iter().map(|name| format!(r#""{name}":0"#)).collect();
    format!("{{{}}}", counts.join(","))
}

/// `/version`.
pub(super) fn version(method: &Method, version: Option<&MemberVersion>) -> Response<V2Body> {
    match (method, version) {
        (&Method::GET, Some(version)) => json(200, V2Body::whole(serde_json::to_vec(version).unwrap_or_default())),
        (&Method::GET, None) => message(503, "etcd-relay: etcd's version is not known yet"),
        _ => wrong_method("GET"),
    }
}

/// `/health`.
pub(super) async fn health(hub: &Hub, method: &Method) -> Response<V2Body> {
    if *method != Method::GET {
        return wrong_method("GET");
    }
    let confirmed = tokio::time::timeout(HEALTH_PATIENCE, hub.confirmer().confirm(None)).await;
    match confirmed {
        Ok(Ok(_)) => text(200, &br#"{"health":"true","reason":""}"#[..]),
        _ => text(503, &b"{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n"[..]),
    }
}
