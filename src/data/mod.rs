//! Corpora: reading, tokenising, caching, sampling.
