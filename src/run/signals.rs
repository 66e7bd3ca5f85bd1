//! SIGTERM and SIGINT: the first ends the run after the step in hand, the second at once.
//!
//! A library leaves signals to its caller: without the feature `cli` nothing listens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Result;

/// Tells whether the run was asked to stop.
#[derive(Debug, Clone, Default)]
pub struct StopFlag {
    asked: Arc<AtomicBool>,
}

impl StopFlag {
    /// Starts listening.
    pub fn listen() -> Result<Self> {
        let stop = Self::default();
        #[cfg(feature = "cli")]
        stop.register()?;
        Ok(stop)
    }

    #[cfg(feature = "cli")]
    fn register(&self) -> Result<()> {
        use crate::error::{Error, Kind};
        use signal_hook::consts::TERM_SIGNALS;
        use signal_hook::flag;

        for &signal in TERM_SIGNALS {
            let failed = |e| {
                Error::new(Kind::Io, format!("cannot listen to signal {signal}: {e}"))
                    .with_source(e)
            };
            // In this order: the handler that ends the process acts only once the flag is already up.
            let code = Kind::Interrupted.exit_code();
            flag::register_conditional_shutdown(signal, code, self.asked.clone())
                .map_err(failed)?;
            flag::register(signal, self.asked.clone()).map_err(failed)?;
        }
        Ok(())
    }

    /// Returns true once a signal came.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}
