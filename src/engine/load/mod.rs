//! Where models come from: found or fetched ([`hub`]), then read ([`gguf`], [`safetensors`]).

pub(crate) mod gguf;
pub(crate) mod hub;
pub(crate) mod safetensors;
