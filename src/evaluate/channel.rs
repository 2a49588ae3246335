//! The socket on which a child reports that its program has started, and then its result.
//!
//! It is one end of a socket pair, because a program could reopen a pipe through `/proc/self/fd` and read
//! it. The kernel timestamps each message when it is sent (`SO_TIMESTAMPNS`), so neither the program nor a
//! late wake-up of this process can distort the times.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::stopwatch;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg,
    setsockopt, socketpair, sockopt,
};
use std::io::IoSliceMut;

/// Bytes that a child may have in flight. The kernel doubles it, and no message is longer than that.
const SEND_BUFFER: usize = 128 * 1024;

/// Upper bound on the length of a message, given the send buffer.
const LONGEST_MESSAGE: usize = 2 * SEND_BUFFER;

/// What the child sends before its program's first line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mark {
    /// The program's first line comes next.
    Started { pid: i32 },
    /// The sandbox could not be applied, so the program does not run.
    Failed { pid: i32, why: String },
}

impl Mark {
    fn read(message: &[u8]) -> Option<Self> {
        let (kind, rest) = message.split_first()?;
        let (pid, why) = rest.split_first_chunk()?;
        let pid = i32::from_ne_bytes(*pid);
        match kind {
            b'S' => Some(Self::Started { pid }),
            b'F' => Some(Self::Failed {
                pid,
                why: String::from_utf8_lossy(why).into_owned(),
            }),
            _ => None,
        }
    }
}

/// The parent's end of the socket, with its receive buffer.
#[derive(Debug)]
pub(super) struct Channel {
    socket: OwnedFd,
    buffer: Vec<u8>,
    last: Instant,
}

/// The result of one non-blocking read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received<'a> {
    /// A message and the time it was sent.
    Message(&'a [u8], Instant),
    /// A message longer than the worker ever sends; it was truncated.
    TooLong,
    /// No message is waiting.
    Nothing,
    /// The other end is closed.
    Closed,
}

impl Channel {
    /// A new channel and the child's end of it.
    pub(super) fn open() -> io::Result<(Self, OwnedFd)> {
        let (socket, other) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        setsockopt(&other, sockopt::SndBuf, &SEND_BUFFER)?;
        let channel = Self {
            socket,
            buffer: vec![0; LONGEST_MESSAGE],
            last: stopwatch::now(),
        };
        Ok((channel, other))
    }

    /// The next message. Times never go backwards, and none precedes the opening of the channel.
    pub(super) fn receive(&mut self) -> Received<'_> {
        let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
        let (length, flags, sent) = loop {
            let mut slices = [IoSliceMut::new(&mut self.buffer)];
            let received = recvmsg::<UnixAddr>(
                self.socket.as_raw_fd(),
                &mut slices,
                Some(&mut control),
                MsgFlags::MSG_DONTWAIT,
            );
            match received {
                Ok(message) => {
                    let mut controls = message.cmsgs().into_iter().flatten();
                    let sent = controls.find_map(|control| match control {
                        ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
                        _ => None,
                    });
                    break (message.bytes, message.flags, sent);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Received::Nothing,
                Err(_) => return Received::Closed,
            }
        };
        if length == 0 {
            return Received::Closed;
        }
        let now = stopwatch::now();
        self.last = instant(sent, now).clamp(self.last.min(now), now);
        if flags.contains(MsgFlags::MSG_TRUNC) {
            return Received::TooLong;
        }
        Received::Message(&self.buffer[..length], self.last)
    }

    /// Parses the first message.
    pub(super) fn mark(message: &[u8]) -> Option<Mark> {
        Mark::read(message)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Converts a kernel timestamp, which is wall-clock time, to an `Instant` at the same distance from `now`.
fn instant(sent: Option<Duration>, now: Instant) -> Instant {
    let wall_clock = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    let ago = match (wall_clock, sent) {
        (Some(wall_clock), Some(sent)) => wall_clock.saturating_sub(sent),
        _ => Duration::ZERO,
    };
    now.checked_sub(ago).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    fn write(socket: &OwnedFd, message: &[u8]) {
        assert_eq!(rustix::io::write(socket, message), Ok(message.len()));
    }

    #[test]
    fn messages_are_timestamped_when_sent() {
        let pause = Duration::from_millis(60);
        let (mut channel, child) = Channel::open().unwrap();
        assert_eq!(channel.receive(), Received::Nothing);
        let before = Instant::now();
        write(&child, b"S\x07\0\0\0");
        sleep(pause);
        write(&child, b"{}");
        let after = Instant::now();
        // The test may read them arbitrarily late.
        sleep(pause);
        let Received::Message(mark, begun) = channel.receive() else {
            panic!("no mark");
        };
        assert_eq!(Channel::mark(mark), Some(Mark::Started { pid: 7 }));
        let Received::Message(b"{}", ended) = channel.receive() else {
            panic!("no result");
        };
        // The wall clock may be slewed slightly in the meantime.
        let slack = Duration::from_millis(2);
        assert!(begun + slack >= before && ended <= after + slack);
        assert!(ended - begun + slack >= pause, "{:?}", ended - begun);
        drop(child);
        assert_eq!(channel.receive(), Received::Closed);
    }

    #[test]
    fn a_child_cannot_read_its_messages_back() {
        let (_channel, child) = Channel::open().unwrap();
        write(&child, b"S\x07\0\0\0");
        let again = format!("/proc/self/fd/{}", child.as_raw_fd());
        let opened = std::fs::File::open(again);
        assert_eq!(opened.unwrap_err().raw_os_error(), Some(libc::ENXIO));
    }

    #[test]
    fn long_messages_arrive_whole_and_marks_are_parsed() {
        let (mut channel, child) = Channel::open().unwrap();
        let long = vec![b'x'; 200_000];
        write(&child, &long);
        assert!(matches!(channel.receive(), Received::Message(all, _) if all == long));
        let failed = Channel::mark(b"F\x01\0\0\0no Landlock");
        let why = "no Landlock".to_owned();
        assert_eq!(failed, Some(Mark::Failed { pid: 1, why }));
        for message in [&b"S"[..], b"{\"returned\": 1}", b""] {
            assert_eq!(Channel::mark(message), None);
        }
    }
}
