//! The GPU: opening it, naming it, waiting for it.
