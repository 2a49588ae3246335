//! Frames between the pool and its zygote, with the descriptors that ride along.
//!
//! A frame is 4 bytes of length (little-endian) and as many bytes of JSON, on a stream socket.
//! Descriptors are sent with a frame's first bytes and are received in the order of their frames.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The longest frame that is taken from a zygote (bytes); its messages have a few hundred.
const LONGEST_FRAME: usize = 64 * 1024;

/// What the pool asks for.
#[derive(Debug, Serialize)]
pub(super) struct Start<'a> {
    pub(super) id: u64,
    pub(super) code: &'a str,
    pub(super) entry_points: &'a [String],
    pub(super) arguments: &'a [Value],
    pub(super) seed: u64,
    /// Resource limits by the names of `setrlimit(2)` without `RLIMIT_`.
    pub(super) limits: BTreeMap<&'static str, u64>,
}

/// What a zygote is told once, before the first request.
#[derive(Debug, Serialize)]
pub(super) struct SetUp {
    /// Seccomp filters in hex; `None` where programs are run without a sandbox.
    pub(super) filters: Option<Vec<String>>,
}

/// What a zygote says.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    /// It has loaded its modules.
    Ready {
        python: String,
        paths: Vec<PathBuf>,
        loaded: BTreeMap<String, String>,
    },
    /// The child exists; its pidfd comes with the frame.
    Started { id: u64 },
    /// The child could not be made.
    Failed { id: u64, message: String },
    /// The child has been waited for. `status` is as `wait4(2)` gives it.
    Ended {
        id: u64,
        status: i32,
        cpu_seconds: f64,
    },
}

/// What a child has written to its result pipe, where it begins with `S` and 8 bytes: the time at which
/// its program began, in nanoseconds of CLOCK_MONOTONIC (little-endian), and what follows.
///
/// These 9 bytes are written at once and before the program's first line: whatever a program writes
/// itself stands behind them.
pub(super) fn begun(output: &[u8]) -> Option<(u64, &[u8])> {
    let (nanos, reply) = output.strip_prefix(b"S")?.split_first_chunk()?;
    Some((u64::from_le_bytes(*nanos), reply))
}

/// How many bytes stand before what a program's child replies.
pub(super) const BEFORE_REPLY: usize = 9;

/// Sends `message` with `descriptors`. A peer that does not read makes it fail after the socket's
/// write time-out.
pub(super) fn send(
    mut socket: &UnixStream,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let frame = [&length.to_le_bytes(), body.as_slice()].concat();
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[][..] } else { &rights };
    let sent = sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &[IoSlice::new(&frame)],
        rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    socket.write_all(&frame[sent..])
}

/// Frames that arrive, put together.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Inbox {
    /// Takes what the socket has, after it was found readable.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` when the peer is gone, `InvalidData` for a frame that is too long.
    pub(super) fn fill(&mut self, socket: &UnixStream) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let mut rights = nix::cmsg_space!([i32; 8]);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<UnixAddr>(
            socket.as_fd().as_raw_fd(),
            &mut slices,
            Some(&mut rights),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just made these descriptors for this process, and nothing
                // else knows their numbers.
                let owned = raw
                    .into_iter()
                    .map(|raw| unsafe { OwnedFd::from_raw_fd(raw) });
                self.descriptors.extend(owned);
            }
        }
        let count = message.bytes;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.bytes.extend_from_slice(&buffer[..count]);
        Ok(())
    }

    /// The next whole frame.
    pub(super) fn next(&mut self) -> io::Result<Option<Event>> {
        let Some((length, rest)) = self.bytes.split_first_chunk() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > LONGEST_FRAME {
            let why = format!("a frame of {length} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let event = serde_json::from_slice(body)?;
        self.bytes.drain(..4 + length);
        Ok(Some(event))
    }

    /// The descriptor that came with the frame just taken.
    pub(super) fn descriptor(&mut self) -> io::Result<OwnedFd> {
        let descriptor = self.descriptors.pop_front();
        descriptor.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no descriptor came"))
    }
}
