// Operations of a stream: run at once, queued until something waits (SIMGPU_DELAY=1), or captured into a graph.
#include <cstdio>
#include <cstring>

#include "driver.h"
#include "memory.h"
#ifdef SIMGPU_CHECKS
#include "checks.h"
#endif

namespace simgpu {
namespace {

void count_kernel(const Function &function, const simt::Launch &launch) {
    KernelCounts &counts = state().counts.kernels[function.name];
    counts.launches++;
    counts.blocks += launch.blocks;
    counts.threads += launch.blocks * launch.block.x;
    counts.operations.add(launch.counters);
    if (launch.shared_bytes > counts.shared_bytes) counts.shared_bytes = launch.shared_bytes;
#ifdef SIMGPU_CHECKS
    checks::collect(counts);
#endif
}

void run_kernel(Stream &stream, const Function &function, simt::Dim grid, simt::Dim block, void *const *params) {
    State &s = state();
    Device &device = *s.devices[stream.device];
    if (device.error != 0) return;
    s.counts.operations++;
    simt::Launch launch;
    launch.kernel = function.kernel;
    launch.params = params;
    launch.grid = grid;
    launch.block = block;
    launch.blocks = u64(grid.x) * grid.y * grid.z;
    if (s.settings.seed != 0) launch.seed = (s.settings.seed * 0x9e3779b97f4a7c15ull ^ s.counts.operations) | 1;
#ifdef SIMGPU_CHECKS
    checks::start_launch();
#endif
    simt::run(launch, s.settings.threads);
    count_kernel(function, launch);
    if (launch.fault.code != 0) lose_context(device, launch.fault.code, launch.fault.text);
}

void *pointer(u64 address) { return reinterpret_cast<void *>(address); }

void run_copy(Operation &op) {
    Counts &counts = state().counts;
    const void *source = op.staged.empty() ? pointer(op.source) : op.staged.data();
    if (op.kind == Operation::TO_DEVICE) counts.host_to_device += op.count;
    if (op.kind == Operation::TO_HOST) counts.device_to_host += op.count;
    if (op.kind == Operation::ON_DEVICE) counts.device_to_device += op.count;
    std::memmove(pointer(op.target), source, op.count);
#ifdef SIMGPU_CHECKS
    if (op.kind == Operation::TO_DEVICE) checks::set_written(op.target, op.count);
    if (op.kind == Operation::ON_DEVICE) checks::copy_written(op.target, op.source, op.count);
#endif
}

template <class T>
void fill(const Operation &op) {
    T *target = static_cast<T *>(pointer(op.target));
    for (std::size_t i = 0; i < op.count; i++) target[i] = T(op.value);
#ifdef SIMGPU_CHECKS
    checks::set_written(op.target, op.count * sizeof(T));
#endif
}

void run(Stream &stream, Operation &op) {
    State &s = state();
    Device &device = *s.devices[stream.device];
    switch (op.kind) {
        case Operation::LAUNCH: {
            void *params[128];
            std::size_t at = 0;
            for (unsigned i = 0; i < op.function->kernel->count; i++) {
                params[i] = op.params.data() + at;
                at += (op.function->kernel->sizes[i] + 15) & ~15u;
            }
            return run_kernel(stream, *op.function, op.grid, op.block, params);
        }
        case Operation::RECORD:
            op.event->completed = op.record;
            op.event->clock = s.counts.operations;
            return;
        case Operation::WAIT:
            if (op.event->completed < op.record) drain_until(*op.event->stream, *op.event, op.record);
            return;
        case Operation::CALL: return op.call(op.data);
        default: break;
    }
    if (device.error != 0) return;
    s.counts.operations++;
    switch (op.kind) {
        case Operation::FILL8: return fill<u8>(op);
        case Operation::FILL16: return fill<u16>(op);
        case Operation::FILL32: return fill<u32>(op);
        case Operation::FREE: {
            std::string finding;
            memory.release(op.target, &finding);
            if (!finding.empty()) {
                std::fprintf(stderr, "simulated GPU: %s\n", finding.c_str());
                lose_context(device, CUDA_ERROR_ILLEGAL_ADDRESS, finding);
            }
            return;
        }
        default: return run_copy(op);
    }
}

bool any_blocking_capture() {
    for (const auto &[handle, owner] : state().streams) {
        if (handle->capture != nullptr && handle->blocking) return true;
    }
    return false;
}

// Captures the operation if the stream is being captured. Returns whether it did, or an error.
int capture(Stream &stream, bool *captured) {
    *captured = stream.capture != nullptr;
    if (stream.capture != nullptr && stream.capture_broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (&stream == &state().devices[stream.device]->legacy && any_blocking_capture()) {
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    return CUDA_SUCCESS;
}

}  // namespace

int find_stream(void *handle, Stream **stream) {
    if (reinterpret_cast<std::uintptr_t>(handle) <= 2) {
        *stream = &current().legacy;
        return CUDA_SUCCESS;
    }
    const auto found = state().streams.find(static_cast<Stream *>(handle));
    if (found == state().streams.end()) return CUDA_ERROR_INVALID_HANDLE;
    *stream = found->first;
    return CUDA_SUCCESS;
}

int submit(Stream &stream, Operation op) {
    bool captured;
    if (const int code = capture(stream, &captured)) return code;
    if (captured) {
        stream.capture->operations.push_back(std::move(op));
    } else if (state().settings.delay) {
        op.sequence = ++state().sequence;
        stream.queue.push_back(std::move(op));
    } else {
        run(stream, op);
    }
    return CUDA_SUCCESS;
}

int launch(Stream &stream, Function &function, simt::Dim grid, simt::Dim block, void **params) {
    bool captured;
    if (const int code = capture(stream, &captured)) return code;
    if (!captured && !state().settings.delay) {
        run_kernel(stream, function, grid, block, params);
        return CUDA_SUCCESS;
    }
    Operation op;
    op.kind = Operation::LAUNCH;
    op.function = &function;
    op.grid = grid;
    op.block = block;
    for (unsigned i = 0; i < function.kernel->count; i++) {
        const unsigned bytes = function.kernel->sizes[i];
        const std::size_t at = op.params.size();
        op.params.resize(at + ((bytes + 15) & ~15u));
        std::memcpy(op.params.data() + at, params[i], bytes);
    }
    return submit(stream, std::move(op));
}

int replay(Stream &stream, const Graph &graph) {
    bool captured;
    if (const int code = capture(stream, &captured)) return code;
    Counts &counts = state().counts;
    counts.graph_launches++;
    counts.graph_nodes += graph.operations.size();
    for (const Operation &op : graph.operations) {
        if (captured || state().settings.delay) {
            if (const int code = submit(stream, op)) return code;
        } else {
            run(stream, const_cast<Operation &>(op));
        }
    }
    return CUDA_SUCCESS;
}

void drain_until(Stream &stream, const Event &event, u64 record) {
    while (!stream.queue.empty() && event.completed < record) {
        Operation op = std::move(stream.queue.front());
        stream.queue.pop_front();
        run(stream, op);
    }
}

// The legacy stream and the blocking ones wait for each other, so their operations run in the order in which they
// were submitted, until the stream has none.
void drain(Stream &stream) {
    Stream &legacy = state().devices[stream.device]->legacy;
    const bool together = stream.blocking;
    while (!stream.queue.empty()) {
        Stream *first = &stream;
        const auto consider = [&](Stream &other) {
            if (other.device != stream.device || other.queue.empty()) return;
            if (other.queue.front().sequence < first->queue.front().sequence) first = &other;
        };
        if (together) {
            consider(legacy);
            for (const auto &[other, owner] : state().streams) {
                if (other->blocking) consider(*other);
            }
        }
        Operation op = std::move(first->queue.front());
        first->queue.pop_front();
        run(*first, op);
    }
}

void drain_all() {
    drain(current().legacy);
    for (const auto &[stream, owner] : state().streams) {
        if (stream->device == unsigned(current_device)) drain(*stream);
    }
}

}  // namespace simgpu
