// The stand-in for NVML.
#include <unistd.h>

#include <fstream>

#include "selftest.h"

extern "C" {
int nvmlInit_v2();
int nvmlShutdown();
int nvmlDeviceGetCount_v2(unsigned *);
int nvmlDeviceGetHandleByIndex_v2(unsigned, void **);
int nvmlDeviceGetHandleByUUID(const char *, void **);
int nvmlDeviceGetHandleByPciBusId_v2(const char *, void **);
int nvmlDeviceGetUUID(void *, char *, unsigned);
int nvmlDeviceGetPowerUsage(void *, unsigned *);
int nvmlDeviceGetTotalEnergyConsumption(void *, u64 *);
int nvmlDeviceGetEccMode(void *, unsigned *, unsigned *);
int nvmlDeviceGetMigMode(void *, unsigned *, unsigned *);
int nvmlDeviceGetComputeRunningProcesses_v3(void *, unsigned *, void *);
}

void test_management() {
    char path[] = "/tmp/simgpu-nvml-XXXXXX";
    close(mkstemp(path));
    const auto write = [&](const char *text) { std::ofstream(path) << text; };
    setenv("SIMGPU_NVML", path, 1);

    write("init=!9\n");
    EXPECT_EQUAL(nvmlInit_v2(), 9);
    write("devices=2\npower_mw=70000\n1.power_mw=80000\nenergy_mj=!15\nprocesses=self:1000,13:?\n");
    EXPECT_EQUAL(nvmlInit_v2(), 0);
    unsigned count = 0, power = 0;
    void *first, *second, *found;
    EXPECT_EQUAL(nvmlDeviceGetCount_v2(&count), 0);
    EXPECT_EQUAL(count, 2u);
    EXPECT_EQUAL(nvmlDeviceGetHandleByIndex_v2(0, &first), 0);
    EXPECT_EQUAL(nvmlDeviceGetHandleByIndex_v2(1, &second), 0);
    EXPECT_EQUAL(nvmlDeviceGetHandleByIndex_v2(2, &found), 2);
    EXPECT_EQUAL(nvmlDeviceGetPowerUsage(first, &power), 0);
    EXPECT_EQUAL(power, 70000u);
    EXPECT_EQUAL(nvmlDeviceGetPowerUsage(second, &power), 0);
    EXPECT_EQUAL(power, 80000u);

    char uuid[80];
    EXPECT_EQUAL(nvmlDeviceGetUUID(second, uuid, sizeof uuid), 0);
    EXPECT_EQUAL(nvmlDeviceGetHandleByUUID(uuid, &found), 0);
    EXPECT(found == second);
    EXPECT_EQUAL(nvmlDeviceGetHandleByPciBusId_v2("0000:02:00.0", &found), 0);
    EXPECT(found == second);
    EXPECT_EQUAL(nvmlDeviceGetHandleByPciBusId_v2("0000:09:00.0", &found), 6);

    struct {
        unsigned id;
        u64 bytes;
        unsigned instances[2];
    } processes[4];
    count = 1;
    EXPECT_EQUAL(nvmlDeviceGetComputeRunningProcesses_v3(first, &count, processes), 7);
    EXPECT_EQUAL(count, 2u);
    EXPECT_EQUAL(nvmlDeviceGetComputeRunningProcesses_v3(first, &count, processes), 0);
    EXPECT_EQUAL(processes[0].id, unsigned(getpid()));
    EXPECT_EQUAL(processes[0].bytes, 1000u);
    EXPECT_EQUAL(processes[1].id, 13u);
    EXPECT_EQUAL(processes[1].bytes, ~0ull);

    u64 energy = 0;
    EXPECT_EQUAL(nvmlDeviceGetTotalEnergyConsumption(first, &energy), 15);
    write("energy_mj=5000\n");  // read again at each call
    EXPECT_EQUAL(nvmlDeviceGetTotalEnergyConsumption(first, &energy), 0);
    EXPECT_EQUAL(energy, 5000u);
    write("energy_mj=5000+250\necc_mode=1\nmig_mode=!3\n");
    for (u64 expected : {5000u, 5250u, 5500u}) {
        EXPECT_EQUAL(nvmlDeviceGetTotalEnergyConsumption(first, &energy), 0);
        EXPECT_EQUAL(energy, expected);
    }
    unsigned mode = 0, pending = 0;
    EXPECT_EQUAL(nvmlDeviceGetEccMode(first, &mode, &pending), 0);
    EXPECT_EQUAL(mode + pending, 2u);
    EXPECT_EQUAL(nvmlDeviceGetMigMode(first, &mode, &pending), 3);
    EXPECT_EQUAL(nvmlDeviceGetPowerUsage(first, &power), 3);
    EXPECT_EQUAL(nvmlShutdown(), 0);
    EXPECT_EQUAL(nvmlDeviceGetPowerUsage(first, &power), 1);
    unsetenv("SIMGPU_NVML");
    unlink(path);
}
