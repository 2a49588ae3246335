// NVML, not yet.
