// Switching stacks: the threads of a block are fibers of one host thread.
#pragma once

extern "C" {
// Saves the running fiber's registers on its stack and its stack pointer in `*save`, then goes on with the fiber
// whose saved stack pointer is `to`.
__attribute__((visibility("hidden"))) void simt_switch(void **save, void *to);
}

namespace simt {

// Makes the stack that ends at `top` ready, so that a switch to the result runs `entry`, which never returns.
void *prepare_fiber(char *bottom, char *top, void (*entry)());

}  // namespace simt
