// Driver API: versions, errors, devices, primary contexts.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "driver.h"
#include "memory.h"

using namespace simgpu;

namespace {

bool is_device(int device) { return device >= 0 && std::size_t(device) < state().devices.size(); }

// A context's handle is its device's state.
void *handle_of(int device) { return device < 0 ? nullptr : state().devices[std::size_t(device)].get(); }

const char *const NAMES[] = {
#define X(name, number, text) "CUDA_" #name,
    SIMGPU_RESULTS(X)
#undef X
};
const char *const TEXTS[] = {
#define X(name, number, text) text,
    SIMGPU_RESULTS(X)
#undef X
};
const int NUMBERS[] = {
#define X(name, number, text) number,
    SIMGPU_RESULTS(X)
#undef X
};

int look_up(int code, const char *const (&table)[sizeof NUMBERS / sizeof NUMBERS[0]], const char **out) {
    if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
    for (std::size_t i = 0; i < sizeof NUMBERS / sizeof NUMBERS[0]; i++) {
        if (NUMBERS[i] != code) continue;
        *out = table[i];
        return CUDA_SUCCESS;
    }
    *out = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}

int find_symbol(const char *name, void **function) {
    static void *const self = [] {
        Dl_info info;
        dladdr(&NAMES, &info);
        return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    }();
    *function = nullptr;
    // The plain name means the newest version of the function.
    for (const char *suffix : {"_v3", "_v2", ""}) {
        *function = dlsym(self, (std::string(name) + suffix).c_str());
        if (*function != nullptr) return CUDA_SUCCESS;
    }
    return CUDA_ERROR_NOT_FOUND;
}

void destroy_context(int index) {
    State &s = state();
    Device &device = *s.devices[std::size_t(index)];
    for (auto it = s.streams.begin(); it != s.streams.end();) {
        it = it->first->device == unsigned(index) ? s.streams.erase(it) : std::next(it);
    }
    for (auto it = s.modules.begin(); it != s.modules.end();) {
        it = it->first->device == unsigned(index) ? s.modules.erase(it) : std::next(it);
    }
    memory.release_all(unsigned(index));
    device.legacy.queue.clear();
    device.error = 0;
    device.error_told = false;
}

}  // namespace

int simgpu::device_attribute(int attribute, int device) {
    const Settings &s = state().settings;
    if (const auto set = s.attributes.find(attribute); set != s.attributes.end()) return set->second;
    const int capability = s.capability, major = capability / 10;
    switch (attribute) {
        case 1:
        case 2:
        case 3: return 1024;  // threads a block, and in x and y
        case 4: return 64;
        case 5: return 2147483647;  // blocks in x
        case 6:
        case 7: return 65535;
        case 8: return int(simt::MAX_SHARED);
        case 9: return 65536;        // bytes of constants
        case 10: return 32;          // lanes
        case 11: return 2147483647;  // pitch
        case 12:
        case 82: return 65536;  // registers a block, a multiprocessor
        case 13:
        case 36: return 1000;  // kHz: 1 MHz, which no card has
        case 14: return 512;   // alignment of textures
        case 15:
        case 19:
        case 31:
        case 41: return 1;           // overlap, mapped host memory, concurrent kernels, one address space
        case 16: return 8;           // multiprocessors
        case 33: return device + 1;  // PCI bus
        case 37: return 64;          // bits of the memory bus
        case 38: return 4 << 20;     // bytes of second-level cache
        case 39: return capability == 75 ? 1024 : capability == 80 || major == 9 || major == 10 ? 2048 : 1536;
        case 40: return 2;  // copy engines
        case 75: return major;
        case 76: return capability % 10;
        case 78:
        case 79:
        case 80:
        case 115: return 1;  // stream priorities, caches, memory pools
        case 81:
            return capability == 75            ? 64 << 10
                   : capability == 80          ? 164 << 10
                   : major == 8 || major == 12 ? 100 << 10
                                               : 228 << 10;
        case 97:
            return capability == 75            ? 64 << 10
                   : capability == 80          ? 163 << 10
                   : major == 8 || major == 12 ? 99 << 10
                                               : 227 << 10;
        case 106: return capability == 80 || major >= 9 ? 32 : 16;  // blocks a multiprocessor
        case 111: return major >= 8 ? 1024 : 0;                     // shared memory that the system keeps
        default: return attribute > 0 && attribute < 160 ? 0 : -1;
    }
}

SIMGPU_API cuDriverGetVersion(int *version) {
    SIMGPU_ENTER(NOTHING);
    if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *version = state().settings.driver;
    return CUDA_SUCCESS;
}

SIMGPU_API cuGetErrorName(int code, const char **name) { return look_up(code, NAMES, name); }
SIMGPU_API cuGetErrorString(int code, const char **text) { return look_up(code, TEXTS, text); }

SIMGPU_API cuGetProcAddress(const char *name, void **function, int, u64) {
    SIMGPU_ENTER(NOTHING);
    return find_symbol(name, function);
}
SIMGPU_API cuGetProcAddress_v2(const char *name, void **function, int, u64, int *status) {
    SIMGPU_ENTER(NOTHING);
    const int code = find_symbol(name, function);
    if (status != nullptr) *status = code == CUDA_SUCCESS ? 0 : 1;
    return code;
}

SIMGPU_API cuDeviceGetCount(int *count) {
    SIMGPU_ENTER(INITIALISED);
    *count = int(state().devices.size());
    return CUDA_SUCCESS;
}
SIMGPU_API cuDeviceGet(int *device, int ordinal) {
    SIMGPU_ENTER(INITIALISED);
    if (!is_device(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}
SIMGPU_API cuDeviceGetName(char *name, int length, int device) {
    SIMGPU_ENTER(INITIALISED);
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    std::snprintf(name, std::size_t(std::max(length, 0)), "Simulated GPU");
    return CUDA_SUCCESS;
}
SIMGPU_API cuDeviceGetAttribute(int *value, int attribute, int device) {
    SIMGPU_ENTER(INITIALISED);
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    *value = device_attribute(attribute, device);
    return *value < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
SIMGPU_API cuDeviceTotalMem_v2(std::size_t *bytes, int device) {
    SIMGPU_ENTER(INITIALISED);
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    *bytes = memory.limit();
    return CUDA_SUCCESS;
}
SIMGPU_API cuDeviceGetUuid(unsigned char *uuid, int device) {
    SIMGPU_ENTER(INITIALISED);
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    std::memcpy(uuid, "simulated-gpu-00", 16);
    uuid[15] = static_cast<unsigned char>('0' + device);
    return CUDA_SUCCESS;
}
SIMGPU_API cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    SIMGPU_ENTER(INITIALISED);
    return cuDeviceGetUuid(uuid, device);
}
SIMGPU_API cuDeviceGetPCIBusId(char *text, int length, int device) {
    SIMGPU_ENTER(INITIALISED);
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    std::snprintf(text, std::size_t(std::max(length, 0)), "0000:%02x:00.0", device + 1);
    return CUDA_SUCCESS;
}
SIMGPU_API cuDeviceComputeCapability(int *major, int *minor, int device) {
    SIMGPU_ENTER(INITIALISED);
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    *major = state().settings.capability / 10;
    *minor = state().settings.capability % 10;
    return CUDA_SUCCESS;
}

SIMGPU_API cuDevicePrimaryCtxRetain(void **context, int device) {
    SIMGPU_ENTER(INITIALISED);
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    state().devices[std::size_t(device)]->retained++;
    *context = handle_of(device);
    return CUDA_SUCCESS;
}
SIMGPU_API cuDevicePrimaryCtxRelease_v2(int device) {
    SIMGPU_ENTER(INITIALISED);
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    Device &d = *state().devices[std::size_t(device)];
    if (d.retained == 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (--d.retained == 0) destroy_context(device);
    return CUDA_SUCCESS;
}
SIMGPU_API cuDevicePrimaryCtxReset_v2(int device) {
    SIMGPU_ENTER(INITIALISED);
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    destroy_context(device);
    return CUDA_SUCCESS;
}
SIMGPU_API cuDevicePrimaryCtxSetFlags_v2(int device, unsigned flags) {
    SIMGPU_ENTER(INITIALISED);
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    state().devices[std::size_t(device)]->flags = flags;
    return CUDA_SUCCESS;
}
SIMGPU_API cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    SIMGPU_ENTER(INITIALISED);
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    *flags = state().devices[std::size_t(device)]->flags;
    *active = state().devices[std::size_t(device)]->retained > 0;
    return CUDA_SUCCESS;
}

SIMGPU_API cuCtxSetCurrent(void *context) {
    SIMGPU_ENTER(INITIALISED);
    if (context == nullptr) {
        current_device = -1;
        return CUDA_SUCCESS;
    }
    for (std::size_t i = 0; i < state().devices.size(); i++) {
        if (state().devices[i].get() != context || state().devices[i]->retained == 0) continue;
        current_device = int(i);
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_INVALID_CONTEXT;
}
SIMGPU_API cuCtxGetCurrent(void **context) {
    SIMGPU_ENTER(INITIALISED);
    *context = is_device(current_device) ? handle_of(current_device) : nullptr;
    return CUDA_SUCCESS;
}
SIMGPU_API cuCtxGetDevice(int *device) {
    SIMGPU_ENTER(CONTEXT);
    *device = current_device;
    return CUDA_SUCCESS;
}
SIMGPU_API cuCtxSetFlags(unsigned flags) {
    SIMGPU_ENTER(CONTEXT);
    current().flags = flags;
    return CUDA_SUCCESS;
}
SIMGPU_API cuCtxGetApiVersion(void *, unsigned *version) {
    SIMGPU_ENTER(INITIALISED);
    *version = 3020;
    return CUDA_SUCCESS;
}
SIMGPU_API cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    SIMGPU_ENTER(CONTEXT);
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = -5;
    return CUDA_SUCCESS;
}
SIMGPU_API cuCtxSynchronize() {
    SIMGPU_ENTER(CONTEXT);
    if (const int code = refuse_in_capture(nullptr)) return code;
    drain_all();
    return settle();
}
