//! The table of experiments/predictions.md: what an H100 should make of every measurement of `nepenthe bench`.
//!
//! `NEPENTHE_BLESS=1 cargo test --test predictions` regenerates it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write as _;
use std::path::Path;

use nepenthe::bench::predict::{Prediction, ROOFS, predict};
use nepenthe::bench::{MODELS, Preset};

/// The lines around the generated part.
const BEGIN: &str = "<!-- begin: written by tests/predictions.rs -->";
const END: &str = "<!-- end -->";

fn row(p: &Prediction) -> String {
    let (amount, unit) = match (p.tokens, p.floor.flop > 0.0) {
        (true, _) => (p.amount, "tokens/s"),
        (false, true) => (p.amount / 1e12, "TFLOP/s"),
        (false, false) => (p.amount / 1e9, "GB/s"),
    };
    format!(
        "| {} | {} | {:.3} | {:.1} | {:.1} | {:.1} | {:.0} {unit} | {:.0} % |\n",
        p.name,
        p.kind,
        p.floor.flop / 1e12,
        p.floor.bytes / 1e6,
        p.floor_seconds * 1e6,
        p.seconds * 1e6,
        amount / p.seconds,
        100.0 * p.floor_seconds / p.seconds,
    )
}

/// The geometric mean of the rates of plain products, in TFLOP/s.
fn products(all: &[Prediction]) -> f64 {
    let rates = all
        .iter()
        .filter(|p| p.kind == "gemm" && !p.name.ends_with("decode") && !p.name.contains(" with "))
        .map(|p| (p.amount / p.seconds / 1e12).ln());
    let (count, sum) = rates.fold((0.0, 0.0), |(n, sum), x| (n + 1.0, sum + x));
    (sum / count).exp()
}

fn render() -> String {
    let mut text =
        format!("Roofs: {:.0} TFLOP/s, {:.1} TB/s.\n", ROOFS.flops / 1e12, ROOFS.bytes / 1e12);
    for model in MODELS {
        let all = predict(&Preset::new(model).unwrap());
        let mean = products(&all);
        writeln!(text, "\n### {model}\n\nPlain GEMMs, geometric mean: {mean:.0} TFLOP/s.\n")
            .unwrap();
        text.push_str(
            "| op | kind | TFLOP | MB | floor us | predicted us | rate | share of roof |\n",
        );
        text.push_str("|---|---|---|---|---|---|---|---|\n");
        all.iter().for_each(|p| text.push_str(&row(p)));
    }
    text
}

#[test]
fn the_committed_table_is_that_of_the_model() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments/predictions.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) =
        text.split_once(BEGIN).expect("experiments/predictions.md has no begin mark");
    let (committed, after) =
        rest.split_once(END).expect("experiments/predictions.md has no end mark");
    let fresh = render();
    if std::env::var_os("NEPENTHE_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}\n{fresh}{END}{after}")).unwrap();
        return;
    }
    let again = "NEPENTHE_BLESS=1 cargo test --test predictions regenerates the table";
    assert_eq!(committed.trim(), fresh.trim(), "{again}");
}
