//! Gemma-3, text only: Gemma-2 with norms of query and key heads in place of caps, and another rotary base in layers with
//! a sliding window.

use super::record::{Architecture, Names, Positions, Rotary, SlidingLayers, Windows};
use super::{gemma2, llama};

/// Source: transformers `modeling_gemma3.py`.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    // `gemma3` is the multimodal model.
    model_type: "gemma3_text",
    names: Names { qk_norm: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..gemma2::NAMES },
    positions: Positions::Rotary(Rotary {
        base: ("rope_theta", 1e6),
        local: Some(("rope_local_base_freq", 1e4)),
        ..llama::ROTARY
    }),
    // The keys exist in config.json, but are always null.
    score_cap: None,
    logit_cap: None,
    windows: Some(Windows {
        default: 4096,
        layers: SlidingLayers::Periodic {
            keys: &["sliding_window_pattern", "_sliding_window_pattern"],
            period: 6,
        },
    }),
    ..gemma2::ARCHITECTURE
};
