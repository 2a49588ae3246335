// The driver's state behind the `cu…` functions: settings, devices, streams, events, modules, graphs.
//
// One lock guards everything (`Call`). Kernels run while it is held, so one operation runs at a time.
#pragma once
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "runner.h"

namespace simgpu {

#define SIMGPU_RESULTS(X)                                                                                       \
    X(SUCCESS, 0, "no error")                                                                                   \
    X(ERROR_INVALID_VALUE, 1, "invalid argument")                                                               \
    X(ERROR_OUT_OF_MEMORY, 2, "out of memory")                                                                  \
    X(ERROR_NOT_INITIALIZED, 3, "initialization error")                                                         \
    X(ERROR_DEINITIALIZED, 4, "driver shutting down")                                                           \
    X(ERROR_DEVICE_UNAVAILABLE, 46, "CUDA-capable device(s) is/are busy or unavailable")                        \
    X(ERROR_NO_DEVICE, 100, "no CUDA-capable device is detected")                                               \
    X(ERROR_INVALID_DEVICE, 101, "invalid device ordinal")                                                      \
    X(ERROR_INVALID_IMAGE, 200, "device kernel image is invalid")                                               \
    X(ERROR_INVALID_CONTEXT, 201, "invalid device context")                                                     \
    X(ERROR_NO_BINARY_FOR_GPU, 209, "no kernel image is available for execution on the device")                 \
    X(ERROR_ECC_UNCORRECTABLE, 214, "uncorrectable ECC error encountered")                                      \
    X(ERROR_INVALID_PTX, 218, "a PTX JIT compilation failed")                                                   \
    X(ERROR_UNSUPPORTED_PTX_VERSION, 222, "the provided PTX was compiled with an unsupported toolchain.")       \
    X(ERROR_INVALID_HANDLE, 400, "invalid resource handle")                                                     \
    X(ERROR_NOT_FOUND, 500, "named symbol not found")                                                           \
    X(ERROR_NOT_READY, 600, "device not ready")                                                                 \
    X(ERROR_ILLEGAL_ADDRESS, 700, "an illegal memory access was encountered")                                   \
    X(ERROR_LAUNCH_OUT_OF_RESOURCES, 701, "too many resources requested for launch")                            \
    X(ERROR_LAUNCH_TIMEOUT, 702, "the launch timed out and was terminated")                                     \
    X(ERROR_HOST_MEMORY_ALREADY_REGISTERED, 712, "part or all of the requested memory range is already mapped") \
    X(ERROR_HOST_MEMORY_NOT_REGISTERED, 713, "pointer does not correspond to a registered memory region")       \
    X(ERROR_HARDWARE_STACK_ERROR, 714, "hardware stack error")                                                  \
    X(ERROR_ILLEGAL_INSTRUCTION, 715, "an illegal instruction was encountered")                                 \
    X(ERROR_MISALIGNED_ADDRESS, 716, "misaligned address")                                                      \
    X(ERROR_INVALID_ADDRESS_SPACE, 717, "operation not supported on global/shared address space")               \
    X(ERROR_INVALID_PC, 718, "invalid program counter")                                                         \
    X(ERROR_LAUNCH_FAILED, 719, "unspecified launch failure")                                                   \
    X(ERROR_NOT_SUPPORTED, 801, "operation not supported")                                                      \
    X(ERROR_STREAM_CAPTURE_UNSUPPORTED, 900, "operation not permitted when stream is capturing")                \
    X(ERROR_STREAM_CAPTURE_INVALIDATED, 901, "operation failed due to a previous error during capture")         \
    X(ERROR_STREAM_CAPTURE_IMPLICIT, 906,                                                                       \
      "operation would make the legacy stream depend on a capturing blocking stream")                           \
    X(ERROR_ILLEGAL_STATE, 401, "the operation cannot be performed in the present state")                       \
    X(ERROR_UNKNOWN, 999, "unknown error")

enum Result : int {
#define X(name, number, text) CUDA_##name = number,
    SIMGPU_RESULTS(X)
#undef X
};

// What the environment asks for, read by `cuInit` and `simgpu_reset`.
struct Settings {
    int driver = 12080;              // SIMGPU_DRIVER=12.8
    int capability = 90;             // SIMGPU_CAPABILITY=9.0
    unsigned devices = 1;            // SIMGPU_DEVICES, less those that CUDA_VISIBLE_DEVICES hides
    std::size_t memory = 4ul << 30;  // SIMGPU_MEMORY, bytes a device
    unsigned threads = 1;            // SIMGPU_THREADS
    u64 seed = 0;                    // SIMGPU_SEED
    bool delay = false;              // SIMGPU_DELAY=1
    std::string report;              // SIMGPU_REPORT
    std::map<int, int> attributes;   // SIMGPU_ATTRIBUTES=16:132,…: device attributes by number
    struct Failure {
        std::string function;
        u64 call;
        int code;
    };
    std::vector<Failure> failures;  // SIMGPU_FAIL=function:call:code,…
};
Settings read_settings();

struct KernelCounts {
    u64 launches = 0, blocks = 0, threads = 0;
    simt::Counters operations;
    std::size_t shared_bytes = 0;
    // With checks.
    u64 shared_requests = 0, shared_conflicts = 0, global_requests = 0, global_sectors = 0, global_bytes = 0;
    u64 distinct_sectors = 0;
};

struct Counts {
    std::map<std::string, KernelCounts> kernels;
    u64 host_to_device = 0, device_to_host = 0, device_to_device = 0;  // bytes
    u64 allocations = 0, frees = 0, peak_bytes = 0, graph_launches = 0, graph_nodes = 0, events = 0, operations = 0;
    std::vector<std::string> findings;
};

struct Event {
    u64 recorded = 0;   // the record's number, 0 if never recorded
    u64 completed = 0;  // the last record that has run
    u64 clock = 0;      // operations that the device had run by then
    bool timed = true;
    struct Stream *stream = nullptr;
    struct Graph *capture = nullptr;  // recorded in this capture: a stream that waits for it joins
};

struct Function {
    std::string name;
    const simt::Kernel *kernel = nullptr;
    int dynamic_shared = 48 << 10;
};

struct Operation {
    enum Kind {
        LAUNCH,
        TO_DEVICE,
        TO_HOST,
        ON_DEVICE,
        FILL8,
        FILL16,
        FILL32,
        RECORD,
        WAIT,
        FREE,
        CALL
    } kind = LAUNCH;
    u64 sequence = 0;  // among all that were queued
    // LAUNCH
    Function *function = nullptr;
    simt::Dim grid{}, block{};
    std::vector<char> params;  // one after the other, each at a multiple of 16
    // Copies, fills and FREE. `staged` holds what a copy from pageable memory took along.
    u64 target = 0, source = 0;
    std::size_t count = 0;
    unsigned value = 0;
    std::vector<char> staged;
    // RECORD and WAIT
    Event *event = nullptr;
    u64 record = 0;
    // CALL
    void (*call)(void *) = nullptr;
    void *data = nullptr;
};

struct Graph {
    std::vector<Operation> operations;
};

struct Stream {
    unsigned device = 0;
    bool blocking = true;  // with respect to the legacy default stream
    std::deque<Operation> queue;
    Graph *capture = nullptr;  // being captured into
    bool capture_broken = false, capture_origin = false;
    int capture_mode = 0;
};

struct Module {
    std::string text;
    unsigned device = 0;
    std::vector<std::unique_ptr<Function>> functions;
};

struct Device {
    unsigned retained = 0;  // of its primary context
    unsigned flags = 0;
    int error = 0;  // sticky: the context is lost
    bool error_told = false;
    Stream legacy;
};

struct HostRange {
    std::size_t bytes;
    bool owned;
};

struct State {
    std::recursive_mutex mutex;
    bool initialised = false, settings_read = false;
    Settings settings;
    Counts counts;
    std::vector<std::unique_ptr<Device>> devices;
    std::map<Stream *, std::unique_ptr<Stream>> streams;
    std::map<Event *, std::unique_ptr<Event>> events;
    std::map<Module *, std::unique_ptr<Module>> modules;
    std::map<Graph *, std::unique_ptr<Graph>> graphs;  // graphs and executable graphs
    std::map<u64, HostRange> pinned;
    u64 records = 0, sequence = 0;
};
// Never destroyed: the program may call until the very end.
State &state();

// The current context of the calling thread: its device, or -1.
extern __thread int current_device;

// An exported function: how often it was called.
struct Entry {
    const char *name;
    u64 calls = 0;
    Entry *next;
    explicit Entry(const char *name);
};
extern Entry *entries;

enum Needs { NOTHING, INITIALISED, CONTEXT };

// Holds the lock for one call, counts it, and refuses it where SIMGPU_FAIL says so or something is missing.
class Call {
  public:
    // `starts`: the call only adds to a stream, so that it need not tell of an error that no call has told yet.
    Call(Entry &entry, Needs needs, bool starts = false);
    int result = CUDA_SUCCESS;

  private:
    std::lock_guard<std::recursive_mutex> lock_;
};

#define SIMGPU_API extern "C" __attribute__((visibility("default"))) int
#define SIMGPU_ENTER(...)                  \
    static Entry entry_(__func__);         \
    const Call call_(entry_, __VA_ARGS__); \
    if (call_.result) return call_.result

Device &current();
// Numbers are those of `CUdevice_attribute`. -1 for an unknown one.
int device_attribute(int attribute, int device);
bool is_pinned(u64 address, std::size_t bytes);
bool is_sticky(int code);
void lose_context(Device &device, int code, const std::string &why);

// Streams. `nullptr`, 1 and 2 are the default stream.
int find_stream(void *handle, Stream **stream);
// Runs, queues or captures.
int submit(Stream &stream, Operation operation);
int launch(Stream &stream, Function &function, simt::Dim grid, simt::Dim block, void **params);
int replay(Stream &stream, const Graph &graph);
// Runs what is queued up to a record of an event that is in the same queue.
void drain_until(Stream &stream, const Event &event, u64 record);
void drain(Stream &stream);
void drain_all();
// After waiting: red zones and the sticky error.
int settle();
// An error where the calling thread may not wait or allocate because of a capture.
int refuse_in_capture(Stream *stream);

void write_report();

}  // namespace simgpu
