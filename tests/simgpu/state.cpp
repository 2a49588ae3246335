// The driver's state, and what every call has in common.
#include <algorithm>
#include <cstdio>

#include "driver.h"
#include "memory.h"

namespace simgpu {

Entry *entries;
__thread int current_device = -1;

State &state() {
    static State *const made = new State;
    return *made;
}

Entry::Entry(const char *name) : name(name) {
    const std::lock_guard<std::recursive_mutex> lock(state().mutex);
    next = entries;
    entries = this;
}

Call::Call(Entry &entry, Needs needs, bool starts) : lock_(state().mutex) {
    State &s = state();
    if (!s.settings_read) s.settings = read_settings();
    s.settings_read = true;
    entry.calls++;
    const bool has_device = current_device >= 0 && std::size_t(current_device) < s.devices.size();
    for (const Settings::Failure &failure : s.settings.failures) {
        if (failure.call != entry.calls || failure.function != entry.name) continue;
        result = failure.code;
        if (has_device && is_sticky(result)) {
            lose_context(current(), result, "asked for by SIMGPU_FAIL");
            current().error_told = true;
        }
        return;
    }
    if (needs == NOTHING) return;
    if (!s.initialised) {
        result = CUDA_ERROR_NOT_INITIALIZED;
    } else if (needs == CONTEXT && (!has_device || current().retained == 0)) {
        result = CUDA_ERROR_INVALID_CONTEXT;
    } else if (needs == CONTEXT && current().error != 0 && (!starts || current().error_told)) {
        current().error_told = true;
        result = current().error;
    }
}

Device &current() { return *state().devices[std::size_t(current_device)]; }

bool is_sticky(int code) {
    switch (code) {
        case CUDA_ERROR_ECC_UNCORRECTABLE:
        case CUDA_ERROR_ILLEGAL_ADDRESS:
        case CUDA_ERROR_LAUNCH_TIMEOUT:
        case CUDA_ERROR_HARDWARE_STACK_ERROR:
        case CUDA_ERROR_ILLEGAL_INSTRUCTION:
        case CUDA_ERROR_MISALIGNED_ADDRESS:
        case CUDA_ERROR_INVALID_ADDRESS_SPACE:
        case CUDA_ERROR_INVALID_PC:
        case CUDA_ERROR_LAUNCH_FAILED:
        case CUDA_ERROR_UNKNOWN: return true;
        default: return false;
    }
}

void lose_context(Device &device, int code, const std::string &why) {
    if (device.error == 0) device.error = code;
    std::vector<std::string> &findings = state().counts.findings;
    if (findings.size() < 100) findings.push_back(why);
}

bool is_pinned(u64 address, std::size_t bytes) {
    const auto &pinned = state().pinned;
    auto next = pinned.upper_bound(address);
    if (next == pinned.begin()) return false;
    const auto &[start, range] = *std::prev(next);
    return address - start <= range.bytes && bytes <= range.bytes - (address - start);
}

int settle() {
    Device &device = current();
    const std::string broken = memory.broken_red_zone();
    if (!broken.empty() && device.error == 0) {
        std::fprintf(stderr, "simulated GPU: %s\n", broken.c_str());
        lose_context(device, CUDA_ERROR_ILLEGAL_ADDRESS, broken);
    }
    if (device.error != 0) device.error_told = true;
    return device.error;
}

int refuse_in_capture(Stream *stream) {
    bool refused = false;
    for (const auto &[handle, owner] : state().streams) {
        if (handle->capture == nullptr) continue;
        if (handle != stream && (stream != nullptr || handle->capture_mode == 2)) continue;
        handle->capture_broken = true;
        refused = true;
    }
    return refused ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

}  // namespace simgpu

using namespace simgpu;

SIMGPU_API cuInit(unsigned flags) {
    SIMGPU_ENTER(NOTHING);
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    State &s = state();
    if (s.initialised) return s.devices.empty() ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS;
    s.initialised = true;
    if (!memory.open(s.settings.memory, std::max(1u, s.settings.devices))) return CUDA_ERROR_OUT_OF_MEMORY;
    for (unsigned i = 0; i < s.settings.devices; i++) {
        s.devices.push_back(std::make_unique<Device>());
        s.devices.back()->legacy.device = i;
    }
    return s.devices.empty() ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS;
}

// Forgets everything, and reads the settings again at the next call. For tests in one
// process: handles and allocations from before are invalid.
extern "C" __attribute__((visibility("default"))) void simgpu_reset() {
    State &s = state();
    const std::lock_guard<std::recursive_mutex> lock(s.mutex);
    s.initialised = s.settings_read = false;
    s.devices.clear();
    s.streams.clear();
    s.events.clear();
    s.modules.clear();
    s.graphs.clear();
    s.counts = {};
    current_device = -1;
    for (Entry *entry = entries; entry != nullptr; entry = entry->next) entry->calls = 0;
}
