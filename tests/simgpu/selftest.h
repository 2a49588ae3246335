// What the simulator's own tests share: the driver's functions and a session on a fresh simulated card.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <map>
#include <string>
#include <vector>

typedef unsigned long long u64;

extern "C" {
int cuInit(unsigned);
int cuDriverGetVersion(int *);
int cuDeviceGetCount(int *);
int cuDeviceGet(int *, int);
int cuDeviceGetAttribute(int *, int, int);
int cuDevicePrimaryCtxRetain(void **, int);
int cuDevicePrimaryCtxRelease_v2(int);
int cuCtxSetCurrent(void *);
int cuCtxSynchronize();
int cuGetErrorName(int, const char **);
int cuGetProcAddress_v2(const char *, void **, int, u64, int *);
int cuMemAlloc_v2(u64 *, std::size_t);
int cuMemFree_v2(u64);
int cuMemGetInfo_v2(std::size_t *, std::size_t *);
int cuMemHostAlloc(void **, std::size_t, unsigned);
int cuMemFreeHost(void *);
int cuMemcpyHtoD_v2(u64, const void *, std::size_t);
int cuMemcpyDtoH_v2(void *, u64, std::size_t);
int cuMemcpyHtoDAsync_v2(u64, const void *, std::size_t, void *);
int cuMemcpyDtoHAsync_v2(void *, u64, std::size_t, void *);
int cuMemsetD8_v2(u64, unsigned char, std::size_t);
int cuMemsetD32Async(u64, unsigned, std::size_t, void *);
int cuModuleLoadData(void **, const void *);
int cuModuleGetFunction(void **, void *, const char *);
int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **,
                   void **);
int cuStreamCreate(void **, unsigned);
int cuStreamDestroy_v2(void *);
int cuStreamSynchronize(void *);
int cuStreamWaitEvent(void *, void *, unsigned);
int cuStreamBeginCapture_v2(void *, int);
int cuStreamEndCapture(void *, void **);
int cuGraphInstantiateWithFlags(void **, void *, u64);
int cuGraphLaunch(void *, void *);
int cuGraphExecDestroy(void *);
int cuGraphDestroy(void *);
int cuEventCreate(void **, unsigned);
int cuEventRecord(void *, void *);
int cuEventQuery(void *);
int cuEventElapsedTime(float *, void *, void *);
u64 simgpu_count(const char *);
void simgpu_reset();
}

// Reports the expectation if it does not hold. The run goes on, and fails at its end.
void expect(bool holds, const char *file, int line, const std::string &what);
#define EXPECT(condition) expect(condition, __FILE__, __LINE__, #condition)
#define EXPECT_EQUAL(value, expected) expect_equal(value, expected, __FILE__, __LINE__, #value)
template <class A, class B>
void expect_equal(const A &value, const B &expected, const char *file, int line, const char *what) {
    expect(value == A(expected), file, line,
           std::string(what) + " is " + std::to_string(value) + ", expected " + std::to_string(expected));
}

extern const bool CHECKS;  // whether this is the instrumented build

// A fresh simulated card with these variables set, and the kernels of `selftest.cu`.
class Session {
  public:
    explicit Session(std::initializer_list<std::pair<const char *, const char *>> variables = {});
    ~Session();

    // An array on the device, filled with `values`.
    template <class T>
    u64 upload(const std::vector<T> &values) {
        const u64 address = allocate(values.size() * sizeof(T));
        EXPECT_EQUAL(cuMemcpyHtoD_v2(address, values.data(), values.size() * sizeof(T)), 0);
        return address;
    }
    template <class T>
    std::vector<T> download(u64 address, std::size_t count) {
        std::vector<T> values(count);
        EXPECT_EQUAL(cuMemcpyDtoH_v2(values.data(), address, count * sizeof(T)), 0);
        return values;
    }
    u64 allocate(std::size_t bytes);
    void *function(const std::string &name);

    // Launches on a stream, and returns the launch's result.
    template <class... P>
    int start(void *stream, const std::string &name, unsigned blocks, unsigned threads, P... params) {
        void *pointers[] = {&params..., nullptr};
        return cuLaunchKernel(function(name), blocks, 1, 1, threads, 1, 1, 0, stream, pointers, nullptr);
    }
    // Launches, waits, and returns the result of waiting.
    template <class... P>
    int run(const std::string &name, unsigned blocks, unsigned threads, P... params) {
        EXPECT_EQUAL(start(nullptr, name, blocks, threads, params...), 0);
        return cuCtxSynchronize();
    }

    void *module = nullptr;

  private:
    std::vector<std::string> set_;
};

// The PTX that names the kernels, without code.
std::string ptx(const char *version = "8.1", const char *target = "sm_80");

void test_kernels();
void test_mistakes();
void test_checks();
void test_driver();
void test_streams();
void test_management();
