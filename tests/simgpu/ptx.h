// What the stand-in reads of a PTX text: its version, its target, its entries and their parameters.
#pragma once
#include <string>
#include <vector>

namespace simgpu {

struct Ptx {
    int version = 0;     // 81 for 8.1
    int target = 0;      // 80 for sm_80
    bool exact = false;  // sm_90a: for this capability alone
};
// False if the text is no PTX.
bool parse_ptx(const std::string &text, Ptx *ptx);

// Whether the text has `.entry name`, and the bytes of each of its parameters.
bool find_entry(const std::string &text, const std::string &name, std::vector<unsigned> *sizes);

// The newest PTX that a driver reads: 81 for 12010. (PTX ISA, "Release notes".)
int newest_ptx(int driver);

}  // namespace simgpu
