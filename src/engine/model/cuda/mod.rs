//! The forward pass on a GPU, by our own kernels (`engine/cuda/kernels`): the same families and weight types
//! as the native CPU pass, the same keys and values, and for quantised weights the same bits.

mod descriptors;
mod pass;
mod places;
mod repack;
mod scratch;
mod split;
#[cfg(test)]
mod tests;
mod timing;
mod upload;
mod weights;

use std::cell::RefCell;
use std::sync::Arc;

use super::native::rotation::Rotation;
use super::native::weights::NativeWeights;
use super::source::{Weights, described_folder, described_gguf, frequencies};
use super::{
    Chunk, Limits, Model, ModelSpec, Slot, WeightBytes, check_chunk, check_pages, split_rows,
};
use crate::engine::cuda::ceilings;
use crate::engine::cuda::driver::{Buffer, Gpu, GpuError};
use crate::engine::cuda::kernels::ForwardKernels;
use crate::engine::decoder::{Activation, Decoder, NormPlace};
use crate::engine::kernels::{KvShape, Pool};
use crate::engine::kv::PAGE_TOKENS;
use crate::engine::load::gguf::GgufFile;
use crate::engine::load::safetensors::SafetensorsFolder;
use crate::engine::sampler::SamplingParameters;
use crate::environment::cpu_threads;
use crate::error::{Error, Result};
use crate::profile;
use crate::record::bench::Ceilings;
use crate::units::Bytes;

use descriptors::Request;
use pass::{Pass, Rows};
use places::Tiling;
use scratch::{Scratch, Sizes};
use split::{FEWEST_SPANS, Room, Split};
use timing::Timing;
use weights::GpuWeights;

/// Rows of the decode passes that are recorded as graphs: a pass is padded to the next of these.
const GRAPH_ROWS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Maximum tokens of a pass, for which there is room from the start: a GPU needs many to be busy.
const PASS_TOKENS: usize = 2048;
/// Rows of logits that there is room for at the start.
const FIRST_ENDS: usize = 64;
/// Most heads to a KV head, and most columns of a head, of `attention.h`.
const MOST_GROUP: usize = 16;
const MOST_HEAD: usize = 256;

/// The rotary embedding's tables on the device, `[positions, pairs]`.
struct GpuRotation {
    cos: Buffer<f32>,
    sin: Buffer<f32>,
    pairs: usize,
}

impl GpuRotation {
    /// The tables of `context` positions.
    fn new(gpu: &Gpu, mut tables: Rotation, context: usize) -> Result<Self> {
        tables.ensure_capacity(context).map_err(|source| {
            Error::preflight("no memory for the rotary embedding").caused_by(source)
        })?;
        let (cos, sin) = tables.tables();
        let failed = |error: GpuError| error.at_load("copy the rotary embedding to the GPU");
        Ok(Self {
            cos: weights::upload(gpu, cos).map_err(failed)?,
            sin: weights::upload(gpu, sin).map_err(failed)?,
            pairs: tables.pairs(),
        })
    }
}

/// What there is room for at the start, with sequences of up to `context` tokens.
fn first_sizes(context: usize) -> Sizes {
    Sizes {
        tokens: PASS_TOKENS,
        ends: FIRST_ENDS,
        pages: PASS_TOKENS.max(context.div_ceil(PAGE_TOKENS)),
    }
}

/// Device memory beside weights, keys and values, in bytes, with sequences of up to `context` tokens.
pub(super) fn working_bytes(spec: &ModelSpec, context: usize) -> usize {
    // Cosines and sines. A family with two kinds of layers has twice as many.
    let rotation = 2 * context
        .saturating_mul(spec.head_size / 2)
        .saturating_mul(size_of::<f32>());
    rotation.saturating_add(first_sizes(context).bytes(spec))
}

/// The CUDA forward pass.
pub(super) struct CudaModel {
    decoder: Decoder,
    weight_type: String,
    weight_bytes: WeightBytes,
    quantised: bool,
    kernels: ForwardKernels,
    weights: GpuWeights,
    rotations: Vec<GpuRotation>,
    kv_shape: KvShape,
    /// `[pages, layers, page]`.
    pages: Buffer<i16>,
    num_pages: usize,
    /// `None` only while a pass runs.
    scratch: Option<Scratch>,
    first_sizes: Sizes,
    graphs: bool,
    /// Whether attention may be split, which takes memory.
    splits: bool,
    timing: RefCell<Timing>,
    multiprocessors: usize,
    /// Contexts of fewer spans take one launch.
    fewest_spans: usize,
    /// Sequences opened so far: a slot is just a number.
    opened: usize,
    gpu: Arc<Gpu>,
}

impl CudaModel {
    /// Loads the model of a GGUF file.
    ///
    /// # Errors
    /// Exit code 3: a tensor is missing or has another shape, a size is beyond the kernels, the driver
    /// cannot compile them, or the GPU's memory is short.
    pub(super) fn from_gguf(gpu: &Arc<Gpu>, file: &GgufFile, limits: &Limits) -> Result<Self> {
        let decoder = described_gguf(file)?;
        let context = limits.context_of(&decoder.spec);
        Self::load(
            gpu,
            file,
            decoder,
            file.weight_type(),
            context,
            limits.gpu.graphs,
        )
    }

    /// Loads the model of a safetensors folder.
    ///
    /// # Errors
    /// As [`Self::from_gguf`].
    pub(super) fn from_safetensors(
        gpu: &Arc<Gpu>,
        folder: &SafetensorsFolder,
        limits: &Limits,
    ) -> Result<Self> {
        let decoder = described_folder(folder)?;
        let context = limits.context_of(&decoder.spec);
        let weight_type = folder.weight_type().to_owned();
        Self::load(
            gpu,
            folder,
            decoder,
            weight_type,
            context,
            limits.gpu.graphs,
        )
    }

    /// `context`: the most tokens of a sequence.
    fn load(
        gpu: &Arc<Gpu>,
        weights: &dyn Weights,
        decoder: Decoder,
        weight_type: String,
        context: usize,
        graphs: bool,
    ) -> Result<Self> {
        // With a second kind of any of these, this no longer compiles.
        let (NormPlace::BeforeBlock, Activation::SiluGated) =
            (decoder.norm_place, decoder.activation);
        let spec = &decoder.spec;
        let group = spec.heads / spec.kv_heads;
        if group > MOST_GROUP || spec.head_size > MOST_HEAD {
            return Err(Error::preflight(format!(
                "the CUDA kernels take up to {MOST_GROUP} query heads per KV head and heads of up to {MOST_HEAD}; \
                 this model has {group} and {}",
                spec.head_size
            ))
            .hint("set DEVICE=cpu"));
        }
        let kernels = ForwardKernels::load(gpu)?;
        let pool = Pool::new(cpu_threads())
            .map_err(|source| Error::preflight("failed to start threads").caused_by(source))?;
        let loaded = NativeWeights::load(weights, &decoder, &pool)?;
        let free = gpu.memory()?.free;
        let failed = |error: GpuError| {
            let needed = loaded.bytes().layers + loaded.bytes().head;
            too_large(error, needed, free)
        };
        let on_device = GpuWeights::upload(gpu, &loaded, &pool).map_err(failed)?;
        let rotations = decoder.ropes.iter().map(|rope| {
            let frequencies = frequencies(weights, rope, spec.head_size)?;
            GpuRotation::new(gpu, Rotation::new(frequencies), context)
        });
        let rotations = rotations.collect::<Result<_>>()?;
        let kv_shape = KvShape {
            kv_heads: spec.kv_heads,
            head_size: spec.head_size,
        };
        let first_sizes = first_sizes(context);
        let scratch = Scratch::allocate(gpu, spec, first_sizes).map_err(failed)?;
        Ok(Self {
            weight_bytes: on_device.bytes(),
            quantised: loaded.is_quantised(),
            weights: on_device,
            pages: gpu.allocate(1).map_err(failed)?,
            num_pages: 0,
            scratch: Some(scratch),
            first_sizes,
            graphs,
            splits: true,
            multiprocessors: gpu.multiprocessors() as usize,
            fewest_spans: FEWEST_SPANS,
            timing: RefCell::default(),
            opened: 0,
            decoder,
            weight_type,
            kernels,
            rotations,
            kv_shape,
            gpu: Arc::clone(gpu),
        })
    }

    /// Checks the pass, and makes room for it.
    fn prepare(&mut self, chunks: &[Chunk<'_>]) -> Result<Rows> {
        for chunk in chunks {
            check_chunk(chunk, chunk.start, &self.decoder.spec)?;
            check_pages(chunk, self.num_pages)?;
        }
        let needed = Sizes {
            tokens: chunks.iter().map(|chunk| chunk.tokens.len()).sum(),
            ends: chunks.iter().filter(|chunk| chunk.logits).count(),
            pages: upload::pages_of(chunks),
        };
        let before = self
            .scratch
            .as_ref()
            .map_or(self.first_sizes, |scratch| scratch.sizes);
        if self.scratch.is_none() || !before.hold(needed) {
            self.scratch = None;
            let allocate = |sizes| Scratch::allocate(&self.gpu, &self.decoder.spec, sizes);
            self.scratch = match allocate(before.grown(needed)) {
                Ok(larger) => Some(larger),
                Err(error) => {
                    // For later passes, what there was.
                    self.scratch = allocate(before).ok();
                    return Err(in_pass(error));
                }
            };
        }
        Ok(Rows {
            tokens: needed.tokens,
            ends: needed.ends,
        })
    }

    /// Queues a pass: its upload, the launches up to the logits, and the choice of a token for each
    /// request. A decode pass that samples is a graph, unless the profile times its kernels.
    fn run(
        &self,
        scratch: &mut Scratch,
        chunks: &[Chunk<'_>],
        rows: Rows,
        requests: &[Request],
    ) -> Result<(), GpuError> {
        let is_decode = rows.ends == rows.tokens;
        let timing = profile::is_on().then_some(&self.timing);
        let by_kernel = timing.filter(|timing| timing.borrow_mut().is_due(is_decode));
        if let Some(timing) = timing {
            let mut timing = timing.borrow_mut();
            timing.begin(&self.gpu, by_kernel.is_some())?;
        }
        let sampled = !requests.is_empty();
        let padded = GRAPH_ROWS.into_iter().find(|most| rows.tokens <= *most);
        let padded = padded.filter(|rows| *rows <= scratch.sizes.tokens.min(scratch.sizes.ends));
        let graph = (padded.filter(|_| self.graphs && sampled && is_decode)).map(|rows| Rows {
            tokens: rows,
            ends: rows,
        });
        let rows = graph.unwrap_or(rows);
        let split = self.split(scratch, chunks, rows.tokens)?;
        let tiling = self.tiling(rows, split.is_some());
        let written = upload::write(&mut scratch.staged, rows.layout(), chunks, requests, tiling);
        self.gpu
            .upload_async(&scratch.upload, &scratch.staged, written.words)?;
        // A graph has the launches for any tiles.
        let tiles = match graph.is_some() {
            true => [rows.tokens, rows.ends],
            false => written.tiles,
        };
        let queue = |scratch: &Scratch| {
            let pass = Pass::new(self, scratch, rows, split, tiles, by_kernel);
            pass.queue()?;
            match sampled {
                true => pass.queue_sampling(),
                false => Ok(()),
            }
        };
        match graph.is_some() && by_kernel.is_none() {
            true => {
                let key = (rows.tokens, split);
                if !scratch.graphs.contains_key(&key) {
                    let graph = self.gpu.capture(|| queue(scratch))?;
                    scratch.graphs.insert(key, graph);
                }
                match scratch.graphs.get(&key) {
                    Some(graph) => self.gpu.replay(graph)?,
                    None => queue(scratch)?,
                }
            }
            false => queue(scratch)?,
        }
        match timing {
            Some(timing) => timing.borrow_mut().end(&self.gpu),
            None => Ok(()),
        }
    }

    /// Brings the first `count` sampled tokens to the host, and waits for the pass: then the memory of its upload
    /// is free again.
    fn pick(&self, scratch: &mut Scratch, count: usize) -> Result<(), GpuError> {
        let (from, to) = (&scratch.sampled, &mut scratch.picked);
        self.gpu.download_async(from, to, count)?;
        self.wait()
    }

    /// Waits for the pass, and reports its time to the profile.
    fn wait(&self) -> Result<(), GpuError> {
        self.gpu.synchronize()?;
        match profile::is_on() {
            true => self.timing.borrow().report(&self.gpu),
            false => Ok(()),
        }
    }

    /// How the attention of a pass is tiled. Sequences that share spans save nothing but reads of the L2 cache: if
    /// the card is not busy, the time of a block matters more, unless the spans are computed apart.
    fn tiling(&self, rows: Rows, is_split: bool) -> Tiling {
        let spec = &self.decoder.spec;
        let blocks = rows.tokens * spec.kv_heads;
        let busy = blocks >= 2 * self.multiprocessors;
        let group = spec.heads / spec.kv_heads;
        Tiling::new(group, spec.head_size, busy || is_split)
    }

    /// How the attention of a pass is split, with room for it.
    fn split(
        &self,
        scratch: &mut Scratch,
        chunks: &[Chunk<'_>],
        rows: usize,
    ) -> Result<Option<Split>, GpuError> {
        let spec = &self.decoder.spec;
        let (shape, group) = (self.kv_shape, spec.heads / spec.kv_heads);
        let (multiprocessors, fewest) = (self.multiprocessors, self.fewest_spans);
        let split = match self.splits {
            true => Split::of(chunks, rows, shape, group, multiprocessors, fewest),
            false => None,
        };
        if let Some(split) = split
            && scratch.room.ensure(&self.gpu, split, rows, shape, group)?
        {
            scratch.graphs.clear();
        }
        Ok(split)
    }
}

impl Model for CudaModel {
    fn spec(&self) -> &ModelSpec {
        &self.decoder.spec
    }

    fn backend(&self) -> &'static str {
        "cuda"
    }

    fn weights(&self) -> String {
        let activations = if self.quantised { "int8" } else { "f32" };
        format!(
            "{} with {activations} activations, CUDA kernels",
            self.weight_type
        )
    }

    fn weight_bytes(&self) -> Option<WeightBytes> {
        Some(self.weight_bytes)
    }

    fn checks_guesses(&self) -> bool {
        true
    }

    fn device_ceilings(&self) -> Result<Option<Ceilings>> {
        let measured = ceilings::measure(&self.gpu, &self.kernels);
        let measured = measured.map_err(|error| error.at_load("measure the limits of the GPU"))?;
        Ok(Some(measured))
    }

    fn jit_ms(&self) -> Option<f64> {
        Some(self.kernels.jit.0)
    }

    fn pass_tokens(&self) -> usize {
        PASS_TOKENS
    }

    fn max_sequences(&self) -> usize {
        4096
    }

    fn page_bytes(&self) -> Option<usize> {
        Some(self.kv_shape.page_bytes() * self.decoder.spec.layers)
    }

    fn set_pages(&mut self, pages: usize) -> Result<()> {
        let page = self.kv_shape.layout().page * self.decoder.spec.layers;
        let free = self.gpu.memory()?.free;
        let fail = |error: GpuError| {
            Error::preflight(format!(
                "there is no room on the GPU for {} of keys and values, {pages} pages of {PAGE_TOKENS} tokens: {} \
                 are free beside the weights",
                Bytes(pages.saturating_mul(2 * page) as u64),
                Bytes(free as u64)
            ))
            .caused_by(error)
            .hint(
                "set a smaller KV_CACHE_MB, GPU_MEMORY_UTILIZATION or CONTEXT, or stop other programs that use the \
                 GPU (`nvidia-smi` lists them)",
            )
        };
        // Frees the old ones first.
        self.num_pages = 0;
        self.pages = self.gpu.allocate(1).map_err(fail)?;
        if let Some(scratch) = &mut self.scratch {
            // They hold the old address.
            scratch.graphs.clear();
        }
        self.pages = self.gpu.allocate(pages * page).map_err(fail)?;
        self.num_pages = pages;
        Ok(())
    }

    fn save_memory(&mut self) -> bool {
        let is_first = self.graphs || self.splits;
        self.graphs = false;
        self.splits = false;
        if let Some(scratch) = &mut self.scratch {
            scratch.graphs.clear();
            if let Ok(none) = Room::new(&self.gpu) {
                scratch.room = none;
            }
        }
        is_first
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<()> {
        let page = self.kv_shape.layout().page * self.decoder.spec.layers;
        let (from, to) = (from as usize * page, to as usize * page);
        self.gpu
            .copy(&self.pages, from, &self.pages, to, page)
            .map_err(in_pass)
    }

    fn open(&mut self) -> Result<Slot> {
        self.opened += 1;
        Ok(Slot(self.opened))
    }

    fn close(&mut self, _: Slot) {}

    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<Vec<Vec<f32>>> {
        split_rows(self, chunks)
    }

    fn forward_into(&mut self, chunks: &[Chunk<'_>], logits: &mut Vec<f32>) -> Result<()> {
        logits.clear();
        if chunks.is_empty() {
            return Ok(());
        }
        let rows = self.prepare(chunks)?;
        let Some(mut scratch) = self.scratch.take() else {
            return Err(Error::flow("a pass runs already"));
        };
        logits.resize(rows.ends * self.decoder.spec.vocabulary, 0.0);
        let done = self.run(&mut scratch, chunks, rows, &[]).and_then(|()| {
            self.gpu.download(&scratch.logits, 0, logits)?;
            self.wait()
        });
        self.scratch = Some(scratch);
        done.map_err(in_pass)
    }

    fn samples(&self) -> bool {
        true
    }

    fn forward_sampled(
        &mut self,
        chunks: &[Chunk<'_>],
        sampling: &[Option<SamplingParameters>],
    ) -> Result<Vec<Option<u32>>> {
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.prepare(chunks)?;
        if sampling.len() != rows.ends {
            return Err(Error::flow(format!(
                "{} rows of logits are to be sampled in {} ways",
                rows.ends,
                sampling.len()
            )));
        }
        let Some(mut scratch) = self.scratch.take() else {
            return Err(Error::flow("a pass runs already"));
        };
        let numbered = sampling.iter().enumerate();
        let requests: Vec<Request> = numbered
            .map(|(row, sampling)| Request::new(row, *sampling))
            .collect();
        let done = self
            .run(&mut scratch, chunks, rows, &requests)
            .and_then(|()| self.pick(&mut scratch, rows.ends));
        let tokens = done.map(|()| scratch.picked[..rows.ends].to_vec());
        self.scratch = Some(scratch);
        let tokens = tokens.map_err(in_pass)?;
        Ok(tokens.into_iter().map(token).collect())
    }

    fn sample_row(
        &mut self,
        row: usize,
        sampling: Option<SamplingParameters>,
    ) -> Result<Option<u32>> {
        let Some(mut scratch) = self.scratch.take() else {
            return Err(Error::flow("a pass runs already"));
        };
        let rows = Rows { tokens: 0, ends: 1 };
        let request = Request::new(row, sampling);
        let layout = rows.layout();
        let tiling = self.tiling(rows, false);
        let words = upload::write(&mut scratch.staged, layout, &[], &[request], tiling).words;
        let done = self
            .gpu
            .upload_async(&scratch.upload, &scratch.staged, words)
            .and_then(|()| Pass::new(self, &scratch, rows, None, [0; 2], None).queue_sampling())
            .and_then(|()| (self.gpu).download_async(&scratch.sampled, &mut scratch.picked, 1))
            .and_then(|()| self.gpu.synchronize());
        let picked = done.map(|()| scratch.picked[0]);
        self.scratch = Some(scratch);
        Ok(token(picked.map_err(in_pass)?))
    }

    fn synchronize(&self) -> Result<()> {
        self.gpu.synchronize().map_err(in_pass)
    }
}

/// A token as `sampling.cu` writes it.
fn token(picked: u32) -> Option<u32> {
    (picked != u32::MAX).then_some(picked)
}

fn in_pass(error: GpuError) -> Error {
    error.in_pass("compute on the GPU")
}

fn too_large(error: GpuError, needed: usize, free: usize) -> Error {
    if !error.is_out_of_memory() {
        return error.at_load("copy the weights to the GPU");
    }
    Error::preflight(format!(
        "the weights take {} of GPU memory, and {} are free",
        Bytes(needed as u64),
        Bytes(free as u64)
    ))
    .caused_by(error)
    .hint("use a smaller model or quantization, stop other programs that use the GPU (`nvidia-smi` lists them), or set DEVICE=cpu")
}
