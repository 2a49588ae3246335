#include "accesses.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

namespace accesses {
namespace {

constexpr unsigned LANES = 32, BANKS = 32, WORD = 4, SECTOR = 32;
constexpr unsigned SITES = 512;          // instructions that one warp can log between two flushes
constexpr unsigned MOST_LOGGED = 65536;  // accesses of one lane by one instruction
constexpr u64 NONE = ~0ull;

// The accesses of a warp by one instruction. The k-th of each lane are one request.
struct Site {
    std::uintptr_t key = 0;
    unsigned bytes = 0;
    bool shared = false;
    unsigned counts[LANES];
    std::vector<u64> addresses;  // [request, lane]
};

struct WarpLog {
    Site sites[SITES];
    std::vector<unsigned> used;
};

WarpLog logs[simt::MAX_WARPS];
simgpu::KernelCounts total;

u64 *sectors_read;               // a bit for each sector that the running launch has read
std::size_t sectors_read_bytes;  // of these bits
std::vector<u64> words_read;     // the words with bits

// Passes that the banks need for the lanes of one phase: the most distinct words that one bank must give.
unsigned passes(const u64 *addresses, unsigned lanes, unsigned bytes) {
    u64 words[LANES * 4];
    unsigned count = 0;
    for (unsigned lane = 0; lane < lanes; lane++) {
        if (addresses[lane] == NONE) continue;
        for (u64 at = addresses[lane] / WORD; at <= (addresses[lane] + bytes - 1) / WORD; at++) words[count++] = at;
    }
    std::sort(words, words + count);
    count = unsigned(std::unique(words, words + count) - words);
    unsigned banks[BANKS] = {}, most = 0;
    for (unsigned i = 0; i < count; i++) most = std::max(most, ++banks[words[i] % BANKS]);
    return most;
}

// Lanes of 8 bytes are served by halves of the warp, lanes of 16 by quarters.
void count_shared(const Site &site, const u64 *addresses) {
    const unsigned lanes = site.bytes <= 4 ? LANES : site.bytes <= 8 ? LANES / 2 : LANES / 4;
    for (unsigned first = 0; first < LANES; first += lanes) {
        const unsigned needed = passes(addresses + first, lanes, site.bytes);
        if (needed == 0) continue;
        total.shared_requests++;
        total.shared_conflicts += needed - 1;
    }
}

void count_global(const Site &site, const u64 *addresses) {
    u64 sectors[LANES * 2];
    unsigned count = 0, lanes = 0;
    for (unsigned lane = 0; lane < LANES; lane++) {
        if (addresses[lane] == NONE) continue;
        lanes++;
        const u64 first = addresses[lane] / SECTOR, last = (addresses[lane] + site.bytes - 1) / SECTOR;
        sectors[count++] = first;
        if (last != first) sectors[count++] = last;
    }
    std::sort(sectors, sectors + count);
    total.global_requests++;
    total.global_sectors += u64(std::unique(sectors, sectors + count) - sectors);
    total.global_bytes += u64(lanes) * site.bytes;
}

Site *find(WarpLog &warp, std::uintptr_t key) {
    for (unsigned i = 0, at = unsigned(key * 0x9e3779b1u >> 7) % SITES; i < SITES; i++, at = (at + 1) % SITES) {
        Site &site = warp.sites[at];
        if (site.key == key) return &site;
        if (site.key != 0) continue;
        site.key = key;
        std::fill(site.counts, site.counts + LANES, 0u);
        site.addresses.clear();
        warp.used.push_back(at);
        return &site;
    }
    return nullptr;
}

}  // namespace

void log(unsigned thread, std::uintptr_t key, u64 address, unsigned bytes, bool shared) {
    Site *site = find(logs[thread / LANES], key);
    const unsigned lane = thread % LANES;
    if (site == nullptr || site->counts[lane] >= MOST_LOGGED) return;
    site->bytes = bytes;
    site->shared = shared;
    const std::size_t at = std::size_t(site->counts[lane]++) * LANES;
    if (site->addresses.size() < at + LANES) site->addresses.resize(at + LANES, NONE);
    site->addresses[at + lane] = address;
}

void open_memory(std::size_t bytes) {
    if (sectors_read != nullptr) munmap(sectors_read, sectors_read_bytes);
    words_read.clear();
    sectors_read_bytes = bytes / SECTOR / 8 + sizeof(u64);
    void *room = mmap(nullptr, sectors_read_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) std::abort();
    sectors_read = static_cast<u64 *>(room);
}

void read(u64 offset, unsigned bytes) {
    for (u64 sector = offset / SECTOR; sector <= (offset + bytes - 1) / SECTOR; sector++) {
        u64 &word = sectors_read[sector / 64];
        const u64 bit = 1ull << (sector % 64);
        if (word & bit) continue;
        if (word == 0) words_read.push_back(sector / 64);
        word |= bit;
        total.distinct_sectors++;
    }
}

void flush(unsigned warp) {
    WarpLog &logged = logs[warp];
    for (const unsigned at : logged.used) {
        Site &site = logged.sites[at];
        for (std::size_t request = 0; request < site.addresses.size(); request += LANES) {
            if (site.shared) count_shared(site, &site.addresses[request]);
            if (!site.shared) count_global(site, &site.addresses[request]);
        }
        site.key = 0;
    }
    logged.used.clear();
}

void collect(simgpu::KernelCounts &counts) {
    counts.shared_requests += total.shared_requests;
    counts.shared_conflicts += total.shared_conflicts;
    counts.global_requests += total.global_requests;
    counts.global_sectors += total.global_sectors;
    counts.global_bytes += total.global_bytes;
    counts.distinct_sectors += total.distinct_sectors;
    total = {};
    for (const u64 word : words_read) sectors_read[word] = 0;
    words_read.clear();
}

}  // namespace accesses
