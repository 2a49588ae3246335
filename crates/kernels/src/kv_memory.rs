//! Keys and values in pages, as integers with a scale for each token and head.
//!
//! A page holds [`PAGE`] consecutive tokens. The layers of a page are contiguous, and so are the heads
//! of a layer. For each KV head:
//!
//! ```text
//! f32 [16 tokens]                   scales of the keys
//! i16 [head_size / 2][16 tokens][2] keys: sixteen scores grow side by side, two columns at a time
//! f32 [16 tokens]                   scales of the values
//! i16 [8 pairs of tokens][head_size][2] values: so do sixteen columns of the output
//! ```
//!
//! A number is `integer · scale`, with integers of at most [`WHOLE`] in magnitude. The step is 1/4095
//! of the head's largest number, finer than f16 for everything above an eighth of it. Products of such
//! integers are exact, two columns per instruction, and need no conversion.

use super::aligned::HUGE;
use super::parallel::RowsMut;
use super::pool::Pool;
use super::quant::whole_scale;
use super::reserved::Reserved;
use super::simd::{LANES, Simd};
use super::vector::load_padded;
use crate::memory::OutOfMemory;

/// Tokens of a page.
pub const PAGE: usize = LANES;

/// The largest integer of a key or value: twelve bits, which leaves nineteen of 31 bits for the other
/// factor and the number of terms.
pub(super) const WHOLE: f32 = 4095.0;

/// Larger magnitudes are clamped: an infinity would spoil every later result.
const LARGEST: f32 = 1e30;

/// Numbers of an operating-system page, for the smallest page size.
const SYSTEM_PAGE: usize = (4 << 10) / size_of::<i16>();

/// 16-bit units taken by the scales of one head's keys, or values, in a page.
const SCALES: usize = PAGE * size_of::<f32>() / size_of::<i16>();

/// The shape of the keys and values of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    pub kv_heads: usize,
    pub head_size: usize,
}

/// Where a page holds what, in 16-bit units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayout {
    /// A page in one layer.
    pub page: usize,
    /// From one head to the next.
    pub head: usize,
    /// From the start of a head to the scales of its values.
    pub values_at: usize,
    /// Columns of a value, padded.
    pub value_stride: usize,
    /// Pairs of columns of a key.
    pub key_pairs: usize,
}

impl KvShape {
    /// The layout, for keys and values on another device.
    pub fn layout(self) -> KvLayout {
        KvLayout {
            page: self.page_len(),
            head: self.head_len(),
            values_at: self.value_scales_at(),
            value_stride: self.value_stride(),
            key_pairs: self.key_pairs(),
        }
    }

    /// 16-bit units of a page in one layer.
    pub(crate) fn page_len(self) -> usize {
        self.kv_heads * self.head_len()
    }

    /// Bytes of a page in one layer.
    pub fn page_bytes(self) -> usize {
        self.page_len() * size_of::<i16>()
    }

    /// Pairs of columns of a key.
    pub(super) fn key_pairs(self) -> usize {
        self.head_size.div_ceil(2)
    }

    /// Columns from one pair of tokens' values to the next: the head size, padded.
    pub(super) fn value_stride(self) -> usize {
        self.head_size.next_multiple_of(LANES)
    }

    /// 16-bit units from one head to the next.
    fn head_len(self) -> usize {
        self.value_scales_at() + SCALES + PAGE * self.value_stride()
    }

    /// Offset of the values' scales in a head.
    fn value_scales_at(self) -> usize {
        SCALES + PAGE * 2 * self.key_pairs()
    }
}

/// Memory for pages is committed in multiples of this many bytes.
const SLAB: usize = 32 << 20;

/// The keys and values of all layers, in pages that start as zeros: `[pages, layers, page_len]`. The
/// layers of a page are contiguous, so that a sequence occupies few, large pages of the system.
///
/// Addresses for all pages are reserved at the start. Memory is committed for a prefix of them, on
/// request.
pub struct KvMemory {
    pub(super) shape: KvShape,
    layers: usize,
    /// Reserved pages.
    capacity: usize,
    pub(super) numbers: Reserved<i16>,
    /// Pages from the start that are backed by physical memory, because they have been written to.
    prefaulted: usize,
}

impl KvMemory {
    /// Reserves `capacity` pages and commits none.
    ///
    /// # Errors
    /// The system refuses the address range.
    pub fn reserve(shape: KvShape, layers: usize, capacity: usize) -> Result<Self, OutOfMemory> {
        Self::in_slabs(shape, layers, capacity, SLAB)
    }

    /// The same, with memory committed in multiples of `slab` bytes.
    fn in_slabs(
        shape: KvShape,
        layers: usize,
        capacity: usize,
        slab: usize,
    ) -> Result<Self, OutOfMemory> {
        let numbers = capacity.saturating_mul(layers.saturating_mul(shape.page_len()));
        Ok(Self {
            shape,
            layers,
            capacity,
            numbers: Reserved::new(numbers, slab)?,
            prefaulted: 0,
        })
    }

    /// `pages` pages, all committed.
    #[cfg(test)]
    pub(crate) fn new(shape: KvShape, layers: usize, pages: usize) -> Self {
        let mut memory = Self::in_slabs(shape, layers, pages, 1).expect("addresses");
        memory.provide(pages).expect("memory");
        memory
    }

    /// Commits the first `pages` pages.
    ///
    /// # Errors
    /// There is too little memory, or not enough pages were reserved; the committed ones stay valid.
    pub fn provide(&mut self, pages: usize) -> Result<(), OutOfMemory> {
        self.numbers.grow_to(pages.saturating_mul(self.stride()))
    }

    /// Faults in all pages up to `page`, plus an eighth more, on all threads. The system clears pages
    /// when they are first touched, which takes milliseconds for a huge page in a virtual machine:
    /// otherwise the first writer would do it alone while the other threads wait.
    ///
    /// # Errors
    /// As [`Self::provide`].
    pub fn prefault(&mut self, pool: &Pool, page: u32) -> Result<(), OutOfMemory> {
        let page = page as usize;
        if page < self.prefaulted {
            return Ok(());
        }
        let stride = self.stride();
        let ahead = (page + 1 + page / 8).min(self.capacity);
        // The extra pages are optional.
        if self.provide(ahead).is_err() {
            self.provide(page + 1)?;
        }
        let end = ahead.min(self.pages());
        // These pages have not been written yet, so writing a zero changes nothing.
        let fresh = &mut self.numbers[self.prefaulted * stride..end * stride];
        self.prefaulted = end;
        let rows = fresh.len() / SYSTEM_PAGE;
        let step = HUGE / size_of::<i16>() / SYSTEM_PAGE;
        pool.rows1(rows, step, RowsMut::new(fresh, SYSTEM_PAGE), |_, fresh| {
            for page in fresh.chunks_exact_mut(SYSTEM_PAGE) {
                page[0] = 0;
            }
        });
        Ok(())
    }

    pub fn shape(&self) -> KvShape {
        self.shape
    }

    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Reserved pages.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Committed pages.
    pub fn pages(&self) -> usize {
        (self.numbers.len() / self.stride().max(1)).min(self.capacity)
    }

    /// 16-bit units from one page to the next.
    pub(super) fn stride(&self) -> usize {
        self.layers * self.shape.page_len()
    }

    /// Offset of a layer in the first page.
    ///
    /// # Panics
    /// If there is no such layer.
    pub(super) fn layer_at(&self, layer: usize) -> usize {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        layer * self.shape.page_len()
    }

    /// A layer's keys and values.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn layer(&self, layer: usize) -> KvLayer<'_> {
        KvLayer {
            at: self.layer_at(layer),
            memory: self,
        }
    }

    /// Copies a page over another one, in every layer: for forks whose last page is not full.
    ///
    /// # Panics
    /// If there are no such pages.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        let len = self.stride();
        let from = from as usize * len;
        self.numbers
            .copy_within(from..from + len, to as usize * len);
    }
}

/// A read-only view of the keys and values of one layer.
#[derive(Clone, Copy)]
pub struct KvLayer<'a> {
    memory: &'a KvMemory,
    /// Offset of the layer in the first page.
    at: usize,
}

impl KvLayer<'_> {
    pub fn shape(self) -> KvShape {
        self.memory.shape
    }

    /// Committed pages.
    pub fn pages(self) -> usize {
        self.memory.pages()
    }

    /// The start of this layer in a page.
    pub(super) fn page(self, page: u32) -> *const i16 {
        let at = page as usize * self.memory.stride() + self.at;
        self.memory.numbers.as_ptr().wrapping_add(at)
    }

    /// A head in a page, for reading.
    ///
    /// # Safety
    /// Page and head are in range.
    #[inline(always)]
    pub(super) unsafe fn head(self, page: u32, kv_head: usize) -> HeadPage {
        let KvMemory { numbers, shape, .. } = self.memory;
        // SAFETY: as this function's.
        unsafe {
            let layer = numbers.as_ptr().add(self.at).cast_mut();
            HeadPage::of(layer, self.memory.stride(), *shape, page, kv_head)
        }
    }
}

/// A pointer to one head in a page.
#[derive(Clone, Copy)]
pub(super) struct HeadPage(*mut i16);

impl HeadPage {
    /// A head in a page of the layer whose first page starts at `layer`, with `stride` numbers from one
    /// page to the next.
    ///
    /// # Safety
    /// Page and head are in range.
    #[inline(always)]
    unsafe fn of(
        layer: *mut i16,
        stride: usize,
        shape: KvShape,
        page: u32,
        kv_head: usize,
    ) -> Self {
        // SAFETY: as this function's.
        Self(unsafe { layer.add(page as usize * stride + kv_head * shape.head_len()) })
    }

    /// Scales of the keys, one per token.
    #[inline(always)]
    pub(super) fn key_scales(self) -> *mut f32 {
        self.0.cast()
    }

    /// Pairs of columns of the keys: `[key_pairs][16 tokens][2]`.
    #[inline(always)]
    pub(super) fn keys(self) -> *mut i16 {
        self.0.wrapping_add(SCALES)
    }

    /// Scales of the values, one per token.
    #[inline(always)]
    pub(super) fn value_scales(self, shape: KvShape) -> *mut f32 {
        self.0.wrapping_add(shape.value_scales_at()).cast()
    }

    /// Pairs of tokens of the values: `[8][value_stride][2]`.
    #[inline(always)]
    pub(super) fn values(self, shape: KvShape) -> *mut i16 {
        self.0.wrapping_add(shape.value_scales_at() + SCALES)
    }
}

/// The scale that makes numbers integers of limited magnitude.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    /// Converts integers back.
    pub(super) scale: f32,
    /// Converts numbers to integers before rounding.
    inverse: f32,
}

impl Scale {
    /// For integers of at most `max` in magnitude.
    ///
    /// # Safety
    /// As [`Simd`]'s.
    #[inline(always)]
    pub(super) unsafe fn of<S: Simd>(numbers: &[f32], max: f32) -> Self {
        // SAFETY: as this function's.
        unsafe {
            let mut largest = S::splat(0.0);
            for at in (0..numbers.len()).step_by(LANES) {
                largest = S::max(largest, S::abs(within::<S>(numbers, at)));
            }
            let (scale, inverse) = whole_scale(S::reduce_max(largest), max);
            Self { scale, inverse }
        }
    }

    /// Quantises the sixteen numbers from `at` on, zeros past the end, rounded to nearest.
    ///
    /// # Safety
    /// As [`Simd`]'s.
    #[inline(always)]
    pub(super) unsafe fn apply<S: Simd>(self, numbers: &[f32], at: usize, to: *mut i16) {
        // SAFETY: as this function's.
        unsafe {
            let x = S::mul(within::<S>(numbers, at), S::splat(self.inverse));
            S::store_i16(to, x);
        }
    }
}

/// Sixteen of the numbers, clamped to [`LARGEST`].
#[inline(always)]
unsafe fn within<S: Simd>(numbers: &[f32], at: usize) -> S::F {
    // SAFETY: as the caller's.
    unsafe {
        let x = load_padded::<S>(numbers, at);
        S::max(S::min(x, S::splat(LARGEST)), S::splat(-LARGEST))
    }
}

/// The page and slot of each token of a pass. All are distinct, so threads may write them concurrently.
pub struct SlotMapping {
    slots: Vec<(u32, usize)>,
    /// The highest page; `None` without tokens.
    last_page: Option<u32>,
}

impl SlotMapping {
    /// A mapping to these pages and slots.
    ///
    /// # Panics
    /// If two are equal, or a slot is out of range.
    pub fn new(slots: Vec<(u32, usize)>) -> Self {
        let mut sorted = slots.clone();
        sorted.sort_unstable();
        assert!(
            sorted.windows(2).all(|two| two[0] != two[1]),
            "two tokens share a slot"
        );
        assert!(slots.iter().all(|(_, slot)| *slot < PAGE), "no such slot");
        Self {
            last_page: sorted.last().map(|(page, _)| *page),
            slots,
        }
    }

    /// The highest page; `None` without tokens.
    pub fn last_page(&self) -> Option<u32> {
        self.last_page
    }

    pub(super) fn as_slice(&self) -> &[(u32, usize)] {
        &self.slots
    }
}

/// Tokens to write to a layer, `[tokens, kv_heads, head_size]` each.
pub(super) struct Writing<'a> {
    pub(super) shape: KvShape,
    /// The layer's first page.
    pub(super) layer: *mut i16,
    /// 16-bit units from one page to the next.
    pub(super) stride: usize,
    /// Page and slot of each token.
    pub(super) slots: &'a [(u32, usize)],
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
}

/// Writes the tokens' keys and values.
///
/// # Safety
/// As [`Simd`]'s; all slots are in the layer's pages, keys and values have a row for each, and nobody
/// else uses these slots.
#[inline(always)]
pub(super) unsafe fn write<S: Simd>(writing: &Writing<'_>) {
    for head in 0..writing.shape.kv_heads {
        // SAFETY: as this function's.
        unsafe {
            write_head::<S>(writing, head, false);
            write_head::<S>(writing, head, true);
        }
    }
}

/// Writes one head's keys, or its values.
#[inline(always)]
unsafe fn write_head<S: Simd>(writing: &Writing<'_>, head: usize, values: bool) {
    let shape = writing.shape;
    let size = shape.head_size;
    let from = if values { writing.values } else { writing.keys };
    for (token, &(page, slot)) in writing.slots.iter().enumerate() {
        let from = &from[(token * shape.kv_heads + head) * size..][..size];
        // SAFETY: as this function's: a head's part of a page has space for each of these.
        unsafe {
            let page = HeadPage::of(writing.layer, writing.stride, shape, page, head);
            let scale = Scale::of::<S>(from, WHOLE);
            if values {
                page.value_scales(shape).add(slot).write(scale.scale);
            } else {
                page.key_scales().add(slot).write(scale.scale);
            }
            for at in (0..size).step_by(LANES) {
                let mut whole = [0i16; LANES];
                scale.apply::<S>(from, at, whole.as_mut_ptr());
                if values {
                    let pair = page.values(shape).add(slot / 2 * 2 * shape.value_stride());
                    let to = pair.add(2 * at + slot % 2);
                    for column in 0..LANES {
                        to.add(2 * column).write(whole[column]);
                    }
                } else {
                    let to = page.keys().add(PAGE * at + 2 * slot);
                    for pair in 0..LANES.min(2 * shape.key_pairs() - at) / 2 {
                        to.add(pair * 2 * PAGE)
                            .cast::<[i16; 2]>()
                            .write([whole[2 * pair], whole[2 * pair + 1]]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kernels;

    #[test]
    fn a_mapping_knows_its_last_page() {
        assert_eq!(
            SlotMapping::new(vec![(3, 1), (1, 15), (3, 0)]).last_page(),
            Some(3)
        );
        assert_eq!(SlotMapping::new(Vec::new()).last_page(), None);
    }

    #[test]
    #[should_panic(expected = "two tokens share a slot")]
    fn tokens_that_share_a_slot_panic() {
        SlotMapping::new(vec![(2, 3), (1, 3), (2, 3)]);
    }

    #[test]
    #[should_panic(expected = "no such slot")]
    fn a_slot_out_of_range_panics() {
        SlotMapping::new(vec![(0, PAGE)]);
    }

    #[test]
    fn pages_are_committed_on_use_and_never_move() {
        let shape = KvShape {
            kv_heads: 2,
            head_size: 128,
        };
        let (pool, kernels) = (Pool::new(2).expect("threads"), Kernels::best());
        let capacity = 1 << 30;
        let mut grown = KvMemory::in_slabs(shape, 3, capacity, 1).expect("addresses");
        let mut whole = KvMemory::new(shape, 3, 400);
        assert_eq!((grown.pages(), grown.capacity()), (0, capacity));
        let mut before = 0;
        for page in [0u32, 1, 5, 60, 61, 399] {
            grown.prefault(&pool, page).expect("memory");
            assert!(grown.pages() > page as usize && grown.pages() >= before);
            before = grown.pages();
            let slots = SlotMapping::new(vec![(page, 3)]);
            let numbers: Vec<f32> = (0..256).map(|at| (at + page as usize) as f32).collect();
            for memory in [&mut grown, &mut whole] {
                kernels.write_kv(&pool, memory, 2, &slots, &numbers, &numbers);
            }
        }
        grown.copy_page(399, 7);
        whole.copy_page(399, 7);
        assert!(grown.pages() < 2000, "{}", grown.pages());
        let len = 400 * whole.stride();
        assert!(grown.numbers[..len] == whole.numbers[..len]);
        assert!(grown.provide(capacity + 1).is_err());
        assert_eq!(grown.pages(), before);
    }

    #[test]
    #[should_panic(expected = "no such page")]
    fn writing_to_an_unreserved_page_panics() {
        let shape = KvShape {
            kv_heads: 1,
            head_size: 8,
        };
        let mut memory = KvMemory::new(shape, 1, 2);
        let pool = Pool::new(1).expect("no threads");
        let slots = SlotMapping::new(vec![(2, 0)]);
        Kernels::best().write_kv(&pool, &mut memory, 0, &slots, &[0.0; 8], &[0.0; 8]);
    }
}
