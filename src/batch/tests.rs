//! Streams over real sockets, whose writes are joined.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use futures_util::future::join_all;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use proptest::{collection::vec, prelude::*};
use tokio::{
    io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::yield_now,
};

use super::*;

/// A batcher with its metrics, or `None` if this machine does not allow io_uring.
#[expect(clippy::print_stdout, reason = "whoever runs the tests must see what was skipped")]
fn batcher() -> Option<(Arc<Batcher>, PrometheusHandle)> {
    let recorder = PrometheusBuilder::new().build_recorder();
    let batcher = metrics::with_local_recorder(&recorder, || Batcher::new(Io::Uring));
    match batcher {
        Ok(batcher) => {
            let batcher = batcher.expect("it was asked for");
            batcher.start(&Tasks::new());
            Some((batcher, recorder.handle()))
        }
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// A stream that joins its writes, and its client.
async fn pair(batcher: &Arc<Batcher>) -> (Stream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let addr = listener.local_addr().expect("an address");
    let (client, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
    let stream = Stream::new(accepted.expect("accepted").0, Some(batcher));
    stream.switch().expect("it has a batcher").join();
    (stream, client.expect("connected"))
}

async fn pairs(batcher: &Arc<Batcher>, count: usize) -> (Vec<Stream>, Vec<TcpStream>) {
    join_all((0..count).map(|_| pair(batcher))).await.into_iter().unzip()
}

fn value(metrics: &PrometheusHandle, name: &str) -> u64 {
    let text = metrics.render();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().expect("a number"))
}

fn batches(metrics: &PrometheusHandle) -> (u64, u64) {
    (value(metrics, "etcd_relay_send_batches_total"), value(metrics, "etcd_relay_batched_sends_total"))
}

async fn read(client: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    client.read_exact(&mut bytes).await.expect("they come");
    bytes
}

#[tokio::test]
async fn writes_of_tasks_that_are_ready_at_the_same_time_leave_in_one_system_call() {
    let Some((batcher, metrics)) = batcher() else { return };
    let (streams, mut clients) = pairs(&batcher, 50).await;
    for (place, mut stream) in streams.into_iter().enumerate() {
        tokio::spawn(async move {
            stream.write_all(&[place as u8; 300]).await.expect("taken");
            std::future::pending::<()>().await;
        });
    }
    for (place, client) in clients.iter_mut().enumerate() {
        assert_eq!(read(client, 300).await, [place as u8; 300]);
    }
    assert_eq!(batches(&metrics), (1, 50));
    assert_eq!(value(&metrics, "etcd_relay_send_rings"), 1);
}

#[tokio::test]
async fn no_more_than_a_ring_takes_leave_in_one_system_call() {
    let Some((batcher, metrics)) = batcher() else { return };
    let (mut streams, mut clients) = pairs(&batcher, 300).await;
    for stream in &mut streams {
        stream.write_all(&[1]).await.expect("taken");
    }
    for client in &mut clients {
        read(client, 1).await;
    }
    assert_eq!(batches(&metrics), (3, 300));
}

/// Threads share a lane where there are more of them than lanes. While the lane is sending, one of them fills it and
/// waits, and then another one does.
#[tokio::test]
async fn threads_that_share_a_lane_may_queue_more_than_a_ring_takes() {
    let Some((batcher, _)) = batcher() else { return };
    let (mut streams, mut clients) = pairs(&batcher, 130).await;
    let lane = batcher.lane();
    let held = lane.hold();
    std::thread::scope(|scope| {
        for count in [128, 1, 1] {
            let before = lane.queued();
            let mut some: Vec<Stream> = streams.drain(..count).collect();
            scope.spawn(move || {
                for stream in &mut some {
                    let cx = &mut Context::from_waker(Waker::noop());
                    let written = Pin::new(stream).poll_write(cx, &[1]);
                    assert!(matches!(written, Poll::Ready(Ok(1))), "{written:?}");
                }
            });
            while lane.queued() < before + count {
                std::thread::yield_now();
            }
        }
        drop(held);
    });
    for client in &mut clients {
        assert_eq!(read(client, 1).await, [1]);
    }
}

#[tokio::test]
async fn a_stream_that_sends_alone_soon_sends_directly() {
    let Some((batcher, metrics)) = batcher() else { return };
    let (mut stream, mut client) = pair(&batcher).await;
    stream.write_all(&[1]).await.expect("taken");
    assert_eq!(read(&mut client, 1).await, [1]);
    assert!(!batcher.lane().takes(), "it had no company");
    for round in 0..100 {
        stream.write_all(&[round]).await.expect("taken");
        assert_eq!(read(&mut client, 1).await, [round]);
    }
    assert_eq!(batches(&metrics), (0, 0));
}

#[tokio::test]
async fn writes_are_joined_only_when_asked_and_small() {
    let Some((batcher, metrics)) = batcher() else { return };
    let (mut streams, mut clients) = pairs(&batcher, 20).await;
    for stream in &mut streams[..10] {
        stream.stop_joining();
    }
    for (stream, len) in streams.iter_mut().zip([[100; 10], [5000; 10]].concat()) {
        stream.write_all(&vec![1; len]).await.expect("taken");
    }
    for (client, len) in clients.iter_mut().zip([[100; 10], [5000; 10]].concat()) {
        read(client, len).await;
    }
    assert_eq!(batches(&metrics), (0, 0));
}

#[tokio::test]
async fn a_writer_that_only_flushes_when_woken_loses_nothing_to_a_full_socket() {
    let Some((batcher, _)) = batcher() else { return };
    let (mut streams, mut clients) = pairs(&batcher, 2).await;
    let (mut other, mut stream) = (streams.remove(0), streams.remove(0));
    let (_other_client, mut client) = (clients.remove(0), clients.remove(0));
    let mut written = 0;
    // Its writes have company, so they are queued. The client reads nothing, so some day one is not sent whole.
    loop {
        other.write_all(&[1]).await.expect("taken");
        let taken = poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_write(cx, &[written as u8; 1000]))).await;
        let Poll::Ready(taken) = taken else { break };
        written += taken.expect("open");
        yield_now().await;
        let flushed = poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_flush(cx))).await;
        if flushed.is_pending() {
            break;
        }
    }
    let reader = tokio::spawn(async move {
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.expect("read");
        received.len()
    });
    poll_fn(|cx| Pin::new(&mut stream).poll_flush(cx)).await.expect("open");
    stream.shutdown().await.expect("open");
    assert_eq!(reader.await.expect("read"), written);
}

#[tokio::test]
async fn a_stream_that_is_dropped_or_shut_sends_what_it_has_queued() {
    let Some((batcher, _)) = batcher() else { return };
    let (mut streams, clients) = pairs(&batcher, 20).await;
    for stream in &mut streams {
        stream.write_all(b"last words").await.expect("taken");
    }
    for stream in &mut streams[..10] {
        stream.shutdown().await.expect("shut");
    }
    drop(streams);
    drop(batcher);
    for mut client in clients {
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.expect("read");
        assert_eq!(received, b"last words");
    }
}

#[tokio::test]
async fn a_client_that_is_gone_ends_its_own_stream_alone() {
    let Some((batcher, metrics)) = batcher() else { return };
    let (mut streams, mut clients) = pairs(&batcher, 20).await;
    let gone = clients.remove(7);
    rustix::net::sockopt::set_socket_linger(&gone, Some(std::time::Duration::ZERO)).expect("set");
    drop(gone);
    let mut lost = streams.remove(7);
    // Until the stream's side knows it.
    assert!(lost.read(&mut [0]).await.is_err());
    lost.write_all(&[1]).await.expect("queued");
    for stream in &mut streams {
        stream.write_all(&[1]).await.expect("taken");
    }
    for client in &mut clients {
        assert_eq!(read(client, 1).await, [1]);
    }
    assert_eq!(batches(&metrics), (1, 20));
    for _ in 0..2 {
        let error = lost.flush().await.expect_err("the client is gone");
        assert!(matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{error}");
        lost.write_all(&[1]).await.expect_err("the client is gone");
    }
}

#[tokio::test]
async fn a_lane_without_its_ring_writes_one_by_one() {
    let Some((batcher, _)) = batcher() else { return };
    batcher.lane().remove_ring();
    let (mut streams, mut clients) = pairs(&batcher, 20).await;
    for _ in 0..3 {
        for stream in &mut streams {
            stream.write_all(&[1, 2]).await.expect("taken");
        }
        for client in &mut clients {
            assert_eq!(read(client, 2).await, [1, 2]);
        }
    }
}

#[tokio::test]
async fn when_a_ring_fails_the_streams_that_it_was_to_send_for_end_and_the_lane_goes_on() {
    let Some((batcher, metrics)) = batcher() else { return };
    let (mut streams, mut clients) = pairs(&batcher, 20).await;
    batcher.lane().break_ring();
    for stream in &mut streams[..10] {
        stream.write_all(&[1]).await.expect("queued");
    }
    yield_now().await;
    for stream in &mut streams[..10] {
        let error =
            poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx)).await.expect_err("what was sent is not known");
        assert!(error.to_string().contains("io_uring"), "{error}");
    }
    assert_eq!(value(&metrics, "etcd_relay_send_rings"), 0);
    for _ in 0..3 {
        for stream in &mut streams[10..] {
            stream.write_all(&[2]).await.expect("taken");
        }
        for client in &mut clients[10..] {
            assert_eq!(read(client, 1).await, [2]);
        }
    }
}

#[tokio::test]
async fn epoll_has_no_batcher() {
    assert!(Batcher::new(Io::Epoll).expect("nothing is needed").is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    /// Streams on several threads, whose clients read at different speeds.
    #[test]
    fn each_client_gets_its_bytes_in_order(
        writes in vec((vec(1..9000_usize, 1..60), 1..20_000_usize), 1..40),
        breaks in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().expect("threads");
        runtime.block_on(async {
            let Some((batcher, _)) = batcher() else { return };
            let all = writes.into_iter().enumerate().map(|(place, (lengths, step))| {
                let batcher = batcher.clone();
                tokio::spawn(async move {
                    let (mut stream, mut client) = pair(&batcher).await;
                    let total = lengths.iter().sum::<usize>();
                    let expected: Vec<u8> = (0..total).map(|at| (at + place) as u8).collect();
                    let sent = expected.clone();
                    let writer = tokio::spawn(async move {
                        let mut at = 0;
                        for len in lengths {
                            stream.write_all(&sent[at..at + len]).await.expect("open");
                            stream.flush().await.expect("open");
                            if len % 3 == 0 {
                                yield_now().await;
                            }
                            at += len;
                        }
                        stream.shutdown().await.expect("open");
                    });
                    let mut received = Vec::new();
                    let mut part = vec![0; step];
                    loop {
                        let count = client.read(&mut part).await.expect("open");
                        if count == 0 {
                            break;
                        }
                        received.extend_from_slice(&part[..count]);
                        yield_now().await;
                    }
                    writer.await.expect("written");
                    assert!(received == expected, "client {place}");
                })
            });
            let all: Vec<_> = all.collect();
            if breaks {
                for lane in &batcher.lanes {
                    lane.remove_ring();
                }
            }
            for client in all {
                client.await.expect("right");
            }
        });
    }
}
