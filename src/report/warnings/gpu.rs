//! Warnings about the GPU: throttled, shared with other processes, or not readable.

use super::warning;
use crate::record::RunRecord;
use crate::record::gpu::{GpuRecord, is_setting};
use crate::record::warning::Warning;
use crate::report::gpu::processes;

/// In a merged run, each shard has its own card; one warning of a kind is enough.
pub(super) fn warnings(run: &RunRecord) -> Vec<Warning> {
    let shards = run.shards.iter().filter_map(|shard| shard.gpu.as_ref());
    let cards: Vec<&GpuRecord> = run.gpu.iter().chain(shards).collect();
    [throttled, shared, unknown]
        .iter()
        .filter_map(|check| cards.iter().find_map(|gpu| check(gpu)))
        .collect()
}

fn throttled(gpu: &GpuRecord) -> Option<Warning> {
    let limits = gpu.throttle.iter().filter(|reason| !is_setting(reason));
    let limits: Vec<&str> = limits.map(String::as_str).collect();
    (!limits.is_empty()).then(|| {
        warning(
            "gpu_throttled",
            "The GPU was throttled: times are longer than at its full clocks, and not comparable",
            limits.join(", "),
        )
    })
}

fn shared(gpu: &GpuRecord) -> Option<Warning> {
    (!gpu.other_processes.is_empty()).then(|| {
        warning(
            "gpu_shared",
            "Other processes used the GPU: times may be longer than on an idle one, and its energy includes \
             theirs",
            processes(&gpu.other_processes),
        )
    })
}

fn unknown(gpu: &GpuRecord) -> Option<Warning> {
    gpu.missing.get("nvml").map(|reason| {
        warning(
            "gpu_unknown",
            "NVML cannot be used: energy, clocks and throttling of the GPU are not known",
            reason.clone(),
        )
    })
}
