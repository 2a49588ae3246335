// A stand-in for libnvidia-ml: its readings come from the file that SIMGPU_NVML names.
//
// The file has a `key=value` a line, and is read again at each call, so that a test can change a reading while the
// program runs. `1.power_mw=…` is for the second device alone.
//
//   power_mw=70000         the value
//   energy_mj=5000+250     250 more at each call: 5000, 5250, 5500, …
//   power_mw=!15           the call returns that error (15: the GPU is lost)
//   processes=self:4096,42:1048576,43:?    IDs and bytes; `self` is this program, `?` an unknown size; `none`
//
// A key that is missing makes the call return NOT_SUPPORTED; name, UUID and PCI address have those of the simulated
// driver.
#include <strings.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

namespace {

typedef unsigned long long u64;

enum Result : int {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
};

constexpr unsigned MOST_DEVICES = 8;
char handles[MOST_DEVICES];  // a device's handle is the address of its place
int initialised;             // calls of nvmlInit less calls of nvmlShutdown

std::map<std::string, std::string> read_file() {
    std::map<std::string, std::string> values;
    const char *path = std::getenv("SIMGPU_NVML");
    if (path == nullptr) return values;
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        const std::size_t equals = line.find('=');
        if (line[0] != '#' && equals != std::string::npos) values[line.substr(0, equals)] = line.substr(equals + 1);
    }
    return values;
}

// The text of a key, of a device if `device` is not -1.
int read(const char *key, int device, std::string *text) {
    if (initialised == 0) return UNINITIALIZED;
    const auto values = read_file();
    auto found = values.find(std::to_string(device) + "." + key);
    if (found == values.end()) found = values.find(key);
    if (found == values.end() || found->second.empty()) return NOT_SUPPORTED;
    if (found->second[0] == '!') return std::atoi(found->second.c_str() + 1);
    *text = found->second;
    return SUCCESS;
}

unsigned device_count() {
    std::string text;
    const char *simulated = std::getenv("SIMGPU_DEVICES");
    const int count = read("devices", -1, &text) == SUCCESS ? std::atoi(text.c_str())
                      : simulated                           ? std::atoi(simulated)
                                                            : 1;
    return count < 0 ? 0 : unsigned(count) > MOST_DEVICES ? MOST_DEVICES : unsigned(count);
}

int index_of(const void *handle) {
    const std::size_t index = std::size_t(static_cast<const char *>(handle) - handles);
    return index < MOST_DEVICES ? int(index) : -1;
}

// The number of a text: `5000`, `0x20`, or `5000+250`, which rises with each call.
u64 number_of(const char *key, const std::string &text) {
    char *rest;
    const u64 number = std::strtoull(text.c_str(), &rest, 0);
    if (*rest != '+') return number;
    static std::mutex lock;
    static std::map<std::string, u64> calls;
    const std::lock_guard<std::mutex> guard(lock);
    return number + std::strtoull(rest + 1, nullptr, 0) * calls[key]++;
}

template <class T>
int read_number(const char *key, const void *handle, T *out) {
    const int device = index_of(handle);
    if (initialised == 0) return UNINITIALIZED;
    if (device < 0 || out == nullptr) return INVALID_ARGUMENT;
    std::string text;
    const int code = read(key, device, &text);
    if (code == SUCCESS) *out = T(number_of(key, text));
    return code;
}

int copy_text(const std::string &text, char *out, unsigned length) {
    if (out == nullptr) return INVALID_ARGUMENT;
    if (text.size() + 1 > length) return INSUFFICIENT_SIZE;
    std::memcpy(out, text.c_str(), text.size() + 1);
    return SUCCESS;
}

std::string text_or(const char *key, int device, const std::string &otherwise) {
    std::string text;
    return read(key, device, &text) == SUCCESS ? text : otherwise;
}

std::string name_of(int device) { return text_or("name", device, "Simulated GPU"); }

std::string uuid_of(int device) {
    return text_or("uuid", device, "GPU-73696d75-6c61-7465-642d-6770752d303" + std::to_string(device));
}

std::string pci_of(int device) {
    char text[32];
    std::snprintf(text, sizeof text, "00000000:%02X:00.0", device + 1);
    return text_or("pci_bus_id", device, text);
}

// Without the domain, which some write with four digits and some with eight.
std::string bus_part(const std::string &pci) {
    const std::size_t colon = pci.find(':');
    return colon != std::string::npos && pci.find(':', colon + 1) != std::string::npos ? pci.substr(colon + 1)
                                                                                       : pci;
}

template <class Matches>
int find_device(void **handle, Matches matches) {
    if (initialised == 0) return UNINITIALIZED;
    for (unsigned i = 0; i < device_count(); i++) {
        if (!matches(int(i))) continue;
        *handle = &handles[i];
        return SUCCESS;
    }
    return NOT_FOUND;
}

struct Memory {
    u64 total, free, used;
};
struct MemoryV2 {
    unsigned version;
    u64 total, reserved, free, used;
};

int read_memory(const void *handle, Memory *memory, u64 *reserved) {
    if (const int code = read_number("memory_total", handle, &memory->total)) return code;
    if (const int code = read_number("memory_used", handle, &memory->used)) return code;
    if (read_number("memory_reserved", handle, reserved) != SUCCESS) *reserved = 0;
    memory->free = memory->total - memory->used - *reserved;
    return SUCCESS;
}

struct Process {
    unsigned id;
    u64 bytes;
    unsigned gpu_instance, compute_instance;
};

int read_processes(const char *key, const void *handle, unsigned *count, Process *out) {
    const int device = index_of(handle);
    if (initialised == 0) return UNINITIALIZED;
    if (device < 0 || count == nullptr) return INVALID_ARGUMENT;
    std::string text;
    if (const int code = read(key, device, &text)) return code;
    std::vector<Process> processes;
    std::istringstream list(text);
    for (std::string part; std::getline(list, part, ',');) {
        const std::size_t colon = part.find(':');
        if (colon == std::string::npos) continue;
        const std::string id = part.substr(0, colon), bytes = part.substr(colon + 1);
        processes.push_back({id == "self" ? unsigned(getpid()) : unsigned(std::stoul(id)),
                             bytes == "?" ? ~0ull : std::stoull(bytes), ~0u, ~0u});
    }
    const unsigned room = *count;
    *count = unsigned(processes.size());
    if (room < processes.size()) return INSUFFICIENT_SIZE;
    for (std::size_t i = 0; i < processes.size(); i++) out[i] = processes[i];
    return SUCCESS;
}

struct PciInfo {
    char legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};

const char *error_text(int code) {
    switch (code) {
        case SUCCESS: return "The operation was successful";
        case UNINITIALIZED: return "NVML was not first initialized with nvmlInit()";
        case INVALID_ARGUMENT: return "A supplied argument is invalid";
        case NOT_SUPPORTED: return "The requested operation is not available on target device";
        case NOT_FOUND: return "A query to find an object was unsuccessful";
        case INSUFFICIENT_SIZE: return "An input argument is not large enough";
        case DRIVER_NOT_LOADED: return "NVIDIA driver is not loaded";
        case GPU_IS_LOST: return "The GPU has fallen off the bus or has otherwise become inaccessible";
        default: return "An internal driver error occurred";
    }
}

// Clocks by `nvmlClockType_t`.
const char *const CLOCKS[] = {"clock_graphics_mhz", "clock_sm_mhz", "clock_memory_mhz", "clock_video_mhz"};
const char *const MOST_CLOCKS[] = {"max_clock_graphics_mhz", "max_clock_sm_mhz", "max_clock_memory_mhz",
                                   "max_clock_video_mhz"};

int initialise() {
    std::string text;
    initialised++;
    const int code = read("init", -1, &text);
    if (code == SUCCESS || code == NOT_SUPPORTED) return SUCCESS;
    initialised--;
    return code;
}

}  // namespace

#define NVML_API extern "C" __attribute__((visibility("default"))) int

NVML_API nvmlInit_v2() { return initialise(); }
NVML_API nvmlInitWithFlags(unsigned) { return initialise(); }
NVML_API nvmlShutdown() {
    if (initialised == 0) return UNINITIALIZED;
    initialised--;
    return SUCCESS;
}
extern "C" __attribute__((visibility("default"))) const char *nvmlErrorString(int code) { return error_text(code); }

#define DEFINE_TEXT(function, key)                                    \
    NVML_API function(char *out, unsigned length) {                   \
        std::string text;                                             \
        const int code = read(key, -1, &text);                        \
        return code == SUCCESS ? copy_text(text, out, length) : code; \
    }
DEFINE_TEXT(nvmlSystemGetDriverVersion, "driver_version")
DEFINE_TEXT(nvmlSystemGetNVMLVersion, "nvml_version")

NVML_API nvmlSystemGetCudaDriverVersion_v2(int *version) {
    std::string text;
    const int code = read("cuda_driver_version", -1, &text);
    if (code == SUCCESS) *version = std::atoi(text.c_str());
    return code;
}
NVML_API nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

NVML_API nvmlDeviceGetCount_v2(unsigned *count) {
    if (initialised == 0) return UNINITIALIZED;
    *count = device_count();
    return SUCCESS;
}
NVML_API nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if (initialised == 0) return UNINITIALIZED;
    if (index >= device_count()) return INVALID_ARGUMENT;
    *handle = &handles[index];
    return SUCCESS;
}
NVML_API nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    return find_device(handle, [&](int device) { return uuid_of(device) == uuid; });
}
NVML_API nvmlDeviceGetHandleByPciBusId_v2(const char *pci, void **handle) {
    const std::string wanted = bus_part(pci);
    return find_device(handle, [&](int d) { return strcasecmp(bus_part(pci_of(d)).c_str(), wanted.c_str()) == 0; });
}

NVML_API nvmlDeviceGetIndex(void *handle, unsigned *index) {
    if (index_of(handle) < 0) return INVALID_ARGUMENT;
    *index = unsigned(index_of(handle));
    return SUCCESS;
}

#define DEFINE_NAME(function, name_of_device)                                                       \
    NVML_API function(void *handle, char *out, unsigned length) {                                   \
        const int device = index_of(handle);                                                        \
        return device < 0 ? int(INVALID_ARGUMENT) : copy_text(name_of_device(device), out, length); \
    }
DEFINE_NAME(nvmlDeviceGetName, name_of)
DEFINE_NAME(nvmlDeviceGetUUID, uuid_of)

NVML_API nvmlDeviceGetPciInfo_v3(void *handle, PciInfo *info) {
    if (index_of(handle) < 0) return INVALID_ARGUMENT;
    const std::string pci = pci_of(index_of(handle));
    std::memset(info, 0, sizeof *info);
    if (std::sscanf(pci.c_str(), "%x:%x:%x", &info->domain, &info->bus, &info->device) != 3) return NOT_SUPPORTED;
    std::snprintf(info->legacy, sizeof info->legacy, "%04x:%02x:%02x.0", info->domain & 0xFFFF, info->bus & 0xFF,
                  info->device & 0xFF);
    std::snprintf(info->bus_id, sizeof info->bus_id, "%s", pci.c_str());
    return SUCCESS;
}

NVML_API nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    u64 reserved;
    return read_memory(handle, memory, &reserved);
}
NVML_API nvmlDeviceGetMemoryInfo_v2(void *handle, MemoryV2 *memory) {
    if (memory->version != (sizeof *memory | 2u << 24)) return INVALID_ARGUMENT;
    Memory read{};
    const int code = read_memory(handle, &read, &memory->reserved);
    memory->total = read.total;
    memory->free = read.free;
    memory->used = read.used;
    return code;
}

// Functions that give one number.
#define DEFINE_NUMBER(function, type, key) \
    NVML_API function(void *handle, type *out) { return read_number(key, handle, out); }
DEFINE_NUMBER(nvmlDeviceGetPowerUsage, unsigned, "power_mw")
DEFINE_NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned, "power_limit_mw")
DEFINE_NUMBER(nvmlDeviceGetPowerManagementLimit, unsigned, "power_limit_mw")
DEFINE_NUMBER(nvmlDeviceGetTotalEnergyConsumption, u64, "energy_mj")
DEFINE_NUMBER(nvmlDeviceGetFanSpeed, unsigned, "fan_percent")
DEFINE_NUMBER(nvmlDeviceGetPerformanceState, unsigned, "performance_state")
DEFINE_NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, u64, "throttle_reasons")
DEFINE_NUMBER(nvmlDeviceGetCurrentClocksEventReasons, u64, "throttle_reasons")
DEFINE_NUMBER(nvmlDeviceGetPersistenceMode, unsigned, "persistence_mode")

// Functions that give a mode, and the one after the next start, which is the same here.
#define DEFINE_MODE(function, key)                                          \
    NVML_API function(void *handle, unsigned *current, unsigned *pending) { \
        const int code = read_number(key, handle, current);                 \
        if (code == SUCCESS) *pending = *current;                           \
        return code;                                                        \
    }
DEFINE_MODE(nvmlDeviceGetMigMode, "mig_mode")
DEFINE_MODE(nvmlDeviceGetEccMode, "ecc_mode")

NVML_API nvmlDeviceGetClockInfo(void *handle, unsigned type, unsigned *megahertz) {
    return type < 4 ? read_number(CLOCKS[type], handle, megahertz) : int(INVALID_ARGUMENT);
}
NVML_API nvmlDeviceGetMaxClockInfo(void *handle, unsigned type, unsigned *megahertz) {
    return type < 4 ? read_number(MOST_CLOCKS[type], handle, megahertz) : int(INVALID_ARGUMENT);
}
NVML_API nvmlDeviceGetTemperature(void *handle, unsigned sensor, unsigned *celsius) {
    return sensor == 0 ? read_number("temperature_c", handle, celsius) : int(INVALID_ARGUMENT);
}
NVML_API nvmlDeviceGetUtilizationRates(void *handle, unsigned *gpu_and_memory) {
    if (const int code = read_number("utilization_gpu", handle, &gpu_and_memory[0])) return code;
    return read_number("utilization_memory", handle, &gpu_and_memory[1]);
}
NVML_API nvmlDeviceIsMigDeviceHandle(void *handle, unsigned *is_mig) {
    if (index_of(handle) < 0) return INVALID_ARGUMENT;
    *is_mig = 0;
    return SUCCESS;
}
NVML_API nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    std::string text;
    if (index_of(handle) < 0) return INVALID_ARGUMENT;
    if (const int code = read("capability", index_of(handle), &text)) return code;
    return std::sscanf(text.c_str(), "%d.%d", major, minor) == 2 ? SUCCESS : NOT_SUPPORTED;
}

#define DEFINE_PROCESSES(function, key) \
    NVML_API function(void *handle, unsigned *count, Process *out) { return read_processes(key, handle, count, out); }
DEFINE_PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, "processes")
DEFINE_PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, "processes")
DEFINE_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics_processes")
