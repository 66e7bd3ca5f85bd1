//! What a model still knows: perplexity, verbatim memory, membership.
