//! From config.json to logits and gradients, written once over the ops.

mod backward;
pub mod config;
pub mod decoder;
pub mod family;
pub mod generate;
pub mod layout;
mod norm;
pub mod params;
pub mod rope;
pub mod saving;
pub mod sink;
pub mod workspace;

pub use config::ModelConfig;
pub use family::{ARCHITECTURES, Architecture};
pub use layout::{Block, Layout, Train};
pub use params::Model;
pub use saving::{Level, Saving};
pub use workspace::Workspace;
