//! The commands, one file each: parsing and printing only.
//!
//! stdout carries results (one JSON value under `--json`), stderr progress and errors. The exit code is 0, that of
//! the error's [`crate::Kind`], or 2 for a command line that does not parse.

mod bench;
mod demo;
mod doctor;
mod engine;
mod eval;
mod finetune;
mod generate;
mod import_gguf;
mod methods;
mod output;
mod plan;
mod prepare;
mod probe;
mod report;
mod score;
mod settings;
mod slug;
mod suite;
mod task_vector;
mod unlearn;

use clap::{Parser, Subcommand};

use crate::error::{Error, Result};
use output::Output;

/// Makes language models forget: mean-teacher unlearning with the negative log-unlikelihood loss
#[derive(Debug, Parser)]
#[command(name = "nepenthe", version, arg_required_else_help = true, after_help = EXIT_CODES)]
struct Cli {
    /// Print the result as one JSON value on stdout
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 2 configuration or command line, 3 data, 4 model, 5 memory, \
    6 device, 7 numeric, 8 file system, 9 interrupted after a checkpoint";

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a small embedded model forget passages of a book, and compare before and after
    Demo(demo::Args),
    /// Make a model forget a forget set while keeping a retain set
    Unlearn(unlearn::Args),
    /// Fine-tune a model on a data set
    Finetune(finetune::Args),
    /// Take one step on one weight matrix along the gradient of a forget set (SLUG)
    Slug(slug::Args),
    /// Subtract a fine-tuning task vector from a model
    TaskVector(task_vector::Args),
    /// Measure NLL, perplexity and verbatim memorization, or a benchmark: MUSE, TOFU
    Eval(eval::Args),
    /// Continue prompts
    Generate(generate::Args),
    /// Convert a GGUF file to a model folder
    ImportGguf(import_gguf::Args),
    /// Print the log-probability of every token
    Score(score::Args),
    /// List the forget losses and penalties with their formulas
    Methods(methods::Args),
    /// List the settings of a recipe, or explain one
    Settings(settings::Args),
    /// Compare runs on one self-contained HTML page
    Report(report::Args),
    /// Diagnose the optimizer in a recorded run
    #[command(subcommand)]
    Probe(probe::Probe),
    /// Build a benchmark from your own data
    Prepare(prepare::Args),
    /// Compute the memory of a run in advance, and what fits
    Plan(plan::Args),
    /// Benchmark every kernel and full steps on a GPU against the roofline
    Bench(bench::Args),
    /// Show what this build and machine support; on a GPU, check every kernel
    Doctor(doctor::Args),
}

/// Runs the command line of this process and returns its exit code.
pub fn main() -> i32 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is no reason to complain about the complaint.
            let _ = error.print();
            return error.exit_code();
        }
    };
    let out = Output::new(cli.json);
    match run(&cli.command, &out) {
        Ok(()) => 0,
        Err(error) => {
            output::complain(&error);
            error.kind().exit_code()
        }
    }
}

fn run(command: &Command, out: &Output) -> Result<(), Error> {
    match command {
        Command::Demo(args) => demo::run(args, out),
        Command::Unlearn(args) => unlearn::run(args, out),
        Command::Finetune(args) => finetune::run(args, out),
        Command::Slug(args) => slug::run(args, out),
        Command::TaskVector(args) => task_vector::run(args, out),
        Command::Eval(args) => eval::run(args, out),
        Command::Generate(args) => generate::run(args, out),
        Command::ImportGguf(args) => import_gguf::run(args, out),
        Command::Score(args) => score::run(args, out),
        Command::Methods(args) => methods::run(args, out),
        Command::Settings(args) => settings::run(args, out),
        Command::Report(args) => report::run(args, out),
        Command::Probe(probe) => probe::run(probe, out),
        Command::Prepare(args) => prepare::run(args, out),
        Command::Plan(args) => plan::run(args, out),
        Command::Bench(args) => bench::run(args, out),
        Command::Doctor(args) => doctor::run(args, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_have_no_short_forms_but_help_and_version() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_arguments().all(|arg| arg.get_short().is_none()));
        }
    }
}
