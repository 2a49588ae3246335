//! Tests of the whole KV cache. All of them compute "keys and values" into a memory of their own
//! ([`world::Memory`]), so a misused page shows up as wrong contents.

mod flows;
mod limits;
mod random;
mod world;
