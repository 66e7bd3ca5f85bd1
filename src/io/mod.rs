//! Files: safetensors, model folders, GGUF, checkpoints.
