//! Tests of the KV cache as a whole. All of them compute "keys and values" into a memory of their
//! own ([`world::Memory`]), so that a page used wrongly shows as wrong contents.

mod flows;
mod limits;
mod random;
mod speed;
mod world;
