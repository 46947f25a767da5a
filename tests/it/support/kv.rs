//! [`Kv`]: the unary RPCs that tests use often, at one endpoint.
//!
//! Watches are in `client`. An unexpected error panics; tests that expect an error use [`Kv::raw`].

use std::{net::Ipv4Addr, time::Duration};

use bytes::Bytes;
use etcd_relay::pb::{
    etcdserverpb::{
        CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
        RangeResponse, RequestOp, TxnRequest, TxnResponse, kv_client::KvClient, request_op,
    },
    mvccpb::KeyValue,
};
use tonic::transport::{Channel, Endpoint};

use super::eventually;

/// Larger than any message of a test.
pub const MAX_MESSAGE: usize = 512 << 20;

/// A separate connection to an endpoint that exists or will soon exist.
pub async fn channel(endpoint: &str) -> Channel {
    let target = Endpoint::from_shared(endpoint.to_owned()).expect("a URL").connect_timeout(Duration::from_secs(5));
    eventually(&format!("{endpoint} accepts a connection"), async || target.connect().await.ok()).await
}

/// The same from another address of this machine, which is another client for the server.
pub async fn channel_from(from: Ipv4Addr, endpoint: &str) -> Channel {
    let target = Endpoint::from_shared(endpoint.to_owned()).expect("a URL").local_address(Some(from.into()));
    eventually(&format!("{endpoint} accepts a connection from {from}"), async || target.connect().await.ok()).await
}

/// A client of the key-value service.
#[derive(Clone, Debug)]
pub struct Kv {
    /// The generated client, for other requests.
    pub raw: KvClient<Channel>,
}

impl Kv {
    /// Connects.
    pub async fn connect(endpoint: &str) -> Self {
        Self::over(channel(endpoint).await)
    }

    /// Uses an existing connection.
    pub fn over(channel: Channel) -> Self {
        let raw = KvClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
        Self { raw }
    }

    /// Puts a key. Returns the revision.
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> i64 {
        revision(&self.put_request(put(key, value)).await)
    }

    /// Puts with every option.
    pub async fn put_request(&self, request: PutRequest) -> PutResponse {
        self.raw.clone().put(request).await.expect("put").into_inner()
    }

    /// Deletes a key. Returns the store's revision after it.
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> i64 {
        self.delete_request(DeleteRangeRequest { key: bytes(key), ..Default::default() })
            .await
            .header
            .expect("a header")
            .revision
    }

    /// Deletes with every option.
    pub async fn delete_request(&self, request: DeleteRangeRequest) -> DeleteRangeResponse {
        self.raw.clone().delete_range(request).await.expect("delete").into_inner()
    }

    /// Executes the operations as one revision, which it returns.
    pub async fn txn(&self, operations: Vec<RequestOp>) -> i64 {
        let request = TxnRequest { success: operations, ..Default::default() };
        self.txn_request(request).await.header.expect("a header").revision
    }

    /// A transaction with every option.
    pub async fn txn_request(&self, request: TxnRequest) -> TxnResponse {
        self.raw.clone().txn(request).await.expect("txn").into_inner()
    }

    /// Reads with every option.
    pub async fn range(&self, request: RangeRequest) -> RangeResponse {
        self.raw.clone().range(request).await.expect("range").into_inner()
    }

    /// Reads one key, linearizable.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Option<KeyValue> {
        self.range(RangeRequest { key: bytes(key), ..Default::default() }).await.kvs.pop()
    }

    /// The current revision, linearizable.
    pub async fn revision(&self) -> i64 {
        let request = RangeRequest { key: Bytes::from_static(b"\0"), count_only: true, ..Default::default() };
        self.range(request).await.header.expect("a header").revision
    }

    /// Compacts and waits until the old revisions are gone.
    pub async fn compact(&self, revision: i64) {
        self.raw.clone().compact(CompactionRequest { revision, physical: true }).await.expect("compact");
    }
}

/// A put.
pub fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> PutRequest {
    PutRequest { key: bytes(key), value: bytes(value), ..Default::default() }
}

/// A put within a transaction.
pub fn op_put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> RequestOp {
    RequestOp { request: Some(request_op::Request::RequestPut(put(key, value))) }
}

/// A delete within a transaction.
pub fn op_delete(key: impl AsRef<[u8]>) -> RequestOp {
    let request = DeleteRangeRequest { key: bytes(key), ..Default::default() };
    RequestOp { request: Some(request_op::Request::RequestDeleteRange(request)) }
}

/// The end of the range of all keys with this prefix.
pub fn prefix_end(prefix: impl AsRef<[u8]>) -> Bytes {
    let mut end = prefix.as_ref().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}

/// Owned bytes.
pub fn bytes(text: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(text.as_ref())
}

fn revision(response: &PutResponse) -> i64 {
    response.header.as_ref().expect("a header").revision
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_key_that_has_it_not() {
        for (prefix, end) in [("a".as_bytes(), "b".as_bytes()), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"", b"\0")] {
            assert_eq!(prefix_end(prefix), end, "{prefix:?}");
        }
    }
}
