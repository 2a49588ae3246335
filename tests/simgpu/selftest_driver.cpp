// The driver's side: memory, images, failures on demand, streams, events, graphs.
#include "selftest.h"

namespace {

void test_memory() {
    Session s{{"SIMGPU_MEMORY", "1048576"}};
    std::size_t free = 0, total = 0;
    u64 first, second;
    EXPECT_EQUAL(cuMemAlloc_v2(&first, 1000000), 0);
    EXPECT_EQUAL(cuMemAlloc_v2(&second, 100000), 2);
    EXPECT_EQUAL(cuMemGetInfo_v2(&free, &total), 0);
    EXPECT_EQUAL(total, 1048576u);
    EXPECT_EQUAL(free, 1048576u - 1000448u);
    EXPECT_EQUAL(cuMemFree_v2(first), 0);
    EXPECT_EQUAL(cuMemFree_v2(first), 1);
    EXPECT_EQUAL(cuMemAlloc_v2(&second, 1048576), 0);
    char room[16] = {};
    EXPECT_EQUAL(cuMemcpyHtoD_v2(second + 1048560, room, 16), 0);
    EXPECT_EQUAL(cuMemcpyHtoD_v2(second + 1048561, room, 16), 1);
    EXPECT_EQUAL(cuMemcpyDtoH_v2(room, first + (1ull << 40), 16), 1);
    EXPECT_EQUAL(cuMemcpyDtoH_v2(room, second, 16), 0);
    EXPECT_EQUAL(int(static_cast<unsigned char>(room[3])), 0xFF);  // nobody wrote it
    // Freed and used again many times over: addresses do not run out.
    EXPECT_EQUAL(cuMemFree_v2(second), 0);
    for (int i = 0; i < 5000; i++) {
        if (cuMemAlloc_v2(&first, 700000) != 0 || cuMemFree_v2(first) != 0) {
            EXPECT(false);
            break;
        }
    }
}

void test_images() {
    const auto load = [](const char *version, const char *target) {
        void *module;
        return cuModuleLoadData(&module, ptx(version, target).c_str());
    };
    {
        Session s{{"SIMGPU_DRIVER", "12.1"}};
        EXPECT_EQUAL(load("8.1", "sm_75"), 0);
        EXPECT_EQUAL(load("8.2", "sm_75"), 222);
        EXPECT_EQUAL(load("8.1", "sm_90"), 0);
        EXPECT_EQUAL(load("8.1", "sm_90a"), 0);
        EXPECT_EQUAL(load("8.1", "sm_80a"), 209);
        EXPECT_EQUAL(load("8.1", "sm_100"), 209);
        void *module, *function;
        EXPECT_EQUAL(cuModuleLoadData(&module, "no PTX"), 218);
        EXPECT_EQUAL(cuModuleLoadData(&module,
                                      "\x7f"
                                      "ELF"),
                     200);
        EXPECT_EQUAL(cuModuleGetFunction(&function, s.module, "not_there"), 500);
        const std::string image = ptx() + ".visible .entry host_lacks_it()\n{ ret; }\n.visible .entry fill_index_(";
        EXPECT_EQUAL(cuModuleLoadData(&module, image.c_str()), 0);
        EXPECT_EQUAL(cuModuleGetFunction(&function, module, "host_lacks_it"), 500);
        EXPECT_EQUAL(cuModuleGetFunction(&function, module, "fill_index_"), 500);
        const char *const head =
            ".version 8.1\n.target sm_80\n.visible .entry fill_index(\n.param .u64 fill_index_param_0,\n.param ";
        EXPECT_EQUAL(cuModuleLoadData(&module, (std::string(head) + ".u32 fill_index_param_1\n)").c_str()), 0);
        EXPECT_EQUAL(cuModuleGetFunction(&function, module, "fill_index"), 0);
        EXPECT_EQUAL(cuModuleLoadData(&module, (std::string(head) + ".u64 fill_index_param_1\n)").c_str()), 0);
        EXPECT_EQUAL(cuModuleGetFunction(&function, module, "fill_index"), 200);
    }
    Session s{{"SIMGPU_CAPABILITY", "8.0"}};
    EXPECT_EQUAL(load("8.1", "sm_86"), 209);
    int major = 0;
    EXPECT_EQUAL(cuDeviceGetAttribute(&major, 75, 0), 0);
    EXPECT_EQUAL(major, 8);
}

void test_failures() {
    {
        Session s{{"SIMGPU_FAIL", "cuMemAlloc_v2:2:2,cuLaunchKernel:1:719"}};
        u64 address;
        EXPECT_EQUAL(cuMemAlloc_v2(&address, 128), 0);
        EXPECT_EQUAL(cuMemAlloc_v2(&address, 128), 2);
        EXPECT_EQUAL(cuMemAlloc_v2(&address, 128), 0);
        EXPECT_EQUAL(s.start(nullptr, "fill_index", 1, 32, address, 32), 719);
        EXPECT_EQUAL(cuCtxSynchronize(), 719);
    }
    Session s;
    const u64 out = s.allocate(128);
    EXPECT_EQUAL(s.start(nullptr, "fill_index", 0, 32, out, 32), 1);
    EXPECT_EQUAL(s.start(nullptr, "fill_index", 1, 1025, out, 32), 1);
    EXPECT_EQUAL(s.start(&s, "fill_index", 1, 32, out, 32), 400);
    EXPECT_EQUAL(cuCtxSynchronize(), 0);
    void *function;
    int status;
    EXPECT_EQUAL(cuGetProcAddress_v2("cuMemAlloc", &function, 12000, 0, &status), 0);
    EXPECT(function == reinterpret_cast<void *>(cuMemAlloc_v2));
    EXPECT_EQUAL(cuGetProcAddress_v2("cuNothing", &function, 12000, 0, &status), 500);
    const char *name;
    EXPECT_EQUAL(cuGetErrorName(719, &name), 0);
    EXPECT(std::string(name) == "CUDA_ERROR_LAUNCH_FAILED");
}

void test_no_device() {
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    simgpu_reset();
    EXPECT_EQUAL(cuInit(0), 100);
    unsetenv("CUDA_VISIBLE_DEVICES");
    setenv("SIMGPU_DEVICES", "3", 1);
    for (const auto &[list, expected] : {std::pair{"0", 1}, {"1,0", 2}, {"0,7,1", 1}, {"GPU-1", 1}}) {
        setenv("CUDA_VISIBLE_DEVICES", list, 1);
        simgpu_reset();
        int count = 0;
        EXPECT_EQUAL(cuInit(0), 0);
        EXPECT_EQUAL(cuDeviceGetCount(&count), 0);
        EXPECT_EQUAL(count, expected);
    }
    unsetenv("CUDA_VISIBLE_DEVICES");
    unsetenv("SIMGPU_DEVICES");
    simgpu_reset();
    void *context;
    EXPECT_EQUAL(cuDevicePrimaryCtxRetain(&context, 0), 3);
    u64 address;
    EXPECT_EQUAL(cuInit(0), 0);
    EXPECT_EQUAL(cuMemAlloc_v2(&address, 16), 201);
}

// A result that was not waited for is there at once, unless SIMGPU_DELAY shows that nobody waited.
void test_delay() {
    for (const char *delay : {"0", "1"}) {
        Session s{{"SIMGPU_DELAY", delay}};
        const int early = delay[0] == '0' ? 31 : -1;
        void *stream, *pinned;
        EXPECT_EQUAL(cuStreamCreate(&stream, 1), 0);
        EXPECT_EQUAL(cuMemHostAlloc(&pinned, 128, 0), 0);
        int *values = static_cast<int *>(pinned);
        values[31] = -1;
        const u64 out = s.allocate(128);
        EXPECT_EQUAL(s.start(stream, "fill_index", 1, 32, out, 32), 0);
        EXPECT_EQUAL(cuMemcpyDtoHAsync_v2(values, out, 128, stream), 0);
        EXPECT_EQUAL(values[31], early);
        EXPECT_EQUAL(cuMemcpyDtoH_v2(values, out, 4), 0);  // the default stream does not wait for this one
        EXPECT_EQUAL(values[31], early);
        EXPECT_EQUAL(cuStreamSynchronize(stream), 0);
        EXPECT_EQUAL(values[31], 31);
        // Pinned memory is read when the copy runs, pageable memory before the call returns.
        std::vector<int> pageable(32, 5);
        EXPECT_EQUAL(cuMemcpyHtoDAsync_v2(out, values, 64, stream), 0);
        EXPECT_EQUAL(cuMemcpyHtoDAsync_v2(out + 64, pageable.data(), 64, stream), 0);
        values[0] = 77;
        pageable[0] = 77;
        EXPECT_EQUAL(cuStreamSynchronize(stream), 0);
        EXPECT_EQUAL(s.download<int>(out, 1)[0], delay[0] == '0' ? 0 : 77);
        EXPECT_EQUAL(s.download<int>(out + 64, 1)[0], 5);
        // The default stream waits for a blocking stream.
        void *blocking;
        EXPECT_EQUAL(cuStreamCreate(&blocking, 0), 0);
        EXPECT_EQUAL(cuMemsetD32Async(out, 9, 32, blocking), 0);
        EXPECT_EQUAL(s.download<int>(out, 1)[0], 9);
        EXPECT_EQUAL(cuStreamDestroy_v2(blocking), 0);
        EXPECT_EQUAL(cuMemFreeHost(pinned), 0);
    }
}

void test_events() {
    for (const char *delay : {"0", "1"}) {
        Session s{{"SIMGPU_DELAY", delay}};
        void *one, *two, *start, *end;
        EXPECT_EQUAL(cuStreamCreate(&one, 1), 0);
        EXPECT_EQUAL(cuStreamCreate(&two, 1), 0);
        EXPECT_EQUAL(cuEventCreate(&start, 0), 0);
        EXPECT_EQUAL(cuEventCreate(&end, 0), 0);
        const u64 out = s.allocate(128);
        EXPECT_EQUAL(cuEventRecord(start, one), 0);
        for (int i = 0; i < 3; i++) EXPECT_EQUAL(s.start(one, "fill_index", 1, 32, out, 32), 0);
        EXPECT_EQUAL(cuEventRecord(end, one), 0);
        float milliseconds = 0;
        if (delay[0] == '1') {
            EXPECT_EQUAL(cuEventElapsedTime(&milliseconds, start, end), 600);
            EXPECT_EQUAL(cuEventQuery(end), 600);
        }
        EXPECT_EQUAL(cuEventQuery(end), 0);
        EXPECT_EQUAL(cuEventElapsedTime(&milliseconds, start, end), 0);
        EXPECT_EQUAL(milliseconds, 3.0f);
        // The second stream waits for the first one's event.
        EXPECT_EQUAL(cuMemsetD32Async(out, 8, 32, one), 0);
        EXPECT_EQUAL(cuEventRecord(end, one), 0);
        EXPECT_EQUAL(cuStreamWaitEvent(two, end, 0), 0);
        EXPECT_EQUAL(cuMemsetD32Async(out, 9, 16, two), 0);
        EXPECT_EQUAL(cuStreamSynchronize(two), 0);
        const std::vector<int> got = s.download<int>(out, 32);
        EXPECT_EQUAL(got[0], 9);
        EXPECT_EQUAL(got[31], 8);
    }
}

void test_graphs() {
    for (const char *delay : {"0", "1"}) {
        Session s{{"SIMGPU_DELAY", delay}};
        void *stream, *graph, *executable;
        EXPECT_EQUAL(cuStreamCreate(&stream, 1), 0);
        const u64 x = s.upload(std::vector<float>(100, 2.0f)), y = s.upload(std::vector<float>(100, 1.0f));
        EXPECT_EQUAL(cuStreamBeginCapture_v2(stream, 1), 0);
        for (int i = 0; i < 2; i++) EXPECT_EQUAL(s.start(stream, "axpy", 1, 128, y, x, 0.5f, 100), 0);
        EXPECT_EQUAL(cuStreamEndCapture(stream, &graph), 0);
        EXPECT_EQUAL(cuGraphInstantiateWithFlags(&executable, graph, 0), 0);
        EXPECT_EQUAL(cuGraphDestroy(graph), 0);
        EXPECT_EQUAL(s.download<float>(y, 1)[0], 1.0f);  // captured, not run
        for (int i = 0; i < 3; i++) EXPECT_EQUAL(cuGraphLaunch(executable, stream), 0);
        EXPECT_EQUAL(cuStreamSynchronize(stream), 0);
        EXPECT_EQUAL(s.download<float>(y, 100)[99], 7.0f);
        EXPECT_EQUAL(simgpu_count("graph_launches"), 3u);
        EXPECT_EQUAL(simgpu_count("graph_nodes"), 6u);
        EXPECT_EQUAL(simgpu_count("axpy"), 6u);
        EXPECT_EQUAL(cuGraphExecDestroy(executable), 0);
        // Waiting and allocating break a capture.
        u64 address;
        EXPECT_EQUAL(cuStreamBeginCapture_v2(stream, 1), 0);
        EXPECT_EQUAL(cuMemAlloc_v2(&address, 16), 900);
        EXPECT_EQUAL(cuStreamEndCapture(stream, &graph), 901);
        EXPECT_EQUAL(cuStreamBeginCapture_v2(stream, 1), 0);
        EXPECT_EQUAL(cuStreamSynchronize(stream), 900);
        EXPECT_EQUAL(s.start(stream, "axpy", 1, 128, y, x, 0.5f, 100), 901);
        EXPECT_EQUAL(cuStreamEndCapture(stream, &graph), 901);
        EXPECT_EQUAL(cuStreamSynchronize(stream), 0);
    }
}

}  // namespace

void test_driver() {
    test_memory();
    test_images();
    test_failures();
    test_no_device();
}

void test_streams() {
    test_delay();
    test_events();
    test_graphs();
}
