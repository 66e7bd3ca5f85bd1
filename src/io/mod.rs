//! Files: safetensors, model folders, GGUF, checkpoints.

pub mod safetensors;
