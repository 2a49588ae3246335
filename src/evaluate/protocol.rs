//! The protocol between the pool and its zygote.
//!
//! During start-up: frames on the control socket, each a 4-byte little-endian length and that many bytes of
//! JSON. After that: one byte per command, and one [`Report`] per reaped child. Requests bypass the zygote,
//! see `worker.py`.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The longest frame accepted from a zygote (bytes); real ones have a few hundred.
const LONGEST_FRAME: usize = 64 * 1024;

/// Command: fork a child.
pub(super) const FORK: u8 = b'f';

/// Command: reap a child that has ended.
pub(super) const WAIT: u8 = b'w';

/// A request to a child.
#[derive(Debug, Serialize)]
pub(super) struct Start<'a> {
    pub(super) code: &'a str,
    pub(super) entry_points: &'a [String],
    pub(super) arguments: &'a [Value],
    pub(super) seed: u64,
    /// Resource limits, named as in `setrlimit(2)` without `RLIMIT_`.
    pub(super) limits: BTreeMap<&'static str, u64>,
}

/// Sent to the zygote once, before the first request.
#[derive(Debug, Serialize)]
pub(super) struct SetUp {
    /// Seccomp filters in hex; `None` if programs run without a sandbox.
    pub(super) filters: Option<Vec<String>>,
    /// The placeholder in the filters for the child's own process id.
    pub(super) own_pid: u32,
}

/// Sent by the zygote once it has loaded its modules.
#[derive(Debug, Deserialize)]
pub(super) struct Ready {
    pub(super) python: String,
    pub(super) paths: Vec<PathBuf>,
    pub(super) loaded: BTreeMap<String, String>,
    pub(super) missing: Vec<String>,
}

/// A reaped child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) pid: i32,
    /// Status as returned by `wait4(2)`.
    pub(super) status: i32,
    /// CPU time of all its threads.
    pub(super) cpu: Duration,
}

impl Report {
    /// The size of `Report` in `worker.py`: process id, status, and `struct rusage` with its 18 longs.
    pub(super) const BYTES: usize = 8 + 18 * size_of::<libc::c_long>();

    fn read(bytes: &[u8; Self::BYTES]) -> Self {
        let int = |at: usize| i32::from_ne_bytes([0, 1, 2, 3].map(|next| bytes[at + next]));
        let long = |index: usize| {
            const SIZE: usize = size_of::<libc::c_long>();
            let long = bytes[8 + index * SIZE..].first_chunk();
            u64::try_from(long.map_or(0, |long| libc::c_long::from_ne_bytes(*long))).unwrap_or(0)
        };
        // User and system time, each in seconds and microseconds.
        let time = |at| Duration::from_secs(long(at)) + Duration::from_micros(long(at + 1));
        Self {
            pid: int(0),
            status: int(4),
            cpu: time(0) + time(2),
        }
    }
}

/// Sends `message` with `descriptors`. If the peer does not read, fails after the socket's write timeout.
pub(super) fn send(
    mut socket: &UnixStream,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let frame = [&length.to_le_bytes(), body.as_slice()].concat();
    let sent = send_with(socket, &frame, descriptors)?;
    socket.write_all(&frame[sent..])
}

/// Sends one message with descriptors and returns how many bytes were sent.
pub(super) fn send_with(
    socket: &impl AsRawFd,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let sent = sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &[IoSlice::new(message)],
        &rights[..usize::from(!raw.is_empty())],
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    Ok(sent?)
}

/// Bytes received from a zygote and not yet consumed.
#[derive(Debug, Default)]
pub(super) struct Inbox(Vec<u8>);

impl Inbox {
    /// Reads once from the socket, which must be readable.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the peer is gone.
    pub(super) fn fill(&mut self, mut socket: &UnixStream) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let count = io::Read::read(&mut socket, &mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.extend_from_slice(&buffer[..count]);
        Ok(())
    }

    /// The frame that announces that the zygote is ready, once it has arrived completely.
    ///
    /// # Errors
    ///
    /// `InvalidData` for a frame that is too long or malformed.
    pub(super) fn ready(&mut self) -> io::Result<Option<Ready>> {
        let Some((length, rest)) = self.0.split_first_chunk() else {
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
        let ready = serde_json::from_slice(body)?;
        self.0.drain(..4 + length);
        Ok(Some(ready))
    }

    /// The next complete report.
    pub(super) fn report(&mut self) -> Option<Report> {
        let report = Report::read(self.0.first_chunk()?);
        self.0.drain(..Report::BYTES);
        Some(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_parsed_from_the_kernel_layout() {
        let mut bytes = Vec::new();
        bytes.extend(7_i32.to_ne_bytes());
        bytes.extend((3_i32 << 8).to_ne_bytes());
        for long in [1, 500_000, 2, 250_000] as [libc::c_long; 4] {
            bytes.extend(long.to_ne_bytes());
        }
        bytes.resize(Report::BYTES, 0);
        let mut inbox = Inbox(bytes[..100].to_vec());
        assert_eq!(inbox.report(), None);
        inbox.0.extend(&bytes[100..]);
        let expected = Report {
            pid: 7,
            status: 3 << 8,
            cpu: Duration::from_millis(3750),
        };
        assert_eq!(inbox.report(), Some(expected));
        assert_eq!(inbox.report(), None);
    }
}
