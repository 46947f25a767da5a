//! Runs h2spec against a port. It checks a server against the RFCs of HTTP/2 and HPACK, clause by clause.
//!
//! Without h2spec (`scripts/h2spec`), the test says so and passes.

use std::{convert::Infallible, net::SocketAddr, process::Command, sync::Arc};

use bytes::Bytes;
use etcd_relay::{
    front::{
        body::RequestBody,
        listen::{Bound, Connections, PortConfig, Stop},
    },
    telemetry::names::Port,
};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;

/// Where the port differs, or may differ, with the reason. `*` stands for any text.
const DEVIATIONS: &[(&str, &str, &str)] = &[
    (
        "http2/3.5",
        "Sends invalid connection preface",
        "what is no preface is HTTP/1.1 on these ports, and answered with its 400",
    ),
    ("http2/5.1", "*after sending RST_STREAM frame", "an answer that was written before the reset came is no fault"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_keeps_to_the_rfcs_of_http2() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/h2spec");
    let found = Command::new(script).output().expect("the script runs");
    if !found.status.success() {
        eprintln!("h2spec is skipped: {}", String::from_utf8_lossy(&found.stderr));
        return;
    }
    let h2spec = String::from_utf8(found.stdout).expect("a path");

    let bound =
        Bound::bind(PortConfig::new(Port::Grpc, SocketAddr::from(([127, 0, 0, 1], 0))), Arc::<Connections>::default());
    let bound = bound.expect("a free port");
    let port = bound.addr().port().to_string();
    let stop = Stop::default();
    let service = service_fn(|request: Request<RequestBody>| async move {
        // Like a call: the whole request is read first.
        let read = request.into_body().collect().await.map_or(0, |body| body.to_bytes().len());
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(format!("{read} bytes")))))
    });
    let serving = tokio::spawn(bound.serve(service, stop.clone()));

    let folder = tempfile::tempdir().expect("a folder");
    let report = folder.path().join("report.xml");
    let mut run = Command::new(h2spec.trim());
    run.args(["--strict", "--host", "127.0.0.1", "--port", &port, "--junit-report"]).arg(&report);
    let output = tokio::task::spawn_blocking(move || run.output()).await.expect("no panic").expect("h2spec runs");
    let report = std::fs::read_to_string(&report).expect("a report");
    stop.accept.cancel();
    stop.abort.cancel();
    serving.await.expect("no panic");

    let cases: Vec<&str> = report.split("<testcase ").skip(1).collect();
    assert!(cases.len() > 140, "{} cases: {}", cases.len(), String::from_utf8_lossy(&output.stdout));
    let failed = cases.iter().filter(|case| case.contains("<failure") || case.contains("<error"));
    let unexplained: Vec<_> = failed.filter(|case| !is_explained(case)).collect();
    assert!(unexplained.is_empty(), "{unexplained:#?}");
}

fn is_explained(case: &str) -> bool {
    let attribute = |name: &str| {
        let value = case.split_once(&format!("{name}=\""))?.1;
        value.split_once('"').map(|(value, _)| value)
    };
    let (Some(section), Some(title)) = (attribute("package"), attribute("classname")) else { return false };
    DEVIATIONS.iter().any(|(of, what, _)| {
        *of == section && what.strip_prefix('*').map_or(title == *what, |end| title.ends_with(end))
    })
}
