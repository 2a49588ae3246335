// Shadow memory: who wrote and who read each byte, and in which interval between barriers.
//
// Threads run one after the other here, so a race shows as two accesses that no barrier orders, whatever the order
// in which they ran. What is not seen: a race on a page of device memory that no kernel wrote before, where the
// blocks that read come first; it is seen at the next launch.
#include "checks.h"

#include <link.h>
#include <sys/mman.h>

#include <cstdlib>
#include <set>
#include <vector>

#include "accesses.h"

namespace checks {
namespace {

using simgpu::PAGE;
using simt::here;
using simt::worker;
using simt::Worker;

// Intervals are numbered on and on: each launch, block and barrier of a block starts one. 0 is before all.
u32 interval = 1, launch_start = 1, block_start = 1;
u32 warp_interval[simt::MAX_WARPS];

// The last write and the last reads of one byte. `reader` is the last thread that read, `second` a warp that read
// in the same interval before and is another than the reader's.
struct Cell {
    u32 written = 0, written_warp = 0;  // intervals of the block and of the warp
    u32 read = 0, read_warp = 0;
    u32 second_read = 0;
    u32 other_block_read = 0;  // the last interval of an earlier block that read
    std::uint16_t writer = 0, reader = 0;
    std::uint8_t second_warp = 0;
    bool several_lanes = false;  // of the reader's warp, in `read_warp`
};

Cell shared_cells[simt::MAX_SHARED];

u64 base;
std::size_t reserved;
u32 *page_owner;                         // allocation number a page, 0 for none
std::vector<simgpu::Allocation> owners;  // by that number
std::uint8_t *written_bits;              // one a byte
Cell **page_cells;                       // the cells of a page, once a kernel has written there

struct Image {
    u64 start = 0, end = 0;
} image;  // of this library, with the kernels' constant tables

std::set<std::pair<std::uintptr_t, int>> told;  // findings of this launch, by instruction and kind
enum Finding { UNINITIALISED_SHARED, UNINITIALISED_DEVICE, SHARED_RACE, DEVICE_RACE };

template <class T>
T *reserve(std::size_t count) {
    void *room = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) std::abort();
    return static_cast<T *>(room);
}

int find_image(dl_phdr_info *info, std::size_t, void *) {
    u64 start = ~0ull, end = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
        const u64 from = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
        start = std::min<u64>(start, from);
        end = std::max<u64>(end, from + info->dlpi_phdr[i].p_memsz);
    }
    const u64 own = reinterpret_cast<u64>(&image);
    if (own < start || own >= end) return 0;
    image.start = start;
    image.end = end;
    return 1;
}

bool is_written(u64 offset) { return written_bits[offset / 8] >> (offset % 8) & 1; }

bool first_of_kind(std::uintptr_t site, Finding kind) {
    return told.size() < 32 && told.insert({site, kind}).second;
}

struct Access {
    u64 address;
    unsigned bytes;
    bool write;
    bool shared;  // by the threads of a block alone
    std::uintptr_t site;
    const char *verb() const { return write ? "writes" : "reads"; }
    // Where in this library the instruction is, for addr2line.
    u64 place() const { return site - 1 - image.start; }
};

// The rival of a race. Empty if the access is in order.
struct Rival {
    const char *verb = nullptr;
    bool other_block = false;
    unsigned thread = 0;
};

// Whether a thread's access in (interval, warp interval) is not ordered before the running thread's.
bool is_concurrent(u32 when, u32 when_warp, unsigned thread) {
    const unsigned self = here.thread.x;
    if (when != interval || thread == self) return false;
    return thread / 32 != self / 32 || when_warp == warp_interval[self / 32];
}

bool is_other_block(u32 when) { return when >= launch_start && when < block_start; }

Rival find_rival(const Cell &cell, const Access &access) {
    const bool write = access.write, device = !access.shared;
    const unsigned warp = here.thread.x / 32;
    if (device && is_other_block(cell.written)) return {"wrote", true, 0};
    if (is_concurrent(cell.written, cell.written_warp, cell.writer)) return {"wrote", false, cell.writer};
    if (!write) return {};
    if (device && (is_other_block(cell.read) || is_other_block(cell.other_block_read))) return {"read", true, 0};
    if (is_concurrent(cell.read, cell.read_warp, cell.reader)) return {"read", false, cell.reader};
    if (cell.read == interval && cell.several_lanes && cell.read_warp == warp_interval[warp]) {
        return {"read", false, (cell.reader & ~31u) + (cell.reader % 32 == 0)};
    }
    if (cell.second_read == interval && cell.second_warp != warp) return {"read", false, cell.second_warp * 32u};
    return {};
}

void record(Cell &cell, bool write) {
    const unsigned self = here.thread.x, warp = self / 32;
    if (write) {
        cell.written = interval;
        cell.written_warp = warp_interval[warp];
        cell.writer = std::uint16_t(self);
        cell.read = cell.second_read = cell.other_block_read = 0;
        return;
    }
    if (is_other_block(cell.read)) cell.other_block_read = cell.read;
    if (cell.read == interval && cell.reader / 32 != warp) {
        cell.second_read = cell.read;
        cell.second_warp = std::uint8_t(cell.reader / 32);
        cell.several_lanes = false;
    } else if (cell.read != interval || cell.read_warp != warp_interval[warp]) {
        cell.several_lanes = false;
    } else if (cell.reader != self) {
        cell.several_lanes = true;
    }
    cell.read = interval;
    cell.read_warp = warp_interval[warp];
    cell.reader = std::uint16_t(self);
}

// `where` names the array or allocation, `offset` is in bytes from its start.
void tell_race(const Access &access, const Rival &rival, Finding kind, const std::string &where, u64 offset) {
    if (!first_of_kind(access.site, kind)) return;
    if (rival.other_block) {
        simt::note(simt::CUDA_LAUNCH_FAILED, "race: %s byte %llu of %s, which another block %s (code 0x%llx)",
                   access.verb(), offset, where.c_str(), rival.verb, access.place());
    } else {
        simt::note(simt::CUDA_LAUNCH_FAILED,
                   "race: %s byte %llu of %s, which thread %u %s with no barrier between (code 0x%llx)",
                   access.verb(), offset, where.c_str(), rival.thread, rival.verb, access.place());
    }
}

std::string array_at(u64 offset, u64 *inside) {
    const Worker &w = *worker;
    for (unsigned i = w.room_count; i-- > 0;) {
        if (offset < w.rooms[i].offset) continue;
        *inside = offset - w.rooms[i].offset;
        return std::string("shared array ") + w.rooms[i].array->name;
    }
    *inside = offset;
    return "shared memory";
}

void check_shared(const Access &access) {
    const Worker &w = *worker;
    const u64 offset = access.address - reinterpret_cast<u64>(w.arena);
    u64 inside;
    bool within = false;
    for (unsigned i = 0; i < w.room_count && !within; i++) {
        const u64 from = offset - w.rooms[i].offset;
        within = offset >= w.rooms[i].offset && from + access.bytes <= w.rooms[i].array->bytes;
    }
    if (!within) {
        const std::string where = array_at(offset, &inside);
        simt::fail(simt::CUDA_ILLEGAL_ADDRESS, "%s %u bytes at byte %llu of %s, beyond its end (code 0x%llx)",
                   access.verb(), access.bytes, inside, where.c_str(), access.place());
    }
    for (unsigned i = 0; i < access.bytes; i++) {
        Cell &cell = shared_cells[offset + i];
        if (!access.write && cell.written < block_start) {
            if (first_of_kind(access.site, UNINITIALISED_SHARED)) {
                const std::string where = array_at(offset + i, &inside);
                simt::note(simt::CUDA_LAUNCH_FAILED,
                           "reads byte %llu of %s, which this block has not written (code 0x%llx)", inside,
                           where.c_str(), access.place());
            }
            continue;
        }
        const Rival rival = find_rival(cell, access);
        if (rival.verb != nullptr) {
            const std::string where = array_at(offset + i, &inside);
            tell_race(access, rival, SHARED_RACE, where, inside);
        }
        record(cell, access.write);
    }
}

std::string name_of(const simgpu::Allocation &a) {
    return "allocation " + std::to_string(a.number) + " (" + std::to_string(a.bytes) + " bytes)";
}

void check_device(const Access &access) {
    const u64 offset = access.address - base, page = offset / PAGE;
    const u32 owner = page_owner[page];
    if (owner == 0) {
        simt::fail(simt::CUDA_ILLEGAL_ADDRESS, "%s %u bytes at 0x%llx, outside of all allocations (code 0x%llx)",
                   access.verb(), access.bytes, access.address, access.place());
    }
    const simgpu::Allocation &a = owners[owner];
    const u64 inside = access.address - a.start;
    if (inside + access.bytes > a.bytes) {
        simt::fail(simt::CUDA_ILLEGAL_ADDRESS, "%s %u bytes at byte %llu of %s (code 0x%llx)", access.verb(),
                   access.bytes, inside, name_of(a).c_str(), access.place());
    }
    Cell *cells = page_cells[page];
    if (cells == nullptr && access.write) cells = page_cells[page] = new Cell[PAGE + 16];
    for (unsigned i = 0; i < access.bytes; i++) {
        if (access.write) {
            written_bits[(offset + i) / 8] |= std::uint8_t(1u << ((offset + i) % 8));
        } else if (!is_written(offset + i)) {
            if (first_of_kind(access.site, UNINITIALISED_DEVICE)) {
                simt::note(simt::CUDA_LAUNCH_FAILED,
                           "reads byte %llu of %s, which nothing has written (code 0x%llx)", inside + i,
                           name_of(a).c_str(), access.place());
            }
            continue;
        }
        if (cells == nullptr) continue;
        // An unaligned access may end in the next page, whose first cells are not this page's last.
        if (offset % PAGE + i == PAGE) {
            cells = page_cells[page + 1];
            if (cells == nullptr && access.write) cells = page_cells[page + 1] = new Cell[PAGE + 16];
            if (cells == nullptr) return;
        }
        Cell &cell = cells[(offset + i) % PAGE];
        const Rival rival = find_rival(cell, access);
        if (rival.verb != nullptr) tell_race(access, rival, DEVICE_RACE, name_of(a), inside + i);
        record(cell, access.write);
    }
}

bool in_range(u64 address, const void *start, std::size_t bytes) {
    return address - reinterpret_cast<u64>(start) < bytes;
}

// `whole`: the source accesses the bytes at once, so that a GPU needs them aligned.
void check(const void *pointer, unsigned bytes, bool write, bool whole, void *caller) {
    Worker *w = worker;
    if (w == nullptr || !w->in_kernel) return;
    const u64 address = reinterpret_cast<u64>(pointer);
    if (in_range(address, w->stacks, simt::MAX_THREADS * simt::STACK)) return;
    const bool shared = in_range(address, w->arena, simt::MAX_SHARED);
    const bool device = !shared && in_range(address, reinterpret_cast<void *>(base), reserved);
    if (!shared && !device) {
        if (in_range(address, w, sizeof *w) || in_range(address, &here, sizeof here)) return;
        if (address >= image.start && address < image.end) return;
        if (simgpu::is_pinned(address, bytes)) return;
        const Access access{address, bytes, write, false, reinterpret_cast<std::uintptr_t>(caller)};
        simt::fail(simt::CUDA_ILLEGAL_ADDRESS,
                   "%s %u bytes at 0x%llx, neither shared nor device memory (code 0x%llx)", access.verb(), bytes,
                   address, access.place());
    }
    const Access access{address, bytes, write, shared, reinterpret_cast<std::uintptr_t>(caller)};
    if (whole && address % bytes != 0) {
        simt::fail(simt::CUDA_MISALIGNED_ADDRESS, "%s %u bytes at 0x%llx, which is no multiple of %u (code 0x%llx)",
                   access.verb(), bytes, address, bytes, access.place());
    }
    if (shared) check_shared(access);
    if (device) check_device(access);
    if (device && !write) accesses::read(address - base, bytes);
    if (whole) accesses::log(here.thread.x, access.site * 2 + write, address, bytes, shared);
}

}  // namespace

void open_memory(u64 start, std::size_t bytes) {
    base = start;
    reserved = bytes;
    page_owner = reserve<u32>(bytes / PAGE);
    written_bits = reserve<std::uint8_t>(bytes / 8);
    page_cells = reserve<Cell *>(bytes / PAGE);
    accesses::open_memory(bytes);
    owners.assign(1, {});
    if (image.end == 0) dl_iterate_phdr(find_image, nullptr);
}

void add_allocation(const simgpu::Allocation &a) {
    owners.resize(std::max<std::size_t>(owners.size(), a.number + 1));
    owners[a.number] = a;
    for (std::size_t page = 0; page < a.reserved / PAGE; page++)
        page_owner[(a.start - base) / PAGE + page] = u32(a.number);
    // Pages were given back when they were freed last: nothing is written, and there are no cells.
}

void remove_allocation(const simgpu::Allocation &a) {
    const u64 first = (a.start - base) / PAGE, pages = a.reserved / PAGE;
    for (u64 page = first; page < first + pages; page++) {
        page_owner[page] = 0;
        delete[] page_cells[page];
        page_cells[page] = nullptr;
    }
    std::memset(written_bits + (a.start - base) / 8, 0, a.reserved / 8);
}

void set_written(u64 address, std::size_t bytes) {
    u64 at = address - base;
    const u64 end = at + bytes;
    for (; at < end && at % 8 != 0; at++) written_bits[at / 8] |= std::uint8_t(1u << (at % 8));
    if (end > at) std::memset(written_bits + at / 8, 0xFF, (end - at) / 8);
    for (at = std::max(at, end / 8 * 8); at < end; at++) written_bits[at / 8] |= std::uint8_t(1u << (at % 8));
}

void copy_written(u64 target, u64 source, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; i++) {
        const u64 to = target - base + i;
        const std::uint8_t bit = std::uint8_t(1u << (to % 8));
        if (is_written(source - base + i)) {
            written_bits[to / 8] |= bit;
        } else {
            written_bits[to / 8] &= std::uint8_t(~bit);
        }
    }
}

void start_launch() {
    launch_start = ++interval;
    told.clear();
}
void start_block() { block_start = ++interval; }
void end_block() {
    for (unsigned warp = 0; warp < worker->warp_count; warp++) accesses::flush(warp);
}
void pass_block_barrier() {
    ++interval;
    end_block();
}
void pass_warp_barrier(unsigned warp) { ++warp_interval[warp]; }
void pass_warp_operation(unsigned warp) { accesses::flush(warp); }
void collect(simgpu::KernelCounts &counts) { accesses::collect(counts); }

}  // namespace checks

namespace simt {

void copy_vector(void *to, const void *from, std::size_t bytes) {
    checks::check(from, unsigned(bytes), false, true, __builtin_return_address(0));
    checks::check(to, unsigned(bytes), true, true, __builtin_return_address(0));
    std::memcpy(to, from, bytes);
}

}  // namespace simt

// What `-fsanitize=thread` calls. `unaligned`: the type promises less than its size, so a GPU's compiler would
// access byte by byte.
#define HOOK extern "C" __attribute__((visibility("default"), noinline))
#define SIZED_HOOKS(bytes)                                                                                       \
    HOOK void __tsan_read##bytes(void *p) { checks::check(p, bytes, false, true, __builtin_return_address(0)); } \
    HOOK void __tsan_write##bytes(void *p) { checks::check(p, bytes, true, true, __builtin_return_address(0)); } \
    HOOK void __tsan_unaligned_read##bytes(void *p) {                                                            \
        checks::check(p, bytes, false, false, __builtin_return_address(0));                                      \
    }                                                                                                            \
    HOOK void __tsan_unaligned_write##bytes(void *p) {                                                           \
        checks::check(p, bytes, true, false, __builtin_return_address(0));                                       \
    }
SIZED_HOOKS(1)
SIZED_HOOKS(2)
SIZED_HOOKS(4)
SIZED_HOOKS(8)
SIZED_HOOKS(16)
HOOK void __tsan_read_range(void *p, std::size_t bytes) {
    checks::check(p, unsigned(bytes), false, false, __builtin_return_address(0));
}
HOOK void __tsan_write_range(void *p, std::size_t bytes) {
    checks::check(p, unsigned(bytes), true, false, __builtin_return_address(0));
}
HOOK void *__tsan_memcpy(void *to, const void *from, std::size_t bytes) {
    checks::check(from, unsigned(bytes), false, false, __builtin_return_address(0));
    checks::check(to, unsigned(bytes), true, false, __builtin_return_address(0));
    return std::memcpy(to, from, bytes);
}
HOOK void *__tsan_memset(void *to, int value, std::size_t bytes) {
    checks::check(to, unsigned(bytes), true, false, __builtin_return_address(0));
    return std::memset(to, value, bytes);
}
HOOK void __tsan_init() {}
HOOK void __tsan_func_entry(void *) {}
HOOK void __tsan_func_exit() {}
HOOK void __tsan_vptr_update(void *, void *) {}
HOOK void __tsan_vptr_read(void *) {}
// The guards of static variables; kernels have no atomics.
HOOK std::uint8_t __tsan_atomic8_load(const volatile std::uint8_t *p, int) {
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
