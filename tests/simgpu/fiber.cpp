// `simt_switch` in assembly for x86-64 and AArch64 (what the calling convention lets a function change is not
// saved), and by ucontext elsewhere.
#include "fiber.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)

asm(R"(
    .text
    .p2align 4
    .globl simt_switch
    .hidden simt_switch
    .type simt_switch, @function
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size simt_switch, .-simt_switch
)");

namespace simt {
void *prepare_fiber(char *, char *top, void (*entry)()) {
    // Aligned as after a call: `entry` finds the stack pointer 8 below a multiple of 16.
    void **sp = reinterpret_cast<void **>(reinterpret_cast<std::uintptr_t>(top) & ~std::uintptr_t(15));
    *--sp = nullptr;  // where `entry` would return to
    *--sp = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    return sp;
}
}  // namespace simt

#elif defined(__aarch64__)

asm(R"(
    .text
    .p2align 4
    .globl simt_switch
    .hidden simt_switch
    .type simt_switch, %function
simt_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size simt_switch, .-simt_switch
)");

namespace simt {
void *prepare_fiber(char *, char *top, void (*entry)()) {
    char *sp = reinterpret_cast<char *>(reinterpret_cast<std::uintptr_t>(top) & ~std::uintptr_t(15)) - 160;
    std::memset(sp, 0, 160);
    std::memcpy(sp + 88, &entry, sizeof entry);  // x30, the return address
    return sp;
}
}  // namespace simt

#else

#include <ucontext.h>

void simt_switch(void **save, void *to) {
    ucontext_t here;
    *save = &here;
    swapcontext(&here, static_cast<ucontext_t *>(to));
}

namespace simt {
void *prepare_fiber(char *bottom, char *top, void (*entry)()) {
    const auto place = (reinterpret_cast<std::uintptr_t>(top) - sizeof(ucontext_t)) & ~std::uintptr_t(63);
    ucontext_t *context = reinterpret_cast<ucontext_t *>(place);
    getcontext(context);
    context->uc_stack.ss_sp = bottom;
    context->uc_stack.ss_size = std::size_t(reinterpret_cast<char *>(context) - bottom);
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}
}  // namespace simt

#endif
