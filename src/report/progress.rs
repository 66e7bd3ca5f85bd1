//! The progress bar on stderr; hidden where stderr is no terminal.

use std::time::{Duration, Instant};

#[cfg(feature = "cli")]
use indicatif::{ProgressBar, ProgressStyle};

#[cfg(not(feature = "cli"))]
use super::hidden_bar::ProgressBar;

/// The numbers of one step that the bar shows; a number that is not finite is shown as a dash.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepLine {
    /// Monitored forget loss, nats per token.
    pub loss: f64,
    /// Reported retain penalty, nats per token.
    pub penalty: f64,
    /// Gradient norm before clipping.
    pub norm: f64,
    /// Clip factor, in (0, 1]; 1 where clipping was inactive.
    pub clip: f64,
    /// Tokens that went through the step.
    pub tokens: u64,
}

/// A bar over a known number of steps.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    last: Instant,
    tokens_per_second: Option<f64>,
}

impl Progress {
    /// Starts a bar over `total_steps`, drawn on stderr if that is a terminal.
    pub fn new(total_steps: u64) -> Self {
        // indicatif's own target is stderr and draws nothing where that is no terminal.
        Self::with_bar(ProgressBar::new(total_steps))
    }

    fn with_bar(bar: ProgressBar) -> Self {
        #[cfg(feature = "cli")]
        Self::style(&bar);
        Self { bar, last: Instant::now(), tokens_per_second: None }
    }

    #[cfg(feature = "cli")]
    fn style(bar: &ProgressBar) {
        let template = "step {pos}/{len} {bar:24} {msg}  {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
    }

    /// Starts counting at `step`, for a run that goes on.
    pub fn resume_at(mut self, step: u64) -> Self {
        self.bar = self.bar.with_position(step);
        self.bar.reset_eta();
        self
    }

    /// Reports one finished step.
    pub fn step(&mut self, line: StepLine) {
        let now = Instant::now();
        self.count_tokens(line.tokens, now - self.last);
        self.last = now;
        self.bar.set_message(message(&line, self.tokens_per_second));
        self.bar.inc(1);
    }

    /// Smooths the rate over about ten steps; an evaluation between steps counts as slow tokens.
    fn count_tokens(&mut self, tokens: u64, took: Duration) {
        let now = tokens as f64 / took.as_secs_f64().max(1e-9);
        self.tokens_per_second =
            Some(self.tokens_per_second.map_or(now, |before| before + 0.1 * (now - before)));
    }

    /// Prints a line above the bar, or plainly to stderr where the bar is hidden.
    pub fn println(&self, line: &str) {
        #[cfg(feature = "cli")]
        if !self.bar.is_hidden() {
            return self.bar.println(line);
        }
        eprintln!("{line}");
    }

    /// Ends the bar and leaves its last state on the screen.
    pub fn finish(&self) {
        self.bar.abandon();
    }
}

fn message(line: &StepLine, rate: Option<f64>) -> String {
    let number = |v: f64, decimals: usize| match v {
        v if !v.is_finite() => "-".to_owned(),
        v if v != 0.0 && !(1e-3..1e5).contains(&v.abs()) => format!("{v:.2e}"),
        v => format!("{v:.decimals$}"),
    };
    format!(
        "loss {}  penalty {}  norm {}  clip {}  {}",
        number(line.loss, 3),
        number(line.penalty, 4),
        number(line.norm, 3),
        number(line.clip, 2),
        rate.map_or("- tok/s".into(), tokens_per_second),
    )
}

fn tokens_per_second(rate: f64) -> String {
    match rate {
        r if r >= 1e6 => format!("{:.1}M tok/s", r / 1e6),
        r if r >= 1e4 => format!("{:.1}k tok/s", r / 1e3),
        r => format!("{r:.0} tok/s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: StepLine =
        StepLine { loss: 4.5, penalty: 3.4e-5, norm: f64::NAN, clip: 1.0, tokens: 2304 };

    #[test]
    fn message_of_a_step_names_each_number() {
        let text = message(&LINE, Some(12_345.0));
        assert_eq!(text, "loss 4.500  penalty 3.40e-5  norm -  clip 1.00  12.3k tok/s");
        assert!(message(&LINE, None).ends_with("- tok/s"));
    }

    #[test]
    fn step_when_hidden_still_counts() {
        let mut progress = Progress::with_bar(ProgressBar::hidden()).resume_at(0);
        (0..3).for_each(|_| progress.step(LINE));
        assert_eq!(progress.bar.position(), 3);
        assert!(progress.tokens_per_second.is_some_and(f64::is_finite));
        progress.finish();
    }
}
