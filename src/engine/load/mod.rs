//! Model sources: finding and downloading ([`hub`]), and reading ([`gguf`], [`safetensors`]).

mod foreign;
pub(crate) mod gguf;
pub(crate) mod hub;
pub(crate) mod json;
pub(crate) mod safetensors;
