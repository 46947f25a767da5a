//! The services of gRPC itself, health and reflection, which the relay answers.

use tonic_health::ServingStatus;
use tonic_reflection::server::Error;

use crate::{rpc::GrpcService, telemetry::ReadyBoard};

/// `grpc.health.v1.Health` for the whole server (service name `""`, as in etcd), and the task that keeps it up to date.
pub fn health(ready: ReadyBoard) -> (GrpcService, impl Future<Output = ()> + Send) {
    let (reporter, service) = tonic_health::server::health_reporter();
    let keep = async move {
        loop {
            let serving = ready.is_ready();
            let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
            reporter.set_service_status("", status).await;
            ready.wait_for(!serving).await;
        }
    };
    (GrpcService::new(service), keep)
}

/// `grpc.reflection.v1` for the services in `descriptors`, an encoded `FileDescriptorSet`.
///
/// # Errors
/// Fails if `descriptors` is not such a set.
pub fn reflection(descriptors: &[u8]) -> Result<GrpcService, Error> {
    let service = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(descriptors)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    Ok(GrpcService::new(service))
}
