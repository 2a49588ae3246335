//! Who else uses the card.

use std::collections::BTreeMap;

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;

use crate::record::gpu::GpuProcess;

/// A process of NVML's lists.
pub(super) fn process(info: &ProcessInfo) -> GpuProcess {
    GpuProcess {
        pid: info.pid,
        memory_bytes: match info.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        },
    }
}

/// By process ID; of a process that is there several times, the largest memory.
pub(super) fn united(processes: impl IntoIterator<Item = GpuProcess>) -> Vec<GpuProcess> {
    let mut by_pid = BTreeMap::new();
    for GpuProcess { pid, memory_bytes } in processes {
        let memory: &mut Option<u64> = by_pid.entry(pid).or_default();
        *memory = (*memory).max(memory_bytes);
    }
    let process = |(pid, memory_bytes)| GpuProcess { pid, memory_bytes };
    by_pid.into_iter().map(process).collect()
}

/// The listed processes without process `own`.
///
/// # Errors
/// If this process uses the card and is not listed. In a container the ids may be the host's, and then it
/// cannot be told which of them is `own`, or the list may be empty.
pub(super) fn others(
    listed: Vec<GpuProcess>,
    own: u32,
    uses_the_card: bool,
) -> Result<Vec<GpuProcess>, String> {
    let others: Vec<GpuProcess> = (listed.iter())
        .filter(|process| process.pid != own)
        .cloned()
        .collect();
    match uses_the_card && others.len() == listed.len() {
        true => Err(format!(
            "this process, {own}, is not among the {} that NVML lists, as in a container with its own process IDs",
            listed.len()
        )),
        false => Ok(others),
    }
}
