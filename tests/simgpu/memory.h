// Device memory: host memory with a limit, guard pages, red zones, and 0xFF (not a number) where nothing was
// written.
#pragma once
#include <cstddef>
#include <map>
#include <string>

#include "simt.h"

namespace simgpu {

constexpr std::size_t PAGE = 4096, RED_ZONE = 256;
constexpr unsigned char POISON = 0xFF;

struct Allocation {
    u64 start = 0;
    std::size_t bytes = 0;     // that were asked for
    std::size_t reserved = 0;  // whole pages from `start`
    unsigned device = 0;
    u64 number = 0;  // of the allocations of this process, from 1
};

class Memory {
  public:
    // Reserves addresses, twice the limit, so that freed ones are not used again at once.
    bool open(std::size_t limit_a_device, unsigned devices);
    void close();

    // Returns 0 and sets `address`, or a CUresult: INVALID_VALUE, OUT_OF_MEMORY.
    int allocate(unsigned device, std::size_t bytes, u64 *address);
    int release(u64 address, std::string *finding);
    void release_all(unsigned device);

    const Allocation *find(u64 address) const;  // the allocation that holds the address
    bool holds(u64 address, std::size_t bytes) const;
    bool is_device(u64 address) const { return address >= base_ && address < base_ + reserved_; }

    std::size_t used(unsigned device) const { return used_[device]; }
    std::size_t limit() const { return limit_; }
    const std::map<u64, Allocation> &allocations() const { return allocations_; }
    // Says which red zone was written to; empty if none.
    std::string broken_red_zone() const;

  private:
    u64 base_ = 0;
    std::size_t reserved_ = 0, limit_ = 0;
    u64 cursor_ = 0;
    u64 count_ = 0;
    int poison_file_ = -1;
    std::size_t used_[8] = {};
    std::map<u64, Allocation> allocations_;
};

extern Memory memory;

}  // namespace simgpu
