//! The recorder of this process: its clock, a span stack per thread, and the shared state.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use quanta::Clock;

use super::device::{DevicePass, DeviceSums};
use super::live::{self, Count, Live, Watched};
use super::log::{self, EndedPass, Log, PassTokens};
use super::names::{Kind, Span};
use super::span::{Ended, Rows, Stack, Sums, Table};
use super::stages::Sweep;
use super::trace::json;
use super::tree::{Open, Tree};
use crate::record::profile::{Profile, ProfileRow, StageShare};

/// Whether the profile is on. While it is off, a span reads nothing else.
static ON: AtomicBool = AtomicBool::new(false);

/// The processor's cycle counter, calibrated once; read without a fence.
static CLOCK: OnceLock<Clock> = OnceLock::new();

/// State shared by all threads. It is locked when a stage or an activity starts and ends, but not
/// for the many small spans inside a forward pass.
static SHARED: Mutex<Option<RecorderState>> = Mutex::new(None);

struct RecorderState {
    sweep: Sweep,
    tree: Tree,
    log: Log,
    watched: Watched,
    device: DeviceSums,
    /// Device time of the pass in progress.
    device_pass: Option<DevicePass>,
    /// Start of the profile.
    start: u64,
    /// Sums of the running threads.
    threads: Vec<Arc<Rows>>,
    /// Sums of finished threads.
    retired: Table,
}

thread_local! {
    static LOCAL: RefCell<Option<Local>> = const { RefCell::new(None) };
    /// The activity that is the parent of new ones on this thread; 0 is none.
    static SCOPE: Cell<u64> = const { Cell::new(0) };
}

/// Per-thread state.
struct Local {
    clock: Clock,
    stack: Stack,
}

/// Turns the profile on for the rest of the process. Calibrating the clock takes a few
/// milliseconds.
pub fn enable() {
    let clock = CLOCK.get_or_init(Clock::new);
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let start = clock.raw();
    shared.get_or_insert_with(|| RecorderState {
        sweep: Sweep::new(start),
        tree: Tree::new(),
        log: Log::default(),
        watched: Watched::new(),
        device: DeviceSums::default(),
        device_pass: None,
        start,
        threads: Vec::new(),
        retired: Table::new(),
    });
    ON.store(true, Ordering::Release);
}

#[inline]
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

fn clock() -> &'static Clock {
    CLOCK.get_or_init(Clock::new)
}

/// Runs `work` on the shared state, if the profile is on.
fn with_shared<T>(work: impl FnOnce(&mut RecorderState) -> T) -> Option<T> {
    let mut shared: MutexGuard<'_, Option<RecorderState>> =
        SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.as_mut().map(work)
}

impl Local {
    fn new() -> Self {
        let stack = Stack::new();
        with_shared(|shared| shared.threads.push(Arc::clone(stack.rows())));
        Self {
            clock: clock().clone(),
            stack,
        }
    }
}

impl Drop for Local {
    /// Keeps the sums of the finished thread and frees its memory.
    fn drop(&mut self) {
        let rows = self.stack.rows();
        with_shared(|shared| {
            shared.retired.merge(&rows.read());
            shared.threads.retain(|other| !Arc::ptr_eq(other, rows));
        });
    }
}

/// Runs `work` on this thread's state; `None` during thread shutdown.
#[inline]
fn with_local<T>(work: impl FnOnce(&mut Local) -> T) -> Option<T> {
    LOCAL
        .try_with(|local| work(local.borrow_mut().get_or_insert_with(Local::new)))
        .ok()
}

/// Opens a span on this thread. It ends when the guard is dropped, also during a panic.
///
/// ```
/// use flowbench::profile::{self, Span};
///
/// fn tokenise(text: &str) -> usize {
///     let _span = profile::span(Span::Tokenise);
///     text.split_whitespace().count()
/// }
/// # assert_eq!(tokenise("two words"), 2);
/// ```
#[inline]
pub fn span(span: Span) -> Guard {
    Guard {
        depth: if is_on() { Guard::open(span) } else { 0 },
        thread: PhantomData,
    }
}

/// An open span of this thread.
#[derive(Debug)]
#[must_use = "the span ends when this is dropped"]
pub struct Guard {
    /// Depth of the thread's stack including this span; 0 means no span.
    depth: usize,
    /// Makes the guard `!Send`: it belongs to its thread's stack.
    thread: PhantomData<*const ()>,
}

impl Guard {
    fn open(span: Span) -> usize {
        with_local(|local| {
            let now = local.clock.raw();
            let outer = local.stack.open(span, now);
            if span.kind() == Kind::Work {
                with_shared(|shared| {
                    shared.sweep.count(span);
                    if let Some(outer) = outer {
                        shared.sweep.close(outer, now);
                    }
                    shared.sweep.open(span, now);
                });
            }
            local.stack.depth()
        })
        .unwrap_or(0)
    }

    fn close(depth: usize) {
        with_local(|local| {
            let now = local.clock.raw();
            // More than one iteration only if guards were dropped out of order.
            while local.stack.depth() >= depth {
                let Some(ended) = local.stack.close(now) else {
                    return;
                };
                if ended.span.kind() == Kind::Work {
                    with_shared(|shared| shared.stage_ended(ended, now));
                }
            }
        });
    }
}

impl Drop for Guard {
    #[inline]
    fn drop(&mut self) {
        if self.depth > 0 {
            Self::close(self.depth);
        }
    }
}

impl RecorderState {
    fn stage_ended(&mut self, ended: Ended, now: u64) {
        self.sweep.close(ended.span, now);
        if let Some(outer) = ended.outer_stage {
            self.sweep.open(outer, now);
        }
    }
}

/// Opens a pass ([`Span::Forward`] or [`Span::Wait`]). While it is open, the stages `prefill` and
/// `decode` are active, if the pass contains such tokens.
pub fn pass(span: Span, of: impl FnOnce() -> PassTokens) -> PassGuard {
    if !is_on() {
        return PassGuard {
            of: PassTokens::default(),
            span,
            start: 0,
            _guard: self::span(span),
        };
    }
    let mut guard = PassGuard {
        of: of(),
        span,
        start: 0,
        _guard: self::span(span),
    };
    if span == Span::Forward {
        // A wait computes nothing, and repeats for the same tokens.
        live::count(Count::Prefilled, guard.of.prefill_tokens);
    }
    guard.start = with_shared(|shared| {
        let now = clock().raw();
        shared.device_pass = None;
        for stage in guard.stages() {
            shared.sweep.open(stage, now);
        }
        now
    })
    .unwrap_or_default();
    guard
}

/// Reports the device time of the pass in progress.
pub fn device_pass(pass: DevicePass) {
    if is_on() {
        with_shared(|shared| shared.device_pass = Some(pass));
    }
}

/// A pass in progress.
#[derive(Debug)]
#[must_use = "the pass ends when this is dropped"]
pub struct PassGuard {
    of: PassTokens,
    span: Span,
    start: u64,
    _guard: Guard,
}

impl PassGuard {
    fn stages(&self) -> impl Iterator<Item = Span> + use<> {
        let prefill = (self.of.prefill_tokens > 0).then_some(Span::Prefill);
        let decode = (self.of.decode_tokens > 0).then_some(Span::Decode);
        prefill.into_iter().chain(decode)
    }
}

impl Drop for PassGuard {
    fn drop(&mut self) {
        if self.of == PassTokens::default() {
            return;
        }
        with_shared(|shared| {
            let now = clock().raw();
            for stage in self.stages() {
                shared.sweep.close(stage, now);
            }
            let device = shared.device_pass.take();
            if let Some(device) = &device {
                shared.device.add(device, self.of.prefill_tokens > 0);
            }
            shared.log.pass(EndedPass {
                span: self.span,
                of: self.of,
                start: self.start,
                end: now.max(self.start),
                kv_pages: live::kv_held(),
                device,
            });
        });
    }
}

/// A span that is not bound to a thread or scope. It ends when this is dropped.
#[derive(Debug, Default)]
#[must_use = "the activity ends when this is dropped"]
pub struct Activity {
    /// ID in the tree; 0 is none.
    id: u64,
    /// Stage that is open during the activity.
    stage: Option<Span>,
}

impl Activity {
    /// Starts an activity without a parent.
    pub fn root(span: Span) -> Self {
        Self::begin(span, 0)
    }

    /// Sets the label in the trace.
    pub fn labelled(self, label: impl FnOnce() -> String) -> Self {
        if self.id != 0 {
            let label = label().into_boxed_str();
            with_shared(|shared| shared.tree.label(self.id, label));
        }
        self
    }

    /// Starts a child of this activity.
    pub fn child(&self, span: Span) -> Self {
        Self::begin(span, self.id)
    }

    /// Starts a child of the activity whose [`Scope`] this thread is in, if any.
    pub fn in_scope(span: Span) -> Self {
        Self::begin(span, SCOPE.get())
    }

    /// Makes this the parent for [`Activity::in_scope`] on this thread.
    pub fn enter(&self) -> Scope {
        Scope {
            outer: SCOPE.replace(self.id),
            thread: PhantomData,
        }
    }

    /// Ends this activity and starts its successor with the same parent, without a gap.
    pub fn next(&mut self, span: Span) {
        self.next_since(span, Duration::ZERO);
    }

    /// Like [`Activity::next`], but backdated by `ago`. Stage shares are attributed as time passes,
    /// so they change only for time that was not attributed yet.
    pub fn next_since(&mut self, span: Span, ago: Duration) {
        if self.id == 0 {
            return;
        }
        let next = with_shared(|shared| {
            let now = before(clock().raw(), ago);
            let start = shared.tree.get(self.id).map_or(now, |open| open.start);
            let now = now.max(start);
            let first_token = span == Span::Decode
                && (shared.tree.get(self.id)).is_some_and(|open| open.span == Span::Prefill);
            let parent = shared.end(self.id, self.stage, now);
            if let Some(step) = parent.filter(|_| first_token)
                && let Some(step) = shared.tree.get(step)
            {
                shared.watched.ttft.add(nanos(step.start, now));
            }
            shared.begin(span, parent.unwrap_or(0), now)
        });
        if let Some((id, stage)) = next {
            self.id = id;
            self.stage = stage;
        }
    }

    fn begin(span: Span, parent: u64) -> Self {
        if !is_on() {
            return Self::default();
        }
        with_shared(|shared| {
            // Read under the lock, so that readings are in the order of the changes.
            let (id, stage) = shared.begin(span, parent, clock().raw());
            Self { id, stage }
        })
        .unwrap_or_default()
    }
}

/// Clock reading at `ago` before `now`.
fn before(now: u64, ago: Duration) -> u64 {
    if ago.is_zero() {
        return now;
    }
    const TICKS: u64 = 1 << 32;
    let nanos = clock().delta_as_nanos(0, TICKS).max(1);
    let ticks = ago.as_nanos() * u128::from(TICKS) / u128::from(nanos);
    now.saturating_sub(u64::try_from(ticks).unwrap_or(u64::MAX))
}

fn nanos(start: u64, end: u64) -> u64 {
    clock().delta_as_nanos(start, end.max(start))
}

fn event(id: u64, open: Open, now: u64) -> log::Ended {
    log::Ended {
        id,
        parent: open.parent,
        span: open.span,
        label: open.label,
        start: open.start,
        end: now.max(open.start),
    }
}

impl RecorderState {
    fn begin(&mut self, span: Span, parent: u64, now: u64) -> (u64, Option<Span>) {
        if span.is_stage() {
            self.sweep.count(span);
        }
        let stage = matches!(span.kind(), Kind::Work | Kind::Wait).then_some(span);
        if let Some(stage) = stage {
            self.sweep.open(stage, now);
        }
        if span == Span::Flow {
            self.watched.flows_running += 1;
        }
        let parent = (parent != 0).then_some(parent);
        (self.tree.open(span, parent, now), stage)
    }

    /// Ends an activity and returns its parent.
    fn end(&mut self, id: u64, stage: Option<Span>, now: u64) -> Option<u64> {
        if let Some(stage) = stage {
            self.sweep.close(stage, now);
        }
        let ended = self.tree.close(id, now)?;
        let parent = ended.parent;
        match ended.span {
            Span::Flow => {
                self.watched.flows_running = self.watched.flows_running.saturating_sub(1);
                self.watched.flows_ended += 1;
            }
            Span::Step => self.watched.step.add(nanos(ended.start, now)),
            _ => {}
        }
        self.log.activity(event(id, ended, now));
        parent
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        if self.id != 0 {
            with_shared(|shared| shared.end(self.id, self.stage, clock().raw()));
        }
    }
}

/// While this exists, new activities on this thread become children of the entered one.
#[derive(Debug)]
#[must_use = "the scope ends when this is dropped"]
pub struct Scope {
    outer: u64,
    thread: PhantomData<*const ()>,
}

impl Drop for Scope {
    fn drop(&mut self) {
        SCOPE.set(self.outer);
    }
}

/// All measurements so far; `None` while the profile is off. Open spans of the calling thread count
/// as if they ended now. Open spans of other threads, and open activities, are not included.
pub fn snapshot() -> Option<Profile> {
    if !is_on() {
        return None;
    }
    let own = with_local(|local| {
        let now = local.clock.raw();
        local.stack.open_sums(now)
    });
    with_shared(|shared| {
        let mut table = shared.retired;
        for rows in &shared.threads {
            table.merge(&rows.read());
        }
        table.merge(shared.tree.table());
        if let Some(own) = &own {
            table.merge(own);
        }
        shared.sweep.advance(clock().raw());
        Profile {
            device: shared.device.read(),
            ..profile(&table, &shared.sweep, shared.log.dropped)
        }
    })
}

/// Current counters; `None` while the profile is off.
pub fn live() -> Option<Live> {
    with_shared(|shared| shared.watched.read())
}

/// The trace so far as JSON for Perfetto; `None` while the profile is off. Open activities end now.
pub fn trace() -> Option<String> {
    let (log, start) = with_shared(|shared| {
        let now = clock().raw();
        let mut log = shared.log.clone();
        let open = shared.tree.iter();
        log.activities.extend(open.map(|(id, open)| log::Ended {
            id,
            parent: open.parent,
            span: open.span,
            label: open.label.clone(),
            start: open.start,
            end: now.max(open.start),
        }));
        (log, shared.start)
    })?;
    Some(json(&log, |ticks| nanos(start, ticks)).to_string())
}

fn profile(table: &Table, sweep: &Sweep, spans_dropped: u64) -> Profile {
    let seconds = |ticks: u64| clock().delta_as_nanos(0, ticks) as f64 / 1e9;
    let sums = Span::ALL.iter().zip(&table.0);
    let mut rows: Vec<ProfileRow> = sums
        .filter(|(_, sums)| sums.ncall > 0)
        .map(|(span, sums)| row(*span, sums, seconds))
        .collect();
    rows.sort_by(|a, b| b.ttot_s.total_cmp(&a.ttot_s).then(a.name.cmp(&b.name)));
    let stages = Span::ALL.iter().filter(|span| span.is_stage());
    let mut stages: Vec<StageShare> = stages
        .map(|stage| (stage, sweep.share(*stage)))
        .filter(|(_, share)| share.calls > 0)
        .map(|(stage, share)| StageShare {
            name: stage.name().to_owned(),
            calls: share.calls,
            union_s: seconds(share.union),
            exposed_s: seconds(share.exposed),
            split_s: seconds(share.split),
        })
        .collect();
    stages.sort_by(|a, b| b.split_s.total_cmp(&a.split_s).then(a.name.cmp(&b.name)));
    Profile {
        wall_s: seconds(sweep.wall()),
        rows,
        stages,
        idle_s: seconds(sweep.idle()),
        spans_dropped,
        device: None,
    }
}

fn row(span: Span, sums: &Sums, seconds: impl Fn(u64) -> f64) -> ProfileRow {
    let ttot_s = seconds(sums.ttot);
    ProfileRow {
        name: span.name().to_owned(),
        ncall: sums.ncall,
        nprim: sums.nprim,
        tsub_s: seconds(sums.tsub),
        ttot_s,
        tavg_s: ttot_s / sums.ncall as f64,
    }
}
