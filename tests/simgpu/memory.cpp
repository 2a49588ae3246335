#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#include "driver.h"
#ifdef SIMGPU_CHECKS
#include "checks.h"
#endif

namespace simgpu {

Memory memory;

namespace {

// One file of poison is mapped, copied on write, wherever memory is allocated: nothing is filled before it is used.
constexpr std::size_t POISON_BYTES = 4 << 20;

std::size_t pages(std::size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

std::size_t charged(std::size_t bytes) { return (bytes + 511) / 512 * 512; }

bool is_poison(u64 start, std::size_t bytes) {
    const unsigned char *p = reinterpret_cast<const unsigned char *>(start);
    for (std::size_t i = 0; i < bytes; i++) {
        if (p[i] != POISON) return false;
    }
    return true;
}

std::string describe(const Allocation &a) {
    return "allocation " + std::to_string(a.number) + " of " + std::to_string(a.bytes) + " bytes";
}

}  // namespace

bool Memory::open(std::size_t limit, unsigned devices) {
    close();
    limit_ = limit;
    reserved_ = pages(2 * limit * devices + (1ul << 30));
    void *room = mmap(nullptr, reserved_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) return false;
    base_ = reinterpret_cast<u64>(room);
    cursor_ = base_ + PAGE;
    if (poison_file_ < 0) {
        poison_file_ = memfd_create("simgpu-poison", MFD_CLOEXEC);
        const std::vector<unsigned char> poison(POISON_BYTES, POISON);
        if (poison_file_ < 0 || write(poison_file_, poison.data(), POISON_BYTES) != ssize_t(POISON_BYTES))
            return false;
    }
#ifdef SIMGPU_CHECKS
    checks::open_memory(base_, reserved_);
#endif
    return true;
}

void Memory::close() {
    if (base_ == 0) return;
    munmap(reinterpret_cast<void *>(base_), reserved_);
    base_ = 0;
    reserved_ = 0;
    allocations_.clear();
    for (std::size_t &used : used_) used = 0;
}

int Memory::allocate(unsigned device, std::size_t bytes, u64 *address) {
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (bytes > limit_ || used_[device] + charged(bytes) > limit_) return CUDA_ERROR_OUT_OF_MEMORY;
    const std::size_t room = pages(bytes);
    // The first gap from the cursor on, with a page of guard on both sides; then again from the start.
    u64 start = 0;
    for (u64 from : {cursor_, base_ + PAGE}) {
        u64 at = from;
        auto next = allocations_.lower_bound(from);
        if (next != allocations_.begin()) {
            const Allocation &before = std::prev(next)->second;
            if (before.start + before.reserved + PAGE > at) at = before.start + before.reserved + PAGE;
        }
        for (; next != allocations_.end() && next->first < at + room + PAGE; ++next) {
            at = next->first + next->second.reserved + PAGE;
        }
        if (at + room + PAGE <= base_ + reserved_) {
            start = at;
            break;
        }
    }
    if (start == 0) return CUDA_ERROR_OUT_OF_MEMORY;
    for (std::size_t done = 0; done < room; done += POISON_BYTES) {
        const std::size_t part = room - done < POISON_BYTES ? room - done : POISON_BYTES;
        void *mapped = mmap(reinterpret_cast<void *>(start + done), part, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, poison_file_, 0);
        if (mapped == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    }
    Allocation a;
    a.start = start;
    a.bytes = bytes;
    a.reserved = room;
    a.device = device;
    a.number = ++count_;
    allocations_[start] = a;
    used_[device] += charged(bytes);
    cursor_ = start + room + PAGE;
#ifdef SIMGPU_CHECKS
    checks::add_allocation(a);
#endif
    *address = start;
    return CUDA_SUCCESS;
}

int Memory::release(u64 address, std::string *finding) {
    const auto found = allocations_.find(address);
    if (found == allocations_.end()) return CUDA_ERROR_INVALID_VALUE;
    const Allocation &a = found->second;
    if (!is_poison(a.start + a.bytes, a.reserved - a.bytes)) *finding = "a kernel wrote behind " + describe(a);
#ifdef SIMGPU_CHECKS
    checks::remove_allocation(a);
#endif
    mmap(reinterpret_cast<void *>(a.start), a.reserved, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    used_[a.device] -= charged(a.bytes);
    allocations_.erase(found);
    return CUDA_SUCCESS;
}

void Memory::release_all(unsigned device) {
    std::vector<u64> starts;
    for (const auto &[start, a] : allocations_) {
        if (a.device == device) starts.push_back(start);
    }
    std::string ignored;
    for (u64 start : starts) release(start, &ignored);
}

const Allocation *Memory::find(u64 address) const {
    auto next = allocations_.upper_bound(address);
    if (next == allocations_.begin()) return nullptr;
    const Allocation &a = std::prev(next)->second;
    return address < a.start + a.bytes ? &a : nullptr;
}

bool Memory::holds(u64 address, std::size_t bytes) const {
    const Allocation *a = find(address);
    return a != nullptr && bytes <= a->bytes - (address - a->start);
}

std::string Memory::broken_red_zone() const {
    for (const auto &[start, a] : allocations_) {
        const std::size_t tail = a.reserved - a.bytes;
        if (!is_poison(start + a.bytes, tail < RED_ZONE ? tail : RED_ZONE))
            return "a kernel wrote behind " + describe(a);
    }
    return "";
}

}  // namespace simgpu
