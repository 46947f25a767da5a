//! [`Ring`]: sends to many sockets with one system call, by io_uring.
//!
//! This is the only file with unsafe code. It does not know what is sent, or to whom; `lane` calls it.
//!
//! Always holds: when [`Ring::send`] returns, the kernel uses none of the bytes that it was given. io_uring itself
//! promises this only once a send is reported as completed. Therefore `send` returns after it has seen a completion for
//! each of its sends. If the kernel ever fails to deliver them, the bytes are leaked, so they stay valid, and the ring
//! is not used again.
//!
//! A send never waits for its peer: each is sent with `MSG_DONTWAIT`. Kernels that would wait all the same are found
//! when the ring is made, and refused.

use std::{
    io,
    ops::Range,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
};

use io_uring::{IoUring, Probe, opcode, types};
use thiserror::Error;

/// Why io_uring cannot be used.
#[derive(Debug, Error)]
pub enum UringError {
    /// The kernel, or the container's seccomp profile, does not let this process have a ring.
    #[error(
        "the kernel refuses io_uring ({0}); use --io epoll, or allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile and kernel.io_uring_disabled=0 (a ring also needs locked memory on kernels before 5.12)"
    )]
    Refused(#[source] io::Error),
    /// The kernel's io_uring is too old.
    #[error("the kernel's io_uring is too old; it must be Linux 5.11 or later, or use --io epoll")]
    TooOld,
    /// A send to a full socket did not return at once.
    #[error("the kernel's io_uring does not send as it should ({0}); use --io epoll")]
    Waits(String),
}

/// The ring failed. What its sends have become is not known.
#[derive(Debug, Error)]
#[error("io_uring failed, and is not used any more: {0}")]
pub(super) struct Broken(#[from] io::Error);

/// A ring; see the module.
pub(super) struct Ring {
    uring: IoUring,
    /// The results of the last sends, by their place: bytes sent, or a negative error number.
    results: [i32; Ring::CAPACITY],
    broken: bool,
}

impl Ring {
    /// Most sends of one call. At 1 to 2 µs each, a call takes no longer than the turn of a connection.
    pub(super) const CAPACITY: usize = 128;
    /// Failures in a row of a system call for lack of memory, before the ring counts as broken.
    const RETRIES: u32 = 16;
    /// How long the trial of a new ring may take.
    const TRIAL: types::Timespec = types::Timespec::new().sec(1);

    /// Makes a ring and tries it.
    pub(super) fn new() -> Result<Self, UringError> {
        let uring = IoUring::new(Self::CAPACITY as u32).map_err(UringError::Refused)?;
        let mut probe = Probe::new();
        uring.submitter().register_probe(&mut probe).map_err(|_| UringError::TooOld)?;
        if !probe.is_supported(opcode::Send::CODE) || !uring.params().is_feature_ext_arg() {
            return Err(UringError::TooOld);
        }
        let mut ring = Self { uring, results: [0; Self::CAPACITY], broken: false };
        ring.try_out().map_err(|error| UringError::Waits(error.to_string()))?;
        Ok(ring)
    }

    /// Sends to a socket with room and to a full one.
    fn try_out(&mut self) -> io::Result<()> {
        static BYTES: [u8; 64 << 10] = [0; 64 << 10];
        // The sockets themselves may block: only the flag of the send says that it must not.
        let (full, _peer) = UnixStream::pair()?;
        let mut filled = 0;
        loop {
            self.push(full.as_fd(), &BYTES, 0)?;
            self.uring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&Self::TRIAL))?;
            let sent = self.uring.completion().next().map(|completion| completion.result());
            match sent {
                Some(sent @ 1..) => filled += sent,
                Some(error) if -error == rustix::io::Errno::AGAIN.raw_os_error() && filled > 0 => return Ok(()),
                Some(error) => return Err(io::Error::from_raw_os_error(-error)),
                None => return Err(io::Error::new(io::ErrorKind::TimedOut, "a send to a full socket waits")),
            }
        }
    }

    /// Sends each range of `bytes` to its socket. Returns the results in the same order: the bytes sent, or a negative
    /// error number.
    ///
    /// # Errors
    /// If the ring failed, now or before. `bytes` is empty then.
    ///
    /// # Panics
    /// If there are more sends than [`Self::CAPACITY`], or a range is not within `bytes`. Nothing is sent then.
    pub(super) fn send(
        &mut self,
        bytes: &mut Vec<u8>,
        sends: &[(BorrowedFd<'_>, Range<usize>)],
    ) -> Result<&[i32], Broken> {
        assert!(sends.len() <= Self::CAPACITY, "too many sends");
        assert!(sends.iter().all(|(_, range)| bytes.get(range.clone()).is_some()), "a range is not within the bytes");
        match self.send_within(bytes, sends) {
            Ok(()) => Ok(&self.results[..sends.len()]),
            Err(error) => {
                self.broken = true;
                // The kernel may still read them.
                std::mem::take(bytes).leak();
                Err(Broken(error))
            }
        }
    }

    /// The same. The caller must keep `bytes` valid forever if this fails. It does not panic, since a panic would free
    /// them: what could is checked before.
    fn send_within(&mut self, bytes: &[u8], sends: &[(BorrowedFd<'_>, Range<usize>)]) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("it failed before"));
        }
        for (place, (socket, range)) in sends.iter().enumerate() {
            self.push(*socket, bytes.get(range.clone()).unwrap_or_default(), place as u64)?;
        }
        let (mut left, mut failures) = (sends.len(), 0);
        while left > 0 {
            match self.uring.submit_and_wait(left) {
                Ok(_) => failures = 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_passing(&error) && failures < Self::RETRIES => failures += 1,
                Err(error) => return Err(error),
            }
            for completion in self.uring.completion() {
                left = left.saturating_sub(1);
                if let Some(result) = self.results.get_mut(completion.user_data() as usize) {
                    *result = completion.result();
                }
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn break_it(&mut self) {
        self.broken = true;
    }

    /// Puts a send into the queue for the next submission. The caller must keep `bytes` valid and unchanged until the
    /// send is completed, and `socket` open until it is submitted.
    #[expect(unsafe_code, reason = "the kernel is given a pointer")]
    fn push(&mut self, socket: BorrowedFd<'_>, bytes: &[u8], place: u64) -> io::Result<()> {
        let len = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let flags = (rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL).bits();
        let send = opcode::Send::new(types::Fd(socket.as_raw_fd()), bytes.as_ptr(), len)
            .flags(flags as i32)
            .build()
            .user_data(place);
        // SAFETY: the pointer is valid for `len` bytes until the send is completed. There are two callers. `try_out`
        // sends a static. `send_within` waits until all of its sends are completed; meanwhile it borrows the bytes, so
        // nobody can change or free them. If it cannot wait, it fails, and `send`, which owns the bytes by `&mut Vec`,
        // leaks them. Nothing between the first push and the last completion can panic. The socket is borrowed until
        // then as well.
        unsafe { self.uring.submission().push(&send) }.map_err(|_| io::Error::other("the submission queue is full"))
    }
}

/// Whether the kernel is short of memory for a moment.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy)
}

#[cfg(test)]
mod tests;
