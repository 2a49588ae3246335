// Driver API: streams, events, capture, graphs.
#include "driver.h"

using namespace simgpu;

namespace {

template <class T>
T *find(std::map<T *, std::unique_ptr<T>> &table, void *handle) {
    const auto found = table.find(static_cast<T *>(handle));
    return found == table.end() ? nullptr : found->first;
}

template <class T>
T *add(std::map<T *, std::unique_ptr<T>> &table, std::unique_ptr<T> owner) {
    T *handle = owner.get();
    table[handle] = std::move(owner);
    return handle;
}

int create_stream(void **handle, unsigned flags) {
    if (handle == nullptr || flags > 1) return CUDA_ERROR_INVALID_VALUE;
    auto stream = std::make_unique<Stream>();
    stream->device = unsigned(current_device);
    stream->blocking = flags == 0;
    *handle = add(state().streams, std::move(stream));
    return CUDA_SUCCESS;
}

// `external`: inside of a capture, too, the event is recorded each time that the graph runs.
int record(void *event_handle, void *stream_handle, bool external) {
    Event *event = find(state().events, event_handle);
    Stream *stream;
    if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if (const int code = find_stream(stream_handle, &stream)) return code;
    event->stream = stream;
    event->capture = nullptr;
    if (stream->capture != nullptr && !external) {
        if (stream->capture_broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        event->capture = stream->capture;
        return CUDA_SUCCESS;
    }
    Operation op;
    op.kind = Operation::RECORD;
    op.event = event;
    op.record = event->recorded = ++state().records;
    return submit(*stream, std::move(op));
}

int instantiate(void **executable, void *handle) {
    const Graph *graph = find(state().graphs, handle);
    if (graph == nullptr || executable == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *executable = add(state().graphs, std::make_unique<Graph>(*graph));
    return CUDA_SUCCESS;
}

// An event that has not happened. With SIMGPU_DELAY, asking makes the stream run, so that asking again ends.
bool is_pending(Event &event) {
    if (event.completed >= event.recorded || event.stream == nullptr) return false;
    drain(*event.stream);
    return true;
}

}  // namespace

SIMGPU_API cuStreamCreate(void **stream, unsigned flags) {
    SIMGPU_ENTER(CONTEXT);
    return create_stream(stream, flags);
}
SIMGPU_API cuStreamCreateWithPriority(void **stream, unsigned flags, int) {
    SIMGPU_ENTER(CONTEXT);
    return create_stream(stream, flags);
}
SIMGPU_API cuStreamDestroy_v2(void *handle) {
    SIMGPU_ENTER(CONTEXT);
    Stream *stream = find(state().streams, handle);
    if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    drain(*stream);
    for (const auto &[event, owner] : state().events) {
        if (event->stream == stream) event->stream = nullptr;
    }
    state().streams.erase(stream);
    return CUDA_SUCCESS;
}
SIMGPU_API cuStreamSynchronize(void *handle) {
    SIMGPU_ENTER(CONTEXT);
    Stream *stream;
    if (const int code = find_stream(handle, &stream)) return code;
    if (stream->capture != nullptr) return refuse_in_capture(stream);
    drain(*stream);
    return settle();
}
SIMGPU_API cuStreamQuery(void *handle) {
    SIMGPU_ENTER(CONTEXT);
    Stream *stream;
    if (const int code = find_stream(handle, &stream)) return code;
    if (stream->capture != nullptr) return refuse_in_capture(stream);
    if (stream->queue.empty()) return settle();
    drain(*stream);
    return CUDA_ERROR_NOT_READY;
}
SIMGPU_API cuStreamWaitEvent(void *handle, void *event_handle, unsigned) {
    SIMGPU_ENTER(CONTEXT, true);
    Event *event = find(state().events, event_handle);
    Stream *stream;
    if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if (const int code = find_stream(handle, &stream)) return code;
    if (event->capture != nullptr) {
        const Stream *from = event->stream;
        if (from == nullptr || from->capture != event->capture) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        stream->capture = event->capture;
        stream->capture_mode = from->capture_mode;
        return CUDA_SUCCESS;
    }
    if (event->recorded == 0 || stream->capture != nullptr) return CUDA_SUCCESS;
    Operation op;
    op.kind = Operation::WAIT;
    op.event = event;
    op.record = event->recorded;
    return submit(*stream, std::move(op));
}
SIMGPU_API cuStreamGetFlags(void *handle, unsigned *flags) {
    SIMGPU_ENTER(CONTEXT);
    Stream *stream;
    if (const int code = find_stream(handle, &stream)) return code;
    *flags = stream->blocking ? 0 : 1;
    return CUDA_SUCCESS;
}
SIMGPU_API cuLaunchHostFunc(void *handle, void (*call)(void *), void *data) {
    SIMGPU_ENTER(CONTEXT, true);
    Stream *stream;
    if (const int code = find_stream(handle, &stream)) return code;
    Operation op;
    op.kind = Operation::CALL;
    op.call = call;
    op.data = data;
    return submit(*stream, std::move(op));
}

SIMGPU_API cuEventCreate(void **event, unsigned flags) {
    SIMGPU_ENTER(CONTEXT);
    auto made = std::make_unique<Event>();
    made->timed = !(flags & 2);
    *event = add(state().events, std::move(made));
    state().counts.events++;
    return CUDA_SUCCESS;
}
SIMGPU_API cuEventDestroy_v2(void *handle) {
    SIMGPU_ENTER(CONTEXT);
    Event *event = find(state().events, handle);
    if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    is_pending(*event);
    state().events.erase(event);
    return CUDA_SUCCESS;
}
SIMGPU_API cuEventRecord(void *event, void *stream) {
    SIMGPU_ENTER(CONTEXT, true);
    return record(event, stream, false);
}
SIMGPU_API cuEventRecordWithFlags(void *event, void *stream, unsigned flags) {
    SIMGPU_ENTER(CONTEXT, true);
    return record(event, stream, flags & 1);
}
SIMGPU_API cuEventQuery(void *handle) {
    SIMGPU_ENTER(CONTEXT);
    Event *event = find(state().events, handle);
    if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    return is_pending(*event) ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}
SIMGPU_API cuEventSynchronize(void *handle) {
    SIMGPU_ENTER(CONTEXT);
    Event *event = find(state().events, handle);
    if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    is_pending(*event);
    return settle();
}

namespace {
// The virtual clock: one operation of the device, of whatever size, counts as one millisecond.
int elapsed(float *milliseconds, void *start_handle, void *end_handle) {
    Event *start = find(state().events, start_handle), *end = find(state().events, end_handle);
    if (start == nullptr || end == nullptr || !start->timed || !end->timed) return CUDA_ERROR_INVALID_HANDLE;
    if (start->recorded == 0 || end->recorded == 0) return CUDA_ERROR_INVALID_HANDLE;
    if (start->completed < start->recorded || end->completed < end->recorded) return CUDA_ERROR_NOT_READY;
    *milliseconds = float(i64(end->clock - start->clock));
    return CUDA_SUCCESS;
}
}  // namespace

SIMGPU_API cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    SIMGPU_ENTER(CONTEXT);
    return elapsed(milliseconds, start, end);
}
SIMGPU_API cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) {
    SIMGPU_ENTER(CONTEXT);
    return elapsed(milliseconds, start, end);
}

SIMGPU_API cuStreamBeginCapture_v2(void *handle, int mode) {
    SIMGPU_ENTER(CONTEXT);
    Stream *stream;
    if (const int code = find_stream(handle, &stream)) return code;
    if (stream == &current().legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture != nullptr) return CUDA_ERROR_ILLEGAL_STATE;
    stream->capture = add(state().graphs, std::make_unique<Graph>());
    stream->capture_origin = true;
    stream->capture_broken = false;
    stream->capture_mode = mode;
    return CUDA_SUCCESS;
}
SIMGPU_API cuStreamEndCapture(void *handle, void **graph) {
    SIMGPU_ENTER(CONTEXT);
    Stream *stream;
    if (const int code = find_stream(handle, &stream)) return code;
    if (stream->capture == nullptr || !stream->capture_origin) return CUDA_ERROR_ILLEGAL_STATE;
    Graph *captured = stream->capture;
    bool broken = false;
    for (const auto &[other, owner] : state().streams) {
        if (other->capture != captured) continue;
        broken |= other->capture_broken;
        other->capture = nullptr;
        other->capture_origin = other->capture_broken = false;
    }
    if (broken) state().graphs.erase(captured);
    *graph = broken ? nullptr : captured;
    return broken ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
}
SIMGPU_API cuStreamIsCapturing(void *handle, int *status) {
    SIMGPU_ENTER(CONTEXT);
    Stream *stream;
    if (const int code = find_stream(handle, &stream)) return code;
    *status = stream->capture == nullptr ? 0 : stream->capture_broken ? 2 : 1;
    return CUDA_SUCCESS;
}
SIMGPU_API cuThreadExchangeStreamCaptureMode(int *mode) {
    SIMGPU_ENTER(INITIALISED);
    static __thread int now;
    std::swap(now, *mode);
    return CUDA_SUCCESS;
}

SIMGPU_API cuGraphInstantiateWithFlags(void **executable, void *graph, u64) {
    SIMGPU_ENTER(CONTEXT);
    return instantiate(executable, graph);
}
SIMGPU_API cuGraphInstantiate_v2(void **executable, void *graph, void **, char *, std::size_t) {
    SIMGPU_ENTER(CONTEXT);
    return instantiate(executable, graph);
}
SIMGPU_API cuGraphLaunch(void *executable, void *handle) {
    SIMGPU_ENTER(CONTEXT, true);
    const Graph *graph = find(state().graphs, executable);
    Stream *stream;
    if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (const int code = find_stream(handle, &stream)) return code;
    return replay(*stream, *graph);
}
SIMGPU_API cuGraphUpload(void *executable, void *) {
    SIMGPU_ENTER(CONTEXT);
    return find(state().graphs, executable) == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
SIMGPU_API cuGraphGetNodes(void *handle, void **, std::size_t *count) {
    SIMGPU_ENTER(CONTEXT);
    const Graph *graph = find(state().graphs, handle);
    if (graph == nullptr || count == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *count = graph->operations.size();
    return CUDA_SUCCESS;
}
SIMGPU_API cuGraphExecDestroy(void *executable) {
    SIMGPU_ENTER(CONTEXT);
    return state().graphs.erase(static_cast<Graph *>(executable)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
SIMGPU_API cuGraphDestroy(void *graph) {
    SIMGPU_ENTER(CONTEXT);
    return state().graphs.erase(static_cast<Graph *>(graph)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
