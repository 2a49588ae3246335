//! Where models come from: found or fetched ([`hub`]), then read ([`gguf`], [`safetensors`]).

mod foreign;
pub(crate) mod gguf;
pub(crate) mod hub;
pub(crate) mod json;
pub(crate) mod safetensors;
