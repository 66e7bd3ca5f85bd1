//! From config.json to logits and gradients, written once over the ops.
