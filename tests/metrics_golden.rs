//! The text-only metrics against the recorded files in the folder named by NEPENTHE_GOLDEN.

#[path = "golden/metrics.rs"]
mod metrics;

use std::path::PathBuf;

#[test]
fn recorded_metrics_when_scored_again_give_the_same_numbers() {
    let Some(root) = std::env::var_os("NEPENTHE_GOLDEN").map(PathBuf::from) else {
        println!("skipped: NEPENTHE_GOLDEN names no folder of recorded metrics");
        return;
    };
    let folder = root.join("metrics");
    let mut failed = vec![];
    for stem in ["rouge", "knowmem", "verbmem", "mmlu", "auc", "privleak"] {
        let file = folder.join(stem).with_extension("json");
        if !file.exists() {
            println!("{stem}: not recorded here");
            continue;
        }
        match metrics::run(&file, &root) {
            Some(Ok(what)) => println!("{stem}: {what}"),
            Some(Err(why)) => failed.push(why),
            None => failed.push(format!("{stem}: not a text-only metric")),
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
