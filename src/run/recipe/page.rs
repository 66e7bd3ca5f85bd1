//! docs/settings.md.

use std::fmt::Write as _;

use super::presets::PRESETS;
use super::settings::{SETTINGS, Setting, sections};

const HEAD: &str = "# Settings

<!-- Written by tests/settings.rs from src/run/recipe/settings/table.rs: NEPENTHE_BLESS=1 cargo test --release --test settings -->

Every setting of a recipe. A recipe is a TOML file (`--config FILE.toml`); `--set key=value` gives one setting on the command
line, `--preset NAME` a set of them to start from. Later ones win: preset, then file, then `--set`. `nepenthe settings KEY` prints
one of them, and `config.resolved.toml` in a run folder has all values of the run with their meanings.

## Defaults that may surprise

- `model.train = \"body\"`: embeddings, head and norms are frozen.
- `data.order = \"replacement\"`: documents are sampled with replacement, as in the paper's code. In one pass' worth of samples
  about a third of the documents do not appear; `epochs` goes through all of them.
- `eval.documents = 32`: before and after the run (and every `eval.every` steps), documents of the training corpora are measured;
  `eval.documents = 0` turns that off.
- `run.micro_batch` changes the result, because losses are averaged over each micro-batch: two micro-batches of one document are
  not one of two. `run.pack_tokens` and `run.save` change memory and speed only.
- `method.teacher_rate` and `method.damping` are not 0: without a preset the paper's mean teacher is on.
- `optim.schedule = \"constant\"`; the presets of the paper have `paper`, which with AdamW starts at lr/100.
";

/// The text of docs/settings.md.
pub fn page() -> String {
    let mut text = HEAD.to_owned();
    for section in sections() {
        let title = if section.is_empty() { "Top level".into() } else { format!("`[{section}]`") };
        let _ =
            write!(text, "\n## {title}\n\n| key | type | default | meaning |\n|---|---|---|---|\n");
        for setting in SETTINGS.iter().filter(|setting| setting.place().0 == section) {
            text += &row(setting);
        }
    }
    text +=
        "\n## Presets\n\n| preset | method | schedule | source and notes |\n|---|---|---|---|\n";
    for preset in &PRESETS {
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} |",
            preset.name, preset.method, preset.schedule, preset.notes
        );
    }
    text
}

fn row(setting: &Setting) -> String {
    let default = match setting.default {
        "\"\"" => "empty".to_owned(),
        value => format!("`{}`", value.trim_matches('"')),
    };
    format!(
        "| `{}` | {} | {default} | {} |\n",
        setting.key,
        setting.kind.name(),
        setting.describe().replace('|', "\\|")
    )
}
