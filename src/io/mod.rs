//! Files: safetensors, model folders, GGUF, checkpoints.

pub mod atomic;
pub mod checkpoint;
pub mod gguf;
pub mod safetensors;
