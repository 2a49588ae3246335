// Counts: `simgpu_count` for tests in the same process, and the file of SIMGPU_REPORT.
#include <cstdio>
#include <cstring>

#include "driver.h"

namespace simgpu {
namespace {

u64 count_of(const std::string &name) {
    const Counts &c = state().counts;
    u64 launches = 0, blocks = 0;
    for (const auto &[kernel, counts] : c.kernels) {
        launches += counts.launches;
        blocks += counts.blocks;
        if (name == kernel) return counts.launches;
    }
    for (const Entry *entry = entries; entry != nullptr; entry = entry->next) {
        if (name == entry->name) return entry->calls;
    }
    if (name == "launches") return launches;
    if (name == "blocks") return blocks;
    if (name == "host_to_device") return c.host_to_device;
    if (name == "device_to_host") return c.device_to_host;
    if (name == "device_to_device") return c.device_to_device;
    if (name == "allocations") return c.allocations;
    if (name == "frees") return c.frees;
    if (name == "peak_bytes") return c.peak_bytes;
    if (name == "events") return c.events;
    if (name == "operations") return c.operations;
    if (name == "graph_launches") return c.graph_launches;
    if (name == "graph_nodes") return c.graph_nodes;
    if (name == "findings") return c.findings.size();
#ifdef SIMGPU_CHECKS
    if (name == "checks") return 1;
#endif
    const std::size_t dot = name.rfind('.');
    const auto kernel = c.kernels.find(name.substr(0, dot == std::string::npos ? 0 : dot));
    if (kernel == c.kernels.end()) return 0;
    const KernelCounts &k = kernel->second;
    const std::string field = name.substr(dot + 1);
    if (field == "blocks") return k.blocks;
    if (field == "threads") return k.threads;
    if (field == "shuffles") return k.operations.shuffles;
    if (field == "votes") return k.operations.votes;
    if (field == "products") return k.operations.products;
    if (field == "warp_barriers") return k.operations.warp_barriers;
    if (field == "block_barriers") return k.operations.block_barriers;
    if (field == "shared_bytes") return k.shared_bytes;
    if (field == "shared_requests") return k.shared_requests;
    if (field == "shared_conflicts") return k.shared_conflicts;
    if (field == "global_requests") return k.global_requests;
    if (field == "global_sectors") return k.global_sectors;
    if (field == "global_bytes") return k.global_bytes;
    if (field == "distinct_sectors") return k.distinct_sectors;
    return 0;
}

std::string quoted(const std::string &text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        if (static_cast<unsigned char>(c) >= 0x20) out += c;
    }
    return out + '"';
}

// Writes an object of numbers, one member a line.
class Object {
  public:
    explicit Object(std::FILE *file, const char *indent) : file_(file), indent_(indent) { std::fputs("{", file_); }
    std::FILE *member(const std::string &name) {
        std::fprintf(file_, "%s\n%s%s: ", first_ ? "" : ",", indent_, quoted(name).c_str());
        first_ = false;
        return file_;
    }
    void number(const std::string &name, u64 value) { std::fprintf(member(name), "%llu", value); }
    void end(const char *indent) { std::fprintf(file_, "\n%s}", indent); }

  private:
    std::FILE *file_;
    const char *indent_;
    bool first_ = true;
};

void write_kernel(std::FILE *file, const std::string &name, const KernelCounts &counts) {
    Object kernel(file, "      ");
    kernel.number("launches", counts.launches);
    for (const char *field : {"blocks", "threads", "shuffles", "votes", "products", "warp_barriers",
                              "block_barriers", "shared_bytes"}) {
        kernel.number(field, count_of(name + "." + field));
    }
#ifdef SIMGPU_CHECKS
    for (const char *field : {"shared_requests", "shared_conflicts", "global_requests", "global_sectors",
                              "global_bytes", "distinct_sectors"}) {
        kernel.number(field, count_of(name + "." + field));
    }
#endif
    kernel.end("    ");
}

}  // namespace

void write_report() {
    State &s = state();
    if (s.settings.report.empty()) return;
    std::FILE *file = std::fopen(s.settings.report.c_str(), "w");
    if (file == nullptr) {
        std::fprintf(stderr, "simulated GPU: failed to write %s\n", s.settings.report.c_str());
        return;
    }
    Object top(file, "  ");
    for (const char *name :
         {"launches", "blocks", "operations", "graph_launches", "graph_nodes", "host_to_device", "device_to_host",
          "device_to_device", "allocations", "frees", "peak_bytes", "events"}) {
        top.number(name, count_of(name));
    }
    Object calls(top.member("calls"), "    ");
    for (const Entry *entry = entries; entry != nullptr; entry = entry->next) {
        if (entry->calls != 0) calls.number(entry->name, entry->calls);
    }
    calls.end("  ");
    Object kernels(top.member("kernels"), "    ");
    for (const auto &[name, counts] : s.counts.kernels) write_kernel(kernels.member(name), name, counts);
    kernels.end("  ");
    top.member("findings");
    std::fputs("[", file);
    for (std::size_t i = 0; i < s.counts.findings.size(); i++) {
        std::fprintf(file, "%s\n    %s", i == 0 ? "" : ",", quoted(s.counts.findings[i]).c_str());
    }
    std::fputs("]", file);
    top.end("");
    std::fputs("\n", file);
    std::fclose(file);
}

namespace {
struct AtExit {
    ~AtExit() { write_report(); }
} at_exit;
}  // namespace

}  // namespace simgpu

// A counter by name: a call (`cuMemAlloc_v2`), the launches of a kernel, `kernel.field`, or a member of the report.
// 0 for an unknown name.
extern "C" __attribute__((visibility("default"))) u64 simgpu_count(const char *name) {
    const std::lock_guard<std::recursive_mutex> lock(simgpu::state().mutex);
    return simgpu::count_of(name);
}
