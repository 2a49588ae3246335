//! The layer on a driver: an NVIDIA one or the simulated one. Without a driver they are skipped.

use super::*;

/// The GPU; `None`, and a line, where no driver is.
fn gpu() -> Option<Gpu> {
    match Gpu::open() {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            let _ = std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!("skipped: {}\n", error.chain()),
            );
            None
        }
    }
}

/// A model, and so its GPU, may be made on one thread and used on another.
#[test]
fn everything_moves_between_threads() {
    fn check<T: Send>() {}
    check::<(Gpu, Kernels, Kernel, Graph, Event)>();
    check::<(Buffer<f32>, Pinned<f32>)>();
}

#[test]
fn the_card_is_described() {
    let Some(gpu) = gpu() else { return };
    assert_eq!(gpu.info().kind, "cuda");
    assert!(!gpu.info().name.is_empty());
    assert!(gpu.capability() >= MINIMUM_CAPABILITY);
    assert!(gpu.multiprocessors() > 0);
    let memory = gpu.memory().unwrap();
    assert!(memory.free > 0 && memory.free <= memory.total);
    assert_eq!(gpu.card().pci_bus_id.matches(':').count(), 2);
}

#[test]
fn what_is_uploaded_comes_back() {
    let Some(gpu) = gpu() else { return };
    let mut buffer = gpu.allocate::<u16>(1000).unwrap();
    let mut back = vec![1u16; 1000];
    gpu.download(&buffer, 0, &mut back).unwrap();
    assert!(back.iter().all(|value| *value == 0), "zeroed");
    let values: Vec<u16> = (0..300).collect();
    gpu.upload(&mut buffer, 700, &values).unwrap();
    let copy = gpu.allocate::<u16>(10).unwrap();
    gpu.copy(&buffer, 705, &copy, 2, 8).unwrap();
    let mut back = vec![0u16; 10];
    gpu.download(&copy, 0, &mut back).unwrap();
    assert_eq!(back, [0, 0, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert!(gpu.upload(&mut buffer, 701, &values).is_err());
    assert!(gpu.copy(&buffer, 0, &copy, 3, 8).is_err());
}

#[test]
fn pinned_memory_is_copied_in_stream_order() {
    let Some(gpu) = gpu() else { return };
    let mut host = gpu.pinned::<f32>(8).unwrap();
    assert_eq!(&host[..], [0.0; 8]);
    for (value, index) in host.iter_mut().zip(0u8..) {
        *value = f32::from(index);
    }
    let buffer = gpu.allocate::<f32>(8).unwrap();
    let mut back = gpu.pinned::<f32>(8).unwrap();
    gpu.upload_async(&buffer, &host, 6).unwrap();
    gpu.download_async(&buffer, &mut back, 8).unwrap();
    gpu.synchronize().unwrap();
    assert_eq!(&back[..], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 0.0]);
    assert!(gpu.upload_async(&buffer, &host, 9).is_err());
}

#[test]
fn a_graph_repeats_what_was_captured() {
    let Some(gpu) = gpu() else { return };
    let mut from = gpu.allocate::<u32>(4).unwrap();
    let to = gpu.allocate::<u32>(4).unwrap();
    let graph = gpu.capture(|| gpu.copy(&from, 0, &to, 0, 4)).unwrap();
    let mut back = [9; 4];
    gpu.download(&to, 0, &mut back).unwrap();
    assert_eq!(back, [0; 4], "captured, not run");
    for value in [3, 5] {
        gpu.upload(&mut from, 0, &[value; 4]).unwrap();
        gpu.replay(&graph).unwrap();
        gpu.download(&to, 0, &mut back).unwrap();
        assert_eq!(back, [value; 4]);
    }
}

#[test]
fn a_capture_that_fails_leaves_the_stream_usable() {
    let Some(gpu) = gpu() else { return };
    let mut buffer = gpu.allocate::<u32>(4).unwrap();
    let refused = gpu.capture(|| Err(GpuError::invalid("test", "on purpose".to_owned())));
    assert!(refused.is_err_and(|error| error.to_string().ends_with("on purpose")));
    gpu.upload(&mut buffer, 0, &[1, 2, 3, 4]).unwrap();
    let mut back = [0; 4];
    gpu.download(&buffer, 0, &mut back).unwrap();
    assert_eq!(back, [1, 2, 3, 4]);
}

#[test]
fn events_are_in_order() {
    let Some(gpu) = gpu() else { return };
    let (start, end) = (gpu.event().unwrap(), gpu.event().unwrap());
    gpu.record(&start).unwrap();
    let _buffer = gpu.allocate::<u8>(1 << 20).unwrap();
    gpu.record(&end).unwrap();
    gpu.synchronize().unwrap();
    assert!(gpu.elapsed_ms(&start, &end).unwrap() >= 0.0);
}

#[test]
fn memory_that_is_not_there_is_an_error() {
    let Some(gpu) = gpu() else { return };
    let total = gpu.memory().unwrap().total;
    let error = gpu.allocate::<u8>(total + 1).err().expect("too large");
    assert!(error.is_out_of_memory(), "{error}");
    assert!(gpu.allocate::<u8>(16).is_ok(), "the context survives");
}

#[test]
fn text_that_is_no_ptx_is_refused() {
    let Some(gpu) = gpu() else { return };
    let error = gpu.load_kernels("no kernels here").err().expect("no PTX");
    assert_eq!(error.exit(), crate::error::Exit::Preflight);
    assert!(
        error
            .report()
            .starts_with("error: failed to load the kernels")
    );
}

#[test]
fn a_gpu_is_used_from_another_thread() {
    let Some(gpu) = gpu() else { return };
    let mut back = [1u8; 4];
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let buffer = gpu.allocate::<u8>(4).unwrap();
            gpu.download(&buffer, 0, &mut back).unwrap();
        });
        work.join().unwrap();
    });
    assert_eq!(back, [0; 4]);
}

/// Adds `x` to the number at `p`, in one thread.
const ADD: &str = "
.version 8.1
.target sm_75
.address_size 64
.visible .entry add(.param .u64 p, .param .u32 x)
{
    .reg .b64 %a<3>;
    .reg .b32 %v<4>;
    ld.param.u64 %a1, [p];
    ld.param.u32 %v1, [x];
    cvta.to.global.u64 %a2, %a1;
    ld.global.u32 %v2, [%a2];
    add.s32 %v3, %v2, %v1;
    st.global.u32 [%a2], %v3;
    ret;
}
";

#[test]
fn a_kernel_runs() {
    let Some(gpu) = gpu() else { return };
    let kernels = gpu.load_kernels(ADD).unwrap();
    let missing = kernels.get("subtract").err().expect("no such kernel");
    assert!(
        missing
            .report()
            .starts_with("error: failed to find the kernel `subtract`")
    );
    let Ok(kernel) = kernels.get("add") else {
        // The simulated GPU runs kernels of `engine/cuda/kernels` only.
        return;
    };
    drop(kernels);
    let buffer = gpu.allocate::<u32>(3).unwrap();
    for value in [5, 6] {
        let mut arguments = Arguments::new().buffer_at(&buffer, 1).u32(value);
        gpu.launch(&kernel, [1, 1, 1], 1, &mut arguments).unwrap();
    }
    let mut sums = [9; 3];
    gpu.download(&buffer, 0, &mut sums).unwrap();
    assert_eq!(sums, [0, 11, 0]);
}
