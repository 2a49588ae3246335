// Driver API: device and pinned memory, copies, fills, pointer attributes.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "driver.h"
#include "memory.h"

using namespace simgpu;

namespace {

int allocate(u64 *address, std::size_t bytes) {
    if (address == nullptr) return CUDA_ERROR_INVALID_VALUE;
    const int code = memory.allocate(unsigned(current_device), bytes, address);
    if (code != CUDA_SUCCESS) return code;
    Counts &counts = state().counts;
    counts.allocations++;
    counts.peak_bytes = std::max<u64>(counts.peak_bytes, memory.used(unsigned(current_device)));
    return code;
}

int allocate_pinned(void **address, std::size_t bytes) {
    if (address == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    *address = std::aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE);
    if (*address == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
    state().pinned[reinterpret_cast<u64>(*address)] = {bytes, true};
    return CUDA_SUCCESS;
}

// Checks the device's side of a copy or fill, then submits it.
int submit_checked(Stream &stream, Operation op, std::size_t width) {
    if (op.count == 0) return CUDA_SUCCESS;
    const bool writes = op.kind != Operation::TO_HOST,
               reads = op.kind == Operation::TO_HOST || op.kind == Operation::ON_DEVICE;
    const std::size_t bytes = op.count * width;
    if (writes && !memory.holds(op.target, bytes)) return CUDA_ERROR_INVALID_VALUE;
    if (reads && !memory.holds(op.source, bytes)) return CUDA_ERROR_INVALID_VALUE;
    if (op.kind == Operation::TO_DEVICE && op.source == 0) return CUDA_ERROR_INVALID_VALUE;
    if (op.kind == Operation::TO_HOST && op.target == 0) return CUDA_ERROR_INVALID_VALUE;
    return submit(stream, std::move(op));
}

Operation copy_of(Operation::Kind kind, u64 target, u64 source, std::size_t bytes) {
    Operation op;
    op.kind = kind;
    op.target = target;
    op.source = source;
    op.count = bytes;
    return op;
}

// A copy that has happened when the call returns.
int copy_now(Operation op) {
    if (const int code = refuse_in_capture(nullptr)) return code;
    Stream &stream = current().legacy;
    if (const int code = submit_checked(stream, std::move(op), 1)) return code;
    drain(stream);
    return settle();
}

int copy_later(void *handle, Operation op) {
    Stream *stream;
    if (const int code = find_stream(handle, &stream)) return code;
    const bool queued = state().settings.delay && stream->capture == nullptr;
    if (queued && op.kind == Operation::TO_DEVICE && !is_pinned(op.source, op.count)) {
        // The driver copies pageable memory before it returns.
        const char *from = reinterpret_cast<const char *>(op.source);
        op.staged.assign(from, from + op.count);
    }
    const bool waits = queued && op.kind == Operation::TO_HOST && !is_pinned(op.target, op.count);
    if (const int code = submit_checked(*stream, std::move(op), 1)) return code;
    if (waits) drain(*stream);
    return CUDA_SUCCESS;
}

int fill_later(void *handle, Operation::Kind kind, u64 target, unsigned value, std::size_t count,
               std::size_t width) {
    Stream *stream;
    if (const int code = find_stream(handle, &stream)) return code;
    if (target % width != 0) return CUDA_ERROR_INVALID_VALUE;
    Operation op = copy_of(kind, target, 0, count);
    op.value = value;
    return submit_checked(*stream, std::move(op), width);
}

u64 number(const void *pointer) { return reinterpret_cast<u64>(pointer); }

}  // namespace

SIMGPU_API cuMemAlloc_v2(u64 *address, std::size_t bytes) {
    SIMGPU_ENTER(CONTEXT);
    if (const int code = refuse_in_capture(nullptr)) return code;
    return allocate(address, bytes);
}
SIMGPU_API cuMemAllocAsync(u64 *address, std::size_t bytes, void *handle) {
    SIMGPU_ENTER(CONTEXT);
    Stream *stream;
    if (const int code = find_stream(handle, &stream)) return code;
    if (stream->capture != nullptr) return CUDA_ERROR_NOT_SUPPORTED;
    return allocate(address, bytes);
}
SIMGPU_API cuMemFree_v2(u64 address) {
    SIMGPU_ENTER(CONTEXT);
    if (address == 0) return CUDA_SUCCESS;
    if (const int code = refuse_in_capture(nullptr)) return code;
    drain_all();
    std::string finding;
    if (const int code = memory.release(address, &finding)) return code;
    state().counts.frees++;
    if (!finding.empty()) {
        std::fprintf(stderr, "simulated GPU: %s\n", finding.c_str());
        lose_context(current(), CUDA_ERROR_ILLEGAL_ADDRESS, finding);
    }
    return settle();
}
SIMGPU_API cuMemFreeAsync(u64 address, void *handle) {
    SIMGPU_ENTER(CONTEXT, true);
    if (address == 0) return CUDA_SUCCESS;
    Stream *stream;
    if (const int code = find_stream(handle, &stream)) return code;
    if (stream->capture != nullptr) return CUDA_ERROR_NOT_SUPPORTED;
    const Allocation *allocation = memory.find(address);
    if (allocation == nullptr || allocation->start != address) return CUDA_ERROR_INVALID_VALUE;
    state().counts.frees++;
    return submit(*stream, copy_of(Operation::FREE, address, 0, 0));
}
SIMGPU_API cuMemGetInfo_v2(std::size_t *free, std::size_t *total) {
    SIMGPU_ENTER(CONTEXT);
    *total = memory.limit();
    *free = memory.limit() - memory.used(unsigned(current_device));
    return CUDA_SUCCESS;
}
SIMGPU_API cuMemGetAddressRange_v2(u64 *start, std::size_t *bytes, u64 address) {
    SIMGPU_ENTER(CONTEXT);
    const Allocation *allocation = memory.find(address);
    if (allocation == nullptr) return CUDA_ERROR_NOT_FOUND;
    if (start != nullptr) *start = allocation->start;
    if (bytes != nullptr) *bytes = allocation->bytes;
    return CUDA_SUCCESS;
}

// Pools: there is one, whose attributes are accepted.
SIMGPU_API cuDeviceGetDefaultMemPool(void **pool, int) {
    SIMGPU_ENTER(INITIALISED);
    *pool = &memory;
    return CUDA_SUCCESS;
}
SIMGPU_API cuDeviceGetMemPool(void **pool, int) {
    SIMGPU_ENTER(INITIALISED);
    *pool = &memory;
    return CUDA_SUCCESS;
}
SIMGPU_API cuMemPoolSetAttribute(void *pool, int, void *) {
    SIMGPU_ENTER(INITIALISED);
    return pool == &memory ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
SIMGPU_API cuMemPoolTrimTo(void *pool, std::size_t) {
    SIMGPU_ENTER(INITIALISED);
    return pool == &memory ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIMGPU_API cuMemHostAlloc(void **address, std::size_t bytes, unsigned) {
    SIMGPU_ENTER(CONTEXT);
    return allocate_pinned(address, bytes);
}
SIMGPU_API cuMemAllocHost_v2(void **address, std::size_t bytes) {
    SIMGPU_ENTER(CONTEXT);
    return allocate_pinned(address, bytes);
}
SIMGPU_API cuMemFreeHost(void *address) {
    SIMGPU_ENTER(CONTEXT);
    const auto found = state().pinned.find(number(address));
    if (found == state().pinned.end() || !found->second.owned) return CUDA_ERROR_INVALID_VALUE;
    drain_all();
    state().pinned.erase(found);
    std::free(address);
    return CUDA_SUCCESS;
}
SIMGPU_API cuMemHostRegister_v2(void *address, std::size_t bytes, unsigned) {
    SIMGPU_ENTER(CONTEXT);
    if (address == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (is_pinned(number(address), 1)) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    state().pinned[number(address)] = {bytes, false};
    return CUDA_SUCCESS;
}
SIMGPU_API cuMemHostUnregister(void *address) {
    SIMGPU_ENTER(CONTEXT);
    const auto found = state().pinned.find(number(address));
    if (found == state().pinned.end() || found->second.owned) return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    drain_all();
    state().pinned.erase(found);
    return CUDA_SUCCESS;
}
SIMGPU_API cuMemHostGetDevicePointer_v2(u64 *device, void *host, unsigned) {
    SIMGPU_ENTER(CONTEXT);
    if (!is_pinned(number(host), 1)) return CUDA_ERROR_INVALID_VALUE;
    *device = number(host);
    return CUDA_SUCCESS;
}

SIMGPU_API cuMemcpyHtoD_v2(u64 target, const void *source, std::size_t bytes) {
    SIMGPU_ENTER(CONTEXT);
    return copy_now(copy_of(Operation::TO_DEVICE, target, number(source), bytes));
}
SIMGPU_API cuMemcpyDtoH_v2(void *target, u64 source, std::size_t bytes) {
    SIMGPU_ENTER(CONTEXT);
    return copy_now(copy_of(Operation::TO_HOST, number(target), source, bytes));
}
SIMGPU_API cuMemcpyDtoD_v2(u64 target, u64 source, std::size_t bytes) {
    SIMGPU_ENTER(CONTEXT);
    return copy_now(copy_of(Operation::ON_DEVICE, target, source, bytes));
}
SIMGPU_API cuMemcpyHtoDAsync_v2(u64 target, const void *source, std::size_t bytes, void *stream) {
    SIMGPU_ENTER(CONTEXT, true);
    return copy_later(stream, copy_of(Operation::TO_DEVICE, target, number(source), bytes));
}
SIMGPU_API cuMemcpyDtoHAsync_v2(void *target, u64 source, std::size_t bytes, void *stream) {
    SIMGPU_ENTER(CONTEXT, true);
    return copy_later(stream, copy_of(Operation::TO_HOST, number(target), source, bytes));
}
SIMGPU_API cuMemcpyDtoDAsync_v2(u64 target, u64 source, std::size_t bytes, void *stream) {
    SIMGPU_ENTER(CONTEXT, true);
    return copy_later(stream, copy_of(Operation::ON_DEVICE, target, source, bytes));
}

SIMGPU_API cuMemsetD8_v2(u64 target, unsigned char value, std::size_t count) {
    SIMGPU_ENTER(CONTEXT);
    return fill_later(nullptr, Operation::FILL8, target, value, count, 1);
}
SIMGPU_API cuMemsetD16_v2(u64 target, unsigned short value, std::size_t count) {
    SIMGPU_ENTER(CONTEXT);
    return fill_later(nullptr, Operation::FILL16, target, value, count, 2);
}
SIMGPU_API cuMemsetD32_v2(u64 target, unsigned value, std::size_t count) {
    SIMGPU_ENTER(CONTEXT);
    return fill_later(nullptr, Operation::FILL32, target, value, count, 4);
}
SIMGPU_API cuMemsetD8Async(u64 target, unsigned char value, std::size_t count, void *stream) {
    SIMGPU_ENTER(CONTEXT, true);
    return fill_later(stream, Operation::FILL8, target, value, count, 1);
}
SIMGPU_API cuMemsetD16Async(u64 target, unsigned short value, std::size_t count, void *stream) {
    SIMGPU_ENTER(CONTEXT, true);
    return fill_later(stream, Operation::FILL16, target, value, count, 2);
}
SIMGPU_API cuMemsetD32Async(u64 target, unsigned value, std::size_t count, void *stream) {
    SIMGPU_ENTER(CONTEXT, true);
    return fill_later(stream, Operation::FILL32, target, value, count, 4);
}

// Numbers are those of `CUpointer_attribute`.
SIMGPU_API cuPointerGetAttribute(void *data, int attribute, u64 address) {
    SIMGPU_ENTER(CONTEXT);
    const Allocation *allocation = memory.find(address);
    if (allocation == nullptr && !is_pinned(address, 1)) return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
        case 1: *static_cast<void **>(data) = &current(); return CUDA_SUCCESS;
        case 2: *static_cast<unsigned *>(data) = allocation != nullptr ? 2 : 1; return CUDA_SUCCESS;
        case 3: *static_cast<u64 *>(data) = address; return CUDA_SUCCESS;
        case 4:
            if (allocation != nullptr) return CUDA_ERROR_INVALID_VALUE;
            *static_cast<u64 *>(data) = address;
            return CUDA_SUCCESS;
        case 8: *static_cast<unsigned *>(data) = 0; return CUDA_SUCCESS;
        case 9:
            *static_cast<int *>(data) = allocation != nullptr ? int(allocation->device) : current_device;
            return CUDA_SUCCESS;
        case 11:
        case 12:
            if (allocation == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
            *static_cast<u64 *>(data) = attribute == 11 ? allocation->start : allocation->bytes;
            return CUDA_SUCCESS;
        default: return CUDA_ERROR_NOT_SUPPORTED;
    }
}
