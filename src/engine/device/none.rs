//! A build without CUDA: it says so, and what to do.
