#include "ptx.h"

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace simgpu {
namespace {

bool is_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$'; }

// Bytes of `.param .u64 name` or `.param .align 8 .b8 name[16]`, from behind `.param` to the comma or parenthesis.
unsigned parameter_bytes(const std::string &text) {
    unsigned bytes = 0;
    for (const char *type : {".b8", ".u8", ".s8"}) bytes = text.find(type) != std::string::npos ? 1 : bytes;
    for (const char *type : {".b16", ".u16", ".s16", ".f16"})
        bytes = text.find(type) != std::string::npos ? 2 : bytes;
    for (const char *type : {".b32", ".u32", ".s32", ".f32"})
        bytes = text.find(type) != std::string::npos ? 4 : bytes;
    for (const char *type : {".b64", ".u64", ".s64", ".f64"})
        bytes = text.find(type) != std::string::npos ? 8 : bytes;
    const std::size_t bracket = text.find('[');
    return bracket == std::string::npos ? bytes : bytes * unsigned(std::atoi(text.c_str() + bracket + 1));
}

}  // namespace

bool parse_ptx(const std::string &text, Ptx *ptx) {
    const std::size_t version = text.find(".version"), target = text.find(".target");
    if (version == std::string::npos || target == std::string::npos) return false;
    int major = 0, minor = 0;
    char letter = 0;
    if (std::sscanf(text.c_str() + version, ".version %d.%d", &major, &minor) != 2) return false;
    if (std::sscanf(text.c_str() + target, ".target sm_%d%c", &ptx->target, &letter) < 1) return false;
    ptx->version = major * 10 + minor;
    ptx->exact = letter == 'a' || letter == 'f';
    return true;
}

bool find_entry(const std::string &text, const std::string &name, std::vector<unsigned> *sizes) {
    sizes->clear();
    for (std::size_t at = text.find(".entry"); at != std::string::npos; at = text.find(".entry", at + 1)) {
        std::size_t start = at + std::strlen(".entry");
        while (start < text.size() && std::isspace(static_cast<unsigned char>(text[start]))) start++;
        if (text.compare(start, name.size(), name) != 0 || is_name(text[start + name.size()])) continue;
        const std::size_t end = text.find(')', start);
        for (std::size_t p = text.find(".param", start); p < end; p = text.find(".param", p + 1)) {
            sizes->push_back(parameter_bytes(text.substr(p + 6, text.find_first_of(",)", p) - p - 6)));
        }
        return true;
    }
    return false;
}

int newest_ptx(int driver) {
    const int major = driver / 1000, minor = driver % 1000 / 10;
    if (major < 11) return 65;
    if (major == 11) return 70 + minor;
    if (major == 12) return 80 + (minor <= 5 ? minor : minor - 1);  // 12.6 has 8.5, as 12.5
    return (major - 4) * 10 + minor;
}

}  // namespace simgpu
