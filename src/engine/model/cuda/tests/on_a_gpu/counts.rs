//! What a pass asks of the driver, counted by the simulated one.

use libloading::{Library, Symbol};

use super::*;

/// Reads the simulated driver's counters.
pub(super) struct Counter(Library);

impl Counter {
    /// `None` on a real GPU.
    pub(super) fn of(gpu: &Gpu) -> Option<Self> {
        if gpu.info().name != "Simulated GPU" {
            eprintln!("skipped: a real GPU does not count");
            return None;
        }
        // SAFETY: it is loaded already.
        Some(Self(unsafe { Library::new("libcuda.so.1") }.unwrap()))
    }

    pub(super) fn read(&self, name: &str) -> u64 {
        let name = std::ffi::CString::new(name).unwrap();
        // SAFETY: the function takes a string and returns a number.
        unsafe {
            let count: Symbol<unsafe extern "C" fn(*const std::ffi::c_char) -> u64> =
                self.0.get(b"simgpu_count").unwrap();
            count(name.as_ptr())
        }
    }

    /// How much each counter rises while `work` runs.
    fn rises<const N: usize>(&self, names: [&str; N], work: impl FnOnce()) -> [u64; N] {
        let before = names.map(|name| self.read(name));
        work();
        let after = names.map(|name| self.read(name));
        std::array::from_fn(|at| after[at] - before[at])
    }
}

/// A model, and decode chunks of it.
fn decoding(gpu: Gpu) -> (CudaModel, usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = Tiny::new("llama", true).write_gguf(folder.path(), GgmlDType::Q4_1);
    let model = cuda(gpu, &path, 8);
    let layers = model.decoder.spec.layers;
    (model, layers)
}

/// A decode pass of `rows` sequences whose contexts are `start` tokens, each in pages of its own.
pub(super) fn decode(model: &mut CudaModel, rows: usize, start: usize) {
    let pages = (start + 1).div_ceil(PAGE) as u32;
    let tables: Vec<Vec<u32>> = (0..rows as u32)
        .map(|row| (row * pages..(row + 1) * pages).collect())
        .collect();
    let chunks: Vec<Chunk<'_>> = tables
        .iter()
        .enumerate()
        .map(|(row, pages)| Chunk {
            slot: Slot(row),
            pages,
            tokens: &[3],
            start,
            logits: true,
        })
        .collect();
    model.forward_sampled(&chunks, &vec![None; rows]).unwrap();
}

/// A decode pass is one copy to the device, one graph, four bytes back for each token, and one wait.
#[test]
fn a_decode_pass_allocates_nothing_and_waits_once() {
    let Some(gpu) = gpu() else { return };
    let Some(counter) = Counter::of(&gpu) else {
        return;
    };
    let (mut model, layers) = decoding(gpu);
    for graphs in [true, false] {
        model.graphs = graphs;
        for rows in [1, 4] {
            decode(&mut model, rows, 0);
            let names = [
                "allocations",
                "cuMemHostAlloc",
                "cuEventCreate",
                "cuMemcpyHtoDAsync_v2",
                "device_to_host",
                "cuStreamSynchronize",
                "cuGraphLaunch",
                "cuLaunchKernel",
            ];
            let [
                allocations,
                pinned,
                events,
                up,
                down,
                waits,
                replays,
                launches,
            ] = counter.rises(names, || decode(&mut model, rows, 1));
            assert_eq!((allocations, pinned, events), (0, 0, 0));
            assert_eq!((up, down, waits), (1, 4 * rows as u64, 1));
            let all = 8 * layers as u64 + 4;
            let expected = if graphs { (1, 0) } else { (0, all) };
            assert_eq!(
                (replays, launches),
                expected,
                "{rows} rows, graphs {graphs}"
            );
        }
    }
}

#[test]
fn synchronizing_the_model_waits_for_the_device() {
    let Some(gpu) = gpu() else { return };
    let Some(counter) = Counter::of(&gpu) else {
        return;
    };
    let (model, _) = decoding(gpu);
    let [waits] = counter.rises(["cuStreamSynchronize"], || model.synchronize().unwrap());
    assert_eq!(waits, 1);
}

/// Memory runs out where a pass needs more room: it fails, and smaller passes still work.
#[test]
fn a_pass_without_memory_leaves_the_model_usable() {
    let Some(gpu) = gpu() else { return };
    if gpu.info().name != "Simulated GPU" {
        return;
    }
    let (mut model, _) = decoding(gpu);
    let many = FIRST_ENDS + 1;
    model.set_pages(many).unwrap();
    decode(&mut model, 2, 0);
    let hog: Vec<Buffer<u8>> = [20, 16, 12, 8, 4]
        .into_iter()
        .flat_map(|shift| {
            let gpu = Arc::clone(&model.gpu);
            std::iter::from_fn(move || gpu.allocate(1 << shift).ok())
        })
        .collect();
    let tables: Vec<Vec<u32>> = (0..many as u32).map(|row| vec![row]).collect();
    let wide = |model: &mut CudaModel| {
        let chunks: Vec<Chunk<'_>> = tables
            .iter()
            .map(|pages| Chunk {
                slot: Slot(0),
                pages,
                tokens: &[3],
                start: 0,
                logits: true,
            })
            .collect();
        model.forward_sampled(&chunks, &vec![None; many])
    };
    let error = wide(&mut model).unwrap_err();
    assert!(
        error.report().contains("CUDA_ERROR_OUT_OF_MEMORY"),
        "{}",
        error.report()
    );
    decode(&mut model, 2, 1);
    assert!(model.save_memory());
    assert!(!model.save_memory(), "once");
    decode(&mut model, 2, 2);
    drop(hog);
    assert_eq!(wide(&mut model).unwrap().len(), many);
}

/// The virtual clock of the simulated GPU gives a figure for the least sizes.
#[test]
fn the_cards_limits_are_measured() {
    let Some(gpu) = gpu() else { return };
    let (model, _) = decoding(gpu);
    let ceilings = model.device_ceilings().unwrap().unwrap();
    assert_eq!(ceilings.threads, model.gpu.multiprocessors() as usize);
    assert_eq!(ceilings.instructions, "mma");
    assert!(ceilings.read_gb_s > 0.0 && ceilings.int8_gmac_s > 0.0);
}

/// What the preflight counts on is what is allocated.
#[test]
fn the_working_memory_is_what_was_announced() {
    let Some(gpu) = gpu() else { return };
    let (model, _) = decoding(gpu);
    let spec = &model.decoder.spec;
    for (tokens, ends, pages) in [(1, 1, 1), (300, 7, 2000), (2048, 64, 2048)] {
        let sizes = Sizes {
            tokens,
            ends,
            pages,
        };
        let before = model.gpu.memory().unwrap().free;
        let scratch = Scratch::allocate(&model.gpu, spec, sizes).unwrap();
        let taken = before - model.gpu.memory().unwrap().free;
        // A driver rounds each of the buffers up.
        let slack = if model.gpu.info().name == "Simulated GPU" {
            20 * 4096
        } else {
            20 << 21
        };
        let announced = sizes.bytes(spec);
        assert!(
            (announced..announced + slack).contains(&taken),
            "{sizes:?}: {announced} announced, {taken} taken"
        );
        drop(scratch);
    }
}
