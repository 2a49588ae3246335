//! The Python process that forks for each evaluation: starts it, sets up its sandbox, and ends it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::personality::{self, Persona};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt::SendTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};
use rustix::fs::{MemfdFlags, memfd_create};

use super::protocol::{self, Inbox, SetUp, Start, send, send_with};
use super::sandbox::{OWN_PID, Sandbox};
use super::settings::{PythonInfo, Settings};
use crate::error::{Error, Result};
use crate::stopwatch;

const WORKER: &str = include_str!("worker.py");

/// How long Python may take to load its modules, allowing for a cold disk and a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// How long sending a request may block on a zygote that does not read (s).
const READS_WITHIN: u32 = 5;

/// A running zygote. It ends when this is dropped, and also when this process dies in any way: its socket
/// closes, and it has set SIGKILL as its parent-death signal. Its children die with it.
#[derive(Debug)]
pub(super) struct Zygote {
    process: Child,
    socket: UnixStream,
    /// The socket from which its children take their requests.
    jobs: OwnedFd,
    pub(super) inbox: Inbox,
    pub(super) python: PythonInfo,
}

impl Zygote {
    /// Starts Python and waits until it is ready. The calling thread must outlive the zygote, because the
    /// parent-death signal is tied to the thread that forked.
    pub(super) fn start(settings: &Settings) -> Result<Self> {
        let context = || {
            let python = settings.python.display();
            format!("cannot start the evaluation process '{python}'")
        };
        let started = Self::spawn(settings).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => {
                    "install Python 3.9 or later, or name the one to use (PYTHON, --python)"
                }
                _ => "check that it is an executable Python 3.9 or later",
            };
            Error::preflight(context()).caused_by(error).hint(hint)
        });
        let mut zygote = started?;
        let paths = zygote.wait_until_ready().map_err(|error| {
            let said = zygote.last_words();
            let hint = "evaluations need Python 3.9 or later on Linux 5.13 or later";
            let failed = Error::preflight(context()).hint(hint);
            if said.is_empty() {
                failed.caused_by(error)
            } else {
                failed.caused_by(said)
            }
        })?;
        zygote.process.stderr = None;
        let sandbox = match Sandbox::new(&paths) {
            Err(_) if settings.unsafe_eval => None,
            sandbox => Some(sandbox?),
        };
        zygote.python.sandboxed = sandbox.is_some();
        zygote
            .set_up(sandbox.as_ref())
            .map_err(|error| Error::preflight(context()).caused_by(error))?;
        Ok(zygote)
    }

    /// Hands over the sandbox and the children's end of the job socket.
    fn set_up(&mut self, sandbox: Option<&Sandbox>) -> io::Result<()> {
        let (jobs, for_children) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        setsockopt(&jobs, SendTimeout, &TimeVal::seconds(READS_WITHIN.into()))?;
        self.jobs = jobs;
        let mut descriptors = vec![for_children.as_fd()];
        descriptors.extend(sandbox.map(|sandbox| sandbox.ruleset.as_fd()));
        let filters = sandbox.map(|sandbox| {
            let filters = sandbox.filters.iter();
            filters.map(|filter| hex(filter)).collect()
        });
        let set_up = SetUp {
            filters,
            own_pid: OWN_PID,
        };
        send(&self.socket, &set_up, &descriptors)
    }

    fn spawn(settings: &Settings) -> io::Result<Self> {
        let (socket, other_side) = UnixStream::pair()?;
        socket.set_write_timeout(Some(Duration::from_secs(READS_WITHIN.into())))?;
        let fixed = FixedAddresses::of_this_thread();
        let process = Command::new(&settings.python)
            .args(["-s", "-c", WORKER, &settings.warm_up])
            .arg(settings.wanted.join(","))
            .args(&settings.preload)
            .env_clear()
            .envs(&settings.environment)
            // Set iteration order must be the same for the same seed.
            .env("PYTHONHASHSEED", "0")
            .env("OPENBLAS_NUM_THREADS", "1")
            .env("OMP_NUM_THREADS", "1")
            .env("MKL_NUM_THREADS", "1")
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(other_side)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let fixed_addresses = fixed.is_ok();
        drop(fixed);
        Ok(Self {
            process,
            jobs: socket.try_clone()?.into(),
            socket,
            inbox: Inbox::default(),
            python: PythonInfo {
                version: String::new(),
                loaded: BTreeMap::new(),
                missing: Vec::new(),
                fixed_addresses,
                sandboxed: false,
            },
        })
    }

    /// Returns the directories that Python imports from.
    fn wait_until_ready(&mut self) -> io::Result<Vec<std::path::PathBuf>> {
        let cancel = stopwatch::now() + READY_WITHIN;
        loop {
            if let Some(ready) = self.inbox.ready()? {
                self.python.version = ready.python;
                self.python.loaded = ready.loaded;
                self.python.missing = ready.missing;
                return Ok(ready.paths);
            }
            let remaining = cancel.saturating_duration_since(stopwatch::now());
            let timeout = PollTimeout::try_from(remaining).unwrap_or(PollTimeout::MAX);
            let mut socket = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut socket, timeout) {
                Ok(0) => {
                    let why = format!("it was not ready within {} s", READY_WITHIN.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
                Ok(_) => self
                    .inbox
                    .fill(&self.socket)
                    .map_err(|error| match error.kind() {
                        io::ErrorKind::UnexpectedEof => io::Error::other("it ended at once"),
                        _ => error,
                    })?,
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The last line on stderr of a zygote that failed to start.
    fn last_words(&mut self) -> String {
        // Errors here are ignored: there is nothing more to report than the output itself.
        let _ = self.process.kill();
        let mut said = Vec::new();
        if let Some(stderr) = self.process.stderr.take() {
            let _ = stderr.take(64 * 1024).read_to_end(&mut said);
        }
        let said = String::from_utf8_lossy(&said);
        said.trim_end().lines().last().unwrap_or("").to_owned()
    }

    /// Requests an evaluation, whose result goes to `result`.
    ///
    /// The request is an in-memory file, so that neither side blocks however long it is.
    pub(super) fn request(&self, start: &Start<'_>, result: BorrowedFd<'_>) -> io::Result<()> {
        let mut request = File::from(memfd_create("flowbench-request", MemfdFlags::CLOEXEC)?);
        request.write_all(&serde_json::to_vec(start)?)?;
        send_with(&self.jobs, b"j", &[result, request.as_fd()])?;
        self.command(protocol::FORK)
    }

    /// Has it reap one dead child; a report will follow.
    pub(super) fn reap_one(&self) -> io::Result<()> {
        self.command(protocol::WAIT)
    }

    fn command(&self, command: u8) -> io::Result<()> {
        send_with(&self.socket, &[command], &[])?;
        Ok(())
    }

    /// Reads what has arrived, once the socket is readable.
    pub(super) fn fill_inbox(&mut self) -> io::Result<()> {
        self.inbox.fill(&self.socket)
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }
}

/// While this exists, processes started by this thread have no address randomization
/// (`ADDR_NO_RANDOMIZE`). In Python most objects hash by address, which determines the order of sets.
///
/// The setting belongs to the thread and is inherited by its children, so no code has to run between fork
/// and exec, which would slow the start down.
struct FixedAddresses(Persona);

impl FixedAddresses {
    /// Fails if a container forbids it.
    fn of_this_thread() -> nix::Result<Self> {
        let before = personality::get()?;
        personality::set(before | Persona::ADDR_NO_RANDOMIZE)?;
        Ok(Self(before))
    }
}

impl Drop for FixedAddresses {
    fn drop(&mut self) {
        // Restoring works if setting did. If not, only later zygotes would inherit the setting.
        let _ = personality::set(self.0);
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // An error means that it is already dead; `wait` reaps the zombie either way.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
