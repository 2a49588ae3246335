// Driver API: modules, functions, launches, occupancy.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "driver.h"
#include "memory.h"
#include "ptx.h"

using namespace simgpu;

namespace {

// Numbers of `CUjit_option`.
constexpr int ERROR_LOG = 5, ERROR_LOG_BYTES = 6;

struct Log {
    char *text = nullptr;
    std::size_t bytes = 0;
    void write(const std::string &message) const {
        std::fprintf(stderr, "simulated GPU: %s\n", message.c_str());
        if (text != nullptr && bytes > 0) std::snprintf(text, bytes, "%s", message.c_str());
    }
};

int load(void **handle, const void *image, const Log &log) {
    if (handle == nullptr || image == nullptr) return CUDA_ERROR_INVALID_VALUE;
    const Settings &s = state().settings;
    const std::string text = static_cast<const char *>(image);
    Ptx ptx;
    if (!parse_ptx(text, &ptx)) {
        log.write("the image is no PTX text with .version and .target");
        return text.empty() || !std::isprint(static_cast<unsigned char>(text[0])) ? CUDA_ERROR_INVALID_IMAGE
                                                                                  : CUDA_ERROR_INVALID_PTX;
    }
    const auto version = [](int tenths) { return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10); };
    const int newest = newest_ptx(s.driver);
    if (ptx.version > newest) {
        log.write("the PTX has version " + version(ptx.version) + ", and this driver reads up to " +
                  version(newest));
        return CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
    }
    if (ptx.target > s.capability || (ptx.exact && ptx.target != s.capability)) {
        log.write("the PTX is for capability " + version(ptx.target) + ", and the card has " +
                  version(s.capability));
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    }
    auto module = std::make_unique<Module>();
    module->text = text;
    module->device = unsigned(current_device);
    Module *loaded = module.get();
    state().modules[loaded] = std::move(module);
    *handle = loaded;
    return CUDA_SUCCESS;
}

Function *find_function(void *handle) {
    for (const auto &[module, owner] : state().modules) {
        for (const auto &function : module->functions) {
            if (function.get() == handle) return function.get();
        }
    }
    return nullptr;
}

bool same_parameters(const Function &function, const std::vector<unsigned> &sizes) {
    if (sizes.empty()) return true;  // a test's PTX may leave them out
    const simt::Kernel &kernel = *function.kernel;
    return sizes.size() == kernel.count && std::equal(sizes.begin(), sizes.end(), kernel.sizes);
}

int check_launch(const Function &function, simt::Dim grid, simt::Dim block, unsigned dynamic_shared) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 2147483647 || grid.y > 65535 || grid.z > 65535) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (block.x == 0 || block.x > simt::MAX_THREADS || block.y != 1 || block.z != 1)
        return CUDA_ERROR_INVALID_VALUE;
    if (dynamic_shared > unsigned(function.dynamic_shared)) return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}

int start(void *function_handle, simt::Dim grid, simt::Dim block, unsigned dynamic_shared, void *stream_handle,
          void **params, void **extra) {
    Function *function = find_function(function_handle);
    if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    Stream *stream;
    if (const int code = find_stream(stream_handle, &stream)) return code;
    if (extra != nullptr) return CUDA_ERROR_NOT_SUPPORTED;
    if (params == nullptr && function->kernel->count != 0) return CUDA_ERROR_INVALID_VALUE;
    if (const int code = check_launch(*function, grid, block, dynamic_shared)) return code;
    return launch(*stream, *function, grid, block, params);
}

int occupancy(int *blocks, void *handle, int threads, std::size_t dynamic_shared) {
    const Function *function = find_function(handle);
    if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if (blocks == nullptr || threads <= 0 || threads > int(simt::MAX_THREADS)) return CUDA_ERROR_INVALID_VALUE;
    const int resident = device_attribute(39, current_device), most = device_attribute(106, current_device);
    const int shared = device_attribute(81, current_device);
    *blocks = std::min(most, resident / ((threads + 31) / 32 * 32));
    const std::size_t need = state().counts.kernels[function->name].shared_bytes + dynamic_shared + 1024;
    *blocks = std::min<int>(*blocks, int(std::size_t(shared) / need));
    return CUDA_SUCCESS;
}

}  // namespace

SIMGPU_API cuModuleLoadData(void **module, const void *image) {
    SIMGPU_ENTER(CONTEXT);
    return load(module, image, Log());
}
SIMGPU_API cuModuleLoadDataEx(void **module, const void *image, unsigned count, int *options, void **values) {
    SIMGPU_ENTER(CONTEXT);
    Log log;
    for (unsigned i = 0; i < count; i++) {
        if (options[i] == ERROR_LOG) log.text = static_cast<char *>(values[i]);
        if (options[i] == ERROR_LOG_BYTES) log.bytes = reinterpret_cast<std::size_t>(values[i]);
    }
    return load(module, image, log);
}
SIMGPU_API cuModuleUnload(void *module) {
    SIMGPU_ENTER(CONTEXT);
    drain_all();
    return state().modules.erase(static_cast<Module *>(module)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
SIMGPU_API cuModuleGetFunction(void **handle, void *module_handle, const char *name) {
    SIMGPU_ENTER(CONTEXT);
    const auto found = state().modules.find(static_cast<Module *>(module_handle));
    if (found == state().modules.end()) return CUDA_ERROR_INVALID_HANDLE;
    Module &module = *found->first;
    std::vector<unsigned> sizes;
    if (!find_entry(module.text, name, &sizes)) return CUDA_ERROR_NOT_FOUND;
    for (const auto &function : module.functions) {
        if (function->name != name) continue;
        *handle = function.get();
        return CUDA_SUCCESS;
    }
    auto function = std::make_unique<Function>();
    function->name = name;
    function->kernel = simt::find_kernel(name);
    if (function->kernel == nullptr) {
        std::fprintf(stderr, "simulated GPU: the PTX has a kernel %s, which was not compiled for the host\n", name);
        return CUDA_ERROR_NOT_FOUND;
    }
    if (!same_parameters(*function, sizes)) {
        std::fprintf(stderr, "simulated GPU: kernel %s has other parameters in the PTX than on the host\n", name);
        return CUDA_ERROR_INVALID_IMAGE;
    }
    *handle = function.get();
    module.functions.push_back(std::move(function));
    return CUDA_SUCCESS;
}

// Numbers are those of `CUfunction_attribute`.
SIMGPU_API cuFuncGetAttribute(int *value, int attribute, void *handle) {
    SIMGPU_ENTER(CONTEXT);
    const Function *function = find_function(handle);
    if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    switch (attribute) {
        case 0: *value = int(simt::MAX_THREADS); return CUDA_SUCCESS;
        case 1: *value = int(state().counts.kernels[function->name].shared_bytes); return CUDA_SUCCESS;
        case 2:
        case 3:
        case 7: *value = 0; return CUDA_SUCCESS;
        case 4: *value = 32; return CUDA_SUCCESS;  // registers, which only a compiler knows
        case 5:
        case 6: *value = state().settings.capability; return CUDA_SUCCESS;
        case 8: *value = function->dynamic_shared; return CUDA_SUCCESS;
        case 9: *value = -1; return CUDA_SUCCESS;
        default: return CUDA_ERROR_INVALID_VALUE;
    }
}
SIMGPU_API cuFuncSetAttribute(void *handle, int attribute, int value) {
    SIMGPU_ENTER(CONTEXT);
    Function *function = find_function(handle);
    if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if (attribute == 9) return CUDA_SUCCESS;
    if (attribute != 8 || value < 0 || value > device_attribute(97, current_device))
        return CUDA_ERROR_INVALID_VALUE;
    function->dynamic_shared = value;
    return CUDA_SUCCESS;
}
SIMGPU_API cuFuncSetCacheConfig(void *handle, int) {
    SIMGPU_ENTER(CONTEXT);
    return find_function(handle) == nullptr ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}

SIMGPU_API cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned dynamic_shared, void *stream, void **params,
                          void **extra) {
    SIMGPU_ENTER(CONTEXT, true);
    return start(function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, dynamic_shared, stream, params,
                 extra);
}

namespace {
struct LaunchConfig {  // CUlaunchConfig
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, dynamic_shared;
    void *stream;
    void *attributes;
    unsigned count;
};
}  // namespace

SIMGPU_API cuLaunchKernelEx(const void *config, void *function, void **params, void **extra) {
    SIMGPU_ENTER(CONTEXT, true);
    const LaunchConfig &c = *static_cast<const LaunchConfig *>(config);
    return start(function, {c.grid_x, c.grid_y, c.grid_z}, {c.block_x, c.block_y, c.block_z}, c.dynamic_shared,
                 c.stream, params, extra);
}

SIMGPU_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads,
                                                       std::size_t shared) {
    SIMGPU_ENTER(CONTEXT);
    return occupancy(blocks, function, threads, shared);
}
SIMGPU_API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, void *function, int threads,
                                                                std::size_t shared, unsigned) {
    SIMGPU_ENTER(CONTEXT);
    return occupancy(blocks, function, threads, shared);
}
