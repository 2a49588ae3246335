// The environment's settings.
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "driver.h"

namespace simgpu {
namespace {

std::string variable(const char *name, const char *otherwise) {
    const char *value = std::getenv(name);
    return value != nullptr && value[0] != 0 ? value : otherwise;
}

[[noreturn]] void reject(const char *name, const std::string &value, const char *form) {
    std::fprintf(stderr, "simulated GPU: %s=%s is not %s\n", name, value.c_str(), form);
    std::_Exit(2);
}

u64 number(const char *name, const char *otherwise) {
    const std::string text = variable(name, otherwise);
    char *end = nullptr;
    const u64 value = std::strtoull(text.c_str(), &end, 0);
    if (*end != 0) reject(name, text, "a number");
    return value;
}

// "9.0" as 90 with `scale` 10, "12.8" as 12080 with 1000.
int version(const char *name, const char *otherwise, int scale) {
    const std::string text = variable(name, otherwise);
    int major = 0, minor = 0;
    char rest = 0;
    if (std::sscanf(text.c_str(), "%d.%d%c", &major, &minor, &rest) != 2) reject(name, text, "MAJOR.MINOR");
    return major * scale + minor * (scale / 100 > 0 ? scale / 100 : 1);
}

std::vector<std::string> split(const std::string &text, char separator) {
    std::vector<std::string> parts;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = std::min(text.find(separator, at), text.size());
        parts.push_back(text.substr(at, end - at));
        at = end + 1;
    }
    return parts;
}

// As the driver counts: indices in order, up to the first that does not exist. Names are taken as one device each.
unsigned visible(unsigned devices) {
    const char *list = std::getenv("CUDA_VISIBLE_DEVICES");
    if (list == nullptr) return devices;
    unsigned count = 0;
    for (const std::string &part : split(list, ',')) {
        char *end = nullptr;
        const long index = std::strtol(part.c_str(), &end, 10);
        const bool named = part.rfind("GPU-", 0) == 0;
        if (!named && (end == part.c_str() || index < 0 || index >= long(devices))) break;
        count++;
    }
    return std::min(count, devices);
}

}  // namespace

Settings read_settings() {
    Settings s;
    s.driver = version("SIMGPU_DRIVER", "12.8", 1000);
    s.capability = version("SIMGPU_CAPABILITY", "9.0", 10);
    s.devices = visible(unsigned(std::min<u64>(number("SIMGPU_DEVICES", "1"), 8)));
    s.memory = number("SIMGPU_MEMORY", "4294967296");
    const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
    s.threads = unsigned(std::max<u64>(1, number("SIMGPU_THREADS", std::to_string(cores).c_str())));
#ifdef SIMGPU_CHECKS
    s.threads = 1;  // the shadow memory has no locks, and blocks in turn make its findings repeatable
#endif
    s.seed = number("SIMGPU_SEED", "0");
    s.delay = number("SIMGPU_DELAY", "0") != 0;
    s.report = variable("SIMGPU_REPORT", "");
    for (const std::string &part : split(variable("SIMGPU_ATTRIBUTES", ""), ',')) {
        int attribute = 0, value = 0;
        if (std::sscanf(part.c_str(), "%d:%d", &attribute, &value) != 2)
            reject("SIMGPU_ATTRIBUTES", part, "NUMBER:VALUE");
        s.attributes[attribute] = value;
    }
    for (const std::string &part : split(variable("SIMGPU_FAIL", ""), ',')) {
        const std::vector<std::string> fields = split(part, ':');
        if (fields.size() != 3) reject("SIMGPU_FAIL", part, "FUNCTION:CALL:CODE");
        s.failures.push_back(
            {fields[0], std::strtoull(fields[1].c_str(), nullptr, 10), std::atoi(fields[2].c_str())});
    }
    return s;
}

}  // namespace simgpu
