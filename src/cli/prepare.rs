//! `prepare`.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::output::{Output, table};
use crate::data::Tokenizer;
use crate::error::Result;
use crate::eval::suite::mini_muse::{self, Built, Overlap};
use crate::io::atomic::replace_dir;
use crate::run::checks::check_out;

/// Options of `prepare`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    /// Splits of MUSE's evaluation files in which target, retrain and holdout make sense
    MiniMuse(MiniMuse),
}

#[derive(Debug, clap::Args)]
struct MiniMuse {
    /// The data folder of muse_bench: news/ and books/ with verbmem/, knowmem/ and privleak/
    #[arg(long, value_name = "DIR")]
    muse: PathBuf,
    /// A model folder, whose tokenizer counts
    #[arg(long, value_name = "MODEL")]
    tokenizer: PathBuf,
    /// The folder that is written
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    let Benchmark::MiniMuse(args) = &args.benchmark;
    check_out("--out", &args.out, false)?;
    let tokenizer = Tokenizer::open(&args.tokenizer)?;
    let mut built = Vec::new();
    replace_dir(&args.out, |dir| {
        built = mini_muse::build(&args.muse, dir, &tokenizer)?;
        Ok(())
    })?;
    let value = json!({"out": args.out.display().to_string(), "corpora": built});
    out.result(&value, || built.iter().map(text).collect::<Vec<_>>().join("\n"))
}

fn text(built: &Built) -> String {
    let Built { corpus, splits, dropped_questions: [forget, retain], .. } = built;
    let head = ["split", "documents", "characters", "tokens", "bytes"].map(str::to_owned).to_vec();
    let rows = splits.iter().map(|split| {
        let numbers = [split.documents, split.characters, split.tokens, split.bytes];
        let numbers = numbers.iter().map(usize::to_string);
        std::iter::once(format!("{corpus}/{}", split.file)).chain(numbers).collect()
    });
    let splits = table(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
    let head = ["word 12-grams", "documents", "share", "touching", "more than half"];
    let row = |name: &str, of: &Overlap| {
        let share = format!("{:.2} %", 100.0 * of.share);
        vec![
            name.to_owned(),
            of.documents.to_string(),
            share,
            of.touching.to_string(),
            of.mostly.to_string(),
        ]
    };
    let overlaps = table(&[
        head.map(str::to_owned).to_vec(),
        row("verbmem in privleak forget", &built.verbmem_in_forget),
        row("privleak retain in forget", &built.retain_in_forget),
        row("privleak holdout in forget", &built.holdout_in_forget),
    ]);
    format!(
        "{corpus}: left out for overlap: {} retain and {} holdout documents; asked and shown in context: {forget} \
         forget and {retain} retain questions\n{splits}\n{overlaps}",
        built.dropped_retain, built.dropped_holdout
    )
}
