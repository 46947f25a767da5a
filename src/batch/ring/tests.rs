//! Compares the ring with plain system calls, on sockets in every state.

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
};

use proptest::{collection::vec, prelude::*, sample::select};
use rustix::net::{SendFlags, send};

use super::*;

/// What a socket is like before a send.
#[derive(Clone, Copy, Debug)]
enum Socket {
    Open,
    /// It accepts some bytes, but not many.
    NearlyFull,
    Full,
    /// Its peer has closed.
    Broken,
    /// Its own side for sending is closed.
    Shut,
}

impl Socket {
    /// A socket and its peer.
    fn pair(self) -> (UnixStream, UnixStream) {
        let (mut socket, mut peer) = UnixStream::pair().expect("a pair");
        match self {
            Self::Open => {}
            Self::NearlyFull | Self::Full => {
                socket.set_nonblocking(true).expect("set");
                while socket.write(&[7; 1024]).is_ok() {}
                while socket.write(&[7]).is_ok() {}
                if matches!(self, Self::NearlyFull) {
                    peer.read_exact(&mut [0; 40 << 10]).expect("there is more");
                }
                socket.set_nonblocking(false).expect("set");
            }
            Self::Broken => drop(std::mem::replace(&mut peer, UnixStream::pair().expect("a pair").0)),
            Self::Shut => socket.shutdown(Shutdown::Write).expect("shut"),
        }
        (socket, peer)
    }
}

fn received(mut peer: UnixStream, socket: UnixStream) -> Vec<u8> {
    drop(socket);
    let mut bytes = Vec::new();
    peer.set_nonblocking(true).expect("set");
    // A broken pair has nothing to read.
    let _ = peer.read_to_end(&mut bytes);
    bytes
}

/// The ring, or `None` if this machine does not allow it.
#[expect(clippy::print_stdout, reason = "whoever runs the tests must see what was skipped")]
fn ring() -> Option<Ring> {
    match Ring::new() {
        Ok(ring) => Some(ring),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn sends_do_what_the_system_call_does(
        batches in vec(vec((select(&[
            Socket::Open, Socket::NearlyFull, Socket::Full, Socket::Broken, Socket::Shut,
        ][..]), 0..70_000_usize), 0..12), 1..4)
    ) {
        let Some(mut ring) = ring() else { return Ok(()) };
        for sends in batches {
            let content: Vec<u8> = (0..sends.iter().map(|(_, len)| len).sum()).map(|at: usize| (at % 251) as u8).collect();
            let mut bytes = content.clone();
            let pairs: Vec<_> = sends.iter().map(|(kind, _)| (kind.pair(), kind.pair())).collect();
            let mut at = 0;
            let ranges: Vec<_> = sends.iter().map(|(_, len)| { let range = at..at + len; at += len; range }).collect();
            let all: Vec<_> = pairs.iter().zip(&ranges).map(|(((socket, _), _), range)| (socket.as_fd(), range.clone())).collect();
            let results = ring.send(&mut bytes, &all).expect("sent").to_vec();
            prop_assert_eq!(&bytes, &content);
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let expected: Vec<i32> = pairs.iter().zip(&ranges).map(|((_, (socket, _)), range)| {
                send(socket, &content[range.clone()], flags).map_or_else(|error| -error.raw_os_error(), |sent| sent as i32)
            }).collect();
            prop_assert_eq!(results, expected);
            for ((socket, peer), (other, its_peer)) in pairs {
                prop_assert!(received(peer, socket) == received(its_peer, other));
            }
        }
    }
}

#[test]
fn a_full_batch_is_sent_whole_and_the_ring_goes_on() {
    let Some(mut ring) = ring() else { return };
    let pairs: Vec<_> = (0..Ring::CAPACITY).map(|_| UnixStream::pair().expect("a pair")).collect();
    let mut bytes: Vec<u8> = (0..Ring::CAPACITY).map(|place| place as u8).collect();
    for _ in 0..100 {
        let sends: Vec<_> =
            pairs.iter().enumerate().map(|(place, (socket, _))| (socket.as_fd(), place..place + 1)).collect();
        assert_eq!(ring.send(&mut bytes, &sends).expect("sent"), [1; Ring::CAPACITY]);
    }
    for (place, (socket, peer)) in pairs.into_iter().enumerate() {
        assert_eq!(received(peer, socket), [place as u8; 100]);
    }
}

#[test]
fn a_range_outside_of_the_bytes_sends_nothing() {
    let Some(mut ring) = ring() else { return };
    let (socket, peer) = UnixStream::pair().expect("a pair");
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = ring.send(&mut vec![1, 2], &[(socket.as_fd(), 0..2), (socket.as_fd(), 1..3)]);
    }));
    assert!(refused.is_err());
    assert_eq!(ring.send(&mut vec![3], &[(socket.as_fd(), 0..1)]).expect("sent"), [1]);
    assert_eq!(received(peer, socket), [3]);
}

#[test]
fn a_broken_ring_sends_nothing_and_takes_the_bytes() {
    let Some(mut ring) = ring() else { return };
    let (socket, peer) = UnixStream::pair().expect("a pair");
    ring.break_it();
    let mut bytes = vec![1];
    ring.send(&mut bytes, &[(socket.as_fd(), 0..1)]).expect_err("broken");
    assert!(bytes.is_empty(), "they are leaked, since the kernel may still read them");
    assert!(received(peer, socket).is_empty());
}
