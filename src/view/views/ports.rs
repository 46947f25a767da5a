//! `/v2/streamrouter/ports`: the ports that processes want from the streamrouter, `[n,…]`, ascending.

use crate::view::{
    document::PodGroup,
    projection::{Projection, Rows, Shape, Spec},
};

#[derive(Debug)]
pub(super) struct Ports;

static SPEC: Spec = Spec {
    paths: &["/v2/streamrouter/ports"],
    service: "StreamrouterPorts",
    shape: Shape::PackedList,
    ..Spec::OF_APPS
};

impl Projection<PodGroup> for Ports {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn rows(&self, key: &[u8], group: &PodGroup, rows: &mut Rows<'_>) {
        for (index, port) in group.spec.pod.stream_ports().into_iter().enumerate() {
            // Two processes may want the same port, and one process may want it twice: each one is shown.
            let order = [&by_value(port.listen), &index.to_be_bytes(), key].concat();
            let mut message = Vec::new();
            prost::encoding::encode_varint(i64::from(port.listen as i32) as u64, &mut message);
            rows.element(&order, &port.listen, message);
        }
    }
}

/// Bytes that sort like the numbers.
fn by_value(number: i64) -> [u8; 8] {
    (number ^ i64::MIN).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pb::lainlet as pb,
        view::views::tests::{Showing, decode},
    };

    fn group(ports: &[i64]) -> String {
        let ports: Vec<_> = ports.iter().map(|port| format!(r#"{{\"srcport\": {port}}}"#)).collect();
        format!(r#"{{"Spec":{{"Pod":{{"Annotation":"{{\"ports\": [{}]}}"}}}},"Pods":[{{}},{{}}]}}"#, ports.join(","))
    }

    #[test]
    fn all_ports_once_a_process_in_ascending_order() {
        let mut ports = Showing::all(&Ports);
        assert_eq!(ports.json(), "[]");
        ports.put("a/a.worker.w", &group(&[9602, 9601, 10000]));
        ports.put("b/b.worker.w", &group(&[9601, 80, 80]));
        ports.put("c/c.worker.w", r#"{"Spec":{"Pod":{"Annotation":"broken"}}}"#);
        assert_eq!(ports.json(), "[80,80,9601,9601,9602,10000]");
        assert_eq!(decode::<pb::StreamrouterPortsReply>(&ports).data, [80, 80, 9601, 9601, 9602, 10000]);

        ports.put("b/b.worker.w", &group(&[9601, 80]));
        assert_eq!(ports.json(), "[80,9601,9601,9602,10000]");
        ports.delete("a/a.worker.w");
        assert_eq!(ports.json(), "[80,9601]");
    }

    #[test]
    fn odd_numbers_are_in_order_too() {
        let mut ports = Showing::all(&Ports);
        ports.put("a/a.worker.w", &group(&[i64::MAX, -1, 0, i64::MIN, 70_000]));
        assert_eq!(ports.json(), "[-9223372036854775808,-1,0,70000,9223372036854775807]");
        // Truncated like Go's int32.
        assert_eq!(decode::<pb::StreamrouterPortsReply>(&ports).data, [0, -1, 0, 70_000, -1]);
    }
}
