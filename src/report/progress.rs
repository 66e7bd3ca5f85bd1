//! Progress on stderr: a bar where that is a terminal, else a line now and then.

use std::time::{Duration, Instant};

#[cfg(feature = "cli")]
use indicatif::{ProgressBar, ProgressStyle};

#[cfg(not(feature = "cli"))]
use super::hidden_bar::ProgressBar;

/// The least time between two lines where stderr is no terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(30);

/// The numbers of one step that are shown; a number that is not finite is shown as a dash.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepLine {
    /// Name of `value`: `nll_forget`, or the name of a loss that has no logits.
    pub name: &'static str,
    /// NLL of the forget documents in nats per token, or the value of that loss.
    pub value: f64,
    /// The name of the penalty and its value before its weight, where there is one.
    pub penalty: Option<(&'static str, f64)>,
    /// Gradient norm before clipping.
    pub norm: f64,
    /// Clip factor, in (0, 1]; 1 where clipping was inactive.
    pub clip: f64,
    /// Tokens that went through the step.
    pub tokens: u64,
}

/// Progress over a known number of steps.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    last: Instant,
    tokens_per_second: Option<f64>,
    /// When the last line was written; `None` before the first one.
    written: Option<Instant>,
    /// The line of the last step, where it has not been written.
    pending: Option<String>,
}

impl Progress {
    /// Starts progress over `total_steps`: a bar if stderr is a terminal, else lines.
    ///
    /// Lines are written for the first step, then at most every 30 seconds, and for the last step.
    pub fn new(total_steps: u64) -> Self {
        // indicatif's own target is stderr and draws nothing where that is no terminal.
        Self::with_bar(ProgressBar::new(total_steps))
    }

    fn with_bar(bar: ProgressBar) -> Self {
        #[cfg(feature = "cli")]
        Self::style(&bar);
        Self { bar, last: Instant::now(), tokens_per_second: None, written: None, pending: None }
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
        let text = message(&line, self.tokens_per_second);
        self.bar.set_message(text.clone());
        self.bar.inc(1);
        if self.bar.is_hidden()
            && let Some(line) = self.line(now, text)
        {
            eprintln!("{line}");
        }
    }

    /// Returns the line of a step at `now` if it is due; keeps it otherwise.
    fn line(&mut self, now: Instant, text: String) -> Option<String> {
        let (step, all) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let due = self.written.is_none_or(|last| now - last >= BETWEEN_LINES);
        self.pending = Some(format!("step {step}/{all}  {text}"));
        if !due && step < all {
            return None;
        }
        self.written = Some(now);
        self.pending.take()
    }

    /// Smooths the rate over about ten steps; an evaluation between steps counts as slow tokens.
    fn count_tokens(&mut self, tokens: u64, took: Duration) {
        let now = tokens as f64 / took.as_secs_f64().max(1e-9);
        self.tokens_per_second =
            Some(self.tokens_per_second.map_or(now, |before| before + 0.1 * (now - before)));
    }

    /// Prints a line above the bar, or plainly to stderr where there is none.
    pub fn println(&self, line: &str) {
        #[cfg(feature = "cli")]
        if !self.bar.is_hidden() {
            return self.bar.println(line);
        }
        eprintln!("{line}");
    }

    /// Ends progress and leaves its last state on the screen.
    pub fn finish(&mut self) {
        if let Some(line) = self.pending.take().filter(|_| self.bar.is_hidden()) {
            eprintln!("{line}");
        }
        self.bar.abandon();
    }
}

fn message(line: &StepLine, rate: Option<f64>) -> String {
    let number = |v: f64, decimals: usize| match v {
        v if !v.is_finite() => "-".to_owned(),
        v if v != 0.0 && !(1e-3..1e5).contains(&v.abs()) => format!("{v:.2e}"),
        v => format!("{v:.decimals$}"),
    };
    let mut text = format!("{} {}", line.name, number(line.value, 3));
    if let Some((name, value)) = line.penalty {
        text += &format!("  {name} {}", number(value, 4));
    }
    let rate = rate.map_or("- tok/s".into(), tokens_per_second);
    text + &format!("  norm {}  clip {}  {rate}", number(line.norm, 3), number(line.clip, 2))
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

    const LINE: StepLine = StepLine {
        name: "nll_forget",
        value: 4.5,
        penalty: Some(("penalty qkl", 3.4e-5)),
        norm: f64::NAN,
        clip: 1.0,
        tokens: 2304,
    };

    #[test]
    fn message_of_a_step_names_each_number() {
        let text = message(&LINE, Some(12_345.0));
        assert_eq!(text, "nll_forget 4.500  penalty qkl 3.40e-5  norm -  clip 1.00  12.3k tok/s");
        assert!(message(&LINE, None).ends_with("- tok/s"));
        let alone = message(&StepLine { penalty: None, ..LINE }, None);
        assert_eq!(alone, "nll_forget 4.500  norm -  clip 1.00  - tok/s");
    }

    #[test]
    fn step_when_hidden_still_counts() {
        let mut progress = Progress::with_bar(ProgressBar::hidden()).resume_at(0);
        (0..3).for_each(|_| progress.step(LINE));
        assert_eq!(progress.bar.position(), 3);
        assert!(progress.tokens_per_second.is_some_and(f64::is_finite));
        progress.finish();
    }

    #[test]
    fn lines_come_first_then_every_thirty_seconds_and_last() {
        let bar = ProgressBar::with_draw_target(Some(100), indicatif::ProgressDrawTarget::hidden());
        let mut progress = Progress::with_bar(bar);
        let start = Instant::now();
        let mut written = Vec::new();
        for step in 1..=100 {
            progress.bar.inc(1);
            let now = start + Duration::from_secs(step);
            if let Some(line) = progress.line(now, "x".into()) {
                written.push(line);
            }
        }
        let wanted = [1, 31, 61, 91, 100].map(|step| format!("step {step}/100  x"));
        assert_eq!(written, wanted);
        assert_eq!(progress.pending, None);
    }
}
